"""Codes a group of channels: channels of a tensor whose weights are alike have one code, others have others.

Words stay as long as they are. The table of the read-out holds those of all groups one after the other, and a weight is
read as table[word + group · 2^bits].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.storage.codes import Code, WordArray

__all__ = ["MOST_GROUPS", "GroupedCode", "channels_by_shape"]

MOST_GROUPS = 256
"""Groups that a byte a channel can name."""


@dataclass(frozen=True)
class GroupedCode:
    """One code a group of channels, all of one word length.

    Attributes:
        codes: Of the groups.
        groups: For each channel the index of its code.
        axis: The axis of channels.

    Raises:
        InputError: codes of several lengths, too many of them, or a channel without one.
    """

    codes: tuple[Code, ...]
    groups: tuple[int, ...]
    axis: int

    def __post_init__(self) -> None:
        """Checks that the parts fit."""
        if not 1 <= len(self.codes) <= MOST_GROUPS or len({code.bits for code in self.codes}) != 1:
            raise InputError(f"a tensor has 1 to {MOST_GROUPS} codes of one word length")
        if not self.groups or not all(0 <= group < len(self.codes) for group in self.groups):
            raise InputError(f"channels name groups beyond the {len(self.codes)} that have codes")

    @property
    def bits(self) -> int:
        """Word length."""
        return self.codes[0].bits

    def encode(self, x: NDArray[np.floating]) -> WordArray:
        """The stored words of normalised weights, the shape of ``x``."""
        words = np.empty(x.shape, dtype=np.uint8 if self.bits <= 8 else np.uint16)
        values, target = np.moveaxis(x, self.axis, 0), np.moveaxis(words, self.axis, 0)
        for number, code in enumerate(self.codes):
            members = np.flatnonzero(np.equal(self.groups, number))
            target[members] = code.encode(values[members])
        return words

    def index(self, words: NDArray[np.integer]) -> NDArray[np.int64]:
        """Places in the table of all groups, the shape of ``words``."""
        shape = tuple(-1 if i == self.axis else 1 for i in range(words.ndim))
        return words.astype(np.int64) + (np.array(self.groups, dtype=np.int64) << self.bits).reshape(shape)


def channels_by_shape(x: NDArray[np.floating], axis: int, groups: int) -> tuple[int, ...]:
    """Groups of about equal numbers of channels, from those with the lightest tails to those with the heaviest.

    Tails are told apart by the kurtosis: channels are normalised to one deviation, so that it is the first moment in
    which symmetric distributions differ.
    """
    flat = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).astype(np.float64)
    square = (flat**2).mean(axis=1)
    kurtosis = np.divide((flat**4).mean(axis=1), square**2, out=np.zeros_like(square), where=square > 0)
    found = np.empty(len(flat), dtype=np.int64)
    found[np.argsort(kurtosis, kind="stable")] = np.arange(len(flat)) * groups // len(flat)
    return tuple(map(int, found))
