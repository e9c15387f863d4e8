"""Intervals: known values, scipy's own, and how often they cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from qtaml_onnx.campaign.statistics import t_interval, wilson_interval
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
