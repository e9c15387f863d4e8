"""WKB transmission through one barrier: closed forms, and any profile by adaptive quadrature.

The transmission is T = exp(−S) with S = 2∫ sqrt(2m(φ(x) − E))/ħ dx over the region where φ(x) > E
(Wentzel–Kramers–Brillouin; Simmons 1963 for the trapezoid, Fowler & Nordheim 1928 for the triangle). Functions
return S, which never underflows; `transmission` returns exp(−S). All arguments broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import quad
from scipy.optimize import brentq

from qtaml_onnx.errors import InputError
from qtaml_onnx.physics.units import WKB_PER_NM

__all__ = [
    "barrier_exponent",
    "mean_sqrt",
    "profile_exponent",
    "rectangular_exponent",
    "transmission",
    "trapezoidal_exponent",
    "triangular_exponent",
]

Floats = NDArray[np.float64]


def _checked(name: str, values: ArrayLike, unit: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    bad = ~(np.isfinite(array) & (array > 0))
    if np.any(bad):
        raise InputError(f"{name} must be above 0 {unit}, got {float(array[bad].flat[0]):g}")
    return array


def _height(barrier_ev: ArrayLike) -> Floats:
    height = np.asarray(barrier_ev, dtype=np.float64)
    bad = ~(np.isfinite(height) & (height > 0))
    if np.any(bad):
        raise InputError(
            f"the barrier must stand above the electron's energy: it stands {float(height[bad].flat[0]):g} eV above"
        )
    return height


def rectangular_exponent(barrier_ev: ArrayLike, mass: ArrayLike, thickness_nm: ArrayLike) -> Floats:
    """Exponent S = 2d·sqrt(2mφ)/ħ of a barrier without field.

    Args:
        barrier_ev: Height φ − E above the electron's energy, eV.
        mass: Tunnelling mass, in electron masses.
        thickness_nm: Thickness d, nm.

    Raises:
        InputError: a height, mass or thickness that is not above 0.
    """
    height, mass_ = _height(barrier_ev), _checked("tunnelling mass", mass, "electron masses")
    return np.asarray(WKB_PER_NM * _checked("thickness", thickness_nm, "nm") * np.sqrt(mass_ * height))


def trapezoidal_exponent(
    barrier_ev: ArrayLike, mass: ArrayLike, thickness_nm: ArrayLike, voltage_v: ArrayLike
) -> Floats:
    """Exponent S = 4·sqrt(2m)/(3ħqF)·[φ^1.5 − (φ − qV)^1.5], F = V/d: direct tunnelling, 0 < qV < φ.

    This is the formula as it is printed in textbooks. It loses digits as V → 0; `barrier_exponent` does not.

    Raises:
        InputError: an argument that is not above 0, or a voltage that does not stay below the barrier.
    """
    height, mass_ = _height(barrier_ev), _checked("tunnelling mass", mass, "electron masses")
    voltage = _checked("voltage", voltage_v, "V")
    if np.any(voltage >= height):
        raise InputError("direct tunnelling needs a voltage below the barrier; above it the barrier is a triangle")
    field = voltage / _checked("thickness", thickness_nm, "nm")
    return np.asarray(2 / 3 * WKB_PER_NM * np.sqrt(mass_) / field * (height**1.5 - (height - voltage) ** 1.5))


def triangular_exponent(barrier_ev: ArrayLike, mass: ArrayLike, field_v_per_nm: ArrayLike) -> Floats:
    """Exponent S = 4·sqrt(2m)/(3ħqF)·φ^1.5: Fowler–Nordheim tunnelling, qV ≥ φ. The field is in V/nm.

    Raises:
        InputError: an argument that is not above 0.
    """
    height, mass_ = _height(barrier_ev), _checked("tunnelling mass", mass, "electron masses")
    return np.asarray(2 / 3 * WKB_PER_NM * np.sqrt(mass_) * height**1.5 / _checked("field", field_v_per_nm, "V/nm"))


def mean_sqrt(start: ArrayLike, end: ArrayLike) -> Floats:
    """Mean of sqrt(max(y, 0)) for y running linearly from `start` to `end`, eV^0.5, without cancellation.

    It is 2/3·(a^1.5 − b^1.5)/(a − b) for a, b ≥ 0. Dividing numerator and denominator by sqrt(a) − sqrt(b) gives
    2/3·(a + sqrt(ab) + b)/(sqrt(a) + sqrt(b)), which is exact at a = b too.
    """
    high = np.maximum(start, end)
    low = np.minimum(start, end)
    root_high, root_low = np.sqrt(np.maximum(high, 0.0)), np.sqrt(np.maximum(low, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        both = 2 / 3 * (root_high**2 + root_high * root_low + root_low**2) / (root_high + root_low)
        one = 2 / 3 * root_high**3 / (high - low)
    return np.where(high <= 0, 0.0, np.where(low >= 0, both, one))


def barrier_exponent(
    barrier_ev: ArrayLike, mass: ArrayLike, thickness_nm: ArrayLike, voltage_v: ArrayLike = 0.0
) -> Floats:
    """Exponent S of a barrier whose top falls linearly by the voltage: rectangle, trapezoid or triangle as it comes.

    Args:
        barrier_ev: Height φ − E at the side that the electron comes from, eV.
        mass: Tunnelling mass, in electron masses.
        thickness_nm: Thickness, nm.
        voltage_v: Voltage across the barrier, V; positive lowers the far side.

    Raises:
        InputError: a height, mass or thickness that is not above 0, or a voltage that is not finite.
    """
    height, mass_ = _height(barrier_ev), _checked("tunnelling mass", mass, "electron masses")
    voltage = np.asarray(voltage_v, dtype=np.float64)
    if not np.all(np.isfinite(voltage)):
        raise InputError("the voltage across the barrier must be a finite number of volts")
    thickness = _checked("thickness", thickness_nm, "nm")
    return np.asarray(WKB_PER_NM * thickness * np.sqrt(mass_) * mean_sqrt(height, height - voltage))


def transmission(barrier_ev: ArrayLike, mass: ArrayLike, thickness_nm: ArrayLike, voltage_v: ArrayLike = 0.0) -> Floats:
    """Transmission T = exp(−S) of the barrier of `barrier_exponent`, dimensionless, in (0, 1).

    Raises:
        InputError: as `barrier_exponent`.
    """
    return np.asarray(np.exp(-barrier_exponent(barrier_ev, mass, thickness_nm, voltage_v)))


def profile_exponent(
    profile_ev: Callable[[float], float],
    thickness_nm: float,
    mass: float | Callable[[float], float],
    *,
    energy_ev: float = 0.0,
    breaks_nm: Sequence[float] = (),
) -> float:
    """Exponent S of any barrier profile by adaptive quadrature (scipy.integrate.quad), about 1e-10 relative.

    Turning points, where φ(x) = E, are found on a grid of 512 cells a piece and refined by root finding; between
    two of them x = a + (b − a)·sin²(t) takes the square-root singularities out. Two turning points within one grid
    cell are not seen.

    Args:
        profile_ev: Barrier energy at x, 0 ≤ x ≤ thickness, eV. Called strictly inside the barrier only.
        thickness_nm: Thickness, nm.
        mass: Tunnelling mass in electron masses, a number or a function of x.
        energy_ev: Energy E of the electron, eV.
        breaks_nm: Places where the profile or the mass jumps.

    Raises:
        InputError: a thickness or mass that is not above 0.
    """
    _checked("thickness", thickness_nm, "nm")
    mass_at = mass if callable(mass) else lambda _x: float(_checked("tunnelling mass", mass, "electron masses"))

    def above(x: float) -> float:
        return profile_ev(x) - energy_ev

    def piece(start: float, end: float) -> float:
        def integrand(t: float) -> float:
            x = start + (end - start) * math.sin(t) ** 2
            return math.sqrt(max(mass_at(x) * above(x), 0.0)) * (end - start) * math.sin(2 * t)

        return float(quad(integrand, 0.0, math.pi / 2, epsabs=0.0, epsrel=1e-11, limit=200)[0])

    edges = sorted({0.0, *breaks_nm, thickness_nm})
    total = 0.0
    for left, right in pairwise(edges):
        inset = (right - left) * 1e-12  # one-sided limits at jumps, and no call on an image-force pole
        grid = np.linspace(left + inset, right - inset, 513)  # signs only; integrals run edge to edge
        signs = np.array([above(float(x)) > 0 for x in grid])
        crossings = np.flatnonzero(signs[:-1] != signs[1:])
        turning = [float(brentq(above, grid[i], grid[i + 1], xtol=1e-15, rtol=1e-14)) for i in crossings]
        stops = [left, *turning, right]
        for start, end in pairwise(stops):
            if above((start + end) / 2) > 0:
                total += piece(start, end)
    return WKB_PER_NM * total
