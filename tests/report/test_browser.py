"""The HTML report in a browser, phone and desk wide: all visible, nothing fetched, tables that sort."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from browser import check_page, chromium
from pages import Page, check_numbers
from reports import REPORTS

from qtaml_onnx.cli import main
from qtaml_onnx.plan import StoragePlan, read_plan
from qtaml_onnx.report import read_report, render_html
from qtaml_onnx.report.schema import Report

MakeReport = Callable[..., Report]
MakePlan = Callable[[Report], StoragePlan]

PROBE = """
<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("load", () => {
  const hidden = [...document.querySelectorAll("svg.plot")].filter((svg) => {
    const box = svg.getBoundingClientRect();
    return box.width < 300 || box.height < 40 || box.left < 0 || box.right > innerWidth;
  }).length;
  const table = document.getElementById("tensors"), heads = [...table.querySelectorAll("th button")];
  const numbers = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent).join(" ");
  const sorts = [1, 7].map((i) => {
    heads[i].click(); const up = numbers();
    heads[i].click(); const down = numbers();
    return [up, down, heads[i].parentElement.getAttribute("aria-sort")];
  });
  const page = document.documentElement;
  const overflow = page.scrollWidth - page.clientWidth, pictures = document.querySelectorAll("svg.plot").length;
  const requests = performance.getEntriesByType("resource").length;
  parent.postMessage(JSON.stringify({width: innerWidth, overflow, pictures, hidden, requests, errors, sorts}), "*");
});
</script>
"""
FRAME = """<!DOCTYPE html>
<title></title>
<script>addEventListener("message", (event) => { document.title = "RESULT" + event.data; });</script>
<iframe src="report.html" style="width: {width}px; height: 900px; border: 0"></iframe>
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_browser_shows_everything(make_report: MakeReport, make_plan: MakePlan, tmp_path: Path, width: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("NOT CHECKED in a browser: no chromium here (Debian: apt-get install chromium)")
    names = ["b", "a<i>", "重み", "n" * 120, "d", "e"]
    sensitivities = [3e-5, 20.0, None, 1.0, 0.1, 5.0]
    first = make_report().tensors[0]
    tensors = [
        first.model_copy(update={"name": n, "sensitivity": s}) for n, s in zip(names, sensitivities, strict=True)
    ]
    report = make_report(tensors)
    source = render_html(report, make_plan(report))
    (tmp_path / "report.html").write_text(source.replace("<head>", "<head>" + PROBE), encoding="utf-8")
    # A frame can be as narrow as a phone; a window cannot.
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("{width}", str(width)), encoding="utf-8")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    arguments += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [chromium, *arguments, "--window-size=1400,1000", frame.as_uri()],
        capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    found = re.search("<title>RESULT(.*?)</title>", done.stdout)
    assert found is not None, done.stderr[-2000:]
    result = json.loads(found[1])
    by_name, by_sensitivity = result.pop("sorts")
    assert result == {"width": width, "overflow": 0, "pictures": 6, "hidden": 0, "requests": 0, "errors": []}
    assert "CONSOLE" not in done.stderr
    assert by_name == ["2 1 5 6 4 3", "3 4 6 5 1 2", "descending"]
    assert by_sensitivity == ["1 5 4 6 2 3", "3 2 6 4 5 1", "descending"]


@pytest.mark.slow
def test_reports_of_every_kind(make_report: MakeReport, make_plan: MakePlan, tmp_path: Path) -> None:
    with chromium(tmp_path / "profile") as session:
        for name in ("everything", "sweep over times", "methods", "300 tensors", "in a named code", "version 1"):
            report = REPORTS[name]()
            page = tmp_path / "report.html"
            page.write_text(render_html(report, make_plan(report) if name != "300 tensors" else None), encoding="utf-8")
            check_page(session, page, name.replace(" ", "-"))


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("network", ["vgg", "resnet20", "vit"])
def test_reports_of_the_zoo(network: str, tmp_path: Path) -> None:
    """Hardened on few samples: it is the page that is looked at, not the accuracy."""
    shared = Path(__file__).resolve().parents[3] / "shared"
    if not (shared / "zoo" / f"{network}.onnx").is_file():
        pytest.skip("NOT CHECKED: the CIFAR-10 networks of ../shared are not here")
    for name, samples in (("eval", 200), ("calibration", 64)):
        with np.load(shared / "data" / f"cifar10_{name}.npz") as data:
            np.savez(tmp_path / f"{name}.npz", **{key: data[key][:samples] for key in data.files})
    arguments = [
        "harden",
        str(shared / "zoo" / f"{network}.onnx"),
        "-o",
        str(tmp_path / "o.onnx"),
        "--flip-rate",
        "0.05",
    ]
    arguments += ["--eval", str(tmp_path / "eval.npz"), "--calibration", str(tmp_path / "calibration.npz")]
    assert main([*arguments, "--trials", "4", "--fail-under", "0.1", "-q"]) == 0
    report, plan = read_report(tmp_path / "o.report.json"), read_plan(tmp_path / "o.plan.json")
    start = time.process_time()
    source = render_html(report, plan)
    spent = time.process_time() - start
    assert report.inference is not None
    times = report.inference
    spent += times.runs * (times.original_ms + times.hardened_ms) / 1e3
    assert spent < 3.0, f"{spent:.2f} s of harden went to the report"
    assert len(source.encode()) < 2_000_000
    check_numbers(Page(source), json.loads(report.to_json()))
    with chromium(tmp_path / "profile") as session:
        check_page(session, tmp_path / "o.report.html", network)
