"""The HTML report: one file with everything in it, made from report.json.

Every number on the page is looked up in the JSON, and the page says where: see `fields`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.report.fields import Fields, is_share, metric_name, template
from qtaml_onnx.report.schema import EvaluationResult, Report
from qtaml_onnx.report.text import format_percent, format_rate, format_significant, has_interval
from qtaml_onnx.tensor_plan import TensorPlan

__all__ = ["render_html"]

_CODES_SHOWN = 2
"""Tensors whose code is drawn, the most sensitive first."""


@dataclass(frozen=True)
class _Headline:
    """Positions in `evaluation.results` of what the verdict speaks of; None where it was not measured."""

    clean: int | None
    quantized: int | None
    unprotected: int | None
    hardened: int | None

    @property
    def faulty(self) -> int | None:
        """The result whose rate is the verdict's."""
        return self.unprotected if self.hardened is None else self.hardened


@dataclass(frozen=True)
class _Pictures:
    """The pictures of the measurements and of the protection; None where there is nothing to draw."""

    sweep: Markup | None
    retention: Markup | None
    variants: Markup | None
    frontier: Markup | None
    prediction: Markup | None
    protection: Markup | None
    grouped: bool


@dataclass(frozen=True)
class _Code:
    """The pictures of one tensor's code; None where the plan, or what flips do, is not known."""

    index: int
    cells: Markup | None
    flips: Markup | None


def render_html(report: Report, plan: StoragePlan | None = None) -> str:
    """The report as one self-contained HTML page.

    Args:
        report: What report.json holds.
        plan: The storage plan of the same hardening; with it the codes of the most sensitive tensors are drawn.

    Returns:
        The text of the file: no script, style, font or picture comes from elsewhere.
    """
    fields = Fields(report.to_json())
    results = report.evaluation.results if report.evaluation else []
    share = is_share(report.evaluation.metric) if report.evaluation else True
    return template("report.html.j2").render(
        f=fields,
        report=report,
        results=results,
        headline=_headline(report, results),
        has_interval=has_interval,
        share=share,
        unit="percent" if share else "significant",
        designed=_designed(report),
        held=_held(report),
        even_rates=len({*report.fault_model.p01, *report.fault_model.p10}) == 1,
        sizes=[math.prod(t.shape) for t in report.tensors],
        pictures=_pictures(report, results, share),
        codes=_codes(report, plan),
        codes_by_sensitivity=any(t.sensitivity for t in report.tensors),
    )


def _designed(report: Report) -> str | None:
    """Pointer to the largest designed rate."""
    rates = [
        (rate, -plane, f"/fault_model/{name}/{plane}")
        for name in ("p01", "p10")
        for plane, rate in enumerate(getattr(report.fault_model, name))
    ]
    return max(rates, key=lambda entry: entry[:2])[2] if rates else None


def _designed_rate(report: Report) -> float:
    return max([*report.fault_model.p01, *report.fault_model.p10], default=0.0)


def _headline(report: Report, results: list[EvaluationResult]) -> _Headline:
    """The measurements at the rate nearest to the one that was given, before any margin."""
    given = _designed_rate(report) / report.fault_model.margin if report.fault_model.margin > 0 else 0.0

    def distance(index: int) -> float:
        rate = results[index].flip_rate
        if rate <= 0 or given <= 0:
            return 0.0 if rate == given else math.inf
        return abs(math.log(rate / given))

    def nearest(variant: str) -> int | None:
        return min((i for i, r in enumerate(results) if r.variant == variant), key=distance, default=None)

    hardened, unprotected = nearest("hardened"), nearest("unprotected")
    if hardened is not None:  # compare at one and the same rate, or not at all
        like = results[hardened]
        unprotected = next(
            (
                i
                for i, r in enumerate(results)
                if r.variant == "unprotected" and (r.flip_rate, r.label) == (like.flip_rate, like.label)
            ),
            None,
        )
    return _Headline(nearest("clean"), nearest("quantized"), unprotected, hardened)


def _held(report: Report) -> str | None:
    """Pointer to the designed retention time of a device, in seconds."""
    device = report.fault_model.device or {}
    conditions = device.get("conditions")
    retention = conditions.get("retention") if isinstance(conditions, dict) else None
    known = isinstance(retention, dict) and isinstance(retention.get("value"), (int, float))
    return "/fault_model/device/conditions/retention/value" if known else None


