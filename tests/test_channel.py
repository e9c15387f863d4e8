from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize_scalar

from qtaml_onnx.channel import (
    FlipRates,
    apply_transition,
    apply_transition_transposed,
    capacity,
    gaussian_noise_to_signal_bound,
    linear_moments,
    moments,
    transition_matrix,
    transition_rows,
)
from qtaml_onnx.errors import InputError

RATE = st.floats(0.0, 0.999)


def rates_of(bits: int) -> st.SearchStrategy[FlipRates]:
    side = st.tuples(*[RATE] * bits)
    return st.builds(FlipRates, side, side)


any_rates = st.integers(1, 6).flatmap(rates_of)


def enumerated(rates: FlipRates) -> np.ndarray:
    """P[u, v] bit by bit, from the definition."""
    size = 1 << rates.bits
    matrix = np.ones((size, size))
    for u in range(size):
        for v in range(size):
            for k, (p01, p10) in enumerate(zip(rates.p01, rates.p10, strict=True)):
                flip = p10 if u >> k & 1 else p01
                matrix[u, v] *= flip if (u ^ v) >> k & 1 else 1.0 - flip
    return matrix


@settings(max_examples=25, deadline=None)
@given(any_rates)
def test_transition_matrix_is_the_definition(rates: FlipRates) -> None:
    dense = transition_matrix(rates)
    np.testing.assert_allclose(dense, enumerated(rates), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(dense.sum(axis=1), 1.0, rtol=1e-12)
    some = np.array([0, dense.shape[0] - 1, dense.shape[0] // 2])
    np.testing.assert_allclose(transition_rows(rates, some), dense[some], rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("bits", [1, 5, 7, 10])
def test_products_by_planes_are_the_dense_products(bits: int) -> None:
    rng = np.random.default_rng(bits)
    rates = FlipRates(tuple(rng.uniform(0, 0.6, bits)), tuple(rng.uniform(0, 0.6, bits)))
    dense = transition_matrix(rates)
    f = rng.standard_normal((3, 2, 1 << bits))
    np.testing.assert_allclose(apply_transition(rates, f), np.einsum("uv,abv->abu", dense, f), atol=1e-12)
    np.testing.assert_allclose(apply_transition_transposed(rates, f), np.einsum("abu,uv->abv", f, dense), atol=1e-12)
    g = np.moveaxis(f, -1, 1)
    np.testing.assert_allclose(apply_transition(rates, g, axis=1), np.einsum("uv,avb->aub", dense, g), atol=1e-12)
    np.testing.assert_allclose(apply_transition_transposed(rates, f[0, 0]), f[0, 0] @ dense, atol=1e-12)


def test_rates_zero_change_nothing_at_16_bits() -> None:
    f = np.random.default_rng(0).standard_normal(1 << 16)
    zero = FlipRates.uniform(0.0, 16)
    assert zero.is_zero
    np.testing.assert_array_equal(apply_transition(zero, f), f)
    np.testing.assert_array_equal(apply_transition_transposed(zero, f), f)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_moments_are_the_enumerated_ones(data: st.DataObject) -> None:
    rates = data.draw(any_rates)
    values = data.draw(arrays(np.float64, 1 << rates.bits, elements=st.floats(-2, 2)))
    dense = enumerated(rates)
    mean, variance = moments(rates, values)
    np.testing.assert_allclose(mean, dense @ values, atol=1e-12)
    centred = (dense * (values[None, :] - (dense @ values)[:, None]) ** 2).sum(axis=1)
    np.testing.assert_allclose(variance, centred, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_linear_closed_form_is_the_general_one(data: st.DataObject) -> None:
    rates = data.draw(any_rates)
    place = data.draw(arrays(np.float64, rates.bits, elements=st.floats(-100, 100)))
    values = 0.5 + ((np.arange(1 << rates.bits)[:, None] >> np.arange(rates.bits)) & 1) @ place
    for closed, general in zip(linear_moments(rates, place, 0.5), moments(rates, values), strict=True):
        np.testing.assert_allclose(closed, general, rtol=1e-9, atol=1e-9)


def test_variance_keeps_its_digits_at_tiny_rates() -> None:
    rates = FlipRates.uniform(1e-15, 8)
    levels = np.arange(256.0) + 1e4
    _, variance = moments(rates, levels)
    np.testing.assert_allclose(variance, 1e-15 * (4.0 ** np.arange(8)).sum(), rtol=1e-9)


def test_affine_drift_of_twos_complement() -> None:
    """E[q | u] = (1 − p01 − p10) q − p01: the place values of two's complement add up to −1."""
    place = np.append(2.0 ** np.arange(7), -128.0)
    value = ((np.arange(256)[:, None] >> np.arange(8)) & 1) @ place
    mean, _ = linear_moments(FlipRates.asymmetric(0.03, 0.08, 8), place)
    np.testing.assert_allclose(mean, (1 - 0.11) * value - 0.03, atol=1e-12)


def test_moments_match_monte_carlo_within_5_sigma() -> None:
    rng = np.random.default_rng(7)
    rates = FlipRates((0.02, 0.2, 0.07, 0.0), (0.1, 0.05, 0.3, 0.01))
    values = rng.standard_normal(16)
    mean, variance = moments(rates, values)
    trials = 200_000
    for u in (0, 5, 15):
        flip = [
            rng.random(trials) < (p10 if u >> k & 1 else p01)
            for k, (p01, p10) in enumerate(zip(rates.p01, rates.p10, strict=True))
        ]
        v = u ^ sum(f.astype(int) << k for k, f in enumerate(flip))
        drawn = values[v]
        assert abs(drawn.mean() - mean[u]) < 5 * np.sqrt(variance[u] / trials)
        fourth = ((drawn - mean[u]) ** 4).mean()
        assert abs(drawn.var() - variance[u]) < 5 * np.sqrt((fourth - variance[u] ** 2) / trials)


def mutual_information(q: float, a: float, b: float) -> float:
    """Bits between input (P[1] = q) and output of a binary channel with p01 = a, p10 = b."""
    joint = np.array([[(1 - q) * (1 - a), (1 - q) * a], [q * b, q * (1 - b)]])
    independent = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    some = joint > 0
    return float((joint[some] * np.log2(joint[some] / independent[some])).sum())


@pytest.mark.parametrize(
    ("a", "b"), [(0.1, 0.1), (0.0, 0.1), (0.3, 0.01), (0.45, 0.5), (0.9, 0.7), (0.0, 0.0), (0.2, 0.8)]
)
def test_capacity_is_the_largest_mutual_information(a: float, b: float) -> None:
    best = minimize_scalar(
        lambda q: -mutual_information(q, a, b), bounds=(1e-6, 1 - 1e-6), method="bounded", options={"xatol": 1e-9}
    )
    assert capacity(FlipRates((a,), (b,))) == pytest.approx(-best.fun, abs=1e-7)


def test_capacity_of_8_bit_words_and_bound() -> None:
    for rate, bits, decibel in ((0.10, 4.25, 25.6), (0.05, 5.71, 34.4), (0.01, 7.35, 44.3)):
        found = capacity(FlipRates.uniform(rate, 8))
        assert found == pytest.approx(bits, abs=0.005)
        assert -10 * np.log10(gaussian_noise_to_signal_bound(found)) == pytest.approx(decibel, abs=0.05)


def test_rates_edit() -> None:
    rates = FlipRates((0.1, 0.2, 0.3), (0.4, 0.3, 0.2))
    assert rates.truncated(2) == FlipRates((0.1, 0.2), (0.4, 0.3))
    assert rates.protect([2], 1e-3) == FlipRates((0.1, 0.2, 1e-3), (0.4, 0.3, 1e-3))
    assert rates.scaled(2.0).p10 == (0.8, 0.6, 0.4)
    array = rates.as_array()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, np.array([rates.p01, rates.p10], np.float32))
    assert hash(rates) == hash(FlipRates([0.1, 0.2, 0.3], [0.4, 0.3, 0.2]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p01,p10\n0.1,0.2\n0.3,0.4\n", FlipRates((0.1, 0.3), (0.2, 0.4))),
        ("0.1, 0.2\n\n0.3, 0.4", FlipRates((0.1, 0.3), (0.2, 0.4))),
        ("\ufeffP10,P01\r\n0.2,0.1\r\n", FlipRates((0.1,), (0.2,))),
    ],
)
def test_csv_is_read(tmp_path: Path, text: str, expected: FlipRates) -> None:
    path = tmp_path / "rates.csv"
    path.write_text(text, encoding="utf-8")
    assert FlipRates.from_csv(path) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no flip rates"),
        ("p01,p10\n", "no flip rates"),
        ("p01,plane\n0.1,0.2\n", "header"),
        ("0.1,0.2,0.3\n", "line 1"),
        ("p01,p10\n0.1,x\n", "line 2"),
        ("0.1,1.0\n", r"p10\[0\] = 1 is outside"),
        ("0.1,nan\n", "outside"),
    ],
)
def test_csv_is_refused_with_its_reason(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "rates.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        FlipRates.from_csv(path)


def test_missing_and_binary_csv(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        FlipRates.from_csv(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(InputError, match="cannot be read"):
        FlipRates.from_csv(tmp_path / "b.csv")


def test_bad_rates_are_refused() -> None:
    good = FlipRates.uniform(0.4, 4)
    for bad, complaint in (
        (lambda: FlipRates.uniform(1.0, 8), "outside"),
        (lambda: FlipRates.uniform(-0.1, 8), "outside"),
        (lambda: FlipRates.uniform(float("nan"), 8), "outside"),
        (lambda: FlipRates((0.1,), (0.1, 0.2)), "1 planes and p10 has 2"),
        (lambda: FlipRates((), ()), "0 bit planes"),
        (lambda: FlipRates.uniform(0.1, 33), "33 bit planes"),
        (lambda: transition_matrix(FlipRates.uniform(0.1, 17)), "matrix of 17-bit words"),
        (lambda: FlipRates(("a",), (0.1,)), "numbers"),  # type: ignore[arg-type]
        (lambda: good.truncated(5), "5 are needed"),
        (lambda: good.protect([4]), "plane 4"),
        (lambda: good.protect([0], 1.0), "outside"),
        (lambda: good.scaled(3.0), "margin 3 is too large"),
        (lambda: good.scaled(-1.0), "margin -1"),
        (lambda: apply_transition(good, np.zeros(8)), "16 words"),
        (lambda: moments(good, np.zeros(8)), "16 values"),
        (lambda: linear_moments(good, np.zeros(8)), "need 4"),
    ):
        with pytest.raises(InputError, match=complaint):
            bad()
