"""Channel-optimised codes: quantiser and index assignment designed together for the flip rates of the word.

A weight x stored as word u and read as v is decoded as d(v). Alternating the two optimality conditions

- decoder: d(v) = E[x | v], the posterior mean under the current encoder,
- encoder: u(x) = argmin_u Σ_v P[u, v] (x − d(v))² = argmin_u (−2 x m1(u) + m2(u)), m1 = P d, m2 = P d²,

never raises the mean-square error (Farvardin & Vaishampayan, "Optimal quantizer design for noisy channels", IEEE Trans.
Inf. Theory 33, 1987). The encoder's costs are lines in x, so that u(x) is the lower envelope of lines: an interval
partition, found exactly as the lower convex hull of the points (m1, m2). At high rates most words fall out of use.

The alternation stops in a local optimum that its start decides, above all by the index assignment. So there are several
starts, and the best is improved by annealing the assignment (:mod:`qtaml_onnx.storage.assignment`): thoroughly once
for each set of rates on a Gaussian and on a Laplacian source, which gives two of the starts, and briefly for the
weights at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from qtaml_onnx.channel import FlipRates, FloatArray, apply_transition
from qtaml_onnx.errors import InputError
from qtaml_onnx.storage.assignment import anneal_assignment
from qtaml_onnx.storage.codes import Code, IntArray, uniform_code
from qtaml_onnx.storage.readout import (
    ReadOut,
    WordSums,
    error_moments,
    posterior_mean,
    posterior_table,
    restored_posterior_mean,
    word_sums,
)

__all__ = [
    "MAX_DESIGN_BITS",
    "Source",
    "companded_boundaries",
    "design_channel_optimized",
    "group_weights",
    "lower_envelope",
    "standard_sources",
]

MAX_DESIGN_BITS = 12
_ATOMS = 8192  # groups of neighbouring weights that the design sees, for each of two ways of grouping
_MOST_SORTED = 1 << 22  # weights that the search sees; the result is judged, and its read-out made, on all
_CHUNK = 1 << 20  # weights squared at a time in float64
_TOLERANCE = 1e-7  # relative gain of one alternation at which it has converged
_GRID_BITS = 10  # 2^10 − 1 points carry boundaries from one source to another
_NOTHING = 1e-12  # share of the variance that is rounding, not error
_PILOT = 25  # alternations that each start gets before the best go on
_FULL = 300
_REFERENCE_STEPS = (1000, 400)  # annealing steps (one cell moved) a round of a reference, up to 8 bits and beyond
_REFERENCE_HEATS = (0.02, 0.01, 0.005)  # first temperature of each round, in mean-square errors
_TENSOR_STEPS, _TENSOR_HEAT = 75, 0.005  # the same for the weights at hand, one round


@dataclass(frozen=True)
class Source:
    """Weights in ascending order, grouped into atoms: positions, and cumulative importance and first moment."""

    position: FloatArray  # [atoms] centroids
    cumulative: FloatArray  # [2, atoms + 1]: importance, importance · x
    second: float  # total importance · x²

    @property
    def total(self) -> float:
        """Total importance."""
        return float(self.cumulative[0, -1])

    @property
    def mean(self) -> float:
        """Mean weight."""
        return float(self.cumulative[1, -1] / self.total)

    @property
    def variance(self) -> float:
        """Variance of the weights."""
        return max(0.0, self.second / self.total - self.mean**2)

    def cells(self, boundaries: FloatArray) -> FloatArray:
        """Importance and first moment of each cell, [2, cells]."""
        edges = np.searchsorted(self.position, boundaries)
        return np.diff(self.cumulative[:, np.concatenate([[0], edges, [len(self.position)]])], axis=1)


@dataclass(frozen=True)
class _Design:
    """An encoder (words of ascending cells, and their boundaries) and its mean-square error with the best decoder."""

    words: IntArray
    boundaries: FloatArray
    mse: float


def group_weights(x: FloatArray, importance: FloatArray | None) -> Source:
    """Group sorted weights: finely where they are many (equal counts) and where they are far apart (equal widths)."""
    order = None if importance is None else np.argsort(x)
    ordered = np.sort(x) if order is None else x[order]
    size = ordered.size
    by_count = np.linspace(0, size, min(size, _ATOMS), endpoint=False).astype(np.int64)
    by_width = np.searchsorted(ordered, np.linspace(float(ordered[0]), float(ordered[-1]), _ATOMS))
    starts = np.unique(np.concatenate([by_count, by_width]))
    if importance is None or order is None:
        weight = np.diff(np.append(starts, size)).astype(np.float64)
        first = np.add.reduceat(ordered, starts, dtype=np.float64)
        chunks = (ordered[start : start + _CHUNK].astype(np.float64) for start in range(0, size, _CHUNK))
        second = math.fsum(float(chunk @ chunk) for chunk in chunks)
    else:
        scale = importance[order]
        weight = np.add.reduceat(scale, starts)
        first = np.add.reduceat(scale * ordered, starts)
        second = float(scale @ ordered.astype(np.float64) ** 2)
    live = weight > 0.0
    weight, first = weight[live], first[live]
    cumulative = np.zeros((2, len(weight) + 1))
    np.cumsum([weight, first], axis=1, out=cumulative[:, 1:])
    return Source(first / weight, cumulative, second)


@lru_cache(maxsize=1)
def standard_sources() -> tuple[Source, ...]:
    """Quantiles of the standard Gaussian and Laplacian: weight tensors lie near or between the two."""
    half = (np.arange(2048) + 0.5) / 4096  # probabilities below the median
    quantiles = (-ndtri(half), -np.log(2.0 * half) / np.sqrt(2.0))
    return tuple(group_weights(np.concatenate([-quantile, quantile]), None) for quantile in quantiles)


def lower_envelope(m1: FloatArray, m2: FloatArray) -> tuple[IntArray, FloatArray]:
    """The lines −2 x m1(u) + m2(u) that are least somewhere: their u, in ascending x, and the x where each gives way.

    They are the vertices of the lower convex hull of the points (m1, m2). A point on or above the chord of any two
    others is not one, so that all points which fail against their present neighbours can be dropped at once.
    """
    order = np.lexsort((m2, m1))
    order = order[np.append(True, np.diff(m1[order]) > 0.0)]  # of equal slopes, the lowest line
    while True:
        rise, run = np.diff(m2[order]), np.diff(m1[order])
        keep = np.ones(len(order), dtype=bool)
        keep[1:-1] = rise[:-1] * run[1:] < rise[1:] * run[:-1]
        if keep.all():
            return order, np.maximum.accumulate(rise / run / 2.0) if len(run) else np.empty(0)
        order = order[keep]


def _scatter(words: IntArray, cells: FloatArray, size: int) -> FloatArray:
    sums = np.zeros((2, size))
    sums[:, words] = cells
    return sums


def _alternate(source: Source, rates: FlipRates, start: _Design, iterations: int) -> _Design:
    """Alternate decoder and encoder from ``start`` until the mean-square error has converged."""
    size = 1 << rates.bits
    words, boundaries, mse = start.words, start.boundaries, np.inf
    sums = _scatter(words, source.cells(boundaries), size)
    for _ in range(iterations):
        table = posterior_table(rates, sums[0], sums[1])
        m1, m2 = apply_transition(rates, np.stack([table, table**2]))
        new_words, new_boundaries = lower_envelope(m1, m2)
        sums = _scatter(new_words, source.cells(new_boundaries), size)
        new_mse = (source.second - 2.0 * sums[1] @ m1 + sums[0] @ m2) / source.total
        if new_mse > mse * (1.0 - _TOLERANCE):
            if new_mse < mse:
                return _Design(new_words, new_boundaries, float(new_mse))
            break
        words, boundaries, mse = new_words, new_boundaries, new_mse
    return _Design(words, boundaries, float(mse))


def _anneal(source: Source, rates: FlipRates, design: _Design, steps: int, heat: float, seed: int) -> _Design:
    """Anneal the index assignment of ``design``, then alternate again; the better of before and after."""
    if design.mse <= _NOTHING * source.variance:
        return design
    cells = source.cells(design.boundaries)
    live = cells[0] > 0.0
    temperature = heat * design.mse * source.total
    words = anneal_assignment(rates, design.words[live], cells[:, live], temperature, steps, seed)
    edges = design.boundaries[np.flatnonzero(live)[1:] - 1]  # an empty cell goes to the one above it
    return min(design, _alternate(source, rates, _Design(words, edges, np.inf), _FULL), key=lambda d: d.mse)


def companded_boundaries(source: Source, bits: int) -> FloatArray:
    """Boundaries of 2^bits cells whose density goes with the cube root of the source's (Panter & Dite 1951)."""
    count = source.cumulative[0] / source.total
    steps = np.linspace(0.0, 1.0, min(len(source.position), 2048) + 1)
    edge = np.concatenate([source.position[:1], (source.position[1:] + source.position[:-1]) / 2, source.position[-1:]])
    quantile = np.interp(steps, count, edge)
    mass = np.cbrt(np.diff(quantile) ** 2)  # density^(1/3) · width, density ∝ 1 / width between quantiles
    share = np.append(0.0, np.cumsum(mass)) / mass.sum()
    return np.asarray(np.interp(np.arange(1, 1 << bits) / (1 << bits), share, quantile), dtype=np.float64)


