"""Materialises weights that the graph computes from constants, so that they can be stored.

Older exporters make weights with ConstantOfShape, or scale and join them with arithmetic on constants; quantisers leave
a QuantizeLinear over the float weight. Such a constant expression is evaluated once and becomes an initializer (a
Constant node inside a function). Operators that only change the layout, and a DequantizeLinear, stay: onnxruntime folds
or fuses them, and the constant behind them is what is stored. An Identity over a constant goes: by it, an exporter that
finds equal constants has them share one, and what reads it would seem to have a weight or bias that is computed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qtaml_onnx.graph import STANDARD_DOMAINS, Owner, constant_array, is_constant, walk
from qtaml_onnx.operands import LAYOUT_OPERATORS, weight_operands
from qtaml_onnx.passes._graph import add_constant
from qtaml_onnx.quantized import integer_operands

__all__ = ["FoldWeights"]

logger = logging.getLogger(__name__)

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_GRAPHS = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})
_MOST_BYTES = 1 << 31


class FoldWeights(ir.passes.InPlacePass):
    """Replaces constant expressions behind weight operands by their values, and constants' copies by the constants."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Folds in place; unchanged where every weight is stored already."""
        copies = _remove_copies(model)
        computable = _computable_nodes(model)
        folded = 0
        for root, node in list(walk(model)):
            if node.op_identifier() in model.functions:
                continue
            for operand in (*weight_operands(node), *integer_operands(node)):
                value = _behind_layout(node.inputs[operand]) if operand < len(node.inputs) else None
                producer = value.producer() if value is not None else None
                if value is not None and producer is not None and id(producer) in computable:
                    folded += _replace(model, root, value, list(_cone(producer)))
        if folded:
            RemoveUnusedNodesPass()(model)
        if folded or copies:
            logger.info("fold weights: %d computed from constants, %d copies of constants", folded, copies)
        return ir.passes.PassResult(model, modified=bool(folded or copies))


def _remove_copies(model: ir.Model) -> int:
    """Lets the readers of Identity operators over constants read the constants; those of graph outputs stay."""
    count = 0
    for _root, node in list(walk(model)):
        if node.op_type != "Identity" or node.domain not in STANDARD_DOMAINS or node.graph is None:
            continue
        source, copy = node.inputs[0], node.outputs[0]
        if source is not None and is_constant(source) and not copy.is_graph_output():
            copy.replace_all_uses_with(source)
            node.graph.remove(node, safe=True)
            count += 1
    return count


def _behind_layout(value: ir.Value | None) -> ir.Value | None:
    """The value that operators of layout alone, or a DequantizeLinear, stand before; None if it is constant already."""
    while value is not None and not is_constant(value):
        producer = value.producer()
        if producer is None or producer.domain not in STANDARD_DOMAINS:
            return value
        if producer.op_type not in LAYOUT_OPERATORS and producer.op_type != "DequantizeLinear":
            return value
        value = producer.inputs[0]
    return None


def _computable_nodes(model: ir.Model) -> set[int]:
    """Identities of the nodes that depend on constants alone."""
    found: set[int] = set()
    for _root, node in walk(model):  # in topological order: what a node reads was seen before it
        if node.domain not in STANDARD_DOMAINS or node.op_type in _RANDOM or not node.inputs:
            continue
        if any(held.is_ref() or held.type in _GRAPHS for held in node.attributes.values()):
            continue
        if all(value is None or is_constant(value) or id(value.producer()) in found for value in node.inputs):
            found.add(id(node))
    return found


def _cone(last: ir.Node) -> Iterator[ir.Node]:
    """The nodes that compute a node's result, each after those that it reads, without the Constant nodes."""
    done: set[int] = set()
    stack = [(last, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            yield node
        elif id(node) not in done:
            done.add(id(node))
            stack.append((node, True))
            for value in node.inputs:
                producer = value.producer() if value is not None and not is_constant(value) else None
                if producer is not None:
                    stack.append((producer, False))


def _replace(model: ir.Model, root: Owner, value: ir.Value, cone: list[ir.Node]) -> bool:
    """Puts the value of an expression in its place; leaves it alone if it cannot be evaluated or is too large."""
    producer = value.producer()
    if producer is None or producer.graph is None:
        return False
    opset = root.opset_imports.get("", 0) if isinstance(root, ir.Function) else 0
    array = _evaluate(opset or model.opset_imports.get("", 1), value, cone)
    if array is None or array.nbytes > _MOST_BYTES:
        return False
    name = str(value.name)
    owner: Owner = root if isinstance(root, ir.Function) and producer.graph in (root, root.graph) else producer.graph
    value.name = f"{name}__computed"
    replacement = add_constant(model, owner, name, array)
    value.replace_all_uses_with(replacement, replace_graph_outputs=True)
    return True


def _evaluate(opset: int, value: ir.Value, cone: list[ir.Node]) -> NDArray[np.generic] | None:
    inputs = {
        str(source.name): constant_array(source)
        for node in cone
        for source in node.inputs
        if source is not None and is_constant(source)
    }
    try:
        graph = onnx.helper.make_graph(
            [ir.to_proto(node) for node in cone],
            "constant expression",
            [
                onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in inputs.items()
            ],
            [onnx.helper.make_tensor_value_info(str(value.name), onnx.TensorProto.UNDEFINED, None)],
        )
        opsets = [onnx.helper.make_opsetid("", opset)]
        proto = onnx.helper.make_model(graph, opset_imports=opsets)
        result: Any = ReferenceEvaluator(proto).run(None, inputs)
        return np.asarray(result[0])
    except Exception as error:  # the evaluator raises what its operators raise; the expression then stays as it is
        logger.info("fold weights: '%s' cannot be evaluated: %s", value.name, error)
        return None
