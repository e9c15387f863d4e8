"""Runs the code blocks of the pages, for the tests, and writes into the pages what they print.

Run: python docs/refresh_examples.py [PAGE.md...]; without names, all pages but docs/firmware.md. Look at the difference
afterwards.

- A ```console block holds commands after `$ `, each with its output below it. A line with nothing but `…` stands for
  any number of lines.
- The ```python blocks of a page are one program. A ```text block right below one is what it prints.
- A comment on the line above a block changes that: `<!-- not run: REASON -->`; `<!-- varies: REASON -->`: the output
  differs from run to run and is only shown; `<!-- slow: REASON -->`: among the slow tests.

Blocks run in a folder that has the repository's examples/ and empty out/ and docs/pictures/.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BY_HAND = {"firmware.md"}  # what it shows hangs together with the C program on it, which its own test runs
PAGES = (ROOT / "README.md", *(p for p in sorted((ROOT / "docs").glob("*.md")) if p.name not in BY_HAND))
ENVIRONMENT = {"COLUMNS": "96", "NO_COLOR": "1"}  # wide enough for the tables, narrow enough for the pages

_BLOCK = re.compile(r"^(?:<!-- ([^>]*?) -->\n)?```(\w*)[^\n]*\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_SHELL = re.compile(r"[|<>;&$*`]")
_PROGRESS = re.compile(r"[\w -]+: \d+ of \d+, .* left$")
_ELISION = "…"


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        language: What stands behind the fence.
        text: The lines between the fences.
        start: Where the text begins in the page.
        note: The comment above the fence, or an empty text.
        below: The text of a ```text block that follows with nothing but an empty line between, or None.
        below_start: Where that text begins in the page.
    """

    language: str
    text: str
    start: int
    note: str = ""
    below: str | None = None
    below_start: int = 0

    @property
    def runs(self) -> bool:
        """Whether the block is run as it stands."""
        return self.language in ("console", "python") and not self.note.startswith("not run: ")


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, but for those that show the output of the block above."""
    found: list[Block] = []
    end = -1
    for match in _BLOCK.finditer(page):
        note, language, text = match[1] or "", match[2], match[3]
        if language == "text" and found and found[-1].language == "python" and not page[end : match.start()].strip():
            found[-1] = Block("python", found[-1].text, found[-1].start, found[-1].note, text, match.start(3))
        else:
            found.append(Block(language, text, match.start(3), note))
        end = match.end()
    return found


def console_examples(text: str) -> list[tuple[str, str]]:
    """Every command of a console block, over several lines where they end in a backslash, with its output."""
    found = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        match = re.match(r"((?:[^\n]*\\\n)*[^\n]*)\n?(.*)", part, flags=re.DOTALL)
        if match is not None:
            found.append((match[1], match[2].strip("\n")))
    return found


class Session:
    """Runs a page's blocks in a folder, as a reader does who types them in."""

    def __init__(self, folder: Path, kept: dict[str, tuple[str, int]] | None = None) -> None:
        """Takes what `harden` commands printed in this folder before from `kept`, and puts more there."""
        self.folder = folder
        self.code = 0
        self.names: dict[str, object] = {"__name__": "__main__"}
        self._kept = {} if kept is None else kept
        for name in ("out", "docs/pictures"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def command(self, line: str) -> str:
        """What a command prints, errors last; `code` is its exit code."""
        words = shlex.split(line.replace("\\\n", " "))
        if words[0] == "qtaml-onnx" and not _SHELL.search(line):
            if shlex.join(words) not in self._kept:
                printed = self._program(words)
                if words[1] != "harden":
                    return printed
                self._kept[shlex.join(words)] = printed, self.code
            printed, self.code = self._kept[shlex.join(words)]
            return printed
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        done = subprocess.run(
            ["bash", "-c", f"(exit {self.code})\n{line}"],
            cwd=self.folder,
            env={**os.environ, **ENVIRONMENT, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        self.code = done.returncode
        return _tidy(done.stdout + done.stderr)

    def python(self, code: str) -> str:
        """What a block of Python prints; the next block sees its names."""
        with _redirected(self.folder) as (out, _errors):
            exec(compile(code, "<page>", "exec"), self.names)
        return _tidy(out.getvalue())

    def _program(self, words: list[str]) -> str:
        """Runs the program within this process, which saves a second of imports a command."""
        from qtaml_onnx.cli import main

        arguments = sys.argv
        sys.argv = words  # a report says by which command it was made
        try:
            with _redirected(self.folder) as (out, errors):
                self.code = main(words[1:])
        finally:
            sys.argv = arguments
        return _tidy(out.getvalue() + errors.getvalue())


@contextlib.contextmanager
def _redirected(folder: Path) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    out, errors = io.StringIO(), io.StringIO()
    os.environ.update(ENVIRONMENT)
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            yield out, errors
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _tidy(text: str) -> str:
    """Without spaces at the ends of lines, and without the lines that tell of progress where there is no terminal."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    return "\n".join(line for line in lines if not _PROGRESS.match(line))


def run_page(page: str, session: Session, *, slow: bool = True) -> Iterator[tuple[Block, str, str, str]]:
    """Runs a page: for each command or block of Python, the block, what was run, what it printed, what the page shows.

    Blocks that are marked as slow are left out unless `slow`.

    Raises:
        RuntimeError: if a command fails and the page does not show its exit code by `echo $?`.
    """
    for block in blocks(page):
        if not block.runs or (block.note.startswith("slow: ") and not slow):
            continue
        if block.language == "python":
            yield block, block.text, session.python(block.text), block.below or ""
            continue
        examples = console_examples(block.text)
        for number, (command, shown) in enumerate(examples):
            printed = session.command(command)
            follows = examples[number + 1][0] if number + 1 < len(examples) else ""
            if session.code and follows != "echo $?":
                raise RuntimeError(f"{command}: exit code {session.code}\n{printed}")
            yield block, command, printed, shown


def elided(printed: str, shown: str) -> str:
    """The output with as much left out as the page leaves out.

    What stands before the first `…` and after the last is as many lines from the start and from the end; what stands
    between two is as many lines from the one that reads as its first.
    """
    parts = [part.splitlines() for part in re.split(rf"^{_ELISION}$", shown.strip("\n"), flags=re.MULTILINE)]
    parts = [part[1:] if number and part[:1] == [""] else part for number, part in enumerate(parts)]
    now = printed.splitlines()
    if len(parts) == 1:
        return printed
    end = len(now) - len(parts[-1])
    kept, start = now[: len(parts[0])], len(parts[0])
    for part in parts[1:-1]:
        start = now.index(part[0], start, end) if part[0] in now[start:end] else end
        kept += [_ELISION, *now[start : min(start + len(part), end)]]
        start += len(part)
    return "\n".join([*kept, _ELISION, *now[end:]])


def refreshed(page: str, session: Session) -> str:
    """The page with the output of every block as it is today."""
    pieces: list[tuple[int, int, str]] = []
    outputs: dict[int, list[str]] = {}
    for block, command, printed, shown in run_page(page, session):
        now = elided(printed, shown)
        if block.language == "console":
            outputs.setdefault(block.start, []).append(f"$ {command}\n{now}\n" if now else f"$ {command}\n")
        elif block.below is not None:
            pieces.append((block.below_start, len(block.below), f"{now}\n"))
    for block in blocks(page):
        if block.start in outputs:
            gap = "\n" if "\n\n$ " in block.text else ""
            pieces.append((block.start, len(block.text), gap.join(outputs[block.start])))
    for start, length, text in sorted(pieces, reverse=True):
        page = page[:start] + text + page[start + length :]
    return page


def main() -> None:
    """Refreshes the pages named on the command line, or all."""
    kept: dict[str, tuple[str, int]] = {}
    for path in [Path(name).resolve() for name in sys.argv[1:]] or PAGES:
        page = path.read_text(encoding="utf-8")
        path.write_text(refreshed(page, Session(ROOT, kept)), encoding="utf-8")


if __name__ == "__main__":
    main()
