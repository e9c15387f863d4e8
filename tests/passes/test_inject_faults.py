"""Fault operators behind stored words: how many bits flip, where, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from scipy import stats
from small_models import CASES, info, matmul, model, normal
from stored_models import fault_options, rates_feed, run, store

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.errors import InputError
from qtaml_onnx.graph import walk
from qtaml_onnx.passes.inject_faults import InjectFaults

SIGNIFICANCE = 1e-3
"""Of each chi-square test below; the seeds are fixed, so that a pass is a pass for ever."""


def faulty_words(faulty: ir.Model) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The instrumented model with every FaultInject output of the main graph as a graph output, by its words' name."""
    proto = ir.to_proto(faulty)
    names = {node.input[0]: node.output[0] for node in proto.graph.node if node.op_type == "FaultInject"}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names.values())
    return proto, names


def flips(
    proto: onnx.ModelProto, names: dict[str, str], feeds: dict[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Stored and faulty words, as unsigned, by name."""
    values = run(proto, feeds, fault_options())[-len(names) :]
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    return {name: (stored[name].view(np.uint8), got.view(np.uint8)) for name, got in zip(names, values, strict=True)}


@pytest.mark.parametrize("rate", [0.002, 0.05, 0.4])
def test_flip_counts_fit_the_binomial(rate: float) -> None:
    """Chi-square over planes, tensors and directions, by the normal approximation of each binomial count."""
    weights = {"A": normal(64, 300, seed=1), "B": normal(300, 128, seed=2)}
    x, y = info("x", 1, None, 64), info("y", 1, None, 128)
    stored = store(model([matmul("A", result="h"), matmul("B", "h")], [x], [y], weights), "tac", rate)
    proto, names = faulty_words(stored.faulty)
    terms, count = 0.0, 0
    for clean, faulty in flips(proto, names, {"x": normal(1, 64)} | rates_feed(rate, seed=11)).values():
        for plane in range(8):
            for state in (0, 1):
                held = (clean >> plane & 1) == state
                flipped = int(((clean ^ faulty)[held] >> plane & 1).sum())
                total = int(held.sum())
                assert total * rate > 8  # the normal approximation holds
                terms += (flipped - total * rate) ** 2 / (total * rate * (1 - rate))
                count += 1
    assert count == 32
    assert SIGNIFICANCE < stats.chi2.sf(terms, count) < 1 - SIGNIFICANCE


def test_asymmetric_rates_and_planes_meet_their_own_rate() -> None:
    """Each plane and direction has a rate of its own, some 0; each count stays within 4.5 standard deviations."""
    stored = store(model([matmul("A")], [info("x", 1, None, 64)], [info("y", 1, None, 300)], {"A": normal(64, 300)}))
    rates = np.linspace(0.01, 0.3, 16, dtype=np.float32).reshape(2, 8)
    rates[:, 2], rates[0, 5] = 0, 0
    proto, names = faulty_words(stored.faulty)
    feeds = {"x": normal(1, 64), "qtaml_seed": np.asarray(3), "qtaml_flip_rates": rates}
    clean, faulty = flips(proto, names, feeds)["A.words"]
    for plane in range(8):
        for state in (0, 1):
            held = (clean >> plane & 1) == state
            flipped, rate = int(((clean ^ faulty)[held] >> plane & 1).sum()), float(rates[state, plane])
            total = int(held.sum())
            assert abs(flipped - total * rate) <= 4.5 * np.sqrt(total * rate * (1 - rate))


def test_protected_planes_never_flip() -> None:
    stored = store(
        model([matmul("A")], [info("x", 1, None, 64)], [info("y", 1, None, 32)], {"A": normal(64, 32)}), "tac", 0.1, 0.4
    )
    tensor = stored.plan.tensors[0]
    assert tensor.protected_planes
    proto, names = faulty_words(stored.faulty)
    clean, faulty = flips(proto, names, {"x": normal(1, 64)} | rates_feed(0.4))["A.words"]
    flipped = {plane for plane in range(8) if ((clean ^ faulty) >> plane & 1).any()}
    assert flipped == set(range(8)) - set(tensor.protected_planes)


def test_tensors_flip_independently() -> None:
    """Two tensors of equal words have streams of their own: their flip masks agree no more than chance has it."""
    w = normal(64, 64, seed=1)
    x, y = info("x", 1, None, 64), info("y", 1, None, 64)
    stored = store(model([matmul("A", result="h"), matmul("B", "h")], [x], [y], {"A": w, "B": w.copy()}), "none", 0.1)
    proto, names = faulty_words(stored.faulty)
    result = flips(proto, names, {"x": normal(1, 64)} | rates_feed(0.1))
    masks = [np.unpackbits((clean ^ faulty).ravel()) for clean, faulty in result.values()]
    both, n = int((masks[0] & masks[1]).sum()), len(masks[0])
    assert abs(both - n * 0.01) <= 4 * np.sqrt(n * 0.01 * 0.99)


def test_same_seed_same_faults_in_any_order() -> None:
    case = CASES["loop"]()
    faulty = ir.to_proto(store(case.model).faulty)
    results = [run(faulty, case.feeds | rates_feed(0.1, seed), fault_options())[0] for seed in (1, 2, 1)]
    assert results[0].tobytes() == results[2].tobytes() != results[1].tobytes()


@pytest.mark.parametrize("name", CASES)
def test_inputs_have_defaults_and_every_tensor_its_operator(name: str) -> None:
    case = CASES[name]()
    stored = store(case.model, rate=0.25)
    proto = ir.to_proto(stored.faulty)
    onnx.checker.check_model(proto)
    operators = [node for _root, node in walk(ir.from_proto(proto)) if node.domain == "qtaml"]
    assert len(operators) == len(stored.plan.tensors)
    assert sorted(node.attributes["stream"].as_int() for node in operators) == list(range(len(operators)))
    assert proto.ir_version == max(case.model.ir_version, 4)
    session_inputs = {value.name for value in proto.graph.input} - {t.name for t in proto.graph.initializer}
    assert session_inputs == set(case.feeds)
    default = run(proto, case.feeds, fault_options())
    given = run(proto, case.feeds | rates_feed(0.25), fault_options())
    assert [a.tobytes() for a in default] == [b.tobytes() for b in given]


def test_rates_and_seed_can_be_chosen() -> None:
    case = CASES["matmul"]()
    stored = store(case.model)
    other = stored.hardened.clone()
    InjectFaults(stored.plan, FlipRates.uniform(0.3, 8), seed=5)(other)
    got = run(ir.to_proto(other), case.feeds, fault_options())[0]
    wanted = run(ir.to_proto(stored.faulty), case.feeds | rates_feed(0.3, 5), fault_options())[0]
    assert got.tobytes() == wanted.tobytes()


def test_refusals_name_the_thing() -> None:
    stored = store(CASES["matmul"]().model)
    with pytest.raises(InputError, match="instrumented already"):
        InjectFaults(stored.plan)(stored.faulty)
    with pytest.raises(InputError, match=r"'W.words' are not in this model"):
        InjectFaults(stored.plan)(stored.source.model)
