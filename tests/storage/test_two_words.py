"""Codes of two words: their table by Bayes' rule, their error in closed form, and what they gain over one word."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from qtaml_onnx.channel import FlipRates, transition_matrix
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_inject import fault_inject
from qtaml_onnx.storage import error_moments, word_sums
from qtaml_onnx.storage.channel_optimized import design_channel_optimized
from qtaml_onnx.storage.two_words import (
    LEAST_RATE,
    LONGEST_PAIR,
    TwoWordCode,
    cell_sums,
    design_two_words,
    pair_list_bits,
    pair_moments,
    pair_slope,
)

SIZE = 20_000


def weights(kind: str, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal(SIZE) if kind == "gaussian" else rng.laplace(size=SIZE)
    return np.asarray(drawn / 4, dtype=np.float32)


def read(code: TwoWordCode, x: NDArray[np.float32], p01: float, p10: float, seed: int) -> NDArray[np.float32]:
    """Weights as they are read after faults of their own in each word."""
    low = code.lengths[1]
    words = code.encode(x)
    halves = []
    for stream, (half, bits) in enumerate(zip((words >> low, words & ((1 << low) - 1)), code.lengths, strict=True)):
        rates = FlipRates.asymmetric(p01, p10, bits).as_array()
        halves.append(fault_inject(half.astype(np.uint16), seed, rates, stream=stream, bits=bits))
    return code.table[halves[0].astype(np.int64) << low | halves[1]]


@pytest.mark.parametrize(("p01", "p10"), [(0.1, 0.1), (0.03, 0.12)])
def test_table_is_the_posterior_mean_by_brute_force(p01: float, p10: float) -> None:
    code = design_two_words(weights("laplace"), 7, p01, p10)
    joint = code.shares[:, None] * transition_matrix(FlipRates.asymmetric(p01, p10, 7))[code.words]
    np.testing.assert_allclose(code.table, code.means @ joint / joint.sum(axis=0), rtol=1e-5, atol=1e-7)
    assert code.lengths == (4, 3)


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
@pytest.mark.parametrize(("bits", "true"), [(13, (0.05, 0.05)), (16, (0.1, 0.02))])
def test_closed_form_meets_monte_carlo(kind: str, bits: int, true: tuple[float, float]) -> None:
    """Bias and mean-square error under other rates than designed, within 4.5 standard errors over 40 draws."""
    x = weights(kind)
    code = design_two_words(x, bits, 0.05, 0.05)
    gain = 1 / pair_slope(code, cell_sums(code, x))
    expected = pair_moments(code, *true, cell_sums(code, x), gain)
    errors = np.array([gain * read(code, x, *true, seed) - x for seed in range(40)], dtype=np.float64)
    for found, wanted in ((errors.mean(axis=1), expected.bias), ((errors**2).mean(axis=1), expected.mse)):
        assert abs(found.mean() - wanted) < 4.5 * found.std(ddof=1) / np.sqrt(len(found))
    spread = float(errors.var(axis=0, ddof=1).mean())
    assert spread == pytest.approx(expected.variance, rel=0.05)


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
@pytest.mark.parametrize("rate", [0.02, 0.05, 0.10])
def test_longer_descriptions_beat_the_longest_single_word(kind: str, rate: float) -> None:
    """At least half a decibel a bit beyond 12; the bound for 16 bits at 0.10 is 0.53 · 6.02 dB a bit."""
    x, rates = weights(kind), FlipRates.uniform(rate, 12)
    single, readout = design_channel_optimized(x, rates, restore_gain=False)
    before = 10 * np.log10(error_moments(readout, rates, word_sums(single, x)).mse)
    for bits in (14, 16):
        code = design_two_words(x, bits, rate, rate)
        after = 10 * np.log10(pair_moments(code, rate, rate, cell_sums(code, x)).mse)
        assert after < before - 0.5 * (bits - 12)
        assert pair_list_bits(code) < 1 << 14  # where a table of 12-bit words takes 2^17


def test_two_words_beat_one_word_stored_twice() -> None:
    """The same 8-bit words twice, read by their joint posterior, against 16 bits designed as two words."""
    x, rate = weights("gaussian"), 0.1
    single, _readout = design_channel_optimized(x, FlipRates.uniform(rate, 8), restore_gain=False)
    words = single.words
    cells = word_sums(single, x)
    means = cells.first[words] / cells.count[words]
    twice = TwoWordCode(16, single.boundaries, words << 8 | words, cells.count[words] / SIZE, means, rate, rate)
    joint = design_two_words(x, 16, rate, rate)
    worse, better = (pair_moments(code, rate, rate, cell_sums(code, x)).mse for code in (twice, joint))
    assert better < 0.8 * worse


@pytest.mark.parametrize("rate", [0.0, 1e-9])
def test_without_faults_a_weight_is_read_as_the_mean_of_its_cell(rate: float) -> None:
    x = weights("gaussian")
    code = design_two_words(x, 14, rate, rate)
    assert code.p01 == pytest.approx(max(rate, LEAST_RATE))
    np.testing.assert_allclose(code.table[code.encode(x)], code.means[code.cells(x)], rtol=1e-5, atol=1e-6)
    assert np.isfinite(code.table).all()


def test_restored_gain_makes_the_regression_slope_one() -> None:
    x = weights("laplace")
    code = design_two_words(x, 13, 0.1, 0.1)
    sums = cell_sums(code, x)
    gain = 1 / pair_slope(code, sums)
    draws = np.array([gain * read(code, x, 0.1, 0.1, seed) @ x / (x @ x) for seed in range(40)])
    assert gain > 1
    assert abs(draws.mean() - 1) < 4.5 * draws.std(ddof=1) / np.sqrt(len(draws))


def test_equal_weights_have_one_cell_and_importance_moves_cells() -> None:
    same = design_two_words(np.full(9, 0.25), 14, 0.1, 0.1)
    assert len(same.words) == 1
    np.testing.assert_array_equal(same.table, np.full(1 << 14, 0.25, dtype=np.float32))
    x = weights("gaussian")
    heavy = np.where(x > 0, 1000.0, 1.0)
    plain, biased = (design_two_words(x, 13, 0.05, 0.05, importance=i) for i in (None, heavy))
    errors = [pair_moments(c, 0.05, 0.05, cell_sums(c, x, heavy)).mse for c in (plain, biased)]
    assert errors[1] < errors[0]


def test_what_does_not_fit_is_refused() -> None:
    x = weights("gaussian")
    code = design_two_words(x, 13, 0.1, 0.1)
    for bits in (1, LONGEST_PAIR + 1):
        with pytest.raises(InputError, match=f"two words have 2 to {LONGEST_PAIR} bits together, not {bits}"):
            design_two_words(x, bits, 0.1, 0.1)
    with pytest.raises(InputError, match="needs weights, all of them finite"):
        design_two_words(np.array([1.0, np.nan]), 13, 0.1, 0.1)
    for change, message in (
        ({"bits": 5}, "does not fit in 5 bits"),
        ({"boundaries": code.boundaries[::-1]}, "not sorted"),
        ({"shares": -code.shares}, "positive shares"),
        ({"means": code.means[1:]}, "lacks boundaries, shares or means"),
        ({"p01": 0.0}, "flip rates between 0 and 1"),
    ):
        with pytest.raises(InputError, match=message):
            replace(code, **change)  # type: ignore[arg-type]
    assert replace(code) == code
    assert len({code, replace(code)}) == 1
    assert code != replace(code, p10=0.2)


@pytest.mark.parametrize("bits", [13, 15])
def test_settled_read_outs_do_not_depend_on_the_order_of_sums(bits: int) -> None:
    """Sums in other orders, forwards, backwards and pairwise, and of extended precision, round to the same floats."""
    x = np.random.default_rng(bits).standard_normal(20_000).astype(np.float32)
    code = design_two_words(x, bits, 0.06, 0.02)
    settled = np.setdiff1d(np.arange(1 << bits), code.unsettled())
    assert settled.size > (1 << bits) - 10
    matrix = code.stored_rates()
    assert (matrix == matrix.astype(np.float32)).all()
    words = np.arange(1 << bits)
    for dtype in (np.float64, np.longdouble):
        chances = np.ones((len(code.words), 1 << bits), dtype)
        for plane in range(bits):  # the other way round than the graph
            chances *= matrix.astype(dtype)[(code.words[:, None] >> plane) & 1, (words >> plane) & 1]
        below = chances * code.shares[:, None].astype(dtype)
        above = below * code.means[:, None].astype(dtype)
        for order in (slice(None), slice(None, None, -1)):
            ratio = np.cumsum(above[order], axis=0)[-1] / np.cumsum(below[order], axis=0)[-1]
            np.testing.assert_array_equal(ratio.astype(np.float32)[settled], code.table[settled])
        ratio = above.sum(axis=0) / below.sum(axis=0)
        np.testing.assert_array_equal(ratio.astype(np.float32)[settled], code.table[settled])
