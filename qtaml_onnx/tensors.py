"""The weights of a model as arrays: their values, and the scales that normalise them before coding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.storage import Code
from qtaml_onnx.storage.tensor import along_channels, channel_scales
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


@dataclass(frozen=True)
class TensorData:
    """One weight with all that its design needs.

    Attributes:
        weight: Where it is.
        values: The float weights that the operator sees, in the model's type.
        axis: The axis along which scales run; None for one scale a tensor.
        fixed: The code of words that a quantised model brings along; None where a code may be chosen.
        step: Of a quantised weight, the DequantizeLinear's scales, float32.
        zero_point: Of a quantised weight.
    """

    weight: Weight
    values: NDArray[np.floating]
    axis: int | None
    fixed: Code | None = None
    step: NDArray[np.float32] | None = None
    zero_point: int = 0

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.weight.name

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
        weights = self.values.astype(np.float32)
        if kind == "peak":
            return Scaling(channel_scales(weights, self.axis), self.axis)
        columns = self._columns(weights, input_deviation) if input_deviation is not None else None
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
    node = weight.dequantize
    if node is None:
        return TensorData(weight, values, None if per_tensor else weight.channel_axis)
    words = constant_array(weight.stored)
    scale, point = dequantize_parameters(node, words.shape)
    zero = int(np.ravel(point)[0])
    step = np.ravel(scale).astype(np.float32)
    axis = weight.channel_axis if step.size > 1 else None
    return TensorData(weight, values, axis, _stored_code(weight.dtype, zero), step, zero)


def _stored_code(dtype: ir.DataType, zero_point: int) -> Code:
    """The code of 8-bit words as a quantised model has them: every word its own cell."""
    integers = np.arange(-128, 128) if dtype == ir.DataType.INT8 else np.arange(256)
    levels = np.empty(256)
    levels[integers & 255] = (integers - zero_point) / HALF_RANGE
    boundaries = (integers[:-1] + 0.5 - zero_point) / HALF_RANGE
    return Code(f"stored-{dtype.name.lower()}", 8, boundaries, integers & 255, levels)
