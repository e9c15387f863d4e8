"""What the noise model says before any trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qtaml_onnx.errors import InputError
from qtaml_onnx.methods import METHODS
from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.planner import Planner
from qtaml_onnx.sensitivity import Sensitivity

__all__ = ["SATURATION_LEVEL", "Predicted", "predict"]

SATURATION_LEVEL = 0.08
"""Relative output noise energy at which overheads are compared: about where the zoo networks keep 95 % of clean."""


@dataclass(frozen=True)
class Predicted:
    """A prediction.

    Attributes:
        noise_energy: Output noise energy over the clean outputs' energy; None where no sensitivity was measured.
        saturation_ratio: Smallest overhead of Uniform-MSP over that of the method, both at `SATURATION_LEVEL`.
        saturation_note: Why there is no ratio; None if there is one.
    """

    noise_energy: float | None
    saturation_ratio: float | None
    saturation_note: str | None


def predict(
    planner: Planner, plan: StoragePlan, *, one_length: bool, plain_sensitivity: Callable[[], Sensitivity | None]
) -> Predicted:
    """The predicted noise of a plan and its saturation ratio, which is ours by definition.

    Args:
        planner: Of the plan.
        plan: The plan.
        one_length: Whether all float weights have words of one length, as overheads are shares of those.
        plain_sensitivity: Gives sensitivities without the self-correcting biases that Uniform-MSP does not have, or
            None if those in use are such; called only if there is a ratio to work out.
    """
    sensitivity = planner.sensitivity
    if sensitivity is None or not sensitivity.output_energy or plan.noise_energy is None:
        return Predicted(None, None, "no sensitivity was measured with this method's scales")
    energy = plan.noise_energy / sensitivity.output_energy
    if not plan.protected_bits and energy <= SATURATION_LEVEL:
        return Predicted(energy, None, "the method needs no protection at this level: the ratio has no end")
    if not one_length:
        return Predicted(energy, None, "words of several lengths: protected shares of them do not compare")
    if (plain := plain_sensitivity()) is not None:
        planner.use_plain_sensitivity(plain)
    limit = SATURATION_LEVEL * sensitivity.output_energy
    try:
        uniform = planner.smallest_overhead(METHODS["uniform-msp"], limit)
    except InputError:  # where p01 + p10 ≥ 1
        return Predicted(energy, None, "the affine correction of Uniform-MSP has no inverse at these rates")
    if uniform is None:
        return Predicted(energy, None, "Uniform-MSP does not reach the level even with every bit protected")
    own = planner.smallest_overhead(METHODS[plan.method], limit)
    if own is None:
        return Predicted(energy, None, "the method does not reach the level even with every bit protected")
    if not own:
        return Predicted(energy, None, "the method needs no protection at this level: the ratio has no end")
    return Predicted(energy, uniform / own, None)
