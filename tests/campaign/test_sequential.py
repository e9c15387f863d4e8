"""Confidence sequences and stopping: closed forms, coverage after optional stopping, trials saved."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, optimize, stats

from qtaml_onnx.campaign.sequential import (
    Stopping,
    betting_interval,
    t_mixture_interval,
    worst_case_trials,
)
from qtaml_onnx.campaign.statistics import t_interval
from qtaml_onnx.errors import InputError

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def shares(mean: float, deviation: float) -> Draw:
    """Accuracies on 10 000 samples, about normal."""
    return lambda rng, n: np.clip(np.round(rng.normal(mean, deviation, n), 4), 0, 1)


def collapsing(chance: float) -> Draw:
    """Accuracy 0.9 ± 0.005, but 0.1 in some trials."""

    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        return np.where(rng.random(n) < chance, 0.1, np.clip(np.round(rng.normal(0.9, 0.005, n), 4), 0, 1))

    return draw


def least_covered(campaigns: int, confidence: float = 0.95) -> float:
    """A share of covered campaigns below which a valid interval falls with probability 1e-4 at most."""
    return float(stats.binom.ppf(1e-4, campaigns, confidence)) / campaigns


def exceeds(low: float, high: float, truth: float) -> bool:
    return not low <= truth <= high


# Closed forms


def capital(values: list[float], m: float) -> float:
    """The mixture, written down plainly."""
    bets = [(1 / ((k + 1) * (k + 2)) if k < 10 else 1 / 11, 2.0**-k) for k in range(11)]
    return sum(weight * math.prod(1 - c + c * x / m for x in values) for weight, c in bets)


def test_the_ends_are_where_the_capital_reaches_its_limit() -> None:
    values = [0.9, 0.7, 0.85, 0.6, 0.95, 0.0, 0.8]
    found = betting_interval(values, 0.9)
    assert capital(values, found.low) == pytest.approx(20, rel=1e-6)
    assert capital([1 - x for x in values], 1 - found.high) == pytest.approx(20, rel=1e-6)
    assert found.mean == pytest.approx(np.mean(values), rel=1e-15)
    assert found.method == "betting"


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_the_capital_is_fair(trials: int) -> None:
    """Its mean over all sequences of a discrete distribution with mean m is 1: what Ville's inequality rests on."""
    points, chances = (0.0, 0.5, 0.9), (0.2, 0.3, 0.5)
    m = sum(x * p for x, p in zip(points, chances, strict=True))
    expected = sum(
        math.prod(chances[i] for i in places) * capital([points[i] for i in places], m)
        for places in itertools.product(range(3), repeat=trials)
    )
    assert expected == pytest.approx(1, rel=1e-12)


def test_the_t_mixture_is_the_bayes_factor_it_says() -> None:
    """At its ends, the likelihood of t averaged over the prior of the effect is 1/α times that of no effect."""
    values = np.random.default_rng(0).normal(0.3, 2.0, 25)
    found = t_mixture_interval(list(values), 0.95, bounds=(-math.inf, math.inf))
    for end in (found.low, found.high):
        t = (values.mean() - end) / stats.sem(values)
        averaged = integrate.quad(
            lambda effect, t=t: stats.nct.pdf(t, 24, 5 * effect) * stats.norm.pdf(effect, scale=math.sqrt(0.08)),
            -3, 3, epsabs=1e-12, points=[t / 5],
        )[0]  # fmt: skip
        assert averaged / stats.t.pdf(t, 24) == pytest.approx(20, rel=1e-6)


def test_bounds_are_a_change_of_scale() -> None:
    values = np.random.default_rng(1).random(50)
    unit, wide = (
        betting_interval(list(values), 0.95),
        betting_interval(list(300 * values - 150), 0.95, bounds=(-150, 150)),
    )
    assert (wide.low, wide.high) == pytest.approx((300 * unit.low - 150, 300 * unit.high - 150), abs=1e-6)
    unit, wide = t_mixture_interval(list(values), 0.95), t_mixture_interval(list(values - 7), 0.95, bounds=(-9, 9))
    assert (wide.low, wide.high) == pytest.approx((unit.low - 7, unit.high - 7), abs=1e-12)


