"""The page on the physics says what the code prints."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qtaml_onnx.cli.device import device_app
from qtaml_onnx.errors import InputError
from qtaml_onnx.physics import load_device

PAGE = Path(__file__).parents[2] / "docs" / "physics.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not beside these tests")


def commands() -> list[tuple[str, str]]:
    found = []
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output.strip()))
    return found


def printed(command: str) -> str:
    words = shlex.split(command)
    assert words[:2] == ["qtaml-onnx", "device"]
    try:
        return CliRunner().invoke(device_app, words[2:], catch_exceptions=False).stdout.strip()
    except InputError as error:
        return f"qtaml-onnx: error: {error}"


def test_every_command_prints_what_the_page_shows() -> None:
    shown = commands()
    assert len(shown) >= 8
    for command, output in shown:
        assert printed(command) == output, command


def test_the_devices_file_on_the_page_is_valid(tmp_path: Path) -> None:
    text = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    path = tmp_path / "my-cell.toml"
    path.write_text(text, encoding="utf-8")
    assert load_device(path).name == tomllib.loads(text)["name"]


def test_every_picture_on_the_page_exists() -> None:
    pictures = re.findall(r"\((pictures/[^)]+)\)", PAGE.read_text(encoding="utf-8"))
    assert len(pictures) == 4
    assert all((PAGE.parent / picture).is_file() for picture in pictures)
