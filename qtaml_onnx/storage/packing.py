"""Dense bit streams of words: the memory image's layout.

Little-endian throughout: word i fills the bits i·B … i·B + B − 1 of the stream, least significant bit first, and bit
n of the stream is bit n mod 8 (least significant first) of byte n div 8. Bits after the last word are zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.storage.codes import WordArray, word_dtype

__all__ = ["pack", "packed_size", "unpack"]

_GROUP = 8  # eight words of B bits fill exactly B bytes: every group has the same layout


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` words of ``bits`` bits fill."""
    word_dtype(bits)
    return -(-count * bits // 8)


def pack(words: ArrayLike, bits: int) -> NDArray[np.uint8]:
    """Pack words densely.

    Args:
        words: integers in [0, 2^bits), any shape, taken in C order.
        bits: word length, 1 to 16.

    Returns:
        uint8 [packed_size(words.size, bits)].

    Raises:
        InputError: a word that does not fit, words that are not integers, or a word length out of range.
    """
    size = np.asarray(words).size
    packed = packed_size(size, bits)
    array = np.ravel(np.asarray(words))
    if size and not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"words to pack must be integers, not {array.dtype}")
    if size and not 0 <= int(array.min()) <= int(array.max()) < 1 << bits:
        raise InputError(f"words from {array.min()} to {array.max()} do not fit in {bits} bits")
    groups = np.zeros((-(-size // _GROUP), _GROUP), dtype=np.uint16)
    groups.reshape(-1)[:size] = array
    stream = np.zeros((len(groups), bits), dtype=np.uint8)
    for place in range(_GROUP):
        first, shift = divmod(place * bits, 8)
        spread = groups[:, place].astype(np.uint32) << shift
        for byte in range(first, (place * bits + bits - 1) // 8 + 1):
            stream[:, byte] |= (spread >> (8 * (byte - first)) & 0xFF).astype(np.uint8)
    return stream.reshape(-1)[:packed]


def unpack(stream: NDArray[np.uint8], bits: int, count: int) -> WordArray:
    """The inverse of :func:`pack`.

    Args:
        stream: uint8 [packed_size(count, bits)].
        bits: word length, 1 to 16.
        count: number of words.

    Returns:
        uint8 (bits up to 8) or uint16, [count].

    Raises:
        InputError: the stream's length or type is not that of ``count`` packed words.
    """
    expected = packed_size(count, bits)
    if stream.dtype != np.uint8 or stream.shape != (expected,):
        raise InputError(
            f"{count} words of {bits} bits fill {expected} bytes of uint8, not {stream.dtype} {stream.shape}"
        )
    padded = np.zeros((-(-count // _GROUP), bits), dtype=np.uint8)
    padded.reshape(-1)[:expected] = stream
    words: WordArray = np.empty((len(padded), _GROUP), dtype=word_dtype(bits))
    for place in range(_GROUP):
        first, shift = divmod(place * bits, 8)
        gathered = np.zeros(len(padded), dtype=np.uint32)
        for byte in range(first, (place * bits + bits - 1) // 8 + 1):
            gathered |= padded[:, byte].astype(np.uint32) << (8 * (byte - first))
        words[:, place] = gathered >> shift & ((1 << bits) - 1)
    return words.reshape(-1)[:count]