@given(SHARES, st.floats(0.01, 0.999))
@settings(max_examples=150, deadline=None)
def test_betting_holds_the_mean_mirrors_and_forgets_the_order(values: list[float], confidence: float) -> None:
    found = betting_interval(values, confidence)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert betting_interval(values[::-1], confidence).low == pytest.approx(found.low, abs=1e-9)
    mirrored = betting_interval([1 - x for x in values], confidence)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((found.low, found.high), abs=1e-8)
    wider = betting_interval(values, (1 + confidence) / 2)
    assert wider.low <= found.low + 1e-9
    assert wider.high >= found.high - 1e-9


@given(SHARES, st.floats(0.01, 0.999))
@settings(max_examples=150, deadline=None)
def test_no_data_are_narrower_than_the_first_look_says(values: list[float], confidence: float) -> None:
    """1 − (α/2)^(1/n) is the least length of n trials."""
    found = betting_interval(values, confidence)
    assert found.high - found.low >= 1 - ((1 - confidence) / 2) ** (1 / len(values)) - 1e-9
    if found.half_width > 1e-6:
        assert Stopping(found.half_width + 1e-8, confidence).first_look <= max(2, len(values))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40), st.floats(0.01, 0.999))
@settings(max_examples=150, deadline=None)
def test_the_t_mixture_is_never_narrower_than_student_s_t(values: list[float], confidence: float) -> None:
    bounds = (-math.inf, math.inf)
    mixture, single = (f(values, confidence, bounds=bounds) for f in (t_mixture_interval, t_interval))
    assert mixture.low <= single.low
    assert mixture.high >= single.high


# Coverage


def ever_misses(values: NDArray[np.float64], truth: float, method: str, looks: Iterable[int]) -> bool:
    """Whether the interval at any of these numbers of trials misses the truth."""
    function = betting_interval if method == "betting" else t_mixture_interval
    bounds = (0.0, 1.0) if method == "betting" else (-math.inf, math.inf)
    return any(
        exceeds(found.low, found.high, truth)
        for found in (function(list(values[:n]), 0.95, bounds=bounds) for n in looks)
    )


def test_normal_trials_are_covered_at_all_looks_at_once() -> None:
    """The t mixture on 400 campaigns, looked at after every trial from the 2nd to the 120th.

    Student's t, looked at as often, is wrong in more than a quarter of them.
    """
    rng = np.random.default_rng(2)
    campaigns = rng.normal(-3.0, 0.7, (400, 120))
    missed = sum(ever_misses(values, -3.0, "t-mixture", range(2, 121)) for values in campaigns)
    assert 1 - missed / 400 >= least_covered(400)
    n = np.arange(1, 121)
    means = campaigns.cumsum(axis=1) / n
    deviations = np.sqrt((np.square(campaigns).cumsum(axis=1) - n * means**2)[:, 1:] / (n[1:] - 1))
    halves = stats.t.ppf(0.975, n[1:] - 1) * deviations / np.sqrt(n[1:])
    assert (np.abs(means[:, 1:] + 3.0) > halves).any(axis=1).mean() > 0.25


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng, n: (rng.random(n) < 0.5).astype(np.float64), 0.5),
        (lambda rng, n: (rng.random(n) < 0.02).astype(np.float64), 0.02),
        (lambda rng, n: rng.beta(0.2, 0.1, n), 2 / 3),
    ],
    ids=["coin", "rare", "u-shaped"],
)
def test_bounded_trials_are_covered_at_all_looks_at_once(draw: Draw, truth: float) -> None:
    """Betting on 150 campaigns of the worst spreads, looked at up to 41 times in their first 100 trials."""
    looks = [*range(1, 21), *range(20, 101, 4)]
    rng = np.random.default_rng(3)
    missed = sum(ever_misses(draw(rng, 100), truth, "betting", looks) for _ in range(150))
    assert 1 - missed / 150 >= least_covered(150)


@pytest.mark.parametrize("chance", [0.002, 0.01, 0.05])
def test_accuracy_that_sometimes_collapses_is_covered_after_stopping(chance: float) -> None:
    """100 campaigns that stop at half-width 2 points by betting."""
    rng, draw = np.random.default_rng(4), collapsing(chance)
    truth = 0.9 - 0.8 * chance
    covered = 0
    for _ in range(100):
        decision = Stopping(0.02).decide(draw(rng, 6000))
        assert decision.state == "precise"
        assert decision.interval is not None
        covered += not exceeds(decision.interval.low, decision.interval.high, truth)
    assert covered / 100 >= least_covered(100)


