"""Whole tensors: weights to stored words and back, exactly as the hardened model computes it."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.plan import TensorPlan, table_array

_Float = TypeVar("_Float", np.float16, np.float32)

__all__ = [
    "along_channels",
    "channel_scales",
    "decode_integers",
    "decode_tensor",
    "encode_tensor",
    "normalise",
]


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
        weights: Float weights, or the integers of a quantised weight.

    Returns:
        int8, uint8 or uint16, the shape of `weights`: the words as the initializer holds them.
    """
    if plan.form in ("dequantize", "integer-table"):
        kept = np.asarray(weights).astype(np.int64) & ((1 << plan.bits) - 1)
        return kept.astype(np.uint8).view(plan.words_type.lower())
    factors = _factors(plan, plan.weight_scales, np.ndim(weights))
    values = weights.astype(np.float32) - np.float32(plan.zero_point) if plan.quantized else weights.astype(np.float32)
    words = plan.code.code().encode(normalise(values, factors))
    return words.view(np.int8) if plan.words_type == "INT8" else words


def decode_tensor(plan: TensorPlan, words: NDArray[np.integer]) -> NDArray[np.float32]:
    """The weights that the hardened model sees for these words, in the model's own float32 arithmetic.

    Those of quantised weights count in integers from `plan.zero_point`.
    """
    if plan.quantized:
        return (decode_integers(plan, words) - plan.zero_point).astype(np.float32)
    scale = _factors(plan, plan.scales, words.ndim)
    if plan.form == "affine":
        value = words.astype(np.float32)
        if plan.offset:
            value = value - np.float32(plan.offset)
        return np.asarray(value * scale)
    return np.asarray(_looked_up(plan, words) * scale)


def decode_integers(plan: TensorPlan, words: NDArray[np.integer]) -> NDArray[np.int32]:
    """The integers that the hardened model's operator sees for these words, int32."""
    if plan.form == "dequantize":
        return np.asarray(words, dtype=np.int32)
    value = _looked_up(plan, words)
    if plan.form == "integer-table":
        return value.astype(np.int32)
    low, high = plan.limits or (0, 0)
    # As the graph computes it: floor(x + 1/2) rounds in every opset.
    shifted = np.floor(value * _factors(plan, plan.scales, words.ndim) + np.float32(plan.zero_point + 0.5))
    return np.asarray(np.clip(shifted, np.float32(low), np.float32(high)), dtype=np.int32)


def _looked_up(plan: TensorPlan, words: NDArray[np.integer]) -> NDArray[np.float32]:
    index = words.view(np.uint8) if words.dtype == np.int8 else words
    return np.asarray(table_array(plan).astype(np.float32)[index])
