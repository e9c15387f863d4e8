"""Allocation: the hull against its definition, the greedy against exhaustive search."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from qtaml_onnx.allocation import Option, best_within, greedy_sequence, lower_hull, uniform_sequence

options = st.builds(Option, cost=st.integers(0, 20), energy=st.integers(0, 100).map(float))
tensors = st.lists(st.lists(options, min_size=1, max_size=5), min_size=1, max_size=4)


def total(choice: tuple[int, ...], problem: list[list[Option]]) -> tuple[int, float]:
    chosen = [held[i] for held, i in zip(problem, choice, strict=True)]
    return sum(o.cost for o in chosen), sum(o.energy for o in chosen)


def interpolated(hull: list[Option], cost: float) -> float:
    """Energy of the hull's piecewise linear curve at a cost within its range."""
    for left, right in itertools.pairwise(hull):
        if cost <= right.cost:
            return left.energy + (right.energy - left.energy) * (cost - left.cost) / (right.cost - left.cost)
    return hull[-1].energy


@given(st.lists(options, min_size=1, max_size=12))
def test_hull_is_the_lower_convex_hull(points: list[Option]) -> None:
    hull = [points[i] for i in lower_hull(points)]
    assert hull[0].cost == min(p.cost for p in points)
    assert hull[-1].energy == min(p.energy for p in points)
    slopes = [(b.energy - a.energy) / (b.cost - a.cost) for a, b in itertools.pairwise(hull)]
    assert all(slope < 0 for slope in slopes)
    assert all(first < second for first, second in itertools.pairwise(slopes))
    for point in points:  # none lies below
        assert point.energy >= interpolated(hull, min(point.cost, hull[-1].cost)) - 1e-9


@given(tensors)
@settings(max_examples=200, deadline=None)
def test_every_step_of_the_sequence_is_the_best_at_its_cost(problem: list[list[Option]]) -> None:
    """Each allocation of the sequence minimises energy + λ·cost, hence energy among all of at most its cost."""
    best: dict[int, float] = {}
    for choice in itertools.product(*(range(len(held)) for held in problem)):
        cost, energy = total(choice, problem)
        best[cost] = min(best.get(cost, energy), energy)
    sequence = greedy_sequence(problem)
    points = [total(allocation, problem) for allocation in sequence]
    for (cost, energy), (more, less) in itertools.pairwise(points):
        assert more > cost
        assert less < energy
    for cost, energy in points:
        assert energy <= min(e for c, e in best.items() if c <= cost) + 1e-9
    assert points[-1][1] == pytest.approx(min(best.values()))


@given(tensors, st.integers(0, 80))
@settings(max_examples=200, deadline=None)
def test_budget_is_kept_and_missed_by_less_than_one_segment(problem: list[list[Option]], budget: int) -> None:
    allocation = best_within(problem, budget)
    cost, energy = total(allocation, problem)
    cheapest = sum(min(o.cost for o in held) for held in problem)
    assert cost <= max(budget, cheapest)
    feasible = [
        total(choice, problem)[1]
        for choice in itertools.product(*(range(len(held)) for held in problem))
        if total(choice, problem)[0] <= max(budget, cheapest)
    ]
    largest_step = max(
        (a.energy - b.energy for held in problem for a, b in itertools.pairwise([held[i] for i in lower_hull(held)])),
        default=0.0,
    )
    assert min(feasible) - 1e-9 <= energy <= min(feasible) + largest_step + 1e-9


def test_separate_planes_are_allocated_exactly() -> None:
    """Planes that act separately and cost the same: the greedy is the sort by energy saved, at any whole budget."""
    saved = [[64.0, 16.0, 4.0, 1.0], [40.0, 10.0, 2.5, 0.6]]
    problem = [[Option(m, sum(row[m:])) for m in range(5)] for row in saved]
    for budget in range(9):
        _cost, energy = total(best_within(problem, budget), problem)
        assert energy == pytest.approx(sum(sorted(itertools.chain(*saved))[: 8 - budget]))


def test_later_steps_that_fit_are_taken() -> None:
    """The first tensor's step is worth most but does not fit; the second's is taken, not the first's next one."""
    problem = [[Option(0, 100.0), Option(10, 10.0), Option(11, 5.0)], [Option(0, 3.0), Option(2, 1.0)]]
    assert best_within(problem, 5) == (0, 1)
    assert best_within(problem, 10) == (1, 0)
    assert best_within(problem, 12) == (2, 0)
    assert best_within(problem, 13) == (2, 1)


def test_uniform_protects_the_same_planes_everywhere() -> None:
    problem = [[Option(m, 1.0) for m in range(5)], [Option(2 * m, 1.0) for m in range(4)]]
    assert uniform_sequence(problem) == [(0, 0), (1, 1), (2, 2), (3, 3)]
