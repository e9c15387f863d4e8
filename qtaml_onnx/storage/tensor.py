"""Whole tensors: weights to stored words and back, exactly as the hardened model computes it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.channel import FloatArray
from qtaml_onnx.plan_values import INTEGER_TYPES
from qtaml_onnx.storage.codes import word_dtype
from qtaml_onnx.tensor_plan import TensorPlan, table_array

_Float = TypeVar("_Float", np.float16, np.float32)
_Joined = TypeVar("_Joined", bound=np.generic)
_Numbers = NDArray[np.floating] | NDArray[np.integer]

__all__ = [
    "along_channels",
    "blocks",
    "channel_order",
    "channel_scales",
    "decode_integers",
    "decode_tensor",
    "encode_tensor",
    "factors_of",
    "join_channels",
    "join_words",
    "mean_square",
    "normalise",
    "part_of",
    "read_table",
    "split_words",
]

_BLOCK = 1 << 22
"""Elements that are computed at a time."""


def along_channels(values: NDArray[_Float], rank: int, axis: int | None) -> NDArray[_Float]:
    """Reshapes one value a channel so that it broadcasts against a tensor of that rank."""
    if axis is None or values.size == 1:
        return values.reshape((1,) * rank)
    return values.reshape(tuple(-1 if i == axis else 1 for i in range(rank)))


def channel_scales(weights: _Numbers, axis: int | None) -> NDArray[np.float32]:
    """Largest magnitude a channel (a tensor if `axis` is None), float32 [channels] or [1]; 1 where all are 0."""
    others = tuple(i for i in range(weights.ndim) if i != axis)
    peak = np.zeros(1 if axis is None else weights.shape[axis], dtype=np.float32)
    for block in blocks(weights.shape):
        own = block[axis] if axis is not None and axis < len(block) else slice(None)
        values = weights[block]
        if values.dtype.kind in "iu":  # the least integer has no positive twin in its own type
            values = values.astype(np.float32)
        largest = np.abs(values).max(axis=others).astype(np.float32)
        peak[own] = np.maximum(peak[own], largest)
    return np.where(peak > 0, peak, np.float32(1)).astype(np.float32)


def blocks(shape: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """Indices of parts that together are an array of that shape, in order, each of at most a few million elements.

    What is computed block by block needs no second array of the whole size. A smaller array is one block.
    """
    if math.prod(shape) <= _BLOCK:
        yield (...,)
        return
    inner = math.prod(shape[1:])
    if inner > _BLOCK:
        for row in range(shape[0]):
            yield from ((slice(row, row + 1), *rest) for rest in blocks(shape[1:]))
    else:
        step = _BLOCK // inner
        yield from ((slice(start, start + step),) for start in range(0, shape[0], step))


def normalise(
    weights: _Numbers, rows: NDArray[np.float32], columns: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Weights over their scales, float32, the shape of `weights`: what a code is made for.

    Args:
        weights: The weights.
        rows: Their scales, in a shape that broadcasts.
        columns: Factors on these, likewise: scales of input channels.
    """
    result = np.empty(weights.shape, dtype=np.float32)
    for block in blocks(weights.shape):
        values = weights[block].astype(np.float32, copy=False)
        np.divide(values, factors_of(rows, columns, block, weights.shape), out=result[block])
    return result


