"""Confidence intervals of campaigns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from qtaml_onnx.errors import InputError

__all__ = ["Interval", "t_interval", "wilson_interval"]


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided confidence interval.

    Attributes:
        mean: The estimate.
        low: Lower end.
        high: Upper end.
        method: What the interval covers: `t` is the randomness of the faults, over trials; `wilson` that of the
            samples, for a model without randomness.
    """

    mean: float
    low: float
    high: float
    method: Literal["t", "wilson"]


def t_interval(values: Sequence[float], confidence: float) -> Interval:
    """Student's t interval of the mean of independent trials, cut to [0, 1], where every metric lies.

    A single trial has no interval: the ends are 0 and 1.

    Raises:
        InputError: if there are no values or the confidence is not in (0, 1).
    """
    _check(confidence)
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        raise InputError("no trials to average; ask for at least one with --trials")
    mean = float(array.mean())
    if array.size == 1:
        return Interval(mean, 0.0, 1.0, "t")
    half = float(stats.t.ppf(0.5 + confidence / 2, array.size - 1) * array.std(ddof=1) / np.sqrt(array.size))
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half), "t")


def wilson_interval(successes: int, samples: int, confidence: float) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927).

    Raises:
        InputError: if there are no samples or the confidence is not in (0, 1).
    """
    _check(confidence)
    if samples < 1:
        raise InputError("no samples to average; give at least one")
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    p = successes / samples
    centre = (p + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * float(np.sqrt(p * (1 - p) / samples + z * z / (4 * samples**2)))
    # At 0 and 1 an end is the proportion itself, which rounding must not push past.
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), "wilson")


def _check(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"--confidence {confidence:g} is not between 0 and 1; 0.95 is usual")
