"""Small models in every format that quantisers write: by hand, and by onnxruntime's own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from network_models import network, samples
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from small_models import info, initializer, normal

Array = NDArray[Any]
TYPES = {
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
}
ROWS, COLUMNS, BLOCK = 48, 20, 16


def limits(kind: str) -> tuple[int, int]:
    bits = int(kind.lstrip("uint"))
    return (0, (1 << bits) - 1) if kind.startswith("u") else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def quantise(real: Array, kind: str, axes: tuple[int, ...], symmetric: bool) -> tuple[Array, Array, Array]:
    """Integers, scales and zero points; one scale for each index of the axes that are not given, kept as extents."""
    low, high = limits(kind)
    if symmetric:
        middle = 0 if low < 0 else (high + 1) // 2
        scale = np.abs(real).max(axis=axes, keepdims=True) / min(high - middle, middle - low)
        point = np.full(scale.shape, middle)
    else:
        least, most = np.minimum(real.min(axis=axes, keepdims=True), 0), real.max(axis=axes, keepdims=True)
        scale = (most - least) / (high - low)
        point = np.rint(low - least / scale)
    scale = scale.astype(np.float32)
    return np.clip(np.rint(real / scale) + point, low, high), scale, point


def qdq(op_type: str, kind: str, granularity: str, symmetric: bool, scale_type: Any = np.float32) -> onnx.ModelProto:
    """MatMul, Gemm with transB or Conv whose weight stands behind a DequantizeLinear, with a bias in floats."""
    skew = np.float32(0 if symmetric else 0.4)
    real = normal(ROWS, COLUMNS, seed=3) * np.exp(normal(COLUMNS, seed=4) / 2) / 8 + skew
    channel, attributes = 1, {}
    if op_type != "MatMul":
        real, channel = np.ascontiguousarray(real.T), 0
    if op_type == "Conv":
        real = real[:, :, None, None]
    others = tuple(i for i in range(real.ndim) if i != channel)
    if granularity == "block":
        split = real.reshape(ROWS // BLOCK, BLOCK, COLUMNS)
        integers, scale, point = quantise(split, kind, (1,), symmetric)
        integers, scale, point = integers.reshape(real.shape), scale[:, 0], point[:, 0]
        attributes = {"axis": 0, "block_size": BLOCK}
    elif granularity == "channel":
        integers, scale, point = quantise(real, kind, others, symmetric)
        scale, point, attributes = scale.ravel(), point.ravel(), {"axis": channel}
    else:
        integers, scale, point = quantise(real, kind, tuple(range(real.ndim)), symmetric)
        scale, point = scale.reshape(()), point.reshape(())
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(scale_type))
    constants = {
        "W": integers.astype(TYPES[kind]),
        "s": scale.astype(scale_type),
        "z": point.astype(TYPES[kind]),
        "b": normal(COLUMNS, seed=5).astype(scale_type),
    }
    nodes = [helper.make_node("DequantizeLinear", ["W", "s", "z"], ["V"], **attributes)]
    if op_type == "MatMul":
        nodes += [helper.make_node("MatMul", ["x", "V"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    else:
        nodes += [helper.make_node(op_type, ["x", "V", "b"], ["y"], **({"transB": 1} if op_type == "Gemm" else {}))]
    image = [5, 5] if op_type == "Conv" else []
    x, y = info("x", elem, "N", ROWS, *image), info("y", elem, "N", COLUMNS, *image)
    graph = helper.make_graph(nodes, "qdq", [x], [y], [initializer(name, array) for name, array in constants.items()])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    return proto


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: list[dict[str, Array]]) -> None:
        self._feeds: Iterator[dict[str, Array]] = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def statically(
    form: str, *, per_channel: bool, weights: QuantType = QuantType.QInt8, proto: onnx.ModelProto | None = None
) -> onnx.ModelProto:
    """The small network by onnxruntime's static quantisation, in form QDQ or QOperator."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(proto or network(), before)
        quantize_static(
            before,
            after,
            _Reader([feed for feed, _count in samples(32).feeds(16)]),
            quant_format=QuantFormat[form],
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=weights,
        )
        return onnx.load(after)


