"""Stores the integers of a quantised weight in other words, and reads them back as integers of the same type.

    dequantize      the words are the integers
    integer-table   table[Cast(words)]                                          Cast, Gather
    integer-grid    Cast(Max(Min(Floor(table[Cast(words)] · scale + (zero point + ½)), largest), least))

The result takes the place of the integer constant alone: the operator that reads it, its steps and its zero points
stay. All is on constants, so that onnxruntime has the integers when it makes integer kernels of the graph at load.
Words of MatMulNBits are packed by a product with the places' values, [1, 16] for words of 4 bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qtaml_onnx.passes._graph import NameTable, add_constant, discard, insert_at_start
from qtaml_onnx.plan_values import PackedWords
from qtaml_onnx.storage.tensor import along_channels
from qtaml_onnx.tensor_plan import TensorPlan, table_array
from qtaml_onnx.weights import Weight

__all__ = ["store_quantized"]

_GATHERED = frozenset({"INT8", "UINT8", "INT16", "UINT16"})
"""Types of which onnxruntime gathers tables; shorter ones are cast from floats."""

SharedTable = Callable[[], ir.Value]


class _Reader:
    """Builds the read-out of one tensor."""

    def __init__(self, model: ir.Model, weight: Weight, plan: TensorPlan, names: NameTable) -> None:
        self.model, self.weight, self.plan, self.names = model, weight, plan, names
        self.nodes: list[ir.Node] = []

    def constant(self, suffix: str, array: np.ndarray) -> ir.Value:
        return add_constant(self.model, self.weight.owner, self.names.fresh(f"{self.plan.name}.{suffix}"), array)

    def then(self, op_type: str, inputs: list[ir.Value], attributes: dict[str, int] | None = None) -> ir.Value:
        wanted = f"{self.plan.name}.read_out/{op_type}"
        node = ir.node(op_type, inputs, attributes, name=self.names.fresh(wanted))
        node.outputs[0].name = self.names.fresh(f"{wanted}_output")
        self.nodes.append(node)
        return node.outputs[0]

    def floats(self, value: ir.Value) -> ir.Value:
        return self.then("Cast", [value], {"to": ir.DataType.FLOAT})

    def number(self, suffix: str, value: float) -> ir.Value:
        return self.constant(suffix, np.asarray(value, dtype=np.float32))

    def read(self, stored: ir.Value, shared: SharedTable) -> ir.Value:
        """The integers that the operator reads."""
        plan = self.plan
        table = shared() if plan.form == "integer-grid" else self.constant("table", table_array(plan))
        direct = plan.form == "integer-table" and plan.packing is None and plan.dtype in _GATHERED
        if not direct and table.dtype != ir.DataType.FLOAT:
            table = self.floats(table)
        index = self.then("Cast", [stored], {"to": ir.DataType.INT32})
        value = self.then("Gather", [table, index], {"axis": 0})
        if direct:
            return value
        if plan.form == "integer-grid":
            value = self.on_grid(value)
        if plan.packing is not None:
            value = self.packed(value, plan.packing)
        return self.then("Cast", [value], {"to": int(ir.DataType[plan.dtype])})

    def on_grid(self, value: ir.Value) -> ir.Value:
        """Scaled, rounded, and kept within the integers that the tensor had."""
        plan, rank = self.plan, len(self.plan.shape)
        scale = self.constant("scale", along_channels(np.asarray(plan.scales, np.float32), rank, plan.channel_axis))
        if plan.input_scales is not None:
            columns = along_channels(np.asarray(plan.input_scales, np.float16), rank, plan.input_axis)
            scale = self.then("Mul", [scale, self.floats(self.constant("input_scale", columns))])
        value = self.then("Mul", [value, scale])
        value = self.then("Add", [value, self.number("zero_point_half", plan.zero_point + 0.5)])
        least, largest = plan.limits or (0, 0)
        value = self.then("Min", [self.then("Floor", [value]), self.number("largest", largest)])
        return self.then("Max", [value, self.number("least", least)])

    def packed(self, value: ir.Value, packing: PackedWords) -> ir.Value:
        """Words as MatMulNBits has them in bytes, still in floats: exact, as bytes end at 255."""
        fields = 8 // packing.bits
        rows, blocks, size = packing.shape
        missing = blocks * size * fields - self.plan.shape[1]
        if missing:
            filler = self.constant("filler", np.full((rows, missing), packing.filler, dtype=np.float32))
            value = self.then("Concat", [value, filler], {"axis": 1})
        if fields > 1:
            value = self.then("Reshape", [value, self.shape("fields", -1, fields)])
            places = (1 << np.arange(0, 8, packing.bits)).astype(np.float32)[:, None]
            value = self.then("MatMul", [value, self.constant("places", places)])
        return self.then("Reshape", [value, self.shape("packed_shape", *packing.shape)])

    def shape(self, suffix: str, *extents: int) -> ir.Value:
        return self.constant(suffix, np.asarray(extents, dtype=np.int64))


def store_quantized(
    model: ir.Model,
    weight: Weight,
    plan: TensorPlan,
    words: ir.TensorProtocol,
    shared: SharedTable,
    names: NameTable,
) -> None:
    """Stores one quantised weight.

    Args:
        model: The model, changed in place.
        weight: One of its quantised weights.
        plan: How it is stored.
        words: Its stored words.
        shared: Gives the table of normalised weights, which tensors may share.
        names: Names in use.
    """
    old = weight.stored
    node, index = weight.reader
    stored = add_constant(model, weight.owner, names.fresh(plan.words_name), words)
    reader = _Reader(model, weight, plan, names)
    value = stored if plan.form == "dequantize" else reader.read(stored, shared)
    if value is not stored:
        shape = plan.packing.shape if plan.packing is not None else plan.shape
        value.type, value.shape = ir.TensorType(ir.DataType[plan.dtype]), ir.Shape(shape)
    node.replace_input_with(index, value)
    if reader.nodes:
        after = stored.producer()
        if after is not None:  # constants that are nodes were put at the start, each before those before it
            weight.owner.insert_after(after, reader.nodes)
        else:
            insert_at_start(weight.owner, reader.nodes)
    discard(old)
