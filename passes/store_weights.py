"""Turns weights into stored words and a read-out of standard operators, as a storage plan says.

A float weight W becomes

    affine   W = (Cast(words) − offset) · scale                 Cast, [Sub,] Mul
    table    W = Cast(table)[Cast(words)] · scale               Cast, Cast, Gather, Mul

and where the model's own type is another, a Cast to it (and a Reshape to the same shape, which keeps half-precision
rounding in place). All is on constants, so that onnxruntime computes W once at load and nothing of it is left at
inference. How the integers of a quantised weight are stored and read is in `store_quantized`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qtaml_onnx.errors import InputError
from qtaml_onnx.graph import Owner, constant_tensor
from qtaml_onnx.passes._graph import NameTable, add_constant, discard, insert_at_start
from qtaml_onnx.passes.store_quantized import store_quantized
from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.storage.tensor import along_channels, encode_tensor
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
        later = sum(tensor.size for tensor in self.plan.tensors) > _MOST_WORDS
        for tensor in self.plan.tensors:
            weight = weights.get(tensor.name)
            if weight is None or weight.shape != tensor.shape:
                raise InputError(f"the plan's tensor '{tensor.name}' {list(tensor.shape)} is not in this model")
            words, table = _words(tensor, weight, later), _shared(model, weight, tensor, names, tables)
            if weight.grid is None:
                _store_float(model, weight, tensor, words, names, table)
            else:
                store_quantized(model, weight, tensor, words, names, table)
            logger.debug("store %s: %d-bit %s, %s", tensor.name, tensor.bits, tensor.code.kind, tensor.readout)
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


def _words(plan: TensorPlan, weight: Weight, later: bool) -> ir.TensorProtocol:
    """The stored words of a weight, encoded now, or whenever they are read where those of a whole model take much."""
    tensor, grid = constant_tensor(weight.stored), weight.grid

    def encode() -> ir.TensorProtocol:
        stored = np.asarray(tensor.numpy())
        return ir.tensor(encode_tensor(plan, stored if grid is None else grid.integers(stored)))

    if not later:
        return encode()
    return ir.LazyTensor(encode, dtype=ir.DataType[plan.words_type], shape=ir.Shape(plan.shape))


def _store_float(
    model: ir.Model,
    weight: Weight,
    plan: TensorPlan,
    words: ir.TensorProtocol,
    names: NameTable,
    shared: Callable[[], ir.Value],
) -> None:
    old = weight.value
    owner = weight.owner
    rank = len(plan.shape)

    def constant(suffix: str, array: np.ndarray | ir.TensorProtocol) -> ir.Value:
        return add_constant(model, owner, names.fresh(f"{plan.name}.{suffix}"), array)

    stored = constant("words", words)
    scales = along_channels(np.asarray(plan.scales, dtype=np.float32), rank, plan.channel_axis)
    nodes: list[ir.Node] = []

    def then(op_type: str, inputs: list[ir.Value], attributes: dict[str, int] | None = None) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=names.fresh(f"{plan.name}.read_out/{op_type}"))
        node.outputs[0].name = names.fresh(f"{plan.name}.read_out/{op_type}_output")
        nodes.append(node)
        return node.outputs[0]

    if plan.form == "affine":
        value = then("Cast", [stored], {"to": ir.DataType.FLOAT})
        if plan.offset:
            value = then("Sub", [value, constant("offset", np.asarray(plan.offset, dtype=np.float32))])
    else:
        table = shared()
        if plan.table_type != "FLOAT":
            table = then("Cast", [table], {"to": ir.DataType.FLOAT})
        index = then("Cast", [stored], {"to": ir.DataType.INT32})
        value = then("Gather", [table, index], {"axis": 0})
    scale = constant("scale", scales)
    if plan.input_scales is not None:
        columns = along_channels(np.asarray(plan.input_scales, dtype=np.float16), rank, plan.input_axis)
        factor = then("Cast", [constant("input_scale", columns)], {"to": ir.DataType.FLOAT})
        scale = then("Mul", [scale, factor])
    value = then("Mul", [value, scale])
    if old.dtype not in (None, ir.DataType.FLOAT):
        value = then("Cast", [value], {"to": int(ir.DataType[plan.dtype])})
        if ir.DataType[plan.dtype].itemsize < ir.DataType.FLOAT.itemsize:
            # A CPU without half-precision kernels casts back, and onnxruntime drops the two casts, rounding and all,
            # where the weight is not constant (under faults). A Reshape between them keeps the rounding.
            shape = constant("shape", np.asarray(plan.shape, dtype=np.int64))
            value = then("Reshape", [value, shape])
    value.type, value.shape = ir.TensorType(ir.DataType[plan.dtype]), ir.Shape(plan.shape)
    _take_place(old, value, owner, nodes, stored)


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
