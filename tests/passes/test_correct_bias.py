"""Biases that correct themselves: the algebra of the rewrite, and the mathematics that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from layer_models import LAYERS, LayerCase, found_layer
from numpy.typing import NDArray
from onnx import helper
from small_models import constant, info, matmul, model, normal
from stored_models import optimised, run

from qtaml_onnx.biases import bias_plan, restored_deviation
from qtaml_onnx.calibrate import calibrate_layers
from qtaml_onnx.data import Dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.layers import LayerStatistics, mean_response
from qtaml_onnx.passes.correct_bias import CorrectBias
from qtaml_onnx.plan_values import BiasPlan

Array = NDArray[Any]
HALF = 2.0**-11
"""Relative rounding of half precision."""
OPSETS = (11, 17)


def planned(case: LayerCase, x: Array, dtype: type[np.generic] = np.float32) -> tuple[BiasPlan, LayerStatistics]:
    layer, reason, loaded = found_layer(case.build(dtype=dtype))
    assert layer is not None, reason
    statistics = calibrate_layers(loaded, [layer], Dataset({"x": x.astype(dtype)}, None, False, None, "tests"))["W"]
    plan = bias_plan(layer, statistics, case.weights)
    assert plan is not None
    return plan, statistics


def corrected(proto: onnx.ModelProto, plan: BiasPlan) -> onnx.ModelProto:
    """The model with its bias corrected, which is a second output then."""
    loaded = ir.from_proto(proto)
    assert CorrectBias({"W": plan})(loaded).modified
    result = ir.to_proto(loaded)
    onnx.checker.check_model(result, full_check=True)
    last = result.graph.node[-1]
    slot = 2
    if last.op_type == "Add":
        slot = 1 - list(last.input).index("m")
    result.graph.output.append(onnx.ValueInfoProto(name=last.input[slot]))
    return result


def magnitude(case: LayerCase, plan: BiasPlan, weights: Array) -> Array:
    """Σ |W| |x̄| coverage + |c| an output: what rounding errors are relative to."""
    layer, _reason, _model = found_layer(case.build())
    assert layer is not None
    coverage = np.ones(plan.coverage_shape) if plan.coverage is None else np.reshape(plan.coverage, plan.coverage_shape)
    return np.abs(plan.target) + mean_response(layer, np.abs(weights), np.abs(plan.mean_input), coverage)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", LAYERS)
def test_clean_weights_give_the_clean_bias(name: str, opset: int) -> None:
    """The target is made with the same half-precision means that the graph subtracts: b̂ = b up to float32 rounding."""
    case = LAYERS[name]
    x = case.samples()
    plan, _statistics = planned(case, x)
    plain = case.build(opset=opset)
    outputs, bias = run(corrected(plain, plan), {"x": x})
    clean = run(plain, {"x": x})[0]
    wanted = np.zeros(len(plan.target)) if case.biases is None else np.broadcast_to(np.ravel(case.biases), bias.shape)
    rounding = 4 * 2.0**-24 * np.sqrt(case.weights.size) * magnitude(case, plan, case.weights)
    assert bias.dtype == np.float32
    assert (np.abs(bias - wanted) <= rounding).all()
    np.testing.assert_allclose(outputs, clean, rtol=2e-6, atol=2e-6 * float(np.abs(clean).max()))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", LAYERS)
def test_any_weights_give_target_less_their_mean_response(name: str, opset: int) -> None:
    case = LAYERS[name]
    x = case.samples()
    plan, _statistics = planned(case, x)
    read = case.weights + normal(*case.shape, seed=7) * np.float32(0.5)
    bias = run(corrected(case.build(read, opset=opset), plan), {"x": x})[1]
    layer, _reason, _model = found_layer(case.build())
    assert layer is not None
    coverage = np.ones(plan.coverage_shape) if plan.coverage is None else np.reshape(plan.coverage, plan.coverage_shape)
    wanted = np.asarray(plan.target) - mean_response(layer, read, np.asarray(plan.mean_input), coverage)
    rounding = 4 * 2.0**-24 * np.sqrt(read.size) * magnitude(case, plan, read)
    assert (np.abs(bias - wanted) <= rounding).all()
    assert np.abs(bias - (0 if case.biases is None else np.ravel(case.biases))).max() > 100 * rounding.max()


@pytest.mark.parametrize("name", LAYERS)
def test_mean_output_over_samples_and_positions_stays(name: str) -> None:
    """For inputs whose mean is the same at all positions the mean output is kept but for the rounding of x̄ and of the
    coverage to half precision; without the correction it is off by much more."""
    case = LAYERS[name]
    x = case.samples(flat=True)
    plan, statistics = planned(case, x)
    change = np.abs(normal(*case.shape, seed=7)) * np.float32(0.3)
    faulty = case.build(case.weights + change)
    layer, _reason, _model = found_layer(case.build())
    assert layer is not None
    plain = run(case.build(), {"x": x})[0].astype(np.float64)
    axes = tuple(i for i in range(plain.ndim) if i != layer.channel_axis % plain.ndim)
    clean = plain.mean(axis=axes)
    kept = run(corrected(faulty, plan), {"x": x})[0].mean(axis=axes, dtype=np.float64)
    lost = run(faulty, {"x": x})[0].mean(axis=axes, dtype=np.float64)
    shift = mean_response(layer, change, statistics.mean_input, statistics.coverage)
    rounding = 1e-6 * (np.abs(clean) + magnitude(case, plan, case.weights + change))
    allowed = 2.05 * HALF * shift + rounding  # the means are positive: |ΔW| |x̄| coverage is the shift itself
    np.testing.assert_allclose(lost - clean, shift, rtol=1e-4, atol=rounding.max())
    assert (np.abs(kept - clean) <= allowed).all()
    assert (np.abs(lost - clean) > 100 * allowed).all()


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", LAYERS)
def test_nothing_of_it_is_left_after_load(name: str, opset: int, tmp_path: Path) -> None:
    case = LAYERS[name]
    plan, _statistics = planned(case, case.samples())
    proto = corrected(case.build(opset=opset), plan)
    del proto.graph.output[1:]
    ops = [node.op_type for node in proto.graph.node]
    assert "ReduceSum" in ops
    assert "Sub" in ops
    axes_as_input = len(next(node for node in proto.graph.node if node.op_type == "ReduceSum").input) == 2
    assert axes_as_input == (opset >= 13)
    left = optimised(proto, tmp_path, "basic").graph.node
    before = optimised(case.build(opset=opset), tmp_path, "basic").graph.node
    if case.op_type == "MatMul":  # MatMul and Add may become a Gemm, in both alike
        assert sorted(node.op_type for node in left) == sorted(node.op_type for node in before)
    else:
        assert [node.op_type for node in left] == [case.op_type]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("name", ["conv-groups", "gemm-transposed", "matmul", "gemm-no-bias"])
def test_other_float_types(name: str, dtype: type[np.generic], tmp_path: Path) -> None:
    """The sum is made in float32; the bias has the layer's own type, and all of it folds."""
    case = LAYERS[name]
    if case.convolution and dtype == np.float64:
        case = LAYERS["gemm"]  # onnxruntime's CPU has no float64 Conv before some versions
    x = case.samples()
    plan, _statistics = planned(case, x, dtype)
    read = (case.weights + normal(*case.shape, seed=7) * np.float32(0.5)).astype(dtype)
    proto = corrected(case.build(read, dtype=dtype), plan)
    bias = run(proto, {"x": x.astype(dtype)})[1]
    assert bias.dtype == dtype
    layer, _reason, _model = found_layer(case.build())
    assert layer is not None
    coverage = np.ones(plan.coverage_shape) if plan.coverage is None else np.reshape(plan.coverage, plan.coverage_shape)
    wanted = np.asarray(plan.target) - mean_response(layer, read, np.asarray(plan.mean_input), coverage)
    allowed = (HALF if dtype == np.float16 else 0) * np.abs(wanted) + 1e-6 * magnitude(case, plan, read)
    assert (np.abs(bias.astype(np.float64) - wanted) <= allowed).all()
    del proto.graph.output[1:]
    left = {node.op_type for node in optimised(proto, tmp_path, "basic").graph.node}
    assert not left & {"Sub", "ReduceSum", "Mul"}


