"""Devices: what ships, users' files, errors, descriptions, and the inverse problem."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from device_files import threshold_device

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.errors import InputError
from qtaml_onnx.physics import Device, DeviceFlipRates, device_names, inline_device, load_device, parse_duration, solve
from qtaml_onnx.physics.inverse import VARIABLES, Direction, Variable

NAMES = device_names()
QUICK = {"gain-cell", "scaled-node"}  # a threshold cell and an exchange cell; the others are of the same kinds
CELLS = [
    pytest.param(name, cell, marks=() if name in QUICK else pytest.mark.slow)
    for name in NAMES
    for cell in load_device(name).cells
]
USER = threshold_device("mine", "1s", barrier='{ value = 3.1, source = "measured" }')


def own_value(device: Device, variable: str, cell: str) -> float:
    assert device.temperature_k is not None
    return {
        "thickness": device.cell(cell).thickness_nm,
        "voltage": device.supply_v.value,
        "retention": device.retention.value,
        "temperature": device.temperature_k.value,
    }[variable]


def test_the_shipped_devices() -> None:
    assert NAMES == ["floating-gate", "gain-cell", "mixed-planes", "scaled-node", "thick-oxide"]
    for name in NAMES:
        assert load_device(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_number_has_a_source(name: str) -> None:
    def walk(value: object) -> int:
        if isinstance(value, dict) and "source" in value:
            assert value["source"] != "not stated", value
            return 1
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return sum(walk(item) for item in items)

    assert walk(load_device(name).describe()) >= 15


def test_shipped_devices_behave_as_their_kind() -> None:
    held = load_device("floating-gate").flip_rates(8, retention_s=parse_duration("10y"))
    assert max(held.p01.max(), held.p10.max()) < 1e-15  # flash: years
    leaky = load_device("gain-cell")
    assert leaky.flip_rates(8, retention_s=1e-3).p10[0] < 1e-6
    assert leaky.flip_rates(8, retention_s=1.0).p10[0] > 0.4  # gain cell: milliseconds to a second
    node = load_device("scaled-node").flip_rates(8)
    assert 1e-3 < node.p01[0] < node.p10[0] < 0.1  # percent
    assert load_device("thick-oxide").flip_rates(8, retention_s=3600.0).p10[0] < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_rates_are_a_channel_at_any_time_and_rise_with_it(name: str) -> None:
    device = load_device(name)
    times = device.retention.value * np.geomspace(1e-9, 1e14, 47)
    for cell in device.cells:
        p01, p10 = device.cell_rates(cell, retention_s=times)
        assert np.all(p01 + p10 <= 1 + 1e-12)
        assert np.all(np.diff(p01) >= -1e-15)
        assert np.all(np.diff(p10) >= -1e-15)
        assert p10[-1] > 0.05  # in the end every cell forgets
    FlipRates(tuple(device.flip_rates(8).p01), tuple(device.flip_rates(8).p10))


@pytest.mark.parametrize(("name", "cell"), CELLS)
@pytest.mark.parametrize("variable", VARIABLES)
def test_solve_inverts_the_rates(name: str, cell: str, variable: Variable) -> None:
    device = load_device(name)
    own = own_value(device, variable, cell)
    p01, p10 = (float(value) for value in device.cell_rates(cell))
    wanted: list[tuple[Direction, float]] = [("01", p01), ("10", p10)]
    if variable == "thickness":
        wanted.append(("worst", max(p01, p10)))
    for direction, rate in wanted:
        found = solve(device, variable, rate, cell=cell, direction=direction)
        assert found.value == pytest.approx(own, rel=1e-6)
        assert found.rate == pytest.approx(rate, rel=1e-9)
        assert found.low <= own <= found.high


def test_solve_away_from_the_device_and_in_a_given_range() -> None:
    device = load_device("gain-cell")
    found = solve(device, "thickness", 1e-6, low=2.0, high=4.0)
    thicker = device.at(thickness_nm=found.value)
    assert max(thicker.flip_rates(8).p01[0], thicker.flip_rates(8).p10[0]) == pytest.approx(1e-6, rel=1e-9)
    assert (found.rises, found.whole_range, found.unit) == (False, True, "nm")
    turning = solve(device, "voltage", 0.01)
    assert not turning.whole_range  # below some supply the margin shrinks faster than the field
    assert turning.low > 0.08


def test_no_solution_says_what_the_range_gives() -> None:
    device = load_device("gain-cell")
    with pytest.raises(InputError, match=r"flip rate of 0\.4.*100 to 600 K gives 0\.0\d+ to 0\.0\d+$"):
        solve(device, "temperature", 0.4)
    with pytest.raises(InputError, match="beyond, the rate turns around"):
        solve(device, "voltage", 1e-3)
    flat = inline_device(barrier_ev=3.1, mass=0.4, thickness_nm=1.0, voltage_v=0.5, retention_s=1e6)
    with pytest.raises(InputError, match="whatever the retention"):
        solve(flat, "retention", 0.3, low=1.0, high=1e9)
    for rate in (0.0, 1.0, -0.1):
        with pytest.raises(InputError, match="between 0 and 1"):
            solve(device, "thickness", rate)
    with pytest.raises(InputError, match="is empty"):
        solve(device, "thickness", 0.1, low=3.0, high=2.0)


def test_planes_in_different_cells() -> None:
    device = load_device("mixed-planes")
    rates = device.flip_rates(8)
    assert rates.cells == ("thin",) * 6 + ("thick",) * 2
    assert rates.p10[7] == rates.p10[6] < 1e-9 < 1e-2 < rates.p10[5] == rates.p10[0]
    assert device.flip_rates(1).cells == ("thick",)
    for bits in (0, 17):
        with pytest.raises(InputError, match="1 to 16 bits"):
            device.flip_rates(bits)


def test_a_users_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(USER)
    device = load_device(path)
    described = device.at(retention_s=2.0).describe(4)
    assert json.loads(json.dumps(described)) == described
    assert described["conditions"]["retention"] == {"value": 2.0, "source": "given by the caller"}
    layer = described["cells"]["a"]["parameters"]["layers"][0]
    assert layer["barrier_ev"] == {"value": 3.1, "source": "measured"}
    assert layer["mass"] == {"value": 0.4, "source": "not stated"}
    assert described["planes"][0]["p10"] == float(device.flip_rates(4, retention_s=2.0).p10[0])


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("thickness_nm = 3.0", "thickness_nm = -3.0", r"cells.a.layers\[0\].thickness_nm: must be above 0, got -3"),
        ("thickness_nm = 3.0", "thickness_nm = 0", r"thickness_nm: must be above 0, got 0"),
        ("thickness_nm = 3.0", "tickness_nm = 3.0", r"cells.a.layers\[0\].*(missing|unknown key)"),
        ("mass = 0.4", 'mass = "heavy"', r"cells.a.layers\[0\].mass"),
        ("mass = 0.4", "mass = inf", r"cells.a.layers\[0\].mass"),
        ("temperature_k = 300", "temperature_k = 0", "temperature_k: must be above 0, got 0"),
        ("temperature_k = 300", "temperature_k = -1", "temperature_k: must be above 0, got -1"),
        ("barrier_ev = { value = 3.1", "barrier_ev = { value = -0.1", "barrier_ev: must be above 0"),
        ('retention = "1s"', 'retention = "1 fortnight"', "retention: time '1 fortnight'"),
        ('default = "a"', 'default = "b"', "the cells are a"),
        ("sense_v = 0.4", "", "needs capacitance_af and sense_v"),
        ("sense_v = 0.4", "sense_v = 0.4\nsigma_thickness_nm = 1.0", "more than a fifth"),
        ("sense_v = 0.4", "sense_v = 0.4\nbuilt_in_ev = -3.2", "below the electron's energy"),
        ("supply_fraction = 1.0", "exposed_share = 0.7", r"lets p01 \+ p10 exceed 1"),
        ("supply_fraction = 1.0", "exposed_share = 1.5", "between 0 and 1"),
        ("material", "fixed = true\nmaterial", "every layer is fixed"),
        ("supply_v = 0.9", "supply_v = 0.9\nvoltage = 1", "voltage: unknown key"),
        ("supply_v = 0.9", "supply_v = ", "not valid TOML"),
        ("supply_v = 0.9", "", "supply_v: missing"),
    ],
)
def test_bad_files_give_one_clear_line(tmp_path: Path, old: str, new: str, part: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(USER.replace(old, new, 1))
    with pytest.raises(InputError, match=part) as caught:
        load_device(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="gain-cell"):
        load_device("gian-cell")
    with pytest.raises(InputError, match="has no cell 'x': its cells are gain"):
        load_device("gain-cell").cell("x")


def test_rates_that_sum_above_one_are_refused() -> None:
    with pytest.raises(InputError, match=r"plane 1: p01 \+ p10 = 1\.1 exceeds 1"):
        DeviceFlipRates(np.array([0.1, 0.6]), np.array([0.1, 0.5]), ("a", "a"))


def test_inline_device_is_the_closed_form() -> None:
    device = inline_device(barrier_ev=3.3, energy_ev=0.2, mass=0.4, thickness_nm=1.2, voltage_v=0.7, retention_s=1e-9)
    states = device.describe()["cells"]["cell"]["derived"]["states"]
    assert states["0"]["transmission"] == pytest.approx(1.13e-6, rel=5e-3)
    assert states["1"]["transmission"] == pytest.approx(2.53e-6, rel=5e-3)
    for barrier, thickness in ((0.2, 1.0), (3.1, 0.0)):
        with pytest.raises(InputError):
            inline_device(barrier_ev=barrier, energy_ev=0.2, mass=0.4, thickness_nm=thickness)
