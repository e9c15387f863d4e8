"""README.md: its commands and Python run, and print what it quotes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from qtaml_onnx.cli.app import app
from qtaml_onnx.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="the README is not beside these tests")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """The script that refreshes the pages: it knows how their commands run."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import refresh_examples  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    return refresh_examples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pages: ModuleType) -> Path:
    """A place that looks like the root of the repository, with what the README's commands wrote there."""
    place = tmp_path_factory.mktemp("root")
    (place / "examples").symlink_to(ROOT / "examples")
    for command, shown in pages.console_examples(README.read_text(encoding="utf-8")):
        done = pages.run(command, place)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        check_same_but_for_rounding(done.stdout, shown)
    return place


def check_same_but_for_rounding(printed: str, shown: str) -> None:
    """Words exactly; numbers within 0.03, for another machine rounds otherwise. Times are as the machine has them."""
    printed, shown = (re.sub(r"inference time .*", lambda m: re.sub(r"[\d.]+", "#", m[0]), t) for t in (printed, shown))
    now, then = (re.split(r"(\d+\.\d+)", " ".join(text.split())) for text in (printed, shown))
    assert now[::2] == then[::2]
    assert len(then) > 20
    for number, quoted in zip(now[1::2], then[1::2], strict=True):
        assert float(number) == pytest.approx(float(quoted), abs=0.03)


def test_quoted_numbers_are_compared() -> None:
    with pytest.raises(AssertionError):
        check_same_but_for_rounding("kept 0.95 " * 12, "kept 0.91 " * 12)
    with pytest.raises(AssertionError):
        check_same_but_for_rounding("kept 0.95 " * 12, "lost 0.95 " * 12)
    check_same_but_for_rounding("kept 0.95 " * 12, "kept 0.96 " * 12)


def test_commands_run_and_print_what_is_quoted(folder: Path) -> None:
    written = {path.name for path in (folder / "out").iterdir()}
    assert {"digits_cnn.onnx", "digits_cnn.plan.json", "digits_cnn.report.json", "digits_cnn.report.html"} <= written


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_quoted_command_is_that_of_make_demo(pages: ModuleType) -> None:
    planned = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in planned.replace("\\\n", " ").splitlines() if "qtaml-onnx harden" in line]
    ((command, _),) = pages.console_examples(README.read_text(encoding="utf-8"))
    assert [words[1:] for words in lines] == [shlex.split(command)[1:]]


def test_hardened_model_runs_in_stock_onnxruntime(folder: Path) -> None:
    first = blocks("python")[0]
    labels = 'labels = np.load("examples/digits/digits_eval.npz")["labels"]'
    check = f"{labels}\nprint(float((logits.argmax(1) == labels).mean()))\n"
    assert "qtaml" not in first
    done = subprocess.run([sys.executable, "-c", first + check], cwd=folder, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0.97


@pytest.mark.slow
def test_python_example(folder: Path) -> None:
    code = blocks("python")[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 8.0 <= float(done.stdout.split()[0]) < 10.0
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "out" / "from_python.onnx", providers=["CPUExecutionProvider"])
    with np.load(ROOT / "examples" / "digits" / "digits_eval.npz") as data:
        right = session.run(None, {"image": data["image"]})[0].argmax(axis=1) == data["labels"]
    assert right.mean() > 0.97


def test_tables_list_every_command_and_method() -> None:
    text = README.read_text(encoding="utf-8")
    callbacks = [info.callback for info in app.registered_commands if info.callback is not None]
    commands = {callback.__name__.replace("_", "-") for callback in callbacks}
    commands |= {str(group.name) for group in app.registered_groups}
    listed = re.findall(r"^\| `([a-z][a-z-]*)", text, flags=re.MULTILINE)
    assert sorted(commands) + sorted(METHODS) == sorted(listed[: len(commands)]) + sorted(listed[len(commands) :])


def test_links_lead_somewhere() -> None:
    for page in (README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
