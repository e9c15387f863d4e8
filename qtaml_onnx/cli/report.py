"""`qtaml-onnx report`: rebuild the HTML page from report.json or a campaign's store, or compare two reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from qtaml_onnx.cli import options as o
from qtaml_onnx.cli.show import print_comparison, store_table, summary
from qtaml_onnx.errors import InputError
from qtaml_onnx.outputs import OutputSet, check_outputs
from qtaml_onnx.plan import StoragePlan, read_plan
from qtaml_onnx.report import Report, read_report, render_html
from qtaml_onnx.report.compare import Comparison, compare_reports
from qtaml_onnx.report.compare_html import render_comparison
from qtaml_onnx.report.store import StoredCampaign, is_store, read_store
from qtaml_onnx.report.store_html import render_store
from qtaml_onnx.textio import printable

__all__ = ["report"]

_SUFFIX = ".report.json"


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...", help="A report.json or a campaign's store; with --compare two report.json."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The HTML file to write.", show_default=False)
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare two reports: two models, two methods, two releases.")
    ] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Rebuild the HTML report, or compare two reports.

    The plan beside a report, if there is one, adds the pictures of codes. Without -o the terminal shows the summary.
    Differences of trials with the same seed on the same data are paired.

    Example: qtaml-onnx report --compare old.report.json new.report.json -o comparison.html
    """
    if len(sources) != (2 if compare else 1):
        what = "--compare needs two reports" if compare else "give one report, or two with --compare"
        raise InputError(f"{what}, not {len(sources)}")
    check_outputs({"-o": output}, sources)
    if compare:
        first, second = (read_report(path) for path in sources)
        comparison = compare_reports(first, second, (str(sources[0]), str(sources[1])))
        _finish(output, lambda: render_comparison(comparison), comparison, sources, json, quiet)
    elif is_store(sources[0]):
        campaign = read_store(sources[0])
        _finish(output, lambda: render_store(campaign), campaign, sources, json, quiet)
    else:
        read = read_report(sources[0])
        plan = _plan_beside(sources[0])
        _finish(output, lambda: render_html(read, plan), read, sources, json, quiet)


def _plan_beside(source: Path) -> StoragePlan | None:
    beside = source.with_name(source.name.removesuffix(_SUFFIX) + ".plan.json")
    return read_plan(beside) if source.name.endswith(_SUFFIX) and beside.is_file() else None


def _finish(
    output: Path | None,
    render: Callable[[], str],
    document: Report | Comparison | StoredCampaign,
    sources: Sequence[Path],
    json: bool,
    quiet: bool,
) -> None:
    """Writes the page if one is wanted, and shows the document."""
    if output is not None:
        try:
            page = render()
        except (ArithmeticError, LookupError, TypeError, ValueError, MemoryError) as error:
            # the schema says what is a number, not which numbers can be drawn: 0 planes, an interval of NaN
            raise InputError(
                f"{sources[0]} cannot be drawn ({error}); it was changed by hand, make it again"
            ) from error
        with OutputSet(sources) as outputs:
            outputs.add_text(output, page)
    if json:
        print(document.to_json(), end="")
    elif not quiet:
        if isinstance(document, Comparison):
            print_comparison(document)
        elif isinstance(document, StoredCampaign):
            store_table(document)
        elif output is None:
            summary(document)
        if output is not None:
            print(f"report {printable(output)}")
