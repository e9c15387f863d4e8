"""How much noise in each output channel matters at the outputs: measured, or guessed from the weights' magnitudes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.channel_groups import channel_magnitudes
from qtaml_onnx.channel_sensitivity import channel_units, measure_channels
from qtaml_onnx.data import Dataset
from qtaml_onnx.methods import Method
from qtaml_onnx.planner import Planner
from qtaml_onnx.progress import Progress

__all__ = ["CHANNEL_SAMPLES", "channel_energies"]

CHANNEL_SAMPLES = 32
"""Samples that sets of channels are probed on: what they share out is a tensor's energy, measured on more."""


def channel_energies(
    planner: Planner, method: Method, data: Dataset | None, progress: Progress, *, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Output noise energy a channel, for noise of one variance in all weights of a tensor as a method normalises them.

    Args:
        planner: Gives the weights and the biases that correct themselves.
        method: The method. If it goes by magnitudes, or nothing is probed, the channels' scales stand in.
        data: Samples to probe on; None for no probes.
        progress: Shows progress.
        seed: Of the noise.

    Returns:
        By float tensor with output channels, float64 [channels], in a unit of the tensor's own.

    Raises:
        InputError: if the model does not run on the data.
    """
    axes, energies = {}, {}
    for tensor in planner.tensors:
        found = channel_magnitudes(tensor, planner.scaling(method, tensor))
        if found is not None and tensor.grid is None:
            axes[tensor.name], energies[tensor.name] = tensor.weight.channel_axis or 0, found
    if data is None or not method.needs_sensitivity:
        return energies
    units = {name: (axes[name], channel_units(found)) for name, found in energies.items()}
    weights = planner.probe_weights(method)
    with progress.steps("probe channels", sum(len(sets) for _axis, sets in units.values())) as step:
        return measure_channels(
            planner.source.model, weights, units, data, biases=planner.biases, seed=seed, progress=step
        )
