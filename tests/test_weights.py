"""Finding weights: selection by patterns and names. What is found where is tested with the pass that stores it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import CASES, info, model, normal
from stored_models import source_model

from qtaml_onnx.errors import InputError
from qtaml_onnx.weights import Inventory, find_weights


def inventory(name: str) -> Inventory:
    return find_weights(source_model(CASES[name]().model).model)


def test_patterns_select_by_name() -> None:
    found = inventory("if")
    chosen = found.select(["B#*"], None)
    assert {w.name for w in chosen.weights} == {"B#1", "B#2"}
    assert {i.name: i.reason for i in chosen.left_out}["W"] == "not matched by --include"
    chosen = found.select(["B#*", "W"], ["*2"])
    assert {w.name for w in chosen.weights} == {"W", "B#1"}
    assert {i.name: i.reason for i in chosen.left_out}["B#2"] == "matched by --exclude"
    assert {w.name for w in found.select(None, None).weights} == {"W", "B#1", "B#2"}


def test_patterns_are_case_sensitive_and_must_match() -> None:
    for include, exclude in ((["w"], None), (None, ["V*"]), (["W", "nothing"], None)):
        with pytest.raises(InputError, match="matches no weight; `qtaml-onnx inspect` lists their names"):
            inventory("if").select(include, exclude)


def test_names_are_unique_whatever_the_model_calls_things() -> None:
    for name, case in CASES.items():
        names = [weight.name for weight in inventory(name).weights]
        assert len(set(names)) == len(names), name
        assert case().model.graph.name == "small"
    assert [w.name for w in inventory("colliding-names").weights] == ["W#1"]


def test_consumer_and_operand_point_at_the_reader() -> None:
    weight = inventory("gemm-left").weights[0]
    assert (weight.op_type, weight.operand, weight.consumer.inputs[0]) == ("Gemm", 0, weight.value)
    weight = inventory("int8-channels").weights[0]
    assert weight.dequantize is not None
    assert weight.consumer.inputs[1] is weight.dequantize.outputs[0]
    assert weight.size == 4 * 3 * 3 * 3


def test_what_other_constants_are_for() -> None:
    """Behind what lays them out, repeats or casts them; a vector added behind a product's layout is its bias."""
    node = onnx.helper.make_node
    nodes = [
        node("MatMul", ["x", "W"], ["p"]),
        node("Reshape", ["p", "three"], ["q"]),
        node("Add", ["q", "b"], ["r"]),
        node("Transpose", ["t"], ["t1"], perm=[1, 0]),
        node("Unsqueeze", ["t1", "zero"], ["t2"]),
        node("Add", ["r", "t2"], ["s"]),
        node("Mul", ["g", "s"], ["u"]),
        node("Expand", ["k", "tall"], ["k1"]),
        node("Concat", ["u", "k1"], ["y"], axis=0),
    ]
    initializers = {
        "W": normal(6, 4),
        "b": normal(4),
        "t": normal(4, 3),
        "g": normal(4),
        "k": normal(1, 1, 4),
        "three": np.array([1, 3, 4]),
        "zero": np.array([0]),
        "tall": np.array([1, 3, 4]),
    }
    proto = model(nodes, [info("x", 1, 3, 6)], [info("y", 1, 2, 3, 4)], initializers)
    found = find_weights(source_model(proto).model)
    assert [weight.name for weight in found.weights] == ["W"]
    assert {item.name: item.reason for item in found.left_out} == {
        "b": "bias of MatMul: kept in safe storage",
        "t": "addend of Add: position embeddings, masks and the like are kept in safe storage",
        "g": "factor of Mul: kept in safe storage",
        "k": "input 1 of Concat: not a weight operand",
    }


def test_what_constants_of_integer_operators_are_for() -> None:
    """Scales, zero points and addends of onnxruntime's operators on integers, and a state that exporters slice."""
    node, microsoft = onnx.helper.make_node, {"domain": "com.microsoft"}
    nodes = [
        node("QLinearAdd", ["q", "s1", "z1", "A", "s2", "z2", "s3", "z3"], ["a"], **microsoft),
        node("QLinearSoftmax", ["a", "s4", "z4", "s5", "z5"], ["b"], axis=1, opset=13, **microsoft),
        node("QLinearMul", ["F", "s6", "z6", "b", "s7", "z7", "s8", "z8"], ["c"], **microsoft),
        node("QLinearConcat", ["s9", "z9", "c", "s10", "z10"], ["y"], axis=0, **microsoft),
        node("Slice", ["h", "zero", "one", "zero"], ["h0"]),
        node("GRU", ["x", "W", "R", "", "", "h0"], ["v"], hidden_size=4),
    ]
    scales = {f"s{number}": np.array([0.1], np.float32) for number in range(1, 11)}
    points = {f"z{number}": np.array([1, 2], np.uint8) for number in range(1, 11)}  # of size 1 they are not listed
    constants = {
        **scales,
        **points,
        "A": np.arange(4, dtype=np.uint8),
        "F": np.arange(4, dtype=np.uint8),
        "W": normal(1, 12, 6),
        "R": normal(1, 12, 4),
        "h": normal(2, 3, 4),
        "zero": np.array([0]),
        "one": np.array([1]),
    }
    inputs = [info("q", onnx.TensorProto.UINT8, 2, 4), info("x", 1, 5, 3, 6)]
    outputs = [info("y", onnx.TensorProto.UINT8, 2, 4), info("v", 1, 5, 1, 3, 4)]
    proto = model(nodes, inputs, outputs, constants, domains=["com.microsoft"])
    reasons = {
        item.name: item.reason.removesuffix(": kept in safe storage")
        for item in find_weights(ir.from_proto(proto)).left_out
    }
    readers = dict(
        enumerate(["QLinearAdd"] * 3 + ["QLinearSoftmax"] * 2 + ["QLinearMul"] * 3 + ["QLinearConcat"] * 2, 1)
    )
    assert {f"s{n}": reasons[f"s{n}"] for n in range(1, 11)} == {f"s{n}": f"scale of {op}" for n, op in readers.items()}
    assert {f"z{n}": reasons[f"z{n}"] for n in range(1, 11)} == {
        f"z{n}": f"zero point of {op}" for n, op in readers.items()
    }
    assert reasons["A"] == "addend of QLinearAdd"
    assert reasons["F"] == "factor of QLinearMul"
    assert reasons["h"] == "initial state of GRU"
