"""Reads and writes ONNX models: nothing half-read, nothing half-written, no path followed out of the model's folder.

Large tensors are never held in memory: they are read where they are, in the model's file or in its external data, and
written one after the other.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from qtaml_onnx.errors import InputError
from qtaml_onnx.external_data import (
    ExternalData,
    check_overlaps,
    external_files,
    locate,
    open_buffer,
    resolve_tensors,
    tensor_bytes,
)
from qtaml_onnx.graph import constant_tensor, graphs_of, is_constant, walk
from qtaml_onnx.old_opsets import is_old, raise_opset
from qtaml_onnx.outputs import OutputSet, check_free_space
from qtaml_onnx.sparse import is_sparse, make_dense, make_sparse
from qtaml_onnx.validation import check_names, check_proto, fill_attributes, first_line, sort_graphs, tensors_of
from qtaml_onnx.wire import Buffer, StreamedTensor, cut_raw_data, write_inline

__all__ = [
    "OutputSet",
    "SourceModel",
    "constant_bytes",
    "file_sha256",
    "least_hardened_bytes",
    "load_model",
    "save_model",
]

PLAN_KEY = "qtaml_onnx.plan_sha256"
"""The metadata entry by which a hardened model names its plan."""

FAULT_DOMAIN = "qtaml"
"""Domain of the fault operators."""

_EXTERNAL_THRESHOLD = 1_800_000_000
"""Above this many bytes of constants a model is saved with external data (protobuf ends at 2 GiB)."""

_SEPARATE = 1 << 16
"""Bytes from which on a tensor is read in place and written by itself."""

_ALIGNMENT = 4096
"""Tensors in a file of external data start at whole pages, so that they can be mapped."""


@dataclass(frozen=True)
class SourceModel:
    """A model as read: the path and hash that a report names, and the graph to work on.

    Attributes:
        path: The file.
        sha256: Of the file, without its external data.
        model: The graph; its large tensors are views of the files' bytes.
        external_files: Files of external data that it has.
        warnings: What to tell of the reading.
    """

    path: Path
    sha256: str
    model: ir.Model
    external_files: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the model is made of."""
        return (self.path, *self.external_files)

    @property
    def hardened(self) -> bool:
        """Whether the weights are stored by a plan already."""
        return PLAN_KEY in self.model.metadata_props

    @property
    def instrumented(self) -> bool:
        """Whether the model has fault operators."""
        return any(node.domain == FAULT_DOMAIN for _root, node in walk(self.model))

    def check_plain(self) -> None:
        """Raises InputError if the model is hardened or instrumented already."""
        if self.instrumented:
            raise InputError(f"{self.path} is instrumented already; give the model that it was made from")
        if self.hardened:
            raise InputError(f"{self.path} is hardened already; give the model that it was made from")

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return int(self.model.opset_imports.get("", 0))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_model(path: str | os.PathLike[str]) -> SourceModel:
    """Reads and checks a model.

    External data is read from inside the model's folder alone. The file and its external data must not change while
    the result is in use, as large tensors are read from them when they are needed.

    Raises:
        InputError: if the file is missing, empty, not an ONNX model, refused by the ONNX checker, too old to be
            converted, or names external data that is outside its folder, missing or not as long as its tensors.
    """
    path = Path(path)
    data = _read(path)
    proto, own = _parse(path, data)
    fill_attributes(proto)
    sort_graphs(proto)
    raised = None
    if is_old(proto):  # the converter wants all values at hand
        proto.ParseFromString(bytes(data))
        proto, raised = raise_opset(path, proto)
    places: dict[tuple[str, int, int], ExternalData] = {}
    elsewhere = []
    for tensor in tensors_of(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = _own_data(path, tensor) if _location(tensor) == own else locate(path, tensor)
            if _location(tensor) != own:
                elsewhere.append(place)
                _normalise(tensor, place)
            places[_location(tensor), place.start, place.end - place.start] = place
    check_overlaps(path, elsewhere)
    check_proto(path, proto)
    make_dense(path, proto)
    check_names(path, proto)
    files = external_files(elsewhere)
    try:
        buffers = {path.resolve(): data} | {file: open_buffer(file) for file in files}
        model = ir.from_proto(proto)
        ir.to_proto(model)  # what cannot be written is found now, not when all the work is done
        resolve_tensors(model, places, buffers)
    except OSError as error:
        raise InputError(
            f"{path}: its external data cannot be read ({error.strerror or error}); copy it again"
        ) from error
    except Exception as error:  # wraps whatever went wrong, without a common base
        raise InputError(f"{path}: its graph cannot be read: {first_line(error)}; export the model again") from error
    return SourceModel(path, hashlib.sha256(data).hexdigest(), model, files, (raised,) if raised else ())


def _read(path: Path) -> Buffer:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name the .onnx file in it")
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no regular file; save the model to one")
        data = open_buffer(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError) as error:  # also a name with a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); check its name and permissions") from error
    if not len(data):
        raise InputError(f"{path} is empty; export the model again")
    return data


def _parse(path: Path, data: Buffer) -> tuple[onnx.ModelProto, str]:
    """The model without its large tensors, and what the place of these is called in it."""
    own = f"{path.name}#{secrets.token_hex(16)}"  # a name that the file itself cannot know
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(cut_raw_data(data, own, _SEPARATE))
    except (DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not an ONNX model or is truncated (or nests its graphs too deeply); export or copy it again"
        ) from error
    if not proto.HasField("graph") or not proto.opset_import or not proto.ir_version:
        raise InputError(f"{path} is not an ONNX model (no graph, opset or IR version); name an .onnx file")
    return proto, own


def _location(tensor: onnx.TensorProto) -> str:
    return next((entry.value for entry in reversed(tensor.external_data) if entry.key == "location"), "")


def _own_data(path: Path, tensor: onnx.TensorProto) -> ExternalData:
    """The place of a tensor in the model's own file."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    start, length = int(entries["offset"]), int(entries["length"])
    try:
        needed = tensor_bytes(tensor)
    except ValueError as error:
        raise InputError(f"{path}: tensor '{tensor.name}': {error}; export the model again") from error
    if length != needed:
        raise InputError(
            f"{path}: tensor '{tensor.name}' has {length} bytes of data, its type and shape need {needed}; "
            "export the model again"
        )
    return ExternalData(tensor.name, path.resolve(), start, start + length)


def _normalise(tensor: onnx.TensorProto, place: ExternalData) -> None:
    """Spells out a tensor's offset and length, and leaves away what else the entry says (a checksum)."""
    location = _location(tensor)
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", place.start), ("length", place.end - place.start)):
        tensor.external_data.add(key=key, value=str(value))


def save_model(model: ir.Model, outputs: OutputSet, path: Path, *, external_data: bool = False) -> str:
    """Adds a model to a set of outputs, tensor by tensor.

    One with more than 1.8 GB of constants, and any if `external_data`, gets its tensors in `<name>.data` beside it.

    Returns:
        The SHA-256 of the model's file.

    Raises:
        InputError: if it cannot be written, or its disk is too full.
    """
    total = constant_bytes(model)
    check_free_space(path, total)
    external = external_data or total > _EXTERNAL_THRESHOLD
    skeleton, tensors = _without_large_tensors(model, f"{path.name}.data", subgraphs=external)
    proto = make_sparse(ir.to_proto(skeleton))
    digest: list[str] = []
    if external:
        outputs.add(path, functools.partial(_write_skeleton, proto, digest))
        outputs.add(path.with_name(f"{path.name}.data"), functools.partial(_write_data, tensors))
    else:
        outputs.add(path, functools.partial(_write_whole, proto, tensors, digest))
    return digest[0]


@dataclass(frozen=True)
class _Placed:
    """A large initializer and where it starts in the external data."""

    name: str
    tensor: ir.TensorProtocol
    start: int


def _without_large_tensors(model: ir.Model, location: str, *, subgraphs: bool) -> tuple[ir.Model, list[_Placed]]:
    """A copy of a model in which references stand in for the large initializers, and these in order."""
    copy = model.clone()
    placed: list[_Placed] = []
    end = 0
    for _root, graph in graphs_of(copy):
        if isinstance(graph, ir.Function) or (graph is not copy.graph and not subgraphs):
            continue
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < _SEPARATE or tensor.dtype == ir.DataType.STRING or is_sparse(value):
                continue
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = start + tensor.nbytes
            placed.append(_Placed(str(value.name), tensor, start))
            value.const_value = ir.ExternalTensor(
                location,
                start,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tuple(map(int, tensor.shape))),  # type: ignore[arg-type]
                name=str(value.name),
                doc_string=tensor.doc_string,
            )
    return copy, placed


