"""What the terminal shows: tables, warnings, and how far long work has come."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from qtaml_onnx.progress import CountedStep, Step
from qtaml_onnx.report.schema import Difference, Evaluation, EvaluationResult, Report

__all__ = [
    "TerminalProgress",
    "comparison_table",
    "console",
    "differences_table",
    "print_warnings",
    "results_table",
    "summary",
]

_PATIENCE = 2.0
"""Seconds of work before a progress bar appears."""

_LINE_EVERY = 10.0
"""Seconds between lines where there is no terminal."""

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
    """A bar with rate and time left on a terminal; elsewhere, a plain line now and then."""

    def __init__(self, quiet: bool) -> None:
        """Shows nothing if `quiet`."""
        self._quiet = quiet

    @contextmanager
    def steps(self, title: str, total: int) -> Iterator[Step]:
        """A bar that appears after two seconds, or lines from the tenth second on."""
        if self._quiet:
            yield CountedStep()
        elif sys.stderr.isatty():
            bar = _Bar(title, total)
            try:
                yield bar
            finally:
                bar.stop()
        else:
            yield _Lines(title, total)


class _Bar:
    """The steps of one bar."""

    def __init__(self, title: str, total: int) -> None:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Progress(*columns, console=console(stderr=True), transient=True)
        self._task = self._bar.add_task(title, total=total, rate="")
        self._start, self._done, self._visible = time.monotonic(), 0, False

    def __call__(self) -> None:
        self._done += 1
        elapsed = time.monotonic() - self._start
        if not self._visible and elapsed > _PATIENCE:
            self._bar.start()
            self._visible = True
        self._bar.update(self._task, completed=self._done, rate=_rate(self._done, elapsed))

    def expect(self, total: int) -> None:
        self._bar.update(self._task, total=total)

    def stop(self) -> None:
        if self._visible:
            self._bar.stop()


class _Lines:
    """The steps of work that no terminal shows."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._start = self._said = time.monotonic()

    def __call__(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._said >= _LINE_EVERY:
            self._said = now
            left = (self._total - self._done) * (now - self._start) / self._done
            print(
                f"{self._title}: {self._done} of {self._total}, {_rate(self._done, now - self._start)}, "
                f"{timedelta(seconds=math.ceil(left))} left",
                file=sys.stderr,
                flush=True,
            )

    def expect(self, total: int) -> None:
        self._total = total


def _rate(done: int, elapsed: float) -> str:
    """Steps a second, or seconds a step if it takes longer."""
    speed = done / max(elapsed, 1e-9)
    return f"{speed:.3g} a second" if speed >= 1 else f"{1 / speed:.3g} s each"


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
    found = [(result.metrics or {}).get(metric, result) for result in results]
    clean = next((one.mean for r, one in zip(results, found, strict=True) if r.variant == "clean"), None)
    for result, one in zip(results, found, strict=True):
        table.add_row(
            _name(result),
            f"{result.flip_rate:g}",
            f"{one.mean:.4f}",
            f"{one.ci_low:.4f} – {one.ci_high:.4f}",
            f"{one.mean / clean:.3f}" if clean else "",
            str(result.trials),
        )
    return table


def _name(result: EvaluationResult) -> str:
    name = VARIANTS[result.variant] + (f" ({result.label})" if result.label else "")
    return f"{name}, no faults" if result.variant == "hardened" and not result.flip_rate else name


def outcomes_table(results: list[EvaluationResult]) -> Table:
    """What the faults did to each sample, as shares."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("samples that faults leave")
    table.add_column("flip rate", justify="right")
    rows = [(result, result.outcomes) for result in results if result.outcomes is not None]
    for outcome in rows[0][1] if rows else ():
        table.add_column(outcome, justify="right")
    for result, outcomes in rows:
        table.add_row(_name(result), f"{result.flip_rate:g}", *(f"{one.mean:.4f}" for one in outcomes.values()))
    return table


def differences_table(found: list[Difference], metric: str, confidence: float) -> Table:
    """Paired differences, each of a model from the first one at a rate."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("paired difference")
    for title in ("flip rate", metric, f"{confidence:.0%} interval", "pairs"):
        table.add_column(title, justify="right")
    for one in found:
        table.add_row(
            f"{one.second} − {one.first}" + (f" ({one.label})" if one.label else ""),
            f"{one.flip_rate:g}",
            f"{one.mean:+.4f}",
            f"{one.ci_low:+.4f} – {one.ci_high:+.4f}",
            str(one.pairs),
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
    if report.prediction.noise_energy is not None:
        out.print(f"predicted output noise energy {report.prediction.noise_energy:.3g} of the clean outputs'")
