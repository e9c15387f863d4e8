"""Verify finds what is wrong with a hardened model, whoever did it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from small_models import CASES, OUT, X, info, matmul, model, normal
from stored_models import float_options, optimised

from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.cli import main
from qtaml_onnx.errors import InputError
from qtaml_onnx.methods import METHODS
from qtaml_onnx.modelio import load_model
from qtaml_onnx.plan import FaultModel
from qtaml_onnx.planner import Planner, prepare
from qtaml_onnx.runtime import create_session, run_limited
from qtaml_onnx.verification import _same_shape, verify_files

RUNS = [name for name in CASES if name not in {"gather-bfloat16"}]


def files(proto: onnx.ModelProto, folder: Path, method: str = "posterior-mean") -> tuple[Path, Path]:
    """Original and hardened model, the plan beside it."""
    original, hardened = folder / "m.onnx", folder / "o.onnx"
    original.write_bytes(proto.SerializeToString())
    source = load_model(original)
    planner = Planner(source, prepare(source), FaultModel(p01=(0.05,) * 8, p10=(0.05,) * 8))
    plan = planner.within_budget(METHODS[method], 0)
    hardened.write_bytes(ir.to_proto(carry_out(source, plan)[0]).SerializeToString())
    (folder / "o.plan.json").write_text(plan.to_json())
    return original, hardened


def failed(hardened: Path, original: Path) -> dict[str, str]:
    return {check.name: check.detail for check in verify_files(hardened, original) if not check.passed}


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_model_verifies(name: str, tmp_path: Path) -> None:
    original, hardened = files(CASES[name]().model, tmp_path)
    checks = verify_files(hardened, original)
    assert [check.detail for check in checks if not check.passed] == []
    assert [check.name for check in checks] == [
        "plan", "standard operators", "interface", "stored words", "equal without faults", "read-out folded",
        *(["integer kernels"] if "int8" in name or "quantised" in name else []),
    ]  # fmt: skip


def _edit(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        proto = onnx.load(path)
        change(proto)
        path.write_bytes(proto.SerializeToString())

    return apply


def _tensor(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in proto.graph.initializer if t.name == name)


def _flip_a_word(proto: onnx.ModelProto) -> None:
    tensor = _tensor(proto, "W.words")
    words = numpy_helper.to_array(tensor).copy()
    words[0, 0] ^= 1
    tensor.CopyFrom(numpy_helper.from_array(words, "W.words"))


def _scale(proto: onnx.ModelProto) -> None:
    tensor = _tensor(proto, "W.scale")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), "W.scale"))


def _custom(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(onnx.helper.make_node("Mystery", ["y"], ["z"], domain="com.example"))
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))


def _interface(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 5


def _opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 18


@pytest.mark.parametrize(
    ("change", "check", "part"),
    [
        (_flip_a_word, "stored words", "'W' are not those of the original's weights"),
        (_scale, "equal without faults", "largest error 0.00"),
        (_custom, "standard operators", "com.example::Mystery"),
        (_interface, "interface", "y"),
        (_opset, "standard operators", "opset 17 → 18"),
    ],
)
def test_tampering_is_found(change: Callable[[onnx.ModelProto], None], check: str, part: str, tmp_path: Path) -> None:
    original, hardened = files(model([matmul()], [X], [OUT], {"W": normal(6, 4)}), tmp_path)
    _edit(change)(hardened)
    found = failed(hardened, original)
    assert list(found) == [check]
    assert part in found[check]


def test_another_original_is_found(tmp_path: Path) -> None:
    original, hardened = files(model([matmul()], [X], [OUT], {"W": normal(6, 4)}), tmp_path)
    other = tmp_path / "n.onnx"
    other.write_bytes(model([matmul()], [X], [OUT], {"W": normal(6, 4, seed=5)}).SerializeToString())
    assert set(failed(hardened, other)) == {"plan", "stored words"}
    assert not failed(hardened, original)


@pytest.mark.parametrize("name", ["conv-float32", "loop", "function-constant"])
def test_a_model_that_another_optimiser_folded_is_found(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """onnxruntime's own offline optimisation computes the weights: nothing of the stored words is left in the file."""
    original, hardened = files(CASES[name]().model, tmp_path)
    folded = optimised(onnx.load(hardened), tmp_path)
    if not folded.metadata_props:  # a tool that keeps them is the harder case
        folded.metadata_props.extend(onnx.load(hardened).metadata_props)
    hardened.write_bytes(folded.SerializeToString())
    assert main(["verify", str(hardened), "--original", str(original)]) == 1
    assert "another optimiser folded the read-out" in capsys.readouterr().out


