from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtaml_onnx.block_codes import bch_parity, secded_columns, weight_distribution
from qtaml_onnx.errors import InputError
from qtaml_onnx.protection import (
    AUTO_CANDIDATES,
    Bch,
    Ideal,
    Ldpc,
    ParityNulling,
    Repetition,
    RobustCell,
    SecDed,
    cheapest,
    scheme,
)

EVERY = ("ideal", "robust-2-1e-06", "parity-8", *AUTO_CANDIDATES)


@pytest.mark.parametrize("name", EVERY)
def test_names_are_parsed_to_what_prints_them(name: str) -> None:
    found = scheme(name)
    assert found.name == name
    assert found == scheme(found.name)


@pytest.mark.parametrize("name", EVERY)
def test_parity_bits_are_whole_codewords(name: str) -> None:
    found = scheme(name)
    data, parity = found.block
    assert found.parity_bits(0) == 0
    assert found.parity_bits(7 * data) == 7 * parity
    assert found.overhead == parity / data
    if not isinstance(found, RobustCell | Ideal):
        assert found.parity_bits(7 * data + 1) == 8 * parity


def test_published_parameters() -> None:
    assert scheme("secded-72-64").parity_bits(64_000) == 8000
    assert scheme("bch-127-64-10").parity_bits(6400) == 6300
    assert scheme("repetition-3").parity_bits(10) == 20
    assert scheme("ldpc-3-5").overhead == pytest.approx(1.5)
    assert scheme("ldpc-3-6").overhead == pytest.approx(1.0)
    assert scheme("ldpc-3-4").overhead == pytest.approx(3.0)
    assert scheme("robust-1.5-1e-6").parity_bits(1001) == 501
    for n, k, t in (
        (15, 11, 1),
        (15, 7, 2),
        (15, 5, 3),
        (31, 21, 2),
        (63, 45, 3),
        (127, 64, 10),
        (255, 131, 18),
        (1023, 923, 10),
    ):
        assert n - bch_parity(n, t) == k  # tables of Lin & Costello, Error Control Coding


def decode_by_syndrome(columns: list[int], patterns: list[tuple[int, ...]], errors: np.ndarray) -> np.ndarray:
    """Wrong bits left after correcting every listed error pattern by its syndrome; errors bool [words, n]."""
    table = {0: ()}
    for pattern in patterns:
        syndrome = 0
        for position in pattern:
            syndrome ^= columns[position]
        assert syndrome not in table, "two correctable patterns share a syndrome"
        table[syndrome] = pattern
    lookup = np.zeros((1 << max(columns).bit_length(), errors.shape[1]), dtype=bool)
    for syndrome, pattern in table.items():
        lookup[syndrome, list(pattern)] = True
    syndromes = np.zeros(len(errors), dtype=np.int64)
    for position, column in enumerate(columns):
        syndromes ^= errors[:, position] * column
    return errors ^ lookup[syndromes]


def within_5_sigma(wrong: np.ndarray, expected: float) -> bool:
    """Whether the mean of wrong bits a position agrees; words are independent, the bits of one are not."""
    share = wrong.mean(axis=1)
    return bool(abs(share.mean() - expected) < 5 * share.std() / np.sqrt(len(share)))


@pytest.mark.parametrize("p", [0.003, 0.02, 0.1])
@pytest.mark.parametrize(("n", "k"), [(72, 64), (22, 16), (8, 4)])
def test_secded_closed_form_against_a_decoder(n: int, k: int, p: float) -> None:
    rng = np.random.default_rng([n, k])
    errors = rng.random((60_000, n)) < p
    wrong = decode_by_syndrome(list(secded_columns(n, k)), [(i,) for i in range(n)], errors)
    assert wrong.any()
    assert within_5_sigma(wrong, SecDed(n, k).residual(p))


def test_secded_weights_by_enumeration() -> None:
    """All 16 words of the extended (8, 4) Hamming code: 1, 14 of weight 4, 1."""
    assert weight_distribution(8, 4) == (1, 0, 0, 0, 14, 0, 0, 0, 1)
    assert sum(weight_distribution(72, 64)) == 2**64
    assert weight_distribution(72, 64)[1:4] == (0, 0, 0)  # distance 4
    columns = secded_columns(22, 16)
    weight_four = sum(1 for chosen in combinations(columns, 4) if chosen[0] ^ chosen[1] ^ chosen[2] ^ chosen[3] == 0)
    assert weight_distribution(22, 16)[4] == weight_four


def test_secded_at_tiny_rates_is_quadratic() -> None:
    """Two errors stay: (n − 1) p² a bit; and at 0.10 a word is correctable 0.46 % of the time."""
    assert SecDed().residual(1e-9) == pytest.approx(71e-18, rel=1e-6)
    assert pytest.approx(0.0046, abs=5e-5) == 0.9**72 + 72 * 0.1 * 0.9**71
    assert SecDed().residual(0.1) > 0.1  # miscorrection makes it worse than no code at all


def bch_columns(m: int, polynomial: int, t: int) -> list[int]:
    """Columns α^i, α^3i … of the parity-check matrix, as integers of t·m bits."""
    power, powers = 1, []
    for _ in range((1 << m) - 1):
        powers.append(power)
        power <<= 1
        if power >> m:
            power ^= polynomial
    size = len(powers)
    return [sum(powers[i * (2 * s + 1) % size] << (m * s) for s in range(t)) for i in range(size)]