def test_the_t_mixture_does_not_cover_collapses_that_have_not_shown() -> None:
    """Why betting is the default: collapses in 1 % of trials, half-width 0.5 points.

    A campaign without one among its first 16 trials stops there, 0.8 points off: 0.99^16 = 85 % of them.
    """
    rng, draw = np.random.default_rng(5), collapsing(0.01)
    stopping, careful = Stopping(0.005, method="t-mixture", most=400), Stopping(0.005)
    early = 0
    for _ in range(200):
        values = draw(rng, 400)
        found = stopping.decide(values)
        assert found.interval is not None
        early += found.state == "precise" and found.interval.low > 0.892
        assert careful.decide(values).trials in (0, 368)
    assert early / 200 == pytest.approx(0.85, abs=4 * math.sqrt(0.85 * 0.15 / 200))


@pytest.mark.parametrize("method", ["betting", "t-mixture"])
def test_ordinary_accuracies_are_covered_after_stopping(method: str) -> None:
    """100 campaigns with a standard deviation of 2 points, half-width 0.5 points."""
    rng, draw = np.random.default_rng(6), shares(0.8, 0.02)
    covered = 0
    for _ in range(100):
        decision = Stopping(0.005, method=method).decide(draw(rng, 2000))  # type: ignore[arg-type]
        assert decision.state == "precise"
        assert decision.interval is not None
        assert decision.interval.half_width <= 0.005
        covered += not exceeds(decision.interval.low, decision.interval.high, 0.8)
    assert covered / 100 >= least_covered(100)


# Trials


def test_the_worst_case_is_hoeffding_s() -> None:
    """ln 40 / (2 · 0.005²) = 73 777.6; with normal trials of the largest deviation, 0.5, it would be 38 415."""
    assert worst_case_trials(0.005, 0.95) == 73778
    assert worst_case_trials(0.005 * 300, 0.95, bounds=(-150, 150)) == 73778
    assert math.ceil((stats.norm.ppf(0.975) * 0.5 / 0.005) ** 2) == 38415


@pytest.mark.parametrize(
    ("draw", "betting", "mixture"),
    [
        (shares(0.9, 0.01), 550, 60),
        (shares(0.9, 0.02), 700, 220),
        (shares(0.6, 0.05), 1400, 1400),
        (shares(0.5, 0.1), 5500, 5500),
        (collapsing(0.01), 3700, math.inf),
    ],
    ids=["1 point", "2 points", "5 points", "10 points", "collapses"],
)
def test_trials_for_half_a_point(draw: Draw, betting: float, mixture: float) -> None:
    """Means of 10 campaigns stay below these; the least is a third of a number fixed for the worst case.

    That number is 38 415 if one trusts in normal trials, 73 778 if not.
    """
    rng = np.random.default_rng(7)
    campaigns = [draw(rng, 8000) for _ in range(10)]
    needed = np.mean([Stopping(0.005).decide(values).trials for values in campaigns])
    assert needed < betting < 38415 / 3
    if math.isfinite(mixture):
        rule = Stopping(0.005, method="t-mixture")
        assert np.mean([rule.decide(values).trials for values in campaigns]) < mixture


def test_equal_trials_take_a_known_number() -> None:
    """Trials that are all 1 leave the lower end alone: half the capital in the largest bet gives m^−n / 2 > 40."""
    first = next(n for n in range(1, 1000) if betting_interval([1.0] * n, 0.95).half_width <= 0.005)
    alone = math.log(2 * 40) / -math.log(0.99)  # 436, if nothing but the largest bet paid
    assert 0.97 * alone < first <= math.ceil(alone)


# Decisions


def test_looks_rise_by_a_tenth() -> None:
    rule = Stopping(0.005)
    looks = list(itertools.islice(rule.looks(), 30))
    assert looks[0] == rule.first_look == math.ceil(math.log(40) / -math.log(0.99))
    assert all(a < b <= 1.1 * a + 1 for a, b in itertools.pairwise(looks))
    assert list(Stopping(0.005, most=450).looks()) == [368, 405, 446, 450]
    assert list(Stopping(0.005, most=20).looks()) == [20]
    assert Stopping(0.6).first_look == 2
    assert Stopping(0.005, method="t-mixture").first_look == 16


