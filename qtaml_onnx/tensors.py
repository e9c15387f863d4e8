"""The weights of a model as arrays: their values, and the scales that normalise them before coding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.integer_grid import IntegerGrid
from qtaml_onnx.storage import Code
from qtaml_onnx.storage.tensor import along_channels, blocks, channel_scales, factors_of, mean_square, normalise
from qtaml_onnx.weights import Weight, constant_array, float_weights, stored_values

__all__ = ["LONGEST_KEPT", "Scaling", "ScalingKind", "TensorData", "gather"]

LONGEST_KEPT = 8
"""Longest words of a quantised model that can be kept as they are; a table of longer ones would outgrow the weights."""

_DEVIATIONS = 4.0
"""Standard deviations of a channel's weights that normalised weights of 1 stand for, where scales are rms values."""

_SPREAD = 8.0
"""Largest ratio of an input's scale to the typical one: inputs that never vary would get all the noise."""

ScalingKind = Literal["peak", "rms"]


@dataclass(frozen=True)
class Scaling:
    """What normalised weights are multiplied by to be weights again.

    Attributes:
        rows: A factor an output channel, or one: float32 [channels] or [1]. Of a quantised weight, in its integers.
        row_axis: The axis of output channels; None for a single factor.
        columns: A factor an input channel, half precision; None for no such factors.
        column_axis: The axis of input channels.
    """

    rows: NDArray[np.float32]
    row_axis: int | None
    columns: NDArray[np.float16] | None = None
    column_axis: int | None = None

    def factors(self, rank: int) -> NDArray[np.float32]:
        """The product of all factors in a shape that broadcasts against a tensor of that rank."""
        rows, columns = self.spread(rank)
        return rows if columns is None else np.asarray(rows * columns)

    def spread(self, rank: int) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Rows and columns, float32, in shapes that broadcast against a tensor of that rank."""
        rows = along_channels(self.rows, rank, self.row_axis)
        if self.columns is None:
            return rows, None
        return rows, along_channels(self.columns.astype(np.float32), rank, self.column_axis)

    @property
    def mean_square(self) -> float:
        """Mean square of all factors of a tensor: a product, as rows and columns run along axes of their own."""
        rows = mean_square(self.rows)
        return rows if self.columns is None else rows * mean_square(self.columns.astype(np.float32))


@dataclass(frozen=True)
class TensorData:
    """One weight with all that its design needs.

    Attributes:
        weight: Where it is.
        axis: The axis along which scales run; None for one scale a tensor.
        fixed: The code of words that a quantised model brings along and that can be kept; None where there is none.
    """

    weight: Weight
    axis: int | None
    fixed: Code | None = None

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.weight.name

    @property
    def values(self) -> NDArray[np.floating]:
        """The float weights that the operator sees, in the model's type; read anew each time, as all may not fit."""
        return float_weights(self.weight)

    @property
    def grid(self) -> IntegerGrid | None:
        """What the integers of a quantised weight stand for."""
        return self.weight.grid

    @property
    def coded(self) -> NDArray[np.floating] | NDArray[np.integer]:
        """What is coded: the float weights, or a quantised weight's integers from its zero point; read anew, too."""
        stored = constant_array(self.weight.stored)
        return stored if self.grid is None else self.grid.centred(self.grid.integers(stored))

    @cached_property
    def limits(self) -> tuple[int, int]:
        """The least and the largest of what is stored: of a quantised weight, integers that its operator has room for.

        Some kernels saturate where weights are larger than quantisers make them.
        """
        stored = stored_values(self.weight)
        return int(stored.min()), int(stored.max())

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.weight.shape)

    def normalised(self, scaling: Scaling) -> NDArray[np.float32]:
        """What a code is made for, float32 [shape]: what is coded over its scales."""
        return normalise(self.coded, *scaling.spread(self.rank))

    def units(self, scaling: Scaling) -> NDArray[np.float32]:
        """The weight that a normalised weight of 1 is, in a shape that broadcasts: scales, times a grid's steps."""
        factors = scaling.factors(self.rank)
        return factors if self.grid is None else np.asarray(factors * self.grid.spread(self.grid.step))

    def unit_energy(self, scaling: Scaling) -> float:
        """Mean square over all weights of what a normalised weight of 1 is."""
        if self.grid is None:
            return scaling.mean_square
        if not self.grid.blocked:
            return mean_square(self.units(scaling))
        (rows, columns), shape, total = scaling.spread(self.rank), self.weight.shape, []
        for part in blocks(shape):
            units = factors_of(rows, columns, part, shape) * self.grid.spread(self.grid.step, part)
            total.append(float(np.sum(np.square(units, dtype=np.float64))))
        return math.fsum(total) / self.weight.size

    def row_units(self, scaling: Scaling) -> NDArray[np.float64] | None:
        """Weight units of the scales of output channels, input scales aside; None where steps run otherwise."""
        rows = scaling.rows.astype(np.float64)
        if self.grid is None:
            return rows
        if self.grid.axis is not None and (self.grid.blocked or self.grid.axis != scaling.row_axis):
            return None
        return np.asarray(rows * self.grid.step)

    def scaling(self, kind: ScalingKind, input_deviation: NDArray[np.float64] | None = None) -> Scaling:
        """Scales that fill [−1, 1] with a channel's weights (`peak`) or give all channels one deviation (`rms`).

        Args:
            kind: Which. With `peak`, a quantised weight whose words can be kept has the largest integer of its type.
            input_deviation: Standard deviation of the layer's input a channel [inputs]. With `rms`, inputs get factors
                of their own, so that noise goes where it meets little energy: with equal noise for all normalised
                weights, Σ Var[x_j] c_j² is least at a given Σ E[w_j²]/c_j² for c_j² ∝ rms(w_j)/deviation(x_j).
        """
        if kind == "peak" and self.fixed is not None and self.grid is not None:
            return Scaling(np.asarray([self.grid.half_range], dtype=np.float32), None)
        values = self.coded
        if kind == "peak":
            return Scaling(channel_scales(values, self.axis), self.axis)
        columns = self._columns(self.values, input_deviation) if input_deviation is not None else None
        column_axis = self._column_axis if columns is not None else None
        factors = None
        if columns is not None:
            factors = along_channels(columns.astype(np.float32), values.ndim, column_axis)
        rms = _rms(values, self.axis, factors)
        scales = (_DEVIATIONS * rms).astype(np.float32)
        scales = np.where(scales > 0, scales, np.float32(1)).astype(np.float32)
        return Scaling(scales, self.axis, columns, column_axis)

    @property
    def _column_axis(self) -> int | None:
        """The axis of input channels, for operators with one."""
        if self.rank < 2 or self.axis not in (0, 1):
            return None
        return 1 - self.axis

    def _columns(self, weights: NDArray[np.floating], deviation: NDArray[np.float64]) -> NDArray[np.float16] | None:
        axis = self._column_axis
        if axis is None or weights.shape[axis] != len(deviation) or len(deviation) < 2:
            return None
        rms = _rms(weights, axis)
        if not (rms > 0).any() or not (deviation > 0).any():
            return None
        rms, deviation = np.maximum(rms, 1e-3 * rms.max()), np.maximum(deviation, 1e-3 * deviation.max())
        wanted = np.sqrt(rms / deviation)
        wanted /= np.median(wanted)
        return np.asarray(np.clip(wanted, 1 / _SPREAD, _SPREAD), dtype=np.float16)


