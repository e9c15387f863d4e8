"""Shared, own and per-channel code books: what each costs, what the graph reads, and that `auto` takes the best."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from network_models import network, planner_for
from numpy.typing import NDArray
from small_models import info, matmul, model, normal
from stored_models import Stored, fault_options, optimised, rates_feed, run

from qtaml_onnx.book_choice import BookKind, choose_design, grouped_design
from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.codebooks import CodeBooks
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_inject import fault_inject
from qtaml_onnx.graph import walk
from qtaml_onnx.methods import METHODS, Design
from qtaml_onnx.options import HardenOptions
from qtaml_onnx.plan import StoragePlan, read_plan
from qtaml_onnx.plan_values import table_bits
from qtaml_onnx.storage.grouped import GroupedCode, channels_by_shape
from qtaml_onnx.storage.tensor import decode_tensor, encode_tensor
from qtaml_onnx.verification import comparison_options

CODED = METHODS["channel-optimized"]
KINDS: tuple[BookKind, ...] = ("shared", "tensor", "channel")
RATE, BITS = 0.05, 3


def unlike(channels: int = 16, size: int = 400) -> NDArray[np.float32]:
    """Channels of one deviation: half of them of two values, half of heavy tails."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random((channels, size)) < 0.5, -1.0, 1.0)
    x[::2] = rng.laplace(size=(len(x[::2]), size)) / np.sqrt(2)
    return np.asarray(x / 4, dtype=np.float32)


def books(x: NDArray[np.float32], rate: float = RATE) -> CodeBooks:
    return CodeBooks([x], FlipRates.uniform(rate, BITS))


def bits_of(design: Design, shared: Design, channels: int) -> int:
    if isinstance(design.code, GroupedCode):
        return len(design.code.codes) * table_bits(BITS) + 8 * channels
    return 0 if design.code == shared.code else table_bits(BITS)


