"""Puts a plan, a prediction and the results of a campaign into a report. Nothing is measured or decided here."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime as ort

from qtaml_onnx import __version__
from qtaml_onnx.campaign import Campaign, Interval, Result
from qtaml_onnx.campaign.image import SESSION_OPTIONS
from qtaml_onnx.errors import InputError
from qtaml_onnx.methods import METHODS, Method
from qtaml_onnx.modelio import SourceModel
from qtaml_onnx.plan import StoragePlan, TensorPlan
from qtaml_onnx.planner import Planner
from qtaml_onnx.report.schema import (
    Difference,
    Environment,
    Evaluation,
    EvaluationResult,
    FaultModelSection,
    IntervalSection,
    LeftOutSection,
    MethodResult,
    Prediction,
    Report,
    Source,
    Storage,
    TensorSection,
    Tool,
)

__all__ = ["build_report", "differences", "environment", "evaluation_section"]

SATURATION_LEVEL = 0.08
"""Relative output noise energy at which overheads are compared: about where the zoo networks keep 95 % of clean."""


def build_report(
    source: SourceModel,
    planner: Planner,
    method: Method,
    plan: StoragePlan,
    campaign: Campaign | None,
    results: list[Result],
    comparison: list[tuple[StoragePlan, Result]],
    warnings: list[str],
    command: str | None,
) -> Report:
    """The report of one hardening; `output` is filled in when the model is written."""
    return Report(
        tool=Tool(version=__version__),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        source=Source(
            path=str(source.path),
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
        tensors=[_tensor(tensor) for tensor in plan.tensors],
        left_out=[LeftOutSection(name=item.name, reason=item.reason) for item in plan.left_out],
        prediction=_prediction(planner, method, plan),
        evaluation=evaluation_section(campaign, results, comparison) if campaign is not None else None,
        environment=environment(),
        warnings=warnings,
    )


def storage_section(plan: StoragePlan) -> Storage:
    """The ledger of a plan."""
    weights = sum(tensor.size for tensor in plan.tensors)
    total = plan.weight_bits + plan.parity_bits + plan.metadata_bits
    return Storage(
        weights=weights,
        weight_bits=plan.weight_bits,
        protected_bits=plan.protected_bits,
        protected_fraction=plan.protected_fraction,
        parity_bits=plan.parity_bits,
        metadata_bits=plan.metadata_bits,
        bits_per_weight=total / weights if weights else 0.0,
        protection=plan.protection,
    )


def _tensor(tensor: TensorPlan) -> TensorSection:
    ratio = tensor.noise / tensor.signal if tensor.signal > 0 else 0.0
    return TensorSection(
        name=tensor.name,
        op_type=tensor.op_type,
        shape=list(tensor.shape),
        bits=tensor.bits,
        code=tensor.code.kind,
        readout=tensor.readout,
        bias_correction=tensor.bias is not None,
        protected_planes=list(tensor.protected_planes),
        sensitivity=tensor.sensitivity,
        noise_to_signal_db=10 * math.log10(ratio) if ratio > 0 else None,
    )


def _prediction(planner: Planner, method: Method, plan: StoragePlan) -> Prediction:
    sensitivity = planner.sensitivity
    if sensitivity is None or not sensitivity.output_energy or plan.noise_energy is None:
        return Prediction(noise_energy=None, saturation_ratio=None)
    limit = SATURATION_LEVEL * sensitivity.output_energy
    ratio = None
    if plan.protected_bits or plan.noise_energy > limit:  # else the method needs no protection: the ratio has no end
        try:
            uniform = planner.smallest_overhead(METHODS["uniform-msp"], limit)
        except InputError:  # where p01 + p10 ≥ 1 the affine correction has no inverse, and there is nothing to compare
            uniform = None
        own = planner.smallest_overhead(method, limit) if uniform is not None else None
        ratio = uniform / own if uniform is not None and own else None
    return Prediction(
        noise_energy=plan.noise_energy / sensitivity.output_energy,
        saturation_ratio=ratio,
        saturation_level=SATURATION_LEVEL,
    )


def evaluation_section(
    campaign: Campaign, results: list[Result], comparison: Sequence[tuple[StoragePlan, Result]] = ()
) -> Evaluation:
    """What a campaign measured.

    Args:
        campaign: Gives the metric, the data and the conditions.
        results: Of the variants.
        comparison: Of other methods, each with its plan.
    """
    return Evaluation(
        metric=campaign.metric.name,
        data=Path(campaign.data.source).name,
        samples=len(campaign.data),
        trials=campaign.trials,
        seed=campaign.seed,
        confidence=campaign.confidence,
        results=[
            EvaluationResult.model_validate(
                {
                    "variant": result.variant,
                    "flip_rate": result.flip_rate,
                    "mean": result.interval.mean,
                    "ci_low": result.interval.low,
                    "ci_high": result.interval.high,
                    "trials": len(result.values),
                    "interval": result.interval.method,
                    "label": result.label,
                    "stopped": result.stopped,
                    "metrics": _intervals(result.metrics) if len(result.metrics) > 1 else None,
                    "outcomes": _intervals(result.outcomes) if result.outcomes is not None else None,
                }
            )
            for result in results
        ],
        comparison=[
            MethodResult(
                method=plan.method,
                protected_fraction=plan.protected_fraction,
                bits_per_weight=storage_section(plan).bits_per_weight,
                mean=result.interval.mean,
                ci_low=result.interval.low,
                ci_high=result.interval.high,
                trials=len(result.values),
            )
            for plan, result in comparison
        ],
        precision=campaign.precision,
        differences=differences(campaign, _by_variant(results)),
    )


def _intervals(found: Mapping[str, Interval]) -> dict[str, IntervalSection]:
    return {
        name: IntervalSection(mean=one.mean, ci_low=one.low, ci_high=one.high, interval=one.method)
        for name, one in found.items()
    }


def differences(campaign: Campaign, groups: Sequence[tuple[str, Sequence[Result]]]) -> list[Difference]:
    """What results under the same faults differ by: each against that of the first group.

    Args:
        campaign: Gives the seeds, the metric and the confidence.
        groups: What to call a variant, and its results under faults, one a condition, the conditions alike for all.
    """
    found = []
    for name, results in groups[1:]:
        for base, result in zip(groups[0][1], results, strict=True):
            try:
                difference = campaign.difference(base, result)
            except InputError:  # infinite errors on both sides have no difference
                continue
            interval = difference.interval
            found.append(
                Difference(
                    first=groups[0][0],
                    second=name,
                    flip_rate=result.flip_rate,
                    label=result.label,
                    mean=interval.mean,
                    ci_low=interval.low,
                    ci_high=interval.high,
                    interval=interval.method,
                    pairs=difference.pairs,
                )
            )
    return found


def _by_variant(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """Results under faults, by variant."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.stopped is not None:
            groups.setdefault(result.variant, []).append(result)
    return list(groups.items())


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
