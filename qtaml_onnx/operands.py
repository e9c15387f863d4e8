"""Which operands of which operators are weights, and what the other constants of an operator are for."""

from __future__ import annotations

import onnx_ir as ir

from qtaml_onnx.graph import STANDARD_DOMAINS
from qtaml_onnx.quantized import BIAS_INPUTS, MICROSOFT

__all__ = ["LAYOUT_OPERATORS", "WEIGHT_OPERANDS", "role_of", "weight_operands"]

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})

WEIGHT_OPERANDS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "Attention"): (1, 2, 0),  # constant keys and values are a learned prefix, constant queries learned latents
    ("", "CausalConvWithState"): (1,),
    ("", "Conv"): (1,),
    ("", "ConvTranspose"): (1,),
    ("", "DeformConv"): (1,),
    ("", "Gather"): (0,),
    ("", "GatherND"): (0,),
    ("", "Gemm"): (1, 0),
    ("", "GRU"): (1, 2),
    ("", "LSTM"): (1, 2),
    ("", "MatMul"): (1, 0),
    ("", "RNN"): (1, 2),
    (MICROSOFT, "Attention"): (1,),
    (MICROSOFT, "CausalConvWithState"): (1,),
    (MICROSOFT, "ConvTransposeWithDynamicPads"): (1,),
    (MICROSOFT, "EmbedLayerNormalization"): (2, 3, 4),
    (MICROSOFT, "FusedConv"): (1,),
    (MICROSOFT, "FusedGemm"): (1, 0),
    (MICROSOFT, "FusedMatMul"): (1, 0),
    (MICROSOFT, "MoE"): (2, 4, 6),
    (MICROSOFT, "MultiHeadAttention"): (1, 2, 0),
    (MICROSOFT, "TransposeMatMul"): (1, 0),
}
"""By domain and operator: the operands that are weights where they are constant, the usual one first."""

LAYOUT_OPERATORS = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
"""Operators that only change the layout of a weight."""


def _quantised(
    *op_types: str, scales: tuple[int, ...] = (), points: tuple[int, ...] = ()
) -> dict[tuple[str, int], str]:
    """Roles of the scales and zero points of operators."""
    roles = {**dict.fromkeys(scales, "scale"), **dict.fromkeys(points, "zero point")}
    return {(op_type, index): role for op_type in op_types for index, role in roles.items()}


_ON_INTEGERS = (
    *("QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearReduceMean"),
    *("QLinearSigmoid", "QLinearSoftmax"),
)
"""onnxruntime's operators on one tensor of integers: its scale and zero point, then those of the result."""

_ROLES: dict[tuple[str, int], str] = {
    **{(op_type, 2): "bias" for op_type in ("Conv", "ConvTranspose", "Gemm")},
    **{(op_type, 3): "bias" for op_type in RECURRENT},
    **{(op_type, index): "initial state" for op_type in RECURRENT for index in (5, 6)},
    ("LSTM", 7): "peephole weights",
    ("DeformConv", 3): "bias",
    ("FusedConv", 2): "bias",
    ("FusedGemm", 2): "bias",
    ("Attention", 2): "bias",
    ("MultiHeadAttention", 3): "bias",
    **{("BatchNormalization", i): what for i, what in ((1, "scale"), (2, "bias"), (3, "mean"), (4, "variance"))},
    **{
        (op_type, index): what
        for op_type in ("LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization")
        for index, what in ((1, "scale"), (2, "bias"))
    },
    ("SimplifiedLayerNormalization", 1): "scale",
    **{("SkipLayerNormalization", i): what for i, what in ((2, "scale"), (3, "bias"), (4, "bias"))},
    ("SkipSimplifiedLayerNormalization", 2): "scale",
    ("EmbedLayerNormalization", 5): "scale",
    ("EmbedLayerNormalization", 6): "bias",
    ("PRelu", 1): "slope",
    **{(op_type, 1): "bias" for op_type in ("BiasAdd", "BiasGelu", "BiasSplitGelu", "FastGelu")},
    **{
        (op_type, index): what
        for op_type in ("QuantizeLinear", "DequantizeLinear")
        for index, what in ((1, "scale"), (2, "zero point"))
    },
    **dict.fromkeys(BIAS_INPUTS.items(), "bias"),
    **_quantised("QLinearConv", "QLinearMatMul", "QGemm", scales=(1, 4), points=(2, 5)),
    **_quantised("QLinearConv", "QLinearMatMul", scales=(6,), points=(7,)),
    **_quantised("QGemm", scales=(7,), points=(8,)),
    **_quantised("QLinearAdd", "QLinearMul", scales=(1, 4, 6), points=(2, 5, 7)),
    **{("QLinearAdd", index): "addend" for index in (0, 3)},
    **{("QLinearMul", index): "factor" for index in (0, 3)},
    **_quantised(*_ON_INTEGERS, scales=(1, 3), points=(2, 4)),
    **_quantised("QLinearConcat", scales=(0, *range(3, 99, 3)), points=(1, *range(4, 99, 3))),
    **_quantised("ConvInteger", "MatMulInteger", points=(2, 3)),
    **_quantised("MatMulNBits", "GatherBlockQuantized", scales=(2,), points=(3,)),
    **_quantised("DynamicQuantizeLSTM", scales=(8, 10), points=(9, 11)),
    ("DynamicQuantizeLSTM", 3): "bias",
    **{("DynamicQuantizeLSTM", index): "initial state" for index in (5, 6)},
    ("DynamicQuantizeLSTM", 7): "peephole weights",
}
"""What small operands are, where the operator says it."""


