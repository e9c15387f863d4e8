"""What the integers of a quantised weight are and stand for: (integer − zero point) · step, and how they are packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.storage.tensor import blocks

__all__ = ["IntegerGrid", "Packing"]

Integers = NDArray[np.int32]
Narrow = NDArray[np.integer]
Floats = NDArray[np.float32]
_Number = TypeVar("_Number", np.int32, np.float32)

_FLOAT: np.dtype[np.generic] = np.dtype(np.float32)
_SIGNED = frozenset({ir.DataType.INT4, ir.DataType.INT8, ir.DataType.INT16})


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
    def blocked(self) -> bool:
        """Whether steps run otherwise than one for all or one an index of `axis`."""
        return self.block > 1 or self.step.ndim > 1

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
