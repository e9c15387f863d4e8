"""Confidence intervals of campaigns whose number of trials is fixed in advance, and differences of paired trials.

Campaigns that stop by themselves need intervals that stay valid however often they are looked at: `sequential`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from qtaml_onnx.errors import InputError

__all__ = [
    "SHARE",
    "Bounds",
    "Interval",
    "IntervalFunction",
    "IntervalMethod",
    "PairedDifference",
    "paired_difference",
    "t_interval",
    "wilson_interval",
]

Bounds = tuple[float, float]
"""Least and greatest value that a metric can have; ±inf where it has none."""

SHARE: Bounds = (0.0, 1.0)
"""Where accuracies and other shares lie."""

IntervalMethod = Literal["t", "wilson", "betting", "t-mixture"]


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided confidence interval.

    Attributes:
        mean: The estimate. Infinite if a trial's value is.
        low: Lower end.
        high: Upper end.
        method: What the interval covers and how it was made. `t`, `betting` and `t-mixture`: the randomness of the
            faults, over trials, of a number fixed in advance (`t`) or of one that the trials themselves decided
            (`betting`, `t-mixture`). `wilson`: the randomness of the samples, for a model without faults.
    """

    mean: float
    low: float
    high: float
    method: IntervalMethod

    @property
    def half_width(self) -> float:
        """Half the distance of the ends."""
        return (self.high - self.low) / 2


class IntervalFunction(Protocol):
    """An interval of the mean of independent trials: `t_interval`, `betting_interval`, `t_mixture_interval`."""

    def __call__(self, values: Sequence[float], confidence: float, *, bounds: Bounds = SHARE) -> Interval:
        """The interval of the mean of `values`, which lie in `bounds`."""


def t_interval(values: Sequence[float], confidence: float, *, bounds: Bounds = SHARE) -> Interval:
    """Student's t interval of the mean of independent trials, cut to the metric's bounds (Student 1908).

    Exact where the trials are normal and their number was fixed before the first; for others it holds as the number
    grows. It is too narrow where a rare collapse has not shown yet: trials that happen to be equal give an interval of
    width 0.

    A single trial has no interval, nor have trials of which one is infinite: the ends are the bounds.

    Raises:
        InputError: if there are no values, one is NaN or outside the bounds, or the confidence is not in (0, 1).
    """
    array = checked_values(values, confidence, bounds)
    if array.size == 1 or not np.isfinite(array).all():
        return Interval(float(array.mean()), *bounds, "t")
    quantile = float(stats.t.ppf(0.5 + confidence / 2, array.size - 1))
    return around_mean(array, quantile, bounds, "t")


def around_mean(array: NDArray[np.float64], quantile: float, bounds: Bounds, method: IntervalMethod) -> Interval:
    """Mean ± `quantile` standard errors, cut to the bounds."""
    mean = float(array.mean())
    half = quantile * float(array.std(ddof=1)) / math.sqrt(array.size)
    return Interval(mean, max(bounds[0], mean - half), min(bounds[1], mean + half), method)


def wilson_interval(successes: int, samples: int, confidence: float) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927).

    Raises:
        InputError: if there are no samples or the confidence is not in (0, 1).
    """
    check_confidence(confidence)
    if samples < 1:
        raise InputError("no samples to average; give at least one")
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    p = successes / samples
    centre = (p + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * float(np.sqrt(p * (1 - p) / samples + z * z / (4 * samples**2)))
    # At 0 and 1 an end is the proportion itself, which rounding must not push past.
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), "wilson")


@dataclass(frozen=True)
class PairedDifference:
    """What one variant does better than another under the same faults.

    Attributes:
        interval: Mean of second − first over the seeds that both have, with its interval.
        pairs: How many seeds these are.
        missing_first: Seeds that only the second variant has.
        missing_second: Seeds that only the first variant has.
    """

    interval: Interval
    pairs: int
    missing_first: tuple[int, ...]
    missing_second: tuple[int, ...]


def paired_difference(
    first: Mapping[int, float],
    second: Mapping[int, float],
    confidence: float,
    *,
    bounds: Bounds = SHARE,
    interval: IntervalFunction = t_interval,
) -> PairedDifference:
    """Mean difference second − first over the trials of the same seeds.

    The same seed draws the same random numbers for both variants, and what these have in common leaves the difference,
    whose interval is the narrower the more they correlate.

    Args:
        first: A variant's metric by seed.
        second: The other's.
        confidence: Of the interval.
        bounds: Of the metric.
        interval: Of the differences: `t_interval`, or, where a campaign stopped by itself, a function of `sequential`.

    Raises:
        InputError: if there is no common seed, or a pair has no difference because both values are infinite.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        raise InputError("the two variants have no seed in common; run both with the same --seed")
    differences = []
    for seed in common:
        difference = second[seed] - first[seed]
        if math.isnan(difference):
            raise InputError(
                f"the difference at seed {seed} is undefined ({second[seed]:g} − {first[seed]:g}); "
                "compare by a bounded metric, such as snr"
            )
        differences.append(difference)
    width = bounds[1] - bounds[0]
    return PairedDifference(
        interval(differences, confidence, bounds=(-width, width)),
        len(common),
        tuple(sorted(second.keys() - first.keys())),
        tuple(sorted(first.keys() - second.keys())),
    )


def checked_values(values: Sequence[float], confidence: float, bounds: Bounds) -> NDArray[np.float64]:
    """The values as an array [trials], if they have a mean and lie in the bounds; else an InputError."""
    check_confidence(confidence)
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        raise InputError("no trials to average; ask for at least one with --trials")
    if np.isnan(array).any():
        raise InputError(f"trial {int(np.isnan(array).argmax())} has the metric NaN, which has no mean")
    if array.min() < bounds[0] or array.max() > bounds[1]:
        worst = array.min() if array.min() < bounds[0] else array.max()
        raise InputError(f"a trial has the metric {worst:g}, outside its bounds {bounds[0]:g} to {bounds[1]:g}")
    if array.min() == -math.inf and array.max() == math.inf:
        raise InputError("one trial has the metric -inf and another inf; their mean is undefined")
    return array


def check_confidence(confidence: float) -> None:
    """Raises InputError if the confidence is not in (0, 1)."""
    if not 0 < confidence < 1:
        raise InputError(f"--confidence {confidence:g} is not between 0 and 1; 0.95 is usual")