_ELEMENTWISE = {"Add": "addend", "Sub": "addend", "Mul": "factor", "Div": "factor"}
_PASSED_ON = LAYOUT_OPERATORS | {"Cast", "DequantizeLinear", "Expand", "QuantizeLinear", "Slice", "Tile"}

_BIASED_BY_ADD = frozenset({"Conv", "Einsum", "FusedMatMul", "MatMul"})
"""Operators whose bias is a vector that an Add behind them takes."""


def weight_operands(node: ir.Node) -> tuple[int, ...]:
    """The operands of a node that are weights where they are constant; none for operators that have no weights."""
    if node.domain in STANDARD_DOMAINS and node.op_type == "Einsum":
        return tuple(range(len(node.inputs)))
    domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    return WEIGHT_OPERANDS.get((domain, node.op_type), ())


def role_of(value: ir.Value) -> str:
    """Why a constant that is read is not stored as weights: what its first reader takes it for."""
    node, index = next(iter(value.uses()))
    if node.op_type == "DequantizeLinear" and index == 0 and value.dtype == ir.DataType.INT32:
        return "bias in 32-bit integers: kept in safe storage"
    node, index = _reader_of_values(node, index)
    op_type, long_axes = node.op_type, sum(n != 1 for n in value.shape or ())
    role = _ROLES.get((op_type, index))
    if op_type == "Add" and long_axes <= 1:
        producer = _behind_layout(node.inputs[1 - index])
        if producer is not None and producer.op_type in _BIASED_BY_ADD:
            role, op_type = "bias", producer.op_type
    if role is not None:
        return f"{role} of {op_type}: kept in safe storage"
    if op_type in _ELEMENTWISE and node.domain in STANDARD_DOMAINS:
        such = "position embeddings, masks and the like are " if op_type == "Add" and long_axes > 1 else ""
        return f"{_ELEMENTWISE[op_type]} of {op_type}: {such}kept in safe storage"
    return f"input {index} of {op_type}: not a weight operand"


def _reader_of_values(node: ir.Node, index: int) -> tuple[ir.Node, int]:
    """The first use of a constant that does more than to lay it out, repeat, cast or dequantise it."""
    while index == 0 and node.domain in STANDARD_DOMAINS and node.op_type in _PASSED_ON:
        further = next(iter(node.outputs[0].uses()), None)
        if further is None:
            break
        node, index = further
    return node, index


def _behind_layout(value: ir.Value | None) -> ir.Node | None:
    """The operator that computes a value, its layout aside."""
    producer = value.producer() if value is not None else None
    while producer is not None and producer.domain in STANDARD_DOMAINS and producer.op_type in LAYOUT_OPERATORS:
        source = producer.inputs[0]
        producer = source.producer() if source is not None else None
    return producer
