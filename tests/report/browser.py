"""A page in headless Chromium through selenium: console, requests, pictures, tables, screenshots."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (1280, 390)
FOLDER = Path(os.environ.get("QTAML_SCREENSHOTS") or Path(__file__).resolve().parents[2] / "out" / "screenshots")
"""Where screenshots are kept; `out/` is not tracked."""

_MEASURE = """
const hidden = [...document.querySelectorAll("svg.plot")].filter((svg) => {
  const box = svg.getBoundingClientRect();
  return !svg.checkVisibility() || box.width < 300 || box.height < 40 || box.left < 0 || box.right > innerWidth;
}).length;
const page = document.documentElement;
return {
  width: innerWidth, hidden, pictures: document.querySelectorAll("svg.plot").length,
  overflow: page.scrollWidth - page.clientWidth, height: page.scrollHeight,
  unnamed: [...document.querySelectorAll("svg.plot")].filter((svg) => !svg.querySelector("title, desc")).length,
  cut: [...document.querySelectorAll(".scroll")].filter(
    (table) => innerWidth >= 1280 && table.scrollWidth > table.clientWidth).length,
  requests: performance.getEntriesByType("resource").filter((entry) => !entry.name.startsWith("data:")).length,
  background: getComputedStyle(page).backgroundColor,
};
"""
_SORT = """
return [...document.querySelectorAll("table.sortable")].map((table) => {
  const rows = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent + row.textContent);
  const before = rows();
  const changes = [...table.querySelectorAll("thead button")].map((button) => {
    button.click(); const up = rows();
    button.click(); const down = rows();
    const column = [...table.tBodies[0].rows].map((row) => row.cells[button.parentElement.cellIndex]);
    const keys = column.map((cell) => Number(cell.dataset.sort ?? cell.querySelector("data")?.getAttribute("value")));
    const numbers = keys.filter((key) => !Number.isNaN(key));
    const falls = numbers.length < keys.length || numbers.every((key, i) => i === 0 || numbers[i - 1] >= key);
    return {state: button.parentElement.getAttribute("aria-sort"), falls,
      kept: [up, down].every((rows) => [...rows].sort().join() === [...before].sort().join())};
  });
  return {columns: changes.length, good: changes.every((c) => c.state === "descending" && c.kept && c.falls)};
});
"""


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A headless browser of the system; skips the test loudly where there is none."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("NOT CHECKED in a browser: needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="NOT CHECKED in a browser: needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    session = webdriver.Chrome(options=options, service=service)
    try:
        yield session
    finally:
        session.quit()


def check_page(session: Any, page: Path, name: str) -> None:
    """Opens a page at each width, light and dark; asserts what a reader needs, and keeps a screenshot of each.

    Args:
        session: Of `chromium`.
        page: The HTML file.
        name: Of the screenshots.
    """
    session.get_log("performance")
    for width in WIDTHS:
        shape = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        session.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
        backgrounds = set()
        for scheme in ("light", "dark"):
            feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            session.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
            session.get(page.as_uri())
            seen = session.execute_script(_MEASURE)
            backgrounds.add(seen.pop("background"))
            height = seen.pop("height")
            assert seen.pop("pictures") > 0
            assert seen == {"width": width, "hidden": 0, "overflow": 0, "cut": 0, "unnamed": 0, "requests": 0}
            _keep_screenshot(session, name, width, scheme, height)
        assert len(backgrounds) == 2, "dark is no other than light"
        tables = session.execute_script(_SORT)
        assert tables, "no table sorts"
        assert all(table["good"] for table in tables), tables
    assert session.get_log("browser") == []
    requests = _requests(session, page.as_uri())
    assert requests == {page.as_uri()}, requests


def _requests(session: Any, page: str) -> set[str]:
    """What the page asked for, itself included; what the browser does on its own account is not the page's."""
    entries = [json.loads(entry["message"])["message"] for entry in session.get_log("performance")]
    sent = [e["params"] for e in entries if e["method"] == "Network.requestWillBeSent"]
    urls = {params["request"]["url"] for params in sent if params["documentURL"] == page}
    return {url for url in urls if not url.startswith("data:")}


def _keep_screenshot(session: Any, name: str, width: int, scheme: str, height: int) -> None:
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, 12000), "scale": 1}
    shot = session.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}-{width}-{scheme}.png").write_bytes(base64.b64decode(shot["data"]))
