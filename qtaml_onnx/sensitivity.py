"""How much noise in each weight tensor matters at the outputs: forward probes, no labels, any operator.

To first order the output noise energy is Σ_l J_l² N_l σ_l². A probe adds small white noise to one tensor and measures
the change of the outputs, which estimates J_l² N_l by E‖f(W + εZ) − f(W)‖²/ε² (a randomised trace estimate of the
Jacobian's Gram matrix; Hutchinson 1989). Noise is put in in units of each output channel's scale, as stored words have
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.data import Dataset
from qtaml_onnx.plan_values import BiasPlan
from qtaml_onnx.probing import ProbedPart, joined_rows, noise_energy, walk_parts

__all__ = ["Sensitivity", "measure_sensitivity"]


@dataclass(frozen=True)
class Sensitivity:
    """Result of the probes.

    Attributes:
        energy: By tensor, output noise energy a sample for noise of variance 1 in its normalised weights.
        output_energy: Mean energy of the clean outputs about their mean over samples: what noise is compared with.
        samples: Samples used.
        probes: Probes a tensor.
    """

    energy: dict[str, float]
    output_energy: float
    samples: int
    probes: int


def measure_sensitivity(
    model: ir.Model,
    normalised: dict[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
    data: Dataset,
    *,
    biases: Mapping[str, BiasPlan] | None = None,
    probes: int = 3,
    seed: int = 0,
    batch_size: int = 128,
    progress: Callable[[], None] = lambda: None,
) -> Sensitivity:
    """Probes every tensor.

    The graph is cut before the operators of some weights: a probe runs what lies behind the last cut before its weight,
    on values of one clean pass.
    Where the samples take at least as many runs as there are probes, each probe sees a share of them: its noise is new
    anyway, and the mean over samples is as good.

    Args:
        model: The model; not changed.
        normalised: By weight name: the weights in the model's units, and their channel scales shaped to broadcast.
        data: Samples to run; labels are not used.
        biases: Self-correcting biases of the hardened model: what they cancel is not counted.
        probes: Noise draws a tensor.
        seed: Of the noise.
        batch_size: Samples a run.
        progress: Called after each probe.

    Raises:
        InputError: if the model cannot run on the data.
    """
    first, walk = walk_parts(model, list(normalised), data, biases or {}, batch_size)
    whole = np.concatenate(
        [joined_rows(clean, count) for clean, (_, count) in zip(first.clean, first.runs, strict=True)]
    )
    energy: dict[str, float] = {}
    for part, name, source in walk:
        rng = np.random.default_rng((seed, list(normalised).index(name)))
        energy[name] = _probe(part, source, *normalised[name], probes, rng, progress)
    centred = whole - whole.mean(axis=0)
    output_energy = float((centred**2).sum(axis=1).mean()) if len(whole) > 1 else float((whole**2).sum())
    return Sensitivity({name: energy[name] for name in normalised}, output_energy, len(whole), probes)


def _probe(
    part: ProbedPart,
    source: str,
    weights: NDArray[np.floating],
    scales: NDArray[np.floating],
    probes: int,
    rng: np.random.Generator,
    progress: Callable[[], None],
) -> float:
    """Output noise energy a sample for noise of variance 1 in one normalised weight."""
    runs = len(part.runs)
    shares = [range(runs)] * probes if runs < probes else [range(k, runs, probes) for k in range(probes)]
    return noise_energy(part, source, weights, scales, shares, rng, progress=progress)
