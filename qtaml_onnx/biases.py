"""Plans self-correcting biases and restored deviations from calibration statistics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.forms import floats
from qtaml_onnx.layers import Layer, LayerStatistics, mean_response
from qtaml_onnx.plan_values import BiasPlan

__all__ = ["bias_plan", "restored_deviation"]


def bias_plan(layer: Layer, statistics: LayerStatistics, weights: NDArray[np.floating]) -> BiasPlan | None:
    """The plan of a self-correcting bias; None if x̄ does not fit half precision.

    Args:
        layer: The layer.
        statistics: Its calibration.
        weights: Its clean weights, in the operator's layout.
    """
    with np.errstate(over="ignore"):  # an infinite mean is refused below
        mean = statistics.mean_input.astype(np.float16)
    if not np.isfinite(mean).all():
        return None
    kernel = statistics.coverage.shape
    coverage = statistics.coverage.astype(np.float16)
    target = layer.bias + mean_response(layer, weights, mean.astype(np.float64), coverage.astype(np.float64))
    grouped: tuple[int, ...] | None = None
    taps = (1,) * len(kernel)
    match layer.op_type:
        case "Conv" if layer.groups > 1:
            inputs = weights.shape[1]
            grouped = (layer.groups, len(layer.bias) // layer.groups, inputs, *kernel)
            shape, summed = (layer.groups, 1, inputs, *taps), tuple(range(2, 3 + len(kernel)))
        case "Conv":
            shape, summed = (1, -1, *taps), tuple(range(1, 2 + len(kernel)))
        case "ConvTranspose":
            shape, summed = (-1, 1, *taps), (0, *range(2, 2 + len(kernel)))
        case _:
            shape, summed = ((1, -1), (1,)) if layer.outputs_first else ((-1, 1), (0,))
    return BiasPlan(
        output=layer.output,
        mean_input=floats(mean),
        mean_shape=shape,
        coverage=None if (coverage == 1).all() else floats(coverage),
        coverage_shape=kernel,
        summed_axes=summed,
        target=floats(target.astype(np.float32)),
        grouped_shape=grouped,
        has_bias=layer.has_bias,
    )


def restored_deviation(statistics: LayerStatistics, added: NDArray[np.float64]) -> NDArray[np.float64]:
    """The factor an output channel that takes the variance which faults add out of the layer's output again.

    sqrt(s/(s + v)), s the clean variance of the channel, v the added one. Folded into the scales of the weights it
    costs nothing.

    Args:
        statistics: Of the layer.
        added: Output variance that the faults add on x − x̄, float64 [outputs].
    """
    clean = statistics.output_variance
    return np.asarray(np.sqrt(np.divide(clean, clean + added, out=np.ones_like(clean), where=clean > 0)))
