"""Puts a dumped memory image back into a model, so that a chip's own faults can be evaluated."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.firmware.flips import FlipCounts, plane_rates_csv
from qtaml_onnx.firmware.image import HardenedModel, coder_for, load_hardened
from qtaml_onnx.firmware.layout import Rows, planes_of
from qtaml_onnx.firmware.manifest import ImageTensor, Manifest, Region, SmallGroupEntry, read_manifest
from qtaml_onnx.firmware.parity import Coder
from qtaml_onnx.firmware.reader import Images, Part, parts
from qtaml_onnx.firmware.writer import write_images
from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.plan_values import StoredWords
from qtaml_onnx.storage.repetition import majority

__all__ = ["ImportedImage", "import_image"]

_MOST_WORDS = 1 << 26
"""Words beyond which they are kept in a temporary file instead of in memory."""


@dataclass(frozen=True)
class ImportedImage:
    """A model with the words of a dumped image.

    Attributes:
        model: The hardened model with the words as the image holds them, after correction.
        plan: Its storage plan, unchanged.
        flips: What flipped, by cells and plane, before correction.
        corrected_bits: Stored bits that the code set right, parity bits included.
        failed_blocks: Code words with errors that were detected and not corrected.
        wrong_bits: Bits of words that are still wrong.
        wrong_words: Words with such a bit.
        words: All words.
        wrong_small: Small tensors' numbers (biases, norms, scales, tables) that their majority still gets wrong.
        small: All of these numbers; 0 where they are taken to be safe.
    """

    model: ir.Model
    plan: StoragePlan
    flips: tuple[FlipCounts, ...]
    corrected_bits: int
    failed_blocks: int
    wrong_bits: int
    wrong_words: int
    words: int
    wrong_small: int = 0
    small: int = 0

    def plane_rates(self) -> str:
        """The measured flip rates as a CSV table for `--plane-rates`."""
        return plane_rates_csv(self.flips, self.plan.planes)


def import_image(folder: str | os.PathLike[str], hardened: str | os.PathLike[str]) -> ImportedImage:
    """Reads a dumped image into the model that it was exported from.

    Args:
        folder: What `export_image` wrote, its images replaced by what was read back from the memory.
        hardened: The hardened model, its plan beside it.

    Raises:
        InputError: if the manifest is missing, of another version or of another model, or an image is missing or not of
            the right size.
    """
    model = load_hardened(Path(hardened))
    manifest = read_manifest(Path(folder))
    rows, counted = Rows(manifest.row_bits), _Counted()
    with tempfile.TemporaryDirectory(prefix="qtaml-image-") as name:
        try:
            expected = write_images(model, rows, Path(name))
        except OSError as error:
            raise InputError(f"the image cannot be written to {name} ({error.strerror}); set TMPDIR") from error
        _check_same(Path(folder), manifest, expected, Path(hardened))
        written, read = Images.opened(Path(name), manifest), Images.opened(Path(folder), manifest)
        coder = coder_for(manifest.protection) if written.parity.size else None
        many = sum(tensor.storage.size for tensor in manifest.tensors) > _MOST_WORDS
        found = {
            stored: _words(tensor, stored, region, written, read, rows, coder, counted, many)
            for tensor in manifest.tensors
            for stored, region in zip(tensor.storage.stored_words, tensor.bulk_regions, strict=True)
        }
        small = [_small(group, written, read, counted) for group in manifest.small]
    for stored, words in found.items():
        _replace(model.value(stored), words)
    for group, bytes_read in zip(model.small, small, strict=True):
        _replace(group.words, bytes_read)
    return counted.result(model, manifest)


class _Counted:
    """What was seen of an image so far."""

    def __init__(self) -> None:
        self.flips: dict[tuple[str, int | None], FlipCounts] = {}
        self.corrected = self.failed = self.wrong_bits = self.wrong_words = self.wrong_small = 0

    def add(self, counts: Iterator[FlipCounts]) -> None:
        for count in counts:
            key = count.cells, count.plane
            self.flips[key] = self.flips[key] + count if key in self.flips else count

    def result(self, hardened: HardenedModel, manifest: Manifest) -> ImportedImage:
        return ImportedImage(
            hardened.model,
            hardened.plan,
            tuple(self.flips[key] for key in sorted(self.flips, key=lambda key: (_ORDER.index(key[0]), key[1] or 0))),
            self.corrected,
            self.failed,
            self.wrong_bits,
            self.wrong_words,
            sum(tensor.storage.size * len(tensor.storage.stored_words) for tensor in manifest.tensors),
            self.wrong_small,
            sum(group.numbers for group in manifest.small),
        )


_ORDER = ("bulk", "protected", "parity", "small")


def _check_same(folder: Path, manifest: Manifest, expected: Manifest, hardened: Path) -> None:
    """The manifest is the one that this model is exported with, whatever version of the program wrote it."""
    if manifest.plan_sha256 != expected.plan_sha256:
        raise InputError(f"{folder} is not the image of {hardened}; name the hardened model that it was exported from")
    if manifest.model_copy(update={"tool_version": expected.tool_version}) != expected:
        raise InputError(f"{folder}: manifest.json was changed, or the model was; export the image again")


def _words(
    tensor: ImageTensor,
    stored: StoredWords,
    region: Region,
    written: Images,
    read: Images,
    rows: Rows,
    coder: Coder | None,
    counted: _Counted,
    many: bool,
) -> NDArray[np.integer]:
    """Stored words of a tensor as they are read, and what is to be counted of them."""
    plan = tensor.storage
    dtype = np.dtype(stored.dtype.lower())
    if many and plan.size:
        with tempfile.TemporaryFile(prefix="qtaml-words-") as file:  # unlinked, and gone when the array is
            file.truncate(plan.size * dtype.itemsize)
            words: NDArray[np.integer] = np.memmap(file, dtype, "r+", shape=plan.size)
    else:
        words = np.empty(plan.size, dtype)
    before_and_after = (parts(tensor, stored, region, images, rows, coder) for images in (written, read))
    for before, after in zip(*before_and_after, strict=True):
        counted.add(_flips(stored, before, after))
        words[after.words], done = after.corrected(tensor, stored, coder)
        true, _none = before.corrected(tensor, stored, None)
        unsigned = f"u{words.itemsize}"
        differing = words[after.words].view(unsigned) ^ true.view(unsigned)
        counted.wrong_words += int(np.count_nonzero(differing))
        counted.wrong_bits += int(np.bitwise_count(differing).sum(dtype=np.int64))
        if done is not None:
            counted.corrected += done.corrected_bits
            counted.failed += int(done.failed.sum())
    return words.reshape(plan.shape)


def _small(group: SmallGroupEntry, written: Images, read: Images, counted: _Counted) -> NDArray[np.uint8]:
    """The stored bytes of small tensors as they are read."""
    dtype = np.dtype(ir.DataType[group.dtype].numpy())
    shape = (group.copies, group.numbers, dtype.itemsize)
    size = group.copies * group.numbers * dtype.itemsize
    before, after = (images.small[group.offset : group.offset + size].reshape(shape) for images in (written, read))
    counted.add(
        FlipCounts.of("small", plane, before >> np.uint8(plane) & np.uint8(1), after >> np.uint8(plane) & np.uint8(1))
        for plane in range(8)
    )
    unsigned = f"u{dtype.itemsize}"
    true, found = (majority(stored, dtype).view(unsigned) for stored in (before, after))
    counted.wrong_small += int(np.count_nonzero(true != found))
    return np.array(after)


def _flips(stored: StoredWords, before: Part, after: Part) -> Iterator[FlipCounts]:
    """Flips of the cells themselves, so that masks are left in place."""
    exposed, protected = planes_of(stored)
    width = len(protected)
    for place, plane in enumerate(exposed):
        yield FlipCounts.of("bulk", plane, _plane(before.exposed, place), _plane(after.exposed, place))
    for place, plane in enumerate(protected):
        yield FlipCounts.of("protected", plane, before.protected[place::width], after.protected[place::width])
    if after.parity.size:
        yield FlipCounts.of("parity", None, before.parity, after.parity)


def _plane(words: NDArray[np.uint16], place: int) -> NDArray[np.uint8]:
    return (words >> np.uint16(place) & np.uint16(1)).astype(np.uint8)


def _replace(value: ir.Value, words: NDArray[np.integer]) -> None:
    """Gives a constant other words: an initializer, or the output of a Constant node."""
    tensor = ir.tensor(words, name=value.name)
    value.const_value = tensor
    producer = value.producer()
    if producer is not None:
        producer.attributes["value"] = ir.AttrTensor("value", tensor)
