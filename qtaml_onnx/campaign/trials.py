"""Runs trials: one draw of the stored image a trial, the same faults for all samples, the same seeds for all variants.

Trial t uses seed `seed + t`, so that variants and rates meet in pairs, and a result is the same for any number of
workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from qtaml_onnx.campaign.metrics import Metric
from qtaml_onnx.campaign.statistics import Interval, t_interval, wilson_interval
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.data import Dataset
from qtaml_onnx.errors import InputError, QtamlError
from qtaml_onnx.passes.inject_faults import RATES_INPUT, SEED_INPUT
from qtaml_onnx.runtime import create_session, session_options

__all__ = ["Campaign", "Result", "Variant", "run_first_output"]

SESSION_LEVEL = "extended"
"""Graph optimisation of campaigns: the layout pass beyond it pays only for weights that are constant."""

_LARGEST_SEED = 2**63 - 1

Outputs = NDArray[np.generic]


@dataclass(frozen=True)
class Variant:
    """A model in a campaign: `clean`, `quantized`, `unprotected` or `hardened`, instrumented if it has faults."""

    name: str
    model: onnx.ModelProto


@dataclass(frozen=True)
class Result:
    """Accuracy of a variant at one rate.

    Attributes:
        variant: Its name.
        flip_rate: The largest rate of any plane; 0 without faults.
        interval: Mean and confidence interval of the metric.
        values: The metric of each trial; one entry for a variant without faults.
        label: Where the rate came from, if not from a number: a retention time, a device.
    """

    variant: str
    flip_rate: float
    interval: Interval
    values: tuple[float, ...] = field(repr=False)
    label: str | None = None


def run_first_output(
    session: ort.InferenceSession, data: Dataset, batch_size: int, extra: dict[str, NDArray[Any]] | None = None
) -> Outputs:
    """The model's first output for all samples, samples first.

    Raises:
        InputError: if the model does not run on the data.
    """
    name = session.get_outputs()[0].name
    parts = []
    for feed, count in data.feeds(batch_size):
        try:
            output = np.asarray(session.run([name], {**feed, **(extra or {})})[0])
        except Exception as error:  # onnxruntime raises types of its own, without a common base
            raise InputError(f"the model does not run on {data.source}: {str(error).splitlines()[0][:200]}") from error
        parts.append(output[None] if data.one_by_one else output[:count])
    if not parts:
        raise InputError("the model has no inputs: there are no samples to measure on")
    if len({part.shape[1:] for part in parts}) > 1:
        raise InputError(f"the size of output '{name}' depends on the input; such outputs cannot be compared")
    return np.concatenate(parts)


class Campaign:
    """Trials of several variants of one model on the same samples.

    Attributes:
        data: The samples.
        trials: Trials a rate.
        seed: Of the first trial.
        confidence: Of the intervals.
        workers: Processes.
        batch_size: Samples a run, where the model leaves it open.
        metric: Set by `measure_clean`.
    """

    def __init__(
        self,
        data: Dataset,
        *,
        trials: int = 20,
        seed: int = 0,
        confidence: float = 0.95,
        workers: int = 1,
        batch_size: int = 256,
    ) -> None:
        """Checks the numbers; raises InputError if one is out of range."""
        for name, value in (("--trials", trials), ("--workers", workers)):
            if value < 1:
                raise InputError(f"{name} {value} is too few; give at least 1")
        if not 0 <= seed <= _LARGEST_SEED - trials:
            raise InputError(f"--seed {seed} is out of range; give a number from 0 to {_LARGEST_SEED - trials}")
        self.data = data
        self.trials = trials
        self.seed = seed
        self.confidence = confidence
        self.workers = workers
        self.batch_size = batch_size
        self.metric: Metric | None = None

    def measure_clean(self, model: onnx.ModelProto) -> Result:
        """Runs the original model, which sets the metric's reference.

        Raises:
            InputError: if the labels do not fit or an output is not finite.
        """
        output = run_first_output(_session(model), self.data, self.batch_size)
        if np.issubdtype(output.dtype, np.floating) and not np.isfinite(output).all():
            raise InputError(f"the clean model's outputs on {self.data.source} are not finite; give other data")
        self.metric = Metric.against(self.data.labels, output)
        return self._certain("clean", output)

    def measure_fixed(self, variant: Variant) -> Result:
        """Runs a model without faults once."""
        return self._certain(variant.name, run_first_output(_session(variant.model), self.data, self.batch_size))

    def _certain(self, name: str, output: Outputs) -> Result:
        right = self._metric.right(output)
        interval = wilson_interval(round(float(right.sum())), len(right), self.confidence)
        mean = float(right.mean())
        return Result(name, 0.0, Interval(mean, interval.low, interval.high, "wilson"), (mean,))

    @property
    def _metric(self) -> Metric:
        if self.metric is None:
            raise InputError("measure the clean model first")
        return self.metric

    def measure_faulty(
        self,
        variant: Variant,
        rates: Sequence[FlipRates],
        *,
        labels: Sequence[str] | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> list[Result]:
        """Runs an instrumented model: `trials` trials at each of the rates.

        Args:
            variant: The instrumented model.
            rates: Flip rates, with at least as many planes as the longest stored word.
            labels: What to call the rates, if they have names.
            progress: Called after each trial.
        """
        tasks = [(rate.as_array(), self.seed + trial) for rate in rates for trial in range(self.trials)]
        values = []
        for value in self._run(variant.model, tasks):
            values.append(value)
            progress()
        results = []
        for number, rate in enumerate(rates):
            part = tuple(values[number * self.trials : (number + 1) * self.trials])
            interval = t_interval(part, self.confidence)
            label = labels[number] if labels else None
            results.append(Result(variant.name, max(*rate.p01, *rate.p10), interval, part, label))
        return results

    def _run(self, model: onnx.ModelProto, tasks: Sequence[tuple[NDArray[np.float32], int]]) -> Iterator[float]:
        arguments = (model.SerializeToString(), self.data, self._metric, self.batch_size)
        if self.workers == 1:
            worker = _Worker(*arguments, threads=None)
            yield from map(worker, tasks)
            return
        try:
            with ProcessPoolExecutor(
                self.workers, get_context("spawn"), initializer=_start_worker, initargs=arguments
            ) as pool:
                yield from pool.map(_in_worker, tasks)
        except BrokenProcessPool as error:
            raise QtamlError("a worker process died, perhaps for lack of memory; run with fewer --workers") from error


def _session(model: onnx.ModelProto | bytes, threads: int | None = None) -> ort.InferenceSession:
    return create_session(model, session_options(threads=threads, optimization_level=SESSION_LEVEL))


class _Worker:
    """One process's session, with all that a trial needs."""

    def __init__(self, model: bytes, data: Dataset, metric: Metric, batch_size: int, threads: int | None) -> None:
        self.session = _session(model, threads)
        self.data = data
        self.metric = metric
        self.batch_size = batch_size

    def __call__(self, task: tuple[NDArray[np.float32], int]) -> float:
        rates, seed = task
        extra: dict[str, NDArray[Any]] = {SEED_INPUT: np.asarray(seed, dtype=np.int64), RATES_INPUT: rates}
        output = run_first_output(self.session, self.data, self.batch_size, extra)
        return float(self.metric.right(output).mean())


_worker: _Worker | None = None


def _start_worker(model: bytes, data: Dataset, metric: Metric, batch_size: int) -> None:
    global _worker
    _worker = _Worker(model, data, metric, batch_size, threads=1)


def _in_worker(task: tuple[NDArray[np.float32], int]) -> float:
    if _worker is None:
        raise InputError("the worker process did not start; run with --workers 1")
    return _worker(task)
