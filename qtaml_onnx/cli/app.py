"""Puts the commands together, and turns errors into one line and an exit code."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from pathlib import Path

import typer

from qtaml_onnx import __version__
from qtaml_onnx.cli.device import device_app
from qtaml_onnx.cli.evaluate import evaluate
from qtaml_onnx.cli.export_image import export_image
from qtaml_onnx.cli.harden import harden
from qtaml_onnx.cli.import_image import import_image
from qtaml_onnx.cli.inject import inject
from qtaml_onnx.cli.inspect import inspect
from qtaml_onnx.cli.report import report
from qtaml_onnx.cli.verify import verify
from qtaml_onnx.errors import GateError, Interrupted, QtamlError
from qtaml_onnx.textio import one_line

__all__ = ["app", "main"]

_INTERRUPTED = 130
"""Exit code of whoever is stopped by Ctrl-C, by custom of shells; typer turns the exception into it."""

_PIPE_CLOSED = 141
"""Exit code, by the same custom, of whoever writes to a pipe that nobody reads any more, as that to `head`."""

app = typer.Typer(
    name="qtaml-onnx",
    help="Make ONNX models survive bit flips of their stored weights: model the physics, inject, harden, prove.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (harden, inject, evaluate, inspect, verify, report, export_image, import_image):
    app.command()(command)
app.add_typer(device_app, name="device")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"qtaml-onnx {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def main(args: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: Arguments without the program's name; those of the process if None.

    Returns:
        0 done, 1 a gate was not met, 2 bad input or usage, 130 interrupted, 141 the reader of a pipe was gone before
        the command ended.
    """
    if not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_OneLine("%(message)s"))
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without a character shows another, it ends no run
    code = _run(args)
    try:
        sys.stdout.flush()  # what fails only now would be told by the interpreter, in its own words
    except BrokenPipeError:  # the command had ended, and its code stands
        _say_no_more()
    except OSError as error:
        _say_no_more()
        return _fail(f"standard output: {error.strerror or error}; free space or write elsewhere", 2)
    return code


def _run(args: list[str] | None) -> int:
    try:
        code = app(args, standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    except SystemExit as stop:
        if not isinstance(stop.__context__, BrokenPipeError):  # which typer turns into an exit of its own
            raise
        _say_no_more()
        return _PIPE_CLOSED
    except typer.TyperException as error:
        message = " ".join(error.format_message().split())
        return _fail(message or "give a command; see qtaml-onnx --help", 2)
    except GateError as error:
        return _fail(str(error), 1)
    except Interrupted as stop:
        print(f"qtaml-onnx: interrupted; {stop}", file=sys.stderr)
        return _INTERRUPTED
    except QtamlError as error:
        return _fail(str(error), 2)
    except MemoryError:
        return _fail("not enough memory for this model; close other programs or use a larger machine", 2)
    except OSError as error:
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}; check space and permissions", 2)
    if code == _INTERRUPTED:
        print("qtaml-onnx: interrupted; nothing was written", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _say_no_more() -> None:
    """Nothing can be written to stdout; what is left for it is dropped, also when the interpreter ends."""
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - flushed at exit


def _fail(message: str, code: int) -> int:
    print(f"qtaml-onnx: error: {one_line(message)}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_details: object, **_more: object) -> None:
    print(f"qtaml-onnx: warning: {one_line(str(message))}", file=sys.stderr)


class _OneLine(logging.Formatter):
    """What libraries and passes log, which may name what is in a model."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))
