"""The definition of `qtaml::FaultInject`: known answers, exact statistics, and its promises."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from qtaml_onnx import fault_inject as definition
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_inject import BurstGeometry, fault_inject, word_bits
from qtaml_onnx.fault_random import Counter, Philox, hazard, hazard_of_any, octave_of, philox4x32, poisson_tail

# Each statistical test has fixed seeds and fails by chance for one choice of seeds in 10^4 at most (p-value below it).
SIGNIFICANCE = 1e-4


def rates(p01: float, p10: float | None = None, planes: int = 8) -> NDArray[np.float32]:
    return np.repeat(np.array([[p01], [p01 if p10 is None else p10]], np.float32), planes, axis=1)


def random_words(count: int, dtype: str = "u1", seed: int = 1) -> NDArray[Any]:
    width = np.dtype(dtype).itemsize
    return np.random.default_rng(seed).integers(0, 256, count * width, np.uint8).view(f"u{width}").view(dtype)


def flipped_bits(words: NDArray[Any], faulty: NDArray[Any]) -> NDArray[np.uint8]:
    """Flips as 0 and 1, shape [words, planes], least significant first."""
    return np.unpackbits((words ^ faulty).view(np.uint8).reshape(len(words), -1), axis=1, bitorder="little")


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known-answer vectors that Random123 publishes (kat_vectors)
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, (2**32 - 1,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter: list[int], key: tuple[int, int], expected: list[int]) -> None:
    words = tuple(np.array([c], np.uint64) for c in counter)
    assert [int(x[0]) for x in philox4x32(words, key)] == expected  # type: ignore[arg-type]


def test_leading_bits_are_numpys_sfc64() -> None:
    """The rows of U's leading bits, rebuilt one generator at a time by NumPy's own SFC64."""
    random = Philox(seed=-5, stream=9, plane=3)
    chunk, width, words = 2, 8, 1024
    rows = np.zeros((words // 512 * 12, 8), np.uint64)
    for lane in range(8):
        first = random.halves(2 * lane, chunk, Counter.SEED_ROWS)
        generator = np.random.SFC64(0)
        state = generator.state
        third = random.halves(2 * lane + 1, chunk, Counter.SEED_ROWS)[0]
        state["state"]["state"] = np.array([*first, third, 1], np.uint64)
        generator.state = state
        generator.random_raw(12)
        rows[:, lane] = generator.random_raw(len(rows))
    expected = []
    for n in range(words):
        block, j = divmod(n, 512)
        position = j % (512 // width) * width + j // (512 // width)
        digits = rows[12 * block : 12 * block + 12, position // 64] >> np.uint64(position % 64) & np.uint64(1)
        expected.append(sum(int(d) << i for i, d in enumerate(digits)))
    # The chunk before it in the same call must not matter, nor must the length.
    found = definition._leading_bits(random, chunk - 1, 16384 + words, width)[16384:]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(definition._leading_bits(random, chunk, words, width), expected)


def test_golden_result() -> None:
    """The frozen definition: these bits may never change in version 1."""
    words = np.arange(40000, dtype=np.uint32).view(np.uint8)[:40000].reshape(200, 200)
    table = np.array([[0.1, 0.5, 1e-3, 0.0, 0.02, 1e-4, 0.3, 0.007], [0.1, 0.25, 5e-3, 0.9, 0.0, 1e-4, 1e-3, 0.001]])
    faulty = fault_inject(words, 20240607, table.astype(np.float32), stream=17)
    assert int(flipped_bits(words.reshape(-1), faulty.reshape(-1)).sum()) == 41192
    weights = np.arange(1, 40001, dtype=np.uint64).reshape(200, 200)
    assert int((faulty * weights).sum() % 1000003) == 781686


@pytest.mark.parametrize("p", [0.5, 0.1, 2.0**-7, 0.00779, 0.00777, 1e-3, 3.3e-5])
@pytest.mark.parametrize("asymmetry", [1.0, 0.3])
def test_flip_counts_fit_the_binomial_in_each_plane(p: float, asymmetry: float) -> None:
    """Chi-square over 8 planes x 2 states of the standardised counts of 2^20 words."""
    words = random_words(1 << 20)
    table = rates(p, p * asymmetry)
    flips = flipped_bits(words, fault_inject(words, 99, table, stream=5))
    ones = np.unpackbits(words[:, None], axis=1, bitorder="little").astype(bool)
    chi_square = 0.0
    for state in (0, 1):
        trials = (ones == state).sum(axis=0)
        rate = float(table[state, 0])
        count = np.where(ones == state, flips, 0).sum(axis=0)
        chi_square += float(((count - trials * rate) ** 2 / (trials * rate * (1 - rate))).sum())
    assert SIGNIFICANCE < stats.chi2.sf(chi_square, 16) < 1 - SIGNIFICANCE


def test_rates_of_the_order_of_1e_12_are_met() -> None:
    """Counted where they can be: hits of the lowest octaves, over many chunks, against their Poisson law."""
    random = Philox(seed=3, stream=0, plane=0)
    chunks = 1 << 20
    u = random.halves(0, np.arange(chunks), Counter.HIT_COUNT)[:, 0]
    for octave in (12, 20, 27):
        tail = np.array(poisson_tail(14 - octave), np.uint64)
        mean = 2.0 ** (14 - octave) * chunks
        hits = int((u[:, None] < tail[:12]).sum())
        assert stats.poisson.sf(hits - 1, mean) > SIGNIFICANCE
        assert stats.poisson.cdf(hits, mean) > SIGNIFICANCE
    for octave in (7, 12, 20, 39, 60):  # tables against SciPy, to the accuracy of their sums
        mean = 2.0 ** (14 - octave)
        tail = poisson_tail(14 - octave)
        exact = stats.poisson.sf(np.arange(len(tail)), mean)
        np.testing.assert_allclose(np.array(tail, float) / 2**64, exact, rtol=1e-11, atol=2.0**-64)


@given(st.floats(1e-12, 0.99))
def test_hazard_series(p: float) -> None:
    if p < 2**-7:
        assert math.isclose(hazard(p), -math.log1p(-p), rel_tol=4e-16)
    else:
        assert hazard(p) > 2**-7


def test_flips_of_neighbours_and_planes_are_uncorrelated() -> None:
    words = random_words(1 << 19)
    for p in (0.1, 0.005):
        flips = flipped_bits(words, fault_inject(words, 7, rates(p))).astype(np.float64) - p
        variance = p * (1 - p)
        bound = stats.norm.isf(SIGNIFICANCE / 2 / 100)  # about 100 correlations are looked at
        for lag in (1, 2, 7, 8, 63, 64, 512, 16384):
            z = (flips[:-lag] * flips[lag:]).sum(axis=0) / (variance * math.sqrt(len(words) - lag))
            assert np.abs(z).max() < bound
        between = flips.T @ flips / (variance * math.sqrt(len(words)))
        assert np.abs(between[np.triu_indices(8, 1)]).max() < bound


@pytest.mark.parametrize(
    "other", [{"seed": 8}, {"seed": 7 + 2**32}, {"seed": -7}, {"stream": 1}, {"stream": 2**32 - 1}]
)
@pytest.mark.parametrize("p", [0.1, 0.005])
def test_seeds_and_streams_are_independent(other: dict[str, int], p: float) -> None:
    words = random_words(1 << 18)
    first = flipped_bits(words, fault_inject(words, 7, rates(p), stream=0))
    second = flipped_bits(words, fault_inject(words, other.get("seed", 7), rates(p), stream=other.get("stream", 0)))
    together = int((first & second).sum())
    trials = first.size
    assert stats.binomtest(together, trials, float(np.float32(p)) ** 2).pvalue > SIGNIFICANCE


def test_gaps_between_flips_are_geometric() -> None:
    """Kolmogorov-Smirnov distance of the gaps of the sparse regime, across chunk borders."""
    p = float(np.float32(1e-3))
    words = np.zeros(1 << 21, np.uint8)
    positions = np.flatnonzero(fault_inject(words, 11, rates(p), exposed_planes=1))
    gaps = np.diff(positions)
    # One chi-square over 20 cells of about equal probability.
    edges = np.unique(np.ceil(np.log1p(-np.arange(1, 20) / 20) / np.log1p(-p)).astype(int))
    cells = np.bincount(np.searchsorted(edges, gaps, side="left"), minlength=len(edges) + 1)
    cdf = np.concatenate([[0.0], 1 - (1 - p) ** edges, [1.0]])
    assert stats.chisquare(cells, np.diff(cdf) * len(gaps)).pvalue > SIGNIFICANCE


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    pair=st.tuples(st.floats(0.0078125, 0.875, width=32), st.floats(0.0078125, 0.875, width=32)),
)
def test_faults_at_a_rate_are_a_subset_of_those_at_a_higher_one(seed: int, pair: tuple[float, float]) -> None:
    low, high = sorted(pair)
    words = random_words(3000)
    few = words ^ fault_inject(words, seed, rates(low))
    many = words ^ fault_inject(words, seed, rates(high))
    assert not (few & ~many).any()


def test_common_random_numbers_within_an_octave() -> None:
    words = random_words(200000)
    few = words ^ fault_inject(words, 5, rates(0.0011))
    many = words ^ fault_inject(words, 5, rates(0.0019))
    assert 0 < np.count_nonzero(few) < np.count_nonzero(many)
    assert not (few & ~many).any()


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    p=st.sampled_from([0.3, 0.02, 0.004]),
    count=st.integers(1, 40000),
    dtype=st.sampled_from(["u1", "i2", "f4"]),
)
def test_a_fault_depends_on_nothing_but_its_own_place(seed: int, p: float, count: int, dtype: str) -> None:
    """A shorter tensor, other planes' exposure, and other words change nothing."""
    words = random_words(40000, dtype)
    width = word_bits(dtype)
    unsigned = f"u{width // 8}"
    whole = fault_inject(words, seed, rates(p, planes=width)).view(unsigned)
    part = fault_inject(words[:count], seed, rates(p, planes=width)).view(unsigned)
    np.testing.assert_array_equal(part, whole[:count])
    plane = seed % width
    alone = fault_inject(words, seed, rates(p, planes=width), exposed_planes=1 << plane).view(unsigned)
    mask = np.dtype(unsigned).type(1 << plane)
    np.testing.assert_array_equal(alone ^ words.view(unsigned), (whole ^ words.view(unsigned)) & mask)


