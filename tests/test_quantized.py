"""Quantised models of every format: hardened, verified, instrumented, and the integers that are read out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from quantized_models import FORMATS, feeds, qdq
from small_models import normal
from stored_models import fault_options, rates_feed, run, source_model, store

from qtaml_onnx.cli import main
from qtaml_onnx.plan import read_plan
from qtaml_onnx.storage.tensor import decode_integers, encode_tensor
from qtaml_onnx.verification import comparison_options
from qtaml_onnx.weights import find_weights, stored_values

Array = NDArray[Any]
WEIGHTS = {"static": 4, "dynamic": 4, "embedding": 2, "layered": 2, "recurrent": 2, "branch": 2}
QUICK = {"tensor": {"int8"}, "channel": {"uint8", "uint4"}, "block": {"int4", "int16", "uint4"}}
"""Of the formats by hand: by granularity, the types that the quick tests take."""
_PACKED = {"packed-2-symmetric-80", "packed-4-asymmetric-80", "packed-4-symmetric-64", "packed-8-asymmetric-64"}
_OWN_OPERATORS = {
    "gathered-uint4-asymmetric",
    "gathered-int4-float16",
    "recurrent-both-unit",
    "recurrent-forward-uint8",
}


def quick(name: str) -> bool:
    parts = name.split("-")
    granularity = parts[2] if len(parts) > 2 else ""
    if parts[0] in ("packed", "gathered", "recurrent"):
        return name in _PACKED | _OWN_OPERATORS
    return parts[0] != "qdq" or granularity not in QUICK or parts[1] in QUICK[granularity]


NAMES = [name if quick(name) else pytest.param(name, marks=pytest.mark.slow) for name in FORMATS]


def files(name: str, folder: Path) -> tuple[Path, Path]:
    """The model and calibration data for it."""
    proto = FORMATS[name]()
    path, data = folder / "q.onnx", folder / "calibration.npz"
    onnx.save(proto, path)
    np.savez(data, **feeds(proto, 64))
    return path, data


def hardened(path: Path, data: Path | None, rate: float, capsys: pytest.CaptureFixture[str], more: str = "") -> Any:
    """Hardens by the command line and gives the report."""
    calibration = f"--calibration {data}" if data else ""
    out = path.with_name("o.onnx")
    args = f"harden {path} -o {out} --flip-rate {rate} {calibration} {more} --no-html --json"
    assert main(args.split()) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", NAMES)
def test_harden_verify_inject(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All weights are stored, verify finds nothing wrong, faults at rate 0 change nothing and at 0.3 something."""
    path, data = files(name, tmp_path)
    report = hardened(path, data, 0.05, capsys, f"--emit-faulty {tmp_path}/f.onnx")
    assert len(report["tensors"]) == WEIGHTS.get(name.split("-")[0], 1)
    assert main(f"verify {tmp_path}/o.onnx --original {path} --json".split()) == 0, capsys.readouterr()
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {"integer kernels", "read-out folded"} <= {check["name"] for check in checks}
    plan = read_plan(tmp_path / "o.plan.json")
    bits = {"int4": 4, "uint4": 4, "2": 2, "4": 4}
    own = next((length for part, length in bits.items() if part in name.split("-")), 8)
    assert {tensor.bits for tensor in plan.tensors} == {own}
    feed = feeds(onnx.load(path))
    wanted = run(onnx.load(tmp_path / "o.onnx"), feed, comparison_options())[0]
    faulty = onnx.load(tmp_path / "f.onnx")
    got = run(faulty, feed | rates_feed(0.0), fault_options())[0]
    if "float16" in name:  # onnxruntime computes this DequantizeLinear in float32 unless it is constant
        np.testing.assert_allclose(got, wanted, rtol=0, atol=4e-3 * float(np.sqrt(np.mean(wanted.astype(float) ** 2))))
    else:
        np.testing.assert_array_equal(got, wanted)
    assert not np.array_equal(run(faulty, feed | rates_feed(0.3), fault_options())[0], wanted)


