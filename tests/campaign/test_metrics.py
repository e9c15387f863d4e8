"""Metrics: what counts as right."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from qtaml_onnx.campaign.metrics import Metric, decisions
from qtaml_onnx.campaign.statistics import wilson_interval
from qtaml_onnx.errors import InputError

LOGITS = np.array([[1, 5, 2], [7, 1, 0], [0, 2, 3], [4, 4, 1]], dtype=np.float32)  # chooses 1, 0, 2, 0


def test_top_1_against_labels() -> None:
    metric = Metric.against(np.array([1, 0, 0, 0]), LOGITS)
    assert metric.name == "top-1"
    np.testing.assert_array_equal(metric.right(LOGITS), [1, 1, 0, 1])


def test_agreement_with_the_clean_choice() -> None:
    metric = Metric.against(None, LOGITS)
    assert metric.name == "agreement"
    np.testing.assert_array_equal(metric.right(LOGITS), 1)
    np.testing.assert_array_equal(metric.right(LOGITS[::-1]), [0, 0, 0, 0])
    np.testing.assert_array_equal(metric.right(-LOGITS), [0, 0, 0, 0])


def test_trailing_ones_are_no_class_axis() -> None:
    """Some classifiers put out a 1×1 picture a class."""
    pictures = LOGITS[:, :, None, None]
    metric = Metric.against(None, pictures)
    assert metric.name == "agreement"
    np.testing.assert_array_equal(decisions(pictures), [1, 0, 2, 0])
    assert Metric.against(np.array([1, 0, 2, 0]), pictures).right(pictures).mean() == 1


def test_several_decisions_a_sample() -> None:
    """Labels a position; a sample's share is that of its positions."""
    logits = np.stack([LOGITS, LOGITS])  # [2, 4, 3]
    metric = Metric.against(np.array([[1, 0, 2, 0], [1, 0, 0, 1]]), logits)
    np.testing.assert_array_equal(metric.right(logits), [1, 0.5])


def test_integers_are_decisions_already() -> None:
    metric = Metric.against(np.array([3, 4]), np.array([3, 5]))
    np.testing.assert_array_equal(metric.right(np.array([3, 5])), [1, 0])


def test_real_valued_outputs_agree_within_five_percent_of_the_rms() -> None:
    clean = np.array([[3.0], [4.0], [-5.0]])  # rms 4.08, tolerance 0.204
    metric = Metric.against(None, clean)
    assert metric.name == "agreement-5-percent"
    np.testing.assert_array_equal(metric.right(clean + 0.2), [1, 1, 1])
    np.testing.assert_array_equal(metric.right(clean + np.array([[0.21], [0], [-0.21]])), [0, 1, 0])
    np.testing.assert_array_equal(metric.right(np.array([[np.nan], [np.inf], [-5.0]])), [0, 0, 1])


def test_a_nan_is_never_right() -> None:
    """argmax takes a NaN for the largest number, which must not be credited with a hit."""
    broken = LOGITS.copy()
    broken[0, 1] = np.nan  # where argmax would say 1, the label
    broken[1] = np.nan
    np.testing.assert_array_equal(Metric.against(np.array([1, 0, 2, 0]), LOGITS).right(broken), [0, 0, 1, 1])
    np.testing.assert_array_equal(Metric.against(None, LOGITS).right(broken), [0, 0, 1, 1])


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"labels have shape \[3\], the model's decisions \[4\]"):
        Metric.against(np.array([0, 1, 2]), LOGITS)
    with pytest.raises(InputError, match="cannot be compared"):
        Metric.against(None, LOGITS).right(LOGITS[:2])
    with pytest.raises(InputError, match="cannot be compared"):
        Metric.against(None, np.ones((4, 1))).right(np.ones((3, 1)))


def test_top_k_by_hand() -> None:
    metric = Metric.against(np.array([2, 2, 0, 0]), LOGITS, "top-2")
    np.testing.assert_array_equal(metric.right(LOGITS), [1, 0, 0, 1])
    assert metric.value(LOGITS) == 0.5