def test_rates_zero_and_hidden_planes_never_flip() -> None:
    words = random_words(50000)
    np.testing.assert_array_equal(fault_inject(words, 1, rates(0.0)), words)
    np.testing.assert_array_equal(fault_inject(words, 1, rates(0.9), exposed_planes=0), words)
    only_up = fault_inject(words, 1, rates(0.4, 0.0))
    assert not (words & ~only_up).any()
    assert (only_up & ~words).any()
    five = fault_inject(words, 1, rates(0.4), bits=5, exposed_planes=0b10110) ^ words
    assert np.bitwise_or.reduce(five) == 0b10110
    nearly_one = np.nextafter(np.float32(1), np.float32(0))
    assert np.count_nonzero(fault_inject(words, 1, rates(nearly_one)) != ~words) <= 2


@pytest.mark.parametrize("name", sorted(definition._TYPES))
def test_types_shapes_and_input_are_kept(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    packed = word_bits(dtype) < 8
    line = np.arange(720, dtype=np.uint32).view(np.uint8)
    words = (line.astype(dtype) if packed else line.view(dtype))[:120].reshape(2, 3, 4, 5)
    before = words.tobytes()
    faulty = fault_inject(words, 3, rates(0.3, planes=32))
    assert (faulty.dtype, faulty.shape, words.tobytes()) == (dtype, (2, 3, 4, 5), before)
    assert faulty.tobytes() != before
    # The bits do not depend on what the type calls them.
    if not packed:
        plain = fault_inject(words.view(f"u{dtype.itemsize}"), 3, rates(0.3, planes=32))
        assert faulty.tobytes() == plain.tobytes()
    strided = np.repeat(words, 2, axis=3)[..., ::2]
    assert fault_inject(strided, 3, rates(0.3, planes=32)).tobytes() == faulty.tobytes()
    for shape in ((), (0,), (3, 0, 2)):
        assert fault_inject(np.zeros(shape, dtype), 3, rates(0.3, planes=32)).shape == shape


@pytest.mark.parametrize(
    ("words", "table", "options", "message"),
    [
        (np.zeros(4), rates(0.1), {}, "X has type float64"),
        (np.zeros(4, bool), rates(0.1), {}, "X has type bool"),
        (np.zeros(4, np.uint8), rates(float("nan")), {}, r"flip_rates\[0, 0\] is nan"),
        (np.zeros(4, np.uint8), rates(0.1, 1.0), {}, r"flip_rates\[1, 0\] is 1.0; rates lie in \[0, 1\)"),
        (np.zeros(4, np.uint8), rates(-0.1), {}, r"flip_rates\[0, 0\] is -0.1"),
        (np.zeros(4, np.uint8), rates(0.1)[0], {}, "give float32"),
        (np.zeros(4, np.uint8), rates(0.1)[:1], {}, "give float32"),
        (np.zeros(4, np.uint8), rates(0.1, planes=7), {}, "has 7 planes; give at least bits = 8"),
        (np.zeros(4, np.uint8), rates(0.1), {"bits": 9}, "bits is 9; give 1 to 8"),
        (np.zeros(4, np.uint8), rates(0.1), {"bits": 0}, "bits is 0; give 1 to 8"),
        (np.zeros(4, np.uint8), rates(0.1), {"bits": 4, "exposed_planes": 16}, "only planes 0 to 3 exist"),
        (np.zeros(4, np.uint8), rates(0.1), {"exposed_planes": -1}, "exposed_planes is -1"),
        (np.zeros(4, np.uint8), rates(0.1), {"stream": 2**32}, "stream is 4294967296"),
    ],
)
def test_bad_arguments(words: NDArray[Any], table: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fault_inject(words, 1, table, **options)
    with pytest.raises(InputError, match="no 64-bit integer"):
        fault_inject(np.zeros(4, np.uint8), 2**63, rates(0.1))


@pytest.mark.parametrize("name", ["uint4", "int4", "uint2", "int2"])
def test_packed_words_flip_at_their_rate_in_each_plane(name: str) -> None:
    """Chi-square over planes and states, and every value of the type stays one of its values."""
    dtype = np.dtype(getattr(ml_dtypes, name))
    width = word_bits(dtype)
    words = np.random.default_rng(3).integers(0, 1 << width, 1 << 18).astype(dtype)
    p01, p10 = 0.05, 0.004
    faulty = fault_inject(words, 4, rates(p01, p10, width))
    before, after = (w.astype(np.int8).astype(np.uint8) & np.uint8((1 << width) - 1) for w in (words, faulty))
    chi_square = 0.0
    for plane in range(width):
        for state, rate in ((0, np.float32(p01)), (1, np.float32(p10))):
            held = before >> plane & 1 == state
            count, mean = int(((before ^ after)[held] >> plane & 1).sum()), held.sum() * rate
            chi_square += float((count - mean) ** 2 / (mean * (1 - rate)))
    assert SIGNIFICANCE < stats.chi2.sf(chi_square, 2 * width) < 1 - SIGNIFICANCE


def test_golden_results_of_the_other_kinds() -> None:
    """Frozen as well: these bits may never change."""
    words = np.arange(40000, dtype=np.uint32).view(np.uint8)[:40000]
    table = np.array([[0.1, 0.5, 1e-3, 0.0, 0.02, 1e-4, 0.3, 0.007], [0.1, 0.25, 5e-3, 0.4, 0.0, 1e-4, 1e-3, 0.001]])
    weights = np.arange(1, 40001, dtype=np.uint64)

    def sums(**options: Any) -> tuple[int, int]:
        faulty = fault_inject(words, 20240607, table.astype(np.float32), stream=17, **options)
        return int(flipped_bits(words, faulty).sum()), int((faulty * weights).sum() % 1000003)

    assert sums(kind="stuck-at") == (36542, 999131)
    assert sums(kind="burst", geometry=BurstGeometry(1000, 6, 4)) == (36478, 383946)
    assert sums(inference=5) == (36802, 488347)


def test_stuck_cells_do_not_depend_on_what_is_stored() -> None:
    """One map: its cells read 1, or 0, whatever is stored; their numbers are binomial; no cell is stuck at both."""
    p01, p10, count = 0.03, 0.3, 1 << 18
    table = rates(p01, p10)
    read_0 = fault_inject(np.zeros(count, np.uint8), 9, table, kind="stuck-at")
    read_1 = fault_inject(np.full(count, 255, np.uint8), 9, table, kind="stuck-at")
    stuck_at_1, stuck_at_0 = read_0, ~read_1
    assert not (stuck_at_1 & stuck_at_0).any()
    words = random_words(count)
    read = fault_inject(words, 9, table, kind="stuck-at")
    np.testing.assert_array_equal(read, (words | stuck_at_1) & ~stuck_at_0)
    # What is read once, written back and read again is the same: the defects stay where they are.
    np.testing.assert_array_equal(fault_inject(read, 9, table, kind="stuck-at"), read)
    for cells, rate in ((stuck_at_1, p01), (stuck_at_0, p10)):
        stuck = np.unpackbits(cells[:, None], axis=1, bitorder="little").sum(axis=0)
        rate = float(np.float32(rate))
        chi_square = float(((stuck - count * rate) ** 2 / (count * rate * (1 - rate))).sum())
        assert SIGNIFICANCE < stats.chi2.sf(chi_square, 8) < 1 - SIGNIFICANCE
    other = fault_inject(np.zeros(count, np.uint8), 10, table, kind="stuck-at")
    both = int(flipped_bits(np.zeros(count, np.uint8), other & stuck_at_1).sum())
    assert stats.binomtest(both, 8 * count, float(np.float32(p01)) ** 2).pvalue > SIGNIFICANCE
    # Nor do stuck cells go with the flips of the same seed.
    flips = fault_inject(np.zeros(count, np.uint8), 9, table) & stuck_at_1
    assert (
        stats.binomtest(int(np.unpackbits(flips).sum()), 8 * count, float(np.float32(p01)) ** 2).pvalue > SIGNIFICANCE
    )


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    pair=st.tuples(st.floats(0, 0.5, width=32), st.floats(0, 0.5, width=32)),
    other=st.floats(0, 0.5, width=32),
)
def test_stuck_cells_stay_stuck_at_higher_rates(seed: int, pair: tuple[float, float], other: float) -> None:
    """Over all rates, with no exception: also across what is dense and what is sparse for independent flips."""
    low, high = sorted(pair)
    zeros = np.zeros(3000, np.uint8)
    few = fault_inject(zeros, seed, rates(low, other), kind="stuck-at")
    many = fault_inject(zeros, seed, rates(high, 0.5), kind="stuck-at")
    assert not (few & ~many).any()


def cells(words: NDArray[Any], bits: int, geometry: BurstGeometry) -> NDArray[np.uint8]:
    """The bits of 8-bit words as they lie in rows, shape [rows, row_cells]; what is no cell of a word is 0."""
    group = geometry.interleave
    planes = np.unpackbits(words[:, None], axis=1, bitorder="little")[:, :bits]
    planes = np.pad(planes, ((0, -len(words) % group), (0, 0)))
    line = planes.reshape(-1, group, bits).transpose(0, 2, 1).reshape(-1)
    return np.pad(line, (0, -len(line) % geometry.row_cells)).reshape(-1, geometry.row_cells)


GEOMETRIES = [BurstGeometry(64, 5), BurstGeometry(1000, 40, 7), BurstGeometry(256, 4, 32)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("p", [0.2, 0.01, 2e-4])
def test_bursts_flip_each_bit_at_its_rate(geometry: BurstGeometry, p: float) -> None:
    """At row ends as in the middle; the deviation is estimated from the rows, which are independent."""
    count = 1 << 19
    zeros = np.zeros(count, np.uint8)
    flips = cells(fault_inject(zeros, 21, rates(p, 0.0), kind="burst", geometry=geometry), 8, geometry)
    p = float(np.float32(p))
    rows = flips[: 8 * count // geometry.row_cells].astype(np.int64)
    for part in (rows[:, :1], rows[:, -1:], rows):
        per_row = part.mean(axis=1)
        deviation = max(per_row.std(), math.sqrt(p * (1 - p) / part.shape[1])) / math.sqrt(len(per_row))
        assert abs(per_row.mean() - p) < stats.norm.isf(SIGNIFICANCE / 2) * deviation
    if p == float(np.float32(0.2)):
        assert abs(rows.mean() - p) < 0.02 * p


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_bursts_correlate_neighbours_as_their_length_says(geometry: BurstGeometry) -> None:
    """P[cells a and a+d are sound] = exp(-r (L + d) / L) for d <= L, else exp(-2r): by the places that reach either."""
    p, reach = 0.05, geometry.burst_cells
    zeros = np.zeros(1 << 19, np.uint8)
    flips = cells(fault_inject(zeros, 3, rates(p, 0.0), kind="burst", geometry=geometry), 8, geometry)
    flips = flips[: 8 * len(zeros) // geometry.row_cells]
    r = -math.log1p(-float(np.float32(p)))
    for lag in (1, 2, reach - 1, reach, reach + 3):
        sound = (flips[:, lag:] == 0) & (flips[:, :-lag] == 0)
        per_row = sound.mean(axis=1)
        expected = math.exp(-r * (reach + min(lag, reach)) / reach)
        deviation = per_row.std() / math.sqrt(len(per_row))
        assert abs(per_row.mean() - expected) < stats.norm.isf(SIGNIFICANCE / 2 / 15) * deviation
    # Rows do not see each other, even where one ends and the next begins.
    last, first = flips[:-1, -1].astype(bool), flips[1:, 0].astype(bool)
    assert stats.binomtest(int((last & first).sum()), len(last), float(np.float32(p)) ** 2).pvalue > SIGNIFICANCE


def test_bursts_of_one_cell_are_binomial() -> None:
    words = random_words(1 << 20)
    faulty = fault_inject(words, 8, rates(0.1, 0.02), kind="burst", geometry=BurstGeometry(512, 1))
    flips = flipped_bits(words, faulty)
    ones = np.unpackbits(words[:, None], axis=1, bitorder="little").astype(bool)
    chi_square = 0.0
    for state, rate in ((0, float(np.float32(0.1))), (1, float(np.float32(0.02)))):
        trials = (ones == state).sum(axis=0)
        count = np.where(ones == state, flips, 0).sum(axis=0)
        chi_square += float(((count - trials * rate) ** 2 / (trials * rate * (1 - rate))).sum())
    assert SIGNIFICANCE < stats.chi2.sf(chi_square, 16) < 1 - SIGNIFICANCE


@given(st.floats(0, 0.5, width=32))
def test_hazard_of_any_rate(p: float) -> None:
    assert math.isclose(hazard_of_any(p), -math.log1p(-p), rel_tol=6e-16, abs_tol=1e-300)


def test_inferences_are_new_draws_and_samples_do_not_see_their_batch() -> None:
    words = random_words(8 * 5000).reshape(8, 5000)
    table = rates(0.05)
    batch = fault_inject(words, 6, table, inference=100, per_sample=True)
    for first, size in ((0, 3), (3, 1), (4, 4)):
        part = fault_inject(words[first : first + size], 6, table, inference=100 + first, per_sample=True)
        np.testing.assert_array_equal(part, batch[first : first + size])
    np.testing.assert_array_equal(fault_inject(words[5], 6, table, inference=105), batch[5])
    # Two inferences agree in no more flips than chance has it, nor with the flips of the seed itself.
    one, two = words ^ fault_inject(words, 6, table, inference=0), words ^ fault_inject(words, 6, table, inference=1)
    plain = words ^ fault_inject(words, 6, table)
    for a, b in ((one, two), (one, plain)):
        together = int(np.unpackbits(a & b).sum())
        assert stats.binomtest(together, 8 * words.size, float(np.float32(0.05)) ** 2).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("p", [1e-12, 1e-9, 1e-6, 1e-3, 0.0077, 0.0078, 0.1, 0.5])
def test_rates_are_honoured_to_2_to_the_minus_32(p: float) -> None:
    """The probability that the definition gives, in exact fractions, against the float32 rate."""
    wanted = Fraction(float(np.float32(p)))
    h = hazard(float(np.float32(p)))
    if h > 2**-7:
        met = Fraction(math.floor(float(np.float32(p)) * 2.0**64), 2**64)
        assert abs(met - wanted) <= Fraction(1, 2**64)
        return
    octave = octave_of(h, 7)
    accepted = Fraction(math.floor(h * 2.0 ** (octave + 50)), 2**50)
    # Hits on one bit: Poisson of the chunk's mean, over its words, thinned by the acceptance; the table's own error is
    # below 2^-50 of the mean (its sum is the mean).
    tail = poisson_tail(14 - octave)
    mean = Fraction(sum(tail), 2**64)
    rate = float(mean * accepted / 2**14)
    met_rate = -math.expm1(-rate)
    assert abs(met_rate - float(wanted)) <= 2.0**-32 * float(wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cosmic"}, "kind is 'cosmic'; give independent, stuck-at or burst"),
        ({"kind": "burst"}, "kind burst needs a burst geometry"),
        ({"geometry": BurstGeometry(8, 1)}, "kind independent takes no burst geometry"),
        ({"per_sample": True}, "needs an inference number"),
        ({"inference": 2**63}, "inference number 9223372036854775808 is no 64-bit integer"),
    ],
)
def test_bad_kinds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fault_inject(np.zeros((2, 4), np.uint8), 1, rates(0.1), **options)


def test_bad_rates_and_geometries_of_the_other_kinds() -> None:
    words = np.zeros(4, np.uint8)
    with pytest.raises(InputError, match=r"plane 0 add up to 1\.1"):
        fault_inject(words, 1, rates(0.5, 0.6), kind="stuck-at")
    with pytest.raises(InputError, match=r"is 0.6.*; rates of bursts lie in \[0, 0.5\]"):
        fault_inject(words, 1, rates(0.1, 0.6), kind="burst", geometry=BurstGeometry(8, 2))
    for arguments, message in (
        ((0, 1), "row_cells is 0"),
        ((8, 9), "burst_cells is 9; give 1 to 8"),
        ((8, 0), "burst_cells is 0"),
        ((8, 2, 0), "interleave is 0"),
        ((2**20 + 1, 1), "row_cells is 1048577"),
    ):
        with pytest.raises(InputError, match=message):
            BurstGeometry(*arguments)
    with pytest.raises(InputError, match="does not fill whole bytes"):
        fault_inject(np.zeros((2, 3), ml_dtypes.uint4), 1, rates(0.1), inference=0, per_sample=True)
