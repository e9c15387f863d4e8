"""The bit-plane channel: what a stored word reads back as when every bit may flip on its own.

A word of ``B`` bits is written as ``u`` and read as ``v``. Bit plane ``k`` (0 is the least significant) turns a stored
0 into a 1 with probability ``p01[k]`` and a stored 1 into a 0 with probability ``p10[k]``, independently of all others:
a memoryless binary asymmetric channel a plane. The word transition matrix ``P[u, v]`` is therefore the Kronecker
product of ``B`` two-by-two matrices, and every product with it is done factor by factor, never with the dense matrix.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.textio import read_text

__all__ = [
    "FlipRates",
    "FloatArray",
    "apply_transition",
    "apply_transition_transposed",
    "capacity",
    "gaussian_noise_to_signal_bound",
    "linear_moments",
    "moments",
    "transition_matrix",
    "transition_rows",
]

FloatArray = NDArray[np.float64]

MAX_BITS = 16
MAX_PLANES = 32  # of words that faults can fall on, such as float32; the channel's matrix is for MAX_BITS at most
_FACTOR_PLANES = 6  # planes a Kronecker factor: 64 x 64 is the largest matrix ever multiplied


def _checked(name: str, rates: Sequence[float]) -> tuple[float, ...]:
    try:
        values = tuple(float(rate) for rate in rates)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be a sequence of numbers, one a bit plane, not {rates!r}") from error
    for plane, rate in enumerate(values):
        if not 0.0 <= rate < 1.0:  # also refuses NaN
            raise InputError(f"flip rate {name}[{plane}] = {rate:g} is outside [0, 1): give a probability below 1")
    return values


@dataclass(frozen=True)
class FlipRates:
    """Flip probabilities of every bit plane of a word between write and read, least significant plane first.

    Attributes:
        p01: probability that a stored 0 is read as 1, one entry a plane, each in [0, 1).
        p10: probability that a stored 1 is read as 0, one entry a plane, each in [0, 1).

    Raises:
        InputError: a rate outside [0, 1), no plane, more than 32 planes, or unequal lengths.
    """

    p01: tuple[float, ...]
    p10: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check and freeze the rates."""
        object.__setattr__(self, "p01", _checked("p01", self.p01))
        object.__setattr__(self, "p10", _checked("p10", self.p10))
        if len(self.p01) != len(self.p10):
            raise InputError(
                f"p01 has {len(self.p01)} planes and p10 has {len(self.p10)}: give one rate a plane to both"
            )
        if not 1 <= len(self.p01) <= MAX_PLANES:
            raise InputError(f"flip rates for {len(self.p01)} bit planes: words have 1 to {MAX_PLANES}")

    @classmethod
    def uniform(cls, p: float, bits: int) -> FlipRates:
        """The same symmetric rate ``p`` on all of ``bits`` planes."""
        return cls.asymmetric(p, p, bits)

    @classmethod
    def asymmetric(cls, p01: float, p10: float, bits: int) -> FlipRates:
        """The same pair of rates on all of ``bits`` planes."""
        return cls((p01,) * bits, (p10,) * bits)

    @classmethod
    def from_csv(cls, path: str | Path) -> FlipRates:
        """Read a table of rates: a row a bit plane, least significant first, columns p01 and p10, header optional.

        Raises:
            InputError: the file cannot be read, or a row is not two numbers in [0, 1).
        """
        text = read_text(Path(path), "table of flip rates", "write a row a bit plane, columns p01,p10")
        try:
            read = list(enumerate(csv.reader(text.splitlines()), 1))
        except csv.Error as error:
            raise InputError(f"{path} is no table ({error}); write a row a bit plane, columns p01,p10") from error
        rows = [(number, row) for number, row in read if any(map(str.strip, row))]
        columns = (0, 1)
        if rows and not _is_number(rows[0][1][0]):
            header = [cell.strip().lower() for cell in rows.pop(0)[1]]
            if sorted(header) != ["p01", "p10"]:
                raise InputError(f"{path}: the header is {','.join(header)}; it must be p01,p10")
            columns = (header.index("p01"), header.index("p10"))
        if not rows:
            raise InputError(f"{path} holds no flip rates: write a row a bit plane, columns p01,p10")
        for number, row in rows:
            if len(row) != 2 or not all(map(_is_number, row)):
                raise InputError(f"{path}, line {number}: {','.join(row)!r} is not two numbers p01,p10")
        try:
            return cls(*(tuple(float(row[column]) for _, row in rows) for column in columns))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    @property
    def bits(self) -> int:
        """Number of bit planes."""
        return len(self.p01)

    @property
    def is_zero(self) -> bool:
        """Whether no plane ever flips."""
        return not any(self.p01) and not any(self.p10)

    def truncated(self, bits: int) -> FlipRates:
        """The rates of the first (least significant) ``bits`` planes; an InputError if there are fewer."""
        if not 1 <= bits <= self.bits:
            raise InputError(f"flip rates are given for {self.bits} bit planes, but {bits} are needed")
        return FlipRates(self.p01[:bits], self.p10[:bits])

    def protect(self, planes: Iterable[int], residual: float = 0.0) -> FlipRates:
        """The rates with ``planes`` set to the symmetric ``residual`` rate that their protection leaves."""
        chosen = set(planes)
        if outside := [plane for plane in chosen if not 0 <= plane < self.bits]:
            raise InputError(f"cannot protect plane {min(outside)}: planes are 0 to {self.bits - 1}")
        p01 = tuple(residual if plane in chosen else rate for plane, rate in enumerate(self.p01))
        p10 = tuple(residual if plane in chosen else rate for plane, rate in enumerate(self.p10))
        return FlipRates(p01, p10)

    def scaled(self, factor: float) -> FlipRates:
        """All rates times ``factor`` (a margin); an InputError that names the factor if one leaves [0, 1)."""
        if not (math.isfinite(factor) and factor >= 0.0):
            raise InputError(f"margin {factor:g} must be a finite number, 0 or larger")
        try:
            return FlipRates(tuple(factor * rate for rate in self.p01), tuple(factor * rate for rate in self.p10))
        except InputError as error:
            raise InputError(f"margin {factor:g} is too large: {error}") from error

    def as_array(self) -> NDArray[np.float32]:
        """Float32 [2, planes], row 0 is 0→1, row 1 is 1→0: the form that the FaultInject operator takes."""
        return np.array([self.p01, self.p10], dtype=np.float32)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _kron(left: FloatArray, right: FloatArray) -> FloatArray:
    return np.asarray(np.kron(left, right), dtype=np.float64)


