"""The kind burst of `qtaml::FaultInject`, by the definition in `qtaml_onnx.fault_inject`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_random import Counter, Philox, hazard_of_any, hit_counts, octave_of

__all__ = ["BurstGeometry", "burst_flips"]

_MOST_CELLS: Final = 1 << 20


@dataclass(frozen=True)
class BurstGeometry:
    """How words lie in a memory, and how far a burst reaches.

    Attributes:
        row_cells: Cells of a physical row, at most 2^20.
        burst_cells: Adjacent cells that a burst covers, at most a row.
        interleave: Words that share a stretch of a row, the cells of one plane side by side; 1: word after word.
    """

    row_cells: int
    burst_cells: int
    interleave: int = 1

    def __post_init__(self) -> None:
        """Refuses numbers out of range with an InputError."""
        for name, most in (("row_cells", _MOST_CELLS), ("burst_cells", self.row_cells), ("interleave", _MOST_CELLS)):
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"FaultInject: attribute {name} is {getattr(self, name)}; give 1 to {most}")


def burst_flips(
    source: npt.NDArray[Any],
    seed: int,
    stream: int,
    rates: npt.NDArray[np.float32],
    bits: int,
    exposed: int,
    geometry: BurstGeometry,
) -> npt.NDArray[Any]:
    """The mask of the bits that bursts flip in a line of unsigned words, of their type and shape [words]."""
    flips = np.zeros_like(source)
    starts = np.zeros((bits, 2))
    for plane in range(bits):
        if exposed >> plane & 1:
            starts[plane] = [hazard_of_any(float(rate)) / float(geometry.burst_cells) for rate in rates[:, plane]]
    if source.size == 0 or starts.max() == 0:
        return flips
    octave = octave_of(float(starts.max()), 0)
    chunk_bits = min(14, 7 + octave)
    accept_below = np.array(
        [[math.floor(e * 2.0 ** (octave + 50)) for e in pair] for pair in starts.tolist()], np.uint64
    )

    group_words, row, reach = geometry.interleave, geometry.row_cells, geometry.burst_cells
    cells = -(-source.size // group_words) * group_words * bits
    places_of_row = row + reach - 1
    last_place = (cells - 1) // row * places_of_row + (cells - 1) % row + reach - 1
    chunks = np.arange((last_place >> chunk_bits) + 1)
    random = Philox(seed, stream, plane=0)
    bursts = hit_counts(chunk_bits - octave, random.halves(0, chunks, Counter.BURST_COUNT)[:, 0])
    chunk = np.repeat(chunks, bursts)
    i = np.arange(len(chunk)) - np.repeat(np.cumsum(bursts) - bursts, bursts)
    burst = np.take_along_axis(random.halves(i // 2, chunk, Counter.BURSTS), (i % 2)[:, None], axis=1)[:, 0]
    place = (chunk << chunk_bits) + (burst >> np.uint64(64 - chunk_bits)).astype(np.int64)
    level = burst & np.uint64(2**50 - 1)

    column = (place % places_of_row)[:, None] - np.arange(reach)  # of every cell that each burst covers
    cell = (place // places_of_row * row)[:, None] + column
    group, within = np.divmod(cell, group_words * bits)
    planes, in_group = np.divmod(within, group_words)
    word = group * group_words + in_group
    there = (column >= 0) & (column < row) & (word < source.size)
    word, level = word[there], np.broadcast_to(level[:, None], there.shape)[there]
    of_word = planes[there]
    state = source[word] >> of_word.astype(source.dtype) & source.dtype.type(1)
    hit = level < accept_below[of_word, state.astype(np.intp)]
    np.bitwise_or.at(flips, word[hit], (np.uint64(1) << of_word[hit].astype(np.uint64)).astype(source.dtype))
    return flips
