"""What faults did to each sample: nothing, something tolerable, a changed decision, or an output that is no number.

The reference is the same model without faults, which is what silent data corruption is defined against (Li et al.,
Understanding error propagation in deep learning neural network (DNN) accelerators and applications, SC'17), not the
labels: a fault that turns a wrong decision into a right one is a corruption too. Against the original float model, a
quantised one would have no masked fault at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.campaign.metrics import Metric
from qtaml_onnx.campaign.statistics import Interval, IntervalFunction, t_interval
from qtaml_onnx.errors import InputError

__all__ = ["OUTCOMES", "Outcome", "OutcomeCounts", "Outcomes", "outcome_intervals"]

Outcome = Literal["masked", "tolerable", "critical", "detected"]
OUTCOMES: tuple[Outcome, ...] = ("masked", "tolerable", "critical", "detected")


@dataclass(frozen=True)
class OutcomeCounts:
    """How many samples of a trial had each outcome.

    Attributes:
        masked: Decision and values are those without faults.
        tolerable: Values differ, the decision does not.
        critical: The decision differs: SDC-1 of Li et al.
        detected: A NaN or infinity among the outputs, which the simplest check finds: no *silent* corruption.
    """

    masked: int
    tolerable: int
    critical: int
    detected: int

    @property
    def samples(self) -> int:
        """Of the trial."""
        return self.masked + self.tolerable + self.critical + self.detected

    def share(self, outcome: Outcome) -> float:
        """Of the samples."""
        return float(getattr(self, outcome)) / self.samples


@dataclass(frozen=True)
class Outcomes:
    """Tells the outcome of each sample.

    Decisions are compared as by the metric `agreement`. A real-valued output, which decides nothing, is called critical
    where it leaves the 5 % of `agreement-5-percent`; that is ours. Of a sample with several decisions one changed
    decision is enough.

    Attributes:
        fault_free: First output of the same model without faults, [samples, …].
        tolerance: How far the values of a masked sample may be off, as a share of the rms of all fault-free outputs. 0
            asks for equal numbers, which a model gives only on the same machine, threads and session options.
    """

    fault_free: NDArray[np.generic]
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        """Raises InputError if the tolerance is negative, the outputs are not finite, or there are no samples."""
        if not 0 <= self.tolerance < np.inf:
            raise InputError(f"a tolerance of {self.tolerance:g} makes no sense; give 0 or a little more")
        if not len(self.fault_free):
            raise InputError("no samples to tell the outcome of; give at least one")
        if not np.isfinite(self.fault_free).all():
            raise InputError("outputs are not finite even without faults; give other data")

    @cached_property
    def _agreement(self) -> Metric:
        return Metric.against(None, self.fault_free)

    @cached_property
    def _allowed(self) -> float:
        return self.tolerance * float(np.sqrt(np.mean(np.square(self.fault_free, dtype=np.float64))))

    def classify(self, output: NDArray[np.generic]) -> NDArray[np.int8]:
        """The outcome of each sample, int8 [samples], as its place in `OUTCOMES`.

        Raises:
            InputError: if the output has another shape than without faults.
        """
        right = self._agreement.right(output)  # refuses another shape
        if output.shape != self.fault_free.shape:
            raise InputError(
                f"the first output has shape {list(output.shape)}, without faults {list(self.fault_free.shape)}"
            )
        rows, clean = output.reshape(len(output), -1), self.fault_free.reshape(len(output), -1)
        finite = np.isfinite(rows).all(axis=1)
        if self.tolerance:
            with np.errstate(invalid="ignore"):
                same = (np.abs(rows.astype(np.float64) - clean.astype(np.float64)) <= self._allowed).all(axis=1)
        else:
            same = (rows == clean).all(axis=1)
        found = np.select([~finite, right < 1, ~same], [3, 2, 1], 0)
        return np.asarray(found, dtype=np.int8)

    def count(self, output: NDArray[np.generic]) -> OutcomeCounts:
        """How many samples had each outcome.

        Raises:
            InputError: if the output has another shape than without faults.
        """
        counts = np.bincount(self.classify(output), minlength=len(OUTCOMES))
        return OutcomeCounts(*(int(number) for number in counts))


def outcome_intervals(
    trials: Sequence[OutcomeCounts], confidence: float, *, interval: IntervalFunction = t_interval
) -> dict[Outcome, Interval]:
    """The share of each outcome over trials, each with an interval of its own.

    Trials, not samples, are what is independent: the samples of one trial meet the same faults.

    Args:
        trials: Counts of each trial.
        confidence: Of each interval alone; that all four hold is less certain.
        interval: Of the shares: `t_interval`, or, where the trials decided their number, a function of `sequential`.

    Raises:
        InputError: if there are no trials or the confidence is not in (0, 1).
    """
    return {outcome: interval([trial.share(outcome) for trial in trials], confidence) for outcome in OUTCOMES}
