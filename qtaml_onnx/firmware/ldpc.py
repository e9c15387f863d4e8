"""Regular LDPC codes of 10,000 bits (Gallager 1963): a fixed graph a family, its encoder, and an integer decoder.

The graph is part of the image format: a random (j, k)-regular bipartite graph without cycles of length 4, drawn by a
generator that is defined here, so that it is the same everywhere and for ever.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["LENGTH", "LdpcCode", "box_plus", "ldpc_code"]

LENGTH = 10_000
ROUNDS = 200
LIMIT = 127
"""Largest magnitude of a message, in eighths of a log-likelihood ratio."""

_WORDS = 32  # decoded together
CORRECTION = np.zeros(4 * LIMIT, np.int16)
"""8 ln(1 + exp(−x/8)), rounded, of x = 0, 1, 2 …"""
CORRECTION[:] = np.rint(8 * np.log1p(np.exp(-np.arange(len(CORRECTION)) / 8)))

Bits = NDArray[np.uint8]
Messages = NDArray[np.int16]


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014)."""
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def regular_graph(j: int, k: int) -> NDArray[np.int64]:
    """Variables of each check, int64 [LENGTH·j/k, k], ascending: j checks a variable, no two share two variables."""
    edges = LENGTH * j
    order = np.argsort(_mix(np.arange(edges, dtype=np.uint64) + np.uint64(j << 48 | k << 40)), kind="stable")
    sockets = np.repeat(np.arange(LENGTH), j)[order]
    draws = 0
    left, right = np.triu_indices(k, 1)
    while True:
        checks = np.sort(sockets.reshape(-1, k), axis=1)
        pairs = (checks[:, left] * LENGTH + checks[:, right]).ravel()
        _, first = np.unique(pairs, return_index=True)
        offending = np.ones(len(pairs), dtype=bool)
        offending[first] = False
        offending |= (checks[:, left] == checks[:, right]).ravel()
        bad = np.unique(np.flatnonzero(offending) // len(left))
        if not bad.size:
            return checks
        sockets = checks.ravel().copy()
        count = np.arange(draws, draws + 2 * bad.size, dtype=np.uint64) + np.uint64(j << 48 | k << 40 | 1 << 32)
        here, there = _mix(count).reshape(2, -1)
        draws += 2 * bad.size
        for check, one, other in zip(bad, here % np.uint64(k), there % np.uint64(edges), strict=True):
            a, b = check * k + int(one), int(other)
            sockets[[a, b]] = sockets[[b, a]]


@dataclass(frozen=True)
class LdpcCode:
    """A code whose words are data bits, then parity bits.

    Attributes:
        checks: Variables of each check, uint16 [parity_bits, k].
        triangle: The parity checks brought into triangular form, as variables of each row; row i gives `solved[i]`.
        solved: Parity positions in the order in which they can be computed.
        degree: j, checks a variable.
    """

    checks: NDArray[np.uint16]
    triangle: tuple[NDArray[np.int64], ...]
    solved: NDArray[np.int64]
    degree: int

    @property
    def parity_bits(self) -> int:
        """Checks, and so parity bits, of a block."""
        return len(self.checks)

    @property
    def data_bits(self) -> int:
        """Data bits of a block."""
        return LENGTH - self.parity_bits

    @property
    def sha256(self) -> str:
        """SHA-256 of the checks as little-endian 16-bit integers."""
        return hashlib.sha256(self.checks.astype("<u2").tobytes()).hexdigest()

    def encode(self, data: Bits) -> Bits:
        """Parity bits, uint8 [blocks, parity_bits], of data bits, uint8 [blocks, data_bits]."""
        blocks = len(data)
        lanes = np.zeros((LENGTH, -(-blocks // 8)), np.uint8)  # eight blocks a byte
        lanes[: self.data_bits] = np.packbits(data.T, axis=1)
        for position, row in zip(self.solved, self.triangle, strict=True):
            lanes[position] = np.bitwise_xor.reduce(lanes[row], axis=0)
        return np.unpackbits(lanes[self.data_bits :], axis=1, count=blocks).T.copy()

    def decode(self, data: Bits, parity: Bits, kept: NDArray[np.int_], prior: int) -> tuple[Bits, NDArray[np.bool_]]:
        """Sum-product decoding with integer messages; what is decided after 200 rounds, if it is no code word.

        Args:
            data: uint8 [blocks, data_bits] as read.
            parity: uint8 [blocks, parity_bits] as read.
            kept: Data bits of each block that are stored; the others are zeros for certain.
            prior: Log-likelihood ratio of a stored bit, in eighths.

        Returns:
            Code words, uint8 [blocks, LENGTH], zero where nothing is stored, and which blocks are none.
        """
        words = np.concatenate([data, parity], axis=1)
        failed = np.zeros(len(words), np.bool_)
        position = np.arange(LENGTH)
        for start in range(0, len(words), _WORDS):
            part = slice(start, start + _WORDS)
            absent = (position >= kept[part, None]) & (position < self.data_bits)
            channel = np.where(words[part] == 1, -prior, prior).astype(np.int16)
            channel[absent] = LIMIT
            decided, failed[part] = self._decode(np.ascontiguousarray(channel.T))
            decided[absent] = 0
            words[part] = decided
        return words, failed

    def _decode(self, channel: Messages) -> tuple[Bits, NDArray[np.bool_]]:
        """Decodes int16 [LENGTH, words] likelihoods; gives uint8 [words, LENGTH]."""
        number, k = self.checks.shape
        edges_of = np.argsort(self.checks.ravel(), kind="stable").reshape(LENGTH, self.degree)
        words = channel.shape[1]
        decided = np.zeros((words, LENGTH), np.uint8)
        failed = np.ones(words, np.bool_)
        active = np.arange(words)
        messages = np.zeros((number, k, words), np.int16)
        for round_ in range(ROUNDS + 1):
            flat = messages.reshape(number * k, -1)
            totals = channel[:, active] + sum(flat[edges_of[:, slot]] for slot in range(self.degree))
            ones = totals < 0
            decided[active] = ones.T
            opened = np.bitwise_xor.reduce(ones[self.checks], axis=1).any(axis=0)
            failed[active] = opened
            if not opened.any() or round_ == ROUNDS:
                break
            active, totals, messages = active[opened], totals[:, opened], messages[:, :, opened]
            messages = self._round(np.clip(totals[self.checks] - messages, -LIMIT, LIMIT))
        return decided, failed

    def _round(self, incoming: Messages) -> Messages:
        """What checks answer: of each variable, the sum of the others' bits."""
        k = incoming.shape[1]
        before, behind = incoming.copy(), incoming.copy()
        for position in range(1, k - 1):
            before[:, position] = box_plus(before[:, position - 1], incoming[:, position])
            behind[:, -position - 1] = box_plus(incoming[:, -position - 1], behind[:, -position])
        out = np.empty_like(incoming)
        out[:, 0], out[:, -1] = behind[:, 1], before[:, -2]
        for position in range(1, k - 1):
            out[:, position] = box_plus(before[:, position - 1], behind[:, position + 1])
        return out


def box_plus(a: Messages, b: Messages) -> Messages:
    """Log-likelihood ratio of the sum of two bits, in eighths (Hu et al., IEEE GLOBECOM 2001), int16."""
    least = np.minimum(np.abs(a), np.abs(b))
    signed = np.where((a < 0) != (b < 0), -least, least)
    exact = signed + CORRECTION[np.abs(a + b)] - CORRECTION[np.abs(a - b)]
    return np.asarray(np.clip(exact, -LIMIT, LIMIT))


@lru_cache(maxsize=3)
def ldpc_code(j: int, k: int) -> LdpcCode:
    """The code of a family; its encoder takes some seconds to make."""
    checks = regular_graph(j, k)
    number = len(checks)
    rows = np.zeros((number, LENGTH), np.uint8)
    rows[np.arange(number)[:, None], checks] = 1
    packed = np.zeros((number, -(-LENGTH // 64) * 8), np.uint8)
    packed[:, : LENGTH // 8] = np.packbits(rows, axis=1, bitorder="little")
    lanes = packed.view("<u8")
    pivots = _eliminate(lanes)
    free = np.setdiff1d(np.arange(LENGTH), pivots)
    # Data bits come first. Of dependent checks each leaves a parity bit that nothing decides: it stays zero.
    order = np.concatenate([free[: LENGTH - number], free[LENGTH - number :], pivots])
    place = np.empty(LENGTH, np.int64)
    place[order] = np.arange(LENGTH)
    triangle = []
    for row, pivot in zip(lanes[: len(pivots)], pivots, strict=True):
        members = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        triangle.append(place[members[members != pivot]])
    relabelled = np.sort(place[checks], axis=1).astype(np.uint16)
    return LdpcCode(relabelled, tuple(triangle[::-1]), place[pivots[::-1]], j)


def _eliminate(lanes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Brings bit rows, uint64 [rows, lanes], into echelon form in place; the columns of its pivots."""
    pivots: list[int] = []
    for column in range(64 * lanes.shape[1]):
        lane, shift = divmod(column, 64)
        rank = len(pivots)
        holders = rank + np.flatnonzero(lanes[rank:, lane] >> np.uint64(shift) & np.uint64(1))
        if not holders.size:
            continue
        first = holders[0]
        if first != rank:
            lanes[[rank, first]] = lanes[[first, rank]]
        lanes[holders[1:], lane:] ^= lanes[rank, lane:]
        pivots.append(column)
        if len(pivots) == len(lanes):
            break
    return np.array(pivots, dtype=np.int64)
