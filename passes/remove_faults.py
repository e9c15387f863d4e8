"""Takes every `qtaml::FaultInject` out again, and the inputs that it needed."""

from __future__ import annotations

import logging

import onnx_ir as ir

from qtaml_onnx.graph import walk
from qtaml_onnx.passes._graph import discard
from qtaml_onnx.passes.inject_activation_faults import INFERENCE_INPUT, SEED_AND_INFERENCE
from qtaml_onnx.passes.inject_faults import DOMAIN, RATES_INPUT, SEED_INPUT

__all__ = ["RemoveFaults"]

logger = logging.getLogger(__name__)


class RemoveFaults(ir.passes.InPlacePass):
    """The inverse of `InjectFaults` and `InjectActivationFaults`, up to the IR version, which stays."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place; unchanged if nothing is injected."""
        removed = 0
        for root, node in list(walk(model)):
            if node.domain == DOMAIN and node.op_type == "FaultInject":
                source = node.inputs[0]
                graph = node.graph if node.graph is not None else root
                if source is not None:
                    if node.outputs[0].is_graph_output():
                        source.name, node.outputs[0].name = node.outputs[0].name, source.name
                    node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
                made = node.inputs[1:]
                graph.remove(node, safe=True)
                for value in made:
                    _remove_unused(value)
                removed += 1
        if removed:
            _remove_input(model, SEED_AND_INFERENCE)  # of functions, which it was carried into
            for node in list(model.graph):
                if node.outputs[0].name == SEED_AND_INFERENCE:
                    _remove_unused(node.outputs[0])
            for name in (SEED_INPUT, RATES_INPUT, INFERENCE_INPUT):
                _remove_input(model, name)
            model.opset_imports.pop(DOMAIN, None)
            for function in model.functions.values():
                function.opset_imports.pop(DOMAIN, None)
            logger.info("remove faults: %d", removed)
        return ir.passes.PassResult(model, modified=bool(removed))


def _remove_unused(value: ir.Value | None) -> None:
    """Removes what made seeds and rates from those that are fed, once nothing reads it."""
    if value is None or value.uses():
        return
    producer = value.producer()
    if producer is None:
        if not value.is_graph_input():
            discard(value)
        return
    inputs = list(producer.inputs)
    if producer.graph is not None:
        producer.graph.remove(producer, safe=True)
    for i in inputs:
        _remove_unused(i)


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
