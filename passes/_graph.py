"""What every pass needs: fresh names, constants put in and taken out, main-graph values carried into functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.graph import Owner, graphs_of, roots, walk

__all__ = ["Carrier", "NameTable", "NodeBuilder", "add_constant", "add_input", "discard", "insert_at_start"]

_FREE_INITIALIZERS = 4
"""The IR version from which an initializer need not be a graph input as well."""


class NameTable:
    """Gives names that no value or node of a model has."""

    def __init__(self, model: ir.Model) -> None:
        """Collects the names in use."""
        self._used: set[str] = set()
        for _root, graph in graphs_of(model):
            local = graph.graph if isinstance(graph, ir.Function) else graph
            self._used.update(str(value.name) for value in (*graph.inputs, *local.initializers.values()))
        for _root, node in walk(model):
            self._used.add(str(node.name))
            self._used.update(str(output.name) for output in node.outputs)

    def fresh(self, wanted: str) -> str:
        """`wanted`, or `wanted_1`, `wanted_2`, … if it is taken."""
        name, number = wanted, 0
        while name in self._used:
            number += 1
            name = f"{wanted}_{number}"
        self._used.add(name)
        return name


def add_constant(model: ir.Model, owner: Owner, name: str, array: NDArray[np.generic] | ir.TensorProtocol) -> ir.Value:
    """A constant that is visible in the whole of `owner`: an initializer, or a Constant node inside a function.

    Before IR version 4 every initializer is a graph input as well, so that subgraphs, whose inputs are not free, get
    Constant nodes too.
    """
    tensor: ir.TensorProtocol = ir.tensor(array, name=name) if isinstance(array, np.ndarray) else array
    tensor.name = name
    shape = tuple(map(int, tensor.shape))  # type: ignore[arg-type]
    if isinstance(owner, ir.Function) or (owner is not model.graph and model.ir_version < _FREE_INITIALIZERS):
        constant = ir.node("Constant", [], {"value": tensor})
        value = constant.outputs[0]
        value.name = name
        value.const_value = tensor
        insert_at_start(owner, [constant])
    else:
        value = ir.val(name, tensor.dtype, ir.Shape(shape), const_value=tensor)
        owner.register_initializer(value)
        if model.ir_version < _FREE_INITIALIZERS:
            owner.inputs.append(value)
    value.type = ir.TensorType(tensor.dtype)
    value.shape = ir.Shape(shape)
    return value


class NodeBuilder:
    """Collects nodes that compute something, with constants beside them."""

    def __init__(
        self, model: ir.Model, owner: Owner, name: str, part: str, names: NameTable, nodes: list[ir.Node] | None = None
    ) -> None:
        """Takes the graph of the nodes, and what they are named after: the weight, and what of it they compute."""
        self.model, self.owner, self.name, self.part, self.names = model, owner, name, part, names
        self.nodes: list[ir.Node] = [] if nodes is None else nodes

    def constant(self, suffix: str, array: np.ndarray) -> ir.Value:
        """A new constant beside the nodes."""
        return add_constant(self.model, self.owner, self.names.fresh(f"{self.name}.{suffix}"), array)

    def then(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, object] | None = None
    ) -> ir.Value:
        """The result of one more operator."""
        wanted = f"{self.name}.{self.part}/{op_type}"
        new = ir.node(op_type, inputs, attributes, name=self.names.fresh(wanted))  # type: ignore[arg-type]
        new.outputs[0].name = self.names.fresh(f"{wanted}_output")
        self.nodes.append(new)
        return new.outputs[0]


def discard(value: ir.Value) -> None:
    """Removes a constant that nothing reads any more; one that is still read, or is a graph output, stays."""
    if value.uses() or value.is_graph_output():
        return
    producer = value.producer()
    if producer is not None:
        if producer.graph is not None:
            producer.graph.remove(producer, safe=True)
        return
    graph = value.graph
    if graph is None:
        return
    if value in graph.inputs:
        graph.inputs.remove(value)
    for name, initializer in list(graph.initializers.items()):
        if initializer is value:
            del graph.initializers[name]


def insert_at_start(owner: Owner, nodes: Iterable[ir.Node]) -> None:
    """Puts nodes before all others of a graph or function."""
    nodes = list(nodes)
    first = next(iter(owner), None)
    if first is None:
        owner.extend(nodes)
    else:
        owner.insert_before(first, nodes)


def add_input(model: ir.Model, name: str, default: NDArray[np.generic]) -> ir.Value:
    """An optional graph input: fed if wanted, else `default`. Needs IR version 4."""
    tensor = ir.tensor(default, name=name)
    value = ir.val(name, tensor.dtype, ir.Shape(default.shape), const_value=tensor)
    model.graph.register_initializer(value)
    model.graph.inputs.append(value)
    return value


class Carrier:
    """Makes values of the main graph visible wherever they are needed.

    Subgraphs of the main graph see them by name. A function gets an input for each, and every call of that function
    passes it on, through any number of levels.
    """

    def __init__(self, model: ir.Model) -> None:
        """Takes the model; its graphs and functions must not be added to afterwards."""
        self._model = model
        self._roots = roots(model)
        self._carried: dict[tuple[int, int], ir.Value] = {}

    def root(self, owner: Owner) -> Owner:
        """The main graph or function that a graph belongs to."""
        return self._roots[id(owner)]

    def into(self, owner: Owner, value: ir.Value) -> ir.Value:
        """A value of the main graph as it is seen inside `owner`."""
        function = self.root(owner)
        if not isinstance(function, ir.Function):
            return value
        key = (id(function), id(value))
        if key not in self._carried:
            inner = ir.val(str(value.name), value.dtype, value.shape)
            function.inputs.append(inner)
            self._carried[key] = inner
            for caller, node in list(walk(self._model)):
                if self._model.functions.get(node.op_identifier()) is function:
                    outer = self.into(caller, value)
                    node.resize_inputs(len(function.inputs))
                    node.replace_input_with(len(function.inputs) - 1, outer)
        return self._carried[key]
