"""Which axis of a stored constant runs over the output channels of the operator that reads it."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.graph import constant_array, constant_tensor, is_constant

__all__ = ["axis_before", "channel_axis", "counted_from_the_front"]


def axis_before(layout: ir.Node, source: ir.Value, axis: int | None) -> int | None:
    """The axis of the constant that becomes `axis` of the layout operator's output, if one does."""
    if axis is None or layout.inputs[0] is not source or not is_constant(source):
        return None  # a chain of layouts: one scale a tensor; behind a DequantizeLinear the axis is its own
    if layout.op_type == "Identity":
        return axis
    before = tuple(constant_tensor(source).numpy().shape)
    if layout.op_type == "Transpose":
        order = (
            list(layout.attributes["perm"].as_ints()) if "perm" in layout.attributes else [*range(len(before))][::-1]
        )
        return int(order[axis]) if -len(order) <= axis < len(order) else None
    after = tuple(layout.outputs[0].shape or ())
    if layout.op_type == "Reshape" and is_constant(layout.inputs[1]):
        wanted = constant_array(layout.inputs[1])  # type: ignore[arg-type]
        if wanted.dtype.kind not in "iu":
            return None
        after = _reshaped(before, wanted, layout)
    if any(not isinstance(n, int) for n in after) or not -len(after) <= axis < len(after):
        return None
    axis %= len(after)
    for index, length in enumerate(before):  # same extent, same number of elements behind it
        if length == after[axis] and math.prod(before[index + 1 :]) == math.prod(after[axis + 1 :]):
            return index
    return None


def _reshaped(before: tuple[int, ...], wanted: NDArray[np.generic], layout: ir.Node) -> tuple[int, ...]:
    """The shape that a Reshape gives: 0 copies an extent (unless `allowzero`), −1 takes what is left."""
    keeps_zero = "allowzero" in layout.attributes and layout.attributes["allowzero"].as_int()
    shape = [int(n) for n in np.ravel(wanted)]
    if not keeps_zero:
        shape = [before[i] if n == 0 and i < len(before) else n for i, n in enumerate(shape)]
    known = math.prod(n for n in shape if n >= 0)
    return tuple(n if n >= 0 else math.prod(before) // max(known, 1) for n in shape)


def channel_axis(node: ir.Node, operand: int) -> int | None:
    """The axis of output channels in an operand; negative ones count from the end, as its rank may be unknown here."""
    match node.op_type:
        case "Conv" | "FusedConv" | "DeformConv" | "CausalConvWithState":
            return 0
        case "ConvTranspose" | "ConvTransposeWithDynamicPads" | "LSTM" | "GRU" | "RNN" | "MoE":
            return 1  # of recurrent weights [directions, gates · hidden, inputs] the rows of all gates
        case "Gemm" | "FusedGemm":
            return int(_flag(node, "transB" if operand else "transA") != bool(operand))
        case "MatMul" | "FusedMatMul" | "TransposeMatMul":
            return -1 if _flag(node, "transB" if operand else "transA") != bool(operand) else -2
        case "Gather" | "GatherND" | "Attention" | "MultiHeadAttention" | "EmbedLayerNormalization":
            return -1
        case "Einsum":
            return _einsum_axis(node.attributes["equation"].as_string(), operand)
    return None


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and node.attributes[name].as_int() != 0


def _einsum_axis(equation: str, operand: int) -> int | None:
    """The last axis of an operand that goes to the output and that no other operand has."""
    terms, _, output = equation.replace(" ", "").partition("->")
    operands = terms.split(",")
    others = "".join(operands[:operand] + operands[operand + 1 :])
    letters = operands[operand]
    if not _:  # implicit: what appears once, goes to the output
        output = "".join(letter for letter in letters if terms.count(letter) == 1)
    for position in range(len(letters) - 1, -1, -1):
        letter = letters[position]
        if letter != "." and letter in output and letter not in others:
            return position - len(letters) if "..." in letters[:position] else position
    return None


def counted_from_the_front(value: ir.Value, axis: int | None) -> int | None:
    """The axis as an index into the constant's shape; None where the constant is a vector or has no such axis."""
    rank = len(constant_tensor(value).shape)
    return axis % rank if axis is not None and rank >= 2 and -rank <= axis < rank else None
