"""What every analysis and pass needs of a graph: its constants, and all of its graphs, functions and nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError

__all__ = [
    "STANDARD_DOMAINS",
    "Owner",
    "constant_array",
    "constant_tensor",
    "graphs_of",
    "is_constant",
    "roots",
    "walk",
]

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})

Owner = ir.Graph | ir.Function


def constant_tensor(value: ir.Value) -> ir.TensorProtocol:
    """The tensor behind an initializer or a Constant node's output.

    Raises:
        InputError: if the value is not constant.
    """
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise InputError(f"value '{value.name}' is not a constant; fold constants before hardening")
    return tensor


def constant_array(value: ir.Value) -> NDArray[Any]:
    """The array behind an initializer or a Constant node's output, in its own dtype."""
    return np.asarray(constant_tensor(value).numpy())


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer or the output of a Constant node."""
    if value is None:
        return False
    producer = value.producer()
    if producer is None:
        return value.const_value is not None and value.is_initializer()
    if producer.op_type != "Constant" or producer.domain not in STANDARD_DOMAINS:
        return False
    return not next(iter(producer.attributes.values())).is_ref()


def _roots_of(model: ir.Model) -> list[Owner]:
    return [model.graph, *model.functions.values()]


def graphs_of(model: ir.Model) -> Iterator[tuple[Owner, Owner]]:
    """Every graph of a model with the main graph or function it belongs to: main graph, functions, all subgraphs."""
    for root in _roots_of(model):
        yield root, root
        for subgraph in root.subgraphs():
            yield root, subgraph


def roots(model: ir.Model) -> dict[int, Owner]:
    """For every graph, by identity, the main graph or function that it belongs to."""
    found: dict[int, Owner] = {}
    for root, graph in graphs_of(model):
        found[id(graph)] = root
        if isinstance(graph, ir.Function):
            found[id(graph.graph)] = root
    return found


def walk(model: ir.Model) -> Iterator[tuple[Owner, ir.Node]]:
    """Every node of a model with the main graph or function that it is in, at whatever depth."""
    for root in _roots_of(model):
        for node in root.all_nodes():
            yield root, node
