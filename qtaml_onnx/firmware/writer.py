"""Writes images chunk by chunk: what is held in memory does not grow with the model."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.firmware.image import HardenedModel, null_words, scheme_of, weight_type
from qtaml_onnx.firmware.layout import (
    PARITY_STREAM,
    PROTECTED_STREAM,
    Bits,
    Bytes,
    Rows,
    mask_bytes,
    pack_bits,
    planes_of,
    split_planes,
    unpack_bits,
)
from qtaml_onnx.firmware.manifest import (
    Grid,
    ImageFile,
    ImageName,
    ImageTensor,
    Manifest,
    Region,
    SmallGroupEntry,
    SmallTensorEntry,
)
from qtaml_onnx.firmware.parity import Coder, RepetitionCoder
from qtaml_onnx.integer_grid import IntegerGrid
from qtaml_onnx.plan_values import StoredWords
from qtaml_onnx.storage.packing import pack
from qtaml_onnx.tensor_plan import TensorPlan

__all__ = ["CHUNK", "block_chunk", "write_images"]

CHUNK = 1 << 18
"""Words that are worked on at a time."""


class _ImageFile:
    """An image as it is written: made when its first byte comes."""

    def __init__(self, folder: Path, name: ImageName, alignment: int, stream: int = 0) -> None:
        self._path, self._name, self._alignment, self._stream = folder / name, name, alignment, stream
        self._file: IO[bytes] | None = None
        self._sha256, self._crc32 = hashlib.sha256(), 0
        self._loose: Bits = np.zeros(0, np.uint8)
        self.size = 0

    def __enter__(self) -> _ImageFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def start(self) -> int:
        """The first byte of a tensor with something to write."""
        self.write(np.zeros(-self.size % self._alignment, np.uint8))
        return self.size

    def write(self, data: Bytes) -> None:
        if not data.size:
            return
        if self._stream:
            data = data ^ mask_bytes(self._stream, self.size, data.size)
        if self._file is None:
            self._file = self._path.open("wb")
        raw = data.tobytes()
        self._file.write(raw)
        self._sha256.update(raw)
        self._crc32 = zlib.crc32(raw, self._crc32)
        self.size += len(raw)

    def write_bits(self, bits: Bits) -> None:
        """Bits that need not fill their last byte: what is left over waits for the next ones, or for `end_bits`."""
        if self._loose.size:
            bits = np.concatenate([self._loose, bits])
        whole = bits.size // 8 * 8
        self._loose = bits[whole:].copy()
        self.write(pack_bits(bits[:whole]))

    def end_bits(self) -> None:
        loose, self._loose = self._loose, np.zeros(0, np.uint8)
        self.write(pack_bits(loose))

    def described(self) -> list[ImageFile]:
        if not self.size:
            return []
        return [ImageFile(name=self._name, size=self.size, sha256=self._sha256.hexdigest(), crc32=self._crc32)]


def block_chunk(coder: Coder | None) -> int:
    """A number of words whose protected bits, however many a word, are whole blocks and whole bytes."""
    unit = 8 * (coder.data_bits if coder is not None else 1)
    return max(1, CHUNK // unit) * unit


def write_images(hardened: HardenedModel, rows: Rows, folder: Path) -> Manifest:
    """Writes the images of a hardened model into a folder, and gives their manifest.

    Raises:
        InputError: if a tensor or the protection cannot be written, with the reason.
        OSError: if the folder cannot be written.
    """
    plan = hardened.plan
    protection, coder = scheme_of(plan)
    with (
        _ImageFile(folder, "bulk.bin", rows.alignment) as bulk,
        _ImageFile(folder, "protected.bin", 4, PROTECTED_STREAM if coder else 0) as protected,
        _ImageFile(folder, "parity.bin", 4, PARITY_STREAM if coder else 0) as parity,
        _ImageFile(folder, "small.bin", 4) as small,
        _ImageFile(folder, "constants.bin", 4) as constants,
    ):
        tensors = []
        for tensor in plan.tensors:
            first, *second = tensor.stored_words
            words, width, grid = hardened.words(tensor, first), len(tensor.protected_planes), hardened.grid(tensor)
            nulls = null_words(tensor)
            regions = (
                _bulk(first, words, rows, bulk),
                _protected(first, words, protected),
                _parity(first, words, coder if width else None, parity),
            )
            others = [_bulk(stored, hardened.words(tensor, stored), rows, bulk) for stored in second]
            tensors.append(
                ImageTensor(
                    storage=tensor,
                    weight_type=weight_type(tensor, grid),
                    null_word=nulls[0],
                    null_words=nulls if tensor.channel_codes is not None else None,
                    bulk=regions[0],
                    protected=regions[1],
                    parity=regions[2],
                    second=others[0] if others else None,
                    grid=_grid(tensor, grid, constants) if grid is not None else None,
                )
            )
        groups = tuple(_small(hardened, small))
        images = (bulk, protected, parity, small, constants)
        return Manifest(
            plan_sha256=plan.sha256,
            source_sha256=plan.source_sha256,
            row_bits=rows.row_bits,
            protection=protection,
            files=tuple(file for image in images for file in image.described()),
            tensors=tuple(tensors),
            small=groups,
        )


def _chunks(words: NDArray[np.integer], length: int) -> Iterator[NDArray[np.integer]]:
    for start in range(0, words.size, length):
        yield words[start : start + length]


def _bulk(stored: StoredWords, words: NDArray[np.integer], rows: Rows, image: _ImageFile) -> Region:
    bits = len(planes_of(stored)[0])
    size = rows.size(words.size, bits)
    offset = image.start() if size else image.size
    for part in _chunks(words, rows.chunk(bits, CHUNK)):
        if int(part.view(f"u{part.itemsize}").max()) >> stored.bits:
            raise InputError(f"a word of '{stored.name}' is longer than {stored.bits} bits; harden the model again")
        image.write(rows.pack(split_planes(stored, part)[0], bits))
    return Region(offset=offset, size=size, bits=bits)


def _protected(stored: StoredWords, words: NDArray[np.integer], image: _ImageFile) -> Region:
    width = len(planes_of(stored)[1])
    if not width or not words.size:
        return Region(offset=image.size, size=0, bits=width)
    offset = image.start()
    for part in _chunks(words, CHUNK):
        image.write(pack(split_planes(stored, part)[1], width))
    return Region(offset=offset, size=image.size - offset, bits=width)


def _parity(stored: StoredWords, words: NDArray[np.integer], coder: Coder | None, image: _ImageFile) -> Region:
    if coder is None or not words.size:
        return Region(offset=image.size, size=0, bits=0)
    width = len(planes_of(stored)[1])
    offset = image.start()
    copies = coder.copies - 1 if isinstance(coder, RepetitionCoder) else 1  # which follow each other whole
    for _copy in range(copies):
        for part in _chunks(words, block_chunk(coder)):
            data = unpack_bits(pack(split_planes(stored, part)[1], width), part.size * width)
            image.write_bits(data if isinstance(coder, RepetitionCoder) else coder.encode(data))
    image.end_bits()
    return Region(offset=offset, size=image.size - offset, bits=coder.parity_size(words.size * width))


def _grid(tensor: TensorPlan, grid: IntegerGrid, image: _ImageFile) -> Grid:
    if not np.isfinite(grid.step).all():
        raise InputError(f"'{tensor.name}' has steps that are not finite; --exclude it when hardening")
    steps = image.start()
    image.write(np.frombuffer(grid.step.astype("<f4").tobytes(), np.uint8))
    points = image.start()
    image.write(np.frombuffer(np.broadcast_to(grid.zero_point, grid.step.shape).astype("<i4").tobytes(), np.uint8))
    return Grid(
        axis=grid.axis or 0,
        block=grid.block if grid.blocked else 0,
        count=int(grid.step.size),
        steps=steps,
        zero_points=points,
    )


def _small(hardened: HardenedModel, image: _ImageFile) -> Iterator[SmallGroupEntry]:
    for group in hardened.small:
        stored, offset = group.stored, image.start()
        image.write(np.ascontiguousarray(stored).reshape(-1))
        yield SmallGroupEntry(
            name=str(group.words.name),
            dtype=group.dtype.name,
            copies=stored.shape[0],
            numbers=stored.shape[1],
            offset=offset,
            tensors=tuple(
                SmallTensorEntry(name=str(one.value.name), first=one.first, shape=one.shape) for one in group.tensors
            ),
        )
