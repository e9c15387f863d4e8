"""Models older than any that onnxruntime runs: their opset is raised when they are read."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import version_converter

from qtaml_onnx.errors import InputError

__all__ = ["OLDEST_OPSET", "is_old", "raise_opset"]

OLDEST_OPSET = 7
"""onnxruntime runs opset 7 and newer, and broadcasting arithmetic, which every read-out uses, came with it."""


def is_old(proto: onnx.ModelProto) -> bool:
    """Whether a model's opset is older than onnxruntime runs."""
    return 0 < _opset(proto) < OLDEST_OPSET


def _opset(proto: onnx.ModelProto) -> int:
    return {entry.domain: entry.version for entry in proto.opset_import}.get("", OLDEST_OPSET)


def raise_opset(path: Path, proto: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
    """The model in an opset that onnxruntime runs, and what to tell the user; the model itself and None if it has one.

    Args:
        path: The file, for messages.
        proto: The model.

    Raises:
        InputError: if onnx's own converter refuses it.
    """
    opset = _opset(proto)
    if not is_old(proto):
        return proto, None
    try:
        if proto.functions:
            raise ValueError("it has model functions")
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
            raise ValueError("it has external data")
        onnx.checker.check_model(proto)
        converted = _with_broadcast_slopes(version_converter.convert_version(proto, OLDEST_OPSET))
    except Exception as error:  # the converter raises types of its own, without a common base
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"{path}: opset {opset} is older than onnxruntime runs and cannot be raised to {OLDEST_OPSET} ({reason}); "
            "export it again"
        ) from error
    for entry in proto.metadata_props:
        if entry.key not in {kept.key for kept in converted.metadata_props}:
            converted.metadata_props.append(entry)
    return converted, (
        f"opset {opset} is older than onnxruntime runs: raised to {OLDEST_OPSET} by onnx's version converter"
    )


def _with_broadcast_slopes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Gives the slopes of PRelu the shape in which opset 7 broadcasts them, which the converter leaves out.

    Before opset 7 a vector of slopes ran over the input's second axis, whatever its rank; since then over its last.

    Raises:
        ValueError: if the input's rank is unknown, or the slopes are no initializer of PRelu's own.
    """
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for graph in (onnx.shape_inference.infer_shapes(model).graph,)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = [name for node in model.graph.node for name in node.input]
    for node in model.graph.node:
        if node.op_type != "PRelu":
            continue
        data, slope = node.input
        tensor = constants.get(slope)
        if tensor is None or data not in ranks or readers.count(slope) > 1:
            raise ValueError(f"PRelu '{node.name}' has slopes that cannot be reshaped")
        if tensor.dims != [1]:
            shape = [*tensor.dims, *[1] * (ranks[data] - 2)]
            tensor.dims[:] = shape
            for value in model.graph.input:
                if value.name == slope:
                    value.CopyFrom(onnx.helper.make_tensor_value_info(slope, tensor.data_type, shape))
    return model
