"""A campaign's store as a page: every number the document's, and the trials' own mean and interval."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from pages import Page, check_numbers, leaves
from scipy import stats

from qtaml_onnx.cli import main
from qtaml_onnx.errors import InputError
from qtaml_onnx.report.store import APPLICATION, is_store, read_store
from qtaml_onnx.report.store_html import render_store

VALUES = [0.91, 0.95, 0.9, 0.97]


def make_store(
    path: Path, conditions: Sequence[str] = ("0.01", "0.05"), *, version: int = 1, application: int = APPLICATION,
    trials: int = 4,
) -> Path:  # fmt: skip
    """The tables that `evaluate` writes."""
    with sqlite3.connect(path) as database:
        database.executescript(
            "CREATE TABLE identity (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
            "CREATE TABLE variants (variant INTEGER PRIMARY KEY, name TEXT NOT NULL);"
            "CREATE TABLE conditions (condition INTEGER PRIMARY KEY, name TEXT NOT NULL);"
            "CREATE TABLE trials (variant INTEGER NOT NULL, condition INTEGER NOT NULL, trial INTEGER NOT NULL, "
            "seed INTEGER NOT NULL, measured TEXT NOT NULL, PRIMARY KEY (variant, condition, trial)) WITHOUT ROWID;"
            f"PRAGMA application_id = {application}; PRAGMA user_version = {version};"
        )
        database.executemany("INSERT INTO identity VALUES (?, ?)", [("seed", "7"), ("data <hash>", "ab" * 32)])
        models = ["hardened a <b>.onnx", "unprotected 重み.onnx"]
        database.executemany("INSERT INTO variants VALUES (?, ?)", list(enumerate(models)))
        database.executemany("INSERT INTO conditions VALUES (?, ?)", list(enumerate(conditions)))
        for variant in range(2):
            for condition in range(len(conditions)):
                for trial, value in enumerate(VALUES[:trials]):
                    document = json.dumps({"top-1": value - 0.5 * variant - 0.1 * condition, "masked": 3})
                    database.execute(
                        "INSERT INTO trials VALUES (?, ?, ?, ?, ?)", (variant, condition, trial, 7 + trial, document)
                    )
    database.close()
    return path


@pytest.mark.parametrize("conditions", [("0.01", "0.05"), ("1h", "1d"), ("here", "there"), ("0.1",)])
def test_page_and_document_agree(tmp_path: Path, conditions: Sequence[str]) -> None:
    campaign = read_store(make_store(tmp_path / "s.sqlite", conditions))
    assert campaign.trials == 8 * len(conditions)
    first = campaign.results[0]
    wanted = stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    assert (first.mean, first.worst, first.best) == pytest.approx((0.9325, 0.9, 0.97))
    assert first.ci_low == pytest.approx(wanted.low)
    assert first.ci_high == pytest.approx(min(1.0, wanted.high))
    page = Page(render_store(campaign))
    data = json.loads(campaign.to_json())
    assert {pointer for pointer, _ in leaves(data)} <= check_numbers(page, data)
    assert not re.findall(r".*\d.*", "".join(page.unmarked))
    assert len(page.pictures) == (0 if conditions[0] in ("here", "0.1") else 2)
    identifiers = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(identifiers) == len(set(identifiers))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "s.sqlite")
    before = store.read_bytes()
    assert main(["report", str(store), "-o", str(tmp_path / "s.html")]) == 0
    assert "0.9325" in capsys.readouterr().out
    assert store.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"s.sqlite", "s.html"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"version": 2}, "schema version 2, this program knows 1; a newer"),
        ({"application": 5}, "of another program"),
        ({"trials": 0}, "holds no trial yet"),
    ],
)
def test_refused(tmp_path: Path, more: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_store(make_store(tmp_path / "s.sqlite", **more))  # type: ignore[arg-type]


def test_damage_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    path.write_bytes(make_store(tmp_path / "t.sqlite").read_bytes()[:5000])
    assert is_store(path)
    with pytest.raises(InputError, match="cannot be read") as caught:
        read_store(path)
    assert "\n" not in str(caught.value)
