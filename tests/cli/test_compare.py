"""`harden --compare`: the other methods on the same seeds, in the table, the report and its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from digits_example import EVAL, MODEL

from qtaml_onnx.cli import main


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.onnx"
    command = [
        "harden", str(MODEL), "-o", str(output), "--flip-rate", "0.05", "--trials", "3",
        "--method", "posterior-mean", "--budget", "0.13", "--eval", str(EVAL), "--compare",
    ]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "out.report.json").read_text())
    page = (tmp_path / "out.report.html").read_text()
    compared = {row["method"]: row for row in report["evaluation"]["comparison"]}
    assert set(compared) == {"channel-optimized", "tac", "magnitude", "uniform-msp"}
    most = report["storage"]["protected_fraction"]
    for name, row in compared.items():
        assert row["protected_fraction"] <= most + 1e-9
        assert f"{row['mean']:.4f}" in shown
        assert name in page
    assert compared["uniform-msp"]["protected_fraction"] == pytest.approx(0.125)
    assert compared["channel-optimized"]["mean"] > compared["uniform-msp"]["mean"]


@pytest.mark.parametrize("more", [["--bits-per-weight", "8", "--eval", str(EVAL)], []])
def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    model = str(MODEL)
    command = ["harden", model, "-o", str(tmp_path / "o.onnx"), "--flip-rate", "0.05", "--compare", *more]
    assert main(command) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())
