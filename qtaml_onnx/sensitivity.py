"""How much noise in each weight tensor matters at the outputs: forward probes, no labels, any operator.

To first order the output noise energy is Σ_l J_l² N_l σ_l². A probe adds small white noise to one tensor and measures
the change of the outputs, which estimates J_l² N_l by E‖f(W + εZ) − f(W)‖²/ε² (a randomised trace estimate of the
Jacobian's Gram matrix; Hutchinson 1989). Noise is put in in units of each output channel's scale, as stored words have
it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from qtaml_onnx.data import Dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.passes.correct_bias import CorrectBias
from qtaml_onnx.passes.expose_weights import ExposeWeights
from qtaml_onnx.segments import Cuts, Values, can_cross, find_cuts
from qtaml_onnx.tensor_plan import BiasPlan

__all__ = ["Sensitivity", "measure_sensitivity"]

logger = logging.getLogger(__name__)

_Run = tuple[Values, int]
Rows = dict[str, NDArray[np.float64]]

RELATIVE_NOISE = 0.02
"""Probe noise over the weights' root mean square: small enough for first order, large enough for float32."""


@dataclass(frozen=True)
class Sensitivity:
    """Result of the probes.

    Attributes:
        energy: By tensor, output noise energy a sample for noise of variance 1 in its normalised weights.
        output_energy: Mean energy of the clean outputs about their mean over samples: what noise is compared with.
        samples: Samples used.
        probes: Probes a tensor.
    """

    energy: dict[str, float]
    output_energy: float
    samples: int
    probes: int


def measure_sensitivity(
    model: ir.Model,
    normalised: dict[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
    data: Dataset,
    *,
    biases: Mapping[str, BiasPlan] | None = None,
    probes: int = 3,
    seed: int = 0,
    batch_size: int = 128,
    progress: Callable[[], None] = lambda: None,
) -> Sensitivity:
    """Probes every tensor.

    The graph is cut before the operators of some weights: a probe runs what lies behind the last cut before its weight,
    on values of one clean pass.
    Where the samples take at least as many runs as there are probes, each probe sees a share of them: its noise is new
    anyway, and the mean over samples is as good.

    Args:
        model: The model; not changed.
        normalised: By weight name: the weights in the model's units, and their channel scales shaped to broadcast.
        data: Samples to run; labels are not used.
        biases: Self-correcting biases of the hardened model: what they cancel is not counted.
        probes: Noise draws a tensor.
        seed: Of the noise.
        batch_size: Samples a run.
        progress: Called after each probe.

    Raises:
        InputError: if the model cannot run on the data.
    """
    exposed = model.clone()
    expose = ExposeWeights(list(normalised))
    expose(exposed)
    CorrectBias(biases or {})(exposed)
    exposed.graph.sort()
    runs = list(data.feeds(batch_size))
    cuts = find_cuts(ir.to_proto(exposed), list(expose.inputs.values()))
    if not len(data):
        raise InputError("the model has no inputs to feed: sensitivity cannot be measured")
    ahead = _run_ahead(cuts, data, runs)
    part = _Part(cuts.suffix(0, {}), data, runs, [{}] * len(runs), clean=ahead.clean if ahead else None)
    if len({tuple(rows.shape[1] for rows in clean.values()) for clean in part.clean}) != 1:
        raise InputError("the sizes of the model's outputs depend on its inputs: sensitivity cannot be measured")
    if not all(np.isfinite(rows).all() for clean in part.clean for rows in clean.values()):
        raise InputError(f"the model's outputs on {data.source} are not finite; give other calibration data")
    whole = np.concatenate([_joined(clean, count) for clean, (_, count) in zip(part.clean, runs, strict=True)])
    names = {source: name for name, source in expose.inputs.items()}
    energy: dict[str, float] = {}
    for number, members in enumerate(cuts.members):
        if number:
            part = _behind(cuts, number, part, ahead)
        for source in members:
            name = names[source]
            rng = np.random.default_rng((seed, list(normalised).index(name)))
            energy[name] = _probe(part, source, *normalised[name], probes, rng, progress)
    centred = whole - whole.mean(axis=0)
    output_energy = float((centred**2).sum(axis=1).mean()) if len(whole) > 1 else float((whole**2).sum())
    return Sensitivity({name: energy[name] for name in normalised}, output_energy, len(whole), probes)


class _Part:
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
        runs: list[_Run],
        crossing: list[Values],
        cut: int = 0,
        clean: list[Rows] | None = None,
    ) -> None:
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
    """What one clean pass gave: for each run the values that cross any cut, and the outputs as a `_Part` has them."""

    values: list[Values]
    clean: list[Rows]


def _run_ahead(cuts: Cuts, data: Dataset, runs: list[_Run]) -> _Ahead | None:
    """The values of all cuts at once; None where they are too many or of kinds that cannot cross."""
    if len(cuts.starts) == 1:
        return None
    try:
        session = cuts.whole()
        own, found = len(cuts.model.graph.output), _Ahead([], [])
        names = [output.name for output in session.get_outputs()]
        for inputs, count in runs:
            arrays = dict(zip(names, _run_session(session, inputs, data), strict=True))
            fed = None if data.one_by_one else len(next(iter(inputs.values())))
            found.clean.append(_real_rows({name: arrays[name] for name in names[:own]}, count, fed))
            wanted = set().union(*(cuts.crossing(number) for number in range(1, len(cuts.starts))))
            found.values.append({name: array for name, array in arrays.items() if name in wanted})
            # The first run tells how much all will hold.
            if not can_cross(found.values * len(runs) if len(found.values) == 1 else found.values):
                return None
    except InputError as error:  # such as values of a type that Python has not
        logger.debug("the cuts are taken one by one: %s", error)
        return None
    return found


def _behind(cuts: Cuts, number: int, before: _Part, ahead: _Ahead | None) -> _Part:
    """What lies behind a cut; what lay behind an earlier one where values cannot cross this one."""
    if ahead is not None:
        wanted = cuts.crossing(number)
        kept = [{name: array for name, array in values.items() if name in wanted} for values in ahead.values]
        return _Part(cuts.suffix(number, kept[0]), before.data, before.runs, kept, number, ahead.clean)
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
        return _Part(cuts.suffix(number, crossing[0]), before.data, before.runs, crossing, number, before.clean)
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


def _probe(
    part: _Part,
    source: str,
    weights: NDArray[np.floating],
    scales: NDArray[np.floating],
    probes: int,
    rng: np.random.Generator,
    progress: Callable[[], None],
) -> float:
    """Output noise energy a sample for noise of variance 1 in one normalised weight."""
    runs = len(part.runs)
    shares = [range(runs)] * probes if runs < probes else [range(k, runs, probes) for k in range(probes)]
    values = weights.astype(np.float32)
    units = scales.astype(np.float32)
    rms = float(np.sqrt(np.mean(np.square(values / units), dtype=np.float64)))
    epsilon = RELATIVE_NOISE * (rms or 1.0)
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


def _joined(rows: Rows, count: int) -> NDArray[np.float64]:
    """All outputs of a sample in one row."""
    return np.concatenate([np.zeros((count, 0)), *rows.values()], axis=1)


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
