"""What all pictures share: size, colours, style, and the way from matplotlib to SVG inside the page.

Colours are the page's CSS variables, so that light, dark and print all work. Each picture is 360 units wide with text
of 7 to 9 units: legible one to one on a phone, larger on a desk. Pictures are made with `matplotlib.figure.Figure`
alone, without pyplot's global state, and are the same bytes for the same report.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from qtaml_onnx.report.text import visible

__all__ = ["COLOUR", "WIDTH", "add_boxes", "add_legend", "drawing", "new_axes", "new_figure", "to_svg"]

WIDTH = 360.0  # units of a picture's view box, which are points of matplotlib
_VARIABLES = (
    "ink",
    "muted",
    "rule",
    "paper",
    "hardened",
    "unprotected",
    "quantized",
    "clean",
    "protected",
    "exposed",
    "before",
    "green",
    "amber",
)
# Colours that no picture uses, one a CSS variable: what matplotlib draws in them is given to the style sheet.
COLOUR = {name: f"#0000{number:02x}" for number, name in enumerate(_VARIABLES, 1)}
_VARIABLE = {colour: f"var(--{name})" for name, colour in COLOUR.items()}

_STYLE: dict[Any, Any] = {  # Any: matplotlib releases differ in the type of their settings
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a tensor's name is a $
    "font.size": 9.0,
    "axes.edgecolor": COLOUR["muted"],
    "axes.labelcolor": COLOUR["ink"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": COLOUR["rule"],
    "grid.linewidth": 0.6,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "text.color": COLOUR["ink"],
    "xtick.color": COLOUR["muted"],
    "ytick.color": COLOUR["muted"],
    "xtick.labelcolor": COLOUR["ink"],
    "ytick.labelcolor": COLOUR["ink"],
}


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """The style of the pictures; identifiers in the SVG are salted with the picture's name and so differ in a page."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # a user's matplotlibrc has no say
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": name})
        # Names may be in any script: the browser has the fonts, matplotlib only guesses the width.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def new_figure(height: float) -> Figure:
    """An empty picture of that height in units."""
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    FigureCanvasSVG(figure)
    return figure


def new_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes with their frame's place in units from the picture's top left corner."""
    total = figure.get_figheight() * 72
    return figure.add_axes((left / WIDTH, 1 - (top + height) / total, width / WIDTH, height / total))


def to_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The picture as an `svg` element for the page.

    Args:
        figure: What to draw.
        name: Identifier in the page, one a picture.
        title: Short alternative text.
        description: Long alternative text.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    body = text[text.index("</metadata>") + len("</metadata>") : text.rindex("</svg>")]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^<>]+>", _clean_tag, body)
    body = re.sub(r">\s+<", "><", body)
    height = f"{figure.get_figheight() * 72:g}"
    return (
        f'<svg class="plot" role="img" aria-labelledby="{name}-title {name}-desc" viewBox="0 0 {WIDTH:g} {height}">'
        f'<title id="{name}-title">{escape(visible(title))}</title>'
        f'<desc id="{name}-desc">{escape(visible(description))}</desc>{body}</svg>'
    )


def _clean_tag(match: re.Match[str]) -> str:
    """Colours to variables, the page's font, no identifiers of groups (each picture has the same), one-line paths."""
    tag = " ".join(match[0].split())
    if tag.startswith("<g "):
        tag = re.sub(r' id="[^"]*"', "", tag)
    tag = tag.replace("xlink:href", "href")
    tag = re.sub(r"font-family:[^;\"]*;? ?|stroke-linejoin: miter;? ?", "", tag)
    return re.sub(r"#0000[0-9a-f]{2}\b", lambda colour: _VARIABLE.get(colour[0], colour[0]), tag)


def add_boxes(
    axes: Axes, boxes: Sequence[tuple[float, float, float, float]], color: str, alpha: float = 1.0, filled: bool = True
) -> None:
    """Rectangles (left, right, top, bottom) as one path: a picture of any number of them stays small."""
    if not boxes:
        return
    left, right, top, bottom = np.array(boxes).T
    corners = np.stack([left, top, right, top, right, bottom, left, bottom, left, top], axis=1).reshape(-1, 2)
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(boxes)
    axes.add_patch(
        PathPatch(
            Path(corners, codes), facecolor=color if filled else "none", edgecolor="none" if filled else color,
            linewidth=0.6, alpha=alpha,
        )
    )  # fmt: skip


def add_legend(figure: Figure, ncols: int, top: float) -> None:
    """A legend of all axes; `top` is its upper edge over the figure's height."""
    # From the left edge: the browser's font may be wider than matplotlib's.
    figure.legend(
        loc="upper left", ncols=ncols, bbox_to_anchor=(0.0, top), fontsize=8, columnspacing=1.2, handlelength=2.0,
        borderaxespad=0.2,
    )  # fmt: skip
