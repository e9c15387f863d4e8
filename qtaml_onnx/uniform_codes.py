"""Which uniform code a tensor's words are in: the one asked for, or the one with the least predicted noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.storage import best_mask, uniform_code, word_sums
from qtaml_onnx.storage.codes import UNIFORM_KINDS, Code

__all__ = ["CODE_CHOICES", "DEFAULT_CODE", "candidate_codes"]

DEFAULT_CODE = "twos-complement"

CODE_CHOICES = ("auto", "complemented", *UNIFORM_KINDS)
"""What `--code` takes: a kind as it is; `complemented`, two's complement with the planes complemented that hold most
of their bits in the more fragile state; `auto`, the best of all kinds, complemented or not."""


def candidate_codes(choice: str, bits: int, x: NDArray[np.float32], rates: FlipRates) -> list[Code]:
    """The codes among which the one with the least predicted noise is taken; the simpler ones first.

    Args:
        choice: One of `CODE_CHOICES`.
        bits: Word length.
        x: The tensor's normalised weights.
        rates: Flip rates, at least `bits` planes.
    """
    rates = rates.truncated(bits)
    if choice in UNIFORM_KINDS:
        return [uniform_code(choice, bits)]
    kinds = (DEFAULT_CODE,) if choice == "complemented" else UNIFORM_KINDS
    plain = [uniform_code(kind, bits) for kind in kinds]
    masks = [best_mask(rates, word_sums(code, x).count) for code in plain]
    masked = [uniform_code(kind, bits, mask) for kind, mask in zip(kinds, masks, strict=True) if mask]
    return [*plain, *masked]
