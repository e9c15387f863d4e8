"""Stores biases, norms, scales and what hardening added, each bit several times, read by majority.

The numbers of one type in a graph are stored together, uint8 [copies, numbers, bytes]. Standard operators read them:

    c = ReduceSum(Gather(spread, Cast(words)), copies)      int64 [numbers, bytes], a counter of 7 bits for each bit
    bit = ((c / 128^k − 128 · (c / 128^(k+1))) + (copies − 1)/2) / copies      integer division: 1 where most are
    integer = Σ bit · place
    float = (implied[e] + Σ mantissa bits · 2^−j) · power[e] · (1 − 2 · sign),  e = Σ exponent bits · 2^j

All of it is exact, and on constants, so that onnxruntime computes it once at load. A Slice and a Reshape give each
tensor its place. What is computed of an exponent of ones is infinity, whatever the mantissa: a fault makes no NaN.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from qtaml_onnx.graph import Owner, constant_array, constant_tensor
from qtaml_onnx.passes._graph import NameTable, add_constant, discard, insert_at_start
from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.small import find_small
from qtaml_onnx.storage.repetition import FLOAT_LAYOUT, MOST_COPIES, REPEATABLE, repeat
from qtaml_onnx.weights import constants_of, find_weights, holder_of

__all__ = ["SMALL_WORDS", "RepeatSmall"]

logger = logging.getLogger(__name__)

SMALL_WORDS = "qtaml.small."
"""What the names of the stored bytes begin with; they end in `.words`."""

_COUNTER = 128
"""A counter of copies for each bit of a byte takes 7 bits of an int64."""

_AXES_ARE_INPUT, _SLICE_TAKES_INPUTS = 13, 10
_MOST_BYTES = (1 << 30) - 1
"""onnxruntime folds no constant of 1 GiB or more."""


class RepeatSmall(ir.passes.InPlacePass):
    """Stores the small tensors of a plan, and the constants that other passes added, several times.

    Attributes:
        plan: The decision.
    """

    def __init__(self, plan: StoragePlan, before: ir.Model) -> None:
        """Takes the plan and the model as it is before its weights are stored, in place, by the same plan."""
        super().__init__()
        self.plan = plan
        wanted = {tensor.name for tensor in plan.small.tensors} if plan.small is not None else set()
        self._chosen = [small.value for small in find_small(before) if small.name in wanted]
        stored = {tensor.name for tensor in plan.tensors}
        for weight in find_weights(before).weights:
            if weight.name in stored:
                self._chosen += weight.parameters
        self._old = {id(value): value for _name, value in constants_of(before)}  # held, so that no id is used again

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place; unchanged where the plan has no small tensors."""
        if self.plan.small is None:
            return ir.passes.PassResult(model, modified=False)
        words = {stored.name for tensor in self.plan.tensors for stored in tensor.stored_words}
        groups: dict[tuple[int, ir.DataType], tuple[Owner, list[ir.Value]]] = {}
        chosen = {id(value) for value in self._chosen}
        for _name, value in constants_of(model):
            added = id(value) not in self._old and value.name not in words
            if not value.uses() or not (added or id(value) in chosen):
                continue
            dtype = constant_tensor(value).dtype
            if dtype in REPEATABLE and constant_tensor(value).size:
                owner = holder_of(model, value)
                groups.setdefault((id(owner), dtype), (owner, []))[1].append(value)
        names = NameTable(model)
        for (_key, dtype), (owner, values) in groups.items():
            for part in _parts(values):
                _store(model, owner, dtype, part, self.plan.small.copies, names)
        logger.info("repeat small tensors: %d groups", len(groups))
        return ir.passes.PassResult(model, modified=bool(groups))


def _parts(values: list[ir.Value]) -> list[list[ir.Value]]:
    """Groups whose counters fold, at the most copies."""
    parts: list[list[ir.Value]] = []
    room = 0
    for value in values:
        needed = constant_tensor(value).nbytes * 8 * MOST_COPIES
        if needed > room:
            parts.append([])
            room = _MOST_BYTES
        parts[-1].append(value)
        room -= needed
    return parts


class _Builder:
    """Adds constants and nodes to a graph, the nodes in the order in which they are made."""

    def __init__(self, model: ir.Model, owner: Owner, names: NameTable, prefix: str) -> None:
        self.model, self.owner, self.names, self.prefix = model, owner, names, prefix
        self.nodes: list[ir.Node] = []

    def constant(self, suffix: str, array: np.ndarray) -> ir.Value:
        return add_constant(self.model, self.owner, self.names.fresh(f"{self.prefix}.{suffix}"), array)

    def then(self, op_type: str, inputs: list[ir.Value], attributes: dict[str, object] | None = None) -> ir.Value:
        name = self.names.fresh(f"{self.prefix}/{op_type}")
        node = ir.node(op_type, inputs, attributes, name=name)  # type: ignore[arg-type]
        node.outputs[0].name = self.names.fresh(f"{name}_output")
        self.nodes.append(node)
        return node.outputs[0]

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.then("Cast", [value], {"to": int(dtype)})

    def sum(self, value: ir.Value, axes: list[int]) -> ir.Value:
        if self.model.opset_imports.get("", 1) >= _AXES_ARE_INPUT:
            return self.then("ReduceSum", [value, self.constant("axes", np.array(axes))], {"keepdims": 0})
        return self.then("ReduceSum", [value], {"axes": axes, "keepdims": 0})

    def slice(self, value: ir.Value, start: int, end: int) -> ir.Value:
        if self.model.opset_imports.get("", 1) >= _SLICE_TAKES_INPUTS:
            bounds = [self.constant(what, np.array([place])) for what, place in (("start", start), ("end", end))]
            return self.then("Slice", [value, *bounds])
        return self.then("Slice", [value], {"starts": [start], "ends": [end]})