def test_metadata_that_a_tool_dropped_is_named(tmp_path: Path) -> None:
    original, hardened = files(CASES["matmul"]().model, tmp_path)
    _edit(lambda proto: proto.ClearField("metadata_props"))(hardened)
    with pytest.raises(InputError, match=r"not a hardened model \(no qtaml_onnx.plan_sha256\)"):
        verify_files(hardened, original)


@pytest.mark.parametrize("name", ["matmul", "function-constant", "if", "function-subgraph"])
def test_a_read_out_that_stays_is_found(name: str, tmp_path: Path) -> None:
    """Words that a caller may override are not constant: onnxruntime then reads them out on every run."""
    original, hardened = files(CASES[name]().model, tmp_path)
    loaded = ir.from_proto(onnx.load(hardened))
    unfolded = _with_run_time_words(ir.to_proto(loaded))
    hardened.write_bytes(unfolded.SerializeToString())
    found = failed(hardened, original)
    assert list(found) == ["read-out folded"]
    assert "read stored words at inference" in found["read-out folded"]


def _with_run_time_words(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Makes every stored word depend on the input."""
    x = proto.graph.input[0].name
    graphs = [proto.graph]
    for function in proto.functions:
        names = [node.output[0] for node in function.node if node.output[0].endswith(".words")]
        _delay(function.node, names, function.input[0])
        for node in function.node:
            graphs += [a.g for a in node.attribute if a.HasField("g")]
    for node in proto.graph.node:
        graphs += [a.g for a in node.attribute if a.HasField("g")]
    for graph in graphs:
        names = [t.name for t in graph.initializer if t.name.endswith(".words")]
        _delay(graph.node, names, x)
    return proto


def _delay(nodes: object, words: list[str], x: str) -> None:
    """Adds to the words the input's size less itself."""
    make = onnx.helper.make_node
    for name in words:
        late = f"{name}.late"
        for node in nodes:  # type: ignore[attr-defined]
            for index, value in enumerate(node.input):
                if value == name:
                    node.input[index] = late
        steps = [
            make("Size", [x], [f"{late}.n"]),
            make("Sub", [f"{late}.n", f"{late}.n"], [f"{late}.0"]),
            make("Cast", [f"{late}.0"], [f"{late}.w"], to=onnx.TensorProto.INT32),
            make("Cast", [name], [f"{late}.i"], to=onnx.TensorProto.INT32),
            make("Add", [f"{late}.i", f"{late}.w"], [f"{late}.s"]),
            make("Cast", [f"{late}.s"], [late], to=onnx.TensorProto.UINT8),
        ]
        position = next((i + 1 for i, node in enumerate(nodes) if name in node.output), 0)  # type: ignore[arg-type]
        for step in reversed(steps):
            nodes.insert(position, step)  # type: ignore[attr-defined]


def test_hardened_models_run_in_stock_onnxruntime(tmp_path: Path) -> None:
    """Nothing but the file: no library, no plan."""
    import onnxruntime as ort

    _original, hardened = files(CASES["matmul"]().model, tmp_path)
    session = ort.InferenceSession(str(hardened), float_options(), providers=["CPUExecutionProvider"])
    assert session.run(None, CASES["matmul"]().feeds)[0].shape == (5, 4)


OPTIMISERS = {
    "onnxslim": ("onnxslim", lambda module, proto: module.slim(proto)),
    "onnxscript": ("onnxscript.optimizer", lambda module, proto: module.optimize(proto)),
}


@pytest.mark.parametrize("name", ["matmul", "conv-float32", "int8-channels"])
@pytest.mark.parametrize("tool", OPTIMISERS)
def test_other_tools_undo_hardening_and_that_is_said(tool: str, name: str, tmp_path: Path) -> None:
    """They compute the weights from the words; what they leave of the plan's metadata must not be believed."""
    package, optimise = OPTIMISERS[tool]
    module = pytest.importorskip(package, reason=f"{tool} is not installed: what it undoes is not tested")
    original, hardened = files(CASES[name]().model, tmp_path)
    folded = optimise(module, onnx.load(hardened))
    hardened.write_bytes(folded.SerializeToString())
    assert {p.key for p in folded.metadata_props} >= {"qtaml_onnx.plan_sha256"}
    found = failed(hardened, original)
    assert "are gone: another optimiser folded the read-out; hardening goes last" in found["stored words"]


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ([None, 6], ["batch", 6], True),  # onnxslim names axes
        (["batch", 6], ["batch", 6], True),
        (["batch", 6], ["n", 6], False),
        (["batch", 6], [1, 6], False),
        ([None, 6], [4, 6], False),
        ([2, 6], [None, 6], False),
        ([None, 6], [None, 6, 1], False),
    ],
)
def test_axes_may_be_named_and_nothing_else(
    old: list[int | str | None], new: list[int | str | None], same: bool
) -> None:
    assert _same_shape(ir.Shape(old), ir.Shape(new)) is same


