"""Gives layers a bias that corrects itself from the weights as read.

The bias b of a layer becomes

    b̂ = c − Σ Ŵ · x̄ · coverage          Mul, [Mul,] ReduceSum, Sub

on constants: onnxruntime computes it once at load, and nothing of it is left at inference. c = b + W·x̄ is the mean
output of the clean layer and takes the place of b; x̄ is the mean of the layer's input a channel; the coverage of a
kernel tap is the share of positions at which it does not meet padding. Whatever the faults are, the mean output stays.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qtaml_onnx.errors import InputError
from qtaml_onnx.passes._graph import NameTable, add_constant
from qtaml_onnx.plan import BiasPlan

__all__ = ["CorrectBias"]

logger = logging.getLogger(__name__)

_AXES_ARE_INPUT = 13
"""The opset from which ReduceSum takes its axes as an input."""


class CorrectBias(ir.passes.InPlacePass):
    """Replaces biases by self-correcting ones.

    Attributes:
        biases: By weight name, how its layer's bias corrects itself.
    """

    def __init__(self, biases: Mapping[str, BiasPlan]) -> None:
        """Takes the plans of the biases."""
        super().__init__()
        self.biases = biases

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place; raises InputError if a layer is not in the model."""
        names = NameTable(model)
        producers = {str(output.name): node for node in model.graph for output in node.outputs}
        for name, plan in self.biases.items():
            node = producers.get(plan.output)
            if node is None:
                raise InputError(f"the layer of '{name}' with output '{plan.output}' is not in this model")
            _correct(model, name, node, plan, names)
        logger.info("correct bias: %d layers", len(self.biases))
        return ir.passes.PassResult(model, modified=bool(self.biases))


def _correct(model: ir.Model, name: str, last: ir.Node, plan: BiasPlan, names: NameTable) -> None:
    """`last` is the operator, or the Add behind a MatMul."""
    node, slot = last, 2
    if last.op_type == "Add":
        for index, value in enumerate(last.inputs):
            producer = value.producer() if value is not None else None
            if producer is not None and producer.op_type == "MatMul":
                node, slot = producer, 1 - index
    weight = node.inputs[1]
    if weight is None or weight.dtype is None:
        raise InputError(f"the weights of '{name}' have no type; run shape inference on the model")
    nodes: list[ir.Node] = []

    def constant(suffix: str, array: np.ndarray) -> ir.Value:
        return add_constant(model, model.graph, names.fresh(f"{name}.{suffix}"), array)

    def then(op_type: str, inputs: list[ir.Value], attributes: dict[str, object] | None = None) -> ir.Value:
        new = ir.node(op_type, inputs, attributes, name=names.fresh(f"{name}.bias/{op_type}"))  # type: ignore[arg-type]
        new.outputs[0].name = names.fresh(f"{name}.bias/{op_type}_output")
        nodes.append(new)
        return new.outputs[0]

    def floats(value: ir.Value) -> ir.Value:
        return then("Cast", [value], {"to": ir.DataType.FLOAT})

    value = weight if weight.dtype == ir.DataType.FLOAT else floats(weight)
    if plan.grouped_shape is not None:
        value = then("Reshape", [value, constant("grouped_shape", np.asarray(plan.grouped_shape, dtype=np.int64))])
    mean = np.asarray(plan.mean_input, dtype=np.float16).reshape(plan.mean_shape)
    value = then("Mul", [value, floats(constant("mean_input", mean))])
    if plan.coverage is not None:
        coverage = np.asarray(plan.coverage, dtype=np.float16).reshape(plan.coverage_shape)
        value = then("Mul", [value, floats(constant("coverage", coverage))])
    if model.opset_imports.get("", 1) >= _AXES_ARE_INPUT:
        axes = constant("summed_axes", np.asarray(plan.summed_axes, dtype=np.int64))
        value = then("ReduceSum", [value, axes], {"keepdims": 0})
    else:
        value = then("ReduceSum", [value], {"axes": list(plan.summed_axes), "keepdims": 0})
    target = constant("mean_output", np.asarray(plan.target, dtype=np.float32).reshape(plan.target_shape))
    value = then("Sub", [target, value])
    if plan.grouped_shape is not None:
        value = then("Reshape", [value, constant("bias_shape", np.asarray([len(plan.target)], dtype=np.int64))])
    if weight.dtype != ir.DataType.FLOAT:
        value = then("Cast", [value], {"to": int(weight.dtype)})
    value.type, value.shape = ir.TensorType(weight.dtype), ir.Shape([len(plan.target)])
    if len(last.inputs) <= slot:
        last.resize_inputs(slot + 1)
    old = last.inputs[slot]
    last.replace_input_with(slot, value)
    last.prepend(nodes)
    if old is not None and not old.uses() and not old.is_graph_output():
        _remove_constant(model, old)


def _remove_constant(model: ir.Model, old: ir.Value) -> None:
    producer = old.producer()
    if producer is not None:
        model.graph.remove(producer, safe=True)
        return
    model.graph.initializers.pop(str(old.name), None)
    if old in model.graph.inputs:
        model.graph.inputs.remove(old)
