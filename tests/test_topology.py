"""The order of nodes: what converters leave unsorted is sorted, and nothing else moves."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper
from small_models import OUT, ROWS, X, info, matmul, model, normal
from stored_models import run

from qtaml_onnx.modelio import load_model
from qtaml_onnx.topology import names_read_by, sort_nodes


def branching() -> onnx.ModelProto:
    """Five nodes, one of them an If whose branches read what the others compute."""
    yes = helper.make_graph(
        [helper.make_node("Neg", ["b"], ["t"]), helper.make_node("Add", ["t", "a"], ["p"])],
        "yes",
        [],
        [info("p", 1, None, None)],
    )
    no = helper.make_graph([helper.make_node("Identity", ["b"], ["n"])], "no", [], [info("n", 1, None, None)])
    nodes = [
        helper.make_node("Cast", ["x"], ["x1"], to=TensorProto.FLOAT),
        matmul("W", "x1", "a"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("If", ["c"], ["d"], then_branch=yes, else_branch=no),
        helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
    ]
    return model(nodes, [X, info("c", TensorProto.BOOL)], [OUT], {"W": normal(6, 4)})


def reorder(graph: onnx.GraphProto, order: Iterable[int]) -> None:
    nodes = [onnx.NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def test_every_order_of_the_nodes_loads_and_computes_the_same(tmp_path: Path) -> None:
    names = [node.output[0] for node in branching().graph.node]
    feeds = {**ROWS, "c": np.array(True)}
    wanted = run(branching(), feeds)[0]
    for order in itertools.permutations(range(5)):
        mixed = branching()
        yes = next(attribute.g for attribute in mixed.graph.node[3].attribute if attribute.name == "then_branch")
        reorder(yes, (1, 0))
        reorder(mixed.graph, order)
        onnx.save(mixed, tmp_path / "m.onnx")
        loaded = load_model(tmp_path / "m.onnx").model
        assert [node.outputs[0].name for node in loaded.graph] == names  # a chain has one order
        np.testing.assert_array_equal(run(ir.to_proto(loaded), feeds)[0], wanted)


def test_what_is_sorted_stays_and_a_cycle_too() -> None:
    nodes = [helper.make_node("Relu", ["x"], [name]) for name in "cab"]
    graph = helper.make_graph(nodes, "g", [], [])
    before = graph.SerializeToString()
    assert not sort_nodes(graph)
    assert graph.SerializeToString() == before
    cycle = helper.make_graph(
        [helper.make_node("Neg", ["q"], ["p"]), helper.make_node("Neg", ["p"], ["q"])], "g", [], []
    )
    assert not sort_nodes(cycle)


def test_what_moves_goes_no_further_than_it_must() -> None:
    reads = {"late": ["made_last"], "free": ["x"], "made_last": ["x"], "also_free": ["x"]}
    nodes = [helper.make_node("Relu", inputs, [name]) for name, inputs in reads.items()]
    graph = helper.make_graph(nodes, "g", [], [])
    assert sort_nodes(graph)
    assert [node.output[0] for node in graph.node] == ["free", "made_last", "late", "also_free"]


def test_names_of_a_branch_are_read_where_it_does_not_make_them() -> None:
    node = branching().graph.node[3]
    assert set(names_read_by(node)) == {"c", "a", "b"}
