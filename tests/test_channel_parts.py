"""Tensors stored in parts by output channel: plans, models, faults, noise and the ledger."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from network_models import fault_model, network, planner_for, samples
from numpy.typing import NDArray
from onnx import numpy_helper
from small_models import CASES, OUT, X, matmul, model, normal
from stored_models import fault_options, optimised, rates_feed, run, source_model

from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.deviations import DeviationRestorer
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_inject import fault_inject
from qtaml_onnx.methods import METHODS
from qtaml_onnx.modelio import load_model
from qtaml_onnx.plan import StoragePlan, read_plan
from qtaml_onnx.planner import Planner, prepare
from qtaml_onnx.storage.tensor import decode_tensor, encode_tensor, join_channels
from qtaml_onnx.tensor_plan import TensorPlan
from qtaml_onnx.verification import verify_files
from qtaml_onnx.weights import stored_values

Array = NDArray[Any]
SPLIT = ("tac", "magnitude", "posterior-mean", "channel-optimized")
BITS = {"tac": 8, "magnitude": 8, "posterior-mean": 8, "channel-optimized": 4}
"""Short words of designed codes, so that their designs are quick."""

BUDGET = 0.2
TRIALS = 100

FLOATS = [
    "conv-float32", "conv-float16", "conv-depthwise", "conv-transpose", "gemm-transposed", "gemm", "matmul",
    "matmul-left", "gather-float32", "gather-float16", "shared", "tied", "if", "if-ir3", "function-constant",
    "function-nested", "loop", "constant-node",
]  # fmt: skip


def divide(planner: Planner, name: str, seed: int = 5) -> None:
    """Energies a channel that differ widely, so that budgets divide tensors."""
    rng = np.random.default_rng(seed)
    energies = {
        tensor.name: np.exp(3 * rng.standard_normal(tensor.weight.shape[tensor.weight.channel_axis]))
        for tensor in planner.tensors
        if tensor.weight.channel_axis is not None
    }
    planner.use_channel_energies(energies, METHODS[name])


def made(proto: onnx.ModelProto, name: str, rate: float = 0.05, **options: Any) -> tuple[Planner, StoragePlan]:
    source = source_model(proto)
    planner = Planner(source, prepare(source), fault_model(rate), bits=BITS[name], **options)
    divide(planner, name)
    return planner, planner.within_budget(METHODS[name], BUDGET)


def by_tensor(plan: StoragePlan) -> dict[str, list[TensorPlan]]:
    return {name: list(parts) for name, parts in itertools.groupby(plan.tensors, key=lambda tensor: tensor.name)}


def decoded(planner: Planner, plan: StoragePlan) -> dict[str, Array]:
    """The weights that a plan reads out, float32."""
    weights = {tensor.name: stored_values(tensor.weight) for tensor in planner.tensors}
    return {
        name: join_channels(parts, [decode_tensor(part, encode_tensor(part, weights[name])) for part in parts])
        for name, parts in by_tensor(plan).items()
    }


@pytest.mark.parametrize("method", SPLIT)
def test_hardened_model_reads_the_decoded_weights_bit_for_bit(method: str) -> None:
    planner = planner_for(network(), 0.05, METHODS[method], bits=BITS[method])
    divide(planner, method)
    plan = planner.within_budget(METHODS[method], BUDGET)
    assert len(plan.tensors) > plan.tensor_count == 4
    proto = ir.to_proto(carry_out(planner.source, plan)[0])
    onnx.checker.check_model(proto, full_check=True)
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    expected = decoded(planner, plan)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in expected)
    found = run(proto, dict(samples(2).arrays))[-len(expected) :]
    for array, (name, wanted) in zip(found, expected.items(), strict=True):
        np.testing.assert_array_equal(array, wanted, err_msg=name)
    # And each weight is near the original: no channel is in another's place.
    for tensor in planner.tensors:
        error = expected[tensor.name] - tensor.values
        assert np.sqrt((error**2).mean()) < 0.5 * np.sqrt((tensor.values**2).mean())


@pytest.mark.parametrize("name", FLOATS)
def test_every_place_of_a_weight_verifies(name: str, tmp_path: Path) -> None:
    """Functions, subgraphs, half precision, shared weights: written, read again, and equal without faults."""
    proto = CASES[name]().model
    original, hardened = tmp_path / "m.onnx", tmp_path / "o.onnx"
    original.write_bytes(proto.SerializeToString())
    source = load_model(original)
    planner = Planner(source, prepare(source), fault_model(0.05))
    divide(planner, "tac")
    plan = planner.within_budget(METHODS["tac"], 0.3)
    assert any(tensor.part is not None for tensor in plan.tensors)
    hardened_model, faulty = carry_out(source, plan)
    hardened.write_bytes(ir.to_proto(hardened_model).SerializeToString())
    (tmp_path / "o.plan.json").write_text(plan.to_json())
    assert [(check.name, check.detail) for check in verify_files(hardened, original) if not check.passed] == []
    clean = run(ir.to_proto(hardened_model), CASES[name]().feeds, fault_options())
    quiet = run(ir.to_proto(faulty), CASES[name]().feeds | rates_feed(0.0), fault_options())
    for one, other in zip(clean, quiet, strict=True):
        np.testing.assert_array_equal(one, other)


@given(st.integers(0, 2**16), st.sampled_from([0.05, 0.2, 0.4, 0.7]), st.sampled_from(["tac", "channel-optimized"]))
@settings(max_examples=12, deadline=None)
def test_faults_keep_to_the_planes_that_each_channel_exposes(seed: int, budget: float, method: str) -> None:
    """At a rate of 1/2 every exposed plane of every channel flips half the time, the protected ones never.

    Of 200 bits a plane and channel, from 55 to 145 flip: outside of that with a probability of 1e-10 each.
    """
    rng = np.random.default_rng(seed)
    proto = model([matmul()], [X], [OUT], {"W": normal(200, 6, seed=seed)})
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 200
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6
    source = source_model(proto)
    planner = Planner(source, prepare(source), fault_model(0.05), bits=BITS[method])
    planner.use_channel_energies({"W": np.exp(2 * rng.standard_normal(6))}, METHODS[method])
    plan = planner.within_budget(METHODS[method], budget)
    faulty = ir.to_proto(carry_out(source, plan)[1])
    nodes = {node.input[0]: node.output[0] for node in faulty.graph.node if node.op_type == "FaultInject"}
    assert set(nodes) == {tensor.words_name for tensor in plan.tensors}
    faulty.graph.output.extend(onnx.ValueInfoProto(name=name) for name in nodes.values())
    feeds = {"x": normal(1, 200)} | rates_feed(0.5, seed, 12)
    read = dict(zip(nodes, run(faulty, feeds, fault_options())[1:], strict=True))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in faulty.graph.initializer}
    seen: set[int] = set()
    for tensor in plan.tensors:
        changed = (stored[tensor.words_name] ^ read[tensor.words_name]).view(np.uint8)
        channels = tensor.part.channels if tensor.part is not None else tuple(range(6))
        assert changed.shape == (200, len(channels))
        seen |= set(channels)
        for plane in range(8):
            flips = (changed >> plane & 1).sum(axis=0)
            if plane in tensor.protected_planes or plane >= tensor.bits:
                assert not flips.any()
            else:
                assert ((flips >= 55) & (flips <= 145)).all()
    assert seen == set(range(6))


@pytest.mark.parametrize("protection", ["ideal", "repetition-3"])
@pytest.mark.parametrize("method", SPLIT)
def test_predicted_noise_of_parts_is_what_faults_do(method: str, protection: str) -> None:
    """Of every part, and of the whole tensor as their mean, within 5 standard errors of the Monte-Carlo mean."""
    rates = FlipRates.uniform(0.05, 12)
    planner, plan = made(network(), method, protection=protection)
    assert len(plan.tensors) > plan.tensor_count
    data = {tensor.name: tensor for tensor in planner.tensors}
    for name, parts in by_tensor(plan).items():
        predicted = measured = variance = 0.0
        size = sum(part.size for part in parts)
        x = data[name].normalised(planner.scaling(METHODS[method], data[name])).astype(np.float64)
        for part in parts:
            own = x if part.part is None else np.take(x, part.part.channels, axis=part.part.axis)
            words = encode_tensor(part, stored_values(data[name].weight))
            unit = part.model_copy(update={"form": "affine", "offset": 0.0, "scales": part.weight_scales})
            scale = decode_tensor(unit, np.ones_like(words))
            flips = rates.truncated(part.bits).protect(part.protected_planes, plan.residual_rate).as_array()
            copies = np.broadcast_to(words, (TRIALS, *words.shape))
            faulty = fault_inject(copies, 1, flips, stream=part.stream, bits=part.bits)
            errors = [float(np.mean((decode_tensor(part, read) / scale - own) ** 2)) for read in faulty]
            mean, error = float(np.mean(errors)), float(np.std(errors, ddof=1) / np.sqrt(TRIALS))
            # Where nothing flips only the rounding of tables to half precision is left.
            seen = (name, part.protected_planes, part.noise, mean, error)
            assert abs(part.noise - mean) <= 5 * error + 3e-3 * mean, seen
            share = part.size / size
            predicted += share * part.noise
            measured += share * mean
            variance += (share * error) ** 2
        assert abs(predicted - measured) <= 5 * np.sqrt(variance) + 3e-3 * measured


def test_biases_and_deviations_of_parts() -> None:
    """One bias a layer; the corrected scales of a part are those of its channels, and faults at rate 0 do nothing."""
    method = METHODS["channel-optimized"]
    planner = planner_for(network(), 0.05, method, bits=4)
    divide(planner, method.name)
    plan = planner.within_budget(method, BUDGET)
    parts = by_tensor(plan)
    assert {name: [tensor.bias is not None for tensor in own] for name, own in parts.items()} == {
        name: [True] + [False] * (len(own) - 1) for name, own in parts.items()
    }
    restorer = DeviationRestorer(
        planner.source.model, lambda plan: carry_out(planner.source, plan)[1], planner.layers, samples()
    )
    restored = restorer(plan)
    for name, own in by_tensor(restored).items():
        changed = [new.scales != old.scales for new, old in zip(own, parts[name], strict=True)]
        assert all(changed) == any(changed) == (name != "W")  # the model's own outputs keep their scale
    hardened, faulty = (ir.to_proto(one) for one in carry_out(planner.source, restored))
    feeds = dict(samples(3).arrays)
    quiet = run(faulty, feeds | rates_feed(0.0, planes=12), fault_options())
    np.testing.assert_array_equal(quiet[0], run(hardened, feeds, fault_options())[0])


def test_nothing_of_the_read_out_is_left_at_inference(tmp_path: Path) -> None:
    planner, plan = made(network(), "tac")
    assert len(plan.tensors) > plan.tensor_count
    folded = optimised(ir.to_proto(carry_out(planner.source, plan)[0]), tmp_path, "extended")
    plain = optimised(ir.to_proto(planner.source.model), tmp_path, "extended")
    assert [node.op_type for node in folded.graph.node] == [node.op_type for node in plain.graph.node]


def test_ledger_of_parts_by_hand() -> None:
    """W [6, 4]: words, the order of 4 channels at 8 bits, a float32 scale a channel, a table a design."""
    proto = model([matmul()], [X], [OUT], {"W": normal(6, 4)})
    source = source_model(proto)
    planner = Planner(source, prepare(source), fault_model(0.05), protection="repetition-3")
    planner.use_channel_energies({"W": np.array([1.0, 1000.0, 1.0, 1000.0])}, METHODS["tac"])
    menu = planner.menu(METHODS["tac"])
    assert [choices[-1].cost for choices in menu.choices] == [6 * 2 * 8] * 2
    plan = planner.plan(menu, (3, 1))
    first, second = plan.tensors
    assert first.part is not None
    assert second.part is not None
    assert (first.part.channels, second.part.channels) == ((1, 3), (0, 2))
    assert (first.protected_planes, second.protected_planes) == ((5, 6, 7), (7,))
    assert plan.weight_bits == 6 * 4 * 8
    assert plan.protected_bits == 12 * 3 + 12 * 1
    assert plan.parity_bits == 2 * plan.protected_bits
    assert plan.metadata_bits == 4 * 8 + 4 * 32 + 2 * 256 * 16
    assert (first.sensitivity, second.sensitivity) == (None, None)


def test_word_lengths_by_channel() -> None:
    """Within the bits a weight, with less predicted noise than lengths a tensor."""
    method = METHODS["channel-optimized"]
    coarse = planner_for(network(32), FlipRates.uniform(0.05, 4), method, bits=4)
    fine = planner_for(network(32), FlipRates.uniform(0.05, 4), method, bits=4)
    divide(fine, method.name)
    for wanted in (3.5,):
        plan, other = fine.within_bits(method, wanted), coarse.within_bits(method, wanted)
        assert plan.stored_bits <= wanted * fine.weights
        lengths = {part.bits for parts in by_tensor(plan).values() if len(parts) > 1 for part in parts}
        assert len(lengths) > 1
        assert plan.noise_energy is not None
        assert other.noise_energy is not None
        assert plan.noise_energy < other.noise_energy


@pytest.mark.parametrize("method", SPLIT)
def test_json_there_and_back(method: str, tmp_path: Path) -> None:
    _planner, plan = made(network(), method)
    (tmp_path / "p.json").write_text(plan.to_json())
    again = read_plan(tmp_path / "p.json")
    assert again == plan
    assert again.sha256 == plan.sha256
    whole = [tensor for tensor in json.loads(plan.to_json())["tensors"] if "part" not in tensor]
    assert len(whole) == sum(tensor.part is None for tensor in plan.tensors)


def _drop(tensors: list[dict[str, Any]]) -> None:
    del tensors[1]


def _twice(tensors: list[dict[str, Any]]) -> None:
    tensors[1]["part"]["channels"] = tensors[0]["part"]["channels"]


def _apart(tensors: list[dict[str, Any]]) -> None:
    tensors.append(tensors.pop(0))


def _descending(tensors: list[dict[str, Any]]) -> None:
    tensors[0]["part"]["channels"].reverse()


def _axis(tensors: list[dict[str, Any]]) -> None:
    tensors[0]["part"]["axis"] = 9


def _few(tensors: list[dict[str, Any]]) -> None:
    tensors[0]["part"]["channels"].pop()


def _number(tensors: list[dict[str, Any]]) -> None:
    tensors[1]["part"]["number"] = 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop, "not each of its 4 channels once|do not fit together"),
        (_twice, "not each of its 4 channels once"),
        (_apart, "not one behind the other"),
        (_descending, "do not ascend"),
        (_axis, "on axis 9"),
        (_few, "a part of 1 channels"),
        (_number, "do not fit together"),
    ],
)
def test_parts_that_are_no_tensor_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    proto = model([matmul("A", result="h"), matmul("B", "h")], [X], [OUT], {"A": normal(6, 4), "B": normal(4, 3)})
    source = source_model(proto)
    planner = Planner(source, prepare(source), fault_model(0.05))
    planner.use_channel_energies({"A": np.array([1.0, 1000.0, 1.0, 1000.0])}, METHODS["tac"])
    plan = planner.plan(planner.menu(METHODS["tac"]), (3, 1, 0))
    document = json.loads(plan.to_json())
    assert [len(tensor.get("part", {}).get("channels", [])) for tensor in document["tensors"]] == [2, 2, 0]
    change(document["tensors"])
    (tmp_path / "p.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=words):
        read_plan(tmp_path / "p.json")


def test_verify_finds_a_changed_word_of_a_part(tmp_path: Path) -> None:
    _planner, plan = made(network(), "tac")
    original, hardened = tmp_path / "m.onnx", tmp_path / "o.onnx"
    original.write_bytes(network().SerializeToString())
    source = load_model(original)
    plan = plan.model_copy(update={"source_sha256": source.sha256})
    prepare(source)
    proto = ir.to_proto(carry_out(source, plan)[0])
    (tmp_path / "o.plan.json").write_text(plan.to_json())
    name = next(tensor.words_name for tensor in plan.tensors if tensor.part is not None and tensor.part.number == 1)
    words = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(words).copy()
    array.flat[0] ^= 1
    words.CopyFrom(numpy_helper.from_array(array, name))
    hardened.write_bytes(proto.SerializeToString())
    failed = {check.name: check.detail for check in verify_files(hardened, original) if not check.passed}
    assert name.removesuffix(".words") in failed["stored words"]
