"""What the terminal shows: tables, warnings, and a progress bar for anything longer than two seconds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from qtaml_onnx.report.schema import Evaluation, EvaluationResult, Report

__all__ = ["TerminalProgress", "comparison_table", "console", "print_warnings", "results_table", "summary"]

_PATIENCE = 2.0
"""Seconds of work before a progress bar appears."""

_UNWRAPPED = 240
"""Columns where there is no terminal to fit."""

VARIANTS = {
    "clean": "clean (float)",
    "quantized": "quantised, no faults",
    "unprotected": "unprotected",
    "hardened": "hardened",
}


def console(stderr: bool = False) -> Console:
    """A console that honours NO_COLOR and widths; what goes to a file or a pipe is not wrapped."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _UNWRAPPED
    return Console(stderr=stderr, highlight=False, width=width)


class TerminalProgress:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, quiet: bool) -> None:
        """Shows nothing if `quiet` or if stderr is no terminal."""
        self._shown = not quiet and sys.stderr.isatty()

    @contextmanager
    def steps(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar that appears after two seconds."""
        if not self._shown:
            yield lambda: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=console(stderr=True), transient=True)
        task = bar.add_task(title, total=total)
        start, visible = time.monotonic(), False

        def step() -> None:
            nonlocal visible
            if not visible and time.monotonic() - start > _PATIENCE:
                bar.start()
                visible = True
            bar.advance(task)

        try:
            yield step
        finally:
            if visible:
                bar.stop()


def print_warnings(warnings: list[str], quiet: bool) -> None:
    """One line a warning on stderr."""
    if not quiet:
        for warning in warnings:
            print(f"qtaml-onnx: warning: {warning}", file=sys.stderr)


def results_table(results: list[EvaluationResult], metric: str, confidence: float) -> Table:
    """Variants by rate, with intervals and the share of clean."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("variant")
    table.add_column("flip rate", justify="right")
    table.add_column(metric, justify="right")
    table.add_column(f"{confidence:.0%} interval", justify="right")
    table.add_column("of clean", justify="right")
    table.add_column("trials", justify="right")
    clean = next((r.mean for r in results if r.variant == "clean"), None)
    for result in results:
        name = VARIANTS[result.variant] + (f" ({result.label})" if result.label else "")
        if result.variant == "hardened" and not result.flip_rate:
            name += ", no faults"
        table.add_row(
            name,
            f"{result.flip_rate:g}",
            f"{result.mean:.4f}",
            f"{result.ci_low:.4f} – {result.ci_high:.4f}",
            f"{result.mean / clean:.3f}" if clean else "",
            str(result.trials),
        )
    return table


def comparison_table(evaluation: Evaluation) -> Table:
    """The other methods, with no more protected bits than the hardened model."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("other methods")
    for title in (evaluation.metric, f"{evaluation.confidence:.0%} interval", "protected", "bits a weight"):
        table.add_column(title, justify="right")
    for other in evaluation.comparison:
        table.add_row(
            other.method,
            f"{other.mean:.4f}",
            f"{other.ci_low:.4f} – {other.ci_high:.4f}",
            f"{other.protected_fraction:.2%}",
            f"{other.bits_per_weight:.3f}",
        )
    return table


def summary(report: Report) -> None:
    """The result of a hardening on stdout: what was measured, and what it costs."""
    out = console()
    storage = report.storage
    if report.evaluation is not None:
        evaluation = report.evaluation
        out.print(results_table(evaluation.results, evaluation.metric, evaluation.confidence))
        out.print(f"{evaluation.samples} samples of {evaluation.data}, seed {evaluation.seed}")
        if evaluation.comparison:
            out.print(comparison_table(evaluation))
    protected = f"{storage.protected_fraction:.2%}" if storage.protected_bits else "none"
    out.print(
        f"method {report.method}: {len(report.tensors)} tensors, {storage.weights} weights, "
        f"protected bits {protected} ({storage.protection}), {storage.bits_per_weight:.3f} bits a weight all in"
    )
    if report.small is not None:
        out.print(
            f"small tensors: {len(report.small.tensors)} of the model, each bit {report.small.copies} times, "
            f"{storage.small_bits} bits; scales and tables likewise"
        )
    if report.prediction.noise_energy is not None:
        out.print(f"predicted output noise energy {report.prediction.noise_energy:.3g} of the clean outputs'")
