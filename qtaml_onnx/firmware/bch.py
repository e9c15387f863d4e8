"""Binary BCH codes: generator, encoding matrix, and bounded-distance decoding of many words at once.

Primitive narrow-sense codes of length 2^m − 1, shortened to what is asked for (Hocquenghem 1959, Bose &
Ray-Chaudhuri 1960); syndromes, Berlekamp (1968) and Massey (1969), and Chien's search (1964).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["BchField", "bch_field", "generator_polynomial", "generator_rows"]

Ints = NDArray[np.int64]

# Primitive polynomials of degree 2 to 16 over GF(2), the ones of least weight (Peterson & Weldon 1972); bit i is x^i.
_PRIMITIVE = {
    2: 0x7,
    3: 0xB,
    4: 0x13,
    5: 0x25,
    6: 0x43,
    7: 0x89,
    8: 0x11D,
    9: 0x211,
    10: 0x409,
    11: 0x805,
    12: 0x1053,
    13: 0x201B,
    14: 0x4443,
    15: 0x8003,
    16: 0x1100B,
}


@dataclass(frozen=True)
class BchField:
    """GF(2^m) and what decoding needs.

    Attributes:
        order: 2^m − 1.
        power: α^i for i below `order`, int64.
        log: Its inverse, int64 [2^m]; entry 0 is 0 and means nothing.
        errors: t.
        roots: Degree of the generator polynomial.
    """

    order: int
    power: Ints
    log: Ints
    errors: int
    roots: int

    def times(self, a: Ints, b: Ints) -> Ints:
        """Products, elementwise."""
        return np.where((a == 0) | (b == 0), 0, self.power[(self.log[a] + self.log[b]) % self.order])

    def over(self, a: Ints, b: Ints) -> Ints:
        """Quotients, elementwise; `b` is not 0."""
        return np.where(a == 0, 0, self.power[(self.log[a] - self.log[b]) % self.order])

    def errors_of(
        self, words: NDArray[np.uint8], kept: NDArray[np.int_]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The wrong bits of received words, and which words have more than can be corrected.

        Args:
            words: uint8 [blocks, positions], the coefficient of x^i at i.
            kept: Positions of each word that exist; errors beyond are none.

        Returns:
            uint8 [blocks, positions], 1 where a bit is wrong, 0 throughout a word that fails; and bool [blocks].
        """
        flips = np.zeros_like(words)
        failed = np.zeros(len(words), np.bool_)
        syndromes = self._syndromes(words)
        wrong = np.flatnonzero(syndromes.any(axis=1))
        if not wrong.size:
            return flips, failed
        locator, length = self._locators(syndromes[wrong])
        found = np.zeros((wrong.size, words.shape[1]), np.uint8)
        inverse = (-np.arange(words.shape[1])) % self.order
        for row in range(wrong.size):
            if length[row] <= self.errors:
                terms = np.flatnonzero(locator[row, : length[row] + 1])
                index = (self.log[locator[row, terms]][:, None] + terms[:, None] * inverse) % self.order
                found[row] = np.bitwise_xor.reduce(self.power[index], axis=0) == 0
        found[np.arange(words.shape[1]) >= kept[wrong, None]] = 0
        good = (length <= self.errors) & (found.sum(axis=1) == length)
        flips[wrong[good]] = found[good]
        failed[wrong[~good]] = True
        return flips, failed

    def _syndromes(self, words: NDArray[np.uint8]) -> Ints:
        """S_1 … S_2t, int64 [blocks, 2t]."""
        syndromes = np.zeros((len(words), 2 * self.errors), np.int64)
        positions = np.arange(words.shape[1])
        ones = words == 1
        for j in range(1, 2 * self.errors, 2):
            powers = self.power[j * positions % self.order]
            syndromes[:, j - 1] = np.bitwise_xor.reduce(np.where(ones, powers, 0), axis=1)
        for j in range(1, self.errors + 1):
            syndromes[:, 2 * j - 1] = self.times(syndromes[:, j - 1], syndromes[:, j - 1])
        return syndromes

    def _locators(self, syndromes: Ints) -> tuple[Ints, Ints]:
        """Berlekamp and Massey for all words at once: int64 [blocks, 2t + 1] and the lengths of the recurrences."""
        rows, room = len(syndromes), 2 * self.errors + 1
        locator, before = np.zeros((rows, room), np.int64), np.zeros((rows, room), np.int64)
        locator[:, 0] = before[:, 0] = 1
        length, last = np.zeros(rows, np.int64), np.ones(rows, np.int64)
        for n in range(2 * self.errors):
            before = np.roll(before, 1, axis=1)  # times x; its degree stays below room
            discrepancy = syndromes[:, n].copy()
            for i in range(1, n + 1):
                discrepancy ^= self.times(locator[:, i], syndromes[:, n - i])
            factor = self.over(discrepancy, last)
            longer = (discrepancy != 0) & (2 * length <= n)
            kept = locator
            locator = locator ^ self.times(np.broadcast_to(factor[:, None], before.shape), before)
            before = np.where(longer[:, None], kept, before)
            length = np.where(longer, n + 1 - length, length)
            last = np.where(longer, discrepancy, last)
        return locator, length


@lru_cache(maxsize=32)
def bch_field(n: int, t: int) -> BchField:
    """The field of the code of length up to n that corrects t errors, n at most 2^16 − 1."""
    degree = n.bit_length()
    order = (1 << degree) - 1
    power = np.zeros(order, np.int64)
    log = np.zeros(order + 1, np.int64)
    element = 1
    for i in range(order):
        power[i], log[element] = element, i
        element <<= 1
        if element > order:
            element ^= _PRIMITIVE[degree]
    return BchField(order, power, log, t, generator_polynomial(n, t).bit_length() - 1)


@lru_cache(maxsize=32)
def generator_polynomial(n: int, t: int) -> int:
    """The product of the minimal polynomials of α, α³ … α^(2t−1); bit i is the coefficient of x^i."""
    degree = n.bit_length()
    order = (1 << degree) - 1
    power, log = [1] * order, {1: 0}
    for i in range(1, order):
        value = power[i - 1] << 1
        power[i] = value ^ _PRIMITIVE[degree] if value > order else value
        log[power[i]] = i
    generator = 1
    done: set[int] = set()
    for odd in range(1, 2 * t, 2):
        conjugates = {(odd << shift) % order for shift in range(degree)}
        if done & conjugates:
            continue
        done |= conjugates
        minimal = [1]  # coefficients in GF(2^m), constant first: Π (x + α^c)
        for root in sorted(conjugates):
            shifted = [0, *minimal]
            for i, value in enumerate(minimal):
                shifted[i] ^= power[(log[value] + root) % order] if value else 0
            minimal = shifted
        factor = sum(1 << i for i, value in enumerate(minimal) if value)
        product = 0
        for i in range(factor.bit_length()):
            product ^= generator << i if factor >> i & 1 else 0
        generator = product
    return generator


def generator_rows(n: int, k: int, t: int) -> NDArray[np.float32]:
    """Parity bits of each data bit alone, x^(roots + i) mod g: float32 [k, roots] of zeros and ones."""
    generator = generator_polynomial(n, t)
    roots = generator.bit_length() - 1
    rows = np.zeros((k, roots), np.float32)
    rest = generator ^ 1 << roots
    for i in range(k):
        rows[i] = [rest >> bit & 1 for bit in range(roots)]
        rest <<= 1
        if rest >> roots:
            rest ^= generator
    return rows
