"""The command line, `qtaml-onnx`: one module a command."""

from __future__ import annotations

import sys

import click
import typer

from qtaml_onnx import __version__
from qtaml_onnx.errors import QtamlError

__all__ = ["app", "main"]

app = typer.Typer(
    name="qtaml-onnx",
    help="Make ONNX models survive bit flips in leaky memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"qtaml-onnx {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Version.")) -> None:
    pass


def main(args: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0 done, 1 a gate was not met, 2 bad input or usage."""
    try:
        code = app(args, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except click.ClickException as error:
        error.show()
        return 2
    except QtamlError as error:
        print(f"qtaml-onnx: error: {error}", file=sys.stderr)
        return 2
