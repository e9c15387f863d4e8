"""Pictures of the methods beside each other: the metric against overhead, and against what was predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qtaml_onnx.report.axes import metric_axis
from qtaml_onnx.report.drawing import COLOUR, add_legend, drawing, new_axes, new_figure, to_svg
from qtaml_onnx.report.schema import MethodResult
from qtaml_onnx.report.text import format_significant, visible

__all__ = ["frontier_svg", "prediction_svg"]

_LOOK = {
    "channel-optimized": ("hardened", "o", "solid"),
    "posterior-mean": ("green", "^", (0, (6, 2))),
    "tac": ("quantized", "s", (0, (3, 2))),
    "magnitude": ("amber", "D", (0, (6, 2, 1, 2))),
    "uniform-msp": ("unprotected", "v", (0, (1, 1.5))),
}
"""Colour, marker and line of each method: any one of them is enough to tell them apart."""
_OTHER = ("muted", "x", (0, (1, 3)))


def _by_method(points: Sequence[MethodResult]) -> dict[str, list[MethodResult]]:
    names = sorted(
        {p.method for p in points}, key=lambda name: (list(_LOOK).index(name) if name in _LOOK else 99, name)
    )
    return {name: sorted((p for p in points if p.method == name), key=lambda p: p.protected_fraction) for name in names}


def frontier_svg(
    points: Sequence[MethodResult], clean: tuple[float, float, float] | None, metric: str, share: bool, description: str
) -> str:
    """The metric against the protected fraction, a line a method with its intervals, and the best of all so far.

    Args:
        points: Of all methods at all budgets.
        clean: Mean and interval without faults; None if not measured.
        metric: The axis's label.
        share: Whether the metric is a share, drawn from 0 to 100 %.
        description: Alternative text.
    """
    with drawing("frontier"):
        figure, axes = _begun(clean)
        for method, own in _by_method(points).items():
            colour, marker, line = _LOOK.get(method, _OTHER)
            x, y = [p.protected_fraction for p in own], [p.mean for p in own]
            axes.fill_between(
                x, [p.ci_low for p in own], [p.ci_high for p in own], color=COLOUR[colour], alpha=0.15, linewidth=0
            )
            axes.vlines(x, [p.ci_low for p in own], [p.ci_high for p in own], color=COLOUR[colour], linewidth=1.2)
            axes.plot(
                x, y, color=COLOUR[colour], linestyle=line, marker=marker, markersize=5, linewidth=1.5,
                label=visible(method),
            )  # fmt: skip
        best: list[MethodResult] = []
        for point in sorted(points, key=lambda p: (p.protected_fraction, -p.mean)):
            if not best or point.mean > best[-1].mean:
                best.append(point)
        edge = max(p.protected_fraction for p in points)
        reach = max(0.04, 1.06 * edge)
        axes.step(
            [*(p.protected_fraction for p in best), reach], [*(p.mean for p in best), best[-1].mean], where="post",
            color=COLOUR["ink"], linewidth=3.5, alpha=0.25, label="frontier",
        )  # fmt: skip
        axes.set_xlim(-0.025 * reach, reach)
        ticks = [t for t in (0, 0.125, 0.25, 0.375, 0.5, 0.75, 1) if t <= reach] if reach > 0.125 else [0, edge]
        axes.set_xticks(sorted(set(ticks)), [f"{100 * t:.3g} %" for t in sorted(set(ticks))])
        axes.set_xlabel("weight bits protected")
        _finish(figure, axes, metric, share)
        return to_svg(figure, "frontier", "Accuracy against overhead", description)


def prediction_svg(
    points: Sequence[MethodResult], clean: tuple[float, float, float] | None, metric: str, share: bool, description: str
) -> str:
    """The metric against the predicted output noise energy, a marker a method and budget."""
    with drawing("prediction"):
        figure, axes = _begun(clean)
        for method, own in _by_method(points).items():
            colour, marker, _line = _LOOK.get(method, _OTHER)
            x = [p.noise_energy for p in own if p.noise_energy]
            y = [p.mean for p in own if p.noise_energy]
            if not x:
                continue
            ends = [(p.ci_low, p.ci_high) for p in own if p.noise_energy]
            axes.vlines(x, *zip(*ends, strict=True), color=COLOUR[colour], linewidth=1.2)
            axes.plot(x, y, color=COLOUR[colour], linestyle="none", marker=marker, markersize=5, label=visible(method))
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.tick_params(axis="x", labelsize=8)
        low, high = axes.get_xlim()
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1,) if high / low > 100 else (1, 2, 5)
        ticks = [tick for d in decades for k in steps if low <= (tick := k * 10.0**d) <= high]
        axes.set_xticks(ticks, [format_significant(tick) for tick in ticks])
        axes.set_xlabel("predicted output noise over the clean outputs, logarithmic")
        _finish(figure, axes, metric, share)
        return to_svg(figure, "prediction", "Measured against predicted", description)


def _begun(clean: tuple[float, float, float] | None) -> tuple[Figure, Axes]:
    """A figure with what was measured without faults."""
    figure = new_figure(292)
    axes = new_axes(figure, 42, 70, 306, 176)
    if clean is not None:
        mean, low, high = clean
        axes.axhspan(low, high, color=COLOUR["clean"], alpha=0.12, linewidth=0)
        axes.axhline(mean, color=COLOUR["clean"], linestyle=(0, (6, 2, 1, 2)), linewidth=1.2, label="clean")
    return figure, axes


def _finish(figure: Figure, axes: Axes, metric: str, share: bool) -> None:
    """The metric's axis with its label, and the legend."""
    metric_axis(axes, share)
    figure.text(0.01, 0.99, visible(metric), va="top")
    add_legend(figure, ncols=3, top=0.945)
