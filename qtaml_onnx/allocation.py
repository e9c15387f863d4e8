"""Where protected bits go: a sequence of allocations from nothing protected to everything, each the best at its cost.

Noise energies of tensors add up to first order, so the cheapest way to any noise level is found tensor by tensor: the
lower convex hull of (protected bits, noise energy) of each, and all hull segments in the order of energy saved a bit
(reverse water-filling; Shoham & Gersho 1988). Exact where planes act separately, else optimal up to one segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Option", "best_within", "greedy_sequence", "lower_hull", "uniform_sequence"]


@dataclass(frozen=True)
class Option:
    """One way to store a tensor: its cost in bits and the output noise energy that it leaves."""

    cost: int
    energy: float


Allocation = tuple[int, ...]
"""For each tensor the index of its option."""


def lower_hull(options: Sequence[Option]) -> list[int]:
    """Indices of the options on the lower convex hull of (cost, energy), from the cheapest to the least energy."""
    hull: list[int] = []
    for index in sorted(range(len(options)), key=lambda i: (options[i].cost, options[i].energy)):
        point = options[index]
        if hull and point.energy >= options[hull[-1]].energy:
            continue  # dearer and no better
        while len(hull) >= 2:
            first, last = options[hull[-2]], options[hull[-1]]
            rise = (last.energy - first.energy) * (point.cost - first.cost)
            if rise < (point.energy - first.energy) * (last.cost - first.cost):
                break
            hull.pop()
        hull.append(index)
    return hull


def _segments(tensors: Sequence[Sequence[Option]]) -> tuple[Allocation, list[tuple[float, int, int]]]:
    """The cheapest allocation, and the hull steps (energy saved a bit, tensor, option) in the order to take them."""
    start, steps = [], []
    for number, options in enumerate(tensors):
        hull = lower_hull(options)
        start.append(hull[0])
        for before, after in pairwise(hull):
            saved = options[before].energy - options[after].energy
            steps.append((saved / (options[after].cost - options[before].cost), number, after))
    steps.sort(key=lambda step: -step[0])  # stable: within a tensor the hull's slopes already fall
    return tuple(start), steps


def greedy_sequence(tensors: Sequence[Sequence[Option]]) -> list[Allocation]:
    """Allocations of growing cost and falling energy, each one hull segment of one tensor further.

    Args:
        tensors: For each tensor its options, in any order.
    """
    current, steps = _segments(tensors)
    sequence = [current]
    for _slope, number, option in steps:
        current = (*current[:number], option, *current[number + 1 :])
        sequence.append(current)
    return sequence


def best_within(tensors: Sequence[Sequence[Option]], budget: float) -> Allocation:
    """The greedy allocation of at most `budget` bits: steps that do not fit are passed over, others are still taken.

    Args:
        tensors: For each tensor its options.
        budget: Most bits in all, beyond none of which the cheapest allocation goes.
    """
    current, steps = _segments(tensors)
    spent = sum(options[i].cost for options, i in zip(tensors, current, strict=True))
    blocked: set[int] = set()
    for _slope, number, option in steps:
        extra = tensors[number][option].cost - tensors[number][current[number]].cost
        if number in blocked or spent + extra > budget:
            blocked.add(number)  # its later segments stand on this one
            continue
        spent += extra
        current = (*current[:number], option, *current[number + 1 :])
    return current


def uniform_sequence(tensors: Sequence[Sequence[Option]]) -> list[Allocation]:
    """The same option index in every tensor, 0, 1, 2, …: Uniform-MSP, where option m protects the top m planes."""
    return [(m,) * len(tensors) for m in range(min((len(options) for options in tensors), default=1))]
