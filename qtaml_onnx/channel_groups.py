"""Groups of output channels that get protected planes of their own.

The channels of a layer differ in how much their noise adds to the outputs, and noise energies add up to first order.
Where each group of channels is given the planes that are worth their cost, the noise energies of all groups end at the
same level, and n_g channels whose energies have the mean e_g need Σ n_g log e_g / log 4 planes beyond that level (a
plane is worth a factor of four; reverse water-filling, Cover & Thomas, Elements of Information Theory, ch. 10). A few
groups that make this sum least keep most of what single channels would gain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.plan_values import ChannelPart
from qtaml_onnx.tensors import Scaling, TensorData

__all__ = ["MOST_GROUPS", "Part", "channel_groups", "channel_magnitudes", "split"]

MOST_GROUPS = 4
"""Groups a tensor: eight were predicted to gain a hundredth more than four, and each takes tables and order bits."""

_MOST_CHANNELS = 1 << 16
"""Channels beyond which a tensor is left whole: their order takes 16 bits each at most."""

_LEAST_ENERGY = 1e-9
"""Energy of a channel, over the mean, below which channels are as good as silent."""


@dataclass(frozen=True, eq=False)
class Part:
    """A tensor, or some output channels of it.

    Attributes:
        tensor: The tensor.
        channels: Those of the part, ascending, int64; None for the whole tensor.
        share: Of the tensor's noise energy at the outputs, for noise of one variance in all normalised weights.
        number: Of the part, from 0.
    """

    tensor: TensorData
    channels: NDArray[np.int64] | None = None
    share: float = 1.0
    number: int = 0

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.tensor.name

    @property
    def axis(self) -> int:
        """The axis of output channels; 0 where there is none, as such a tensor is whole."""
        return self.tensor.weight.channel_axis or 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of its weights."""
        shape = self.tensor.weight.shape
        if self.channels is None:
            return shape
        return (*shape[: self.axis], len(self.channels), *shape[self.axis + 1 :])

    @property
    def size(self) -> int:
        """Number of its weights."""
        return int(np.prod(self.shape, dtype=np.int64))

    def normalised(self, scaling: Scaling) -> NDArray[np.float32]:
        """Its normalised weights, float32: see `TensorData.normalised`."""
        x = self.tensor.normalised(scaling)
        return x if self.channels is None else np.take(x, self.channels, axis=self.axis)

    def rows(self, values: NDArray[np.floating], scaling: Scaling) -> NDArray[np.floating]:
        """Of values that run like the rows of the tensor's scaling, its own."""
        if self.channels is None or values.size == 1 or scaling.row_axis != self.axis:
            return values
        return values[self.channels]

    def planned(self) -> ChannelPart | None:
        """How a plan records it."""
        if self.channels is None:
            return None
        channels = tuple(map(int, self.channels))
        extent = self.tensor.weight.shape[self.axis]
        return ChannelPart(number=self.number, axis=self.axis, extent=extent, channels=channels)


def channel_groups(energy: NDArray[np.float64], most: int = MOST_GROUPS) -> list[NDArray[np.int64]]:
    """Groups of channels of alike energy that make Σ n log(mean energy) least: exact, by dynamic programming.

    Groups of the best partition are intervals of the channels in order of energy, as the logarithm is concave.

    Args:
        energy: Noise energy at the outputs a channel, float64 [channels], at least 0.
        most: Groups at most.

    Returns:
        Channels of each group, ascending, the groups by falling energy.
    """
    count, mean = len(energy), float(np.mean(energy))
    if mean <= 0:
        return [np.arange(count)]
    order = np.argsort(-energy, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(np.maximum(energy[order] / mean, _LEAST_ENERGY))])
    least = np.full(count + 1, np.inf)
    least[0] = 0.0
    starts: list[NDArray[np.int64]] = []
    best: list[float] = []
    for _group in range(min(most, count)):
        after, start = np.full(count + 1, np.inf), np.zeros(count + 1, dtype=np.int64)
        for end in range(1, count + 1):
            first = np.arange(end)
            cost = least[:end] + (end - first) * np.log((total[end] - total[:end]) / (end - first))
            start[end] = int(np.argmin(cost))
            after[end] = cost[start[end]]
        least = after
        starts.append(start)
        best.append(float(after[count]))
    groups, end = [], count
    for start in reversed(starts[: int(np.argmin(np.round(best, 9))) + 1]):
        groups.append(np.sort(order[start[end] : end]))
        end = int(start[end])
    return groups[::-1]


def split(tensor: TensorData, energy: NDArray[np.float64] | None) -> list[Part]:
    """The parts of a tensor: the whole one where its channels' energies are not known or all alike.

    Quantised weights stay whole: their integers are read by operators of the model's own.

    Args:
        tensor: The tensor.
        energy: Noise energy at the outputs a channel, float64 [channels], in any unit; None where not known.
    """
    if energy is None or tensor.grid is not None or tensor.weight.channel_axis is None:
        return [Part(tensor)]
    groups = channel_groups(energy) if 1 < len(energy) <= _MOST_CHANNELS else []
    if len(groups) < 2:
        return [Part(tensor)]
    total = float(energy.sum())
    shares = [float(energy[group].sum()) / total for group in groups]
    return [Part(tensor, group, share, k) for k, (group, share) in enumerate(zip(groups, shares, strict=True))]


def channel_magnitudes(tensor: TensorData, scaling: Scaling) -> NDArray[np.float64] | None:
    """What stands in for energies a channel that were not measured: mean squares of the channels' scales.

    Args:
        tensor: The tensor.
        scaling: How it is normalised.

    Returns:
        float64 [channels]; None where there are no output channels.
    """
    axis = tensor.weight.channel_axis
    if axis is None:
        return None
    others = tuple(i for i in range(tensor.rank) if i != axis)
    squares = np.square(tensor.units(scaling), dtype=np.float64).mean(axis=others)
    return np.broadcast_to(squares, (tensor.weight.shape[axis],))
