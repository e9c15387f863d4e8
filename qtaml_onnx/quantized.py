"""Weights that a model stores as integers: which operators read them, and what these say of the integers.

Four families: an integer constant behind a DequantizeLinear (QDQ), or behind a Gather whose result is dequantised or
read by operators that are told its scale; operators that compute on integers (QLinearConv, QLinearMatMul, ConvInteger,
MatMulInteger, com.microsoft::QGemm); operators that dequantise for themselves (com.microsoft::DynamicQuantizeLSTM and
GatherBlockQuantized); and com.microsoft::MatMulNBits, whose words of 2, 4 or 8 bits are packed into bytes. Everywhere a
weight is (integer − zero point) · step, one step and zero point for the tensor, for each channel or for each block.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.graph import STANDARD_DOMAINS, constant_array, constant_tensor, is_constant
from qtaml_onnx.integer_grid import IntegerGrid, Packing

__all__ = [
    "BIAS_INPUTS",
    "INTEGER_OPERANDS",
    "MICROSOFT",
    "WORD_BITS",
    "SiteError",
    "dequantize_grid",
    "gathered_readers",
    "integer_operands",
    "operator_grid",
    "parameter_inputs",
]

Integers = NDArray[np.int32]
Floats = NDArray[np.float32]

MICROSOFT = "com.microsoft"
"""Domain of onnxruntime's own operators."""

INTEGER_OPERANDS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "QLinearConv"): (3,),
    ("", "QLinearMatMul"): (3, 0),
    ("", "ConvInteger"): (1,),
    ("", "MatMulInteger"): (1, 0),
    (MICROSOFT, "QGemm"): (3,),
    (MICROSOFT, "MatMulNBits"): (1,),
    (MICROSOFT, "DynamicQuantizeLSTM"): (1, 2),
    (MICROSOFT, "GatherBlockQuantized"): (0,),
}
"""Operators that read integer weights, and the inputs that are weights where they are constant."""

BIAS_INPUTS = {"QLinearConv": 8, "QGemm": 6, "MatMulNBits": 5}
"""Where integer operators take their bias: 32-bit integers of scale x_scale · w_scale, floats in MatMulNBits."""

WORD_BITS = {
    ir.DataType.INT4: 4,
    ir.DataType.UINT4: 4,
    ir.DataType.INT8: 8,
    ir.DataType.UINT8: 8,
    ir.DataType.INT16: 16,
    ir.DataType.UINT16: 16,
}
"""Bits of the integer types whose weights are stored."""

_TOLD = {
    ("", "DequantizeLinear"): (0,),
    ("", "QLinearMatMul"): (0, 3),
    (MICROSOFT, "QLinearAdd"): (0, 3),
    (MICROSOFT, "QLinearMul"): (0, 3),
}
"""Operators that take the scale and the zero point of an operand as the two inputs behind it, by operand."""

_PASSED_ON = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
_LEAST_BLOCK = 16
"""Smallest block that MatMulNBits and GatherBlockQuantized take."""


class SiteError(Exception):
    """Why an integer constant cannot be stored; the text is the reason that reports give."""


def _parameters(
    node: ir.Node, scale_input: int | None, zero_input: int, shape: tuple[int, ...], axis: int | None
) -> tuple[Floats, Integers, int | None, np.dtype[np.generic]]:
    """Step, zero point and the axis along which they run, of an operand with one of each for tensor or channel."""
    scale, zero = _constant(node, scale_input), _constant(node, zero_input)
    kind = scale.dtype if scale is not None else np.dtype(np.float32)
    step = np.ones((), np.float32) if scale is None else scale.astype(np.float32)
    point = np.zeros(step.shape, np.int32) if zero is None else zero.astype(np.int32)
    size = max(step.size, point.size)
    if size == 1:
        return step.reshape(()), point.reshape(()), None, kind
    if axis is None or axis >= len(shape) or size != shape[axis]:
        raise SiteError(f"scales of {node.op_type} that are neither one for all nor one for each output channel")
    steps = np.broadcast_to(np.ravel(step), (size,)).astype(np.float32)
    return steps, np.broadcast_to(np.ravel(point), (size,)).astype(np.int32), axis, kind