@lru_cache(maxsize=256)
def _references(rates: FlipRates) -> tuple[_Design, ...]:
    """Thoroughly annealed codes of the standard sources: the starts that serve most tensors best."""
    designs = []
    for source in standard_sources():
        start = _Design(np.arange(1 << rates.bits), companded_boundaries(source, rates.bits), np.inf)
        design = _alternate(source, rates, start, _FULL)
        if not rates.is_zero:
            for seed, heat in enumerate(_REFERENCE_HEATS):
                design = _anneal(source, rates, design, _REFERENCE_STEPS[rates.bits > 8], heat, seed)
        designs.append(design)
    return tuple(designs)


def _starts(source: Source, rates: FlipRates) -> list[_Design]:
    """Encoders to alternate from: two's complement, words in natural order on two sets of cells, and the references.

    The references' boundaries are carried over in the companded domain: to where the weights' cells lie equally dense.
    """
    bits = rates.bits
    uniform = uniform_code("twos-complement", bits)
    natural, span = np.arange(1 << bits), max(-source.position[0], source.position[-1])
    starts = [
        (uniform.words, uniform.boundaries),
        (natural, companded_boundaries(source, bits)),
        (natural, 0.6 * span * (natural[1:] / (1 << (bits - 1)) - 1.0)),
    ]
    grid = companded_boundaries(source, _GRID_BITS)
    for standard, design in zip(standard_sources(), _references(rates), strict=True):
        carried = np.interp(design.boundaries, companded_boundaries(standard, _GRID_BITS), grid)
        starts.append((design.words, carried))
    return [_Design(words, boundaries, np.inf) for words, boundaries in starts]


