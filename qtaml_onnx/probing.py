"""Runs a model under noise in one weight: what comes before the weight is computed once, the rest for each draw."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from qtaml_onnx.data import Dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.passes.correct_bias import CorrectBias
from qtaml_onnx.passes.expose_weights import ExposeWeights
from qtaml_onnx.plan_values import BiasPlan
from qtaml_onnx.segments import Cuts, Values, can_cross, find_cuts

__all__ = ["RELATIVE_NOISE", "ProbedPart", "joined_rows", "noise_energy", "walk_parts"]

logger = logging.getLogger(__name__)

Run = tuple[Values, int]
Rows = dict[str, NDArray[np.float64]]

RELATIVE_NOISE = 0.02
"""Probe noise over the weights' root mean square: small enough for first order, large enough for float32."""


def walk_parts(
    model: ir.Model, names: list[str], data: Dataset, biases: Mapping[str, BiasPlan], batch_size: int
) -> tuple[ProbedPart, Iterator[tuple[ProbedPart, str, str]]]:
    """The whole graph as a part, and for each weight the part that probes run, its name and that of its input.

    Raises:
        InputError: if the model cannot run on the data, or has no outputs to compare.
    """
    exposed = model.clone()
    expose = ExposeWeights(names)
    expose(exposed)
    CorrectBias(biases)(exposed)
    exposed.graph.sort()
    runs = list(data.feeds(batch_size))
    cuts = find_cuts(ir.to_proto(exposed), list(expose.inputs.values()))
    if not len(data):
        raise InputError("the model has no inputs to feed: sensitivity cannot be measured")
    ahead = _run_ahead(cuts, data, runs)
    session = cuts.suffix(0, {}, fed=_fed(cuts, 0, ahead))
    first = ProbedPart(session, data, runs, [{}] * len(runs), clean=ahead.clean if ahead else None)
    if len({tuple(rows.shape[1] for rows in clean.values()) for clean in first.clean}) != 1:
        raise InputError("the sizes of the model's outputs depend on its inputs: sensitivity cannot be measured")
    if not all(np.isfinite(rows).all() for clean in first.clean for rows in clean.values()):
        raise InputError(f"the model's outputs on {data.source} are not finite; give other calibration data")
    weights = {source: name for name, source in expose.inputs.items()}

    def walk() -> Iterator[tuple[ProbedPart, str, str]]:
        part = first
        for number, members in enumerate(cuts.members):
            if number:
                part = _behind(cuts, number, part, ahead)
            for source in members:
                yield part, weights[source], source

    return first, walk()


class ProbedPart:
    """What lies behind a cut, with the values that cross it and the clean outputs of each run.

    Attributes:
        cut: Number of the cut.
        crossing: For each run.
        clean: Real-valued outputs of each run by name, float64 [samples, numbers].
    """

    def __init__(
        self,
        session: ort.InferenceSession | None,
        data: Dataset,
        runs: list[Run],
        crossing: list[Values],
        cut: int = 0,
        clean: list[Rows] | None = None,
    ) -> None:
        """Runs the clean outputs where they are not given; raises InputError if the model cannot run on the data."""
        self._session = session
        self._known = set() if session is None else _inputs_of(session)
        self.data = data
        self.runs = runs
        self.crossing = crossing
        self.cut = cut
        self.clean = clean or [self.outputs(run, {}) for run in range(len(runs))]

    def feed(self, run: int, known: Set[str]) -> Values:
        """The inputs of a run that a session knows."""
        every = {**self.runs[run][0], **self.crossing[run]}
        return {name: array for name, array in every.items() if name in known}

    def outputs(self, run: int, weights: Values) -> Rows:
        """The real-valued outputs of a run that are computed here, each sample's in a row."""
        inputs, count = self.runs[run]
        if self._session is None:
            return {}
        names = [output.name for output in self._session.get_outputs()]
        values = _run_session(self._session, {**self.feed(run, self._known), **weights}, self.data)
        fed = None if self.data.one_by_one else len(next(iter(inputs.values())))
        return _real_rows(dict(zip(names, values, strict=True)), count, fed)

    def change(self, run: int, weights: Values) -> tuple[float, int]:
        """Squared change of the outputs of a run under other weights, and how many samples it had."""
        changed, total = self.outputs(run, weights), 0.0
        for name, rows in changed.items():
            if rows.shape != self.clean[run][name].shape:
                raise InputError("the sizes of the outputs depend on the weights: sensitivity cannot be measured")
            total += float(((rows - self.clean[run][name]) ** 2).sum())
        return total, self.runs[run][1]


@dataclass(frozen=True)
class _Ahead:
    """What one clean pass gave: for each run the values that cross any cut, and the outputs as in `ProbedPart`."""

    values: list[Values]
    clean: list[Rows]


def _run_ahead(cuts: Cuts, data: Dataset, runs: list[Run]) -> _Ahead | None:
    """The values of all cuts at once; None where they are too many or of kinds that cannot cross."""
    if len(cuts.starts) == 1:
        return None
    # Beyond "extended" onnxruntime 1.31 fuses over some values that are wanted as outputs, and fails.
    for level in ("all", "extended"):
        try:
            return _run_whole(cuts, cuts.whole(level), data, runs)
        except InputError as error:  # such as values of a type that Python has not
            logger.debug("optimised to the level '%s', the values of all cuts are not to be had: %s", level, error)
    return None


