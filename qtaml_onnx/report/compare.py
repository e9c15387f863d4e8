"""Two reports beside each other: two models, two methods, two releases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from qtaml_onnx.report.schema import EvaluationResult, Report, VariantName
from qtaml_onnx.report.text import format_rate

__all__ = ["SIDE_ROWS", "Comparison", "Difference", "called", "compare_reports", "verdict"]

COMPARISON_VERSION = 1

_NO_INTERVAL = "no interval"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Side(_Section):
    """What one report says of itself."""

    report: str = Field(description="the file")
    model: str
    model_sha256: str
    method: str
    protection: str
    protected_fraction: float
    bits_per_weight: float
    metric: str | None
    data: str | None
    samples: int | None
    seed: int | None
    trials: int | None
    inference_ratio: float | None = Field(description="hardened over original")
    tool: str
    created: str


class Measured(_Section):
    """A mean with its interval."""

    mean: float
    ci_low: float
    ci_high: float
    trials: int


class Difference(_Section):
    """One variant at one rate in both reports, second less first."""

    variant: VariantName
    flip_rate: float
    label: str | None
    first: Measured
    second: Measured
    difference: float = Field(description="mean of second less first, over the pairs where paired")
    low: float | None
    high: float | None
    how: Literal["paired", "unpaired", "no interval"] = Field(
        description="paired: Student's t over differences of trials with the same seed; unpaired: from both intervals"
    )
    pairs: int = Field(description="trials with the same seed that both have; 0 where unpaired")


class Comparison(_Section):
    """The whole of a comparison."""

    comparison_version: int = COMPARISON_VERSION
    first: Side
    second: Side
    confidence: float | None
    paired: bool = Field(description="whether the reports' trials are pairs")
    reason: str | None = Field(description="why they are not")
    differences: list[Difference]
    only_first: list[str]
    only_second: list[str]

    def to_json(self) -> str:
        """The text of the comparison as JSON."""
        return self.model_dump_json(indent=1) + "\n"


def compare_reports(first: Report, second: Report, names: tuple[str, str]) -> Comparison:
    """Pairs the results of two reports by variant and flip rate.

    The same seed draws the same random numbers in both campaigns, so that differences of trials with one seed have an
    interval of their own: Student's t. That holds whatever the two have in common; where that is much, it is narrow.
    Where the reports ran on other data, with another metric or other seeds, the interval of a difference is put
    together from both intervals by the method of variance estimates recovery (Newcombe 1998, method 10; Zou & Donner
    2008), which takes them for independent.

    Args:
        first: A report.
        second: Another.
        names: What to call them.
    """
    reason = _why_unpaired(first, second)
    same = first.evaluation and second.evaluation and first.evaluation.confidence == second.evaluation.confidence
    confidence = first.evaluation.confidence if first.evaluation and same else None
    alike = reason is None or _comparable(first, second)
    ones, others = _by_key(first), _by_key(second)
    common = [key for key in ones if key in others] if alike else []
    measured = {key[1:] for key in common if key[0] == "campaign"}
    common = [key for key in common if key[0] == "campaign" or key[1:] not in measured]
    return Comparison(
        first=_side(first, names[0]),
        second=_side(second, names[1]),
        confidence=confidence,
        paired=reason is None,
        reason=reason,
        differences=[_difference(ones[key], others[key], confidence, reason is None) for key in common],
        only_first=_alone(ones, common),
        only_second=_alone(others, common),
    )


def _why_unpaired(first: Report, second: Report) -> str | None:
    a, b = first.evaluation, second.evaluation
    if a is None or b is None:
        return "one of the reports has no evaluation"
    if a.metric != b.metric:
        return f"the metrics differ: {a.metric} and {b.metric}"
    if a.data_sha256 is None or b.data_sha256 is None:
        return "a report of schema version 1 does not say which data it was measured on"
    if a.data_sha256 != b.data_sha256:
        return "the evaluation data differ"
    if a.seed != b.seed:
        return f"the seeds differ: {a.seed} and {b.seed}"
    return None


def _comparable(first: Report, second: Report) -> bool:
    a, b = first.evaluation, second.evaluation
    return a is not None and b is not None and a.metric == b.metric


Key = tuple[str, str, float, str | None]


def _by_key(report: Report) -> dict[Key, EvaluationResult]:
    """Results of the campaign, and those of the sweep, which may have run on fewer samples: they stay apart."""
    evaluation = report.evaluation
    if evaluation is None:
        return {}
    found: dict[Key, EvaluationResult] = {("campaign", r.variant, r.flip_rate, r.label): r for r in evaluation.results}
    if evaluation.sweep is not None:
        samples = evaluation.sweep.samples
        found |= {(f"sweep of {samples}", r.variant, r.flip_rate, r.label): r for r in evaluation.sweep.results}
    return found


def _alone(results: dict[Key, EvaluationResult], common: Sequence[Key]) -> list[str]:
    compared = {key[1:] for key in common}
    return list(dict.fromkeys(called(r) for key, r in results.items() if key[1:] not in compared))


def called(result: EvaluationResult | Difference) -> str:
    """What a result is called in one line."""
    text = (
        f"{result.variant} at {format_rate(result.flip_rate)}" if result.flip_rate else f"{result.variant}, no faults"
    )
    return text + (f" ({result.label})" if result.label else "")


def _difference(one: EvaluationResult, other: EvaluationResult, confidence: float | None, may_pair: bool) -> Difference:
    low: float | None
    high: float | None
    pairs = min(len(one.values), len(other.values)) if may_pair and one.flip_rate else 0
    mean, how = other.mean - one.mean, "unpaired"
    if confidence is None:
        low = high = None
    elif pairs > 1:
        differences = np.subtract(other.values[:pairs], one.values[:pairs])
        mean, how = float(differences.mean()), "paired"
        low, high = _t_ends(differences, confidence)
    else:
        pairs = 0
        low, high = _recovered_ends(one, other)
    if low is None or high is None:
        low, high, how, pairs = None, None, _NO_INTERVAL, 0
    return Difference.model_validate(
        {
            "variant": one.variant,
            "flip_rate": one.flip_rate,
            "label": one.label,
            "first": _measured(one),
            "second": _measured(other),
            "difference": mean,
            "low": low,
            "high": high,
            "how": how,
            "pairs": pairs,
        }
    )


def _t_ends(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], confidence: float) -> tuple[float, float]:
    mean, n = float(values.mean()), values.size
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return mean - half, mean + half


def _recovered_ends(one: EvaluationResult, other: EvaluationResult) -> tuple[float | None, float | None]:
    if any(r.interval == "t" and r.trials < 2 for r in (one, other)):
        return None, None
    mean = other.mean - one.mean
    below = math.hypot(other.mean - other.ci_low, one.ci_high - one.mean)
    above = math.hypot(other.ci_high - other.mean, one.mean - one.ci_low)
    return mean - below, mean + above


def _measured(result: EvaluationResult) -> Measured:
    return Measured(mean=result.mean, ci_low=result.ci_low, ci_high=result.ci_high, trials=result.trials)


def _side(report: Report, name: str) -> Side:
    evaluation = report.evaluation
    return Side(
        report=name,
        model=report.source.path,
        model_sha256=report.source.sha256,
        method=report.method,
        protection=report.storage.protection,
        protected_fraction=report.storage.protected_fraction,
        bits_per_weight=report.storage.bits_per_weight,
        metric=evaluation.metric if evaluation else None,
        data=evaluation.data if evaluation else None,
        samples=evaluation.samples if evaluation else None,
        seed=evaluation.seed if evaluation else None,
        trials=evaluation.trials if evaluation else None,
        inference_ratio=report.inference.ratio if report.inference else None,
        tool=f"{report.tool.name} {report.tool.version}",
        created=report.created,
    )


def verdict(comparison: Comparison) -> tuple[int, str] | None:
    """Index of the difference that matters most, and whether its interval tells the second from the first.

    It is that of the hardened models with the most trials, and of those at the highest rate; None if there is none.
    """
    found = [
        (min(d.first.trials, d.second.trials), d.flip_rate, index)
        for index, d in enumerate(comparison.differences)
        if d.variant == "hardened" and d.flip_rate
    ]
    if not found:
        return None
    index = max(found)[2]
    low, high = comparison.differences[index].low, comparison.differences[index].high
    if low is None or high is None:
        return index, "without an interval"
    return index, "higher" if low > 0 else "lower" if high < 0 else "not told apart"


SIDE_ROWS: Sequence[tuple[str, str]] = (
    ("report", "report"),
    ("model", "model"),
    ("its hash", "model_sha256"),
    ("method", "method"),
    ("protection", "protection"),
    ("protected weight bits", "protected_fraction"),
    ("bits a weight, all in", "bits_per_weight"),
    ("inference time over the original's", "inference_ratio"),
    ("metric", "metric"),
    ("data", "data"),
    ("samples", "samples"),
    ("seed", "seed"),
    ("trials a rate", "trials"),
    ("made by", "tool"),
    ("made on", "created"),
)
"""What each field of a side is called, in the order of interest."""
