"""Folding: what is computed from constants becomes a stored constant, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from small_models import CASES, OUT, ROWS, X, constant, info, initializer, matmul, model, normal
from stored_models import run, source_model

import qtaml_onnx
from qtaml_onnx.passes.fold_weights import FoldWeights
from qtaml_onnx.weights import constant_array, find_weights

FOLDED = {"constant-of-shape", "constant-of-shape-ir3", "computed", "identity", "quantised-by-graph"}


@pytest.mark.parametrize("name", CASES)
def test_folds_what_it_should_and_computes_the_same(name: str) -> None:
    case = CASES[name]()
    loaded = source_model(case.model).model
    assert FoldWeights()(loaded).modified == (name in FOLDED)
    proto = ir.to_proto(loaded)
    onnx.checker.check_model(proto)
    if name not in FOLDED:
        unchanged = ir.to_proto(ir.from_proto(case.model))
        assert proto.SerializeToString(deterministic=True) == unchanged.SerializeToString(deterministic=True)
    for weight in find_weights(loaded).weights:
        np.testing.assert_array_equal(constant_array(weight.stored), case.weights[weight.name])
    for got, wanted in zip(run(proto, case.feeds), run(case.model, case.feeds), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_quantised_by_the_graph_stays_behind_its_dequantize() -> None:
    """The words are stored, not the floats: integer kernels remain possible."""
    loaded = source_model(CASES["quantised-by-graph"]().model).model
    FoldWeights()(loaded)
    assert [node.op_type for node in loaded.graph] == ["DequantizeLinear", "MatMul"]
    assert find_weights(loaded).weights[0].dequantize is not None


def test_in_subgraphs_and_functions() -> None:
    """Each becomes a constant of its own graph; a value that the expression reads from outside is followed there."""
    half = normal(6, 4, seed=1, dtype=np.float16)
    cast = helper.make_node("Cast", ["H"], ["F"], to=TensorProto.FLOAT)
    yes = helper.make_graph([cast, matmul("F", result="p")], "yes", [], [info("p", 1, None, None)])
    no = helper.make_graph([helper.make_node("Identity", ["q"], ["n"])], "no", [], [info("n", 1, None, None)])
    body = [constant("C", half), helper.make_node("Cast", ["C"], ["D"], to=TensorProto.FLOAT), matmul("D", "a", "r")]
    f = helper.make_function("test", "f", ["a"], ["r"], body, [helper.make_opsetid("", 17)])
    nodes = [
        helper.make_node("f", ["x"], ["q"], domain="test"),
        helper.make_node("If", ["c"], ["y"], then_branch=yes, else_branch=no),
    ]
    proto = model(nodes, [X, info("c", TensorProto.BOOL)], [OUT], {"H": half}, functions=[f], domains=["test"])
    loaded = source_model(proto).model
    FoldWeights()(loaded)
    weights = {weight.name: weight for weight in find_weights(loaded).weights}
    assert set(weights) == {"F", "test::f/D"}
    folded = ir.to_proto(loaded)
    onnx.checker.check_model(folded)
    assert [n.op_type for n in folded.functions[0].node] == ["Constant", "MatMul"]
    assert not folded.graph.initializer  # the halves have no reader any more
    for flag in (True, False):
        feeds = ROWS | {"c": np.array(flag)}
        np.testing.assert_array_equal(run(folded, feeds)[0], run(proto, feeds)[0])


@pytest.mark.parametrize("kind", ["random", "input", "attribute", "custom"])
def test_what_is_not_constant_stays(kind: str) -> None:
    node = helper.make_node
    functions, domains, weight = [], [], [node("RandomNormal", [], ["W"], shape=[6, 4], seed=1.0)]
    if kind == "input":
        weight = [node("ReduceMean", ["x"], ["m"], keepdims=1), node("Mul", ["V", "m"], ["W"])]
    elif kind == "custom":
        weight, domains = [node("Mystery", ["V"], ["W"], domain="com.example")], ["com.example"]
    elif kind == "attribute":
        scale = node("ThresholdedRelu", ["v"], ["r"])
        scale.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT))
        functions = [helper.make_function("test", "f", ["v"], ["r"], [scale], [helper.make_opsetid("", 17)], ["alpha"])]
        weight, domains = [node("f", ["V"], ["W"], domain="test", alpha=0.5)], ["test"]
    proto = model([*weight, matmul()], [X], [OUT], {"V": normal(6, 4)}, functions=functions, domains=domains)
    loaded = source_model(proto).model
    assert not FoldWeights()(loaded).modified
    assert not find_weights(loaded).weights


def test_an_expression_that_cannot_be_evaluated_stays() -> None:
    """The reference evaluator refuses shapes that do not broadcast; the model is broken, but not by us."""
    proto = model(
        [helper.make_node("Add", ["A", "B"], ["W"]), matmul()], [X], [OUT], {"A": normal(6, 4), "B": normal(5, 3)}
    )
    assert not FoldWeights()(source_model(proto).model).modified


def test_every_reader_of_a_folded_weight_sees_it() -> None:
    """Also as a graph output."""
    nodes = [
        helper.make_node("Neg", ["V"], ["W"]),
        matmul(result="p"),
        matmul(result="q"),
        helper.make_node("Add", ["p", "q"], ["y"]),
    ]
    proto = model(nodes, [X], [OUT, info("W", 1, 6, 4)], {"V": normal(6, 4)})
    loaded = source_model(proto).model
    FoldWeights()(loaded)
    folded = ir.to_proto(loaded)
    onnx.checker.check_model(folded)
    assert [t.name for t in folded.graph.initializer] == ["W"]
    for got, wanted in zip(run(folded, ROWS), run(proto, ROWS), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert initializer("W", -normal(6, 4)).raw_data == folded.graph.initializer[0].raw_data


def shared_bias() -> onnx.ModelProto:
    """Two Gemms whose biases are equal: the second reads the first one's through an Identity, as torch exports it."""
    nodes = [
        helper.make_node("Identity", ["b"], ["b2"]),
        helper.make_node("Gemm", ["x", "W", "b"], ["h"]),
        helper.make_node("Gemm", ["h", "V", "b2"], ["y"], transB=1),
    ]
    initializers = {"W": normal(6, 6, seed=1), "V": normal(6, 6, seed=2), "b": normal(6, seed=3)}
    return model(nodes, [info("x", 1, None, 6)], [info("y", 1, None, 6)], initializers)


def test_a_bias_that_layers_share_through_an_identity_corrects_itself_in_both(tmp_path: Path) -> None:
    onnx.save(shared_bias(), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=1.0 + normal(64, 6, seed=4))
    result = qtaml_onnx.harden(tmp_path / "m.onnx", 0.05, calibration=tmp_path / "c.npz", method="posterior-mean")
    assert [tensor.name for tensor in result.plan.tensors if tensor.bias is not None] == ["W", "V"]
    assert {item.name: item.reason for item in result.plan.left_out} == {"b": "bias of Gemm: kept in safe storage"}


def test_copies_that_are_outputs_stay() -> None:
    nodes = [helper.make_node("Identity", ["W"], ["w"]), matmul("w")]
    proto = model(nodes, [X], [OUT, info("w", 1, 6, 4)], {"W": normal(6, 4)})
    loaded = source_model(proto).model
    assert not FoldWeights()(loaded).modified
    assert [node.op_type for node in loaded.graph] == ["Identity", "MatMul"]
