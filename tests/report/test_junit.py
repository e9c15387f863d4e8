"""JUnit XML: the shape that CI services read, and failures exactly where the gate is not met."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from digits_example import EVAL, MODEL

from qtaml_onnx.cli import main
from qtaml_onnx.report.junit import Case, campaign_cases, evaluation_gate, harden_cases, junit_xml
from qtaml_onnx.report.schema import Evaluation, EvaluationResult, Gate, Report, Sweep

MakeReport = Callable[..., Report]


def check_junit(text: str) -> ElementTree.Element:
    """What the schema of the Jenkins xUnit plugin (junit-10.xsd) and GitLab ask of a file."""
    root = ElementTree.fromstring(text)
    assert root.tag == "testsuites"
    for suite in root:
        assert suite.tag == "testsuite"
        cases = list(suite)
        assert {case.tag for case in cases} <= {"testcase"}
        counts = {kind: sum(case.find(kind) is not None for case in cases) for kind in ("failure", "skipped")}
        wanted = {"tests": len(cases), "failures": counts["failure"], "errors": 0, "skipped": counts["skipped"]}
        assert {key: int(suite.attrib[key]) for key in wanted} == wanted
        for case in cases:
            assert {"name", "classname", "time"} <= set(case.attrib)
            tags = [child.tag for child in case]
            assert tags in (["system-out"], ["failure", "system-out"], ["skipped", "system-out"])
            assert all(child.attrib.get("message") for child in case if child.tag != "system-out")
    assert len({(c.attrib["classname"], c.attrib["name"]) for c in root.iter("testcase")}) == len(
        list(root.iter("testcase"))
    )
    return root


def results(*points: tuple[str, float, float]) -> list[EvaluationResult]:
    return [
        EvaluationResult(variant=variant, flip_rate=rate, mean=mean, ci_low=mean, ci_high=mean, trials=3)  # type: ignore[arg-type]
        for variant, rate, mean in points
    ]


def section(*points: tuple[str, float, float], **more: Any) -> Evaluation:
    return Evaluation(
        metric="top-1", data="d", samples=9, trials=3, seed=0, confidence=0.95, results=results(*points), **more
    )


POINTS = (("clean", 0.0, 0.8), ("unprotected", 0.1, 0.1), ("hardened", 0.05, 0.78), ("hardened", 0.1, 0.7))


def outcomes(text: str) -> dict[str, str]:
    root = check_junit(text)
    return {
        c.attrib["name"]: next((child.tag for child in c if child.tag != "system-out"), "passed")
        for c in root.iter("testcase")
    }


def test_each_rate_is_a_case_and_those_under_the_gate_fail(make_report: MakeReport) -> None:
    evaluation = section(
        *POINTS, ("hardened", 0.2, 0.2), sweep=Sweep(samples=9, trials=3, results=results(("hardened", 0.025, 0.1)))
    )
    report = make_report(evaluation=evaluation, gate=Gate(fail_under=0.9, kept=0.875, met=False))
    assert outcomes(junit_xml("suite", harden_cases(report))) == {
        "hardened at flip rate 0.05": "passed",
        "hardened at flip rate 0.1": "failure",  # 0.7 / 0.8 < 0.9
        "hardened at flip rate 0.2": "skipped",  # above the designed 0.1
        "hardened at flip rate 0.025": "skipped",  # the sweep is a quick look
    }
    ungated = make_report(evaluation=evaluation)
    assert set(outcomes(junit_xml("suite", harden_cases(ungated))).values()) == {"passed"}
    assert harden_cases(make_report(results=None)) == []


def test_a_campaign_gates_hardened_models_or_else_all() -> None:
    hardened = section(*POINTS[:1], *POINTS[2:])
    plain = section(*POINTS[:2])
    text = junit_xml("evaluate", campaign_cases([("a", hardened), ("b", plain)], 0.9))
    assert list(outcomes(text).values()) == ["passed", "failure", "skipped"]
    assert evaluation_gate([("a", hardened), ("b", plain)], 0.9) == [
        "a: hardened at flip rate 0.1 keeps 0.8750 of the clean metric, less than 0.9"
    ]
    assert len(evaluation_gate([("b", plain)], 0.9)) == 1
    assert evaluation_gate([("a", hardened)], 0.8) == []


def test_any_name_makes_a_file_that_parses() -> None:
    hostile = "a<b> & \"c\" 'd' \x00\x1b\ud800 重み ]]>"
    root = check_junit(junit_xml(hostile, [Case(hostile, hostile, hostile, failure=hostile)]))
    case = next(root.iter("testcase"))
    assert case.attrib["name"] == case.attrib["classname"] == "a<b> & \"c\" 'd' \\x00\\x1b\\ud800 重み ]]>"


@pytest.mark.parametrize(("fail_under", "code", "outcome"), [("0.5", 0, "passed"), ("0.97", 1, "failure")])
def test_evaluate_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fail_under: str, code: int, outcome: str
) -> None:
    file = tmp_path / "e.xml"
    arguments = [
        "evaluate",
        str(MODEL),
        "--eval",
        str(EVAL),
        "--trials",
        "2",
    ]
    arguments += ["--flip-rate", "0.01", "--fail-under", fail_under, "--junit", str(file), "-q"]
    assert main(arguments) == code
    assert list(outcomes(file.read_text(encoding="utf-8")).values()) == [outcome]
    assert capsys.readouterr().err.count("\n") == code


def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(MODEL)
    base = ["harden", model, "-o", str(tmp_path / "o.onnx"), "--flip-rate", "0.05", "--junit", str(tmp_path / "j.xml")]
    assert main(base) == 2
    assert "--junit needs data to measure on" in capsys.readouterr().err
    assert main(["evaluate", model, "--flip-rate", "0.1", "--fail-under", "2"]) == 2
    assert not list(tmp_path.iterdir())
