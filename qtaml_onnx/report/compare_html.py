"""Two reports beside each other, as an HTML page, as text and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from qtaml_onnx.report.compare import SIDE_ROWS, Comparison, Difference, called, verdict
from qtaml_onnx.report.fields import Fields, is_share, metric_name, template
from qtaml_onnx.report.text import format_percent, format_significant

__all__ = ["render_comparison"]

_KINDS = {
    "protected_fraction": "share",
    "bits_per_weight": "significant",
    "inference_ratio": "ratio",
    "metric": "metric",
    "samples": "count",
    "trials": "count",
}


def render_comparison(comparison: Comparison) -> str:
    """The comparison as one self-contained HTML page."""
    fields = Fields(comparison.to_json())
    metric = comparison.first.metric or comparison.second.metric or ""
    share = is_share(metric)
    return template("compare.html.j2").render(
        f=fields,
        c=comparison,
        rows=[(what, name, _KINDS.get(name, "text")) for what, name in SIDE_ROWS],
        differs={name: getattr(comparison.first, name) != getattr(comparison.second, name) for _, name in SIDE_ROWS},
        unit="percent" if share else "significant",
        verdict=verdict(comparison),
        picture=_picture(comparison.differences, metric_name(metric), share),
    )


def _picture(differences: Sequence[Difference], metric: str, share: bool) -> Markup | None:
    shown = [d for d in differences if d.low is not None]
    if not shown:
        return None
    from qtaml_onnx.report.plots import differences_svg

    write = format_percent if share else format_significant
    spoken = " ".join(
        f"{called(d)}: {write(d.difference)} ({write(d.low)} to {write(d.high)})."
        for d in shown
        if d.low is not None and d.high is not None
    )
    rows = [
        (called(d), d.variant, d.difference, d.low, d.high) for d in shown if d.low is not None and d.high is not None
    ]
    return Markup(differences_svg(rows, share, f"{metric}, second less first. " + spoken))
