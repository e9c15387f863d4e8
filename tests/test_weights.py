"""Finding weights: selection by patterns and names. What is found where is tested with the pass that stores it."""

from __future__ import annotations

import pytest
from small_models import CASES
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