def _pictures(report: Report, results: list[EvaluationResult], share: bool) -> _Pictures:
    # matplotlib takes longer to import than the rest of the program: only a report that is drawn pays for it.
    from qtaml_onnx.report import method_plots, plots

    sweep = retention = variants = frontier = prediction = protection = None
    evaluation = report.evaluation
    metric = metric_name(evaluation.metric) if evaluation else ""
    around = evaluation.sweep.results if evaluation and evaluation.sweep else []
    line, beside = (around, results) if around else (results, [])
    if _steps(line, "flip_rate") > 1:
        alt = f"{metric} against flip rate. " + _spoken([*line, *beside], share)
        sweep = Markup(plots.sweep_svg(line, beside, _designed_rate(report), metric, share, alt))
    elif results:
        alt = f"{metric}, a dot and an interval for each variant. " + _spoken(results, share)
        variants = Markup(plots.variants_svg(results, metric, share, alt))
    if _steps(line, "retention_s") > 1:
        alt = f"{metric} against retention time, where the flip rates follow from the device. " + _spoken(line, share)
        pointer = _held(report)
        held = Fields(report.to_json()).get(pointer) if pointer else None
        retention = Markup(plots.sweep_svg(line, [], held, metric, share, alt, over="time"))
    if evaluation and evaluation.frontier:
        points = evaluation.frontier
        clean = next(((r.mean, r.ci_low, r.ci_high) for r in results if r.variant == "clean"), None)
        alt = f"{metric} against the share of weight bits that is protected, a line a method. The table has the same."
        frontier = Markup(method_plots.frontier_svg(points, clean, metric, share, alt))
        if sum(bool(p.noise_energy) for p in points) > 1:
            alt = f"{metric} against the output noise predicted for each method and budget. The table has the same."
            prediction = Markup(method_plots.prediction_svg(points, clean, metric, share, alt))
    if report.tensors:
        protection = Markup(plots.protection_svg(report.tensors, _spoken_map(report)))
    grouped = len(report.tensors) > plots.MAP_ROWS
    return _Pictures(sweep, retention, variants, frontier, prediction, protection, grouped)


def _steps(results: Sequence[EvaluationResult], name: str) -> int:
    """At how many places above 0 on an axis a variant with faults was measured."""
    return len({getattr(r, name) for r in results if r.variant in ("unprotected", "hardened") and getattr(r, name)})


def _spoken(results: Sequence[EvaluationResult], share: bool) -> str:
    return " ".join(_spoken_result(result, share) for result in results)


def _spoken_result(result: EvaluationResult, share: bool) -> str:
    write = format_percent if share else format_significant
    rate = f" at {format_rate(result.flip_rate)}" if result.flip_rate > 0 else ""
    ends = f"{write(result.ci_low)} to {write(result.ci_high)}"
    interval = ends if has_interval(result.trials, result.interval) else "a single trial"
    return f"{result.variant}{rate}: {write(result.mean)} ({interval})."


def _spoken_map(report: Report) -> str:
    safe = list(dict.fromkeys(t.name for t in report.tensors if t.protected_planes))
    return (
        "Rows are tensors in graph order, columns bit planes, most significant first; beside them sensitivity, noise. "
        + (
            "Tensors with protected planes: " + ", ".join(safe[:10]) + (" and more." if safe[10:] else ".")
            if safe
            else "No plane of any tensor is protected."
        )
        + " The table of tensors below has the same in words."
    )


def _codes(report: Report, plan: StoragePlan | None) -> list[_Code]:
    """Pictures of the codes of the most sensitive tensors (the largest where no sensitivity was measured)."""
    from qtaml_onnx.report import code_plots

    def weight(index: int) -> tuple[float, int]:
        return (report.tensors[index].sensitivity or 0.0, math.prod(report.tensors[index].shape))

    plans: dict[tuple[str, tuple[int, ...]], TensorPlan] = {}
    for entry in plan.tensors if plan is not None else ():
        plans[entry.name, entry.part.channels if entry.part is not None else ()] = entry
    keys = [(t.name, tuple(t.channels or ())) for t in report.tensors]
    known = [i for i, t in enumerate(report.tensors) if keys[i] in plans or t.stored_flips]
    shown = []
    for number, index in enumerate(sorted(known, key=weight, reverse=True)[:_CODES_SHOWN], 1):
        tensor, cells, flips = report.tensors[index], None, None
        if plan is not None and keys[index] in plans:
            alt = (
                f"Read-out of {tensor.name} against its weights, with the mean and spread under the designed flip "
                "rates; below it which bits of the stored word are one."
            )
            cells = Markup(code_plots.cells_svg(plans[keys[index]], plan.fault_model, f"cells-{number}", alt))
        if tensor.stored_flips:
            alt = (
                f"How far one flipped bit moves the weights of {tensor.name}, plane by plane, beside two's complement. "
                "The table of planes has the same."
            )
            flips = Markup(code_plots.flips_svg(tensor, f"flips-{number}", alt))
        shown.append(_Code(index, cells, flips))
    return shown
