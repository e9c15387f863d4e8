"""report.json against its published schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from qtaml_onnx.errors import InputError
from qtaml_onnx.report.schema import Report, json_schema, read_report

MakeReport = Callable[..., Report]


def test_schema_is_a_schema() -> None:
    schema = json_schema()
    assert schema["$schema"].endswith("draft/2020-12/schema")
    jsonschema.Draft202012Validator.check_schema(schema)


def test_every_report_validates_and_comes_back(report: Report, tmp_path: Path) -> None:
    data = json.loads(report.to_json())
    jsonschema.Draft202012Validator(json_schema()).validate(data)
    assert data["schema_version"] == report.schema_version
    path = tmp_path / "report.json"
    path.write_text(report.to_json(), encoding="utf-8")
    again = read_report(path)
    assert again == report
    assert again.to_json() == report.to_json()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("storage", "bits_per_weight"), "8"),
        (("storage", "weights"), 1.5),
        (("evaluation", "results", 0, "variant"), "best"),
        (("evaluation", "results", 0, "interval"), "bootstrap"),
        (("tensors", 0, "protected_planes"), 7),
        (("tool", "name"), "other"),
        (("surprise",), 1),
    ],
)
def test_schema_and_reader_refuse_alike(
    make_report: MakeReport, tmp_path: Path, path: tuple[Any, ...], value: Any
) -> None:
    data = json.loads(make_report().to_json())
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(data)
    file = tmp_path / "report.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    if value != "8":  # the reader takes a number in quotes for the number
        with pytest.raises(InputError, match=str(path[-1])):
            read_report(file)


def test_missing_sections_are_refused(make_report: MakeReport) -> None:
    whole = json.loads(make_report().to_json())
    validator = jsonschema.Draft202012Validator(json_schema())
    refused = {key for key in whole if not validator.is_valid({k: v for k, v in whole.items() if k != key})}
    optional = {"schema_version", "command", "warnings", "small", "calibration", "inference", "gate"}
    assert refused == set(whole) - optional


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("not json", "is not JSON"),
        ("[]", "the file"),
        ("{}", "Field required"),
        ('{"schema_version": 3}', "schema version 3, this program reads up to 2; a newer qtaml-onnx"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_report(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reports_of_before_optional_fields_are_read(make_report: MakeReport, tmp_path: Path) -> None:
    data = json.loads(make_report().to_json())
    for section, field in (("fault_model", "margin"), ("prediction", "saturation_level")):
        del data[section][field]
    del data["warnings"], data["command"]
    for entry in data["evaluation"]["results"]:
        del entry["label"]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    read = read_report(path)
    assert (read.fault_model.margin, read.command, read.warnings) == (1.0, None, [])
    assert read.evaluation is not None
    assert [r.label for r in read.evaluation.results] == [None] * 4
