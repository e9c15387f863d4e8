"""Word sums of one large set of weights under several codes, for little more than those under one.

The weights are counted once, in bins much finer than the cells of a code. A bin without a boundary of the code lies in
one cell and gives its sums away whole; only weights in the few other bins are looked at again, one by one. The words
counted are the ones that `Code.encode` gives, without exception. Sums are taken in another order than `word_sums` takes
them, and differ from its sums by the rounding of float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.channel import FloatArray
from qtaml_onnx.storage.codes import BINS, CHUNK, Bins, Code
from qtaml_onnx.storage.readout import WordSums, sums_by, word_sums

__all__ = ["WeightHistogram", "sums_under"]


def sums_under(x: NDArray[np.float32]) -> Callable[[Code], WordSums]:
    """`word_sums` of these weights under a code, as a function of the code.

    Args:
        x: Normalised weights, float32, any shape, finite. They must not change as long as the function is in use.
    """
    flat = np.ravel(x)

    @cache
    def histogram() -> WeightHistogram | None:
        bins = Bins.between(flat.min(), flat.max()) if flat.size > CHUNK else None
        return None if bins is None else WeightHistogram(flat, bins)

    def sums(code: Code) -> WordSums:
        counted = histogram()
        return word_sums(code, flat) if counted is None else counted.word_sums(code)

    return sums


class WeightHistogram:
    """Weights, and how they lie in bins. Takes two bytes a weight beside the weights themselves."""

    def __init__(self, x: NDArray[np.float32], bins: Bins) -> None:
        """Counts the weights, float32 [size], finite."""
        self._x = x
        self._bins = bins
        self._index = np.empty(x.size, dtype=np.uint16)
        self._sums: FloatArray = np.zeros((3, BINS))
        for start in range(0, x.size, CHUNK):
            part = x[start : start + CHUNK]
            index = bins.index(part)
            self._index[start : start + CHUNK] = index
            self._sums += sums_by(index, part, BINS)

    def word_sums(self, code: Code) -> WordSums:
        """Count, sum and sum of squares of the weights that `code` stores as each word."""
        size = 1 << code.bits
        cells, mixed = self._bins.cells(code.float32_boundaries)
        whole = ~mixed
        words = code.words[cells[whole]]
        sums: FloatArray = np.stack([np.bincount(words, row, size) for row in self._sums[:, whole]])
        for start in range(0, self._x.size, CHUNK):
            rest = np.flatnonzero(mixed.take(self._index[start : start + CHUNK]))
            part = self._x[start : start + CHUNK][rest]
            sums += sums_by(code.words[code.cells(part)], part, size)
        return WordSums(*sums)
