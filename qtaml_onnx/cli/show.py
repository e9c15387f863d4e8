"""What the terminal shows: tables, warnings, and how far long work has come."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from qtaml_onnx.progress import CountedStep, Step
from qtaml_onnx.report.compare import Comparison, called, verdict
from qtaml_onnx.report.fields import is_share
from qtaml_onnx.report.schema import Difference, Evaluation, EvaluationResult, Report
from qtaml_onnx.report.store import StoredCampaign
from qtaml_onnx.report.text import format_rate
from qtaml_onnx.textio import one_line

__all__ = [
    "TerminalProgress",
    "comparison_table",
    "console",
    "differences_table",
    "outcomes_table",
    "print_comparison",
    "print_sweep",
    "print_warnings",
    "results_table",
    "sparkline",
    "store_table",
    "summary",
]

_PATIENCE = 2.0
"""Seconds of work before a progress bar appears."""

_LINE_EVERY = 10.0
"""Seconds between lines where there is no terminal."""
_NARROW = 72
"""Columns below which tables are shown with fewer."""

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
            print(f"qtaml-onnx: warning: {one_line(warning)}", file=sys.stderr)


def results_table(results: list[EvaluationResult], metric: str, confidence: float) -> Table:
    """Variants by rate, with intervals and the share of clean; on a narrow terminal in fewer columns."""
    narrow = _narrow()
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("variant")
    table.add_column("rate" if narrow else "flip rate", justify="right")
    table.add_column(f"{metric},\n{confidence:.0%} interval" if narrow else metric, justify="right")
    if not narrow:
        table.add_column(f"{confidence:.0%} interval", justify="right")
    table.add_column("kept" if narrow else "of clean", justify="right")
    if not narrow:
        table.add_column("trials", justify="right")
    found = [(result.metrics or {}).get(metric, result) for result in results]
    clean = next((one.mean for r, one in zip(results, found, strict=True) if r.variant == "clean"), None)
    for result, one in zip(results, found, strict=True):
        kept = f"{one.mean / clean:.3f}" if clean else ""
        mean, ends = f"{one.mean:.4f}", f"{one.ci_low:.4f} – {one.ci_high:.4f}"
        if narrow:
            ends = f"{one.ci_low:.3f}–{one.ci_high:.3f}"
            table.add_row(_name(result), f"{result.flip_rate:.3g}", f"{mean}\n{ends}", kept)
        else:
            table.add_row(_name(result), f"{result.flip_rate:g}", mean, ends, kept, str(result.trials))
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
    narrow = _narrow()
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("other methods", no_wrap=True)
    interval, bits = ([], []) if narrow else ([f"{evaluation.confidence:.0%} interval"], ["bits a weight"])
    for title in (evaluation.metric, *interval, "protected", *bits):
        table.add_column(title, justify="right")
    for other in evaluation.comparison:
        table.add_row(
            other.method,
            f"{other.mean:.4f}",
            *([] if narrow else [f"{other.ci_low:.4f} – {other.ci_high:.4f}"]),
            f"{other.protected_fraction:.2%}",
            *([] if narrow else [f"{other.bits_per_weight:.3f}"]),
        )
    return table


def _narrow() -> bool:
    return console().width < _NARROW


def sparkline(values: Sequence[float], low: float, high: float, *, ascii_only: bool = False) -> str:
    """One character a value: eight heights from `low` to `high`, or the digits 0 to 7 where there are only those."""
    marks = "01234567" if ascii_only else "▁▂▃▄▅▆▇█"
    span = (high - low) or 1.0
    return "".join(marks[min(7, max(0, int(8 * (value - low) / span)))] for value in values)


def print_sweep(evaluation: Evaluation, designed: float) -> None:
    """A line a variant: the metric over the rates (with a device: times) of the sweep; the full height is the best."""
    results = evaluation.sweep.results if evaluation.sweep is not None else evaluation.results
    by_variant = {
        variant: sorted((r for r in results if r.variant == variant and r.flip_rate > 0), key=lambda r: r.flip_rate)
        for variant in ("hardened", "unprotected")
    }
    if max(map(len, by_variant.values())) < 3:
        return
    out = console()
    means = [r.mean for r in results if math.isfinite(r.mean)]
    share = is_share(evaluation.metric)
    low, high = (0.0, max(means)) if share else (min(means), max(means))
    points = by_variant["hardened"] or by_variant["unprotected"]
    ends = [point.label or format_rate(point.flip_rate) for point in (points[0], points[-1])]
    out.print(f"sweep {ends[0]} to {ends[1]}, designed for {format_rate(designed)}", soft_wrap=True)
    for variant, line in by_variant.items():
        if line:
            shape = sparkline([r.mean for r in line], low, high, ascii_only=out.options.ascii_only)
            out.print(f"  {variant:<11} {shape}  {line[0].mean:.4f} to {line[-1].mean:.4f}", soft_wrap=True)


def print_comparison(comparison: Comparison) -> None:
    """Two reports beside each other on stdout."""
    out = console()
    narrow = _narrow()
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("result")
    for title in ("first", "second", "difference", *([] if narrow else ["interval", "how"])):
        table.add_column(title, justify="right")
    for d in comparison.differences:
        ends = f"{d.low:+.4f} – {d.high:+.4f}" if d.low is not None and d.high is not None else ""
        cells = [f"{d.first.mean:.4f}", f"{d.second.mean:.4f}", f"{d.difference:+.4f}"]
        table.add_row(called(d), *cells, *([] if narrow else [ends, d.how]))
    out.print(f"first  {comparison.first.report}: {comparison.first.method}", soft_wrap=True)
    out.print(f"second {comparison.second.report}: {comparison.second.method}", soft_wrap=True)
    if comparison.differences:
        out.print(table)
    else:
        out.print("no result is in both")
    if comparison.reason:
        out.print(f"the trials are no pairs: {comparison.reason}", soft_wrap=True)
    first, second = comparison.first.bits_per_weight, comparison.second.bits_per_weight
    out.print(f"bits a weight all in: {first:.3f} and {second:.3f}", soft_wrap=True)
    found = verdict(comparison)
    if found is not None:
        d = comparison.differences[found[0]]
        out.print(f"second hardened model at {format_rate(d.flip_rate)}: {found[1]} ({d.how})", soft_wrap=True)


def store_table(campaign: StoredCampaign) -> None:
    """What a campaign's store holds, on stdout."""
    narrow = _narrow()
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("model")
    for title in ("condition", campaign.metric, *([] if narrow else [f"{campaign.confidence:.0%} interval", "trials"])):
        table.add_column(title, justify="right")
    for r in campaign.results:
        ends = f"{r.ci_low:.4f} – {r.ci_high:.4f}" if r.ci_low is not None and r.ci_high is not None else ""
        table.add_row(r.model, r.condition, f"{r.mean:.4f}", *([] if narrow else [ends, str(r.trials)]))
    console().print(table)


