"""Devices: a named set of cells, which bit plane lives in which, and the conditions of use; TOML files.

The files that ship with the package lie in `devices/` beside this module; a user's own file works the same way.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError, model_validator

from qtaml_onnx.errors import InputError
from qtaml_onnx.physics.cell import cell_flip_rates, log_escape_rates, state_cases
from qtaml_onnx.physics.spec import CellSpec, Duration, NotNegative, PlanesSpec, Positive, Strict
from qtaml_onnx.physics.units import positive
from qtaml_onnx.textio import read_text

__all__ = ["Device", "DeviceFlipRates", "device_names", "inline_device", "load_device"]

Floats = NDArray[np.float64]
MAX_BITS = 16
_CALLER = "given by the caller"


@dataclass(frozen=True)
class DeviceFlipRates:
    """Flip probabilities of every bit plane between write and read.

    Attributes:
        p01: Probability that a stored 0 is read as 1, float64 `[bits]`, least significant plane first.
        p10: Probability that a stored 1 is read as 0, float64 `[bits]`.
        cells: Cell of each plane, least significant first.

    Raises:
        InputError: p01 + p10 > 1 in a plane: such a bit would be more often wrong than forgotten.
    """

    p01: Floats
    p10: Floats
    cells: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuses pairs that sum to more than 1."""
        over = self.p01 + self.p10 > 1 + 1e-12
        if np.any(over):
            plane = int(np.argmax(over))
            total = float(self.p01[plane] + self.p10[plane])
            raise InputError(f"plane {plane}: p01 + p10 = {total:g} exceeds 1: no bit forgets more than everything")


