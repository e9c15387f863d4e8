"""Two reports beside each other: paired where the trials are pairs, else unpaired with the reason said."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Page, check_numbers
from scipy import stats

from qtaml_onnx.cli import main
from qtaml_onnx.report.compare import Comparison, compare_reports, verdict
from qtaml_onnx.report.compare_html import render_comparison
from qtaml_onnx.report.schema import Evaluation, EvaluationResult, Report, Sweep

MakeReport = Callable[..., Report]
FIXTURE = Path(__file__).with_name("fixtures") / "version-1.report.json"
NAMES = ("a.report.json", "b & <c>.report.json")


def faulty(values: list[float], rate: float = 0.1, variant: str = "hardened", **more: Any) -> EvaluationResult:
    mean, n = float(np.mean(values)), len(values)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else 1.0
    entry = {"variant": variant, "flip_rate": rate, "mean": mean, "ci_low": mean - half, "ci_high": mean + half}
    return EvaluationResult.model_validate({**entry, "trials": n, "values": values, **more})


def clean(successes: int, samples: int) -> EvaluationResult:
    from qtaml_onnx.campaign import wilson_interval

    found = wilson_interval(successes, samples, 0.95)
    return EvaluationResult(
        variant="clean", flip_rate=0, mean=found.mean, ci_low=found.low, ci_high=found.high, trials=1,
        interval="wilson", values=[found.mean],
    )  # fmt: skip


def measured(make: MakeReport, results: list[EvaluationResult], **more: Any) -> Report:
    values: dict[str, Any] = {
        "metric": "top-1", "data": "e.npz", "samples": 100, "trials": 4, "seed": 0, "confidence": 0.95,
        "results": results, "data_sha256": "aa",
    }  # fmt: skip
    return make(evaluation=Evaluation(**(values | more)))


FIRST, SECOND = [0.80, 0.90, 0.70, 0.85], [0.83, 0.92, 0.74, 0.86]


def test_trials_of_one_seed_are_paired(make_report: MakeReport) -> None:
    found = compare_reports(measured(make_report, [faulty(FIRST)]), measured(make_report, [faulty(SECOND)]), NAMES)
    assert (found.paired, found.reason) == (True, None)
    (difference,) = found.differences
    wanted = stats.ttest_rel(SECOND, FIRST).confidence_interval(0.95)
    assert difference.how == "paired"
    assert difference.pairs == 4
    assert difference.difference == pytest.approx(np.mean(SECOND) - np.mean(FIRST))
    assert (difference.low, difference.high) == pytest.approx((wanted.low, wanted.high))
    assert verdict(found) == (0, "higher")


def test_pairs_are_those_that_both_have(make_report: MakeReport) -> None:
    longer = [*FIRST, 0.1, 0.2]
    found = compare_reports(measured(make_report, [faulty(longer)]), measured(make_report, [faulty(SECOND)]), NAMES)
    assert found.differences[0].pairs == 4
    assert found.differences[0].difference == pytest.approx(np.mean(SECOND) - np.mean(FIRST))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"seed": 3}, "the seeds differ: 0 and 3"),
        ({"data_sha256": "bb"}, "the evaluation data differ"),
        ({"data_sha256": None}, "does not say which data"),
    ],
)
def test_other_trials_are_not_paired_and_the_reason_is_said(
    make_report: MakeReport, more: dict[str, Any], reason: str
) -> None:
    one, other = faulty(FIRST), faulty(SECOND)
    found = compare_reports(measured(make_report, [one]), measured(make_report, [other], **more), NAMES)
    assert reason in str(found.reason)
    (difference,) = found.differences
    assert (difference.how, difference.pairs) == ("unpaired", 0)
    half = math.hypot((one.ci_high - one.ci_low) / 2, (other.ci_high - other.ci_low) / 2)  # both symmetric
    assert difference.high == pytest.approx(difference.difference + half)
    assert difference.low == pytest.approx(difference.difference - half)
    assert verdict(found) == (0, "not told apart")
    assert reason in re.sub("<[^>]*>", "", render_comparison(found))


def test_two_proportions_get_newcombes_interval(make_report: MakeReport) -> None:
    """Newcombe 1998, Statistics in Medicine 17, 873-890, table II, case (a): 56/70 less 48/80."""
    found = compare_reports(measured(make_report, [clean(48, 80)]), measured(make_report, [clean(56, 70)]), NAMES)
    (difference,) = found.differences
    assert difference.how == "unpaired"  # one run each: no trials to pair
    assert (difference.low, difference.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_intervals_of_other_metrics_or_confidence_are_not_mixed(make_report: MakeReport) -> None:
    one = measured(make_report, [faulty(FIRST)])
    other = compare_reports(one, measured(make_report, [faulty(SECOND)], metric="agreement"), NAMES)
    assert other.differences == []
    assert other.only_first == ["hardened at 0.1"]
    assert "metrics differ" in str(other.reason)
    found = compare_reports(one, measured(make_report, [faulty(SECOND)], confidence=0.9), NAMES)
    assert (found.confidence, found.differences[0].how, found.differences[0].low) == (None, "no interval", None)


def test_a_single_trial_has_no_interval(make_report: MakeReport) -> None:
    one = measured(make_report, [faulty([0.8])], seed=1)
    found = compare_reports(one, measured(make_report, [faulty(SECOND)]), NAMES)
    assert found.differences[0].how == "no interval"
    assert verdict(found) == (0, "without an interval")


def test_sweeps_meet_sweeps_of_as_many_samples_alone(make_report: MakeReport) -> None:
    def with_sweep(designed: float, samples: int) -> Report:
        sweep = Sweep(samples=samples, trials=4, results=[faulty(FIRST, rate) for rate in (0.05, 0.1, 0.2)])
        return measured(make_report, [faulty(SECOND, designed)], sweep=sweep)

    found = compare_reports(with_sweep(0.05, 50), with_sweep(0.1, 50), NAMES)
    assert [(d.flip_rate, d.difference) for d in found.differences] == [(0.05, 0.0), (0.1, 0.0), (0.2, 0.0)]
    assert not compare_reports(with_sweep(0.05, 50), with_sweep(0.1, 60), NAMES).differences
    same = compare_reports(with_sweep(0.05, 50), with_sweep(0.05, 50), NAMES)
    assert [d.flip_rate for d in same.differences] == [0.05, 0.1, 0.2]  # the campaign's, not the sweep's a second time


def comparison_cases(make: MakeReport) -> list[Comparison]:
    results = [clean(98, 100), faulty(FIRST), faulty(SECOND, 0.05, "unprotected", label="1 h")]
    one = measured(make, results)
    return [
        compare_reports(one, measured(make, [r.model_copy(update={"mean": 0.5}) for r in results]), NAMES),
        compare_reports(one, make(results=None), NAMES),
        compare_reports(make(results=None), make(results=None), NAMES),
        compare_reports(one, measured(make, results[:2], seed=5, confidence=0.8), NAMES),
        compare_reports(one, measured(make, results[1:], metric="mse"), NAMES),
    ]


def test_every_number_on_the_page_is_the_jsons(make_report: MakeReport) -> None:
    for comparison in comparison_cases(make_report):
        page = Page(render_comparison(comparison))
        data = json.loads(comparison.to_json())
        seen = check_numbers(page, data)
        assert not re.findall(r".*\d.*", "".join(page.unmarked))
        fields = {
            f"/differences/{i}/{k}" for i, d in enumerate(data["differences"]) for k in ("difference", "low", "high")
        }
        assert {f for f in fields if data["differences"][int(f.split("/")[2])][f.split("/")[3]] is not None} <= seen
        assert "http" not in page.source
        assert page.source.count('role="img"') == any(d["low"] is not None for d in data["differences"])


def test_command_writes_page_text_and_json(
    make_report: MakeReport, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, values in (("a", FIRST), ("b", SECOND)):
        Path(f"{name}.report.json").write_text(measured(make_report, [faulty(values)]).to_json(), encoding="utf-8")
    assert main(["report", "--compare", "a.report.json", "b.report.json", "-o", "c.html"]) == 0
    shown = capsys.readouterr().out
    assert "+0.0250" in shown
    assert "second hardened model at 0.1: higher (paired)" in shown
    assert "report c.html" in shown
    assert "a.report.json" in Path("c.html").read_text(encoding="utf-8")
    assert main(["report", "--compare", "a.report.json", "b.report.json", "--json"]) == 0
    out = capsys.readouterr().out
    assert Comparison.model_validate_json(out).differences[0].pairs == 4


def test_an_old_report_is_compared_too(make_report: MakeReport, tmp_path: Path) -> None:
    assert main(["report", "--compare", str(FIXTURE), str(FIXTURE), "-o", str(tmp_path / "c.html"), "-q"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "a"], "--compare needs two reports, not 1"),
        (["a", "b"], "give one report, or two with --compare, not 2"),
        (["--compare", str(FIXTURE), str(FIXTURE), "-o", str(FIXTURE)], "is one of the input files"),
    ],
)
def test_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
