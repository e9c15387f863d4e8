"""README.md: its command is that of `make demo`, its tables are complete, its Python needs nothing of ours."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import reference
import refresh_examples as examples
import yaml

import qtaml_onnx
from qtaml_onnx.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
WORDS_A_MINUTE = 200


def test_commands_write_what_is_said(root: Path) -> None:
    written = {path.name for path in (root / "out").iterdir()}
    assert {"digits_cnn.onnx", "digits_cnn.plan.json", "digits_cnn.report.json", "digits_cnn.report.html"} <= written


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_quoted_command_is_that_of_make_demo() -> None:
    planned = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in planned.replace("\\\n", " ").splitlines() if "qtaml-onnx harden" in line]
    (block,) = [block for block in examples.blocks(TEXT) if block.language == "console"]
    ((command, _shown),) = examples.console_examples(block.text)
    assert [words[1:] for words in lines] == [shlex.split(command)[1:]]


def test_hardened_model_runs_in_stock_onnxruntime(root: Path) -> None:
    """In a process of its own, where nothing of ours is loaded."""
    first = next(block.text for block in examples.blocks(TEXT) if block.language == "python")
    labels = 'labels = np.load("examples/digits/digits_eval.npz")["labels"]'
    check = f"import sys\n{labels}\nprint(float((logits.argmax(1) == labels).mean()), 'qtaml_onnx' in sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", first + check], cwd=root, capture_output=True, text=True, check=True)
    accuracy, ours = done.stdout.split()
    assert float(accuracy) > 0.97
    assert ours == "False"


def test_tables_list_every_command_and_method() -> None:
    commands = {name.split()[0] for name in reference.commands()}
    listed = re.findall(r"^\| `([a-z][a-z-]*)", TEXT, flags=re.MULTILINE)
    assert sorted(listed) == sorted([*commands, *METHODS])


def test_it_is_read_in_ten_minutes() -> None:
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    assert len(prose.split()) < 10 * WORDS_A_MINUTE


def test_citation_is_that_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == qtaml_onnx.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