def summary(report: Report) -> None:
    """The result of a hardening on stdout: what was measured, and what it costs."""
    out = console()
    storage = report.storage
    if report.evaluation is not None:
        evaluation = report.evaluation
        out.print(results_table(evaluation.results, evaluation.metric, evaluation.confidence))
        where = f"{evaluation.samples} samples of {evaluation.data}, seed {evaluation.seed}"
        out.print(where, markup=False, soft_wrap=True)
        print_sweep(evaluation, max([*report.fault_model.p01, *report.fault_model.p10], default=0.0))
        if evaluation.comparison:
            out.print(comparison_table(evaluation))
    count = len({tensor.name for tensor in report.tensors})
    parts = f" in {len(report.tensors)} parts" if len(report.tensors) > count else ""
    protected = f"{storage.protected_fraction:.2%}" if storage.protected_bits else "none"
    out.print(
        f"method {report.method}: {count} tensors{parts}, {storage.weights} weights, "
        f"protected bits {protected} ({storage.protection}), {storage.bits_per_weight:.3f} bits a weight all in",
    )
    if report.small is not None:
        out.print(
            f"small tensors: {len(report.small.tensors)} of the model, each bit {report.small.copies} times, "
            f"{storage.small_bits} bits; scales and tables likewise"
        )
    if storage.named_code is not None:
        code = storage.named_code
        out.print(f"protected by {code.name}, a code that exists: {code.bits_per_weight:.3f} bits a weight")
    if report.prediction.noise_energy is not None:
        out.print(f"predicted output noise energy {report.prediction.noise_energy:.3g} of the clean outputs'")
    if report.inference is not None:
        time = report.inference
        out.print(
            f"inference time × {time.ratio:.3f} of the original ({time.ratio_low:.3f} – {time.ratio_high:.3f}), "
            f"batch {time.batch}"
        )
    if report.gate is not None:
        gate = report.gate
        out.print(f"gate {'met' if gate.met else 'not met'}: {gate.kept:.4f} kept, {gate.fail_under:g} asked for")
