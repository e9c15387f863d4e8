"""Reading and writing models: nothing half-read, nothing half-written, no path followed out of the model's folder."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data
from small_models import CASES, OUT, ROWS, X, info, initializer, matmul, model, normal
from stored_models import run

from qtaml_onnx import modelio
from qtaml_onnx.errors import InputError
from qtaml_onnx.modelio import OutputSet, file_sha256, load_model, save_model
from qtaml_onnx.outputs import check_outputs
from qtaml_onnx.wire import cut_raw_data


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def external(folder: Path, location: str = "weights.bin") -> Path:
    proto = model([matmul()], [X], [OUT], {"W": normal(6, 4)})
    convert_model_to_external_data(proto, location=location, size_threshold=0)
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


def relocate(path: Path, **entries: str) -> None:
    """Rewrites entries of the first tensor's external data."""
    proto = onnx.load(path, load_external_data=False)
    kept = {e.key: e.value for e in proto.graph.initializer[0].external_data} | entries
    del proto.graph.initializer[0].external_data[:]
    proto.graph.initializer[0].external_data.extend(
        onnx.StringStringEntryProto(key=k, value=v) for k, v in kept.items()
    )
    path.write_bytes(proto.SerializeToString())


def test_reads_what_the_checker_passes(tmp_path: Path) -> None:
    for name, case in CASES.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(case().model.SerializeToString())
        source = load_model(path)
        assert source.opset == case().model.opset_import[0].version
        assert source.sha256 == file_sha256(path)
        assert not source.hardened
        assert not source.instrumented


def test_external_data_beside_the_model(tmp_path: Path) -> None:
    path = external(tmp_path)
    value = load_model(path).model.graph.initializers["W"].const_value
    assert value is not None
    np.testing.assert_array_equal(value.numpy(), normal(6, 4))


@pytest.mark.parametrize("location", ["../out.bin", "{abs}/out.bin", "link.bin", "sub/../../out.bin", "down/out.bin"])
def test_external_data_elsewhere_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = external(folder)
    (tmp_path / "out.bin").write_bytes((folder / "weights.bin").read_bytes())
    (folder / "sub").mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "out.bin")
    (folder / "down").symlink_to(tmp_path)
    relocate(path, location=location.replace("{abs}", str(tmp_path)))
    with pytest.raises(InputError, match=r"tensor 'W' points to .*outside the model's folder"):
        load_model(path)


