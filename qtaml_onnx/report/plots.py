"""Pictures of what was measured and of what is protected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from matplotlib.axes import Axes

from qtaml_onnx.physics import format_duration
from qtaml_onnx.report.axes import metric_axis
from qtaml_onnx.report.drawing import COLOUR, WIDTH, add_boxes, add_legend, drawing, new_axes, new_figure, to_svg
from qtaml_onnx.report.schema import EvaluationResult, TensorSection
from qtaml_onnx.report.text import format_percent, format_rate, format_significant, has_interval, shorten, visible

__all__ = ["MAP_ROWS", "differences_svg", "map_groups", "protection_svg", "sweep_svg", "variants_svg"]

MAP_ROWS = 40
"""Rows of the protection map; more tensors than that share rows."""

_MARKER = {"clean": "D", "quantized": "^", "unprotected": "s", "hardened": "o"}
_LINE = {"unprotected": (0, (4, 2)), "hardened": "solid"}


def sweep_svg(
    sweep: Sequence[EvaluationResult],
    campaign: Sequence[EvaluationResult],
    designed: float | None,
    metric: str,
    share: bool,
    description: str,
    *,
    over: Literal["rate", "time"] = "rate",
    name: str | None = None,
) -> str:
    """The metric against the flip rate or the retention time, with bands, the clean level and the design marked.

    Args:
        sweep: All variants; those with faults at two places on the axis or more.
        campaign: Results of the campaign on all samples, drawn as points beside the lines of the sweep.
        designed: Largest designed rate of a plane, or the designed retention time in seconds; None if not known.
        metric: The axis's label.
        share: Whether the metric is a share, drawn from 0 to 100 %.
        description: Alternative text.
        over: What the axis is.
        name: Identifier in the page, if there are several such pictures.
    """
    place = _rate if over == "rate" else _time
    faulty = [r for r in sweep if r.variant in _LINE and place(r) > 0]
    measured = [r for r in campaign if r.variant in _LINE and place(r) > 0]
    steps = sorted({place(r) for r in faulty})
    edges = sorted({*steps, *map(place, measured), *([designed] if designed else [])})
    logarithmic = edges[-1] > 5 * edges[0]
    name = name or ("sweep" if over == "rate" else "retention")
    with drawing(name):
        figure = new_figure(266)
        axes = new_axes(figure, 42, 50, 306, 166)
        for variant in ("clean", "quantized"):
            for result in [r for r in sweep if r.variant == variant][:1]:
                style: object = (0, (1, 2)) if variant == "quantized" else (0, (6, 2, 1, 2))
                low, high = _ends(result)
                axes.axhspan(low, high, color=COLOUR[variant], alpha=0.12, linewidth=0)
                axes.axhline(result.mean, color=COLOUR[variant], linestyle=style, linewidth=1.2, label=variant)
        for variant, line in _LINE.items():
            points = sorted((r for r in faulty if r.variant == variant), key=lambda r: (place(r), r.label or ""))
            if points:
                _draw_sweep(axes, variant, line, [place(p) for p in points], points)
            beside = [r for r in measured if r.variant == variant]
            _draw_campaign(axes, variant, [place(r) for r in beside], beside)
        if logarithmic:
            axes.set_xscale("log")
        pad = (edges[-1] / edges[0]) ** 0.06 if logarithmic else 1.0
        slack = 0.0 if logarithmic else 0.06 * (edges[-1] - edges[0]) or 0.5 * edges[0]
        axes.set_xlim(edges[0] / pad - slack, edges[-1] * pad + slack)
        if designed:
            axes.axvline(designed, color=COLOUR["ink"], linewidth=1, linestyle=(0, (2, 2)))
            at = float(axes.transAxes.inverted().transform(axes.transData.transform((designed, 0)))[0])
            side = "right" if at > 0.75 else "left" if at < 0.25 else "center"
            axes.text(
                designed, 1.03, "designed for", transform=axes.get_xaxis_transform(), ha=side, va="bottom", size=8
            )
        metric_axis(axes, share)
        if over == "rate":
            _ticks(axes, steps, {r.flip_rate: r.label for r in faulty if r.label}, format_rate)
            axes.set_xlabel("flip rate of a stored bit" + (", logarithmic" if logarithmic else ""))
        else:
            _ticks(axes, steps, {}, format_duration)
            axes.set_xlabel("retention time" + (", logarithmic" if logarithmic else ""))
        figure.text(0.01, 0.99, visible(metric), va="top")
        add_legend(figure, ncols=4, top=0.945)
        what = "flip rate" if over == "rate" else "retention time"
        return to_svg(figure, name, f"Accuracy against {what}", description)


def _rate(result: EvaluationResult) -> float:
    return result.flip_rate


def _time(result: EvaluationResult) -> float:
    return result.retention_s or 0.0


def _draw_sweep(axes: Axes, variant: str, line: object, x: Sequence[float], points: Sequence[EvaluationResult]) -> None:
    low, high = zip(*map(_ends, points), strict=True)
    axes.fill_between(x, low, high, color=COLOUR[variant], alpha=0.22, linewidth=0)
    axes.plot(
        x, [p.mean for p in points], color=COLOUR[variant], linestyle=line, marker=_MARKER[variant], markersize=4,
        linewidth=1.6, label=variant,
    )  # fmt: skip


def _draw_campaign(axes: Axes, variant: str, x: Sequence[float], points: Sequence[EvaluationResult]) -> None:
    """Rings with their intervals: the campaign on all samples and trials."""
    if not points:
        return
    low, high = zip(*map(_ends, points), strict=True)
    axes.vlines(x, low, high, color=COLOUR[variant], linewidth=1.6)
    axes.plot(
        x, [p.mean for p in points], linestyle="none", marker=_MARKER[variant], markersize=9, markerfacecolor="none",
        markeredgecolor=COLOUR[variant], markeredgewidth=1.4,
    )  # fmt: skip


def _ends(result: EvaluationResult) -> tuple[float, float]:
    """The ends of the interval; the mean itself where there is none."""
    if has_interval(result.trials, result.interval):
        return result.ci_low, result.ci_high
    return result.mean, result.mean


def _ticks(axes: Axes, steps: Sequence[float], labels: dict[float, str], write: Callable[[float], str]) -> None:
    """A tick at each measured step that has room, with the condition that it stands for where there are few."""
    chosen: list[tuple[float, float]] = []
    named = bool(labels) and len(steps) <= 5 and all(len(text) <= 12 for text in labels.values())
    room = 0.19 if named else 0.12
    for step in steps:
        place = float(axes.transAxes.inverted().transform(axes.transData.transform((step, 0)))[0])
        if not chosen or place - chosen[-1][1] >= room:
            chosen.append((step, place))
    texts = [write(r) + (f"\n{visible(labels.get(r, ''))}" if named else "") for r, _ in chosen]
    axes.minorticks_off()
    axes.set_xticks([r for r, _ in chosen], texts)


def variants_svg(results: Sequence[EvaluationResult], metric: str, share: bool, description: str) -> str:
    """A dot and its interval for each result: what is drawn where there is one rate only."""
    with drawing("variants"):
        figure = new_figure(56 + 24 * len(results))
        axes = new_axes(figure, 82, 26, 226, 24 * len(results))
        names = []
        for row, result in enumerate(results):
            colour = COLOUR[result.variant]
            axes.plot(
                _ends(result),
                [row, row],
                color=colour,
                linewidth=5,
                alpha=0.45,
                solid_capstyle="butt",
            )
            axes.plot([result.mean], [row], color=colour, marker=_MARKER[result.variant], markersize=5)
            axes.text(
                1.03,
                row,
                (format_percent if share else format_significant)(result.mean),
                transform=axes.get_yaxis_transform(),
                va="center",
            )
            names.append(result.variant + (f" {format_rate(result.flip_rate)}" if result.flip_rate > 0 else ""))
        axes.set_yticks(range(len(results)), names)
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        metric_axis(axes, share, "x")
        figure.text(0.01, 1 - 4 / (figure.get_figheight() * 72), visible(metric), va="top")
        return to_svg(figure, "variants", "The variants with their intervals", description)


def differences_svg(rows: Sequence[tuple[str, str, float, float, float]], share: bool, description: str) -> str:
    """Differences with their intervals, one below the other, and a line at no difference.

    Args:
        rows: What is compared, its variant, the difference and the ends of its interval.
        share: Whether the metric is a share, and differences are points of a hundred.
        description: Alternative text.
    """
    with drawing("differences"):
        figure = new_figure(44 + 22 * len(rows))
        axes = new_axes(figure, 128, 8, 224, 22 * len(rows))
        axes.axvline(0, color=COLOUR["ink"], linewidth=1, linestyle=(0, (2, 2)))
        for row, (_name, variant, mean, low, high) in enumerate(rows):
            colour = COLOUR[variant]
            axes.plot([low, high], [row, row], color=colour, linewidth=5, alpha=0.45, solid_capstyle="butt")
            axes.plot([mean], [row], color=colour, marker=_MARKER[variant], markersize=5)
        axes.set_yticks(range(len(rows)), [shorten(visible(name), 24) for name, *_ in rows], size=8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(lambda value, _at: f"{100 * value if share else value:+.3g}" if value else "0")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel("second less first" + (", points" if share else ""), size=8)
        return to_svg(figure, "differences", "Differences with their intervals", description)


def map_groups(tensors: Sequence[TensorSection]) -> list[range]:
    """The tensors of each row of the protection map: one, or neighbours where there are more than `MAP_ROWS`."""
    rows = min(len(tensors), MAP_ROWS)
    edges = [len(tensors) * row // max(rows, 1) for row in range(rows + 1)]
    return [range(a, b) for a, b in pairwise(edges)]


def protection_svg(tensors: Sequence[TensorSection], description: str) -> str:
    """Tensors × bit planes, each cell exposed, protected or absent; beside it sensitivity and noise.

    Rows that stand for several tensors show the share of their weights that is protected, their largest sensitivity and
    their worst noise.
    """
    groups = map_groups(tensors)
    planes = max(t.bits for t in tensors)
    pitch = min(14.0, 128.0 / planes)
    step, top = 13.0, 38.0
    height = step * len(groups)
    with drawing("map"):
        figure = new_figure(top + height + 4)
        cells = new_axes(figure, 116, top, pitch * planes, height)
        _draw_cells(cells, tensors, groups, planes)
        cells.set_yticks(range(len(groups)), [_row_label(tensors, group) for group in groups], size=8)
        every = 1 if pitch > 12 else 2  # numbers of two digits need room
        cells.set_xticks(
            [planes - 1 - k for k in range(0, planes, every)], [str(k) for k in range(0, planes, every)], size=8
        )
        cells.xaxis.tick_top()
        cells.tick_params(length=0, pad=2)
        cells.set_title("bit plane", size=8, pad=4)
        for spine in cells.spines.values():
            spine.set_visible(False)
        left = 116 + pitch * planes + 10
        width = (WIDTH - 6 - left - 12) / 2
        sensitivity = [max((s for i in g if (s := tensors[i].sensitivity)), default=None) for g in groups]
        noise = [max((n for i in g if (n := tensors[i].noise_to_signal_db) is not None), default=None) for g in groups]
        _draw_dots(new_axes(figure, left, top, width, height), sensitivity, "sensitivity", logarithmic=True)
        _draw_dots(new_axes(figure, left + width + 12, top, width, height), noise, "noise, dB", logarithmic=False)
        return to_svg(figure, "map", "Protection map", description)


def _row_label(tensors: Sequence[TensorSection], group: range) -> str:
    number = f"{group.start + 1}" if len(group) == 1 else f"{group.start + 1}–{group.stop}"
    return f"{shorten(visible(tensors[group.start].name), 25 - len(number))} {number}"


def _draw_cells(axes: Axes, tensors: Sequence[TensorSection], groups: Sequence[range], planes: int) -> None:
    tones: dict[int, list[tuple[float, float, float, float]]] = {quarter: [] for quarter in range(5)}
    absent = []
    for row, group in enumerate(groups):
        for plane in range(planes):
            here = [tensors[i] for i in group if plane < tensors[i].bits]
            x = planes - 1 - plane
            if not here:
                absent.append((x - 0.2, x + 0.2, row - 0.2, row + 0.2))
                continue
            weights = [float(np.prod(t.shape, dtype=np.float64)) or 1.0 for t in here]
            safe = sum(w for w, t in zip(weights, here, strict=True) if plane in t.protected_planes)
            share = safe / sum(weights)
            # Only nothing is drawn as exposed and only everything as protected; between them three tones.
            tone = 0 if share == 0 else 4 if share == 1 else min(3, max(1, round(4 * share)))
            tones[tone].append((x - 0.45, x + 0.45, row - 0.45, row + 0.45))
    add_boxes(axes, [box for part in tones.values() for box in part], color=COLOUR["exposed"])
    for quarter in range(1, 5):
        add_boxes(axes, tones[quarter], color=COLOUR["protected"], alpha=quarter / 4)
    add_boxes(axes, absent, color=COLOUR["muted"], filled=False)
    axes.set_xlim(-0.5, planes - 0.5)
    axes.set_ylim(len(groups) - 0.5, -0.5)


def _draw_dots(axes: Axes, values: Sequence[float | None], title: str, *, logarithmic: bool) -> None:
    axes.set_title(title, size=8, pad=17)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.tick_params(length=2, pad=1)
    axes.spines[["right", "bottom"]].set_visible(False)
    known = [v for v in values if v is not None]
    if not known:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", size=8)
        return
    low, high = min(known), max(known)
    if logarithmic:
        low, high = 10 ** np.floor(np.log10(low) + 1e-9), 10 ** np.ceil(np.log10(high) - 1e-9)
        axes.set_xscale("log")
        low, high = (low, high) if high > low else (low / 10, high * 10)
    else:
        low, high = 10 * np.floor(low / 10 + 1e-9), 10 * np.ceil(high / 10 - 1e-9)
        low, high = (low, high) if high > low else (low - 10, high + 10)
    axes.set_xlim(low, high)
    axes.minorticks_off()
    axes.set_xticks([low, high], [format_significant(low), format_significant(high)], size=7)
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    rows = [row for row, value in enumerate(values) if value is not None]
    axes.hlines(rows, low, known, color=COLOUR["rule"], linewidth=1)
    axes.plot(known, rows, linestyle="none", marker="o", markersize=4, color=COLOUR["ink"], clip_on=False)
