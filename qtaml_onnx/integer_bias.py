"""Self-correcting biases of quantised layers, in the units that their operators take a bias in.

With q the integers of a weight as read, z their zero point, s_w their step, s_x that of the input and x̄ its mean, the
bias b̂ = c − Σ s_w (q − z) x̄ becomes

    b̂ / (s_x s_w) = c / (s_x s_w) − Σ (q − z) x̄ / s_x          rounded, where the bias is 32-bit integers
    b̂ = c − s_w Σ (q − z) x̄                                     where it is floats

so that it is computed from the very integers that the operator reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.forms import floats
from qtaml_onnx.graph import constant_array, is_constant
from qtaml_onnx.integer_grid import IntegerGrid
from qtaml_onnx.layers import Layer, mean_response
from qtaml_onnx.plan_values import BiasPlan, QuantizedBias
from qtaml_onnx.weights import Weight

__all__ = ["integer_bias"]

_LARGEST_ACCUMULATOR = float(2**31 - 1)


@dataclass(frozen=True)
class _Place:
    """Where a layer takes its bias.

    Attributes:
        output: Name of the operator's result, by which the layer is found again.
        step: Of a bias in 32-bit integers; None of a float bias.
        has_bias: Whether there is one.
    """

    output: str
    step: NDArray[np.float64] | None
    has_bias: bool


def integer_bias(
    weight: Weight, plan: BiasPlan, layer: Layer, values: NDArray[np.floating], coverage: NDArray[np.float64]
) -> BiasPlan | None:
    """The plan of a quantised layer's bias in the operator's own units; None where it has no place for one.

    Args:
        weight: The weight, in the quantised model.
        plan: The plan for the same layer with its weights in floats.
        layer: That layer.
        values: Its float weights.
        coverage: Of its kernel taps, see `LayerStatistics`.
    """
    grid = weight.grid
    if grid is None:
        return plan
    place = _place(weight, grid)
    outputs = len(plan.target)
    if place is None or grid.blocked or grid.step.size not in (1, outputs):
        return None
    steps = np.ravel(grid.step).astype(np.float64)
    planned = np.asarray(plan.mean_input, dtype=np.float64)
    mean, target = planned, np.asarray(plan.target, dtype=np.float64)
    points = grid.zero_point if grid.zero_point.any() else np.zeros(1, np.int32)
    quantized = QuantizedBias(
        rounded=place.step is not None,
        zero_points=tuple(map(int, np.ravel(points))),
        zero_shape=tuple(grid.spread(points).shape) if points.size > 1 else (1,) * len(weight.shape),
        scales=() if place.step is not None else floats(steps.astype(np.float32)),
        step=floats(place.step.astype(np.float32)) if place.step is not None and not place.has_bias else (),
    )
    if place.step is not None:
        ratio = place.step / steps  # the input's step, of whatever channel
        if place.step.size not in (1, outputs) or not np.allclose(ratio, ratio.flat[0], rtol=1e-4):
            return None
        with np.errstate(over="ignore"):  # an infinite mean is refused below
            mean = (planned / ratio.flat[0]).astype(np.float16).astype(np.float64)
        if not np.isfinite(mean).all():
            return None
        taps = coverage.astype(np.float16).astype(np.float64)
        change = mean_response(layer, values, mean * ratio.flat[0] - planned, taps)  # of the mean by its rounding
        target = (target + change) / place.step
        if np.abs(target).max() > _LARGEST_ACCUMULATOR:
            return None
    update = {
        "output": place.output,
        "mean_input": floats(mean.astype(np.float16)),
        "target": floats(target.astype(np.float32)),
        "has_bias": place.has_bias,
        "quantized": quantized,
    }
    return plan.model_copy(update=update)


def _place(weight: Weight, grid: IntegerGrid) -> _Place | None:
    node = weight.consumer
    if weight.dequantize is None:
        if node.op_type not in ("QLinearConv", "QGemm"):
            return None  # the others add their bias in another operator, or in floats behind scales found at run time
        slot = 8 if node.op_type == "QLinearConv" else 6
        bias = node.inputs[slot] if len(node.inputs) > slot else None
        if bias is not None and not is_constant(bias):
            return None
        step = np.ravel(constant_array(node.inputs[1])).astype(np.float64) * np.ravel(grid.step)  # type: ignore[arg-type]
        return _Place(str(node.outputs[0].name), step, bias is not None)
    last, slot = node, 2
    if node.op_type == "MatMul":
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != "Add":
            return None
        last, slot = uses[0].node, 1 - uses[0].idx
    bias = last.inputs[slot] if len(last.inputs) > slot else None
    name = str(last.outputs[0].name)
    if bias is None:
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        readers = [use.node.op_type for use in last.outputs[0].uses()]
        if source is None or source.op_type != "DequantizeLinear" or readers != ["QuantizeLinear"]:
            return _Place(name, None, False)  # no integer operator is made of it: a bias in floats is none too many
        if not is_constant(source.inputs[1]) or constant_array(source.inputs[1]).size != 1:  # type: ignore[arg-type]
            return None
        step = float(constant_array(source.inputs[1])) * np.ravel(grid.step).astype(np.float64)  # type: ignore[arg-type]
        return _Place(name, step, False)
    if is_constant(bias):
        return _Place(name, None, True)
    producer = bias.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or node.op_type == "MatMul":
        return None
    if not all(value is None or is_constant(value) for value in producer.inputs):
        return None
    words, scale = (constant_array(value) for value in producer.inputs[:2])  # type: ignore[arg-type]
    point = producer.inputs[2] if len(producer.inputs) > 2 else None
    if words.dtype != np.int32 or (point is not None and constant_array(point).any()):
        return None
    return _Place(name, np.ravel(scale).astype(np.float64), True)
