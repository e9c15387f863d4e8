"""Flip rates as a dumped memory shows them: which stored bits are not what was written, plane by plane."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.campaign.statistics import Interval, wilson_interval
from qtaml_onnx.errors import InputError

__all__ = ["FlipCounts", "plane_rates_csv"]

Cells = Literal["bulk", "protected", "parity", "small"]


@dataclass(frozen=True)
class FlipCounts:
    """Flips of the stored bits of one kind of cells.

    Attributes:
        cells: The image that they are in.
        plane: Bit plane of the words, of small tensors of their bytes; None for parity bits.
        zeros: Bits that were written as 0.
        ones: Bits that were written as 1.
        flips01: Zeros that were read as 1.
        flips10: Ones that were read as 0.
    """

    cells: Cells
    plane: int | None
    zeros: int = 0
    ones: int = 0
    flips01: int = 0
    flips10: int = 0

    @classmethod
    def of(cls, cells: Cells, plane: int | None, written: NDArray[np.uint8], read: NDArray[np.uint8]) -> FlipCounts:
        """Counts the flips between bits as written and as read."""
        ones = int(written.sum(dtype=np.int64))
        lost = int((written & ~read & 1).sum(dtype=np.int64))
        gained = int((~written & read & 1).sum(dtype=np.int64))
        return cls(cells, plane, written.size - ones, ones, gained, lost)

    def __add__(self, other: FlipCounts) -> FlipCounts:
        """The counts of both, of the same cells."""
        return FlipCounts(
            self.cells,
            self.plane,
            self.zeros + other.zeros,
            self.ones + other.ones,
            self.flips01 + other.flips01,
            self.flips10 + other.flips10,
        )

    @property
    def bits(self) -> int:
        """Stored bits."""
        return self.zeros + self.ones

    @property
    def flips(self) -> int:
        """Flipped bits."""
        return self.flips01 + self.flips10

    def p01(self, confidence: float) -> Interval | None:
        """Rate of 0→1 with Wilson's interval; None if no zero was written."""
        return wilson_interval(self.flips01, self.zeros, confidence) if self.zeros else None

    def p10(self, confidence: float) -> Interval | None:
        """Rate of 1→0 with Wilson's interval; None if no one was written."""
        return wilson_interval(self.flips10, self.ones, confidence) if self.ones else None


def plane_rates_csv(counts: Iterable[FlipCounts], planes: int) -> str:
    """The measured rates as `--plane-rates` takes them: p01,p10 a plane, least significant first.

    A plane's rates are those of its bulk cells, or of its protected cells where it has no others. A direction that no
    bit of a plane could show has the rate of all planes together.

    Args:
        counts: Of all cells.
        planes: Planes of the longest word.

    Raises:
        InputError: if some rate cannot be told at all, or every bit of a plane flipped.
    """
    known = list(counts)
    pooled = FlipCounts("bulk", None)
    for count in known:
        pooled += count
    rows = ["p01,p10"]
    for plane in range(planes):
        of_plane = [count for count in known if count.plane == plane and count.bits]
        best = next((count for count in of_plane if count.cells == "bulk"), of_plane[0] if of_plane else pooled)
        cells = []
        for flips, size, all_flips, all_size in (
            (best.flips01, best.zeros, pooled.flips01, pooled.zeros),
            (best.flips10, best.ones, pooled.flips10, pooled.ones),
        ):
            if not (size or all_size):
                raise InputError("the image has no bits from which a flip rate could be told")
            rate = flips / size if size else all_flips / all_size
            if rate >= 1:
                raise InputError(f"every bit of plane {plane} flipped: the image is inverted, not faulty")
            cells.append(f"{rate:.9g}")
        rows.append(",".join(cells))
    return "\n".join(rows) + "\n"