def dynamically(*, per_channel: bool) -> onnx.ModelProto:
    """The small network with MatMulInteger and ConvInteger, whose inputs are quantised at run time."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(network(), before)
        quantize_dynamic(before, after, per_channel=per_channel, weight_type=QuantType.QInt8)
        return onnx.load(after)


def packed(bits: int, symmetric: bool, inputs: int = 64) -> onnx.ModelProto:
    """A MatMul as MatMulNBits in blocks of 32, and a bias."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    constants = [initializer("W", normal(inputs, 24, seed=3) / np.float32(8)), initializer("b", normal(24, seed=5))]
    graph = helper.make_graph(nodes, "packed", [info("x", 1, "N", inputs)], [info("y", 1, "N", 24)], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    quantizer = MatMulNBitsQuantizer(proto, block_size=32, is_symmetric=symmetric, bits=bits)
    quantizer.process()
    return quantizer.model.model


def embedding() -> onnx.ModelProto:
    """A Gather from integers that a DequantizeLinear follows, as quantisers leave an embedding."""
    integers, scale, point = quantise(normal(30, 12, seed=3), "uint8", (0, 1), False)
    nodes = [
        helper.make_node("Gather", ["W", "i"], ["g"]),
        helper.make_node("DequantizeLinear", ["g", "s", "z"], ["e"]),
        helper.make_node("MatMul", ["e", "M"], ["y"]),
    ]
    constants = {
        "W": integers.astype(np.uint8),
        "s": scale.reshape(()),
        "z": point.reshape(()).astype(np.uint8),
        "M": normal(12, 5, seed=4),
    }
    tensors = [initializer(name, array) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "embedding", [info("i", TensorProto.INT64, "N")], [info("y", 1, "N", 5)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def layered_embedding() -> onnx.ModelProto:
    """A Gather from integers whose result is laid out, dequantised, added to and multiplied by integers."""
    integers, scale, point = quantise(normal(30, 12, seed=3), "uint8", (0, 1), False)
    words, steps, _point = quantise(normal(12, 5, seed=4), "int8", (0, 1), True)
    constants = {
        "W": integers.astype(np.uint8),
        "s": scale.reshape(()),
        "z": point.reshape(()).astype(np.uint8),
        "M": words.astype(np.int8),
        "ms": steps.reshape(()),
        "mz": np.array(0, np.int8),
        "P": np.arange(100, 136, 3).astype(np.uint8),
        "os": np.float32(0.05),
        "oz": np.array(128, np.uint8),
        "wide": np.array([-1, 2, 6]),
        "flat": np.array([-1, 12]),
    }
    nodes = [
        helper.make_node("Gather", ["W", "i"], ["g"]),
        helper.make_node("Reshape", ["g", "wide"], ["r"]),
        helper.make_node("Reshape", ["r", "flat"], ["f"]),
        helper.make_node("DequantizeLinear", ["r", "s", "z"], ["e"]),
        helper.make_node("QLinearAdd", ["f", "s", "z", "P", "s", "z", "os", "oz"], ["a"], domain="com.microsoft"),
        helper.make_node("QLinearMatMul", ["f", "s", "z", "M", "ms", "mz", "os", "oz"], ["q"]),
        helper.make_node("DequantizeLinear", ["a", "os", "oz"], ["v"]),
        helper.make_node("DequantizeLinear", ["q", "os", "oz"], ["y"]),
    ]
    outputs = [info("y", 1, "N", 5), info("v", 1, "N", 12), info("e", 1, "N", 2, 6)]
    tensors = [initializer(name, array) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "embedding", [info("i", TensorProto.INT64, "N")], outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def gathered_blocks(kind: str, symmetric: bool, scale_type: Any = np.float32) -> onnx.ModelProto:
    """A GatherBlockQuantized over words of 4 bits in blocks of 16, as onnxruntime's 4-bit quantiser leaves a Gather."""
    real = normal(30, 40, seed=3) + np.float32(0 if symmetric else 0.5)
    padded = np.pad(real, ((0, 0), (0, 8)))
    integers, scale, point = quantise(padded.reshape(30, 3, BLOCK), kind, (2,), symmetric)
    constants = {
        "W": integers.reshape(30, 48)[:, :40].astype(TYPES[kind]),
        "s": scale[:, :, 0].astype(scale_type),
    }
    inputs = ["W", "i", "s"]
    if point.any():
        constants["z"] = point[:, :, 0].astype(TYPES[kind])
        inputs.append("z")
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": BLOCK}
    nodes = [
        helper.make_node("GatherBlockQuantized", inputs, ["g"], domain="com.microsoft", **attributes),
        helper.make_node("Tanh", ["g"], ["y"]),
    ]
    tensors = [initializer(name, array) for name, array in constants.items()]
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(scale_type))
    graph = helper.make_graph(nodes, "blocks", [info("i", TensorProto.INT64, "N")], [info("y", elem, "N", 40)], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def recurrent(directions: int, granularity: str, kind: str = "int8") -> onnx.ModelProto:
    """A DynamicQuantizeLSTM, as onnxruntime's dynamic quantiser leaves an LSTM: 6 inputs, 8 units."""
    inputs, units, constants = 6, 8, {}
    for name, size, seed in (("W", inputs, 3), ("R", units, 4)):
        real = normal(directions, size, 4 * units, seed=seed) / np.float32(2)
        axes = (1,) if granularity == "unit" else (1, 2)
        integers, scale, point = quantise(real, kind, axes, granularity == "unit")
        shape = (directions, 4 * units) if granularity == "unit" else (directions,)
        constants |= {
            name: integers.astype(TYPES[kind]),
            f"{name}s": scale.reshape(shape),
            f"{name}z": point.reshape(shape).astype(TYPES[kind]),
        }
    constants["B"] = normal(directions, 8 * units, seed=5) / np.float32(4)
    operands = ["x", "W", "R", "B", "", "", "", "", "Ws", "Wz", "Rs", "Rz"]
    attributes = {"hidden_size": units, "direction": "bidirectional" if directions == 2 else "forward"}
    nodes = [
        helper.make_node("DynamicQuantizeLSTM", operands, ["y", "h", ""], domain="com.microsoft", **attributes),
    ]
    outputs = [info("y", 1, 7, directions, "N", units), info("h", 1, directions, "N", units)]
    tensors = [initializer(name, array) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "recurrent", [info("x", 1, 7, "N", inputs)], outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def nested(kind: str) -> onnx.ModelProto:
    """A quantised weight in the branches of an If, or in a model function."""
    integers, scale, _point = quantise(normal(ROWS, COLUMNS, seed=3), "int8", (0,), True)
    tensors = [initializer("W", integers.astype(np.int8)), initializer("s", scale.ravel())]
    body = [
        helper.make_node("DequantizeLinear", ["W", "s"], ["V"], axis=1),
        helper.make_node("MatMul", ["x", "V"], ["r"]),
    ]
    x, y = info("x", 1, "N", ROWS), info("y", 1, "N", COLUMNS)
    opsets = [helper.make_opsetid("", 17)]
    if kind == "function":
        constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors]
        function = helper.make_function("test", "f", ["x"], ["r"], [*constants, *body], opsets)
        graph = helper.make_graph([helper.make_node("f", ["x"], ["y"], domain="test")], "outer", [x], [y])
        opsets = [*opsets, helper.make_opsetid("test", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function])
    out = [info("r", 1, "N", COLUMNS)]
    branch = helper.make_graph(body, "branch", [], out, tensors)
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "U"], ["r"])], "other", [], out, [initializer("U", normal(ROWS, COLUMNS))]
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other),
    ]
    graph = helper.make_graph(nodes, "outer", [x], [y], [initializer("zero", np.float32(0))])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def integer_operators(op_type: str) -> onnx.ModelProto:
    """QLinearConv in its first opset, and products whose weight comes first, with a scale or zero point a row."""
    real = normal(COLUMNS, ROWS, seed=3) + np.float32(0.3)
    integers, scale, point = quantise(real, "uint8", (1,), False)
    constants = {
        "W": integers.astype(np.uint8),
        "ws": scale.ravel(),
        "wz": point.ravel().astype(np.uint8),
        "xs": np.float32(0.02),
        "ys": np.float32(0.1),
        "z": np.array(128, np.uint8),
    }
    opset, dims = (13, ["N"]) if op_type != "QLinearConv" else (10, [4, 4])
    quantize = helper.make_node("QuantizeLinear", ["x", "xs", "z"], ["xq"])
    if op_type == "QLinearConv":
        constants |= {"W": constants["W"][:, :, None, None], "wz": np.array(120, np.uint8), "ws": np.float32(0.02)}
        constants["b"] = np.arange(COLUMNS, dtype=np.int32) * 50
        nodes = [
            quantize,
            helper.make_node("QLinearConv", ["xq", "xs", "z", "W", "ws", "wz", "ys", "z", "b"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "ys", "z"], ["y"]),
        ]
    elif op_type == "QLinearMatMul":
        constants |= {"ws": np.float32(0.02), "wz": np.array(120, np.uint8)}
        nodes = [
            quantize,
            helper.make_node("QLinearMatMul", ["W", "ws", "wz", "xq", "xs", "z", "ys", "z"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "ys", "z"], ["y"]),
        ]
    else:
        constants["wz"] = np.array(120, np.uint8)
        nodes = [
            quantize,
            helper.make_node("MatMulInteger", ["W", "xq", "wz", "z"], ["yi"]),
            helper.make_node("Cast", ["yi"], ["y"], to=TensorProto.FLOAT),
        ]
    first = ["N"] if op_type == "QLinearConv" else []
    x, y = info("x", 1, *first, ROWS, *dims), info("y", 1, *first, COLUMNS, *dims)
    tensors = [initializer(name, array) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "integers", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=5)


