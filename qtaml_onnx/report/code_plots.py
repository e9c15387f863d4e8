"""Pictures of codes: where the words of a tensor sit, and what a flipped bit does to its weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from qtaml_onnx.channel import FlipRates, moments
from qtaml_onnx.plan import FaultModel
from qtaml_onnx.report.drawing import COLOUR, add_boxes, add_legend, drawing, new_axes, new_figure, to_svg
from qtaml_onnx.report.schema import TensorSection
from qtaml_onnx.storage.codes import Code
from qtaml_onnx.storage.tensor import read_table
from qtaml_onnx.storage.two_words import TwoWordCode
from qtaml_onnx.tensor_plan import TensorPlan

__all__ = ["cells_svg", "flips_svg"]

_GRID = 512  # columns in which the bit pattern of a code is drawn
_STAIRS = 1024  # cells drawn of a code with more
_EDGE = 1.05  # normalised weights drawn, either side


def cells_svg(tensor: TensorPlan, fault_model: FaultModel, name: str, description: str) -> str:
    """Where the words sit: the read-out of each cell, its mean and spread under the designed rates, the bit pattern."""
    table = read_table(tensor)
    code: Code | TwoWordCode
    if tensor.form == "two-words":
        code = tensor.code.two_words()
        rates = FlipRates.asymmetric(fault_model.p01[0], fault_model.p10[0], code.bits)
    else:
        code = tensor.code.code()
        rates = fault_model.rates.truncated(code.bits).protect(tensor.protected_planes)
    mean, variance = moments(rates, table)
    inner = np.clip(code.boundaries, -_EDGE, _EDGE)
    edges = np.concatenate([[-_EDGE], inner, [_EDGE]])
    kept = np.linspace(0, len(code.words) - 1, min(len(code.words), _STAIRS)).astype(np.int64)
    x = np.stack([edges[kept], edges[kept + 1]], axis=1).ravel()
    words = np.repeat(code.words[kept], 2)
    spread = np.sqrt(variance[words])
    spare = np.setdiff1d(np.arange(1 << code.bits), code.words)
    with drawing(name):
        strip = 9.0
        figure = new_figure(236 + strip * code.bits)
        axes = new_axes(figure, 42, 34, 290, 150)
        line = (-_EDGE, _EDGE)
        axes.plot(line, line, color=COLOUR["muted"], linewidth=0.8, linestyle=(0, (1, 2)), label="the weight")
        axes.fill_between(
            x, mean[words] - spread, mean[words] + spread, color=COLOUR["hardened"], alpha=0.2, linewidth=0,
            label="mean ± deviation with faults",
        )  # fmt: skip
        axes.plot(x, table[words], color=COLOUR["hardened"], linewidth=1.5, label="word read intact")
        axes.set_xlim(-_EDGE, _EDGE)
        axes.set_xticks([-1, -0.5, 0, 0.5, 1], [])
        axes.tick_params(axis="y", labelsize=8)
        axes.grid()
        axes.set_axisbelow(True)
        axes.set_ylabel("read as", size=8, labelpad=1)
        limits = axes.get_ylim()
        if spare.size:
            axes.hlines(
                np.unique(np.round(table[spare], 3)), 1.01, 1.05, transform=axes.get_yaxis_transform(),
                color=COLOUR["unprotected"], linewidth=0.8, clip_on=False, label="words that are never stored",
            )  # fmt: skip
        low, high = float(table.min()), float(table.max())
        axes.set_ylim(min(limits[0], low - 0.05), max(limits[1], high + 0.05))
        add_legend(figure, ncols=2, top=1.0)
        _draw_bits(new_axes(figure, 42, 194, 290, strip * code.bits), code, tensor.protected_planes)
        return to_svg(figure, name, f"Code of {tensor.name}", description)


def _draw_bits(axes: Axes, code: Code | TwoWordCode, protected: Sequence[int]) -> None:
    """The bit pattern of the words along the weights: filled where the bit is 1, half toned where too fine to draw."""
    grid = np.linspace(-_EDGE, _EDGE, _GRID + 1)
    stored = code.words[code.cells((grid[:-1] + grid[1:]) / 2)]
    for plane in range(code.bits):
        bit = (stored >> plane) & 1
        switches = int(np.count_nonzero(np.diff((code.words >> plane) & 1)))
        colour = COLOUR["protected" if plane in protected else "muted"]
        row = code.bits - 1 - plane
        if switches > _GRID // 4:
            axes.broken_barh([(-_EDGE, 2 * _EDGE)], (row - 0.42, 0.84), color=colour, alpha=0.5, linewidth=0)
            continue
        change = np.flatnonzero(np.diff(np.concatenate([[0], bit, [0]])))
        boxes = [(grid[a], grid[b], row - 0.42, row + 0.42) for a, b in zip(change[::2], change[1::2], strict=True)]
        add_boxes(axes, boxes, color=colour)
    axes.set_xlim(-_EDGE, _EDGE)
    axes.set_ylim(code.bits - 0.5, -0.5)
    axes.set_yticks(range(code.bits), [str(k) for k in reversed(range(code.bits))], size=7)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−0.5", "0", "0.5", "1"], size=8)
    axes.set_xlabel("weight over its channel's scale; bar: the plane stores a 1", size=8)
    axes.spines["left"].set_visible(False)


def flips_svg(section: TensorSection, name: str, description: str) -> str:
    """What one flip of each plane does to the weights: plain two's complement against this storage."""
    after, before = section.stored_flips, section.plain_flips
    bits = len(after)
    with drawing(name):
        figure = new_figure(60 + 15 * bits)
        axes = new_axes(figure, 42, 22, 306, 15 * bits)
        rows = [bits - 1 - plane for plane in range(bits)]
        for plane in section.protected_planes:
            label = "protected plane" if plane == section.protected_planes[0] else None
            row = bits - 1 - plane
            axes.axhspan(row - 0.45, row + 0.45, color=COLOUR["protected"], alpha=0.18, linewidth=0, label=label)
        shared = min(len(before), bits)
        axes.hlines(rows[:shared], after[:shared], before[:shared], color=COLOUR["rule"], linewidth=1.5)
        axes.plot(
            after, rows, color=COLOUR["hardened"], marker="o", markersize=5, linestyle="none", label="this storage"
        )
        axes.plot(
            before[:shared], rows[:shared], color=COLOUR["before"], marker="s", markersize=5, markerfacecolor="none",
            linestyle="none", label="plain two's complement",
        )  # fmt: skip
        axes.set_ylim(bits - 0.5, -0.5)
        axes.set_xlim(0, None)
        axes.margins(x=0.04)
        axes.set_yticks(range(bits), [str(k) for k in reversed(range(bits))])
        axes.tick_params(axis="both", labelsize=8)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_ylabel("bit plane", size=8)
        axes.set_xlabel("rms change of a weight over the rms weight, when this bit alone flips", size=8)
        add_legend(figure, ncols=3, top=1.0)
        return to_svg(figure, name, f"Flips in {section.name}", description)
