"""From rates to probabilities: exact enumeration, limits, and the average over thickness against quadrature."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.linalg import expm
from scipy.stats import binom

from qtaml_onnx.errors import InputError
from qtaml_onnx.physics.cell import cell_flip_rates, log_escape_rates, state_cases
from qtaml_onnx.physics.retention import exchange_probability, threshold_probability
from qtaml_onnx.physics.spec import CellSpec
from qtaml_onnx.physics.units import format_duration, parse_duration

OXIDE = {"material": "SiO2", "thickness_nm": 2.4, "barrier_ev": 3.1, "mass": 0.4, "permittivity": 3.9}
EXCHANGE = CellSpec.model_validate(
    {
        "model": "exchange",
        "attempt_hz": 1e13,
        "sigma_thickness_nm": 0.06,
        "layers": [{**OXIDE, "thickness_nm": 1.2}, {**OXIDE, "thickness_nm": 0.8, "fixed": True}],
        "one": {"supply_fraction": 0.7},
    }
)
THRESHOLD = CellSpec.model_validate(
    {
        "model": "threshold",
        "attempt_hz": 1e13,
        "sigma_thickness_nm": 0.08,
        "layers": [OXIDE],
        "one": {"supply_fraction": 0.9},
        "zero": {"line_fraction": 0.5},
        "capacitance_af": 200.0,
        "sense_v": 0.3,
    }
)


@settings(deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(1e-4, 1e2))
@example(2.00001, 331.25, 1.0)  # rounds to a sum just above 1
def test_exchange_solves_its_master_equation(gain: float, loss: float, time: float) -> None:
    evolution = expm(np.array([[-gain, gain], [loss, -loss]]) * time)
    p01, p10 = exchange_probability(gain, loss, time)
    assert float(p01) == pytest.approx(evolution[0, 1], rel=1e-9, abs=1e-15)
    assert float(p10) == pytest.approx(evolution[1, 0], rel=1e-9, abs=1e-15)
    assert float(p01 + p10) <= 1.0 + 2.0**-52  # both are rounded


def test_exchange_limits() -> None:
    p01, p10 = exchange_probability(3e-20, 5e-20, 1.0)  # p → 0: p = Γt, no digit lost
    assert (float(p01), float(p10)) == (pytest.approx(3e-20, rel=1e-14), pytest.approx(5e-20, rel=1e-14))
    p01, p10 = exchange_probability(3.0, 5.0, 1e9)  # t → ∞: the stored bit is forgotten
    assert (float(p01), float(p10)) == (pytest.approx(3 / 8, rel=1e-14), pytest.approx(5 / 8, rel=1e-14))
    p01, p10 = exchange_probability(0.0, 0.0, 1.0)
    assert (float(p01), float(p10)) == (0.0, 0.0)


@settings(deadline=None)
@given(st.integers(1, 400), st.data(), st.floats(1e-6, 0.999))
def test_threshold_is_the_binomial_tail(electrons: int, data: st.DataObject, fraction: float) -> None:
    critical = data.draw(st.integers(1, electrons))
    tail = float(binom.sf(critical - 1, electrons, fraction))
    assert float(threshold_probability(electrons, critical, fraction)) == pytest.approx(tail, rel=1e-8, abs=1e-290)


def test_threshold_against_draws_of_electrons() -> None:
    rng = np.random.default_rng(3)
    lost = rng.binomial(300, 0.25, size=1_000_000)
    exact = float(threshold_probability(300, 85, 0.25))
    assert abs(np.mean(lost >= 85) - exact) < 5 * math.sqrt(exact * (1 - exact) / 1e6)


def test_threshold_edges_and_continuity() -> None:
    assert float(threshold_probability(100, 0, 1e-9)) == 1.0  # beyond the sense level already
    assert float(threshold_probability(100, 101.5, 0.999)) == 0.0  # too few electrons to cross it
    assert float(threshold_probability(100, 1, 1e-12)) == pytest.approx(1e-10, rel=1e-9)
    values = threshold_probability(100.0, np.linspace(20, 21, 11), 0.2)
    assert np.all(np.diff(values) < 0)


def _by_quadrature(cell: CellSpec, which: int, supply: float, temperature: float, time: float, sigma: float) -> float:
    case = state_cases(cell, supply)[which]

    def probability(z: float) -> float:
        rates = [
            float(r)
            for r in log_escape_rates(
                cell, supply, temperature, max(cell.thickness_nm + sigma * z, 0.1 * cell.thickness_nm)
            )
        ]
        if cell.model == "exchange":
            return float(exchange_probability(math.exp(rates[0]), math.exp(rates[1]), time)[which])
        lost = -math.expm1(-math.exp(rates[which]) * time)
        return 0.5 * float(threshold_probability(case.electrons, case.critical, lost))

    thinnest = -0.9 * cell.thickness_nm / sigma  # p(z) has a kink there
    stops = sorted({*np.linspace(-12.0, 6.0, 25), max(thinnest, -12.0)})
    return sum(
        quad(
            lambda z: probability(z) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi),
            low,
            high,
            epsabs=0.0,
            epsrel=1e-9,
        )[0]
        for low, high in pairwise(stops)
    )


@pytest.mark.parametrize(
    ("cell", "time", "sigma"),
    [
        (EXCHANGE, 1e-9, 0.06),  # p small: Gauss–Hermite
        pytest.param(EXCHANGE, 1e-5, 0.06, marks=pytest.mark.slow),  # saturating
        (EXCHANGE, 1e-5, 0.23),  # so wide that the panels take over
        (THRESHOLD, 1e-3, 0.08),  # hundreds of electrons: a step in the thin tail
        pytest.param(THRESHOLD, 1e-1, 0.08, marks=pytest.mark.slow),
    ],
)
def test_average_over_thickness_equals_quadrature(cell: CellSpec, time: float, sigma: float) -> None:
    fast = cell_flip_rates(cell, supply_v=0.8, temperature_k=300.0, retention_s=time, sigma_thickness_nm=sigma)
    for which in (0, 1):
        exact = _by_quadrature(cell, which, 0.8, 300.0, time, sigma)
        assert float(fast[which]) == pytest.approx(exact, rel=1e-8)


def test_average_over_thickness_against_a_million_cells() -> None:
    rng = np.random.default_rng(11)
    thickness = THRESHOLD.thickness_nm + 0.08 * rng.standard_normal(1_000_000)
    grid = np.linspace(thickness.min(), thickness.max(), 2001)
    alone = cell_flip_rates(
        THRESHOLD, supply_v=0.8, temperature_k=300.0, retention_s=5e-3, thickness_nm=grid, sigma_thickness_nm=0.0
    )
    mean = cell_flip_rates(THRESHOLD, supply_v=0.8, temperature_k=300.0, retention_s=5e-3)
    for which in (0, 1):
        cells = np.interp(thickness, grid, alone[which])
        error = float(np.std(cells)) / 1e3
        assert abs(float(np.mean(cells)) - float(mean[which])) < 5 * error
        assert float(mean[which]) > 100 * float(np.interp(THRESHOLD.thickness_nm, grid, alone[which]))


def test_small_variation_is_the_unvaried_cell_and_the_linear_case_is_log_normal() -> None:
    kept = {"supply_v": 0.8, "temperature_k": 300.0, "retention_s": 1e-12}
    still = cell_flip_rates(EXCHANGE, **kept, sigma_thickness_nm=0.0)
    hair = cell_flip_rates(EXCHANGE, **kept, sigma_thickness_nm=1e-7)
    assert float(hair[1]) == pytest.approx(float(still[1]), rel=1e-9)
    # p = Γt and ln Γ nearly linear in thickness: mean = p(d0)·exp((slope·σ)²/2)
    varied = cell_flip_rates(EXCHANGE, **kept, sigma_thickness_nm=0.03)
    rates = [float(log_escape_rates(EXCHANGE, 0.8, 300.0, d)[1]) for d in (1.19, 1.21)]
    slope = (rates[1] - rates[0]) / 0.02
    assert float(varied[1] / still[1]) == pytest.approx(math.exp((slope * 0.03) ** 2 / 2), rel=1e-3)


def test_one_array_call_equals_many_calls() -> None:
    times = np.geomspace(1e-6, 1e2, 7)
    for cell in (EXCHANGE, THRESHOLD):
        together = cell_flip_rates(cell, supply_v=0.8, temperature_k=300.0, retention_s=times)
        for index, time in enumerate(times):
            single = cell_flip_rates(cell, supply_v=0.8, temperature_k=300.0, retention_s=time)
            for which in (0, 1):
                assert float(together[which][index]) == pytest.approx(float(single[which]), rel=1e-10, abs=1e-300)


def test_asymmetry_follows_from_the_fields_alone() -> None:
    """Same oxide, same charge, mirrored states: p01 = p10; another field for one of them: p01 ≠ p10."""
    base = {"model": "exchange", "attempt_hz": 1e13, "layers": [OXIDE]}
    even = CellSpec.model_validate({**base, "one": {"supply_fraction": 0.5}, "zero": {"line_fraction": 0.5}})
    p01, p10 = cell_flip_rates(even, supply_v=1.0, temperature_k=300.0, retention_s=1e-3)
    assert float(p01) == pytest.approx(float(p10), rel=1e-13)
    uneven = CellSpec.model_validate({**base, "one": {"supply_fraction": 0.7}, "zero": {"line_fraction": 0.3}})
    p01, p10 = cell_flip_rates(uneven, supply_v=1.0, temperature_k=None, retention_s=1e-3)
    ratio = math.exp(10.2463 * 2.4 * math.sqrt(0.4) * (_mean_root(3.1, 0.3) - _mean_root(3.1, 0.7)))
    assert float(p10 / p01) == pytest.approx(ratio, rel=1e-4)


def _mean_root(barrier: float, drop: float) -> float:
    return 2 / 3 * (barrier**1.5 - (barrier - drop) ** 1.5) / drop


def test_stored_electrons_make_the_voltage_that_drives_them_out() -> None:
    cell = CellSpec.model_validate(
        {**THRESHOLD.model_dump(), "zero": {"electrons": 300}, "one": {"electrons": -300}, "sense_v": 0.0}
    )
    zero, one = state_cases(cell, 0.8)
    volts = 300 * 1.602176634e-19 / 200e-18
    assert float(zero.drop_v) == pytest.approx(volts, rel=1e-12)
    assert float(one.drop_v) == pytest.approx(volts, rel=1e-12)
    assert float(zero.electrons) == pytest.approx(300.0, rel=1e-12)
    assert float(zero.critical) == pytest.approx(300.0, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1h", 3600.0),
        ("30d", 2592000.0),
        ("1y", 31557600.0),
        ("250ms", 0.25),
        ("1e-6s", 1e-6),
        ("5us", 5e-6),
        ("10 ns", 1e-8),
        ("2min", 120.0),
        ("7", 7.0),
        (0.5, 0.5),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-15)


@settings(deadline=None)
@given(st.floats(1e-9, 1e11))
def test_a_formatted_duration_reads_back(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=5e-4)


@pytest.mark.parametrize("text", ["5x", "", "h", "1.2.3s", "-1h", "0s", "nan", "1h30", -1.0, math.inf])
def test_bad_durations_are_refused(text: str | float) -> None:
    with pytest.raises(InputError, match="time"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"temperature_k": 0.0}, "temperature must be above 0 K"),
        ({"temperature_k": -5.0}, "temperature must be above 0 K"),
        ({"retention_s": 0.0}, "retention time must be above 0 s"),
        ({"thickness_nm": -1.0}, "thickness must be above 0 nm"),
        ({"supply_v": -0.1}, "supply voltage must not be negative"),
        ({"sigma_thickness_nm": -0.1}, "deviation must not be negative"),
        ({"sigma_thickness_nm": 1.0}, "more than a fifth"),
    ],
)
def test_conditions_outside_the_model_are_refused(change: dict[str, float], part: str) -> None:
    with pytest.raises(InputError, match=part):
        cell_flip_rates(THRESHOLD, **{"supply_v": 0.8, "temperature_k": 300.0, "retention_s": 1.0, **change})
