"""How one tensor is stored and read: code, read-out, scales, protected planes, and its layer's self-correcting bias."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from qtaml_onnx.errors import InputError
from qtaml_onnx.storage.codes import UNIFORM_KINDS, Code, uniform_code

__all__ = [
    "BiasPlan",
    "ChannelPart",
    "CodeSpec",
    "PackedWords",
    "PlanValue",
    "QuantizedBias",
    "Steps",
    "TensorPlan",
    "check_tensor",
    "table_array",
    "table_bits",
]

INTEGER_TYPES = {
    **{"INT8": "int8", "UINT8": "uint8", "INT16": "int16", "UINT16": "uint16"},
    **{"INT4": "int8", "UINT4": "uint8"},  # onnxruntime gathers nothing shorter than 8 bits
}
"""By the type of a quantised weight, the NumPy type that holds its integers, in tables as well."""

Form = Literal["affine", "table", "dequantize", "integer-table", "integer-grid"]
WordsType = Literal["INT8", "UINT8", "UINT16"]


HALF_PRECISION_BITS = 10
"""Longest word whose table is stored in half precision: its error is well below half a step."""


def table_bits(bits: int) -> int:
    """Bits of a table of real values, one a word."""
    return (16 if bits <= HALF_PRECISION_BITS else 32) << bits


class PlanValue(BaseModel):
    """Part of a plan: immutable, and with no field but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CodeSpec(PlanValue):
    """A code; uniform ones are named, others are listed cell by cell (see `Code` for the arrays)."""

    kind: str
    bits: int
    mask: int = 0
    boundaries: tuple[float, ...] | None = None
    words: tuple[int, ...] | None = None
    levels: tuple[float, ...] | None = None

    @classmethod
    def of(cls, code: Code) -> CodeSpec:
        """The specification of a code."""
        kind, _, mask = code.name.partition("^")
        if kind in UNIFORM_KINDS:
            return cls(kind=kind, bits=code.bits, mask=int(mask, 16) if mask else 0)
        return cls(
            kind=code.name,
            bits=code.bits,
            boundaries=tuple(map(float, code.boundaries)),
            words=tuple(map(int, code.words)),
            levels=tuple(map(float, code.levels)),
        )

    def code(self) -> Code:
        """The code that is specified."""
        if self.kind in UNIFORM_KINDS:
            return uniform_code(self.kind, self.bits, self.mask)
        if self.boundaries is None or self.words is None or self.levels is None:
            raise InputError(f"the plan's code '{self.kind}' lists no cells; make the plan again")
        return Code(
            self.kind, self.bits, np.array(self.boundaries), np.array(self.words, dtype=np.int64), np.array(self.levels)
        )


class QuantizedBias(PlanValue):
    """A bias that corrects itself from integers: `bias = target − scale · Σ (integer − zero point) · x̄ · coverage`.

    Attributes:
        rounded: Whether the bias is stored in 32-bit integers, in units of x_scale · w_scale: the target and the sum
            are in these units, and the result is rounded.
        zero_points: What the weights' integers are counted from: one, or one a channel.
        zero_shape: Shape in which they broadcast against the weights.
        scales: Where the bias is a float, the weights' steps: one, or one an output channel; else empty.
        step: Where the model had no bias and gets a rounded one behind a DequantizeLinear, that operator's scales.
    """

    rounded: bool
    zero_points: tuple[int, ...] = (0,)
    zero_shape: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    step: tuple[float, ...] = ()

    @property
    def metadata_bits(self) -> int:
        """Bits of the copies of zero points and steps that the correction reads."""
        points = 32 * len(self.zero_points) if any(self.zero_points) else 0
        return points + 32 * (len(self.scales) + len(self.step))


class PackedWords(PlanValue):
    """How read words are packed into bytes for MatMulNBits: see `qtaml_onnx.quantized.Packing`."""

    bits: int
    shape: tuple[int, int, int]
    filler: int


