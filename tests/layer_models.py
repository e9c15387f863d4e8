"""Models of one layer, for every geometry in which a bias corrects itself, with a weight that can be varied."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper
from small_models import info, model, normal
from stored_models import source_model

from qtaml_onnx.layers import Layer, find_layer
from qtaml_onnx.weights import find_weights

Array = NDArray[Any]


@dataclass(frozen=True)
class LayerCase:
    """One layer between the graph's input `x` and output `y`, its weight the initializer `W`.

    Attributes:
        op_type: Conv, ConvTranspose, Gemm or MatMul.
        shape: Of the weight.
        inputs: Shape of one sample; for convolutions channels first.
        bias: Shape of the bias as the model has it; None for no bias.
        bias_first: Whether the bias is the Add's first operand.
        attributes: Of the operator.
    """

    op_type: str
    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    bias: tuple[int, ...] | None = None
    bias_first: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def convolution(self) -> bool:
        return self.op_type.startswith("Conv")

    @property
    def weights(self) -> Array:
        """Clean weights; their mean is not 0."""
        return normal(*self.shape, seed=1) + np.float32(0.2)

    @property
    def biases(self) -> Array | None:
        return None if self.bias is None else normal(*self.bias, seed=2)

    def samples(self, count: int = 12, *, flat: bool = False) -> Array:
        """Mostly positive inputs, another mean for each channel; `flat`: the same at all positions of a sample."""
        x = np.abs(normal(count, *self.inputs, seed=3)) + np.float32(0.1)
        channels = self.inputs[0] if self.convolution else self.inputs[-1]
        factor = np.linspace(0.5, 3.0, channels, dtype=np.float32)
        x = x * (factor.reshape(-1, *[1] * (len(self.inputs) - 1)) if self.convolution else factor)
        if flat and self.convolution:
            x = np.broadcast_to(x[(..., *[slice(0, 1)] * (len(self.inputs) - 1))], x.shape).copy()
        return x

    def build(
        self, weights: Array | None = None, *, opset: int = 17, dtype: type[np.generic] = np.float32
    ) -> onnx.ModelProto:
        code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        constants = {"W": (self.weights if weights is None else weights).astype(dtype)}
        if self.biases is not None:
            constants["b"] = self.biases.astype(dtype)
        if self.op_type == "MatMul":
            nodes = [
                helper.make_node("MatMul", ["x", "W"], ["m"]),
                helper.make_node("Add", ["b", "m"] if self.bias_first else ["m", "b"], ["y"]),
            ]
        else:
            operands = ["x", "W"] + (["b"] if self.bias is not None else [])
            nodes = [helper.make_node(self.op_type, operands, ["y"], **self.attributes)]
        x = info("x", code, "N", *self.inputs)
        y = info("y", code, *[None] * (len(self.inputs) + 1))
        return model(nodes, [x], [y], constants, opset=opset)


def _conv(shape: tuple[int, ...], inputs: tuple[int, ...], bias: bool = True, **attributes: Any) -> LayerCase:
    return LayerCase("Conv", shape, inputs, (shape[0],) if bias else None, attributes=attributes)


def _transposed(shape: tuple[int, ...], inputs: tuple[int, ...], bias: bool = True, **attributes: Any) -> LayerCase:
    return LayerCase("ConvTranspose", shape, inputs, (shape[1],) if bias else None, attributes=attributes)


LAYERS: dict[str, LayerCase] = {
    "conv-1d": _conv((5, 3, 4), (3, 11)),
    "conv-1d-pads": _conv((5, 3, 4), (3, 11), pads=[3, 1], strides=[2]),
    "conv-2d": _conv((5, 3, 3, 3), (3, 7, 6)),
    "conv-2d-no-bias": _conv((5, 3, 3, 3), (3, 7, 6), bias=False),
    "conv-pointwise": _conv((5, 3, 1, 1), (3, 4, 4)),
    "conv-pads": _conv((4, 3, 3, 5), (3, 7, 8), pads=[1, 3, 0, 2]),
    "conv-strides": _conv((4, 3, 3, 3), (3, 9, 8), pads=[1, 1, 1, 1], strides=[2, 3]),
    "conv-dilations": _conv((4, 3, 3, 2), (3, 9, 8), pads=[2, 0, 1, 2], dilations=[2, 3]),
    "conv-groups": _conv((6, 2, 3, 3), (4, 6, 6), group=2, pads=[1, 1, 1, 1]),
    "conv-groups-no-bias": _conv((6, 2, 3, 3), (4, 6, 6), bias=False, group=2),
    "conv-depthwise": _conv((4, 1, 3, 3), (4, 6, 6), group=4, pads=[1, 1, 1, 1]),
    "conv-depthwise-twice": _conv((8, 1, 3), (4, 9), bias=False, group=4, strides=[2]),
    "conv-same-upper": _conv((4, 3, 4, 3), (3, 8, 9), auto_pad="SAME_UPPER", strides=[2, 1]),
    "conv-same-lower": _conv((4, 3, 4, 3), (3, 8, 9), auto_pad="SAME_LOWER", strides=[2, 1]),
    "conv-valid": _conv((4, 3, 4, 3), (3, 8, 9), auto_pad="VALID"),
    "conv-3d": _conv((3, 2, 2, 3, 2), (2, 4, 5, 4), pads=[1, 1, 0, 0, 1, 1]),
    "conv-padding-beyond": _conv((3, 2, 3), (2, 4), pads=[3, 4]),
    "transposed": _transposed((3, 5, 3, 3), (3, 4, 5)),
    "transposed-1d": _transposed((3, 5, 4), (3, 6), strides=[3], pads=[2, 1]),
    "transposed-no-bias": _transposed((3, 5, 3, 3), (3, 4, 5), bias=False, strides=[2, 2]),
    "transposed-pads": _transposed((3, 5, 3, 4), (3, 4, 5), strides=[2, 1], pads=[1, 2, 0, 1]),
    "transposed-output-padding": _transposed(
        (3, 5, 3, 3), (3, 4, 5), strides=[2, 3], pads=[1, 1, 1, 1], output_padding=[1, 2]
    ),
    "transposed-dilations": _transposed((3, 5, 3, 2), (3, 4, 5), dilations=[2, 3], strides=[2, 1], pads=[1, 0, 2, 1]),
    "transposed-same-upper": _transposed((3, 5, 4, 3), (3, 4, 5), strides=[3, 2], auto_pad="SAME_UPPER"),
    "transposed-same-lower": _transposed((3, 5, 4, 3), (3, 4, 5), strides=[3, 2], auto_pad="SAME_LOWER"),
    "transposed-valid": _transposed((3, 5, 4, 3), (3, 4, 5), strides=[3, 2], auto_pad="VALID"),
    "transposed-output-shape": _transposed((3, 5, 4, 3), (3, 4, 5), strides=[2, 2], output_shape=[7, 10]),
    "transposed-output-shape-padding": _transposed(
        (3, 5, 4, 3), (3, 4, 5), strides=[2, 2], output_shape=[8, 10], output_padding=[1, 1]
    ),
    "transposed-output-shape-upper": _transposed(
        (3, 5, 4, 3), (3, 4, 5), strides=[2, 2], output_shape=[7, 10], auto_pad="SAME_UPPER"
    ),
    "gemm": LayerCase("Gemm", (6, 4), (6,), (4,)),
    "gemm-transposed": LayerCase("Gemm", (4, 6), (6,), (4,), attributes={"transB": 1}),
    "gemm-no-bias": LayerCase("Gemm", (6, 4), (6,)),
    "gemm-transposed-no-bias": LayerCase("Gemm", (4, 6), (6,), attributes={"transB": 1}),
    "gemm-row": LayerCase("Gemm", (6, 4), (6,), (1, 4), attributes={"alpha": 1.0, "beta": 1.0, "transA": 0}),
    "gemm-scalar": LayerCase("Gemm", (6, 4), (6,), ()),
    "matmul": LayerCase("MatMul", (6, 4), (6,), (4,)),
    "matmul-bias-first": LayerCase("MatMul", (6, 4), (6,), (4,), bias_first=True),
    "matmul-sequence": LayerCase("MatMul", (6, 4), (3, 6), (4,)),
}
"""Every layer whose bias corrects itself, by name."""


def found_layer(proto: onnx.ModelProto, name: str = "W") -> tuple[Layer | None, str, ir.Model]:
    """The layer of a weight in a fresh model, or why there is none."""
    loaded = source_model(proto).model
    weight = next(weight for weight in find_weights(loaded).weights if weight.name == name)
    return *find_layer(loaded, weight), loaded