@pytest.mark.parametrize(
    ("entries", "cut"),
    [({"location": ""}, 0), ({"location": "missing.bin"}, 0), ({"offset": "1000"}, 0), ({"length": "10"}, 0), ({}, 20),
     ({"offset": "-4"}, 0), ({"offset": "x"}, 0), ({"length": "99999"}, 0), ({"location": "."}, 0)],
)  # fmt: skip
def test_damaged_external_data_is_refused(entries: dict[str, str], cut: int, tmp_path: Path) -> None:
    path = external(tmp_path)
    if entries:
        relocate(path, **entries)
    if cut:
        data = tmp_path / "weights.bin"
        data.write_bytes(data.read_bytes()[:-cut])
    with pytest.raises(InputError, match=r"m\.onnx") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def damage(kind: str, path: Path) -> None:
    proto = model([matmul()], [X], [OUT], {"W": normal(6, 4)})
    data = proto.SerializeToString()
    match kind:
        case "empty":
            data = b""
        case "jpeg":
            data = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(range(256))
        case "text":
            data = b"<html><body>404 not found</body></html>"
        case "cut":
            data = data[: len(data) // 2]
        case "no graph":
            proto.ClearField("graph")
            data = proto.SerializeToString()
        case "no opset":
            del proto.opset_import[:]
            data = proto.SerializeToString()
        case "foreign opset":
            proto.opset_import[0].domain = "com.example"
            data = proto.SerializeToString()
        case "old":
            proto = model([matmul()], [X], [OUT], {"W": normal(6, 4)}, opset=6)
            relu = helper.make_node("Relu", ["a"], ["r"])
            proto.functions.append(helper.make_function("test", "f", ["a"], ["r"], [relu], proto.opset_import))
            data = proto.SerializeToString()
        case "unknown operator":
            proto.graph.node[0].op_type = "MatMull"
            data = proto.SerializeToString()
        case "cycle":
            proto.graph.node[0].input[0] = "y"
            data = proto.SerializeToString()
        case "short tensor":
            proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
            data = proto.SerializeToString()
        case "sparse outside" | "sparse huge" | "sparse short" | "sparse type":
            values, at = initializer("v", np.array([1.0], np.float32)), initializer("i", np.array([3]))
            shape = [6, 4]
            if kind == "sparse outside":
                at = initializer("i", np.array([24]))
            elif kind == "sparse huge":
                shape = [1 << 20, 1 << 20]
            elif kind == "sparse short":
                at.raw_data = at.raw_data[:-1]
            else:
                at = initializer("i", np.array([3], np.int32))
            sparse = helper.make_sparse_tensor(values, at, shape)
            proto.graph.sparse_initializer.append(sparse)
            data = proto.SerializeToString()
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("empty", "is empty"),
        ("jpeg", "is not an ONNX model"),
        ("text", "is not an ONNX model"),
        ("cut", "is not an ONNX model or is truncated"),
        ("no graph", "is not an ONNX model"),
        ("no opset", "is not an ONNX model"),
        ("foreign opset", "no version of the ONNX operator set"),
        ("old", "opset 6 is older than onnxruntime runs and cannot be raised to 7 .it has model functions"),
        ("unknown operator", "the ONNX checker refuses it.*MatMull"),
        ("cycle", "the ONNX checker refuses it"),
        ("short tensor", "W"),
        ("sparse outside", "v"),
        ("sparse huge", "more than 2 GiB when dense"),
        ("sparse short", "the ONNX checker refuses it"),
        ("sparse type", "v"),
    ],
)
def test_what_is_no_model_is_refused(kind: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    damage(kind, path)
    with pytest.raises(InputError, match=part) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_refused_or_a_model(tmp_path: Path) -> None:
    """Cut at any byte, a file never gives anything but a model that the checker passes or a one-line refusal."""
    data = CASES["conv-depthwise"]().model.SerializeToString()
    path = tmp_path / "m.onnx"
    refused = 0
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        try:
            load_model(path)
        except InputError as error:
            refused += "\n" not in str(error)
    assert refused >= len(range(0, len(data), 3)) - 20  # fields after the graph may be missing


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_model(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="is a folder"):
        load_model(tmp_path)


def test_output_paths_are_checked_before_work(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(b"x")
    (tmp_path / "alias.onnx").symlink_to(source)
    for path, part in (
        (tmp_path / "none" / "o.onnx", "does not exist"),
        (source / "o.onnx", "does not exist"),
        (tmp_path, "is a folder"),
        (source, "is one of the input files"),
        (tmp_path / "alias.onnx", "is one of the input files"),
        (tmp_path / "." / "m.onnx", "is one of the input files"),
    ):
        with pytest.raises(InputError, match=part):
            check_outputs({"-o": path}, [source])
    with pytest.raises(InputError, match=r"not writable .* with --plot$"):
        check_outputs({"--plot": Path("/proc/o.onnx")})
    before = listing(tmp_path)
    new = tmp_path / "new.onnx"
    check_outputs({"-o": new, "--plot": None}, [source, None, tmp_path / "none"])
    with pytest.raises(InputError, match="--plot and -o name the same file"):
        check_outputs({"-o": new, "--plot": Path(os.path.relpath(new))})
    check_outputs({"-o": new, "--plot": tmp_path / "other"})
    assert listing(tmp_path) == before


def test_outputs_appear_together(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with OutputSet() as outputs:
        outputs.add_text(tmp_path / "a", "new")
        outputs.add_text(tmp_path / "b", "β")
        assert (tmp_path / "a").read_text() == "old"
    assert listing(tmp_path) == {"a": b"new", "b": "β".encode()}
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o666 & ~mask


def write(*files: tuple[Path, str | BaseException]) -> None:
    """Writes a set of outputs, each a text or a failure after half of it."""
    with OutputSet() as outputs:
        for path, content in files:
            if isinstance(content, str):
                outputs.add_text(path, content)
            else:
                outputs.add(path, _failing(content))


def _failing(error: BaseException) -> Callable[[Path], None]:
    def half(path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    return half


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "seen"),
    [(FULL, InputError), (ValueError("bug"), ValueError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_failure_leaves_nothing(error: BaseException, seen: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    before = listing(tmp_path)
    with pytest.raises(seen):
        write((tmp_path / "a", "new"), (tmp_path / "b", error))
    assert listing(tmp_path) == before


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"b cannot be written \(No space left on device\); free space"):
        write((tmp_path / "b", FULL))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_failure_while_renaming_puts_everything_back(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("old")
    before = listing(tmp_path)
    rename = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if target.name == "c" and self.suffix == ".part":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        write(*((tmp_path / name, "new") for name in ("a", "b", "c", "d")))
    assert listing(tmp_path) == before


def test_no_links_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without hard links the old file is copied aside."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_text("old")
    with OutputSet() as outputs:
        outputs.add_text(tmp_path / "a", "new")
    assert listing(tmp_path) == {"a": b"new"}


def test_folders_and_doubles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write((tmp_path / "a", "new"), (tmp_path / "d", "new"))
    with pytest.raises(InputError, match="two outputs would be written to"):
        write((tmp_path / "a", "new"), (tmp_path / "d" / ".." / "a", "new"))
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("threshold", [1 << 30, 0])
def test_saved_models_read_back(threshold: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inline, and with external data as models of more than 1 GiB are."""
    monkeypatch.setattr(modelio, "_EXTERNAL_THRESHOLD", threshold)
    weights = {"A": normal(6, 64), "B": normal(64, 64, seed=2)}
    proto = model([matmul("A", result="h"), matmul("B", "h")], [X], [OUT], weights)
    (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "out").mkdir()
    with OutputSet() as outputs:
        digest = save_model(load_model(tmp_path / "in.onnx").model, outputs, tmp_path / "out" / "o.onnx")
    assert {p.name for p in (tmp_path / "out").iterdir()} == ({"o.onnx"} if threshold else {"o.onnx", "o.onnx.data"})
    assert digest == file_sha256(tmp_path / "out" / "o.onnx")
    back = onnx.load(tmp_path / "out" / "o.onnx")
    for got, wanted in zip(run(back, ROWS), run(proto, ROWS), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert load_model(tmp_path / "out" / "o.onnx").model.graph.initializers["B"].dtype == TensorProto.FLOAT


@pytest.mark.parametrize("threshold", [1 << 30, 0])
def test_a_model_that_cannot_be_saved_leaves_nothing(
    threshold: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelio, "_EXTERNAL_THRESHOLD", threshold)

    (tmp_path / "out").mkdir()
    loaded = ir.from_proto(model([matmul()], [X], [OUT], {"W": normal(6, 40_000)}))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # no file may grow beyond 100 bytes
    try:
        with pytest.raises(InputError, match="cannot be written"), OutputSet() as outputs:
            save_model(loaded, outputs, tmp_path / "out" / "o.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "out").iterdir())


def two_external(folder: Path, **entries: str) -> Path:
    """Two tensors in one file; the second one's entries changed."""
    proto = model([matmul("A", result="h"), matmul("B", "h")], [X], [OUT], {"A": normal(6, 6), "B": normal(6, 4)})
    convert_model_to_external_data(proto, location="w.bin", size_threshold=0)
    (folder / "w.bin").unlink(missing_ok=True)  # the library appends
    onnx.save(proto, folder / "m.onnx")
    proto = onnx.load(folder / "m.onnx", load_external_data=False)
    for entry in proto.graph.initializer[1].external_data:
        entry.value = entries.get(entry.key, entry.value)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


def test_overlapping_external_data_is_refused_and_tied_weights_are_not(tmp_path: Path) -> None:
    load_model(two_external(tmp_path))
    with pytest.raises(InputError, match="'A' and 'B' overlap"):
        load_model(two_external(tmp_path, offset="100"))
    proto = model([matmul("A", result="h"), matmul("B", "h")], [X], [OUT], {"A": normal(6, 6), "B": normal(6, 6)})
    convert_model_to_external_data(proto, location="t.bin", size_threshold=0)
    onnx.save(proto, tmp_path / "t.onnx")
    proto = onnx.load(tmp_path / "t.onnx", load_external_data=False)
    proto.graph.initializer[1].external_data[1].value = proto.graph.initializer[0].external_data[1].value
    (tmp_path / "t.onnx").write_bytes(proto.SerializeToString())
    a, b = (load_model(tmp_path / "t.onnx").model.graph.initializers[name].const_value for name in "AB")
    assert a is not None
    assert b is not None
    np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("dims", [[-1, 4], [2**62, 2**62], [6, 5], [2**40, 4]])
@pytest.mark.parametrize("where", ["raw", "typed", "external"])
def test_absurd_shapes_are_refused(dims: list[int], where: str, tmp_path: Path) -> None:
    proto = model([matmul()], [X], [OUT], {"W": normal(6, 4)})
    if where == "external":
        proto = onnx.load(external(tmp_path), load_external_data=False)
    if where == "typed":
        proto.graph.initializer[0].CopyFrom(helper.make_tensor("W", TensorProto.FLOAT, [6, 4], [0.0] * 24))
    proto.graph.initializer[0].dims[:] = dims
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match=r"'W'.*its shape .* has a negative extent|'W'.*its type and shape.* need"):
        load_model(tmp_path / "m.onnx")


def test_large_tensors_are_cut_out_wherever_they_are(tmp_path: Path) -> None:
    """Initializers and Constant nodes, here and in branches: what is read in place is what the library reads."""
    big = normal(300, 300)
    names = ["a", "b"]
    nodes = [helper.make_node("Constant", [], ["c"], value=initializer("c", big)), matmul("W", "x", "h")]
    branches = {
        f"{side}_branch": helper.make_graph(
            [helper.make_node("MatMul", ["h", f"{side}W"], [f"{side}y"])],
            side,
            [],
            [helper.make_tensor_value_info(f"{side}y", TensorProto.FLOAT, [1, 300])],
            [initializer(f"{side}W", big * (2 + names.index(letter)))],
        )
        for side, letter in (("then", "a"), ("else", "b"))
    }
    nodes += [helper.make_node("If", ["flag"], ["z"], **branches), helper.make_node("MatMul", ["z", "c"], ["y"])]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 300]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 300])]
    proto = model(nodes, inputs, outputs, {"W": big})
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert len(cut_raw_data(memoryview(proto.SerializeToString()), "here", 1 << 16)) < 3000
    loaded = load_model(tmp_path / "m.onnx").model
    assert isinstance(loaded.graph.initializers["W"].const_value, ir.Tensor)
    feeds = {"x": normal(1, 300, seed=1), "flag": np.array(True)}
    np.testing.assert_array_equal(run(ir.to_proto(loaded), feeds)[0], run(proto, feeds)[0])
    for external_data in (False, True):
        with OutputSet() as files:
            save_model(loaded, files, tmp_path / "o.onnx", external_data=external_data)
        np.testing.assert_array_equal(run(onnx.load(tmp_path / "o.onnx"), feeds)[0], run(proto, feeds)[0])


def test_attributes_that_are_zero_and_not_written(tmp_path: Path) -> None:
    """A writer that leaves zeros out: read as 0, and not as nothing."""
    proto = model([helper.make_node("Softmax", ["x"], ["y"], axis=0)], [info("x", 1, 2, 3)], [info("y", 1, 2, 3)], {})
    proto.graph.node[0].attribute[0].ClearField("i")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    (node,) = load_model(tmp_path / "m.onnx").model.graph
    assert node.attributes["axis"].as_int() == 0


def test_reference_to_an_attribute_of_no_function(tmp_path: Path) -> None:
    proto = model([helper.make_node("Softmax", ["x"], ["y"], axis=0)], [info("x", 1, 2, 3)], [info("y", 1, 2, 3)], {})
    proto.graph.node[0].attribute[0].ref_attr_name = "axis"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match=r"Softmax '.*' refers to an attribute of a function, but is in none"):
        load_model(tmp_path / "m.onnx")


def test_maps_are_refused_by_name(tmp_path: Path) -> None:
    """As skl2onnx has them for the probabilities of classes, in a sequence."""
    proto = model([matmul()], [X], [OUT], {"W": normal(6, 4)})
    pairs = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    zipped = helper.make_node("ZipMap", ["y"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    proto.graph.node.append(zipped)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    proto.graph.output.append(helper.make_value_info("z", helper.make_sequence_type_proto(pairs)))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"value 'z' is a map, .* zipmap=False"):
        load_model(tmp_path / "m.onnx")


def test_a_model_without_standard_operators(tmp_path: Path) -> None:
    node = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0])
    proto = model([matmul()], [X], [OUT], {"W": normal(6, 4)})
    proto.graph.node[0].CopyFrom(node)
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"operators of ai\.onnx\.ml alone, and no weights to harden"):
        load_model(tmp_path / "m.onnx")
