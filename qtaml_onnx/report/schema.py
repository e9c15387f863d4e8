"""The fields of report.json, which are public.

`schema_version` counts up with every release that adds a field; unknown fields are refused, so that a misspelt one is
noticed. A field that is there keeps its name, type, unit and meaning: what a reader of version n looks at, it finds in
all later versions. To break that is a breaking change, noted in CHANGELOG.md. This program reads all versions up to its
own. Version 2 added: the values of the trials, the sweep, the frontier, inference time, the gate, the calibration data,
hashes of the data, what a flip of each plane does, what protection costs in a code that exists, and the channels of
parts of tensors.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtaml_onnx.errors import InputError
from qtaml_onnx.textio import read_text

__all__ = [
    "SCHEMA_VERSION",
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

SCHEMA_VERSION = 2

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


class NamedCode(_Section):
    """What the protected bits would cost in a code that exists, where they were taken to be ideal."""

    name: str
    residual_rate: float = Field(description="rate at which bits under this code still flip")
    parity_bits: int
    bits_per_weight: float = Field(description="all in, with this code's parity")


class Storage(_Section):
    """The ledger: what is stored, in bits."""

    weights: int = Field(description="number of hardened weights")
    weight_bits: int
    protected_bits: int
    protected_fraction: float
    parity_bits: int
    metadata_bits: int
    bits_per_weight: float = Field(
        description="words, parity, metadata and small tensors over the number of hardened weights"
    )
    protection: str
    small_bits: int = Field(
        0, description="bits of biases, norms, scales and zero points, all copies; 0 where they are taken to be safe"
    )
    named_code: NamedCode | None = Field(
        None, description="the cheapest known code for ideally protected bits; null if there are none, or no such code"
    )


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
    plain_flips: list[float] = Field(
        default_factory=list,
        description="rms change of a weight when one plane of plain two's complement flips, over the weights' rms, "
        "least significant plane first; empty where not known",
    )
    stored_flips: list[float] = Field(
        default_factory=list, description="the same for the words that are stored and the way they are read"
    )
    words_used: int | None = Field(None, description="different words that the tensor's weights are stored as")
    channels: list[int] | None = Field(
        None, description="output channels that this entry is of, stored with planes of their own; null for all"
    )


class SmallTensorSection(_Section):
    """A tensor beside the weights whose bits are stored several times."""

    name: str
    role: str
    dtype: str
    shape: list[int]


class SmallSection(_Section):
    """Biases, norms, scales and zero points as stored words (--include-small)."""

    copies: int = Field(description="how often each bit is stored, read by majority; the metadata's bits as well")
    residual_rate: float = Field(description="rate at which a bit is still read wrong at the designed rates")
    tensors: list[SmallTensorSection]


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
    saturation_note: str | None = Field(None, description="why there is no ratio")


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
    retention_s: float | None = Field(None, description="how long the words are held, in seconds, with a device")
    values: list[float] = Field(
        default_factory=list, description="the metric of each trial, in the order of the seeds; empty where not kept"
    )


class MethodResult(_Section):
    """The metric of a method at the designed rates within a budget of protected bits, on the same seeds."""

    method: str
    protected_fraction: float
    bits_per_weight: float
    mean: float
    ci_low: float
    ci_high: float
    trials: int
    values: list[float] = Field(default_factory=list, description="the metric of each trial, in the order of the seeds")
    noise_energy: float | None = Field(None, description="predicted, over the clean outputs' energy")


class Sweep(_Section):
    """The metric around the designed rates, with fewer trials on fewer samples: for a picture, not for a verdict."""

    samples: int
    trials: int
    results: list[EvaluationResult]


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
    data_sha256: str | None = Field(None, description="of the names, types, shapes and values of all arrays")
    sweep: Sweep | None = None
    frontier: list[MethodResult] = Field(
        default_factory=list, description="filled by --compare: each method at several budgets, with fewer trials"
    )
    frontier_samples: int | None = Field(None, description="samples that the frontier was measured on")


class Calibration(_Section):
    """The samples, without labels, that statistics and sensitivities come from."""

    data: str
    sha256: str = Field(description="of the names, types, shapes and values of all arrays")
    samples: int


class Inference(_Section):
    """Wall time of one run in stock onnxruntime, hardened against original; both ran by turns in one process."""

    batch: int
    runs: int = Field(description="turns; in each both models ran once")
    threads: int
    original_ms: float = Field(description="median")
    hardened_ms: float = Field(description="median")
    ratio: float = Field(description="median over the turns of hardened over original")
    ratio_low: float = Field(description="end of the distribution-free interval of that median")
    ratio_high: float
    confidence: float = Field(description="exact coverage of the interval, at least what was asked for")


class Gate(_Section):
    """The share of the clean metric that was asked for, and whether it was kept."""

    fail_under: float
    kept: float = Field(description="least share that is kept at any measured rate up to the designed one")
    met: bool


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
    small: SmallSection | None = Field(None, description="null where small tensors are taken to be safe")
    prediction: Prediction
    evaluation: Evaluation | None
    environment: Environment
    calibration: Calibration | None = None
    inference: Inference | None = None
    gate: Gate | None = None
    warnings: list[str] = Field(default_factory=list)

    def to_json(self) -> str:
        """The text of report.json."""
        return self.model_dump_json(indent=1) + "\n"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that every report of this version meets."""
    schema = Report.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "qtaml-onnx report"} | schema


def _bounded(text: str) -> int:
    """An integer as other programs read JSON's: of 64 bits."""
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{text[:30]} is beyond 64 bits")
    return value


def read_report(path: Path) -> Report:
    """Reads report.json.

    Raises:
        InputError: if the file is missing or not a report of a version that this program knows.
    """
    text = read_text(path, "report", "name a report.json")
    try:
        data = json.loads(text, parse_int=_bounded)
    except (ValueError, RecursionError) as error:
        raise InputError(f"report {path} is not JSON; name a report.json") from error
    if (
        isinstance(data, dict)
        and isinstance(data.get("schema_version"), int)
        and data["schema_version"] > SCHEMA_VERSION
    ):
        raise InputError(
            f"report {path} has schema version {data['schema_version']}, this program reads up to {SCHEMA_VERSION}; "
            "a newer qtaml-onnx reads it"
        )
    try:
        report = Report.model_validate(data)
        for tensor in report.tensors:
            if not 1 <= tensor.bits <= 64 or min(tensor.shape, default=1) < 0 or math.prod(tensor.shape) >= 2**48:
                raise InputError(
                    f"report {path}: '{tensor.name}' has {tensor.bits}-bit words of shape {tensor.shape}; "
                    "it was changed by hand, make it again"
                )
        return report
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"report {path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}; name a report.json"
        ) from error
