"""JUnit XML, which every CI service shows: one test case a measured rate."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qtaml_onnx.report.schema import Evaluation, EvaluationResult, Report
from qtaml_onnx.report.text import format_rate, visible

__all__ = ["Case", "campaign_cases", "evaluation_cases", "evaluation_gate", "harden_cases", "junit_xml"]


@dataclass(frozen=True)
class Case:
    """One test case.

    Attributes:
        group: What CI groups by, such as a model.
        name: What was measured.
        detail: The figures.
        failure: Why it failed; None if it did not.
        skipped: Why the gate does not judge it; None if it does, or if there is no gate.
    """

    group: str
    name: str
    detail: str
    failure: str | None = None
    skipped: str | None = None


def harden_cases(report: Report) -> list[Case]:
    """A case for each rate at which the hardened model was measured.

    The gate judges those of the campaign up to the designed rate; a quick sweep is shown, not judged.
    """
    if report.evaluation is None:
        return []
    designed = max([*report.fault_model.p01, *report.fault_model.p10], default=0.0)
    fail_under = report.gate.fail_under if report.gate is not None else None
    cases = evaluation_cases(report.source.path, report.evaluation, fail_under, designed)
    if report.evaluation.sweep is None:
        return cases
    names = {case.name for case in cases}
    around = report.evaluation.model_copy(update={"results": report.evaluation.sweep.results})
    quick = [c for c in evaluation_cases(report.source.path, around, None) if c.name not in names]
    why = "quick sweep: not gated" if fail_under is not None else None
    return cases + [replace(case, skipped=why) for case in quick]


def evaluation_cases(
    model: str, evaluation: Evaluation, fail_under: float | None, designed: float | None = None
) -> list[Case]:
    """A case for each rate at which a model was measured: the hardened one if there is one, else the unprotected.

    Args:
        model: What to call it.
        evaluation: What was measured.
        fail_under: Share of the clean metric to keep; None for no gate.
        designed: Largest rate that the gate judges; None for all.
    """
    results = [r for r in evaluation.results if r.flip_rate > 0]
    hardened = [r for r in results if r.variant == "hardened"]
    clean = next((r.mean for r in evaluation.results if r.variant == "clean"), 0.0)
    return [_case(model, evaluation, r, clean, fail_under, designed) for r in hardened or results]


def evaluation_gate(sections: Sequence[tuple[str, Evaluation]], fail_under: float) -> list[str]:
    """What the gate of a campaign holds against its models: hardened ones if there are any, else all."""
    cases = [case for model, section in _gated(sections) for case in evaluation_cases(model, section, fail_under)]
    return [f"{case.group}: {case.name} {case.failure}" for case in cases if case.failure is not None]


def campaign_cases(sections: Sequence[tuple[str, Evaluation]], fail_under: float | None) -> list[Case]:
    """The cases of all models of a campaign; the gate judges hardened ones if there are any, else all."""
    gated = {model for model, _ in _gated(sections)}
    cases = []
    for model, section in sections:
        judged = evaluation_cases(model, section, fail_under if model in gated else None)
        if fail_under is not None and model not in gated:
            judged = [replace(case, skipped="not hardened: not gated") for case in judged]
        cases += judged
    return cases


def _gated(sections: Sequence[tuple[str, Evaluation]]) -> Sequence[tuple[str, Evaluation]]:
    hardened = [entry for entry in sections if any(r.variant == "hardened" for r in entry[1].results)]
    return hardened or sections


def _case(
    model: str,
    evaluation: Evaluation,
    result: EvaluationResult,
    clean: float,
    fail_under: float | None,
    designed: float | None,
) -> Case:
    kept = result.mean / clean if clean else 0.0
    name = f"{result.variant} at flip rate {format_rate(result.flip_rate)}" + (
        f" ({result.label})" if result.label else ""
    )
    detail = (
        f"{evaluation.metric} {result.mean:.6g} ({evaluation.confidence:.4g} interval {result.ci_low:.6g} to "
        f"{result.ci_high:.6g}, {result.trials} trials, seed {evaluation.seed}), clean {clean:.6g}, kept {kept:.6g}"
    )
    if fail_under is None:
        return Case(model, name, detail)
    if designed is not None and result.flip_rate > designed:
        return Case(model, name, detail, skipped=f"above the designed rate {format_rate(designed)}: not gated")
    if kept < fail_under:
        return Case(model, name, detail, failure=f"keeps {kept:.4f} of the clean metric, less than {fail_under:g}")
    return Case(model, name, detail)


def junit_xml(suite: str, cases: Sequence[Case]) -> str:
    """The text of the file.

    Args:
        suite: What the test suite is called.
        cases: Its cases, in order.
    """
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.failure is not None for case in cases)),
        "errors": "0",
        "skipped": str(sum(case.skipped is not None for case in cases)),
        "time": "0",
    }
    root = ElementTree.Element("testsuites", {"name": "qtaml-onnx", **counts})
    element = ElementTree.SubElement(root, "testsuite", {"name": visible(suite), **counts})
    for case in cases:
        shown = ElementTree.SubElement(
            element, "testcase", {"classname": visible(case.group), "name": visible(case.name), "time": "0"}
        )
        if case.failure is not None:
            failure = ElementTree.SubElement(shown, "failure", {"type": "gate", "message": visible(case.failure)})
            failure.text = visible(case.detail)
        if case.skipped is not None:
            ElementTree.SubElement(shown, "skipped", {"message": visible(case.skipped)})
        ElementTree.SubElement(shown, "system-out").text = visible(case.detail)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
