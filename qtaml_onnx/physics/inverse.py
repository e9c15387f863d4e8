"""The inverse problem: the thickness, voltage, retention time or temperature at which a cell has a given flip rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from qtaml_onnx.errors import InputError
from qtaml_onnx.physics.device import Device
from qtaml_onnx.physics.units import positive

__all__ = ["DIRECTIONS", "VARIABLES", "Direction", "Solution", "Variable", "solve"]

Floats = NDArray[np.float64]
Variable = Literal["thickness", "voltage", "retention", "temperature"]
Direction = Literal["worst", "01", "10"]
VARIABLES: tuple[Variable, ...] = ("thickness", "voltage", "retention", "temperature")
DIRECTIONS: tuple[Direction, ...] = ("worst", "01", "10")

_UNITS = {"thickness": "nm", "voltage": "V", "retention": "s", "temperature": "K"}
_GRID = 97
_TINY = 1e-300
_LEAST_SENSITIVITY = 1e-7  # |d ln p / d ln x| below which rounding of p hides x


@dataclass(frozen=True)
class Solution:
    """Where a cell meets a flip rate.

    Attributes:
        variable: What was solved for.
        value: Its value, in `unit`.
        unit: nm, V, s or K.
        rate: Flip rate of the cell there.
        low: Lower end of the range on which the rate is monotone and in which the solution is the only one.
        high: Its upper end.
        rises: Whether the rate rises with the variable there.
        whole_range: Whether that is the whole range asked for; if not, the rate turns around at one of its ends.
    """

    variable: Variable
    value: float
    unit: str
    rate: float
    low: float
    high: float
    rises: bool
    whole_range: bool


def _own_value(device: Device, variable: Variable, cell: str | None) -> float:
    if variable == "thickness":
        return device.cell(cell).thickness_nm
    if variable == "voltage":
        return device.supply_v.value or 0.5
    if variable == "retention":
        return device.retention.value
    return device.temperature_k.value if device.temperature_k else 300.0


def _default_range(device: Device, variable: Variable, cell: str | None, own: float) -> tuple[float, float]:
    if variable == "thickness":
        return max(own / 4, 5.0001 * device.cell(cell).sigma_thickness_nm.value), own * 4
    if variable == "voltage":
        return own / 10, own * 4
    if variable == "retention":
        return own * 1e-9, own * 1e9
    return 100.0, 600.0


def solve(
    device: Device,
    variable: Variable,
    rate: float,
    *,
    cell: str | None = None,
    direction: Direction = "worst",
    low: float | None = None,
    high: float | None = None,
) -> Solution:
    """Inverts the flip rate of one cell in one variable, to relative 1e-9 or as far as the rate's own digits reach.

    The rate is sampled over the range to see whether it is monotone. If it turns around, only the branch that holds
    the device's own value is searched, and the answer says so.

    Args:
        device: The device; its other conditions stay as they are (see `Device.at`).
        variable: What to solve for. `voltage` is the supply, `thickness` that of the layers that are not fixed.
        rate: Wanted flip probability, in (0, 1).
        cell: The cell; None: that of the planes that have no other.
        direction: `01`, `10`, or the larger of both.
        low: Lower end of the range; None: thickness/4, supply/10, retention·1e-9 or 100 K.
        high: Upper end; None: thickness·4, supply·4, retention·1e9 or 600 K.

    Raises:
        InputError: a rate outside (0, 1), an empty range, a rate that does not depend on the variable, or one that is
            not reached in the range; the line says what the range gives.
    """
    if not 0 < rate < 1:
        raise InputError(f"the wanted flip rate must lie between 0 and 1, got {rate:g}")
    own = _own_value(device, variable, cell)
    usual_low, usual_high = _default_range(device, variable, cell, own)
    start = positive(f"lower end of the {variable}'s range", usual_low if low is None else low, _UNITS[variable])
    end = positive(f"upper end of the {variable}'s range", usual_high if high is None else high, _UNITS[variable])
    if not start < end:
        raise InputError(
            f"the {variable}'s range from {start:g} to {end:g} {_UNITS[variable]} is empty; give --low below --high"
        )

    def log_rate(log_value: ArrayLike) -> Floats:
        value = np.exp(np.asarray(log_value, dtype=np.float64))
        both = device.cell_rates(
            cell,
            thickness_nm=value if variable == "thickness" else None,
            supply_v=value if variable == "voltage" else None,
            retention_s=value if variable == "retention" else None,
            temperature_k=value if variable == "temperature" else None,
        )
        chosen = np.maximum(*both) if direction == "worst" else both[DIRECTIONS.index(direction) - 1]
        return np.asarray(np.log(np.maximum(chosen, _TINY)))

    grid = np.linspace(math.log(start), math.log(end), _GRID)
    sampled = log_rate(grid)
    first, last = _branch(sampled, int(np.argmin(np.abs(grid - math.log(own)))))
    whole = first == 0 and last == _GRID - 1
    unit = _UNITS[variable]
    where = f"{variable} {math.exp(grid[first]):.4g} to {math.exp(grid[last]):.4g} {unit}"
    ends = (math.exp(sampled[first]), math.exp(sampled[last]))
    if abs(sampled[last] - sampled[first]) < 1e-9:
        raise InputError(f"no solution: the flip rate is {ends[0]:.4g} whatever the {variable} ({where})")
    target = math.log(rate)
    branch = sampled[first : last + 1]
    if not branch.min() <= target <= branch.max():
        turn = "" if whole else "; beyond, the rate turns around"
        raise InputError(
            f"no solution for a flip rate of {rate:g} in this range: {where} gives {ends[0]:.4g} to {ends[1]:.4g}"
            f"{turn}; give another rate, or other ends by --low and --high"
        )
    rises = bool(sampled[last] > sampled[first])
    cut = int(np.searchsorted(branch if rises else -branch, target if rises else -target)) + first
    left, right = grid[max(cut - 1, first)], grid[max(cut, first + 1)]
    root = float(brentq(lambda x: float(log_rate(x)) - target, left, right, xtol=1e-14, rtol=1e-14))
    slope = float(log_rate(root + 1e-4) - log_rate(root - 1e-4)) / 2e-4
    if abs(slope) < _LEAST_SENSITIVITY:
        raise InputError(f"no definite solution: at a flip rate of {rate:g} it no longer depends on the {variable}")
    return Solution(
        variable=variable,
        value=math.exp(root),
        unit=unit,
        rate=math.exp(float(log_rate(root))),
        low=math.exp(grid[first]),
        high=math.exp(grid[last]),
        rises=rises,
        whole_range=whole,
    )


def _branch(sampled: Floats, own: int) -> tuple[int, int]:
    """First and last index of the monotone stretch of samples around `own`; level parts belong to either."""
    change = np.diff(sampled)
    signs = np.where(np.abs(change) < 1e-10, 0, np.sign(change)).astype(int)
    order = np.argsort(np.abs(np.arange(len(signs)) + 0.5 - own), kind="stable")
    trend = next((int(signs[index]) for index in order if signs[index]), 0)
    against = np.flatnonzero(signs == -trend) if trend else np.array([], dtype=int)
    before, after = against[against < own], against[against >= own]
    first = int(before.max()) + 1 if before.size else 0
    last = int(after.min()) if after.size else len(sampled) - 1
    return first, max(last, first)
