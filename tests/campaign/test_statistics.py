"""Intervals: known values, scipy's own, and how often they cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qtaml_onnx.campaign.sequential import betting_interval
from qtaml_onnx.campaign.statistics import paired_difference, t_interval, wilson_interval
from qtaml_onnx.errors import InputError


def test_t_interval_is_scipy_s() -> None:
    values = [0.61, 0.58, 0.66, 0.60, 0.63, 0.59]
    found = t_interval(values, 0.9)
    low, high = stats.t.interval(0.9, 5, np.mean(values), stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high), rel=1e-12)
    assert found.method == "t"


def test_t_interval_by_hand() -> None:
    """Mean 0.5, s = 0.1, n = 4: 0.5 ± 3.182446 · 0.05."""
    d = 0.1 * np.sqrt(3 / 4)
    found = t_interval([0.5 - d, 0.5 - d, 0.5 + d, 0.5 + d], 0.95)
    assert found.high - found.mean == pytest.approx(3.182446305 * 0.05, rel=1e-8)


def test_t_interval_stays_where_metrics_lie() -> None:
    assert t_interval([0.0, 1.0], 0.95).low == 0.0
    assert t_interval([0.0, 1.0], 0.95).high == 1.0
    one = t_interval([0.7], 0.95)
    assert (one.low, one.mean, one.high) == (0.0, 0.7, 1.0)


def test_wilson_interval_is_scipy_s() -> None:
    for successes, samples, confidence in ((0, 10, 0.95), (10, 10, 0.95), (3, 17, 0.9), (500, 1000, 0.99)):
        wanted = stats.binomtest(successes, samples).proportion_ci(confidence, method="wilson")
        found = wilson_interval(successes, samples, confidence)
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
        assert found.low <= found.mean <= found.high


def test_wilson_contains_the_proportion_even_at_its_ends() -> None:
    for samples in range(1, 400):
        assert wilson_interval(samples, samples, 0.95).high == 1.0
        assert wilson_interval(0, samples, 0.95).low == 0.0


def test_coverage_by_simulation() -> None:
    """4000 campaigns each. The count of covered truths is binomial: 95 % ± 4 standard deviations is ± 1.4 points.

    Student's t on normal trials covers exactly; Wilson's interval covers on average over proportions, so that its truth
    is drawn uniformly.
    """
    rng = np.random.default_rng(5)
    campaigns = 4000
    margin = 4 * np.sqrt(0.95 * 0.05 / campaigns)
    covered = 0
    for values in rng.normal(0.5, 0.02, (campaigns, 8)):
        found = t_interval(list(values), 0.95)
        covered += found.low <= 0.5 <= found.high
    assert abs(covered / campaigns - 0.95) < margin
    covered = 0
    for p in rng.random(campaigns):
        found = wilson_interval(int(rng.binomial(300, p)), 300, 0.95)
        covered += found.low <= p <= found.high
    assert abs(covered / campaigns - 0.95) < margin


def test_refusals() -> None:
    for confidence in (0.0, 1.0, 95.0, float("nan")):
        with pytest.raises(InputError, match="--confidence"):
            t_interval([0.5, 0.6], confidence)
    with pytest.raises(InputError, match="no trials"):
        t_interval([], 0.95)
    with pytest.raises(InputError, match="no samples"):
        wilson_interval(0, 0, 0.95)


def test_intervals_are_cut_to_the_metric_s_bounds_only() -> None:
    """Decibels and errors do not live in 0 to 1."""
    decibels = [12.0, 14.0, 13.0, 40.0]
    found = t_interval(decibels, 0.95, bounds=(-150.0, 150.0))
    low, high = stats.t.interval(0.95, 3, np.mean(decibels), stats.sem(decibels))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    errors = t_interval([0.1, 0.1, 9.0], 0.95, bounds=(0.0, math.inf))
    assert errors.low == 0.0
    assert errors.high > 9
    one = t_interval([3.0], 0.95, bounds=(0.0, math.inf))
    assert (one.low, one.mean, one.high) == (0.0, 3.0, math.inf)
    with pytest.raises(InputError, match="40, outside its bounds 0 to 1"):
        t_interval([0.5, 40.0], 0.95)


def test_an_infinite_trial_is_reported_and_a_nan_refused() -> None:
    found = t_interval([0.5, math.inf, 0.6], 0.95, bounds=(0.0, math.inf))
    assert (found.mean, found.low, found.high) == (math.inf, 0.0, math.inf)
    with pytest.raises(InputError, match="trial 1 has the metric NaN"):
        t_interval([0.5, math.nan], 0.95)
    with pytest.raises(InputError, match="their mean is undefined"):
        t_interval([math.inf, -math.inf], 0.95, bounds=(-math.inf, math.inf))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.floats(0.01, 0.999))
def test_t_intervals_lie_in_their_bounds(values: list[float], confidence: float) -> None:
    found = t_interval(values, confidence)
    assert 0 <= found.low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= found.high <= 1
    assert found.half_width == pytest.approx((found.high - found.low) / 2)


def test_paired_difference_is_scipy_s() -> None:
    first = {7: 0.50, 8: 0.61, 9: 0.40, 10: 0.55}
    second = {7: 0.58, 8: 0.66, 9: 0.49, 10: 0.66}
    found = paired_difference(first, second, 0.9)
    wanted = stats.ttest_rel(list(second.values()), list(first.values())).confidence_interval(0.9)
    assert (found.interval.low, found.interval.high) == pytest.approx((wanted.low, wanted.high), rel=1e-12)
    assert found.interval.mean == pytest.approx(0.0825, rel=1e-12)
    assert (found.pairs, found.missing_first, found.missing_second) == (4, (), ())


def test_paired_differences_tell_missing_pairs() -> None:
    found = paired_difference({3: 0.1, 2: 0.2, 1: 0.3}, {5: 0.9, 2: 0.4, 3: 0.3, 4: 0.9}, 0.95)
    assert (found.pairs, found.missing_first, found.missing_second) == (2, (4, 5), (1,))
    assert found.interval.mean == pytest.approx(0.2)
    with pytest.raises(InputError, match="no seed in common"):
        paired_difference({1: 0.1}, {2: 0.1}, 0.95)


def test_paired_differences_of_infinite_errors() -> None:
    unbounded = (0.0, math.inf)
    found = paired_difference({1: 0.1, 2: 0.2}, {1: math.inf, 2: 0.1}, 0.95, bounds=unbounded)
    assert (found.interval.mean, found.interval.low) == (math.inf, -math.inf)
    with pytest.raises(InputError, match="the difference at seed 1 is undefined"):
        paired_difference({1: math.inf, 2: 0.2}, {1: math.inf, 2: 0.1}, 0.95, bounds=unbounded)


def test_paired_differences_cover_and_are_narrower() -> None:
    """2000 campaigns of 10 trials; the variants share 0.04 of spread and have 0.01 each of their own.

    A difference has the deviation √2 · 0.01 instead of √2 · √(0.04² + 0.01²): 4.1 times less.
    """
    rng = np.random.default_rng(12)
    covered, ratios = 0, []
    for _ in range(2000):
        shared = rng.normal(0, 0.04, 10)
        first, second = (dict(enumerate(m + shared + rng.normal(0, 0.01, 10))) for m in (0.5, 0.53))
        found = paired_difference(first, second, 0.95).interval
        covered += found.low <= 0.03 <= found.high
        alone = [t_interval(list(values.values()), 0.95).half_width for values in (first, second)]
        ratios.append(np.hypot(*alone) / found.half_width)
    assert abs(covered / 2000 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)
    assert np.median(ratios) == pytest.approx(np.sqrt(17), rel=0.1)


def test_paired_differences_of_campaigns_that_stopped_by_themselves() -> None:
    """A difference of shares lies in −1 to 1, which betting has to know."""
    rng = np.random.default_rng(13)
    first, second = (dict(enumerate(rng.uniform(0, 1, 500))) for _ in range(2))
    found = paired_difference(first, second, 0.95, interval=betting_interval).interval
    wanted = betting_interval([(second[s] - first[s] + 1) / 2 for s in range(500)], 0.95)
    assert (found.low, found.high) == pytest.approx((2 * wanted.low - 1, 2 * wanted.high - 1), abs=1e-8)
    assert found.method == "betting"
