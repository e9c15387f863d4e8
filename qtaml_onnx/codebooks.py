"""One channel-optimised code book a word length and protection, shared by all tensors of a model.

Weights over their channel's deviation have much the same distribution in every tensor, so that one code book serves
all, within a few tenths of a decibel of a code a tensor, and its table is stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.channel import FlipRates, FloatArray, apply_transition
from qtaml_onnx.methods import Design
from qtaml_onnx.storage import Code, ReadOut, WordSums, error_moments, word_sums
from qtaml_onnx.storage.channel_optimized import design_channel_optimized
from qtaml_onnx.storage.two_words import (
    TwoWordCode,
    cell_sums,
    design_two_words,
    pair_list_bits,
    pair_moments,
    pair_slope,
)

__all__ = ["CodeBook", "CodeBooks", "PairBook", "regression_slope", "restored_gain"]

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


@dataclass(frozen=True)
class PairBook:
    """The same of two words a weight: the code has its read-out."""

    code: TwoWordCode
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
        self._pairs: dict[int, PairBook] = {}
        self._own: dict[tuple[str, int, int, int], Design] = {}

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

    def pair(self, bits: int) -> PairBook:
        """The code book of two words a weight with so many bits together; rates must be the same on all planes."""
        if bits not in self._pairs:
            code = design_two_words(
                self._pool, bits, self._rates.p01[0], self._rates.p10[0], importance=self._importance
            )
            sums = cell_sums(code, self._pool, self._importance)
            signal = float(sums.second.sum() / sums.total)
            _gain, noise = self._restored(code, sums)
            self._pairs[bits] = PairBook(code, noise / signal if signal > 0 else 0.0)
        return self._pairs[bits]

    def worth(self, bits: int, protected: int, *, pair: bool = False) -> float:
        """What all noise is worth in bits a weight: as many as longer words would take to save it, at their first bit.

        One more bit a weight saves a share of the noise. What else saves a share, such as a better table, is worth no
        more bits than longer words that save as much; and no more than the word itself. Ours.

        Args:
            bits: Word length.
            protected: Number of protected planes.
            pair: Whether they are two words a weight; their lengths are compared with that of one word of 8 bits.
        """
        if pair:
            shorter = self.book(8, 0).noise_to_signal
            saved = 1 - (self.pair(bits).noise_to_signal / shorter) ** (1 / (bits - 8)) if shorter > 0 else 0.0
        elif bits == 1 or protected == bits:
            return float(bits)
        else:
            shorter = self.book(bits - 1, protected).noise_to_signal
            saved = 1 - self.book(bits, protected).noise_to_signal / shorter if shorter > 0 else 0.0
        return 1 / saved if saved * bits > 1 else float(bits)

    def pair_design(self, name: str, bits: int, x: NDArray[np.float32], worth: float, kind: str = "auto") -> Design:
        """The design of two words for a tensor: the shared code with a gain of its own, or a code of its own.

        Its own pays where it saves a larger share of the model's noise than its list of cells adds to the model's bits.

        Args:
            name: The tensor's.
            bits: Of both words together.
            x: Its normalised weights.
            worth: What its noise is worth in bits: its share of all predicted noise, times what that is worth.
            kind: `shared` or `auto`; with `tensor` or `channel` the tensor has a code of its own whatever it is worth.
        """
        code = self.pair(bits).code
        gain, noise = self._restored(code, cell_sums(code, x))
        shared = Design(code, None, (), noise, gain)
        if kind == "shared" or (kind == "auto" and (worth < pair_list_bits(code) or noise <= 0)):
            return shared

        def design() -> Design:
            own = design_two_words(x, bits, self._rates.p01[0], self._rates.p10[0])
            own_gain, own_noise = self._restored(own, cell_sums(own, x))
            return Design(own, None, (), own_noise, own_gain)

        found = self.own(name, bits, 0, 0, design)
        if not isinstance(found.code, TwoWordCode):
            return shared
        if kind != "auto":
            return found
        return found if (1 - found.noise / noise) * worth > pair_list_bits(found.code) else shared

    def own(self, name: str, bits: int, protected: int, groups: int, design: Callable[[], Design]) -> Design:
        """A tensor's own design, made once.

        Args:
            name: The tensor's.
            bits: Word length.
            protected: Number of protected planes.
            groups: Of channels with a code each; 1 for one code, 0 for one of two words.
            design: Makes it.
        """
        key = (name, bits, protected, groups)
        if key not in self._own:
            self._own[key] = design()
        return self._own[key]

    def _restored(self, code: TwoWordCode, sums: WordSums) -> tuple[float, float]:
        """`restored_gain` of a code of two words."""
        slope = pair_slope(code, sums)
        gain = 1.0 / slope if slope > _LEAST_SLOPE else 1.0
        return gain, pair_moments(code, self._rates.p01[0], self._rates.p10[0], sums, gain).mse


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