@pytest.mark.parametrize("method", ["betting", "t-mixture"])
def test_a_decision_does_not_depend_on_trials_done_in_advance(method: str) -> None:
    """Played trial by trial, the first decision is the one that any longer list gives."""
    rng = np.random.default_rng(8)
    for deviation in (0.02, 0.1):
        values = list(shares(0.7, deviation)(rng, 400))
        rule = Stopping(0.03, method=method, most=300)  # type: ignore[arg-type]
        state = "open"
        for n in range(401):
            step = rule.decide(values[:n])
            if step.state != "open":
                break
            assert step.next_look is not None
            assert step.trials <= n < step.next_look
        state = step.state
        assert step.trials == n <= 300
        for more in (n + 1, n + 7, 400):
            assert rule.decide(values[:more]) == step
        assert state == "precise"


def test_the_limit_ends_a_campaign_that_is_not_precise() -> None:
    rng = np.random.default_rng(9)
    found = Stopping(0.001, most=50).decide(list(rng.random(80)))
    assert (found.state, found.trials, found.next_look) == ("limit", 50, None)
    assert found.interval is not None
    assert found.interval.half_width > 0.001
    nothing = Stopping(0.001).decide([])
    assert (nothing.state, nothing.trials, nothing.interval) == ("open", 0, None)


def test_equal_trials_never_satisfy_the_t_mixture() -> None:
    """That all are equal says that they are not normal, not that the spread is 0."""
    found = Stopping(0.1, method="t-mixture", most=100).decide([0.9] * 100)
    assert (found.state, found.interval is not None and found.interval.half_width) == ("limit", 0.5)


def test_metrics_without_bounds() -> None:
    """The mean square error: by the t mixture; an infinite trial leaves no interval."""
    rule = Stopping.for_bounds((0.0, math.inf), 0.1, 0.95, most=2000)
    assert rule.method == "t-mixture"
    values = np.random.default_rng(10).gamma(50, 0.02, 2000)  # mean 1, deviation 0.14
    assert rule.decide(list(values)).state == "precise"
    values[3] = math.inf
    broken = rule.decide(list(values))
    assert broken.state == "limit"
    assert broken.interval is not None
    assert (broken.interval.mean, broken.interval.low, broken.interval.high) == (math.inf, 0, math.inf)
    assert Stopping.for_bounds((-150, 150), 1, 0.95).method == "betting"


def test_refusals() -> None:
    for precision in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="--precision"):
            Stopping(precision)
    with pytest.raises(InputError, match="--confidence"):
        Stopping(0.01, 95)
    with pytest.raises(InputError, match="--trials 0"):
        Stopping(0.01, most=0)
    for bounds in ((0.0, math.inf), (1.0, 0.0), (math.nan, 1.0)):
        with pytest.raises(InputError, match="no interval by betting"):
            Stopping(0.01, bounds=bounds)
        with pytest.raises(InputError, match="no interval by betting"):
            betting_interval([0.5], 0.95, bounds=bounds)
    for function in (betting_interval, t_mixture_interval):
        with pytest.raises(InputError, match="trial 1 has the metric NaN"):
            function([0.5, math.nan], 0.95)
        with pytest.raises(InputError, match=r"1\.5, outside its bounds 0 to 1"):
            function([0.5, 1.5], 0.95)
        with pytest.raises(InputError, match="no trials"):
            function([], 0.95)


def test_the_prior_effect_is_narrowest_near_a_hundred_trials() -> None:
    """The quantile as a function of the prior variance g has its least at g = 0.08 for about 100 trials."""

    def quantile(g: float, n: int) -> float:
        spread = 1 + n * g
        ratio = (math.sqrt(spread) / 0.05) ** (2 / n)
        return math.sqrt((n - 1) * (ratio - 1) / (1 - ratio / spread))

    best = optimize.minimize_scalar(lambda g: quantile(g, 100), bounds=(0.01, 1), method="bounded").x
    assert best == pytest.approx(0.08, rel=0.2)
    values = list(np.random.default_rng(11).normal(size=100))
    found = t_mixture_interval(values, 0.95, bounds=(-math.inf, math.inf))
    assert found.half_width / stats.sem(values) == pytest.approx(quantile(0.08, 100), rel=1e-9)
