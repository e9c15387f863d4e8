"""A small network with every kind of layer that has a bias, in float and in QDQ form, and planners for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from small_models import info, initializer, model, normal
from stored_models import source_model

from qtaml_onnx.calibrate import calibrate_layers
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.data import Dataset
from qtaml_onnx.methods import Method
from qtaml_onnx.plan import FaultModel
from qtaml_onnx.planner import LONGEST_WORD, Planner, prepare
from qtaml_onnx.sensitivity import measure_sensitivity

Array = NDArray[Any]
CHANNELS, SIDE, CLASSES = 3, 6, 5


def network(width: int = 8, seed: int = 0) -> onnx.ModelProto:
    """Conv, grouped Conv, a MatMul with Add, and a Gemm at the output; biases everywhere but in the grouped Conv."""
    flat = width * SIDE * SIDE // 4
    constants = {
        "C": normal(width, CHANNELS, 3, 3, seed=seed + 1) / np.float32(4),
        "c": normal(width, seed=seed + 2) / np.float32(4),
        "G": normal(width, width // 2, 3, 3, seed=seed + 3) / np.float32(4),
        "M": normal(flat, 12, seed=seed + 4) / np.float32(8),
        "m": normal(12, seed=seed + 5) / np.float32(4),
        "W": normal(CLASSES, 12, seed=seed + 6) / np.float32(3),
        "w": normal(CLASSES, seed=seed + 7) / np.float32(4),
    }
    nodes = [
        helper.make_node("Conv", ["x", "C", "c"], ["h1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Conv", ["r1", "G"], ["h2"], pads=[1, 1, 1, 1], strides=[2, 2], group=2),
        helper.make_node("Relu", ["h2"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["f"]),
        helper.make_node("MatMul", ["f", "M"], ["h3"]),
        helper.make_node("Add", ["h3", "m"], ["s3"]),
        helper.make_node("Relu", ["s3"], ["r3"]),
        helper.make_node("Gemm", ["r3", "W", "w"], ["y"], transB=1),
    ]
    x, y = info("x", 1, "N", CHANNELS, SIDE, SIDE), info("y", 1, "N", CLASSES)
    return model(nodes, [x], [y], {name: array.astype(np.float32) for name, array in constants.items()})


def samples(count: int = 64, seed: int = 30) -> Dataset:
    return Dataset({"x": np.abs(normal(count, CHANNELS, SIDE, SIDE, seed=seed))}, None, False, None, "tests")


def quantised(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with symmetric INT8 weights, one scale an output channel, each behind a DequantizeLinear."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    weights = {}
    for node in result.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            weights[node.input[1]] = 0 if node.op_type == "Conv" or transposed else 1
            node.input[1] += ".real"
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    heads = []
    for name, axis in weights.items():
        real = numpy_helper.to_array(tensors[name])
        others = tuple(i for i in range(real.ndim) if i != axis)
        scale = (np.abs(real).max(axis=others) / 127).astype(np.float32)
        spread = scale.reshape([-1 if i == axis else 1 for i in range(real.ndim)])
        tensors[name].CopyFrom(initializer(name, np.rint(real / spread).astype(np.int8)))
        result.graph.initializer.append(initializer(f"{name}.step", scale))
        heads.append(helper.make_node("DequantizeLinear", [name, f"{name}.step"], [f"{name}.real"], axis=axis))
    body = list(result.graph.node)
    del result.graph.node[:]
    result.graph.node.extend([*heads, *body])
    onnx.checker.check_model(result, full_check=True)
    return result


def fault_model(rates: FlipRates | float) -> FaultModel:
    rates = rates if isinstance(rates, FlipRates) else FlipRates.uniform(rates, LONGEST_WORD)
    return FaultModel(p01=rates.p01, p10=rates.p10)


def planner_for(
    proto: onnx.ModelProto,
    rates: FlipRates | float,
    method: Method,
    *,
    calibrate: bool = True,
    probe: bool = True,
    **options: Any,
) -> Planner:
    """A planner as hardening makes it: calibrated, and probed where the method asks for it."""
    source = source_model(proto)
    planner = Planner(source, prepare(source), fault_model(rates), **options)
    if calibrate and method.corrects_bias:
        planner.find_layers()
        statistics = calibrate_layers(planner.analysis, list(planner.layers.values()), samples())
        planner.use_statistics(statistics, correct_biases=True)
    if probe and method.needs_sensitivity:
        found = measure_sensitivity(
            source.model, planner.probe_weights(method), samples(16), biases=planner.biases, probes=1
        )
        planner.use_sensitivity(found, method)
    return planner
