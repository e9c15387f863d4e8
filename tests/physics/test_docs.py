"""The page on the physics says what the code prints."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qtaml_onnx.cli import main
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
    try:
        return CliRunner().invoke(device_app, shlex.split(command)[2:], catch_exceptions=False).stdout.strip()
    except InputError as error:
        return f"qtaml-onnx: error: {error}"


def test_every_device_command_prints_what_the_page_shows() -> None:
    shown = [(command, output) for command, output in commands() if command.startswith("qtaml-onnx device ")]
    assert len(shown) >= 8
    for command, output in shown:
        assert printed(command) == output, command


@pytest.mark.slow
def test_the_model_keeps_over_time_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels and flip rates exactly; accuracies within three points, for another machine rounds otherwise."""
    (tmp_path / "examples").symlink_to(PAGE.parents[1] / "examples")
    for folder in ("out", "docs/pictures"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "96")
    shown = [(command, output) for command, output in commands() if not command.startswith("qtaml-onnx device ")]
    assert [shlex.split(command)[1] for command, _ in shown] == ["harden", "evaluate"]
    for command, output in shown:
        assert main(shlex.split(command)[1:]) == 0
        now, then = table(capsys.readouterr().out), table(output)
        assert [row[:2] for row in now] == [row[:2] for row in then]
        for (_, _, mean), (label, _, quoted) in zip(now, then, strict=True):
            assert float(mean) == pytest.approx(float(quoted), abs=0.03), label
    assert len(then) == 16
    means = {label: float(mean) for label, _, mean in then}
    assert means["hardened (50ms)"] == pytest.approx(0.98, abs=0.02)  # what the text below the table says
    picture = (tmp_path / "docs" / "pictures" / "physics_accuracy.svg").read_text(encoding="utf-8")
    kept = (PAGE.parent / "pictures" / "physics_accuracy.svg").read_text(encoding="utf-8")
    assert notes(picture) == notes(kept)


def table(output: str) -> list[tuple[str, str, str]]:
    """(variant, flip rate, mean) of each row of a results table."""
    rows = [[cell.strip() for cell in line.split("│")] for line in output.splitlines() if line.count("│") == 5]
    return [(row[0], row[1], row[2]) for row in rows if row[1]]


def notes(picture: str) -> list[str]:
    """The texts of a picture, which matplotlib notes before the letters that it draws."""
    return re.findall(r"<!-- (.*?) -->", picture)


def test_the_devices_file_on_the_page_is_valid(tmp_path: Path) -> None:
    text = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    path = tmp_path / "my-cell.toml"
    path.write_text(text, encoding="utf-8")
    assert load_device(path).name == tomllib.loads(text)["name"]


def test_every_picture_on_the_page_exists() -> None:
    pictures = re.findall(r"\((pictures/[^)]+)\)", PAGE.read_text(encoding="utf-8"))
    assert len(pictures) == 5
    assert all((PAGE.parent / picture).is_file() for picture in pictures)
