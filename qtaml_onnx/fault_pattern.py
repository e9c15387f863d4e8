"""How injected faults fall: their kind, the geometry of bursts, and the planes they may reach."""

from __future__ import annotations

from dataclasses import dataclass

from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_inject import KINDS, BurstGeometry

__all__ = ["FaultPattern", "parse_planes"]


@dataclass(frozen=True)
class FaultPattern:
    """What the fault operators of a model have in common, beside rates and seed.

    Attributes:
        kind: "independent", "stuck-at" or "burst", as `qtaml_onnx.fault_inject` defines them.
        geometry: Of the kind burst, and of it alone.
        planes: Bit mask of the planes that may flip at all; None: those that are not protected.
    """

    kind: str = "independent"
    geometry: BurstGeometry | None = None
    planes: int | None = None

    def __post_init__(self) -> None:
        """Refuses an unknown kind, and a geometry with the wrong kind, with an InputError."""
        if self.kind not in KINDS:
            raise InputError(f"kind '{self.kind}' is unknown; give {', '.join(KINDS[:-1])} or {KINDS[-1]}")
        if (self.kind == "burst") != (self.geometry is not None):
            need = "needs the cells of a row and of a burst" if self.kind == "burst" else "has no burst geometry"
            raise InputError(f"kind {self.kind} {need}; give --row-cells and --burst-cells with --kind burst alone")

    def exposed(self, planes: int) -> int:
        """The planes of a bit mask that this pattern reaches."""
        return planes if self.planes is None else planes & self.planes

    def check_width(self, bits: int) -> None:
        """Refuses planes that no word has, the longest being of `bits` bits, with an InputError."""
        if self.planes is not None and self.planes >> bits:
            raise InputError(
                f"plane {self.planes.bit_length() - 1} is out of range: the longest word has planes 0 to {bits - 1}"
            )

    def attributes(self) -> dict[str, int | str]:
        """The operator's attributes; none for independent flips, which are the operator's default."""
        if self.kind == "independent":
            return {}
        if self.geometry is None:
            return {"kind": self.kind}
        return {
            "kind": self.kind,
            "row_cells": self.geometry.row_cells,
            "burst_cells": self.geometry.burst_cells,
            "interleave": self.geometry.interleave,
        }


def parse_planes(text: str) -> int:
    """The bit mask of a list of planes such as "0-3,7".

    Raises:
        InputError: an entry is no plane 0 to 31, nor a range of them.
    """
    mask = 0
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            low, high = 1, 0
        if not 0 <= low <= high <= 31:
            raise InputError(
                f"planes '{part.strip()}' is neither a plane 0 to 31 nor a range; give a list such as 0-3,7"
            )
        mask |= (1 << high + 1) - (1 << low)
    return mask
