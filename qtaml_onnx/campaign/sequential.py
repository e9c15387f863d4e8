"""Campaigns that stop by themselves: confidence sequences, and when they are narrow enough.

An interval that is looked at after each trial until it is narrow, or until it says what one hopes for, is wrong more
often than its confidence admits. A confidence sequence is a series of intervals, one a number of trials, of which with
the stated probability *all* hold the mean (Darling & Robbins 1967). So it may be looked at as often as one likes, by
any rule for stopping. Two are offered:

`betting` assumes that trials are independent, alike and within known bounds, nothing else, and holds for any number of
trials. It also covers what has not shown yet: a network that collapses in one trial of a hundred. That has its price:
in bounds 0 and 1 no data give a half-width h before ln(2/α) / −ln(1 − 2h) trials, 368 for half a point at 95 %.

`t-mixture` assumes trials that are normal, of any mean and spread, and holds exactly there for any number of trials. It
is for metrics without bounds. For an accuracy with a standard deviation below about 4 points it takes fewer trials than
betting (a quarter at 2 points), but it stops before a rare collapse has shown, and is then wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from qtaml_onnx.campaign.statistics import (
    SHARE,
    Bounds,
    Interval,
    IntervalFunction,
    around_mean,
    check_confidence,
    checked_values,
)
from qtaml_onnx.errors import InputError

__all__ = [
    "Decision",
    "SequenceMethod",
    "Stopping",
    "betting_interval",
    "t_mixture_interval",
    "worst_case_trials",
]

SequenceMethod = Literal["betting", "t-mixture"]

_BETS = 2.0 ** -np.arange(11.0)
"""Shares of the largest bet, 1 to 2^-10. Small ones serve wide spreads, the largest trials that hardly differ."""
_PRIOR = np.array([*(1 / ((k + 1) * (k + 2)) for k in range(10)), 1 / 11])
"""Their weights, which add up to 1: half on the largest bet, since spreads of accuracy are mostly small."""
_EFFECT_VARIANCE = 0.08
"""Prior variance of the standardised mean in the t mixture: narrowest, against Student's t, at about 100 trials."""
_ACCURACY = 1e-10
"""Of an end of a betting interval, as a share of the bounds; the end is moved outwards by it."""
_FIRST_LOOK = 16
"""Of the t mixture: fewer trials say little on whether they are normal."""
_GROWTH = 1.1
"""From one look to the next: at most a tenth of the trials is more than needed."""


def betting_interval(values: Sequence[float], confidence: float, *, bounds: Bounds = SHARE) -> Interval:
    """The confidence sequence of the mean of bounded trials by betting, at this number of trials.

    Scale the trials x to [0, 1]. Someone who bets the share c of the most that can be bet on the mean being more than m
    has, after n trials, the capital ∏ (1 − c + c x/m). If the mean is m, that is a martingale, as is a mixture over c,
    whose chance ever to reach 2/α is at most α/2 (Ville 1939). The lower end is the m where it does; the upper one is
    the same for 1 − x. The mixture does not depend on the order of the trials, falls with m, and is at most 1 at their
    mean, which the interval therefore always holds.

    Source: Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting, J. R. Stat. Soc. B 86
    (2024); mixtures of constant bets as in Orabona & Jun, IEEE Trans. Inf. Theory 70 (2024). The bets and their weights
    are ours.

    Raises:
        InputError: if there are no values, one is NaN or outside the bounds, a bound is infinite, or the confidence is
            not in (0, 1).
    """
    _check_finite(bounds)
    array = checked_values(values, confidence, bounds)
    width = bounds[1] - bounds[0]
    points, counts = np.unique((array - bounds[0]) / width, return_counts=True)
    log_limit = math.log(2 / (1 - confidence))
    low = _lower_end(points, counts, log_limit)
    high = 1 - _lower_end(1 - points, counts, log_limit)
    mean = float(array.mean())
    return Interval(
        mean, max(bounds[0], min(mean, bounds[0] + width * low)), min(bounds[1], max(mean, bounds[0] + width * high)),
        "betting",
    )  # fmt: skip


def _lower_end(points: NDArray[np.float64], counts: NDArray[np.int64], log_limit: float) -> float:
    """Where the mixture's capital, which falls with m, has reached its limit; 0 if nowhere above the accuracy."""
    mean = float((points * counts).sum() / counts.sum())

    def excess(m: float) -> float:
        with np.errstate(divide="ignore"):  # a bet of everything on a trial that is 0
            logs = (np.log1p(_BETS[:, None] * (points / m - 1)) * counts).sum(axis=1)
        return float(np.logaddexp.reduce(np.log(_PRIOR) + logs)) - log_limit

    outside, inside = mean, mean
    while outside > _ACCURACY:
        outside /= 2
        if excess(outside) > 0:
            break
        inside = outside
    else:
        return 0.0
    return max(0.0, float(brentq(excess, outside, inside, xtol=_ACCURACY / 2)) - _ACCURACY)


