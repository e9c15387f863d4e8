"""Cuts of a model: what crosses them, that the parts compute what the whole does, and what it saves."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from small_models import CASES, info, matmul, model, normal
from stored_models import run, source_model

from qtaml_onnx import segments
from qtaml_onnx.data import Dataset
from qtaml_onnx.segments import Values, can_cross, find_cuts
from qtaml_onnx.sensitivity import measure_sensitivity
from qtaml_onnx.weights import find_weights, float_weights


def chain(length: int, width: int = 6) -> onnx.ModelProto:
    """Layers with a shortcut round every second one, and an output half way."""
    nodes, constants, before = [], {}, "x"
    for layer in range(length):
        constants[f"W{layer}"] = normal(width, width, seed=layer) / np.float32(np.sqrt(width))
        nodes.append(matmul(f"W{layer}", before, result=f"h{layer}"))
        nodes.append(helper.make_node("Tanh", [f"h{layer}"], [f"t{layer}"]))
        before = f"t{layer}"
        if layer % 2:
            nodes.append(helper.make_node("Add", [f"t{layer}", f"h{layer - 1}"], [f"s{layer}"]))
            before = f"s{layer}"
    nodes.append(helper.make_node("Identity", [before], ["y"]))
    outputs = [info("y", 1, "N", width), info(f"t{length // 2}", 1, "N", width)]
    return model(nodes, [info("x", 1, "N", width)], outputs, constants)


@pytest.mark.parametrize("length", [1, 3, 8, 40])
def test_parts_compute_what_the_whole_does(length: int) -> None:
    """Bit for bit, through every cut; an output before a cut is not computed behind it."""
    proto, x = chain(length), normal(4, 6, seed=90)
    cuts = find_cuts(proto, [f"W{layer}" for layer in range(length)])
    assert sum(cuts.members, ()) == tuple(f"W{layer}" for layer in range(length))
    assert len(cuts.starts) == min(length, 24)
    expected = dict(zip(["y", f"t{length // 2}"], run(proto, {"x": x}), strict=True))
    crossing: Values = {}
    for number in range(len(cuts.starts)):
        suffix = cuts.suffix(number, crossing)
        assert suffix is not None
        known = {value.name for value in suffix.get_inputs()}
        found = suffix.run(None, {name: array for name, array in {"x": x, **crossing}.items() if name in known})
        names = [output.name for output in suffix.get_outputs()]
        for name, array in zip(names, found, strict=True):
            np.testing.assert_array_equal(array, expected[name])
        if number + 1 < len(cuts.starts):
            step = cuts.step(number, crossing)
            assert step is not None
            known = {value.name for value in step.get_inputs()}
            made = step.run(None, {name: array for name, array in {"x": x, **crossing}.items() if name in known})
            wanted = cuts.crossing(number + 1)
            crossing = {name: array for name, array in crossing.items() if name in wanted}
            crossing |= dict(zip((output.name for output in step.get_outputs()), made, strict=True))
            assert crossing.keys() == wanted


def test_names_read_inside_branches_cross() -> None:
    """A value that only the branch of an If reads, and a weight of that branch, are seen."""
    proto = CASES["if"]().model
    outer = {name for node in proto.graph.node for name in node.output}
    cuts = find_cuts(proto, [])
    assert cuts.starts == (0,)
    last = len(proto.graph.node) - 1
    assert proto.graph.node[last].op_type == "If" or "If" in {node.op_type for node in proto.graph.node}
    place = next(i for i, node in enumerate(proto.graph.node) if node.op_type == "If")
    cut = segments.Cuts(proto, (0, place), ((), ()))
    assert cut.crossing(1) <= outer
    assert set(proto.graph.node[place].input) & outer <= cut.crossing(1)


def probe(proto: onnx.ModelProto, data: Dataset) -> dict[str, float]:
    loaded = source_model(proto).model
    ones = np.ones((1, 1), np.float32)
    weights = {weight.name: (float_weights(weight), ones) for weight in find_weights(loaded).weights}
    return measure_sensitivity(loaded, weights, data, probes=2).energy


def test_cutting_changes_no_sensitivity(monkeypatch: pytest.MonkeyPatch) -> None:
    """To float32 rounding: the noise of a tensor is the same wherever the graph is cut, or where it cannot be."""
    data = Dataset({"x": normal(20, 6, seed=91)}, None, False, None, "tests")
    proto = chain(20)
    cut = probe(proto, data)
    monkeypatch.setattr(segments, "_MOST_CUTS", 1)
    whole = probe(proto, data)
    assert cut.keys() == whole.keys()
    np.testing.assert_allclose(list(cut.values()), list(whole.values()), rtol=1e-4)
    monkeypatch.setattr(segments, "_MOST_CUTS", 24)
    monkeypatch.setattr("qtaml_onnx.probing.can_cross", lambda _values: False)
    np.testing.assert_allclose(list(probe(proto, data).values()), list(whole.values()), rtol=1e-12)


def test_a_chain_costs_little_more_than_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes run over all probes, against the whole graph for each: at most 0.6 with two dozen cuts, 1 with none."""
    ran = 0
    original = segments.Cuts._session

    def counted(self: segments.Cuts, nodes: list[onnx.NodeProto], *rest: object, **more: object) -> object:
        session = original(self, nodes, *rest, **more)  # type: ignore[arg-type]
        inner = session.run

        def run_and_count(*args: object) -> object:
            nonlocal ran
            ran += len(nodes)
            return inner(*args)

        session.run = run_and_count
        return session

    monkeypatch.setattr(segments.Cuts, "_session", counted)
    length, probes = 36, 2
    proto = chain(length)
    data = Dataset({"x": normal(20, 6, seed=91)}, None, False, None, "tests")
    probe(proto, data)
    passes = ran / len(proto.graph.node)
    assert passes <= 0.6 * probes * length + len(segments.find_cuts(proto, [f"W{i}" for i in range(length)]).starts)
    assert passes >= 0.4 * probes * length


