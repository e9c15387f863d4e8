"""How long one inference of the hardened model takes, against the original, in stock onnxruntime."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from scipy import stats

from qtaml_onnx.data import Dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.runtime import create_session

__all__ = ["InferenceTime", "measure_inference", "median_interval"]

_THREADS = 1
_BUDGET_S = 0.6
"""Seconds of turns, begun ones not counted."""
_FEWEST, _MOST = 9, 101
"""Turns. Nine are enough for an interval of the median at 95 %, even with the fewest turns on a slow model."""
_WARM_UP = 2


@dataclass(frozen=True)
class InferenceTime:
    """Wall time of one run of two models that ran by turns.

    Attributes:
        batch: Samples a run.
        runs: Turns; in each both models ran once.
        threads: Of onnxruntime.
        original_ms: Median of the original, in milliseconds.
        hardened_ms: Median of the hardened model.
        ratio: Median over the turns of hardened over original.
        ratio_low: Lower end of its interval.
        ratio_high: Upper end.
        confidence: Coverage of that interval.
    """

    batch: int
    runs: int
    threads: int
    original_ms: float
    hardened_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    confidence: float


def measure_inference(
    original: onnx.ModelProto, hardened: onnx.ModelProto, data: Dataset, confidence: float
) -> InferenceTime | None:
    """Runs both models by turns on the first samples, in sessions with onnxruntime's defaults but for one thread.

    A ratio within a turn does not see what slows both, so that it holds on a machine with other work. The batch is what
    the model fixes, else 1. Takes about half a second, and nine turns of a model that is slower than that.

    Returns:
        The times; None if there are no samples.

    Raises:
        InputError: if a model does not run.
    """
    first = next(data.feeds(1), None)
    if first is None:
        return None
    feed, _count = first
    sessions = [create_session(model, _options()) for model in (original, hardened)]
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    try:
        for turn in range(-_WARM_UP, _MOST):
            pair = [0.0, 0.0]
            for which in (0, 1) if turn % 2 else (1, 0):  # neither is always the one that finds a cold cache
                begin = time.perf_counter()
                sessions[which].run(None, feed)
                pair[which] = time.perf_counter() - begin
            if turn < 0:
                start = time.perf_counter()
                continue
            times.append((pair[0], pair[1]))
            if len(times) >= _FEWEST and time.perf_counter() - start > _BUDGET_S:
                break
    except Exception as error:  # onnxruntime raises types of its own, without a common base
        raise InputError(f"the model does not run on {data.source}: {str(error).splitlines()[0][:200]}") from error
    array = np.array(times)
    ratios = array[:, 1] / array[:, 0]
    low, high, coverage = median_interval(ratios.tolist(), confidence)
    own, other = np.median(array, axis=0) * 1e3
    return InferenceTime(
        batch=1 if data.one_by_one else len(next(iter(feed.values()))),
        runs=len(times),
        threads=_THREADS,
        original_ms=float(own),
        hardened_ms=float(other),
        ratio=float(np.median(ratios)),
        ratio_low=low,
        ratio_high=high,
        confidence=coverage,
    )


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = _THREADS
    options.log_severity_level = 3
    return options


def median_interval(values: list[float], confidence: float) -> tuple[float, float, float]:
    """The interval of the median between two order statistics (Thompson 1936), and its exact coverage.

    The k-th smallest and the k-th largest of n values miss the median of a continuous distribution with probability
    2 P[Binomial(n, 1/2) < k]: the narrowest pair that still covers with the confidence is taken, and the extremes,
    whose coverage is then less, where there is none.
    """
    ordered, n = sorted(values), len(values)
    k = max(1, int(stats.binom.ppf((1 - confidence) / 2, n, 0.5)))
    while k > 1 and 2 * stats.binom.cdf(k - 1, n, 0.5) > 1 - confidence:
        k -= 1
    return ordered[k - 1], ordered[n - k], float(1 - 2 * stats.binom.cdf(k - 1, n, 0.5))
