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
from qtaml_onnx.errors import InputError
from qtaml_onnx.passes.correct_bias import CorrectBias
from qtaml_onnx.passes.expose_weights import ExposeWeights
from qtaml_onnx.plan import BiasPlan
from qtaml_onnx.runtime import create_session, run_limited, session_options

__all__ = ["Sensitivity", "measure_sensitivity"]

_Run = tuple[dict[str, NDArray[np.generic]], int]

RELATIVE_NOISE = 0.02
"""Probe noise over the weights' root mean square: small enough for first order, large enough for float32."""


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
    exposed = model.clone()
    expose = ExposeWeights(list(normalised))
    expose(exposed)
    CorrectBias(biases or {})(exposed)
    session = create_session(ir.to_proto(exposed), session_options())

    def outputs(run: _Run, weights: dict[str, NDArray[np.generic]]) -> NDArray[np.float64]:
        inputs, count = run
        try:
            values = run_limited(session, {**inputs, **weights})
        except InputError as error:
            raise InputError(f"the model does not run on {data.source}: {_short(error)}") from error
        fed = None if data.one_by_one else len(next(iter(inputs.values())))
        real = [v for v in values if isinstance(v, np.ndarray) and np.issubdtype(v.dtype, np.floating)]
        flat = [_rows(value, count, fed) for value in real]
        return np.concatenate(flat, axis=1) if flat else np.zeros((count, 0))

    runs = list(data.feeds(batch_size))
    if not len(data):
        raise InputError("the model has no inputs to feed: sensitivity cannot be measured")
    clean = [outputs(run, {}) for run in runs]
    if len({part.shape[1] for part in clean}) != 1:
        raise InputError("the sizes of the model's outputs depend on its inputs: sensitivity cannot be measured")
    if not all(np.isfinite(part).all() for part in clean):
        raise InputError(f"the model's outputs on {data.source} are not finite; give other calibration data")
    shares = [range(len(runs))] * probes if len(runs) < probes else [range(k, len(runs), probes) for k in range(probes)]
    energy: dict[str, float] = {}
    rng = np.random.default_rng(seed)
    for name, (weights, scales) in normalised.items():
        values = weights.astype(np.float32)
        units = scales.astype(np.float32)
        rms = float(np.sqrt(np.mean(np.square(values / units), dtype=np.float64)))
        epsilon = RELATIVE_NOISE * (rms or 1.0)
        total, rows = 0.0, 0
        for share in shares:
            noisy = rng.standard_normal(weights.shape, dtype=np.float32)
            noisy *= np.float32(epsilon) * units
            noisy += values
            feed = {expose.inputs[name]: noisy.astype(weights.dtype, copy=False)}
            for number in share:
                changed = outputs(runs[number], feed)
                if changed.shape != clean[number].shape:
                    raise InputError("the sizes of the outputs depend on the weights: sensitivity cannot be measured")
                total += float(((changed - clean[number]) ** 2).sum())
                rows += len(changed)
            progress()
        energy[name] = total / rows / epsilon**2
    whole = np.concatenate(clean)
    centred = whole - whole.mean(axis=0)
    output_energy = float((centred**2).sum(axis=1).mean()) if len(whole) > 1 else float((whole**2).sum())
    return Sensitivity(energy, output_energy, len(whole), probes)


def _rows(value: NDArray[np.floating], count: int, fed: int | None) -> NDArray[np.float64]:
    """An output as one row a sample.

    Args:
        value: The output.
        count: How many of the samples fed count.
        fed: Samples fed at once; None where a single one is the whole input. An output whose first axis is not that of
            the samples counts as a whole for each.
    """
    array = value.astype(np.float64)
    if fed is not None and array.ndim and array.shape[0] == fed:
        return array[:count].reshape(count, -1)
    return np.repeat(array.reshape(1, -1), count, axis=0)


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
