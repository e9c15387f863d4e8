"""Inference times by turns: the interval of the median is exact, and a slower model shows."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from scipy import stats

from qtaml_onnx.data import Dataset
from qtaml_onnx.inference_time import measure_inference, median_interval


@pytest.mark.parametrize("n", [6, 9, 20, 101])
def test_the_interval_covers_the_median_as_often_as_it_says(n: int) -> None:
    draws = np.random.default_rng(n).exponential(size=(4000, n))
    median = np.log(2)
    found = [median_interval(row.tolist(), 0.95) for row in draws]
    coverage = found[0][2]
    assert coverage >= 0.95
    hits = sum(low <= median <= high for low, high, _ in found)
    test = stats.binomtest(hits, len(found), coverage)
    assert test.pvalue > 1e-4
    k = sum(1 for value in sorted(draws[0]) if value < found[0][0]) + 1  # one order statistic further in covers less
    assert 1 - 2 * stats.binom.cdf(k, n, 0.5) < 0.95


def test_too_few_turns_give_the_extremes_and_their_coverage() -> None:
    assert median_interval([3.0, 1.0, 2.0], 0.95) == (1.0, 3.0, 1 - 2 * 0.125)


def chain(nodes: int) -> onnx.ModelProto:
    """Matrix products one after the other."""
    names = ["x", *(f"h{i}" for i in range(nodes))]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 200])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, ["n", 200])],
        [onnx.numpy_helper.from_array(np.eye(200, dtype=np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_model_of_ten_times_the_work_takes_several_times_as_long() -> None:
    data = Dataset({"x": np.ones((5, 200), np.float32)}, None, False, None, "test")
    found = measure_inference(chain(4), chain(40), data, 0.95)
    assert found is not None
    assert (found.batch, found.threads) == (1, 1)
    assert 9 <= found.runs <= 101
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.ratio > 3
    assert found.original_ms < found.hardened_ms


def test_no_samples_no_times() -> None:
    assert measure_inference(chain(1), chain(1), Dataset({}, None, False, None, "none"), 0.95) is None
