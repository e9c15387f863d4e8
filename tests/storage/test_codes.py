from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.errors import InputError
from qtaml_onnx.storage import codes
from qtaml_onnx.storage.codes import (
    UNIFORM_KINDS,
    Code,
    best_mask,
    index_probabilities,
    plain_levels,
    uniform_code,
    word_dtype,
    word_histogram,
)

ALL_KINDS = pytest.mark.parametrize("kind", UNIFORM_KINDS)


def test_twos_complement_is_int8_storage() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, 10_000).astype(np.float32)
    expected = np.rint(x.astype(np.float64) * 127).astype(np.int8)
    words = uniform_code("twos-complement").encode(x)
    assert words.dtype == np.uint8
    np.testing.assert_array_equal(words.view(np.int8), expected)


@pytest.mark.parametrize(
    ("kind", "index", "word"),
    [
        ("twos-complement", -1, 0b111),
        ("twos-complement", -3, 0b101),
        ("offset-binary", -3, 0b001),
        ("offset-binary", 3, 0b111),
        ("sign-magnitude", -3, 0b111),
        ("sign-magnitude", 2, 0b010),
        ("gray", 0, 0b110),  # offset binary 4
        ("gray", 1, 0b111),
    ],
)
def test_words_of_three_bits_by_definition(kind: str, index: int, word: int) -> None:
    code = uniform_code(kind, 3)
    assert int(code.encode(index / 3)) == word
    assert plain_levels(code)[word] == index / 3
    assert int(uniform_code(kind, 3, 0b101).encode(index / 3)) == word ^ 0b101


def test_gray_neighbours_differ_in_one_bit() -> None:
    words = uniform_code("gray", 8).words
    assert {int(a ^ b).bit_count() for a, b in zip(words[1:], words[:-1], strict=True)} == {1}


@ALL_KINDS
@pytest.mark.parametrize("bits", [1, 2, 5, 8, 12, 16])
def test_round_trip_of_every_level(kind: str, bits: int) -> None:
    mask = (1 << bits) // 3
    code = uniform_code(kind, bits, mask)
    assert len(set(code.words.tolist())) == len(code.words) == (2 if bits == 1 else 2**bits - 1)
    levels = plain_levels(code)
    np.testing.assert_array_equal(code.encode(levels[code.words]), code.words)
    unused = np.setdiff1d(np.arange(1 << bits), code.words)
    assert len(unused) == (0 if bits == 1 else 1)
    top = 2 ** (bits - 1) - 1
    if bits > 1:
        assert levels[unused[0]] == (0.0 if kind == "sign-magnitude" else -(top + 1) / top)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(UNIFORM_KINDS), st.integers(2, 12), arrays(np.float32, 20, elements=st.floats(-1, 1, width=32)))
def test_quantisation_error_is_at_most_half_a_step(kind: str, bits: int, x: np.ndarray) -> None:
    code = uniform_code(kind, bits)
    error = np.abs(plain_levels(code)[code.encode(x)] - x)
    assert error.max() <= 0.5 / (2 ** (bits - 1) - 1) + 1e-12


def test_float32_and_float64_weights_get_the_same_words() -> None:
    rng = np.random.default_rng(1)
    code = uniform_code("twos-complement", 8)
    edges = code.boundaries.astype(np.float32)
    x = np.concatenate(
        [edges, np.nextafter(edges, np.float32(2)), np.nextafter(edges, np.float32(-2)), rng.uniform(-1, 1, 5000)]
    )
    x = x.astype(np.float32)
    np.testing.assert_array_equal(code.encode(x), code.encode(x.astype(np.float64)))


def test_weights_beyond_the_range_saturate_and_shape_is_kept() -> None:
    code = uniform_code("offset-binary", 8)
    np.testing.assert_array_equal(code.encode(np.array([[-7.0, 7.0]])), [[1, 255]])
    assert code.encode(np.zeros((0, 3))).shape == (0, 3)
    assert code.encode(np.float32(0)).shape == ()
    assert uniform_code("gray", 9).encode(np.zeros(2, np.float16)).dtype == np.uint16


def test_codes_are_values() -> None:
    code = uniform_code("gray", 4)
    assert code == uniform_code("gray", 4)
    assert hash(code) == hash(uniform_code("gray", 4))
    assert code != uniform_code("gray", 4, 1)
    again = Code(code.name, code.bits, code.boundaries.tolist(), code.words.tolist(), code.levels.tolist())  # type: ignore[arg-type]
    assert again == code
    with pytest.raises(ValueError, match="read-only"):
        code.words[0] = 3


