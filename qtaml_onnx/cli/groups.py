"""Groups of options: declared once as a dataclass, taken by a command as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, get_type_hints

from qtaml_onnx.cli import options as o
from qtaml_onnx.fault_model import fault_model
from qtaml_onnx.physics import parse_duration
from qtaml_onnx.plan import FaultModel

__all__ = ["FaultOptions", "with_groups"]


@dataclass(frozen=True)
class FaultOptions:
    """The fault model of a command that works with one: the fields are its options."""

    flip_rate: o.FlipRate = None
    p01: o.P01 = None
    p10: o.P10 = None
    plane_rates: o.PlaneRates = None
    device: o.Device = None
    retention: o.Retention = None
    margin: o.Margin = 1.0

    @property
    def retention_s(self) -> float | None:
        """The time that words are held, in seconds; an InputError if what was given is no time."""
        return None if self.retention is None else parse_duration(self.retention)

    @property
    def files(self) -> list[Path]:
        """What is read for it, as far as these are files."""
        return [path for path in (self.plane_rates, Path(self.device) if self.device else None) if path is not None]

    def model(self, bits: int) -> FaultModel:
        """The flip rates of words of up to `bits` bits.

        Raises:
            InputError: if the options do not go together, or one is out of range.
        """
        return fault_model(
            bits=bits,
            flip_rate=self.flip_rate,
            p01=self.p01,
            p10=self.p10,
            plane_rates=self.plane_rates,
            device=self.device,
            retention_s=self.retention_s,
            margin=self.margin,
        )


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer has to see it: each parameter of a dataclass's type gives way to the dataclass's fields.

    Args:
        command: Takes groups of options as frozen dataclasses, whose fields are options by their types and defaults.
    """
    types = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in types.items() if isinstance(kind, type) and is_dataclass(kind)}
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        kind = groups.get(parameter.name)
        if kind is None:
            parameters.append(_keyword(parameter.name, types[parameter.name], parameter.default))
            continue
        declared = get_type_hints(kind, include_extras=True)
        parameters += [_keyword(field.name, declared[field.name], field.default) for field in fields(kind)]

    @wraps(command)
    def call(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
    return call


def _keyword(name: str, annotation: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
