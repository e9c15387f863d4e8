"""A picture of a sweep: the metric of each model against retention time or flip rate, for a slide or a page.

The report draws its own pictures, whose colours follow the page; these stand alone, as SVG or PNG.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qtaml_onnx.physics.plots import figure_bytes
from qtaml_onnx.report.schema import Evaluation, EvaluationResult
from qtaml_onnx.report.text import format_rate, has_interval, shorten, visible

__all__ = ["Curve", "sweep_figure", "sweep_picture"]

_COLOURS = {"unprotected": ("#d55e00", "#e69f00", "#cc79a7"), "hardened": ("#0072b2", "#009e73", "#56b4e9")}
"""Told apart by readers with any colour vision (Okabe & Ito 2008); the first of each is the report's."""
_LINES = {"unprotected": "--", "hardened": "-"}
_MARKERS = ("s", "o", "^", "D", "v", "P")
_METRICS = {
    "top-1": "top-1 accuracy",
    "agreement": "agreement with the clean model",
    "agreement-5-percent": "outputs within 5 % of the clean model's",
}
_STYLE: dict[Any, Any] = {  # Any: matplotlib releases differ in the type of their settings
    "text.parse_math": False,  # a $ in a file's name is a $
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.88",
    "legend.frameon": False,
}
_ROOM = 0.07
"""Least distance between two named ticks, as a share of the axis."""


@dataclass(frozen=True)
class Curve:
    """A model's results under the faults of a sweep.

    Attributes:
        name: For the legend.
        results: One a condition, in the order of the sweep.
    """

    name: str
    results: Sequence[EvaluationResult]


def sweep_picture(
    kind: str,
    evaluation: Evaluation,
    curves: Sequence[Curve],
    times_s: Sequence[float] | None,
    title: str,
) -> bytes:
    """The picture of `sweep_figure` as `png` or `svg`, the same bytes for the same results."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc has no say
        mpl.rcParams.update(_STYLE)
        return figure_bytes(sweep_figure(evaluation, curves, times_s, title), kind)


def sweep_figure(
    evaluation: Evaluation, curves: Sequence[Curve], times_s: Sequence[float] | None, title: str
) -> Figure:
    """The metric against time if `times_s` are given, else against the largest flip rate of a bit plane.

    A line with a band for each model, a grey one for the clean model. Axes are logarithmic where the sweep spans more
    than a factor of five.

    Args:
        evaluation: Metric, samples, trials and the clean result, which all curves have in common.
        curves: What to draw.
        times_s: Seconds that the words are held, one a condition of the sweep; ticks are the results' labels.
        title: First line of the title.
    """
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    clean = next(result for result in evaluation.results if result.variant == "clean")
    axes.axhline(clean.mean, color="0.45", linewidth=1.2, linestyle=(0, (1, 1.5)), label="clean (float), no faults")
    taken: Counter[str] = Counter()
    for number, curve in enumerate(curves):
        x = [result.flip_rate for result in curve.results] if times_s is None else times_s
        variant = curve.results[0].variant
        colours = _COLOURS[variant]
        style = {"color": colours[taken[variant] % len(colours)], "linestyle": _LINES[variant]}
        _draw(axes, curve, x, {**style, "marker": _MARKERS[number % len(_MARKERS)]})
        taken[variant] += 1
    names: dict[float, str] = {}
    for curve in curves:
        for place, result in enumerate(curve.results):
            x_value = result.flip_rate if times_s is None else times_s[place]
            names[x_value] = format_rate(x_value) if times_s is None else visible(result.label or "")
    _scale(axes, names)
    if evaluation.metric in _METRICS or evaluation.metric.startswith("top-"):  # a share
        axes.set_ylim(0, 1.02)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], [f"{percent} %" for percent in (0, 25, 50, 75, 100)])
    axes.set_ylabel(_METRICS.get(evaluation.metric, visible(evaluation.metric)))
    axes.set_xlabel("flip rate of a stored bit" if times_s is None else "time between write and read")
    axes.grid()
    axes.set_axisbelow(True)
    bands = f", bands: {100 * evaluation.confidence:g} % confidence" if evaluation.trials > 1 else ""
    trials = f"{evaluation.trials} trial{'s' if evaluation.trials > 1 else ''}"
    axes.set_title(
        f"{shorten(visible(title), 80)}\n"
        f"{evaluation.samples} samples of {shorten(visible(evaluation.data), 40)}, {trials} a point{bands}",
        fontsize=10, loc="left",
    )  # fmt: skip
    axes.legend(loc="best")
    return figure


def _draw(axes: Axes, curve: Curve, x: Sequence[float], style: dict[str, Any]) -> None:
    points = sorted(zip(x, curve.results, strict=True), key=lambda point: point[0])
    banded = [(place, r) for place, r in points if has_interval(r.trials, r.interval)]
    axes.fill_between(
        [place for place, _ in banded], [r.ci_low for _, r in banded], [r.ci_high for _, r in banded],
        color=style["color"], alpha=0.2, linewidth=0,
    )  # fmt: skip
    name = shorten(visible(curve.name), 50)
    axes.plot([place for place, _ in points], [r.mean for _, r in points], label=name, markersize=4.5, **style)


def _scale(axes: Axes, names: dict[float, str]) -> None:
    """The horizontal axis: logarithmic where the sweep is wide, linear up to its first rate where it starts at 0."""
    places = sorted(names)
    above = [place for place in places if place > 0]
    if above and above[-1] > 5 * above[0]:
        if places[0] > 0:
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=above[0])
    axes.get_xlim()  # brings the transformation below up to date
    chosen: list[float] = []
    ends = axes.transAxes.inverted().transform(axes.transData.transform([(place, 0.0) for place in places]))[:, 0]
    last = -1.0
    for place, end in zip(places, ends, strict=True):
        if not chosen or end - last >= _ROOM:
            chosen.append(place)
            last = end
    axes.minorticks_off()
    axes.set_xticks(chosen, [names[place] for place in chosen])
