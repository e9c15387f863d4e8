"""What terminals see: narrow ones, ones without colour, pipes, and ones without line-drawing characters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qtaml_onnx.cli import main
from qtaml_onnx.cli.show import sparkline

REPORT = Path(__file__).resolve().parents[1] / "report" / "fixtures" / "version-1.report.json"


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_lines_fit_and_lose_nothing(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["report", str(REPORT)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    for text in ("0.9933", "0.3491", "0.9894", "0.8609", "posterior-mean", "uniform-msp", "0.996", "8.571"):
        assert text in out, text
    assert "…" not in out


def run(arguments: list[str], **environment: str) -> bytes:
    code = "import sys; from qtaml_onnx.cli import main; sys.exit(main(sys.argv[1:]))"
    import os

    env = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], capture_output=True, check=True, env=env
    ).stdout


def test_pipes_and_no_color_get_no_escapes() -> None:
    assert b"\x1b" not in run(["report", str(REPORT)])
    assert b"\x1b[3" not in run(["report", str(REPORT)], NO_COLOR="1", FORCE_COLOR="1")


def test_a_terminal_without_unicode_ends_no_run() -> None:
    assert b"0.9894" in run(["report", str(REPORT)], PYTHONIOENCODING="ascii", PYTHONUTF8="0")


def test_json_is_the_report() -> None:
    assert run(["report", str(REPORT), "--json"]).decode().startswith('{\n "schema_version": 1,')


def test_sparkline_spans_its_range() -> None:
    assert sparkline([0, 0.124, 0.126, 0.5, 1.0], 0, 1) == "▁▁▂▅█"
    assert sparkline([0, 0.5, 1.0], 0, 1, ascii_only=True) == "047"
    assert sparkline([3.0, 3.0], 3.0, 3.0) == "▁▁"
