"""Groups of output channels: partition and allocation against exhaustive search, probes against the Jacobian."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from network_models import fault_model, network, planner_for, quantised
from onnx import helper
from small_models import OUT, X, matmul, model, normal
from stored_models import source_model

from qtaml_onnx.channel_groups import MOST_GROUPS, Part, channel_groups, channel_magnitudes, split
from qtaml_onnx.channel_sensitivity import channel_units, measure_channels, shrunk
from qtaml_onnx.data import Dataset
from qtaml_onnx.methods import METHODS
from qtaml_onnx.planner import Planner, prepare
from qtaml_onnx.sensitivity import measure_sensitivity

TAC = METHODS["tac"]


def cost(energy: np.ndarray, groups: list[np.ndarray]) -> float:
    return float(sum(len(group) * np.log(energy[group].mean()) for group in groups))


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """All ways to put things in sets."""
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for index in range(len(rest)):
            yield [*rest[:index], [items[0], *rest[index]], *rest[index + 1 :]]


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=7), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_groups_are_the_best_of_all_partitions(values: list[float], most: int) -> None:
    energy = np.array(values)
    groups = channel_groups(energy, most)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(energy)))
    assert len(groups) <= most
    least = min(cost(energy, list(map(np.array, p))) for p in partitions(list(range(len(energy)))) if len(p) <= most)
    assert cost(energy, groups) <= least + 1e-8 * len(energy)
    means = [energy[group].mean() for group in groups]
    assert all(first > second for first, second in itertools.pairwise(means))


@pytest.mark.parametrize("energy", [np.zeros(5), np.full(5, 3.0), np.array([2.0])], ids=["silent", "alike", "single"])
def test_no_groups_where_there_is_nothing_to_tell_apart(energy: np.ndarray) -> None:
    assert [group.tolist() for group in channel_groups(energy)] == [list(range(len(energy)))]


def test_silent_channels_are_a_group() -> None:
    groups = channel_groups(np.array([0.0, 4.0, 0.0, 5.0]), 2)
    assert [group.tolist() for group in groups] == [[1, 3], [0, 2]]


def by_channel(bits: int = 3, width: int = 4) -> tuple[Planner, Planner]:
    """Planners of one small model, by channel and by tensor, with energies that differ a hundredfold."""
    weights = {"A": normal(6, width, seed=1), "B": normal(width, 3, seed=2)}
    proto = model([matmul("A", result="h"), matmul("B", "h")], [X], [OUT], weights)
    planners = []
    for _granularity in range(2):
        source = source_model(proto)
        planners.append(Planner(source, prepare(source), fault_model(0.1), bits=bits))
    energies = {"A": 10.0 ** np.linspace(0, 2, width), "B": np.array([1.0, 30.0, 1.0])}
    planners[0].use_channel_energies(energies, TAC)
    return planners[0], planners[1]


def test_allocation_by_channel_is_the_best_of_all() -> None:
    """Every allocation of the sequence against all combinations of planes: none of at most its cost has less noise."""
    planner, whole = by_channel()
    parts, menu = planner.parts(TAC), planner.menu(TAC)
    assert len(parts) == 6
    assert sum(part.size for part in parts) == 6 * 4 + 4 * 3
    counts = [range(len(choices)) for choices in menu.choices]
    every = np.array([(menu.cost(a), menu.energy(a)) for a in itertools.product(*counts)])
    for allocation in menu.sequence():
        spent, energy = menu.cost(allocation), menu.energy(allocation)
        assert energy <= every[every[:, 0] <= spent, 1].min() * (1 + 1e-12)
    # The allocations by tensor are among these combinations, and some have much more noise at their cost.
    coarse = []
    for a, b in itertools.product(range(len(whole.menu(TAC).choices[0])), repeat=2):
        planes = tuple({"A": a, "B": b}[part.name] for part in parts)
        coarse.append((menu.cost(planes), menu.energy(planes)))
    by_tensor = np.array(coarse)
    ratios = [
        menu.energy(a) / by_tensor[by_tensor[:, 0] <= menu.cost(a), 1].min() for a in menu.sequence() if menu.energy(a)
    ]
    assert max(ratios) <= 1 + 1e-12
    assert min(ratios) < 0.5


def test_parts_with_the_same_choice_are_stored_as_one() -> None:
    planner, whole = by_channel()
    menu = planner.menu(TAC)
    nothing, everything = planner.within_budget(TAC, 0), planner.within_budget(TAC, 1)
    for plan, budget in ((nothing, 0), (everything, 1)):
        assert [tensor.part for tensor in plan.tensors] == [None, None]
        assert plan == whole.within_budget(TAC, budget)
    some = planner.plan(menu, menu.within(0.4 * planner.weight_bits))
    assert {tensor.name for tensor in some.tensors} == {"A", "B"}
    assert len(some.tensors) > 2
    for _name, entries in itertools.groupby(some.tensors, key=lambda tensor: tensor.name):
        planes = [tensor.protected_planes for tensor in entries]
        assert len(set(planes)) == len(planes)
    assert [tensor.stream for tensor in some.tensors] == list(range(len(some.tensors)))
    assert some.protected_bits == menu.cost(menu.within(0.4 * planner.weight_bits))


def test_shares_are_those_of_the_channels() -> None:
    planner, _whole = by_channel()
    energy = 10.0 ** np.linspace(0, 2, 4)
    for part in planner.parts(TAC):
        if part.name == "A" and part.channels is not None:
            assert part.share == pytest.approx(energy[part.channels].sum() / energy.sum())
    assert sum(part.share for part in planner.parts(TAC)) == pytest.approx(2)


def test_what_cannot_be_split_stays_whole() -> None:
    proto = quantised(network())
    planner = planner_for(proto, 0.1, TAC, probe=False)
    planner.use_channel_energies({tensor.name: np.arange(1.0, 9.0) for tensor in planner.tensors}, TAC)
    assert [(part.name, part.channels) for part in planner.parts(TAC)] == [(name, None) for name in "CGMW"]
    floats = planner_for(network(), 0.1, TAC, probe=False).tensors[0]
    assert [part.channels for part in split(floats, None)] == [None]
    assert len(split(floats, 2.0 ** np.arange(8))) == MOST_GROUPS
    assert isinstance(split(floats, np.zeros(8))[0], Part)


def test_magnitudes_are_squares_of_scales() -> None:
    planner = planner_for(network(), 0.1, TAC, probe=False)
    for tensor in planner.tensors:
        scaling = planner.scaling(TAC, tensor)
        found = channel_magnitudes(tensor, scaling)
        assert found is not None
        np.testing.assert_allclose(found, scaling.rows.astype(np.float64) ** 2, rtol=1e-6)


def dataset(x: np.ndarray) -> Dataset:
    return Dataset({"x": x}, None, False, None, "test")


def test_probed_channels_against_the_exact_jacobian() -> None:
    """y = tanh(xA)B, channel j of A: Σ_i mean over samples of (x_i · slope_j)² · Σ_k B_jk² · s_j².

    Means over 400 draws of quadratic forms in six normals, whose relative deviation is at most sqrt(2/400) for the
    noise, and as much for the four samples that each draw sees: five are 0.5. The sum over channels, of many more
    draws, is what a probe of the whole tensor measures.
    """
    a, b, x = normal(6, 8, seed=1) * np.float32(0.5), normal(8, 3, seed=2), normal(40, 6, seed=3)
    nodes = [matmul("A", result="h"), helper.make_node("Tanh", ["h"], ["t"]), matmul("B", "t")]
    loaded = source_model(model(nodes, [X], [OUT], {"A": a, "B": b})).model
    scales = {"A": np.abs(a).max(axis=0)[None], "B": np.abs(b).max(axis=0)[None]}
    weights = {"A": (a, scales["A"]), "B": (b, scales["B"])}
    sets = {"A": (1, [np.array([j]) for j in range(8)]), "B": (1, [np.array([j]) for j in range(3)])}
    found = measure_channels(loaded, weights, sets, dataset(x), draws=400)
    hidden = np.tanh(x.astype(np.float64) @ a)
    slope = 1 - hidden**2
    exact = {
        "A": np.einsum("ni,nj->j", x.astype(np.float64) ** 2, slope**2) / 40 * (b**2).sum(axis=1) * scales["A"][0] ** 2,
        "B": (hidden**2).sum(axis=1).mean() * scales["B"][0] ** 2,
    }
    for name, energy in exact.items():
        np.testing.assert_allclose(found[name], energy, rtol=0.5)
    whole = measure_sensitivity(loaded, weights, dataset(x), probes=400)
    for name in weights:
        assert found[name].sum() == pytest.approx(whole.energy[name], rel=0.2)


def test_channels_probed_as_one_share_their_energy() -> None:
    w, x = normal(6, 4, seed=1), normal(50, 6, seed=2)
    loaded = source_model(model([matmul()], [X], [OUT], {"W": w})).model
    sets = [np.array([0, 3]), np.array([1, 2])]
    scales = np.array([[1, 10, 10, 1]], dtype=np.float32)
    found = measure_channels(loaded, {"W": (w, scales)}, {"W": (1, sets)}, dataset(x))["W"]
    assert found[0] == found[3]
    assert found[1] == found[2]
    assert 20 < found[1] / found[0] < 500  # exactly 100


@pytest.mark.parametrize(("count", "most", "sizes"), [(5, 64, [1] * 5), (10, 4, [3, 3, 2, 2])])
def test_units_are_neighbours_in_magnitude(count: int, most: int, sizes: list[int]) -> None:
    magnitudes = np.random.default_rng(0).permutation(count).astype(np.float64)
    units = channel_units(magnitudes, most)
    assert [len(unit) for unit in units] == sizes
    assert magnitudes[np.concatenate(units)].tolist() == list(range(count))


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0])
def test_shrinking_is_nearer_the_truth_than_plain_means(spread: float) -> None:
    """Estimates that scatter as χ² of one degree of freedom: less mean-square error of logarithms, at any spread."""
    rng = np.random.default_rng(7)
    before, after = [], []
    for _trial in range(50):
        truth = spread * rng.standard_normal(40)
        draws = np.exp(truth)[:, None] * rng.chisquare(1, (40, 16))
        for found, errors in ((draws.mean(axis=1), before), (shrunk(draws), after)):
            logs = np.log(found)
            errors.append(np.mean((logs - logs.mean() - truth + truth.mean()) ** 2))
    assert np.mean(after) < {0.0: 0.2, 0.3: 0.6, 2.0: 1.01}[spread] * np.mean(before)


def test_what_cannot_be_shrunk_is_left() -> None:
    for draws in (np.array([[1.0], [4.0]]), np.array([[0.0, 0.0], [1.0, 3.0]]), np.array([[2.0, 4.0]])):
        np.testing.assert_array_equal(shrunk(draws), draws.mean(axis=1))
