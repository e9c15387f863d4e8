"""The NumPy twin of the operator `qtaml::FaultInject`, version 1, and the definition of its result.

Both kernels, this one and the C++ one of `custom_ops/`, follow the definition below and give the same bits. It is
public and frozen: whoever implements this text reproduces a fault pattern, on any machine, from its few numbers.

Definition
----------
A tensor is a sequence of words of `W` bits (8, 16 or 32: the storage width of its type; floats by their bit patterns),
numbered from 0 in row-major order. Plane `k = 0` is the least significant bit. The bit of word `n` in plane `k`, of
state `s` (0 or 1), flips or not as a pure function of (seed, stream, W, n, k, s, the two rates of plane `k`). Planes do
not see each other. A plane outside `exposed_planes`, a plane `>= bits`, and a plane both of whose rates are 0 never
flip. Words are grouped in *chunks* of 16384 (`c = n div 16384`) and *blocks* of 512 within a chunk.

Randomness. `philox(i, c, kind, k)` is Philox4x32-10 (Salmon et al. 2011) with key (seed mod 2^32, seed div 2^32), the
seed taken modulo 2^64, and counter (i, c, 256*kind + k, stream); its four 32-bit words x0..x3 make two halves
`h0 = x0 + 2^32 x1` and `h1 = x2 + 2^32 x3`.

Rates. `p_s` is the rate of state `s`, a float32 in [0, 1), and `r_s = -ln(1 - p_s)` by the series
`p*(1 + p*(1/2 + p*(1/3 + ... p*(1/9))))` in float64, innermost first, each operation rounded once. The plane is *dense*
if `max(r_0, r_1) > 2^-7` (a rate of 0.00779 or more), otherwise *sparse*.

Dense plane. Each (word, plane) has one uniform `U` in [0, 2^64); the bit flips if and only if `U < floor(p_s * 2^64)`.
Every rate of at least 2^-40 is therefore met exactly.
  - The 12 leading bits of `U` are bit-sliced. Eight SFC64 generators (Doty-Humphrey's, as in `numpy.random.SFC64`) run
    side by side for each (chunk, plane): generator `l` starts from `a = h0, b = h1` of philox(2l, c, 0, k),
    `c = h0` of philox(2l+1, c, 0, k), counter 1, and drops 12 outputs. One output of all eight is a row of 512 bits,
    bit `64*l + m` being bit `m` of generator `l`. Block 0 takes the first 12 rows, block 1 the next 12, and so on;
    within a block the first row is the least significant of the 12 bits. Word `j` of a block reads its bit at position
    `(j mod (512/W)) * W + j div (512/W)`.
  - The 52 trailing bits are `h0 div 2^12` of philox(n mod 16384, c, 1, k): they matter only where the leading bits tie.

Sparse plane. Hits fall on the chunk as a Poisson process; a bit flips if at least one accepted hit falls on it, which
makes the flips independent, each of probability `1 - exp(-r_s) = p_s`. `j` is the integer, at most 63, with
`2^-(j+1) < max(r_0, r_1) <= 2^-j`.
  - The number of hits `N` is Poisson of mean `2^(14-j)`, by inversion of `h0` of philox(0, c, 2, k): `N` is the number
    of `q >= 0` with `h0 < floor(2^64 * P[Poisson > q])` (at most 2^64 - 1). `_poisson_tail` fixes the order of the
    float64 operations.
  - Hit `i = 0..N-1` is the half `i mod 2` of philox(i div 2, c, 3, k): its 14 leading bits are the word within the
    chunk, and it is accepted if its 50 trailing bits are less than `floor(r_s * 2^(j+50))`.

Consequences. The faults at a rate are a subset of those at any higher rate as long as both are dense, or both sparse
with the same `j` (common random numbers). Nothing depends on the number of words, on threads, or on the order of
evaluation.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qtaml_onnx.errors import InputError

__all__ = ["fault_inject", "word_bits"]

_CHUNK: Final = 16384  # words
_BLOCK: Final = 512  # words
_LEADING: Final = 12  # bits of U that are bit-sliced
_WARM_UP: Final = 12  # SFC64 outputs dropped after seeding
_GROUP: Final = 64  # chunks handled at once by the dense path: bounds its memory to about 50 MiB
_SEED_ROWS, _TRAILING_BITS, _HIT_COUNT, _HITS = range(4)  # kinds of Philox counters
_TYPES: Final = {
    "uint8": 8, "int8": 8, "uint16": 16, "int16": 16, "uint32": 32, "int32": 32,
    "float16": 16, "bfloat16": 16, "float32": 32,
    "float8_e4m3fn": 8, "float8_e4m3fnuz": 8, "float8_e5m2": 8, "float8_e5m2fnuz": 8,
}  # fmt: skip
_MASK32: Final = np.uint64(0xFFFFFFFF)

U64 = npt.NDArray[np.uint64]


def word_bits(dtype: npt.DTypeLike) -> int:
    """Storage width W in bits (8, 16 or 32) of a word type of `FaultInject`.

    Raises:
        InputError: the type is none of the operator's word types.
    """
    name = np.dtype(dtype).name
    if name not in _TYPES:
        raise InputError(f"FaultInject: X has type {name}; give one of {', '.join(_TYPES)}")
    return _TYPES[name]


def fault_inject(
    words: npt.NDArray[Any],
    seed: int,
    flip_rates: npt.ArrayLike,
    *,
    stream: int = 0,
    bits: int | None = None,
    exposed_planes: int | None = None,
) -> npt.NDArray[Any]:
    """Flip bits of stored words: the same bits as the C++ operator `qtaml::FaultInject` (see the module's text).

    Args:
        words: stored words, any shape, of type uint8, int8, uint16, int16, uint32, int32, float16, bfloat16, float32 or
            float8 (four kinds, by ml_dtypes).
        seed: of the trial, an int64.
        flip_rates: float32 [2, planes], each in [0, 1): row 0 the probabilities of 0→1, row 1 of 1→0, least significant
            plane first; at least `bits` planes, more are ignored.
        stream: number of the tensor, 0 to 2^32 - 1: decorrelates the tensors of a model.
        bits: stored planes of the word, 1 to the word type's width (the default); higher planes never flip.
        exposed_planes: bit mask of the planes that may flip; all `bits` of them by default.

    Returns:
        A new array of the shape and type of `words`.

    Raises:
        InputError: an argument of a wrong type, shape or range.
    """
    words = np.asarray(words)
    width = word_bits(words.dtype)
    bits = width if bits is None else bits
    if not 1 <= bits <= width:
        raise InputError(
            f"FaultInject: attribute bits is {bits}; give 1 to {width} for words of type {words.dtype.name}"
        )
    exposed = (1 << bits) - 1 if exposed_planes is None else exposed_planes
    if not 0 <= exposed < 1 << bits:
        raise InputError(f"FaultInject: attribute exposed_planes is {exposed}; only planes 0 to {bits - 1} exist")
    if not 0 <= stream < 1 << 32:
        raise InputError(f"FaultInject: attribute stream is {stream}; give 0 to {2**32 - 1}")
    if not -(1 << 63) <= seed < 1 << 63:
        raise InputError(f"FaultInject: seed {seed} is no 64-bit integer")
    rates = _checked_rates(flip_rates, bits)

    flipped = np.ascontiguousarray(words).view(f"u{width // 8}").reshape(-1).copy()
    source = flipped.copy()
    for plane in range(bits):
        p = (float(rates[0, plane]), float(rates[1, plane]))
        if not exposed >> plane & 1 or max(p) == 0 or source.size == 0:
            continue
        state = source >> source.dtype.type(plane) & source.dtype.type(1)
        random = _Philox(seed, stream, plane)
        positions = _dense(random, p, state, width) if _is_dense(p) else _sparse(random, p, state)
        flipped[positions] ^= source.dtype.type(1 << plane)
    return flipped.view(words.dtype).reshape(words.shape)


def _checked_rates(flip_rates: npt.ArrayLike, bits: int) -> npt.NDArray[np.float32]:
    rates = np.asarray(flip_rates)
    if rates.dtype.kind not in "fiu" or rates.ndim != 2 or rates.shape[0] != 2:
        raise InputError(f"FaultInject: flip_rates is {rates.dtype} {list(rates.shape)}; give float32 [2, planes]")
    if rates.shape[1] < bits:
        raise InputError(f"FaultInject: flip_rates has {rates.shape[1]} planes; give at least bits = {bits}")
    rates = rates.astype(np.float32)
    bad = np.argwhere(~((rates >= 0) & (rates < 1)))
    if len(bad):
        row, plane = bad[0]
        raise InputError(f"FaultInject: flip_rates[{row}, {plane}] is {rates[row, plane]}; rates lie in [0, 1)")
    return rates


class _Philox:
    """Philox4x32-10, keyed by the seed, at the counters of one (stream, plane)."""

    def __init__(self, seed: int, stream: int, plane: int) -> None:
        self._key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
        self._stream, self._plane = stream, plane

    def halves(self, index: npt.ArrayLike, chunk: npt.ArrayLike, kind: int) -> U64:
        """Both 64-bit halves: uint64, the broadcast shape of `index` and `chunk` with a last axis of 2."""
        index, chunk = np.broadcast_arrays(np.asarray(index, np.uint64), np.asarray(chunk, np.uint64))
        counter = (index, chunk, np.full_like(index, kind << 8 | self._plane), np.full_like(index, self._stream))
        x = philox4x32(counter, self._key)
        return np.stack([x[0] | x[1] << np.uint64(32), x[2] | x[3] << np.uint64(32)], axis=-1)


def philox4x32(counter: tuple[U64, U64, U64, U64], key: tuple[int, int]) -> tuple[U64, U64, U64, U64]:
    """Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    Args:
        counter: four uint64 arrays of one shape, holding values below 2^32.
        key: two integers below 2^32.

    Returns:
        The four random words, laid out as `counter`.
    """
    x0, x1, x2, x3 = counter
    for r in range(10):
        k0 = np.uint64((key[0] + r * 0x9E3779B9) & 0xFFFFFFFF)
        k1 = np.uint64((key[1] + r * 0xBB67AE85) & 0xFFFFFFFF)
        product0, product1 = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1 = product1 >> np.uint64(32) ^ x1 ^ k0, product1 & _MASK32
        x2, x3 = product0 >> np.uint64(32) ^ x3 ^ k1, product0 & _MASK32
    return x0, x1, x2, x3


def _hazard(p: float) -> float:
    """`-ln(1 - p)` for small p by its series: only operations that IEEE 754 rounds alike everywhere."""
    total = 1.0 / 9.0
    for divisor in range(8, 0, -1):
        total = 1.0 / divisor + p * total
    return p * total


def _is_dense(p: tuple[float, float]) -> bool:
    return max(map(_hazard, p)) > 2.0**-7


def _dense(random: _Philox, p: tuple[float, float], state: npt.NDArray[Any], width: int) -> npt.NDArray[np.intp]:
    """Positions of the words whose bit (of value `state`) flips: U < floor(p * 2^64)."""
    threshold = np.array([math.floor(rate * 2.0**64) for rate in p], np.uint64)
    leading_bound, trailing_bound = threshold >> np.uint64(52), threshold & np.uint64(2**52 - 1)
    found = []
    for start in range(0, state.size, _GROUP * _CHUNK):
        s = state[start : start + _GROUP * _CHUNK]
        leading = _leading_bits(random, start // _CHUNK, s.size, width)
        bound = leading_bound.astype(np.uint16)[s]
        flips = leading < bound
        tied = np.flatnonzero(leading == bound)
        trailing = random.halves(tied % _CHUNK, start // _CHUNK + tied // _CHUNK, _TRAILING_BITS)[:, 0] >> np.uint64(12)
        flips[tied] = trailing < trailing_bound[s[tied]]
        found.append(start + np.flatnonzero(flips))
    return np.concatenate(found)


def _leading_bits(random: _Philox, first_chunk: int, count: int, width: int) -> npt.NDArray[np.uint16]:
    """The 12 leading bits of U of `count` words from chunk `first_chunk` on, as integers 0 to 4095."""
    chunks = -(-count // _CHUNK)
    blocks = -(-min(count, _CHUNK) // _BLOCK)
    lane = np.arange(8)
    chunk = first_chunk + np.arange(chunks)[:, None]
    first = random.halves(2 * lane, chunk, _SEED_ROWS)
    a, b = first[..., 0], first[..., 1]
    c = random.halves(2 * lane + 1, chunk, _SEED_ROWS)[..., 0]
    rows = np.empty((blocks * _LEADING, chunks, 8), "<u8")
    for step in range(-_WARM_UP, len(rows)):
        out = a + b + np.uint64(step + _WARM_UP + 1)
        a = b ^ b >> np.uint64(11)
        b = c + (c << np.uint64(3))
        c = (c << np.uint64(24) | c >> np.uint64(40)) + out
        if step >= 0:
            rows[step] = out
    digits = np.unpackbits(rows.view(np.uint8).reshape(blocks, _LEADING, chunks, 64), axis=-1, bitorder="little")
    leading = np.zeros((blocks, chunks, _BLOCK), np.uint16)
    for weight in range(_LEADING):
        leading |= digits[:, weight].astype(np.uint16) << np.uint16(weight)
    in_word_order = leading.reshape(blocks, chunks, _BLOCK // width, width).transpose(1, 0, 3, 2)
    return in_word_order.reshape(-1)[:count]


def _poisson_tail(mean_log2: int) -> list[int]:
    """`floor(2^64 * P[Poisson(2^mean_log2) > q])` for q = 0, 1, … down to the last that is not 0.

    float64, in this order: `P[0] = exp(-mean)` by its Taylor series to the 20th power (Horner) for a mean of at most 1,
    else of mean 1 squared `mean_log2` times; `P[q] = P[q-1] * mean / q` up to q = 511; tails summed from the far end.
    """
    mean = 2.0**mean_log2
    small = min(mean, 1.0)
    p_zero = 1.0
    for divisor in range(20, 0, -1):
        p_zero = 1.0 - small * p_zero / divisor
    for _ in range(mean_log2):
        p_zero = p_zero * p_zero
    terms = [p_zero]
    for q in range(1, 512):
        terms.append(terms[-1] * mean / q)
    tail, tails = 0.0, []
    for term in reversed(terms[1:]):
        tail += term
        tails.append(tail)
    scaled = [min(math.floor(value * 2.0**64), 2**64 - 1) for value in reversed(tails)]
    return [value for value in scaled if value > 0]


def _sparse(random: _Philox, p: tuple[float, float], state: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Positions of the words whose bit (of value `state`) flips: those with an accepted hit."""
    hazard = [_hazard(rate) for rate in p]
    mantissa, exponent = math.frexp(max(hazard))  # max = mantissa * 2^exponent, mantissa in [0.5, 1)
    octave = min(-exponent + (mantissa == 0.5), 63)
    accept_below = np.array([math.floor(rate * 2.0 ** (octave + 50)) for rate in hazard], np.uint64)

    chunks = np.arange(-(-state.size // _CHUNK))
    tail = np.array(_poisson_tail(14 - octave)[::-1], np.uint64)
    hits = len(tail) - np.searchsorted(tail, random.halves(0, chunks, _HIT_COUNT)[:, 0], side="right")
    chunk = np.repeat(chunks, hits)
    i = np.arange(len(chunk)) - np.repeat(np.cumsum(hits) - hits, hits)
    hit = np.take_along_axis(random.halves(i // 2, chunk, _HITS), (i % 2)[:, None], axis=1)[:, 0]
    position = chunk * _CHUNK + (hit >> np.uint64(50)).astype(np.intp)
    inside = position < state.size
    position, level = position[inside], hit[inside] & np.uint64(2**50 - 1)
    return np.unique(position[level < accept_below[state[position]]])
