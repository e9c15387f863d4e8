"""Axes that several pictures share."""

from __future__ import annotations

from typing import Literal

from matplotlib.axes import Axes

__all__ = ["metric_axis"]


def metric_axis(axes: Axes, share: bool, axis: Literal["x", "y"] = "y") -> None:
    """A metric's axis: a share from 0 to 100 %, any other over what was measured."""
    axes.grid(axis=axis)
    axes.set_axisbelow(True)
    if not share:
        axes.tick_params(axis=axis, labelsize=8)
        return
    ticks = [0, 0.25, 0.5, 0.75, 1]
    texts = [f"{100 * tick:g} %" for tick in ticks]
    if axis == "x":
        axes.set_xlim(0, 1.005)
        axes.set_xticks(ticks, texts)
    else:
        axes.set_ylim(0, 1.01)
        axes.set_yticks(ticks, texts)