def factors_of(
    rows: NDArray[np.float32], columns: NDArray[np.float32] | None, block: tuple[Any, ...], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """The scales of a block of a tensor of that shape."""
    part = np.broadcast_to(rows, shape)[block]
    return part if columns is None else np.asarray(part * np.broadcast_to(columns, shape)[block])


def mean_square(values: NDArray[np.floating]) -> float:
    """Mean of the squares, summed in float64."""
    if values.size <= _BLOCK:
        return float(np.mean(np.square(values, dtype=np.float64)))
    return math.fsum(float(np.sum(np.square(values[block], dtype=np.float64))) for block in blocks(values.shape)) / (
        values.size
    )


def _scales(
    plan: TensorPlan, rows: tuple[float, ...], rank: int
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Scales of a plan, those of output channels and those of input channels, in shapes that broadcast."""
    factors = along_channels(np.asarray(rows, dtype=np.float32), rank, plan.channel_axis)
    if plan.input_scales is None:
        return factors, None
    columns = np.asarray(plan.input_scales, dtype=np.float16).astype(np.float32)
    return factors, along_channels(columns, rank, plan.input_axis)


def encode_tensor(plan: TensorPlan, weights: NDArray[np.generic]) -> NDArray[np.integer]:
    """The stored words of a tensor.

    Args:
        plan: How it is stored.
        weights: Float weights, or the integers of a quantised weight; the whole tensor, of which a plan of some output
            channels takes its own.

    Returns:
        int8, uint8 or uint16, of the plan's shape: the words as the initializer holds them. Of two words a weight
        uint32, which `split_words` makes the initializers of.
    """
    weights = part_of(plan, weights)
    if plan.form in ("dequantize", "integer-table"):
        mask = (1 << plan.bits) - 1
        kept = np.asarray(weights).astype(np.uint8, copy=False) & np.uint8(mask)
        return kept.view(plan.words_type.lower())
    rows, columns = _scales(plan, plan.weight_scales, np.ndim(weights))
    grouped = plan.grouped_code()
    if grouped is not None:
        return grouped.encode(weights.astype(np.float32, copy=False) / factors_of(rows, columns, (...,), weights.shape))
    two = plan.form == "two-words"
    code = plan.code.two_words() if two else plan.code.code()
    dtype = np.uint32 if two else np.uint8 if plan.bits <= 8 else np.uint16
    words = np.empty(np.shape(weights), dtype=dtype)
    for block in blocks(words.shape):
        values = weights[block].astype(np.float32, copy=False)
        if plan.quantized and plan.zero_point:
            values = values - np.float32(plan.zero_point)
        words[block] = code.encode(values / factors_of(rows, columns, block, words.shape))
    return words.view(np.int8) if plan.words_type == "INT8" else words


def split_words(plan: TensorPlan, words: NDArray[np.integer]) -> list[NDArray[np.integer]]:
    """What each initializer of `plan.stored_words` holds of words as `encode_tensor` gives them."""
    if plan.form != "two-words":
        return [words]
    low = plan.word_lengths[1]
    return [half.astype(plan.words_type.lower()) for half in (words >> low, words & np.uint32((1 << low) - 1))]


def join_words(plan: TensorPlan, parts: Sequence[NDArray[np.integer]]) -> NDArray[np.integer]:
    """The inverse of `split_words`."""
    if plan.form != "two-words":
        return parts[0]
    return parts[0].astype(np.uint32) << plan.word_lengths[1] | parts[1]


def decode_tensor(plan: TensorPlan, words: NDArray[np.integer]) -> NDArray[np.float32]:
    """The weights that the hardened model sees for these words, in the model's own float32 arithmetic.

    Those of quantised weights count in integers from `plan.zero_point`.
    """
    if plan.quantized:
        return (decode_integers(plan, words) - np.float32(plan.zero_point)).astype(np.float32)
    rows, columns = _scales(plan, plan.scales, words.ndim)
    scale = factors_of(rows, columns, (...,), words.shape)
    if plan.form == "affine":
        value = words.astype(np.float32)
        if plan.offset:
            value = value - np.float32(plan.offset)
        return np.asarray(value * scale)
    return np.asarray(_looked_up(plan, words) * scale)


def part_of(plan: TensorPlan, array: NDArray[_Joined]) -> NDArray[_Joined]:
    """Of an array of the whole tensor's shape, the output channels that a plan is of."""
    return array if plan.part is None else np.take(array, plan.part.channels, axis=plan.part.axis)


def join_channels(plans: Sequence[TensorPlan], arrays: Sequence[NDArray[_Joined]]) -> NDArray[_Joined]:
    """A whole tensor from arrays of its parts, one each, in the order of the plans."""
    parts = [plan.part for plan in plans if plan.part is not None]
    if not parts:
        return arrays[0]
    return np.take(np.concatenate(arrays, axis=parts[0].axis), channel_order(plans), axis=parts[0].axis)


def channel_order(plans: Sequence[TensorPlan]) -> NDArray[np.int64]:
    """Where each output channel is among the channels of all parts, one part behind the other: int64 [channels]."""
    return np.argsort([channel for plan in plans if plan.part is not None for channel in plan.part.channels])


def decode_integers(plan: TensorPlan, words: NDArray[np.integer]) -> NDArray[np.integer]:
    """The integers that the hardened model's operator sees for these words, in a type of 8 bits or as its own."""
    if plan.form == "dequantize":
        return words
    if plan.form == "integer-table":
        return np.asarray(table_array(plan)[words.view(np.uint8)])
    (rows, columns), (low, high) = _scales(plan, plan.scales, words.ndim), plan.limits or (0, 0)
    result = np.empty(words.shape, dtype=INTEGER_TYPES[plan.dtype])
    for block in blocks(words.shape):
        scale = factors_of(rows, columns, block, words.shape)
        # As the graph computes it: floor(x + 1/2) rounds in every opset.
        shifted = np.floor(_looked_up(plan, words[block]) * scale + np.float32(plan.zero_point + 0.5))
        result[block] = np.clip(shifted, np.float32(low), np.float32(high))
    return result


def _looked_up(plan: TensorPlan, words: NDArray[np.integer]) -> NDArray[np.float32]:
    if plan.form == "two-words":
        return np.asarray(plan.code.two_words().table[words])
    grouped = plan.grouped_code()
    if grouped is not None:
        return np.asarray(table_array(plan).astype(np.float32)[grouped.index(words)])
    index = words.view(np.uint8) if words.dtype == np.int8 else words
    return np.asarray(table_array(plan).astype(np.float32)[index])


def read_table(tensor: TensorPlan) -> FloatArray:
    """The normalised weight that each stored word is read as, float64 [2^bits], in the hardened model's arithmetic.

    Where channels differ in their gain, that of the median channel; where they differ in their code, the first code's.
    """
    ratio = float(np.median(np.divide(tensor.scales, tensor.weight_scales)))
    if tensor.form == "integer-grid":  # but for the rounding, which is another one in every channel
        return table_array(tensor).astype(np.float64) * ratio
    if tensor.channel_codes is not None:
        return table_array(tensor).astype(np.float64)[: 1 << tensor.bits] * ratio
    if tensor.form == "two-words":
        return tensor.code.two_words().table.astype(np.float64) * ratio
    words = np.arange(1 << tensor.bits, dtype=word_dtype(tensor.bits)).view(tensor.words_type.lower())
    if tensor.quantized:
        return decode_tensor(tensor, words).astype(np.float64) / tensor.weight_scales[0]
    one = tensor.model_copy(update={"scales": (ratio,), "channel_axis": None, "input_scales": None})
    return decode_tensor(one, words).astype(np.float64)
