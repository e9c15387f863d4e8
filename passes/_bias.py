"""The nodes of a bias that corrects itself, from float weights or from the integers of a quantised model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtaml_onnx.errors import InputError
from qtaml_onnx.passes._graph import NameTable, NodeBuilder, discard
from qtaml_onnx.plan_values import BiasPlan, QuantizedBias
from qtaml_onnx.quantized import BIAS_INPUTS

__all__ = ["BiasBuilder", "correct_integers"]

_AXES_ARE_INPUT = 13
"""The opset from which ReduceSum takes its axes as an input."""


class BiasBuilder(NodeBuilder):
    """Collects the nodes of one layer's bias, which is in the main graph."""

    def __init__(self, model: ir.Model, name: str, names: NameTable) -> None:
        """Takes the model and the weight's name, after which everything is named."""
        super().__init__(model, model.graph, name, "bias", names)

    def floats(self, value: ir.Value) -> ir.Value:
        """A value as float32."""
        return self.then("Cast", [value], {"to": ir.DataType.FLOAT})

    def response(self, plan: BiasPlan, value: ir.Value) -> ir.Value:
        """Σ Ŵ · x̄ · coverage of float32 weights as read."""
        if plan.grouped_shape is not None:
            shape = self.constant("grouped_shape", np.asarray(plan.grouped_shape, dtype=np.int64))
            value = self.then("Reshape", [value, shape])
        mean = np.asarray(plan.mean_input, dtype=np.float16).reshape(plan.mean_shape)
        value = self.then("Mul", [value, self.floats(self.constant("mean_input", mean))])
        if plan.coverage is not None:
            coverage = np.asarray(plan.coverage, dtype=np.float16).reshape(plan.coverage_shape)
            value = self.then("Mul", [value, self.floats(self.constant("coverage", coverage))])
        if self.model.opset_imports.get("", 1) >= _AXES_ARE_INPUT:
            axes = self.constant("summed_axes", np.asarray(plan.summed_axes, dtype=np.int64))
            return self.then("ReduceSum", [value, axes], {"keepdims": 0})
        return self.then("ReduceSum", [value], {"axes": list(plan.summed_axes), "keepdims": 0})

    def corrected(self, plan: BiasPlan, response: ir.Value) -> ir.Value:
        """The target less the response, float32 [outputs]."""
        target = self.constant("mean_output", np.asarray(plan.target, dtype=np.float32).reshape(plan.target_shape))
        value = self.then("Sub", [target, response])
        if plan.grouped_shape is not None:
            shape = self.constant("bias_shape", np.asarray([len(plan.target)], dtype=np.int64))
            value = self.then("Reshape", [value, shape])
        return value

    def put(self, value: ir.Value, dtype: ir.DataType, plan: BiasPlan, reader: ir.Node, slot: int) -> None:
        """Makes `value` an input of `reader`, in the place of what was there."""
        value.type, value.shape = ir.TensorType(dtype), ir.Shape([len(plan.target)])
        if len(reader.inputs) <= slot:
            reader.resize_inputs(slot + 1)
        old = reader.inputs[slot]
        reader.replace_input_with(slot, value)
        reader.prepend(self.nodes)
        if old is not None:
            discard(old)


def correct_integers(
    model: ir.Model, name: str, node: ir.Node, last: ir.Node, slot: int, plan: BiasPlan, names: NameTable
) -> None:
    """Gives a quantised layer its bias.

    Args:
        model: The model.
        name: Of the weight.
        node: The operator that multiplies.
        last: The operator that takes the bias: `node`, or the Add behind a MatMul.
        slot: As which input it does.
        plan: The bias, with `quantized` set.
        names: Names in use.

    Raises:
        InputError: if the layer's weights are not integers.
    """
    quantized, builder = plan.quantized, BiasBuilder(model, name, names)
    words = node.inputs[3] if node.op_type in BIAS_INPUTS else _before_dequantize(node.inputs[1])
    if quantized is None or words is None:
        raise InputError(f"the weights of '{name}' are not integers in this model")
    value = builder.floats(words)
    if any(quantized.zero_points):
        points = np.asarray(quantized.zero_points, dtype=np.float32).reshape(quantized.zero_shape)
        value = builder.then("Sub", [value, builder.constant("bias_zero_point", points)])
    response = builder.response(plan, value)
    if quantized.scales:
        steps = np.asarray(quantized.scales, dtype=np.float32)
        steps = steps.reshape(plan.target_shape if steps.size > 1 else ())
        response = builder.then("Mul", [response, builder.constant("bias_step", steps)])
    value = builder.corrected(plan, response)
    if not quantized.rounded:
        dtype = _float_type(node.inputs[1])
        if dtype != ir.DataType.FLOAT:
            value = builder.then("Cast", [value], {"to": int(dtype)})
        builder.put(value, dtype, plan, last, slot)
        return
    half = builder.constant("bias_half", np.asarray(0.5, dtype=np.float32))
    value = builder.then("Floor", [builder.then("Add", [value, half])])
    value = builder.then("Cast", [value], {"to": ir.DataType.INT32})
    if node.op_type in BIAS_INPUTS:
        builder.put(value, ir.DataType.INT32, plan, last, slot)
    elif plan.has_bias:
        dequantize = last.inputs[slot].producer()  # type: ignore[union-attr]
        if dequantize is None:
            raise InputError(f"the bias of '{name}' is not behind a DequantizeLinear in this model")
        builder.put(value, ir.DataType.INT32, plan, dequantize, 0)
    else:
        _dequantized(builder, quantized, value, plan, last, slot)


def _dequantized(
    builder: BiasBuilder, quantized: QuantizedBias, value: ir.Value, plan: BiasPlan, last: ir.Node, slot: int
) -> None:
    """A new bias behind a new DequantizeLinear, of which onnxruntime makes one of its integer operator."""
    value.type, value.shape = ir.TensorType(ir.DataType.INT32), ir.Shape([len(plan.target)])
    step = np.asarray(quantized.step, dtype=np.float32)
    attributes: dict[str, object] = {"axis": 0} if step.size > 1 else {}
    scale = builder.constant("bias_scale", step if step.size > 1 else step.reshape(()))
    builder.put(builder.then("DequantizeLinear", [value, scale], attributes), ir.DataType.FLOAT, plan, last, slot)


def _before_dequantize(value: ir.Value | None) -> ir.Value | None:
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else None


def _float_type(value: ir.Value | None) -> ir.DataType:
    producer = value.producer() if value is not None else None
    scale = producer.inputs[1] if producer is not None else None
    return scale.dtype if scale is not None and scale.dtype is not None else ir.DataType.FLOAT
