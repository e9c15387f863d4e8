"""What the plan of a tensor is put together from: codes, biases, steps, parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from qtaml_onnx.errors import InputError
from qtaml_onnx.storage.codes import UNIFORM_KINDS, Code, uniform_code
from qtaml_onnx.storage.two_words import TWO_WORDS, TwoWordCode

__all__ = [
    "HALF_PRECISION_BITS",
    "INTEGER_TYPES",
    "SECOND_STREAM",
    "BiasPlan",
    "ChannelPart",
    "CodeSpec",
    "PackedWords",
    "PlanValue",
    "QuantizedBias",
    "Steps",
    "StoredWords",
    "WordsType",
    "table_bits",
]

INTEGER_TYPES = {
    **{"INT8": "int8", "UINT8": "uint8", "INT16": "int16", "UINT16": "uint16"},
    **{"INT4": "int8", "UINT4": "uint8"},  # onnxruntime gathers nothing shorter than 8 bits
}
"""By the type of a quantised weight, the NumPy type that holds its integers, in tables as well."""

WordsType = Literal["INT8", "UINT8", "UINT16"]


HALF_PRECISION_BITS = 10
"""Longest word whose table is stored in half precision: its error is well below half a step."""


def table_bits(bits: int) -> int:
    """Bits of a table of real values, one a word."""
    return (16 if bits <= HALF_PRECISION_BITS else 32) << bits


class PlanValue(BaseModel):
    """Part of a plan: immutable, and with no field but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SECOND_STREAM = 1 << 30
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
    """How read words are packed into bytes for MatMulNBits: see `qtaml_onnx.integer_grid.Packing`."""

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
