"""Protobuf's wire format, as far as large models need it: tensors are read in place and written one after the other.

Protobuf libraries hold a whole message in memory, weights included, and a second time while it is parsed or written.
Here the large `raw_data` fields of an ONNX file are cut out before it is parsed, each replaced by a reference to its
bytes, and on the way out they are spliced into a file around them.

Sources: https://protobuf.dev/programming-guides/encoding and the field numbers of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import onnx

__all__ = ["Buffer", "StreamedTensor", "cut_raw_data", "write_inline"]

Buffer = memoryview
"""The bytes of a file: read, or mapped into memory."""

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _FUNCTION, _TENSOR = range(6)
_CHILDREN = {
    _MODEL: {7: _GRAPH, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH},
    _FUNCTION: {7: _NODE},
    _TENSOR: {},
}
"""By message, the fields that hold tensors, however deep."""

_GRAPH_OF_MODEL, _INITIALIZER_OF_GRAPH = 7, 5
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_DEEPEST = 100
"""Nesting at which protobuf libraries give up."""


class _MalformedError(Exception):
    """Not protobuf; the parser itself finds the words for it."""


@dataclass(frozen=True)
class _Field:
    number: int
    kind: int
    start: int  # of the tag
    body: int  # of the value; of a length-delimited one, behind its length
    end: int


def _varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise _MalformedError


def _fields(data: Buffer, start: int, end: int) -> Iterator[_Field]:
    at = start
    while at < end:
        tag, body = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            stop = _varint(data, body, end)[1]
        elif kind == 2:
            length, body = _varint(data, body, end)
            stop = body + length
        elif kind in (1, 5):
            stop = body + (8 if kind == 1 else 4)
        else:  # groups, which ONNX has none of
            raise _MalformedError
        if stop > end or not number:
            raise _MalformedError
        yield _Field(number, kind, at, body, stop)
        at = stop


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _prefix(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return _encoded(number << 3 | 2) + _encoded(length)


def cut_raw_data(data: Buffer, location: str, least: int) -> bytes:
    """A serialised ModelProto without its large tensors' bytes: these become external data at their place in `data`.

    Args:
        data: The file.
        location: What the external data is called in the result.
        least: Bytes from which on `raw_data` is cut out.

    Returns:
        A serialised ModelProto; the file as it is where it is not protobuf, for the parser to refuse.
    """
    try:
        return b"".join(_cut(data, _MODEL, 0, len(data), location, least, 0))
    except _MalformedError:
        return bytes(data)


def _cut(data: Buffer, message: int, start: int, end: int, location: str, least: int, depth: int) -> list[bytes]:
    if end - start < least or depth > _DEEPEST:
        return [bytes(data[start:end])]
    fields = list(_fields(data, start, end))
    if message == _TENSOR:
        return _cut_tensor(data, fields, location, least)
    pieces = []
    for field in fields:
        child = _CHILDREN[message].get(field.number)
        if child is None or field.kind != 2:
            pieces.append(bytes(data[field.start : field.end]))
        else:
            inner = _cut(data, child, field.body, field.end, location, least, depth + 1)
            pieces += [_prefix(field.number, sum(map(len, inner))), *inner]
    return pieces


def _cut_tensor(data: Buffer, fields: list[_Field], location: str, least: int) -> list[bytes]:
    raw = [field for field in fields if field.number == _RAW_DATA]
    elsewhere = any(
        field.number == _EXTERNAL_DATA
        or (field.number == _DATA_LOCATION and bytes(data[field.body : field.end]) != b"\0")
        for field in fields
    )
    if len(raw) != 1 or raw[0].kind != 2 or raw[0].end - raw[0].body < least or elsewhere:
        return [bytes(data[field.start : field.end]) for field in fields]
    reference = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", raw[0].body), ("length", raw[0].end - raw[0].body)):
        reference.external_data.add(key=key, value=str(value))
    rest = [bytes(data[field.start : field.end]) for field in fields if field is not raw[0]]
    return [*rest, reference.SerializeToString(deterministic=True)]


@dataclass(frozen=True)
class StreamedTensor:
    """An initializer whose bytes are written when their turn comes.

    Attributes:
        length: Bytes of its data.
        write: Writes them, exactly so many.
    """

    length: int
    write: Callable[[IO[bytes]], None]


def write_inline(model: onnx.ModelProto, streamed: dict[str, StreamedTensor], file: IO[bytes]) -> None:
    """Writes a model as one ModelProto, some of its initializers' data from elsewhere.

    Args:
        model: The model; its initializers of the names in `streamed` have no data or refer to some. It is changed.
        streamed: By name, the initializers whose data is not in `model`.
        file: Where to write.
    """
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    model.ClearField("graph")
    parts: list[tuple[bytes, StreamedTensor | None]] = []
    for tensor in graph.initializer:
        large = streamed.get(tensor.name)
        length = large.length if large else 0
        if large is not None:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
        head = tensor.SerializeToString(deterministic=True) + (_prefix(_RAW_DATA, length) if large else b"")
        parts.append((_prefix(_INITIALIZER_OF_GRAPH, len(head) + length) + head, large))
    graph.ClearField("initializer")
    rest = graph.SerializeToString(deterministic=True)
    length = len(rest) + sum(len(head) + (large.length if large else 0) for head, large in parts)
    file.write(model.SerializeToString(deterministic=True))
    file.write(_prefix(_GRAPH_OF_MODEL, length) + rest)
    for head, large in parts:
        file.write(head)
        if large is not None:
            file.flush()  # tensors write to the file descriptor
            large.write(file)
