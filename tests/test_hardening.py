"""Hardening from end to end: what is measured, the search for a budget, gates, and residual faults."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from digits_example import CALIBRATION, EVAL, MODEL
from network_models import network, planner_for, quantised, samples
from numpy.typing import NDArray
from onnx import numpy_helper
from scipy import stats
from small_models import CASES
from stored_models import fault_options, rates_feed, run

from qtaml_onnx.campaign import Campaign, Variant
from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.data import Dataset, input_specs, load_dataset
from qtaml_onnx.errors import GateError, InputError
from qtaml_onnx.hardening import HardenOptions, HardenResult, harden
from qtaml_onnx.methods import METHODS
from qtaml_onnx.modelio import load_model
from qtaml_onnx.passes.inject_faults import InjectFaults
from qtaml_onnx.passes.remove_faults import RemoveFaults
from qtaml_onnx.planner import Planner
from qtaml_onnx.sensitivity import Sensitivity
from qtaml_onnx.verification import comparison_options, verify_files

Array = NDArray[Any]


def digits(path: Path, count: int | None = None) -> Dataset:
    data = load_dataset(path, input_specs(load_model(MODEL).model), "--eval")
    return data if count is None else data.head(count)


def means(result: HardenResult) -> dict[tuple[str, float], float]:
    assert result.report.evaluation is not None
    return {(r.variant, r.flip_rate): r.mean for r in result.report.evaluation.results}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_digits_survive_one_bit_in_twenty_with_nothing_protected() -> None:
    """The default: designed codes, no protected bit. Plain 8-bit weights lose more than a third of the accuracy."""
    before = sha256(MODEL)
    result = harden(MODEL, 0.05, calibration=CALIBRATION, evaluation=EVAL, trials=4)
    found = means(result)
    clean = found["clean", 0.0]
    assert result.plan.protected_bits == 0
    assert result.plan.weight_bits == 8 * sum(tensor.size for tensor in result.plan.tensors)
    assert found["hardened", 0.05] >= 0.97 * clean
    assert found["unprotected", 0.05] <= 2 / 3 * clean
    assert found["hardened", 0.0] >= 0.99 * clean
    assert found["quantized", 0.0] >= 0.99 * clean
    assert all(tensor.bias is not None for tensor in result.plan.tensors)
    assert sha256(MODEL) == before == result.plan.source_sha256
    assert not result.report.warnings


@pytest.fixture(scope="module")
def target() -> tuple[HardenResult, HardenOptions, Dataset]:
    data = digits(EVAL, 200)
    options: dict[str, Any] = {"method": "tac", "target": 0.95, "trials": 4, "seed": 3}
    return harden(MODEL, 0.05, calibration=CALIBRATION, evaluation=data, **options), HardenOptions(**options), data


def test_target_is_met_by_the_plan_and_not_by_the_next_smaller_one(
    target: tuple[HardenResult, HardenOptions, Dataset],
) -> None:
    """The lower end of the interval, on the same seeds: at or above 95 % of clean, and below it one step before."""
    result, options, data = target
    source = load_model(MODEL)
    original = ir.to_proto(source.model)
    planner = planner_for(original, 0.05, METHODS["tac"], calibrate=False, probe=False)
    campaign = Campaign(data, trials=options.trials, seed=options.seed)
    wanted = 0.95 * campaign.measure_clean(original).interval.mean

    # The sensitivities as measured are in the plan: with them the menu is the one that the search went through.
    energy = {tensor.name: tensor.sensitivity for tensor in result.plan.tensors}
    planner.use_sensitivity(Sensitivity(energy, 1.0, 1, 1), METHODS["tac"])  # type: ignore[arg-type]
    menu = planner.menu(METHODS["tac"])
    sequence = menu.sequence()
    lows = {}
    position = next(
        i for i, a in enumerate(sequence) if planner.plan(menu, a).protected_bits == result.plan.protected_bits
    )
    for index in (position - 1, position):
        _hardened, faulty = carry_out(planner.source, planner.plan(menu, sequence[index]))
        found = campaign.measure_faulty(Variant("hardened", ir.to_proto(faulty)), [FlipRates.uniform(0.05, 8)])
        lows[index] = found[0].interval.low
    assert position > 0
    assert lows[position] >= wanted > lows[position - 1]
    assert result.report.evaluation is not None
    reported = [r for r in result.report.evaluation.results if r.variant == "hardened" and r.flip_rate > 0]
    assert reported[0].ci_low == lows[position]


def test_target_needs_two_trials_and_no_budget(target: tuple[HardenResult, HardenOptions, Dataset]) -> None:
    data = target[2]
    with pytest.raises(InputError, match="--target compares intervals, which one trial does not have"):
        harden(MODEL, 0.05, evaluation=data, target=0.9, trials=1)
    with pytest.raises(InputError, match="--budget and --target exclude each other"):
        harden(MODEL, 0.05, evaluation=data, target=0.9, budget=0.1)
    with pytest.raises(InputError, match="--target needs data to measure on"):
        harden(MODEL, 0.05, target=0.9)


def test_target_out_of_reach() -> None:
    """Words of two bits keep less than all, however well protected."""
    with pytest.raises(GateError, match=r"--target 1 cannot be met: even with every bit protected, 2-bit weights"):
        harden(MODEL, 0.05, evaluation=digits(EVAL, 200), method="uniform-msp", bits=2, target=1.0, trials=2)


def test_gate(small: Path) -> None:
    """At exactly the share that is kept it passes, just above it fails; without a limit there is no gate."""

    def hardened(limit: float | None) -> HardenResult:
        return harden(
            small / "float.onnx", 0.05, calibration=samples(), evaluation=samples(40), bits=4, trials=2,
            method="posterior-mean", fail_under=limit,
        )  # fmt: skip

    first = hardened(None)
    first.gate()
    assert first.report.gate is None
    kept = means(first)["hardened", 0.05] / means(first)["clean", 0.0]
    assert 0 < kept < 1
    hardened(kept).gate()
    with pytest.raises(GateError, match=f"keeps {kept:.4f} of the clean metric, less than --fail-under"):
        hardened(min(1.0, kept + 1e-6)).gate()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    onnx.save(network(), folder / "float.onnx")
    onnx.save(quantised(network()), folder / "int8.onnx")
    return folder


@pytest.mark.parametrize(
    ("rates", "designed"),
    [
        (0.0, 0.0),
        (FlipRates(tuple(0.01 * k for k in range(12)), (0.0,) * 12), 0.03),  # planes that the words do not have
        (FlipRates((0.05, 0.05, 0.05, 0.0), (0.02, 0.02, 0.02, 0.0)), 0.05),
    ],
    ids=["none", "more-planes", "thick-oxide"],
)
def test_gate_finds_the_designed_rate(rates: Any, designed: float, small: Path) -> None:
    result = harden(
        small / "float.onnx", rates, calibration=samples(), evaluation=samples(40), bits=4, trials=2, fail_under=0.01
    )
    result.gate()
    assert ("hardened", designed) in means(result)


def digits_int8(folder: Path) -> Path:
    path = folder / "digits_int8.onnx"
    if not path.exists():
        onnx.save(quantised(onnx.load(MODEL)), path)
    return path


@pytest.mark.parametrize("kind", ["float", "int8"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_verifies(method: str, kind: str, small: Path, tmp_path: Path) -> None:
    """The digits network and an INT8 version of it: valid, standard, equal to the plan without faults, folded."""
    original = MODEL if kind == "float" else digits_int8(small)
    before = sha256(original)
    bits = 4 if method == "channel-optimized" else 8
    result = harden(original, 0.02, calibration=digits(CALIBRATION, 32), method=method, bits=bits)
    path = tmp_path / "o.onnx"
    onnx.save(ir.to_proto(result.model), path)
    path.with_suffix(".plan.json").write_text(result.plan.to_json())
    checks = verify_files(path, original, data=digits(EVAL, 4))
    assert [check.name for check in checks if not check.passed] == []
    assert len(checks) == (6 if kind == "float" else 7)
    assert len(result.plan.tensors) == 6
    assert sha256(original) == before
    assert all(tensor.bits == (bits if kind == "float" else 8) for tensor in result.plan.tensors)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "channel-optimized", "bits": 4},
        {"method": "posterior-mean", "budget": 0.1, "protection": "repetition-3"},
        {"method": "channel-optimized", "bits_per_weight": 6.0, "bits": 4},
    ],
    ids=["designed", "repetition", "word-lengths"],
)
def test_two_runs_give_the_same(options: dict[str, Any], small: Path) -> None:
    """Plan, model and every number of the report."""
    results = [
        harden(small / "float.onnx", 0.05, calibration=samples(), evaluation=samples(40), trials=3, seed=7, **options)
        for _ in range(2)
    ]
    first, second = results
    assert first.plan.sha256 == second.plan.sha256
    for one, other in ((first.model, second.model), (first.faulty, second.faulty)):
        texts = [ir.to_proto(m).SerializeToString(deterministic=True) for m in (one, other)]
        assert texts[0] == texts[1]
    reports = [result.report.model_dump(exclude={"created", "inference"}) for result in results]
    assert reports[0] == reports[1]
    other_seed = harden(
        small / "float.onnx", 0.05, calibration=samples(), evaluation=samples(40), trials=3, seed=8, **options
    )
    assert means(other_seed) != means(first)
    assert means(other_seed)["clean", 0.0] == means(first)["clean", 0.0]


def test_rates_without_an_inverse_harden_with_designed_codes(small: Path) -> None:
    rates = FlipRates.asymmetric(0.8, 0.7, 8)
    result = harden(small / "float.onnx", rates, calibration=samples(), evaluation=samples(40), bits=4, trials=2)
    assert means(result)["hardened", 0.8] > means(result)["unprotected", 0.8]
    assert result.report.prediction.saturation_ratio is None
    with pytest.raises(InputError, match=r"has p01 \+ p10 = 1.5 ≥ 1, which has no inverse; lower the flip rates"):
        harden(small / "float.onnx", rates, calibration=samples(), method="tac")


def test_without_calibration_a_warning_says_so(small: Path) -> None:
    result = harden(small / "float.onnx", 0.05, bits=4)
    assert len(result.report.warnings) == 1
    assert "no calibration data" in result.report.warnings[0]
    assert all(tensor.bias is None and tensor.input_scales is None for tensor in result.plan.tensors)
    assert result.report.evaluation is None
    result.gate()


def test_options_take_their_parts_away(small: Path) -> None:
    base = {"calibration": samples(), "bits": 4}
    no_bias = harden(small / "float.onnx", 0.05, bias_correction=False, **base)  # type: ignore[arg-type]
    assert all(tensor.bias is None for tensor in no_bias.plan.tensors)
    assert any(tensor.input_scales is not None for tensor in no_bias.plan.tensors)
    no_scales = harden(small / "float.onnx", 0.05, input_scales=False, **base)  # type: ignore[arg-type]
    assert all(tensor.input_scales is None and tensor.bias is not None for tensor in no_scales.plan.tensors)
    single = harden(small / "float.onnx", 0.05, per_tensor_scales=True, **base)  # type: ignore[arg-type]
    assert all(len(tensor.scales) == 1 and tensor.input_scales is None for tensor in single.plan.tensors)
    part = harden(small / "float.onnx", 0.05, include=["C", "W"], exclude=["W"], **base)  # type: ignore[arg-type]
    assert [tensor.name for tensor in part.plan.tensors] == ["C"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1.5}, "--budget 1.5 is not a fraction"),
        ({"budget": -0.1}, "--budget -0.1 is not a fraction"),
        ({"fail_under": 0.5}, "--fail-under needs data to measure on"),
        ({"bits": 1}, "--bits 1 is out of range; channel-optimized stores words of 2 to 12 bits"),
        ({"bits": 9, "method": "tac"}, "--bits 9 is out of range; tac stores words of 2 to 8 bits"),
        ({"bits_per_weight": 0.5}, "--bits-per-weight 0.5 is out of range"),
        ({"bits_per_weight": 4.0, "budget": 0.1}, "--bits-per-weight excludes --budget and --target"),
        ({"method": "magic"}, "unknown --method 'magic'"),
        ({"protection": "magic-3"}, "unknown protection 'magic-3'"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str, small: Path) -> None:
    with pytest.raises(InputError, match=message):
        harden(small / "float.onnx", 0.05, **options)


def protected(name: str = "tac", rates: FlipRates | float = 0.05, budget: float = 0.4) -> tuple[Planner, Any]:
    planner = planner_for(network(16), rates, METHODS[name], protection="repetition-3")
    return planner, planner.within_budget(METHODS[name], budget)


def test_no_residual_faults_at_rate_zero() -> None:
    """Bit for bit the hardened model's outputs, for float and for quantised weights."""
    for proto in (network(), quantised(network())):
        planner = planner_for(proto, 0.05, METHODS["posterior-mean"], protection="repetition-3")
        plan = planner.within_budget(METHODS["posterior-mean"], 0.3)
        assert plan.residual_rate > 0
        hardened, faulty = carry_out(planner.source, plan)
        feeds = samples(8).arrays
        wanted = run(ir.to_proto(hardened), feeds, comparison_options())
        got = run(ir.to_proto(faulty), feeds | rates_feed(0.0), fault_options())
        assert [a.tobytes() for a in got] == [b.tobytes() for b in wanted]


