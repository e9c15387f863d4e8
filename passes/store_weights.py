"""Turns weights into stored words and a read-out of standard operators, as a storage plan says.

A float weight W becomes

    affine   W = (Cast(words) − offset) · scale                 Cast, [Sub,] Mul
    table    W = Cast(table)[Cast(words)] · scale               Cast, Cast, Gather, Mul
    two words  W = table[Cast(words) · 2^n + Cast(second)] · scale, the table computed from a list of cells

Of a weight whose output channels are stored in parts, each part is read like that, and the channels are put in order
again by Concat and Gather. Where the model's own type is another, a Cast to it (and a Reshape to the same shape, which
keeps half-precision rounding in place) follows. All is on constants, so that onnxruntime computes W once at load and
nothing of it is left at inference. How the integers of a quantised weight are stored and read is in `store_quantized`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from itertools import groupby

import numpy as np
import onnx_ir as ir

from qtaml_onnx.errors import InputError
from qtaml_onnx.graph import Owner, constant_tensor
from qtaml_onnx.passes._graph import NameTable, add_constant, discard, insert_at_start
from qtaml_onnx.passes._two_words import PairTables
from qtaml_onnx.passes.store_quantized import store_quantized
from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.storage.tensor import along_channels, channel_order, encode_tensor, split_words
from qtaml_onnx.tensor_plan import TensorPlan, table_array
from qtaml_onnx.weights import Weight, find_weights

__all__ = ["StoreWeights"]

logger = logging.getLogger(__name__)

_MOST_WORDS = 1 << 26
"""Stored words of a model beyond which they are not all held in memory, but made when they are written."""


class StoreWeights(ir.passes.InPlacePass):
    """Stores the weights of a model as its plan says.

    Attributes:
        plan: The decision. Each of its tensors must be in the model, with the shape that the plan gives.
    """

    def __init__(self, plan: StoragePlan) -> None:
        """Takes the plan to carry out."""
        super().__init__()
        self.plan = plan

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place; raises InputError if the plan is of another model."""
        weights = {weight.name: weight for weight in find_weights(model).weights}
        names, tables = NameTable(model), _Tables()
        pairs = PairTables(model, names)
        later = sum(tensor.size for tensor in self.plan.tensors) > _MOST_WORDS
        for name, entries in groupby(self.plan.tensors, key=lambda tensor: tensor.name):
            plans, weight = list(entries), weights.get(name)
            if weight is None or weight.shape != plans[0].whole_shape:
                raise InputError(f"the plan's tensor '{name}' {list(plans[0].whole_shape)} is not in this model")
            stored = [
                (plan, _words(plan, weight, later), _shared(model, weight, plan, names, tables)) for plan in plans
            ]
            if weight.grid is None:
                _store_float(model, weight, stored, names, pairs, faulty_indices=self.plan.small is not None)
            else:
                plan, words, table = stored[0]
                store_quantized(model, weight, plan, words[0], table, names)
            for plan in plans:
                logger.debug("store %s: %d-bit %s, %s", plan.label, plan.bits, plan.code.kind, plan.readout)
        pairs.place()
        logger.info("store weights: %d tensors", len(self.plan.tensors))
        return ir.passes.PassResult(model, modified=bool(self.plan.tensors))


