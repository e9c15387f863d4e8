"""The generated parts of the site: the command reference and the fields of report.json, as Markdown.

`docs/site_hooks.py` puts them into the pages while the site is built. Nothing here is written by hand twice: commands
come from the program that runs, fields from the JSON Schema that ships with the package.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from qtaml_onnx.cli.app import app
from qtaml_onnx.report.schema import json_schema

__all__ = ["command_reference", "commands", "report_fields"]

PROGRAM = "qtaml-onnx"
_PANELS = "Options"
_TYPES = {bool: "", int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


def commands() -> dict[str, Any]:
    """Every command by its full name, subcommands as `device rates`; typer's own command objects."""
    found: dict[str, Any] = {}
    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        inner = getattr(command, "commands", None)
        if inner is None:
            found[name] = command
        else:
            found |= {f"{name} {sub}": child for sub, child in inner.items()}
    return found


def command_reference() -> str:
    """One section a command: what it does, its usage, its arguments and options with defaults."""
    return "\n".join(line for name, command in commands().items() for line in _command(name, command))


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    yield f"## {name}\n"
    needed = [f"{option.opts[0]} {_value(option)}" for option in options if option.required]
    positional = [argument.metavar or argument.name.upper() for argument in arguments]
    optional = [
        word if argument.required else f"[{word}]" for word, argument in zip(positional, arguments, strict=True)
    ]
    yield f"```text\n{' '.join([PROGRAM, name, *optional, *needed, '[OPTIONS]'])}\n```"
    yield from _prose(command.help or "")
    yield ""
    if any(argument.help for argument in arguments):
        yield "| argument | meaning |\n|---|---|"
        for word, argument in zip(positional, arguments, strict=True):
            yield f"| `{_cell(word)}` | {_cell(argument.help or '')} |"
        yield ""
    panels: dict[str, list[Any]] = {}
    for option in options:
        panels.setdefault(option.rich_help_panel or _PANELS, []).append(option)
    for panel, members in panels.items():
        yield f"| {panel} | value | default | meaning |\n|---|---|---|---|"
        for option in members:
            names = ", ".join(f"`{text}`" for text in (*option.opts, *option.secondary_opts))
            yield f"| {names} | {_value(option)} | {_default(option)} | {_cell(option.help or '')} |"
        yield ""


def _prose(text: str) -> Iterator[str]:
    """A command's help: paragraphs, and its example as code."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        example = re.fullmatch(rf"Examples?: ({PROGRAM} .*)", paragraph, flags=re.DOTALL)
        if example:
            lines = re.split(rf"\s+(?={PROGRAM} )", example[1])
            yield "\nFor example:\n\n```text\n" + "\n".join(" ".join(line.split()) for line in lines) + "\n```"
        else:
            yield "\n" + " ".join(paragraph.split())


def _value(option: Any) -> str:
    if option.is_flag or option.count:
        return ""
    if option.metavar:
        return str(option.metavar)
    word = _TYPES.get(option.type_descriptor.annotation, "TEXT")
    return f"{word}, repeatable" if option.multiple else word


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if option.is_flag or option.count or option.default in (None, (), []):
        return ""
    return f"`{option.default}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def report_fields() -> str:
    """A table a section of report.json: field, type, meaning."""
    schema = json_schema()
    lines = list(_section("The whole file", schema))
    for name, definition in schema["$defs"].items():
        lines += _section(name, definition)
    return "\n".join(lines)


def _section(title: str, definition: dict[str, Any]) -> Iterator[str]:
    yield f"### {title}\n"
    if definition.get("description"):
        yield " ".join(str(definition["description"]).split()) + "\n"
    if "properties" not in definition:
        yield f"{_kind(definition)}\n"
        return
    yield "| field | type | meaning |\n|---|---|---|"
    required = definition.get("required", [])
    for field, described in definition["properties"].items():
        optional = "" if field in required else " (optional)"
        yield f"| `{field}` | {_cell(_kind(described))} | {_cell(described.get('description', ''))}{optional} |"
    yield ""


def _kind(described: dict[str, Any]) -> str:
    if "$ref" in described:
        name = described["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in described:
        return " or ".join(_kind(choice) for choice in described["anyOf"])
    if "enum" in described:
        return " or ".join(f"`{value}`" for value in described["enum"])
    if "const" in described:
        return f"`{described['const']}`"
    kind = described.get("type", "anything")
    if kind == "array":
        return f"list of {_kind(described.get('items', {}))}"
    if kind == "object" and isinstance(described.get("additionalProperties"), dict):
        return f"object of {_kind(described['additionalProperties'])}"
    return str(kind)
