"""Which operands of which operators are weights, and what the other constants of an operator are for."""

from __future__ import annotations

import onnx_ir as ir

from qtaml_onnx.graph import STANDARD_DOMAINS

__all__ = ["LAYOUT_OPERATORS", "WEIGHT_OPERANDS", "role_of", "weight_operands"]

FUSED_DOMAIN = "com.microsoft"
"""Domain of the operators that onnxruntime's own offline optimiser fuses; any onnxruntime runs them."""

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
    (FUSED_DOMAIN, "Attention"): (1,),
    (FUSED_DOMAIN, "CausalConvWithState"): (1,),
    (FUSED_DOMAIN, "ConvTransposeWithDynamicPads"): (1,),
    (FUSED_DOMAIN, "EmbedLayerNormalization"): (2, 3, 4),
    (FUSED_DOMAIN, "FusedConv"): (1,),
    (FUSED_DOMAIN, "FusedGemm"): (1, 0),
    (FUSED_DOMAIN, "FusedMatMul"): (1, 0),
    (FUSED_DOMAIN, "MoE"): (2, 4, 6),
    (FUSED_DOMAIN, "MultiHeadAttention"): (1, 2, 0),
    (FUSED_DOMAIN, "TransposeMatMul"): (1, 0),
}
"""By domain and operator: the operands that are weights where they are constant, the usual one first."""

LAYOUT_OPERATORS = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
"""Operators that only change the layout of a weight."""

_INTEGER_OPERATORS = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"})

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
    **{
        (op_type, index): what
        for op_type in ("QuantizeLinear", "DequantizeLinear")
        for index, what in ((1, "scale"), (2, "zero point"))
    },
}
"""What small operands are, where the operator says it."""


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
    use = next(iter(value.uses()))
    op_type = use.node.op_type
    if op_type in _INTEGER_OPERATORS:
        return f"input {use.idx} of {op_type}: integer operators are not hardened; export the model in QDQ form"
    role = _ROLES.get((op_type, use.idx))
    if op_type == "Add" and value.shape is not None and len(value.shape) == 1:
        other = use.node.inputs[1 - use.idx]
        producer = other.producer() if other is not None else None
        if producer is not None and producer.op_type in _BIASED_BY_ADD:
            role, op_type = "bias", producer.op_type
    if role is not None:
        return f"{role} of {op_type}: kept in safe storage"
    return f"input {use.idx} of {op_type}: not a weight operand"
