"""Sparse tensors are kept as they are, and reported; the weights beside them are hardened."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from small_models import ROWS, info, initializer, matmul, model, normal
from stored_models import run

from qtaml_onnx.cli import main
from qtaml_onnx.errors import InputError
from qtaml_onnx.modelio import load_model
from qtaml_onnx.sparse import make_dense, make_sparse

VALUES, PLACES = np.array([1.5, -2.0, 0.25], np.float32), np.array([0, 7, 23])


def sparse(name: str, places: np.ndarray = PLACES) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(initializer(name, VALUES), initializer("", places), [6, 4])


def sparse_model(kind: str) -> onnx.ModelProto:
    """x W + x S, with S sparse: an initializer, a Constant node, or an initializer of an If's branch."""
    add = helper.make_node("Add", ["p", "q"], ["y"])
    x, y = info("x", 1, None, 6), info("y", 1, None, 4)
    nodes = [matmul(result="p"), matmul("S", result="q"), add]
    if kind == "node":
        nodes.insert(0, helper.make_node("Constant", [], ["S"], sparse_value=sparse("")))
    if kind == "branch":
        branch = helper.make_graph([matmul("S", result="r")], "branch", [], [info("r", 1, None, 4)])
        branch.sparse_initializer.append(sparse("S"))
        other = helper.make_graph([matmul("W", result="r")], "other", [], [info("r", 1, None, 4)])
        yes = helper.make_node("Constant", [], ["yes"], value=initializer("", np.array(True)))
        nodes[1:2] = [yes, helper.make_node("If", ["yes"], ["q"], then_branch=branch, else_branch=other)]
    graph = helper.make_graph(nodes, "small", [x], [y], [initializer("W", normal(6, 4))])
    if kind == "initializer":
        graph.sparse_initializer.append(sparse("S"))
    if kind == "coordinates":
        graph.sparse_initializer.append(sparse("S", np.stack(np.unravel_index(PLACES, (6, 4)), axis=1)))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    return proto


@pytest.mark.parametrize("kind", ["initializer", "coordinates", "node", "branch"])
def test_sparse_tensors_are_kept_and_reported(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proto = sparse_model(kind)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    command = f"harden {tmp_path}/m.onnx -o {tmp_path}/o.onnx --flip-rate 0.01 --method none --bits 8 --no-html --json"
    assert main(command.split()) == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out)
    assert [tensor["name"] for tensor in report["tensors"]] == ["W"]
    reasons = {item["name"]: item["reason"] for item in report["left_out"]}
    assert reasons["S"] == "sparse tensor: kept as it is"
    hardened = onnx.load(tmp_path / "o.onnx")
    onnx.checker.check_model(hardened)
    if kind == "node":
        constants = [node for node in hardened.graph.node if node.op_type == "Constant"]
        kept = [attribute.sparse_tensor for node in constants for attribute in node.attribute]
    else:
        graphs = [hardened.graph, *(a.g for node in hardened.graph.node for a in node.attribute if a.HasField("g"))]
        kept = [tensor for graph in graphs for tensor in graph.sparse_initializer]
        assert not [t for graph in graphs for t in graph.initializer if t.name == "S"]
    assert len(kept) == 1
    np.testing.assert_array_equal(numpy_helper.to_array(kept[0].values), VALUES)
    np.testing.assert_array_equal(numpy_helper.to_array(kept[0].indices), PLACES)
    assert list(kept[0].dims) == [6, 4]
    assert main(f"verify {tmp_path}/o.onnx --original {tmp_path}/m.onnx".split()) == 0, capsys.readouterr()
    step = np.abs(normal(6, 4)).max(axis=0) / 127  # the only difference is the quantisation of W
    error = np.abs(run(hardened, ROWS)[0] - run(proto, ROWS)[0])
    assert (error <= np.abs(ROWS["x"]).sum(axis=1, keepdims=True) * step / 2 + 1e-5).all()


@given(
    array=st.integers(0, 3).flatmap(
        lambda rank: st.lists(st.integers(1, 4), min_size=rank, max_size=rank).flatmap(
            lambda shape: st.lists(
                st.sampled_from([0.0, 1.0, -3.5]), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))
            ).map(lambda values: np.array(values, np.float32).reshape(shape))
        )
    )
)
@settings(max_examples=60, deadline=None)
def test_dense_and_sparse_again_is_the_same(array: np.ndarray) -> None:
    places = np.flatnonzero(array)
    tensor = helper.make_sparse_tensor(
        initializer("S", array.reshape(-1)[places]), initializer("", places), array.shape
    )
    proto = model([matmul()], [info("x", 1, None, 6)], [info("y", 1, None, 4)], {"W": normal(6, 4)})
    proto.graph.sparse_initializer.append(tensor)
    before = proto.SerializeToString(deterministic=True)
    make_dense(Path("m.onnx"), proto)
    dense = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}["S"]
    np.testing.assert_array_equal(dense, array)
    assert make_sparse(proto).SerializeToString(deterministic=True) == before


def test_a_sparse_attribute_of_another_operator_is_refused(tmp_path: Path) -> None:
    proto = sparse_model("node")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    load_model(tmp_path / "m.onnx")
    proto.graph.node[0].op_type = "Mystery"
    proto.graph.node[0].domain = "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="Mystery '' has a sparse attribute"):
        load_model(tmp_path / "m.onnx")
