"""Closed forms against quadrature, check values, limits and turning points."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import constants
from scipy.integrate import fixed_quad, quad

from qtaml_onnx.errors import InputError
from qtaml_onnx.physics.barriers import (
    barrier_exponent,
    mean_sqrt,
    profile_exponent,
    rectangular_exponent,
    transmission,
    trapezoidal_exponent,
    triangular_exponent,
)
from qtaml_onnx.physics.stack import Layer, Stack, _image
from qtaml_onnx.physics.thermal import log_thermal_transmission
from qtaml_onnx.physics.units import BOLTZMANN_EV_PER_K, IMAGE_EV_NM, WKB_PER_NM

STACKS = {
    "one layer": Stack((Layer(2.0, 3.1, 0.4),)),
    "thick": Stack((Layer(8.0, 3.1, 0.42),)),
    "SiO2 and high-k": Stack((Layer(0.6, 3.1, 0.4, 3.9), Layer(2.0, 1.5, 0.2, 22.0))),
    "image force": Stack((Layer(2.0, 3.1, 0.4),), image_permittivity=2.13),
    "stack with image force": Stack((Layer(0.8, 3.1, 0.4, 3.9), Layer(2.0, 1.5, 0.2, 22.0)), image_permittivity=3.0),
}
VOLTAGES = (-0.5, 0.0, 0.5, 2.5, 5.0)


@pytest.mark.parametrize(
    ("thickness", "voltage", "expected"),
    [
        (1.0, 0, 1.11e-5),
        (1.2, 0, 1.13e-6),
        (1.5, 0, 3.69e-8),
        (2.0, 0, 1.23e-10),
        (1.0, 0.7, 2.17e-5),
        (1.2, 0.7, 2.53e-6),
        (1.5, 0.7, 1.01e-7),
        (2.0, 0.7, 4.70e-10),
    ],
)
def test_check_values_of_an_oxide_of_3_1_ev(thickness: float, voltage: float, expected: float) -> None:
    assert float(f"{float(transmission(3.1, 0.4, thickness, voltage)):.2e}") == expected


def test_wkb_constant_is_the_textbook_one() -> None:
    exact = 2 * math.sqrt(2 * constants.m_e * constants.e) / constants.hbar * 1e-9
    assert pytest.approx(exact, rel=1e-14) == WKB_PER_NM
    assert pytest.approx(10.2463, rel=1e-5) == WKB_PER_NM


barriers = st.floats(0.3, 5.0)
masses = st.floats(0.05, 1.5)
thicknesses = st.floats(0.3, 12.0)


@settings(deadline=None)
@given(barriers, masses, thicknesses, st.floats(0.05, 0.95))
def test_trapezoid_equals_the_stable_form(barrier: float, mass: float, thickness: float, part: float) -> None:
    printed = float(trapezoidal_exponent(barrier, mass, thickness, part * barrier))
    assert float(barrier_exponent(barrier, mass, thickness, part * barrier)) == pytest.approx(printed, rel=1e-12)


@settings(deadline=None)
@given(barriers, masses, thicknesses, st.floats(1.0, 6.0))
def test_triangle_equals_the_stable_form(barrier: float, mass: float, thickness: float, times: float) -> None:
    printed = float(triangular_exponent(barrier, mass, times * barrier / thickness))
    assert float(barrier_exponent(barrier, mass, thickness, times * barrier)) == pytest.approx(printed, rel=1e-12)


@settings(deadline=None)
@given(barriers, masses, thicknesses)
def test_trapezoid_without_voltage_is_the_rectangle(barrier: float, mass: float, thickness: float) -> None:
    flat = float(rectangular_exponent(barrier, mass, thickness))
    assert float(barrier_exponent(barrier, mass, thickness, 0.0)) == pytest.approx(flat, rel=1e-14)
    # S(V) = S(0)·(1 − V/4φ + O(V²)): the limit is reached with its slope, even where the printed formula is 0/0
    voltage = 1e-9 * barrier
    tilted = float(barrier_exponent(barrier, mass, thickness, voltage))
    assert tilted / flat - 1 == pytest.approx(-0.25e-9, rel=1e-5)


@settings(deadline=None)
@given(barriers, masses, thicknesses)
def test_exponent_is_continuous_where_the_voltage_meets_the_barrier(
    barrier: float, mass: float, thickness: float
) -> None:
    below, above = (float(barrier_exponent(barrier, mass, thickness, barrier * (1 + d))) for d in (-1e-12, 1e-12))
    assert below == pytest.approx(above, rel=1e-11)
    assert above == pytest.approx(float(triangular_exponent(barrier, mass, barrier / thickness)), rel=1e-11)


@settings(max_examples=25, deadline=None)
@given(barriers, masses, thicknesses, st.floats(0.0, 6.0))
def test_closed_forms_equal_quadrature(barrier: float, mass: float, thickness: float, voltage: float) -> None:
    numeric = profile_exponent(lambda x: barrier - voltage * x / thickness, thickness, mass)
    assert float(barrier_exponent(barrier, mass, thickness, voltage)) == pytest.approx(numeric, rel=1e-9)


@settings(deadline=None)
@given(st.floats(-2, 4), st.floats(-2, 4))
def test_mean_sqrt_is_symmetric_and_between_its_ends(start: float, end: float) -> None:
    value = float(mean_sqrt(start, end))
    assert value == float(mean_sqrt(end, start))
    assert value <= math.sqrt(max(start, end, 0.0)) * (1 + 1e-12)
    assert value >= math.sqrt(max(min(start, end), 0.0)) * (1 - 1e-12)


def test_parabolic_barrier_has_its_textbook_exponent() -> None:
    # the integral of sqrt(φ − E) between the turning points is half the area of an ellipse
    height, thickness, mass, energy = 2.0, 3.0, 0.5, 0.7
    half_width = thickness / 2 * math.sqrt(1 - energy / height)
    expected = WKB_PER_NM * math.sqrt(mass) * math.pi / 2 * half_width * math.sqrt(height - energy)
    numeric = profile_exponent(lambda x: height * (1 - (2 * x / thickness - 1) ** 2), thickness, mass, energy_ev=energy)
    assert numeric == pytest.approx(expected, rel=1e-10)


def test_image_force_is_the_sum_over_images() -> None:
    # Simmons 1963: φ_image = −q²/(8πε)·[1/2x + Σ_n (nd/((nd)² − x²) − 1/nd)]
    for u in (0.02, 0.2, 0.5, 0.77, 0.99):
        n = np.arange(1, 200_001)
        series = 1 / (2 * u) + float(np.sum(n / (n**2 - u**2) - 1 / n)) + u**2 / (2 * 200_000.5**2)
        assert float(_image(np.array(u))) == pytest.approx(-2 * series, rel=1e-11)
    # half way between two electrodes: −q²·ln2/(4πε·d)
    assert float(_image(np.array(0.5))) * IMAGE_EV_NM == pytest.approx(-4 * math.log(2) * IMAGE_EV_NM, rel=1e-13)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "stack with image force" else n for n in STACKS]
)
def test_stack_exponent_equals_quadrature_of_its_profile_at_every_energy(name: str) -> None:
    stack = STACKS[name]
    thickness = sum(layer.thickness_nm for layer in stack.layers)
    breaks = np.cumsum([layer.thickness_nm for layer in stack.layers])

    def mass(x: float) -> float:
        return stack.layers[min(int(np.searchsorted(breaks, x)), len(breaks) - 1)].mass

    checked = 0
    for voltage in (0.0, 0.5, 2.5):
        # among them energies at which a turning point lies within a layer, at an interface or just below the top
        for energy in (0.0, 1.0, 1.45, 2.2, 2.59, 2.9, 3.0999):
            exact = profile_exponent(
                lambda x, v=voltage: stack.potential_ev(x, v), thickness, mass, energy_ev=energy, breaks_nm=breaks[:-1]
            )
            fast = float(stack.exponent(np.array([energy]), 1.0, voltage)[0])
            assert fast == pytest.approx(exact, rel=1e-8, abs=0.0)
            checked += exact > 0
    assert checked >= 9


def test_reversed_stack_at_the_opposite_voltage_has_the_same_exponent() -> None:
    stack = STACKS["SiO2 and high-k"]
    # from the far side, with energies counted from the same band edge, the same profile runs the other way
    forward = stack.exponent(np.array([0.3]), 1.0, 0.8)
    backward = stack.seen_from_far_side().exponent(np.array([0.3]), 1.0, -0.8)
    shifted = stack.seen_from_far_side(-0.8).exponent(np.array([0.3]), 1.0, -0.8)
    assert float(shifted[0]) == pytest.approx(float(forward[0]), rel=1e-13)
    assert float(backward[0]) > float(forward[0])


def test_field_divides_as_the_permittivities() -> None:
    stack = STACKS["SiO2 and high-k"]
    (start_1, end_1), (start_2, end_2) = stack.edges(1.0, 1.0)
    field_1, field_2 = (start_1 - end_1) / 0.6, (start_2 - end_2) / 2.0
    assert float(field_1 / field_2) == pytest.approx(22.0 / 3.9, rel=1e-12)
    assert float((start_1 - end_1) + (start_2 - end_2)) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "voltage"),
    [(name, voltage) for name in STACKS for voltage in VOLTAGES if "image" not in name or voltage == 0.5],
)
def test_thermal_average_equals_adaptive_quadrature(name: str, voltage: float) -> None:
    stack = STACKS[name]
    for temperature in (300.0,) if "image" in name else (77.0, 300.0, 600.0):
        thermal = BOLTZMANN_EV_PER_K * temperature
        log_mean = float(log_thermal_transmission(stack, temperature, 1.0, voltage))

        def share(energy: NDArray[np.float64], kt: float = thermal, mean: float = log_mean) -> NDArray[np.float64]:
            exponent = stack.exponent(np.atleast_1d(energy), 1.0, voltage)
            return np.exp(-exponent - energy / kt - mean) / kt

        top = max(float(energy) for energy in stack.kinks(1.0, voltage))
        steps = [thermal * k for k in (1, 3, 7, 15, 30, 60)]
        inner = [float(k) for k in stack.kinks(1.0, voltage)] + steps + [top - step for step in steps]
        stops = sorted({0.0, top, *(stop for stop in inner if 0 < stop < top)})
        total = math.exp(-top / thermal - log_mean)
        for low, high in pairwise(stops):
            if stack.image_permittivity is None:
                total += quad(lambda e, f=share: f(e)[0], low, high, epsabs=1e-14, epsrel=1e-10, limit=200)[0]
            else:  # smooth but costly: a fixed rule of far more points than the one under test
                total += fixed_quad(share, low, high, n=120)[0]
        assert total == pytest.approx(1.0, rel=1e-8)


def test_thermal_average_limits() -> None:
    stack = STACKS["one layer"]
    cold = float(log_thermal_transmission(stack, 1.0, 1.0, 0.5))
    edge = float(log_thermal_transmission(stack, 0.0, 1.0, 0.5))
    slope = 1 / (BOLTZMANN_EV_PER_K * 1.0)
    rise = -float(np.diff(stack.exponent(np.array([0.0, 1e-6]), 1.0, 0.5))[0]) / 1e-6
    assert cold == pytest.approx(edge - math.log1p(-rise / slope), abs=1e-7)  # ⟨T⟩ → T(0)/(1 − kT·d lnT/dE)
    high = 1200.0  # so thick that only electrons above the barrier pass: thermionic emission
    thick = Stack((Layer(60.0, 1.0, 0.5),))
    over = float(log_thermal_transmission(thick, high, 1.0, 0.0)) + 1.0 / (BOLTZMANN_EV_PER_K * high)
    assert 0.0 < over < 0.6


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: transmission(3.1, 0.4, 0.0), "thickness must be above 0"),
        (lambda: transmission(3.1, 0.4, -1.0), "thickness must be above 0"),
        (lambda: transmission(-0.1, 0.4, 1.0), "stand above the electron's energy"),
        (lambda: transmission(3.1, 0.0, 1.0), "tunnelling mass must be above 0"),
        (lambda: transmission(3.1, 0.4, 1.0, math.inf), "finite"),
        (lambda: trapezoidal_exponent(3.1, 0.4, 1.0, 3.2), "below the barrier"),
        (lambda: triangular_exponent(3.1, 0.4, -1.0), "field must be above 0"),
        (lambda: profile_exponent(lambda x: 1.0, -1.0, 0.4), "thickness must be above 0"),
        (lambda: Layer(1.0, 0.0, 0.4), "layer barrier must be a number above 0"),
        (lambda: Layer(1.0, 1.0, 0.4, permittivity=math.nan), "permittivity must be a number above 0"),
    ],
)
def test_bad_input_is_one_clear_line(call, part: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError) as caught:
        call()
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