@pytest.mark.parametrize("name", [name for name in NAMES if "int16" not in str(name)])
def test_without_faults_the_words_stay_and_the_outputs_with_them(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Designed for rate 0, the model's own words are the best code: equal bit for bit in stock onnxruntime."""
    path, _data = files(name, tmp_path)
    report = hardened(path, None, 0.0, capsys)
    assert all(tensor["code"].startswith("stored-") for tensor in report["tensors"] if tensor["name"] not in ("M", "U"))
    if name in ("embedding", "branch"):
        return  # the other weight is a float, and coded
    proto, feed = onnx.load(path), feeds(onnx.load(path))
    for got, wanted in zip(run(onnx.load(tmp_path / "o.onnx"), feed), run(proto, feed), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("method", ["none", "tac", "channel-optimized"])
@pytest.mark.parametrize("name", NAMES)
def test_operators_read_the_integers_that_the_plan_says(name: str, method: str) -> None:
    """The graph's read-out, computed by onnxruntime, against the plan's arithmetic in NumPy, bit for bit."""
    proto = FORMATS[name]()
    stored = store(proto, method, 0.05)
    weights = {weight.name: weight for weight in find_weights(source_model(proto).model).weights}
    for tensor in (tensor for tensor in stored.plan.tensors if tensor.quantized):
        weight = weights[tensor.name]
        integers = decode_integers(tensor, encode_tensor(tensor, stored_values(weight)))
        assert weight.grid is not None
        original = stored_values(weight)
        assert original.min() <= integers.min()
        assert integers.max() <= original.max()
        node, index = weight.reader
        if node.graph is not None and node.graph.name != proto.graph.name:
            continue  # in a branch or function, where nothing can be made an output
        hard = ir.to_proto(stored.hardened)
        reader = next(other for other in hard.graph.node if other.output[0] == node.outputs[0].name)
        hard.graph.node.append(helper.make_node("Cast", [reader.input[index]], ["read"], to=onnx.TensorProto.INT32))
        hard.graph.output.append(helper.make_tensor_value_info("read", onnx.TensorProto.INT32, None))
        got = run(hard, feeds(proto), comparison_options())[-1]
        expected = weight.grid.constant(integers).astype(np.int32)
        np.testing.assert_array_equal(got, expected.reshape(got.shape))


@pytest.mark.parametrize(
    "name", ["qdq-int8-channel-asymmetric", "qdq-uint4-block-asymmetric", "packed-4-asymmetric-80"]
)
def test_kept_codes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--keep-codes`: the stored words are the model's own, at a rate at which others would have been better."""
    path, _data = files(name, tmp_path)
    weight = find_weights(source_model(onnx.load(path)).model).weights[0]
    assert hardened(path, None, 0.05, capsys)["tensors"][0]["code"] == "channel-optimized"
    report = hardened(path, None, 0.05, capsys, "--keep-codes")
    assert report["tensors"][0]["code"].startswith("stored-")
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "o.onnx").graph.initializer}
    words = tensors[f"{weight.name}.words"].astype(np.int64)
    bits = report["tensors"][0]["bits"]
    np.testing.assert_array_equal(words, stored_values(weight).astype(np.int64) & ((1 << bits) - 1))


@pytest.mark.parametrize("name", ["static-qdq-channel", "packed-4-symmetric-64"])
def test_word_lengths_of_their_own(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--bits-per-weight` gives quantised weights longer or shorter words; what they read as stays on the grid."""
    path, data = files(name, tmp_path)
    total = 14.0  # tables and biases weigh much in models this small
    report = hardened(path, data, 0.05, capsys, f"--bits-per-weight {total}")
    assert report["storage"]["bits_per_weight"] <= total
    assert {tensor["bits"] for tensor in report["tensors"]} != {8 if "qdq" in name else 4}
    assert main(f"verify {tmp_path}/o.onnx --original {path}".split()) == 0, capsys.readouterr().out


def test_words_of_16_bits_are_left_out_where_codes_must_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _data = files("qdq-int16-channel-symmetric", tmp_path)
    assert main(f"harden {path} -o {tmp_path}/o.onnx --flip-rate 0.05 --keep-codes".split()) == 2
    assert "no weights" in capsys.readouterr().err


def test_ledger_counts_words_of_their_own_length_and_the_model_s_scales() -> None:
    """4 bits a weight, though ONNX has 8 in the initializer; a half-precision scale and a zero point a block."""
    plan = store(FORMATS["packed-4-asymmetric-64"](), "posterior-mean").plan
    assert plan.weight_bits == 4 * 64 * 24
    blocks = 24 * 64 // 32
    assert plan.metadata_bits == blocks * (32 + 4) + 8 * 16


@pytest.mark.parametrize("method", ["posterior-mean", "channel-optimized"])
def test_bfloat16_scales_by_the_reference_evaluator(method: str) -> None:
    """onnxruntime's CPU has no bfloat16 DequantizeLinear: the read-out is held to the plan's by the ONNX reference."""
    proto = qdq("MatMul", "int8", "channel", True, ml_dtypes.bfloat16)
    stored = store(proto, method, 0.05)
    tensor, weight = stored.plan.tensors[0], find_weights(source_model(proto).model).weights[0]
    integers = decode_integers(tensor, encode_tensor(tensor, stored_values(weight)))
    assert not np.array_equal(integers, stored_values(weight))
    wanted = onnx.ModelProto()
    wanted.CopyFrom(proto)
    wanted.graph.initializer[0].CopyFrom(numpy_helper.from_array(integers.astype(np.int8), "W"))
    x = {"x": np.abs(normal(4, 48, seed=1)).astype(ml_dtypes.bfloat16)}
    got = ReferenceEvaluator(ir.to_proto(stored.hardened)).run(None, x)[0]
    np.testing.assert_array_equal(got, ReferenceEvaluator(wanted).run(None, x)[0])


@pytest.mark.parametrize(
    "name",
    ["qdq-int4-block-symmetric", "qdq-int16-block-symmetric", "static-qoperator-channel", "dynamic-tensor",
     "packed-4-asymmetric-80"],
)  # fmt: skip
def test_commands_on_plain_quantised_models(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """inspect lists the weights, inject gives a model that computes the same at rate 0, evaluate compares the two."""
    path, data = files(name, tmp_path)
    count = WEIGHTS.get(name.split("-")[0], 1)
    assert main(f"inspect {path} --sensitivity --calibration {data} --json".split()) == 0, capsys.readouterr().err
    listed = json.loads(capsys.readouterr().out)["tensors"]
    assert len(listed) == count
    assert all(row["sensitivity"] > 0 for row in listed)
    assert main(f"inject {path} -o {tmp_path}/f.onnx --flip-rate 0.01".split()) == 0, capsys.readouterr().err
    capsys.readouterr()
    proto, feed = onnx.load(path), feeds(onnx.load(path))
    wanted = run(proto, feed, comparison_options())[0]
    got = run(onnx.load(tmp_path / "f.onnx"), feed | rates_feed(0.0), fault_options())[0]
    off = 0.01 if "int16" in name else 1e-6  # words of 8 bits stand for integers of 16
    assert np.abs(got - wanted).max() <= off * np.abs(wanted).max()
    hardened(path, data, 0.02, capsys)
    assert main(f"inspect {tmp_path}/o.onnx --json".split()) == 0, capsys.readouterr().err
    assert len(json.loads(capsys.readouterr().out)["tensors"]) == count
    args = f"evaluate {path} {tmp_path}/o.onnx --flip-rate 0.02 --eval {data} --trials 2 --json"
    assert main(args.split()) == 0, capsys.readouterr().err
    models = json.loads(capsys.readouterr().out)["models"]
    variants = [{r["variant"] for r in one["evaluation"]["results"]} for one in models]
    assert [v & {"unprotected", "hardened"} for v in variants] == [{"unprotected"}, {"hardened"}]


@pytest.mark.parametrize("kind", ["INT2", "UINT2"])
def test_two_bit_integers_are_declined_with_the_reason(kind: str) -> None:
    elem = getattr(onnx.TensorProto, kind)
    words = helper.make_tensor("W", elem, [6, 4], [1, 0] * 12)
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    nodes = [helper.make_node("DequantizeLinear", ["W", "s"], ["V"]), helper.make_node("MatMul", ["x", "V"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", 1, ["N", 6])],
        [helper.make_tensor_value_info("y", 1, ["N", 4])],
        [words, scale],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13))
    reasons = {item.name: item.reason for item in find_weights(model).left_out}
    assert reasons["W"] == f"DequantizeLinear over {kind}: onnxruntime cannot fold a read-out in 2-bit integers at load"