@pytest.mark.parametrize(
    ("rates", "fed"),
    [
        (FlipRates.uniform(0.05, 8), 1.0),
        (FlipRates.uniform(0.05, 8), 2.0),
        (FlipRates.asymmetric(0.02, 0.1, 8), 1.0),
    ],
    ids=["designed", "doubled", "asymmetric"],
)
def test_protected_planes_flip_at_the_residual_rate(rates: FlipRates, fed: float) -> None:
    """Chi-square over planes, directions and tensors, at a residual exaggerated to 0.04: at the designed rates exactly
    that, at twice the rates twice that, alike in both directions as a masked code leaves it; exposed planes flip at
    their own rates, and no more."""
    planner, plan = protected(rates=rates, budget=0.5)
    plan = plan.model_copy(update={"residual_rate": 0.04})
    assert all(0 < len(tensor.protected_planes) < 8 for tensor in plan.tensors)
    hardened, _faulty = carry_out(planner.source, plan.model_copy(update={"residual_rate": 0.0}))
    InjectFaults(plan)(hardened)
    proto = ir.to_proto(hardened)
    last = {}
    for node in proto.graph.node:
        if node.op_type == "FaultInject":
            stem = node.input[0]
            root = next((name for name, output in last.items() if output == stem), stem)
            last[root] = node.output[0]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in last.values())
    trials = 40
    counts: dict[tuple[str, int, int], list[int]] = {}
    stored = {t.name: numpy_helper.to_array(t).view(np.uint8) for t in proto.graph.initializer if t.name in last}
    session = ort.InferenceSession(proto.SerializeToString(), fault_options(), providers=["CPUExecutionProvider"])
    array = (rates.as_array() * fed).astype(np.float32)
    for seed in range(trials):
        feed = samples(1).arrays | {"qtaml_seed": np.asarray(seed), "qtaml_flip_rates": array}
        for name, got in zip(last, session.run(list(last.values()), feed), strict=True):
            for plane in range(8):
                for state in (0, 1):
                    held = (stored[name] >> plane & 1) == state
                    flipped = (stored[name] ^ got.view(np.uint8))[held] >> plane & 1
                    entry = counts.setdefault((name, plane, state), [0, 0])
                    entry[0] += int(flipped.sum())
                    entry[1] += int(held.sum())
    planes = {tensor.words_name: tensor.protected_planes for tensor in plan.tensors}
    terms: dict[bool, list[float]] = {True: [], False: []}
    for (name, plane, state), (flipped_count, total) in counts.items():
        safe = plane in planes[name]
        rate = 0.04 * fed if safe else float(array[state, plane])
        if total * rate > 8:
            terms[safe].append((flipped_count - total * rate) ** 2 / (total * rate * (1 - rate)))
    for part in terms.values():
        assert len(part) > 20
        assert 1e-3 < stats.chi2.sf(sum(part), len(part)) < 1 - 1e-3