@lru_cache(maxsize=512)
def _factors(rates: FlipRates) -> tuple[FloatArray, ...]:
    """Kronecker factors of the transition matrix, most significant planes first, up to 64 x 64 each."""
    factors = []
    for top in range(rates.bits, 0, -_FACTOR_PLANES):
        factor = np.ones((1, 1))
        for plane in range(top - 1, max(top - _FACTOR_PLANES, 0) - 1, -1):
            p01, p10 = rates.p01[plane], rates.p10[plane]
            factor = _kron(factor, np.array([[1.0 - p01, p01], [p10, 1.0 - p10]]))
        factor.flags.writeable = False
        factors.append(factor)
    return tuple(factors)


def transition_matrix(rates: FlipRates) -> FloatArray:
    """Dense P[u, v], float64 [2^B, 2^B]: the probability that the stored word u (row) is read as v (column)."""
    if rates.bits > MAX_BITS:
        raise InputError(f"a transition matrix of {rates.bits}-bit words does not fit: give 1 to {MAX_BITS} planes")
    matrix = np.ones((1, 1))
    for factor in _factors(rates):
        matrix = _kron(matrix, factor)
    return matrix


def transition_rows(rates: FlipRates, words: NDArray[np.int64]) -> FloatArray:
    """Rows P[u, :] of the transition matrix for some stored words: float64 [len(words), 2^B]."""
    rows = np.ones((len(words), 1))
    shift = rates.bits
    for factor in _factors(rates):
        shift -= len(factor).bit_length() - 1
        part = factor[(words >> shift) & (len(factor) - 1)]
        rows = (rows[:, :, None] * part[:, None, :]).reshape(len(words), -1)
    return rows


def _apply(factors: Iterable[FloatArray], array: ArrayLike, axis: int, words: int) -> FloatArray:
    values = np.moveaxis(np.asarray(array, dtype=np.float64), axis, -1)
    shape = values.shape
    if shape[-1] != words:
        raise InputError(f"axis {axis} of the array has length {shape[-1]}; these flip rates are of {words} words")
    right = words
    flat = np.ascontiguousarray(values).reshape(-1, words)
    for factor in factors:
        size = len(factor)
        right //= size
        # The words of one factor are the middle axis: more significant planes left of it, less significant ones right.
        flat = flat.reshape(-1, size) @ factor.T if right == 1 else np.matmul(factor, flat.reshape(-1, size, right))
    return np.moveaxis(flat.reshape(shape), -1, axis)


def apply_transition(rates: FlipRates, f: ArrayLike, axis: int = -1) -> FloatArray:
    """``P @ f``: the expectation of ``f[v]`` given each stored word u.

    Args:
        rates: the channel, B planes.
        f: numbers indexed by the read word along ``axis``, which has length 2^B; other axes are batch axes.
        axis: the axis of words.

    Returns:
        Float64, the shape of ``f``, indexed by the stored word along ``axis``.
    """
    return _apply(_factors(rates), f, axis, 1 << rates.bits)


