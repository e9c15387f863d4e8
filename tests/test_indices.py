"""Inputs that index tables of the model: synthetic ones stay within."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper
from operator_models import CASES
from quantized_models import gathered_blocks
from small_models import info, model, normal

from qtaml_onnx.data import input_specs, synthetic_dataset
from qtaml_onnx.indices import index_limits


def test_the_smallest_table_that_an_input_indexes() -> None:
    make = helper.make_node
    nodes = [
        make("Unsqueeze", ["i", "zero"], ["j"]),
        make("Cast", ["j"], ["k"], to=TensorProto.INT32),
        make("Gather", ["A", "k"], ["a"]),
        make("Gather", ["B", "i"], ["b"], axis=1),
        make("Gather", ["a", "n"], ["y"]),  # a computed table has no known length
    ]
    constants = {"A": normal(9, 4), "B": normal(2, 5), "zero": np.array([0])}
    inputs = [info("i", TensorProto.INT64, "N"), info("n", TensorProto.INT64, 1)]
    proto = model(nodes, inputs, [info("y", 1, *[None] * 3), info("b", 1, 2, None)], constants)
    loaded = ir.from_proto(proto)
    assert index_limits(loaded) == {"i": 5}
    drawn = synthetic_dataset(input_specs(loaded), 400, 0).arrays["i"]
    assert set(np.unique(drawn)) == set(range(5))


def test_gathered_blocks() -> None:
    """The table of a GatherBlockQuantized has its entries along `gather_axis`, by default the first."""
    proto = gathered_blocks("int4", True)
    assert index_limits(ir.from_proto(proto)) == {"i": 30}
    axis = next(attribute for attribute in proto.graph.node[0].attribute if attribute.name == "gather_axis")
    axis.i = 1
    assert index_limits(ir.from_proto(proto)) == {"i": 40}
    proto.graph.node[0].attribute.remove(axis)
    assert index_limits(ir.from_proto(proto)) == {"i": 30}


def test_fused_embeddings() -> None:
    assert index_limits(ir.from_proto(CASES["embed-layer-normalization"]().model)) == {"i": 9, "s": 2}
