"""docs/firmware.md: its commands, C and Python run in the order of the page, and print what it quotes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from c_reader import WARNINGS, c_compiler

from qtaml_onnx.firmware.layout import PARITY_STREAM, PROTECTED_STREAM

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "firmware.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not beside these tests")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def check_alike(printed: str, shown: str) -> None:
    """Words exactly, checksums not, numbers within a few per cent: another machine may round a weight otherwise."""
    pattern = r"(?<![\w.])(-?\d+\.?\d*)(?![\w.])"
    now, then = (re.split(pattern, re.sub(r"crc32 \w+", "crc32", " ".join(text.split()))) for text in (printed, shown))
    assert now[::2] == then[::2]
    for number, quoted in zip(now[1::2], then[1::2], strict=True):
        assert float(number) == pytest.approx(float(quoted), rel=0.2, abs=0.03)


@pytest.mark.slow  # three runs of the command line
def test_page_runs_and_prints_what_it_quotes(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import refresh_examples as pages  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    compiler = c_compiler()
    (tmp_path / "out").mkdir()
    harden, export, load = (pair for block in blocks("console") for pair in pages.console_examples(block))
    for command, shown in (harden, export):
        done = run_command(command, tmp_path, pages.ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        check_alike(done.stdout, shown)
    (tmp_path / "example.c").write_text(blocks("c")[0])
    line = blocks("sh")[0].split()
    assert line[0] == "cc"
    subprocess.run([compiler, *WARNINGS, *line[1:]], cwd=tmp_path, check=True)
    clean, faulty = blocks("text")
    check_alike(run(tmp_path), clean)
    subprocess.run([sys.executable, "-c", blocks("python")[0]], cwd=tmp_path, check=True)
    check_alike(run(tmp_path), faulty)
    done = run_command(load[0], tmp_path, pages.ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    check_alike(done.stdout, load[1])


def run_command(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-P", "-c", "import sys; from qtaml_onnx.cli import main; sys.exit(main())"]
    words = shlex.split(command)[1:]
    settings = {**os.environ, **environment}
    return subprocess.run([*program, *words], cwd=folder, env=settings, capture_output=True, text=True, check=False)


def run(folder: Path) -> str:
    return subprocess.run([str(folder / "example")], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_numbers_of_the_format_are_those_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"0x{PROTECTED_STREAM:08X}" in text
    assert f"0x{PARITY_STREAM:08X}" in text
    reader = (ROOT / "qtaml_onnx" / "firmware" / "qtaml_readout.c").read_text()
    assert f"#define PROTECTED_STREAM 0x{PROTECTED_STREAM:08x}u" in reader
    assert f"#define PARITY_STREAM 0x{PARITY_STREAM:08x}u" in reader