def _run_whole(cuts: Cuts, session: ort.InferenceSession, data: Dataset, runs: list[Run]) -> _Ahead | None:
    own, found = len(cuts.model.graph.output), _Ahead([], [])
    names = [output.name for output in session.get_outputs()]
    wanted = set().union(*(cuts.crossing(number) for number in range(1, len(cuts.starts))))
    for inputs, count in runs:
        arrays = dict(zip(names, _run_session(session, inputs, data), strict=True))
        fed = None if data.one_by_one else len(next(iter(inputs.values())))
        found.clean.append(_real_rows({name: arrays[name] for name in names[:own]}, count, fed))
        found.values.append({name: array for name, array in arrays.items() if name in wanted})
        # The first run tells how much all will hold.
        if not can_cross(found.values * len(runs) if len(found.values) == 1 else found.values):
            return None
    return found


def _fed(cuts: Cuts, number: int, ahead: _Ahead | None) -> Set[str] | None:
    """The weights to feed behind a cut: where no later cut may fail, those that lie before the next one."""
    return None if ahead is None else frozenset(cuts.members[number])


def _behind(cuts: Cuts, number: int, before: ProbedPart, ahead: _Ahead | None) -> ProbedPart:
    """What lies behind a cut; what lay behind an earlier one where values cannot cross this one."""
    if ahead is not None:
        wanted = cuts.crossing(number)
        kept = [{name: array for name, array in values.items() if name in wanted} for values in ahead.values]
        session = cuts.suffix(number, kept[0], fed=_fed(cuts, number, ahead))
        return ProbedPart(session, before.data, before.runs, kept, number, ahead.clean)
    if before.cut != number - 1:
        return before
    try:
        step = cuts.step(number - 1, before.crossing[0])
        wanted, crossing = cuts.crossing(number), []
        for run, known in enumerate(before.crossing):
            values = {name: array for name, array in known.items() if name in wanted}
            if step is not None:
                found = _run_session(step, before.feed(run, _inputs_of(step)), before.data)
                values |= dict(zip((output.name for output in step.get_outputs()), found, strict=True))
            crossing.append(values)
            if not can_cross(crossing):
                return before
        return ProbedPart(cuts.suffix(number, crossing[0]), before.data, before.runs, crossing, number, before.clean)
    except InputError as error:  # such as values of a type that Python has not
        logger.debug("the graph is not cut before node %d: %s", cuts.starts[number], error)
        return before


def _inputs_of(session: ort.InferenceSession) -> set[str]:
    return {value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())}


def _run_session(session: ort.InferenceSession, feed: Values, data: Dataset) -> list[NDArray[np.generic]]:
    try:
        return list(session.run(None, feed))
    except Exception as error:  # onnxruntime raises types of its own, without a common base
        raise InputError(f"the model does not run on {data.source}: {_short(error)}") from error


def noise_energy(
    part: ProbedPart,
    source: str,
    weights: NDArray[np.floating],
    scales: NDArray[np.floating],
    shares: Sequence[Sequence[int]],
    rng: np.random.Generator,
    gains: NDArray[np.float32] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> float:
    """Output noise energy a sample for noise of variance 1 in one normalised weight.

    Args:
        part: What is run.
        source: Name of the weight's input there.
        weights: The weight, in the model's units.
        scales: Its channel scales, shaped to broadcast.
        shares: The runs that each noise draw is seen on.
        rng: Of the noise.
        gains: What the noise is multiplied by, shaped to broadcast.
        progress: Called after each draw.
    """
    values = weights.astype(np.float32)
    units = scales.astype(np.float32)
    rms = float(np.sqrt(np.mean(np.square(values / units), dtype=np.float64)))
    epsilon = RELATIVE_NOISE * (rms or 1.0)
    if gains is not None:
        units = units * gains
    total, rows = 0.0, 0
    for share in shares:
        noisy = rng.standard_normal(weights.shape, dtype=np.float32)
        noisy *= np.float32(epsilon) * units
        noisy += values
        feed: Values = {source: noisy.astype(weights.dtype, copy=False)}
        for number in share:
            energy, count = part.change(number, feed)
            total += energy
            rows += count
        progress()
    return total / rows / epsilon**2


def _real_rows(outputs: Values, count: int, fed: int | None) -> Rows:
    """The real-valued ones of some outputs, each sample's in a row."""
    real = {
        name: value
        for name, value in outputs.items()
        if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)
    }
    return {name: _rows(value, count, fed) for name, value in real.items()}


def _rows(value: NDArray[np.generic], count: int, fed: int | None) -> NDArray[np.float64]:
    """An output as one row a sample.

    Args:
        value: The output.
        count: How many of the samples fed count.
        fed: Samples fed at once; None where a single one is the whole input. An output whose first axis is not that of
            the samples counts as a whole for each.
    """
    array = value.astype(np.float64)
    if fed is not None and array.ndim and array.shape[0] == fed:
        return array[:count].reshape(count, -1)
    return np.repeat(array.reshape(1, -1), count, axis=0)


def joined_rows(rows: Rows, count: int) -> NDArray[np.float64]:
    """All outputs of a sample in one row, float64 [count, numbers]."""
    return np.concatenate([np.zeros((count, 0)), *rows.values()], axis=1)


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