def test_words_that_nothing_reads_are_found(tmp_path: Path) -> None:
    original, hardened = files(model([matmul()], [X], [OUT], {"W": normal(6, 4)}), tmp_path)

    def bypass(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.append(numpy_helper.from_array(normal(6, 4), "V"))
        last = proto.graph.node[-1]
        last.input[1] = "V"
        del proto.graph.node[:-1]

    _edit(bypass)(hardened)
    assert failed(hardened, original) == {"stored words": "nothing reads the stored words of 'W'; harden again"}


def test_no_run_leaves_the_run_out(tmp_path: Path) -> None:
    original, hardened = files(CASES["matmul"]().model, tmp_path)
    names = [check.name for check in verify_files(hardened, original, run=False)]
    assert names == ["plan", "standard operators", "interface", "stored words"]


def test_too_little_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, hardened = files(CASES["matmul"]().model, tmp_path)
    monkeypatch.setattr("qtaml_onnx.verification.available_memory", lambda: 100)
    assert "needs about 0.0 GB of memory" in failed(hardened, original)["equal without faults"]


def test_large_models_are_run_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, hardened = files(CASES["conv-float32"]().model, tmp_path)
    monkeypatch.setattr("qtaml_onnx.verification._IN_MEMORY", 0)
    assert not failed(hardened, original)


def test_a_loop_without_an_end_is_stopped() -> None:
    """No trip count, and a condition that stays true."""
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["c"], ["again"]), onnx.helper.make_node("Identity", ["v"], ["v2"])],
        "body",
        [info("i", onnx.TensorProto.INT64), info("c", onnx.TensorProto.BOOL), info("v", onnx.TensorProto.FLOAT, None)],
        [info("again", onnx.TensorProto.BOOL), info("v2", onnx.TensorProto.FLOAT, None)],
    )
    nodes = [onnx.helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)]
    floats = onnx.TensorProto.FLOAT
    proto = model(nodes, [info("x", floats, 2)], [info("y", floats, 2)], {"true": np.array(True)})
    session = create_session(proto)
    with pytest.raises(InputError, match=r"does not end within 0\.5 s"):
        run_limited(session, {"x": np.zeros(2, np.float32)}, 0.5)
