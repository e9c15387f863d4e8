"""Makes weights optional graph inputs, so that one session can run a model with any weights.

Sensitivity probes and what-if runs feed the tensors that they change; the others keep the values of the model.
"""

from __future__ import annotations

import onnx_ir as ir

from qtaml_onnx.passes._graph import Carrier, NameTable, add_input, discard
from qtaml_onnx.passes.dequantize_weights import DequantizeWeights
from qtaml_onnx.passes.inject_faults import allow_defaults
from qtaml_onnx.weights import float_weights

__all__ = ["ExposeWeights"]


class ExposeWeights(ir.passes.InPlacePass):
    """Turns the named weights into graph inputs with their values as defaults.

    Quantised weights are made floats first, all of them, and exposed as such.

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
        dequantize = DequantizeWeights()
        dequantize(model)
        table = NameTable(model)
        allow_defaults(model)
        carrier = Carrier(model)
        for number, name in enumerate(self.names):
            weight = dequantize.weights[name]
            array = float_weights(weight)
            source = add_input(model, table.fresh(f"qtaml_weight_{number}"), array)
            inner = carrier.into(weight.owner, source)
            weight.value.replace_all_uses_with(inner, replace_graph_outputs=True)
            discard(weight.value)
            self.inputs[name] = str(source.name)
        return ir.passes.PassResult(model, modified=bool(self.names))
