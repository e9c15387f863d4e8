"""Makes the pictures of docs/how-it-works.md. Run from anywhere: python docs/make_pictures.py

The picture of README.md is made by a command of docs/start.md: python docs/refresh_examples.py docs/start.md
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from scipy.special import ndtri

from qtaml_onnx.channel import FlipRates, FloatArray, moments
from qtaml_onnx.physics.plots import save_figure
from qtaml_onnx.storage import Code, design_channel_optimized, design_readout, uniform_code, word_sums

PICTURES = Path(__file__).parent / "pictures"
BLUE, ORANGE, GREEN, GREY, PALE = "#0072b2", "#d55e00", "#009e73", "0.45", "#e8f1f8"
RATE, BITS = 0.05, 8
WEIGHTS: FloatArray = np.asarray(ndtri((np.arange(4096) + 0.5) / 4096) / 3.6)
"""Quantiles of a Gaussian whose largest value is about 1: what the weights of a channel look like."""


def bit_planes() -> Figure:
    """One weight as a word, the word with one bit flipped, and what that does."""
    figure = Figure(figsize=(7.6, 2.7), layout="constrained")
    axes = figure.subplots()
    word, plane = 0b00010110, 6
    for row, (value, name) in enumerate(((word, "stored"), (word ^ (1 << plane), "read"))):
        y = 1.15 * (1 - row)
        for k in range(BITS):
            x = BITS - 1 - k
            flipped = row == 1 and k == plane
            box = Rectangle((x + 0.04, y), 0.92, 0.8, facecolor="#fbe3d4" if flipped else PALE, edgecolor=GREY)
            axes.add_patch(box)
            bit = str(value >> k & 1)
            axes.text(x + 0.5, y + 0.4, bit, ha="center", va="center", size=15, color=ORANGE if flipped else "black")
        axes.text(-0.15, y + 0.4, name, ha="right", va="center", size=11)
        axes.text(8.2, y + 0.4, f"= {value}   →   weight {value / 127:.3f}", ha="left", va="center", size=11)
    for k in range(BITS):
        x = BITS - 0.5 - k
        axes.text(x, 2.12, f"plane {k}", ha="center", va="bottom", size=8, color=GREY)
        place = 2**k if k < BITS - 1 else -(2**k)
        axes.text(x, -0.12, f"{place}".replace("-", "−"), ha="center", va="top", size=10)
    axes.text(-0.15, -0.12, "worth", ha="right", va="top", size=11)
    axes.text(8.2, -0.12, "steps of 1/127 of the largest weight", ha="left", va="top", size=9, color=GREY)
    axes.set_xlim(-1.1, 12.2)
    axes.set_ylim(-0.6, 2.4)
    axes.axis("off")
    return figure


def code_books() -> Figure:
    """What is read of each weight under faults, and which bits are stored: before and after."""
    figure = Figure(figsize=(7.8, 4.9), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, height_ratios=(2.6, 1))
    rates = FlipRates.uniform(RATE, BITS)
    plain = uniform_code("twos-complement", BITS)
    sums = word_sums(plain, WEIGHTS)
    designed, readout = design_channel_optimized(WEIGHTS, rates)
    tables = (design_readout("plain", plain, rates, sums).table, readout.table)
    titles = (
        f"two's complement, plain: {len(np.unique(plain.words))} words in use",
        f"channel-optimised: {len(np.unique(designed.words))} words in use",
    )
    for column, (code, table, title, colour) in enumerate(
        zip((plain, designed), tables, titles, (ORANGE, BLUE), strict=True)
    ):
        axes, below = grid[0, column], grid[1, column]
        weight = np.linspace(-0.9, 0.9, 721)
        word = code.encode(weight).astype(np.int64)
        mean, variance = moments(rates, table)
        spread = np.sqrt(variance[word])
        axes.plot([-1, 1], [-1, 1], color=GREY, linewidth=0.9, linestyle=":", label="the weight itself")
        axes.fill_between(
            weight, mean[word] - spread, mean[word] + spread, color=colour, alpha=0.22, linewidth=0,
            label="mean ± deviation of what is read",
        )  # fmt: skip
        axes.plot(weight, table[word], color=colour, linewidth=1.4, label="read without faults")
        axes.set_title(f"{title}\nroot mean square error {_error(code, table, rates):.3f}", size=10)
        axes.set_ylim(-1.15, 1.15)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        _bits(below, weight, word)
        for panel in (axes, below):
            panel.spines[["top", "right"]].set_visible(False)
        below.set_xlabel("weight, in units of the largest", size=9)
    grid[0, 0].set_ylabel("read as")
    grid[1, 0].set_ylabel("bit plane")
    return figure


def _error(code: Code, table: FloatArray, rates: FlipRates) -> float:
    """Over the weights and the faults."""
    mean, variance = moments(rates, table)
    word = code.encode(WEIGHTS).astype(np.int64)
    return float(np.sqrt(np.mean((mean[word] - WEIGHTS) ** 2 + variance[word])))


def _bits(axes: Axes, weight: FloatArray, words: np.ndarray) -> None:
    """A bar where the plane stores a 1; an even tone where it changes faster than can be drawn."""
    for plane in range(BITS):
        bit = (words >> plane) & 1
        change = np.flatnonzero(np.diff(np.concatenate([[0], bit, [0]])))
        if len(change) > 120:
            axes.broken_barh([(weight[0], weight[-1] - weight[0])], (plane - 0.4, 0.8), color=GREY, alpha=0.4)
            continue
        edges = np.append(weight, weight[-1])
        bars = [(edges[a], edges[b] - edges[a]) for a, b in zip(change[::2], change[1::2], strict=True)]
        axes.broken_barh(bars, (plane - 0.4, 0.8), color=GREY)
    axes.set_yticks(range(BITS), [str(plane) for plane in range(BITS)], size=7)


def _box(axes: Axes, x: float, y: float, text: str, *, width: float = 1.9, colour: str = PALE) -> None:
    shape = FancyBboxPatch(
        (x - width / 2, y - 0.33), width, 0.66, boxstyle="round,pad=0.02,rounding_size=0.08", facecolor=colour,
        edgecolor=GREY,
    )  # fmt: skip
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", size=8.5 if "\n" in text else 9.5)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    axes.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 1.2})
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.1
        axes.text(x, y + 0.3 * abs(end[1] - start[1]), text, ha="center", size=8.5, color=GREY)


def _canvas(width: float, height: float, x: tuple[float, float], y: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    axes.axis("off")
    return figure, axes


def graph() -> Figure:
    """What stands in the hardened model in place of a weight and a bias, and what is left of it at inference."""
    figure, axes = _canvas(8.4, 3.9, (-1.1, 11.2), (-0.7, 4.25))
    safe, words = "#e2f2ec", "#fbe3d4"
    _box(axes, 0, 2.6, "stored words", colour=words)
    _box(axes, 2.7, 2.6, "table[word]")
    _box(axes, 5.2, 2.6, "× scale", width=1.5)
    _box(axes, 2.7, 3.7, "table", width=1.2, colour=safe)
    _box(axes, 5.2, 3.7, "scales", width=1.2, colour=safe)
    _box(axes, 5.2, 1.4, "Ŵ · x̄", width=1.5)
    _box(axes, 2.7, 1.4, "mean input x̄", colour=safe)
    _box(axes, 5.2, 0.3, "c − Ŵ·x̄", width=1.5)
    _box(axes, 2.7, 0.3, "c = b + W·x̄", colour=safe)
    _box(axes, 9.4, 1.6, "Conv, MatMul, Gemm", width=2.3, colour="white")
    for start, end, text in (
        ((0.98, 2.6), (1.72, 2.6), ""),
        ((3.68, 2.6), (4.42, 2.6), ""),
        ((2.7, 3.35), (2.7, 2.95), ""),
        ((5.2, 3.35), (5.2, 2.95), ""),
        ((5.2, 2.25), (5.2, 1.75), ""),
        ((3.68, 1.4), (4.42, 1.4), ""),
        ((5.2, 1.05), (5.2, 0.65), ""),
        ((3.68, 0.3), (4.42, 0.3), ""),
        ((5.98, 2.6), (8.6, 1.96), "   weights as read, Ŵ"),
        ((5.98, 0.3), (8.6, 1.24), "bias that fits them          "),
    ):
        _arrow(axes, start, end, text)
    axes.add_patch(
        Rectangle((-1.0, -0.2), 7.1, 4.4, facecolor="none", edgecolor=GREY, linestyle=(0, (4, 3)), linewidth=1)
    )
    axes.text(2.5, -0.3, "computed once, when onnxruntime loads the model", ha="center", va="top", size=9.5)
    axes.text(9.4, 0.95, "at every inference,\nas in the original", ha="center", va="top", size=9, color=GREY)
    axes.text(8.0, 4.05, "■", color="#f0a27a", size=12, va="center")
    axes.text(8.25, 4.05, "memory that flips bits", size=9, va="center")
    axes.text(8.0, 3.7, "■", color="#7fc8ab", size=12, va="center")
    axes.text(8.25, 3.7, "memory that must be safe", size=9, va="center")
    return figure


def pipeline() -> Figure:
    """From a model, rates and samples to a plan, and from the plan to everything else."""
    figure, axes = _canvas(8.6, 3.1, (-1.1, 11.0), (-0.45, 3.1))
    for y, text in ((2.5, "model.onnx"), (1.5, "flip rates, device"), (0.5, "calibration data")):
        _box(axes, 0, y, text)
        _arrow(axes, (0.98, y), (1.98, 1.5 + 0.25 * (y - 1.5)))
    _box(axes, 3.0, 1.5, "analysis\n(codes, sensitivity)")
    _arrow(axes, (3.98, 1.5), (4.72, 1.5), "decides")
    _box(axes, 5.6, 1.5, "storage plan", width=1.7, colour="#e2f2ec")
    _box(axes, 8.2, 2.5, "passes")
    _box(axes, 8.2, 0.5, "campaign\n(injected faults)")
    _arrow(axes, (6.48, 1.7), (7.22, 2.35))
    _arrow(axes, (6.48, 1.3), (7.22, 0.7))
    _arrow(axes, (8.2, 2.15), (8.2, 0.85))
    axes.text(8.3, 1.5, "faulty model", size=8.5, color=GREY, va="center")
    _arrow(axes, (9.18, 2.5), (9.75, 2.5))
    _arrow(axes, (9.18, 0.5), (9.75, 0.5))
    axes.text(9.8, 2.5, "hardened\nmodel", size=9.5, va="center")
    axes.text(9.8, 0.5, "report", size=9.5, va="center")
    axes.text(5.6, 0.98, "a plain value,\nwritten as JSON", size=8.5, color=GREY, ha="center", va="top")
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "how_bit_planes": bit_planes,
    "how_code_books": code_books,
    "how_graph": graph,
    "how_pipeline": pipeline,
}


def main() -> None:
    """Writes all pictures beside this script, in pictures/."""
    PICTURES.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        save_figure(draw(), PICTURES / f"{name}.svg")


if __name__ == "__main__":
    main()
