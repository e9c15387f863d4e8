"""Tunnelling current density through a dielectric: closed forms, and the integral that they approximate.

Fields in V/nm, current densities in A/cm².
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import constants
from scipy.integrate import quad

from qtaml_onnx.errors import InputError
from qtaml_onnx.physics.stack import Stack
from qtaml_onnx.physics.units import BOLTZMANN_EV_PER_K, WKB_PER_NM, positive

__all__ = [
    "fowler_nordheim_coefficients",
    "fowler_nordheim_current",
    "simmons_current",
    "tunnel_current",
]

Floats = NDArray[np.float64]
_Q, _H, _HBAR, _ME = constants.elementary_charge, constants.h, constants.hbar, constants.electron_mass


def fowler_nordheim_coefficients(barrier_ev: float, mass: float) -> tuple[float, float]:
    """A and B of J = A·F²·exp(−B/F) (Fowler & Nordheim 1928; for SiO2 Lenzlinger & Snow 1969).

    A = q³/(8πhφ)·(m_e/m) and B = 4·sqrt(2m)·φ^1.5/(3ħq).

    Args:
        barrier_ev: Barrier φ above the emitter's Fermi level, eV.
        mass: Tunnelling mass m, in electron masses.

    Returns:
        (A in A/V², B in V/cm): 1.54e-6/(mφ) and 6.83e7·sqrt(m)·φ^1.5.

    Raises:
        InputError: a barrier or mass that is not above 0.
    """
    height, mass_ = positive("barrier", barrier_ev, "eV"), positive("tunnelling mass", mass, "electron masses")
    a = _Q**2 / (8 * math.pi * _H * height) / mass_
    b = 2 / 3 * WKB_PER_NM * math.sqrt(mass_) * height**1.5
    return a, b * 1e7  # V/nm to V/cm


def fowler_nordheim_current(field_v_per_nm: ArrayLike, barrier_ev: float, mass: float) -> Floats:
    """J = A·F²·exp(−B/F) at 0 K for a triangular barrier (voltage across the oxide above φ), A/cm².

    Raises:
        InputError: a field, barrier or mass that is not above 0.
    """
    a, b = fowler_nordheim_coefficients(barrier_ev, mass)
    field = np.asarray(field_v_per_nm, dtype=np.float64) * 1e7
    if not np.all(np.isfinite(field) & (field > 0)):
        raise InputError("the field must be above 0 V/nm")
    return np.asarray(a * field**2 * np.exp(-b / field))


def simmons_current(voltage_v: ArrayLike, thickness_nm: ArrayLike, barrier_ev: float, mass: float) -> Floats:
    """Direct tunnelling through a trapezoid at 0 K, 0 ≤ qV < φ, A/cm² (Simmons 1963, mean-barrier form).

    J = q²/(2πh·d²)·[(φ−V/2)·exp(−S(φ−V/2)) − (φ+V/2)·exp(−S(φ+V/2))], S(φ) = 2d·sqrt(2mφ)/ħ.

    Raises:
        InputError: a thickness, barrier or mass that is not above 0, or a voltage outside 0 … φ.
    """
    height = positive("barrier", barrier_ev, "eV")
    unit = WKB_PER_NM * math.sqrt(positive("tunnelling mass", mass, "electron masses"))
    voltage, thickness = np.asarray(voltage_v, dtype=np.float64), np.asarray(thickness_nm, dtype=np.float64)
    if not np.all((voltage >= 0) & (voltage < height)):
        raise InputError(f"direct tunnelling needs a voltage from 0 to below the barrier of {height:g} V")
    if not np.all(np.isfinite(thickness) & (thickness > 0)):
        raise InputError("the thickness must be above 0 nm")
    low, high = height - voltage / 2, height + voltage / 2
    flow = low * np.exp(-unit * thickness * np.sqrt(low)) - high * np.exp(-unit * thickness * np.sqrt(high))
    return np.asarray(_Q**2 / (2 * math.pi * _H) / (thickness * 1e-9) ** 2 * flow * 1e-4)


def tunnel_current(stack: Stack, voltage_v: float, temperature_k: float, *, fermi_depth_ev: float = 5.0) -> float:
    """Current density of any stack between two metals: the integral of transmission times supply, A/cm².

    J = q·m_e/(2π²ħ³)·∫ T(E)·kT·ln[(1 + e^(−E/kT))/(1 + e^(−(E+qV)/kT))] dE, E counted from the emitter's Fermi level
    (Tsu & Esaki 1973 wrote it for superlattices). T is the WKB transmission, 1 above the barrier.

    Args:
        stack: The dielectric, barriers above the emitter's Fermi level.
        voltage_v: Voltage, V, not negative.
        temperature_k: Temperature, K.
        fermi_depth_ev: Depth of the emitter's band below its Fermi level, eV; 5 is typical of a metal.

    Raises:
        InputError: a negative voltage, or a temperature or depth that is not above 0.
    """
    thermal = BOLTZMANN_EV_PER_K * positive("temperature", temperature_k, "K")
    depth = positive("depth of the Fermi level", fermi_depth_ev, "eV")
    if not (math.isfinite(voltage_v) and voltage_v >= 0):
        raise InputError(f"the voltage must not be negative, got {voltage_v:g} V")

    def integrand(energy: float) -> float:
        exponent = float(stack.exponent(np.array([energy]), 1.0, voltage_v)[0])
        supply = np.logaddexp(0.0, -energy / thermal) - np.logaddexp(0.0, -(energy + voltage_v) / thermal)
        return math.exp(-exponent) * float(supply)

    kinks = [float(energy) for energy in stack.kinks(1.0, voltage_v)]
    end = max(*kinks, 0.0) + 40 * thermal
    inner = [*kinks, 0.0, -voltage_v, 6 * thermal, -6 * thermal, 20 * thermal, -20 * thermal]
    stops = sorted({-depth, end, *(stop for stop in inner if -depth < stop < end)})
    total = sum(quad(integrand, low, high, epsabs=0.0, epsrel=1e-9, limit=200)[0] for low, high in pairwise(stops))
    prefactor = _Q * _ME / (2 * math.pi**2 * _HBAR**3) * (_Q * thermal) * _Q  # A/m² for dE in eV
    return float(prefactor * total * 1e-4)
