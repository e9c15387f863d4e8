"""`qtaml-onnx report`: rebuild the HTML page from report.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qtaml_onnx.cli import options as o
from qtaml_onnx.errors import InputError
from qtaml_onnx.modelio import OutputSet, check_output_path
from qtaml_onnx.plan import read_plan
from qtaml_onnx.report import read_report, render_html
from qtaml_onnx.textio import printable

__all__ = ["report"]

_SUFFIX = ".report.json"


def report(
    source: Annotated[Path, typer.Argument(metavar="REPORT.json", help="A report.json.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.", show_default=False)],
    quiet: o.Quiet = False,
) -> None:
    """Rebuild the HTML report. The plan beside the report, if there is one, adds the pictures of codes."""
    check_output_path(output, source)
    read = read_report(source)
    beside = source.with_name(source.name.removesuffix(_SUFFIX) + ".plan.json")
    plan = read_plan(beside) if source.name.endswith(_SUFFIX) and beside.is_file() else None
    try:
        page = render_html(read, plan)
    except (ArithmeticError, LookupError, TypeError, ValueError, MemoryError) as error:
        # the schema says what is a number, not which numbers can be drawn: 0 planes, an interval of NaN
        raise InputError(f"report {source} cannot be drawn ({error}); it was changed by hand, make it again") from error
    with OutputSet((source, beside)) as outputs:
        outputs.add_text(output, page)
    if not quiet:
        print(f"report {printable(output)}")