@given(hnp.arrays(np.float32, (6, 7), elements=st.integers(-3, 3)), hnp.arrays(np.int64, 6, elements=st.integers(0, 6)))
def test_top_k_counts_the_first_k_of_a_stable_sort(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """With ties; top-1 is that of argmax."""
    order = np.argsort(-scores, axis=1, kind="stable")
    for k in range(2, 7):
        wanted = [label in row[:k] for label, row in zip(labels, order, strict=True)]
        np.testing.assert_array_equal(Metric.against(labels, scores, f"top-{k}").right(scores), wanted)
    np.testing.assert_array_equal(Metric.against(labels, scores).right(scores), labels == order[:, 0])


def test_top_k_with_nan_and_infinity() -> None:
    """An infinite score is the highest; a NaN makes the ranking meaningless."""
    broken = LOGITS.copy()
    broken[0, 0] = np.nan
    broken[1, 2] = np.inf
    np.testing.assert_array_equal(Metric.against(np.array([1, 2, 2, 2]), LOGITS, "top-2").right(broken), [0, 1, 1, 0])


def test_top_k_of_several_decisions_a_sample() -> None:
    logits = np.stack([LOGITS, LOGITS])
    labels = np.array([[2, 2, 0, 0], [2, 0, 1, 1]])
    np.testing.assert_array_equal(Metric.against(labels, logits, "top-2").right(logits), [0.5, 1])


def test_top_k_refusals() -> None:
    labels = np.array([1, 0, 2, 0])
    for name, refused in (("top-3", "always 1 for 3 classes"), ("top-5", "always 1 for 3 classes")):
        with pytest.raises(InputError, match=refused):
            Metric.against(labels, LOGITS, name)
    with pytest.raises(InputError, match="label 3 is none of the 3 classes 0 to 2"):
        Metric.against(np.array([1, 0, 3, 0]), LOGITS, "top-2")
    with pytest.raises(InputError, match="label -1 is none"):
        Metric.against(np.array([1, 0, -1, 0]), LOGITS, "top-2")
    with pytest.raises(InputError, match="needs labels"):
        Metric.against(None, LOGITS, "top-1")
    with pytest.raises(InputError, match="needs scores of classes"):
        Metric.against(np.array([3, 4]), np.array([3, 5]), "top-2")


def test_mean_square_error_by_hand() -> None:
    clean = np.array([[3.0, 4.0], [0.0, -5.0]], dtype=np.float32)
    metric = Metric.against(None, clean, "mse")
    assert metric.value(clean) == 0
    assert metric.value(clean + np.array([[1, 2], [0, 3]], dtype=np.float32)) == pytest.approx(14 / 4)
    assert (metric.bounds, metric.higher_is_better, metric.is_share) == ((0.0, math.inf), False, False)


def test_signal_to_noise_by_hand() -> None:
    """Clean energy 50, error energy 0.5: 20 dB."""
    clean = np.array([[3.0, 4.0], [0.0, -5.0]], dtype=np.float32)
    metric = Metric.against(np.array([0, 1]), clean, "snr")
    assert metric.value(clean + np.array([[0.5, 0], [0.5, 0]], dtype=np.float32)) == pytest.approx(20, abs=1e-12)
    assert metric.value(11 * clean) == pytest.approx(-20, abs=1e-12)
    assert metric.value(clean) == 150
    assert (metric.bounds, metric.higher_is_better, metric.is_share) == ((-150.0, 150.0), True, False)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_errors_of_outputs_that_are_no_numbers(broken: float) -> None:
    """One such number among all is not dropped: the error is infinite, the ratio the lowest there is."""
    output = LOGITS.copy()
    output[2, 1] = broken
    assert Metric.against(None, LOGITS, "mse").value(output) == math.inf
    assert Metric.against(None, LOGITS, "snr").value(output) == -150


def test_errors_beyond_float64_are_infinite() -> None:
    clean = np.array([[1.0, 2.0]])
    assert Metric.against(None, clean, "mse").value(np.array([[1e200, 0.0]])) == math.inf
    assert Metric.against(None, clean, "snr").value(np.array([[1e200, 0.0]])) == -150
    assert Metric.against(None, clean, "snr").value(np.array([[1e100, 0.0]])) == -150


@given(
    hnp.arrays(np.float32, (4, 3), elements=st.floats(width=32)), st.sampled_from(["agreement", "mse", "snr", "top-2"])
)
def test_values_lie_in_their_bounds(output: NDArray[np.float32], name: str) -> None:
    """Whatever faults make of the outputs, NaN and infinities too."""
    metric = Metric.against(np.array([1, 0, 2, 0]), LOGITS, name)
    assert metric.bounds[0] <= metric.value(output) <= metric.bounds[1]


def test_names_that_do_not_fit_are_refused() -> None:
    reals = np.array([[3.0], [4.0]])
    for name, clean, refused in (
        ("accuracy", LOGITS, "--metric accuracy is unknown; give one of top-1"),
        ("top-0", LOGITS, "unknown"),
        ("agreement", reals, "use --metric agreement-5-percent"),
        ("mse", np.array([3, 4]), "needs real-valued outputs, the model's are int64"),
        ("mse", np.array([[np.inf, 1.0]]), "not finite"),
        ("snr", np.zeros((2, 2)), "all 0"),
    ):
        with pytest.raises(InputError, match=refused):
            Metric.against(np.zeros(len(clean), dtype=np.int64), clean, name)
    with pytest.raises(InputError, match="counts no right samples"):
        Metric.against(None, LOGITS, "mse").right(LOGITS)
    for name in ("mse", "snr"):
        with pytest.raises(InputError, match="cannot be compared"):
            Metric.against(None, LOGITS, name).value(LOGITS[:2])


def test_intervals_of_models_without_faults() -> None:
    """Over samples, for shares; other metrics have none."""
    metric = Metric.against(np.array([1, 0, 0, 0]), LOGITS)
    assert metric.interval_of_one(LOGITS, 0.9) == wilson_interval(3, 4, 0.9)
    error = Metric.against(None, LOGITS, "mse").interval_of_one(LOGITS + 1, 0.9)
    assert (error.mean, error.low, error.high, error.method) == (1.0, 0.0, math.inf, "t")


def test_metrics_travel_to_workers() -> None:
    for name in ("top-1", "top-2", "agreement", "agreement-5-percent", "mse", "snr"):
        metric = Metric.against(np.array([1, 0, 2, 0]), LOGITS, name)
        assert pickle.loads(pickle.dumps(metric)).value(LOGITS[::-1]) == metric.value(LOGITS[::-1])  # noqa: S301
