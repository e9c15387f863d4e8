"""The random numbers of `qtaml::FaultInject`: Philox halves, hazards, and tables of Poisson counts.

Part of the definition in `qtaml_onnx.fault_inject`. Floating-point operations are float64, each rounded once, in the
order written here, so that every machine gives the same bits.
"""

from __future__ import annotations

import enum
import math
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "U64",
    "Counter",
    "Philox",
    "hazard",
    "hazard_of_any",
    "hit_counts",
    "octave_of",
    "philox4x32",
    "poisson_tail",
]

_MASK32: Final = np.uint64(0xFFFFFFFF)

U64 = npt.NDArray[np.uint64]


class Counter(enum.IntEnum):
    """What a Philox counter is for."""

    SEED_ROWS = 0
    TRAILING_BITS = 1
    HIT_COUNT = 2
    HITS = 3
    STUCK_ROWS = 4
    STUCK_TRAILING = 5
    BURST_COUNT = 6
    BURSTS = 7
    INFERENCE = 8


class Philox:
    """Philox4x32-10, keyed by the seed, at the counters of one (stream, plane)."""

    def __init__(self, seed: int, stream: int, plane: int) -> None:
        """Takes a seed modulo 2^64, a stream below 2^32 and a plane."""
        self._key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
        self._stream, self._plane = stream, plane

    def halves(self, index: npt.ArrayLike, chunk: npt.ArrayLike, kind: Counter) -> U64:
        """Both 64-bit halves: uint64, the broadcast shape of `index` and `chunk` with a last axis of 2."""
        index, chunk = np.broadcast_arrays(np.asarray(index, np.uint64), np.asarray(chunk, np.uint64))
        counter = (index, chunk, np.full_like(index, kind << 8 | self._plane), np.full_like(index, self._stream))
        x = philox4x32(counter, self._key)
        return np.stack([x[0] | x[1] << np.uint64(32), x[2] | x[3] << np.uint64(32)], axis=-1)


def philox4x32(counter: tuple[U64, U64, U64, U64], key: tuple[int, int]) -> tuple[U64, U64, U64, U64]:
    """Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    Args:
        counter: four uint64 arrays of one shape, holding values below 2^32.
        key: two integers below 2^32.

    Returns:
        The four random words, laid out as `counter`.
    """
    x0, x1, x2, x3 = counter
    for r in range(10):
        k0 = np.uint64((key[0] + r * 0x9E3779B9) & 0xFFFFFFFF)
        k1 = np.uint64((key[1] + r * 0xBB67AE85) & 0xFFFFFFFF)
        product0, product1 = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1 = product1 >> np.uint64(32) ^ x1 ^ k0, product1 & _MASK32
        x2, x3 = product0 >> np.uint64(32) ^ x3 ^ k1, product0 & _MASK32
    return x0, x1, x2, x3


def hazard(p: float) -> float:
    """`-ln(1 - p)` for small p by its series: only operations that IEEE 754 rounds alike everywhere."""
    total = 1.0 / 9.0
    for divisor in range(8, 0, -1):
        total = 1.0 / divisor + p * total
    return p * total


def hazard_of_any(p: float) -> float:
    """`-ln(1 - p)` for p of at most 1/2: `hazard`, or beyond 2^-7 twice the inverse hyperbolic tangent of p/(2 - p)."""
    if p <= 2.0**-7:
        return hazard(p)
    z = p / (2.0 - p)
    square = z * z
    total = 1.0 / 37.0
    for divisor in range(35, 0, -2):
        total = 1.0 / divisor + square * total
    return 2.0 * z * total


def octave_of(largest: float, first: int) -> int:
    """The integer j, `first` to 63, with `2^-(j+1) < largest <= 2^-j`; the nearer end where there is none."""
    mantissa, exponent = math.frexp(largest)  # largest = mantissa * 2^exponent, mantissa in [0.5, 1)
    return max(first, min(-exponent + (mantissa == 0.5), 63))


def poisson_tail(mean_log2: int) -> list[int]:
    """`floor(2^64 * P[Poisson(2^mean_log2) > q])` for q = 0, 1, … down to the last that is not 0.

    float64, in this order: `P[0] = exp(-mean)` by its Taylor series to the 20th power (Horner) for a mean of at most 1,
    else of mean 1 squared `mean_log2` times; `P[q] = P[q-1] * mean / q` up to q = 511; tails summed from the far end.
    """
    mean = 2.0**mean_log2
    small = min(mean, 1.0)
    p_zero = 1.0
    for divisor in range(20, 0, -1):
        p_zero = 1.0 - small * p_zero / divisor
    for _ in range(mean_log2):
        p_zero = p_zero * p_zero
    terms = [p_zero]
    for q in range(1, 512):
        terms.append(terms[-1] * mean / q)
    tail, tails = 0.0, []
    for term in reversed(terms[1:]):
        tail += term
        tails.append(tail)
    scaled = [min(math.floor(value * 2.0**64), 2**64 - 1) for value in reversed(tails)]
    return [value for value in scaled if value > 0]


def hit_counts(mean_log2: int, u: U64) -> npt.NDArray[np.intp]:
    """Poisson counts of mean `2^mean_log2` by inversion of uniform 64-bit numbers."""
    tail = np.array(poisson_tail(mean_log2)[::-1], np.uint64)
    return np.asarray(len(tail) - np.searchsorted(tail, u, side="right"))
