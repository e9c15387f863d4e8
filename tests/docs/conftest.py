"""The scripts of docs/, and a place to run the pages in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))  # scripts, not a package


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """The documentation is not beside the tests where they run on an installed copy."""
    return None if (ROOT / "docs" / "refresh_examples.py").is_file() else True


@pytest.fixture(scope="session")
def kept() -> dict[str, tuple[str, int]]:
    """What `harden` printed, by command: pages that show the same command share one hardening."""
    return {}


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory, kept: dict[str, tuple[str, int]]) -> Path:
    """A folder that looks like the repository's, after the README's commands."""
    import refresh_examples as examples

    folder = tmp_path_factory.mktemp("root")
    (folder / "examples").symlink_to(ROOT / "examples")
    session = examples.Session(folder, kept)
    for block in examples.blocks((ROOT / "README.md").read_text(encoding="utf-8")):
        if block.language == "console" and block.runs:
            for command, _shown in examples.console_examples(block.text):
                session.command(command)
                assert session.code == 0, command
    return folder
