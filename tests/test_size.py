"""Models are hardened tensor by tensor: memory is that of the largest tensor, whatever the model's size."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from scripts import ROOT, load_script

from qtaml_onnx.cli import main
from qtaml_onnx.errors import InputError
from qtaml_onnx.modelio import load_model
from qtaml_onnx.outputs import check_free_space

MEBI = 1 << 20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


size = load_script(ROOT / "benchmarks" / "size.py")


def harden_args(model: Path, out: Path) -> list[str]:
    args = ["harden", str(model), "-o", str(out), "--flip-rate", "0.05", "--sensitivity", "magnitude", "--no-html"]
    return [*args, "--method", "magnitude", "-q"]


def bound(tensor_bytes: int) -> float:
    return 1.5 * tensor_bytes + size.FIXED


@pytest.mark.parametrize("external", [True, False])
def test_memory_is_that_of_a_tensor(external: bool, tmp_path: Path) -> None:
    """256 MiB in tensors of 8 MiB: to hold the model, or its words twice, would go beyond what is allowed here."""
    model = size.write_model(tmp_path / "m.onnx", 32, 8 * MEBI, external=external)
    usage = size.run(harden_args(model, tmp_path / "o.onnx"))
    assert usage.code == 0, usage.errors
    assert usage.own < min(bound(8 * MEBI), 300 * MEBI)  # about 200 are the libraries'
    assert (tmp_path / "o.onnx.data").exists() == external


@pytest.mark.slow
def test_memory_of_images_does_not_grow_with_a_tensor(tmp_path: Path) -> None:
    """67 million words in one tensor: to hold it once in 16-bit words would go beyond what is allowed here."""
    model = size.write_model(tmp_path / "m.onnx", 1, 260 * MEBI, external=True)
    assert size.run(harden_args(model, tmp_path / "o.onnx")).code == 0
    for args in (
        ["export-image", f"{tmp_path}/o.onnx", "-o", f"{tmp_path}/image"],
        ["import-image", f"{tmp_path}/image", "--model", f"{tmp_path}/o.onnx", "-o", f"{tmp_path}/real.onnx"],
    ):
        usage = size.run(args)
        assert usage.code == 0, usage.errors
        assert usage.own < 240 * MEBI  # about 150 are the libraries'
    models = [onnx.load(tmp_path / name) for name in ("o.onnx", "real.onnx")]
    words = [next(t for t in model.graph.initializer if t.name == "W0.words") for model in models]
    np.testing.assert_array_equal(*map(numpy_helper.to_array, words))


def test_memory_of_quantised_models_is_that_of_a_tensor(tmp_path: Path) -> None:
    """The same for 64 MiB of bytes that stand for 256 MiB of floats, in tensors of 8 MiB: they are never all floats."""
    nodes, tensors, rng = [], [], np.random.default_rng(5)
    for number in range(32):
        words = rng.integers(-127, 128, (1024, 2048) if number % 2 == 0 else (2048, 1024), dtype=np.int8)
        scale = np.full(words.shape[1], 1e-3, np.float32)
        tensors += [numpy_helper.from_array(words, f"W{number}"), numpy_helper.from_array(scale, f"s{number}")]
        nodes.append(helper.make_node("DequantizeLinear", [f"W{number}", f"s{number}"], [f"V{number}"], axis=1))
        nodes.append(helper.make_node("MatMul", [f"x{number}", f"V{number}"], [f"x{number + 1}"]))
    x, y = (helper.make_tensor_value_info(name, 1, ["N", 1024]) for name in ("x0", "x32"))
    graph = helper.make_graph(nodes, "quantised", [x], [y], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    usage = size.run(harden_args(tmp_path / "m.onnx", tmp_path / "o.onnx"))
    assert usage.code == 0, usage.errors
    assert usage.own < min(bound(8 * MEBI), 400 * MEBI)


@pytest.mark.parametrize("external", [True, False])
def test_large_tensors_are_written_as_they_are(external: bool, tmp_path: Path) -> None:
    """A hardened model written in parts is what the library writes of the whole, and verifies."""
    model = size.write_model(tmp_path / "m.onnx", 3, MEBI, external=external)
    assert main(harden_args(model, tmp_path / "o.onnx")) == 0
    onnx.checker.check_model(str(tmp_path / "o.onnx"))
    proto = onnx.load(tmp_path / "o.onnx")
    words = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name.endswith(".words")}
    assert {name: array.shape for name, array in words.items()} == {
        "W0.words": (2048, 128),
        "W1.words": (128, 2048),
        "W2.words": (2048, 128),
    }
    original = load_model(model).model.graph.initializers["W1"].const_value
    assert original is not None
    weights = original.numpy()
    peaks = np.abs(weights).max(axis=0)
    normalised = (weights / peaks).astype(np.float64)  # the quotient is float32, the decision about it exact
    np.testing.assert_array_equal(words["W1.words"], np.rint(normalised * 127).astype(np.int8))
    assert main(["verify", str(tmp_path / "o.onnx"), "--original", str(model)]) == 0


def test_outputs_do_not_replace_the_models_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model whose external data is called as that of the output would be."""
    model = size.write_model(tmp_path / "m.onnx", 1, MEBI, external=True)
    data = (tmp_path / "m.onnx.data").rename(tmp_path / "o.onnx.data")
    proto = onnx.load(model, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = "o.onnx.data"
    model.write_bytes(proto.SerializeToString())
    before = data.read_bytes()
    assert main(harden_args(model, tmp_path / "o.onnx")) == 2
    assert "is one of the input files" in capsys.readouterr().err
    assert data.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "o.onnx.data"}


def test_too_full_a_disk_is_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = size.write_model(tmp_path / "m.onnx", 2, MEBI, external=False)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(total=10**9, used=10**9, free=10**6))
    with pytest.raises(InputError, match=r"needs 18\.8 MB, its disk has 1\.0 MB free"):
        check_free_space(tmp_path / "o.onnx", 2_000_000)
    monkeypatch.setattr("qtaml_onnx.cli.harden.harden_source", lambda *_a, **_k: pytest.fail("work was done"))
    assert main(harden_args(model, tmp_path / "o.onnx")) == 2
    assert "free space or choose another -o" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_of_4_gib(tmp_path: Path) -> None:
    """Within 1.5 times the largest tensor and 500 MB; needs 10 GB of disk and some minutes."""
    (tmp_path / "out").mkdir()
    model = size.write_model(tmp_path / "m.onnx", 32, 128 * MEBI, external=True)
    args = ["harden", str(model), "-o", str(tmp_path / "out/o.onnx"), "--flip-rate", "0.05", "--no-html", "-q"]
    usage = size.run(args)  # more than 1 GiB: weighed by magnitude without being asked to
    assert usage.code == 0, usage.errors
    assert usage.own < bound(128 * MEBI)
    for command in (
        ["inspect", str(model)],
        ["inject", str(tmp_path / "out/o.onnx"), "-o", str(tmp_path / "out/f.onnx"), "--flip-rate", "0.1"],
        ["verify", str(tmp_path / "out/o.onnx"), "--original", str(model), "--no-run"],
    ):
        usage = size.run(command)
        assert usage.code == 0, usage.errors
        assert usage.own < bound(128 * MEBI)
