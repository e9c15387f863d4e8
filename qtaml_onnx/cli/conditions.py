"""The steps of a sweep: flip rates or retention times, from the options that name them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_model import fault_model, sweep_models
from qtaml_onnx.physics import parse_duration
from qtaml_onnx.plan import FaultModel

__all__ = ["Condition", "sweep_conditions"]


@dataclass(frozen=True)
class Condition:
    """One step of a sweep: fault-model options, what to call them, and how the user wrote them."""

    options: dict[str, Any]
    origin: str
    label: str | None = None

    def fault_model(self, planes: int) -> FaultModel:
        """The rates of words of that length: which cell a device puts a plane in depends on it."""
        return fault_model(bits=planes, **self.options)

    def described(self, planes: int, fault: FaultModel) -> dict[str, Any]:
        """What the JSON says of it."""
        return {"label": self.label, "origin": self.origin, "word_bits": planes, **fault.model_dump(mode="json")}


def sweep_conditions(
    flip_rate: str | None,
    p01: float | None,
    p10: float | None,
    plane_rates: Path | None,
    device: str | None,
    retention: str | None,
) -> list[Condition]:
    """The steps of the sweep, checked as far as they can be without the models.

    Raises:
        InputError: if the options do not go together, or one is out of range.
    """
    others = {"p01": p01, "p10": p10, "plane_rates": plane_rates, "device": device}
    if retention is not None and device is None:
        raise InputError("--retention needs --device NAME, whose rates depend on it")
    if flip_rate is not None:
        if any(value is not None for value in others.values()):
            raise InputError("--flip-rate excludes the other fault models; give one")
        rates = [model.p01[0] for model in sweep_models(flip_rate, 1)]
        return [Condition({"flip_rate": rate}, f"--flip-rate {rate:g}") for rate in rates]
    given = [f"--{name.replace('_', '-')} {value}" for name, value in others.items() if value is not None]
    conditions = [Condition(others, " ".join(given))]
    if retention is not None:
        times = [part.strip() for part in retention.split(",")]
        conditions = [
            Condition({**others, "retention_s": parse_duration(time)}, f"--device {device} --retention {time}", time)
            for time in times
        ]
    for condition in conditions:
        condition.fault_model(1)
    return conditions