def test_interface_and_constants() -> None:
    """The old bias goes, the target comes in its place; a bias that something else reads, or is an output, stays."""
    case = LAYERS["gemm"]
    plan, _statistics = planned(case, case.samples())
    proto = case.build()
    loaded = ir.from_proto(proto)
    CorrectBias({"W": plan})(loaded)
    result = ir.to_proto(loaded)
    assert {t.name: tuple(t.dims) for t in result.graph.initializer} == {
        "W": (6, 4), "W.mean_input": (6, 1), "W.summed_axes": (1,), "W.mean_output": (4,),
    }  # fmt: skip
    kinds = {t.name: t.data_type for t in result.graph.initializer}
    assert kinds["W.mean_input"] == onnx.TensorProto.FLOAT16
    assert kinds["W.mean_output"] == onnx.TensorProto.FLOAT
    assert list(result.graph.input) == list(proto.graph.input)
    proto.graph.output.append(info("b", 1, 4))
    kept = ir.from_proto(proto)
    CorrectBias({"W": plan})(kept)
    x = case.samples()
    np.testing.assert_array_equal(run(ir.to_proto(kept), {"x": x})[1], case.biases)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_bias_that_is_listed_as_an_input(ir_version: int) -> None:
    """Before IR version 4 every initializer is an input; the new constants are as well, and the old bias is none."""
    case = LAYERS["gemm"]
    plan, _statistics = planned(case, case.samples())
    constants = {"W": case.weights, "b": case.biases}
    node = helper.make_node("Gemm", ["x", "W", "b"], ["y"])
    x6, y4, opset = info("x", 1, None, 6), info("y", 1, None, 4), 8 if ir_version < 4 else 17
    proto = model([node], [x6], [y4], constants, opset=opset, ir_version=ir_version)  # type: ignore[arg-type]
    loaded = ir.from_proto(proto)
    CorrectBias({"W": plan})(loaded)
    result = ir.to_proto(loaded)
    onnx.checker.check_model(result)
    names = {value.name for value in result.graph.input}
    initializers = {tensor.name for tensor in result.graph.initializer}
    assert "b" not in names | initializers
    assert names == ({"x"} | initializers if ir_version < 4 else {"x"})
    x = case.samples()
    np.testing.assert_allclose(run(result, {"x": x})[0], run(proto, {"x": x})[0], rtol=2e-6, atol=1e-5)


