"""Bits stored several times: the closed form of what a majority leaves, against simulation and enumeration."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_inject import fault_inject
from qtaml_onnx.storage.repetition import MOST_COPIES, any_wrong, copies_needed, majority, repeat, residual_rate


@pytest.mark.parametrize("copies", [1, 3, 5])
def test_residual_rate_by_enumeration(copies: int) -> None:
    """Every pattern of flips of one bit."""
    p = 0.07
    wrong = sum(
        p ** sum(flips) * (1 - p) ** (copies - sum(flips))
        for flips in itertools.product((0, 1), repeat=copies)
        if 2 * sum(flips) > copies
    )
    assert residual_rate(FlipRates.uniform(p, 8), copies) == pytest.approx(wrong, rel=1e-12)


@pytest.mark.parametrize(("copies", "p"), [(1, 0.05), (3, 0.05), (3, 0.2), (5, 0.1), (7, 0.2), (9, 0.3)])
def test_residual_rate_by_simulation(copies: int, p: float) -> None:
    """The fault operator's twin on random numbers: wrong bits after the majority, within 99.9 % of the binomial."""
    numbers = np.random.default_rng(1).integers(0, 1 << 16, 40_000, dtype=np.uint16)
    faulty = fault_inject(
        repeat(numbers, copies), 5, np.full((2, 8), p, np.float32), stream=3, bits=8, exposed_planes=255
    )
    wrong = np.bitwise_count(majority(faulty, numbers.dtype) ^ numbers).sum()
    low, high = binom.interval(0.999, 16 * len(numbers), residual_rate(FlipRates.uniform(p, 8), copies))
    assert low <= wrong <= high


def test_the_worst_plane_and_direction_count() -> None:
    p01, p10 = [0.01] * 8, [0.02] * 8
    p10[5] = 0.2
    rates = FlipRates(tuple(p01), tuple(p10))
    assert residual_rate(rates, 3) == pytest.approx(3 * 0.2**2 * 0.8 + 0.2**3, rel=1e-12)


def test_any_wrong_by_simulation() -> None:
    """Share of images of 100 bytes with a wrong bit, within 99.9 % of the binomial."""
    rates, images = FlipRates.uniform(0.05, 8), 4000
    numbers = np.random.default_rng(2).integers(0, 256, 100 * images, dtype=np.uint8)
    faulty = fault_inject(
        repeat(numbers, 5), 1, np.full((2, 8), 0.05, np.float32), stream=0, bits=8, exposed_planes=255
    )
    hit = (majority(faulty, numbers.dtype) != numbers).reshape(images, 100).any(axis=1).sum()
    low, high = binom.interval(0.999, images, any_wrong(rates, 5, 800))
    assert low <= hit <= high
    assert any_wrong(rates, 5, 800) == pytest.approx(1 - (1 - residual_rate(rates, 5)) ** 800, rel=1e-9)


@given(st.floats(1e-6, 0.25), st.integers(1, 10**7), st.sampled_from([0.5, 0.01, 1e-4]))
def test_copies_needed_is_the_smallest(p: float, bits: int, accepted: float) -> None:
    rates = FlipRates.uniform(p, 8)
    try:
        copies = copies_needed(rates, bits, accepted)
    except InputError:
        assert any_wrong(rates, MOST_COPIES, bits) > accepted
        return
    assert any_wrong(rates, copies, bits) <= accepted
    assert copies == 1 or any_wrong(rates, copies - 2, bits) > accepted


def test_hand_figures() -> None:
    assert residual_rate(FlipRates.uniform(0.1, 8), 3) == pytest.approx(0.028, rel=1e-12)
    assert residual_rate(FlipRates.uniform(0.1, 8), 5) == pytest.approx(
        sum(comb(5, k) * 0.1**k * 0.9 ** (5 - k) for k in (3, 4, 5)), rel=1e-12
    )
    assert copies_needed(FlipRates.uniform(0.0, 8), 10**9) == 1


def test_out_of_range() -> None:
    for copies in (0, 2, -1, MOST_COPIES + 2):
        with pytest.raises(InputError, match="give an odd number from 1 to 31"):
            residual_rate(FlipRates.uniform(0.1, 8), copies)
    with pytest.raises(InputError, match="even 31 copies leave wrong bits among 100000"):
        copies_needed(FlipRates.uniform(0.3, 8), 100_000)
    with pytest.raises(InputError):
        residual_rate(FlipRates.uniform(0.1, 4), 3)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=30), st.sampled_from([1, 3, 9]))
def test_repeat_and_majority_are_inverse(values: list[int], copies: int) -> None:
    numbers = np.array(values, np.uint8)
    words = repeat(numbers, copies)
    assert words.shape == (copies, len(values), 1)
    np.testing.assert_array_equal(majority(words, numbers.dtype), numbers)
    spoiled = words.copy()
    spoiled[: copies // 2] ^= 255  # any minority of wrong copies is outvoted
    np.testing.assert_array_equal(majority(spoiled, numbers.dtype), numbers)
