"""Finds the weights of a model: which constants feed which operators, on which axis, and what is left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError

__all__ = ["Inventory", "LeftOut", "Weight", "constant_array", "dequantize_parameters", "find_weights", "float_weights"]

FLOAT_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
WORD_TYPES = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
_WEIGHT_OPERANDS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1, 0), "MatMul": (1, 0), "Gather": (0,)}
_LAYOUT_OPERATORS = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})

Owner = ir.Graph | ir.Function


@dataclass(frozen=True)
class Weight:
    """A stored constant that an operator reads as its weights.

    Attributes:
        name: Unique in the model: the value's name, prefixed by its function's.
        value: The constant's value in the graph; for a quantised weight, the DequantizeLinear's output.
        owner: The graph or function that holds it.
        op_type: The first operator that reads it.
        consumer: That operator's node.
        operand: Which input of `consumer` it is.
        channel_axis: The axis of output channels in the stored shape; None where there is none.
        dequantize: The DequantizeLinear node of a quantised weight, else None.
    """

    name: str
    value: ir.Value
    owner: Owner
    op_type: str
    consumer: ir.Node
    operand: int
    channel_axis: int | None
    dequantize: ir.Node | None = None

    @property
    def stored(self) -> ir.Value:
        """The constant itself: the float tensor, or the integer words of a DequantizeLinear."""
        if self.dequantize is None:
            return self.value
        words = self.dequantize.inputs[0]
        if words is None:
            raise InputError(f"DequantizeLinear '{self.dequantize.name}' has no input; export the model again")
        return words

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored constant."""
        return tuple(int(n) for n in constant_tensor(self.stored).shape)

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


def constant_tensor(value: ir.Value) -> ir.TensorProtocol:
    """The tensor behind an initializer or a Constant node's output.

    Raises:
        InputError: if the value is not constant.
    """
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise InputError(f"value '{value.name}' is not a constant; fold constants before hardening")
    return tensor


def constant_array(value: ir.Value) -> NDArray[np.generic]:
    """The array behind an initializer or a Constant node's output, in its own dtype."""
    return np.asarray(constant_tensor(value).numpy())


def float_weights(weight: Weight) -> NDArray[np.floating]:
    """The weights that the operator sees, in its own float type: dequantised where they are stored as integers."""
    stored = constant_array(weight.stored)
    node = weight.dequantize
    if node is None:
        return stored
    scale, point = dequantize_parameters(node, stored.shape)
    real = (stored.astype(np.float32) - point.astype(np.float32)) * scale
    return np.asarray(real, dtype=scale.dtype)


