"""Whole tensors: weights to stored words and back, exactly as the hardened model computes it."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.channel import FloatArray
from qtaml_onnx.plan import TensorPlan, table_array
from qtaml_onnx.storage.codes import word_dtype

_Float = TypeVar("_Float", np.float16, np.float32)

__all__ = ["along_channels", "channel_scales", "decode_tensor", "encode_tensor", "normalise", "read_table"]


def along_channels(values: NDArray[_Float], rank: int, axis: int | None) -> NDArray[_Float]:
    """Reshapes one value a channel so that it broadcasts against a tensor of that rank."""
    if axis is None or values.size == 1:
        return values.reshape((1,) * rank)
    return values.reshape(tuple(-1 if i == axis else 1 for i in range(rank)))


def channel_scales(weights: NDArray[np.floating], axis: int | None) -> NDArray[np.float32]:
    """Largest magnitude a channel (a tensor if `axis` is None), float32 [channels] or [1]; 1 where all are 0."""
    magnitude = np.abs(weights)
    peak = (
        magnitude.max(keepdims=False).reshape(1)
        if axis is None
        else magnitude.max(axis=tuple(i for i in range(weights.ndim) if i != axis))
    )
    peak = peak.astype(np.float32)
    return np.where(peak > 0, peak, np.float32(1)).astype(np.float32)


def normalise(weights: NDArray[np.floating], factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights over their scales, float32, the shape of `weights`: what a code is made for.

    Args:
        weights: The weights.
        factors: Their scales, in a shape that broadcasts.
    """
    return np.asarray(weights.astype(np.float32, copy=False) / factors)


def _factors(plan: TensorPlan, rows: tuple[float, ...], rank: int) -> NDArray[np.float32]:
    """Scales of a plan, an output channel times an input channel, in a shape that broadcasts."""
    factors = along_channels(np.asarray(rows, dtype=np.float32), rank, plan.channel_axis)
    if plan.input_scales is None:
        return factors
    columns = np.asarray(plan.input_scales, dtype=np.float16).astype(np.float32)
    return np.asarray(factors * along_channels(columns, rank, plan.input_axis))


def encode_tensor(plan: TensorPlan, weights: NDArray[np.generic]) -> NDArray[np.integer]:
    """The stored words of a tensor.

    Args:
        plan: How it is stored.
        weights: Float weights; for the integer forms, the words of the model's DequantizeLinear, which are kept.

    Returns:
        int8, uint8 or uint16, the shape of `weights`: the words as the initializer holds them.
    """
    if plan.form in ("dequantize", "integer-table"):
        return np.asarray(weights).view(plan.words_type.lower())
    factors = _factors(plan, plan.weight_scales, np.ndim(weights))
    words = plan.code.code().encode(normalise(weights.astype(np.float32), factors))
    return words.view(np.int8) if plan.words_type == "INT8" else words


def decode_tensor(plan: TensorPlan, words: NDArray[np.integer]) -> NDArray[np.float32]:
    """The weights that the hardened model sees for these words, in the model's own float32 arithmetic."""
    scale = _factors(plan, plan.scales, words.ndim)
    if plan.form == "affine":
        value = words.astype(np.float32)
        if plan.offset:
            value = value - np.float32(plan.offset)
        return np.asarray(value * scale)
    if plan.form == "dequantize":
        return np.asarray((words.astype(np.float32) - np.float32(plan.zero_point)) * scale)
    index = words.view(np.uint8) if words.dtype == np.int8 else words
    value = table_array(plan).astype(np.float32)[index]
    if plan.form == "integer-table":
        value = value - np.float32(plan.zero_point)
    return np.asarray(value * scale)


def read_table(tensor: TensorPlan) -> FloatArray:
    """The normalised weight that each stored word is read as, float64 [2^bits], in the hardened model's arithmetic.

    Where channels differ in their gain, that of the median channel.
    """
    ratio = float(np.median(np.divide(tensor.scales, tensor.weight_scales)))
    one = tensor.model_copy(update={"scales": (ratio,), "channel_axis": None, "input_scales": None})
    words = np.arange(1 << tensor.bits, dtype=word_dtype(tensor.bits))
    return decode_tensor(one, words.view(tensor.words_type.lower())).astype(np.float64)
