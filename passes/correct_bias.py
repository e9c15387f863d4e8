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

import onnx_ir as ir

from qtaml_onnx.errors import InputError
from qtaml_onnx.passes._bias import BiasBuilder, correct_integers
from qtaml_onnx.passes._graph import NameTable
from qtaml_onnx.plan_values import BiasPlan
from qtaml_onnx.quantized import BIAS_INPUTS

__all__ = ["CorrectBias"]

logger = logging.getLogger(__name__)


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
    node, slot = _operator(last)
    if plan.quantized is not None:
        correct_integers(model, name, node, last, slot, plan, names)
        return
    weight = node.inputs[1]
    if weight is None or weight.dtype is None:
        raise InputError(f"the weights of '{name}' have no type; run shape inference on the model")
    builder = BiasBuilder(model, name, names)
    value = weight if weight.dtype == ir.DataType.FLOAT else builder.floats(weight)
    value = builder.corrected(plan, builder.response(plan, value))
    if weight.dtype != ir.DataType.FLOAT:
        value = builder.then("Cast", [value], {"to": int(weight.dtype)})
    builder.put(value, weight.dtype, plan, last, slot)


def _operator(last: ir.Node) -> tuple[ir.Node, int]:
    """The operator that multiplies, and the input of `last` that is the bias."""
    if last.op_type in BIAS_INPUTS:
        return last, BIAS_INPUTS[last.op_type]
    node, slot = last, 2
    if last.op_type == "Add":
        for index, value in enumerate(last.inputs):
            producer = value.producer() if value is not None else None
            if producer is not None and producer.op_type == "MatMul":
                node, slot = producer, 1 - index
    return node, slot
