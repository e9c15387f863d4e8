"""Weights that are described twice: two stored words a weight, read together.

Beyond 12 bits a code book is no longer a table of everything that can be read: 2^20 numbers would outweigh the words.
But at the flip rates where long words pay only a few dozen different words are ever stored. Such a code is the list of
its cells: the word of each, the share of the weights that it holds and their mean. What a read word stands for follows
exactly, by Bayes' rule on a memoryless channel, from the two halves of the word:

    E[x | v1, v2] = Σ_c share_c mean_c P[u1_c, v1] P[u2_c, v2] / Σ_c share_c P[u1_c, v1] P[u2_c, v2],

two small matrix products for all pairs (v1, v2) at once. A hardened model computes them when it is loaded; its file
holds the list alone.

The design anneals the words of the cells under the pairwise bound of the error, Σ √(share_a share_b) (mean_a − mean_b)²
z^d(a, b), with d the Hamming distance and z the Bhattacharyya coefficient of one bit, √(p01 (1 − p10)) + √(p10 (1 −
p01)) (the union–Bhattacharyya bound: Proakis & Salehi, Digital Communications, ch. 6), and then alternates the exact
decoder with the exact encoder on the words that were found (Farvardin & Vaishampayan 1987). The bound takes no product
over 2^bits words, so that words may be long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qtaml_onnx.channel import FlipRates, FloatArray, transition_rows
from qtaml_onnx.errors import InputError
from qtaml_onnx.storage.channel_optimized import (
    Source,
    companded_boundaries,
    group_weights,
    lower_envelope,
    standard_sources,
)
from qtaml_onnx.storage.codes import IntArray
from qtaml_onnx.storage.readout import ErrorMoments, WordSums

__all__ = [
    "LONGEST_PAIR",
    "TWO_WORDS",
    "TwoWordCode",
    "cell_sums",
    "design_two_words",
    "long_word_sums",
    "pair_list_bits",
    "pair_moments",
    "pair_slope",
]

TWO_WORDS = "two-words"
"""The kind of these codes."""

LONGEST_PAIR = 20
"""Most bits of both words together: the table of all pairs is made when a model is loaded."""

LEAST_RATE = 1e-12
"""Stands in for a flip rate of 0 in a read-out, so that no pair has probability 0."""

_CHUNK = 1 << 20
_MOST_SORTED = 1 << 20  # weights that a design sees
_CELLS = (16, 32, 64, 128)  # numbers of cells that a reference is annealed with
_STEPS = 5000
_PILOT = 3  # alternations that each number of cells gets before the best goes on
_HOT, _COLD = 2e-2, 2e-6  # first and last temperature over the bound's value a cell
_ALTERNATIONS = 40
_TOLERANCE = 1e-5
_GRID_BITS = 10


@dataclass(frozen=True, eq=False)
class TwoWordCode:
    """A map from normalised weight to a pair of words, and the read-out of pairs.

    Attributes:
        bits: Of both words together, 2 to 24; the second word has the lower half of them, rounded down.
        boundaries: float64 [cells − 1], non-decreasing; cell i is [boundaries[i−1], boundaries[i]).
        words: int64 [cells], the long word of each cell: first word · 2^(bits of the second) + second word.
        shares: float64 [cells], share of the weights in each cell, half precision.
        means: float64 [cells], their mean, half precision.
        p01: Flip rate from 0 to 1 of every plane that the read-out is made for.
        p10: The same from 1 to 0.

    Raises:
        InputError: shapes or values that do not fit together.
    """

    bits: int
    boundaries: FloatArray
    words: IntArray
    shares: FloatArray
    means: FloatArray
    p01: float
    p10: float

    name = TWO_WORDS

    def __post_init__(self) -> None:
        """Freeze and check the arrays."""
        for field, dtype in (("boundaries", np.float64), ("words", np.int64), ("shares", np.float64), ("means", float)):
            array = np.array(getattr(self, field), dtype=dtype)
            array.flags.writeable = False
            object.__setattr__(self, field, array)
        cells = self.words.shape
        if not 2 <= self.bits <= 24 or len(cells) != 1 or not cells[0]:
            raise InputError(f"a code of two words has 2 to 24 bits and at least one cell, not {self.bits}")
        if self.boundaries.shape != (cells[0] - 1,) or self.shares.shape != cells or self.means.shape != cells:
            raise InputError(f"a code of two words with {cells[0]} cells lacks boundaries, shares or means")
        if self.words.min() < 0 or self.words.max() >= 1 << self.bits:
            raise InputError(f"a pair of words does not fit in {self.bits} bits")
        if np.isnan(self.boundaries).any() or (np.diff(self.boundaries) < 0).any():
            raise InputError("the boundaries of a code of two words are not sorted")
        if not (np.isfinite(self.means).all() and np.isfinite(self.shares).all() and (self.shares > 0).all()):
            raise InputError("the cells of a code of two words need finite means and positive shares")
        if not all(0 < rate < 1 for rate in (self.p01, self.p10)):
            raise InputError("the read-out of a code of two words needs flip rates between 0 and 1")

    def __eq__(self, other: object) -> bool:
        """Equality of all fields, arrays by value."""
        return self._key() == other._key() if isinstance(other, TwoWordCode) else NotImplemented

    def __hash__(self) -> int:
        """Hash of all fields, arrays by value."""
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        arrays = (self.boundaries, self.words, self.shares, self.means)
        return self.bits, *(tuple(array) for array in arrays), self.p01, self.p10

    @property
    def lengths(self) -> tuple[int, int]:
        """Bits of the first and of the second word."""
        return self.bits - self.bits // 2, self.bits // 2

    def halves(self) -> tuple[IntArray, IntArray]:
        """The first and the second word of each cell."""
        low = self.lengths[1]
        return self.words >> low, self.words & ((1 << low) - 1)

    def cells(self, x: ArrayLike) -> IntArray:
        """The cell of each weight: the number of boundaries that are at most x. Int64, the shape of ``x``."""
        return np.asarray(np.searchsorted(self.boundaries, np.asarray(x), side="right"), dtype=np.int64)

    def encode(self, x: ArrayLike) -> NDArray[np.uint32]:
        """The long words of normalised weights, uint32, the shape of ``x``; an InputError if one is not finite."""
        flat = np.ravel(np.asarray(x))
        words = np.empty(flat.shape, dtype=np.uint32)
        table = self.words.astype(np.uint32)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            if not np.isfinite(part).all():
                raise InputError("a weight is NaN or infinite; mend the model's weights")
            words[start : start + _CHUNK] = table[self.cells(part)]
        return words.reshape(np.shape(x))

    @cached_property
    def table(self) -> NDArray[np.float32]:
        """E[x | v] of every pair of read words, float32 [2^bits] by long word; computed in double precision."""
        return self._table.astype(np.float32).ravel()

    @cached_property
    def _table(self) -> FloatArray:
        return _posterior(self.shares, self.means, *self._stored_likelihoods())

    def stored_rates(self) -> FloatArray:
        """[[1 − p01, p01], [p10, 1 − p10]] as a model stores them, in single precision; float64 [2, 2]."""
        rates = np.array([[1 - self.p01, self.p01], [self.p10, 1 - self.p10]])
        return rates.astype(np.float32).astype(np.float64)

    def _stored_likelihoods(self) -> tuple[FloatArray, FloatArray]:
        """P[u, v] of both words of each cell from the stored rates, as the graph multiplies them: top plane first."""
        matrix, found = self.stored_rates(), []
        for words, bits in zip(self.halves(), self.lengths, strict=True):
            rows = np.ones((len(words), 1))
            for plane in reversed(range(bits)):
                rows = (rows[:, :, None] * matrix[words >> plane & 1][:, None, :]).reshape(len(words), -1)
            found.append(rows)
        return found[0], found[1]

    def unsettled(self) -> IntArray:
        """The long words whose read-out may differ in its last place with the order in which doubles are summed.

        Every other entry of `table` is the same float32 number for any order of the sums, with or without fused
        multiply-add: an interval that holds every result, by the error bounds of sums, products and the quotient
        (Higham, Accuracy and Stability of Numerical Algorithms, ch. 3), rounds to one number. Ascending, int64.
        """
        first, second = self._stored_likelihoods()
        weighted = first * self.shares[:, None]
        size = (weighted * np.abs(self.means)[:, None]).T @ second / (weighted.T @ second)
        # Terms are products of at most bits + 8 factors; numerator and denominator have one such error each.
        error = 1.01 * (2 * (len(self.words) + self.bits + 8) + 2) * 2.0**-53 * size
        low, high = ((self._table + sign * 2 * error).astype(np.float32) for sign in (-1, 1))
        return np.flatnonzero((low != high).ravel())

    def likelihoods(self, p01: float, p10: float) -> tuple[FloatArray, FloatArray]:
        """P[u, v] of the first and of the second word of each cell, float64 [cells, 2^bits of the word]."""
        return _likelihoods(self.words, *self.lengths, p01, p10)


def pair_list_bits(code: TwoWordCode) -> int:
    """Bits of the list of cells that a model stores: both words, share and mean of each, and four flip rates."""
    word = 8 if code.lengths[0] <= 8 else 16
    return len(code.words) * (2 * word + 2 * 16) + 4 * 32


def _likelihoods(words: IntArray, high: int, low: int, p01: float, p10: float) -> tuple[FloatArray, FloatArray]:
    first = transition_rows(FlipRates.asymmetric(p01, p10, high), words >> low)
    return first, transition_rows(FlipRates.asymmetric(p01, p10, low), words & ((1 << low) - 1))


def _posterior(shares: FloatArray, means: FloatArray, first: FloatArray, second: FloatArray) -> FloatArray:
    """E[x | v1, v2], float64 [first words, second words]."""
    weighted = first * shares[:, None]
    return np.asarray((weighted * means[:, None]).T @ second / (weighted.T @ second))


def cell_sums(code: TwoWordCode, x: ArrayLike, importance: ArrayLike | None = None) -> WordSums:
    """Count, sum and sum of squares of the weights in each cell, each [cells].

    Args:
        code: The code.
        x: Normalised weights, any shape, at least one.
        importance: How much each weight's squared error matters, broadcastable to ``x``.
    """
    flat = np.ravel(np.asarray(x))
    if not flat.size:
        raise InputError("a code of two words: no weights to take statistics of")
    weight = None if importance is None else np.ravel(np.broadcast_to(np.asarray(importance, float), np.shape(x)))
    sums = np.zeros((3, len(code.words)))
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float64)
        cells = code.cells(flat[start : start + _CHUNK])
        scale = np.ones_like(part) if weight is None else weight[start : start + _CHUNK]
        for row, factor in enumerate((scale, scale * part, scale * part * part)):
            sums[row] += np.bincount(cells, factor, sums.shape[1])
    return WordSums(*sums)


def long_word_sums(code: TwoWordCode, x: ArrayLike) -> WordSums:
    """The same by long word, each [2^bits]; 0 for words that are never stored."""
    found = cell_sums(code, x)
    sums = np.zeros((3, 1 << code.bits))
    sums[:, code.words] = found.count, found.first, found.second
    return WordSums(*sums)


def _cell_moments(code: TwoWordCode, p01: float, p10: float) -> tuple[FloatArray, FloatArray]:
    """Mean and mean square of what the words of each cell are read as."""
    first, second = code.likelihoods(p01, p10)
    table = code._table
    return ((first @ table) * second).sum(axis=1), ((first @ table**2) * second).sum(axis=1)


def pair_slope(code: TwoWordCode, sums: WordSums) -> float:
    """E[read · weight] / E[weight²] under the rates that the read-out is made for; 1 for weights that are all zero."""
    power = float(sums.second.sum())
    return float(sums.first @ _cell_moments(code, code.p01, code.p10)[0]) / power if power > 0 else 1.0


def pair_moments(code: TwoWordCode, p01: float, p10: float, sums: WordSums, gain: float = 1.0) -> ErrorMoments:
    """Exact bias, variance and mean-square error of weights read by the code's table times a gain, under any rates.

    Args:
        code: The code.
        p01: Flip rate from 0 to 1 of every plane of both words.
        p10: The same from 1 to 0.
        sums: Of the weights in each cell.
        gain: Factor on what is read.
    """
    mean, square = _cell_moments(code, p01, p10)
    mean, square = gain * mean, gain**2 * square
    noise = float(sums.count @ np.maximum(square - mean**2, 0.0))
    centre = np.divide(sums.first, sums.count, out=np.zeros_like(mean), where=sums.count > 0)
    scatter = np.maximum(sums.second - sums.first * centre, 0.0)
    kept = float(sums.count @ (mean - centre) ** 2 + scatter.sum())
    bias = float((sums.count @ mean - sums.first.sum()) / sums.total)
    return ErrorMoments(bias, noise / sums.total, (noise + kept) / sums.total)


def design_two_words(
    x: ArrayLike, bits: int, p01: float, p10: float, *, importance: ArrayLike | None = None
) -> TwoWordCode:
    """Designs a code of two words for a set of weights and flip rates that are the same on all planes.

    Args:
        x: Weights, any scale and shape, finite.
        bits: Of both words together, 2 to `LONGEST_PAIR`.
        p01: Flip rate from 0 to 1.
        p10: Flip rate from 1 to 0.
        importance: How much each weight's squared error matters, broadcastable to ``x``.

    Raises:
        InputError: no weights, weights that are not finite, or a word length out of range.
    """
    flat = np.ravel(np.asarray(x))
    if not 2 <= bits <= LONGEST_PAIR:
        raise InputError(f"two words have 2 to {LONGEST_PAIR} bits together, not {bits}")
    if not flat.size or not np.isfinite(flat).all():
        raise InputError("a code of two words needs weights, all of them finite")
    p01, p10 = max(float(p01), LEAST_RATE), max(float(p10), LEAST_RATE)
    weight = None if importance is None else np.ravel(np.broadcast_to(np.asarray(importance, float), np.shape(x)))
    stride = -(-flat.size // _MOST_SORTED)
    source = group_weights(flat[::stride], None if weight is None else weight[::stride])
    best: tuple[float, IntArray, FloatArray] | None = None
    if source.position[0] < source.position[-1]:
        grid = companded_boundaries(source, _GRID_BITS)
        for number, standard in enumerate(standard_sources()):
            words, boundaries = _reference(number, bits, p01, p10)
            carried = np.interp(boundaries, companded_boundaries(standard, _GRID_BITS), grid)
            found = _alternate(source, bits, p01, p10, words, carried)
            best = found if best is None or found[0] < best[0] else best
    words, boundaries = (np.zeros(1, np.int64), np.empty(0)) if best is None else best[1:]
    mass, first = source.cells(boundaries)
    used = mass > 0
    used &= (mass / source.total).astype(np.float16) > 0
    shares = (mass[used] / source.total).astype(np.float16)
    means = (first[used] / mass[used]).astype(np.float16)
    edges = boundaries[np.flatnonzero(used)[1:] - 1]  # an empty cell goes to the one above it
    return TwoWordCode(bits, edges, words[used], shares, means, _single(p01), _single(p10))


def _single(rate: float) -> float:
    """A rate as a model stores it, in single precision."""
    return float(np.float32(rate))


def _alternate(
    source: Source,
    bits: int,
    p01: float,
    p10: float,
    words: IntArray,
    boundaries: FloatArray,
    rounds: int = _ALTERNATIONS,
) -> tuple[float, IntArray, FloatArray]:
    """Alternates the exact decoder with the exact encoder among the words; mean-square error, words, boundaries."""
    low = bits // 2
    first, second = _likelihoods(words, bits - low, low, p01, p10)
    best = (math.inf, words, boundaries)
    for _ in range(rounds):
        mass, sums = source.cells(boundaries) / source.total
        live = mass > 0
        table = _posterior(mass[live], sums[live] / mass[live], first[live], second[live])
        m1, m2 = ((first @ table) * second).sum(axis=1), ((first @ table**2) * second).sum(axis=1)
        error = source.second / source.total - float(2 * sums @ m1 - mass @ m2)
        if error > best[0] * (1 - _TOLERANCE):
            return min(best, (error, words, boundaries), key=lambda found: found[0])
        best = (error, words, boundaries)
        kept, boundaries = lower_envelope(m1, m2)
        words, first, second = words[kept], first[kept], second[kept]
    return best


@lru_cache(maxsize=256)
def _reference(number: int, bits: int, p01: float, p10: float) -> tuple[IntArray, FloatArray]:
    """Words and boundaries for one of the standard sources, the best of several numbers of cells."""
    source = standard_sources()[number]
    fine = companded_boundaries(source, _GRID_BITS)
    best: tuple[float, IntArray, FloatArray] | None = None
    for cells in _CELLS:
        if cells > 1 << bits:
            continue
        edges = fine[np.linspace(0, len(fine) - 1, cells + 1).astype(np.int64)[1:-1]]
        mass, first = source.cells(edges)
        edges = edges[np.flatnonzero(mass)[1:] - 1]
        first, mass = first[mass > 0], mass[mass > 0]
        words = _annealed(first / mass, mass / source.total, bits, _confusion(p01, p10), seed=cells)
        found = _alternate(source, bits, p01, p10, words, edges, _PILOT)
        if best is None or found[0] < best[0]:
            best = found
    if best is None:
        return np.arange(1 << bits), companded_boundaries(source, bits)
    return _alternate(source, bits, p01, p10, best[1], best[2])[1:]


def _confusion(p01: float, p10: float) -> float:
    """Bhattacharyya coefficient of the two states of a bit."""
    return min(1.0, math.sqrt(p01 * (1 - p10)) + math.sqrt(p10 * (1 - p01)))


def _annealed(position: FloatArray, share: FloatArray, bits: int, z: float, seed: int) -> IntArray:
    """Words of cells that keep the pairwise bound of the error small: a heat bath over one bit of one cell a step."""
    rng, count = np.random.default_rng(seed), len(position)
    weight = np.sqrt(share[:, None] * share) * (position[:, None] - position) ** 2
    planes = rng.integers(0, 2, (count, bits)).astype(np.bool_)
    confusion = z ** np.arange(bits + 2)  # a cell's distance to itself may seem to be −1: the last entry, of weight 0
    distance = (planes[:, None] != planes[None]).sum(axis=2)
    energy = best = float((weight * confusion[distance]).sum() / 2)
    kept = planes.copy()
    for heat in np.geomspace(_HOT * best / count, _COLD * best / count, _STEPS):
        cell = int(rng.integers(count))
        moved = distance[cell][:, None] + 1 - 2 * (planes != planes[cell])
        scores = np.append(weight[cell] @ confusion[moved], weight[cell] @ confusion[distance[cell]])
        chance = np.cumsum(np.exp((scores.min() - scores) / heat))
        plane = int(np.searchsorted(chance, rng.random() * chance[-1]))
        if plane < bits:
            planes[cell, plane] ^= True
            distance[cell] = distance[:, cell] = moved[:, plane]
            distance[cell, cell] = 0
            energy += float(scores[plane] - scores[-1])
            if energy < best:
                best, kept = energy, planes.copy()
    return np.asarray((kept.astype(np.int64) << np.arange(bits)).sum(axis=1))