def _constant(node: ir.Node, index: int | None) -> NDArray[np.generic] | None:
    if index is None or index >= len(node.inputs) or node.inputs[index] is None:
        return None
    value = node.inputs[index]
    if not is_constant(value) or value is None:
        raise SiteError(f"{node.op_type} with a scale or zero point computed at run time")
    return constant_array(value)


def _integer(node: ir.Node, name: str, default: int = 0) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _checked_type(dtype: ir.DataType, reader: str) -> int:
    if dtype in (ir.DataType.INT2, ir.DataType.UINT2):
        raise SiteError(f"{reader} over {dtype.name}: onnxruntime cannot fold a read-out in 2-bit integers at load")
    if dtype not in WORD_BITS:
        raise SiteError(f"{reader} over {dtype.name}: only words of 4, 8 and 16 bits are stored")
    return WORD_BITS[dtype]


Kind = tuple[ir.DataType, tuple[int, ...]]
"""Element type and shape of a constant."""


def _kind(value: ir.Value | None) -> Kind:
    tensor = constant_tensor(value)  # type: ignore[arg-type]
    return tensor.dtype, tuple(int(n) for n in tensor.shape)  # type: ignore[arg-type]


def dequantize_grid(node: ir.Node, kind: Kind | None = None) -> IntegerGrid:
    """The grid of the constant behind a DequantizeLinear.

    Args:
        node: The DequantizeLinear.
        kind: Of the integers, where a read-out computes them and they are no constant.

    Raises:
        SiteError: with the reason why it cannot be stored.
    """
    dtype, shape = kind or _kind(node.inputs[0])
    bits = _checked_type(dtype, "DequantizeLinear")
    axis = _integer(node, "axis", 1)
    axis = axis % len(shape) if shape and -len(shape) <= axis < len(shape) else 0
    block = _integer(node, "block_size")
    if block:
        return _blocked_grid(node, dtype, shape, axis, block)
    if _constant(node, 1) is None:
        raise SiteError("DequantizeLinear without a scale")
    step, point, along, real = _parameters(*parameter_inputs(node, 0), shape, axis)
    return IntegerGrid(dtype, bits, shape, step, point, along, 1, real)


