"""From an escape rate to the probability that a bit reads wrong after a time.

Two models of a cell: a two-state system that exchanges between its states, and a node that holds N electrons and is
misread once N_crit of them are gone. Cell-to-cell variation of the thickness averages either over a normal
distribution.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, ndtr

__all__ = ["exchange_probability", "normal_average", "threshold_probability"]

Floats = NDArray[np.float64]

_HERMITE_NODES, _HERMITE_WEIGHTS = hermegauss(128)
_HERMITE_WEIGHTS = _HERMITE_WEIGHTS / _HERMITE_WEIGHTS.sum()
_HERMITE_SLOPE = 1.5  # |d ln Γ/dz| up to which 128 Hermite nodes resolve a saturating probability to 1e-9
_LEGENDRE_NODES, _LEGENDRE_WEIGHTS = np.polynomial.legendre.leggauss(10)
_FIT = np.cos(np.pi * (np.arange(12) + 0.5) / 12)  # Chebyshev nodes of the fit of ln Γ against thickness
_TO_COEFFICIENTS = np.linalg.inv(np.polynomial.chebyshev.chebvander(_FIT, len(_FIT) - 1)).T
_LOWEST, _HIGHEST = -38.0, 9.0  # in standard deviations: beyond -38 the normal density underflows
_KEPT_RANGE = 40.0  # natural-log range below the integrand's peak that is integrated
_STEPS = np.array([1.5, 3.0, 6.0, 12.0, 24.0, 48.0, 96.0])


def exchange_probability(rate_01: ArrayLike, rate_10: ArrayLike, time_s: ArrayLike) -> tuple[Floats, Floats]:
    """Flip probabilities of a two-state system: p10 = Γ10/(Γ01 + Γ10)·(1 − exp(−(Γ01 + Γ10)·t)), p01 mirrored.

    Args:
        rate_01: Γ01, 1/s; all broadcast.
        rate_10: Γ10, 1/s.
        time_s: Time between write and read, s.

    Returns:
        (p01, p10); their sum is at most 1, up to rounding.
    """
    gain, loss, time = (np.asarray(value, dtype=np.float64) for value in (rate_01, rate_10, time_s))
    total = gain + loss
    moved = -np.expm1(-total * time)
    share = np.divide(gain, total, out=np.zeros_like(moved), where=np.broadcast_to(total > 0, moved.shape))
    other = np.divide(loss, total, out=np.zeros_like(moved), where=np.broadcast_to(total > 0, moved.shape))
    return np.asarray(share * moved), np.asarray(other * moved)


def threshold_probability(electrons: ArrayLike, critical: ArrayLike, lost_fraction: ArrayLike) -> Floats:
    """P[Binomial(N, f) ≥ N_crit], written as the regularised incomplete beta function I_f(N_crit, N − N_crit + 1).

    That form continues the binomial tail to electron numbers that are not whole, so that a voltage or a capacitance
    can be varied smoothly.

    Args:
        electrons: N, electrons that can move; all broadcast.
        critical: N_crit, electrons that must move for a misread; ≤ 0 reads wrong at once, ≥ N + 1 never does.
        lost_fraction: f = 1 − exp(−Γt), the probability that one electron has moved.
    """
    number, crossing, fraction = np.broadcast_arrays(
        np.asarray(electrons, dtype=np.float64),
        np.asarray(critical, dtype=np.float64),
        np.asarray(lost_fraction, dtype=np.float64),
    )
    able = (crossing > 0) & (crossing < number + 1)
    tail = betainc(np.where(able, crossing, 1.0), np.where(able, number - crossing + 1, 1.0), fraction)
    return np.asarray(np.where(able, tail, np.where(crossing <= 0, 1.0, 0.0)))


def normal_average(
    log_rates: Callable[[Floats], Floats],
    probability: Callable[[Floats], Floats],
    lowest_z: Floats,
    step_log_rate: Floats,
    electrons: Floats,
) -> Floats:
    """Mean of a flip probability over z ~ Normal(0, 1), z the thickness in standard deviations from nominal.

    The logarithm of the rate is smooth, nearly linear in thickness, and costly; the probability is cheap but, for a
    cell of many electrons, a step. So ln Γ is fitted once, by a Chebyshev polynomial over the z that matter, and the
    probability integrated on the fit: by Gauss–Hermite where it is smooth on the scale of z, else by Gauss–Legendre
    panels that shrink geometrically towards the step (Gauss–Hermite nodes would step over it).

    Args:
        log_rates: z `(B, M)` → ln Γ `(B, M, R)` of the R rates that the probability needs; falling in z.
        probability: ln Γ `(B, M, R)` → the P probabilities wanted, `(B, M, P)`.
        lowest_z: Thinnest cell, `(B,)`, negative; thinner ones count as this one.
        step_log_rate: ln Γ of the first rate at which the probability steps, `(B,)`.
        electrons: Electrons that must move, `(B,)`: the step's width in ln Γ is about 1/sqrt of it.

    Returns:
        Mean probabilities `(B, P)`, relative error 1e-8 or better.
    """
    low = np.maximum(lowest_z, _LOWEST)[:, None]
    low, high = _relevant(log_rates, probability, low, np.full_like(low, _HIGHEST))
    middle, half = (high + low) / 2, (high - low) / 2
    fit = np.einsum("bmr,mk->bkr", log_rates(middle + half * _FIT), _TO_COEFFICIENTS)

    def fitted(z: Floats) -> Floats:
        return _clenshaw(fit, np.clip((z - middle) / half, -1.0, 1.0))

    ends = fitted(np.concatenate([low, high], axis=1))[..., 0]
    slope = (ends[:, 0] - ends[:, 1]) / (high - low)[:, 0]
    if np.all((electrons <= 1) & (np.abs(slope) <= _HERMITE_SLOPE)):
        values = probability(fitted(np.broadcast_to(_HERMITE_NODES, (len(low), len(_HERMITE_NODES)))))
        return np.asarray(np.einsum("bmp,m->bp", values, _HERMITE_WEIGHTS))
    left, right = low, high
    for _ in range(45):
        centre = (left + right) / 2
        above = fitted(centre)[..., 0] > step_log_rate[:, None]
        left, right = np.where(above, centre, left), np.where(above, right, centre)
    width = 1 / np.maximum(np.abs(slope) * np.sqrt(np.maximum(electrons, 1.0)), 0.1)
    graded = width[:, None] * _STEPS
    even = low + (high - low) * np.linspace(0.0, 1.0, 9)
    stops = np.sort(np.clip(np.concatenate([even, left, left + graded, left - graded], axis=1), low, high), axis=1)
    span = np.diff(stops, axis=1)[..., None] / 2
    z = ((stops[:, :-1, None] + span) + span * _LEGENDRE_NODES).reshape(len(low), -1)
    weight = (span * _LEGENDRE_WEIGHTS).reshape(z.shape) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    thinnest = ndtr(low) * probability(fitted(low))[:, 0]  # thinner cells count as the thinnest
    return np.asarray(thinnest + np.einsum("bm,bmp->bp", weight, probability(fitted(z))))


def _relevant(
    log_rates: Callable[[Floats], Floats], probability: Callable[[Floats], Floats], low: Floats, high: Floats
) -> tuple[Floats, Floats]:
    """The z between which density times probability stays within e^−40 of its peak, from a coarse straight fit."""
    coarse, fine = 5, 81
    knots = low + (high - low) * np.linspace(0.0, 1.0, coarse)
    at_knots = log_rates(knots)
    place = np.linspace(0.0, coarse - 1.0, fine)
    index = np.minimum(place.astype(np.int64), coarse - 2)
    part = (place - index)[:, None]
    between = at_knots[:, index] * (1 - part) + at_knots[:, index + 1] * part
    z = low + (high - low) * np.linspace(0.0, 1.0, fine)
    with np.errstate(divide="ignore"):
        height = np.log(probability(between)) - z[..., None] ** 2 / 2
    kept = np.any(height >= np.max(height, axis=1, keepdims=True) - _KEPT_RANGE, axis=-1)
    margin = np.maximum((high - low) / (fine - 1), 1.0)
    first, last = kept.argmax(axis=1), fine - 1 - kept[:, ::-1].argmax(axis=1)
    rows = np.arange(len(low))
    return np.maximum(z[rows, first, None] - margin, low), np.minimum(z[rows, last, None] + margin, high)


def _clenshaw(coefficients: Floats, t: Floats) -> Floats:
    """Chebyshev sums: coefficients `(B, K, R)` at t `(B, M)` → `(B, M, R)`."""
    twice = 2 * t[..., None]
    after: Floats = np.zeros((*t.shape, coefficients.shape[-1]))
    last = after
    for order in range(coefficients.shape[1] - 1, 0, -1):
        after, last = coefficients[:, None, order] + twice * after - last, after
    return np.asarray(coefficients[:, None, 0] + t[..., None] * after - last)
