"""Units and constants: energies in eV, lengths in nm, voltages in V, masses in electron masses, times in s."""

from __future__ import annotations

import math
import re

from scipy import constants

from qtaml_onnx.errors import InputError

__all__ = [
    "BOLTZMANN_EV_PER_K",
    "ELEMENTARY_CHARGE_C",
    "IMAGE_EV_NM",
    "WKB_PER_NM",
    "format_duration",
    "parse_duration",
    "positive",
]

ELEMENTARY_CHARGE_C: float = constants.elementary_charge
"""Elementary charge q, in coulomb."""

BOLTZMANN_EV_PER_K: float = constants.Boltzmann / constants.elementary_charge
"""Boltzmann's constant, in eV per kelvin."""

WKB_PER_NM: float = (
    2.0 * math.sqrt(2.0 * constants.electron_mass * constants.elementary_charge) / constants.hbar * constants.nano
)
"""2·sqrt(2·m_e·1 eV)/ħ in 1/nm: the WKB exponent of 1 nm at 1 eV and one electron mass (about 10.25)."""

IMAGE_EV_NM: float = constants.elementary_charge / (16.0 * math.pi * constants.epsilon_0) / constants.nano
"""q²/(16π·ε0) in eV·nm: image energy at 1 nm from one electrode in vacuum (about 0.36)."""

_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "y": 365.25 * 86400.0,
}
_DURATION = re.compile(r"\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([a-zµ]*)\s*")


def positive(name: str, value: float, unit: str = "") -> float:
    """Returns `value` if it is a finite number above 0.

    Raises:
        InputError: it is zero, negative, infinite or not a number; the line names `name`.
    """
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} must be a number above 0{' ' + unit if unit else ''}, got {value:g}")
    return float(value)


def parse_duration(text: str | float) -> float:
    """Reads a time such as `1h`, `30d`, `10y`, `250ms` or `1e-6s`, in seconds; a bare number is seconds.

    Units: ns, us, ms, s, min, h, d, y (365.25 days).

    Raises:
        InputError: not a number, an unknown unit, or not above 0.
    """
    if isinstance(text, (int, float)):
        return positive("time", float(text), "s")
    match = _DURATION.fullmatch(text)
    unit = (match[2] or "s") if match else ""
    try:
        value = float(match[1]) if match else math.nan
    except ValueError:
        value = math.nan
    if unit not in _SECONDS or math.isnan(value):
        raise InputError(
            f"time {text!r} is not a number with one of the units {', '.join(_SECONDS)} (as in 30d, 250ms)"
        )
    return positive(f"time {text!r}", value * _SECONDS[unit], "s")


def format_duration(seconds: float) -> str:
    """Writes a time in the largest unit in which it is at least 1, to four digits: 3600.0 → `1h`."""
    for unit in ("y", "d", "h", "min", "s", "ms", "us"):
        if seconds >= _SECONDS[unit] * (1 - 1e-12):
            return f"{seconds / _SECONDS[unit]:.4g}{unit}"
    return f"{seconds / _SECONDS['ns']:.4g}ns"
