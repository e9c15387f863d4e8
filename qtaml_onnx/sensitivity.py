"""How much noise in each weight tensor matters at the outputs: forward probes, no labels, any operator.

To first order the output noise energy is Σ_l J_l² N_l σ_l². A probe adds small white noise to one tensor and measures
the change of the outputs, which estimates J_l² N_l by E‖f(W + εZ) − f(W)‖²/ε² (a randomised trace estimate of the
Jacobian's Gram matrix; Hutchinson 1989). Noise is put in in units of each output channel's scale, as stored words have
it.
"""

from __future__ import annotations

import logging
import math
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
from qtaml_onnx.segments import Cuts, Values, can_cross, find_cuts
from qtaml_onnx.storage.tensor import along_channels
from qtaml_onnx.tensor_plan import BiasPlan

__all__ = ["Sensitivity", "channel_units", "measure_channels", "measure_sensitivity", "shrunk"]

logger = logging.getLogger(__name__)

_Run = tuple[Values, int]
Rows = dict[str, NDArray[np.float64]]

RELATIVE_NOISE = 0.02
"""Probe noise over the weights' root mean square: small enough for first order, large enough for float32."""

MOST_UNITS = 64
"""Sets of output channels of a tensor that are probed one by one."""


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
    first, walk = _walk(model, list(normalised), data, biases or {}, batch_size)
    whole = np.concatenate([_joined(clean, count) for clean, (_, count) in zip(first.clean, first.runs, strict=True)])
    energy: dict[str, float] = {}
    for part, name, source in walk:
        rng = np.random.default_rng((seed, list(normalised).index(name)))
        energy[name] = _probe(part, source, *normalised[name], probes, rng, progress)
    centred = whole - whole.mean(axis=0)
    output_energy = float((centred**2).sum(axis=1).mean()) if len(whole) > 1 else float((whole**2).sum())
    return Sensitivity({name: energy[name] for name in normalised}, output_energy, len(whole), probes)


def channel_units(magnitudes: NDArray[np.float64], most: int = MOST_UNITS) -> list[NDArray[np.int64]]:
    """Sets of output channels that are probed as one: single channels, or neighbours in the order of a magnitude.

    Args:
        magnitudes: What is expected of each channel's energy, float64 [channels], in any unit.
        most: Sets at most.
    """
    count = len(magnitudes)
    return np.array_split(np.argsort(magnitudes, kind="stable"), min(count, most))


def measure_channels(
    model: ir.Model,
    normalised: dict[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
    units: Mapping[str, tuple[int, Sequence[NDArray[np.int64]]]],
    data: Dataset,
    *,
    biases: Mapping[str, BiasPlan] | None = None,
    draws: int = 16,
    seed: int = 0,
    batch_size: int = 4,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, NDArray[np.float64]]:
    """Probes the output channels of tensors: as `measure_sensitivity`, with noise in some channels at a time.

    Noise in one channel moves the outputs along few directions (without self-correcting biases mostly along one, by the
    mean of its inputs), so that the energy of a single draw scatters as χ² of one degree of freedom does: each set gets
    many draws, on a few samples each. What scatter is left would pass for differences of channels, of which an
    allocation picks the extremes: the logarithms are shrunk towards their mean over the tensor by the share of their
    variance that the scatter explains (empirical Bayes; Efron & Morris 1973). Channels that are probed as one share
    their energy equally.

    Args:
        model: The model; not changed.
        normalised: As `measure_sensitivity` takes it.
        units: By weight name, the axis of its output channels, and the sets of these that are probed as one.
        data: Samples to run; labels are not used.
        biases: Self-correcting biases of the hardened model: what they cancel is not counted.
        draws: Noise draws a set.
        seed: Of the noise.
        batch_size: Samples a draw.
        progress: Called after each set.

    Returns:
        By weight name, output noise energy a sample for noise of variance 1 in the normalised weights of a channel,
        float64 [channels].

    Raises:
        InputError: if the model cannot run on the data.
    """
    _first, walk = _walk(model, list(units), data, biases or {}, batch_size)
    energies: dict[str, NDArray[np.float64]] = {}
    for part, name, source in walk:
        axis, sets = units[name]
        weights, scales = normalised[name]
        rng = np.random.default_rng((seed, list(normalised).index(name)))
        extent = weights.shape[axis]
        found = np.empty((len(sets), draws))
        for row, channels in zip(found, sets, strict=True):
            # Half as much noise in these channels as otherwise in all: it stands out of rounding, too.
            mask = np.zeros(extent, dtype=np.float32)
            mask[channels] = 0.5 * math.sqrt(extent / len(channels))
            gains = along_channels(mask, weights.ndim, axis)
            for draw in range(draws):
                share = [draw % len(part.runs)]
                row[draw] = _energy(part, source, weights, scales, [share], rng, gains)
            row /= mask.max() ** 2 * len(channels)
            progress()
        energies[name] = np.empty(extent)
        for channels, energy in zip(sets, shrunk(found), strict=True):
            energies[name][channels] = energy
    return energies


def shrunk(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of draws, their logarithms shrunk towards the mean of all by the share of variance that is scatter.

    Args:
        draws: Independent estimates of positive numbers, float64 [numbers, draws].

    Returns:
        float64 [numbers]; the plain means where one is not positive.
    """
    means = np.asarray(draws.mean(axis=1))
    if draws.shape[1] < 2 or len(means) < 2 or (means <= 0).any():
        return means
    logs = np.log(means)
    scatter = float(np.mean(draws.var(axis=1, ddof=1) / draws.shape[1] / means**2))
    total = float(logs.var(ddof=1))
    kept = max(0.0, 1 - scatter / total) if total > 0 else 0.0
    return np.asarray(np.exp(logs.mean() + kept * (logs - logs.mean())))


def _walk(
    model: ir.Model, names: list[str], data: Dataset, biases: Mapping[str, BiasPlan], batch_size: int
) -> tuple[_Part, Iterator[tuple[_Part, str, str]]]:
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
    first = _Part(cuts.suffix(0, {}), data, runs, [{}] * len(runs), clean=ahead.clean if ahead else None)
    if len({tuple(rows.shape[1] for rows in clean.values()) for clean in first.clean}) != 1:
        raise InputError("the sizes of the model's outputs depend on its inputs: sensitivity cannot be measured")
    if not all(np.isfinite(rows).all() for clean in first.clean for rows in clean.values()):
        raise InputError(f"the model's outputs on {data.source} are not finite; give other calibration data")
    weights = {source: name for name, source in expose.inputs.items()}

    def walk() -> Iterator[tuple[_Part, str, str]]:
        part = first
        for number, members in enumerate(cuts.members):
            if number:
                part = _behind(cuts, number, part, ahead)
            for source in members:
                yield part, weights[source], source

    return first, walk()


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
    return _energy(part, source, weights, scales, shares, rng, progress=progress)


def _energy(
    part: _Part,
    source: str,
    weights: NDArray[np.floating],
    scales: NDArray[np.floating],
    shares: Sequence[Sequence[int]],
    rng: np.random.Generator,
    gains: NDArray[np.float32] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> float:
    """The same by a noise draw for each share of the runs; with gains, for noise times these."""
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


def _joined(rows: Rows, count: int) -> NDArray[np.float64]:
    """All outputs of a sample in one row."""
    return np.concatenate([np.zeros((count, 0)), *rows.values()], axis=1)


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
