"""Algebra of the block codes behind the protection schemes: how they are built and how their codewords are spread."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations

from qtaml_onnx.errors import InputError

__all__ = ["bch_parity", "secded_columns", "weight_distribution"]


@lru_cache(maxsize=64)
def secded_columns(n: int, k: int) -> tuple[int, ...]:
    """Parity-check columns of an odd-weight-column SEC-DED code (Hsiao, IBM J. Res. Dev. 14, 1970).

    Integers of n − k bits: the data bits' columns first, then the unit columns of the check bits.

    Raises:
        InputError: n − k check bits are too few for k data bits.
    """
    checks = n - k
    weights = range(3, checks + 1, 2)
    odd = (sum(1 << bit for bit in bits) for weight in weights for bits in combinations(range(checks), weight))
    data = [column for _, column in zip(range(k), odd, strict=False)]
    if k < 1 or len(data) < k:
        raise InputError(
            f"secded-{n}-{k}: {checks} parity bits protect at most {max(0, 2 ** (checks - 1) - checks)} bits"
        )
    return (*data, *(1 << bit for bit in range(checks)))


@lru_cache(maxsize=64)
def weight_distribution(n: int, k: int) -> tuple[int, ...]:
    """Codewords of each weight of the SEC-DED code, exact, from its dual's 2^(n−k) words by MacWilliams' identity."""
    dual = [0] * (n + 1)
    columns = secded_columns(n, k)
    for word in range(1 << (n - k)):
        dual[sum((word & column).bit_count() & 1 for column in columns)] += 1
    distribution = []
    for weight in range(n + 1):
        total = 0
        for height, number in enumerate(dual):
            if number:
                terms = (
                    (-1) ** s * math.comb(height, s) * math.comb(n - height, weight - s) for s in range(weight + 1)
                )
                total += number * sum(terms)  # Krawtchouk polynomial of degree `weight` at `height`
        distribution.append(total >> (n - k))
    return tuple(distribution)


@lru_cache(maxsize=256)
def bch_parity(n: int, t: int) -> int:
    """Parity bits of the primitive narrow-sense binary BCH code of length up to 2^m − 1 ≥ n that corrects t errors.

    The number of powers of α among the conjugates of α, α³ … α^(2t−1): the degree of the generator polynomial
    (Hocquenghem 1959, Bose & Ray-Chaudhuri 1960).
    """
    full = (1 << n.bit_length()) - 1  # 2^m − 1, the primitive length at or above n
    roots = {(odd << power) % full for odd in range(1, 2 * t, 2) for power in range(n.bit_length())}
    return len(roots)
