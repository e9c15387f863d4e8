"""Fault models from what a user gives: a rate, a pair, a table of planes, or a device."""

from __future__ import annotations

import math
from pathlib import Path

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.errors import InputError
from qtaml_onnx.physics import Device, format_duration, load_device
from qtaml_onnx.plan import FaultModel
from qtaml_onnx.sweep import FACTORS, SweepStep

__all__ = ["fault_model", "retention_steps", "sweep_models"]


def fault_model(
    *,
    bits: int,
    flip_rate: float | None = None,
    p01: float | None = None,
    p10: float | None = None,
    plane_rates: Path | None = None,
    device: str | None = None,
    retention_s: float | None = None,
    margin: float = 1.0,
) -> FaultModel:
    """The fault model of exactly one of: a flip rate for all bits, `p01` with `p10`, a CSV file of planes, a device.

    Args:
        bits: Planes that the longest stored word has.
        flip_rate: The same both ways.
        p01: Rate of 0→1.
        p10: Rate of 1→0.
        plane_rates: CSV file, a row a plane.
        device: Name or TOML file.
        retention_s: Seconds that the words are held, in place of the device's own.
        margin: Factor on all rates.

    Raises:
        InputError: if none or several are given, or a rate is out of range.
    """
    pair = p01 is not None or p10 is not None
    given = [
        name
        for name, present in (
            ("--flip-rate", flip_rate is not None),
            ("--p01/--p10", pair),
            ("--plane-rates", plane_rates is not None),
            ("--device", device is not None),
        )
        if present
    ]
    if len(given) != 1:
        what = f"{' and '.join(given)} exclude each other" if given else "no fault model"
        raise InputError(f"{what}; give one of --flip-rate P, --p01 P --p10 P, --plane-rates FILE.csv, --device NAME")
    if retention_s is not None and device is None:
        raise InputError("--retention needs --device NAME, whose rates depend on it")
    if not (math.isfinite(margin) and margin > 0):
        raise InputError(f"--margin {margin:g} is not a positive number")
    described: dict[str, object] | None = None
    if flip_rate is not None:
        rates = FlipRates.uniform(_rate("--flip-rate", flip_rate), bits)
    elif pair:
        if p01 is None or p10 is None:
            raise InputError("--p01 and --p10 go together; give both")
        rates = FlipRates.asymmetric(_rate("--p01", p01), _rate("--p10", p10), bits)
    elif plane_rates is not None:
        rates = FlipRates.from_csv(plane_rates)
        if rates.bits < bits:
            raise InputError(f"{plane_rates} has {rates.bits} planes, the stored words have {bits}; add rows")
    else:
        spec = load_device(str(device))
        if retention_s is not None:
            spec = spec.at(retention_s=retention_s)
        rates = _device_rates(spec, bits)
        described = spec.describe(bits)
    rates = rates.scaled(margin)
    return FaultModel(p01=rates.p01, p10=rates.p10, device=described, margin=margin)


def _device_rates(spec: Device, bits: int) -> FlipRates:
    planes = spec.flip_rates(bits)
    for stored, rate, values in (("0", "p01", planes.p01), ("1", "p10", planes.p10)):
        if (values >= 1.0).any():
            raise InputError(
                f"device {spec.name}: after {format_duration(spec.retention.value)} every stored {stored} is lost "
                f"({rate} = 1); give a shorter --retention or a device that holds longer"
            )
    return FlipRates(tuple(map(float, planes.p01)), tuple(map(float, planes.p10)))


def _rate(option: str, value: float) -> float:
    if not 0 <= value < 1:  # also refuses NaN
        raise InputError(f"{option} {value:g} is outside [0, 1); give a probability below 1")
    return value


def sweep_models(text: str, bits: int) -> list[FaultModel]:
    """A fault model for each rate of a comma list, as `evaluate --flip-rate` takes it.

    Raises:
        InputError: if an entry is no number or outside [0, 1).
    """
    models = []
    for part in text.split(","):
        try:
            rate = float(part)
        except ValueError:
            raise InputError(f"--flip-rate '{part.strip()}' is not a number; separate rates by commas") from None
        models.append(fault_model(bits=bits, flip_rate=rate))
    return models


def retention_steps(device: str, bits: int, retention_s: float | None, margin: float) -> list[SweepStep]:
    """The steps of a sweep over retention times: a quarter, half, once and twice that of the design.

    Each has the rates that the device gives for its time, which are not multiples of each other, times the margin.
    Times after which every bit is lost are left out.

    Args:
        device: Name or TOML file.
        bits: Planes that the longest stored word has.
        retention_s: Seconds that are designed for; None for the device's own.
        margin: Factor on all rates.
    """
    held = retention_s if retention_s is not None else load_device(device).retention.value
    steps = []
    for factor in FACTORS:
        time = held * factor
        try:
            rates = fault_model(bits=bits, device=device, retention_s=time, margin=margin).rates
        except InputError:
            if factor <= 1:
                raise
            continue
        steps.append(SweepStep(rates, format_duration(time), time))
    return steps
