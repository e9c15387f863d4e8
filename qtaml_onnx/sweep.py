"""The metric around the designed flip rates: where a hardened model gives way, and how much room there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx

from qtaml_onnx.campaign import Campaign, Result, Variant
from qtaml_onnx.channel import FlipRates

__all__ = [
    "FACTORS",
    "SWEEP_SAMPLES",
    "MeasuredSweep",
    "SweepStep",
    "measure_sweep",
    "quick_campaign",
    "rate_steps",
    "scaled",
    "sweep_trials",
]

SWEEP_SAMPLES = 1000
"""Most samples of a sweep and of a frontier: they are pictures, the verdict is measured on all samples."""

FACTORS = (0.25, 0.5, 1.0, 2.0)
"""Steps of a sweep, in designed rates or designed retention times."""

_TRIALS = 5


@dataclass(frozen=True)
class SweepStep:
    """One step of a sweep.

    Attributes:
        rates: Flip rates.
        label: What to call them, if not by the largest rate.
        retention_s: How long words are held, in seconds, if that is what varies.
    """

    rates: FlipRates
    label: str | None = None
    retention_s: float | None = None


@dataclass(frozen=True)
class MeasuredSweep:
    """A sweep: the samples and trials it took, and a result with its step for each variant and rate."""

    samples: int
    trials: int
    results: tuple[tuple[Result, SweepStep | None], ...]


def rate_steps(rates: FlipRates) -> list[SweepStep]:
    """A quarter, half, once and twice the designed rates; none where nothing flips."""
    return [] if rates.is_zero else [SweepStep(scaled(rates, factor)) for factor in FACTORS]


def scaled(rates: FlipRates, factor: float) -> FlipRates:
    """The rates times a factor, but those that it raises no more than to a half, where a bit says nothing any more."""
    if factor <= 1:
        return rates.scaled(factor)
    return FlipRates(*(tuple(max(r, min(factor * r, 0.5)) for r in part) for part in (rates.p01, rates.p10)))


def sweep_trials(trials: int) -> int:
    """Trials a step: a quarter of the campaign's, 2 to 5."""
    return min(trials, max(2, min(_TRIALS, trials // 4)))


def measure_sweep(
    original: onnx.ModelProto,
    variants: Sequence[tuple[Variant, int]],
    steps: Sequence[SweepStep],
    campaign: Campaign,
    progress: Callable[[], None],
) -> MeasuredSweep:
    """Runs the variants at each step, on the first samples and seeds of a campaign.

    Args:
        original: The clean model, measured on the same samples.
        variants: Instrumented models, each with the planes of its longest word.
        steps: The rates, with at least as many planes.
        campaign: Gives data, seed, confidence and workers.
        progress: Called after each trial.
    """
    small = quick_campaign(campaign, sweep_trials(campaign.trials))
    results: list[tuple[Result, SweepStep | None]] = [(small.measure_clean(original), None)]
    for variant, planes in variants:
        seen = [step.rates.truncated(planes) for step in steps]
        measured = small.measure_faulty(variant, seen, progress=progress)
        results += [(replace(r, label=s.label), s) for r, s in zip(measured, steps, strict=True)]
    return MeasuredSweep(len(small.data), small.trials, tuple(results))


def quick_campaign(campaign: Campaign, trials: int) -> Campaign:
    """The campaign with fewer trials and at most `SWEEP_SAMPLES` samples."""
    data = campaign.data.head(SWEEP_SAMPLES)
    return Campaign(data, trials=trials, seed=campaign.seed, confidence=campaign.confidence, workers=campaign.workers)
