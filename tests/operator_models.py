"""More small models with known weights: one for every operator that has weights, in each of its layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from small_models import CASES as SMALL_CASES
from small_models import ROWS, Array, Case, Weights, info, matmul, model, normal

FUSED = "com.microsoft"


def _single(
    node: onnx.NodeProto,
    weights: dict[str, Array],
    feeds: dict[str, Array],
    rank: int,
    *,
    constants: Mapping[str, Array] | None = None,
    opset: int = 17,
    ir_version: int = 8,
    **more: Any,
) -> Case:
    """One operator with its weights; further constants are left out of what is stored."""

    def build(w: Weights) -> onnx.ModelProto:
        inputs = [info(name, helper.np_dtype_to_tensor_dtype(a.dtype), *a.shape) for name, a in feeds.items()]
        floats = next(iter(weights.values())).dtype
        outputs = [info("y", helper.np_dtype_to_tensor_dtype(floats), *[None] * rank)]
        tensors = {**(constants or {}), **w}
        domains = [node.domain] if node.domain else []
        return model([node], inputs, outputs, tensors, opset=opset, ir_version=ir_version, domains=domains)

    return Case(build, weights, feeds, **more)


def _recurrent(op_type: str, direction: str = "forward", opset: int = 17) -> Case:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type]
    ways = 2 if direction == "bidirectional" else 1
    inputs = ["x", "W", "R", "B", "", "h"] + (["c", "P"] if op_type == "LSTM" else [])
    node = helper.make_node(op_type, inputs, ["y"], hidden_size=5, direction=direction)
    weights = {
        "W": normal(ways, gates * 5, 6, seed=1) * np.float32(0.3),
        "R": normal(ways, gates * 5, 5, seed=2) * np.float32(0.3),
    }
    constants = {
        "B": normal(ways, 2 * gates * 5, seed=3),
        "h": normal(ways, 2, 5, seed=4),
    }
    left_out = {"B": f"bias of {op_type}", "h": f"initial state of {op_type}"}
    if op_type == "LSTM":
        constants |= {"c": normal(ways, 2, 5, seed=5), "P": normal(ways, 15, seed=6)}
        left_out |= {"c": "initial state", "P": "peephole weights"}
    feeds = {"x": normal(4, 2, 6, seed=9)}
    axes: dict[str, int | None] = {"W": 1, "R": 1}
    return _single(node, weights, feeds, 4, constants=constants, opset=opset, left_out=left_out, axes=axes)


def _einsum(equation: str, operand: int, shape: tuple[int, ...], other: tuple[int, ...], axis: int | None) -> Case:
    names = ["x", "x"]
    names[operand] = "W"
    node = helper.make_node("Einsum", names, ["y"], equation=equation)
    rank = len(np.einsum(equation, *[np.zeros(shape if n == "W" else other) for n in names]).shape)
    weights, feeds = {"W": normal(*shape, seed=1)}, {"x": normal(*other, seed=9)}
    return _single(node, weights, feeds, rank, axes={"W": axis})


def _attention() -> Case:
    """A learned prefix: constant keys and values, four-dimensional."""
    node = helper.make_node("Attention", ["q", "K", "V"], ["y"])
    weights = {"K": normal(1, 2, 7, 4, seed=1), "V": normal(1, 2, 7, 4, seed=2)}
    feeds = {"q": normal(1, 2, 3, 4, seed=9)}
    return _single(node, weights, feeds, 4, opset=23, ir_version=11, axes={"K": 3, "V": 3})


def _fused_attention() -> Case:
    node = helper.make_node("Attention", ["x", "W", "b"], ["y"], domain=FUSED, num_heads=2)
    constants = {"b": normal(24, seed=2)}
    feeds = {"x": normal(1, 3, 8, seed=9)}
    left_out = {"b": "bias of Attention"}
    return _single(node, {"W": normal(8, 24, seed=1)}, feeds, 3, constants=constants, left_out=left_out, axes={"W": 1})


def _multi_head_attention() -> Case:
    node = helper.make_node("MultiHeadAttention", ["x", "K", "V"], ["y"], domain=FUSED, num_heads=2)
    weights, feeds = {"K": normal(1, 5, 8, seed=1), "V": normal(1, 5, 8, seed=2)}, {"x": normal(1, 3, 8, seed=9)}
    return _single(node, weights, feeds, 3, axes={"K": 2, "V": 2})


def _fused_conv() -> Case:
    node = helper.make_node("FusedConv", ["x", "W", "b"], ["y"], domain=FUSED, activation="Relu")
    feeds = {"x": normal(2, 3, 5, 5, seed=9)}
    left_out = {"b": "bias of FusedConv"}
    weights = {"W": normal(4, 3, 3, 3, seed=1)}
    return _single(node, weights, feeds, 4, constants={"b": normal(4, seed=2)}, left_out=left_out, axes={"W": 0})


def _fused_gemm() -> Case:
    node = helper.make_node("FusedGemm", ["x", "W", "b"], ["y"], domain=FUSED, activation="Relu", transB=1)
    left_out = {"b": "bias of FusedGemm"}
    weights = {"W": normal(4, 6, seed=1)}
    return _single(node, weights, ROWS, 2, constants={"b": normal(4, seed=2)}, left_out=left_out, axes={"W": 0})


def _fused_matmul() -> Case:
    node = helper.make_node("FusedMatMul", ["x", "W"], ["y"], domain=FUSED, transB=1, alpha=0.5)
    return _single(node, {"W": normal(4, 6, seed=1)}, ROWS, 2, axes={"W": 0})


def _embed_layer_normalization() -> Case:
    names = ["i", "s", "words", "positions", "segments", "gamma", "beta"]
    node = helper.make_node("EmbedLayerNormalization", names, ["y", "mask"], domain=FUSED)
    weights = {"words": normal(9, 4, seed=1), "positions": normal(5, 4, seed=2), "segments": normal(2, 4, seed=3)}
    feeds = {"i": np.array([[8, 0, 3]], np.int32), "s": np.array([[0, 0, 1]], np.int32)}
    constants = {"gamma": normal(4, seed=4), "beta": normal(4, seed=5)}
    left_out = {
        "gamma": "scale of EmbedLayerNormalization",
        "beta": "bias of EmbedLayerNormalization",
    }
    axes: dict[str, int | None] = {"words": 1, "positions": 1, "segments": 1}
    return _single(node, weights, feeds, 3, constants=constants, left_out=left_out, axes=axes)


def _mixture_of_experts() -> Case:
    node = helper.make_node("MoE", ["x", "router", "W1", "", "W2"], ["y"], domain=FUSED, k=1, activation_type="relu")
    weights = {"W1": normal(2, 8, 6, seed=1), "W2": normal(2, 6, 8, seed=2)}
    feeds = {"x": normal(5, 6, seed=9), "router": normal(5, 2, seed=8)}
    return _single(node, weights, feeds, 2, axes={"W1": 1, "W2": 1})


def _deform_conv() -> Case:
    node = helper.make_node("DeformConv", ["x", "W", "o", "b"], ["y"], kernel_shape=[2, 2])
    feeds = {"x": normal(1, 3, 4, 4, seed=9), "o": normal(1, 8, 3, 3, seed=8) * np.float32(0.3)}
    return _single(
        node, {"W": normal(4, 3, 2, 2, seed=1)}, feeds, 4, constants={"b": normal(4, seed=2)}, opset=19, ir_version=9,
        left_out={"b": "bias of DeformConv"}, axes={"W": 0},
    )  # fmt: skip


def _gather_nd() -> Case:
    node = helper.make_node("GatherND", ["W", "i"], ["y"])
    return _single(node, {"W": normal(9, 4, seed=1)}, {"i": np.array([[8], [0], [3]])}, 2, axes={"W": 1})


def _constant_floats() -> Case:
    """A list of numbers as an attribute, reshaped to a matrix."""

    def build(w: Weights) -> onnx.ModelProto:
        values = [float(v) for v in w["W"]]
        nodes = [
            helper.make_node("Constant", [], ["W"], value_floats=values),
            helper.make_node("Constant", [], ["shape"], value_ints=[6, 4]),
            helper.make_node("Reshape", ["W", "shape"], ["V"]),
            matmul("V", result="p"),
            helper.make_node("Constant", [], ["half"], value_float=0.5),
            helper.make_node("Mul", ["p", "half"], ["y"]),
        ]
        return model(nodes, [info("x", 1, None, 6)], [info("y", 1, None, None)])

    return Case(build, {"W": normal(24, seed=1)}, ROWS, axes={"W": None})


def _scan_stack() -> Case:
    """The weights of equal layers in one tensor, which a Scan takes apart, as JAX exports them."""

    def build(w: Weights) -> onnx.ModelProto:
        body = helper.make_graph(
            [helper.make_node("Gemm", ["h", "layer"], ["m"]), helper.make_node("Tanh", ["m"], ["next"])],
            "body",
            [info("h", 1, None, 6), info("layer", 1, 6, 6)],
            [info("next", 1, None, 6)],
        )
        node = helper.make_node("Scan", ["x", "W"], ["y"], body=body, num_scan_inputs=1)
        return model([node], [info("x", 1, None, 6)], [info("y", 1, None, 6)], {"W": w["W"]})

    return Case(build, {"W": normal(3, 6, 6, seed=1)}, ROWS, axes={"W": 2})


def _transformer() -> Case:
    """Embeddings tied to the output, and one block of attention and feed-forward layers, as exporters write them."""
    d, heads, vocabulary, length = 8, 2, 11, 5
    make = helper.make_node

    def build(w: Weights) -> onnx.ModelProto:
        nodes = [
            make("Gather", ["embedding", "tokens"], ["e"]),
            make("Add", ["e", "position"], ["h0"]),
            make("LayerNormalization", ["h0", "n1.weight", "n1.bias"], ["a0"]),
            make("MatMul", ["a0", "qkv.weight"], ["a1"]),
            make("Add", ["a1", "qkv.bias"], ["a2"]),
            make("Split", ["a2"], ["q0", "k0", "v0"], axis=2, num_outputs=3),
        ]
        for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            nodes += [
                make("Reshape", [f"{part}0", "split_heads"], [f"{part}1"]),
                make("Transpose", [f"{part}1"], [part], perm=perm),
            ]
        nodes += [
            make("MatMul", ["q", "k"], ["s0"]),
            make("Mul", ["s0", "scale"], ["s1"]),
            make("Add", ["s1", "mask"], ["s2"]),
            make("Softmax", ["s2"], ["p"], axis=-1),
            make("MatMul", ["p", "v"], ["o0"]),
            make("Transpose", ["o0"], ["o1"], perm=[0, 2, 1, 3]),
            make("Reshape", ["o1", "join_heads"], ["o2"]),
            make("MatMul", ["o2", "o.weight"], ["o3"]),
            make("Add", ["h0", "o3"], ["h1"]),
            make("LayerNormalization", ["h1", "n2.weight", "n2.bias"], ["f0"]),
            make("MatMul", ["f0", "f.weight"], ["f1"]),
            make("Add", ["f1", "f.bias"], ["f2"]),
            make("Relu", ["f2"], ["f3"]),
            make("MatMul", ["f3", "g.weight"], ["f4"]),
            make("Add", ["h1", "f4"], ["h2"]),
            make("Transpose", ["embedding"], ["head"], perm=[1, 0]),
            make("MatMul", ["h2", "head"], ["logits"]),
        ]
        rest = {
            "position": normal(length, d, seed=20),
            "n1.weight": np.ones(d, np.float32),
            "n1.bias": normal(d, seed=21),
            "n2.weight": np.ones(d, np.float32),
            "n2.bias": normal(d, seed=22),
            "qkv.bias": normal(3 * d, seed=23),
            "f.bias": normal(4 * d, seed=24),
            "mask": np.triu(np.full((length, length), -1e9, np.float32), 1),
            "scale": np.asarray((d / heads) ** -0.5, np.float32),
            "split_heads": np.array([0, 0, heads, d // heads]),
            "join_heads": np.array([0, 0, d]),
        }
        inputs, outputs = [info("tokens", TensorProto.INT64, "N", length)], [info("logits", 1, "N", length, vocabulary)]
        return model(nodes, inputs, outputs, {**rest, **w}, opset=18)

    weights = {
        "embedding": normal(vocabulary, d, seed=1),
        "qkv.weight": normal(d, 3 * d, seed=2),
        "o.weight": normal(d, d, seed=3),
        "f.weight": normal(d, 4 * d, seed=4),
        "g.weight": normal(4 * d, d, seed=5),
    }
    left_out = {
        "position": "addend of Add",
        "n1.weight": "scale of LayerNormalization",
        "n1.bias": "bias of LayerNormalization",
        "n2.weight": "scale of LayerNormalization",
        "n2.bias": "bias of LayerNormalization",
        "qkv.bias": "bias of MatMul",
        "f.bias": "bias of MatMul",
        "mask": "addend of Add",
        "scale": "factor of Mul",
    }
    feeds = {"tokens": np.random.default_rng(9).integers(0, vocabulary, (3, length))}
    axes: dict[str, int | None] = {"embedding": 1, "qkv.weight": 1, "g.weight": 1}
    return Case(build, weights, feeds, left_out, axes=axes)


OPERATOR_CASES: dict[str, Callable[[], Case]] = {
    **{op.lower(): (lambda op=op: _recurrent(op)) for op in ("LSTM", "GRU", "RNN")},
    **{f"{op.lower()}-both-ways": (lambda op=op: _recurrent(op, "bidirectional")) for op in ("LSTM", "GRU", "RNN")},
    "lstm-reverse": lambda: _recurrent("LSTM", "reverse", 7),
    "einsum": lambda: _einsum("nk,ko->no", 1, (6, 4), (5, 6), 1),
    "einsum-heads": lambda: _einsum("nld,dhk->nlhk", 1, (6, 2, 4), (2, 3, 6), 2),
    "einsum-left": lambda: _einsum("ok,kn->on", 0, (4, 6), (6, 5), 0),
    "einsum-ellipsis": lambda: _einsum("...k,ko->...o", 1, (6, 4), (2, 5, 6), 1),
    "einsum-implicit": lambda: _einsum("nk,ko", 1, (6, 4), (5, 6), 1),
    "einsum-shared-letters": lambda: _einsum("nk,nk->nk", 1, (5, 6), (5, 6), None),
    "attention": _attention,
    "fused-attention": _fused_attention,
    "multi-head-attention": _multi_head_attention,
    "fused-conv": _fused_conv,
    "fused-gemm": _fused_gemm,
    "fused-matmul": _fused_matmul,
    "embed-layer-normalization": _embed_layer_normalization,
    "mixture-of-experts": _mixture_of_experts,
    "deform-conv": _deform_conv,
    "gather-nd": _gather_nd,
    "constant-floats": _constant_floats,
    "scan-stack": _scan_stack,
    "transformer": _transformer,
}

CASES: dict[str, Callable[[], Case]] = SMALL_CASES | OPERATOR_CASES
"""Every case by name."""
