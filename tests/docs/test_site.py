"""The built site, by `make docs`, which then runs this: all pages are there, and none fetches from elsewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

SITE = Path(os.environ.get("QTAML_SITE", ""))
pytestmark = pytest.mark.skipif("QTAML_SITE" not in os.environ, reason="the site is not built; run `make docs`")
DOCS = Path(__file__).resolve().parents[2] / "docs"

# What a browser loads by itself, as opposed to links that a reader may follow.
_LOADED = re.compile(r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc=["']?([^"'\s>]+)""")
_STYLES = re.compile(r"""<link\b[^>]*?\brel=["']?(?:stylesheet|preload|preconnect|icon)[^>]*>""")


def test_every_page_is_there() -> None:
    pages = {path.stem for path in DOCS.glob("*.md")} | {"changelog"}
    assert pages <= {path.stem for path in SITE.glob("*.html")}


def test_nothing_is_fetched_from_elsewhere() -> None:
    for page in SITE.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = _LOADED.findall(text)
        for link in _STYLES.findall(text):
            loaded += re.findall(r"""\bhref=["']?([^"'\s>]+)""", link)
        assert loaded
        assert [url for url in loaded if re.match(r"(?:https?:)?//", url)] == [], page.name
    for style in SITE.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_markers_were_filled() -> None:
    commands = (SITE / "commands.html").read_text(encoding="utf-8")
    assert "generated:" not in commands
    assert all(f"<code>{option}</code>" in commands for option in ("--fail-under", "--bits-per-weight", "--barrier-ev"))
    report = (SITE / "report.html").read_text(encoding="utf-8")
    assert "<code>saturation_ratio</code>" in report


def test_the_interface_is_documented() -> None:
    page = (SITE / "python.html").read_text(encoding="utf-8")
    import qtaml_onnx

    for name in qtaml_onnx.__all__:
        assert name == "__version__" or f'id="qtaml_onnx.{name}"' in page, name
