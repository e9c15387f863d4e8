"""Current densities: published coefficients, the leakage-against-thickness slope, closed forms against the integral."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qtaml_onnx.errors import InputError
from qtaml_onnx.physics.barriers import triangular_exponent
from qtaml_onnx.physics.current import (
    fowler_nordheim_coefficients,
    fowler_nordheim_current,
    simmons_current,
    tunnel_current,
)
from qtaml_onnx.physics.stack import Layer, Stack


def test_fowler_nordheim_coefficients_are_the_published_ones() -> None:
    a, b = fowler_nordheim_coefficients(1.0, 1.0)
    assert a == pytest.approx(1.54e-6, rel=1e-3)  # A/V²·eV
    assert b == pytest.approx(6.83e7, rel=1e-3)  # V/cm·eV^−1.5
    a, b = fowler_nordheim_coefficients(3.1, 0.42)  # SiO2: B of 230 to 260 MV/cm is what measurements give
    assert a == pytest.approx(1.54e-6 / (0.42 * 3.1), rel=1e-3)
    assert b == pytest.approx(241.6e6, rel=1e-3)


def test_b_over_f_is_the_exponent_of_the_triangle() -> None:
    _, b = fowler_nordheim_coefficients(3.1, 0.42)
    assert b * 1e-7 / 0.9 == pytest.approx(float(triangular_exponent(3.1, 0.42, 0.9)), rel=1e-13)


@pytest.mark.parametrize("field", [0.5, 0.7, 0.9])
def test_fowler_nordheim_is_the_low_field_limit_of_the_integral(field: float) -> None:
    stack = Stack((Layer(9.0, 3.1, 0.42),))
    ratio = tunnel_current(stack, 9.0 * field, 3.0) / float(fowler_nordheim_current(field, 3.1, 0.42))
    # the closed form takes ln T as linear in energy; what its curvature is worth falls with F/B (B = 24.16 V/nm)
    assert 1 - 2 * field / 24.16 < ratio < 1.0
    closer = tunnel_current(stack, 9.0 * 0.4, 3.0) / float(fowler_nordheim_current(0.4, 3.1, 0.42))
    assert abs(closer - 1) < abs(ratio - 1)


def test_temperature_correction_is_that_of_murphy_and_good() -> None:
    # Murphy & Good 1956: J(T)/J(0) = πckT/sin(πckT), c = d lnT/dE = 2·sqrt(2mφ)/(ħqF)
    stack, field = Stack((Layer(9.0, 3.1, 0.42),)), 1.0
    slope = 1.5 * float(triangular_exponent(3.1, 0.42, field)) / 3.1
    x = math.pi * slope * 8.617333e-5 * 200.0
    ratio = tunnel_current(stack, 9.0 * field, 200.0) / tunnel_current(stack, 9.0 * field, 3.0)
    assert ratio == pytest.approx(x / math.sin(x), rel=0.01)


def test_direct_tunnelling_falls_one_decade_each_0_2_nm() -> None:
    thickness = np.arange(1.0, 2.61, 0.2)
    exact = np.log10([tunnel_current(Stack((Layer(float(d), 3.1, 0.4),)), 1.0, 300.0) for d in thickness])
    closed = np.log10(simmons_current(1.0, thickness, 3.1, 0.4))
    for decades in (-np.diff(exact), -np.diff(closed)):
        assert np.all((decades > 0.85) & (decades < 1.15))


def test_simmons_has_the_voltage_dependence_of_the_integral() -> None:
    # Simmons counts electrons with the tunnelling mass; the integral counts them with the free mass
    stack = Stack((Layer(2.0, 3.1, 0.4),))
    for voltage in (0.05, 0.3, 1.0, 2.0):
        ratio = tunnel_current(stack, voltage, 30.0) / float(simmons_current(voltage, 2.0, 3.1, 0.4))
        assert ratio * 0.4 == pytest.approx(1.2, rel=0.2)


def test_no_voltage_no_current_and_ohmic_start() -> None:
    stack = Stack((Layer(1.5, 3.1, 0.4),))
    assert tunnel_current(stack, 0.0, 300.0) == 0.0
    assert float(simmons_current(0.0, 1.5, 3.1, 0.4)) == 0.0
    assert tunnel_current(stack, 0.002, 300.0) == pytest.approx(2 * tunnel_current(stack, 0.001, 300.0), rel=1e-3)


def test_bad_input() -> None:
    stack = Stack((Layer(1.5, 3.1, 0.4),))
    for call in (
        lambda: fowler_nordheim_coefficients(0.0, 0.4),
        lambda: fowler_nordheim_current(0.0, 3.1, 0.4),
        lambda: simmons_current(3.2, 1.0, 3.1, 0.4),
        lambda: simmons_current(1.0, 0.0, 3.1, 0.4),
        lambda: tunnel_current(stack, -1.0, 300.0),
        lambda: tunnel_current(stack, 1.0, 0.0),
    ):
        with pytest.raises(InputError):
            call()
