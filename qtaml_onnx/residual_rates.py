"""Bit error rates that codes leave: closed forms, and the simulated points where there is none.

All are of a channel that flips bits independently with probability p, both ways, p in [0, 0.5]. Nothing is checked
here; `protection` has the codes with their names and costs, and refuses what does not exist.
"""

from __future__ import annotations

import csv
import math
from functools import lru_cache
from importlib.resources import files

import numpy as np
from scipy.stats import binom

from qtaml_onnx.block_codes import weight_distribution
from qtaml_onnx.channel import FloatArray

__all__ = [
    "bch_residual",
    "ldpc_families",
    "ldpc_residual",
    "parity_nulled",
    "parity_residual",
    "repetition_residual",
    "secded_residual",
]


def repetition_residual(n: int, p: float) -> float:
    """Majority of ``n`` copies, n odd: P[Binomial(n, p) > n/2], exact."""
    return float(binom.sf(n // 2, n, p))


def secded_residual(n: int, k: int, p: float) -> float:
    """An (n, k) extended Hamming code, miscorrections included; exact, averaged over the codeword's positions.

    Every pattern within one bit of a codeword c of weight w is decoded to c. Of n p wrong bits on average, patterns
    of weight w + 1 lose one and those of weight w − 1 gain one: Σ_w A_w [(n−w) P_{w+1} − w P_{w−1}], where
    P_j = p^j (1−p)^(n−j) and A is the code's weight distribution.
    """
    if p == 0.0:
        return 0.0
    weights = np.arange(1, n + 1)
    codewords = np.array(weight_distribution(n, k)[1:], dtype=np.float64)
    outer = p ** (weights + 1.0) * (1.0 - p) ** (n - weights - 1.0)
    inner = p ** (weights - 1.0) * (1.0 - p) ** (n - weights + 1.0)
    corrected = float(codewords @ ((n - weights) * outer - weights * inner))
    beyond_one = -n * p * math.expm1((n - 1) * math.log1p(-p))  # wrong bits in patterns of two or more errors
    return (beyond_one - corrected) / n


def bch_residual(n: int, k: int, t: int, p: float) -> float:
    """Bounded-distance decoding of t errors: p · P[Binomial(n−1, p) ≥ t], and a bound on what miscorrection adds.

    More than t errors are left as read, unless the pattern lies within t of a wrong codeword: a share of about
    Q = Σ_{i≤t} C(n, i) / 2^(n−k) of them (the density of decoding spheres), each with at most t more wrong bits.
    """
    spheres = math.fsum(math.comb(n, i) / 2 ** (n - k) for i in range(t + 1))
    left = p * float(binom.sf(t - 1, n - 1, p))
    return left + min(1.0, spheres) * t / n * float(binom.sf(t, n, p))


def parity_residual(k: int, p: float) -> float:
    """Wrong bits in words of k bits that pass a parity check: p · P[odd number among the k others], exact.

    That is p (1 − (1−2p)^k)/2 (Gallager 1963, lemma 4.1).
    """
    return p * (1.0 - (1.0 - 2.0 * p) ** k) / 2.0


def parity_nulled(k: int, p: float) -> float:
    """Share of words of k bits that fail a parity check: P[odd number of flips in k + 1 bits], exact."""
    return (1.0 - (1.0 - 2.0 * p) ** (k + 1)) / 2.0


def ldpc_families() -> list[tuple[int, int]]:
    """(checks a bit, bits a check) of the regular codes that were simulated, ascending."""
    return sorted(_ldpc_table())


def ldpc_residual(j: int, k: int, p: float) -> float:
    """Upper 95 % limit of the bit error rate after sum-product decoding, at the next simulated rate at or above p.

    A step function, as interpolation would flatter a waterfall; above the highest simulated rate, the raw rate.

    Args:
        j: Checks a bit.
        k: Bits a check; (j, k) is one of :func:`ldpc_families`.
        p: Raw flip rate.
    """
    rates, limits = _ldpc_table()[j, k].T
    if p > rates[-1]:
        return p
    return min(p, float(limits[np.searchsorted(rates, p) :].min()))


@lru_cache(maxsize=1)
def _ldpc_table() -> dict[tuple[int, int], FloatArray]:
    """Simulated points of each family: columns p and the upper 95 % limit of the residual, ascending p."""
    text = (files("qtaml_onnx.storage") / "ldpc_residuals.csv").read_text(encoding="utf-8")
    points: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for row in csv.DictReader(text.splitlines()):
        points.setdefault((int(row["j"]), int(row["k"])), []).append((float(row["p"]), float(row["ci_high"])))
    return {family: np.array(sorted(rows)) for family, rows in points.items()}
