from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtaml_onnx.channel import FlipRates, capacity, gaussian_noise_to_signal_bound, transition_matrix
from qtaml_onnx.errors import InputError
from qtaml_onnx.storage.assignment import anneal_assignment
from qtaml_onnx.storage.channel_optimized import design_channel_optimized, lower_envelope
from qtaml_onnx.storage.codes import Code, best_mask, uniform_code, word_histogram
from qtaml_onnx.storage.readout import ReadOut, design_readout, error_moments, word_sums


def gaussian(seed: int = 0, size: int = 20_000) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(size)
    return x / np.abs(x).max()


def mse(code: Code, readout: ReadOut, rates: FlipRates, x: np.ndarray, importance: np.ndarray | None = None) -> float:
    return error_moments(readout, rates, word_sums(code, x, importance)).mse


def decibel(ratio: float) -> float:
    return float(10 * np.log10(ratio))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 60), st.booleans())
def testlower_envelope_is_the_dense_argmin(seed: int, lines: int, rounded: bool) -> None:
    """Ties and parallel lines included (rounded draws): the cost is the minimum everywhere, if not the line."""
    rng = np.random.default_rng(seed)
    m1, m2 = rng.standard_normal(lines), rng.standard_normal(lines)
    if rounded:
        m1, m2 = np.round(m1), np.round(m2)
    words, boundaries = lower_envelope(m1, m2)
    x = rng.standard_normal(200) * 2
    cost = m2[None, :] - 2 * x[:, None] * m1[None, :]
    chosen = words[np.searchsorted(boundaries, x, side="right")]
    np.testing.assert_allclose(cost[np.arange(200), chosen], cost.min(axis=1), atol=1e-9)
    assert (np.diff(m1[words]) > 0).all()


def test_annealing_finds_the_best_assignment_of_a_small_code() -> None:
    """Against all 8·7·6·5 ways to give four cells distinct words of three bits."""
    rates = FlipRates((0.05, 0.1, 0.2), (0.1, 0.1, 0.15))
    cells = np.array([[2.0, 5.0, 4.0, 1.0], [-3.0, -2.0, 3.0, 2.0]])
    dense = transition_matrix(rates)

    def score(words: np.ndarray) -> np.ndarray:  # [..., 4] words
        mass, first = (np.einsum("i,...iv->...v", row, dense[words]) for row in cells)
        return (first**2 / mass).sum(axis=-1)

    grid = np.stack(np.meshgrid(*[np.arange(8)] * 4), axis=-1).reshape(-1, 4)
    distinct = (np.diff(np.sort(grid, axis=1), axis=1) > 0).all(axis=1)
    best = score(grid[distinct]).max()
    found = [anneal_assignment(rates, np.array([0, 1, 2, 3]), cells, 1.0, 400, seed) for seed in range(5)]
    assert all(len(set(words.tolist())) == 4 for words in found)
    assert max(map(score, found)) == pytest.approx(best, rel=1e-12)
    assert min(map(score, found)) > score(np.arange(4))


@pytest.mark.parametrize("bits", [9, 10])
def test_annealing_long_words_only_improves(bits: int) -> None:
    rates = FlipRates.uniform(0.1, bits)
    cells = np.stack([np.ones(12), np.linspace(-1, 1, 12)])
    start = np.arange(12) << (bits - 4)
    dense = transition_matrix(rates)

    def score(words: np.ndarray) -> float:
        mass, first = cells @ dense[words]
        return float((first**2 / mass).sum())

    found = anneal_assignment(rates, start, cells, 0.1, 60, seed=1)
    assert len(set(found.tolist())) == 12
    assert score(found) > score(start) + 0.1


def test_rates_zero_give_lloyd_and_max() -> None:
    """The optimal quantiser of a Gaussian: distortions of Max (1960), Table I, and Panter & Dite's limit."""
    x = gaussian(1, 200_000)
    for bits, distortion in ((1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497), (5, 0.002499), (8, 4.15e-5)):
        zero = FlipRates.uniform(0.0, bits)
        code, readout = design_channel_optimized(x, zero, restore_gain=False)
        assert mse(code, readout, zero, x) / x.var() == pytest.approx(distortion, rel=0.04)
        used = np.unique(code.encode(x))
        np.testing.assert_allclose(code.levels[used], readout.table[used], atol=1e-9)


