"""The HTML report: one file with everything in it, made from report.json.

Every number on the page is looked up in the JSON by its pointer (RFC 6901), which the page keeps in `data-field` with
the exact value beside the rounded one; numbers worked out of two fields name both in `data-ratio` or `data-difference`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from qtaml_onnx.plan import StoragePlan, TensorPlan
from qtaml_onnx.report.schema import EvaluationResult, Report
from qtaml_onnx.report.text import (
    format_count,
    format_decibel,
    format_percent,
    format_rate,
    format_share,
    format_significant,
    has_interval,
    visible,
)

__all__ = ["render_html"]

_CODES_SHOWN = 2
"""Tensors whose code is drawn, the most sensitive first."""

_METRICS = {
    "top-1": "top-1 accuracy",
    "agreement": "agreement with the clean model",
    "agreement-5-percent": "agreement with the clean outputs within 5 % of their rms",
}


def _metric(name: str) -> str:
    return _METRICS.get(name, visible(name)) or "metric"


_FORMATS: dict[str, Callable[[Any], str]] = {
    "text": lambda value: visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)),
    "base": lambda value: visible(re.split(r"[\\/]", value)[-1]),
    "metric": _metric,
    "count": format_count,
    "decibel": format_decibel,
    "percent": format_percent,
    "rate": format_rate,
    "share": format_share,
    "significant": format_significant,
    "shape": lambda value: " × ".join(map(str, value)) or "scalar",
    "yes": lambda value: "yes" if value else "no",
    "planes": lambda value: ", ".join(map(str, sorted(value, reverse=True))) or "none",
}


class _Fields:
    """The report's JSON, looked up by pointer and put on the page with its source."""

    def __init__(self, report: Report) -> None:
        self.data: Any = json.loads(report.to_json())

    def get(self, pointer: str) -> Any:
        """The value at a JSON pointer."""
        value = self.data
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            value = value[int(key)] if isinstance(value, list) else value[key]
        return value

    def __call__(self, pointer: str, kind: str = "text") -> Markup:
        """The value at a pointer, written the given way; a dash for null."""
        value = self.get(pointer)
        text = "–" if value is None else _FORMATS[kind](value)
        tag = "data" if isinstance(value, (int, float)) else "bdi"  # names of any script keep to themselves
        return Markup('<{0} data-field="{1}" data-kind="{2}" value="{3}">{4}</{0}>').format(
            Markup(tag), pointer, kind, json.dumps(value), text
        )

    def ratio(self, over: str, under: str, kind: str = "percent") -> Markup:
        """One field over another."""
        return self._derived("ratio", over, under, self.get(over) / self.get(under), kind)

    def difference(self, first: str, second: str, kind: str = "percent") -> Markup:
        """One field less another."""
        return self._derived("difference", first, second, self.get(first) - self.get(second), kind)

    def _derived(self, how: str, first: str, second: str, value: float, kind: str) -> Markup:
        return Markup('<data data-{0}="{1} {2}" data-kind="{3}" value="{4}">{5}</data>').format(
            Markup(how), first, second, kind, json.dumps(value), _FORMATS[kind](value)
        )

    def leaves(self, pointer: str) -> Iterator[tuple[str, str]]:
        """(what it is called, pointer) of every plain value at or under a pointer."""
        value = self.get(pointer)
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if not children:
            yield "", pointer
            return
        for key, _ in children:
            step = str(key).replace("~", "~0").replace("/", "~1")
            for name, leaf in self.leaves(f"{pointer}/{step}"):
                yield visible(str(key)) + (f" · {name}" if name else ""), leaf


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
    variants: Markup | None
    protection: Markup | None
    grouped: bool


@dataclass(frozen=True)
class _Code:
    """The pictures of one tensor's code."""

    index: int
    cells: Markup
    flips: Markup


