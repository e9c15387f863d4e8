"""Makes the helpers beside this file importable, whatever import mode pytest runs in; runs command lines."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Runs a command line and gives its stdout and stderr; the exit code must be the one expected."""
    from qtaml_onnx.cli import main

    def call(args: str, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        got = main(args.split())
        out, err = capsys.readouterr()
        assert got == code, err
        return out, err

    return call
