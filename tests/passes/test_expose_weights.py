"""Exposed weights: the same model, whose weights can be fed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import CASES
from stored_models import run, source_model

from qtaml_onnx.passes.expose_weights import ExposeWeights
from qtaml_onnx.passes.fold_weights import FoldWeights
from qtaml_onnx.passes.substitute_weights import SubstituteWeights
from qtaml_onnx.verification import comparison_options
from qtaml_onnx.weights import find_weights, float_weights, stored_values

RUNS = [name for name in CASES if "bfloat16" not in name]
"""NumPy has no bfloat16 that onnxruntime would take as an input."""


def new_values(model: ir.Model, integers: bool = False) -> dict[str, np.ndarray]:
    """Other weights: each negated and scaled; of quantised ones, integers of the same type upside down if asked for."""
    values = {}
    for weight in find_weights(model).weights:
        values[weight.name] = (float_weights(weight) * -1.5).astype(float_weights(weight).dtype)
        if integers and weight.grid is not None:
            stored = stored_values(weight).astype(weight.dtype.numpy())
            values[weight.name] = np.invert(stored)
    return values


def expected(name: str, integers: bool = False) -> list[np.ndarray]:
    """What the model computes with these weights: built with them, without the passes."""
    case = CASES[name]()
    source = source_model(case.model).model
    FoldWeights()(source)
    values = new_values(source, integers)
    return run(case.build(values), case.feeds, comparison_options())


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    """Equal but for the order of sums: constant weights are fused with what is before and after them."""
    tolerance = 1e-3 if got.dtype == np.float16 else 1e-5
    np.testing.assert_allclose(got.astype(np.float64), wanted.astype(np.float64), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", RUNS)
def test_fed_weights_take_the_place_of_the_model_s(name: str) -> None:
    case = CASES[name]()
    model = source_model(case.model).model
    FoldWeights()(model)
    values = new_values(model)
    expose = ExposeWeights(list(values))
    expose(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    assert {v.name for v in proto.graph.input} >= set(expose.inputs.values())
    same = run(proto, case.feeds, comparison_options())
    for got, wanted in zip(same, run(case.model, case.feeds, comparison_options()), strict=True):
        close(got, wanted)
    fed = run(proto, case.feeds | {expose.inputs[key]: value for key, value in values.items()}, comparison_options())
    for got, wanted in zip(fed, expected(name), strict=True):
        close(got, wanted)


@pytest.mark.parametrize("name", RUNS)
def test_substituted_weights_take_the_place_of_the_model_s(name: str) -> None:
    case = CASES[name]()
    model = source_model(case.model).model
    FoldWeights()(model)
    SubstituteWeights(new_values(model, integers=True))(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    assert proto.ir_version == case.model.ir_version
    for got, wanted in zip(run(proto, case.feeds, comparison_options()), expected(name, integers=True), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_exposing_raises_the_ir_version_and_unlists_initializers() -> None:
    model = source_model(CASES["inputs-ir3"]().model).model
    ExposeWeights(["W"])(model)
    assert model.ir_version == 4
    assert [v.name for v in model.graph.inputs] == ["x", "qtaml_weight_0"]
