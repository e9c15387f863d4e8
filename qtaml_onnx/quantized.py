"""Weights that a model stores as integers: which operators read them, and which real number each integer stands for.

Three families: an integer constant behind a DequantizeLinear (QDQ), or behind a Gather whose result is dequantised;
operators that compute on integers (QLinearConv, QLinearMatMul, ConvInteger, MatMulInteger, com.microsoft::QGemm); and
com.microsoft::MatMulNBits, whose words of 2, 4 or 8 bits are packed into bytes. Everywhere a weight is
(integer − zero point) · step, one step and zero point for the tensor, for each channel or for each block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.graph import STANDARD_DOMAINS, constant_array, constant_tensor, is_constant
from qtaml_onnx.storage.tensor import blocks

__all__ = [
    "BIAS_INPUTS",
    "INTEGER_OPERANDS",
    "MICROSOFT",
    "WORD_BITS",
    "IntegerGrid",
    "Packing",
    "SiteError",
    "dequantize_grid",
    "gathered_dequantize",
    "integer_operands",
    "operator_grid",
    "parameter_inputs",
]

Integers = NDArray[np.int32]
Narrow = NDArray[np.integer]
Floats = NDArray[np.float32]
_Number = TypeVar("_Number", np.int32, np.float32)

_FLOAT: np.dtype[np.generic] = np.dtype(np.float32)

MICROSOFT = "com.microsoft"
"""Domain of onnxruntime's own operators."""

INTEGER_OPERANDS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "QLinearConv"): (3,),
    ("", "QLinearMatMul"): (3, 0),
    ("", "ConvInteger"): (1,),
    ("", "MatMulInteger"): (1, 0),
    (MICROSOFT, "QGemm"): (3,),
    (MICROSOFT, "MatMulNBits"): (1,),
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

_SIGNED = frozenset({ir.DataType.INT4, ir.DataType.INT8, ir.DataType.INT16})
_LEAST_BLOCK = 16
"""Smallest block that MatMulNBits takes."""


class SiteError(Exception):
    """Why an integer constant cannot be stored; the text is the reason that reports give."""


