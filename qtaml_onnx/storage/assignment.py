"""Index assignment by simulated annealing: which word each cell of a quantiser gets.

With posterior-mean read-out the mean-square error of a code is E[x²] − Σ_v s(v)²/n(v), where n(v) and s(v) are the mass
and the first moment of the weights read as v. Moving a cell to another word (or swapping two cells' words) changes n
and s by a multiple of the difference of two rows of P, so that all words can be tried for a cell at once. One of them
is then drawn from the Boltzmann distribution of the scores, a heat bath. (Farvardin, "A study of vector quantization
for noisy channels", IEEE Trans. Inf. Theory 36, 1990, anneals the same objective with pairwise swaps.)
"""

from __future__ import annotations

import math

import numpy as np

from qtaml_onnx.channel import FlipRates, FloatArray, apply_transition_transposed, transition_rows
from qtaml_onnx.storage.codes import IntArray

__all__ = ["anneal_assignment"]

_DENSE_BITS = 8  # up to here all words are tried for a cell; beyond, its neighbours and some at random
_RANDOM = 12
_NEGLIGIBLE = 1e-12  # share of the mass below which a read word's n(v) is rounding noise
_COOLING = 1e-3  # last temperature over first
_SWEEPS = (2, 20)


def anneal_assignment(
    rates: FlipRates, words: IntArray, cells: FloatArray, temperature: float, steps: int, seed: int
) -> IntArray:
    """The best assignment met while annealing from ``words``.

    Args:
        rates: the channel, B planes.
        words: int64 [cells], the distinct word of each cell to start from.
        cells: float64 [2, cells], mass and first moment of each cell.
        temperature: first temperature in units of mass times squared weight; it falls a thousandfold.
        steps: moves to make at most, up to a whole number of sweeps over the cells (at least two, at most twenty).
        seed: the same seed gives the same assignment.

    Returns:
        Int64 [cells], distinct words; never a larger mean-square error than ``words`` has, rounding aside.
    """
    rng = np.random.default_rng(seed)
    size, number = 1 << rates.bits, len(words)
    words = words.copy()
    holder = np.full(size, -1)
    holder[words] = np.arange(number)
    padded = np.append(cells, np.zeros((2, 1)), axis=1)  # index −1, the holder of an unused word, has no mass
    floor = _NEGLIGIBLE * cells[0].sum()
    everything = np.arange(size)
    dense = transition_rows(rates, everything) if rates.bits <= _DENSE_BITS else None
    flips = 1 << np.arange(rates.bits)
    sweeps = int(np.clip(steps // number, *_SWEEPS))
    best_score, best_words = -math.inf, words.copy()
    for heat in np.geomspace(temperature, temperature * _COOLING, sweeps):
        stored = np.zeros((2, size))
        stored[:, words] = cells
        mass, first = apply_transition_transposed(rates, stored)  # afresh in every sweep: updates gather rounding
        for cell in rng.permutation(number):
            own = words[cell]
            if dense is not None:
                tried, rows, here = everything, dense, int(own)
            else:
                tried = np.unique(np.concatenate([[own], own ^ flips, rng.integers(0, size, _RANDOM)]))
                rows, here = transition_rows(rates, tried), int(np.searchsorted(tried, own))
            change = rows - rows[here]
            gain = padded[:, cell, None] - padded[:, holder[tried]]  # mass and first moment that go from own to tried
            denominator = change * gain[0][:, None]
            denominator += mass
            np.maximum(denominator, floor, out=denominator)
            numerator = change * gain[1][:, None]
            numerator += first
            numerator *= numerator
            numerator /= denominator
            score = numerator.sum(axis=1)
            chance = np.cumsum(np.exp((score - score.max()) / heat))
            pick = int(np.searchsorted(chance, rng.random() * chance[-1]))
            if pick != here:
                mass = mass + change[pick] * gain[0, pick]
                first = first + change[pick] * gain[1, pick]
                other, new = holder[tried[pick]], tried[pick]
                words[cell], holder[new], holder[own] = new, cell, other
                if other >= 0:
                    words[other] = own
            if score[pick] > best_score:
                best_score, best_words = float(score[pick]), words.copy()
    return best_words
