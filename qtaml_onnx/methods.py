"""The hardening methods: which code and read-out each uses, and how it shares out protected bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.errors import InputError
from qtaml_onnx.storage import Code, ReadOut, WordSums, design_readout, error_moments, word_sums
from qtaml_onnx.storage.grouped import GroupedCode
from qtaml_onnx.storage.two_words import TwoWordCode
from qtaml_onnx.tensors import ScalingKind

__all__ = ["METHODS", "Design", "Method", "method_named"]


@dataclass(frozen=True)
class Design:
    """One way to store a tensor.

    Attributes:
        code: Weight to word.
        readout: Word to weight; None of two words a weight, whose code has it.
        protected_planes: Planes that are assumed safe, ascending.
        noise: Mean-square error of a normalised weight as read, quantisation and faults together.
        gain: Factor on what is read, folded into the scales.
    """

    code: Code | TwoWordCode | GroupedCode
    readout: ReadOut | None
    protected_planes: tuple[int, ...]
    noise: float
    gain: float = 1.0


@dataclass(frozen=True)
class Method:
    """A hardening method.

    Attributes:
        name: As `--method` takes it.
        code: Its code of float weights; words that a quantised model brings along are kept.
        readout: Kind of its read-out.
        weighting: What tensors are weighed by in the allocation: the measured sensitivity, the weights' magnitude
            alone, or nothing at all (the same planes everywhere).
        corrects_bias: Whether layers get a bias that corrects itself, where there are calibration data.
        summary: One line for help and reports.
    """

    name: str
    code: Literal["twos-complement", "channel-optimized"]
    readout: str
    weighting: Literal["sensitivity", "magnitude", "uniform", "none"]
    corrects_bias: bool
    summary: str

    @property
    def needs_sensitivity(self) -> bool:
        """Whether its allocation rests on forward probes."""
        return self.weighting == "sensitivity"

    @property
    def scaling(self) -> ScalingKind:
        """How it normalises weights: uniform steps span the largest weight, designed codes the deviation."""
        return "rms" if self.code == "channel-optimized" else "peak"

    def designs(
        self, x: NDArray[np.float32], code: Code, rates: FlipRates, *, residual: float = 0.0, protectable: bool = True
    ) -> list[Design]:
        """Designs of one tensor for a given code with 0, 1, 2, … planes protected, the most harmful first.

        Args:
            x: Normalised weights.
            code: Its code.
            rates: Flip rates, at least as many planes as the code has bits.
            residual: Flip rate of protected planes.
            protectable: Whether planes may be protected; else only the design with none is made.

        Raises:
            InputError: if the read-out needs an inverse that these rates do not have.
        """
        rates = rates.truncated(code.bits)
        sums = word_sums(code, x)
        order = _most_harmful(code, rates, sums)
        designs = []
        for count in range(code.bits + 1):
            planes = tuple(sorted(order[:count]))
            kept = rates.protect(planes, residual)
            readout = design_readout(self.readout, code, kept, sums)
            designs.append(Design(code, readout, planes, error_moments(readout, kept, sums).mse))
            if kept.is_zero or not protectable or self.weighting == "none":
                break
        return designs


def _most_harmful(code: Code, rates: FlipRates, sums: WordSums) -> list[int]:
    """Planes by the noise that their flips cause under plain reading, largest first, higher planes first if equal."""
    words = np.arange(1 << code.bits)
    harm = []
    for plane in range(code.bits):
        step = code.levels[words ^ (1 << plane)] - code.levels
        one = (words >> plane) & 1
        rate = np.where(one == 1, rates.p10[plane], rates.p01[plane])
        harm.append(float(sums.count @ (rate * step**2)))
    return sorted(range(code.bits), key=lambda plane: (-harm[plane], -plane))


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "channel-optimized",
            "channel-optimized",
            "restored-posterior-mean",
            "sensitivity",
            True,
            "code and read-out designed for the flip rates",
        ),
        Method(
            "posterior-mean",
            "twos-complement",
            "restored-posterior-mean",
            "sensitivity",
            True,
            "two's complement read by its posterior mean, gain restored",
        ),
        Method(
            "tac",
            "twos-complement",
            "bitwise-affine",
            "sensitivity",
            False,
            "affine mean correction, Jacobian allocation (TAC as we read it)",
        ),
        Method(
            "magnitude",
            "twos-complement",
            "bitwise-affine",
            "magnitude",
            False,
            "affine mean correction, allocation by weight magnitude",
        ),
        Method(
            "uniform-msp",
            "twos-complement",
            "bitwise-affine",
            "uniform",
            False,
            "affine mean correction, the same top planes everywhere",
        ),
        Method("none", "twos-complement", "plain", "none", False, "plain quantised weights: the unprotected baseline"),
    )
}


def method_named(name: str) -> Method:
    """The method of that name; an InputError lists the names there are."""
    try:
        return METHODS[name]
    except KeyError:
        raise InputError(f"unknown --method '{name}'; choose from {', '.join(METHODS)}") from None
