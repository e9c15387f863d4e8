"""Read-outs: which number a received word stands for.

A read-out of a ``bits``-bit code is a table of 2^bits normalised weights; the affine ones are a scale and an offset on
the code's plain levels as well. All are designed at compile time from the clean weights; a table read at load costs
nothing at inference. Every statistic is exact for the real weights, quantisation error included: the weights enter
through their count, sum and sum of squares per stored word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qtaml_onnx.channel import FlipRates, FloatArray, apply_transition, apply_transition_transposed, moments
from qtaml_onnx.errors import InputError
from qtaml_onnx.storage.codes import CHUNK, Code

__all__ = [
    "READOUT_KINDS",
    "ErrorMoments",
    "ReadOut",
    "WordSums",
    "affine",
    "bitwise_affine",
    "design_readout",
    "error_moments",
    "linear_mmse",
    "plain",
    "posterior_mean",
    "posterior_table",
    "restored_posterior_mean",
    "word_sums",
]

_UNREACHABLE = 1e-200  # below this probability (relative) a word's posterior has underflowed or is undefined
_FLOOR = 1e-12  # flip rate that stands in for 0 where the limit of a posterior is wanted


@dataclass(frozen=True, eq=False)
class WordSums:
    """What a read-out needs to know of the weights: sums over those stored as each word, each [2^bits], float64.

    Attributes:
        count: total importance (the number of weights if none is given).
        first: importance-weighted sum of normalised weights.
        second: importance-weighted sum of their squares.
    """

    count: FloatArray
    first: FloatArray
    second: FloatArray

    @classmethod
    def from_histogram(cls, counts: ArrayLike, levels: ArrayLike) -> WordSums:
        """Sums of weights that are exactly at the levels: for integer weights that were quantised before."""
        count, value = np.asarray(counts, dtype=np.float64), np.asarray(levels, dtype=np.float64)
        return cls(count, count * value, count * value**2)

    @property
    def total(self) -> float:
        """Total importance of all weights."""
        return float(self.count.sum())

    @property
    def mean(self) -> float:
        """Mean of the normalised weights."""
        return float(self.first.sum() / self.total)

    @property
    def variance(self) -> float:
        """Variance of the normalised weights."""
        return max(0.0, float(self.second.sum() / self.total) - self.mean**2)


def word_sums(code: Code, x: ArrayLike, importance: ArrayLike | None = None) -> WordSums:
    """Count, sum and sum of squares of the weights that ``code`` stores as each word.

    Args:
        code: the code.
        x: normalised weights, any shape, at least one.
        importance: how much each weight's squared error matters, broadcastable to ``x``, non-negative, not all zero;
            where channels have scales of their own, the squared scale turns the error into weight units.

    Raises:
        InputError: no weights, or an importance that is negative, not finite, or zero everywhere.
    """
    values = np.asarray(x)
    if not values.size:
        raise InputError(f"code {code.name}: no weights to take statistics of")
    flat = np.ravel(values)
    weight = None if importance is None else np.ravel(np.broadcast_to(np.asarray(importance, np.float64), values.shape))
    if weight is not None and not (np.isfinite(weight).all() and weight.min() >= 0.0 and weight.max() > 0.0):
        raise InputError("importance must be finite, non-negative and not zero everywhere")
    size = 1 << code.bits
    sums = np.zeros((3, size))
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        sums += sums_by(code.encode(part), part, size, None if weight is None else weight[start : start + CHUNK])
    return WordSums(*sums)


def sums_by(
    index: NDArray[np.integer], x: NDArray[np.floating], size: int, importance: FloatArray | None = None
) -> FloatArray:
    """Count, sum and sum of squares of the numbers ``x`` by an index below ``size``: float64 [3, size]."""
    index, value = index.astype(np.intp, copy=False), x.astype(np.float64)
    if importance is None:
        counts = np.bincount(index, minlength=size)
        first, square = value, value * value
    else:
        counts = np.bincount(index, importance, size)
        first = importance * value
        square = first * value
    return np.stack([counts, np.bincount(index, first, size), np.bincount(index, square, size)])


@dataclass(frozen=True, eq=False)
class ReadOut:
    """A decoder of stored words.

    Attributes:
        kind: its name, one of :data:`READOUT_KINDS`.
        table: float64 [2^bits], the normalised weight that each read word stands for; read-only.
        affine: (scale, offset) if ``table = scale · levels + offset`` on the code's plain levels, else None.
    """

    kind: str
    table: FloatArray
    affine: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Freeze and check the table."""
        table = np.array(self.table, dtype=np.float64)
        if table.ndim != 1 or not np.isfinite(table).all():
            raise InputError(f"read-out {self.kind}: the table must be a vector of finite numbers")
        table.flags.writeable = False
        object.__setattr__(self, "table", table)

    def __eq__(self, other: object) -> bool:
        """Equality of all fields, the table by value."""
        if not isinstance(other, ReadOut):
            return NotImplemented
        return (self.kind, self.affine, tuple(self.table)) == (other.kind, other.affine, tuple(other.table))

    def __hash__(self) -> int:
        """Hash of all fields, the table by value."""
        return hash((self.kind, self.affine, tuple(self.table)))


