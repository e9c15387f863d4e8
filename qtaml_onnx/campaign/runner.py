"""Runs a campaign: several variants of one model on the same samples, rates and seeds, until there are trials enough.

Trials are counted in the order of their seeds, whatever the order in which they end, and with `precision` decisions
fall at numbers of trials that are fixed in advance. So a result does not depend on the number of workers, nor on
interruptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from qtaml_onnx.campaign.executors import Executor, local_executor
from qtaml_onnx.campaign.image import inference_session
from qtaml_onnx.campaign.metrics import Metric
from qtaml_onnx.campaign.outcomes import OUTCOMES, OutcomeCounts, outcome_intervals
from qtaml_onnx.campaign.sequential import Stopping, betting_interval, t_mixture_interval
from qtaml_onnx.campaign.statistics import Interval, IntervalFunction, PairedDifference, paired_difference, t_interval
from qtaml_onnx.campaign.store import TrialStore, campaign_identity
from qtaml_onnx.campaign.trials import BATCH_SIZE, Measured, Trial, Work, available_cpus, run_first_output
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.data import Dataset
from qtaml_onnx.errors import InputError, Interrupted
from qtaml_onnx.progress import CountedStep, Step

__all__ = ["Campaign", "Result", "StoreOptions", "Sweep", "Variant"]

_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Variant:
    """A model in a campaign: `clean`, `quantized`, `unprotected` or `hardened`, instrumented if it has faults."""

    name: str
    model: onnx.ModelProto


@dataclass(frozen=True)
class Sweep:
    """An instrumented model and the conditions that it is to meet.

    Attributes:
        variant: The model.
        rates: Of each condition, with at least as many planes as the longest stored word.
        labels: What to call the conditions, if they have names.
        path: Where the model came from, for whoever reads the store.
    """

    variant: Variant
    rates: Sequence[FlipRates]
    labels: Sequence[str] | None = None
    path: str = ""

    def label(self, condition: int) -> str | None:
        """The name of a condition."""
        return self.labels[condition] if self.labels else None

    def largest_rate(self, condition: int) -> float:
        """The largest rate of any plane."""
        return max(*self.rates[condition].p01, *self.rates[condition].p10)


@dataclass(frozen=True)
class StoreOptions:
    """Where trials are kept, and whether a campaign goes on that was begun there."""

    path: Path
    resume: bool = False


@dataclass(frozen=True)
class Result:
    """What was measured of a variant at one rate.

    Attributes:
        variant: Its name.
        flip_rate: The largest rate of any plane; 0 without faults.
        interval: Mean and confidence interval of the first metric.
        values: The first metric of each trial; one entry for a variant without faults.
        label: Where the rate came from, if not from a number: a retention time, a device.
        metrics: Mean and interval of all metrics, by name.
        outcomes: Share of samples with each outcome; None for a variant without faults.
        stopped: What ended the trials: their number, or the precision that was asked for; None without faults.
    """

    variant: str
    flip_rate: float
    interval: Interval
    values: tuple[float, ...] = field(repr=False)
    label: str | None = None
    metrics: dict[str, Interval] = field(default_factory=dict, repr=False)
    outcomes: dict[str, Interval] | None = field(default=None, repr=False)
    stopped: Literal["trials", "precision"] | None = None


class Campaign:
    """Trials of several variants of one model on the same samples.

    Attributes:
        data: The samples.
        trials: Trials a rate; the most of them if there is a `precision`.
        seed: Of the first trial.
        confidence: Of the intervals.
        workers: Processes.
        batch_size: Samples a run, where the model leaves it open.
        precision: Half-width of the first metric's interval at which a rate has trials enough; None for all trials.
        cluster: Address of a Dask scheduler to run on instead of here.
        metrics: Set by `measure_clean`; the first one is what is stopped by, drawn and compared.
    """

    def __init__(
        self,
        data: Dataset,
        *,
        trials: int = 20,
        seed: int = 0,
        confidence: float = 0.95,
        workers: int = 1,
        batch_size: int = BATCH_SIZE,
        precision: float | None = None,
        metrics: Sequence[str] = (),
        cluster: str | None = None,
    ) -> None:
        """Checks the numbers; raises InputError if one is out of range.

        Args:
            data: The samples.
            trials: See above.
            seed: See above.
            confidence: See above.
            workers: See above.
            batch_size: See above.
            precision: See above.
            metrics: Names of metrics; accuracy, or agreement without labels, if there are none.
            cluster: See above.
        """
        for name, value in (("--trials", trials), ("--workers", workers)):
            if value < 1:
                raise InputError(f"{name} {value} is too few; give at least 1")
        if not 0 <= seed <= _LARGEST_SEED - trials:
            raise InputError(f"--seed {seed} is out of range; give a number from 0 to {_LARGEST_SEED - trials}")
        if len(set(metrics)) < len(metrics):
            raise InputError("--metric names a metric twice; give each once")
        if precision is not None:
            Stopping(precision, confidence)  # checks the numbers
        self.data = data
        self.trials = trials
        self.seed = seed
        self.confidence = confidence
        self.workers = workers
        self.batch_size = batch_size
        self.precision = precision
        self.cluster = cluster
        self.metrics: tuple[Metric, ...] = ()
        self._names = tuple(metrics)
        self._clean: onnx.ModelProto | None = None

    def measure_clean(self, model: onnx.ModelProto) -> Result:
        """Runs the original model, which sets the metrics' reference.

        Raises:
            InputError: if the labels do not fit, an output is not finite, or a metric is unknown.
        """
        output = self._run(model)
        if np.issubdtype(output.dtype, np.floating) and not np.isfinite(output).all():
            raise InputError(f"the clean model's outputs on {self.data.source} are not finite; give other data")
        self.metrics = tuple(Metric.against(self.data.labels, output, name) for name in self._names or (None,))
        self._clean = model
        return self._certain("clean", output)

    def measure_fixed(self, variant: Variant) -> Result:
        """Runs a model without faults once."""
        return self._certain(variant.name, self._run(variant.model))

    def _run(self, model: onnx.ModelProto) -> NDArray[np.generic]:
        return run_first_output(inference_session(model), self.data, self.batch_size, threads=available_cpus())

    def _certain(self, name: str, output: NDArray[np.generic]) -> Result:
        found = {metric.name: metric.interval_of_one(output, self.confidence) for metric in self._measured_by}
        first = found[self.metric.name]
        return Result(name, 0.0, first, (first.mean,), metrics=found)

    @property
    def _measured_by(self) -> tuple[Metric, ...]:
        if not self.metrics:
            raise InputError("measure the clean model first")
        return self.metrics

    @property
    def metric(self) -> Metric:
        """The first metric; raises InputError before `measure_clean`."""
        return self._measured_by[0]

    def measure_faulty(
        self,
        variant: Variant,
        rates: Sequence[FlipRates],
        *,
        labels: Sequence[str] | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> list[Result]:
        """Trials of one instrumented model at each of the rates.

        Args:
            variant: The instrumented model.
            rates: Flip rates, with at least as many planes as the longest stored word.
            labels: What to call the rates, if they have names.
            progress: Called after each trial.
        """
        return self.measure_sweeps([Sweep(variant, rates, labels)], progress=CountedStep(progress))[0]

    def measure_sweeps(
        self,
        sweeps: Sequence[Sweep],
        *,
        progress: Step | None = None,
        store: StoreOptions | None = None,
    ) -> list[list[Result]]:
        """Trials of several instrumented models, each at each of its rates.

        Args:
            sweeps: Models and rates.
            progress: Called after each trial, and told how many there will be, as far as that is known.
            store: Keeps each trial as it ends, and what was kept is not done again.

        Returns:
            For each sweep a result a condition.

        Raises:
            InputError: if a model does not run, or the store is another campaign's.
            Interrupted: if there is a store, in place of KeyboardInterrupt.
            QtamlError: if trials end their workers, or the store cannot be written.
        """
        work = Work(
            tuple(sweep.variant.model for sweep in sweeps),
            tuple(tuple(rates.as_array() for rates in sweep.rates) for sweep in sweeps),
            self.data,
            self._measured_by,
            self.seed,
            self.batch_size,
        )
        step = progress or CountedStep()
        if store is None:
            measured = self._collect(work, {}, lambda _trial, _measured: None, step)
        else:
            with self._open(store, work, sweeps) as kept:
                try:
                    measured = self._collect(work, kept.found, kept.add, step)
                except KeyboardInterrupt as stop:
                    raise Interrupted(
                        f"{len(kept)} trials are stored in {store.path}; the same command with --resume goes on"
                    ) from stop
        return [
            [self._result(sweep, place, condition, measured) for condition in range(len(sweep.rates))]
            for place, sweep in enumerate(sweeps)
        ]

    def _collect(
        self,
        work: Work,
        known: dict[Trial, Measured],
        keep: Callable[[Trial, Measured], None],
        step: Step,
    ) -> dict[Trial, Measured]:
        """Runs what is missing, round by round, until every condition of every model has trials enough."""
        measured = dict(known)
        cells = [(v, c) for v, conditions in enumerate(work.rates) for c in range(len(conditions))]
        executor: Executor | None = None
        done = 0
        with ExitStack() as stack:
            while True:
                wanted = [
                    trial
                    for variant, condition in cells
                    for trial in self._wanted(variant, condition, measured)
                    if trial not in measured
                ]
                if not wanted:
                    return measured
                step.expect(done + len(wanted))
                if executor is None:
                    executor = stack.enter_context(self._executor(work))
                for trial, found in executor.run(wanted):
                    measured[trial] = found
                    keep(trial, found)
                    done += 1
                    step()

    def _wanted(self, variant: int, condition: int, measured: dict[Trial, Measured]) -> list[Trial]:
        """The trials that the next decision on a condition needs, those that are done included."""
        number = self.trials
        if self.precision is not None:
            decision = self._stopping.decide(self._values(variant, condition, measured))
            number = decision.next_look or 0
        return [Trial(variant, condition, place) for place in range(number)]

    def _executor(self, work: Work) -> Executor:
        if self.cluster is None:
            return local_executor(work, self.workers)
        from qtaml_onnx.campaign.cluster import Cluster

        return Cluster(work, self.cluster)

    def _open(self, store: StoreOptions, work: Work, sweeps: Sequence[Sweep]) -> TrialStore:
        variants = [f"{sweep.variant.name} {sweep.path}".strip() for sweep in sweeps]
        first = sweeps[0]
        conditions = [first.label(c) or f"{first.largest_rate(c):g}" for c in range(len(first.rates))]
        if self._clean is None:
            raise InputError("measure the clean model first")
        identity = campaign_identity(self._clean, work)
        return TrialStore(store.path, identity, variants, conditions, resume=store.resume, seed=self.seed)

    @property
    def _stopping(self) -> Stopping:
        if self.precision is None:
            raise InputError("a campaign without --precision has no rule for stopping")
        return Stopping.for_bounds(self.metric.bounds, self.precision, self.confidence, self.trials)

    def _values(self, variant: int, condition: int, measured: dict[Trial, Measured]) -> list[float]:
        """The first metric of trials 0, 1, … as far as there is no gap."""
        values: list[float] = []
        while (found := measured.get(Trial(variant, condition, len(values)))) is not None:
            values.append(found[self.metric.name])
        return values

    def _interval(self, metric: Metric) -> IntervalFunction:
        """How the mean of a metric gets its interval: one that may be looked at again and again, with `precision`."""
        if self.precision is None:
            return t_interval
        return betting_interval if all(map(math.isfinite, metric.bounds)) else t_mixture_interval

    def _result(self, sweep: Sweep, variant: int, condition: int, measured: dict[Trial, Measured]) -> Result:
        number, stopped = self.trials, "trials"
        if self.precision is not None:
            decision = self._stopping.decide(self._values(variant, condition, measured))
            number, stopped = decision.trials, "precision" if decision.state == "precise" else "trials"
        trials = [measured[Trial(variant, condition, place)] for place in range(number)]
        columns = {metric.name: tuple(trial[metric.name] for trial in trials) for metric in self.metrics}
        found = {
            metric.name: self._interval(metric)(columns[metric.name], self.confidence, bounds=metric.bounds)
            for metric in self.metrics
        }
        counts = [OutcomeCounts(*(int(trial[outcome]) for outcome in OUTCOMES)) for trial in trials]
        shares = outcome_intervals(
            counts, self.confidence, interval=t_interval if self.precision is None else betting_interval
        )
        return Result(
            sweep.variant.name,
            sweep.largest_rate(condition),
            found[self.metric.name],
            columns[self.metric.name],
            sweep.label(condition),
            found,
            {outcome: shares[outcome] for outcome in OUTCOMES},
            stopped,  # type: ignore[arg-type]
        )

    def difference(self, first: Result, second: Result) -> PairedDifference:
        """Second − first in the first metric, over the seeds that both have.

        Raises:
            InputError: if a pair has no difference because both values are infinite.
        """
        return paired_difference(
            dict(enumerate(first.values, self.seed)),
            dict(enumerate(second.values, self.seed)),
            self.confidence,
            bounds=self.metric.bounds,
            interval=self._interval(self.metric),
        )
