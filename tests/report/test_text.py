"""Numbers and names as reports write them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtaml_onnx.report.text import (
    format_count,
    format_decibel,
    format_percent,
    format_rate,
    format_share,
    format_significant,
    shorten,
    visible,
)


@given(st.text(max_size=40), st.integers(3, 30))
def test_short_names_fit_and_keep_both_ends(text: str, width: int) -> None:
    def columns(part: str) -> int:
        return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in part)

    short = shorten(text, width)
    assert columns(short) <= width
    if columns(text) <= width:
        assert short == text
    else:
        head, _, tail = short.partition("…") if "…" not in text else ("", "", "")
        assert text.startswith(head)
        assert text.endswith(tail)
        assert columns(short) >= width - 2 or "…" in text


@given(st.text())
def test_visible_text_hides_nothing(text: str) -> None:
    shown = visible(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or "\u202a" <= c <= "\u202e"]
    assert visible(shown) == shown
    if text.isprintable() and text.isascii():
        assert shown == text


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (format_significant, 0.0, "0"),
        (format_significant, 8.0149, "8.01"),
        (format_significant, 1.23456e-5, "1.23e-5"),
        (format_significant, 123456.0, "1.23e5"),
        (format_significant, -0.5, "−0.5"),
        (format_rate, 0.1, "0.1"),
        (format_rate, 1e-6, "1e-6"),
        (format_rate, 0.012345, "0.01235"),
        (format_percent, 0.95234899, "95.2\u00a0%"),
        (format_percent, -0.0123, "−1.2\u00a0%"),
        (format_share, 0.000123, "0.0123\u00a0%"),
        (format_share, 1.0, "100\u00a0%"),
        (format_decibel, -23.46, "−23.5\u00a0dB"),
        (format_count, 1234567, "1\u202f234\u202f567"),
    ],
)
def test_numbers_are_written(function: Callable[[float], str], value: float, text: str) -> None:
    assert function(value) == text
