"""benchmarks/exported.py: what its table says of models whose outcome is known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest
from format_models import FORMATS
from quantized_models import FORMATS as QUANTISED
from scripts import ROOT, load_script

exported = load_script(ROOT / "benchmarks" / "exported.py")


def saved(folder: Path, name: str, proto: onnx.ModelProto) -> Path:
    path = folder / f"{name}.onnx"
    proto.producer_name, proto.producer_version = "pytorch", "2.15.0+cpu"
    onnx.save(proto, path)
    return path


def test_a_row_counts_what_was_stored_and_what_was_not(tmp_path: Path) -> None:
    """Words that are kept at rate 0 compute the same outputs; at a rate they are off by what the plan reads."""
    path = saved(tmp_path, "layered", QUANTISED["layered"]())
    row = exported.measure(path, 0.0, [0])
    run = row.runs[0]
    assert (row.exporter, row.opset, run.verdict, run.tensors, run.bits) == ("pytorch 2.15.0", "17", "yes", 2, 8 * 420)
    assert run.difference == 0.0
    assert run.left_out["addend of QLinearAdd"] == 1
    runs = exported.measure(path, 0.05, [0, 8]).runs
    assert all(run.verdict == "yes" and 0 < run.difference < 0.5 for run in runs.values())


def test_a_model_that_is_declined_says_why(tmp_path: Path) -> None:
    run = exported.measure(saved(tmp_path, "norms", FORMATS["normalisation only"]()), 0.01, [0]).runs[0]
    assert run.verdict.startswith("declined: no weights to harden")
    assert not run.defect


def test_an_error_that_is_no_reason_is_a_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, "gemm", FORMATS["Gemm"]())

    def broken(*_arguments: object, **_options: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(exported.qtaml_onnx, "harden", broken)
    run = exported.measure(path, 0.01, [0]).runs[0]
    assert run.defect
    assert run.verdict == "DEFECT: KeyError: 'x'"


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, "gemm", FORMATS["Gemm"]())
    saved(tmp_path, "lstm", FORMATS["LSTM"]())
    out = tmp_path / "rows.json"
    arguments = ["exported.py", "--models", str(tmp_path), "--only", "g*", "--samples", "0", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        exported.main()
    assert not stopped.value.code
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[0] for line in lines] == ["| model", "| ---", "| gemm"]
    assert len({line.count(" | ") for line in lines}) == 1
    assert [row["name"] for row in json.loads(out.read_text())] == ["gemm"]