@pytest.mark.parametrize("worth", [0.0, 200.0, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("alike", [False, True])
def test_auto_loses_no_more_than_any_forced_choice(worth: float, alike: bool) -> None:
    """Noise at what it is worth in bits, plus bits: noise at equal total bits, as bits buy noise at that price."""
    x = normal(16, 400) / np.float32(4) if alike else unlike()
    made = books(x)
    found = {kind: choose_design(made, BITS, 0, x, 0, worth, kind, name="w") for kind in (*KINDS, "auto")}
    shared = found["shared"]
    loss = {k: d.noise / shared.noise * worth + bits_of(d, shared, len(x)) for k, d in found.items()}
    assert loss["auto"] <= min(loss[kind] for kind in KINDS) * (1 + 1e-12)
    assert isinstance(found["channel"].code, GroupedCode)
    if not alike:
        assert isinstance(found["auto"].code, GroupedCode) == (worth > 1e3)
        assert found["channel"].noise < 0.8 * found["tensor"].noise
    elif worth < 1e4:
        assert found["auto"].code == shared.code


def test_groups_go_by_shape_and_are_about_equal() -> None:
    x = unlike()
    assert channels_by_shape(x, 0, 2) == tuple(int(number % 2 == 0) for number in range(16))
    for groups in (3, 5, 16):
        count = np.bincount(channels_by_shape(x, 0, groups), minlength=groups)
        assert count.max() - count.min() <= 1


@pytest.mark.parametrize("axis", [0, 1])
def test_noise_of_groups_meets_monte_carlo(axis: int) -> None:
    """Within 4.5 standard errors over 60 draws."""
    x = unlike() if axis == 0 else np.ascontiguousarray(unlike().T)
    rates = FlipRates.uniform(RATE, BITS)
    design = grouped_design(x, axis, 4, rates, ())
    code, readout = design.code, design.readout
    assert isinstance(code, GroupedCode)
    assert readout is not None
    words, errors = code.encode(x), []
    for seed in range(60):
        read = fault_inject(words, seed, rates.as_array(), stream=1, bits=BITS)
        errors.append(float(np.mean((readout.table[code.index(read)] - x) ** 2)))
    assert abs(np.mean(errors) - design.noise) < 4.5 * np.std(errors, ddof=1) / np.sqrt(60)


def stored(kind: BookKind) -> tuple[Stored, dict[str, NDArray[np.float32]]]:
    """Two MatMuls, one of them with unlike channels, at 3 bits."""
    weights = {"A": normal(40, 64, seed=2), "B": np.ascontiguousarray(unlike(16, 64).T)}
    x, y = info("x", 1, None, 40), info("y", 1, None, 16)
    proto = model([matmul("A", result="h"), matmul("B", "h")], [x], [y], weights)
    planner = planner_for(proto, RATE, CODED, calibrate=False, probe=False, bits=BITS, code_books=kind)
    plan = planner.within_budget(CODED, 0)
    return Stored(planner.source, plan, *carry_out(planner.source, plan)), weights


def test_graph_reads_groups_as_the_plan_says(tmp_path: Path) -> None:
    made, weights = stored("channel")
    path = tmp_path / "net.plan.json"
    path.write_text(made.plan.to_json())
    assert read_plan(path) == made.plan
    h = normal(1, 40)
    wanted, feeds = h, {"x": h}
    for tensor in made.plan.tensors:
        assert tensor.channel_codes is not None
        words = encode_tensor(tensor, weights[tensor.name])
        read = fault_inject(words, 5, np.full((2, 8), 0.2, np.float32), stream=tensor.stream, bits=tensor.bits)
        wanted, h = wanted @ decode_tensor(tensor, words), h @ decode_tensor(tensor, read)
    clean = run(ir.to_proto(made.hardened), feeds, comparison_options())[0]
    np.testing.assert_allclose(clean, wanted, rtol=1e-4, atol=1e-5)
    faulty = ir.to_proto(made.faulty)
    assert run(faulty, feeds | rates_feed(0.0), fault_options())[0].tobytes() == clean.tobytes()
    np.testing.assert_allclose(run(faulty, feeds | rates_feed(0.2, 5), fault_options())[0], h, rtol=1e-4, atol=1e-5)
    left = {node.op_type for _root, node in walk(ir.from_proto(optimised(ir.to_proto(made.hardened), tmp_path)))}
    assert left == {"MatMul"}


def test_metadata_count_every_table_and_a_byte_a_channel() -> None:
    made, _weights = stored("channel")
    constants = {name: value.const_value for name, value in made.hardened.graph.initializers.items()}
    suffixes = ("table", "scale", "channel_groups")
    found = [tensor for name, tensor in constants.items() if name.rsplit(".", 1)[-1] in suffixes and tensor is not None]
    assert sum(8 * tensor.nbytes for tensor in found) == made.plan.metadata_bits


def test_forced_kinds_are_what_plans_have() -> None:
    tables = {}
    for kind in KINDS:
        plan = stored(kind)[0].plan
        tables[kind] = len({tensor.table for tensor in plan.tensors})
        assert all((tensor.channel_codes is not None) == (kind == "channel") for tensor in plan.tensors)
    assert tables == {"shared": 1, "tensor": 2, "channel": 2}
    with pytest.raises(InputError, match="unknown --code-books 'row'; choose from auto, shared, tensor, channel"):
        HardenOptions(code_books="row").check(False)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="method tac designs no code books"):
        HardenOptions(method="tac", code_books="tensor").check(False)


def test_auto_predicts_no_more_noise_at_equal_bits_a_weight() -> None:
    """The whole allocation under one total, metadata included."""
    noise = {}
    for kind in (*KINDS, "auto"):
        planner = planner_for(network(32), RATE, CODED, calibrate=False, code_books=kind)
        plan = planner.within_bits(CODED, 6.0, longest_word=12)
        assert plan.stored_bits <= 6.0 * planner.weights
        noise[kind] = plan.noise_energy
    assert noise["auto"] is not None
    assert all(noise["auto"] <= (noise[kind] or 0.0) * (1 + 1e-9) for kind in KINDS)


def test_damaged_plans_are_refused(tmp_path: Path) -> None:
    made, _weights = stored("channel")
    tensor = made.plan.tensors[0]
    for change, message in (
        ({"channel_groups": (0, 1)}, "do not fit"),
        ({"channel_codes": (tensor.channel_codes or ())[:1]}, "no table of 8 entries"),
        ({"channel_groups": (9,) * len(tensor.channel_groups or ())}, "name groups beyond"),
    ):
        bad = StoragePlan(**{**dict(made.plan), "tensors": (tensor.model_copy(update=change),)})
        path = tmp_path / "bad.plan.json"
        path.write_text(bad.to_json())
        with pytest.raises(InputError, match=message):
            read_plan(path)


def test_noise_is_worth_what_longer_words_would_take_to_save_it() -> None:
    x = normal(16, 400) / np.float32(4)
    made = CodeBooks([x], FlipRates.uniform(RATE, 12))
    shares = [1 - made.book(b, 0).noise_to_signal / made.book(b - 1, 0).noise_to_signal for b in (3, 8)]
    assert made.worth(3, 0) == pytest.approx(min(3.0, 1 / shares[0]))
    assert made.worth(8, 0) == pytest.approx(min(8.0, 1 / shares[1]))
    assert made.worth(1, 0) == 1  # never more than the word itself
    assert 1 < made.worth(16, 0, pair=True) <= 16
    zero = CodeBooks([np.zeros_like(x)], FlipRates.uniform(RATE, 12))
    assert zero.worth(8, 0) == 8
    assert zero.worth(16, 0, pair=True) == 16