def _write_skeleton(proto: onnx.ModelProto, digest: list[str], path: Path) -> None:
    data = _serialised(proto)
    digest.append(hashlib.sha256(data).hexdigest())
    path.write_bytes(data)


def _serialised(proto: onnx.ModelProto) -> bytes:
    try:
        return proto.SerializeToString(deterministic=True)
    except Exception as error:  # protobuf's own, which says no more than that
        raise InputError(
            "more than 2 GiB of constants are no initializers (Constant nodes, functions); export them as initializers"
        ) from error


def _write_data(tensors: list[_Placed], path: Path) -> None:
    with path.open("wb") as file:
        for placed in tensors:
            file.write(bytes(placed.start - file.tell()))
            file.flush()  # tensors write to the file descriptor
            _to_file(placed.tensor, file)


def _write_whole(proto: onnx.ModelProto, tensors: list[_Placed], digest: list[str], path: Path) -> None:
    streamed = {
        placed.name: StreamedTensor(placed.tensor.nbytes, functools.partial(_to_file, placed.tensor))
        for placed in tensors
    }
    with path.open("wb") as file:
        write_inline(proto, streamed, file)
    digest.append(file_sha256(path))


def _to_file(tensor: ir.TensorProtocol, file: IO[bytes]) -> None:
    if isinstance(tensor, (ir.Tensor, ir.PackedTensor, ir.LazyTensor)):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())


def constant_bytes(model: ir.Model) -> int:
    """Bytes of all constants of a model, wherever they are held."""
    return sum(tensor.nbytes for tensor in _constants(model))


def least_hardened_bytes(model: ir.Model, word_bytes: int) -> int:
    """Bytes that a model takes at least when its weights are words: what is surely missing on a disk with less.

    Args:
        model: The model before hardening.
        word_bytes: Of a stored word.
    """
    return sum(min(tensor.nbytes, tensor.size * word_bytes) for tensor in _constants(model))


def _constants(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for _root, graph in graphs_of(model):
        local = graph.graph if isinstance(graph, ir.Function) else graph
        yield from (value.const_value for value in local.initializers.values() if value.const_value is not None)
        for node in graph:
            if node.op_type == "Constant" and is_constant(node.outputs[0]):
                yield constant_tensor(node.outputs[0])
