"""How one tensor is stored and read: code, read-out, scales, protected planes, and its layer's self-correcting bias."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from qtaml_onnx.errors import InputError
from qtaml_onnx.storage.codes import UNIFORM_KINDS, Code, uniform_code
from qtaml_onnx.storage.grouped import GroupedCode
from qtaml_onnx.storage.two_words import LONGEST_PAIR, TWO_WORDS, TwoWordCode, pair_list_bits

__all__ = [
    "BiasPlan",
    "ChannelPart",
    "CodeSpec",
    "PackedWords",
    "PlanValue",
    "QuantizedBias",
    "Steps",
    "StoredWords",
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

Form = Literal["affine", "table", "dequantize", "integer-table", "integer-grid", "two-words"]
WordsType = Literal["INT8", "UINT8", "UINT16"]


HALF_PRECISION_BITS = 10
"""Longest word whose table is stored in half precision: its error is well below half a step."""


def table_bits(bits: int) -> int:
    """Bits of a table of real values, one a word."""
    return (16 if bits <= HALF_PRECISION_BITS else 32) << bits


class PlanValue(BaseModel):
    """Part of a plan: immutable, and with no field but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_SECOND_STREAM = 1 << 30
"""Set in the stream of the second words of a tensor: plans count the streams of the first ones from 0."""


@dataclass(frozen=True)
class StoredWords:
    """An initializer of stored words.

    Attributes:
        name: Of the initializer.
        dtype: Its type.
        bits: Word length.
        stream: Decorrelates its faults from those of others.
        exposed_planes: Bit mask of the planes that flip.
    """

    name: str
    dtype: WordsType
    bits: int
    stream: int
    exposed_planes: int