def dequantize_parameters(
    node: ir.Node, shape: tuple[int, ...]
) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    """Scale and zero point of a DequantizeLinear, shaped to broadcast against its words."""
    scale = constant_array(node.inputs[1])  # type: ignore[arg-type]
    point = (
        constant_array(node.inputs[2])
        if len(node.inputs) > 2 and node.inputs[2] is not None
        else np.zeros_like(scale, dtype=np.uint8)
    )
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    if scale.size > 1:
        spread = tuple(-1 if i == axis % len(shape) else 1 for i in range(len(shape)))
        return scale.reshape(spread), point.reshape(spread)
    return scale.reshape(()), point.reshape(())


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer or the output of a Constant node."""
    if value is None:
        return False
    producer = value.producer()
    if producer is None:
        return value.const_value is not None and value.is_initializer()
    return producer.op_type == "Constant" and producer.domain in STANDARD_DOMAINS


def graphs_of(model: ir.Model) -> Iterator[tuple[Owner, ir.Graph | ir.Function]]:
    """Every graph of a model with the main graph or function it belongs to: main graph, functions, all subgraphs."""
    for root in (model.graph, *model.functions.values()):
        yield root, root
        for subgraph in root.subgraphs():
            yield root, subgraph


def walk(model: ir.Model) -> Iterator[tuple[Owner, ir.Node]]:
    """Every node of a model, main graph and functions with their subgraphs, with the main graph or function it is in."""
    for root in (model.graph, *model.functions.values()):
        for node in root.all_nodes():
            yield root, node


def find_weights(model: ir.Model) -> Inventory:
    """Lists the weights of a model and the constants that are left out, each with the reason.

    Weights are constant operands of Conv, ConvTranspose, Gemm, MatMul and Gather, reached directly, through operators
    that only change the layout, through a DequantizeLinear, or through the inputs of a model function. A constant that
    several operators share is listed once.
    """
    inventory = Inventory()
    seen: dict[int, Weight] = {}
    declined: dict[int, LeftOut] = {}
    arguments = _function_arguments(model)
    names = _names(model)
    for _root, node in walk(model):
        if node.domain not in STANDARD_DOMAINS:
            continue
        for operand in _WEIGHT_OPERANDS.get(node.op_type, ()):
            if operand >= len(node.inputs):
                continue
            for value, axis in _sources(node.inputs[operand], _channel_axis(node, operand), arguments):
                dequantize = value.producer() if not is_constant(value) else None
                stored = dequantize.inputs[0] if dequantize is not None else value
                if stored is None or id(stored) in seen or id(stored) in declined:
                    continue
                reason = _why_not(node, value, stored, dequantize)
                if reason:
                    declined[id(stored)] = LeftOut(names[id(stored)], reason)
                    continue
                if dequantize is not None:
                    axis = _dequantize_axis(dequantize)
                weight = Weight(
                    names[id(stored)], value, _holder(model, stored), node.op_type, node, operand, axis, dequantize
                )
                seen[id(stored)] = weight
    inventory.weights.extend(seen.values())
    inventory.left_out.extend(declined.values())
    inventory.left_out.extend(_others(model, seen, declined, names))
    return inventory


def _function_arguments(model: ir.Model) -> dict[int, list[ir.Value]]:
    """For each input of a model function, by identity, the values that its calls pass."""
    arguments: dict[int, list[ir.Value]] = {}
    for _root, node in walk(model):
        function = model.functions.get(node.op_identifier())
        if function is not None:
            for formal, actual in zip(function.inputs, node.inputs, strict=False):
                if actual is not None:
                    arguments.setdefault(id(formal), []).append(actual)
    return arguments


def _names(model: ir.Model) -> dict[int, str]:
    """A unique name for every constant, by identity."""
    found: list[tuple[int, str, str]] = []
    for root, graph in graphs_of(model):
        scope = f"{root.domain}::{root.name}" if isinstance(root, ir.Function) else ""
        local = graph.graph if isinstance(graph, ir.Function) else graph
        constants = [*local.initializers.values()]
        constants += [output for node in graph if node.op_type == "Constant" for output in node.outputs]
        for value in constants:
            found.append((id(value), scope, value.name or "constant"))
    count = Counter((scope, name) for _key, scope, name in found)
    used: Counter[tuple[str, str]] = Counter()
    names: dict[int, str] = {}
    for key, scope, name in found:
        unique = f"{scope}/{name}" if scope else name
        if count[scope, name] > 1:  # the same name in two branches of an If
            used[scope, name] += 1
            unique += f"#{used[scope, name]}"
        names[key] = unique
    return names


def _holder(model: ir.Model, value: ir.Value) -> Owner:
    producer = value.producer()
    graph = producer.graph if producer is not None else value.graph
    for root, candidate in graphs_of(model):
        if candidate is graph or (isinstance(candidate, ir.Function) and candidate.graph is graph):
            return root if isinstance(candidate, ir.Function) else candidate
    return model.graph


def _sources(
    value: ir.Value | None, axis: int | None, arguments: dict[int, list[ir.Value]]
) -> Iterator[tuple[ir.Value, int | None]]:
    """The constants, or DequantizeLinear outputs over constants, behind an operand, with the channel axis of each."""
    if value is None:
        return
    if is_constant(value):
        yield value, axis
        return
    producer = value.producer()
    if producer is None:
        for actual in arguments.get(id(value), []):
            yield from _sources(actual, axis, arguments)
    elif producer.domain in STANDARD_DOMAINS and producer.op_type == "DequantizeLinear":
        if is_constant(producer.inputs[0]):
            yield value, axis
    elif producer.domain in STANDARD_DOMAINS and producer.op_type in _LAYOUT_OPERATORS:
        for source, _axis in _sources(producer.inputs[0], None, arguments):
            yield source, _axis_before(producer, source, axis)


def _axis_before(layout: ir.Node, source: ir.Value, axis: int | None) -> int | None:
    """The axis of the constant that becomes `axis` of the layout operator's output, if one does."""
    if axis is None or layout.inputs[0] is not source:
        return None  # a chain of layouts: one scale a tensor
    if layout.op_type == "Identity":
        return axis
    if layout.op_type == "Transpose":
        rank = len(source.shape or ())
        order = layout.attributes["perm"].as_ints() if "perm" in layout.attributes else range(rank)[::-1]
        return int(order[axis])
    before = tuple(constant_tensor(source).shape)
    after = tuple(layout.outputs[0].shape or ())
    if layout.op_type == "Reshape" and not after and is_constant(layout.inputs[1]):
        wanted = [int(n) for n in np.ravel(constant_array(layout.inputs[1]))]  # type: ignore[arg-type]
        known = int(np.prod([n for n in wanted if n > 0]))
        after = tuple(n if n > 0 else int(np.prod(before)) // known for n in wanted)
    if any(not isinstance(n, int) for n in after) or axis >= len(after):
        return None
    for index, length in enumerate(before):  # same extent, same number of elements behind it
        if length == after[axis] and np.prod(before[index + 1 :]) == np.prod(after[axis + 1 :]):
            return index
    return None


def _channel_axis(node: ir.Node, operand: int) -> int | None:
    source = node.inputs[operand]
    rank = len(source.shape) if source is not None and source.shape is not None else None
    if rank is None and is_constant(source):
        rank = len(constant_tensor(source).shape)  # type: ignore[arg-type]
    match node.op_type:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1
        case "Gemm":
            transposed = node.attributes["transB" if operand else "transA"].as_int() if (
                ("transB" if operand else "transA") in node.attributes
            ) else 0
            return int(transposed == 0) if operand else int(transposed != 0)
        case "MatMul" if rank is not None and rank >= 2:
            return rank - 1 if operand else rank - 2
        case "Gather" if rank is not None and rank >= 2:
            return rank - 1
    return None


def _dequantize_axis(node: ir.Node) -> int | None:
    """The axis along which a DequantizeLinear has scales of their own."""
    words, scale = constant_tensor(node.inputs[0]), constant_tensor(node.inputs[1])  # type: ignore[arg-type]
    if scale.size == 1:
        return None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    return axis % len(words.shape)


def _why_not(node: ir.Node, value: ir.Value, stored: ir.Value, dequantize: ir.Node | None) -> str | None:
    """Why a weight operand cannot be stored, or None if it can."""
    tensor = constant_tensor(stored)
    if tensor.size == 0:
        return "empty tensor"
    if dequantize is None:
        if tensor.dtype not in FLOAT_TYPES:
            return f"type {tensor.dtype.name}: neither a float weight nor the input of a DequantizeLinear"
        if node.op_type == "Gather" and len(tensor.shape) < 2:
            return "Gather from a vector: not an embedding"
        return None
    if tensor.dtype not in WORD_TYPES:
        return f"DequantizeLinear over {tensor.dtype.name}: only INT8 and UINT8 words are stored"
    if not all(is_constant(operand) for operand in dequantize.inputs[1:] if operand is not None):
        return "DequantizeLinear with a scale or zero point computed at run time"
    if "block_size" in dequantize.attributes and dequantize.attributes["block_size"].as_int():
        return "DequantizeLinear with blocked scales"
    if len(dequantize.inputs) > 2 and dequantize.inputs[2] is not None:
        points = constant_array(dequantize.inputs[2])
        if np.unique(points).size > 1:
            return "DequantizeLinear with a different zero point for each channel"
    if any(use.node.op_type != "DequantizeLinear" for use in stored.uses()) or len(stored.uses()) > 1:
        return "quantised words that several operators read"
    return None


def _others(
    model: ir.Model, seen: dict[int, Weight], declined: dict[int, LeftOut], names: dict[int, str]
) -> Iterator[LeftOut]:
    """Float constants that no weight operand reads, and custom operators."""
    for _root, graph in graphs_of(model):
        local = graph.graph if isinstance(graph, ir.Function) else graph
        for value in local.initializers.values():
            if id(value) in seen or id(value) in declined or value.const_value is None:
                continue
            if value.dtype in FLOAT_TYPES and value.uses():
                yield LeftOut(names[id(value)], _role(value))
    for operator in sorted({str(node.op_identifier()[:2]) for _root, node in walk(model) if _is_foreign(model, node)}):
        domain, op_type = operator.strip("()").replace("'", "").split(", ")
        yield LeftOut(f"{domain}::{op_type}", "custom operator: kept untouched")


def _is_foreign(model: ir.Model, node: ir.Node) -> bool:
    return node.domain not in STANDARD_DOMAINS and node.op_identifier() not in model.functions


def _role(value: ir.Value) -> str:
    use = next(iter(value.uses()))
    op_type = use.node.op_type
    if op_type in _WEIGHT_OPERANDS and use.idx == 2:
        return f"bias of {op_type}: kept in safe storage"
    if op_type in {"LSTM", "GRU", "RNN"}:
        return f"weights of {op_type}: this operator is not hardened yet"
    return f"input {use.idx} of {op_type}: not a weight operand"
