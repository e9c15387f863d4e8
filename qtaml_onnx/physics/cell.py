"""From a cell to its flip rates: the stored charge makes the field, the field makes the barrier.

A state puts its storage node at a potential V = a·V_supply − q·n/C. Between node and line stands the dielectric. The
state that reads 0 sits low and fails when electrons leave the node; the state that reads 1 sits high and fails when
electrons enter it from the line. Each sees the barrier from another side, tilted by another voltage: p01 ≠ p10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.physics.retention import exchange_probability, normal_average, threshold_probability
from qtaml_onnx.physics.spec import CellSpec, StateSpec
from qtaml_onnx.physics.stack import Stack
from qtaml_onnx.physics.thermal import log_thermal_transmission
from qtaml_onnx.physics.units import ELEMENTARY_CHARGE_C

__all__ = ["StateCase", "cell_flip_rates", "log_escape_rates", "state_cases"]

Floats = NDArray[np.float64]
_THINNEST = 0.1  # relative to nominal; the thickness average counts thinner cells as this thin


@dataclass(frozen=True)
class StateCase:
    """One state of a cell under a supply voltage.

    Attributes:
        stack: The dielectric as the moving electrons meet it.
        drop_v: Voltage over it that helps them, V, built-in voltage included.
        electrons: Electrons that can move until node and line are level, N.
        critical: Electrons that must move for a misread, N_crit; 1 in an exchange cell.
    """

    stack: Stack
    drop_v: Floats
    electrons: Floats
    critical: Floats


def _node_v(cell: CellSpec, state: StateSpec, supply_v: Floats) -> Floats:
    charge = 0.0
    if cell.capacitance_af is not None:
        charge = state.electrons.value * ELEMENTARY_CHARGE_C / (cell.capacitance_af.value * 1e-18)
    return state.supply_fraction.value * supply_v - charge


def state_cases(cell: CellSpec, supply_v: ArrayLike) -> tuple[StateCase, StateCase]:
    """The (0, 1) states of a cell: which way electrons move, under which voltage, and how many count.

    Args:
        cell: The cell.
        supply_v: Supply voltage, V, any shape; the arrays returned have it.
    """
    supply = np.asarray(supply_v, dtype=np.float64)
    built_in = cell.built_in_ev.value
    cases = []
    for state, sign in ((cell.zero, 1.0), (cell.one, -1.0)):
        node, line = _node_v(cell, state, supply), state.line_fraction.value * supply
        across = np.maximum(sign * (line - node), 0.0)
        electrons, critical = np.ones_like(supply), np.ones_like(supply)
        if cell.model == "threshold" and cell.capacitance_af is not None and cell.sense_v is not None:
            per_volt = cell.capacitance_af.value * 1e-18 / ELEMENTARY_CHARGE_C
            electrons = per_volt * across
            critical = per_volt * sign * (cell.sense_v.value - node)
        stack = cell.stack()
        if sign > 0:
            cases.append(StateCase(stack, across - built_in, electrons, critical))
        else:
            cases.append(StateCase(stack.seen_from_far_side(built_in), across + built_in, electrons, critical))
    return cases[0], cases[1]


def log_escape_rates(
    cell: CellSpec, supply_v: ArrayLike, temperature_k: ArrayLike | None, thickness_nm: ArrayLike | None = None
) -> tuple[Floats, Floats]:
    """ln of the rate Γ = ν·⟨T⟩, in 1/s, at which one electron ends the (0, 1) state.

    Args:
        cell: The cell.
        supply_v: Supply voltage, V; all broadcast.
        temperature_k: Temperature, K; None for electrons at the band edge, without thermal average.
        thickness_nm: Thickness of the layers that are not fixed, nm; None: as in the file.
    """
    thickness = cell.thickness_nm if thickness_nm is None else thickness_nm
    scale = np.asarray(thickness, dtype=np.float64) / cell.thickness_nm
    temperature = 0.0 if temperature_k is None else temperature_k
    zero, one = (
        np.log(cell.attempt_hz.value) + log_thermal_transmission(case.stack, temperature, scale, case.drop_v)
        for case in state_cases(cell, supply_v)
    )
    return zero, one


def cell_flip_rates(
    cell: CellSpec,
    *,
    supply_v: ArrayLike,
    temperature_k: ArrayLike | None,
    retention_s: ArrayLike,
    thickness_nm: ArrayLike | None = None,
    sigma_thickness_nm: ArrayLike | None = None,
) -> tuple[Floats, Floats]:
    """Flip probabilities (p01, p10) of a bit in this cell between write and read; all arguments broadcast.

    The rate of an electron is kept at its value just after the write: the field that drives it only falls as the
    charge goes, so the probabilities err on the safe side.

    Args:
        cell: The cell.
        supply_v: Supply voltage, V.
        temperature_k: Temperature, K; None for electrons at the band edge, without thermal average.
        retention_s: Time between write and read, s.
        thickness_nm: Mean thickness of the layers that are not fixed, nm; None: as in the file.
        sigma_thickness_nm: Standard deviation of it from cell to cell, nm; None: as in the file.

    Raises:
        InputError: a thickness, time or temperature that is not above 0, a negative supply, or a standard deviation
            that is negative or more than a fifth of the thickness.
    """
    arrays = [
        np.asarray(value, dtype=np.float64)
        for value in (
            supply_v,
            0.0 if temperature_k is None else temperature_k,
            retention_s,
            cell.thickness_nm if thickness_nm is None else thickness_nm,
            cell.sigma_thickness_nm.value if sigma_thickness_nm is None else sigma_thickness_nm,
        )
    ]
    _check(*arrays, thermal=temperature_k is not None)
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    supply, temperature, time, thickness, sigma = (np.broadcast_to(array, shape).ravel() for array in arrays)
    zero, one = state_cases(cell, supply)
    scale, relative = thickness / cell.thickness_nm, sigma / thickness

    def log_rates(case: StateCase) -> Callable[[Floats], Floats]:
        def of_z(z: Floats) -> Floats:
            thick = scale[:, None] * (1 + relative[:, None] * z)
            transmission = log_thermal_transmission(case.stack, temperature[:, None], thick, case.drop_v[:, None])
            return np.asarray(np.log(cell.attempt_hz.value) + transmission)[..., None]

        return of_z

    def average(rates: Callable[[Floats], Floats], probability: Callable[[Floats], Floats], case: StateCase) -> Floats:
        if not np.any(sigma):
            return probability(rates(np.zeros((supply.size, 1))))[:, 0]
        with np.errstate(divide="ignore"):
            lowest = np.where(relative > 0, -(1 - _THINNEST) / relative, -np.inf)
        median = np.clip((case.critical - 1 / 3) / (case.electrons + 1 / 3), 1e-12, 0.999)
        step = np.log(-np.log1p(-median)) - np.log(time)
        return normal_average(rates, probability, lowest, step, case.critical)

    if cell.model == "exchange":
        rates_zero, rates_one = log_rates(zero), log_rates(one)

        def exchange(rates: Floats) -> Floats:
            rate_01, rate_10 = np.exp(rates[..., 0]), np.exp(rates[..., 1])
            return np.stack(exchange_probability(rate_01, rate_10, time[:, None]), axis=-1)

        flips = average(lambda z: np.concatenate([rates_zero(z), rates_one(z)], axis=-1), exchange, zero)
        return flips[:, 0].reshape(shape), flips[:, 1].reshape(shape)

    def misread(case: StateCase, share: float) -> Floats:
        def probability(rates: Floats) -> Floats:
            lost = -np.expm1(-np.exp(rates) * time[:, None, None])
            return threshold_probability(case.electrons[:, None, None], case.critical[:, None, None], lost)

        mean = average(log_rates(case), probability, case).reshape(shape)
        return share * np.minimum(mean, 1.0)

    return misread(zero, cell.zero.exposed_share.value), misread(one, cell.one.exposed_share.value)


def _check(
    supply: Floats, temperature: Floats, time: Floats, thickness: Floats, sigma: Floats, *, thermal: bool
) -> None:
    above = [("retention time", "s", time), ("thickness", "nm", thickness)]
    if thermal:
        above.append(("temperature", "K", temperature))
    for name, unit, values in above:
        bad = ~(np.isfinite(values) & (values > 0))
        if np.any(bad):
            raise InputError(f"{name} must be above 0 {unit}, got {float(values[bad].flat[0]):g}")
    for name, unit, values in (("supply voltage", "V", supply), ("thickness's standard deviation", "nm", sigma)):
        bad = ~(np.isfinite(values) & (values >= 0))
        if np.any(bad):
            raise InputError(f"{name} must not be negative, got {float(values[bad].flat[0]):g} {unit}")
    if np.any(5 * sigma > thickness):
        raise InputError(
            "the thickness's standard deviation is more than a fifth of the thickness: "
            "a normal distribution would put cells at no thickness"
        )
