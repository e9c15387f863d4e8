"""Every opset that onnxruntime runs, and older ones, which are raised to one that it runs."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small_models import ROWS, info, matmul, model, normal
from stored_models import run

import qtaml_onnx
from qtaml_onnx.cli import main
from qtaml_onnx.modelio import load_model
from qtaml_onnx.old_opsets import OLDEST_OPSET

CALIBRATION = np.random.default_rng(5).normal(size=(65, 6)).astype(np.float32) + 1


def two_layers(opset: int, ir_version: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gemm", ["x", "V", "b"], ["g"], transB=1, **({"broadcast": 1} if opset < 7 else {})),
        helper.make_node("Relu", ["g"], ["r"]),
        matmul("W", "r"),
    ]
    batch = 5 if opset < OLDEST_OPSET else "N"  # onnx's converter does not take Gemm's old broadcast with an open batch
    tensors = {"V": normal(8, 6, seed=1), "b": normal(8, seed=2), "W": normal(8, 4, seed=3)}
    return model(nodes, [info("x", 1, batch, 6)], [info("y", 1, batch, 4)], tensors, opset=opset, ir_version=ir_version)


def newest_ir(opset: int) -> int:
    """The IR version that came with an opset, as far as onnxruntime reads it."""
    return min(helper.find_min_ir_version_for([helper.make_opsetid("", opset)]), 13)


def accepted_opsets() -> list[int]:
    """Those from the oldest on that the installed onnxruntime runs, as far as the installed onnx knows them."""
    found = []
    for opset in range(OLDEST_OPSET, onnx.defs.onnx_opset_version() + 1):
        try:
            run(two_layers(opset, newest_ir(opset)), ROWS)
        except Exception:  # onnxruntime's own types
            break
        found.append(opset)
    return found


def harden(folder: Path, proto: onnx.ModelProto, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    np.savez(folder / "c.npz", x=CALIBRATION)
    command = (
        f"harden {folder}/m.onnx -o {folder}/o.onnx --flip-rate 0.02 --no-html --json --calibration {folder}/c.npz"
    )
    assert main(command.split()) == 0, capsys.readouterr().err
    report: dict[str, object] = json.loads(capsys.readouterr().out)
    assert main(f"verify {folder}/o.onnx --original {folder}/m.onnx".split()) == 0, capsys.readouterr()
    capsys.readouterr()
    return report


@functools.cache
def _as_in_opset_17() -> np.ndarray:
    """The hardened model's outputs: the codes do not depend on the opset."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        path.write_bytes(two_layers(17, 8).SerializeToString())
        np.savez(path.with_suffix(".npz"), x=CALIBRATION)
        result = qtaml_onnx.harden(path, 0.02, calibration=path.with_suffix(".npz"))
    return run(ir.to_proto(result.model), ROWS)[0]


def test_opsets_7_to_26_are_among_those() -> None:
    assert set(range(7, 27)) <= set(accepted_opsets())


@pytest.mark.parametrize("opset", accepted_opsets())
def test_harden_and_verify_in_every_opset(opset: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proto = two_layers(opset, newest_ir(opset))
    report = harden(tmp_path, proto, capsys)
    hardened = onnx.load(tmp_path / "o.onnx")
    assert hardened.opset_import == proto.opset_import
    assert hardened.ir_version == proto.ir_version
    assert [tensor["bias_correction"] for tensor in report["tensors"]] == [True, False]  # type: ignore[attr-defined]
    expected, got = run(proto, ROWS)[0], run(hardened, ROWS)[0]
    assert np.mean((got - expected) ** 2) < 0.02 * np.mean(expected**2)
    np.testing.assert_allclose(got, _as_in_opset_17(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [5, 6])
def test_older_opsets_are_raised_and_that_is_said(
    opset: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = harden(tmp_path, two_layers(opset, 3), capsys)
    said = f"opset {opset} is older than onnxruntime runs: raised to 7 by onnx's version converter"
    assert said in report["warnings"]  # type: ignore[operator]
    assert report["source"]["opset"] == 7  # type: ignore[index]
    hardened = onnx.load(tmp_path / "o.onnx")
    assert hardened.opset_import[0].version == 7
    assert {p.key: p.value for p in hardened.metadata_props}["author"] == "somebody"
    source = load_model(tmp_path / "m.onnx")
    assert source.warnings == (said,)
    assert main(["inspect", str(tmp_path / "m.onnx"), "--json"]) == 0
    assert said in json.loads(capsys.readouterr().out)["warnings"]