@pytest.mark.parametrize(
    ("rate", "limit"), [(0.01, -21.4), (0.05, -13.6), (0.10, -9.5)]
)  # the alternation alone, from natural order: −20.2, −13.2, −9.4 dB
def test_gaussian_figures_at_8_bits(rate: float, limit: float) -> None:
    x, rates = gaussian(2), FlipRates.uniform(rate, 8)
    code, readout = design_channel_optimized(x, rates, restore_gain=False)
    found = mse(code, readout, rates, x) / x.var()
    assert decibel(gaussian_noise_to_signal_bound(capacity(rates))) < decibel(found) < limit


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_never_worse_than_twos_complement_with_posterior_mean(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = int(rng.integers(1, 8))
    rates = FlipRates(tuple(rng.uniform(0, 0.6, bits)), tuple(rng.uniform(0, 0.6, bits))).protect(
        rng.choice(bits, rng.integers(0, bits + 1), replace=False).tolist(), 0.0
    )
    x = rng.standard_t(rng.integers(2, 8), int(rng.integers(1, 2000)))
    x = (x / np.abs(x).max()).astype(np.float32)
    importance = rng.exponential(size=x.shape) if seed % 2 else None
    code, readout = design_channel_optimized(x, rates, importance=importance, restore_gain=False)
    baseline = uniform_code("twos-complement", bits)
    sums = word_sums(baseline, x, importance)
    limit = error_moments(design_readout("posterior-mean", baseline, rates, sums), rates, sums).mse
    assert mse(code, readout, rates, x, importance) <= limit * (1 + 1e-9) + 1e-15


@pytest.mark.parametrize("protected", [0, 2, 5, 8])
def test_protected_planes_help_and_end_at_the_error_free_code(protected: int) -> None:
    x = gaussian(3)
    rates = FlipRates.uniform(0.1, 8).protect(range(8 - protected, 8))
    code, readout = design_channel_optimized(x, rates, restore_gain=False)
    found = decibel(mse(code, readout, rates, x) / x.var())
    assert np.isfinite(readout.table).all()
    least = {0: -9.5, 2: -15.5, 5: -28.0, 8: -43.5}
    assert found < least[protected]


def test_one_to_zero_faults_only() -> None:
    """p01 = 0, p10 = 0.10: less than a third of the error that two's complement has, whatever reads it."""
    x, rates = gaussian(4), FlipRates.asymmetric(0.0, 0.1, 8)
    twos = uniform_code("twos-complement", 8)
    sums = word_sums(twos, x)
    reference = error_moments(design_readout("affine", twos, rates, sums), rates, sums).mse
    code, readout = design_channel_optimized(x, rates, restore_gain=False)
    optimized = mse(code, readout, rates, x)
    assert optimized < reference / 3
    posterior = error_moments(design_readout("posterior-mean", twos, rates, sums), rates, sums).mse
    assert optimized < posterior / 3
    plain = uniform_code("sign-magnitude", 8)
    masked = uniform_code("sign-magnitude", 8, best_mask(rates, word_histogram(plain.encode(x), 8)))
    sums = word_sums(masked, x)
    assert error_moments(design_readout("affine", masked, rates, sums), rates, sums).mse < reference / 3


def test_complemented_planes_pay_where_ones_are_fragile_and_common() -> None:
    """Offset binary of small positive weights: the top bit is nearly always 1."""
    x, rates = np.abs(gaussian(5)) * 0.2, FlipRates.asymmetric(0.0, 0.1, 8)
    plain = uniform_code("offset-binary", 8)
    masked = uniform_code("offset-binary", 8, best_mask(rates, word_histogram(plain.encode(x), 8)))
    found = {}
    for code in (plain, masked):
        sums = word_sums(code, x)
        found[code.name] = error_moments(design_readout("bitwise-affine", code, rates, sums), rates, sums).mse
    assert found[masked.name] < found["offset-binary"] / 3


def test_importance_moves_accuracy_to_where_it_counts() -> None:
    x, rates = gaussian(6), FlipRates.uniform(0.05, 6)
    importance = np.where(x > 0, 10.0, 0.1)
    flat = design_channel_optimized(x, rates, restore_gain=False)
    tilted = design_channel_optimized(x, rates, importance=importance, restore_gain=False)
    assert mse(*tilted, rates, x, importance) < 0.75 * mse(*flat, rates, x, importance)
    doubled = design_channel_optimized(x, rates, importance=np.full_like(x, 2.0), restore_gain=False)
    assert mse(*doubled, rates, x) == pytest.approx(mse(*flat, rates, x), rel=0.02)


@pytest.mark.parametrize("value", [0.0, -0.7])
def test_equal_weights_are_read_back_exactly(value: float) -> None:
    rates = FlipRates.uniform(0.1, 8)
    code, readout = design_channel_optimized(np.full((3, 4), value), rates)
    np.testing.assert_allclose(readout.table, value, atol=1e-15)
    assert code.encode(np.full((3, 4), value)).shape == (3, 4)


def test_few_weights_and_one() -> None:
    rates = FlipRates.uniform(0.02, 8)
    x = np.array([0.5, -1.0, 0.25], np.float32)
    code, readout = design_channel_optimized(x, rates, restore_gain=False)
    assert mse(code, readout, rates, x) < 1e-3  # three words, a long way apart
    single = design_channel_optimized([0.3], rates)
    np.testing.assert_allclose(single[1].table, 0.3)


@pytest.mark.parametrize(
    "rates", [FlipRates.uniform(0.0, 6), FlipRates.uniform(0.9, 6), FlipRates.asymmetric(0, 0.1, 6)]
)
@pytest.mark.parametrize("shape", ["sparse", "binary", "outlier", "tiny", "huge", "half"])
def test_odd_weights_are_stored_no_worse_than_by_their_mean(shape: str, rates: FlipRates) -> None:
    rng = np.random.default_rng(11)
    x = rng.standard_normal(3000)
    x = {
        "sparse": np.where(rng.random(3000) < 0.95, 0.0, x),
        "binary": np.sign(x),
        "outlier": np.append(1e-3 * x, 1.0),
        "tiny": 1e-20 * x,
        "huge": 1e20 * x,
        "half": x.astype(np.float16),
    }[shape]
    with np.errstate(all="raise", under="ignore"):
        code, readout = design_channel_optimized(x, rates, restore_gain=False)
    sums = word_sums(code, x)
    assert error_moments(readout, rates, sums).mse < (0.05 if rates.is_zero else 0.4) * sums.variance


def test_useless_channel_reads_as_the_mean() -> None:
    x = gaussian(12, 500)
    _, readout = design_channel_optimized(x, FlipRates.uniform(0.5, 4))
    np.testing.assert_allclose(readout.table, x.mean(), atol=1e-9)


def test_design_is_deterministic_and_truncates_the_rates() -> None:
    x = gaussian(7, 3000)
    first = design_channel_optimized(x, FlipRates.uniform(0.07, 8), bits=5)
    again = design_channel_optimized(x, FlipRates.uniform(0.07, 5))
    assert first == again
    assert first[0].bits == 5


@pytest.mark.parametrize(("bits", "gain"), [(10, 1.5), pytest.param(12, 3.0, marks=pytest.mark.slow)])
def test_longer_words_pay(bits: int, gain: float) -> None:
    x = gaussian(8)
    found = []
    for length in (8, bits):
        rates = FlipRates.uniform(0.1, length)
        found.append(decibel(mse(*design_channel_optimized(x, rates, restore_gain=False), rates, x) / x.var()))
    assert found[1] < found[0] - gain


def test_bad_input_is_refused() -> None:
    rates = FlipRates.uniform(0.1, 13)
    for bad, complaint in (
        (lambda: design_channel_optimized([0.1], rates), "1 to 12 bits"),
        (lambda: design_channel_optimized([0.1], FlipRates.uniform(0.1, 4), bits=8), "4 bit planes, but 8"),
        (lambda: design_channel_optimized([], rates, bits=8), "no weights"),
        (lambda: design_channel_optimized([0.1, np.inf], rates, bits=8), "NaN or infinite"),
        (lambda: design_channel_optimized([0.1, 0.2], rates, bits=8, importance=[1.0, -1.0]), "importance"),
    ):
        with pytest.raises(InputError, match=complaint):
            bad()