def _blocked_grid(node: ir.Node, dtype: ir.DataType, shape: tuple[int, ...], axis: int, block: int) -> IntegerGrid:
    """One step and zero point for each block along an axis."""
    scale = _constant(node, parameter_inputs(node, 0)[1])
    expected = tuple(-(-n // block) if i == axis else n for i, n in enumerate(shape))
    if scale is None or scale.shape != expected:
        found = "missing" if scale is None else list(scale.shape)
        raise SiteError(f"{node.op_type} whose blocked scales are {found}, not {list(expected)}")
    point = _points(node, 0, expected)
    return IntegerGrid(dtype, WORD_BITS[dtype], shape, scale.astype(np.float32), point, axis, block, scale.dtype)


def _points(node: ir.Node, operand: int, shape: tuple[int, ...]) -> Integers:
    """Zero points of the shape of the scales; 0 if the operator has none."""
    zero = _constant(node, parameter_inputs(node, operand)[2])
    if zero is None:
        return np.zeros(shape, np.int32)
    if zero.shape != shape:
        raise SiteError(f"{node.op_type} whose zero points are {list(zero.shape)}, its scales {list(shape)}")
    return zero.astype(np.int32)


Reader = tuple[ir.Node, int]
"""An operator, and as which input it reads something."""


def gathered_readers(node: ir.Node) -> list[Reader]:
    """Who reads the integers that a Gather takes from a table, past layout operators, and is told what they stand for.

    Quantisers leave so at an embedding a DequantizeLinear, or operators on integers that take its scale and zero point.
    Empty if something else reads them as well, or if the readers are told different things.
    """
    if node.op_type != "Gather":
        return []
    found: list[Reader] = []
    values = [node.outputs[0]]
    for value in values:
        if value.is_graph_output():
            return []
        for reader, index in value.uses():
            domain = "" if reader.domain in STANDARD_DOMAINS else reader.domain
            if index in _TOLD.get((domain, reader.op_type), ()):
                found.append((reader, index))
            elif index == 0 and not domain and reader.op_type in _PASSED_ON:
                values.append(reader.outputs[0])
            else:
                return []
    told = {tuple(id(value) for value in reader.inputs[index + 1 : index + 3]) for reader, index in found}
    return found if len(told) == 1 else []


def parameter_inputs(node: ir.Node, operand: int) -> tuple[ir.Node, int | None, int]:
    """The operator that takes the step and the zero point of a weight, and as which inputs; None for no step.

    Args:
        node: The operator that reads the integers.
        operand: As which input it does.
    """
    match node.op_type:
        case "Gather":
            reader, index = next(iter(gathered_readers(node)), (node, 0))
            return reader, index + 1, index + 2
        case "DequantizeLinear":
            return node, 1, 2
        case "MatMulNBits" | "GatherBlockQuantized":
            return node, 2, 3
        case "DynamicQuantizeLSTM":
            return node, 6 + 2 * operand, 7 + 2 * operand
        case "ConvInteger" | "MatMulInteger":
            return node, None, 2 + operand
        case _:  # QLinearConv, QLinearMatMul, QGemm
            return node, operand + 1, operand + 2


def operator_grid(node: ir.Node, operand: int, kind: Kind | None = None) -> tuple[IntegerGrid, int | None]:
    """The grid of an integer operator's constant operand, and the axis of its output channels.

    Args:
        node: The operator.
        operand: As which input it reads the integers.
        kind: Of the integers, where a read-out computes them and they are no constant.

    Raises:
        SiteError: with the reason why it cannot be stored.
    """
    dtype, shape = kind or _kind(node.inputs[operand])
    if node.op_type == "MatMulNBits":
        return _packed_grid(node, dtype, shape), 0
    if node.op_type == "Gather":
        if not gathered_readers(node):
            raise SiteError("Gather from integers whose readers do not all take them at one and the same scale")
        bits = _checked_type(dtype, "Gather")
        step, point, along, real = _parameters(*parameter_inputs(node, operand), (), None)
        return IntegerGrid(dtype, bits, shape, step, point, along, 1, real), len(shape) - 1
    bits = _checked_type(dtype, node.op_type)
    if node.op_type == "GatherBlockQuantized":
        return _gathered_blocks_grid(node, dtype, shape), len(shape) - 1
    if bits != 8:
        raise SiteError(f"{node.op_type} over {dtype.name}: only words of 8 bits are stored")
    if node.op_type == "DynamicQuantizeLSTM":
        return _recurrent_grid(node, operand, dtype, shape), 2
    match node.op_type:
        case "QLinearConv" | "ConvInteger":
            axis = 0
        case "QGemm":
            axis = 0 if _integer(node, "transB") else 1
        case _:  # QLinearMatMul, MatMulInteger
            axis = len(shape) - (1 if operand else 2)
    if node.op_type in ("QLinearConv", "QGemm"):
        _constant(node, 1)
    step, point, along, real = _parameters(*parameter_inputs(node, operand), shape, axis if axis >= 0 else None)
    channels = axis if len(shape) > 1 and axis >= 0 else None
    return IntegerGrid(dtype, bits, shape, step, point, along, 1, real), channels


def _gathered_blocks_grid(node: ir.Node, dtype: ir.DataType, shape: tuple[int, ...]) -> IntegerGrid:
    """That of com.microsoft::GatherBlockQuantized over a table whose element type is an integer of 4 bits."""
    if dtype not in (ir.DataType.INT4, ir.DataType.UINT4):
        raise SiteError(f"GatherBlockQuantized over {dtype.name}: only elements of type INT4 and UINT4 are known")
    axis, block = _integer(node, "quantize_axis", 1), _integer(node, "block_size", 128)
    if not -len(shape) <= axis < len(shape) or block < _LEAST_BLOCK:
        raise SiteError(f"GatherBlockQuantized in blocks of {block} along axis {axis} of a table {list(shape)}")
    return _blocked_grid(node, dtype, shape, axis % len(shape), block)


def _recurrent_grid(node: ir.Node, operand: int, dtype: ir.DataType, shape: tuple[int, ...]) -> IntegerGrid:
    """That of com.microsoft::DynamicQuantizeLSTM, of weights [directions, inputs, 4 · hidden].

    A step a direction, or one a direction and gate unit.
    """
    scale = _constant(node, parameter_inputs(node, operand)[1])
    if len(shape) != 3 or scale is None or scale.shape not in (shape[:1], (shape[0], shape[2])):
        raise SiteError("DynamicQuantizeLSTM whose scales are neither one a direction nor one a unit of its gates")
    point = _points(node, operand, scale.shape)
    step = scale.astype(np.float32)
    if scale.size == 1:
        return IntegerGrid(dtype, 8, shape, step.reshape(()), point.reshape(()))
    if scale.ndim == 1:
        return IntegerGrid(dtype, 8, shape, step, point, 0)
    if shape[0] == 1:
        return IntegerGrid(dtype, 8, shape, step[0], point[0], 2)
    # Steps along two axes: blocks that reach over all inputs of a unit.
    return IntegerGrid(dtype, 8, shape, step[:, None], point[:, None], 1, shape[1])


def _packed_grid(node: ir.Node, dtype: ir.DataType, shape: tuple[int, ...]) -> IntegerGrid:
    rows, columns, block = _integer(node, "N"), _integer(node, "K"), _integer(node, "block_size")
    bits = _integer(node, "bits", 4)
    scale = _constant(node, 2)
    if bits not in (2, 4, 8) or dtype != ir.DataType.UINT8 or scale is None:
        raise SiteError(f"MatMulNBits with words of {bits} bits in {dtype.name}: only 2, 4 and 8 in UINT8 are known")
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        raise SiteError("MatMulNBits with a group index: its blocks are not in order")
    blocks = -(-columns // block) if block else 0
    if block < _LEAST_BLOCK or math.prod(shape) != rows * blocks * block * bits // 8 or scale.size != rows * blocks:
        raise SiteError("MatMulNBits whose weights and scales do not fit N, K, bits and block_size")
    middle = 1 << (bits - 1)
    points = _packed_points(node, rows, blocks, bits, middle)
    filler = middle if (points == middle).all() else 0
    packing = Packing(bits, (rows, blocks, block * bits // 8), filler)
    step = scale.reshape(rows, blocks).astype(np.float32)
    return IntegerGrid(dtype, bits, (rows, columns), step, points, 1, block, scale.dtype, packing)


def _packed_points(node: ir.Node, rows: int, blocks: int, bits: int, middle: int) -> Integers:
    points = _constant(node, 3)
    if points is None:
        return np.full((rows, blocks), middle, np.int32)
    if points.dtype != np.uint8:
        raise SiteError(f"MatMulNBits with zero points of type {points.dtype}: only packed ones are known")
    width = math.ceil(blocks * bits / 8)
    if points.size != rows * width:
        raise SiteError("MatMulNBits whose zero points do not fit N, K, bits and block_size")
    return Packing(bits, (rows, 1, width), 0).unpack(points.astype(np.uint8), blocks).astype(np.int32)


def integer_operands(node: ir.Node) -> tuple[int, ...]:
    """The inputs of an operator that may be integer weights."""
    domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    return INTEGER_OPERANDS.get((domain, node.op_type), ())
