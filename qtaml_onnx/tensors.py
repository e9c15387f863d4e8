"""The weights of a model as arrays: their values, and the scales that normalise them before coding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.storage import Code
from qtaml_onnx.storage.tensor import along_channels, blocks, channel_scales, mean_square
from qtaml_onnx.weights import Weight, constant_array, dequantize_parameters, float_weights

__all__ = ["HALF_RANGE", "Scaling", "ScalingKind", "TensorData", "gather"]

HALF_RANGE = 127
"""Largest magnitude of a symmetric 8-bit weight: normalised weights of quantised models count in 127ths."""

_DEVIATIONS = 4.0
"""Standard deviations of a channel's weights that normalised weights of 1 stand for, where scales are rms values."""

_SPREAD = 8.0
"""Largest ratio of an input's scale to the typical one: inputs that never vary would get all the noise."""

ScalingKind = Literal["peak", "rms"]


@dataclass(frozen=True)
class Scaling:
    """What normalised weights are multiplied by to be weights again.

    Attributes:
        rows: A factor an output channel, or one: float32 [channels] or [1].
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
        fixed: The code of words that a quantised model brings along; None where a code may be chosen.
        step: Of a quantised weight, the DequantizeLinear's scales, float32.
        zero_point: Of a quantised weight.
    """

    weight: Weight
    axis: int | None
    fixed: Code | None = None
    step: NDArray[np.float32] | None = None
    zero_point: int = 0

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.weight.name

    @property
    def values(self) -> NDArray[np.floating]:
        """The float weights that the operator sees, in the model's type; read anew each time, as all may not fit."""
        return float_weights(self.weight)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.weight.shape)

    def scaling(self, kind: ScalingKind, input_deviation: NDArray[np.float64] | None = None) -> Scaling:
        """Scales that fill [−1, 1] with a channel's weights (`peak`) or give all channels one deviation (`rms`).

        Args:
            kind: Which. A quantised weight keeps its own scales.
            input_deviation: Standard deviation of the layer's input a channel [inputs]. With `rms`, inputs get factors
                of their own, so that noise goes where it meets little energy: with equal noise for all normalised
                weights, Σ Var[x_j] c_j² is least at a given Σ E[w_j²]/c_j² for c_j² ∝ rms(w_j)/deviation(x_j).
        """
        if self.step is not None:
            return Scaling((self.step * np.float32(HALF_RANGE)).astype(np.float32), self.axis)
        values = self.values
        if kind == "peak":
            return Scaling(channel_scales(values, self.axis), self.axis)
        columns = self._columns(values, input_deviation) if input_deviation is not None else None
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
    weights: NDArray[np.floating], axis: int | None, divisors: NDArray[np.float32] | None = None
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
    node = weight.dequantize
    if node is None:
        return TensorData(weight, None if per_tensor else weight.channel_axis)
    words = constant_array(weight.stored)
    scale, point = dequantize_parameters(node, words.shape)
    zero = int(np.ravel(point)[0])
    step = np.ravel(scale).astype(np.float32)
    axis = weight.channel_axis if step.size > 1 else None
    return TensorData(weight, axis, _stored_code(weight.dtype, zero), step, zero)


def _stored_code(dtype: ir.DataType, zero_point: int) -> Code:
    """The code of 8-bit words as a quantised model has them: every word its own cell."""
    integers = np.arange(-128, 128) if dtype == ir.DataType.INT8 else np.arange(256)
    levels = np.empty(256)
    levels[integers & 255] = (integers - zero_point) / HALF_RANGE
    boundaries = (integers[:-1] + 0.5 - zero_point) / HALF_RANGE
    return Code(f"stored-{dtype.name.lower()}", 8, boundaries, integers & 255, levels)
