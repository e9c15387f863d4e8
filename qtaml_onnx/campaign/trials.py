"""One trial: one draw of the stored image, the same faults for all samples, measured on the first output.

Trial n of a campaign has seed `seed + n`, so that variants and rates meet in pairs. What a trial measures is a pure
function of the work's fields and the trial's numbers: batches run side by side, never an operator on several threads,
so that no sum is taken in another order because there are more cores or workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from qtaml_onnx.campaign.image import FaultyModel
from qtaml_onnx.campaign.metrics import Metric
from qtaml_onnx.campaign.outcomes import Outcomes
from qtaml_onnx.data import Dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.passes.inject_activation_faults import INFERENCE_INPUT

__all__ = ["BATCH_SIZE", "Measured", "Trial", "Work", "Worker", "available_cpus", "run_first_output"]

BATCH_SIZE = 64
"""Samples a run where the model leaves it open. Larger batches are no faster on one thread and take more memory."""

Measured = dict[str, float]
"""What a trial gave: metrics by name, and the number of samples with each outcome."""

Outputs = NDArray[np.generic]
Batch = tuple[dict[str, NDArray[np.generic]], int, int]
"""Inputs, how many samples of them count, and the number of the first one."""


@dataclass(frozen=True, order=True)
class Trial:
    """Which trial: places in a `Work`, and the number that is added to its seed."""

    variant: int
    condition: int
    number: int


@dataclass(frozen=True)
class Work:
    """All that trials need, wherever they run.

    Attributes:
        models: Instrumented models.
        rates: For each model and condition float32 [2, planes].
        data: The samples.
        metrics: What to measure.
        seed: Of trial 0.
        batch_size: Samples a run.
    """

    models: tuple[onnx.ModelProto, ...]
    rates: tuple[tuple[NDArray[np.float32], ...], ...]
    data: Dataset
    metrics: tuple[Metric, ...]
    seed: int
    batch_size: int


class Worker:
    """Runs trials one after the other; keeps the last model loaded."""

    def __init__(self, work: Work, threads: int) -> None:
        """Takes the work, and how many batches run side by side."""
        self._work = work
        self._threads = threads
        self._variant: int | None = None

    def __call__(self, trial: Trial) -> Measured:
        """Runs a trial.

        Raises:
            InputError: if the model does not run, or a metric fails.
        """
        if trial.variant != self._variant:
            self._load(trial.variant)
        rates = self._work.rates[trial.variant][trial.condition]
        output = self._output(self._work.seed + trial.number, rates)
        measured = {metric.name: metric.value(output) for metric in self._work.metrics}
        return measured | asdict(self._outcomes.count(output))

    def _load(self, variant: int) -> None:
        self._variant = None
        self._model = FaultyModel(self._work.models[variant])
        # Without faults on this very machine, so that a fault that changes no bit is seen to change none.
        quiet = [np.zeros_like(rates) for rates in self._work.rates[variant][:1]]
        self._outcomes = Outcomes(self._output(self._work.seed, quiet[0]))
        self._variant = variant

    def _output(self, seed: int, rates: NDArray[np.float32]) -> Outputs:
        session, extra = self._model.draw(seed, rates)
        return run_first_output(session, self._work.data, self._work.batch_size, extra, threads=self._threads)


def run_first_output(
    session: ort.InferenceSession,
    data: Dataset,
    batch_size: int,
    extra: dict[str, NDArray[Any]] | None = None,
    *,
    threads: int = 1,
) -> Outputs:
    """The model's first output for all samples, samples first.

    Args:
        session: The model.
        data: The samples.
        batch_size: Samples a run, where the model leaves it open.
        extra: Fed to each run beside the samples.
        threads: Batches that run side by side.

    Raises:
        InputError: if the model does not run on the data.
    """
    name = session.get_outputs()[0].name

    # Transient faults are drawn anew for each sample, by its number: the same in whatever batch it comes.
    numbered = any(value.name == INFERENCE_INPUT for value in session.get_overridable_initializers())

    def run(batch: Batch) -> Outputs:
        feed, count, first = batch
        number = {INFERENCE_INPUT: np.asarray(first, np.int64)} if numbered else {}
        try:
            output = np.asarray(session.run([name], {**feed, **number, **(extra or {})})[0])
        except Exception as error:  # onnxruntime raises types of its own, without a common base
            raise InputError(f"the model does not run on {data.source}: {str(error).splitlines()[0][:200]}") from error
        return output[None] if data.one_by_one else output[:count]

    parts = _side_by_side(run, _numbered(data.feeds(batch_size)), threads)
    if not parts:
        raise InputError("the model has no inputs: there are no samples to measure on")
    if len({part.shape[1:] for part in parts}) > 1:
        raise InputError(f"the size of output '{name}' depends on the input; such outputs cannot be compared")
    return np.concatenate(parts)


def _numbered(feeds: Iterable[tuple[dict[str, NDArray[np.generic]], int]]) -> Iterator[Batch]:
    first = 0
    for feed, count in feeds:
        yield feed, count, first
        first += count


def _side_by_side(function: Callable[[Batch], Outputs], items: Iterable[Batch], threads: int) -> list[Outputs]:
    """`map`, in order, on threads: onnxruntime lets go of the interpreter while it computes."""
    if threads == 1:
        return list(map(function, items))
    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(pool.map(function, items))
        finally:
            pool.shutdown(cancel_futures=True)  # the first error, or Ctrl-C, ends the rest


def available_cpus() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