def test_statistics() -> None:
    np.testing.assert_array_equal(word_histogram(np.array([[0, 3], [3, 1]], np.uint8), 2), [1, 1, 0, 2])
    code = uniform_code("twos-complement", 2)  # levels −1, 0, 1
    np.testing.assert_allclose(index_probabilities(code, [-0.9, 0.1, 0.2, 0.8]), [0.25, 0.5, 0.25])
    assert [word_dtype(bits) for bits in (1, 8, 9, 16)] == [np.uint8, np.uint8, np.uint16, np.uint16]


def test_mask_stores_the_majority_in_the_safe_state() -> None:
    counts = np.zeros(8)
    counts[[0b001, 0b011, 0b111]] = (5, 3, 1)  # plane 0 always 1, plane 1 mostly 0, plane 2 nearly always 0
    assert best_mask(FlipRates.asymmetric(0.0, 0.1, 3), counts) == 0b001  # ones are fragile
    assert best_mask(FlipRates.asymmetric(0.1, 0.0, 3), counts) == 0b110  # zeros are
    assert best_mask(FlipRates.uniform(0.1, 3), counts) == 0
    assert best_mask(FlipRates((0.0, 0.1, 0.1), (0.1, 0.0, 0.1)), counts) == 0b011


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_mask_is_the_best_of_all_by_exhaustive_search(data: st.DataObject) -> None:
    rate = st.floats(0.0, 0.45)
    rates = FlipRates(tuple(data.draw(st.tuples(*[rate] * 4))), tuple(data.draw(st.tuples(*[rate] * 4))))
    counts = data.draw(arrays(np.float64, 16, elements=st.integers(0, 100)))

    def noise(mask: int) -> float:
        """Σ_k 4^k E[r(1 − r)] of the masked words."""
        words = np.arange(16) ^ mask
        return sum(
            4.0**k
            * float(
                counts @ np.where(words >> k & 1, rates.p10[k] * (1 - rates.p10[k]), rates.p01[k] * (1 - rates.p01[k]))
            )
            for k in range(4)
        )

    assert noise(best_mask(rates, counts)) <= min(map(noise, range(16))) * (1 + 1e-12)


def test_bad_codes_are_refused() -> None:
    good = uniform_code("gray", 4)
    for bad, complaint in (
        (lambda: uniform_code("base64"), "choose from"),
        (lambda: uniform_code("gray", 17), "1 to 16 bits"),
        (lambda: uniform_code("gray", 4, 16), "mask 16"),
        (lambda: Code("c", 2, np.zeros(1), np.arange(3), np.zeros(4)), "need 2 boundaries"),
        (lambda: Code("c", 2, np.array([1.0, 0.0]), np.arange(3), np.zeros(4)), "not sorted"),
        (lambda: Code("c", 2, np.zeros(2), np.array([0, 1, 4]), np.zeros(4)), "fit in 2 bits"),
        (lambda: Code("c", 2, np.zeros(2), np.arange(3), np.full(4, np.nan)), "4 finite levels"),
        (lambda: good.encode([0.0, np.nan]), "NaN or infinite"),
        (lambda: good.encode(np.array([np.inf], np.float32)), "NaN or infinite"),
        (lambda: word_histogram(np.array([4]), 2), "does not fit in 2 bits"),
        (lambda: index_probabilities(good, []), "no weights"),
        (lambda: best_mask(FlipRates.uniform(0.1, 3), np.zeros(4)), "need 8"),
    ):
        with pytest.raises(InputError, match=complaint):
            bad()


@pytest.mark.parametrize("spread", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("bits", [1, 2, 8, 12])
def test_many_weights_get_the_words_that_each_gets_alone(bits: int, spread: float) -> None:
    """Encoding by bins is exact: on boundaries, beside them by one float32, at the ends, and anywhere else."""
    rng = np.random.default_rng(bits)
    boundaries = np.sort(rng.standard_normal((1 << bits) - 1)) * spread
    words = rng.permutation(1 << bits)
    code = Code("any", bits, boundaries, words, np.zeros(1 << bits))
    near = boundaries.astype(np.float32)
    special = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    ends = np.array([0, np.finfo(np.float32).max, np.finfo(np.float32).min, 1e-45], np.float32)
    weights = np.concatenate([*special, ends, rng.standard_normal(300_000).astype(np.float32) * np.float32(spread)])
    expected = words[np.searchsorted(boundaries, weights.astype(np.float64), side="right")]
    np.testing.assert_array_equal(code.encode(weights), expected)
    if bits == 8 and spread == 1.0:
        binned = codes._binned(code)
        assert binned is not None
        bins, word_of = binned
        assert (word_of[bins.index(weights)] >= 256).mean() < 0.05  # and not one by one after all
