"""Puts a plan, a prediction and the results of a campaign into a report. Nothing is measured or decided here."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime as ort

from qtaml_onnx import __version__
from qtaml_onnx.campaign import Campaign, Result
from qtaml_onnx.campaign.image import SESSION_OPTIONS
from qtaml_onnx.channel import FloatArray
from qtaml_onnx.comparison import Comparison
from qtaml_onnx.data import Dataset, dataset_sha256
from qtaml_onnx.errors import InputError
from qtaml_onnx.inference_time import InferenceTime
from qtaml_onnx.methods import METHODS, Method
from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.planner import Planner
from qtaml_onnx.prediction import SATURATION_LEVEL, Predicted
from qtaml_onnx.protection import scheme
from qtaml_onnx.report.evaluation import evaluation_section
from qtaml_onnx.report.schema import (
    Calibration,
    Environment,
    Evaluation,
    FaultModelSection,
    Gate,
    Inference,
    LeftOutSection,
    NamedCode,
    Prediction,
    Report,
    SmallSection,
    SmallTensorSection,
    Source,
    Storage,
    TensorSection,
    Tool,
)
from qtaml_onnx.storage import WordSums, uniform_code, word_sums
from qtaml_onnx.storage.tensor import part_of, read_table
from qtaml_onnx.sweep import MeasuredSweep
from qtaml_onnx.tensor_plan import TensorPlan
from qtaml_onnx.tensors import TensorData
from qtaml_onnx.textio import printable

__all__ = [
    "SATURATION_LEVEL",
    "Measurements",
    "build_report",
    "environment",
]

_PLAIN_BITS = 8
"""Longest word of plain storage."""

_NAMED_RESIDUAL = 1e-4
"""Largest rate that bits may still flip at under the code that ideal protection is priced in."""


@dataclass(frozen=True)
class Measurements:
    """All that was measured of one hardening.

    Attributes:
        campaign: Gives the metric, the data and the conditions.
        results: Of the variants.
        sweep: Around the designed rates; None if not asked for.
        comparison: Of the methods; None if not asked for.
        inference: Times; None where the model has no inputs.
        fail_under: The gate; None for none.
    """

    campaign: Campaign
    results: list[Result]
    sweep: MeasuredSweep | None
    comparison: Comparison | None
    inference: InferenceTime | None
    fail_under: float | None


def build_report(
    planner: Planner,
    plan: StoragePlan,
    predicted: Predicted,
    measured: Measurements | None,
    calibration: Dataset | None,
    warnings: list[str],
    command: str | None,
) -> Report:
    """The report of one hardening; `output` is filled in when the model is written."""
    source = planner.source
    evaluation = None
    if measured is not None:
        evaluation = evaluation_section(measured.campaign, measured.results, measured.comparison, measured.sweep)
    return Report(
        tool=Tool(version=__version__),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        source=Source(
            path=printable(source.path),
            sha256=source.sha256,
            opset=source.opset,
            ir_version=source.model.ir_version,
            parameters=sum(tensor.size for tensor in plan.tensors),
        ),
        output=None,
        fault_model=FaultModelSection(
            p01=list(plan.fault_model.p01),
            p10=list(plan.fault_model.p10),
            device=plan.fault_model.device,
            margin=plan.fault_model.margin,
        ),
        method=plan.method,
        storage=storage_section(plan),
        tensors=_tensors(planner, plan),
        left_out=[LeftOutSection(name=item.name, reason=item.reason) for item in plan.left_out],
        small=_small(plan),
        prediction=Prediction(
            noise_energy=predicted.noise_energy,
            saturation_ratio=predicted.saturation_ratio,
            saturation_level=SATURATION_LEVEL if predicted.noise_energy is not None else None,
            saturation_note=predicted.saturation_note,
        ),
        evaluation=evaluation,
        environment=environment(),
        calibration=_calibration(calibration) if calibration is not None else None,
        inference=Inference(**asdict(measured.inference)) if measured is not None and measured.inference else None,
        gate=_gate(plan, evaluation, measured.fail_under) if measured is not None and evaluation is not None else None,
        warnings=warnings,
    )


def storage_section(plan: StoragePlan) -> Storage:
    """The ledger of a plan."""
    weights = sum(tensor.size for tensor in plan.tensors)
    return Storage(
        weights=weights,
        weight_bits=plan.weight_bits,
        protected_bits=plan.protected_bits,
        protected_fraction=plan.protected_fraction,
        parity_bits=plan.parity_bits,
        metadata_bits=plan.metadata_bits,
        bits_per_weight=plan.bits_per_weight,
        protection=plan.protection,
        named_code=_named_code(plan, weights, plan.stored_bits),
        small_bits=plan.small_bits,
    )


def _small(plan: StoragePlan) -> SmallSection | None:
    if plan.small is None:
        return None
    return SmallSection(
        copies=plan.small.copies,
        residual_rate=plan.small.residual_rate,
        tensors=[
            SmallTensorSection(name=t.name, role=t.role, dtype=t.dtype, shape=list(t.shape)) for t in plan.small.tensors
        ],
    )


def _named_code(plan: StoragePlan, weights: int, total: int) -> NamedCode | None:
    """What ideally protected bits cost in the cheapest known code that leaves next to nothing."""
    if plan.protection != "ideal" or not plan.protected_bits:
        return None
    rates = plan.fault_model.rates
    raw = max((a + b) / 2 for a, b in zip(rates.p01, rates.p10, strict=True))
    try:
        code = scheme("auto", rate=raw, target_residual=_NAMED_RESIDUAL)
    except InputError:  # the rates are beyond all of them
        return None
    parity = sum(code.parity_bits(t.size * len(t.protected_planes)) for t in plan.tensors)
    return NamedCode(
        name=code.name,
        residual_rate=code.residual(raw),
        parity_bits=parity,
        bits_per_weight=(total + parity) / weights,
    )


def _tensors(planner: Planner, plan: StoragePlan) -> list[TensorSection]:
    data = {tensor.name: tensor for tensor in planner.tensors}
    corrected = {tensor.name for tensor in plan.tensors if tensor.bias is not None}
    method = METHODS[plan.method]
    return [_tensor(planner, method, data[t.name], t, t.name in corrected) for t in plan.tensors]


def flip_changes(table: FloatArray, sums: WordSums) -> list[float]:
    """Rms change of what is read when one plane flips, over the rms of the weights, least significant plane first.

    Args:
        table: What each word is read as, [2^bits].
        sums: Of the weights that are stored as each word.
    """
    signal = float(sums.second.sum())
    if signal <= 0:
        return []
    words = np.arange(len(table))
    planes = range(len(table).bit_length() - 1)
    return [float(np.sqrt(sums.count @ (table[words ^ (1 << k)] - table) ** 2 / signal)) for k in planes]


def _calibration(data: Dataset) -> Calibration:
    return Calibration(data=Path(data.source).name, sha256=dataset_sha256(data), samples=len(data))


def _gate(plan: StoragePlan, evaluation: Evaluation, fail_under: float | None) -> Gate | None:
    """Whether the hardened model keeps the share at each measured rate up to the designed one."""
    if fail_under is None:
        return None
    designed = max(*plan.fault_model.p01, *plan.fault_model.p10)
    clean = next(r.mean for r in evaluation.results if r.variant == "clean")
    hardened = [r for r in evaluation.results if r.variant == "hardened" and r.flip_rate <= designed]
    measured = [r for r in hardened if r.flip_rate > 0] or hardened  # where nothing flips, the model without faults
    kept = min((r.mean / clean if clean else 0.0 for r in measured), default=0.0)
    return Gate(fail_under=fail_under, kept=kept, met=kept >= fail_under)


def _tensor(planner: Planner, method: Method, data: TensorData, tensor: TensorPlan, corrected: bool) -> TensorSection:
    ratio = tensor.noise / tensor.signal if tensor.signal > 0 else 0.0
    plain = data.fixed or uniform_code("twos-complement", min(tensor.bits, _PLAIN_BITS))
    plain_sums = word_sums(plain, part_of(tensor, planner.normalised(METHODS["none"], data)))
    table, sums = read_table(tensor), planner.stored_sums(method, data, tensor)
    return TensorSection(
        name=tensor.name,
        op_type=tensor.op_type,
        shape=list(tensor.shape),
        bits=tensor.bits,
        code=tensor.code.kind,
        readout=tensor.readout,
        bias_correction=corrected,
        protected_planes=list(tensor.protected_planes),
        sensitivity=tensor.sensitivity,
        noise_to_signal_db=10 * math.log10(ratio) if ratio > 0 else None,
        plain_flips=flip_changes(plain.levels, plain_sums),
        stored_flips=flip_changes(table, sums),
        words_used=int(np.count_nonzero(sums.count)),
        channels=list(tensor.part.channels) if tensor.part is not None else None,
    )


def environment() -> Environment:
    """Where figures were measured."""
    return Environment(
        onnxruntime=ort.__version__,
        numpy=np.__version__,
        cpu=_cpu(),
        session_options=SESSION_OPTIONS,
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
