"""A JSON document on a page: every number with the pointer that it was looked up by.

A number is written with its JSON pointer (RFC 6901) in `data-field` and its exact value in `value`; numbers worked out
of fields name them in `data-ratio`, `data-difference` or `data-largest`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from qtaml_onnx.physics import format_duration
from qtaml_onnx.report.text import (
    format_count,
    format_decibel,
    format_percent,
    format_rate,
    format_ratio,
    format_share,
    format_significant,
    visible,
)

__all__ = ["Fields", "is_share", "metric_name", "template"]

_METRICS = {
    "top-1": "top-1 accuracy",
    "agreement": "agreement with the clean model",
    "agreement-5-percent": "agreement with the clean outputs within 5 % of their rms",
}


def metric_name(name: str) -> str:
    """What a metric is called on a page."""
    return _METRICS.get(name, visible(name)) or "metric"


_SHARE = re.compile(r"top-\d+|agreement.*")


def is_share(name: str) -> bool:
    """Whether a metric is a share of what is right: 0 to 1, and written in percent."""
    return _SHARE.fullmatch(name) is not None or not name


_FORMATS: dict[str, Callable[[Any], str]] = {
    "text": lambda value: visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)),
    "base": lambda value: visible(re.split(r"[\\/]", value)[-1]),
    "metric": metric_name,
    "count": format_count,
    "decibel": format_decibel,
    "percent": format_percent,
    "rate": format_rate,
    "ratio": format_ratio,
    "time": format_duration,
    "share": format_share,
    "significant": format_significant,
    "shape": lambda value: " × ".join(map(str, value)) or "scalar",
    "gate": lambda value: "✓ gate met" if value else "✗ gate failed",
    "yes": lambda value: "yes" if value else "no",
    "channels": lambda value: f"{len(value)} of its channels",
    "planes": lambda value: ", ".join(map(str, sorted(value, reverse=True))) or "none",
}


class Fields:
    """The document, looked up by pointer and put on the page with its source."""

    def __init__(self, text: str) -> None:
        """Reads the text of a JSON document."""
        self.data: Any = json.loads(text)

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

    def largest(self, pointer: str, kind: str = "significant") -> Markup:
        """The largest entry of a list of numbers; a dash if it is empty."""
        values = self.get(pointer)
        text, exact = (_FORMATS[kind](max(values)), json.dumps(max(values))) if values else ("–", "null")
        return Markup('<data data-largest="{0}" data-kind="{1}" value="{2}">{3}</data>').format(
            pointer, kind, exact, text
        )

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


@lru_cache(maxsize=4)
def template(name: str) -> Template:
    """A template of this package, with escaping on and unknown names refused."""

    def load(wanted: str) -> str:
        return files("qtaml_onnx.report").joinpath(wanted).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(load), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)
