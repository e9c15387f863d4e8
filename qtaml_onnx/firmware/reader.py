"""Reads images chunk by chunk, as they were written or as a memory was dumped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.firmware.layout import (
    PARITY_STREAM,
    PROTECTED_STREAM,
    Bits,
    Bytes,
    Rows,
    join_planes,
    mask_bytes,
    planes_of,
    take_bits,
)
from qtaml_onnx.firmware.manifest import ImageName, ImageTensor, Manifest, Region
from qtaml_onnx.firmware.parity import Coder, Corrected, ParityCoder, RepetitionCoder
from qtaml_onnx.firmware.writer import CHUNK, block_chunk
from qtaml_onnx.plan_values import StoredWords

__all__ = ["Images", "Part", "parts"]

_FAULTY: tuple[ImageName, ...] = ("bulk.bin", "protected.bin", "parity.bin", "small.bin")


@dataclass(frozen=True)
class Images:
    """The bytes of the images that may be faulty, mapped; empty where there is nothing."""

    bulk: Bytes
    protected: Bytes
    parity: Bytes
    small: Bytes

    @classmethod
    def opened(cls, folder: Path, manifest: Manifest) -> Images:
        """The images of a folder.

        Raises:
            InputError: if one is missing or has not the size that the manifest gives.
        """
        found = []
        for name in _FAULTY:
            file = manifest.file(name)
            if file is None:
                found.append(np.zeros(0, np.uint8))
                continue
            path = folder / name
            try:
                size = path.stat().st_size
                if size != file.size:
                    raise InputError(f"{path} has {size} bytes, the image has {file.size}; dump the whole memory")
                found.append(np.memmap(path, np.uint8, "r"))
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise InputError(f"{path} cannot be read ({reason}); put the dumped image there") from error
        return cls(*found)


@dataclass(frozen=True)
class Part:
    """Stored bits of consecutive words, as they are in the cells: masked where a code protects them.

    Attributes:
        first: The first word.
        exposed: Exposed bits a word, uint16 [words].
        protected: Protected bits, uint8 [words · planes].
        parity: Parity bits of these, of a repetition code copy after copy, uint8.
        masks: What the protected bits and the parity bits are XORed with.
    """

    first: int
    exposed: NDArray[np.uint16]
    protected: Bits
    parity: Bits
    masks: tuple[Bits, Bits]

    @property
    def words(self) -> slice:
        """Where the words are in the tensor."""
        return slice(self.first, self.first + self.exposed.size)

    def corrected(
        self, tensor: ImageTensor, stored: StoredWords, coder: Coder | None
    ) -> tuple[NDArray[np.integer], Corrected | None]:
        """The words after correction, in the type of the model's initializer, and what the code did."""
        width = len(planes_of(stored)[1])
        bits, parity = self.protected ^ self.masks[0], self.parity ^ self.masks[1]
        done = coder.correct(bits, parity) if coder is not None and width and bits.size else None
        if done is not None:
            bits = done.data
        places = np.arange(width, dtype=np.uint16)
        safe = (bits.reshape(self.exposed.size, width).astype(np.uint16) << places).sum(axis=1, dtype=np.uint16)
        words = join_planes(stored, self.exposed, safe)
        if done is not None and isinstance(coder, ParityCoder):
            block = np.arange(bits.size) // coder.data_bits
            nulled = done.failed[block].reshape(-1, width).any(axis=1)
            null = _null_words(tensor, self.words).astype(f"u{words.itemsize}").view(words.dtype)
            words = np.where(nulled, null, words).astype(words.dtype)
        return words, done


def parts(
    tensor: ImageTensor, stored: StoredWords, exposed_bits: Region, images: Images, rows: Rows, coder: Coder | None
) -> Iterator[Part]:
    """Stored bits, chunk by chunk; no code word lies in two chunks.

    Args:
        tensor: The tensor.
        stored: Which of its stored words.
        exposed_bits: Where their exposed planes are, the region of `tensor.bulk_regions`.
        images: The images.
        rows: Of the bulk image.
        coder: The code of the protected planes.
    """
    size, width = tensor.storage.size, len(planes_of(stored)[1])
    bulk, protected, parity = (
        image[region.offset : region.offset + region.size]
        for image, region in (
            (images.bulk, exposed_bits),
            (images.protected, tensor.protected),
            (images.parity, tensor.parity),
        )
    )
    length = block_chunk(coder) if width else rows.chunk(exposed_bits.bits, CHUNK)
    for first in range(0, size, length):
        count = min(length, size - first)
        exposed = rows.take(bulk, exposed_bits.bits, first, count)
        bits, mask = _masked(protected, tensor.protected, first * width, count * width, PROTECTED_STREAM, coder)
        checks, check_mask = [np.zeros(0, np.uint8)], [np.zeros(0, np.uint8)]
        for start, number in _parity_bits(coder if width else None, size * width, first * width, count * width):
            found = _masked(parity, tensor.parity, start, number, PARITY_STREAM, coder)
            checks.append(found[0])
            check_mask.append(found[1])
        yield Part(first, exposed, bits, np.concatenate(checks), (mask, np.concatenate(check_mask)))


def _null_words(tensor: ImageTensor, words: slice) -> NDArray[np.uint16]:
    """What words of wrong parity are read as: one for all, or one a word where channels differ in their code."""
    plan = tensor.storage
    if tensor.null_words is None or plan.channel_groups is None or plan.channel_axis is None:
        return np.array(tensor.null_word, np.uint16)
    inner = prod(plan.shape[plan.channel_axis + 1 :])
    channels = np.arange(words.start, words.stop) // inner % plan.shape[plan.channel_axis]
    own: NDArray[np.uint16] = np.array(tensor.null_words, np.uint16)[np.array(plan.channel_groups)[channels]]
    return own


def _parity_bits(coder: Coder | None, size: int, first: int, count: int) -> Iterator[tuple[int, int]]:
    """Where the parity bits of `count` data bits from `first` on are, of `size` in all: starts and numbers."""
    if coder is None or not count:
        return
    if isinstance(coder, RepetitionCoder):
        yield from ((copy * size + first, count) for copy in range(coder.copies - 1))
    else:
        yield first // coder.data_bits * coder.parity_bits, coder.parity_size(count)


def _masked(data: Bytes, region: Region, first: int, count: int, stream: int, coder: Coder | None) -> tuple[Bits, Bits]:
    """Bits of a region, and their mask."""
    if not count:
        return np.zeros(0, np.uint8), np.zeros(0, np.uint8)
    bits = take_bits(data, first, count)
    if coder is None:
        return bits, np.zeros_like(bits)
    start, end = first // 8, -(-(first + count) // 8)
    return bits, take_bits(mask_bytes(stream, region.offset + start, end - start), first - 8 * start, count)
