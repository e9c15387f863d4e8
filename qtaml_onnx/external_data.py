"""Tensors outside the protobuf: found, checked against the files they are in, and read in place.

Files of some size are mapped into memory: what a tensor needs of them is there when it is looked at, and the system may
take the pages back at any time. Nothing is read from outside the model's folder, whatever the model says.
"""

from __future__ import annotations

import itertools
import math
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx.external_data_helper import ExternalDataInfo

from qtaml_onnx.errors import InputError
from qtaml_onnx.graph import graphs_of
from qtaml_onnx.wire import Buffer

__all__ = [
    "ExternalData",
    "check_overlaps",
    "element_count",
    "external_files",
    "locate",
    "open_buffer",
    "resolve_tensors",
    "tensor_bytes",
]

_MAPPED = 1 << 24
"""Bytes of a file from which on it is mapped rather than read."""

_SHOWN = 80


@dataclass(frozen=True)
class ExternalData:
    """Where a tensor's bytes are: a file, and the bytes in it."""

    name: str
    path: Path
    start: int
    end: int


def open_buffer(path: Path) -> Buffer:
    """The bytes of a file, mapped if it is large; raises OSError if it cannot be read."""
    with path.open("rb") as file:
        if path.stat().st_size >= _MAPPED:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return memoryview(file.read())


def element_count(proto: onnx.TensorProto) -> int:
    """Number of elements that a tensor's shape says; ValueError if an extent is negative."""
    if any(extent < 0 for extent in proto.dims):
        raise ValueError(f"its shape {_shape(proto)} has a negative extent")
    return math.prod(proto.dims)


def tensor_bytes(proto: onnx.TensorProto) -> int:
    """Bytes that the values of a tensor take, 2- and 4-bit ones packed; 0 for strings, whose shape says nothing of it.

    Raises:
        ValueError: if its type or shape has no size.
    """
    count = element_count(proto)
    if proto.data_type == onnx.TensorProto.STRING:
        return 0
    try:
        bits = ir.DataType(proto.data_type).bitwidth
    except (TypeError, ValueError):
        raise ValueError(f"its element type {proto.data_type} is none that has a size") from None
    return -(-count * bits // 8)


def locate(model: Path, proto: onnx.TensorProto) -> ExternalData:
    """The place of a tensor's external data, inside the model's folder and inside the file.

    Raises:
        InputError: if it is elsewhere, missing, too short, or not as long as the tensor's type and shape say.
    """
    where = f"{model}: external data of tensor '{proto.name}'"
    try:
        info = ExternalDataInfo(proto)
        needed = tensor_bytes(proto)
        if proto.data_type == onnx.TensorProto.STRING:
            raise ValueError("strings cannot be external")
    except ValueError as error:
        raise InputError(f"{where}: {error}; export the model again") from error
    location = info.location
    folder = model.parent.resolve()
    outside = f"{model}: tensor '{proto.name}' points to '{location[:_SHOWN]}', outside the model's folder; "
    if not location or Path(location).is_absolute():
        raise InputError(outside + "put its external data beside the model")
    try:
        target = (folder / location).resolve()
        if folder not in target.parents:
            raise InputError(outside + "put its external data beside the model")
        if not target.is_file():
            raise InputError(
                f"{model}: external data '{location[:_SHOWN]}' of tensor '{proto.name}' is missing; copy it along"
            )
        size = target.stat().st_size
    except (OSError, ValueError, RuntimeError) as error:  # a name too long or with a NUL, a ring of links
        raise InputError(f"{where}: '{location[:_SHOWN]}' is no file name; export the model again") from error
    start = info.offset or 0
    if info.length is not None and info.length != needed:
        raise InputError(
            f"{where} has {info.length} bytes, its type and shape {_shape(proto)} need {needed}; export the model again"
        )
    if start + needed > size:
        raise InputError(f"{where} ends at byte {start + needed}, '{location}' at {size}; copy it again, in full")
    return ExternalData(proto.name, target, start, start + needed)


def _shape(proto: onnx.TensorProto) -> str:
    return "×".join(map(str, proto.dims)) or "()"


def check_overlaps(model: Path, tensors: Iterable[ExternalData]) -> None:
    """Raises InputError if two tensors share a part of their bytes; sharing all of them is a tied weight."""
    ordered = sorted((t for t in tensors if t.end > t.start), key=lambda t: (t.path, t.start, t.end))
    for one, other in itertools.pairwise(ordered):
        if one.path == other.path and other.start < one.end and (one.start, one.end) != (other.start, other.end):
            raise InputError(
                f"{model}: external data of tensors '{one.name}' and '{other.name}' overlap; export the model again"
            )


def external_files(tensors: Iterable[ExternalData]) -> tuple[Path, ...]:
    """The files that hold them."""
    return tuple(sorted({tensor.path for tensor in tensors}))


def resolve_tensors(
    model: ir.Model, places: dict[tuple[str, int, int], ExternalData], buffers: dict[Path, Buffer]
) -> None:
    """Gives every external tensor of a model its values, as views of the files' bytes.

    Args:
        model: The model; changed in place.
        places: By location, offset and length, where the bytes are.
        buffers: By path, the files.
    """

    def read(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        place = places[str(tensor.location), tensor.offset or 0, tensor.length or 0]
        data = buffers[place.path][place.start : place.end]
        return _view(tensor, data)

    for _root, graph in graphs_of(model):
        local = graph.graph if isinstance(graph, ir.Function) else graph
        for value in local.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = read(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    tensor = read(attribute.value)
                    node.attributes[name] = ir.AttrTensor(name, tensor)
                    for output in node.outputs if node.op_type == "Constant" else ():
                        output.const_value = tensor


def _view(tensor: ir.ExternalTensor, data: Buffer) -> ir.TensorProtocol:
    """A tensor over bytes that are not its own."""
    shape = ir.Shape(tensor.shape)
    raw = np.frombuffer(data, dtype=np.uint8)
    if tensor.dtype.bitwidth < 8:
        return ir.PackedTensor(raw, dtype=tensor.dtype, shape=shape, name=tensor.name, doc_string=tensor.doc_string)
    values = raw.view(tensor.dtype.numpy().newbyteorder("<")).reshape(tuple(map(int, tensor.shape)))  # type: ignore[arg-type]
    return ir.Tensor(values, dtype=tensor.dtype, shape=shape, name=tensor.name, doc_string=tensor.doc_string)
