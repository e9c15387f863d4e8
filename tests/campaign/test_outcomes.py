"""Outcomes of faults: masked, tolerable, critical, detected."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats

from qtaml_onnx.campaign.metrics import decisions
from qtaml_onnx.campaign.outcomes import OUTCOMES, OutcomeCounts, Outcomes, outcome_intervals
from qtaml_onnx.campaign.sequential import betting_interval
from qtaml_onnx.errors import InputError

LOGITS = np.array([[1, 5, 2], [7, 1, 0], [0, 2, 3], [4, 4, 1], [2, 1, 0]], dtype=np.float32)


def names(outcomes: Outcomes, output: NDArray[np.generic]) -> list[str]:
    return [OUTCOMES[place] for place in outcomes.classify(output)]


def test_each_outcome() -> None:
    output = LOGITS.copy()
    output[1] = [6, 5, 4]  # the same class by less
    output[2] = [0, 3, 2]  # another class
    output[3, 2] = np.nan
    output[4, 0] = np.inf  # the class that is right anyway: still found by the simplest check
    outcomes = Outcomes(LOGITS)
    assert names(outcomes, output) == ["masked", "tolerable", "critical", "detected", "detected"]
    counts = outcomes.count(output)
    assert counts == OutcomeCounts(masked=1, tolerable=1, critical=1, detected=2)
    assert counts.samples == 5
    assert [counts.share(outcome) for outcome in OUTCOMES] == [0.2, 0.2, 0.2, 0.4]


def test_equal_numbers_are_masked_but_the_last_bit_counts() -> None:
    zeros = np.array([[0.0, 1.0]], dtype=np.float32)
    assert names(Outcomes(zeros), np.array([[-0.0, 1.0]], dtype=np.float32)) == ["masked"]
    assert names(Outcomes(zeros), np.nextafter(zeros, np.float32(2))) == ["tolerable"]


def test_tolerance_is_a_share_of_the_rms() -> None:
    """Rms 5; the decision is told first, however small the change."""
    clean = np.array([[5.0, -5.0], [5.0, 4.999]])
    clean *= 5 / np.sqrt(np.mean(clean**2))
    outcomes = Outcomes(clean, tolerance=0.01)
    assert names(outcomes, clean + np.array([[0.0499, -0.0499], [0, -0.04]])) == ["masked", "masked"]
    assert names(outcomes, clean + np.array([[0.0501, 0], [0, 0.01]])) == ["tolerable", "critical"]


def test_one_changed_decision_of_several_is_critical() -> None:
    logits = np.stack([LOGITS, LOGITS])
    output = logits.copy()
    output[1, 4] = [0, 1, 2]
    assert names(Outcomes(logits), output) == ["masked", "critical"]


def test_real_valued_outputs_are_critical_beyond_five_percent() -> None:
    clean = np.array([[3.0], [4.0], [-5.0]])  # rms 4.08, 5 % are 0.204
    assert names(Outcomes(clean), clean + np.array([[0.0], [0.2], [0.21]])) == ["masked", "tolerable", "critical"]


def test_integer_decisions() -> None:
    assert names(Outcomes(np.array([3, 4])), np.array([3, 5])) == ["masked", "critical"]


@given(hnp.arrays(np.float32, (5, 3), elements=st.sampled_from([0, 1, 2, 4, 5, 7, np.nan, np.inf, -np.inf])))
def test_outcomes_by_definition(output: NDArray[np.float32]) -> None:
    """Each sample has one outcome, by the plain words of its definition."""
    wanted = []
    for faulty, clean in zip(output, LOGITS, strict=True):
        if not np.isfinite(faulty).all():
            wanted.append("detected")
        elif decisions(faulty[None]) != decisions(clean[None]):
            wanted.append("critical")
        else:
            wanted.append("masked" if (faulty == clean).all() else "tolerable")
    assert names(Outcomes(LOGITS), output) == wanted
    assert Outcomes(LOGITS).count(output).samples == 5


def test_intervals_over_trials() -> None:
    trials = [OutcomeCounts(8, 1, 1, 0), OutcomeCounts(6, 2, 2, 0), OutcomeCounts(7, 0, 2, 1)]
    found = outcome_intervals(trials, 0.9)
    assert list(found) == ["masked", "tolerable", "critical", "detected"]
    assert found["masked"].mean == pytest.approx(0.7)
    assert sum(interval.mean for interval in found.values()) == pytest.approx(1)
    low, high = stats.t.interval(0.9, 2, 0.7, 0.1 / np.sqrt(3))
    assert (found["masked"].low, found["masked"].high) == pytest.approx((low, high))
    assert outcome_intervals(trials, 0.9, interval=betting_interval)["critical"].method == "betting"


def test_refusals() -> None:
    with pytest.raises(InputError, match="cannot be compared"):
        Outcomes(LOGITS).classify(LOGITS[:2])
    with pytest.raises(InputError, match=r"shape \[5, 2\], without faults \[5, 3\]"):
        Outcomes(LOGITS).classify(LOGITS[:, :2])
    for tolerance in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="makes no sense"):
            Outcomes(LOGITS, tolerance)
    with pytest.raises(InputError, match="not finite even without faults"):
        Outcomes(np.array([[np.nan, 1.0]]))
    with pytest.raises(InputError, match="no samples"):
        Outcomes(np.zeros((0, 3)))
    with pytest.raises(InputError, match="no trials"):
        outcome_intervals([], 0.95)
