"""Where the bits of stored words lie in a memory image.

Three images, each a file of bytes; bit n of a region is bit n mod 8, least significant first, of its byte n div 8:

- `bulk.bin` holds the exposed planes. A word keeps its exposed bits, least significant plane first, and nothing else.
  Words follow each other without gaps, or, where rows are `row_bits` wide, as many whole words a row as fit. Where
  weights have two words each, all second words are behind all first ones, as those of another tensor would be.
- `protected.bin` holds the protected planes in the same way, always without gaps.
- `parity.bin` holds the redundant bits of the code that protects them. The protected bits of a tensor, in their order,
  are cut into blocks of the code's data bits; block i has its parity bits at i times their number. The last block is
  short: bits that it lacks count as zero and are not stored. Of a repetition code the copies follow each other whole.

The bytes of `protected.bin` and `parity.bin` are XORed with a fixed pseudo-random stream wherever a code protects them:
code words then hold as many ones as zeros whatever the weights, so that a memory whose ones and zeros fail differently
looks to the decoder like one at their mean rate (Hou et al., IEEE Trans. Inf. Theory 49, 2003).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.plan_values import StoredWords
from qtaml_onnx.storage.packing import pack, packed_size, unpack

__all__ = [
    "PARITY_STREAM",
    "PROTECTED_STREAM",
    "Bits",
    "Bytes",
    "Rows",
    "join_planes",
    "mask_bytes",
    "pack_bits",
    "planes_of",
    "split_planes",
    "take_bits",
    "unpack_bits",
]

Bytes = NDArray[np.uint8]
Bits = NDArray[np.uint8]
Words = NDArray[np.uint16]

PROTECTED_STREAM = 0x9E3779B9
PARITY_STREAM = 0x7F4A7C15
_MIX = (0x85EBCA6B, 0xC2B2AE35)


@dataclass(frozen=True)
class Rows:
    """How words lie in the bulk image.

    Attributes:
        row_bits: Width of a memory row, which no word crosses; 0 for words without gaps.
    """

    row_bits: int = 0

    def __post_init__(self) -> None:
        """Checks the width."""
        if self.row_bits % 8 or not 0 <= self.row_bits <= 1 << 20 or 0 < self.row_bits < 16:
            raise InputError(
                f"rows of {self.row_bits} bits; give a multiple of 8 from 16 to {1 << 20}, or 0 for no rows"
            )

    @property
    def alignment(self) -> int:
        """Bytes at whose multiples tensors start: a row, or four."""
        return self.row_bits // 8 or 4

    def size(self, count: int, bits: int) -> int:
        """Bytes of a tensor of that many words."""
        if not bits or not self.row_bits:
            return packed_size(count, bits) if bits else 0
        return -(-count // (self.row_bits // bits)) * (self.row_bits // 8)

    def pack(self, words: Words, bits: int) -> Bytes:
        """The bytes of a tensor; `words` is uint16 [count], each below 2^bits."""
        if not bits:
            return np.zeros(0, np.uint8)
        if not self.row_bits:
            return pack(words, bits)
        per_row = self.row_bits // bits
        rows = np.zeros((-(-words.size // per_row), per_row), np.uint16)
        rows.reshape(-1)[: words.size] = words
        stream = np.zeros((len(rows), self.row_bits), np.uint8)
        spread = rows[:, :, None] >> np.arange(bits, dtype=np.uint16) & np.uint16(1)
        stream[:, : per_row * bits] = spread.reshape(len(rows), per_row * bits)
        return pack_bits(stream.reshape(-1))

    def chunk(self, bits: int, about: int) -> int:
        """A number of words, about as many as given, that fills whole rows or whole bytes."""
        unit = self.row_bits // bits if bits and self.row_bits else 8
        return max(1, about // unit) * unit

    def take(self, data: Bytes, bits: int, first: int, count: int) -> Words:
        """Some of the words of a tensor, uint16 [count]; `data` are all of its bytes."""
        if not bits or not count:
            return np.zeros(count, np.uint16)
        unit = self.row_bits // bits if self.row_bits else 8
        start = first // unit * unit
        until = first + count - start
        return self.unpack(data[self.size(start, bits) :][: self.size(until, bits)], bits, until)[first - start :]

    def unpack(self, data: Bytes, bits: int, count: int) -> Words:
        """The inverse of `pack`: uint16 [count]."""
        if not bits:
            return np.zeros(count, np.uint16)
        if not self.row_bits:
            return unpack(data, bits, count).astype(np.uint16)
        per_row = self.row_bits // bits
        stream = unpack_bits(data, data.size * 8).reshape(-1, self.row_bits)[:, : per_row * bits]
        weights = np.left_shift(np.uint16(1), np.arange(bits, dtype=np.uint16))
        words = (stream.reshape(-1, bits).astype(np.uint16) * weights).sum(axis=1, dtype=np.uint16)
        return np.asarray(words[:count], dtype=np.uint16)


def pack_bits(bits: Bits) -> Bytes:
    """Bytes of a stream of bits, 0 or 1, the last byte filled with zeros."""
    return np.packbits(bits, bitorder="little")


def unpack_bits(data: Bytes, count: int) -> Bits:
    """The first `count` bits of a stream."""
    return np.unpackbits(data, count=count, bitorder="little")


def take_bits(data: Bytes, first: int, count: int) -> Bits:
    """Some bits of a stream, uint8 [count]."""
    start = first // 8
    return unpack_bits(data[start : -(-(first + count) // 8)], first + count - 8 * start)[first - 8 * start :]


def mask_bytes(stream: int, start: int, count: int) -> Bytes:
    """Bytes `start` to `start + count − 1` of a pseudo-random stream: MurmurHash3's finaliser of the address over 4."""
    first, last = start // 4, -(-(start + count) // 4)
    x = np.arange(first, last, dtype=np.uint64).astype(np.uint32) ^ np.uint32(stream)
    for shift, factor in ((16, _MIX[0]), (13, _MIX[1])):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    return x.astype("<u4").view(np.uint8)[start - 4 * first :][:count]


def _spread(words: Words, planes: Iterable[int]) -> Words:
    out = np.zeros_like(words)
    for place, plane in enumerate(planes):
        out |= (words >> np.uint16(plane) & np.uint16(1)) << np.uint16(place)
    return out


def planes_of(stored: StoredWords) -> tuple[list[int], list[int]]:
    """Exposed and protected planes of stored words, least significant first."""
    exposed = [plane for plane in range(stored.bits) if stored.exposed_planes >> plane & 1]
    return exposed, [plane for plane in range(stored.bits) if plane not in exposed]


def split_planes(stored: StoredWords, words: NDArray[np.integer]) -> tuple[Words, Words]:
    """The exposed and the protected bits of stored words, each closed up; uint16 [count]."""
    flat = np.ravel(words)
    unsigned = flat.view(f"u{flat.itemsize}").astype(np.uint16)
    exposed, protected = planes_of(stored)
    return _spread(unsigned, exposed), _spread(unsigned, protected)


def join_planes(stored: StoredWords, exposed: Words, protected: Words) -> NDArray[np.integer]:
    """The inverse of `split_planes`: words as the model's initializer holds them, in its type, [count]."""
    words = np.zeros_like(exposed)
    for planes, bits in zip(planes_of(stored), (exposed, protected), strict=True):
        for place, plane in enumerate(planes):
            words |= (bits >> np.uint16(place) & np.uint16(1)) << np.uint16(plane)
    unsigned = np.uint16 if stored.dtype == "UINT16" else np.uint8
    return words.astype(unsigned).view(stored.dtype.lower())
