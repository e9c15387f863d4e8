"""Encoders and decoders of the codes that `qtaml_onnx.protection` names, for many blocks at once.

The decoders do what qtaml_readout.c does, bit for bit, on blocks that cannot be corrected as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.block_codes import secded_columns
from qtaml_onnx.errors import InputError
from qtaml_onnx.firmware.bch import BchField, bch_field, generator_rows
from qtaml_onnx.firmware.layout import Bits
from qtaml_onnx.firmware.ldpc import LdpcCode, ldpc_code
from qtaml_onnx.protection import Bch, Ldpc, ParityNulling, Protection, Repetition, SecDed

__all__ = ["BchCoder", "Coder", "Corrected", "LdpcCoder", "ParityCoder", "RepetitionCoder", "SecDedCoder", "coder_of"]

_BLOCKS = 4096  # decoded together: bounds the memory of the syndromes


@dataclass(frozen=True)
class Corrected:
    """What a decoder made of a tensor's protected bits.

    Attributes:
        data: The bits after correction, uint8 [bits].
        corrected_bits: Stored bits that were set right, parity bits included.
        failed: For each block, whether errors were detected and not corrected.
    """

    data: Bits
    corrected_bits: int
    failed: NDArray[np.bool_]


class Coder(ABC):
    """A systematic code on the protected bits of a tensor."""

    data_bits: int
    parity_bits: int

    def parity_size(self, size: int) -> int:
        """Parity bits of `size` data bits."""
        return -(-size // self.data_bits) * self.parity_bits

    @abstractmethod
    def encode(self, data: Bits) -> Bits:
        """The parity bits, uint8 [parity_size], of data bits, uint8 [size]."""

    @abstractmethod
    def correct(self, data: Bits, parity: Bits) -> Corrected:
        """Corrects data bits by their parity bits, both as read."""

    def _blocks(self, data: Bits) -> Bits:
        """Data bits by block, uint8 [blocks, data_bits], the last one filled with zeros."""
        blocks = np.zeros((-(-data.size // self.data_bits), self.data_bits), np.uint8)
        blocks.reshape(-1)[: data.size] = data
        return blocks


class _BlockCoder(Coder):
    """A code that works block by block, in chunks of blocks."""

    def encode(self, data: Bits) -> Bits:
        blocks = self._blocks(data)
        chunks = [self._encode(blocks[start : start + _BLOCKS]) for start in range(0, len(blocks), _BLOCKS)]
        return np.concatenate([chunk.reshape(-1) for chunk in chunks]) if chunks else np.zeros(0, np.uint8)

    def correct(self, data: Bits, parity: Bits) -> Corrected:
        blocks, checks = self._blocks(data), parity.reshape(-1, self.parity_bits)
        kept = np.full(len(blocks), self.data_bits)
        kept[-1:] = data.size - (len(blocks) - 1) * self.data_bits
        corrected, failed = 0, np.zeros(len(blocks), np.bool_)
        for start in range(0, len(blocks), _BLOCKS):
            part = slice(start, start + _BLOCKS)
            words, failed[part] = self._correct(blocks[part], checks[part], kept[part])
            stored = np.arange(self.data_bits) < kept[part, None]
            corrected += int((words[:, : self.data_bits] != blocks[part])[stored].sum())
            corrected += int((words[:, self.data_bits :] != checks[part]).sum())
            blocks[part] = words[:, : self.data_bits]
        return Corrected(blocks.reshape(-1)[: data.size], corrected, failed)

    @abstractmethod
    def _encode(self, blocks: Bits) -> Bits:
        """Parity bits [blocks, parity_bits] of data bits [blocks, data_bits]."""

    @abstractmethod
    def _correct(self, data: Bits, parity: Bits, kept: NDArray[np.int_]) -> tuple[Bits, NDArray[np.bool_]]:
        """Code words [blocks, data_bits + parity_bits] and failures; `kept` data bits of each block are stored."""


class RepetitionCoder(Coder):
    """Copies, read by majority."""

    def __init__(self, copies: int) -> None:
        """Takes the number of copies, the first one included."""
        self.copies = copies
        self.data_bits, self.parity_bits = 1, copies - 1

    def encode(self, data: Bits) -> Bits:
        """The other copies, one after the other."""
        return np.tile(data, self.copies - 1)

    def correct(self, data: Bits, parity: Bits) -> Corrected:
        """Takes the majority."""
        read = np.concatenate([data, parity]).reshape(self.copies, -1)
        majority = (2 * read.sum(axis=0, dtype=np.int32) > self.copies).astype(np.uint8)
        return Corrected(majority, int((read != majority).sum()), np.zeros(data.size, np.bool_))


class SecDedCoder(_BlockCoder):
    """Hsiao's code: single errors corrected, double errors detected."""

    def __init__(self, n: int, k: int) -> None:
        """Takes the length and the data bits."""
        self.data_bits, self.parity_bits = k, n - k
        self.columns = np.array(secded_columns(n, k))
        self._position = np.full(1 << (n - k), -1)
        self._position[self.columns] = np.arange(n)

    def _syndromes(self, bits: Bits, columns: NDArray[np.int_]) -> NDArray[np.int_]:
        return np.asarray(np.bitwise_xor.reduce(np.where(bits == 1, columns, 0), axis=1))

    def _encode(self, blocks: Bits) -> Bits:
        syndromes = self._syndromes(blocks, self.columns[: self.data_bits])
        return (syndromes[:, None] >> np.arange(self.parity_bits) & 1).astype(np.uint8)

    def _correct(self, data: Bits, parity: Bits, kept: NDArray[np.int_]) -> tuple[Bits, NDArray[np.bool_]]:
        words = np.concatenate([data, parity], axis=1)
        syndromes = self._syndromes(words, self.columns)
        position = self._position[syndromes]
        mendable = (position >= 0) & ((position < kept) | (position >= self.data_bits)) & (syndromes != 0)
        words[mendable, position[mendable]] ^= 1
        return words, (syndromes != 0) & ~mendable


