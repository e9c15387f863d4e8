"""`evaluate --plot`: what the picture shows, what the JSON says of the rates behind it, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from device_files import threshold_device
from digits_example import MODEL, first_samples
from matplotlib.colors import to_hex

from qtaml_onnx.campaign.plots import Curve, sweep_figure
from qtaml_onnx.cli import main
from qtaml_onnx.cli.evaluate import _uneven
from qtaml_onnx.fault_model import fault_model
from qtaml_onnx.physics import load_device, parse_duration
from qtaml_onnx.report.schema import Evaluation, EvaluationResult
from qtaml_onnx.stored import stored_model

TIMES = ["1ns", "50ns", "1us", "1h"]
FORGETFUL = threshold_device("forgetful", "1ms", more="exposed_share = 1.0\n[cells.a.zero]\nexposed_share = 0.0\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty-four of the digits."""
    return first_samples(tmp_path_factory.mktemp("data") / "few.npz", 64)


def evaluate(data: Path, *words: str | Path, trials: int = 2) -> int:
    return main(["evaluate", "--eval", str(data), "--trials", str(trials), *map(str, words)])


def results(*points: tuple[str, float, float, float, float, str | None]) -> list[EvaluationResult]:
    return [
        EvaluationResult(
            variant=variant,  # type: ignore[arg-type]
            flip_rate=rate,
            mean=mean,
            ci_low=low,
            ci_high=high,
            trials=1 if variant == "clean" else 5,
            interval="wilson" if variant == "clean" else "t",
            label=label,
        )
        for variant, rate, mean, low, high, label in points
    ]


CLEAN = ("clean", 0.0, 0.95, 0.93, 0.97, None)


def evaluation(found: list[EvaluationResult]) -> Evaluation:
    return Evaluation(metric="top-1", data="d", samples=9, trials=5, seed=0, confidence=0.95, results=found)


