"""Plans: budgets, predicted noise against Monte-Carlo, and the ledger counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from network_models import network, planner_for, quantised
from numpy.typing import NDArray
from small_models import info, matmul, model, normal

from qtaml_onnx.biases import restored_deviation
from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.codebooks import restored_gain
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_inject import fault_inject
from qtaml_onnx.layers import extra_variance
from qtaml_onnx.methods import METHODS, method_named
from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.plan_values import table_bits
from qtaml_onnx.planner import Planner
from qtaml_onnx.storage import uniform_code, word_sums
from qtaml_onnx.storage.channel_optimized import design_channel_optimized
from qtaml_onnx.storage.tensor import decode_tensor, encode_tensor, normalise
from qtaml_onnx.tensor_plan import TensorPlan
from qtaml_onnx.tensors import Scaling
from qtaml_onnx.weights import constant_array, stored_values

Array = NDArray[Any]
CODED = METHODS["channel-optimized"]
TRIALS = 300


def without_restored_deviation(planner: Planner, plan: TensorPlan) -> TensorPlan:
    """The tensor's plan with the factors that restore its layer's output deviation taken out of its scales.

    sqrt(s/(s + v)), v the variance that the noise of each weight adds, here summed up weight by weight.
    """
    if plan.bias is None or plan.bias.output in {value.name for value in planner.source.model.graph.outputs}:
        return plan
    layer, statistics = planner.layers[plan.name], planner.statistics[plan.name]
    tensor = next(tensor for tensor in planner.tensors if tensor.name == plan.name)
    rows = tensor.row_units(Scaling(np.asarray(plan.weight_scales, dtype=np.float32), plan.channel_axis))
    if rows is None or len(plan.scales) != len(layer.bias):
        return plan
    columns = None if plan.input_scales is None else np.asarray(plan.input_scales)
    added = plan.noise * rows**2 * extra_variance(layer, statistics, columns)
    factor = restored_deviation(statistics, added)
    assert (factor < 1).any()
    return plan.model_copy(update={"scales": tuple(np.asarray(plan.scales) / factor)})


def measured_noise(planner: Planner, plan: TensorPlan, rates: FlipRates, residual: float) -> tuple[float, float]:
    """Mean-square error of normalised weights as read, over trials: its mean and standard error."""
    tensor = next(tensor for tensor in planner.tensors if tensor.name == plan.name)
    words = encode_tensor(plan, stored_values(tensor.weight))
    plain = without_restored_deviation(planner, plan)
    plain_units = plain.model_copy(update={"form": "affine", "offset": 0.0, "scales": plain.weight_scales})
    units = decode_tensor(plain_units, np.ones_like(words))
    x = normalise(tensor.coded, units).astype(np.float64)
    flips = rates.truncated(plan.bits).protect(plan.protected_planes, residual).as_array()
    copies = np.broadcast_to(words, (TRIALS, *words.shape))
    faulty = fault_inject(copies, 1, flips, stream=plan.stream, bits=plan.bits)
    errors = [float(np.mean((decode_tensor(plain, read) / units - x) ** 2)) for read in faulty]
    return float(np.mean(errors)), float(np.std(errors, ddof=1) / np.sqrt(TRIALS))


@pytest.mark.parametrize(
    ("kind", "protection", "rates"),
    [
        ("float", "ideal", FlipRates.uniform(0.05, 8)),
        ("float", "repetition-3", FlipRates.asymmetric(0.02, 0.1, 8)),
        ("int8", "repetition-3", FlipRates.uniform(0.05, 8)),
    ],
    ids=["float", "float-asymmetric", "int8"],
)
@pytest.mark.parametrize("name", METHODS)
def test_predicted_noise_is_what_faults_do(name: str, rates: FlipRates, protection: str, kind: str) -> None:
    """Of every tensor, within 5 standard errors of the Monte-Carlo mean."""
    method = METHODS[name]
    budget = 0.0 if name == "none" else 0.2
    proto = network() if kind == "float" else quantised(network())
    bits = 4 if name == "channel-optimized" else 8
    planner = planner_for(proto, rates, method, bits=bits, protection=protection)
    plan = planner.within_budget(method, budget)
    assert [tensor.name for tensor in plan.tensors] == ["C", "G", "M", "W"]
    assert (plan.protected_bits > 0) == (budget > 0)
    assert (plan.residual_rate > 0) == (protection != "ideal")
    corrected = {tensor.name for tensor in plan.tensors if tensor.bias is not None}
    assert corrected == ({"C", "G", "M", "W"} if method.corrects_bias else set())
    for tensor in plan.tensors:
        mean, error = measured_noise(planner, tensor, rates, plan.residual_rate)
        assert error < 0.2 * mean, (tensor.name, tensor.protected_planes, tensor.noise, mean, error)
        assert abs(tensor.noise - mean) <= 5 * error, (tensor.name, tensor.protected_planes, tensor.noise, mean, error)


def test_predicted_noise_of_word_lengths_and_own_codes() -> None:
    """Lengths of their own, 12 planes, a code of its own where it pays: the same test."""
    rates = FlipRates.uniform(0.03, 12)
    planner = planner_for(network(32), rates, CODED, protection="repetition-3")
    plan = planner.within_bits(CODED, 6.0)
    assert len({(tensor.bits, len(tensor.protected_planes)) for tensor in plan.tensors}) > 1
    for tensor in plan.tensors:
        mean, error = measured_noise(planner, tensor, rates, plan.residual_rate)
        assert abs(tensor.noise - mean) <= 5 * error


@pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])
def test_budgets_are_kept_and_more_never_predicts_more_noise(name: str) -> None:
    method = METHODS[name]
    bits = 4 if name == "channel-optimized" else 8
    planner = planner_for(network(), 0.05, method, bits=bits)
    menu = planner.menu(method)
    before, spent = np.inf, -1
    for budget in (0.0, 0.01, 0.05, 0.1, 0.2, 0.33, 0.5, 0.8, 1.0):
        plan = planner.within_budget(method, budget)
        assert plan.protected_bits <= budget * plan.weight_bits * (1 + 1e-9)
        assert plan.protected_bits >= spent
        energy = menu.energy(menu.within(budget * plan.weight_bits * (1 + 1e-12)))
        assert energy <= before * (1 + 1e-12)
        before, spent = energy, plan.protected_bits
    assert spent == plan.weight_bits


def noise_of(plan: StoragePlan) -> float:
    energy = plan.noise_energy
    assert energy is not None
    return energy


@pytest.mark.parametrize("protection", ["ideal", "ldpc-3-5"])
def test_bits_a_weight_are_kept_all_in(protection: str) -> None:
    """Words, parity and metadata over the number of weights; more bits never predict more noise."""
    planner = planner_for(network(32), 0.05, CODED, protection=protection)
    before = np.inf
    for wanted in (2.6, 3.0, 4.1, 4.5, 5.9, 6.4, 7.4, 9.0, 12.0):
        plan = planner.within_bits(CODED, wanted)
        used = plan.weight_bits + plan.parity_bits + plan.metadata_bits
        assert used <= wanted * planner.weights
        assert plan.parity_bits == sum(
            planner.protection.parity_bits(t.size * len(t.protected_planes)) for t in plan.tensors
        )
        assert noise_of(plan) <= before
        before = noise_of(plan)
        if protection == "ideal":
            assert plan.protected_bits == 0
    assert used > 8 * planner.weights


def test_too_few_bits_a_weight_say_what_the_least_is() -> None:
    planner = planner_for(network(), 0.05, CODED, probe=False)
    with pytest.raises(InputError, match=r"--bits-per-weight 1 is too little: the shortest words .* take (\d\.\d+)$"):
        planner.within_bits(CODED, 1.0)


def test_bits_a_weight_need_code_books_and_float_weights() -> None:
    planner = planner_for(network(), 0.05, METHODS["tac"])
    with pytest.raises(InputError, match="--bits-per-weight needs --method channel-optimized, not tac"):
        planner.within_bits(METHODS["tac"], 4.0)
    planner = planner_for(quantised(network()), 0.05, CODED, keep_codes=True)
    with pytest.raises(InputError, match="'C' has words already; leave out --bits-per-weight or --keep-codes"):
        planner.within_bits(CODED, 4.0)


def test_bits_a_weight_need_equal_planes() -> None:
    rates = FlipRates((0.05,) * 7 + (0.0,), (0.05,) * 8)
    with pytest.raises(InputError, match="--bits-per-weight needs flip rates that are the same on all planes"):
        planner_for(network(), rates, CODED, probe=False).within_bits(CODED, 6.0)


def test_own_code_book_exactly_where_it_pays() -> None:
    """A tensor of two values among Gaussian ones: its own code saves nearly all of its noise, but its table costs.

    It pays where the share of the model's noise that it saves, in bits of the model, is more than the table's bits.
    """
    signs = (np.sign(normal(40, 40, seed=1)) * np.float32(0.3)).astype(np.float32)
    decisions = {}
    for inner in (40, 300):
        constants = {"A": normal(40, inner, seed=2), "B": normal(inner, 40, seed=3), "S": signs}
        nodes = [matmul("A", result="a"), matmul("B", "a", "b"), matmul("S", "b", "y")]
        proto = model(nodes, [info("x", 1, None, 40)], [info("y", 1, None, 40)], constants)
        planner = planner_for(proto, 0.05, CODED, bits=4, calibrate=False, probe=False)
        menu = planner.menu(CODED, protectable=False)
        plan = planner.plan(menu, (0, 0, 0))
        book, rates = planner.books(CODED).book(4, 0), FlipRates.uniform(0.05, 4)
        bits = sum(tensor.size * tensor.bits for tensor in plan.tensors)
        for tensor, data, choices in zip(plan.tensors, planner.tensors, menu.choices, strict=True):
            x = planner.normalised(CODED, data)
            _gain, shared = restored_gain(book.readout, rates, word_sums(book.code, x))
            code, readout = design_channel_optimized(x, rates, restore_gain=False)
            _gain, own = restored_gain(readout, rates, word_sums(code, x))
            worth = choices[0].energy / menu.energy((0, 0, 0)) * bits
            pays = (1 - own / shared) * worth > table_bits(4)
            assert tensor.noise == pytest.approx(own if pays else shared, rel=1e-12)
            assert (tensor.code.code() == book.code) != pays
            decisions[inner, tensor.name] = pays
    assert decisions[40, "S"]
    assert not all(decisions.values())


def stored_bits(model_after: ir.Model, plan: StoragePlan) -> int:
    """Bits of all constants that storing put into the graph, words apart: what must be kept safely."""
    total = 0
    added = ("table", "scale", "input_scale", "offset", "mean_input", "coverage", "mean_output", "bias_step")
    for name, value in model_after.graph.initializers.items():
        if any(name == f"{tensor.name}.{suffix}" for tensor in plan.tensors for suffix in added):
            array = constant_array(value)
            total += array.size * array.dtype.itemsize * 8
    return total


def test_metadata_are_counted_by_hand() -> None:
    """The network at 4 bits: one shared table of 16 halves; scales of 32 bits, input scales and means of 16.

    C [8,3,3,3] with padding: 8 scales, 3 input scales, 3 means, 9 coverages; G [8,4,3,3] in 2 groups, no bias, so that
    its 8 targets are new: no input scales, 8 means, 9 coverages; M [72,12]: 12 scales, 72 input scales and means;
    W [5,12]: 5 scales, 12 input scales and means.
    """
    planner = planner_for(network(), 0.05, CODED, bits=4)
    plan = planner.within_budget(CODED, 0)
    by_hand = {
        "C": 32 * 8 + 16 * 3 + 16 * (3 + 9),
        "G": 32 * 8 + 16 * (8 + 9) + 32 * 8,
        "M": 32 * 12 + 16 * 72 + 16 * 72,
        "W": 32 * 5 + 16 * 12 + 16 * 12,
    }
    assert {tensor.name: tensor.metadata_bits for tensor in plan.tensors} == by_hand
    assert len({tensor.table for tensor in plan.tensors}) == 1
    assert plan.metadata_bits == sum(by_hand.values()) + 16 * 16
    hardened, _faulty = carry_out(planner.source, plan)
    old_biases = 32 * (8 + 12 + 5)  # their places are taken by targets, which are no more than the model had
    assert stored_bits(hardened, plan) == plan.metadata_bits + old_biases
    assert plan.weight_bits == 4 * (8 * 27 + 8 * 36 + 72 * 12 + 60)
    assert plan.protected_bits == plan.parity_bits == 0


def test_metadata_of_affine_and_integer_forms() -> None:
    """TAC: a scale a channel and, as the drift is not zero, an offset; a quantised model: its scales and its tables."""
    planner = planner_for(network(), 0.05, METHODS["tac"])
    plan = planner.within_budget(METHODS["tac"], 0)
    assert {tensor.form for tensor in plan.tensors} == {"affine"}
    assert plan.metadata_bits == 32 * (8 + 8 + 12 + 5) + 32 * 4
    hardened, _faulty = carry_out(planner.source, plan)
    assert stored_bits(hardened, plan) == plan.metadata_bits
    planner = planner_for(quantised(network()), 0.05, METHODS["posterior-mean"])
    plan = planner.within_budget(METHODS["posterior-mean"], 0)
    assert {tensor.form for tensor in plan.tensors} == {"integer-table"}
    corrections = sum(tensor.bias.metadata_bits for tensor in plan.tensors if tensor.bias is not None)
    assert plan.metadata_bits == 32 * (8 + 8 + 12 + 5) + 4 * 8 * 256 + corrections


def test_fault_model_of_a_plan_ends_with_its_longest_word() -> None:
    rates = FlipRates(tuple(0.01 * (k + 1) for k in range(12)), tuple(0.002 * (k + 1) for k in range(12)))
    planner = planner_for(network(), rates, CODED, bits=4, probe=False)
    plan = planner.within_budget(CODED, 0)
    assert plan.fault_model.p01 == rates.p01[:4]
    assert plan.fault_model.p10 == rates.p10[:4]
    planner = planner_for(network(16), 0.05, CODED, probe=False)
    plan = planner.within_bits(CODED, 6.0)
    assert len(plan.fault_model.p01) == plan.planes == max(tensor.bits for tensor in plan.tensors) < 12
    planner = planner_for(quantised(network()), rates, METHODS["none"], bits=4)
    assert len(planner.within_budget(METHODS["none"], 0).fault_model.p01) == 8


def test_a_thick_oxide_top_plane_needs_no_protection() -> None:
    """Planes with rates of their own: the code books protect the worst ones, and the noise is far lower than at the
    largest rate on all planes."""
    rates = FlipRates((0.05, 0.05, 0.05, 0.0), (0.05, 0.05, 0.05, 0.0))
    planner = planner_for(network(), rates, CODED, bits=4, probe=False)
    for budget, planes in ((0.25, 1), (0.5, 2), (0.75, 3)):
        plan = planner.within_budget(CODED, budget)
        assert {3} & {p for tensor in plan.tensors for p in tensor.protected_planes} == set()
        assert max(len(tensor.protected_planes) for tensor in plan.tensors) >= planes
    for tensor in planner.within_budget(CODED, 0).tensors:
        mean, error = measured_noise(planner, tensor, rates, 0.0)
        assert abs(tensor.noise - mean) <= 5 * error
    worse = planner_for(network(), 0.05, CODED, bits=4, probe=False).within_budget(CODED, 0)
    better = planner.within_budget(CODED, 0)
    for one, other in zip(better.tensors, worse.tensors, strict=True):
        assert one.noise < 0.5 * other.noise


@pytest.mark.parametrize("name", METHODS)
def test_rates_without_an_inverse(name: str) -> None:
    """p01 + p10 ≥ 1: affine read-outs cannot be, the designed ones can, and read better than nothing at all."""
    method, rates = METHODS[name], FlipRates.asymmetric(0.7, 0.6, 8)
    planner = planner_for(network(), rates, method, bits=4 if name == "channel-optimized" else 8)
    if method.readout == "bitwise-affine":
        with pytest.raises(InputError, match=r"p01 \+ p10 = 1.3 ≥ 1, which has no inverse; .* posterior-mean"):
            planner.within_budget(method, 0.1)
        return
    for tensor in planner.within_budget(method, 0).tensors:
        mean, error = measured_noise(planner, tensor, rates, 0.0)
        assert abs(tensor.noise - mean) <= 5 * error


def test_named_protection_is_not_defined_beyond_one_half() -> None:
    with pytest.raises(InputError, match=r"raw flip rate 0.65 of a protected bit is outside \[0, 0.5\]"):
        planner_for(network(), FlipRates.asymmetric(0.7, 0.6, 8), CODED, probe=False, protection="repetition-3")


def test_too_few_planes_are_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="flip rates are given for 6 bit planes, but 8 are needed"):
        planner_for(network(), FlipRates.uniform(0.05, 6), METHODS["tac"])


def test_methods_by_name() -> None:
    assert method_named("tac") is METHODS["tac"]
    with pytest.raises(InputError, match="unknown --method 'tac2'; choose from channel-optimized, posterior-mean, tac"):
        method_named("tac2")


def test_designs_protect_the_most_harmful_planes_first() -> None:
    """Two's complement with equal rates: from the sign down, each plane a quarter of the noise of the one above."""
    x = normal(2000) / np.float32(4)
    designs = METHODS["tac"].designs(x, uniform_code("twos-complement", 8), FlipRates.uniform(0.05, 8))
    assert [design.protected_planes for design in designs] == [tuple(range(8 - m, 8)) for m in range(9)]
    fine = (1 / 127) ** 2 / 12
    noise = [design.noise - fine for design in designs]
    a = 1 - 2 * 0.05
    for m in range(8):  # Σ over exposed planes of 4^k p(1−p)/(127 a)²
        expected = sum(4.0**k for k in range(8 - m)) * 0.05 * 0.95 / (127 * a) ** 2
        assert noise[m] == pytest.approx(expected, rel=0.02, abs=0.05 * fine)
    assert len(METHODS["tac"].designs(x, uniform_code("twos-complement", 8), FlipRates.uniform(0.0, 8))) == 1


@pytest.mark.parametrize("name", ["tac", "magnitude", "uniform-msp"])
def test_overhead_is_predicted_by_sensitivities_whatever_a_method_goes_by(name: str) -> None:
    """The smallest allocation whose plan has at most that noise; the one before it has more."""
    planner = planner_for(network(), 0.05, METHODS["tac"])
    method = METHODS[name]
    menu = planner.menu(method)
    sequence = menu.sequence()
    energies = [planner.plan(menu, allocation).noise_energy or 0.0 for allocation in sequence[:: len(sequence) // 4]]
    limit = float(np.median(energies))
    found = planner.smallest_overhead(method, limit)
    assert found is not None
    reached = [planner.plan(menu, a) for a in sequence if menu.cost(a) / planner.weight_bits <= found + 1e-12]
    assert (reached[-1].noise_energy or 0.0) <= limit * (1 + 1e-9)
    assert all((plan.noise_energy or 0.0) > limit * (1 - 1e-9) for plan in reached[:-1])
