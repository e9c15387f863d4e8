"""Makes weights optional graph inputs, so that one session can run a model with any weights.

Sensitivity probes and what-if runs feed the tensors that they change; the others keep the values of the model.
"""

from __future__ import annotations

import onnx_ir as ir

from qtaml_onnx.passes._graph import NameTable, add_input, carry_into
from qtaml_onnx.passes.inject_faults import _raise_ir_version
from qtaml_onnx.weights import find_weights, float_weights

__all__ = ["ExposeWeights"]


class ExposeWeights(ir.passes.InPlacePass):
    """Turns the named weights into graph inputs with their values as defaults.

    A quantised weight is exposed behind its DequantizeLinear, as float.

    Attributes:
        names: Which weights, by the names that `find_weights` gives.
        inputs: After the pass, the graph input of each weight.
    """

    def __init__(self, names: list[str]) -> None:
        """Takes the names of the weights."""
        super().__init__()
        self.names = names
        self.inputs: dict[str, str] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        weights = {weight.name: weight for weight in find_weights(model).weights}
        table = NameTable(model)
        _raise_ir_version(model)
        carried: dict[tuple[int, int], ir.Value] = {}
        for number, name in enumerate(self.names):
            weight = weights[name]
            array = float_weights(weight)
            source = add_input(model, table.fresh(f"qtaml_weight_{number}"), array)
            inner = carry_into(model, source, weight.owner, carried)
            if weight.value.is_initializer() and weight.value in model.graph.inputs:
                model.graph.inputs.remove(weight.value)
            weight.value.replace_all_uses_with(inner, replace_graph_outputs=True)
            self.inputs[name] = str(source.name)
        return ir.passes.PassResult(model, modified=bool(self.names))