@pytest.mark.parametrize("p", [0.01, 0.05])
@pytest.mark.parametrize(("m", "polynomial", "k"), [(4, 0b10011, 7), (5, 0b100101, 21)])
def test_bch_bound_against_a_decoder(m: int, polynomial: int, k: int, p: float) -> None:
    """Two-error-correcting codes, where miscorrection is common: the bound holds and is not loose."""
    n = (1 << m) - 1
    errors = np.random.default_rng(m).random((200_000, n)) < p
    patterns = [*((i,) for i in range(n)), *combinations(range(n), 2)]
    wrong = decode_by_syndrome(bch_columns(m, polynomial, 2), patterns, errors).mean(axis=1)
    spread = 5 * wrong.std() / np.sqrt(len(wrong))
    bound = Bch(n, k, 2).residual(p)
    assert 0.6 * bound - spread < wrong.mean() < bound + spread


def test_bch_beyond_t_is_the_binomial_tail() -> None:
    errors = np.random.default_rng(0).random((100_000, 127)) < 0.06
    wrong = errors & (errors.sum(axis=1) > 10)[:, None]
    assert within_5_sigma(wrong, Bch(127, 64, 10).residual(0.06) - 2.4e-5 * 10 / 127 * (errors.sum(axis=1) > 10).mean())


@pytest.mark.parametrize("n", [3, 5, 9])
def test_repetition_against_majority(n: int) -> None:
    flips = np.random.default_rng(n).random((200_000, n)) < 0.1
    wrong = flips.sum(axis=1, keepdims=True) > n // 2
    assert within_5_sigma(wrong, Repetition(n).residual(0.1))
    assert Repetition(3).residual(0.1) == pytest.approx(0.028, rel=1e-12)


@pytest.mark.parametrize("k", [1, 8, 31])
def test_parity_nulling_against_simulation(k: int) -> None:
    p = 0.04
    flips = np.random.default_rng(k).random((200_000, k + 1)) < p
    odd = flips.sum(axis=1) % 2 == 1
    assert within_5_sigma(odd[:, None], ParityNulling(k).nulled(p))
    assert within_5_sigma((flips & ~odd[:, None])[:, :k], ParityNulling(k).residual(p))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([name for name in EVERY if not name.startswith(("secded", "robust"))]),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
)
def test_residuals_rise_with_the_raw_rate(name: str, low: float, high: float) -> None:
    found = scheme(name)
    low, high = sorted((low, high))
    assert -1e-15 <= found.residual(low) <= found.residual(high) * (1 + 1e-9) + 1e-15
    assert found.residual(0.0) == 0.0


def test_ldpc_works_where_short_codes_fail() -> None:
    assert scheme("ldpc-3-5").residual(0.10) < 1e-4 < scheme("bch-127-64-10").residual(0.10)
    assert scheme("ldpc-3-6").residual(0.07) < 1e-4
    assert scheme("ldpc-3-4").residual(0.145) < 1e-4
    for name, beyond in (("ldpc-3-6", 0.09), ("ldpc-3-5", 0.12), ("ldpc-3-4", 0.18)):  # above the thresholds
        assert 0.3 * beyond < scheme(name).residual(beyond) <= beyond
    assert scheme("ldpc-3-5").residual(0.4) == 0.4


def test_ldpc_table_is_what_the_decoder_does() -> None:
    """The shipped figures against a fresh simulation: one rate below and one above the threshold of (3, 5)."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import ldpc

    sys.path.pop(0)
    checks = ldpc.regular_graph(3, 5)
    assert checks.shape == (6000, 5)
    assert (np.bincount(checks.ravel()) == 3).all()
    pairs = {pair for check in checks.tolist() for pair in combinations(sorted(check), 2)}
    assert len(pairs) == 6000 * 10  # no two variables share two checks: no cycle of length 4
    rng = np.random.default_rng(2024)
    assert not ldpc.decode(checks, rng.random((10_000, 4)) < 0.095, 0.095).any()
    share = ldpc.decode(checks, rng.random((10_000, 4)) < 0.13, 0.13).mean(axis=0)
    assert abs(share.mean() - scheme("ldpc-3-5").residual(0.13)) < 0.01


def test_cheapest_is_the_least_overhead_that_meets_the_target() -> None:
    for p, target in ((1e-6, 1e-9), (1e-4, 1e-9), (0.01, 1e-6), (0.10, 1e-4), (0.14, 1e-3)):
        found = cheapest(p, target)
        assert found.residual(p) <= target
        for name in AUTO_CANDIDATES:
            other = scheme(name)
            assert other.overhead >= found.overhead or other.residual(p) > target
    assert isinstance(cheapest(0.10, 1e-4), Ldpc)
    assert scheme("auto", rate=0.01, target_residual=1e-6) == cheapest(0.01, 1e-6)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("ecc", "unknown protection"),
        ("repetition", "unknown protection"),
        ("repetition-4", "odd"),
        ("repetition-x", "unknown protection"),
        ("secded-72-70", "3 to 10"),
        ("secded-72-68", "protect at most"),
        ("bch-127-65-10", "k is 64 at most"),
        ("bch-127-64", "unknown protection"),
        ("bch-2-1-1", "no such code"),
        ("ldpc-4-5", "ldpc-3-5"),
        ("robust-0.5-0", "below 1"),
        ("robust-2-0.7", "outside"),
        ("parity-0", "at least one"),
        ("auto", "raw flip rate"),
    ],
)
def test_bad_names_are_refused(name: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        scheme(name)


@pytest.mark.parametrize("name", EVERY)
def test_bad_rates_are_refused(name: str) -> None:
    for p in (-0.1, 0.6, float("nan")):
        with pytest.raises(InputError, match="outside"):
            scheme(name).residual(p)
    with pytest.raises(InputError, match="-1 bits"):
        scheme(name).parity_bits(-1)


def test_out_of_reach() -> None:
    with pytest.raises(InputError, match="no known scheme"):
        cheapest(0.3, 1e-9)
