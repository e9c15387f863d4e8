from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtaml_onnx.channel import FlipRates, moments, transition_matrix
from qtaml_onnx.errors import InputError
from qtaml_onnx.storage.codes import UNIFORM_KINDS, Code, uniform_code
from qtaml_onnx.storage.readout import (
    READOUT_KINDS,
    ReadOut,
    WordSums,
    design_readout,
    error_moments,
    posterior_mean,
    posterior_table,
    restored_posterior_mean,
    word_sums,
)

ALL_READOUTS = pytest.mark.parametrize("kind", READOUT_KINDS)


def random_code(rng: np.random.Generator, bits: int, cells: int) -> Code:
    """Any partition with any words, two cells sharing one among them."""
    words = rng.integers(0, 1 << bits, cells)
    return Code("random", bits, np.sort(rng.uniform(-1, 1, cells - 1)), words, rng.uniform(-1, 1, 1 << bits))


def random_rates(rng: np.random.Generator, bits: int) -> FlipRates:
    return FlipRates(tuple(rng.uniform(0, 0.45, bits)), tuple(rng.uniform(0, 0.45, bits)))


@ALL_READOUTS
@pytest.mark.parametrize("seed", range(4))
def test_error_moments_are_the_enumerated_ones(kind: str, seed: int) -> None:
    """Against the sum over every weight and every word that it can be read as."""
    rng = np.random.default_rng(seed)
    bits = int(rng.integers(1, 6))
    code, rates = uniform_code(UNIFORM_KINDS[seed], bits), random_rates(rng, bits)
    x, importance = rng.uniform(-1, 1, 50), rng.uniform(0, 2, 50)
    sums = word_sums(code, x, importance)
    readout = design_readout(kind, code, rates, sums)
    found = error_moments(readout, rates, sums)
    rows = transition_matrix(rates)[code.encode(x)]  # [weights, words read]
    error = readout.table[None, :] - x[:, None]
    weight = importance / importance.sum()
    mean = (rows * error).sum(axis=1)
    assert found.bias == pytest.approx(weight @ mean, abs=1e-12)
    assert found.variance == pytest.approx(weight @ (rows * (error - mean[:, None]) ** 2).sum(axis=1), abs=1e-12)
    assert found.mse == pytest.approx(weight @ (rows * error**2).sum(axis=1), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_error_moments_match_monte_carlo_within_5_sigma(seed: int) -> None:
    rng = np.random.default_rng([seed, 99])
    bits = int(rng.integers(2, 11))
    code, rates = random_code(rng, bits, int(rng.integers(2, 40))), random_rates(rng, bits)
    x = rng.standard_normal(400) * 0.4
    sums = word_sums(code, x)
    readout = ReadOut("random", rng.uniform(-1, 1, 1 << bits))
    found = error_moments(readout, rates, sums)
    stored = code.encode(np.tile(x, 500)).astype(np.int64)
    read = stored.copy()
    for k in range(bits):
        chance = np.where(stored >> k & 1, rates.p10[k], rates.p01[k])
        read ^= (rng.random(stored.shape) < chance).astype(np.int64) << k
    error = readout.table[read] - np.tile(x, 500)
    for estimate, exact in ((error, found.bias), (error**2, found.mse)):
        assert abs(estimate.mean() - exact) < 5 * estimate.std() / np.sqrt(estimate.size)
    spread = error.reshape(500, 400).var(axis=0, ddof=1)  # of each weight over the trials
    assert abs(spread.mean() - found.variance) < 5 * spread.std() / np.sqrt(spread.size)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(READOUT_KINDS))
