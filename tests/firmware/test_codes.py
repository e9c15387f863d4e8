"""Encoders and decoders against theory: generators, distances, what must be corrected, and residual error rates."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from qtaml_onnx.block_codes import bch_parity
from qtaml_onnx.errors import InputError
from qtaml_onnx.firmware.bch import generator_polynomial
from qtaml_onnx.firmware.ldpc import LENGTH, LIMIT, box_plus, ldpc_code
from qtaml_onnx.firmware.parity import BchCoder, Coder, SecDedCoder, coder_of, ldpc_prior
from qtaml_onnx.protection import ParityNulling, scheme

SIGNIFICANCE = 1e-4  # of each statistical test, with fixed seeds


def coder(name: str, rate: float = 0.05) -> Coder:
    found = coder_of(scheme(name), rate)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("n", "t", "octal"),
    [  # Lin & Costello, Error Control Coding, 2nd edition, appendix C
        (15, 1, "23"),
        (15, 2, "721"),
        (15, 3, "2467"),
        (31, 3, "107657"),
        (63, 4, "166623567"),
        (63, 6, "157464165547"),
        (127, 10, "1206534025570773100045"),
        (255, 3, "156720665"),
    ],
)
def test_generators_are_the_published_ones(n: int, t: int, octal: str) -> None:
    assert oct(generator_polynomial(n, t))[2:] == octal


@pytest.mark.parametrize("n", [7, 31, 100, 127, 200, 255, 511, 1023])
@pytest.mark.parametrize("t", [1, 2, 3])
def test_generators_have_the_degree_that_the_ledger_counts(n: int, t: int) -> None:
    assert generator_polynomial(n, t).bit_length() - 1 == bch_parity(n, t)


def test_every_pattern_of_a_small_code_decodes_as_bounded_distance_decoding_must() -> None:
    """All 2^15 received words of BCH(15,7,2): to the code word within two bits if there is one, else a failure."""
    found = coder("bch-15-7-2")
    messages = np.arange(1 << 7)[:, None] >> np.arange(7) & 1
    words = np.concatenate([messages, found.encode(messages.astype(np.uint8).ravel()).reshape(-1, 8)], axis=1)
    distances = [(words[0] != other).sum() for other in words[1:]]
    assert min(distances) == 5
    received = (np.arange(1 << 15)[:, None] >> np.arange(15) & 1).astype(np.uint8)
    result = found.correct(received[:, :7].ravel(), received[:, 7:].ravel())
    near = (received[:, None, :] != words[None]).sum(axis=2)
    nearest, distance = near.argmin(axis=1), near.min(axis=1)
    np.testing.assert_array_equal(result.failed, distance > 2)
    expected = np.where(result.failed[:, None], received[:, :7], messages[nearest])
    np.testing.assert_array_equal(result.data.reshape(-1, 7), expected)
    assert result.corrected_bits == int(distance[distance <= 2].sum())


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_bch_corrects_every_pattern_of_up_to_t_errors(data: st.DataObject) -> None:
    n, k, t = data.draw(st.sampled_from([(127, 64, 10), (63, 45, 3), (100, 60, 5), (255, 131, 18), (1023, 923, 10)]))
    found = coder(f"bch-{n}-{k}-{t}")
    size = data.draw(st.integers(1, 3 * k))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    bits = rng.integers(0, 2, size, dtype=np.uint8)
    parity = found.encode(bits)
    assert parity.size == found.parity_size(size) == scheme(f"bch-{n}-{k}-{t}").parity_bits(size)
    wrong_bits, wrong_parity, flips = bits.copy(), parity.copy(), 0
    for block in range(-(-size // k)):
        kept = min(k, size - block * k)
        errors = rng.choice(kept + bch_parity(n, t), min(t, kept), replace=False)
        flips += errors.size
        wrong_bits[block * k + errors[errors < kept]] ^= 1
        wrong_parity[block * (n - k) + errors[errors >= kept] - kept] ^= 1
    result = found.correct(wrong_bits, wrong_parity)
    np.testing.assert_array_equal(result.data, bits)
    assert not result.failed.any()
    assert result.corrected_bits == flips


def test_secded_corrects_all_single_and_detects_all_double_errors() -> None:
    found = coder("secded-72-64")
    assert isinstance(found, SecDedCoder)
    bits = np.random.default_rng(0).integers(0, 2, 64, dtype=np.uint8)
    word = np.concatenate([bits, found.encode(bits)])
    pairs = [*((i,) for i in range(72)), *combinations(range(72), 2)]
    received = np.tile(word, (len(pairs), 1))
    for row, errors in enumerate(pairs):
        received[row, list(errors)] ^= 1
    result = found.correct(received[:, :64].ravel(), received[:, 64:].ravel())
    data = result.data.reshape(-1, 64)
    assert (data[:72] == bits).all()
    assert not result.failed[:72].any()
    assert result.failed[72:].all()
    np.testing.assert_array_equal(data[72:], received[72:, :64])


def residual(name: str, rate: float, bits: int, seed: int) -> tuple[NDArray[np.bool_], int, Coder]:
    """Wrong data bits after decoding, in random data with random flips; and failed blocks."""
    rng = np.random.default_rng(seed)
    found = coder(name, rate)
    data = rng.integers(0, 2, bits, dtype=np.uint8)
    parity = found.encode(data)
    read = (part ^ (rng.random(part.size) < rate) for part in (data, parity))
    result = found.correct(*read)
    return result.data != data, int(result.failed.sum()), found


@pytest.mark.parametrize(
    ("name", "rate"), [("repetition-3", 0.1), ("repetition-5", 0.2), ("secded-72-64", 0.01), ("secded-22-16", 0.05)]
)
def test_residual_rates_are_those_of_the_closed_form(name: str, rate: float) -> None:
    """The mean over blocks is normal: they are independent. The closed form averages over all positions of a code
    word, data and parity, which differ in a Hsiao code; hence 3 % beside the interval."""
    wrong, _failed, found = residual(name, rate, 16 * 64 * 600, seed=1)
    share = wrong.reshape(-1, found.data_bits).mean(axis=1)
    z = float(stats.norm.ppf(1 - SIGNIFICANCE / 2))
    expected = scheme(name).residual(rate)
    assert abs(share.mean() - expected) <= z * share.std() / np.sqrt(share.size) + 0.03 * expected
    assert expected < 0.8 * rate


@pytest.mark.parametrize(("name", "rate"), [("bch-63-45-3", 0.05), ("bch-127-64-10", 0.08)])
def test_residual_rate_of_bch_is_within_its_closed_form(name: str, rate: float) -> None:
    """What is left where decoding fails is exact; the share of miscorrections is estimated from above."""
    wrong, failed, found = residual(name, rate, 45 * 64 * 300, seed=2)
    assert isinstance(found, BchCoder)
    whole = wrong[: wrong.size // found.data_bits * found.data_bits].reshape(-1, found.data_bits)
    share = whole.mean(axis=1)
    half = float(stats.norm.ppf(1 - SIGNIFICANCE / 2)) * share.std() / np.sqrt(len(share))
    n, t = found.data_bits + found.parity_bits, found.errors
    left = rate * float(stats.binom.sf(t - 1, n - 1, rate))
    assert 0.8 * left - half <= share.mean() <= scheme(name).residual(rate) + half
    beyond = float(stats.binom.sf(t, n, rate))
    miscorrected = 1 - failed / (len(share) * beyond)
    assert -0.1 < miscorrected < 0.25


def test_parity_fails_as_often_as_the_closed_form_says() -> None:
    wrong, failed, found = residual("parity-8", 0.05, 8 * 40_000, seed=3)
    nulled = ParityNulling(8).nulled(0.05)
    assert stats.binomtest(failed, wrong.size // found.data_bits, nulled).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("family", [(3, 4)])
def test_ldpc_graph_is_regular_without_short_cycles_and_never_changes(family: tuple[int, int]) -> None:
    found = ldpc_code(*family)
    j, k = family
    assert found.checks.shape == (LENGTH * j // k, k)
    assert (np.bincount(found.checks.ravel()) == j).all()
    left, right = np.triu_indices(k, 1)
    pairs = found.checks[:, left].astype(np.int64) * LENGTH + found.checks[:, right]
    assert np.unique(pairs).size == pairs.size
    assert (found.checks[:, left] < found.checks[:, right]).all()
    assert found.sha256 == GRAPHS[family]


GRAPHS = {
    (3, 4): "25b15b7222ff5de246d77cf9c70aee288e72b43dec16ab229917bc6b53131358",
    (3, 5): "065c8aa68a39c5b1ee03818f7da6058794c3b042068a8c4d0b10043ee7f748f0",
    (3, 6): "e3b514ae536eb9485ab42d7b3dcf26143141f83bd014828d2c099a65b631753b",
}
"""The graphs are part of the image format: images written once must be read for ever."""


@pytest.mark.slow
@pytest.mark.parametrize("family", [(3, 5), (3, 6)])
def test_the_other_graphs_never_change(family: tuple[int, int]) -> None:
    assert ldpc_code(*family).sha256 == GRAPHS[family]


def test_ldpc_encodes_code_words_and_corrects_them() -> None:
    """At the first simulated rate of the family no word of 32 fails: one in 8,000 did."""
    found = coder("ldpc-3-4", 0.145)
    code = ldpc_code(3, 4)
    data = np.random.default_rng(0).integers(0, 2, 8 * code.data_bits - 1000, dtype=np.uint8)
    parity = found.encode(data)
    blocks = np.zeros((8, code.data_bits), np.uint8)
    blocks.reshape(-1)[: data.size] = data
    words = np.concatenate([blocks, parity.reshape(8, -1)], axis=1)
    assert not np.bitwise_xor.reduce(words[:, code.checks], axis=2).any()
    rng = np.random.default_rng(1)
    wrong = [rng.random(part.size) < 0.145 for part in (data, parity)]
    result = found.correct(data ^ wrong[0], parity ^ wrong[1])
    np.testing.assert_array_equal(result.data, data)
    assert not result.failed.any()
    assert result.corrected_bits == wrong[0].sum() + wrong[1].sum()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rate", "share"), [("ldpc-3-5", 0.1075, 46 / 800), ("ldpc-3-6", 0.0775, 19 / 800)])
def test_integer_decoding_fails_as_seldom_as_that_of_the_residual_table(name: str, rate: float, share: float) -> None:
    """In the waterfall, where a worse decoder would show: 96 words against the simulated share with real messages."""
    found = coder(name, rate)
    _wrong, failed, _coder = residual(name, rate, 96 * found.data_bits, seed=4)
    assert stats.binomtest(failed, 96, share, alternative="greater").pvalue > SIGNIFICANCE


def test_box_plus_is_the_likelihood_of_a_sum_of_bits() -> None:
    """Against 2 artanh(tanh(a/2) tanh(b/2)), within the rounding of its two table entries and of the result."""
    a, b = np.meshgrid(np.arange(-LIMIT, LIMIT + 1, dtype=np.int16), np.arange(-LIMIT, LIMIT + 1, dtype=np.int16))
    exact = 16 * np.arctanh(np.clip(np.tanh(a / 16) * np.tanh(b / 16), -1 + 1e-15, 1 - 1e-15))
    assert np.abs(box_plus(a, b) - exact).max() <= 1.0
    np.testing.assert_array_equal(box_plus(a, b), box_plus(b, a))
    np.testing.assert_array_equal(box_plus(-a, b), -box_plus(a, b))


def test_priors() -> None:
    assert [ldpc_prior(p) for p in (0.0, 0.1, 0.2, 0.5)] == [127, 18, 11, 1]


@pytest.mark.parametrize("name", ["bch-16383-16369-1", "bch-8191-7000-65"])
def test_codes_that_the_reader_does_not_take_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="the C reader takes BCH codes of up to 8191 bits and 64 errors"):
        coder_of(scheme(name), 0.01)


def test_safe_planes_have_no_coder() -> None:
    assert coder_of(scheme("ideal"), 0.1) is None
    assert coder_of(scheme("robust-2-0.001"), 0.1) is None
