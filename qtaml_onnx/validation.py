"""What a model must be before anything else looks at it: libraries further on trust what they are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from qtaml_onnx.errors import InputError
from qtaml_onnx.external_data import element_count, tensor_bytes
from qtaml_onnx.graph import STANDARD_DOMAINS
from qtaml_onnx.topology import sort_nodes

__all__ = ["check_names", "check_proto", "fill_attributes", "first_line", "sort_graphs", "tensors_of"]

_FIELDS: dict[int, tuple[str, int]] = {
    onnx.TensorProto.FLOAT: ("float_data", 1),
    onnx.TensorProto.COMPLEX64: ("float_data", 2),
    onnx.TensorProto.DOUBLE: ("double_data", 1),
    onnx.TensorProto.COMPLEX128: ("double_data", 2),
    onnx.TensorProto.INT64: ("int64_data", 1),
    onnx.TensorProto.UINT32: ("uint64_data", 1),
    onnx.TensorProto.UINT64: ("uint64_data", 1),
    onnx.TensorProto.STRING: ("string_data", 1),
}
"""By element type, the field of values that are not raw, and how many of its entries make an element."""


def first_line(error: Exception) -> str:
    """The first line of an error that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _parts(proto: onnx.ModelProto, *, functions: bool = True) -> Iterator[onnx.GraphProto | onnx.NodeProto]:
    """Every graph and every node of a model, whatever type an attribute says it has, and of its functions if asked."""
    stack: list[onnx.GraphProto | onnx.NodeProto] = [proto.graph]
    for function in proto.functions if functions else ():
        stack += [*function.node, onnx.NodeProto(attribute=function.attribute_proto)]
    while stack:
        part = stack.pop()
        yield part
        if isinstance(part, onnx.GraphProto):
            stack += part.node
        else:
            for attribute in part.attribute:
                stack += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor of a model."""
    for part in _parts(proto):
        if isinstance(part, onnx.GraphProto):
            yield from part.initializer
        else:
            for attribute in part.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def fill_attributes(proto: onnx.ModelProto) -> None:
    """Spells out attributes that are 0 or empty, in place: some writers leave such values out."""
    fields = {onnx.AttributeProto.INT: "i", onnx.AttributeProto.FLOAT: "f", onnx.AttributeProto.STRING: "s"}
    for part in _parts(proto):
        for attribute in part.attribute if isinstance(part, onnx.NodeProto) else ():
            field = fields.get(attribute.type)
            if field is not None and not attribute.ref_attr_name and not attribute.HasField(field):
                setattr(attribute, field, getattr(attribute, field))


def sort_graphs(proto: onnx.ModelProto) -> None:
    """Sorts the nodes of graphs that are not in topological order, in place; a cycle is the checker's to refuse."""
    for part in _parts(proto, functions=False):
        if isinstance(part, onnx.GraphProto):
            sort_nodes(part)


def check_proto(path: Path, proto: onnx.ModelProto) -> None:
    """Refuses what is not a sound model.

    Args:
        path: For messages.
        proto: The model; tensors with external data are taken to be checked already.

    Raises:
        InputError: if it names no opset, has values that are maps, lists of sparse tensors, a tensor whose values are
            not as many as its shape says, initializers of one name, or something that the ONNX checker refuses.
    """
    opset = {entry.domain: entry.version for entry in proto.opset_import}.get("", 0)
    if not opset:
        domains = ", ".join(sorted({node.domain for node in proto.graph.node} - STANDARD_DOMAINS))
        reason = f": it has operators of {domains} alone, and no weights to harden" if domains else "; export it again"
        raise InputError(f"{path}: imports no version of the ONNX operator set{reason}")
    check_names(path, proto)
    _check_types(path, proto)
    for part in _parts(proto, functions=False):
        if isinstance(part, onnx.NodeProto) and any(attribute.ref_attr_name for attribute in part.attribute):
            raise InputError(
                f"{path}: {part.op_type} '{part.name}' refers to an attribute of a function, but is in none; "
                "export it again"
            )
    for part in _parts(proto):
        if isinstance(part, onnx.GraphProto):
            continue
        if part.op_type == "Constant" and part.domain in STANDARD_DOMAINS and len(part.attribute) != 1:
            raise InputError(f"{path}: Constant node {list(part.output)} has no value, or several; export it again")
        if any(attribute.sparse_tensors for attribute in part.attribute):
            raise InputError(f"{path}: {part.op_type} '{part.name}' has sparse attributes; export dense ones")
    for tensor in tensors_of(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            _check_values(path, tensor)
    try:
        onnx.checker.check_model(_outline(proto))
    except onnx.checker.ValidationError as error:
        raise InputError(f"{path}: the ONNX checker refuses it: {first_line(error)}") from error
    except Exception as error:  # protobuf's and the binding's own
        raise InputError(f"{path}: the ONNX checker fails on it: {first_line(error)}; export it again") from error


def _check_types(path: Path, proto: onnx.ModelProto) -> None:
    """Raises InputError if a value is a map, of which the graph library knows nothing."""
    for part in _parts(proto):
        for value in (*part.input, *part.output, *part.value_info) if isinstance(part, onnx.GraphProto) else ():
            kind = value.type
            while kind.HasField("sequence_type") or kind.HasField("optional_type"):
                kind = (kind.sequence_type if kind.HasField("sequence_type") else kind.optional_type).elem_type
            if kind.HasField("map_type"):
                raise InputError(
                    f"{path}: value '{value.name}' is a map, which no pass can handle; export the plain tensor instead "
                    "(skl2onnx and onnxmltools: the option zipmap=False)"
                )


def check_names(path: Path, proto: onnx.ModelProto) -> None:
    """Raises InputError if a graph of the model has several initializers of one name."""
    for graph in _parts(proto):
        seen: set[str] = set()
        for tensor in graph.initializer if isinstance(graph, onnx.GraphProto) else ():
            if tensor.name in seen:
                raise InputError(f"{path}: several initializers are named '{tensor.name}'; export the model again")
            seen.add(tensor.name)


def _check_values(path: Path, tensor: onnx.TensorProto) -> None:
    """A tensor has as many values as its type and shape say."""
    field, entries = _FIELDS.get(tensor.data_type, ("int32_data", 1))
    try:
        needed = tensor_bytes(tensor)
    except ValueError as error:
        raise InputError(f"{path}: tensor '{tensor.name}': {error}; export the model again") from error
    what = "bytes"
    if tensor.HasField("raw_data"):
        found = len(tensor.raw_data)
    else:
        what, found = "values", len(getattr(tensor, field))
        if field != "int32_data" or needed >= element_count(tensor):  # shorter ones are packed, a byte an entry
            needed = element_count(tensor) * entries
    if found != needed:
        raise InputError(
            f"{path}: tensor '{tensor.name}' has {found} {what} of data, its type and shape need {needed}; "
            "export the model again"
        )


def _outline(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for the checker, which looks for external data itself: there it sees empty tensors."""
    outline = onnx.ModelProto()
    outline.CopyFrom(proto)
    for tensor in tensors_of(outline):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.dims[:] = [0]
    return outline