def _qdq_formats() -> dict[str, Callable[[], onnx.ModelProto]]:
    formats: dict[str, Callable[[], onnx.ModelProto]] = {}
    for kind in TYPES:
        for granularity in ("tensor", "channel", "block"):
            for symmetric in (True, False):
                name = f"qdq-{kind}-{granularity}-{'symmetric' if symmetric else 'asymmetric'}"
                formats[name] = lambda k=kind, g=granularity, s=symmetric: qdq("MatMul", k, g, s)
    for op_type in ("Conv", "Gemm"):
        for kind in ("int8", "uint4"):
            formats[f"qdq-{op_type}-{kind}"] = lambda o=op_type, k=kind: qdq(o, k, "channel", False)
    formats["qdq-float16-scales"] = lambda: qdq("MatMul", "int8", "channel", True, np.float16)
    return formats


FORMATS: dict[str, Callable[[], onnx.ModelProto]] = {
    **_qdq_formats(),
    "static-qdq-tensor": lambda: statically("QDQ", per_channel=False),
    "static-qdq-channel": lambda: statically("QDQ", per_channel=True),
    "static-qdq-uint8": lambda: statically("QDQ", per_channel=False, weights=QuantType.QUInt8),
    "static-qoperator-tensor": lambda: statically("QOperator", per_channel=False),
    "static-qoperator-channel": lambda: statically("QOperator", per_channel=True),
    "dynamic-tensor": lambda: dynamically(per_channel=False),
    "dynamic-channel": lambda: dynamically(per_channel=True),
    "embedding": embedding,
    "layered": layered_embedding,
    **{
        f"gathered-{kind}-{'symmetric' if symmetric else 'asymmetric'}": (
            lambda k=kind, s=symmetric: gathered_blocks(k, s)
        )
        for kind, symmetric in (("int4", True), ("uint4", False))
    },
    "gathered-int4-float16": lambda: gathered_blocks("int4", True, np.float16),
    **{
        f"recurrent-{'both' if directions == 2 else 'forward'}-{granularity}": (
            lambda d=directions, g=granularity: recurrent(d, g)
        )
        for directions in (1, 2)
        for granularity in ("direction", "unit")
    },
    "recurrent-forward-uint8": lambda: recurrent(1, "direction", "uint8"),
    "branch": lambda: nested("branch"),
    "function": lambda: nested("function"),
    **{f"left-{op_type}": (lambda o=op_type: integer_operators(o)) for op_type in ("QLinearMatMul", "MatMulInteger")},
    "opset10-QLinearConv": lambda: integer_operators("QLinearConv"),
    **{
        f"packed-{bits}-{'symmetric' if symmetric else 'asymmetric'}-{inputs}": (
            lambda b=bits, s=symmetric, i=inputs: packed(b, s, i)
        )
        for bits in (2, 4, 8)
        for symmetric in (True, False)
        for inputs in (64, 80)
    },
}
"""Every format by name."""


def feeds(proto: onnx.ModelProto, count: int = 16) -> dict[str, Array]:
    """Inputs of a model: mostly positive floats, indices for an embedding."""
    value = proto.graph.input[0]
    shape = [dim.dim_value or count for dim in value.type.tensor_type.shape.dim]
    if value.type.tensor_type.elem_type == TensorProto.INT64:
        return {value.name: np.arange(shape[0]) % 30}
    half = value.type.tensor_type.elem_type == TensorProto.FLOAT16
    return {value.name: np.abs(normal(*shape, seed=11)).astype(np.float16 if half else np.float32)}


def weights_of(proto: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
