"""Layers whose bias can correct itself: weight, input, bias and geometry of Conv, ConvTranspose, Gemm and MatMul + Add.

Inputs of a layer are mostly of one sign, so that errors of its weights add up to a shift of each output channel that is
the same for every sample. With x̄ the mean of the layer's input, Ŵ the weights as read and c = b + W·x̄ the clean mean
output, the bias b̂ = c − Ŵ·x̄ cancels that shift for the very faults that happened, whatever they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.graph import STANDARD_DOMAINS
from qtaml_onnx.weights import Weight, constant_array, is_constant

__all__ = ["Layer", "LayerStatistics", "extra_variance", "find_layer", "mean_response", "product_layer", "tap_coverage"]


@dataclass(frozen=True)
class Layer:
    """Where the bias of a weight is.

    Attributes:
        weight: The weight's name.
        op_type: Conv, ConvTranspose, Gemm or MatMul.
        node: The operator.
        input: Name of the value that it multiplies with the weight.
        output: Name of its result with the bias added.
        bias: The bias, float32 [outputs]; zeros where the operator has none.
        has_bias: Whether the model has one.
        groups: Of a convolution.
        has_place: Whether a bias can be put there; not behind a MatMul that nothing is added to at once.
    """

    weight: str
    op_type: str
    node: ir.Node
    input: str
    output: str
    bias: NDArray[np.float32]
    has_bias: bool
    groups: int = 1
    has_place: bool = True

    @property
    def outputs_first(self) -> bool:
        """Whether a matrix has its outputs along the first axis (Gemm with transB)."""
        return self.op_type == "Gemm" and bool(_integer(self.node, "transB", 0))

    @property
    def channel_axis(self) -> int:
        """The axis of channels in the layer's input and output."""
        return 1 if self.op_type in ("Conv", "ConvTranspose") else -1


@dataclass(frozen=True)
class LayerStatistics:
    """What calibration samples say of a layer.

    Attributes:
        mean_input: x̄, the mean of the input a channel, float64 [inputs].
        input_variance: Its variance a channel, float64 [inputs].
        output_variance: Variance of the clean output a channel, float64 [outputs].
        coverage: For each kernel tap the share of output positions at which it meets an input, not padding; float64,
            the kernel's shape, () for Gemm and MatMul.
    """

    mean_input: NDArray[np.float64]
    input_variance: NDArray[np.float64]
    output_variance: NDArray[np.float64]
    coverage: NDArray[np.float64]


def find_layer(model: ir.Model, weight: Weight) -> tuple[Layer | None, str]:
    """The layer of a weight, or None and the reason why its bias cannot correct itself.

    Args:
        model: The model.
        weight: One of its weights.
    """
    node = weight.consumer
    if weight.grid is not None:
        return None, "quantised: its layer is looked for in the model with float weights"
    if node.graph is not model.graph or weight.owner is not model.graph:
        return None, "inside a subgraph or function"
    if len(weight.value.uses()) != 1 or weight.operand != 1 or node.inputs[1] is not weight.value:
        return None, "the weight is shared, or not directly the second operand"
    if node.inputs[0] is None or is_constant(node.inputs[0]):
        return None, "the input is constant"
    rank = len(weight.shape)
    match node.op_type:
        case "Conv" | "ConvTranspose":
            return _convolution(weight, node)
        case "Gemm" if _plain_gemm(node):
            outputs = weight.shape[0] if _integer(node, "transB", 0) else weight.shape[1]
            return _with_third_input(weight, node, outputs, 1)
        case "MatMul" if rank == 2:
            return _matmul(weight, node)
    return None, f"{node.op_type} has no place for a bias"


def product_layer(model: ir.Model, weight: Weight) -> Layer | None:
    """The layer of a MatMul's weight, without a bias or a place for one; None where it is none.

    It has statistics like others, for scales of inputs and outputs. Quantised models have such layers, as the result
    of a MatMul is quantised before a bias is added.

    Args:
        model: The model.
        weight: One of its weights.
    """
    node, value = weight.consumer, weight.value
    ours = node.graph is model.graph and weight.owner is model.graph and len(value.uses()) == 1
    if node.op_type != "MatMul" or not ours or len(weight.shape) != 2 or node.inputs[1] is not value:
        return None
    if node.inputs[0] is None or is_constant(node.inputs[0]):
        return None
    layer = _layer(weight, node, node.outputs[0], None, weight.shape[1], 1)
    return replace(layer, has_place=False)


def _integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _plain_gemm(node: ir.Node) -> bool:
    factors = [node.attributes[name].as_float() for name in ("alpha", "beta") if name in node.attributes]
    return all(factor == 1.0 for factor in factors) and not _integer(node, "transA", 0)


def _convolution(weight: Weight, node: ir.Node) -> tuple[Layer | None, str]:
    groups = _integer(node, "group", 1)
    if node.op_type == "ConvTranspose" and groups != 1:
        return None, "grouped ConvTranspose"
    outputs = weight.shape[0] if node.op_type == "Conv" else weight.shape[1]
    return _with_third_input(weight, node, outputs, groups)


def _with_third_input(weight: Weight, node: ir.Node, outputs: int, groups: int) -> tuple[Layer | None, str]:
    old = node.inputs[2] if len(node.inputs) > 2 else None
    if old is not None and not is_constant(old):
        return None, "the bias is computed at run time"
    if old is not None and not _one_a_channel(constant_array(old).shape, outputs):
        return None, "the bias is not one value an output channel"
    return _layer(weight, node, node.outputs[0], old, outputs, groups), ""


def _one_a_channel(shape: tuple[int, ...], outputs: int) -> bool:
    """Whether a bias of that shape is one value for all outputs or one for each; Gemm's C may be [rows, 1] as well."""
    return math.prod(shape) == 1 or (math.prod(shape) == outputs and shape[-1] == outputs)


