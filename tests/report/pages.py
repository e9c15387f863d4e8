"""Reads a page: its elements, and whether each number on it is the JSON's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest

from qtaml_onnx.physics import parse_duration
from qtaml_onnx.report.text import visible

VOID = {"meta", "link", "br"}
UNITS = {"percent": 100.0, "share": 100.0}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """All elements with their text, and the text that stands outside of any marked element."""

    source: str
    elements: list[Element] = field(default_factory=list)
    unmarked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[Element] = []
        self.feed(self.source)
        self.close()
        assert not self.stack, [e.tag for e in self.stack]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.elements.append(element)
        if tag not in VOID:
            self.stack.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack
        assert self.stack.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.stack:
            element.text += data
        if not any(_is_marked(element) for element in self.stack):
            self.unmarked.append(data)

    def marked(self) -> Iterator[Element]:
        return (e for e in self.elements if "data-kind" in e.attributes)

    @property
    def pictures(self) -> list[str]:
        return re.findall(r"<svg.*?</svg>", self.source, re.DOTALL)


def _is_marked(element: Element) -> bool:
    classes = (element.attributes.get("class") or "").split()
    return (
        "data-kind" in element.attributes
        or element.tag in ("svg", "style", "script")
        or bool({"index", "key"} & set(classes))
    )


def at(data: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        data = data[int(key)] if isinstance(data, list) else data[key]
    return data


def leaves(data: Any, pointer: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, (dict, list)) and data:
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from leaves(value, f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}")
    else:
        yield pointer, data


def shows(text: str, value: float) -> bool:
    """Whether the text is the value, correctly rounded to as many digits as it has."""
    number = re.sub("[\u202f\u00a0%]|dB", "", text).replace("−", "-")
    mantissa, _, exponent = number.partition("e")
    last = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(number) - value) <= 0.5 * last * (1 + 1e-9) + 1e-12 * abs(value)


def check_numbers(page: Page, data: Any) -> set[str]:
    """Checks every marked element against the JSON; returns the pointers that are on the page."""
    seen = set()
    for element in page.marked():
        exact = json.loads(element.attributes["value"] or "")
        kind = element.attributes["data-kind"] or ""
        if "data-field" in element.attributes:
            pointer = element.attributes["data-field"] or ""
            value = at(data, pointer)
            assert exact == value, pointer
            assert type(exact) is type(value), pointer
            seen.add(pointer)
        elif "data-ratio" in element.attributes:
            over, under = (element.attributes["data-ratio"] or "").split(" ")
            assert exact == at(data, over) / at(data, under)
        elif "data-largest" in element.attributes:
            values = at(data, element.attributes["data-largest"] or "")
            assert exact == (max(values) if values else None)
            seen.add(element.attributes["data-largest"] or "")
        else:
            first, second = (element.attributes["data-difference"] or "").split(" ")
            assert exact == at(data, first) - at(data, second)
        if exact is None:
            assert element.text == "–"
        elif kind in ("count", "decibel", "percent", "rate", "ratio", "share", "significant"):
            assert shows(element.text, exact * UNITS.get(kind, 1.0)), (element.text, exact)
        elif kind == "time":
            assert parse_duration(element.text) == pytest.approx(exact, rel=1e-3)
        elif kind == "text":
            assert element.text == visible(exact if isinstance(exact, str) else json.dumps(exact, ensure_ascii=False))
        elif kind in ("shape", "planes") and exact:
            assert [int(n) for n in re.findall(r"\d+", element.text)] == (
                exact if kind == "shape" else sorted(exact, reverse=True)
            )
    return seen
