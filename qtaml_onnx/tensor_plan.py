"""How one tensor is stored and read: code, read-out, scales, protected planes, and its layer's self-correcting bias."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from qtaml_onnx.plan_values import (
    HALF_PRECISION_BITS,
    INTEGER_TYPES,
    SECOND_STREAM,
    BiasPlan,
    ChannelPart,
    CodeSpec,
    PackedWords,
    PlanValue,
    Steps,
    StoredWords,
    WordsType,
    table_bits,
)
from qtaml_onnx.storage.grouped import GroupedCode
from qtaml_onnx.storage.two_words import pair_list_bits

__all__ = ["Form", "TensorPlan", "table_array"]

Form = Literal["affine", "table", "dequantize", "integer-table", "integer-grid", "two-words"]


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
            StoredWords(f"{self.words_name}.second", self.words_type, low, self.stream | SECOND_STREAM, (1 << low) - 1),
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


def table_array(plan: TensorPlan) -> NDArray[np.generic]:
    """The table in the type in which it is stored."""
    if plan.form == "integer-table":
        return np.asarray(plan.table, dtype=INTEGER_TYPES[plan.dtype])
    return np.asarray(plan.table, dtype=np.float16 if plan.table_type == "FLOAT16" else np.float32)