def _rms(
    weights: NDArray[np.floating] | NDArray[np.integer], axis: int | None, divisors: NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    """Root mean square of float32 weights a channel, float64 [channels] or [1].

    Args:
        weights: The weights.
        axis: Of channels.
        divisors: What the weights are divided by before, in a shape that broadcasts.
    """

    def squares(block: tuple[Any, ...]) -> NDArray[np.float64]:
        values = weights[block].astype(np.float32, copy=False)
        if divisors is not None:
            values = values / np.broadcast_to(divisors, weights.shape)[block]
        return np.asarray(values.astype(np.float64) ** 2)

    others = tuple(i for i in range(weights.ndim) if i != axis)
    parts = list(blocks(weights.shape))
    if len(parts) == 1:
        return np.asarray(np.sqrt(np.mean(squares(parts[0]), axis=others))).reshape(-1)
    sums = np.zeros(1 if axis is None else weights.shape[axis])
    for part in parts:
        own = part[axis] if axis is not None and axis < len(part) else slice(None)
        sums[own] += squares(part).sum(axis=others)
    return np.asarray(np.sqrt(sums * (sums.size / weights.size)))


def gather(weight: Weight, per_tensor: bool) -> TensorData:
    """Reads a weight.

    Raises:
        InputError: if a value is NaN or infinite.
    """
    values = float_weights(weight)
    if not all(np.isfinite(values[block]).all() for block in blocks(values.shape)):
        raise InputError(f"weight '{weight.name}' has NaN or infinite values; mend the model before hardening")
    axis, grid = None if per_tensor else weight.channel_axis, weight.grid
    kept = _stored_code(grid) if grid is not None and grid.bits <= LONGEST_KEPT else None
    return TensorData(weight, axis, kept)


def _stored_code(grid: IntegerGrid) -> Code:
    """The code of words as a quantised model has them: every word its own cell."""
    size = 1 << grid.bits
    integers = np.arange(-size // 2, size // 2) if grid.signed else np.arange(size)
    words = integers & (size - 1)
    levels = np.empty(size)
    levels[words] = (integers - grid.center) / grid.half_range
    boundaries = (integers[:-1] + 0.5 - grid.center) / grid.half_range
    return Code(f"stored-{'int' if grid.signed else 'uint'}{grid.bits}", grid.bits, boundaries, words, levels)
