"""Whole tensors: weights to stored words and back, exactly as the hardened model computes it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.plan import TensorPlan, table_array

__all__ = ["along_channels", "channel_scales", "decode_tensor", "encode_tensor", "normalise"]


def along_channels(values: NDArray[np.float32], rank: int, axis: int | None) -> NDArray[np.float32]:
    """Reshapes one value a channel so that it broadcasts against a tensor of that rank."""
    if axis is None or values.size == 1:
        return values.reshape((1,) * rank)
    return values.reshape(tuple(-1 if i == axis else 1 for i in range(rank)))


def channel_scales(weights: NDArray[np.floating], axis: int | None) -> NDArray[np.float32]:
    """Largest magnitude a channel (a tensor if `axis` is None), float32 [channels] or [1]; 1 where all weights are 0."""
    magnitude = np.abs(weights)
    peak = (
        magnitude.max(keepdims=False).reshape(1)
        if axis is None
        else magnitude.max(axis=tuple(i for i in range(weights.ndim) if i != axis))
    )
    peak = peak.astype(np.float32)
    return np.where(peak > 0, peak, np.float32(1)).astype(np.float32)


def normalise(weights: NDArray[np.floating], scales: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    """Weights over their channel's scale, float32, same shape: what a code is made for."""
    return np.asarray(weights.astype(np.float32, copy=False) / along_channels(scales, weights.ndim, axis))


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
    scales = np.asarray(plan.weight_scales, dtype=np.float32)
    words = plan.code.code().encode(normalise(weights.astype(np.float32), scales, plan.channel_axis))
    return words.view(np.int8) if plan.words_type == "INT8" else words


def decode_tensor(plan: TensorPlan, words: NDArray[np.integer]) -> NDArray[np.float32]:
    """The weights that the hardened model sees for these words, in the model's own float32 arithmetic."""
    scale = along_channels(np.asarray(plan.scales, dtype=np.float32), words.ndim, plan.channel_axis)
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
