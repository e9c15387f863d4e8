"""What is particular to quantised models in planning: keeping their words or not, rounding to their integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.forms import floats, on_grid
from qtaml_onnx.menu import Choice
from qtaml_onnx.methods import Design, Method
from qtaml_onnx.modelio import SourceModel
from qtaml_onnx.passes.dequantize_weights import DequantizeWeights
from qtaml_onnx.plan_values import PackedWords, Steps
from qtaml_onnx.storage import error_moments, word_sums
from qtaml_onnx.tensors import Scaling, TensorData
from qtaml_onnx.weights import Inventory

__all__ = [
    "analysis_model",
    "design_choice",
    "kept_choices",
    "one_step_a_channel",
    "packed_words",
    "rounding_noise",
    "unit_ratio",
]


def analysis_model(source: SourceModel, inventory: Inventory) -> tuple[ir.Model, dict[str, str]]:
    """The model to analyse, with quantised weights as floats, and the name of each weight there.

    The model itself where it has no quantised weights.
    """
    if all(weight.grid is None for weight in inventory.weights):
        return source.model, {weight.name: weight.name for weight in inventory.weights}
    model, dequantize = source.model.clone(), DequantizeWeights()
    dequantize(model)
    return model, {weight.name: dequantize.weights[weight.name].name for weight in inventory.weights}


def design_choice(size: int, design: Design, weight: float) -> Choice:
    """A design made for a tensor as one thing that can be done with it.

    Args:
        size: Number of weights.
        design: Its design.
        weight: Output noise energy for normalised noise of variance 1.
    """
    planes = len(design.protected_planes)
    return Choice(design.code.bits, planes, size * planes, weight * design.noise, design)


def kept_choices(
    method: Method, tensor: TensorData, weight: float, rates: FlipRates, residual: float, protectable: bool
) -> list[Choice]:
    """The choices that keep a quantised tensor's own words and read them in integers of its own; none for a float one.

    Args:
        method: Gives the read-out.
        tensor: The weight.
        weight: Output noise energy for noise of variance 1 as the method normalises weights.
        rates: Flip rates.
        residual: Flip rate of protected planes.
        protectable: Whether planes may be protected.
    """
    grid, code = tensor.grid, tensor.fixed
    if grid is None or code is None:
        return []
    scaling = tensor.scaling("peak")
    x = tensor.normalised(scaling)
    sums = word_sums(code, x)
    ratio = unit_ratio(method, tensor, scaling)
    choices = []
    for design in method.designs(x, code, rates, residual=residual, protectable=protectable):
        if design.readout is not None and method.readout != "plain":
            kept = rates.truncated(code.bits).protect(design.protected_planes, residual)
            readout = on_grid(tensor, grid, design.readout)
            design = replace(design, readout=readout, noise=error_moments(readout, kept, sums).mse)
        choices.append(design_choice(tensor.weight.size, design, weight * ratio))
    return choices


def unit_ratio(method: Method, tensor: TensorData, scaling: Scaling) -> float:
    """How much more noise energy a scaling makes of normalised noise than that of a method does.

    Input scales aside: they move noise to where it matters less, which mean squares do not see.
    """
    return tensor.unit_energy(scaling) / tensor.unit_energy(tensor.scaling(method.scaling))


def rounding_noise(tensor: TensorData, scaling: Scaling) -> float:
    """Mean-square error of normalised weights from rounding to a quantised model's integers: 1/12 in these; else 0."""
    return 1 / 12 / scaling.mean_square if tensor.grid is not None else 0.0


def one_step_a_channel(tensor: TensorData) -> Steps | None:
    """How a plan records what integers stand for, where one zero point and one step, or one a channel, say it."""
    grid = tensor.grid
    if grid is None or grid.blocked or (grid.zero_point != grid.center).any():
        return None
    dtype = ir.DataType.from_numpy(grid.float_type)
    return Steps(values=floats(np.ravel(grid.step)), axis=grid.axis, dtype=dtype.name)


def packed_words(tensor: TensorData) -> PackedWords | None:
    """How a plan records the packing of a weight of MatMulNBits."""
    packing = tensor.grid.packing if tensor.grid is not None else None
    return None if packing is None else PackedWords(bits=packing.bits, shape=packing.shape, filler=packing.filler)