class CodeSpec(PlanValue):
    """A code; uniform ones are named, others are listed cell by cell (see `Code` for the arrays).

    Of two words a weight (see `TwoWordCode`), `bits` is their sum, `words` are long words and `levels` the means of the
    cells; these alone have `shares`, and the flip rates that the read-out is `designed` for, (p01, p10).
    """

    kind: str
    bits: int
    mask: int = 0
    boundaries: tuple[float, ...] | None = None
    words: tuple[int, ...] | None = None
    levels: tuple[float, ...] | None = None
    shares: tuple[float, ...] | None = None
    designed: tuple[float, float] | None = None

    @model_serializer(mode="wrap")
    def _without_what_others_lack(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what only codes of two words have, so that other plans keep the hash they always had."""
        fields = handler(self)
        return {key: fields[key] for key in fields if self.shares is not None or key not in ("shares", "designed")}

    @classmethod
    def of(cls, code: Code | TwoWordCode) -> CodeSpec:
        """The specification of a code."""
        if isinstance(code, TwoWordCode):
            return cls(
                kind=TWO_WORDS,
                bits=code.bits,
                boundaries=tuple(map(float, code.boundaries)),
                words=tuple(map(int, code.words)),
                levels=tuple(map(float, code.means)),
                shares=tuple(map(float, code.shares)),
                designed=(code.p01, code.p10),
            )
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

    def two_words(self) -> TwoWordCode:
        """The code of two words that is specified."""
        listed = (self.boundaries, self.words, self.shares, self.levels)
        if self.designed is None or any(values is None for values in listed):
            raise InputError("the plan's code of two words lists no cells; make the plan again")
        return pair_code(self)


@lru_cache(maxsize=32)
def pair_code(spec: CodeSpec) -> TwoWordCode:
    """The code of a specification that lists one of two words; remembered, as its table takes a moment to make."""
    p01, p10 = spec.designed or (0.0, 0.0)
    return TwoWordCode(
        spec.bits,
        np.array(spec.boundaries, dtype=np.float64),
        np.array(spec.words, dtype=np.int64),
        np.array(spec.shares, dtype=np.float64),
        np.array(spec.levels, dtype=np.float64),
        p01,
        p10,
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
            `limits`. The model's own steps and zero points stay. `two-words` reads a float weight from two words,
            as table[first word · 2^(bits of the second) + second word]·scale, the table computed from the code.
        words_type: Type of the stored initializer, INT8, UINT8 or UINT16; of two, the type of both.
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
        channel_codes: Of the form `table`, where groups of channels have codes of their own: these codes, `code` being
            the first, and the tables one after the other in `table`; None for one code.
        channel_groups: For each channel the index of its code.
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
    channel_codes: tuple[CodeSpec, ...] | None = None
    channel_groups: tuple[int, ...] | None = None
    readout: str
    protected_planes: tuple[int, ...] = ()
    stream: int
    sensitivity: float | None = None
    noise: float = Field(ge=0)
    signal: float = Field(ge=0)
    bias: BiasPlan | None = None
    part: ChannelPart | None = None

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

    @model_serializer(mode="wrap")
    def _without_what_others_lack(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what only divided tensors have, where there is none: other plans keep their hash."""
        fields = handler(self)
        rare = ("channel_codes", "channel_groups", "part")
        return {key: fields[key] for key in fields if key not in rare or fields[key] is not None}

    @property
    def bits(self) -> int:
        """Word length, of two words together."""
        return self.code.bits

    def grouped_code(self) -> GroupedCode | None:
        """The codes of groups of channels; None where the tensor has one code."""
        if self.channel_codes is None or self.channel_axis is None:
            return None
        codes = tuple(spec.code() for spec in self.channel_codes)
        return GroupedCode(codes, self.channel_groups or (), self.channel_axis)

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
    def word_lengths(self) -> tuple[int, ...]:
        """Bits of each stored word of a weight: one word, or two."""
        return (self.bits - self.bits // 2, self.bits // 2) if self.form == "two-words" else (self.bits,)

    @property
    def words_name(self) -> str:
        """Name of the initializer that holds the stored words, or the first of two."""
        return f"{self.label}.words"

    @property
    def stored_words(self) -> tuple[StoredWords, ...]:
        """The initializers of stored words: one, or two whose faults are independent."""
        first = StoredWords(self.words_name, self.words_type, self.word_lengths[0], self.stream, self.exposed_planes)
        if self.form != "two-words":
            return (first,)
        high, low = self.word_lengths
        return (
            replace(first, exposed_planes=(1 << high) - 1),
            StoredWords(
                f"{self.words_name}.second", self.words_type, low, self.stream | _SECOND_STREAM, (1 << low) - 1
            ),
        )

    @property
    def table_type(self) -> str:
        """ONNX element type in which the table is stored."""
        return "FLOAT16" if self.bits <= HALF_PRECISION_BITS else "FLOAT"

    @property
    def table_bits(self) -> int:
        """Bits of the table, or of the list of cells that the table of two words is computed from."""
        if self.form == "two-words":
            return pair_list_bits(self.code.two_words())
        if self.table is None:
            return 0
        if self.form == "integer-table":
            return (16 if self.dtype in ("INT16", "UINT16") else 8) * len(self.table)
        return table_bits(self.bits) * len(self.channel_codes or (None,))

    @property
    def table_key(self) -> tuple[object, ...]:
        """Equal where tensors can share a table."""
        return (self.form, self.code) if self.form == "two-words" else (self.form == "integer-table", self.table)

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
        if self.form in ("affine", "table", "integer-grid", "two-words"):
            bits += 32 * len(self.scales)
        bits += 8 * len(self.channel_groups or ())
        if self.form == "affine" and self.offset:
            bits += 32
        if self.bias is not None:
            bits += self.bias.metadata_bits
        return bits


def check_tensor(plan: TensorPlan) -> None:
    """Refuses a tensor's plan whose parts do not fit together: a file may say anything."""
    longest, where = LONGEST_PAIR if plan.form == "two-words" else 16, f"'{plan.name}'"
    if (
        not len(plan.word_lengths) <= plan.bits <= longest
        or min(plan.shape, default=1) < 1
        or math.prod(plan.shape) >= 2**48
    ):
        raise InputError(f"{where} has {plan.bits}-bit words of shape {list(plan.shape)}")
    if (plan.form == "two-words") != (plan.code.kind == TWO_WORDS):
        raise InputError(f"{where} has the form {plan.form} and the code {plan.code.kind}")
    if (plan.word_lengths[0] > 8) != (plan.words_type == "UINT16"):
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
    entries = len(plan.channel_codes or (None,)) << plan.bits
    if tabled != (plan.table is not None) or len(plan.table or range(entries)) != entries:
        raise InputError(f"{where} has no table of {entries} entries, or one that its form {plan.form} has not")
    if plan.quantized:
        _check_integers(plan, where)
    if not 0 <= plan.stream < 2**31 or any(not 0 <= plane < plan.bits for plane in plan.protected_planes):
        raise InputError(f"{where} has stream {plan.stream} and protected planes {list(plan.protected_planes)}")
    if plan.form == "two-words":
        if plan.protected_planes or plan.dtype in INTEGER_TYPES:
            raise InputError(f"{where} has two words a weight, and protected planes or the type {plan.dtype}")
        plan.code.two_words()
    else:
        plan.code.code()
    if plan.channel_codes is not None or plan.channel_groups is not None:
        axis, groups, grouped = plan.channel_axis, plan.channel_groups or (), plan.grouped_code()
        fits = axis is not None and 0 <= axis < len(plan.shape) and len(groups) == plan.shape[axis]
        if plan.form != "table" or not fits or grouped is None or grouped.bits != plan.bits:
            raise InputError(f"{where} has codes of groups of channels that do not fit its form, shape or word length")


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