def test_residual_and_raw_faults_are_independent() -> None:
    """Streams of their own: two planes of one word, one protected and one not, flip together as chance has it."""
    planner, plan = protected()
    plan = plan.model_copy(update={"residual_rate": 0.05})
    operators = []
    hardened, _faulty = carry_out(planner.source, plan)
    InjectFaults(plan)(hardened)
    for node in hardened.graph:
        if node.op_type == "FaultInject":
            operators.append((node.attributes["stream"].as_int(), node.attributes["exposed_planes"].as_int()))
    assert len({stream for stream, _mask in operators}) == len(operators) == 2 * len(plan.tensors)
    for tensor in plan.tensors:
        masks = dict(operators)
        assert masks[tensor.stream] ^ masks[tensor.stream + len(plan.tensors)] == 0xFF


@pytest.mark.parametrize("make", ["network", "int8", "function-arguments"])
def test_removing_faults_restores_the_hardened_model_byte_for_byte(make: str) -> None:
    proto = {
        "network": network,
        "int8": lambda: quantised(network()),
        "function-arguments": lambda: CASES["function-arguments"]().model,
    }[make]()
    planner = planner_for(
        proto, 0.05, METHODS["posterior-mean"], protection="repetition-3", calibrate=False, probe=False
    )
    plan = planner.within_budget(METHODS["posterior-mean"], 0.3)
    hardened, faulty = carry_out(planner.source, plan)
    wanted = ir.to_proto(hardened).SerializeToString(deterministic=True)
    assert plan.residual_rate > 0
    assert ir.to_proto(faulty).SerializeToString(deterministic=True) != wanted
    RemoveFaults()(faulty)
    assert ir.to_proto(faulty).SerializeToString(deterministic=True) == wanted


