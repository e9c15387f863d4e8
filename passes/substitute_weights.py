"""Gives weights other values, as constants: what a model would compute if its weights were these."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.passes._graph import NameTable, add_constant, discard
from qtaml_onnx.weights import find_weights

__all__ = ["SubstituteWeights"]


class SubstituteWeights(ir.passes.InPlacePass):
    """Replaces the values of the named weights.

    A quantised weight is replaced where its integers are stored, by other integers.

    Attributes:
        values: The new values by the names that `find_weights` gives: in the weight's shape and float type, or what the
            graph stores of the integers of a quantised weight, in the type and shape of that constant.
    """

    def __init__(self, values: Mapping[str, NDArray[np.generic] | ir.TensorProtocol]) -> None:
        """Takes the new values."""
        super().__init__()
        self.values = values

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        weights = {weight.name: weight for weight in find_weights(model).weights}
        names = NameTable(model)
        for name, array in self.values.items():
            weight = weights[name]
            if weight.grid is not None:
                (node, index), old_words = weight.reader, weight.stored
                constant = add_constant(model, weight.owner, names.fresh(f"{name}.substitute"), array)
                node.replace_input_with(index, constant)
                discard(old_words)
                continue
            constant = add_constant(model, weight.owner, names.fresh(f"{name}.substitute"), array)
            weight.value.replace_all_uses_with(constant, replace_graph_outputs=True)
            old = weight.value.name
            discard(weight.value)
            weight.value.name, constant.name = None, old
        return ir.passes.PassResult(model, modified=bool(self.values))
