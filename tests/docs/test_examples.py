"""Every code block of README.md and docs/: run and compared, or checked in another way, or said not to be run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
import refresh_examples as examples
import yaml
from reference import commands

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONSOLE_ELSEWHERE = {"physics.md"}  # tests/physics/test_docs.py runs these, the long ones among the slow tests
ELSEWHERE = {"firmware.md"}  # tests/firmware/test_docs.py runs its commands, C and Python

_NUMBER = re.compile(r"(\d+\.\d+)")
_TIMES = (" ms", " s ", " µs")
_MACHINE = re.compile(
    r"(?<=sha256 )[0-9a-f]+(?=…|\\u2026)|(?<=largest error )\S+|(?<=inference time )[^,]+|[▁▂▃▄▅▆▇█]+"
)


def difference(printed: str, shown: str) -> str | None:
    """What differs. Words exactly; decimals within 0.03, for another machine rounds otherwise; times and bars not."""
    now, then = (_NUMBER.split(_MACHINE.sub("~", " ".join(text.split()))) for text in (printed, shown))
    if now[::2] != then[::2]:
        return f"printed:\n{printed}\nshown:\n{shown}"
    for number, quoted, unit in zip(now[1::2], then[1::2], then[2::2], strict=True):
        if not unit.startswith(_TIMES) and abs(float(number) - float(quoted)) > 0.03:
            return f"{number} is printed where {quoted} is shown:\n{printed}"
    return None


def test_differences_are_seen() -> None:
    assert difference("kept 0.95 of it", "kept 0.91 of it")
    assert difference("kept 0.95 of it", "lost 0.95 of it")
    assert difference("kept 0.95 of it\n", "kept  0.96 of it") is None
    assert difference("took 0.95 ms", "took 3.10 ms") is None
    assert difference("12 tensors", "13 tensors")


def test_blocks_are_found() -> None:
    page = (
        "a\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n"
        "<!-- not run: why -->\n```console\n$ a \\\n  b\nc\n$ d\n```\n"
    )
    python, console = examples.blocks(page)
    assert (python.language, python.below, python.runs) == ("python", "1\n", True)
    assert (console.note, console.runs) == ("not run: why", False)
    assert examples.console_examples(console.text) == [("a \\\n  b", "c"), ("d", "")]
    assert examples.elided("1\n2\n3\n4\n5", "1\n…\n9") == "1\n…\n5"
    assert examples.elided("1\n2\n3\n4\n5\n6", "0\n…\n3\nx\n…\n9") == "1\n…\n3\n4\n…\n6"
    assert examples.elided("1\n2\n3\n4", "0\n…\n9\n…") == "1\n…\n…"  # what is not printed is missed


def test_refreshing_writes_what_is_printed(tmp_path: Path) -> None:
    page = (
        "```python\nx = 2\nprint(x)\n```\n\n```text\n3\n```\n\nb\n\n```console\n$ echo old\nnew\n"
        "$ qtaml-onnx device list --nonsense\n$ echo $?\n```\n"
    )
    expected = (
        "```python\nx = 2\nprint(x)\n```\n\n```text\n2\n```\n\nb\n\n```console\n$ echo old\nold\n"
        "$ qtaml-onnx device list --nonsense\nqtaml-onnx: error: No such option: --nonsense\n$ echo $?\n2\n```\n"
    )
    session = examples.Session(tmp_path)
    assert examples.refreshed(page, session) == expected
    assert examples.refreshed(expected, session) == expected
    slow = "<!-- slow: takes long -->\n```console\n$ echo a\n```\n"
    assert len(list(examples.run_page(slow, session))) == 1
    assert not list(examples.run_page(slow, session, slow=False))
    with pytest.raises(RuntimeError, match="exit code 3"):
        list(examples.run_page("```console\n$ (exit 3)\n```\n", session))


HERE = [path for path in PAGES if path.name not in ELSEWHERE]
SLOW = [path for path in HERE if "<!-- slow: " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    ("path", "slow"),
    [pytest.param(path, False, id=path.name) for path in HERE]
    + [pytest.param(path, True, id=f"{path.name}-slow", marks=pytest.mark.slow) for path in SLOW],
)
def test_blocks_run_and_print_what_is_shown(
    path: Path, slow: bool, root: Path, kept: dict[str, tuple[str, int]]
) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name in CONSOLE_ELSEWHERE:
        text = re.sub(r"^```console\n", "```text\n", text, flags=re.MULTILINE)
    for block, command, printed, shown in examples.run_page(text, examples.Session(root, kept), slow=slow):
        if block.language == "python" and block.below is None:
            continue
        if block.note.startswith("varies: "):
            assert printed.strip(), command
            continue
        found = difference(examples.elided(printed, shown), shown)
        assert found is None, f"{command}\n{found}"


def check_yaml(text: str) -> None:
    """A workflow of GitHub or the configuration of pre-commit, by the fields that these need."""
    document = yaml.safe_load(text)
    if "repos" in document:
        hooks = [hook for repo in document["repos"] for hook in repo["hooks"]]
        assert hooks
        assert all({"id", "name", "entry", "language"} <= set(hook) for hook in hooks)
        return
    assert True in document, "a workflow without `on`"  # YAML 1.1 reads the key `on` as true
    for job in document["jobs"].values():
        assert job["runs-on"]
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
        for step in job["steps"]:
            check_commands(step.get("run", ""))


def check_commands(script: str) -> None:
    """The program knows the commands and their options, and what they read from examples/ is there."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        if words and words[0] == "qtaml-onnx":
            known = {name for param in commands()[words[1]].params for name in param.opts}
            assert {word for word in words[2:] if word.startswith("-")} <= known, line
            assert all((ROOT / word).is_file() for word in words if word.startswith("examples/")), line


