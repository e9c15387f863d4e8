"""Stacked dielectrics under a voltage, with image-force lowering: the WKB exponent of many cases at once.

The voltage divides between the layers as their electrical thickness t/ε does (the displacement εF is the same in all),
so each layer's band edge is a straight line and its share of the exponent has a closed form. With image-force lowering
(Simmons 1963, the sum over all images of two electrodes) the band edge bends and the exponent is a Gauss–Legendre sum
between turning points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma

from qtaml_onnx.physics.barriers import mean_sqrt
from qtaml_onnx.physics.units import IMAGE_EV_NM, WKB_PER_NM, positive

__all__ = ["Layer", "Stack"]

Floats = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
# x = a + (b − a)·sin²(θ) turns the square roots at both turning points into smooth functions of θ.
_THETA = (_NODES + 1) * np.pi / 4
_POSITION = np.sin(_THETA) ** 2
_JACOBIAN = _WEIGHTS * np.pi / 4 * np.sin(2 * _THETA)
_NEWTON_STEPS = 24
_BISECTIONS = 52


def _smooth_image_part() -> Floats:
    """Polynomial, in s = (u − ½)², of ψ(1+u) + ψ(2−u) + 2γ for 0 ≤ u ≤ 1: the image sum less its two poles."""

    def target(s: Floats) -> Floats:
        u = 0.5 + np.sqrt(s)
        return np.asarray(digamma(1 + u) + digamma(2 - u) + 2 * np.euler_gamma, dtype=np.float64)

    series = chebyshev.Chebyshev.interpolate(target, 11, domain=[0.0, 0.25])
    return np.asarray(series.convert(kind=np.polynomial.Polynomial, domain=[-1, 1]).coef)


_SMOOTH = _smooth_image_part()
_SMOOTH_SLOPE: Floats = np.asarray(np.polynomial.polynomial.polyder(_SMOOTH), dtype=np.float64)


def _horner(coefficients: Floats, s: Floats) -> Floats:
    total = np.full_like(s, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total *= s
        total += coefficient
    return total


def _image(u: Floats) -> Floats:
    """Image energy of an electron at u = x/d between two electrodes, in units of q²/(16π·ε·d); −∞ at both."""
    with np.errstate(divide="ignore"):
        return np.asarray(_horner(_SMOOTH, (u - 0.5) ** 2) - 1 / u - 1 / (1 - u))


def _image_slope(u: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.asarray(2 * (u - 0.5) * _horner(_SMOOTH_SLOPE, (u - 0.5) ** 2) + 1 / u**2 - 1 / (1 - u) ** 2)


@dataclass(frozen=True)
class Layer:
    """One dielectric.

    Attributes:
        thickness_nm: Thickness, nm.
        barrier_ev: Conduction-band edge above the emitting electrode's band edge without field, eV.
        mass: Tunnelling mass, in electron masses.
        permittivity: Relative static permittivity; it decides the layer's share of the voltage.
        fixed: Whether the layer keeps its thickness when the stack's thickness is varied.

    Raises:
        InputError: a number that is not above 0.
    """

    thickness_nm: float
    barrier_ev: float
    mass: float
    permittivity: float = 3.9
    fixed: bool = False

    def __post_init__(self) -> None:
        """Refuses numbers that are not above 0."""
        positive("layer thickness", self.thickness_nm, "nm")
        positive("layer barrier", self.barrier_ev, "eV (it must stand above the electron's energy)")
        positive("tunnelling mass", self.mass, "electron masses")
        positive("relative permittivity", self.permittivity)


@dataclass(frozen=True)
class Stack:
    """Layers in the order in which the electron crosses them.

    `scale` below is the thickness of the layers that are not fixed, relative to their nominal one, and `drop_v` the
    voltage across the whole stack (positive lowers the far side). Both broadcast to the batch shape `(...)`.

    Attributes:
        layers: At least one layer.
        image_permittivity: Relative optical permittivity of the image force, one for the whole stack; None: no image
            force.
    """

    layers: tuple[Layer, ...]
    image_permittivity: float | None = None

    @property
    def thickness_nm(self) -> float:
        """Thickness that varies: the sum over the layers that are not fixed, nm."""
        return sum(layer.thickness_nm for layer in self.layers if not layer.fixed)

    def seen_from_far_side(self, offset_ev: float = 0.0) -> Stack:
        """The same stack for an electron from the other electrode, whose barriers are `offset_ev` higher."""
        layers = tuple(replace(layer, barrier_ev=layer.barrier_ev + offset_ev) for layer in reversed(self.layers))
        return replace(self, layers=layers)

    def _thicknesses(self, scale: ArrayLike) -> list[Floats]:
        scale_ = np.asarray(scale, dtype=np.float64)
        return [layer.thickness_nm * (np.ones_like(scale_) if layer.fixed else scale_) for layer in self.layers]

    def edges(self, scale: ArrayLike, drop_v: ArrayLike) -> list[tuple[Floats, Floats]]:
        """Band edge (start, end) of each layer under the voltage, eV, without image force; arrays `(...)`."""
        thicknesses = self._thicknesses(scale)
        electrical = [t / layer.permittivity for t, layer in zip(thicknesses, self.layers, strict=True)]
        per_unit = np.asarray(drop_v, dtype=np.float64) / sum(electrical)
        fallen = np.zeros(np.broadcast_shapes(np.shape(scale), np.shape(drop_v)))
        result = []
        for layer, share in zip(self.layers, electrical, strict=True):
            start = layer.barrier_ev - fallen
            fallen = fallen + per_unit * share
            result.append((start, layer.barrier_ev - fallen))
        return result

    def kinks(self, scale: ArrayLike, drop_v: ArrayLike) -> list[Floats]:
        """Energies at which the exponent is not smooth: band edges at interfaces and tops; the largest is the top."""
        edges = self.edges(scale, drop_v)
        if self.image_permittivity is None:
            return [energy for pair in edges for energy in pair]
        pieces = _image_pieces(self, scale, edges)
        return [
            energy for piece in pieces for energy in (piece.energy(piece.start), piece.top, piece.energy(piece.end))
        ]

    def potential_ev(self, x_nm: float, drop_v: float = 0.0, scale: float = 1.0) -> float:
        """Barrier energy at x, eV: the profile that the exponent integrates, for plots and checks."""
        thicknesses = [float(t) for t in self._thicknesses(scale)]
        left = 0.0
        for thickness, (start, end) in zip(thicknesses, self.edges(scale, drop_v), strict=True):
            if x_nm <= left + thickness or thickness is thicknesses[-1]:
                energy = float(start + (end - start) * (x_nm - left) / thickness)
                break
            left += thickness
        if self.image_permittivity is None:
            return energy
        total = sum(thicknesses)
        return energy + IMAGE_EV_NM / self.image_permittivity / total * float(_image(np.asarray(x_nm / total)))

    def exponent(self, energy_ev: ArrayLike, scale: ArrayLike = 1.0, drop_v: ArrayLike = 0.0) -> Floats:
        """WKB exponent S = 2∫ sqrt(2m(φ − E))/ħ dx; T = exp(−S).

        Args:
            energy_ev: Electron energies above the emitter's band edge, eV; shape `(..., E)`.
            scale: Thickness relative to nominal, `(...)`.
            drop_v: Voltage across the stack, V, `(...)`.

        Returns:
            Dimensionless exponents, `(..., E)`; 0 where the electron passes above the barrier.
        """
        energy = np.asarray(energy_ev, dtype=np.float64)
        edges = self.edges(scale, drop_v)
        if self.image_permittivity is not None:
            return sum((piece.exponent(energy) for piece in _image_pieces(self, scale, edges)), np.zeros(()))
        total: Floats = np.zeros(())
        for layer, thickness, (start, end) in zip(self.layers, self._thicknesses(scale), edges, strict=True):
            mean = mean_sqrt(start[..., None] - energy, end[..., None] - energy)
            total = total + WKB_PER_NM * np.sqrt(layer.mass) * thickness[..., None] * mean
        return total


@dataclass(frozen=True)
class _ImagePiece:
    """One layer with image force, in u = x/d: φ(u) = base − slope·u + image·g(u), concave, so it has one hump."""

    base: Floats
    slope: Floats
    image: Floats
    start: Floats
    end: Floats
    factor: Floats  # WKB_PER_NM·sqrt(m)·d
    peak: Floats  # where φ is largest within the layer
    top: Floats

    def energy(self, u: Floats) -> Floats:
        return self.base - self.slope * u + self.image * _image(u)

    def exponent(self, energy: Floats) -> Floats:
        base, slope, image, start, end, factor, peak, top = (
            array[..., None]
            for array in (self.base, self.slope, self.image, self.start, self.end, self.factor, self.peak, self.top)
        )
        live = top > energy
        # The image pole alone reaches `energy` outside the true turning point: Newton on a concave function then
        # walks towards it from outside and never steps over it.
        room = np.where(live, np.maximum(base + np.maximum(-slope, 0.0) - energy, 1e-300), 1.0)
        left = self._turning_point(energy, np.maximum(start, image / (room + 2 * image)), live, peak)
        right = self._turning_point(energy, np.minimum(end, 1 - image / (room + 2 * image)), live, peak)
        width = np.where(live, right - left, 0.0)
        total = np.zeros(np.broadcast_shapes(energy.shape, width.shape))
        for position, weight in zip(_POSITION, _JACOBIAN, strict=True):
            u = left + width * position
            total += weight * np.sqrt(np.maximum(base - slope * u + image * _image(u) - energy, 0.0))
        return np.asarray(factor * width * total)

    def _turning_point(self, energy: Floats, outside: Floats, live: NDArray[np.bool_], peak: Floats) -> Floats:
        base, slope, image = self.base[..., None], self.slope[..., None], self.image[..., None]
        u = np.where(live, outside, peak)
        for _ in range(_NEWTON_STEPS):
            short = energy - (base - slope * u + image * _image(u))
            gradient = image * _image_slope(u) - slope
            with np.errstate(divide="ignore", invalid="ignore"):
                step = np.where(live & (short > 0), short / gradient, 0.0)
            u = u + step
            if np.max(np.abs(step), initial=0.0) < 1e-13:
                break
        return np.asarray(u)


def _image_pieces(stack: Stack, scale: ArrayLike, edges: list[tuple[Floats, Floats]]) -> list[_ImagePiece]:
    assert stack.image_permittivity is not None
    thicknesses = stack._thicknesses(scale)
    total: Floats = np.asarray(sum(thicknesses))
    strength = IMAGE_EV_NM / stack.image_permittivity / total
    pieces = []
    left = np.zeros_like(total)
    for layer, thickness, (first, last) in zip(stack.layers, thicknesses, edges, strict=True):
        start, end = left / total, np.minimum((left + thickness) / total, 1.0)
        slope = (first - last) * total / thickness
        base = first + slope * start
        shape = np.broadcast_shapes(base.shape, total.shape)
        low, high = np.broadcast_to(start, shape), np.broadcast_to(end, shape)
        for _ in range(_BISECTIONS):  # φ' falls monotonically, so its sign finds the hump
            middle = (low + high) / 2
            rising = strength * _image_slope(middle) > slope
            low, high = np.where(rising, middle, low), np.where(rising, high, middle)
        peak = (low + high) / 2
        top = base - slope * peak + strength * _image(peak)
        factor = WKB_PER_NM * np.sqrt(layer.mass) * total
        pieces.append(_ImagePiece(base, slope, strength, start, end, factor, peak, top))
        left = left + thickness
    return pieces
