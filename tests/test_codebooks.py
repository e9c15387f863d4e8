"""Shared code books: what sharing costs, and the gain that undoes the shrinkage of a posterior mean."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.codebooks import CodeBooks, regression_slope, restored_gain
from qtaml_onnx.fault_inject import fault_inject
from qtaml_onnx.storage import ReadOut, word_sums
from qtaml_onnx.storage.channel_optimized import design_channel_optimized

Array = NDArray[Any]


def gaussian(size: int, seed: int, deviation: float = 0.25) -> Array:
    return (deviation * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def decibel(ratio: float) -> float:
    return float(10 * np.log10(ratio))


@pytest.mark.parametrize(("rate", "bits"), [(0.01, 5), (0.05, 4), (0.1, 3)])
def test_sharing_costs_less_than_half_a_decibel(rate: float, bits: int) -> None:
    """Gaussian tensors of several sizes, and a Laplacian and a tail-less one in the pool."""
    rates = FlipRates.uniform(rate, bits)
    rng = np.random.default_rng(3)
    tensors = [gaussian(size, seed) for seed, size in enumerate((600, 3000, 20000))]
    others = [0.25 * rng.laplace(size=3000) / np.sqrt(2)]
    pool = [*tensors, *(other.astype(np.float32) for other in others)]
    book = CodeBooks(pool, rates).book(bits, 0)
    for x in tensors:
        _gain, shared = restored_gain(book.readout, rates, word_sums(book.code, x))
        code, readout = design_channel_optimized(x, rates, restore_gain=False)
        _gain, own = restored_gain(readout, rates, word_sums(code, x))
        assert decibel(shared / own) <= 0.5


@pytest.mark.parametrize(("p01", "p10"), [(0.05, 0.05), (0.02, 0.12), (0.7, 0.6)])
def test_restored_gain_gives_the_regression_slope_one(p01: float, p10: float) -> None:
    """Monte-Carlo over 400 draws of faults: slope of what is read on the weight, and the mean-square error."""
    rates = FlipRates.asymmetric(p01, p10, 4)
    x = gaussian(3000, 5) + np.float32(0.05)
    book = CodeBooks([gaussian(5000, 6)], rates).book(4, 0)
    sums = word_sums(book.code, x)
    gain, noise = restored_gain(book.readout, rates, sums)
    words, table = book.code.encode(x), book.readout.table * gain
    read = table[fault_inject(np.broadcast_to(words, (400, len(words))), 7, rates.as_array(), bits=4)]
    slopes = read @ x.astype(np.float64) / (x.astype(np.float64) @ x)
    errors = np.mean((read - x) ** 2, axis=1)
    for values, expected in ((slopes, 1.0), (errors, noise)):
        assert abs(np.mean(values) - expected) <= 5 * np.std(values, ddof=1) / np.sqrt(len(values))
    assert np.std(slopes) / np.sqrt(400) < 0.01
    assert gain > 1.01
    assert regression_slope(table, rates, sums) == pytest.approx(1.0, rel=1e-12)


def test_no_gain_where_nothing_is_read() -> None:
    """At rate 1/2 a word says nothing: slope 0, and the gain stays 1; zeros have no slope at all."""
    rates = FlipRates.uniform(0.5, 3)
    x = gaussian(500, 1)
    book = CodeBooks([x], rates).book(3, 0)
    gain, noise = restored_gain(book.readout, rates, word_sums(book.code, x))
    assert gain == 1.0
    assert noise == pytest.approx(np.var(x.astype(np.float64)), rel=1e-3)
    assert regression_slope(np.ones(8), rates, word_sums(book.code, np.zeros(5, np.float32))) == 1.0


def test_noise_to_signal_of_a_book_is_that_of_its_pool() -> None:
    """Important tensors count more: the book's figure is the weighted mean-square error over the weighted power."""
    rates = FlipRates.uniform(0.05, 4)
    first, second = gaussian(2000, 1), gaussian(500, 2, deviation=0.1)
    importance = [1.0, 3.0]
    book = CodeBooks([first, second], rates, importance=importance).book(4, 0)
    pool = np.concatenate([first, second])
    share = np.concatenate([np.full(2000, 1.0 / 2000), np.full(500, 3.0 / 500)])
    sums = word_sums(book.code, pool, share)
    _gain, noise = restored_gain(book.readout, rates, sums)
    power = float(share @ pool.astype(np.float64) ** 2 / share.sum())
    assert book.noise_to_signal == pytest.approx(noise / power, rel=1e-9)
    one = CodeBooks([first, second], rates, importance=[0.0, 1.0]).book(4, 0)
    alone = CodeBooks([second], rates).book(4, 0)
    assert one.noise_to_signal == pytest.approx(alone.noise_to_signal, rel=1e-6)
    none = CodeBooks([first, second], rates, importance=[0.0, 0.0]).book(4, 0)  # nothing matters: all count alike
    assert none.noise_to_signal == CodeBooks([first, second], rates).book(4, 0).noise_to_signal


def test_protected_planes_are_the_worst_ones() -> None:
    rates = FlipRates((0.1, 0.0, 0.2, 0.1, 0.3), (0.1, 0.0, 0.0, 0.1, 0.3))
    books = CodeBooks([gaussian(500, 1)], rates, residual=0.01)
    assert books.rates(5, 0) == (rates, ())
    kept, planes = books.rates(5, 2)
    assert planes == (3, 4)  # of planes 0, 2 and 3, which flip alike, the highest
    assert kept.p01 == (0.1, 0.0, 0.2, 0.01, 0.01)
    assert books.rates(3, 1)[1] == (2,)
    assert books.rates(5, 5)[0] == FlipRates.uniform(0.01, 5)


def test_more_protection_and_longer_words_never_add_noise() -> None:
    rates = FlipRates.uniform(0.08, 4)
    books = CodeBooks([gaussian(3000, 1)], rates, residual=0.001)
    protected = [books.book(4, m).noise_to_signal for m in range(5)]
    assert all(after < before for before, after in pairwise(protected))
    lengths = [books.book(bits, 0).noise_to_signal for bits in range(1, 5)]
    assert all(after < before for before, after in pairwise(lengths))
    assert books.book(4, 2) is books.book(4, 2)


def test_equal_weights_are_no_trouble() -> None:
    rates = FlipRates.uniform(0.1, 3)
    book = CodeBooks([np.full(100, 0.25, np.float32), np.zeros(7, np.float32)], rates).book(3, 0)
    assert np.isfinite(book.noise_to_signal)
    zeros = CodeBooks([np.zeros(7, np.float32)], rates).book(3, 0)
    assert zeros.noise_to_signal == 0.0
    np.testing.assert_array_equal(ReadOut("zero", zeros.readout.table).table, np.zeros(8))