class Device(Strict):
    """A memory: its cells, the bit planes they hold, and the conditions under which it is used.

    Attributes:
        name: Name.
        summary: One line for the reader.
        supply_v: Supply voltage at the write, V.
        temperature_k: Temperature, K; None: electrons at the band edge, no thermal average.
        retention: Time between write and read, s (in a file also `10y`, `250ms` …).
        planes: Which cell stores which plane.
        cells: Cells by name.
    """

    name: str
    summary: str = ""
    supply_v: NotNegative
    temperature_k: Positive | None = None
    retention: Duration
    planes: PlanesSpec
    cells: dict[str, CellSpec]

    @model_validator(mode="after")
    def _planes_exist(self) -> Device:
        for cell in (self.planes.default, *self.planes.from_msb):
            if cell not in self.cells:
                raise ValueError(f"planes name the cell {cell!r}, but the cells are {', '.join(self.cells) or 'none'}")
        if len(self.planes.from_msb) > MAX_BITS:
            raise ValueError(f"planes.from_msb names {len(self.planes.from_msb)} planes; words have at most {MAX_BITS}")
        return self

    def plane_cells(self, bits: int) -> tuple[str, ...]:
        """Cell of each of `bits` planes, least significant first.

        Raises:
            InputError: fewer than 1 or more than 16 bits.
        """
        if not 1 <= bits <= MAX_BITS:
            raise InputError(f"words have 1 to {MAX_BITS} bits, got {bits}")
        named = self.planes.from_msb[:bits]
        return (self.planes.default,) * (bits - len(named)) + tuple(reversed(named))

    def cell(self, name: str | None = None) -> CellSpec:
        """The cell of that name; None: the cell of the planes that have no other.

        Raises:
            InputError: no such cell.
        """
        wanted = self.planes.default if name is None else name
        if wanted not in self.cells:
            raise InputError(f"device {self.name} has no cell {wanted!r}: its cells are {', '.join(self.cells)}")
        return self.cells[wanted]

    def cell_rates(
        self,
        cell: str | None = None,
        *,
        retention_s: ArrayLike | None = None,
        temperature_k: ArrayLike | None = None,
        supply_v: ArrayLike | None = None,
        thickness_nm: ArrayLike | None = None,
        sigma_thickness_nm: ArrayLike | None = None,
    ) -> tuple[Floats, Floats]:
        """(p01, p10) of one cell; arguments left out are the device's own, the others broadcast.

        Raises:
            InputError: no such cell, or conditions outside the model (see `cell_flip_rates`).
        """
        own = self.temperature_k.value if self.temperature_k else None
        return cell_flip_rates(
            self.cell(cell),
            supply_v=self.supply_v.value if supply_v is None else supply_v,
            temperature_k=own if temperature_k is None else temperature_k,
            retention_s=self.retention.value if retention_s is None else retention_s,
            thickness_nm=thickness_nm,
            sigma_thickness_nm=sigma_thickness_nm,
        )

    def flip_rates(
        self,
        bits: int,
        *,
        retention_s: float | None = None,
        temperature_k: float | None = None,
        supply_v: float | None = None,
    ) -> DeviceFlipRates:
        """Flip probabilities of a word of `bits` planes; arguments left out are the device's own.

        Raises:
            InputError: a number of bits outside 1 … 16, or conditions outside the model.
        """
        planes = self.plane_cells(bits)
        rates = {
            cell: self.cell_rates(cell, retention_s=retention_s, temperature_k=temperature_k, supply_v=supply_v)
            for cell in dict.fromkeys(planes)
        }
        p01, p10 = (np.array([float(rates[cell][which]) for cell in planes]) for which in (0, 1))
        return DeviceFlipRates(p01, p10, planes)

    def at(
        self,
        *,
        retention_s: float | None = None,
        temperature_k: float | None = None,
        supply_v: float | None = None,
        cell: str | None = None,
        thickness_nm: float | None = None,
        sigma_thickness_nm: float | None = None,
    ) -> Device:
        """The same device under other conditions; the source of each changed number reads `given by the caller`.

        Args:
            retention_s: Time between write and read, s.
            temperature_k: Temperature, K.
            supply_v: Supply voltage, V.
            cell: Cell that the next two change; None: that of the planes that have no other.
            thickness_nm: Thickness of its layers that are not fixed, nm; they keep their proportions.
            sigma_thickness_nm: Standard deviation of that thickness, nm.

        Raises:
            InputError: a time, temperature or thickness that is not above 0, a negative supply or deviation, no such
                cell.
        """

        def given(value: float) -> dict[str, Any]:
            return {"value": float(value), "source": _CALLER}

        data = self.model_dump()
        conditions = {"retention": retention_s, "temperature_k": temperature_k, "supply_v": supply_v}
        data |= {key: given(value) for key, value in conditions.items() if value is not None}
        spec = self.cell(cell)
        changed = data["cells"][self.planes.default if cell is None else cell]
        if thickness_nm is not None:
            scale = positive("thickness", thickness_nm, "nm") / spec.thickness_nm
            for layer in changed["layers"]:
                if not layer["fixed"]:
                    layer["thickness_nm"] = given(layer["thickness_nm"]["value"] * scale)
        if sigma_thickness_nm is not None:
            changed["sigma_thickness_nm"] = given(sigma_thickness_nm)
        return _validated(data, f"device {self.name}")

    def describe(self, bits: int = 8) -> dict[str, Any]:
        """Everything that the rates follow from, JSON-serialisable: conditions, parameters with sources, results.

        Keys: name, summary, conditions, planes (cell, p01, p10 a plane, least significant first), cells (parameters as
        {value, source}; derived: voltage, electrons and escape rate of each state, p01, p10).

        Raises:
            InputError: a number of bits outside 1 … 16.
        """
        rates = self.flip_rates(bits)
        planes = [
            {"plane": plane, "cell": cell, "p01": float(rates.p01[plane]), "p10": float(rates.p10[plane])}
            for plane, cell in enumerate(rates.cells)
        ]
        dumped = self.model_dump(mode="json")
        cells = {
            name: {"parameters": dumped["cells"][name], "derived": self._derived(name)}
            for name in dict.fromkeys(rates.cells)
        }
        return {
            "name": self.name,
            "summary": self.summary,
            "conditions": {key: dumped[key] for key in ("supply_v", "temperature_k", "retention")},
            "planes": planes,
            "cells": cells,
        }

    def _derived(self, name: str) -> dict[str, Any]:
        cell = self.cells[name]
        temperature = self.temperature_k.value if self.temperature_k else None
        cases = state_cases(cell, self.supply_v.value)
        at_edge = log_escape_rates(cell, self.supply_v.value, None)
        thermal = log_escape_rates(cell, self.supply_v.value, temperature)
        states = {}
        for label, case, cold, warm in zip(("0", "1"), cases, at_edge, thermal, strict=True):
            states[label] = {
                "drop_v": float(case.drop_v),
                "transmission": float(np.exp(cold) / cell.attempt_hz.value),
                "transmission_thermal": float(np.exp(warm) / cell.attempt_hz.value),
                "escape_rate_per_s": float(np.exp(warm)),
            }
            if cell.model == "threshold":
                states[label] |= {"electrons": float(case.electrons), "critical_electrons": float(case.critical)}
        p01, p10 = self.cell_rates(name)
        return {"thickness_nm": cell.thickness_nm, "states": states, "p01": float(p01), "p10": float(p10)}


