"""The `device` commands as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.image
import pytest
from typer.testing import CliRunner

from qtaml_onnx.cli.device import device_app
from qtaml_onnx.errors import InputError
from qtaml_onnx.physics import device_names, load_device

OXIDE = ["--barrier-ev", "3.1", "--mass", "0.4", "--thickness-nm"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(device_app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


@pytest.mark.parametrize(
    ("thickness", "voltage", "printed"),
    [
        ("1.0", None, "1.11e-05"),
        ("1.2", None, "1.13e-06"),
        ("1.5", None, "3.69e-08"),
        ("1.0", "0.7", "2.17e-05"),
        ("1.2", "0.7", "2.53e-06"),
        ("1.5", "0.7", "1.01e-07"),
    ],
)
def test_rates_of_an_oxide(thickness: str, voltage: str | None, printed: str) -> None:
    extra = ["--voltage", voltage] if voltage else []
    answer = run_json("rates", *OXIDE, thickness, *extra)
    assert f"{answer['transmission']:.2e}" == printed
    assert f"{answer['escape_rate_per_s'] / 1e13:.2e}" == printed
    assert len(repr(answer["transmission"])) > 12


def test_rates_of_an_oxide_over_time() -> None:
    answer = run_json("rates", *OXIDE, "2.0", "--voltage", "0.7", "--retention", "10us", "--temperature-k", "300")
    assert answer["p10"] > answer["p01"] > 0
    assert answer["transmission_thermal"] > answer["transmission"]
    assert answer["conditions"]["retention"] == {"value": pytest.approx(1e-5), "source": "given by the caller"}
    assert run_json("rates", *OXIDE, "2.0")["conditions"]["retention"]["source"] == "default"


@pytest.mark.parametrize("name", device_names())
@pytest.mark.parametrize(
    ("variable", "option"),
    [
        ("thickness", "--thickness-nm"),
        ("voltage", "--voltage"),
        ("retention", "--retention"),
        ("temperature", "--temperature-k"),
    ],
)
def test_solve_then_rates_comes_back(name: str, variable: str, option: str) -> None:
    device = load_device(name)
    wanted = 0.7 * max(map(float, device.cell_rates()))  # smaller than the device's own rate
    extra = ["--direction", "10"]
    own = float(device.cell_rates()[1])
    rate = own * 0.999 if variable in ("temperature", "voltage") else min(wanted, own * 0.7)
    found = run_json("solve", variable, name, "--rate", repr(rate), *extra)
    answer = run_json("rates", name, "--cell", device.planes.default, option, repr(found["value"]))
    assert answer["p10"] == pytest.approx(rate, rel=1e-6)


def test_rates_of_mixed_planes_as_a_table() -> None:
    lines = run("rates", "mixed-planes").splitlines()
    table = [line.split() for line in lines if line.split()[1:2] in (["thin"], ["thick"])]
    planes = [row for row in table if row[0].isdigit()]
    assert [row[0] for row in planes] == list("76543210")
    assert [row[1] for row in planes] == ["thick"] * 2 + ["thin"] * 6
    exact = load_device("mixed-planes").flip_rates(8)
    assert [row[3] for row in planes] == [f"{p:.3g}" for p in reversed(exact.p10)]


def test_list_and_show() -> None:
    assert [entry["name"] for entry in run_json("list")] == device_names()
    assert [line.split()[0] for line in run("list").splitlines()] == device_names()
    shown = run("show", "floating-gate")
    assert "mass = 0.42    [Lenzlinger & Snow 1969" in shown
    assert run_json("show", "floating-gate") == load_device("floating-gate").describe()


@pytest.mark.parametrize("panel", ["all", "transmission", "retention", "temperature", "variation"])
def test_plot_svg(tmp_path: Path, panel: str) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    for path in (first, second):
        run("plot", "scaled-node", "-o", str(path), "--panel", panel)
    assert first.read_bytes() == second.read_bytes()
    axes = [e for e in ElementTree.parse(first).iter() if e.get("id", "").startswith("axes_")]
    assert len(axes) == (4 if panel == "all" else 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]


def test_plot_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    run("plot", "gain-cell", "-o", str(path), "--panel", "retention")
    assert matplotlib.image.imread(path).shape[:2] == (600, 840)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["rates"], "give a device"),
        (["rates", "gian-cell"], "no device 'gian-cell'"),
        (["rates", "gain-cell", "--barrier-ev", "3"], "--barrier-ev cannot change the device gain-cell"),
        (["rates", *OXIDE, "-1"], "thickness_nm: must be above 0, got -1"),
        (["rates", *OXIDE, "0"], "thickness_nm: must be above 0, got 0"),
        (["rates", *OXIDE, "1", "--energy-ev", "3.1"], "barrier of 3.1 eV must stand above"),
        (["rates", *OXIDE, "1", "--temperature-k", "0"], "temperature_k: must be above 0"),
        (["rates", "gain-cell", "--retention", "soon"], "time 'soon'"),
        (["rates", "gain-cell", "--bits", "0"], "1 to 16 bits"),
        (["rates", "gain-cell", "--cell", "x"], "has no cell 'x'"),
        (["solve", "colour", "gain-cell", "--rate", "0.1"], "cannot solve for 'colour'"),
        (["solve", "thickness", "gain-cell"], "--rate"),
        (["solve", "thickness", "gain-cell", "--rate", "0.1", "--low", "thin"], "'thin' is not a number"),
        (["solve", "thickness", "gain-cell", "--rate", "0.1", "--direction", "up"], "no direction 'up'"),
        (["solve", "temperature", "gain-cell", "--rate", "0.4"], "no solution for a flip rate of 0.4"),
        (["plot", "gain-cell", "-o", "a.gif"], "must end in .png or .svg"),
        (["plot", "gain-cell", "-o", "no/such/folder/a.svg"], "cannot write"),
        (["plot", "gain-cell", "-o", "a.svg", "--panel", "pie"], "no plot 'pie'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        run(*arguments)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