def _matmul(weight: Weight, node: ir.Node) -> tuple[Layer | None, str]:
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None, "MatMul without an Add that takes a bias"
    add = uses[0].node
    if add.op_type != "Add" or add.domain not in STANDARD_DOMAINS or add.graph is not node.graph:
        return None, "MatMul without an Add that takes a bias"
    old = add.inputs[1 - uses[0].idx]
    if not is_constant(old) or constant_array(old).shape != (weight.shape[1],):  # type: ignore[arg-type]
        return None, "MatMul without an Add that takes a bias"
    return _layer(weight, node, add.outputs[0], old, weight.shape[1], 1), ""


def _layer(weight: Weight, node: ir.Node, output: ir.Value, bias: ir.Value | None, outputs: int, groups: int) -> Layer:
    values = np.zeros(outputs, np.float32)
    if bias is not None:
        values = np.broadcast_to(np.ravel(constant_array(bias)).astype(np.float32), (outputs,)).copy()
    source = node.inputs[0]
    return Layer(
        weight.name,
        node.op_type,
        node,
        str(source.name if source else ""),
        str(output.name),
        values,
        bias is not None,
        groups,
    )


def tap_coverage(
    node: ir.Node, kernel: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...]
) -> NDArray[np.float64]:
    """For each kernel tap the share of output positions that it contributes to from inside the input.

    Args:
        node: A Conv or ConvTranspose.
        kernel: The kernel's spatial extents.
        before: The input's spatial extents.
        after: The output's.

    Returns:
        float64, the kernel's shape. Of a Conv, at most 1: less where taps reach into padding. Of a ConvTranspose, the
        number of inputs that land on an output position through this tap, over all output positions.
    """
    rank = len(kernel)
    strides = _integers(node, "strides", (1,) * rank)
    dilations = _integers(node, "dilations", (1,) * rank)
    pads = _start_pads(node, kernel, before, after, strides, dilations)
    axes = []
    for axis in range(rank):
        taps = []
        for tap in range(kernel[axis]):
            offset = tap * dilations[axis] - pads[axis]
            if node.op_type == "Conv":
                position = np.arange(after[axis]) * strides[axis] + offset
                hit = (position >= 0) & (position < before[axis])
            else:
                position = np.arange(before[axis]) * strides[axis] + offset
                hit = (position >= 0) & (position < after[axis])
            taps.append(hit.sum() / after[axis])
        axes.append(np.array(taps))
    coverage = np.ones(())
    for taps_of_axis in axes:
        coverage = np.multiply.outer(coverage, taps_of_axis)
    return np.asarray(coverage, dtype=np.float64)


def _integers(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(node.attributes[name].as_ints()) if name in node.attributes else default


def _start_pads(
    node: ir.Node,
    kernel: tuple[int, ...],
    before: tuple[int, ...],
    after: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[int, ...]:
    """Padding at the start of each axis, explicit, by `auto_pad`, or from the output shape that is asked for.

    Where the total is odd, SAME_UPPER has the smaller half at the start; a ConvTranspose with an `output_shape` has the
    larger one there under every other mode.
    """
    mode = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    if "output_shape" not in node.attributes:
        if mode == "NOTSET":
            return _integers(node, "pads", (0,) * (2 * len(kernel)))[: len(kernel)]
        if mode == "VALID":
            return (0,) * len(kernel)
    longer = _integers(node, "output_padding", (0,) * len(kernel))
    pads = []
    for axis, extent in enumerate(kernel):
        long, short = (after, before) if node.op_type == "Conv" else (before, after)
        reach = (long[axis] - 1) * strides[axis] + longer[axis] + (extent - 1) * dilations[axis] + 1
        total = max(0, reach - short[axis])
        pads.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
    return tuple(pads)


def mean_response(
    layer: Layer, weights: NDArray[np.floating], mean_input: NDArray[np.floating], coverage: NDArray[np.floating]
) -> NDArray[np.float64]:
    """W·x̄: the mean output of the weights alone, float64 [outputs].

    Args:
        layer: Gives the operator and its groups.
        weights: In the operator's own layout.
        mean_input: x̄ [inputs].
        coverage: As `tap_coverage` gives; () for Gemm and MatMul.
    """
    w = weights.astype(np.float64)
    x = np.asarray(mean_input, dtype=np.float64)
    if layer.outputs_first:
        return np.asarray(w @ x)
    if layer.op_type in ("Gemm", "MatMul"):
        return np.asarray(x @ w)
    taps = (w * coverage).reshape(*w.shape[:2], -1).sum(axis=-1)
    if layer.op_type == "ConvTranspose":
        return np.asarray(x @ taps)
    grouped = taps.reshape(layer.groups, -1, w.shape[1])
    return np.asarray(np.einsum("goc,gc->go", grouped, x.reshape(layer.groups, -1)).ravel())


def extra_variance(
    layer: Layer, statistics: LayerStatistics, columns: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Output variance that weight noise of variance 1 adds once the mean shift is cancelled, float64 [outputs].

    Σ Var[x_i] c_i² over all inputs that an output meets; the same for all outputs of a group.

    Args:
        layer: The layer.
        statistics: Its calibration.
        columns: c, factors on the noise an input channel; all 1 if None.
    """
    variance = statistics.input_variance if columns is None else statistics.input_variance * columns**2
    taps = float(statistics.coverage.sum()) if statistics.coverage.ndim else 1.0
    per_group = variance.reshape(layer.groups, -1).sum(axis=1) * taps
    return np.asarray(np.repeat(per_group, len(layer.bias) // layer.groups))
