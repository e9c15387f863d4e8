"""Named protection schemes: what really keeps a bit safe, what it costs and what error rate it leaves.

Every scheme gives the residual bit error rate for a raw rate p (flips independent and symmetric; `residual_rates` has
the formulas) and the parity bits that a number of data bits needs. Where raw flips are asymmetric, storing each bit
XORed with a fixed pseudo-random mask makes the channel symmetric at p = (p01 + p10)/2 (Hou et al., IEEE Trans. Inf.
Theory 49, 2003): give them that mean.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from qtaml_onnx.block_codes import bch_parity, secded_columns
from qtaml_onnx.errors import InputError
from qtaml_onnx.residual_rates import (
    bch_residual,
    ldpc_families,
    ldpc_residual,
    parity_nulled,
    parity_residual,
    repetition_residual,
    secded_residual,
)

__all__ = [
    "AUTO_CANDIDATES",
    "Bch",
    "Ideal",
    "Ldpc",
    "ParityNulling",
    "Protection",
    "Repetition",
    "RobustCell",
    "SecDed",
    "cheapest",
    "scheme",
]


def _rate(p: float) -> float:
    if not 0.0 <= p <= 0.5:
        raise InputError(
            f"raw flip rate {p:g} of a protected bit is outside [0, 0.5]; give a lower rate, or protection ideal"
        )
    return float(p)


class Protection(ABC):
    """A way to keep stored bits safe."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that :func:`scheme` understands."""

    @property
    @abstractmethod
    def block(self) -> tuple[int, int]:
        """(data bits, parity bits) of one codeword."""

    @abstractmethod
    def residual(self, p: float) -> float:
        """Bit error rate after read-out for the raw rate ``p`` in [0, 0.5]; an InputError outside."""

    @property
    def overhead(self) -> float:
        """Parity bits a data bit, in full codewords."""
        data, parity = self.block
        return parity / data

    def parity_bits(self, data_bits: int) -> int:
        """Parity bits for ``data_bits`` data bits; the last codeword is shortened and keeps its full parity."""
        if data_bits < 0:
            raise InputError(f"cannot protect {data_bits} bits")
        data, parity = self.block
        return -(-data_bits // data) * parity


@dataclass(frozen=True)
class Ideal(Protection):
    """Bits that never flip and cost nothing: the reference of published overheads, not a thing that exists."""

    @property
    def name(self) -> str:
        """``ideal``."""
        return "ideal"

    @property
    def block(self) -> tuple[int, int]:
        """No parity."""
        return 1, 0

    def residual(self, p: float) -> float:
        """Zero."""
        _rate(p)
        return 0.0


@dataclass(frozen=True)
class RobustCell(Protection):
    """Bits in better cells (thicker oxide, more electrons), each worth ``cost`` ordinary cells.

    Attributes:
        cost: area of a robust cell over that of an ordinary one, at least 1.
        rate: its own flip rate, in [0, 0.5].
    """

    cost: float
    rate: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        _rate(self.rate)
        if not (math.isfinite(self.cost) and self.cost >= 1.0):
            raise InputError(f"cost factor {self.cost:g} of a robust cell is below 1 or not finite")

    @property
    def name(self) -> str:
        """``robust-COST-RATE``."""
        return f"robust-{self.cost:g}-{self.rate:g}"

    @property
    def block(self) -> tuple[int, int]:
        """Extra cells counted as parity bits, a thousand data bits at a time."""
        return 1000, math.ceil(1000 * (self.cost - 1.0))

    def residual(self, p: float) -> float:
        """The robust cell's own rate, whatever ordinary cells do."""
        _rate(p)
        return self.rate

    def parity_bits(self, data_bits: int) -> int:
        """Extra cells, rounded up."""
        if data_bits < 0:
            raise InputError(f"cannot protect {data_bits} bits")
        return math.ceil(data_bits * (self.cost - 1.0))


@dataclass(frozen=True)
class Repetition(Protection):
    """Every bit stored ``n`` times and read by majority.

    Attributes:
        n: number of copies, odd, at least 3.
    """

    n: int

    def __post_init__(self) -> None:
        """Check n."""
        if self.n < 3 or self.n % 2 == 0:
            raise InputError(f"repetition-{self.n}: the number of copies must be odd and at least 3")

    @property
    def name(self) -> str:
        """``repetition-N``."""
        return f"repetition-{self.n}"

    @property
    def block(self) -> tuple[int, int]:
        """One data bit, n − 1 copies more."""
        return 1, self.n - 1

    def residual(self, p: float) -> float:
        """That of a majority, exact."""
        return repetition_residual(self.n, _rate(p))


@dataclass(frozen=True)
class SecDed(Protection):
    """Extended Hamming code with odd-weight columns (Hsiao, IBM J. Res. Dev. 14, 1970): corrects one error a codeword.

    Detected errors (an even number, or an odd syndrome of no single bit) are left as they are read.

    Attributes:
        n: codeword length, for example 72.
        k: data bits, for example 64.
    """

    n: int = 72
    k: int = 64

    def __post_init__(self) -> None:
        """Check that the code exists and is small enough for its exact weight distribution."""
        if not 3 <= self.n - self.k <= 10:
            raise InputError(f"secded-{self.n}-{self.k}: give 3 to 10 parity bits, for example secded-72-64")
        secded_columns(self.n, self.k)

    @property
    def name(self) -> str:
        """``secded-N-K``."""
        return f"secded-{self.n}-{self.k}"

    @property
    def block(self) -> tuple[int, int]:
        """K data bits, N − K parity bits."""
        return self.k, self.n - self.k

    def residual(self, p: float) -> float:
        """Bit error rate after decoding, miscorrections included; exact."""
        return secded_residual(self.n, self.k, _rate(p))


@dataclass(frozen=True)
class Bch(Protection):
    """Binary BCH code, primitive or shortened, with bounded-distance decoding of up to t errors.

    Attributes:
        n: codeword length.
        k: data bits.
        t: errors corrected; the code must exist (the generator polynomial's degree is computed).
    """

    n: int
    k: int
    t: int

    def __post_init__(self) -> None:
        """Check that the code exists."""
        if not 3 <= self.n < 1 << 16 or not 1 <= self.k < self.n or not 1 <= self.t <= self.n // 2:
            raise InputError(f"{self.name}: no such code; an example is bch-127-64-10")
        needed = bch_parity(self.n, self.t)
        if needed > self.n - self.k:
            raise InputError(
                f"{self.name}: correcting {self.t} errors takes {needed} parity bits; k is {self.n - needed} at most"
            )

    @property
    def name(self) -> str:
        """``bch-N-K-T``."""
        return f"bch-{self.n}-{self.k}-{self.t}"

    @property
    def block(self) -> tuple[int, int]:
        """K data bits, N − K parity bits."""
        return self.k, self.n - self.k

    def residual(self, p: float) -> float:
        """Bit error rate after decoding, with a bound on what miscorrection adds."""
        return bch_residual(self.n, self.k, self.t, _rate(p))


@dataclass(frozen=True)
class ParityNulling(Protection):
    """One parity bit a word; a word of wrong parity is read as zero. It detects, it does not correct.

    Attributes:
        k: data bits a word.
    """

    k: int

    def __post_init__(self) -> None:
        """Check k."""
        if self.k < 1:
            raise InputError(f"parity-{self.k}: a word has at least one data bit")

    @property
    def name(self) -> str:
        """``parity-K``."""
        return f"parity-{self.k}"

    @property
    def block(self) -> tuple[int, int]:
        """K data bits, one parity bit."""
        return self.k, 1

    def residual(self, p: float) -> float:
        """Rate of wrong bits in words that pass, exact."""
        return parity_residual(self.k, _rate(p))

    def nulled(self, p: float) -> float:
        """Share of words that are read as zero, exact."""
        return parity_nulled(self.k, _rate(p))


@dataclass(frozen=True)
class Ldpc(Protection):
    """Regular low-density parity-check code of 10,000 bits, decoded once when the image is loaded (Gallager 1963).

    Attributes:
        j: checks a bit.
        k: bits a check; the rate is 1 − j/k.
    """

    j: int
    k: int

    def __post_init__(self) -> None:
        """Check that the family was simulated."""
        if (self.j, self.k) not in ldpc_families():
            known = ", ".join(f"ldpc-{j}-{k}" for j, k in ldpc_families())
            raise InputError(f"ldpc-{self.j}-{self.k} has no simulated residuals: choose from {known}")

    @property
    def name(self) -> str:
        """``ldpc-J-K``."""
        return f"ldpc-{self.j}-{self.k}"

    @property
    def block(self) -> tuple[int, int]:
        """Data and parity bits of 10,000."""
        parity = 10_000 * self.j // self.k
        return 10_000 - parity, parity

    def residual(self, p: float) -> float:
        """Upper 95 % limit of the bit error rate after sum-product decoding, as simulated; never above ``p``."""
        return ldpc_residual(self.j, self.k, _rate(p))


AUTO_CANDIDATES: tuple[str, ...] = (
    *(f"secded-{n}-{k}" for n, k in ((137, 128), (72, 64), (39, 32), (22, 16))),
    *(f"bch-{n}-{n - bch_parity(n, t)}-{t}" for n in (127, 255, 511, 1023) for t in (2, 3, 4, 6, 8, 10, 15, 20)),
    *(f"repetition-{n}" for n in (3, 5, 7, 9, 11, 15)),
    *("ldpc-3-6", "ldpc-3-5", "ldpc-3-4"),
)
"""Schemes that :func:`cheapest` chooses from."""


def cheapest(p: float, target_residual: float) -> Protection:
    """The scheme of :data:`AUTO_CANDIDATES` with the least parity a data bit whose residual is at most the target.

    Args:
        p: raw flip rate, in [0, 0.5].
        target_residual: largest bit error rate to leave.

    Raises:
        InputError: no candidate leaves so little.
    """
    fit = [found for name in AUTO_CANDIDATES if (found := scheme(name)).residual(p) <= target_residual]
    if not fit:
        raise InputError(f"no known scheme brings a raw flip rate of {p:g} down to {target_residual:g}; allow more")
    return min(fit, key=lambda found: found.overhead)


def scheme(name: str, *, rate: float | None = None, target_residual: float = 1e-4) -> Protection:
    """The scheme of a given name.

    Args:
        name: ``ideal``, ``robust-COST-RATE``, ``repetition-N``, ``secded-N-K``, ``bch-N-K-T``, ``parity-K``,
            ``ldpc-J-K``, or ``auto``: the cheapest that meets ``target_residual`` at the raw rate ``rate``.
        rate: raw flip rate, for ``auto`` only.
        target_residual: largest residual bit error rate, for ``auto`` only.

    Raises:
        InputError: an unknown name, parameters without a code, or ``auto`` without a rate.
    """
    if name == "auto":
        if rate is None:
            raise InputError("protection auto needs the raw flip rate to choose for")
        return cheapest(rate, target_residual)
    kind, _, rest = name.partition("-")
    try:
        if kind == "robust":
            cost, _, own = rest.partition("-")
            return RobustCell(float(cost), float(own))
        numbers = [int(part) for part in rest.split("-")] if rest else []
        match kind, numbers:
            case "ideal", []:
                return Ideal()
            case "repetition", [n]:
                return Repetition(n)
            case "secded", [n, k]:
                return SecDed(n, k)
            case "bch", [n, k, t]:
                return Bch(n, k, t)
            case "parity", [k]:
                return ParityNulling(k)
            case "ldpc", [j, k]:
                return Ldpc(j, k)
    except ValueError:
        pass
    raise InputError(
        f"unknown protection {name!r}: give ideal, robust-COST-RATE, repetition-N, secded-N-K, bch-N-K-T, parity-K, "
        "ldpc-J-K or auto"
    )
