"""The store of a campaign as an HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from qtaml_onnx.errors import InputError
from qtaml_onnx.physics import parse_duration
from qtaml_onnx.report.fields import Fields, is_share, metric_name, template
from qtaml_onnx.report.schema import EvaluationResult
from qtaml_onnx.report.store import StoredCampaign, StoredResult
from qtaml_onnx.report.text import format_percent, format_significant

__all__ = ["render_store"]


def render_store(campaign: StoredCampaign) -> str:
    """The campaign as one self-contained HTML page."""
    share = is_share(campaign.metric)
    names = list(dict.fromkeys(result.model for result in campaign.results))
    pictures = [
        (name, _picture([r for r in campaign.results if r.model == name], campaign, f"sweep-{number}"))
        for number, name in enumerate(names, 1)
    ]
    return template("store.html.j2").render(
        f=Fields(campaign.to_json()),
        c=campaign,
        models=len(names),
        unit="percent" if share else "significant",
        pictures=[
            (next(i for i, r in enumerate(campaign.results) if r.model == name), picture)
            for name, picture in pictures
            if picture is not None
        ],
    )


def _picture(results: Sequence[StoredResult], campaign: StoredCampaign, name: str) -> Markup | None:
    """The sweep of one model over flip rates or times; None where the conditions are neither, or one alone."""
    places = _rates(results) or _times(results)
    if places is None or len(set(places)) < 2:
        return None
    from qtaml_onnx.report.plots import sweep_svg

    over_time = _rates(results) is None
    share = is_share(campaign.metric)
    write = format_percent if share else format_significant
    points = [
        EvaluationResult.model_validate(
            {
                "variant": "hardened" if r.model.startswith("hardened") else "unprotected",
                "flip_rate": 1.0 if over_time else place,
                "retention_s": place if over_time else None,
                "mean": r.mean,
                "ci_low": r.mean if r.ci_low is None else r.ci_low,
                "ci_high": r.mean if r.ci_high is None else r.ci_high,
                "trials": r.trials,
            }
        )
        for r, place in zip(results, places, strict=True)
    ]
    metric = metric_name(campaign.metric)
    spoken = " ".join(f"{r.condition}: {write(r.mean)}." for r in results)
    alt = f"{metric} of {results[0].model}. {spoken} The table has the same."
    return Markup(sweep_svg(points, [], None, metric, share, alt, over="time" if over_time else "rate", name=name))


def _rates(results: Sequence[StoredResult]) -> list[float] | None:
    try:
        rates = [float(result.condition) for result in results]
    except ValueError:
        return None
    return rates if all(rate > 0 for rate in rates) else None


def _times(results: Sequence[StoredResult]) -> list[float] | None:
    try:
        return [parse_duration(result.condition) for result in results]
    except InputError:
        return None
