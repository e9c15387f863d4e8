"""Self-correcting biases in 32-bit integers: on the mean input the outputs stay, whatever the faults are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from network_models import CHANNELS, SIDE, network, samples
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType
from quantized_models import statically, weights_of
from small_models import info, normal
from small_models import model as small_model
from stored_models import fault_options, rates_feed, run

import qtaml_onnx
from qtaml_onnx.data import Dataset
from qtaml_onnx.verification import comparison_options

Array = NDArray[Any]
OUTPUTS = 24


def layer(op_type: str, bias: bool, group: int = 1) -> onnx.ModelProto:
    """One convolution without padding, or a Gemm, on the input of the small network."""
    x = info("x", 1, "N", CHANNELS, SIDE, SIDE)
    if op_type == "Gemm":
        constants = {"W": normal(OUTPUTS, CHANNELS * SIDE * SIDE, seed=1) / np.float32(8)}
        nodes = [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("Gemm", ["f", "W", *(["b"] if bias else [])], ["y"], transB=1),
        ]
        y = info("y", 1, "N", OUTPUTS)
    else:
        constants = {"W": normal(OUTPUTS, CHANNELS // group, 3, 3, seed=1) / np.float32(4)}
        nodes = [helper.make_node("Conv", ["x", "W", *(["b"] if bias else [])], ["y"], group=group)]
        y = info("y", 1, "N", OUTPUTS, SIDE - 2, SIDE - 2)
    if bias:
        constants["b"] = normal(OUTPUTS, seed=2)
    return small_model(nodes, [x], [y], {name: array.astype(np.float32) for name, array in constants.items()})


def constant_input(proto: onnx.ModelProto, op_type: str) -> Array:
    """An input that is the same everywhere in a channel, and on the grid of the quantised input."""
    quantize = next(node for node in proto.graph.node if node.op_type == "QuantizeLinear")
    scale = float(weights_of(proto)[quantize.input[1]])
    levels = np.array([40, 90, 120]) if op_type == "Conv" else np.array([70, 70, 70])
    return np.broadcast_to((levels * scale)[:, None, None], (4, CHANNELS, SIDE, SIDE)).astype(np.float32)


@pytest.mark.parametrize("weights", [QuantType.QInt8, QuantType.QUInt8])
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize(
    ("op_type", "bias", "group"), [("Conv", True, 1), ("Conv", False, 1), ("Conv", True, 3), ("Gemm", True, 1)]
)
def test_mean_outputs_stay_under_faults(
    op_type: str, bias: bool, group: int, form: str, weights: QuantType, tmp_path: Path
) -> None:
    """x̄ over x_scale is an integer here, so that the correction is exact but for two roundings of the output."""
    proto = statically(form, per_channel=weights == QuantType.QInt8, weights=weights, proto=layer(op_type, bias, group))
    onnx.save(proto, tmp_path / "q.onnx")
    x = constant_input(proto, op_type)
    data = Dataset({"x": x}, None, False, None, "tests")
    outputs = {}
    for corrected in (True, False):
        result = qtaml_onnx.harden(tmp_path / "q.onnx", 0.2, calibration=data, bias_correction=corrected)
        plan = result.plan.tensors[0]
        assert (plan.bias is not None) == corrected
        if plan.bias is not None:
            assert plan.bias.quantized is not None
            assert plan.bias.quantized.rounded
            assert plan.bias.has_bias == bias
        faulty = ir.to_proto(result.faulty)
        outputs[corrected] = [run(faulty, {"x": x} | rates_feed(0.2, seed), fault_options())[0] for seed in range(8)]
    clean = run(proto, {"x": x}, comparison_options())[0]
    step = float(weights_of(proto)["y_scale"])
    worst = {corrected: max(np.abs(got - clean).max() for got in values) for corrected, values in outputs.items()}
    assert worst[True] <= 2.001 * step
    assert worst[False] > 10 * step


def test_layers_of_an_integer_network_get_rounded_biases_that_fold(tmp_path: Path) -> None:
    """All of the static network's layers but the MatMul, whose bias the quantiser puts into 8 bits behind it."""
    onnx.save(statically("QDQ", per_channel=True, proto=network()), tmp_path / "q.onnx")
    result = qtaml_onnx.harden(tmp_path / "q.onnx", 0.05, calibration=samples())
    corrected = {t.op_type: t.bias for t in result.plan.tensors if t.bias is not None and t.bias.quantized is not None}
    assert set(corrected) == {"Conv", "Gemm"}
    assert all(bias.quantized is not None and bias.quantized.rounded for bias in corrected.values())
    hardened = ir.to_proto(result.model)
    integers = {t.name for t in hardened.graph.initializer if t.data_type == TensorProto.INT32}
    assert integers == {"c_quantized_zero_point", "w_quantized_zero_point"}  # the biases are gone: they are computed