class ParityCoder(_BlockCoder):
    """One parity bit a block, which detects an odd number of errors and corrects none."""

    def __init__(self, k: int) -> None:
        """Takes the data bits."""
        self.data_bits, self.parity_bits = k, 1

    def _encode(self, blocks: Bits) -> Bits:
        return np.asarray(np.bitwise_xor.reduce(blocks, axis=1)[:, None])

    def _correct(self, data: Bits, parity: Bits, kept: NDArray[np.int_]) -> tuple[Bits, NDArray[np.bool_]]:
        words = np.concatenate([data, parity], axis=1)
        return words, np.bitwise_xor.reduce(words, axis=1) == 1


class BchCoder(_BlockCoder):
    """A primitive or shortened narrow-sense BCH code, decoded up to t errors. Unused parity bits are zero.

    Coefficients of the code word's polynomial: parity bit i belongs to x^i, data bit i to x^(roots + i).
    """

    def __init__(self, n: int, k: int, t: int) -> None:
        """Takes length, data bits and correctable errors."""
        self.data_bits, self.parity_bits, self.errors = k, n - k, t
        self.field: BchField = bch_field(n, t)
        self._rows = generator_rows(n, k, t)

    def _encode(self, blocks: Bits) -> Bits:
        parity = np.zeros((len(blocks), self.parity_bits), np.uint8)
        sums = blocks.astype(np.float32) @ self._rows  # exact: at most 2^13 ones
        parity[:, : self.field.roots] = sums.astype(np.int32) & 1
        return parity

    def _correct(self, data: Bits, parity: Bits, kept: NDArray[np.int_]) -> tuple[Bits, NDArray[np.bool_]]:
        roots = self.field.roots
        flips, failed = self.field.errors_of(np.concatenate([parity[:, :roots], data], axis=1), roots + kept)
        words = np.concatenate([data ^ flips[:, roots:], parity], axis=1)
        words[:, self.data_bits : self.data_bits + roots] ^= flips[:, :roots]
        return words, failed


class LdpcCoder(_BlockCoder):
    """A regular low-density parity-check code, decoded by sum-product with integer messages.

    Attributes:
        prior: Log-likelihood ratio of a bit as read, in eighths: of the rate that the plan is designed for.
    """

    def __init__(self, j: int, k: int, raw_rate: float) -> None:
        """Takes the family and the rate at which bits flip."""
        self.code: LdpcCode = ldpc_code(j, k)
        self.data_bits, self.parity_bits = self.code.data_bits, self.code.parity_bits
        self.prior = ldpc_prior(raw_rate)

    def _encode(self, blocks: Bits) -> Bits:
        return self.code.encode(blocks)

    def _correct(self, data: Bits, parity: Bits, kept: NDArray[np.int_]) -> tuple[Bits, NDArray[np.bool_]]:
        return self.code.decode(data, parity, kept, self.prior)


def ldpc_prior(raw_rate: float) -> int:
    """8 ln((1 − p)/p), rounded, between 1 and 127."""
    p = min(max(raw_rate, 1e-9), 0.5 - 1e-9)
    return int(np.clip(np.rint(8 * np.log((1 - p) / p)), 1, 127))


_MAX_FIELD_BITS = 13
_MAX_ERRORS = 64


def coder_of(scheme: Protection, raw_rate: float) -> Coder | None:
    """The coder of a scheme; None where protected bits are taken to be safe by themselves.

    Args:
        scheme: The protection of the plan.
        raw_rate: Mean flip rate that it is designed for; an LDPC decoder weighs what it reads by it.

    Raises:
        InputError: the code is larger than the C reader takes.
    """
    match scheme:
        case Repetition(n):
            return RepetitionCoder(n)
        case SecDed(n, k):
            return SecDedCoder(n, k)
        case ParityNulling(k):
            return ParityCoder(k)
        case Bch(n, k, t):
            if n.bit_length() > _MAX_FIELD_BITS or t > _MAX_ERRORS:
                raise InputError(
                    f"{scheme.name}: the C reader takes BCH codes of up to {(1 << _MAX_FIELD_BITS) - 1} bits and "
                    f"{_MAX_ERRORS} errors; harden with a shorter one"
                )
            return _bch_coder(n, k, t)
        case Ldpc(j, k):
            return LdpcCoder(j, k, raw_rate)
    return None


@lru_cache(maxsize=8)
def _bch_coder(n: int, k: int, t: int) -> BchCoder:
    return BchCoder(n, k, t)