def t_mixture_interval(values: Sequence[float], confidence: float, *, bounds: Bounds = SHARE) -> Interval:
    """The confidence sequence of the mean of normal trials of unknown spread, at this number of trials.

    With t the statistic of Student's test of a mean against n trials, ν = n − 1 and a normal prior of variance g on the
    standardised mean, the Bayes factor (1 + n g)^(−1/2) [(1 + t²/ν) / (1 + t²/(ν (1 + n g)))]^(n/2) is a martingale
    where the mean is right, and stays below 1/α with probability 1 − α. The interval is the means where it does.

    Source: Wang & Ramdas, Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance,
    arXiv:2310.03722, after Lai, Ann. Stat. 4 (1976); the Bayes factor as in Gönen et al., Am. Stat. 59 (2005). The
    variance g = 0.08 is ours.

    There is no interval, and the ends are the bounds, for the first few trials, where one is infinite, and where all
    are equal, which says that trials are not normal.

    Raises:
        InputError: if there are no values, one is NaN or outside the bounds, or the confidence is not in (0, 1).
    """
    array = checked_values(values, confidence, bounds)
    n = array.size
    spread = 1 + n * _EFFECT_VARIANCE
    ratio = math.exp(2 / n * (0.5 * math.log(spread) - math.log(1 - confidence)))
    if n < 2 or ratio >= spread or not np.isfinite(array).all() or array.min() == array.max():
        return Interval(float(array.mean()), *bounds, "t-mixture")
    quantile = math.sqrt((n - 1) * (ratio - 1) / (1 - ratio / spread))
    return around_mean(array, quantile, bounds, "t-mixture")


def worst_case_trials(precision: float, confidence: float, *, bounds: Bounds = SHARE) -> int:
    """Trials after which the mean of any bounded metric has this half-width, fixed in advance: ln(2/α) / 2h².

    Source: Hoeffding, J. Am. Stat. Assoc. 58 (1963), theorem 2.

    Raises:
        InputError: if the precision is not above 0, a bound is infinite, or the confidence is not in (0, 1).
    """
    check_confidence(confidence)
    _check_precision(precision)
    _check_finite(bounds)
    return math.ceil(math.log(2 / (1 - confidence)) / (2 * (precision / (bounds[1] - bounds[0])) ** 2))


@dataclass(frozen=True)
class Decision:
    """Whether a campaign has trials enough.

    Attributes:
        state: `precise`: the interval is narrow enough; `limit`: the most trials are done and it is not; `open`: more
            trials are needed.
        trials: How many trials count, the first ones: those up to the look that decided, or up to the last look so far.
        interval: Of these; None before the first look.
        next_look: How many trials the next decision needs; None if the campaign is over.
    """

    state: Literal["precise", "limit", "open"]
    trials: int
    interval: Interval | None
    next_look: int | None


@dataclass(frozen=True)
class Stopping:
    """The rule by which a campaign stops: at the first look where the half-width is at most the precision.

    Looks are at numbers of trials that are fixed in advance, each a tenth above the last. A decision depends on the
    values of the first trials, in the order of their seeds, and on nothing else: neither on how many workers there are,
    nor on how many trials more they have done already, nor on a pause.

    Attributes:
        precision: Half-width wanted, in the metric's unit.
        confidence: Of the interval.
        method: Of the interval.
        bounds: Of the metric.
        most: Trials at the last look; None for no limit.
    """

    precision: float
    confidence: float = 0.95
    method: SequenceMethod = "betting"
    bounds: Bounds = SHARE
    most: int | None = None

    def __post_init__(self) -> None:
        """Checks the numbers; raises InputError if one is out of range."""
        check_confidence(self.confidence)
        _check_precision(self.precision)
        if self.method == "betting":
            _check_finite(self.bounds)
        if self.most is not None and self.most < 1:
            raise InputError(f"--trials {self.most} is too few; give at least 1")

    @classmethod
    def for_bounds(cls, bounds: Bounds, precision: float, confidence: float, most: int | None = None) -> Stopping:
        """By betting where the metric has bounds, which needs no other assumption; else by the t mixture."""
        method: SequenceMethod = "betting" if all(math.isfinite(bound) for bound in bounds) else "t-mixture"
        return cls(precision, confidence, method, bounds, most)

    @property
    def first_look(self) -> int:
        """The fewest trials that can do.

        For betting a number before which no data give the precision: the capital is at most (x̄/m)^n, since a geometric
        mean is no more than the arithmetic one, so that the length is at least 1 − (α/2)^(1/n).
        """
        if self.method == "t-mixture":
            return _FIRST_LOOK
        length = 2 * self.precision / (self.bounds[1] - self.bounds[0])
        if length >= 1:
            return 2
        return max(2, math.ceil(math.log(2 / (1 - self.confidence)) / -math.log1p(-length)))

    def looks(self) -> Iterator[int]:
        """Numbers of trials at which is decided, rising; without end if there is no limit."""
        look = self.first_look
        while self.most is None or look < self.most:
            yield look
            look = math.ceil(_GROWTH * look)
        yield self.most

    def interval(self, values: Sequence[float]) -> Interval:
        """The interval of these trials, valid at any number of them, between looks too."""
        function: IntervalFunction = betting_interval if self.method == "betting" else t_mixture_interval
        return function(values, self.confidence, bounds=self.bounds)

    def decide(self, values: Sequence[float]) -> Decision:
        """The decision by the trials' metrics; those after the look that decides are ignored.

        Args:
            values: The metric of trials 0, 1, … in the order of their seeds and without gaps.

        Raises:
            InputError: if a value is NaN or outside the bounds.
        """
        trials, interval = 0, None
        for look in self.looks():
            if look > len(values):
                return Decision("open", trials, interval, look)
            trials, interval = look, self.interval(values[:look])
            if interval.half_width <= self.precision:
                return Decision("precise", trials, interval, None)
        return Decision("limit", trials, interval, None)


def _check_precision(precision: float) -> None:
    if not 0 < precision < math.inf:
        raise InputError(f"--precision {precision:g} is no half-width; give a number above 0, such as 0.005")


def _check_finite(bounds: Bounds) -> None:
    if not (math.isfinite(bounds[0]) and math.isfinite(bounds[1]) and bounds[0] < bounds[1]):
        raise InputError(
            f"a metric with bounds {bounds[0]:g} to {bounds[1]:g} has no interval by betting; use the t mixture"
        )