def _check(code: Code, rates: FlipRates, sums: WordSums) -> None:
    if rates.bits != code.bits:
        raise InputError(f"code {code.name} has {code.bits} bits, the flip rates are given for {rates.bits}")
    if sums.count.shape != (1 << code.bits,) or not sums.total > 0.0:
        raise InputError(f"code {code.name}: the sums are not those of any {code.bits}-bit words")


def _on_levels(kind: str, code: Code, scale: float, offset: float) -> ReadOut:
    return ReadOut(kind, scale * code.levels + offset, (scale, offset))


def plain(code: Code, rates: FlipRates, sums: WordSums) -> ReadOut:
    """The code's own levels, as if no bit ever flipped. Biased by the channel's drift."""
    _check(code, rates, sums)
    return _on_levels("plain", code, 1.0, 0.0)


def affine(code: Code, rates: FlipRates, sums: WordSums) -> ReadOut:
    """Undo the affine mean drift with one scale and one offset.

    The mean of the read level is fitted by a·level + b over the stored words, and the read-out is (level − b)/a. For
    codes linear in the bits and equal rates on all planes the fit is exact (a = 1 − p01 − p10) and the result unbiased.

    Raises:
        InputError: a is not positive (p01 + p10 ≥ 1), so that the drift has no inverse.
    """
    _check(code, rates, sums)
    drifted = apply_transition(rates, code.levels)
    weight = sums.count
    if np.ptp(code.levels[weight > 0.0]) == 0.0:  # one level in use fixes no line: fit over all words
        weight = np.ones_like(weight)
    mean = weight @ code.levels / weight.sum()
    slope = float(weight @ ((code.levels - mean) * drifted) / (weight @ (code.levels - mean) ** 2))
    if slope <= 1e-9:
        raise InputError(
            f"affine read-out of {code.name}: the mean drift has slope {slope:.3g} (p01 + p10 ≥ 1) and no inverse; "
            "lower the flip rates or take posterior-mean"
        )
    offset = float(weight @ drifted / weight.sum() - slope * mean)
    return _on_levels("affine", code, 1.0 / slope, -offset / slope)


def bitwise_affine(code: Code, rates: FlipRates, sums: WordSums) -> ReadOut:
    """The unbiased read-out: P⁻¹ applied to the levels, so that E[table[v] | u] = level[u] for any rates.

    The inverse is a Kronecker product too. For levels linear in the bits it is the bitwise affine correction
    Σ_k c_k (v_k − p01_k)/(1 − p01_k − p10_k); for other codes (Gray, sign-magnitude) it is its generalisation.

    Raises:
        InputError: p01 + p10 ≥ 1 on some plane, where the inverse does not exist or turns the bit round.
    """
    _check(code, rates, sums)
    table = np.array(code.levels)
    for plane, (p01, p10) in enumerate(zip(rates.p01, rates.p10, strict=True)):
        if p01 + p10 >= 1.0:
            raise InputError(
                f"bitwise-affine read-out: plane {plane} has p01 + p10 = {p01 + p10:g} ≥ 1, which has no inverse; "
                "lower the flip rates or take posterior-mean"
            )
        pair = table.reshape(-1, 2, 1 << plane)
        low, high = pair[:, 0].copy(), pair[:, 1].copy()
        pair[:, 0] = ((1.0 - p10) * low - p01 * high) / (1.0 - p01 - p10)
        pair[:, 1] = ((1.0 - p01) * high - p10 * low) / (1.0 - p01 - p10)
    return ReadOut("bitwise-affine", table)


def linear_mmse(code: Code, rates: FlipRates, sums: WordSums) -> ReadOut:
    """The line in the read level with the least mean-square error: the regression of the weight on it."""
    _check(code, rates, sums)
    drifted, spread = moments(rates, code.levels)
    share = sums.count / sums.total
    mean = share @ drifted
    variance = share @ (spread + (drifted - mean) ** 2)
    covariance = sums.first @ (drifted - mean) / sums.total
    slope = float(covariance / variance) if variance > 0.0 else 0.0
    return _on_levels("linear-mmse", code, slope, float(sums.mean - slope * mean))


