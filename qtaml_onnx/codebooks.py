"""One channel-optimised code book a word length and protection, shared by all tensors of a model.

Weights over their channel's deviation have much the same distribution in every tensor, so that one code book serves
all, within a few tenths of a decibel of a code a tensor, and its table is stored once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.channel import FlipRates, FloatArray, apply_transition
from qtaml_onnx.storage import Code, ReadOut, WordSums, error_moments, word_sums
from qtaml_onnx.storage.channel_optimized import design_channel_optimized

__all__ = ["CodeBook", "CodeBooks", "regression_slope", "restored_gain"]

_POOL = 4096
"""Weights of each tensor that a design sees."""

_LEAST_SLOPE = 0.02
"""Below this regression slope a read-out carries nothing, and no gain is restored."""


@dataclass(frozen=True)
class CodeBook:
    """A code, its posterior-mean read-out, and what they do to the pooled weights.

    Attributes:
        code: Weight to word.
        readout: Word to weight, the posterior mean.
        noise_to_signal: Mean-square error of weights read with restored gain over their mean square.
    """

    code: Code
    readout: ReadOut
    noise_to_signal: float


class CodeBooks:
    """Code books for the normalised weights of one model under given flip rates, made when asked for."""

    def __init__(
        self,
        tensors: Iterable[NDArray[np.float32]],
        rates: FlipRates,
        residual: float = 0.0,
        importance: Sequence[float] | None = None,
    ) -> None:
        """Pools the weights.

        Args:
            tensors: Normalised weights of each tensor; each is looked at once.
            rates: Flip rates, as many planes as the longest word.
            residual: Flip rate of protected planes.
            importance: Weight of each tensor's error; equal if None.
        """
        pools = list(map(_spread, tensors))  # a comprehension would keep each until the next one is made
        weights = importance if importance is not None and any(importance) else [1.0] * len(pools)
        self._pool = np.concatenate(pools)
        self._importance = np.concatenate(
            [np.full(len(pool), weight / len(pool)) for pool, weight in zip(pools, weights, strict=True)]
        )
        self._rates = rates
        self._residual = residual
        self._books: dict[tuple[int, int], CodeBook] = {}

    def rates(self, bits: int, protected: int) -> tuple[FlipRates, tuple[int, ...]]:
        """Rates of a word with its `protected` worst planes protected, and which these are (of equals the higher)."""
        rates = self._rates.truncated(bits)
        order = sorted(range(bits), key=lambda k: (-(rates.p01[k] + rates.p10[k]), -k))
        planes = tuple(sorted(order[:protected]))
        return rates.protect(planes, self._residual), planes

    def book(self, bits: int, protected: int) -> CodeBook:
        """The code book of a word length with so many protected planes."""
        key = (bits, protected)
        if key not in self._books:
            rates, _planes = self.rates(bits, protected)
            code, readout = design_channel_optimized(self._pool, rates, importance=self._importance, restore_gain=False)
            sums = word_sums(code, self._pool, self._importance)
            signal = float(sums.second.sum() / sums.total)
            _gain, noise = restored_gain(readout, rates, sums)
            self._books[key] = CodeBook(code, readout, noise / signal if signal > 0 else 0.0)
        return self._books[key]


def restored_gain(readout: ReadOut, rates: FlipRates, sums: WordSums) -> tuple[float, float]:
    """The gain that gives the regression of what is read on the weight slope 1, and the mean-square error with it.

    A posterior mean shrinks weights on average; the next layer needs their size. The gain costs nothing: it goes into
    the scales.

    Args:
        readout: A posterior mean.
        rates: The channel.
        sums: Of the weights that the code stores.
    """
    gain = 1.0 / regression_slope(readout.table, rates, sums)
    return gain, error_moments(ReadOut(readout.kind, readout.table * gain), rates, sums).mse


def regression_slope(table: FloatArray, rates: FlipRates, sums: WordSums) -> float:
    """E[read · weight] / E[weight²]; 1 where the read-out carries next to nothing."""
    power = float(sums.second.sum())
    if power <= 0:
        return 1.0
    slope = float(sums.first @ apply_transition(rates, table)) / power
    return slope if slope > _LEAST_SLOPE else 1.0


def _spread(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Order statistics of a tensor's weights, evenly spread, at most a few thousand."""
    flat = np.ravel(x)
    if flat.size > 1 << 20:  # the order statistics of a regular sample are as good
        flat = flat[:: flat.size >> 20]
    ordered = np.sort(flat)
    if ordered.size <= _POOL:
        return ordered
    return ordered[np.linspace(0, ordered.size - 1, _POOL).astype(np.int64)]