class _Tables:
    """Tables stored already, so that tensors of one graph that share a code book share its table.

    Not where constants are nodes (in functions, and in subgraphs before IR version 4), which have an order.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, str, tuple[float, ...] | None], ir.Value] = {}

    def get(self, owner: ir.Graph | ir.Function, plan: TensorPlan) -> ir.Value | None:
        return self._known.get((id(owner), plan.table_type, plan.table))

    def keep(self, owner: ir.Graph | ir.Function, plan: TensorPlan, value: ir.Value) -> ir.Value:
        if value.producer() is None:
            self._known[id(owner), plan.table_type, plan.table] = value
        return value


def _shared(
    model: ir.Model, weight: Weight, plan: TensorPlan, names: NameTable, tables: _Tables
) -> Callable[[], ir.Value]:
    """Gives the table of a tensor, made when it is first asked for."""

    def table() -> ir.Value:
        known = tables.get(weight.owner, plan)
        if known is not None:
            return known
        made = add_constant(model, weight.owner, names.fresh(f"{plan.name}.table"), table_array(plan))
        return tables.keep(weight.owner, plan, made)

    return table


def _words(plan: TensorPlan, weight: Weight, later: bool) -> list[ir.TensorProtocol]:
    """The stored words of a weight, encoded now, or whenever they are read where those of a whole model take much.

    One tensor, or two where each weight has two words.
    """
    tensor, grid = constant_tensor(weight.stored), weight.grid

    def encode(number: int) -> ir.TensorProtocol:
        stored = np.asarray(tensor.numpy())
        words = encode_tensor(plan, stored if grid is None else grid.integers(stored))
        return ir.tensor(split_words(plan, words)[number])

    if not later:
        return [encode(number) for number in range(len(plan.stored_words))]
    return [
        ir.LazyTensor(partial(encode, number), dtype=ir.DataType[words.dtype], shape=ir.Shape(plan.shape))
        for number, words in enumerate(plan.stored_words)
    ]


def _store_float(
    model: ir.Model,
    weight: Weight,
    parts: list[tuple[TensorPlan, list[ir.TensorProtocol], Callable[[], ir.Value]]],
    names: NameTable,
    pairs: PairTables,
    *,
    faulty_indices: bool,
) -> None:
    """Stores a float weight: a plan, its words and its table, or those of each of its parts.

    Where indices of codes and channels are stored in the faulty memory themselves, they are read modulo their number: a
    wrong one gives wrong weights, and no Gather beyond the end.
    """
    old, owner, whole = weight.value, weight.owner, parts[0][0]
    rank = len(whole.shape)
    nodes: list[ir.Node] = []

    def constant(label: str, suffix: str, array: np.ndarray | ir.TensorProtocol) -> ir.Value:
        return add_constant(model, owner, names.fresh(f"{label}.{suffix}"), array)

    def then(label: str, op_type: str, inputs: list[ir.Value], attributes: dict[str, int] | None = None) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=names.fresh(f"{label}.read_out/{op_type}"))
        node.outputs[0].name = names.fresh(f"{label}.read_out/{op_type}_output")
        nodes.append(node)
        return node.outputs[0]

    def index_below(label: str, suffix: str, indices: np.ndarray, count: int) -> ir.Value:
        index = then(label, "Cast", [constant(label, suffix, indices)], {"to": ir.DataType.INT32})
        if not faulty_indices:
            return index
        number = constant(label, f"{suffix}_count", np.asarray(count, dtype=np.int64))  # no small tensor: never faulty
        number = then(label, "Cast", [number], {"to": ir.DataType.INT32})
        whole = then(label, "Mul", [then(label, "Div", [index, number]), number])
        return then(label, "Sub", [index, whole])

    # Constants that are nodes are each put before those before them, so that those of the first part are the last.
    last: ir.Value | None = None
    factor: ir.Value | None = None
    values = []
    for plan, words, shared in parts:
        stored = [
            add_constant(model, owner, names.fresh(place.name), tensor)
            for place, tensor in zip(plan.stored_words, words, strict=True)
        ]
        last = stored[0] if last is None else last
        if plan.form == "affine":
            value = then(plan.label, "Cast", stored, {"to": ir.DataType.FLOAT})
            if plan.offset:
                offset = constant(plan.label, "offset", np.asarray(plan.offset, dtype=np.float32))
                value = then(plan.label, "Sub", [value, offset])
        elif plan.form == "two-words":
            value = pairs.read(owner, plan, stored, nodes)
        else:
            table = shared()
            if plan.table_type != "FLOAT":
                table = then(plan.label, "Cast", [table], {"to": ir.DataType.FLOAT})
            index = then(plan.label, "Cast", stored, {"to": ir.DataType.INT32})
            if plan.channel_groups is not None:
                spread = tuple(-1 if i == plan.channel_axis else 1 for i in range(rank))
                groups = np.asarray(plan.channel_groups, dtype=np.uint8).reshape(spread)
                group = index_below(plan.label, "channel_groups", groups, len(plan.channel_codes or ()))
                size = constant(plan.label, "code_size", np.asarray(1 << plan.bits, dtype=np.int64))
                size = then(plan.label, "Cast", [size], {"to": ir.DataType.INT32})
                index = then(plan.label, "Add", [index, then(plan.label, "Mul", [group, size])])
            value = then(plan.label, "Gather", [table, index], {"axis": 0})
        scales = along_channels(np.asarray(plan.scales, dtype=np.float32), rank, plan.channel_axis)
        scale = constant(plan.label, "scale", scales)
        if plan.input_scales is not None:
            if factor is None:
                columns = along_channels(np.asarray(plan.input_scales, dtype=np.float16), rank, plan.input_axis)
                columns_stored = constant(plan.name, "input_scale", columns)
                factor = then(plan.name, "Cast", [columns_stored], {"to": ir.DataType.FLOAT})
            scale = then(plan.label, "Mul", [scale, factor])
        values.append(then(plan.label, "Mul", [value, scale]))
    value = values[0]
    if whole.part is not None:
        order = channel_order([plan for plan, _words, _table in parts]).astype(whole.part.order_type.lower())
        index = index_below(whole.name, "channel_order", order, whole.part.extent)
        value = then(whole.name, "Concat", values, {"axis": whole.part.axis})
        value = then(whole.name, "Gather", [value, index], {"axis": whole.part.axis})
    if old.dtype not in (None, ir.DataType.FLOAT):
        value = then(whole.name, "Cast", [value], {"to": int(ir.DataType[whole.dtype])})
        if ir.DataType[whole.dtype].itemsize < ir.DataType.FLOAT.itemsize:
            # A CPU without half-precision kernels casts back, and onnxruntime drops the two casts, rounding and all,
            # where the weight is not constant (under faults). A Reshape between them keeps the rounding.
            shape = constant(whole.name, "shape", np.asarray(whole.whole_shape, dtype=np.int64))
            value = then(whole.name, "Reshape", [value, shape])
    value.type, value.shape = ir.TensorType(ir.DataType[whole.dtype]), ir.Shape(whole.whole_shape)
    if last is not None:
        _take_place(old, value, owner, nodes, last)


def _take_place(old: ir.Value, new: ir.Value, owner: Owner, nodes: list[ir.Node], stored: ir.Value) -> None:
    """Puts the read-out where the constant was: under its name, before its first reader."""
    name = old.name
    old.name = f"{name}.source"
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = name
    after = stored.producer()
    if after is not None:  # of the Constant nodes put at the start the words were the first, so now they are the last
        owner.insert_after(after, nodes)
    else:
        insert_at_start(owner, nodes)
    discard(old)
