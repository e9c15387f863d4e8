"""Runs the commands that README.md and pages of docs/ show, and writes into the pages what they print.

Each ```console block holds commands after `$ ` with their output below. They run from the root of the repository with
the `qtaml-onnx` of the Python that runs this script. Run: python docs/refresh_examples.py [PAGE.md...]
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "physics.md", ROOT / "docs" / "campaigns.md")
WIDTH = "96"  # columns: wide enough for the tables, narrow enough for the pages


def console_examples(text: str) -> list[tuple[str, str]]:
    """Every command of a page's console blocks with the output shown below it."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output.strip()))
    return found


def run(command: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs a `qtaml-onnx …` line of a page in `folder`; outputs there go to `out/`, which is made."""
    name, *words = shlex.split(command)
    if name != "qtaml-onnx":
        raise ValueError(f"only qtaml-onnx commands stand on the pages, not {command!r}")
    (folder / "out").mkdir(exist_ok=True)
    program = [sys.executable, "-c", "import sys; from qtaml_onnx.cli import main; sys.exit(main())", *words]
    environment = {**os.environ, "COLUMNS": WIDTH, "NO_COLOR": "1"}
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def refreshed(text: str) -> str:
    """The page with the output of every command as it is today."""
    for command, shown in console_examples(text):
        done = run(command)
        said = done.stdout or done.stderr  # an error, or a table whose progress is of no interest
        printed = "\n".join(line.rstrip() for line in said.strip().splitlines())
        text = text.replace(f"$ {command}\n{shown}\n", f"$ {command}\n{printed}\n", 1)
    return text


def main() -> None:
    """Refreshes the pages named on the command line, or all."""
    for page in map(Path, sys.argv[1:] or PAGES):
        page.write_text(refreshed(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
