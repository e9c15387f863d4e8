"""Sparse tensors: kept as they are. The graph is worked on with dense ones, which are told apart by a mark.

onnx_ir knows no sparse tensors, and onnxruntime makes them dense when it loads a model. So they are made dense when a
model is read, and sparse again when it is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper

from qtaml_onnx.errors import InputError
from qtaml_onnx.graph import constant_tensor, graphs_of, is_constant

__all__ = ["has_sparse", "is_sparse", "make_dense", "make_sparse"]

_MARK = "qtaml_onnx: sparse in the file"
"""The doc string of a tensor that was sparse; no such tensor is written."""

_MOST_BYTES = 1 << 31
"""Largest sparse tensor, when it is dense."""


def is_sparse(value: ir.Value) -> bool:
    """Whether a constant is sparse in the file."""
    return bool(constant_tensor(value).doc_string == _MARK)


def has_sparse(model: ir.Model) -> bool:
    """Whether a model has tensors that are sparse in the file."""
    for _root, graph in graphs_of(model):
        local = graph.graph if isinstance(graph, ir.Function) else graph
        constants = [*local.initializers.values(), *(output for node in graph for output in node.outputs)]
        if any(is_constant(value) and is_sparse(value) for value in constants):
            return True
    return False


def make_dense(path: Path, proto: onnx.ModelProto) -> None:
    """Replaces sparse initializers and Constant nodes by dense ones with a mark, in place.

    Args:
        path: The file, for messages.
        proto: The model.

    Raises:
        InputError: if a sparse tensor is inconsistent, too large, or anything but a constant.
    """
    for graph in _graphs(proto):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(path, sparse))
        graph.ClearField("sparse_initializer")
    for node in _nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                if node.op_type != "Constant":
                    raise InputError(f"{path}: {node.op_type} '{node.name}' has a sparse attribute; export a dense one")
                tensor = _dense(path, attribute.sparse_tensor)
                attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))


def make_sparse(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The inverse: tensors with the mark become sparse, in place; the model is handed back."""
    for graph in _graphs(proto):
        dense = list(graph.initializer)
        if any(tensor.doc_string == _MARK for tensor in dense):
            graph.sparse_initializer.extend(_sparse(tensor) for tensor in dense if tensor.doc_string == _MARK)
            graph.ClearField("initializer")
            graph.initializer.extend(tensor for tensor in dense if tensor.doc_string != _MARK)
    for node in _nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.doc_string == _MARK:
                attribute.CopyFrom(onnx.helper.make_attribute("sparse_value", _sparse(attribute.t)))
    return proto


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and all subgraphs, of functions as well."""
    yield proto.graph
    for node in _nodes(proto):
        for attribute in node.attribute:
            yield from ([attribute.g] if attribute.HasField("g") else [])
            yield from attribute.graphs


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes, at whatever depth."""
    stack = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while stack:
        node = stack.pop()
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                stack.extend(graph.node)


def _dense(path: Path, sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    name, shape = sparse.values.name, tuple(sparse.dims)
    where = f"{path}: sparse tensor '{name}'"
    if onnx.TensorProto.EXTERNAL in (sparse.values.data_location, sparse.indices.data_location):
        raise InputError(f"{where} has external data, which is not supported; export it inside the model")
    try:
        values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    except Exception as error:  # a tensor that contradicts itself raises what NumPy and the helper raise
        raise InputError(f"{where} cannot be read: {str(error).splitlines()[0]}; export it again") from error
    size = math.prod(shape)
    if any(n < 0 for n in shape) or size * values.itemsize > _MOST_BYTES:
        raise InputError(f"{where} has shape {list(shape)}, more than 2 GiB when dense, as onnxruntime makes it")
    array = np.zeros(size, values.dtype)
    array[_flat(where, places, shape, len(values))] = values
    tensor = numpy_helper.from_array(array.reshape(shape), name)
    tensor.data_type, tensor.doc_string = sparse.values.data_type, _MARK
    return tensor


def _flat(where: str, places: NDArray[np.generic], shape: tuple[int, ...], count: int) -> NDArray[np.int64]:
    """Positions in the dense tensor, from a list of them or from coordinates [count, rank]."""
    if places.dtype != np.int64 or places.shape not in ((count,), (count, len(shape))):
        raise InputError(f"{where} has indices of type {places.dtype} and shape {list(places.shape)}; export it again")
    extents = np.array(shape if places.ndim == 2 else [math.prod(shape)], dtype=np.int64)
    if count and ((places < 0) | (places >= extents)).any():  # type: ignore[operator]
        raise InputError(f"{where} has indices outside its shape {list(shape)}; export it again")
    if places.ndim == 1:
        return places.astype(np.int64)
    return np.ravel_multi_index(tuple(places.astype(np.int64).T), shape).astype(np.int64) if count else np.zeros(0, int)


def _sparse(dense: onnx.TensorProto) -> onnx.SparseTensorProto:
    array = numpy_helper.to_array(dense)
    flat = array.reshape(-1)
    places = np.flatnonzero(flat).astype(np.int64)
    values = numpy_helper.from_array(flat[places], dense.name)
    values.data_type = dense.data_type
    return onnx.helper.make_sparse_tensor(values, numpy_helper.from_array(places), list(dense.dims))