def _store(
    model: ir.Model, owner: Owner, dtype: ir.DataType, values: list[ir.Value], copies: int, names: NameTable
) -> None:
    arrays = [constant_array(value) for value in values]
    graph = _Builder(model, owner, names, names.fresh(f"{SMALL_WORDS}{dtype.name}"))
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    words = graph.constant("words", repeat(flat, copies))
    numbers = _read(graph, words, dtype, copies, flat.size)
    start = 0
    for value, array in zip(values, arrays, strict=True):
        part = graph.slice(numbers, start, start + array.size)
        part = graph.then("Reshape", [part, graph.constant("shape", np.array(array.shape, dtype=np.int64))])
        start += array.size
        part.type, part.shape = ir.TensorType(dtype), ir.Shape(array.shape)
        value.replace_all_uses_with(part, replace_graph_outputs=True)
        discard(value)
        part.name = value.name
    after = words.producer()
    if after is not None:  # in a function, where the words were the first Constant node put at the start
        owner.insert_after(after, graph.nodes)
    else:
        insert_at_start(owner, graph.nodes)


def _read(graph: _Builder, words: ir.Value, dtype: ir.DataType, copies: int, size: int) -> ir.Value:
    """The numbers behind the stored bytes, flat."""
    planes = np.arange(8, dtype=np.int64)
    spread = ((np.arange(256, dtype=np.int64)[:, None] >> planes & 1) * np.int64(_COUNTER) ** planes).sum(axis=1)
    bytes_of_each = int(dtype.itemsize)
    counters = graph.then("Gather", [graph.constant("spread", spread), graph.cast(words, ir.DataType.INT32)])
    shape = graph.constant("bytes", np.array([size, bytes_of_each, 1], dtype=np.int64))
    counters = graph.then("Reshape", [graph.sum(counters, [0]), shape])
    above = graph.then("Div", [counters, graph.constant("next", np.int64(_COUNTER) ** (planes + 1))])
    above = graph.then("Mul", [above, graph.constant("counter", np.asarray(_COUNTER, dtype=np.int64))])
    count = graph.then("Div", [counters, graph.constant("own", np.int64(_COUNTER) ** planes)])
    count = graph.then("Sub", [count, above])
    half = graph.constant("half", np.asarray((copies - 1) // 2, dtype=np.int64))
    count = graph.then("Add", [count, half])
    bits = graph.then("Div", [count, graph.constant("copies", np.asarray(copies, dtype=np.int64))])
    place = np.int64(1) << np.arange(8 * bytes_of_each, dtype=np.int64)
    if dtype not in FLOAT_LAYOUT:
        if dtype.is_signed():
            place[-1] = -place[-1]
        return graph.cast(_weighted(graph, bits, "place", place, bytes_of_each), dtype)
    exponent_bits, mantissa_bits = FLOAT_LAYOUT[dtype]
    kind = np.float64 if dtype == ir.DataType.DOUBLE else np.float32
    position = np.arange(8 * bytes_of_each)
    in_mantissa, is_sign = position < mantissa_bits, position == 8 * bytes_of_each - 1
    shift = np.where(in_mantissa | is_sign, 0, position - mantissa_bits)
    exponent_place = np.where(in_mantissa | is_sign, 0, np.int64(1) << shift)
    exponent = graph.cast(_weighted(graph, bits, "exponent", exponent_place, bytes_of_each), ir.DataType.INT32)
    real = graph.cast(bits, ir.DataType.DOUBLE if kind is np.float64 else ir.DataType.FLOAT)
    mantissa_place = np.where(in_mantissa, 2.0 ** (position - mantissa_bits), 0).astype(kind)
    mantissa = _weighted(graph, real, "mantissa", mantissa_place, bytes_of_each)
    sign = _weighted(graph, real, "sign", np.where(is_sign, -2, 0).astype(kind), bytes_of_each)
    powers, implied = _exponents(exponent_bits, kind)
    value = graph.then("Add", [mantissa, graph.then("Gather", [graph.constant("implied", implied), exponent])])
    value = graph.then("Mul", [value, graph.then("Gather", [graph.constant("powers", powers), exponent])])
    one = graph.constant("one", np.asarray(1, dtype=kind))
    value = graph.then("Mul", [value, graph.then("Add", [sign, one])])
    return value if np.dtype(kind) == dtype.numpy() else graph.cast(value, dtype)


def _weighted(graph: _Builder, bits: ir.Value, name: str, place: np.ndarray, bytes_of_each: int) -> ir.Value:
    """Σ bit · place over the bits of each number."""
    return graph.sum(graph.then("Mul", [bits, graph.constant(name, place.reshape(bytes_of_each, 8))]), [1, 2])


def _exponents(bits: int, kind: type[np.floating]) -> tuple[np.ndarray, np.ndarray]:
    """By stored exponent the power of two that it stands for, and the bit that the mantissa does not write down."""
    bias = (1 << (bits - 1)) - 1
    stored = np.arange(1 << bits)
    powers = np.append(np.ldexp(np.ones(len(stored) - 1), np.maximum(stored[:-1], 1) - bias), np.inf)
    return powers.astype(kind), (stored > 0).astype(kind)
