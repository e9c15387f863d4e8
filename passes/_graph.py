"""What every pass needs of a graph: fresh names, new initializers, and main-graph values carried into functions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.weights import graphs_of, walk

__all__ = ["NameTable", "add_constant", "add_input", "carry_into", "insert_at_start"]

Owner = ir.Graph | ir.Function


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


def add_constant(model: ir.Model, owner: Owner, name: str, array: NDArray[np.generic]) -> ir.Value:
    """A constant that is visible in the whole of `owner`: an initializer, or a Constant node inside a function.

    Before IR version 4 every initializer of the main graph is a graph input as well.
    """
    tensor = ir.tensor(array, name=name)
    if isinstance(owner, ir.Function):
        constant = ir.node("Constant", [], {"value": tensor})
        value = constant.outputs[0]
        value.name = name
        value.const_value = tensor
        insert_at_start(owner, [constant])
    else:
        value = ir.val(name, tensor.dtype, tensor.shape, const_value=tensor)
        owner.register_initializer(value)
        if owner is model.graph and model.ir_version < 4:
            owner.inputs.append(value)
    value.type = ir.TensorType(tensor.dtype)
    value.shape = ir.Shape(array.shape)
    return value


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
    value = ir.val(name, tensor.dtype, tensor.shape, const_value=tensor)
    model.graph.register_initializer(value)
    model.graph.inputs.append(value)
    return value


def carry_into(model: ir.Model, value: ir.Value, owner: Owner, carried: dict[tuple[int, int], ir.Value]) -> ir.Value:
    """A value of the main graph as it is seen inside `owner`.

    Subgraphs see it by name. A function gets an input for it, and every call of that function passes it on, through
    any number of levels.

    Args:
        model: The model.
        value: A value of the main graph.
        owner: The graph or function that needs it.
        carried: Memory of what was carried before, so that each function gets one input a value.
    """
    if not isinstance(owner, ir.Function):
        return value
    key = (id(owner), id(value))
    if key not in carried:
        inner = ir.val(str(value.name), value.dtype, value.shape)
        owner.inputs.append(inner)
        carried[key] = inner
        for root, node in list(walk(model)):
            if model.functions.get(node.op_identifier()) is owner:
                outer = carry_into(model, value, root, carried)
                node.resize_inputs(len(owner.inputs))
                node.replace_input_with(len(owner.inputs) - 1, outer)
    return carried[key]
