"""The HTML report: every number the JSON's, any name, nothing fetched, every picture described."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest
from pages import Page, check_numbers, leaves

from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.report import render_html
from qtaml_onnx.report.plots import MAP_ROWS, map_groups
from qtaml_onnx.report.schema import EvaluationResult, FaultModelSection, Report, TensorSection
from qtaml_onnx.report.text import visible
from qtaml_onnx.storage.tensor import read_table

MakeReport = Callable[..., Report]
MakePlan = Callable[[Report], StoragePlan]
HOSTILE = [
    "<script>alert(1)</script>",
    "a & b < c > d",
    "\"double\" and 'single'",
    "with  spaces\tand tab",
    "重み/畳み込み層の名前はとても長い名前です.weight",
    "веса.слой",
    "أوزان",
    "$x_1$ and $\\frac{1}{",
    "nul\x00 escape\x1b[31m line\nfeed \x85 \u2028",
    "turned \u202egnp.exe",
    "{{ 7 * 7 }} {% raw %}",
    "--> <!-- ]]> <b id='sweep-title'>",
    'fill: #000001 href="https://example.com"',
    "n" * 300,
    "",
]


@pytest.fixture(scope="module")
def page(report: Report, make_plan: MakePlan) -> Page:
    """The page of a report of every kind, codes included."""
    return Page(render_html(report, make_plan(report)))


def test_every_number_is_the_json_s(report: Report, page: Page) -> None:
    data = json.loads(report.to_json())
    seen = check_numbers(page, data)
    loose = "".join(page.unmarked).replace("sha256", "")
    assert not re.findall(r".*\d.*", loose)  # a number that names no field

    missing = {pointer for pointer, value in leaves(data) if value not in (None, [], {})}
    missing -= {p for p in missing if p in seen or p.rsplit("/", 1)[0] in seen}  # shapes and planes are shown whole
    # single trials stay in the JSON, as do more metrics and the reason why trials ended: `harden` has one of each
    missing = {p for p in missing if not re.search("/values/[0-9]+$|/metrics/|/stopped$", p)}
    if report.prediction.saturation_ratio is not None or report.prediction.noise_energy is None:
        missing -= {"/prediction/saturation_level"}
    if len({*report.fault_model.p01, *report.fault_model.p10}) == 1:  # one rate for all planes is given once
        missing = {p for p in missing if not re.fullmatch("/fault_model/p(01|10)/.*", p)}
    results = report.evaluation.results if report.evaluation else []
    if any(r.trials == 1 and r.interval == "t" for r in results):  # the page says that there is no interval
        missing = {p for p in missing if not re.fullmatch("/evaluation/results/1/(ci_low|ci_high|interval)", p)}
    if report.evaluation and not report.evaluation.results:
        missing -= {f"/evaluation/{name}" for name in ("metric", "confidence")}
    if report.evaluation and report.evaluation.comparison == []:
        missing = {p for p in missing if not p.startswith("/evaluation/frontier")}
    assert not missing


def test_numbers_of_pictures_descriptions_are_on_the_page(make_report: MakeReport) -> None:
    page = Page(render_html(make_report()))
    shown = {e.text for e in page.marked()}
    spoken = [e.text for e in page.elements if e.tag == "desc"]
    numbers = re.findall(r"[\d.]+\u00a0%", spoken[0])
    assert len(numbers) == 12  # four variants: mean and two ends
    assert set(numbers) <= shown


def test_verdict_comes_first_and_says_it_all(make_report: MakeReport) -> None:
    source = render_html(make_report())
    text = " ".join(re.sub("<[^>]*>", "", source[source.index("<main>") : source.index("<h2>")]).split())
    text = text.replace("\u00a0", " ")
    assert text.startswith(
        "digits_cnn.onnx in memory whose bits flip At a flip rate of 0.1, the hardened model keeps 96.5 % of its clean "
        "top-1 accuracy: 95.2 % (94.5 % to 96.0 %) against 98.7 % (97.6 % to 99.8 %) without faults; unprotected, it "
        "is left with 15.3 % (12.3 % to 18.3 %). Method posterior-mean; cost 9.48 bits a weight all in, 15.1 % "
        "of the weight bits protected (ideal)."
    )


@pytest.mark.parametrize("results", [None, []])
def test_without_measurements_the_prediction_speaks(
    make_report: MakeReport, results: list[EvaluationResult] | None
) -> None:
    source = render_html(make_report(results=results)).replace("\u00a0", " ")
    text = " ".join(re.sub("<[^>]*>", "", source).split())
    assert "Nothing was measured" in text
    assert "predicts that posterior-mean leaves an output noise energy of 3.17 % of the clean outputs' energy" in text
    assert "the hardened model keeps" not in text
    assert source.count("<svg") == 3  # the map, and the flips of two tensors


def test_verdict_is_at_the_given_rate_and_compares_at_one_rate(make_report: MakeReport) -> None:
    def measured(variant: str, rate: float, label: str | None = None) -> EvaluationResult:
        return EvaluationResult.model_validate(
            {
                "variant": variant,
                "flip_rate": rate,
                "mean": rate,
                "ci_low": 0,
                "ci_high": 1,
                "trials": 5,
                "label": label,
            }
        )

    fault_model = FaultModelSection(p01=[0.05] * 8, p10=[0.05] * 8, margin=2.5)  # 0.02 was given
    rates = (0.05, 0.02, 0.01)
    results = [measured("hardened", r) for r in rates] + [measured("unprotected", r) for r in rates[:1]]
    verdict = _verdict(make_report(results=results, fault_model=fault_model))
    assert verdict.startswith("At a flip rate of 0.02 (designed for 0.05), the hardened model reaches 2.0 %")
    assert "the unprotected model was not measured at this rate" in verdict

    results.append(measured("unprotected", 0.02, "other"))
    assert "not measured at this rate" in _verdict(make_report(results=results, fault_model=fault_model))
    results.append(measured("unprotected", 0.02))
    assert "unprotected, it is left with 2.0 %" in _verdict(make_report(results=results, fault_model=fault_model))


def _verdict(report: Report) -> str:
    page = Page(render_html(report))
    return " ".join(next(e.text for e in page.elements if e.attributes.get("class") == "verdict").split())


def test_our_definition_and_ideal_protection_are_said_to_be_so(make_report: MakeReport) -> None:
    source = render_html(make_report())
    assert "our definition" in source
    assert "protected bits are taken never to flip" in source


def test_hostile_names_are_text(make_report: MakeReport, make_plan: MakePlan) -> None:
    first = make_report().tensors[0]
    tensors = [first.model_copy(update={"name": name, "sensitivity": 1.0 + i}) for i, name in enumerate(HOSTILE)]
    hostile = "</script><script>alert(2)</script>\x07"
    report = make_report(tensors, warnings=[hostile], command=hostile, method=hostile)
    for offset in range(0, len(HOSTILE), 6):
        order = tensors[offset:] + tensors[:offset]
        plan = make_plan(make_report([t.model_copy(update={"sensitivity": -i}) for i, t in enumerate(order)]))
        page = Page(render_html(report, plan))
        check_numbers(page, json.loads(report.to_json()))
        assert [e.tag for e in page.elements].count("script") == 1
        names = [
            e.text for e in page.elements if re.fullmatch(r"/tensors/\d+/name", e.attributes.get("data-field") or "")
        ]
        assert names[: len(HOSTILE)] == [visible(name) for name in HOSTILE]
        assert not [c for c in page.source if unicodedata.category(c) == "Cc" and c != "\n"]
        check_pictures(page)
    assert page.source.encode("utf-8")


def check_pictures(page: Page) -> int:
    identifiers = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(identifiers) == len(set(identifiers))
    for picture in page.pictures:
        root = ElementTree.fromstring(picture)  # well formed by itself
        assert root.get("role") == "img"
        assert [child.tag for child in root][:2] == ["title", "desc"]
        labels = (root.get("aria-labelledby") or "").split()
        assert labels == [child.get("id") for child in root][:2]
        assert all((child.text or "").strip() for child in list(root)[:2])
        own = {element.get("id") for element in root.iter()}
        for element in root.iter():
            if href := element.get("href"):
                assert href[0] == "#"
                assert href[1:] in own
            if clip := element.get("clip-path"):
                assert re.fullmatch(r"url\(#(.*)\)", clip)
                assert clip[5:-1] in own
            # Colours are the style sheet's, or the page could not change them in the dark.
            for paint in re.findall(r"(?:fill|stroke): ([^;]+)", element.get("style") or ""):
                assert re.fullmatch(r"none|var\(--[a-z]+\)", paint), paint
    variables = set(re.findall(r"var\((--[a-z]+)\)", page.source))
    light, dark, paper = (block for block in re.findall(r":root \{(.*?)\}", page.source, re.DOTALL))
    for block in (light, dark, paper):
        assert variables - {"--paper"} <= set(re.findall(r"(--[a-z]+):", block)) | {"--card", "--note"}
    return len(page.pictures)


def test_pictures_are_described_and_themed(report: Report, page: Page) -> None:
    evaluation = report.evaluation
    sweep = evaluation.sweep.results if evaluation and evaluation.sweep else []
    frontier = evaluation.frontier if evaluation else []
    expected = (
        (1 if evaluation and evaluation.results else 0)
        + any(r.retention_s for r in sweep)
        + bool(frontier)
        + (sum(p.noise_energy is not None for p in frontier) > 1)
        + (1 if report.tensors else 0)
        + sum(1 + bool(t.stored_flips) for t in report.tensors[:2])
    )
    assert check_pictures(page) == expected


def test_nothing_is_fetched(page: Page) -> None:
    source = page.source
    assert "http:" not in source
    assert "https:" not in source
    assert "@import" not in source
    for element in page.elements:
        assert element.tag not in ("img", "iframe", "object", "embed", "base", "form")
        assert "src" not in element.attributes
        assert "srcset" not in element.attributes
        href = element.attributes.get("href") or "#"
        assert href.startswith("#") or href == "data:,"
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", source))


def test_size_is_bounded(make_report: MakeReport, make_plan: MakePlan) -> None:
    hundred, many = make_report(100), make_report(300)
    assert len(render_html(hundred, make_plan(hundred)).encode()) < 1_000_000
    page = Page(render_html(many))
    assert len(page.source.encode()) < 1_000_000
    at_most = max(len(p) for p in Page(render_html(make_report(MAP_ROWS))).pictures)
    assert max(len(p) for p in page.pictures) < 1.2 * at_most


def test_a_report_of_22_tensors_takes_less_than_3_seconds(make_report: MakeReport, make_plan: MakePlan) -> None:
    report = make_report(22)
    plan = make_plan(report)
    start = time.process_time()
    render_html(report, plan)
    assert time.process_time() - start < 3.0


def test_same_report_same_bytes_and_no_trace_in_matplotlib(make_report: MakeReport, make_plan: MakePlan) -> None:
    report = make_report()
    plan = make_plan(report)
    before = dict(mpl.rcParams)
    first = render_html(report, plan)
    assert dict(mpl.rcParams) == before
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert render_html(report, plan) == first


def test_importing_the_report_imports_no_matplotlib() -> None:
    code = "import sys, qtaml_onnx.report.html; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("count", [1, 2, MAP_ROWS, MAP_ROWS + 1, 300])
def test_rows_of_the_map_share_out_all_tensors(make_report: MakeReport, count: int) -> None:
    tensors: list[TensorSection] = make_report(count).tensors
    groups = map_groups(tensors)
    assert [i for group in groups for i in group] == list(range(count))
    assert len(groups) == min(count, MAP_ROWS)
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_read_table_is_what_the_hardened_model_reads(make_report: MakeReport, make_plan: MakePlan) -> None:
    affine, table = make_plan(make_report(2)).tensors
    word = np.arange(256)
    value = np.where(word < 128, word, word - 256)
    # bitwise affine at p01 = p10 = 0.1 in two's complement: (value + p01)/(1 − p01 − p10) steps of 1/127
    np.testing.assert_allclose(read_table(affine), (value + 0.1) / 0.8 / 127, rtol=2e-6, atol=1e-7)
    assert table.table is not None
    np.testing.assert_array_equal(read_table(table), np.asarray(table.table).astype(np.float16).astype(float))
    gained = table.model_copy(update={"scales": tuple(0.75 * s for s in table.weight_scales)})
    np.testing.assert_allclose(read_table(gained), 0.75 * read_table(table), rtol=1e-6)
