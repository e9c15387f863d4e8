"""What a campaign measured, as a report holds it. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qtaml_onnx.campaign import Campaign, Interval, Result
from qtaml_onnx.comparison import Comparison
from qtaml_onnx.data import dataset_sha256
from qtaml_onnx.errors import InputError
from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.report.schema import (
    Difference,
    Evaluation,
    EvaluationResult,
    IntervalSection,
    MethodResult,
    Sweep,
)
from qtaml_onnx.sweep import MeasuredSweep, SweepStep
from qtaml_onnx.textio import printable

__all__ = ["differences", "evaluation_section"]


def evaluation_section(
    campaign: Campaign,
    results: list[Result],
    comparison: Comparison | None = None,
    sweep: MeasuredSweep | None = None,
) -> Evaluation:
    """What a campaign measured.

    Args:
        campaign: Gives the metric, the data and the conditions.
        results: Of the variants.
        comparison: Of other methods, each with its plan.
        sweep: Around the designed rates.
    """
    return Evaluation(
        metric=campaign.metric.name,
        data=printable(Path(campaign.data.source).name),
        samples=len(campaign.data),
        trials=campaign.trials,
        seed=campaign.seed,
        confidence=campaign.confidence,
        results=[_result(result) for result in results],
        comparison=_methods(comparison.at_budget, comparison) if comparison else [],
        precision=campaign.precision,
        differences=differences(campaign, _by_variant(results)),
        data_sha256=dataset_sha256(campaign.data),
        sweep=_sweep(sweep) if sweep is not None else None,
        frontier=_methods(comparison.frontier, comparison) if comparison else [],
        frontier_samples=comparison.frontier_samples if comparison else None,
    )


def _sweep(sweep: MeasuredSweep) -> Sweep:
    results = [_result(result, step) for result, step in sweep.results]
    return Sweep(samples=sweep.samples, trials=sweep.trials, results=results)


def _result(result: Result, step: SweepStep | None = None) -> EvaluationResult:
    return EvaluationResult.model_validate(
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
            "retention_s": step.retention_s if step is not None else None,
            "values": list(result.values),
        }
    )


def _methods(measured: Sequence[tuple[StoragePlan, Result]], comparison: Comparison) -> list[MethodResult]:
    return [_method_result(plan, result, comparison.output_energy) for plan, result in measured]


def _method_result(plan: StoragePlan, result: Result, output_energy: float) -> MethodResult:
    energy = plan.noise_energy
    return MethodResult(
        method=plan.method,
        protected_fraction=plan.protected_fraction,
        bits_per_weight=plan.bits_per_weight,
        mean=result.interval.mean,
        ci_low=result.interval.low,
        ci_high=result.interval.high,
        trials=len(result.values),
        values=list(result.values),
        noise_energy=energy / output_energy if energy is not None and output_energy else None,
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