def posterior_table(rates: FlipRates, count: FloatArray, first: FloatArray) -> FloatArray:
    """E[x | v] for every read word, from the count and the sum of the weights stored as each word.

    Words that cannot be read (rate 0 on some plane) take the limit of their posterior as that rate falls to zero.
    All arguments and the result are float64 [2^bits].
    """
    sums = np.stack([count, first])
    read = apply_transition_transposed(rates, sums)
    reachable = read[0] > _UNREACHABLE * count.sum()
    table: FloatArray = np.divide(read[1], read[0], out=np.zeros_like(first), where=reachable)
    if not reachable.all():
        floor = FlipRates(tuple(max(r, _FLOOR) for r in rates.p01), tuple(max(r, _FLOOR) for r in rates.p10))
        read = apply_transition_transposed(floor, sums)
        table[~reachable] = (read[1] / read[0])[~reachable]
    return table


def posterior_mean(code: Code, rates: FlipRates, sums: WordSums) -> ReadOut:
    """E[x | v]: the least mean-square error of all read-outs of this code.

    Words that cannot be read (rate 0 on some plane) take the limit of their posterior as that rate falls to zero.
    """
    _check(code, rates, sums)
    return ReadOut("posterior-mean", posterior_table(rates, sums.count, sums.first))


def restored_posterior_mean(code: Code, rates: FlipRates, sums: WordSums, strength: float = 1.0) -> ReadOut:
    """The posterior mean d with its shrinkage undone: μ + (d − μ)/g^strength, g = Var[d(v)]/Var[x].

    For the posterior mean Cov[d, x] = Var[d], so that strength 1 gives the regression of the read-out on the weight
    slope 1: no shrinkage of the weights on average. Of all read-outs with that slope it has the least mean-square error
    (minimise E[T²] subject to E[T x] = E[x²] on centred variables: T ∝ E[x | v]). It suits layers that add up many
    weights, where independent errors average out and a common gain does not. Strength 1/2 gives the read-out the
    weights' own variance, strength 0 is the posterior mean.

    Where the weights are all equal, or the channel carries nothing (g = 0), it stays the posterior mean.
    """
    _check(code, rates, sums)
    table = posterior_table(rates, sums.count, sums.first)
    mean, variance = sums.mean, sums.variance
    received = apply_transition_transposed(rates, sums.count) / sums.total
    decoded = float(np.dot(received, (table - mean) ** 2))
    if variance > 0.0 and decoded > 1e-12 * variance:
        table = mean + (table - mean) / min(1.0, decoded / variance) ** strength
    return ReadOut("restored-posterior-mean", table)


_DESIGNS: dict[str, Callable[[Code, FlipRates, WordSums], ReadOut]] = {
    "plain": plain,
    "affine": affine,
    "bitwise-affine": bitwise_affine,
    "linear-mmse": linear_mmse,
    "posterior-mean": posterior_mean,
    "restored-posterior-mean": restored_posterior_mean,
}

READOUT_KINDS = tuple(_DESIGNS)
"""Names of the read-outs."""


def design_readout(kind: str, code: Code, rates: FlipRates, sums: WordSums) -> ReadOut:
    """The read-out of the given kind; an InputError names the kinds there are."""
    if kind not in _DESIGNS:
        raise InputError(f"unknown read-out {kind!r}: choose from {', '.join(READOUT_KINDS)}")
    return _DESIGNS[kind](code, rates, sums)


@dataclass(frozen=True)
class ErrorMoments:
    """Exact error statistics of read weights against the real ones, in units of the normalised weight (squared).

    Attributes:
        bias: mean error over weights and faults.
        variance: mean over the weights of the variance that the faults cause: the noise alone.
        mse: mean-square error: the noise, the bias that each weight keeps, and the quantisation.
    """

    bias: float
    variance: float
    mse: float


def error_moments(readout: ReadOut, rates: FlipRates, sums: WordSums) -> ErrorMoments:
    """Bias, variance and mean-square error of a read-out under ``rates``: its own, or others than it was designed for.

    Exact for the weights behind ``sums`` (their importance included), by the Kronecker factors of the channel.

    Raises:
        InputError: the table, the rates and the sums are not of one word length.
    """
    mean, variance = moments(rates, readout.table)
    if sums.count.shape != mean.shape:
        raise InputError(f"read-out {readout.kind} has {mean.size} words, the sums have {sums.count.size}")
    noise = float(sums.count @ variance)
    used = sums.count > 0.0
    centre = np.divide(sums.first, sums.count, out=np.zeros_like(mean), where=used)
    scatter = np.maximum(
        sums.second - sums.first * centre, 0.0
    )  # quantisation: the spread of the weights within a cell
    kept = float(sums.count @ (mean - centre) ** 2 + scatter.sum())
    bias = float((sums.count @ mean - sums.first.sum()) / sums.total)
    return ErrorMoments(bias, noise / sums.total, (noise + kept) / sums.total)