def render_html(report: Report, plan: StoragePlan | None = None) -> str:
    """The report as one self-contained HTML page.

    Args:
        report: What report.json holds.
        plan: The storage plan of the same hardening; with it the codes of the most sensitive tensors are drawn.

    Returns:
        The text of the file: no script, style, font or picture comes from elsewhere.
    """
    fields = _Fields(report)
    results = report.evaluation.results if report.evaluation else []
    headline = _headline(report, results)
    return _template().render(
        f=fields,
        report=report,
        results=results,
        headline=headline,
        has_interval=has_interval,
        designed=_designed(report),
        even_rates=len({*report.fault_model.p01, *report.fault_model.p10}) == 1,
        sizes=[math.prod(t.shape) for t in report.tensors],
        pictures=_pictures(report, results),
        codes=_codes(report, plan),
        codes_by_sensitivity=plan is not None and any(t.sensitivity for t in plan.tensors),
    )


@lru_cache(maxsize=1)
def _template() -> Template:
    text = files("qtaml_onnx.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text)


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


def _pictures(report: Report, results: list[EvaluationResult]) -> _Pictures:
    # matplotlib takes longer to import than the rest of the program: only a report that is drawn pays for it.
    from qtaml_onnx.report import plots

    sweep = variants = protection = None
    metric = _metric(report.evaluation.metric) if report.evaluation else ""
    if len({r.flip_rate for r in results if r.variant in ("unprotected", "hardened") and r.flip_rate > 0}) > 1:
        alt = f"{metric} against flip rate. " + _spoken(results)
        sweep = Markup(plots.sweep_svg(results, _designed_rate(report), metric, alt))
    elif results:
        alt = f"{metric}, a dot and an interval for each variant. " + _spoken(results)
        variants = Markup(plots.variants_svg(results, metric, alt))
    if report.tensors:
        protection = Markup(plots.protection_svg(report.tensors, _spoken_map(report)))
    return _Pictures(sweep, variants, protection, len(report.tensors) > plots.MAP_ROWS)


def _spoken(results: list[EvaluationResult]) -> str:
    return " ".join(map(_spoken_result, results))


def _spoken_result(result: EvaluationResult) -> str:
    rate = f" at {format_rate(result.flip_rate)}" if result.flip_rate > 0 else ""
    ends = f"{format_percent(result.ci_low)} to {format_percent(result.ci_high)}"
    interval = ends if has_interval(result.trials, result.interval) else "a single trial"
    return f"{result.variant}{rate}: {format_percent(result.mean)} ({interval})."


def _spoken_map(report: Report) -> str:
    safe = [t for t in report.tensors if t.protected_planes]
    return (
        "Rows are tensors in graph order, columns bit planes, most significant first; beside them sensitivity, noise. "
        + (
            "Tensors with protected planes: "
            + ", ".join(t.name for t in safe[:10])
            + (" and more." if safe[10:] else ".")
            if safe
            else "No plane of any tensor is protected."
        )
        + " The table of tensors below has the same in words."
    )


def _codes(report: Report, plan: StoragePlan | None) -> list[_Code]:
    """Pictures of the codes of the most sensitive tensors (the largest where no sensitivity was measured)."""
    if plan is None:
        return []
    from qtaml_onnx.report import code_plots

    where = {tensor.name: index for index, tensor in enumerate(report.tensors)}
    known = [tensor for tensor in plan.tensors if tensor.name in where]

    def weight(tensor: TensorPlan) -> tuple[float, int]:
        return (tensor.sensitivity or 0.0, tensor.size)

    shown = []
    for number, tensor in enumerate(sorted(known, key=weight, reverse=True)[:_CODES_SHOWN], 1):
        cells = (
            f"Read-out of {tensor.name} against its weights, with the mean and spread under the designed flip rates; "
            "below it which bits of the stored word are one."
        )
        flips = f"How far one flipped bit moves the weights of {tensor.name}, plane by plane, beside two's complement."
        shown.append(
            _Code(
                where[tensor.name],
                Markup(code_plots.cells_svg(tensor, plan.fault_model, f"cells-{number}", cells)),
                Markup(code_plots.flips_svg(tensor, f"flips-{number}", flips)),
            )
        )
    return shown
