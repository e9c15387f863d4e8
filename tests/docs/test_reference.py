"""The generated reference: every command, option and field, with what the program says of it."""

from __future__ import annotations

import re
from pathlib import Path

import reference
from typer.testing import CliRunner

from qtaml_onnx.cli.app import app
from qtaml_onnx.report.schema import Report, json_schema

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_command_and_option_is_listed() -> None:
    text = reference.command_reference()
    sections = dict(re.findall(r"^## ([a-z -]+)\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    assert {"harden", "inject", "evaluate", "inspect", "verify", "report", "device rates"} <= set(sections)
    for name, section in sections.items():
        said = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "300", "NO_COLOR": "1"}).stdout
        options = set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", said.split("Options")[-1])) - {"--help", "-h"}
        listed = set(re.findall(r"`(--?[a-z][a-z0-9-]*)`", section))
        assert {option for option in options if f" {option} " in f"{said} "} - listed == set(), name
        assert listed, name


def test_defaults_and_help_are_the_programs() -> None:
    harden = reference.command_reference().split("## harden\n")[1].split("\n## ")[0]
    assert "| `--trials` | INTEGER | `20` | Draws of the faults a rate. |" in harden
    assert "| `-o`, `--output` | PATH | required | Where to write. |" in harden
    assert "| `--dry-run` |  |  | Decide and measure, write nothing. |" in harden
    assert "qtaml-onnx harden MODEL -o PATH [OPTIONS]" in harden


def test_every_field_of_the_report_is_listed() -> None:
    text = reference.report_fields()
    schema = json_schema()
    for definition in (schema, *schema["$defs"].values()):
        for field in definition.get("properties", {}):
            assert f"| `{field}` |" in text, field
    assert set(Report.model_fields) == set(schema["properties"])
    for target in re.findall(r"\]\(#([a-z]+)\)", text):
        assert re.search(rf"^### {target}$", text, flags=re.MULTILINE | re.IGNORECASE), target


def test_pages_have_the_markers_that_the_site_fills() -> None:
    hooks = (DOCS / "site_hooks.py").read_text(encoding="utf-8")
    markers = re.findall(r'"(<!-- generated: .*? -->)"', hooks)
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    assert len(markers) == 2
    assert all(pages.count(marker) == 1 for marker in markers)


def test_every_exit_code_is_listed() -> None:
    from qtaml_onnx.cli.app import main

    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    codes = re.findall(r"(\d+) (?:done|a gate|bad|interrupted)", main.__doc__ or "")
    assert codes == ["0", "1", "2", "130"]
    assert all(f"| {code} |" in page for code in codes)