@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_weights_that_callers_may_feed_are_named_in_a_warning(ir_version: int, tmp_path: Path) -> None:
    """From IR 4 on an initializer that is a graph input has a default that callers may override; IR 3 lists all so."""
    proto = CASES["matmul"]().model
    proto.ir_version = ir_version
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "W")
    others = [tensor for tensor in proto.graph.initializer if ir_version == 3 and tensor.name != "W"]
    for tensor in (weight, *others):
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(proto, tmp_path / "m.onnx")
    result = harden(tmp_path / "m.onnx", 0.05, method="posterior-mean", sensitivity="magnitude")
    told = [warning for warning in result.report.warnings if "graph inputs" in warning]
    assert len(told) == (ir_version >= 4)
    if told:
        assert told[0].startswith("1 weights are graph inputs with defaults as well ('W')")
        assert "--exclude" in told[0]
    ir.save(result.model, tmp_path / "o.onnx")
    session = ort.InferenceSession(tmp_path / "o.onnx", providers=["CPUExecutionProvider"])
    assert "W" not in {value.name for value in session.get_overridable_initializers()}


def test_overridable_biases_are_left_alone_without_a_warning(tmp_path: Path) -> None:
    proto = CASES["gemm"]().model
    assert proto.ir_version >= 4
    bias = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) == 1)
    proto.graph.input.append(onnx.helper.make_tensor_value_info(bias.name, bias.data_type, bias.dims))
    onnx.save(proto, tmp_path / "m.onnx")
    result = harden(tmp_path / "m.onnx", 0.05, method="posterior-mean", sensitivity="magnitude")
    assert not [warning for warning in result.report.warnings if "graph inputs" in warning]
    assert [value.name for value in result.model.graph.inputs if value.is_initializer()] == [bias.name]
