"""docs/formats.md is what the program does."""

from __future__ import annotations

import re

import pytest
from format_matrix import COLUMNS, DONE, PAGE, page, row
from format_models import FORMATS


def committed() -> dict[str, tuple[int, tuple[str, ...]]]:
    """By format: the number of stored tensors, and by column `DONE` or the note."""
    text = PAGE.read_text(encoding="utf-8")
    notes = {n: re.sub(r"\\(.)", r"\1", note) for n, note in re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE)}
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == len(COLUMNS) + 2 and cells[1].isdigit():
            read = (notes[n[0]] if (n := re.findall(r"\[(\d+)\]", cell)) else cell for cell in cells[2:])
            rows[cells[0]] = (int(cells[1]), tuple(read))
    return rows


def test_every_format_has_its_row_and_every_cell_works_or_says_why() -> None:
    rows = committed()
    assert list(rows) == list(FORMATS)
    for name, (stored, cells) in rows.items():
        assert len(cells) == len(COLUMNS)
        for cell in cells:
            assert cell == DONE or re.match("(harden|inject|verify): .{20,}", cell), (name, cell)
        assert stored > 0 or DONE not in cells[:-1]


@pytest.mark.parametrize("name", FORMATS)
def test_one_column(name: str) -> None:
    """The quickest method, on every format; the other columns are slow."""
    column = "posterior-mean"
    expected = committed()[name][1][COLUMNS.index(column)]
    assert row(name, [column]).cells == (expected,)


@pytest.mark.slow
def test_the_whole_page() -> None:
    assert page(row(name) for name in FORMATS) == PAGE.read_text(encoding="utf-8")