def apply_transition_transposed(rates: FlipRates, g: ArrayLike, axis: int = -1) -> FloatArray:
    """``g @ P``: what a measure over stored words becomes as a measure over read words.

    Args:
        rates: the channel, B planes.
        g: numbers indexed by the stored word along ``axis``, which has length 2^B; other axes are batch axes.
        axis: the axis of words.

    Returns:
        Float64, the shape of ``g``, indexed by the read word along ``axis``.
    """
    return _apply([factor.T for factor in _factors(rates)], g, axis, 1 << rates.bits)


def moments(rates: FlipRates, values: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Mean and variance of ``values[v]`` given each stored word, for any table of values.

    The variance is built plane by plane with the law of total variance, whose terms are all positive: it stays exact to
    rounding for rates of 1e-15 as well, where E[value²] − E[value]² has no digit left.

    Args:
        rates: the channel, B planes.
        values: float [2^B], the value that each read word stands for.

    Returns:
        (mean, variance), float64 [2^B] each, indexed by the stored word.
    """
    mean = np.array(values, dtype=np.float64)
    if mean.shape != (1 << rates.bits,):
        raise InputError(
            f"the table of values has shape {mean.shape}; {rates.bits}-bit words need {1 << rates.bits} values"
        )
    variance = np.zeros_like(mean)
    for plane in range(rates.bits):
        pair = (-1, 2, 1 << plane)  # the middle axis is the bit of this plane
        mean, variance = mean.reshape(pair), variance.reshape(pair)
        flip = np.array([rates.p01[plane], rates.p10[plane]])[:, None]
        gap = mean[:, ::-1] - mean
        variance = (1.0 - flip) * variance + flip * variance[:, ::-1] + flip * (1.0 - flip) * gap**2
        mean = mean + flip * gap
    return mean.ravel(), variance.ravel()


def linear_moments(rates: FlipRates, place_values: ArrayLike, offset: float = 0.0) -> tuple[FloatArray, FloatArray]:
    """Closed form of :func:`moments` for a value that is linear in the bits, ``offset + Σ_k c_k v_k``.

    mean(u) = offset + Σ_k c_k [(1 − p01_k − p10_k) u_k + p01_k];  variance(u) = Σ_k c_k² r_k(1 − r_k), where r_k is
    p10_k if bit k of u is 1 and p01_k if it is 0.

    Args:
        rates: the channel, B planes.
        place_values: float [B], c_k, least significant first; two's complement has c_{B−1} = −2^{B−1}.
        offset: the value of the word 0.

    Returns:
        (mean, variance), float64 [2^B] each, indexed by the stored word.
    """
    place = np.asarray(place_values, dtype=np.float64)
    if place.shape != (rates.bits,):
        raise InputError(f"place values have shape {place.shape}; {rates.bits}-bit words need {rates.bits}")
    ones = (np.arange(1 << rates.bits)[:, None] >> np.arange(rates.bits)) & 1 == 1
    p01, p10 = np.array(rates.p01), np.array(rates.p10)
    flip = np.where(ones, p10, p01)
    return offset + np.where(ones, 1.0 - p10, p01) @ place, (flip * (1.0 - flip)) @ place**2


def _entropy(p: float) -> float:
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1.0 - p) * math.log2(1.0 - p)


def _plane_capacity(p01: float, p10: float) -> float:
    slope = 1.0 - p01 - p10
    if abs(slope) < 1e-9:  # the output no longer depends on the input; capacity is of the order of slope²
        return 0.0
    h01, h10 = _entropy(p01), _entropy(p10)
    return max(0.0, (p01 * h10 - (1.0 - p10) * h01) / slope + math.log2(1.0 + 2.0 ** ((h01 - h10) / slope)))


def capacity(rates: FlipRates) -> float:
    """Shannon capacity of a stored word in bits: the sum over planes of the binary asymmetric channel's capacity.

    Closed form of the binary asymmetric channel (Cover & Thomas, Elements of Information Theory, ch. 7; the Z channel
    is its case p01 = 0): C = [p01 H(p10) − (1−p10) H(p01)]/(1−p01−p10) + log2(1 + 2^([H(p01) − H(p10)]/(1−p01−p10))).
    """
    return sum(map(_plane_capacity, rates.p01, rates.p10))


def gaussian_noise_to_signal_bound(capacity: float) -> float:
    """Least mean-square error over variance of a Gaussian weight stored in ``capacity`` bits: 2^(−2·capacity).

    Shannon's rate–distortion function at the channel's capacity; reached only by codes over many weights at once.
    """
    return float(2.0 ** (-2.0 * capacity))
