"""Average of the WKB transmission over the thermal energy of the incident electron.

⟨T⟩ = ∫ T(E)·exp(−E/kT) dE/kT over E ≥ 0: Boltzmann electrons above the emitter's band edge. Electrons above the top of
the barrier pass with T = 1, so the average runs smoothly from tunnelling through thermally assisted tunnelling into
thermionic emission exp(−φ/kT).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qtaml_onnx.physics.stack import Stack
from qtaml_onnx.physics.units import BOLTZMANN_EV_PER_K

__all__ = ["log_thermal_transmission"]

Floats = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_THETA = (_NODES + 1) * np.pi / 4
# E = a + (b − a)·sin²(θ): square roots and 3/2 powers at a panel's ends become smooth functions of θ.
_POSITION = np.sin(_THETA) ** 2
_JACOBIAN = _WEIGHTS * np.pi / 4 * np.sin(2 * _THETA)
# Panel ends in units of kT above the band edge and below the barrier's top, where the integrand can be steepest.
_ABOVE = (2.0, 6.0, 14.0, 30.0, 62.0, 126.0)
_BELOW = (2.0, 6.0, 14.0, 30.0, 62.0)

_BLOCK = 128  # cases at a time: their energies' arrays stay in the processor's cache


def log_thermal_transmission(
    stack: Stack, temperature_k: ArrayLike, scale: ArrayLike = 1.0, drop_v: ArrayLike = 0.0
) -> Floats:
    """ln⟨T⟩ of a stack: Gauss–Legendre panels between the energies where the exponent has a kink.

    Args:
        stack: The dielectric seen from the emitter.
        temperature_k: Temperature, K, `(...)`; 0 means no average, an electron at the band edge.
        scale: Thickness relative to nominal, `(...)`.
        drop_v: Voltage across the stack, V, `(...)`.

    Returns:
        ln⟨T⟩ ≤ 0, of the broadcast shape; relative error of ⟨T⟩ below 1e-8.
    """
    temperature, scale_, drop = np.broadcast_arrays(
        np.asarray(temperature_k, dtype=np.float64),
        np.asarray(scale, dtype=np.float64),
        np.asarray(drop_v, dtype=np.float64),
    )
    if not np.any(temperature):
        return -stack.exponent(np.zeros((*temperature.shape, 1)), scale_, drop)[..., 0]
    flat = (temperature.ravel(), scale_.ravel(), drop.ravel())
    blocks = range(0, temperature.size, _BLOCK)
    parts = [_log_mean(stack, *(array[block : block + _BLOCK] for array in flat)) for block in blocks]
    return np.concatenate(parts).reshape(temperature.shape) if parts else np.zeros(temperature.shape)


def _log_mean(stack: Stack, temperature: Floats, scale_: Floats, drop: Floats) -> Floats:
    thermal = BOLTZMANN_EV_PER_K * temperature
    kinks = stack.kinks(scale_, drop)
    top = np.maximum(np.max(kinks, axis=0), 0.0)
    stops = [np.zeros_like(top), top, *kinks]
    stops += [thermal * multiple for multiple in _ABOVE] + [top - thermal * multiple for multiple in _BELOW]
    panels = np.sort(np.clip(np.stack(stops, axis=-1), 0.0, top[..., None]), axis=-1)
    width = np.diff(panels, axis=-1)[..., None]
    energy = (panels[..., :-1, None] + width * _POSITION).reshape(*top.shape, -1)
    weight = (width * _JACOBIAN).reshape(energy.shape) / thermal[..., None]
    log_value = -stack.exponent(energy, scale_, drop) - energy / thermal[..., None]
    log_over = -top / thermal  # everything above the top, with T = 1
    largest = np.maximum(np.max(log_value, axis=-1), log_over)
    below = np.sum(weight * np.exp(log_value - largest[..., None]), axis=-1)
    return np.asarray(np.minimum(largest + np.log(below + np.exp(log_over - largest)), 0.0))
