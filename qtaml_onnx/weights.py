"""Finds the weights of a model: which constants feed which operators, on which axis, and what is left out and why."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.axes import channel_axis, counted_from_the_front
from qtaml_onnx.errors import InputError
from qtaml_onnx.graph import STANDARD_DOMAINS, Owner, constant_array, constant_tensor, graphs_of, is_constant, walk
from qtaml_onnx.integer_grid import IntegerGrid
from qtaml_onnx.operands import role_of, weight_operands
from qtaml_onnx.quantized import (
    BIAS_INPUTS,
    SiteError,
    dequantize_grid,
    integer_operands,
    operator_grid,
    parameter_inputs,
)
from qtaml_onnx.sources import find_arguments, sources_of
from qtaml_onnx.sparse import is_sparse

__all__ = [
    "Inventory",
    "LeftOut",
    "Weight",
    "constant_array",
    "constants_of",
    "find_weights",
    "float_dtype",
    "float_weights",
    "holder_of",
    "is_constant",
    "may_be_weights",
    "stored_values",
]

FLOAT_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_SMALL_INTEGERS = frozenset(
    {
        *(ir.DataType.INT2, ir.DataType.INT4, ir.DataType.INT8, ir.DataType.INT16),
        *(ir.DataType.UINT2, ir.DataType.UINT4, ir.DataType.UINT8, ir.DataType.UINT16),
    }
)


@dataclass(frozen=True)
class Weight:
    """A stored constant that an operator reads as its weights.

    Attributes:
        name: Unique in the model: the value's name, prefixed by its function's.
        value: The constant's value in the graph; behind a DequantizeLinear, that operator's output.
        owner: The graph or function that holds it.
        op_type: The first operator that reads it.
        consumer: That operator's node.
        operand: Which input of `consumer` it is.
        channel_axis: The axis of output channels in the stored shape; None where there is none.
        dequantize: The DequantizeLinear node that makes floats of a quantised weight, else None.
        grid: What the integers of a quantised weight stand for; None for a float weight.
    """

    name: str
    value: ir.Value
    owner: Owner
    op_type: str
    consumer: ir.Node
    operand: int
    channel_axis: int | None
    dequantize: ir.Node | None = None
    grid: IntegerGrid | None = None

    @property
    def stored(self) -> ir.Value:
        """The constant itself: the float tensor, or the integers of a quantised weight."""
        if self.dequantize is None:
            return self.value
        words = self.dequantize.inputs[0]
        if words is None:
            raise InputError(f"DequantizeLinear '{self.dequantize.name}' has no input; export the model again")
        return words

    @property
    def reader(self) -> tuple[ir.Node, int]:
        """The operator that reads the stored constant of a quantised weight, and as which input."""
        return (self.consumer, self.operand) if self.dequantize is None else (self.dequantize, 0)

    @property
    def parameters(self) -> list[ir.Value]:
        """The constants of a quantised weight's steps, and of its zero points if they are not all 0."""
        if self.grid is None:
            return []
        node, scale, zero = parameter_inputs(*self.reader)
        indices = [scale, zero if self.grid.zero_point.any() else None]
        values = [node.inputs[i] for i in indices if i is not None and i < len(node.inputs)]
        return [value for value in values if value is not None]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight: that of the stored constant, unless its words are packed."""
        if self.grid is not None:
            return self.grid.shape
        return tuple(int(n) for n in constant_tensor(self.stored).shape)  # type: ignore[arg-type]

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def dtype(self) -> ir.DataType:
        """Type of the stored constant."""
        return constant_tensor(self.stored).dtype


@dataclass(frozen=True)
class LeftOut:
    """A tensor or operator that hardening does not touch."""

    name: str
    reason: str


@dataclass
class Inventory:
    """What is stored where."""

    weights: list[Weight] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def select(self, include: list[str] | None, exclude: list[str] | None) -> Inventory:
        """Keeps the weights whose names match a pattern of `include` (all if none) and none of `exclude`.

        Args:
            include: Shell-style patterns, case-sensitive.
            exclude: The same, applied after `include`.

        Raises:
            InputError: if a pattern matches no weight.
        """
        for option, patterns in (("--include", include), ("--exclude", exclude)):
            for pattern in patterns or []:
                if not any(fnmatchcase(weight.name, pattern) for weight in self.weights):
                    raise InputError(f"{option} '{pattern}' matches no weight; `qtaml-onnx inspect` lists their names")
        chosen = Inventory(left_out=list(self.left_out))
        for weight in self.weights:
            if include and not any(fnmatchcase(weight.name, pattern) for pattern in include):
                chosen.left_out.append(LeftOut(weight.name, "not matched by --include"))
            elif exclude and any(fnmatchcase(weight.name, pattern) for pattern in exclude):
                chosen.left_out.append(LeftOut(weight.name, "matched by --exclude"))
            else:
                chosen.weights.append(weight)
        return chosen


def float_weights(weight: Weight) -> NDArray[np.floating]:
    """The weights that the operator sees, in its own float type: dequantised where they are stored as integers."""
    stored = constant_array(weight.stored)
    return stored if weight.grid is None else weight.grid.dequantize(weight.grid.integers(stored))


def stored_values(weight: Weight) -> NDArray[np.generic]:
    """What a code is applied to: float weights, or the integers of a quantised weight."""
    stored = constant_array(weight.stored)
    return stored if weight.grid is None else weight.grid.integers(stored)


def float_dtype(weight: Weight) -> np.dtype[np.generic]:
    """The float type in which the operator sees a weight."""
    return np.dtype(weight.dtype.numpy()) if weight.grid is None else weight.grid.float_type


def find_weights(model: ir.Model) -> Inventory:
    """Lists the weights of a model and the constants that are left out, each with the reason.

    Weights are constant operands (`weight_operands`), reached directly, through operators that only change the layout,
    through a DequantizeLinear, or through the inputs of a model function or of a Scan, and the integer operands of the
    operators in `qtaml_onnx.quantized`. A constant that several operators share is listed once.
    """
    inventory = Inventory()
    seen: dict[int, Weight] = {}
    declined: dict[int, LeftOut] = {}
    arguments = find_arguments(model)
    names = _names(model)
    for _root, node in walk(model):
        if node.op_identifier() in model.functions:
            continue
        for operand in integer_operands(node):
            _find_integers(model, node, operand, names, seen, declined)
        for operand in weight_operands(node):
            if operand >= len(node.inputs):
                continue
            for value, place in sources_of(node.inputs[operand], channel_axis(node, operand), arguments):
                dequantize = value.producer() if not is_constant(value) else None
                stored = dequantize.inputs[0] if dequantize is not None else value
                if stored is None or id(stored) in seen or id(stored) in declined:
                    continue
                if node.op_type == "Gather" and dequantize is None and constant_tensor(stored).dtype in _SMALL_INTEGERS:
                    _find_integers(model, node, operand, names, seen, declined)
                    continue
                try:
                    grid = _grid_of(node, stored, dequantize)
                except SiteError as reason:
                    declined[id(stored)] = LeftOut(names[id(stored)], str(reason))
                    continue
                axis = counted_from_the_front(stored, place)
                if grid is not None and grid.axis is not None and not grid.blocked:
                    axis = grid.axis
                name, owner = names[id(stored)], holder_of(model, stored)
                seen[id(stored)] = Weight(name, value, owner, node.op_type, node, operand, axis, dequantize, grid)
    inventory.weights.extend(seen.values())
    inventory.left_out.extend(declined.values())
    inventory.left_out.extend(_others(model, seen, declined, names))
    return inventory


def _names(model: ir.Model) -> dict[int, str]:
    """A unique name for every constant, by identity; `<name>.words` and `<name>.words.second` are free."""
    found: list[tuple[int, str, str]] = []
    taken: set[str] = set()
    for root, graph in graphs_of(model):
        scope = f"{root.domain}::{root.name}" if isinstance(root, ir.Function) else ""
        local = graph.graph if isinstance(graph, ir.Function) else graph
        constants = [*local.initializers.values()]
        constants += [output for node in graph if node.op_type == "Constant" for output in node.outputs]
        found += [(id(value), scope, value.name or "constant") for value in constants]
        taken.update(str(value.name) for value in (*graph.inputs, *local.initializers.values()))
        for node in graph:
            taken.add(str(node.name))
            taken.update(str(output.name) for output in node.outputs)
    count = Counter((scope, name) for _key, scope, name in found)
    given: set[str] = set()
    names: dict[int, str] = {}
    for key, scope, name in found:
        plain = f"{scope}/{name}" if scope else name
        numbered = (f"{plain}#{number}" for number in itertools.count(1))
        candidates = numbered if count[scope, name] > 1 else itertools.chain([plain], numbered)  # branches of an If
        names[key] = next(c for c in candidates if c not in given and not {f"{c}.words", f"{c}.words.second"} & taken)
        given.add(names[key])
    return names


def constants_of(model: ir.Model) -> list[tuple[str, ir.Value]]:
    """Every constant of a model with its unique name."""
    names, found = _names(model), []
    for _root, graph in graphs_of(model):
        local = graph.graph if isinstance(graph, ir.Function) else graph
        values = [*local.initializers.values()]
        values += [output for node in graph if node.op_type == "Constant" for output in node.outputs]
        found += [(names[id(value)], value) for value in values]
    return found


def holder_of(model: ir.Model, value: ir.Value) -> Owner:
    """The graph or function that holds a constant."""
    producer = value.producer()
    graph = producer.graph if producer is not None else value.graph
    for root, candidate in graphs_of(model):
        if candidate is graph or (isinstance(candidate, ir.Function) and candidate.graph is graph):
            return root if isinstance(candidate, ir.Function) else candidate
    return model.graph


def _grid_of(node: ir.Node, stored: ir.Value, dequantize: ir.Node | None) -> IntegerGrid | None:
    """The grid of a quantised weight, None for a float one; SiteError with the reason why neither can be stored."""
    tensor = constant_tensor(stored)
    _check_dense(stored)
    if dequantize is None:
        if tensor.dtype not in FLOAT_TYPES:
            raise SiteError(f"type {tensor.dtype.name}: neither a float weight nor the input of a DequantizeLinear")
        if node.op_type == "Gather" and len(tensor.shape) < 2:
            raise SiteError("Gather from a vector: not an embedding")
        return None
    grid = dequantize_grid(dequantize)
    _check_alone(stored)
    return grid


def _check_dense(stored: ir.Value) -> None:
    if constant_tensor(stored).size == 0:
        raise SiteError("empty tensor")
    if is_sparse(stored):
        raise SiteError("sparse tensor: kept as it is")


def _check_alone(stored: ir.Value) -> None:
    readers = [use.node for use in stored.uses()]
    if sum(node.op_type in ("DequantizeLinear", "Gather") or bool(integer_operands(node)) for node in readers) > 1:
        raise SiteError("quantised words that several operators read")


def _find_integers(
    model: ir.Model,
    node: ir.Node,
    operand: int,
    names: dict[int, str],
    seen: dict[int, Weight],
    declined: dict[int, LeftOut],
) -> None:
    """Lists the constant that an operator reads as integers, or why it is left out."""
    stored = node.inputs[operand] if operand < len(node.inputs) else None
    if stored is None or not is_constant(stored) or id(stored) in seen or id(stored) in declined:
        return
    try:
        _check_dense(stored)
        grid, axis = operator_grid(node, operand)
        _check_alone(stored)
    except SiteError as reason:
        declined[id(stored)] = LeftOut(names[id(stored)], str(reason))
        return
    seen[id(stored)] = Weight(
        names[id(stored)], stored, holder_of(model, stored), node.op_type, node, operand, axis, None, grid
    )


def _others(
    model: ir.Model, seen: dict[int, Weight], declined: dict[int, LeftOut], names: dict[int, str]
) -> Iterator[LeftOut]:
    """Constants that no weight operand reads, and custom operators."""
    for _root, graph in graphs_of(model):
        local = graph.graph if isinstance(graph, ir.Function) else graph
        nodes = [node for node in graph if node.op_type == "Constant" and node.domain in STANDARD_DOMAINS]
        for value in (*local.initializers.values(), *(output for node in nodes for output in node.outputs)):
            if id(value) in seen or id(value) in declined or not value.uses():
                continue
            if not is_constant(value):
                yield LeftOut(names[id(value)], "given by an attribute of the function's call")
            elif may_be_weights(value):
                reason = "sparse tensor: kept as it is" if is_sparse(value) else role_of(value)
                yield LeftOut(names[id(value)], reason)
    foreign = {node.op_identifier()[:2] for _root, node in walk(model) if _is_foreign(model, node)}
    for domain, op_type in sorted(foreign):
        yield LeftOut(f"{domain}::{op_type}", "custom operator: kept untouched")


def may_be_weights(value: ir.Value) -> bool:
    """Whether a constant may hold something trained: floats, small integers, or biases in 32-bit integers.

    Scalars of Constant nodes are the graph's own numbers (an epsilon, a factor), not stored parameters.
    """
    tensor = constant_tensor(value)
    if tensor.dtype in FLOAT_TYPES:
        return value.is_initializer() or tensor.size > 1
    if tensor.dtype == ir.DataType.INT32:
        use = next(iter(value.uses()))
        return use.node.op_type == "DequantizeLinear" or BIAS_INPUTS.get(use.node.op_type) == use.idx
    return tensor.size > 1 and tensor.dtype in _SMALL_INTEGERS


def _is_foreign(model: ir.Model, node: ir.Node) -> bool:
    known = node.domain in STANDARD_DOMAINS or node.op_identifier() in model.functions
    return not known and not weight_operands(node) and not integer_operands(node)
