"""How much noise in each output channel of a weight tensor matters at the outputs: forward probes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.data import Dataset
from qtaml_onnx.plan_values import BiasPlan
from qtaml_onnx.probing import noise_energy, walk_parts
from qtaml_onnx.storage.tensor import along_channels

__all__ = ["channel_units", "measure_channels", "shrunk"]

MOST_UNITS = 64
"""Sets of output channels of a tensor that are probed one by one."""


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
    _first, walk = walk_parts(model, list(units), data, biases or {}, batch_size)
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
                row[draw] = noise_energy(part, source, weights, scales, [share], rng, gains)
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
