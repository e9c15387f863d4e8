"""Calibration and evaluation data: one array a graph input, samples first; or seeded synthetic inputs."""

from __future__ import annotations

import hashlib
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.indices import index_limits
from qtaml_onnx.memory import available_memory

__all__ = ["Dataset", "InputSpec", "dataset_sha256", "input_specs", "load_dataset", "synthetic_dataset"]

Array = NDArray[np.generic]
LABELS = "labels"
_UNREADABLE = (
    OSError,
    OverflowError,
    MemoryError,
    NotImplementedError,  # a compression that zipfile does not know
    RecursionError,
    SyntaxError,  # a header that is no literal
    struct.error,
    lzma.LZMAError,
    ValueError,  # pickled arrays, a header that is none
    EOFError,
    KeyError,
    TypeError,  # a lone .npy array
    AttributeError,
    RuntimeError,  # an encrypted archive
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)
_MOST_SYNTHETIC = 1 << 27
"""Numbers that synthetic samples of an input have at most: 1 GiB while they are drawn."""

_GUESSED_EXTENT = 16
"""Extent of a dynamic axis other than the batch in synthetic inputs."""


@dataclass(frozen=True)
class InputSpec:
    """A graph input without default: its name, dtype, and shape with None for dynamic extents.

    `limit` is the number of entries of the table that it indexes, if it does.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...] | None
    limit: int | None = None

    @property
    def batch(self) -> int | None:
        """The fixed batch size; None if the first axis is dynamic."""
        return self.shape[0] if self.shape else None


@dataclass(frozen=True)
class Dataset:
    """Samples for a model.

    Attributes:
        arrays: By graph input, samples along the first axis.
        labels: One a sample, or None.
        one_by_one: Whether each sample is a whole input (the arrays have one axis more than the inputs).
        batch: The batch size that the model fixes; None if it takes any.
        source: The file, or a word that says how the data were made.
    """

    arrays: dict[str, Array]
    labels: NDArray[np.integer] | None
    one_by_one: bool
    batch: int | None
    source: str

    def __len__(self) -> int:
        """Number of samples."""
        return min((len(array) for array in self.arrays.values()), default=0)

    def head(self, samples: int) -> Dataset:
        """The first samples."""
        return replace(
            self,
            arrays={name: array[:samples] for name, array in self.arrays.items()},
            labels=None if self.labels is None else self.labels[:samples],
        )

    def feeds(self, batch_size: int) -> Iterator[tuple[dict[str, Array], int]]:
        """Inputs of one run after the other, each with the number of its samples that count.

        Where the model fixes its batch size, the last run is filled up with its first sample.
        """
        if self.one_by_one:
            for index in range(len(self)):
                yield {name: np.asarray(array[index]) for name, array in self.arrays.items()}, 1
            return
        size = self.batch or batch_size
        sample = sum(array[:1].nbytes for array in self.arrays.values())
        if self.batch and sample * size > available_memory():
            raise InputError(f"the model takes {size} samples at once, more than memory holds; export a smaller batch")
        for start in range(0, len(self), size):
            feed = {name: array[start : start + size] for name, array in self.arrays.items()}
            count = min(size, len(self) - start)
            if self.batch and count < size:
                feed = {
                    name: np.concatenate([part, np.repeat(part[:1], size - count, axis=0)])
                    for name, part in feed.items()
                }
            yield feed, count


def input_specs(model: ir.Model) -> list[InputSpec]:
    """The inputs that a caller must feed.

    Raises:
        InputError: if an input is not a tensor of a type that arrays can have.
    """
    specs, limits = [], index_limits(model)
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        try:
            if value.dtype is None or value.dtype == ir.DataType.STRING:
                raise TypeError
            dtype = np.dtype(value.dtype.numpy())
        except TypeError:  # of no type that arrays have
            raise InputError(
                f"graph input '{value.name}' is no numeric tensor; such models cannot be evaluated"
            ) from None
        shape = None
        if value.shape is not None:
            shape = tuple(n if isinstance(n, int) and n > 0 else None for n in value.shape)
        name = str(value.name)
        specs.append(InputSpec(name, dtype, shape, limits.get(name)))
    return specs


def load_dataset(path: Path, specs: list[InputSpec], option: str) -> Dataset:
    """Reads an `.npz` file; never unpickles.

    Args:
        path: The file.
        specs: The model's inputs.
        option: The option that named the file, for messages.

    Raises:
        InputError: if the file is missing or no `.npz`, or an array is missing or has the wrong rank, dtype or length.
    """
    present, arrays = _read_arrays(path, [*(spec.name for spec in specs), LABELS], option)
    labels: NDArray[Any] | None = arrays.pop(LABELS, None) if all(spec.name != LABELS for spec in specs) else None
    if labels is not None and not labels.ndim:
        raise InputError(f"{option} {path}: labels are a single number; save one a sample")
    for spec in specs:
        if spec.name not in arrays:
            raise InputError(
                f"{option} {path} has no array '{spec.name}' (it has {', '.join(present) or 'none'}); "
                "save one array a graph input, under the input's name"
            )
        _check_array(arrays[spec.name], spec, f"{option} {path}")
    lengths = {name: len(array) for name, array in arrays.items()} | (
        {LABELS: len(labels)} if labels is not None else {}
    )
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise InputError(f"{option} {path}: the arrays differ in their number of samples ({counts}); make them equal")
    if not arrays or not min(lengths.values()):
        raise InputError(f"{option} {path} holds no samples; save at least one")
    if labels is not None and not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{option} {path}: labels are {labels.dtype}; save them as integers")
    extra = {arrays[spec.name].ndim - len(spec.shape) for spec in specs if spec.shape is not None}
    if len(extra) > 1:
        raise InputError(
            f"{option} {path}: some arrays have a sample axis before the batch axis, some not; make them alike"
        )
    one_by_one = extra == {1}
    return Dataset(arrays, labels, one_by_one, None if one_by_one else _batch(specs), str(path))


def _read_arrays(path: Path, wanted: list[str], option: str) -> tuple[list[str], dict[str, Array]]:
    """The names in an `.npz` file, and the arrays of the names that are wanted."""
    try:
        if path.exists() and not path.is_file():
            raise TypeError("no regular file")
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise TypeError("a lone array")
            present = list(file.files)
            chosen = [name for name in present if name in wanted]
            _check_sizes(path, file, chosen, option)
            return present, {name: np.asarray(file[name]) for name in chosen}
    except FileNotFoundError as error:
        raise InputError(f"{option} {path}: no such file; check the path") from error
    except _UNREADABLE as error:
        raise InputError(f"{option} {path} is not an .npz file of plain arrays; save it with numpy.savez") from error


def _check_sizes(path: Path, file: np.lib.npyio.NpzFile, names: list[str], option: str) -> None:
    """Refuses arrays that would not fit in memory, by what the archive says of them, before any is unpacked.

    An archive may say too little: NumPy reads no more than the array's own header asks for, and that is checked against
    the same figure.
    """
    archive = file.zip
    if archive is None:
        raise TypeError("closed")
    free = available_memory()
    total = 0
    for name in names:
        member = archive.getinfo(name if name in archive.namelist() else f"{name}.npy")
        total += member.file_size
        if total > free:
            raise InputError(
                f"{option} {path}: its arrays take {total / 1e9:.1f} GB, more than the {free / 1e9:.1f} GB of memory "
                "that are free; save fewer samples"
            )
        with archive.open(member) as content:
            version = np.lib.format.read_magic(content)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _fortran, dtype = read[min(version, (2, 0))](content)
            if dtype.hasobject or any(extent < 0 for extent in shape):
                raise ValueError("pickled, or no shape")
            if math.prod(shape) * dtype.itemsize + content.tell() != member.file_size:
                raise ValueError("the header does not fit the data")


def _batch(specs: list[InputSpec]) -> int | None:
    return next((spec.batch for spec in specs if spec.batch), None)


def _check_array(array: Array, spec: InputSpec, where: str) -> None:
    if array.dtype != spec.dtype:
        raise InputError(f"{where}: array '{spec.name}' is {array.dtype}, the graph input is {spec.dtype}; convert it")
    if not array.ndim:
        raise InputError(f"{where}: array '{spec.name}' is a single number; the first axis is that of the samples")
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise InputError(f"{where}: array '{spec.name}' has NaN or infinite values; remove those samples")
    if spec.shape is None:
        return
    extra = array.ndim - len(spec.shape)
    if extra not in (0, 1):
        raise InputError(
            f"{where}: array '{spec.name}' has rank {array.ndim}, the graph input {len(spec.shape)}; "
            "the first axis is that of the samples"
        )
    inner = array.shape[1:]
    expected = spec.shape[1:] if extra == 0 else spec.shape
    if any(want is not None and want != have for want, have in zip(expected, inner, strict=True)):
        shape = "×".join("?" if n is None else str(n) for n in expected)
        found = "×".join(map(str, inner)) or "single numbers"
        raise InputError(f"{where}: samples of '{spec.name}' are {found}, the graph input takes {shape or 'a number'}")


def synthetic_dataset(specs: list[InputSpec], samples: int, seed: int, *, runs: int | None = None) -> Dataset:
    """Seeded inputs for models without data: standard normal floats, uniform bytes, small non-negative integers, no
    larger than the tables that they index have entries.

    Dynamic axes other than the first are given 16 elements. Statistics from such inputs are a stand-in: whoever uses
    them must say so.

    Args:
        specs: The model's inputs.
        samples: Number of samples.
        seed: Of the random numbers.
        runs: Where the model fixes its batch size, no more samples than fit in so many runs.

    Raises:
        InputError: if an input is so large that they would fill the memory.
    """
    rng = np.random.default_rng(seed)
    batch = _batch(specs)
    one_by_one = any(spec.batch not in (None, batch) or not spec.shape for spec in specs)
    if runs is not None and (one_by_one or batch):
        samples = min(samples, runs * (1 if one_by_one else batch or 1))
    arrays = {}
    for spec in specs:
        inner = tuple(n or _GUESSED_EXTENT for n in (spec.shape or ()))
        shape = (samples, *inner) if one_by_one else (samples, *inner[1:])
        if math.prod(shape) > _MOST_SYNTHETIC:
            raise InputError(
                f"{samples} synthetic samples of graph input '{spec.name}' have {math.prod(shape):.3g} numbers; "
                "give data of your own"
            )
        arrays[spec.name] = _random(rng, shape, spec)
    return Dataset(arrays, None, one_by_one, None if one_by_one else batch, f"synthetic, seed {seed}")


def _random(rng: np.random.Generator, shape: tuple[int, ...], spec: InputSpec) -> Array:
    dtype = spec.dtype
    if dtype == np.uint8 and spec.limit is None:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if dtype == np.bool_:
        return rng.random(shape) < 0.5
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, spec.limit or 8, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def dataset_sha256(data: Dataset) -> str:
    """SHA-256 of names, types, shapes and values of all arrays, whatever file they came in."""
    digest = hashlib.sha256()
    arrays = data.arrays | ({LABELS: data.labels} if data.labels is not None else {})
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
