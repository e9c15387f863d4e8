"""Codes: which stored word stands for which weight.

A code cuts the real line of normalised weights ``x = w / scale`` into intervals and gives each a word of ``bits`` bits.
``scale`` is the largest magnitude of the tensor or of the output channel, so that ``x`` fills [−1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qtaml_onnx.channel import FlipRates, FloatArray
from qtaml_onnx.errors import InputError

__all__ = [
    "BINS",
    "CHUNK",
    "UNIFORM_KINDS",
    "Bins",
    "Code",
    "best_mask",
    "index_probabilities",
    "plain_levels",
    "uniform_code",
    "word_dtype",
    "word_histogram",
]

IntArray = NDArray[np.int64]
WordArray = NDArray[np.uint8] | NDArray[np.uint16]

MAX_BITS = 16
CHUNK = 1 << 17  # weights worked on at a time: what is computed on the way stays in the processor's cache
_MIXED = 1 << MAX_BITS  # no word
BINS = 1 << 16  # enough that almost every weight is in a bin without a boundary


def word_dtype(bits: int) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
    """The smallest unsigned type that holds a word of ``bits`` bits (1 to 16)."""
    if not 1 <= bits <= MAX_BITS:
        raise InputError(f"word length {bits} is not supported: words have 1 to {MAX_BITS} bits")
    return np.dtype(np.uint8) if bits <= 8 else np.dtype(np.uint16)


@dataclass(frozen=True)
class Bins:
    """Bins of equal width, number 0 to `BINS` − 1, from a lowest to a highest number.

    The bin of a number never falls as the number grows, so that a bin without a boundary lies in one cell of a code.
    """

    low: np.float32
    scale: np.float32

    @classmethod
    def between(cls, low: np.floating, high: np.floating) -> Bins | None:
        """Bins from `low` to `high`; None where they have no finite width."""
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            scale = np.float32(BINS - 1) / (np.float32(high) - np.float32(low))
        return cls(np.float32(low), scale) if np.isfinite(low) and np.isfinite(scale) and scale > 0 else None

    def index(self, x: NDArray[np.float32]) -> NDArray[np.intp]:
        """The bin of each number; what is below or above all bins is in the first or the last."""
        with np.errstate(over="ignore"):
            place = np.subtract(x, self.low)
            place *= self.scale
        return np.clip(place, np.float32(0), np.float32(BINS - 1), out=place).astype(np.intp)

    def cells(self, boundaries: NDArray[np.float32]) -> tuple[IntArray, NDArray[np.bool_]]:
        """The cell between these boundaries of each bin, int64 [BINS], and whether a boundary is in the bin, bool."""
        held = self.index(boundaries)
        mixed = np.zeros(BINS, dtype=np.bool_)
        mixed[held] = True
        return np.searchsorted(held, np.arange(BINS)).astype(np.int64), mixed


@dataclass(frozen=True, eq=False)
class Code:
    """A map from normalised weight to stored word: an interval partition of the real line, a word for each cell.

    Attributes:
        name: the code's name, for example ``twos-complement``.
        bits: word length.
        boundaries: float64 [n − 1], non-decreasing decision thresholds; cell i is [boundaries[i−1], boundaries[i]).
        words: int64 [n], the word of each cell, in [0, 2^bits).
        levels: float64 [2^bits], the normalised weight that each *word* stands for when it is read plainly; words that
            no cell uses have one as well.

    Arrays are copied and made read-only. Two codes are equal if all their fields are.

    Raises:
        InputError: shapes or values that do not fit together.
    """

    name: str
    bits: int
    boundaries: FloatArray
    words: IntArray
    levels: FloatArray

    def __post_init__(self) -> None:
        """Freeze and check the arrays."""
        word_dtype(self.bits)
        for field, dtype in (("boundaries", np.float64), ("words", np.int64), ("levels", np.float64)):
            array = np.array(getattr(self, field), dtype=dtype)
            array.flags.writeable = False
            object.__setattr__(self, field, array)
        if self.words.ndim != 1 or not len(self.words) or self.boundaries.shape != (len(self.words) - 1,):
            raise InputError(f"code {self.name}: {self.words.size} words need {self.words.size - 1} boundaries")
        if self.levels.shape != (1 << self.bits,) or not np.isfinite(self.levels).all():
            raise InputError(f"code {self.name}: {self.bits}-bit words need {1 << self.bits} finite levels")
        if self.words.min() < 0 or self.words.max() >= 1 << self.bits:
            raise InputError(f"code {self.name}: a word does not fit in {self.bits} bits")
        if np.isnan(self.boundaries).any() or (np.diff(self.boundaries) < 0).any():
            raise InputError(f"code {self.name}: the boundaries are not sorted")

    def __eq__(self, other: object) -> bool:
        """Equality of all fields, arrays by value."""
        if not isinstance(other, Code):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        """Hash of all fields, arrays by value."""
        return hash(self._key())

    def _key(self) -> tuple[str, int, tuple[float, ...], tuple[int, ...], tuple[float, ...]]:
        return self.name, self.bits, tuple(self.boundaries), tuple(self.words), tuple(self.levels)

    @property
    def float32_boundaries(self) -> NDArray[np.float32]:
        """The smallest float32 at or above each boundary: it decides every float32 as the boundary does."""
        near = self.boundaries.astype(np.float32)
        return np.where(near < self.boundaries, np.nextafter(near, np.float32(np.inf)), near)

    def cells(self, x: ArrayLike) -> IntArray:
        """The cell of each weight: the number of boundaries that are at most x. Int64, the shape of ``x``."""
        values = np.asarray(x)
        # In float32, where the weights are: half the memory traffic.
        boundaries = self.float32_boundaries if values.dtype == np.float32 else self.boundaries
        return np.asarray(np.searchsorted(boundaries, values, side="right"), dtype=np.int64)

    def encode(self, x: ArrayLike) -> WordArray:
        """The stored words of normalised weights.

        Args:
            x: finite real numbers of any shape; values beyond [−1, 1] fall in the outermost cells.

        Returns:
            uint8 (bits up to 8) or uint16, the shape of ``x``.

        Raises:
            InputError: a value is NaN or infinite.
        """
        values = np.asarray(x)
        if not np.issubdtype(values.dtype, np.floating):
            values = values.astype(np.float64)
        flat = np.ravel(values)
        words: WordArray = np.empty(flat.shape, dtype=word_dtype(self.bits))
        table = self.words.astype(words.dtype)
        binned = _binned(self) if flat.size >= CHUNK and flat.dtype == np.float32 else None
        for start in range(0, flat.size, CHUNK):
            part, own = flat[start : start + CHUNK], words[start : start + CHUNK]
            if not np.isfinite(part).all():
                raise InputError(f"code {self.name}: a weight is NaN or infinite; mend the model's weights")
            if binned is None:
                own[:] = table[self.cells(part)]
                continue
            bins, word_of = binned
            found = word_of.take(bins.index(part), mode="clip")
            own[:] = found.astype(words.dtype)
            rest = np.flatnonzero(found >= _MIXED)  # few, and ten times as slow
            own[rest] = table[self.cells(part[rest])]
        return words.reshape(values.shape)


@lru_cache(maxsize=8)
def _binned(code: Code) -> tuple[Bins, NDArray[np.uint32]] | None:
    """Bins over the boundaries, and the word of each, or `_MIXED` where one holds a boundary; None without any."""
    if len(code.boundaries) < 2:
        return None
    boundaries = code.float32_boundaries
    bins = Bins.between(boundaries[0], boundaries[-1])
    if bins is None:
        return None
    cells, mixed = bins.cells(boundaries)
    return bins, np.where(mixed, _MIXED, code.words[cells]).astype(np.uint32)


def _twos_complement(index: IntArray, bits: int) -> IntArray:
    return index & ((1 << bits) - 1)


def _offset_binary(index: IntArray, bits: int) -> IntArray:
    return index + (1 << (bits - 1))


def _sign_magnitude(index: IntArray, bits: int) -> IntArray:
    sign = (index < 0).astype(np.int64) << (bits - 1)
    return sign | np.abs(index)


def _gray(index: IntArray, bits: int) -> IntArray:
    offset = _offset_binary(index, bits)
    return offset ^ (offset >> 1)


_ASSIGNMENTS: dict[str, Callable[[IntArray, int], IntArray]] = {
    "twos-complement": _twos_complement,
    "offset-binary": _offset_binary,
    "sign-magnitude": _sign_magnitude,
    "gray": _gray,
}

UNIFORM_KINDS = tuple(_ASSIGNMENTS)
"""Names of the word assignments of :func:`uniform_code`."""


def uniform_code(kind: str = "twos-complement", bits: int = 8, mask: int = 0) -> Code:
    """A symmetric uniform quantiser, 2^bits − 1 levels over [−1, 1], with one of the usual word assignments.

    The levels are q / (2^(bits−1) − 1) for integers |q| ≤ 2^(bits−1) − 1: zero is one of them, as in int8 weights of
    ONNX. One-bit words have no room for a zero; their levels are −1/2 and 1/2, the middles of the halves of [−1, 1].
    The word left over reads as the value it has by arithmetic (−2^(bits−1) in two's complement and offset binary, minus
    zero in sign-magnitude).

    Args:
        kind: ``twos-complement``, ``offset-binary``, ``sign-magnitude`` or ``gray`` (reflected, of offset binary).
        bits: word length, 1 to 16.
        mask: word to XOR with every stored word: its set bits are the complemented planes.

    Raises:
        InputError: an unknown kind, a word length or a mask out of range.
    """
    if kind not in _ASSIGNMENTS:
        raise InputError(f"unknown code {kind!r}: choose from {', '.join(UNIFORM_KINDS)}")
    word_dtype(bits)
    if not 0 <= mask < 1 << bits:
        raise InputError(f"mask {mask} does not fit in {bits}-bit words")
    name = f"{kind}^{mask:#x}" if mask else kind
    if bits == 1:
        # The negative half is the word 1 where the top bit is a sign, 0 where words count upwards.
        words = np.array([1, 0] if kind in ("twos-complement", "sign-magnitude") else [0, 1]) ^ mask
        levels = np.empty(2)
        levels[words] = (-0.5, 0.5)
        return Code(name, bits, np.zeros(1), words, levels)
    top = (1 << (bits - 1)) - 1
    index = np.arange(-top, top + 1)
    assign = _ASSIGNMENTS[kind]
    words = assign(index, bits) ^ mask
    levels = np.full(1 << bits, 0.0 if kind == "sign-magnitude" else -(top + 1) / top)
    levels[words] = index / top
    return Code(name, bits, (index[:-1] + 0.5) / top, words, levels)


def plain_levels(code: Code) -> FloatArray:
    """The normalised weight that each word of ``code`` stands for when read plainly: float64 [2^bits], read-only."""
    return code.levels


def word_histogram(words: NDArray[np.unsignedinteger] | IntArray, bits: int) -> IntArray:
    """How often each word occurs: int64 [2^bits].

    Raises:
        InputError: a word that does not fit in ``bits`` bits.
    """
    counts = np.bincount(np.ravel(words), minlength=1 << bits)
    if len(counts) > 1 << bits:
        raise InputError(f"a stored word is {len(counts) - 1}, which does not fit in {bits} bits")
    return counts.astype(np.int64)


def index_probabilities(code: Code, x: ArrayLike) -> FloatArray:
    """The share of the normalised weights ``x`` in each cell of ``code``: float64 [cells]."""
    cells = code.cells(np.ravel(np.asarray(x)))
    if not cells.size:
        raise InputError(f"code {code.name}: no weights to take statistics of")
    shares: FloatArray = np.bincount(cells, minlength=len(code.words)) / cells.size
    return shares


def best_mask(rates: FlipRates, counts: ArrayLike) -> int:
    """The planes to complement so that as many bits as can be are stored in their safer state.

    Plane k adds c_k² E[r_k(1 − r_k)] to the noise of a value linear in the bits (r_k = p10_k where the stored bit is 1,
    p01_k where it is 0). Complementing swaps the two; it pays exactly where the state held by most words is the more
    fragile one. Planes with equal rates are left as they are.

    Args:
        rates: the channel, B planes.
        counts: float or int [2^B], how often each word occurs without a mask.

    Returns:
        The mask for :func:`uniform_code`.
    """
    histogram = np.asarray(counts, dtype=np.float64)
    if histogram.shape != (1 << rates.bits,):
        raise InputError(f"word counts have shape {histogram.shape}; {rates.bits}-bit words need {1 << rates.bits}")
    mask, total = 0, histogram.sum()
    for plane, (p01, p10) in enumerate(zip(rates.p01, rates.p10, strict=True)):
        ones = histogram.reshape(-1, 2, 1 << plane)[:, 1].sum()
        if (2.0 * ones - total) * (p10 * (1.0 - p10) - p01 * (1.0 - p01)) > 0.0:
            mask |= 1 << plane
    return mask
