"""The NumPy twin of the operator `qtaml::FaultInject`, version 1, and the definition of its result.

Both kernels, this one and the C++ one of `custom_ops/`, follow the definition below and give the same bits. It is
public and frozen: whoever implements this text reproduces a fault pattern, on any machine, from its few numbers.

Definition ---------- A tensor is a sequence of words of `W` bits (2, 4, 8, 16 or 32: the storage width of its type;
floats by their bit patterns; words of 2 and 4 bits are packed, low bits first, and the bits after the last are written
as 0), numbered from 0 in row-major order. Plane `k = 0` is the least significant bit. The bit of word `n` in plane `k`,
of state `s` (0 or 1), flips or not as a pure function of (kind, seed, stream, W, n, k, s, the two rates of plane `k`);
for bursts also of the geometry and the rates of the other planes. Otherwise planes do not see each other. A plane
outside `exposed_planes`, a plane `>= bits`, and a plane both of whose rates are 0 never flip. Words are grouped in
*chunks* of 16384 (`c = n div 16384`) and *blocks* of 512 within a chunk.

This is the kind *independent*; the other kinds, below, change what they say and nothing else.

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

Stuck-at. A cell is stuck at 1, stuck at 0, or sound; what is stored decides whether that shows. `p_0` is the
probability that a cell is stuck at 1 (a stored 0 reads 1), `p_1` that it is stuck at 0, `p_0 + p_1 <= 1`. Every plane
is dense, with rows of kind 4 for those of kind 0 and trailing bits of kind 5 for those of kind 1. The cell is stuck at
1 if `U < floor(p_0 * 2^64)`, stuck at 0 if `2^64 - 1 - U < floor(p_1 * 2^64)`. The map of defects is a function of
(seed, stream) alone: whatever is stored meets the same cells, and cells that are stuck at some rates are so at all
higher ones.

Burst. Each word has `bits` cells, one a plane, on physical rows of `R = row_cells` cells. Groups of `D = interleave`
words share a stretch of `D * bits` cells: plane `k` of word `n` is cell `(n div D) * D * bits + k * D + n mod D`; cell
`a` is in row `a div R`, column `a mod R`. A burst covers `L = burst_cells` adjacent columns and may overlap either end
of its row, so that a row has `S = R + L - 1` places for it: at place `t`, it covers columns `t mod S - (L-1)` to `t mod
S` of row `t div S`. Rates are at most 1/2. `r = -ln(1 - p)` as above up to 2^-7, beyond it by `hazard_of_any`; `e = r /
L`. `j >= 0` is the integer with `2^-(j+1) < max e <= 2^-j` over the exposed planes and both states, `C = min(14, 7 +
j)`.
  - Places come in chunks of `2^C`. Chunk `c` has `N` bursts, Poisson of mean `2^(C-j)`, by inversion of `h0` of
    philox(0, c, 6, 0), as for hits.
  - Burst `i` is the half `i mod 2` of philox(i div 2, c, 7, 0): its `C` leading bits are the place within the chunk,
    its 50 trailing bits its level. A bit of state `s` in plane `k` that it covers flips if the level is less than
    `floor(e_{k,s} * 2^(j+50))`. A second burst on a flipped bit changes nothing.
Every bit is covered by `L` places, so that it flips with probability `1 - exp(-r) = p` exactly as under the kind
independent: the two compare at equal rates of each bit, and differ in how the flips cluster.

Inference. Where the seed is given with the number `d` of an inference, it is replaced by `h0` of philox(d mod 2^32, d
div 2^32, 8, 0) under that seed, with stream 0. With `per_sample`, each row along the first axis is a tensor of its own
and row `b` has the number `d + b`: a sample's faults do not depend on the batch that it comes in.

Consequences. The independent faults at a rate are a subset of those at any higher rate as long as both are dense, or
both sparse with the same `j` (common random numbers). Nothing depends on the number of words, on threads, or on the
order of evaluation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_bursts import BurstGeometry, burst_flips
from qtaml_onnx.fault_random import Counter, Philox, hazard, hit_counts, octave_of

__all__ = ["KINDS", "BurstGeometry", "FaultKind", "fault_inject", "word_bits"]

FaultKind = Literal["independent", "stuck-at", "burst"]
KINDS: Final[tuple[str, ...]] = get_args(FaultKind)

_CHUNK: Final = 16384  # words
_BLOCK: Final = 512  # words
_LEADING: Final = 12  # bits of U that are bit-sliced
_WARM_UP: Final = 12  # SFC64 outputs dropped after seeding
_GROUP: Final = 64  # chunks handled at once by the dense path: bounds its memory to about 50 MiB
_TYPES: Final = {
    "uint2": 2, "int2": 2, "uint4": 4, "int4": 4,
    "uint8": 8, "int8": 8, "uint16": 16, "int16": 16, "uint32": 32, "int32": 32,
    "float16": 16, "bfloat16": 16, "float32": 32,
    "float8_e4m3fn": 8, "float8_e4m3fnuz": 8, "float8_e5m2": 8, "float8_e5m2fnuz": 8,
}  # fmt: skip


def word_bits(dtype: npt.DTypeLike) -> int:
    """Storage width W in bits (2, 4, 8, 16 or 32) of a word type of `FaultInject`.

    Raises:
        InputError: the type is none of the operator's word types.
    """
    name = np.dtype(dtype).name
    if name not in _TYPES:
        raise InputError(f"FaultInject: X has type {name}; give one of {', '.join(_TYPES)}")
    return _TYPES[name]


@dataclass(frozen=True)
class _Rules:
    """What holds for all samples: the checked arguments."""

    kind: str
    width: int
    bits: int
    exposed: int
    rates: npt.NDArray[np.float32]
    stream: int
    geometry: BurstGeometry | None


def fault_inject(
    words: npt.NDArray[Any],
    seed: int,
    flip_rates: npt.ArrayLike,
    *,
    stream: int = 0,
    bits: int | None = None,
    exposed_planes: int | None = None,
    kind: str = "independent",
    geometry: BurstGeometry | None = None,
    inference: int | None = None,
    per_sample: bool = False,
) -> npt.NDArray[Any]:
    """Flip bits of stored words: the same bits as the C++ operator `qtaml::FaultInject` (see the module's text).

    Args:
        words: stored words, any shape, of type uint8, int8, uint16, int16, uint32, int32, float16, float32, or by
            ml_dtypes bfloat16, float8 (four kinds), uint4, int4, uint2, int2.
        seed: of the trial, an int64.
        flip_rates: float32 [2, planes], each in [0, 1): row 0 the probabilities of 0→1, row 1 of 1→0, least significant
            plane first; at least `bits` planes, more are ignored.
        stream: number of the tensor, 0 to 2^32 - 1: decorrelates the tensors of a model.
        bits: stored planes of the word, 1 to the word type's width (the default); higher planes never flip.
        exposed_planes: bit mask of the planes that may flip; all `bits` of them by default.
        kind: "independent", "stuck-at" or "burst".
        geometry: of the memory's rows and the bursts, for the kind burst alone.
        inference: number of the inference, an int64, for faults that are drawn anew at each; None for stored words.
        per_sample: the first axis is one of samples, and sample b has the number `inference + b`.

    Returns:
        A new array of the shape and type of `words`.

    Raises:
        InputError: an argument of a wrong type, shape or range.
    """
    words = np.asarray(words)
    rules = _checked(words, flip_rates, stream, bits, exposed_planes, kind, geometry)
    for what, number in (("seed", seed), ("inference number", inference or 0)):
        if not -(1 << 63) <= number < 1 << 63:
            raise InputError(f"FaultInject: {what} {number} is no 64-bit integer")
    if per_sample and (inference is None or words.ndim == 0):
        raise InputError("FaultInject: per_sample needs an inference number, and words with an axis of samples")
    source = _unsigned(words)
    samples = words.shape[0] if per_sample else 1
    parts = source.reshape(samples, -1) if source.size else source[None]
    if samples > 1 and parts.shape[1] * rules.width % 8:
        raise InputError("FaultInject: per_sample: a sample of words, packed, does not fill whole bytes")
    flips = [_flips(part, _seed_of(seed, inference, b), rules) for b, part in enumerate(parts)]
    flipped = (source ^ np.concatenate(flips)) if source.size else source
    return _like(flipped, words)


def _seed_of(seed: int, inference: int | None, sample: int) -> int:
    if inference is None:
        return seed
    number = (inference + sample) & (1 << 64) - 1
    halves = Philox(seed, stream=0, plane=0).halves(number & 0xFFFFFFFF, number >> 32, Counter.INFERENCE)
    return int(halves[0])


def _unsigned(words: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The words as unsigned integers, in a line; those of 2 and 4 bits in a byte each."""
    width = word_bits(words.dtype)
    flat = np.ascontiguousarray(words).view(f"u{max(width // 8, 1)}").reshape(-1)
    return flat & np.uint8((1 << width) - 1) if width < 8 else flat


def _like(words: npt.NDArray[Any], model: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The inverse of `_unsigned`."""
    width = word_bits(model.dtype)
    if width < 8:
        values = words.astype(np.int8)
        if np.dtype(model.dtype).name.startswith("int"):
            values = (values ^ np.int8(1 << width - 1)) - np.int8(1 << width - 1)  # the sign
        return values.astype(model.dtype).reshape(model.shape)
    return words.view(model.dtype).reshape(model.shape)


def _flips(source: npt.NDArray[Any], seed: int, rules: _Rules) -> npt.NDArray[Any]:
    """The mask of the bits that flip in a line of unsigned words."""
    if rules.geometry is not None:
        return burst_flips(source, seed, rules.stream, rules.rates, rules.bits, rules.exposed, rules.geometry)
    flips = np.zeros_like(source)
    one = source.dtype.type(1)
    for plane in range(rules.bits):
        p = (float(rules.rates[0, plane]), float(rules.rates[1, plane]))
        if not rules.exposed >> plane & 1 or max(p) == 0 or source.size == 0:
            continue
        state = source >> source.dtype.type(plane) & one
        random = Philox(seed, rules.stream, plane)
        stuck = rules.kind == "stuck-at"
        positions = _dense(random, p, state, rules.width, stuck) if stuck or _is_dense(p) else _sparse(random, p, state)
        flips[positions] |= source.dtype.type(1 << plane)
    return flips


def _checked(
    words: npt.NDArray[Any],
    flip_rates: npt.ArrayLike,
    stream: int,
    bits: int | None,
    exposed_planes: int | None,
    kind: str,
    geometry: BurstGeometry | None,
) -> _Rules:
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
    if kind not in KINDS:
        raise InputError(f"FaultInject: attribute kind is '{kind}'; give {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if (geometry is not None) != (kind == "burst"):
        raise InputError(f"FaultInject: kind {kind} {'needs a' if kind == 'burst' else 'takes no'} burst geometry")
    return _Rules(kind, width, bits, exposed, _checked_rates(flip_rates, bits, kind), stream, geometry)


def _checked_rates(flip_rates: npt.ArrayLike, bits: int, kind: str) -> npt.NDArray[np.float32]:
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
    if kind == "burst" and (rates > 0.5).any():
        row, plane = np.argwhere(rates > 0.5)[0]
        raise InputError(
            f"FaultInject: flip_rates[{row}, {plane}] is {rates[row, plane]}; rates of bursts lie in [0, 0.5]"
        )
    sums = rates.astype(np.float64).sum(axis=0)
    if kind == "stuck-at" and (sums > 1).any():
        plane = int(np.argmax(sums > 1))
        raise InputError(
            f"FaultInject: flip_rates of plane {plane} add up to {sums[plane]}; a cell is stuck at 0 or at 1, not both"
        )
    return rates


def _is_dense(p: tuple[float, float]) -> bool:
    return max(map(hazard, p)) > 2.0**-7


def _dense(
    random: Philox, p: tuple[float, float], state: npt.NDArray[Any], width: int, stuck: bool
) -> npt.NDArray[np.intp]:
    """Positions of the words whose bit (of value `state`) flips: U < floor(p * 2^64), U from the other end if stuck."""
    rows, tie = (Counter.STUCK_ROWS, Counter.STUCK_TRAILING) if stuck else (Counter.SEED_ROWS, Counter.TRAILING_BITS)
    threshold = np.array([math.floor(rate * 2.0**64) for rate in p], np.uint64)
    leading_bound, trailing_bound = threshold >> np.uint64(52), threshold & np.uint64(2**52 - 1)
    found = []
    for start in range(0, state.size, _GROUP * _CHUNK):
        s = state[start : start + _GROUP * _CHUNK]
        leading = _leading_bits(random, start // _CHUNK, s.size, width, rows)
        if stuck:
            leading = np.where(s == 1, np.uint16(2**_LEADING - 1) - leading, leading)
        bound = leading_bound.astype(np.uint16)[s]
        flips = leading < bound
        tied = np.flatnonzero(leading == bound)
        trailing = random.halves(tied % _CHUNK, start // _CHUNK + tied // _CHUNK, tie)[:, 0] >> np.uint64(12)
        if stuck:
            trailing = np.where(s[tied] == 1, np.uint64(2**52 - 1) - trailing, trailing)
        flips[tied] = trailing < trailing_bound[s[tied]]
        found.append(start + np.flatnonzero(flips))
    return np.concatenate(found)


def _leading_bits(
    random: Philox, first_chunk: int, count: int, width: int, rows_kind: Counter = Counter.SEED_ROWS
) -> npt.NDArray[np.uint16]:
    """The 12 leading bits of U of `count` words from chunk `first_chunk` on, as integers 0 to 4095."""
    chunks = -(-count // _CHUNK)
    blocks = -(-min(count, _CHUNK) // _BLOCK)
    lane = np.arange(8)
    chunk = first_chunk + np.arange(chunks)[:, None]
    first = random.halves(2 * lane, chunk, rows_kind)
    a, b = first[..., 0], first[..., 1]
    c = random.halves(2 * lane + 1, chunk, rows_kind)[..., 0]
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


def _sparse(random: Philox, p: tuple[float, float], state: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Positions of the words whose bit (of value `state`) flips: those with an accepted hit."""
    rate_of = [hazard(rate) for rate in p]
    octave = octave_of(max(rate_of), 7)
    accept_below = np.array([math.floor(rate * 2.0 ** (octave + 50)) for rate in rate_of], np.uint64)

    chunks = np.arange(-(-state.size // _CHUNK))
    hits = hit_counts(14 - octave, random.halves(0, chunks, Counter.HIT_COUNT)[:, 0])
    chunk = np.repeat(chunks, hits)
    i = np.arange(len(chunk)) - np.repeat(np.cumsum(hits) - hits, hits)
    hit = np.take_along_axis(random.halves(i // 2, chunk, Counter.HITS), (i % 2)[:, None], axis=1)[:, 0]
    position = chunk * _CHUNK + (hit >> np.uint64(50)).astype(np.intp)
    inside = position < state.size
    position, level = position[inside], hit[inside] & np.uint64(2**50 - 1)
    return np.unique(position[level < accept_below[state[position]]])
