"""The form in which quantised weights are analysed computes what the quantised model computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from quantized_models import FORMATS, feeds, gathered_blocks, layered_embedding, recurrent, weights_of
from small_models import info, initializer
from stored_models import run, source_model

from qtaml_onnx.passes.dequantize_weights import DequantizeWeights
from qtaml_onnx.verification import comparison_options
from qtaml_onnx.weights import find_weights

Array = NDArray[Any]


def dequantised(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, DequantizeWeights]:
    model, rewrite = source_model(proto).model, DequantizeWeights()
    rewrite(model)
    return ir.to_proto(model), rewrite


def outputs(proto: onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    return run(proto, feed, comparison_options())


@pytest.mark.parametrize("name", ["gathered-int4-symmetric", "gathered-uint4-asymmetric", "gathered-int4-float16"])
def test_gathered_blocks_are_those_of_the_operator(name: str) -> None:
    """A Gather of floats gives bit for bit what GatherBlockQuantized gives."""
    proto = FORMATS[name]()
    real, rewrite = dequantised(proto)
    assert [node.op_type for node in real.graph.node] == ["Gather", "Tanh"]
    assert rewrite.weights["W"].channel_axis == 1
    np.testing.assert_array_equal(outputs(real, feeds(proto))[0], outputs(proto, feeds(proto))[0])


def test_blocks_along_another_axis_than_the_last() -> None:
    """quantize_axis 0 and gather_axis 1: one step for 16 rows of a column."""
    proto = gathered_blocks("int4", True)
    arrays = weights_of(proto)
    node = proto.graph.node[0]
    del node.attribute[:]
    node.attribute.extend(
        helper.make_attribute(key, value)
        for key, value in {"gather_axis": 1, "quantize_axis": 0, "block_size": 16}.items()
    )
    del proto.graph.initializer[:]
    turned = {name: np.ascontiguousarray(array.T) for name, array in arrays.items()}
    proto.graph.initializer.extend(initializer(name, array) for name, array in turned.items())
    proto.graph.output[0].CopyFrom(info("y", 1, 40, "N"))
    got, wanted = (outputs(model, feeds(proto))[0] for model in (dequantised(proto)[0], proto))
    np.testing.assert_array_equal(got, wanted)
    grid = find_weights(source_model(proto).model).weights[0].grid
    assert grid is not None
    np.testing.assert_array_equal(
        grid.dequantize(turned["W"].astype(np.int8)),
        turned["W"].astype(np.float32) * np.repeat(turned["s"], 16, axis=0)[:40],
    )


def test_integers_behind_layout_operators_become_floats_for_all_their_readers() -> None:
    """The dequantised output is the same; products and sums differ by the rounding that the analysis leaves out."""
    proto = layered_embedding()
    real, rewrite = dequantised(proto)
    assert set(rewrite.weights) == {"W", "M"}
    left = {node.op_type for node in real.graph.node}
    assert not {"QLinearMatMul", "QLinearAdd"} & left
    got, wanted = outputs(real, feeds(proto)), outputs(proto, feeds(proto))
    step = float(weights_of(proto)["os"])
    for computed, quantised in zip(got[:2], wanted[:2], strict=True):
        assert float(np.sqrt(np.mean(quantised**2))) > 10 * step
        assert np.abs(computed - quantised).max() <= step / 2 + 1e-5
    np.testing.assert_array_equal(got[2], wanted[2])


def lstm_of(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The plain LSTM with the numbers that the integers stand for, worked out here."""
    arrays = weights_of(proto)
    constants = {"B": arrays["B"]}
    for name in ("W", "R"):
        words, step, point = arrays[name].astype(np.float32), arrays[f"{name}s"], arrays[f"{name}z"].astype(np.float32)
        shape = (len(step), 1, -1)
        real = (words - point.reshape(shape)) * step.reshape(shape)
        constants[name] = np.ascontiguousarray(real.transpose(0, 2, 1))
    old = proto.graph.node[0]
    node = helper.make_node("LSTM", ["x", "W", "R", "B"], list(old.output))
    node.attribute.extend(old.attribute)
    tensors = [initializer(name, array) for name, array in constants.items()]
    graph = helper.make_graph([node], "plain", [proto.graph.input[0]], list(proto.graph.output), tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


RECURRENT = [name for name in FORMATS if name.startswith("recurrent")]


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_matrices_are_those_of_the_operator(name: str) -> None:
    """Equal to an LSTM of the same numbers; off the operator itself by no more than its rounding of activations."""
    proto = FORMATS[name]()
    real, rewrite = dequantised(proto)
    assert {weight.op_type for weight in rewrite.weights.values()} == {"LSTM"}
    assert {weight.channel_axis for weight in rewrite.weights.values()} == {2}
    assert sorted(node.op_type for node in real.graph.node) == ["LSTM", "Transpose", "Transpose"]
    feed = feeds(proto)
    for got, wanted, quantised in zip(*(outputs(m, feed) for m in (real, lstm_of(proto), proto)), strict=True):
        np.testing.assert_array_equal(got, wanted)
        assert float(np.sqrt(np.mean(quantised**2))) > 0.1
        assert np.abs(got - quantised).max() < 0.03


def test_a_matrix_that_is_not_stored_is_dequantised_by_the_graph() -> None:
    """Of the two matrices of a DynamicQuantizeLSTM only one is a weight: the scales of the other are an input."""
    proto = recurrent(2, "unit")
    step = weights_of(proto)["Ws"]
    kept = [tensor for tensor in proto.graph.initializer if tensor.name != "Ws"]
    feed = feeds(proto) | {"Ws": step}
    wanted = outputs(lstm_of(proto), feeds(proto))
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    proto.graph.input.append(info("Ws", 1, *step.shape))
    inventory = find_weights(source_model(proto).model)
    assert [weight.name for weight in inventory.weights] == ["R"]
    reasons = {item.name: item.reason for item in inventory.left_out}
    assert reasons["W"] == "DynamicQuantizeLSTM with a scale or zero point computed at run time"
    for got, plain in zip(outputs(dequantised(proto)[0], feed), wanted, strict=True):
        np.testing.assert_allclose(got, plain, rtol=0, atol=1e-6)


def _attribute(**values: int) -> Any:
    def change(proto: onnx.ModelProto) -> None:
        kept = [attribute for attribute in proto.graph.node[0].attribute if attribute.name not in values]
        del proto.graph.node[0].attribute[:]
        proto.graph.node[0].attribute.extend(kept)
        proto.graph.node[0].attribute.extend(helper.make_attribute(*item) for item in values.items())

    return change


def _constant(name: str, array: Array) -> Any:
    def change(proto: onnx.ModelProto) -> None:
        next(t for t in proto.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(array, name))

    return change


def _told_another_scale(proto: onnx.ModelProto) -> None:
    proto.graph.node[3].input[1] = "os"


def _given_out(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(info("r", onnx.TensorProto.UINT8, None, 2, 6))


_READERS = "Gather from integers whose readers do not all take them at one and the same scale"


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("layered", _told_another_scale, _READERS),
        ("layered", _given_out, _READERS),
        ("gathered-int4-symmetric", _attribute(quantize_axis=2),
         "GatherBlockQuantized in blocks of 16 along axis 2 of a table [30, 40]"),
        ("gathered-int4-symmetric", _attribute(block_size=0),
         "GatherBlockQuantized in blocks of 0 along axis 1 of a table [30, 40]"),
        ("gathered-int4-symmetric", _constant("s", np.ones((30, 2), np.float32)),
         "GatherBlockQuantized whose blocked scales are [30, 2], not [30, 3]"),
        ("gathered-uint4-asymmetric", _constant("z", np.zeros((30, 2), np.uint8)),
         "GatherBlockQuantized whose zero points are [30, 2], its scales [30, 3]"),
        ("gathered-int4-symmetric", _constant("W", np.zeros((30, 40), np.uint8)),
         "GatherBlockQuantized over UINT8: only elements of type INT4 and UINT4 are known"),
        ("recurrent-both-unit", _constant("W", np.zeros((2, 32), np.int8)),
         "DynamicQuantizeLSTM whose scales are neither one a direction nor one a unit of its gates"),
        ("recurrent-both-unit", _constant("Ws", np.ones(32, np.float32)),
         "DynamicQuantizeLSTM whose scales are neither one a direction nor one a unit of its gates"),
        ("recurrent-both-unit", _constant("Wz", np.zeros(2, np.int8)),
         "DynamicQuantizeLSTM whose zero points are [2], its scales [2, 32]"),
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_left_out_with_the_reason(name: str, change: Any, reason: str) -> None:
    proto = FORMATS[name]()
    change(proto)
    model = ir.from_proto(proto)
    reasons = {item.name: item.reason for item in find_weights(model).left_out}
    assert reasons["W"] == reason
