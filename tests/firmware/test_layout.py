"""Where bits lie: the layout as the documentation states it, and its inverse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtaml_onnx.errors import InputError
from qtaml_onnx.firmware.layout import PROTECTED_STREAM, Rows, mask_bytes, unpack_bits


@given(st.integers(1, 16), st.integers(0, 200), st.sampled_from([0, 16, 24, 64, 1024]), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_words_lie_where_the_format_says(bits: int, count: int, row_bits: int, seed: int) -> None:
    words = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint16)
    rows = Rows(row_bits)
    data = rows.pack(words, bits)
    assert data.size == rows.size(count, bits)
    np.testing.assert_array_equal(rows.unpack(data, bits, count), words)
    stream = unpack_bits(data, data.size * 8)
    used = np.zeros(stream.size, bool)
    for i, word in enumerate(words):
        start = i * bits if not row_bits else i // (row_bits // bits) * row_bits + i % (row_bits // bits) * bits
        assert int(stream[start : start + bits] @ (1 << np.arange(bits))) == word
        used[start : start + bits] = True
    assert not stream[~used].any()
    if row_bits and count:
        assert data.size % (row_bits // 8) == 0


def test_no_bits_take_no_room() -> None:
    assert Rows().pack(np.zeros(5, np.uint16), 0).size == Rows(64).size(5, 0) == 0
    np.testing.assert_array_equal(Rows(64).unpack(np.zeros(0, np.uint8), 0, 5), np.zeros(5))


@pytest.mark.parametrize("row_bits", [-8, 8, 12, 20, 1 << 21])
def test_odd_rows_are_refused(row_bits: int) -> None:
    with pytest.raises(InputError, match="give a multiple of 8 from 16"):
        Rows(row_bits)


def test_mask_is_murmurs_finaliser_of_the_address() -> None:
    def fmix32(x: int) -> int:
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x = (x ^ x >> shift) * factor & 0xFFFFFFFF
        return x ^ x >> 16

    assert fmix32(1) == 0x514E28B7  # of SMHasher's test vectors
    expected = [fmix32(i // 4 ^ PROTECTED_STREAM) >> 8 * (i % 4) & 255 for i in range(41)]
    for start in (0, 1, 3, 4, 17):
        np.testing.assert_array_equal(mask_bytes(PROTECTED_STREAM, start, 41 - start), expected[start:])


def test_mask_is_half_ones() -> None:
    ones = int(np.unpackbits(mask_bytes(PROTECTED_STREAM, 0, 1 << 16)).sum())
    assert abs(ones - (1 << 18)) < 4 * (1 << 19) ** 0.5 / 2