def test_the_curve_is_the_results_over_logarithmic_time_in_order() -> None:
    late, early = ("unprotected", 0.2, 0.3, 0.2, 0.4, "30d"), ("unprotected", 1e-9, 0.9, 0.85, 0.92, "1h")
    found = results(CLEAN, late, early)
    seconds = [parse_duration("30d"), parse_duration("1h")]
    axes = sweep_figure(evaluation(found), [Curve("unprotected", found[1:])], seconds, "x").axes[0]
    clean, line = axes.get_lines()
    assert list(np.asarray(clean.get_ydata())) == [0.95, 0.95]
    assert list(np.asarray(line.get_xdata())) == [3600.0, 2592000.0]
    assert list(np.asarray(line.get_ydata())) == [0.9, 0.3]
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in np.asarray(band)} == {
        (3600.0, 0.85), (3600.0, 0.92), (2592000.0, 0.2), (2592000.0, 0.4),
    }  # fmt: skip
    assert axes.get_xscale() == "log"
    assert list(axes.get_xticks()) == [3600.0, 2592000.0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1h", "30d"]
    assert axes.get_xlabel() == "time between write and read"


@pytest.mark.parametrize(
    ("rates", "scale"), [([0.01, 0.02, 0.04], "linear"), ([1e-4, 1e-2], "log"), ([0.0, 1e-4, 1e-2], "symlog")]
)
def test_rates_are_logarithmic_where_they_span_more_than_a_factor_of_five(rates: list[float], scale: str) -> None:
    found = results(CLEAN, *[("hardened", rate, 0.9, 0.8, 0.95, None) for rate in rates])
    axes = sweep_figure(evaluation(found), [Curve("hardened", found[1:])], None, "x").axes[0]
    assert axes.get_xscale() == scale
    assert list(axes.get_xticks()) == rates
    places = axes.transAxes.inverted().transform(axes.transData.transform([(rate, 0.5) for rate in rates]))[:, 0]
    assert np.all(np.diff(places) > 0.1)
    assert (places.min(), places.max()) == (pytest.approx(0.045, abs=0.01), pytest.approx(0.955, abs=0.01))


def test_ticks_without_room_are_left_out_and_a_single_trial_has_no_band() -> None:
    rates = [0.05 + 0.001 * k for k in range(40)]
    found = results(CLEAN, *[("hardened", rate, 0.9, 0.0, 1.0, None) for rate in rates])
    single = [found[0], *(result.model_copy(update={"trials": 1}) for result in found[1:])]
    axes = sweep_figure(evaluation(single), [Curve("hardened", single[1:])], None, "x").axes[0]
    ticks = list(axes.get_xticks())
    assert 8 <= len(ticks) <= 15
    assert set(ticks) < set(rates)
    assert len(np.asarray(axes.get_lines()[1].get_xdata())) == 40
    assert sum(len(path.vertices) for collection in axes.collections for path in collection.get_paths()) == 0


def test_models_differ_in_colour_line_and_marker() -> None:
    found = results(CLEAN, ("unprotected", 0.01, 0.5, 0.4, 0.6, None), ("hardened", 0.01, 0.9, 0.8, 0.95, None))
    curves = [Curve("unprotected: $a_b$.onnx", found[1:2]), Curve("hardened: _b.onnx", found[2:])]
    figure = sweep_figure(evaluation(found), curves, None, "two")
    lines = figure.axes[0].get_lines()[1:]
    for style in (lambda a: to_hex(a.get_color()), lambda a: a.get_marker(), lambda a: a.get_linestyle()):
        assert style(lines[0]) != style(lines[1])
    for order in (curves, curves[::-1]):  # hardened models are blue wherever they stand
        drawn = sweep_figure(evaluation(found), order, None, "two").axes[0].get_lines()[1:]
        assert {str(line.get_label())[:3]: to_hex(line.get_color()) for line in drawn} == {
            "unp": "#d55e00",
            "har": "#0072b2",
        }
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "clean (float), no faults", "unprotected: $a_b$.onnx", "hardened: _b.onnx",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def sweep(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over retention times of two copies of the digits, with picture and JSON."""
    folder = tmp_path_factory.mktemp("sweep")
    shutil.copy(MODEL, folder / "copy $1.onnx")
    words = [MODEL, folder / "copy $1.onnx", "--device", "scaled-node", "--retention", ", ".join(TIMES)]
    assert evaluate(data, *words, "--plot", folder / "a.svg", "-o", folder / "a.json", "-q") == 0
    return folder


def test_svg_names_the_times_the_models_and_what_is_drawn(sweep: Path) -> None:
    assert sorted(path.name for path in sweep.iterdir()) == ["a.json", "a.svg", "copy $1.onnx"]
    text = (sweep / "a.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    shown = [*TIMES, "top-1 accuracy", "time between write and read", "2 models, device scaled-node"]
    shown += ["clean (float), no faults", "unprotected: digits_cnn.onnx", "unprotected: copy $1.onnx"]
    shown += ["64 samples of few.npz, 2 trials a point, bands: 95 % confidence"]
    for words in shown:
        assert f"<!-- {words} -->" in text  # letters are paths; matplotlib notes before each what it says


def test_json_says_which_rates_stand_behind_each_time(sweep: Path) -> None:
    document: dict[str, Any] = json.loads((sweep / "a.json").read_text(encoding="utf-8"))
    faults, device = document["fault_models"], load_device("scaled-node")
    assert [fault["label"] for fault in faults] == TIMES
    for fault, time in zip(faults, TIMES, strict=True):
        exact = device.flip_rates(8, retention_s=parse_duration(time))
        assert fault["word_bits"] == 8
        assert fault["p01"] == list(exact.p01)
        assert fault["p10"] == list(exact.p10)
        assert fault["origin"] == f"--device scaled-node --retention {time}"
        assert fault["device"]["conditions"]["retention"] == {
            "value": parse_duration(time),
            "source": "given by the caller",
        }
        assert fault["device"]["cells"]["latch"]["parameters"]["layers"][0]["barrier_ev"]["source"]
    for model in document["models"]:
        faulty = [result for result in model["evaluation"]["results"] if result["interval"] == "t"]
        assert [result["label"] for result in faulty] == TIMES
        assert [r["flip_rate"] for r in faulty] == [max(*f["p01"], *f["p10"]) for f in faults]
    means = [result["mean"] for result in document["models"][0]["evaluation"]["results"][2:]]
    assert means[0] > 0.9 > 0.4 > means[-1]
    assert document["models"][0]["evaluation"] == document["models"][1]["evaluation"]


def test_png_is_a_picture_and_pictures_repeat(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.PNG", "a.svg", "b.svg"):
        assert evaluate(data, MODEL, "--flip-rate", "0.001,0.1", "--plot", tmp_path / name) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"picture {tmp_path / name}"
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = matplotlib.image.imread(tmp_path / "a.png")
    assert pixels.shape[:2] == (690, 1080)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.PNG").read_bytes()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "<!-- flip rate of a stored bit -->" in (tmp_path / "a.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--flip-rate", "0.1", "--plot", "a.gif"], "cannot draw a.gif: the name must end in .png or .svg"),
        (["--flip-rate", "0.1", "--plot", "plot"], "cannot draw plot: the name must end in .png or .svg"),
        (["--flip-rate", "0.1", "--plot", "no/a.svg"], "folder no does not exist"),
        (["--flip-rate", "0.1", "--plot", "a.svg", "-o", "a.svg"], "--plot and -o name the same file"),
        (["--flip-rate", "0.1", "--retention", "1h", "--plot", "a.svg"], "--retention needs --device"),
        (["--device", "gain-cell", "--retention", "1h,soon", "--plot", "a.svg"], "time 'soon'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_any_work(
    words: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qtaml_onnx.cli.evaluate.stored_model", None)  # not even the model is read
    assert main(["evaluate", str(MODEL), *words]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_if_the_campaign_fails(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(data) as archive:
        np.savez(tmp_path / "odd.npz", image=archive["image"], labels=np.stack([archive["labels"]] * 2, axis=1))
    words = ["--flip-rate", "0.1", "--plot", tmp_path / "a.svg", "-o", tmp_path / "a.json"]
    assert evaluate(tmp_path / "odd.npz", MODEL, *words) == 2
    assert "labels have shape" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["odd.npz"]


def test_a_device_that_has_lost_every_bit_is_named_with_its_time(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = tmp_path / "forgetful.toml"
    device.write_text(FORGETFUL, encoding="utf-8")
    assert load_device(device).flip_rates(8, retention_s=parse_duration("10y")).p10[0] == 1.0
    assert evaluate(data, MODEL, "--device", device, "--retention", "1ms,10y") == 2
    assert capsys.readouterr().err == (
        "qtaml-onnx: error: device forgetful: after 10y every stored 1 is lost (p10 = 1); "
        "give a shorter --retention or a device that holds longer\n"
    )


def test_planes_lie_in_the_cells_of_the_models_own_word_length(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(data, MODEL, "--device", "mixed-planes", "--json") == 0
    (fault,) = json.loads(capsys.readouterr().out)["fault_models"]
    exact = load_device("mixed-planes").flip_rates(8)
    assert exact.cells[5:] == ("thin", "thick", "thick")
    assert (fault["p01"], fault["p10"]) == (list(exact.p01), list(exact.p10))
    assert fault["origin"] == "--device mixed-planes"
    table = tmp_path / "planes.csv"
    table.write_text("".join(f"{0.01 * k},{0.02 * k}\n" for k in range(8)))  # eight rows are enough for 8-bit words
    assert evaluate(data, MODEL, "--plane-rates", table, "--json") == 0
    (fault,) = json.loads(capsys.readouterr().out)["fault_models"]
    assert fault["p10"] == [pytest.approx(0.02 * k) for k in range(8)]
    assert (fault["origin"], fault["device"]) == (f"--plane-rates {table}", None)


def test_unequal_words_under_unequal_planes_draw_a_warning() -> None:
    uneven, even = fault_model(bits=8, device="mixed-planes"), fault_model(bits=8, p01=0.1, p10=0.2)
    model = stored_model(MODEL, lambda bits: even)
    first, *rest = model.plan.tensors
    short = first.model_copy(update={"code": first.code.model_copy(update={"bits": 4})})
    mixed = dataclasses.replace(model, plan=model.plan.model_copy(update={"tensors": (short, *rest)}))
    assert _uneven(model, [uneven]) == _uneven(mixed, [even]) == []
    (warning,) = _uneven(mixed, [even, uneven])
    assert "words of 4 to 8 bits" in warning
