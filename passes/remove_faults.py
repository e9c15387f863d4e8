"""Takes every `qtaml::FaultInject` out again, and the inputs that it needed."""

from __future__ import annotations

import logging

import onnx_ir as ir

from qtaml_onnx.graph import Owner, walk
from qtaml_onnx.passes._graph import discard
from qtaml_onnx.passes.inject_faults import DOMAIN, RATES_INPUT, SEED_INPUT

__all__ = ["RemoveFaults"]

logger = logging.getLogger(__name__)


class RemoveFaults(ir.passes.InPlacePass):
    """The inverse of `InjectFaults`, up to the IR version, which stays."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place; unchanged if nothing is injected."""
        removed = 0
        for root, node in list(walk(model)):
            if node.domain == DOMAIN and node.op_type == "FaultInject":
                source = node.inputs[0]
                if source is not None:
                    node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
                graph = node.graph if node.graph is not None else root
                rates = node.inputs[2]
                graph.remove(node, safe=True)
                _remove_residual(graph, rates)
                removed += 1
        if removed:
            for name in (SEED_INPUT, RATES_INPUT):
                _remove_input(model, name)
            model.opset_imports.pop(DOMAIN, None)
            for function in model.functions.values():
                function.opset_imports.pop(DOMAIN, None)
            logger.info("remove faults: %d", removed)
        return ir.passes.PassResult(model, modified=bool(removed))


def _remove_residual(graph: Owner, rates: ir.Value | None) -> None:
    """Removes what made the rates of protected planes from those that are fed."""
    residual = rates.producer() if rates is not None else None
    if residual is None or residual.op_type != "MatMul" or (rates is not None and rates.uses()):
        return
    share = residual.inputs[0]
    graph.remove(residual, safe=True)
    if share is not None:
        discard(share)


def _remove_input(model: ir.Model, name: str) -> None:
    """Removes a graph input by name, and the function inputs that carried it."""
    for function in model.functions.values():
        for index, formal in reversed(list(enumerate(function.inputs))):
            if formal.name == name and not _read_here(model, formal):
                _remove_argument(model, function, index)
    value = model.graph.initializers.pop(name, None)
    if value is not None and value in model.graph.inputs:
        model.graph.inputs.remove(value)


def _read_here(model: ir.Model, formal: ir.Value) -> bool:
    """Whether anything but a call that passes the value on reads it."""
    return any(use.node.op_identifier() not in model.functions for use in formal.uses())


def _remove_argument(model: ir.Model, function: ir.Function, index: int) -> None:
    for _root, node in walk(model):
        if model.functions.get(node.op_identifier()) is function and index < len(node.inputs):
            kept = [value for i, value in enumerate(node.inputs) if i != index]
            while kept and kept[-1] is None:  # absent optional inputs that the injected ones stood behind
                kept.pop()
            for i, value in enumerate(kept):
                node.replace_input_with(i, value)
            node.resize_inputs(len(kept))
    del function.inputs[index]
