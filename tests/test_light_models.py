"""The nine light models that the onnx package carries.

They are of opset 9 and IR 3, their initializers are listed as inputs, every weight is made by a ConstantOfShape node,
and all values of a tensor are equal.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import backend

from qtaml_onnx.cli import main

LIGHT = Path(backend.__file__).parent / "test" / "data" / "light"
QUICK = ("squeezenet", "shufflenet")
NAMES = ("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "vgg19", "zfnet512", *QUICK)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_harden_and_verify(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = LIGHT / f"light_{name}.onnx"
    args = f"harden {source} -o {tmp_path}/o.onnx --flip-rate 0.01 --no-html --json"
    assert main(args.split()) == 0, capsys.readouterr().err
    document = json.loads(capsys.readouterr().out)
    weights = sum(op in ("Conv", "Gemm", "MatMul") for op in (n.op_type for n in onnx.load(source).graph.node))
    assert len(document["tensors"]) == weights
    assert main(f"verify {tmp_path}/o.onnx --original {source} --json".split()) == 0, capsys.readouterr()
    assert json.loads(capsys.readouterr().out)["passed"]
    written = onnx.load(tmp_path / "o.onnx")
    assert (written.ir_version, written.opset_import[0].version) == (3, 9)


def test_all_nine_are_here() -> None:
    assert {path.stem for path in LIGHT.glob("*.onnx")} == {f"light_{name}" for name in NAMES}