@dataclass(frozen=True)
class Packing:
    """How com.microsoft::MatMulNBits packs a matrix [N, K] of words into bytes [N, blocks, bytes a block], low first.

    Attributes:
        bits: Of a word: 2, 4 or 8.
        shape: Of the packed bytes.
        filler: The word in the places that fill up the last block of a row: the zero point, so that it stands for 0.
    """

    bits: int
    shape: tuple[int, int, int]
    filler: int

    @property
    def places(self) -> int:
        """Words that the bytes of a row have room for."""
        return self.shape[1] * self.shape[2] * 8 // self.bits

    def unpack(self, packed: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
        """The words, uint8 [N, columns]."""
        flat = packed.reshape(self.shape[0], -1)
        words = np.empty((*flat.shape, 8 // self.bits), dtype=np.uint8)
        for field in range(8 // self.bits):
            np.right_shift(flat, field * self.bits, out=words[..., field])
        words &= np.uint8((1 << self.bits) - 1)
        return words.reshape(self.shape[0], -1)[:, :columns]

    def pack(self, words: Narrow) -> NDArray[np.uint8]:
        """The bytes."""
        full = np.full((self.shape[0], self.places), self.filler, dtype=np.uint8)
        full[:, : words.shape[1]] = words
        fields = full.reshape(*self.shape, 8 // self.bits)
        packed = np.zeros(self.shape, dtype=np.uint8)
        for field in range(8 // self.bits):
            packed |= fields[..., field] << np.uint8(field * self.bits)
        return packed


@dataclass(frozen=True, eq=False)
class IntegerGrid:
    """What the integers of a weight are and stand for.

    Attributes:
        dtype: Element type of the constant that the graph reads; UINT8 for packed words.
        bits: Bits of an integer.
        shape: Of the weight; [N, K] for packed words.
        step: Weight units an integer, float32: a scalar, one a channel, or one a block.
        zero_point: The integers that stand for 0, int32, the shape of `step`.
        axis: The axis along which steps differ; None for a scalar.
        block: Extent of a block along `axis`; 1 where steps are one a channel.
        float_type: The float type that the operator computes in.
        packing: Of MatMulNBits.
    """

    dtype: ir.DataType
    bits: int
    shape: tuple[int, ...]
    step: Floats
    zero_point: Integers
    axis: int | None = None
    block: int = 1
    float_type: np.dtype[np.generic] = _FLOAT
    packing: Packing | None = None

    @property
    def signed(self) -> bool:
        """Whether integers below 0 exist."""
        return self.dtype in _SIGNED

    @property
    def half_range(self) -> int:
        """Largest magnitude of a symmetric integer: 127 of 8 bits."""
        return (1 << (self.bits - 1)) - 1

    @property
    def center(self) -> int:
        """The integer that weights are coded around: the zero point, or the middle where zero points differ."""
        first = int(np.ravel(self.zero_point)[0])
        if (self.zero_point == first).all():
            return first
        return 0 if self.signed else 1 << (self.bits - 1)

    @property
    def parameter_bits(self) -> int:
        """Bits of the model's own steps and zero points (those that are not all 0)."""
        points = self.bits * self.zero_point.size if self.zero_point.any() else 0
        return int(8 * self.float_type.itemsize * self.step.size + points)

    def spread(self, values: NDArray[_Number], part: tuple[Any, ...] = (...,)) -> NDArray[_Number]:
        """Steps or zero points in a shape that broadcasts against a part of the weight.

        Args:
            values: Steps or zero points.
            part: Slices along the first axes, as `storage.tensor.blocks` gives them; all of the weight if left out.
        """
        rank = len(self.shape)
        if self.axis is None:
            return values.reshape((1,) * rank)
        slices = [slice(None) if i >= len(part) or part[i] is ... else part[i] for i in range(rank)]
        own = np.arange(self.shape[self.axis])[slices[self.axis]]
        if values.ndim == 1 and self.block == 1:
            return values[own].reshape(tuple(-1 if i == self.axis else 1 for i in range(rank)))
        slices[self.axis] = slice(None)
        return values[tuple(slices)].take(own // self.block, axis=self.axis)

    def integers(self, stored: NDArray[np.generic]) -> Narrow:
        """The integers of the stored constant, [shape], in a type of 8 bits, or of 16 where they have as many."""
        if self.packing is not None:
            return self.packing.unpack(stored.view(np.uint8), self.shape[1])
        size = "int8" if self.bits <= 8 else "int16"
        return stored.astype(size if self.signed else f"u{size}", copy=False)

    def constant(self, integers: Narrow) -> NDArray[np.generic]:
        """The constant that the graph reads for these integers: the inverse of `integers`."""
        if self.packing is not None:
            return self.packing.pack(integers)
        return integers.astype(self.dtype.numpy())

    def dequantize(self, integers: Narrow) -> NDArray[np.floating]:
        """The weights, [shape], in the operator's float type."""
        real = np.empty(self.shape, dtype=self.float_type)
        for part in blocks(self.shape):
            counted = integers[part].astype(np.int32) - self.spread(self.zero_point, part)
            real[part] = counted.astype(np.float32) * self.spread(self.step, part)
        return real

    def centred(self, integers: Narrow) -> Narrow:
        """The integers less the one that they are coded around, in a type that has room for that."""
        if not self.center:
            return integers
        kind: type[np.signedinteger] = np.int16 if self.bits <= 8 else np.int32
        return np.subtract(integers, self.center, dtype=kind)


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
    scale, zero = _constant(node, 1), _constant(node, 2)
    if scale is None:
        raise SiteError("DequantizeLinear without a scale")
    if not block:
        step, point, along, real = _parameters(*parameter_inputs(node, 0), shape, axis)
        return IntegerGrid(dtype, bits, shape, step, point, along, 1, real)
    expected = tuple(-(-n // block) if i == axis else n for i, n in enumerate(shape))
    if scale.shape != expected:
        raise SiteError(f"DequantizeLinear whose blocked scales are {list(scale.shape)}, not {list(expected)}")
    point = np.zeros(scale.shape, np.int32) if zero is None else zero.astype(np.int32)
    return IntegerGrid(dtype, bits, shape, scale.astype(np.float32), point, axis, block, scale.dtype)


def gathered_dequantize(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear that alone reads the result of a Gather, as quantisers leave it at an embedding."""
    if node.op_type != "Gather" or node.outputs[0].is_graph_output():
        return None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].idx != 0 or uses[0].node.op_type != "DequantizeLinear":
        return None
    return uses[0].node


def parameter_inputs(node: ir.Node, operand: int) -> tuple[ir.Node, int | None, int]:
    """The operator that takes the step and the zero point of a weight, and as which inputs; None for no step.

    Args:
        node: The operator that reads the integers.
        operand: As which input it does.
    """
    match node.op_type:
        case "Gather":
            return gathered_dequantize(node) or node, 1, 2
        case "DequantizeLinear":
            return node, 1, 2
        case "MatMulNBits":
            return node, 2, 3
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
        dequantize = gathered_dequantize(node)
        if dequantize is None:
            raise SiteError("Gather from integers that nothing dequantises")
        bits = _checked_type(dtype, "Gather")
        step, point, along, real = _parameters(*parameter_inputs(node, operand), (), None)
        return IntegerGrid(dtype, bits, shape, step, point, along, 1, real), len(shape) - 1
    bits = _checked_type(dtype, node.op_type)
    if bits != 8:
        raise SiteError(f"{node.op_type} over {dtype.name}: only words of 8 bits are stored")
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