def _validated(data: Any, origin: str) -> Device:
    try:
        return Device.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        path = ""
        for part in first["loc"]:
            path += f"[{part}]" if isinstance(part, int) else f"{'.' if path else ''}{part}"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key: mend the spelling or take it out"
        elif first["type"] == "missing":
            message = "missing: add it"
        raise InputError(f"{origin}: {path}: {message}" if path else f"{origin}: {message}") from error


def _shipped() -> dict[str, Any]:
    folder = resources.files("qtaml_onnx.physics") / "devices"
    files = (entry for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return {entry.name.removesuffix(".toml"): entry for entry in sorted(files, key=lambda entry: entry.name)}


def device_names() -> list[str]:
    """Names of the devices that ship with the package, sorted."""
    return list(_shipped())


def load_device(name_or_path: str | Path) -> Device:
    """A shipped device by its name, or a user's by the path of its TOML file.

    Raises:
        InputError: no such name or file, a file that is not TOML, unknown or missing keys, values out of range.
    """
    shipped = _shipped()
    text = str(name_or_path)
    if text in shipped:
        origin, content = f"device {text}", shipped[text].read_text(encoding="utf-8")
    else:
        path = Path(name_or_path)
        if not path.is_file():
            raise InputError(f"no device {text!r}: give one of {', '.join(shipped)}, or the path of a TOML file")
        origin = f"device file {text}"
        content = read_text(path, "device file", "name a TOML file")
    try:
        data = tomllib.loads(content)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{origin} is not valid TOML: {error}") from error
    return _validated(data, origin)


def inline_device(
    *,
    barrier_ev: float,
    mass: float,
    thickness_nm: float,
    voltage_v: float | None = None,
    energy_ev: float | None = None,
    temperature_k: float | None = None,
    retention_s: float | None = None,
    sigma_thickness_nm: float | None = None,
    attempt_hz: float | None = None,
) -> Device:
    """A two-state cell with one dielectric, from the numbers of a command line.

    The charge of a stored 1 puts `voltage_v` across the dielectric; a stored 0 holds none. So p10 follows from the
    tilted barrier and p01 from the flat one. What is left out is 0 V, 0 eV, no thermal average, 1 s, no variation and
    1e13 attempts a second; the description then names the source `default`.

    Raises:
        InputError: a value out of range, or a barrier that does not stand above the electron's energy.
    """
    energy = 0.0 if energy_ev is None else energy_ev
    if not barrier_ev > energy:
        raise InputError(f"the barrier of {barrier_ev:g} eV must stand above the electron's energy of {energy:g} eV")

    def given(value: float | None, default: float = 0.0) -> dict[str, Any]:
        return {"value": default, "source": "default"} if value is None else {"value": float(value), "source": _CALLER}

    layer = {
        "material": "given",
        "thickness_nm": given(thickness_nm),
        "barrier_ev": given(barrier_ev - energy),
        "mass": given(mass),
        "permittivity": {"value": 3.9, "source": "without effect in a single layer"},
    }
    cell = {
        "model": "exchange",
        "attempt_hz": given(attempt_hz, 1e13),
        "sigma_thickness_nm": given(sigma_thickness_nm),
        "layers": [layer],
        "one": {"supply_fraction": {"value": 1.0, "source": "the voltage is that of a stored 1"}},
    }
    data = {
        "name": "inline",
        "summary": "one dielectric, given on the command line",
        "supply_v": given(voltage_v),
        "temperature_k": None if temperature_k is None else given(temperature_k),
        "retention": given(retention_s, 1.0),
        "planes": {"default": "cell"},
        "cells": {"cell": cell},
    }
    return _validated(data, "inline device")