def test_no_readout_beats_the_posterior_mean(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    bits = int(rng.integers(1, 8))
    code, rates = random_code(rng, bits, int(rng.integers(2, 20))), random_rates(rng, bits)
    sums = word_sums(code, rng.standard_normal(300) * 0.4, rng.uniform(0, 1, 300))
    try:
        other = design_readout(kind, code, rates, sums)
    except InputError:  # the affine drift of random levels need not have an inverse
        return
    least = error_moments(posterior_mean(code, rates, sums), rates, sums).mse
    assert least <= error_moments(other, rates, sums).mse + 1e-12


def test_posterior_mean_is_bayes_rule() -> None:
    rng = np.random.default_rng(3)
    code, rates = uniform_code("gray", 4), random_rates(rng, 4)
    x = rng.uniform(-1, 1, 300)
    joint = transition_matrix(rates)[code.encode(x)]
    expected = (joint * x[:, None]).sum(axis=0) / joint.sum(axis=0)
    np.testing.assert_allclose(posterior_mean(code, rates, word_sums(code, x)).table, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["twos-complement", "offset-binary"])
@pytest.mark.parametrize("mask", [0, 0b1010_0110])
def test_bitwise_affine_is_the_sum_over_planes(kind: str, mask: int) -> None:
    """Σ_k c_k (v_k − p01_k)/(1 − p01_k − p10_k) for codes linear in the bits, planes protected or not."""
    rng = np.random.default_rng(5)
    rates = random_rates(rng, 8).protect([7, 3])
    code = uniform_code(kind, 8, mask)
    sums = word_sums(code, rng.uniform(-1, 1, 10))
    origin = code.levels[0]
    place = np.array([code.levels[1 << k] - origin for k in range(8)])
    ones = (np.arange(256)[:, None] >> np.arange(8)) & 1
    p01, p10 = np.array(rates.p01), np.array(rates.p10)
    expected = origin + ((ones - p01) / (1 - p01 - p10)) @ place
    np.testing.assert_allclose(design_readout("bitwise-affine", code, rates, sums).table, expected, atol=1e-12)


@pytest.mark.parametrize("kind", UNIFORM_KINDS)
def test_bitwise_affine_is_unbiased_for_every_word_of_every_code(kind: str) -> None:
    rng = np.random.default_rng(6)
    code, rates = uniform_code(kind, 7), random_rates(rng, 7)
    readout = design_readout("bitwise-affine", code, rates, word_sums(code, rng.uniform(-1, 1, 10)))
    np.testing.assert_allclose(moments(rates, readout.table)[0], code.levels, atol=1e-12)


def test_affine_is_exact_for_equal_rates() -> None:
    code, rates = uniform_code("twos-complement", 8), FlipRates.asymmetric(0.02, 0.1, 8)
    sums = word_sums(code, np.random.default_rng(0).standard_normal(500) * 0.3)
    readout = design_readout("affine", code, rates, sums)
    assert readout.affine is not None
    scale, offset = readout.affine
    assert scale == pytest.approx(1 / 0.88, rel=1e-12)  # q = (value + p01)/a in steps of 1/127
    assert offset == pytest.approx(0.02 / 127 / 0.88, rel=1e-9)
    np.testing.assert_array_equal(readout.table, scale * code.levels + offset)
    bitwise = design_readout("bitwise-affine", code, rates, sums)
    np.testing.assert_allclose(readout.table, bitwise.table, atol=1e-12)


def test_linear_mmse_is_the_least_of_all_lines() -> None:
    rng = np.random.default_rng(8)
    code, rates = uniform_code("sign-magnitude", 6), random_rates(rng, 6)
    sums = word_sums(code, rng.standard_normal(500) * 0.3)
    best = design_readout("linear-mmse", code, rates, sums)
    assert best.affine is not None
    least = error_moments(best, rates, sums).mse
    scale, offset = best.affine
    for other in ((scale * 1.01, offset), (scale * 0.99, offset), (scale, offset + 0.003), (scale, offset - 0.003)):
        table = other[0] * code.levels + other[1]
        assert error_moments(ReadOut("line", table), rates, sums).mse > least


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_restored_gain(strength: float) -> None:
    """Strength 1: the regression of the read-out on the weight has slope 1; strength 1/2: the weights' variance."""
    rng = np.random.default_rng(9)
    code, rates = uniform_code("twos-complement", 8), FlipRates.uniform(0.05, 8)
    x = rng.standard_normal(2000) * 0.25
    sums = word_sums(code, x)
    table = restored_posterior_mean(code, rates, sums, strength).table
    conditional, spread = moments(rates, table)
    stored = code.encode(x)
    slope = np.cov(conditional[stored], x, ddof=0)[0, 1] / x.var()
    variance = conditional[stored].var() + spread[stored].mean()
    if strength == 1.0:
        assert slope == pytest.approx(1.0, abs=1e-9)
    elif strength == 0.5:
        assert variance == pytest.approx(x.var(), rel=1e-9)
    else:
        np.testing.assert_allclose(table, posterior_mean(code, rates, sums).table, atol=1e-14)
    assert conditional[stored].mean() == pytest.approx(x.mean(), abs=1e-12)


def test_restored_gain_is_the_least_error_of_all_readouts_of_slope_one() -> None:
    rng = np.random.default_rng(10)
    code, rates = uniform_code("gray", 5), FlipRates.uniform(0.1, 5)
    x = rng.standard_normal(3000) * 0.3
    x -= x.mean()
    sums = word_sums(code, x)
    best = restored_posterior_mean(code, rates, sums).table
    received = sums.first @ transition_matrix(rates)  # E[T x] is received @ T / count
    for _ in range(20):
        change = 1e-3 * rng.standard_normal(32)
        change -= received * (received @ change) / (received @ received)  # keeps the slope
        least, other = (error_moments(ReadOut("t", table), rates, sums).mse for table in (best, best + change))
        assert other > least


@ALL_READOUTS
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_equal_weights_and_unread_words_stay_finite(kind: str, value: float) -> None:
    code = uniform_code("twos-complement", 8)
    rates = FlipRates.asymmetric(0.0, 0.1, 8).protect([7])
    sums = word_sums(code, np.full(10, value))
    readout = design_readout(kind, code, rates, sums)
    assert np.isfinite(readout.table).all()
    if "posterior" in kind or kind == "linear-mmse":
        np.testing.assert_allclose(readout.table, value, atol=1e-9)
        assert error_moments(readout, rates, sums).mse < 1e-15


def test_words_that_cannot_be_read_take_their_nearest_neighbours_value() -> None:
    count, first = np.zeros(8), np.zeros(8)
    count[[0b000, 0b111]], first[[0b000, 0b111]] = 1.0, (-1.0, 1.0)
    table = posterior_table(FlipRates.uniform(0.0, 3), count, first)
    np.testing.assert_allclose(table, np.where([u.bit_count() > 1 for u in range(8)], 1.0, -1.0), atol=1e-9)


def test_posterior_survives_underflow() -> None:
    """Twelve flips of 1e-30 each underflow; the answer is still the nearest stored word's."""
    count, first = np.zeros(4096), np.zeros(4096)
    count[0], first[0] = 5.0, 2.5
    np.testing.assert_allclose(posterior_table(FlipRates.uniform(1e-30, 12), count, first), 0.5, rtol=1e-9)


def test_rates_zero_read_back_what_was_stored() -> None:
    code, zero = uniform_code("gray", 8), FlipRates.uniform(0.0, 8)
    x = np.random.default_rng(1).uniform(-1, 1, 2000)
    sums = word_sums(code, x)
    for kind in ("plain", "affine", "bitwise-affine"):
        readout = design_readout(kind, code, zero, sums)
        np.testing.assert_allclose(readout.table[code.encode(x)], code.levels[code.encode(x)], atol=1e-12)
        assert error_moments(readout, zero, sums).variance == 0.0
    centroid = sums.first[code.words] / sums.count[code.words]
    np.testing.assert_allclose(design_readout("posterior-mean", code, zero, sums).table[code.words], centroid)


def test_histogram_sums_and_values() -> None:
    code = uniform_code("twos-complement", 3)
    counts = np.array([4, 0, 0, 1, 0, 2, 0, 3])
    sums = WordSums.from_histogram(counts, code.levels)
    again = word_sums(code, np.repeat(code.levels, counts))
    for name in ("count", "first", "second"):
        np.testing.assert_allclose(getattr(sums, name), getattr(again, name), atol=1e-12)
    assert ReadOut("plain", code.levels, (1.0, 0.0)) == design_readout("plain", code, FlipRates.uniform(0.1, 3), sums)


def test_bad_input_is_refused() -> None:
    code = uniform_code("twos-complement", 4)
    sums = word_sums(code, [0.1, 0.2])
    half = FlipRates.asymmetric(0.6, 0.5, 4)
    rates = FlipRates.uniform(0.1, 4)
    for bad, complaint in (
        (lambda: design_readout("oracle", code, rates, sums), "choose from"),
        (lambda: design_readout("affine", code, half, sums), "p01 \\+ p10 ≥ 1"),
        (lambda: design_readout("bitwise-affine", code, half, sums), "plane 0 has p01 \\+ p10 = 1.1"),
        (lambda: design_readout("plain", code, FlipRates.uniform(0.1, 5), sums), "4 bits"),
        (lambda: design_readout("plain", code, rates, WordSums(*np.zeros((3, 16)))), "not those of any"),
        (lambda: word_sums(code, []), "no weights"),
        (lambda: word_sums(code, [0.1], [-1.0]), "importance"),
        (lambda: word_sums(code, [0.1], [0.0]), "importance"),
        (lambda: word_sums(code, [0.1, np.nan]), "NaN"),
        (lambda: ReadOut("x", np.array([np.nan, 1.0])), "finite"),
        (lambda: error_moments(ReadOut("x", np.zeros(8)), FlipRates.uniform(0.1, 3), sums), "8 words"),
    ):
        with pytest.raises(InputError, match=complaint):
            bad()