def test_bias_in_a_constant_node_shared_by_two_layers() -> None:
    """Each layer gets its own; the Constant goes with its last reader."""
    nodes = [
        constant("b", normal(6, seed=2)),
        helper.make_node("Gemm", ["x", "V", "b"], ["h"]),
        helper.make_node("Gemm", ["h", "W", "b"], ["y"]),
    ]
    weights = {"V": normal(6, 6, seed=3), "W": normal(6, 6, seed=4)}
    proto = model(nodes, [info("x", 1, None, 6)], [info("y", 1, None, 6)], weights)
    x = np.abs(normal(9, 6, seed=5))
    plans = {}
    for name in weights:
        layer, reason, loaded = found_layer(proto, name)
        assert layer is not None, reason
        statistics = calibrate_layers(loaded, [layer], Dataset({"x": x}, None, False, None, "tests"))
        plans[name] = bias_plan(layer, statistics[name], weights[name])
    first, both = ir.from_proto(proto), ir.from_proto(proto)
    CorrectBias({"V": plans["V"]})(first)  # type: ignore[dict-item]
    CorrectBias(plans)(both)  # type: ignore[arg-type]
    assert "Constant" in [node.op_type for node in first.graph]
    assert "Constant" not in [node.op_type for node in both.graph]
    for changed in (first, both):
        np.testing.assert_allclose(
            run(ir.to_proto(changed), {"x": x})[0], run(proto, {"x": x})[0], rtol=1e-5, atol=1e-5
        )


def test_mean_that_does_not_fit_half_precision_has_no_plan() -> None:
    case = LAYERS["gemm"]
    layer, _reason, _model = found_layer(case.build())
    assert layer is not None
    mean = np.full(6, 1.0)
    ones = np.ones(6)
    for last, fits in ((65504.0, True), (65536.0, False)):
        mean[5] = last
        plan = bias_plan(layer, LayerStatistics(mean, ones, np.ones(4), np.ones(())), case.weights)
        assert (plan is not None) == fits


def test_metadata_bits_by_hand() -> None:
    """Half precision for x̄ and the coverage; the target takes the bias's place where there is one."""
    for name, bits in {
        "gemm": 16 * 6,
        "gemm-no-bias": 16 * 6 + 32 * 4,
        "conv-2d": 16 * 3,
        "conv-pads": 16 * (3 + 3 * 5),
        "conv-groups-no-bias": 16 * 4 + 32 * 6,
        "transposed-no-bias": 16 * (3 + 9) + 32 * 5,
    }.items():
        assert planned(LAYERS[name], LAYERS[name].samples())[0].metadata_bits == bits


def test_restored_deviation() -> None:
    """s/(s + v) is the share of the variance that is signal; a channel that never varies stays as it is."""
    statistics = LayerStatistics(np.zeros(2), np.ones(2), np.array([4.0, 0.0, 1.0]), np.ones(()))
    np.testing.assert_allclose(restored_deviation(statistics, np.array([5.0, 7.0, 0.0])), [2 / 3, 1.0, 1.0], rtol=1e-15)


def test_layer_that_is_not_there() -> None:
    plan, _statistics = planned(LAYERS["gemm"], LAYERS["gemm"].samples())
    other = model([matmul(result="z")], [info("x", 1, None, 6)], [info("z", 1, None, 4)], {"W": normal(6, 4)})
    with pytest.raises(InputError, match="the layer of 'W' with output 'y' is not in this model"):
        CorrectBias({"W": plan})(ir.from_proto(other))
    assert not CorrectBias({})(ir.from_proto(other)).modified


def test_names_that_are_taken() -> None:
    case = LAYERS["gemm"]
    plan, _statistics = planned(case, case.samples())
    nodes = [helper.make_node("Gemm", ["x", "W", "b"], ["y"]), helper.make_node("Identity", ["W.mean_output"], ["z"])]
    constants = {"W": case.weights, "b": case.biases, "W.mean_output": normal(2)}
    proto = model(nodes, [info("x", 1, None, 6)], [info("y", 1, None, 4), info("z", 1, 2)], constants)  # type: ignore[arg-type]
    loaded = ir.from_proto(proto)
    CorrectBias({"W": plan})(loaded)
    y, z = run(ir.to_proto(loaded), {"x": case.samples()})
    np.testing.assert_array_equal(z, normal(2))
    np.testing.assert_allclose(y, run(case.build(), {"x": case.samples()})[0], rtol=2e-6, atol=1e-5)
