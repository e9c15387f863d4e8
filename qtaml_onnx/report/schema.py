"""The fields of report.json. Public: adding is free, a change is breaking and noted in CHANGELOG.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtaml_onnx.errors import InputError

__all__ = [
    "Difference",
    "Environment",
    "Evaluation",
    "EvaluationResult",
    "IntervalSection",
    "MethodResult",
    "Report",
    "json_schema",
    "read_report",
]

SCHEMA_VERSION = 1

VariantName = Literal["clean", "quantized", "unprotected", "hardened"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tool(_Section):
    """Which program made the report."""

    name: Literal["qtaml-onnx"] = "qtaml-onnx"
    version: str


class Source(_Section):
    """The input model."""

    path: str
    sha256: str
    opset: int
    ir_version: int
    parameters: int = Field(description="number of weights found, hardened or not")


class Output(_Section):
    """The hardened model; null where nothing was written (--dry-run)."""

    path: str
    sha256: str


class FaultModelSection(_Section):
    """Designed flip rates, least significant plane first."""

    p01: list[float]
    p10: list[float]
    device: dict[str, Any] | None = None
    location: Literal["weights"] = "weights"
    margin: float = Field(1.0, description="factor by which the given rates were multiplied before designing")


class Storage(_Section):
    """The ledger: what is stored, in bits."""

    weights: int = Field(description="number of hardened weights")
    weight_bits: int
    protected_bits: int
    protected_fraction: float
    parity_bits: int
    metadata_bits: int
    bits_per_weight: float = Field(description="words, parity and metadata over the number of hardened weights")
    protection: str


class TensorSection(_Section):
    """One hardened tensor."""

    name: str
    op_type: str
    shape: list[int]
    bits: int
    code: str
    readout: str
    bias_correction: bool
    protected_planes: list[int]
    sensitivity: float | None = Field(description="output noise energy a unit of normalised noise variance")
    noise_to_signal_db: float | None = Field(
        description="predicted error over the weights' mean square; null for zeros"
    )


class LeftOutSection(_Section):
    """What was not hardened, and why."""

    name: str
    reason: str


class Prediction(_Section):
    """What the noise model says before any trial."""

    noise_energy: float | None = Field(description="predicted output noise energy over the clean outputs' energy")
    saturation_ratio: float | None = Field(
        description="ours: smallest overhead of Uniform-MSP over that of the method, both at `saturation_level`"
    )
    saturation_level: float | None = Field(None, description="the relative noise energy at which the ratio is taken")


IntervalName = Literal["t", "wilson", "betting", "t-mixture"]


class IntervalSection(_Section):
    """A mean and its confidence interval."""

    mean: float
    ci_low: float
    ci_high: float
    interval: IntervalName


class Difference(_Section):
    """What a variant does better than another under the same faults: the mean of the differences of paired trials."""

    first: str
    second: str
    flip_rate: float
    label: str | None = None
    mean: float = Field(description="second − first in the metric")
    ci_low: float
    ci_high: float
    interval: IntervalName
    pairs: int = Field(description="trials with the same seed")


class EvaluationResult(_Section):
    """The metric of one variant at one rate."""

    variant: VariantName
    flip_rate: float
    mean: float
    ci_low: float
    ci_high: float
    trials: int
    interval: IntervalName = Field(
        "t",
        description="over trials, the randomness of the faults: t of a fixed number, betting or t-mixture of a number "
        "that the trials decided; wilson: over samples, for models without faults",
    )
    label: str | None = Field(None, description="where the rate came from, such as a retention time")
    stopped: Literal["trials", "precision"] | None = Field(
        None, description="what ended the trials: their number, or the precision that was asked for"
    )
    metrics: dict[str, IntervalSection] | None = Field(
        None, description="all metrics that were measured, where they are several"
    )
    outcomes: dict[str, IntervalSection] | None = Field(
        None,
        description="share of samples that are masked, tolerable, critical or detected, against the same model without "
        "faults; null for models without faults",
    )


class MethodResult(_Section):
    """The metric of another method at the designed rates with no more protected bits, on the same seeds."""

    method: str
    protected_fraction: float
    bits_per_weight: float
    mean: float
    ci_low: float
    ci_high: float
    trials: int


class Evaluation(_Section):
    """What was measured, on what."""

    metric: str
    data: str
    samples: int
    trials: int
    seed: int
    confidence: float
    results: list[EvaluationResult]
    comparison: list[MethodResult] = Field(default_factory=list, description="filled by --compare")
    precision: float | None = Field(None, description="half-width at which trials ended; null for a fixed number")
    differences: list[Difference] = Field(default_factory=list, description="paired, at each rate")


class Environment(_Section):
    """Where it was measured."""

    onnxruntime: str
    numpy: str
    cpu: str
    session_options: dict[str, str]


class Report(_Section):
    """The whole of report.json."""

    schema_version: int = SCHEMA_VERSION
    tool: Tool
    created: str
    command: str | None = None
    source: Source
    output: Output | None
    fault_model: FaultModelSection
    method: str
    storage: Storage
    tensors: list[TensorSection]
    left_out: list[LeftOutSection]
    prediction: Prediction
    evaluation: Evaluation | None
    environment: Environment
    warnings: list[str] = Field(default_factory=list)

    def to_json(self) -> str:
        """The text of report.json."""
        return self.model_dump_json(indent=1) + "\n"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that every report of this version meets."""
    schema = Report.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "qtaml-onnx report"} | schema


def read_report(path: Path) -> Report:
    """Reads report.json.

    Raises:
        InputError: if the file is missing or not a report of a version that this program knows.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"report {path} cannot be read; check the path") from error
    except ValueError as error:
        raise InputError(f"report {path} is not JSON; name a report.json") from error
    if (
        isinstance(data, dict)
        and isinstance(data.get("schema_version"), int)
        and data["schema_version"] > SCHEMA_VERSION
    ):
        raise InputError(f"report {path} has schema version {data['schema_version']}; a newer qtaml-onnx reads it")
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"report {path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}; name a report.json"
        ) from error
