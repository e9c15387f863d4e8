"""Word sums by a fine histogram, against the sums over the weights one by one."""

from __future__ import annotations

import numpy as np
import pytest

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.storage import Code, design_channel_optimized, uniform_code, word_sums
from qtaml_onnx.storage.codes import CHUNK
from qtaml_onnx.storage.histogram import sums_under

SIZE = 3 * CHUNK + 17


def weights(seed: int, spread: float = 0.25) -> np.ndarray:
    return (np.random.default_rng(seed).laplace(size=(SIZE,)) * spread).astype(np.float32)


def slow_sums(code: Code, x: np.ndarray) -> np.ndarray:
    """Each weight's word by a search among the boundaries, in float64."""
    words = code.words[np.searchsorted(code.boundaries, x.astype(np.float64), side="right")]
    size = 1 << code.bits
    return np.stack([np.bincount(words, x.astype(np.float64) ** power, size) for power in range(3)])


@pytest.mark.parametrize("spread", [1e-30, 0.25, 1e30])
@pytest.mark.parametrize("bits", [1, 2, 8, 12])
def test_the_sums_are_those_of_the_words_that_are_stored(bits: int, spread: float) -> None:
    rng = np.random.default_rng(bits)
    boundaries = np.sort(rng.laplace(size=(1 << bits) - 1)) * spread
    code = Code("any", bits, boundaries, rng.permutation(1 << bits), np.zeros(1 << bits))
    x = weights(7, spread)
    near = boundaries.astype(np.float32)
    x[: len(near)], x[len(near) : 2 * len(near)] = near, np.nextafter(near, np.float32(-np.inf))
    with np.errstate(over="ignore"):
        found, slow = sums_under(x)(code), slow_sums(code, x)
    np.testing.assert_array_equal(found.count, np.bincount(code.encode(x), minlength=1 << bits))
    np.testing.assert_array_equal(found.count, slow[0])
    magnitude = np.bincount(code.encode(x), np.abs(x.astype(np.float64)), 1 << bits)
    assert (np.abs(found.first - slow[1]) <= 1e-12 * magnitude).all()
    np.testing.assert_allclose(found.second, slow[2], rtol=1e-12)


def test_weights_beyond_all_boundaries_and_boundaries_beyond_all_weights() -> None:
    x = weights(1)
    for boundaries in ([-1e9, 1e9], [100.0, 101.0], [-101.0, -100.0], [-np.inf, 0.0], [0.0, 0.0], [0.1, np.inf]):
        code = Code("any", 2, np.array(boundaries), np.array([2, 0, 3]), np.zeros(4))
        np.testing.assert_array_equal(sums_under(x)(code).count, slow_sums(code, x)[0])


def test_equal_weights_and_few_weights_are_summed_one_by_one() -> None:
    code = uniform_code("gray", 4)
    for x in (np.full(SIZE, 0.3, np.float32), weights(2)[:1000]):
        expected, found = word_sums(code, x), sums_under(x)(code)
        for field in ("count", "first", "second"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


def test_a_design_with_a_histogram_has_the_same_words() -> None:
    """The code is the same to the bit, and its read-out to the rounding of the sums."""
    x, rates = weights(3), FlipRates.uniform(0.05, 6)
    slow = design_channel_optimized(x, rates)
    fast = design_channel_optimized(x, rates, sums_under=sums_under(x))
    np.testing.assert_array_equal(fast[0].boundaries, slow[0].boundaries)
    np.testing.assert_array_equal(fast[0].words, slow[0].words)
    np.testing.assert_array_equal(fast[0].encode(x), slow[0].words[np.searchsorted(slow[0].boundaries, x, "right")])
    np.testing.assert_allclose(fast[1].table, slow[1].table, rtol=1e-12, atol=1e-15)


def test_few_weights_are_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x, code = weights(4), uniform_code("twos-complement", 8)
    sums = sums_under(x)
    sums(code)
    looked_at = []
    cells = Code.cells
    monkeypatch.setattr(Code, "cells", lambda self, part: looked_at.append(part.size) or cells(self, part))
    sums(code)
    assert 0 < sum(looked_at) < 0.02 * x.size