def test_only_the_probed_weights_are_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are constants, which onnxruntime arranges for speed; all are inputs where a later cut may fail."""
    fed: list[set[str]] = []
    original = segments.Cuts._session

    def noted(self: segments.Cuts, *rest: object, **more: object) -> object:
        session = original(self, *rest, **more)  # type: ignore[arg-type]
        fed.append({value.name for value in session.get_overridable_initializers()})
        return session

    monkeypatch.setattr(segments.Cuts, "_session", noted)
    data = Dataset({"x": normal(20, 6, seed=93)}, None, False, None, "tests")
    probe(chain(5), data)
    assert [len(names) for names in fed] == [0, 1, 1, 1, 1, 1]
    assert len(set().union(*fed)) == 5
    fed.clear()
    monkeypatch.setattr("qtaml_onnx.probing._run_ahead", lambda *_: None)
    probe(chain(5), data)
    assert len(fed[0]) == 5


def test_cuts_taken_one_by_one_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what crosses all cuts does not fit, what crosses one may."""
    proto = chain(8)
    data = Dataset({"x": normal(20, 6, seed=92)}, None, False, None, "tests")
    at_once = probe(proto, data)
    monkeypatch.setattr("qtaml_onnx.probing._run_ahead", lambda *_: None)
    one_by_one = probe(proto, data)
    np.testing.assert_allclose(list(one_by_one.values()), list(at_once.values()), rtol=1e-6)


def test_what_cannot_be_fed_again() -> None:
    small: Values = {"a": np.zeros(3, np.float32)}
    assert can_cross([small, {"b": np.zeros(2, np.int64), "c": np.zeros(1, np.bool_)}])
    assert not can_cross([{"a": np.array(["text"])}])
    assert not can_cross([{"a": [small["a"]]}])  # type: ignore[dict-item]
    assert not can_cross([{"a": np.broadcast_to(np.float32(0), (1 << 28, 1))}, small])
