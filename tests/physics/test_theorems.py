"""What the physics does to a stored weight: drift, variance and scale, closed form against a million draws a case.

The three statements are those of Hwang & Hwang (arXiv:2606.00741): the mean of a read weight is an affine function of
the stored one, its variance is a sum over bit planes led by the most significant, and a layer's noise scales with its
largest weight. Every comparison allows five standard errors of its own sample.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qtaml_onnx.channel import FlipRates, linear_moments, moments
from qtaml_onnx.physics import load_device

DRAWS = 1_000_000
RATES = {"symmetric": (0.10, 0.10), "asymmetric": (0.03, 0.12), "one-way": (0.0, 0.05)}


def place_values(code: str, bits: int) -> NDArray[np.float64]:
    places = 2.0 ** np.arange(bits)
    if code == "twos-complement":
        places[-1] = -places[-1]
    return places


def faulty_values(
    word: int, rates: FlipRates, places: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """A million reads of one stored word, plane by plane."""
    value = np.zeros(DRAWS)
    for plane in range(rates.bits):
        stored = word >> plane & 1
        flip = rng.random(DRAWS) < (rates.p10[plane] if stored else rates.p01[plane])
        value += places[plane] * np.where(flip, 1 - stored, stored)
    return value


def assert_mean_and_variance(sample: NDArray[np.float64], mean: float, variance: float) -> None:
    count = len(sample)
    assert abs(float(sample.mean()) - mean) <= 5 * np.sqrt(variance / count) + 1e-9
    centred = (sample - mean) ** 2
    assert abs(float(centred.mean()) - variance) <= 5 * float(centred.std()) / np.sqrt(count) + 1e-9


@pytest.mark.parametrize("code", ["twos-complement", "offset-binary"])
@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize("bits", [2, 8, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (3, 4, 12))])
def test_affine_mean_drift_and_plane_variance(bits: int, kind: str, code: str) -> None:
    p01, p10 = RATES[kind]
    rates, places = FlipRates.asymmetric(p01, p10, bits), place_values(code, bits)
    rng = np.random.default_rng([bits, len(kind), len(code)])
    ones = np.arange(1 << bits)[:, None] >> np.arange(bits) & 1
    values = ones @ places
    mean, variance = linear_moments(rates, places)
    # theorem 1: E[value] = a·q + b for every word, with a = 1 − p01 − p10 and b = p01·Σc
    np.testing.assert_allclose(mean, (1 - p01 - p10) * values + p01 * places.sum(), rtol=1e-12, atol=1e-9)
    assert places.sum() == (-1.0 if code == "twos-complement" else 2.0**bits - 1)
    # theorem 2: the variance is Σ c_k²·π_k, no covariance between planes
    np.testing.assert_allclose(
        variance, (places**2 * np.where(ones, p10 * (1 - p10), p01 * (1 - p01))).sum(axis=1), rtol=1e-12
    )
    word = int(rng.integers(1, 1 << bits))
    assert_mean_and_variance(faulty_values(word, rates, places, rng), float(mean[word]), float(variance[word]))


@pytest.mark.parametrize("bits", range(2, 13))
def test_closed_form_equals_the_channel_word_by_word(bits: int) -> None:
    rates = FlipRates(tuple(np.linspace(0.01, 0.2, bits)), tuple(np.linspace(0.15, 0.02, bits)))
    places = place_values("twos-complement", bits)
    values = (np.arange(1 << bits)[:, None] >> np.arange(bits) & 1) @ places
    closed, exact = linear_moments(rates, places), moments(rates, values)
    np.testing.assert_allclose(closed[0], exact[0], rtol=1e-11, atol=1e-9)
    np.testing.assert_allclose(closed[1], exact[1], rtol=1e-11)


def test_variance_hierarchy_is_a_factor_of_four_a_plane() -> None:
    bits, rng = 8, np.random.default_rng(5)
    places, noise = place_values("twos-complement", bits), []
    for plane in range(bits):
        only = FlipRates(*(tuple(0.1 if k == plane else 0.0 for k in range(bits)) for _ in range(2)))
        sample = faulty_values(0b01011010, only, places, rng)
        _, variance = linear_moments(only, places)
        assert variance[0b01011010] == pytest.approx(4.0**plane * 0.09, rel=1e-12)
        assert_mean_and_variance(sample, float(linear_moments(only, places)[0][0b01011010]), 4.0**plane * 0.09)
        noise.append(float(sample.var()))
    assert np.all(np.array(noise[1:]) / np.array(noise[:-1]) == pytest.approx(4.0, rel=0.03))
    assert noise[-1] / sum(noise) == pytest.approx(0.75, rel=0.01)  # the top plane alone: 3/4 of the noise


@pytest.mark.parametrize("largest", [0.05, 3.2])
def test_layer_noise_scales_with_its_largest_weight(largest: float) -> None:
    bits, rates = 8, FlipRates.uniform(0.05, 8)
    rng = np.random.default_rng(17)
    weights = np.clip(rng.standard_normal(DRAWS) / 4, -1, 1)
    weights[0] = 1.0
    weights *= largest
    step = np.abs(weights).max() / (2 ** (bits - 1) - 1)
    words = np.round(weights / step).astype(np.int64) & (2**bits - 1)
    places = place_values("twos-complement", bits)
    value = np.zeros(DRAWS)
    for plane in range(bits):
        bit = words >> plane & 1
        value += places[plane] * (bit ^ (rng.random(DRAWS) < 0.05))
    mean, variance = linear_moments(rates, places)
    noise = step * (value - mean[words])
    expected = step**2 * float(variance[words].mean())
    # ‖W‖∞ sets the step, so noise over ‖W‖∞² is the same number whatever the layer: Σ4^k·p(1 − p)/127²
    assert expected / largest**2 == pytest.approx((4**bits - 1) / 3 * 0.05 * 0.95 / 127**2, rel=1e-12)
    assert abs(float((noise**2).mean()) - expected) < 5 * float((noise**2).std()) / 1e3


@pytest.mark.parametrize(
    "name", ["scaled-node", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gain-cell", "mixed-planes"))]
)
def test_a_devices_rates_carry_through_to_the_weight(name: str) -> None:
    derived = load_device(name).flip_rates(8)
    rates = FlipRates(tuple(derived.p01), tuple(derived.p10))
    places = place_values("offset-binary", 8)
    mean, variance = linear_moments(rates, places)
    rng = np.random.default_rng(23)
    for word in (0, 0b10100101, 255):
        sample = faulty_values(word, rates, places, rng)
        assert_mean_and_variance(sample, float(mean[word]), float(variance[word]))


def test_forgetting_limits() -> None:
    bits, places = 6, place_values("offset-binary", 6)
    values = np.arange(64.0)
    mean, variance = linear_moments(FlipRates.uniform(1e-15, bits), places)  # p → 0
    np.testing.assert_allclose(mean, values, atol=1e-12)
    np.testing.assert_allclose(variance, 1e-15 * (4**bits - 1) / 3, rtol=1e-12)
    mean, _ = linear_moments(FlipRates.asymmetric(0.3, 0.7, bits), places)  # t → ∞: p01 + p10 = 1, nothing is left
    np.testing.assert_allclose(mean, 0.3 * 63, rtol=1e-12)