def _search(source: Source, rates: FlipRates) -> _Design:
    """The best encoder found: every start for a while, the two best to the end, then a short annealing."""
    if source.position[0] == source.position[-1]:  # all weights are equal: one cell, any word
        return _Design(np.zeros(1, dtype=np.int64), np.empty(0), 0.0)
    pilots = [_alternate(source, rates, start, _PILOT) for start in _starts(source, rates)]
    pilots.sort(key=lambda pilot: pilot.mse)
    design = min((_alternate(source, rates, pilot, _FULL) for pilot in pilots[:2]), key=lambda d: d.mse)
    return design if rates.is_zero else _anneal(source, rates, design, _TENSOR_STEPS, _TENSOR_HEAT, 0)


def design_channel_optimized(
    x: ArrayLike,
    rates: FlipRates,
    *,
    bits: int | None = None,
    importance: ArrayLike | None = None,
    restore_gain: bool = True,
    sums_under: Callable[[Code], WordSums] | None = None,
) -> tuple[Code, ReadOut]:
    """Design a channel-optimised code and its read-out for a set of weights.

    The mean-square error with posterior-mean read-out is never larger than that of two's complement with posterior-mean
    read-out at equal bits, on exactly these weights: if the search found nothing better, that code is returned.

    Args:
        x: weights, any scale and shape, finite; all weights of the tensor rather than a sample, as the guarantee is
            about the weights given (its two's complement fills [−1, 1]).
        rates: flip rates; planes above ``bits`` are ignored.
        bits: word length, 1 to 12; that of the rates if None.
        importance: how much each weight's squared error matters, broadcastable to ``x``, non-negative.
        restore_gain: read out with the posterior mean's gain restored rather than the posterior mean itself.
        sums_under: gives the word sums of ``x`` under a code, where they are at hand without another look at ``x``.

    Returns:
        (code, read-out). The code is named ``channel-optimized`` (or ``twos-complement``, see above).

    Raises:
        InputError: no weights, weights or importance that are not finite, a word length out of range.
    """
    values = np.asarray(x)
    bits = rates.bits if bits is None else bits
    if not 1 <= bits <= MAX_DESIGN_BITS:
        raise InputError(f"channel-optimized codes have 1 to {MAX_DESIGN_BITS} bits a word, not {bits}")
    rates = rates.truncated(bits)
    baseline = uniform_code("twos-complement", bits)
    sums_under = sums_under or partial(word_sums, x=values, importance=importance)
    baseline_sums = sums_under(baseline)  # also checks x and importance
    flat = np.ravel(values)
    if not np.issubdtype(flat.dtype, np.floating):
        flat = flat.astype(np.float64)
    weight = None if importance is None else np.ravel(np.broadcast_to(np.asarray(importance, np.float64), values.shape))
    stride = -(-flat.size // _MOST_SORTED)  # sorting takes a second array; every other weight is as good a source
    source = group_weights(flat[::stride], None if weight is None else weight[::stride])
    design = _search(source, rates)
    code = Code("channel-optimized", bits, design.boundaries, design.words, np.zeros(1 << bits))
    sums_of_code = sums_under(code)
    readout = posterior_mean(code, rates, sums_of_code)
    levels, used = readout.table.copy(), sums_of_code.count > 0.0
    levels[used] = sums_of_code.first[used] / sums_of_code.count[used]
    code = replace(code, levels=levels)
    fallback = posterior_mean(baseline, rates, baseline_sums)
    error, limit = error_moments(readout, rates, sums_of_code).mse, error_moments(fallback, rates, baseline_sums).mse
    if error > limit:
        code, readout, sums_of_code = baseline, fallback, baseline_sums
    return code, restored_posterior_mean(code, rates, sums_of_code) if restore_gain else readout
