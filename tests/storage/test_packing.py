from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qtaml_onnx.errors import InputError
from qtaml_onnx.storage.packing import pack, packed_size, unpack

packable = st.integers(1, 16).flatmap(
    lambda bits: st.tuples(
        st.just(bits), arrays(np.uint16, st.integers(0, 70), elements=st.integers(0, (1 << bits) - 1))
    )
)


@settings(max_examples=200, deadline=None)
@given(packable)
def test_unpack_inverts_pack(drawn: tuple[int, np.ndarray]) -> None:
    bits, words = drawn
    stream = pack(words, bits)
    assert stream.dtype == np.uint8
    assert len(stream) == packed_size(len(words), bits) == (len(words) * bits + 7) // 8
    np.testing.assert_array_equal(unpack(stream, bits, len(words)), words)


@settings(max_examples=100, deadline=None)
@given(packable)
def test_the_stream_is_one_little_endian_integer(drawn: tuple[int, np.ndarray]) -> None:
    bits, words = drawn
    whole = sum(int(word) << (bits * place) for place, word in enumerate(words))
    assert pack(words, bits).tobytes() == whole.to_bytes(packed_size(len(words), bits), "little")


def test_layout_of_three_bit_words() -> None:
    np.testing.assert_array_equal(pack([[1, 2], [3, 4]], 3), [0b11_010_001, 0b0000_100_0])
    assert unpack(pack([5], 3), 3, 1).dtype == np.uint8
    assert unpack(pack([5], 9), 9, 1).dtype == np.uint16


def test_bad_words_and_streams_are_refused() -> None:
    for bad, complaint in (
        (lambda: pack([8], 3), "do not fit in 3 bits"),
        (lambda: pack([-1], 3), "do not fit in 3 bits"),
        (lambda: pack([0.5], 3), "integers"),
        (lambda: pack([1], 17), "1 to 16 bits"),
        (lambda: unpack(np.zeros(2, np.uint8), 3, 2), "fill 1 bytes"),
        (lambda: unpack(np.zeros(1, np.int8), 3, 2), "fill 1 bytes"),
    ):
        with pytest.raises(InputError, match=complaint):
            bad()