def check_sql(text: str) -> None:
    """Complete statements, as SQLite sees it."""
    assert sqlite3.complete_statement(text)


def check_cpp(text: str, folder: Path) -> None:
    """Compiles against onnxruntime's headers, which its Python wheel does not have."""
    include = os.environ.get("ONNXRUNTIME_INCLUDE_DIR", "/usr/include/onnxruntime")
    if not (Path(include) / "onnxruntime_cxx_api.h").is_file() or shutil.which("g++") is None:
        pytest.skip("needs g++ and onnxruntime's C++ headers; name their folder by ONNXRUNTIME_INCLUDE_DIR")
    (folder / "example.cpp").write_text(text, encoding="utf-8")
    subprocess.run(
        ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-isystem", include, "example.cpp"],
        cwd=folder,
        check=True,
    )


def check_java(text: str, folder: Path) -> None:
    """Compiles against onnxruntime's jar if one is named, else against declarations of the methods that are used."""
    if shutil.which("javac") is None:
        pytest.skip("needs javac")
    name = re.findall(r"^(?:public )?(?:final )?class (\w+)", text, flags=re.MULTILINE)[0]
    (folder / f"{name}.java").write_text(text, encoding="utf-8")
    jar = os.environ.get("ONNXRUNTIME_JAR")
    where = ["-classpath", jar] if jar else ["-sourcepath", str(Path(__file__).parent / "java")]
    subprocess.run(["javac", "-Xlint:all", "-Werror", "-d", "classes", *where, f"{name}.java"], cwd=folder, check=True)


CHECKS: dict[str, Callable[[str, Path], object]] = {
    "yaml": lambda text, _folder: check_yaml(text),
    "toml": lambda text, _folder: tomllib.loads(text),
    "json": lambda text, _folder: json.loads(text),
    "xml": lambda text, _folder: ElementTree.fromstring(text),
    "sql": lambda text, _folder: check_sql(text),
    "cpp": check_cpp,
    "java": check_java,
}


def other_blocks() -> list[tuple[str, str, str]]:
    found = []
    for path in HERE:
        for block in examples.blocks(path.read_text(encoding="utf-8")):
            if block.language in CHECKS and not block.note.startswith("not run: "):
                found.append((f"{path.name}-{block.language}-{len(found)}", block.language, block.text))
    return found


@pytest.mark.parametrize(("language", "text"), [pytest.param(*rest, id=name) for name, *rest in other_blocks()])
def test_other_blocks_are_valid(language: str, text: str, tmp_path: Path) -> None:
    CHECKS[language](text, tmp_path)


def test_no_block_is_left_out() -> None:
    """A block in another language needs a reason why it is not run; ```text is what a reader does not type."""
    for path in HERE:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^[ \t]+```", text, flags=re.MULTILINE), f"{path.name}: an indented block is not found"
        found = examples.blocks(text)
        assert len(re.findall(r"^```", text, flags=re.MULTILINE)) == 2 * (
            len(found) + sum(block.below is not None for block in found)
        ), path.name
        for block in found:
            reason = re.fullmatch(r"not run: .{10,}", block.note)
            assert block.runs or block.language in (*CHECKS, "text") or reason, f"{path.name}: {block.text[:80]}"


def test_links_lead_somewhere() -> None:
    for page in (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\(((?!https?:)[^)#\s]+)", page.read_text(encoding="utf-8")):
            generated = page.parent.name == "docs" and target == "changelog.md"
            assert generated or (page.parent / target).exists(), f"{page.name}: {target}"
