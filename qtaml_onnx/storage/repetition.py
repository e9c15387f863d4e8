"""Numbers stored bit by bit, each bit several times, and read by majority.

For what a model needs besides its weights: biases, normalisation parameters, scales, zero points, read-out tables. They
are few, and one wrong exponent spoils a layer, so they keep their exact bits (IEEE 754 or two's complement) and pay in
copies. The residual rate of a bit is P[Binomial(copies, p) > copies / 2], exact.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from scipy.stats import binom

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.errors import InputError

__all__ = [
    "FLOAT_LAYOUT",
    "MOST_COPIES",
    "REPEATABLE",
    "any_wrong",
    "copies_needed",
    "majority",
    "repeat",
    "residual_rate",
]

FLOAT_LAYOUT = {
    ir.DataType.FLOAT16: (5, 10),
    ir.DataType.BFLOAT16: (8, 7),
    ir.DataType.FLOAT: (8, 23),
    ir.DataType.DOUBLE: (11, 52),
}
"""Exponent and mantissa bits of the float types."""

REPEATABLE = frozenset(
    {*FLOAT_LAYOUT, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32}
)
"""Types whose bits can be repeated."""

MOST_COPIES = 31
"""Copies of 4 MiB of numbers that onnxruntime still counts in constants of less than its limit of 1 GiB each."""


def repeat(array: NDArray[Any], copies: int) -> NDArray[np.uint8]:
    """The stored bytes of numbers, little-endian: uint8 [copies, numbers, bytes a number]."""
    raw = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    bytes_of_each = raw.reshape(-1).view(np.uint8).reshape(array.size, array.dtype.itemsize)
    return np.ascontiguousarray(np.broadcast_to(bytes_of_each, (copies, *bytes_of_each.shape)))


def majority(words: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The numbers that stored bytes read as, flat: the inverse of `repeat`, as the hardened model computes it.

    An exponent of ones reads as infinity, whatever the mantissa: a fault makes no NaN.
    """
    copies = len(words)
    counts = np.unpackbits(words, axis=-1, bitorder="little").astype(np.int64).sum(axis=0)
    read = np.packbits(2 * counts > copies, axis=-1, bitorder="little")
    numbers = np.ascontiguousarray(read).view(dtype.newbyteorder("<")).reshape(-1).astype(dtype, copy=False)
    if np.issubdtype(dtype, np.integer):
        return numbers
    infinity = np.asarray(np.inf, dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs, of which infinities are made
        nan = np.isnan(numbers)
    return np.asarray(np.where(nan, np.where(read[:, -1] >= 128, -infinity, infinity), numbers))


def residual_rate(rates: FlipRates, copies: int) -> float:
    """The largest rate, over planes of a byte and directions, at which a bit is still read wrong.

    Raises:
        InputError: if the copies are even or too many.
    """
    if copies < 1 or copies % 2 == 0 or copies > MOST_COPIES:
        raise InputError(f"--small-copies {copies}: give an odd number from 1 to {MOST_COPIES}")
    eight = rates.truncated(8)
    return max(float(binom.sf(copies // 2, copies, p)) for p in (*eight.p01, *eight.p10))


def any_wrong(rates: FlipRates, copies: int, bits: int) -> float:
    """Probability that any of so many bits is read wrong, at most: 1 − (1 − residual rate)^bits."""
    return -math.expm1(bits * math.log1p(-min(residual_rate(rates, copies), 1 - 1e-16)))


def copies_needed(rates: FlipRates, bits: int, accepted: float = 0.01) -> int:
    """The smallest odd number of copies with which all bits are read right, but for a probability of `accepted`.

    Raises:
        InputError: if not even the most copies are enough.
    """
    for copies in range(1, MOST_COPIES + 1, 2):
        if any_wrong(rates, copies, bits) <= accepted:
            return copies
    worst = max(*rates.p01, *rates.p10)
    raise InputError(
        f"--include-small: at a flip rate of {worst:g} even {MOST_COPIES} copies leave wrong bits among {bits}; "
        "give --small-copies to take what they leave"
    )
