"""Reports: the JSON schema, and the HTML page made from it."""

from __future__ import annotations

from qtaml_onnx.report.html import render_html
from qtaml_onnx.report.schema import Report, json_schema, read_report

__all__ = ["Report", "json_schema", "read_report", "render_html"]
