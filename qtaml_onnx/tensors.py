"""The weights of a model as arrays: their values, and the scales that normalise them before coding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.quantized import IntegerGrid
from qtaml_onnx.storage import Code
from qtaml_onnx.storage.tensor import along_channels, channel_scales
from qtaml_onnx.weights import Weight, float_weights, stored_values

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
        rows = along_channels(self.rows, rank, self.row_axis)
        if self.columns is None:
            return rows
        return np.asarray(rows * along_channels(self.columns.astype(np.float32), rank, self.column_axis))


@dataclass(frozen=True)
class TensorData:
    """One weight with all that its design needs.

    Attributes:
        weight: Where it is.
        values: The float weights that the operator sees, in the model's type.
        axis: The axis along which scales run; None for one scale a tensor.
        fixed: The code of words that a quantised model brings along and that can be kept; None where there is none.
        integers: Of a quantised weight, what is stored, int32.
    """

    weight: Weight
    values: NDArray[np.floating]
    axis: int | None
    fixed: Code | None = None
    integers: NDArray[np.int32] | None = None

    @property
    def grid(self) -> IntegerGrid | None:
        """What the integers of a quantised weight stand for."""
        return self.weight.grid

    @property
    def coded(self) -> NDArray[np.floating]:
        """What is coded: the float weights, or a quantised weight's integers from its zero point, float32."""
        if self.grid is None or self.integers is None:
            return self.values
        return (self.integers - self.grid.center).astype(np.float32)

    def units(self, scaling: Scaling) -> NDArray[np.float32]:
        """The weight that a normalised weight of 1 is, in a shape that broadcasts: scales, times a grid's steps."""
        factors = scaling.factors(self.values.ndim)
        return factors if self.grid is None else np.asarray(factors * self.grid.spread(self.grid.step))

    def row_units(self, scaling: Scaling) -> NDArray[np.float64] | None:
        """Weight units of the scales of output channels, input scales aside; None where steps run otherwise."""
        rows = scaling.rows.astype(np.float64)
        if self.grid is None:
            return rows
        if self.grid.axis is not None and (self.grid.block > 1 or self.grid.axis != scaling.row_axis):
            return None
        return np.asarray(rows * self.grid.step)

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.weight.name

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
        weights = self.coded.astype(np.float32)
        if kind == "peak":
            return Scaling(channel_scales(weights, self.axis), self.axis)
        columns = None
        if input_deviation is not None:
            columns = self._columns(self.values.astype(np.float32), input_deviation)
        column_axis = self._column_axis if columns is not None else None
        if columns is not None:
            weights = weights / along_channels(columns.astype(np.float32), weights.ndim, column_axis)
        return Scaling(_deviations(weights, self.axis), self.axis, columns, column_axis)

    @property
    def _column_axis(self) -> int | None:
        """The axis of input channels, for operators with one."""
        if self.values.ndim < 2 or self.axis not in (0, 1):
            return None
        return 1 - self.axis

    def _columns(self, weights: NDArray[np.float32], deviation: NDArray[np.float64]) -> NDArray[np.float16] | None:
        axis = self._column_axis
        if axis is None or weights.shape[axis] != len(deviation) or len(deviation) < 2:
            return None
        others = tuple(i for i in range(weights.ndim) if i != axis)
        rms = np.sqrt(np.mean(weights.astype(np.float64) ** 2, axis=others))
        if not (rms > 0).any() or not (deviation > 0).any():
            return None
        rms, deviation = np.maximum(rms, 1e-3 * rms.max()), np.maximum(deviation, 1e-3 * deviation.max())
        wanted = np.sqrt(rms / deviation)
        wanted /= np.median(wanted)
        return np.asarray(np.clip(wanted, 1 / _SPREAD, _SPREAD), dtype=np.float16)


def _deviations(weights: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    others = tuple(i for i in range(weights.ndim) if i != axis)
    rms = np.sqrt(np.mean(weights.astype(np.float64) ** 2, axis=others)).reshape(-1)
    scales = (_DEVIATIONS * rms).astype(np.float32)
    return np.where(scales > 0, scales, np.float32(1)).astype(np.float32)


def gather(weight: Weight, per_tensor: bool) -> TensorData:
    """Reads a weight.

    Raises:
        InputError: if a value is NaN or infinite.
    """
    values = float_weights(weight)
    if not np.isfinite(values).all():
        raise InputError(f"weight '{weight.name}' has NaN or infinite values; mend the model before hardening")
    axis = None if per_tensor else weight.channel_axis
    grid = weight.grid
    if grid is None:
        return TensorData(weight, values, axis)
    kept = _stored_code(grid) if grid.bits <= LONGEST_KEPT else None
    return TensorData(weight, values, axis, kept, stored_values(weight).astype(np.int32))


def _stored_code(grid: IntegerGrid) -> Code:
    """The code of words as a quantised model has them: every word its own cell."""
    size = 1 << grid.bits
    integers = np.arange(-size // 2, size // 2) if grid.signed else np.arange(size)
    words = integers & (size - 1)
    levels = np.empty(size)
    levels[words] = (integers - grid.center) / grid.half_range
    boundaries = (integers[:-1] + 0.5 - grid.center) / grid.half_range
    return Code(f"stored-{'int' if grid.signed else 'uint'}{grid.bits}", grid.bits, boundaries, words, levels)
