"""Puts a dumped memory image back into a model, so that a chip's own faults can be evaluated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.firmware.flips import FlipCounts, plane_rates_csv
from qtaml_onnx.firmware.image import Images, TensorImage, build_image, coder_for, load_hardened, read_images
from qtaml_onnx.firmware.layout import Rows, unpack_bits
from qtaml_onnx.firmware.manifest import ImageTensor, Manifest, read_manifest
from qtaml_onnx.passes.inject_faults import stored_words
from qtaml_onnx.plan import StoragePlan

__all__ = ["ImportedImage", "import_image"]


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
    """

    model: ir.Model
    plan: StoragePlan
    flips: tuple[FlipCounts, ...]
    corrected_bits: int
    failed_blocks: int
    wrong_bits: int
    wrong_words: int
    words: int

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
    source, plan = load_hardened(Path(hardened))
    manifest = read_manifest(Path(folder))
    rows = Rows(manifest.row_bits)
    expected, written = build_image(source, plan, rows)
    _check_same(Path(folder), manifest, expected, Path(hardened))
    read = read_images(Path(folder), manifest)
    coder = coder_for(manifest.protection) if written.parity.size else None
    known = stored_words(source.model)
    flips: dict[tuple[str, int | None], FlipCounts] = {}
    corrected = failed = wrong_bits = wrong_words = 0
    for tensor in manifest.tensors:
        for count in _flips(tensor, written, read, rows):
            key = count.cells, count.plane
            flips[key] = flips[key] + count if key in flips else count
        words, done = TensorImage.read(tensor, read, rows, coder is not None).corrected(tensor, coder)
        true, _none = TensorImage.read(tensor, written, rows, coder is not None).corrected(tensor, None)
        unsigned = f"u{words.itemsize}"
        differing = np.ravel(words).view(unsigned) ^ np.ravel(true).view(unsigned)
        wrong_words += int(np.count_nonzero(differing))
        wrong_bits += int(np.unpackbits(differing.view(np.uint8)).sum(dtype=np.int64))
        if done is not None:
            corrected += done.corrected_bits
            failed += int(done.failed.sum())
        _replace(known[tensor.storage.words_name][1], words)
    return ImportedImage(
        source.model,
        plan,
        tuple(flips[key] for key in sorted(flips, key=lambda key: (_ORDER.index(key[0]), key[1] or 0))),
        corrected,
        failed,
        wrong_bits,
        wrong_words,
        sum(tensor.storage.size for tensor in manifest.tensors),
    )


_ORDER = ("bulk", "protected", "parity")


def _check_same(folder: Path, manifest: Manifest, expected: Manifest, hardened: Path) -> None:
    """The manifest is the one that this model is exported with, whatever version of the program wrote it."""
    if manifest.plan_sha256 != expected.plan_sha256:
        raise InputError(f"{folder} is not the image of {hardened}; name the hardened model that it was exported from")
    if manifest.model_copy(update={"tool_version": expected.tool_version}) != expected:
        raise InputError(f"{folder}: manifest.json was changed, or the model was; export the image again")


def _flips(tensor: ImageTensor, written: Images, read: Images, rows: Rows) -> Iterator[FlipCounts]:
    """Flips of the cells themselves, so that masks are left in place."""
    plan = tensor.storage
    before, after = (TensorImage.read(tensor, images, rows, coded=False) for images in (written, read))
    exposed = [plane for plane in range(plan.bits) if plane not in plan.protected_planes]
    for place, plane in enumerate(exposed):
        yield FlipCounts.of("bulk", plane, _plane(before.exposed, place), _plane(after.exposed, place))
    for place, plane in enumerate(sorted(plan.protected_planes)):
        yield FlipCounts.of("protected", plane, _plane(before.protected, place), _plane(after.protected, place))
    if tensor.parity.bits:
        part = slice(tensor.parity.offset, tensor.parity.offset + tensor.parity.size)
        bits = (unpack_bits(images.parity[part], tensor.parity.bits) for images in (written, read))
        yield FlipCounts.of("parity", None, *bits)


def _plane(words: NDArray[np.uint16], place: int) -> NDArray[np.uint8]:
    return (words >> np.uint16(place) & np.uint16(1)).astype(np.uint8)


def _replace(value: ir.Value, words: NDArray[np.integer]) -> None:
    """Gives a constant other words: an initializer, or the output of a Constant node."""
    tensor = ir.tensor(words, name=value.name)
    value.const_value = tensor
    producer = value.producer()
    if producer is not None:
        producer.attributes["value"] = ir.AttrTensor("value", tensor)
