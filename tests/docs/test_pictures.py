"""The pictures of the pages are those that the scripts draw today."""

from __future__ import annotations

import re
from pathlib import Path

import make_pictures
import numpy as np
import pytest

from qtaml_onnx.physics.plots import figure_bytes

DOCS = Path(__file__).resolve().parents[2] / "docs"


def notes(picture: str) -> list[str]:
    """The texts of a picture, which matplotlib notes before the letters that it draws."""
    return re.findall(r"<!-- (.*?) -->", picture)


@pytest.mark.parametrize("name", make_pictures.FIGURES)
def test_pictures_are_up_to_date(name: str) -> None:
    drawn = figure_bytes(make_pictures.FIGURES[name](), "svg").decode()
    kept = (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    assert notes(drawn) == notes(kept)
    assert len(notes(kept)) > 8


def test_the_words_on_how_it_works_are_those_of_the_picture() -> None:
    page = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
    titles = notes((DOCS / "pictures" / "how_code_books.svg").read_text(encoding="utf-8"))
    plain, designed = [int(word) for title in titles for word in re.findall(r"(\d+) words in use", title)]
    errors = [float(word) for title in titles for word in re.findall(r"error ([\d.]+)", title)]
    assert f"two's complement: {plain} words" in page
    assert f"{designed} words are left in use" in page
    assert f"The other {256 - designed} words" in page
    assert errors[1] / errors[0] < 0.25  # "less than a quarter"


def test_the_accuracy_picture_shows_the_table_below_it() -> None:
    """The picture of README.md is made by the command on docs/start.md whose table is quoted there."""
    page = (DOCS / "start.md").read_text(encoding="utf-8")
    shown = page.split("--plot docs/pictures/digits_accuracy.svg")[1].split("```")[0]
    means = [float(mean) for mean in re.findall(r"^hardened +│[^│]*│ ([\d.]+) │", shown, flags=re.MULTILINE)]
    kept = (DOCS / "pictures" / "digits_accuracy.svg").read_text(encoding="utf-8")
    assert "flip rate of a stored bit" in notes(kept)
    markers = re.findall(r'<use xlink:href="#m[0-9a-f]+" x="([\d.]+)" y="([\d.]+)"[^>]*style="fill: #0072b2', kept)
    drawn = [float(y) for x, y in markers if x != "0"][: len(means)]  # after them comes that of the legend
    assert len(means) == 9
    slope, offset = np.polyfit(means, drawn, 1)
    assert np.allclose(np.polyval((slope, offset), means), drawn, atol=0.2)  # points of a picture 290 points high
    assert slope < -200
