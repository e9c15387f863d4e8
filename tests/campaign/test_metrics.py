"""Metrics: what counts as right."""

from __future__ import annotations

import numpy as np
import pytest

from qtaml_onnx.campaign.metrics import Metric, decisions
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