class Steps(PlanValue):
    """The real numbers that the integers of a quantised weight stand for: (integer − zero point) · step.

    Attributes:
        values: One step, or one a channel.
        axis: Of the channels; None for one step.
        dtype: The ONNX float type of the product.
    """

    values: tuple[float, ...]
    axis: int | None
    dtype: str


class BiasPlan(PlanValue):
    """A bias that corrects itself: the graph computes `bias = target − Σ Ŵ · x̄ · coverage` from the weights as read.

    Attributes:
        output: Name of the value that the layer computes: its operator's output, or that of the Add behind a MatMul.
        mean_input: x̄, the mean of the layer's input a channel, half precision.
        mean_shape: Shape in which x̄ broadcasts against the weights.
        coverage: Share of positions at which a kernel tap meets no padding, half precision; None where all are 1.
        coverage_shape: Shape in which it broadcasts.
        summed_axes: Axes of the weights that are summed over.
        target: c = b + W·x̄ an output channel, float32: it takes the place of the bias.
        grouped_shape: Shape [groups, outputs a group, inputs a group, kernel…] of a grouped convolution's weights.
        has_bias: Whether the model had a bias, whose place the target takes; else it is new.
        quantized: Of a quantised weight, whose integers the sum runs over; None of a float weight.
    """

    output: str
    mean_input: tuple[float, ...]
    mean_shape: tuple[int, ...]
    coverage: tuple[float, ...] | None = None
    coverage_shape: tuple[int, ...] = ()
    summed_axes: tuple[int, ...]
    target: tuple[float, ...]
    grouped_shape: tuple[int, ...] | None = None
    has_bias: bool = True
    quantized: QuantizedBias | None = None

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of the target, and of the sum that is taken from it."""
        return self.grouped_shape[:2] if self.grouped_shape else (len(self.target),)

    @property
    def metadata_bits(self) -> int:
        """Bits that the correction adds to what the model stored before."""
        bits = 16 * (len(self.mean_input) + len(self.coverage or ())) + (0 if self.has_bias else 32 * len(self.target))
        return bits + (self.quantized.metadata_bits if self.quantized else 0)


class ChannelPart(PlanValue):
    """Which output channels of a tensor a plan is of, where they are stored in parts with planes of their own.

    Attributes:
        number: Of the part, from 0. What the parts share (scales of inputs, the layer's bias) is with the first.
        axis: Of the output channels.
        extent: Output channels of the whole tensor.
        channels: Those of this part, ascending.
    """

    number: int
    axis: int
    extent: int
    channels: tuple[int, ...]

    @property
    def order_type(self) -> str:
        """ONNX element type of the place of each channel among the parts' channels."""
        return "UINT8" if self.extent <= 256 else "UINT16"

    @property
    def order_bits(self) -> int:
        """Bits of the places of all channels, stored once for all parts."""
        return ir.DataType[self.order_type].bitwidth * self.extent


class TensorPlan(PlanValue):
    """How one weight tensor, or some output channels of one, is stored and read.

    Attributes:
        name: The tensor, as `inspect` names it.
        op_type: The operator that reads it.
        dtype: The ONNX element type of the constant in the source model: a float type, or the integers of a quantised
            weight; UINT8 of packed words.
        shape: Its shape; of a part, that of its channels alone.
        channel_axis: The axis along which `scales` run; None for a single scale.
        code: The code, on weights divided by their channel's `weight_scales`.
        form: How the graph reads it: `affine` is (word − offset)·scale, `table` is table[word]·scale. The others give
            a quantised model's operators integers in the place of its own: `dequantize` the words themselves,
            `integer-table` table[word], `integer-grid` table[word]·scale + zero point, rounded and kept within
            `limits`. The model's own steps and zero points stay.
        words_type: Type of the stored initializer, INT8, UINT8 or UINT16.
        weight_scales: What weights are divided by before coding, float32, one a channel or one. Of a quantised weight,
            it is integers less the zero point that are divided.
        scales: What the read-out multiplies by, float32, as many.
        input_scales: What weights are divided by before coding and multiplied by after, one an input channel, half
            precision; None for no such scales.
        input_axis: The axis along which `input_scales` run.
        offset: Of the form `affine`, in words.
        table: Of the forms `table` (normalised weights, half precision up to 10-bit words) and `integer-table`
            (integers), one entry a word.
        zero_point: The integer that quantised weights are coded around: their zero point, or the middle of the range
            where channels or blocks have zero points of their own.
        limits: Of the form `integer-grid`: the least and the largest integer of the original.
        packing: Of MatMulNBits: how the integers are packed.
        steps: What the integers stand for; None of a float weight, and where blocks have steps of their own or channels
            have zero points of their own.
        parameter_bits: Bits of the steps and zero points that a quantised model brings along.
        readout: The read-out's kind.
        protected_planes: Planes that never flip or flip at the protection's residual rate.
        stream: Decorrelates the faults of tensors.
        sensitivity: Output noise energy a unit of normalised noise variance (J²N, scales included).
        noise: Predicted mean-square error of a normalised weight as read, quantisation included.
        signal: Mean square of the normalised weights.
        part: Which output channels it is of; None of a whole tensor.
    """

    name: str
    op_type: str
    dtype: str
    shape: tuple[int, ...]
    channel_axis: int | None
    code: CodeSpec
    form: Form
    words_type: WordsType
    weight_scales: tuple[float, ...]
    scales: tuple[float, ...]
    input_scales: tuple[float, ...] | None = None
    input_axis: int | None = None
    offset: float = 0.0
    table: tuple[float, ...] | None = None
    zero_point: int = 0
    limits: tuple[int, int] | None = None
    packing: PackedWords | None = None
    steps: Steps | None = None
    parameter_bits: int = 0
    readout: str
    protected_planes: tuple[int, ...] = ()
    stream: int
    sensitivity: float | None = None
    noise: float = Field(ge=0)
    signal: float = Field(ge=0)
    bias: BiasPlan | None = None
    part: ChannelPart | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Plans of whole tensors read as they did before there were parts, so that their hashes stay."""
        fields: dict[str, Any] = serialise(self)
        if self.part is None:
            fields.pop("part", None)
        return fields

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Shape of the tensor, of which this may be a part."""
        if self.part is None:
            return self.shape
        return (*self.shape[: self.part.axis], self.part.extent, *self.shape[self.part.axis + 1 :])

    @property
    def label(self) -> str:
        """The tensor's name, and the number of the part."""
        return self.name if self.part is None else f"{self.name}.part{self.part.number}"

    @property
    def bits(self) -> int:
        """Word length."""
        return self.code.bits

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def exposed_planes(self) -> int:
        """Bit mask of the planes that flip."""
        mask = (1 << self.bits) - 1
        for plane in self.protected_planes:
            mask &= ~(1 << plane)
        return mask

    @property
    def words_name(self) -> str:
        """Name of the initializer that holds the stored words."""
        return f"{self.label}.words"

    @property
    def table_type(self) -> str:
        """ONNX element type in which the table is stored."""
        return "FLOAT16" if self.bits <= HALF_PRECISION_BITS else "FLOAT"

    @property
    def table_bits(self) -> int:
        """Bits of the table."""
        if self.table is None:
            return 0
        if self.form == "integer-table":
            return (16 if self.dtype in ("INT16", "UINT16") else 8) * len(self.table)
        return table_bits(self.bits)

    @property
    def quantized(self) -> bool:
        """Whether the operator reads integers."""
        return self.form in ("dequantize", "integer-table", "integer-grid")

    @property
    def metadata_bits(self) -> int:
        """Bits beside the words and the table that must themselves be safe: scales, offset, bias correction."""
        first = self.part is None or self.part.number == 0
        bits = self.parameter_bits + (16 * len(self.input_scales or ()) if first else 0)
        if self.part is not None and first:
            bits += self.part.order_bits
        if self.form in ("affine", "table", "integer-grid"):
            bits += 32 * len(self.scales)
        if self.form == "affine" and self.offset:
            bits += 32
        if self.bias is not None:
            bits += self.bias.metadata_bits
        return bits


def check_tensor(plan: TensorPlan) -> None:
    """Refuses a tensor's plan whose parts do not fit together: a file may say anything."""
    longest, where = 16, f"'{plan.name}'"
    if not 1 <= plan.bits <= longest or min(plan.shape, default=1) < 1 or math.prod(plan.shape) >= 2**48:
        raise InputError(f"{where} has {plan.bits}-bit words of shape {list(plan.shape)}")
    if (plan.bits > 8) != (plan.words_type == "UINT16"):
        raise InputError(f"{where} has {plan.bits}-bit words in {plan.words_type}")
    for what, axis, values in (
        ("weight_scales", plan.channel_axis, plan.weight_scales),
        ("scales", plan.channel_axis, plan.scales),
        ("input_scales", plan.input_axis, plan.input_scales),
    ):
        if values is None or len(values) == 1:
            continue
        if axis is None or not 0 <= axis < len(plan.shape) or len(values) != plan.shape[axis]:
            raise InputError(f"{where} has {len(values)} {what} along axis {axis} of shape {list(plan.shape)}")
        if any(value == 0 for value in values) and what != "scales":
            raise InputError(f"{where} has {what} that are 0")
    tabled = plan.form in ("table", "integer-table", "integer-grid")
    if tabled != (plan.table is not None) or len(plan.table or range(1 << plan.bits)) != 1 << plan.bits:
        raise InputError(f"{where} has no table of {1 << plan.bits} entries, or one that its form {plan.form} has not")
    if plan.quantized:
        _check_integers(plan, where)
    if not 0 <= plan.stream < 2**31 or any(not 0 <= plane < plan.bits for plane in plan.protected_planes):
        raise InputError(f"{where} has stream {plan.stream} and protected planes {list(plan.protected_planes)}")
    plan.code.code()


def _check_integers(plan: TensorPlan, where: str) -> None:
    """The same for what the operators of a quantised model read."""
    if plan.dtype not in INTEGER_TYPES or (plan.form != "integer-grid" and plan.bits > 8):
        raise InputError(f"{where} has {plan.bits}-bit words read as integers of type {plan.dtype}")
    packing = plan.packing
    bits = ir.DataType[plan.dtype].bitwidth
    if packing is not None:
        bits = packing.bits
        rows, blocks, size = packing.shape
        room = blocks * size * 8 // bits if bits in (2, 4, 8) and min(packing.shape) > 0 else 0
        if plan.dtype != "UINT8" or len(plan.shape) != 2 or plan.shape[0] != rows or plan.shape[1] > room:
            raise InputError(f"{where} has words of shape {list(plan.shape)} packed as {list(packing.shape)}")
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if plan.dtype.startswith("INT") else (0, (1 << bits) - 1)
    if plan.form == "integer-table" and any(not low <= entry <= high for entry in plan.table or ()):
        raise InputError(f"{where} has a table of integers beyond {bits}-bit {plan.dtype}")
    if not low <= plan.zero_point <= high or (packing is not None and not low <= packing.filler <= high):
        raise InputError(f"{where} has the zero point {plan.zero_point}, beyond {bits}-bit {plan.dtype}")
    if plan.form == "integer-grid" and (plan.limits is None or not low <= plan.limits[0] <= plan.limits[1] <= high):
        raise InputError(f"{where} has the limits {plan.limits}, not within {bits}-bit {plan.dtype}")


def table_array(plan: TensorPlan) -> NDArray[np.generic]:
    """The table in the type in which it is stored."""
    if plan.form == "integer-table":
        return np.asarray(plan.table, dtype=INTEGER_TYPES[plan.dtype])
    return np.asarray(plan.table, dtype=np.float16 if plan.table_type == "FLOAT16" else np.float32)
