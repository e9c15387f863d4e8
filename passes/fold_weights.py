"""Materialises weights that the graph computes from constants, so that they can be stored.

Older exporters make weights with ConstantOfShape, or scale and join them with arithmetic on constants. A weight operand
whose whole history is constant is evaluated once and becomes an initializer (a Constant node inside a function).
Operators that only change the layout of a constant are left: onnxruntime folds them, and the constant behind them is
what is stored.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qtaml_onnx.weights import (
    _LAYOUT_OPERATORS,
    _WEIGHT_OPERANDS,
    STANDARD_DOMAINS,
    is_constant,
    walk,
)

__all__ = ["FoldWeights"]

logger = logging.getLogger(__name__)

_IMPURE = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"})
_MOST_BYTES = 1 << 31


class FoldWeights(ir.passes.InPlacePass):
    """Replaces constant expressions behind weight operands by their values."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Folds in place; unchanged where every weight is stored already."""
        folded = 0
        for root, node in list(walk(model)):
            if node.domain not in STANDARD_DOMAINS:
                continue
            for operand in _WEIGHT_OPERANDS.get(node.op_type, ()):
                value = node.inputs[operand] if operand < len(node.inputs) else None
                cone = _constant_cone(value)
                if value is not None and cone and not _is_layout_or_dequantize(value):
                    _replace(model, root, value, cone)
                    folded += 1
        if folded:
            RemoveUnusedNodesPass()(model)
            logger.info("fold weights: %d computed from constants", folded)
        return ir.passes.PassResult(model, modified=bool(folded))


def _is_layout_or_dequantize(value: ir.Value) -> bool:
    """Whether the constant stands behind layout operators or a DequantizeLinear alone."""
    producer = value.producer()
    while producer is not None and producer.op_type in _LAYOUT_OPERATORS and producer.inputs[0] is not None:
        if is_constant(producer.inputs[0]):
            return True
        value = producer.inputs[0]
        producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear" and is_constant(producer.inputs[0])


def _constant_cone(value: ir.Value | None) -> list[ir.Node] | None:
    """The nodes that compute a value from constants alone, in order; None if it depends on anything else."""
    if value is None or is_constant(value):
        return None
    order: list[ir.Node] = []
    done: set[int] = set()
    stack: list[tuple[ir.Value, bool]] = [(value, False)]
    while stack:
        current, expanded = stack.pop()
        producer = current.producer()
        if producer is None:
            if not is_constant(current):
                return None
            continue
        if id(producer) in done:
            continue
        if expanded:
            done.add(id(producer))
            order.append(producer)
            continue
        if producer.domain not in STANDARD_DOMAINS or producer.op_type in _IMPURE or list(_subgraphs(producer)):
            return None
        stack.append((current, True))
        stack.extend((source, False) for source in producer.inputs if source is not None)
    return order


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    return [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]


def _replace(model: ir.Model, root: ir.Graph | ir.Function, value: ir.Value, cone: list[ir.Node]) -> None:
    array = _evaluate(model, value, cone)
    producer = value.producer()
    if producer is None or array.nbytes > _MOST_BYTES:
        return
    graph = producer.graph
    name = value.name
    tensor = ir.tensor(array, name=name)
    value.name = f"{name}__folded"
    if isinstance(root, ir.Function) or graph is None or isinstance(graph, ir.Function):
        constant = ir.node("Constant", [], {"value": tensor})
        constant.outputs[0].name = name
        producer.append(constant)
        replacement = constant.outputs[0]
    else:
        replacement = ir.val(name, tensor.dtype, tensor.shape, const_value=tensor)
        graph.register_initializer(replacement)
    replacement.type = ir.TensorType(tensor.dtype)
    replacement.shape = tensor.shape if isinstance(tensor.shape, ir.Shape) else ir.Shape(tensor.shape)
    value.replace_all_uses_with(replacement, replace_graph_outputs=True)


def _evaluate(model: ir.Model, value: ir.Value, cone: list[ir.Node]) -> np.ndarray:
    opset = model.opset_imports.get("", 1)
    inputs: dict[str, np.ndarray] = {}
    for node in cone:
        for source in node.inputs:
            if source is not None and source.producer() is None and source.const_value is not None:
                inputs[str(source.name)] = source.const_value.numpy()
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in cone],
        "fold",
        [onnx.helper.make_tensor_value_info(k, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in inputs.items()],
        [onnx.helper.make_tensor_value_info(str(value.name), onnx.TensorProto.UNDEFINED, None)],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return np.asarray(ReferenceEvaluator(proto).run(None, inputs)[0])
