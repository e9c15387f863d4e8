"""manifest.json: everything about a memory image that is not the image, with its schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtaml_onnx import __version__
from qtaml_onnx.errors import InputError
from qtaml_onnx.tensor_plan import TensorPlan

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "Grid",
    "ImageFile",
    "ImageName",
    "ImageTensor",
    "Manifest",
    "Region",
    "Scheme",
    "SmallGroupEntry",
    "SmallTensorEntry",
    "json_schema",
    "read_manifest",
]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

ImageName = Literal["bulk.bin", "protected.bin", "parity.bin", "small.bin", "constants.bin"]
WeightType = Literal["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageFile(_Value):
    """One image as it was written; a dump of a faulty memory has other checksums.

    Attributes:
        name: File name.
        size: Bytes.
        sha256: SHA-256, hexadecimal.
        crc32: CRC-32 as zlib's, of which the C reader has one too.
    """

    name: ImageName
    size: int = Field(ge=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    crc32: int = Field(ge=0, lt=1 << 32)


class Region(_Value):
    """Where a tensor lies in an image.

    Attributes:
        offset: First byte.
        size: Bytes.
        bits: Bits in use: of the bulk and the protected image a word, of the parity image all.
    """

    offset: int = Field(ge=0)
    size: int = Field(ge=0)
    bits: int = Field(ge=0)


class Grid(_Value):
    """What the integers of a quantised tensor stand for where blocks have steps, or channels zero points, of their own.

    Weight = (integer − zero point) · step. Steps (float32) and zero points (int32) are in constants.bin, little-endian.

    Attributes:
        axis: The axis along which they differ.
        block: Weights along that axis that share them; 0 where there is one step and zero point an index of the axis.
        count: Steps, and zero points.
        steps: First byte of the steps.
        zero_points: First byte of the zero points.
    """

    axis: int = Field(ge=0)
    block: int = Field(ge=0)
    count: int = Field(ge=1)
    steps: int = Field(ge=0)
    zero_points: int = Field(ge=0)


class SmallTensorEntry(_Value):
    """A small tensor (bias, norm, scale, zero point, table) in its group: its name, first number and shape."""

    name: str
    first: int = Field(ge=0)
    shape: tuple[int, ...]


class SmallGroupEntry(_Value):
    """Numbers of one type in small.bin: bytes of number after number, little-endian, and copy after copy.

    Attributes:
        name: The initializer that holds them in the model.
        dtype: Their ONNX type.
        copies: How often each number is stored; it is read by the majority of its copies, bit by bit.
        numbers: Numbers of a copy.
        offset: First byte.
        tensors: What they are.
    """

    name: str
    dtype: str
    copies: int = Field(ge=1)
    numbers: int = Field(ge=1)
    offset: int = Field(ge=0)
    tensors: tuple[SmallTensorEntry, ...]


class ImageTensor(_Value):
    """A tensor in the image.

    Attributes:
        storage: How it is stored and read: word length, shape, code, form, table, scales, bias correction.
        weight_type: The type of the weights as the model reads them.
        null_word: The word whose read-out is nearest to zero: what a word of wrong parity is read as. 0 where weights
            have two words each, which are never protected.
        bulk: Its exposed planes; where weights have two words each, the first words.
        protected: Its protected planes, none if `bits` is 0.
        parity: Their redundant bits.
        grid: Of a quantised tensor, where `storage` does not say what its integers stand for.
        null_words: Where groups of channels have codes of their own, that of each code; `null_word` is the first.
        second: Where weights have two words each, the second words, in the bulk image too.
    """

    storage: TensorPlan
    weight_type: WeightType
    null_word: int = Field(ge=0, lt=1 << 16)
    bulk: Region
    protected: Region
    parity: Region
    grid: Grid | None = None
    null_words: tuple[int, ...] | None = None
    second: Region | None = None

    @property
    def bulk_regions(self) -> tuple[Region, ...]:
        """The exposed planes of each of `storage.stored_words`."""
        return (self.bulk,) if self.second is None else (self.bulk, self.second)


class Scheme(_Value):
    """How protected planes are kept.

    Attributes:
        name: The scheme's name; `ideal` and `robust-…` have no parity.
        data_bits: Data bits of a block.
        parity_bits: Parity bits of a block; 0 if the scheme has none.
        raw_rate: Mean flip rate that it is designed for.
        ldpc_prior: Log-likelihood ratio of a bit as read, in eighths, for an LDPC decoder.
        ldpc_checks_sha256: SHA-256 of the LDPC code's checks, little-endian 16-bit variables, check by check.
    """

    name: str
    data_bits: int = Field(ge=1)
    parity_bits: int = Field(ge=0)
    raw_rate: float = Field(ge=0, le=0.5)
    ldpc_prior: int | None = None
    ldpc_checks_sha256: str | None = None


class Manifest(_Value):
    """A memory image.

    Attributes:
        format_version: Of the image, this file and the C tables.
        tool_version: Of the qtaml-onnx that wrote it.
        plan_sha256: The storage plan's; the hardened model names the same.
        source_sha256: Of the model that was hardened.
        row_bits: Width of the bulk memory's rows; 0 for words without gaps.
        protection: How protected planes are kept.
        files: The images; those with nothing in them are not written.
        tensors: In the order of the C tables; of one whose output channels are stored in parts, each part, in a row.
        small: The small tensors, where they are stored in the same memory.
    """

    format_version: int = FORMAT_VERSION
    tool_version: str = __version__
    plan_sha256: str
    source_sha256: str
    row_bits: int = Field(ge=0)
    protection: Scheme
    files: tuple[ImageFile, ...]
    tensors: tuple[ImageTensor, ...]
    small: tuple[SmallGroupEntry, ...] = ()

    @property
    def tensor_count(self) -> int:
        """Number of tensors, however many parts they are stored in."""
        return len({tensor.storage.name for tensor in self.tensors})

    def to_json(self) -> str:
        """The text of manifest.json."""
        return self.model_dump_json(indent=1) + "\n"

    def file(self, name: ImageName) -> ImageFile | None:
        """An image by name; None if it is not written."""
        return next((file for file in self.files if file.name == name), None)


def json_schema() -> dict[str, object]:
    """The JSON Schema (draft 2020-12) that every manifest of this version meets."""
    schema = Manifest.model_json_schema(mode="validation")  # serialisers that leave fields out hide what they are
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "qtaml-onnx memory image"} | schema


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of an image.

    Raises:
        InputError: if it is missing, or not a manifest of a version that this program knows.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name the one that export-image wrote")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read; copy it beside the dumped images") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON; copy the one that export-image wrote") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise InputError(
            f"{path} has format version {version!r}, this program reads {FORMAT_VERSION}; export the image again"
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path}: {where}: {first['msg']}; copy the one that export-image wrote") from error
