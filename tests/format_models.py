"""One small model for every form in which models hold weights: the rows of docs/formats.md.

A row is a function that gives a model. To add a format, write one and put it into `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper
from operator_models import CASES
from quantized_models import FORMATS as QUANTISED
from small_models import Array, info, initializer, matmul, model, normal


def _case(name: str) -> Callable[[], onnx.ModelProto]:
    return lambda: CASES[name]().model


def _sparse() -> onnx.ModelProto:
    """A sparse initializer beside a dense one."""
    values, places = initializer("S", np.array([1.5, -2.0], np.float32)), initializer("", np.array([0, 7]))
    nodes = [matmul(result="p"), matmul("S", result="q"), helper.make_node("Add", ["p", "q"], ["y"])]
    graph = helper.make_graph(nodes, "small", [info("x", 1, None, 6)], [info("y", 1, None, 4)])
    graph.initializer.append(initializer("W", normal(6, 4)))
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [6, 4]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _opset(opset: int) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        nodes = [helper.make_node("Gemm", ["x", "V", "b"], ["g"], **({"broadcast": 1} if opset < 7 else {}))]
        nodes += [helper.make_node("Relu", ["g"], ["r"]), matmul("W", "r")]
        tensors = {"V": normal(6, 8, seed=1), "b": normal(8, seed=2), "W": normal(8, 4, seed=3)}
        ir_version = 3 if opset < 9 else min(helper.find_min_ir_version_for([helper.make_opsetid("", opset)]), 13)
        x, y = info("x", 1, 5, 6), info("y", 1, 5, 4)
        return model(nodes, [x], [y], tensors, opset=opset, ir_version=ir_version)

    return build


def _norms_only() -> onnx.ModelProto:
    node = helper.make_node("BatchNormalization", ["x", *"sbmv"], ["y"])
    vectors = {name: np.abs(normal(4, seed=i)) for i, name in enumerate("sbmv")}
    x, y = info("x", 1, 2, 4, 3), info("y", 1, 2, 4, 3)
    return model([node], [x], [y], vectors)


def _qlinear(op_type: str) -> onnx.ModelProto:
    """An integer operator with a constant weight."""
    words = np.clip(np.rint(normal(6, 4, seed=1) * 40), -127, 127).astype(np.int8)
    scale, zero, wzero = np.asarray(0.03, np.float32), np.asarray(128, np.uint8), np.asarray(0, np.int8)
    make = helper.make_node
    if op_type == "MatMulInteger":
        nodes = [
            make("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
            make("MatMulInteger", ["xq", "W", "xz", "wz"], ["m"]),
            make("Cast", ["m"], ["f"], to=1),
            make("Mul", ["f", "xs"], ["g"]),
            make("Mul", ["g", "s"], ["y"]),
        ]
    else:
        inputs = ["xq", "s", "z", "W", "s", "wz", "s8", "z"]
        nodes = [
            make("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            make(op_type, inputs, ["m"]),
            make("DequantizeLinear", ["m", "s8", "z"], ["y"]),
        ]
    constants = {"W": words, "s": scale, "wz": wzero}
    if op_type != "MatMulInteger":
        constants |= {"z": zero, "s8": np.asarray(0.1, np.float32)}
    return model(nodes, [info("x", 1, None, 6)], [info("y", 1, None, 4)], constants)


def _dequantized(dtype: Any, block: int = 0) -> onnx.ModelProto:
    """A MatMul behind a DequantizeLinear over 4-bit or blocked words."""
    real = normal(8, 4, seed=1)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) if not isinstance(dtype, int) else dtype
    spread: Array = np.abs(real).reshape(8 // (block or 8), -1, 4).max(axis=1) / 7
    scale = spread.astype(np.float32) if block else np.asarray(spread.max(), np.float32)
    full = np.repeat(scale, block, axis=0) if block else scale
    codes = np.clip(np.rint(real / full), -7, 7).astype(int).ravel()
    unsigned = kind in (onnx.TensorProto.UINT4, onnx.TensorProto.UINT8)
    words = helper.make_tensor("W", kind, [8, 4], codes + (8 if unsigned else 0))
    blocks = {"block_size": block} if block else {}
    nodes = [helper.make_node("DequantizeLinear", ["W", "s", "z"], ["V"], axis=0, **blocks), matmul("V")]
    zero = helper.make_tensor("z", kind, scale.shape, [8 if unsigned else 0] * scale.size)
    x, y = info("x", 1, None, 8), info("y", 1, None, 4)
    graph = helper.make_graph(nodes, "small", [x], [y], [words, initializer("s", scale), zero])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(proto)
    return proto


def _two_bits() -> onnx.ModelProto:
    """A MatMul behind a DequantizeLinear over 2-bit words."""
    words, scale = helper.make_tensor("W", onnx.TensorProto.INT2, [8, 4], [1, 0] * 16), np.float32(0.1)
    nodes = [helper.make_node("DequantizeLinear", ["W", "s"], ["V"]), matmul("V")]
    x, y = info("x", 1, None, 8), info("y", 1, None, 4)
    graph = helper.make_graph(nodes, "small", [x], [y], [words, initializer("s", scale)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)


def _matmul_nbits() -> onnx.ModelProto:
    """Weight-only 4-bit quantisation, as language models have it."""
    packed = np.random.default_rng(1).integers(0, 256, (4, 1, 8), dtype=np.uint8)
    node = helper.make_node(
        "MatMulNBits", ["x", "B", "s"], ["y"], domain="com.microsoft", K=16, N=4, bits=4, block_size=16
    )
    constants = {"B": packed, "s": np.abs(normal(4, seed=2)) * np.float32(0.1)}
    x, y = info("x", 1, None, 16), info("y", 1, None, 4)
    return model([node], [x], [y], constants, domains=["com.microsoft"])


def _gathered_bytes() -> onnx.ModelProto:
    """A GatherBlockQuantized over words of 4 bits, two a byte."""
    packed = np.random.default_rng(1).integers(0, 256, (12, 8), dtype=np.uint8)
    node = helper.make_node(
        "GatherBlockQuantized", ["B", "i", "s"], ["y"], domain="com.microsoft", bits=4, block_size=16
    )
    constants = {"B": packed, "s": np.abs(normal(12, 1, seed=2)) * np.float32(0.1)}
    x, y = info("i", onnx.TensorProto.INT64, None), info("y", 1, None, 16)
    return model([node], [x], [y], constants, domains=["com.microsoft"])


INT4, UINT4 = onnx.TensorProto.INT4, onnx.TensorProto.UINT4

FORMATS: dict[str, Callable[[], onnx.ModelProto]] = {
    "float32 Conv": _case("conv-float32"),
    "float16 Conv": _case("conv-float16"),
    "float16 MatMul": _case("matmul-float16"),
    "bfloat16 Gather": _case("gather-bfloat16"),
    "double Gemm": _case("gemm-double"),
    "depthwise Conv": _case("conv-depthwise"),
    "ConvTranspose": _case("conv-transpose"),
    "DeformConv": _case("deform-conv"),
    "Gemm": _case("gemm"),
    "Gemm, transposed weight": _case("gemm-transposed"),
    "MatMul": _case("matmul"),
    "MatMul, weight on the left": _case("matmul-left"),
    "MatMul, stack of matrices": _case("matmul-batched"),
    "Einsum": _case("einsum-heads"),
    "Gather (embedding)": _case("gather-float32"),
    "GatherND": _case("gather-nd"),
    "LSTM": _case("lstm"),
    "LSTM, both directions": _case("lstm-both-ways"),
    "GRU": _case("gru-both-ways"),
    "RNN": _case("rnn"),
    "Attention (opset 23), constant keys and values": _case("attention"),
    "com.microsoft Attention": _case("fused-attention"),
    "com.microsoft MultiHeadAttention, constant keys and values": _case("multi-head-attention"),
    "com.microsoft FusedConv": _case("fused-conv"),
    "com.microsoft FusedGemm": _case("fused-gemm"),
    "com.microsoft FusedMatMul": _case("fused-matmul"),
    "com.microsoft EmbedLayerNormalization": _case("embed-layer-normalization"),
    "com.microsoft MoE": _case("mixture-of-experts"),
    "transformer block, tied embedding": _case("transformer"),
    "one weight, several readers": _case("shared"),
    "one weight, read on two axes": _case("tied"),
    "weight behind Transpose": _case("transpose"),
    "weight behind Reshape": _case("reshape"),
    "weight computed from constants": _case("computed"),
    "weight from ConstantOfShape": _case("constant-of-shape"),
    "Constant node": _case("constant-node"),
    "Constant node, value_floats": _case("constant-floats"),
    "initializers that are graph inputs (IR 3)": _case("inputs-ir3"),
    "sparse initializer beside a dense one": _sparse,
    "If": _case("if"),
    "Loop": _case("loop"),
    "Scan": _case("scan"),
    "Scan over stacked weights": _case("scan-stack"),
    "model function with its weight inside": _case("function-constant"),
    "model function that takes its weight": _case("function-arguments"),
    "nested model functions": _case("function-nested"),
    "If in a model function": _case("function-subgraph"),
    **{f"opset {opset}": _opset(opset) for opset in (6, 7, 13, 21, 26)},
    "normalisation only": _norms_only,
    "QDQ int8": _case("int8"),
    "QDQ int8, a scale a channel": _case("int8-channels"),
    "QDQ uint8": _case("uint8"),
    "QDQ int8, zero point not 0": _case("int8-zero-point"),
    "QDQ int4": lambda: _dequantized(INT4),
    "QDQ uint4": lambda: _dequantized(UINT4),
    "QDQ int2": _two_bits,
    "QDQ int16, a scale a channel": QUANTISED["qdq-int16-channel-symmetric"],
    "QDQ uint8, a zero point a channel": QUANTISED["qdq-uint8-channel-asymmetric"],
    "QDQ uint4 Conv, a zero point a channel": QUANTISED["qdq-Conv-uint4"],
    "QDQ int8, float16 scales": QUANTISED["qdq-float16-scales"],
    "QDQ uint4, blocked, a zero point a block": QUANTISED["qdq-uint4-block-asymmetric"],
    "QDQ int8, blocked": lambda: _dequantized(np.int8, 4),
    "QDQ int4, blocked": lambda: _dequantized(INT4, 4),
    "QuantizeLinear on a float weight": _case("quantised-by-graph"),
    "QDQ int8 in a branch of an If": QUANTISED["branch"],
    "QDQ int8 in a model function": QUANTISED["function"],
    "Gather of uint8, dequantised behind it": QUANTISED["embedding"],
    "Gather of uint8, laid out, read by integer operators": QUANTISED["layered"],
    "QLinearConv": QUANTISED["opset10-QLinearConv"],
    "QLinearMatMul, weight on the left": QUANTISED["left-QLinearMatMul"],
    "MatMulInteger, weight on the left": QUANTISED["left-MatMulInteger"],
    "static quantisation by onnxruntime, QDQ": QUANTISED["static-qdq-channel"],
    "static quantisation by onnxruntime, QOperator": QUANTISED["static-qoperator-channel"],
    "dynamic quantisation by onnxruntime": QUANTISED["dynamic-tensor"],
    "QLinearMatMul": lambda: _qlinear("QLinearMatMul"),
    "MatMulInteger, DynamicQuantizeLinear": lambda: _qlinear("MatMulInteger"),
    "com.microsoft MatMulNBits": _matmul_nbits,
    "com.microsoft MatMulNBits, 2 bits": QUANTISED["packed-2-symmetric-64"],
    "com.microsoft MatMulNBits, 4 bits, a zero point a block": QUANTISED["packed-4-asymmetric-80"],
    "com.microsoft MatMulNBits, 8 bits": QUANTISED["packed-8-symmetric-64"],
    "com.microsoft GatherBlockQuantized, int4": QUANTISED["gathered-int4-symmetric"],
    "com.microsoft GatherBlockQuantized, uint4, a zero point a block": QUANTISED["gathered-uint4-asymmetric"],
    "com.microsoft GatherBlockQuantized, float16 scales": QUANTISED["gathered-int4-float16"],
    "com.microsoft GatherBlockQuantized, packed bytes": _gathered_bytes,
    "com.microsoft DynamicQuantizeLSTM": QUANTISED["recurrent-forward-direction"],
    "com.microsoft DynamicQuantizeLSTM, both directions, a scale a unit": QUANTISED["recurrent-both-unit"],
}
"""Rows of the matrix, by what they are called."""
