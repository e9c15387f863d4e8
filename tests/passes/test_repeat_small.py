"""Biases, norms, scales and zero points stored several times: what is read by majority is what was stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from operator_models import CASES
from small_models import Case, X, info, matmul, model, normal
from stored_models import Stored, fault_options, optimised, rates_feed, run, source_model

from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.fault_inject import fault_inject
from qtaml_onnx.graph import walk
from qtaml_onnx.methods import METHODS
from qtaml_onnx.passes.inject_faults import stored_words
from qtaml_onnx.passes.repeat_small import SMALL_WORDS
from qtaml_onnx.plan import FaultModel
from qtaml_onnx.planner import Planner, prepare
from qtaml_onnx.small import SmallStorage
from qtaml_onnx.storage.repetition import majority, repeat
from qtaml_onnx.storage.tensor import channel_order, decode_integers, encode_tensor
from qtaml_onnx.verification import comparison_options
from qtaml_onnx.weights import find_weights, stored_values


def store_small(proto: onnx.ModelProto, copies: int | None = 3, method: str = "posterior-mean") -> Stored:
    source = source_model(proto)
    rates = FlipRates.uniform(0.01, 8)
    inventory = prepare(source, weights_needed=False)
    planner = Planner(source, inventory, FaultModel(p01=rates.p01, p10=rates.p10))
    planner.small = SmallStorage(source.model, copies)
    plan = planner.within_budget(METHODS[method], 0)
    return Stored(source, plan, *carry_out(source, plan))


def small_words(stored: Stored) -> dict[str, np.ndarray]:
    return {
        name: value.const_value.numpy()
        for name, (_owner, value) in stored_words(stored.hardened).items()
        if name.startswith(SMALL_WORDS) and name.endswith(".words") and value.const_value is not None
    }


def _plain(case: Case) -> Stored:
    """The same without small tensors."""
    source = source_model(case.model)
    rates = FlipRates.uniform(0.01, 8)
    planner = Planner(source, prepare(source), FaultModel(p01=rates.p01, p10=rates.p10))
    plan = planner.within_budget(METHODS["posterior-mean"], 0)
    return Stored(source, plan, *carry_out(source, plan))


@pytest.mark.parametrize("name", CASES)
def test_the_model_computes_what_it_does_with_safe_small_tensors(name: str, tmp_path: Path) -> None:
    """Without faults bit for bit, with nothing left at inference; under faults of every bit differently."""
    case = CASES[name]()
    stored, plain = store_small(case.model), _plain(case)
    hardened = ir.to_proto(stored.hardened)
    onnx.checker.check_model(hardened)
    expected = run(ir.to_proto(plain.hardened), case.feeds, comparison_options())
    for got, wanted in zip(run(hardened, case.feeds, comparison_options()), expected, strict=True):
        assert got.tobytes() == wanted.tobytes()
    before = sum(node.op_type != "Constant" for _root, node in walk(ir.from_proto(optimised(case.model, tmp_path))))
    after = sum(node.op_type != "Constant" for _root, node in walk(ir.from_proto(optimised(hardened, tmp_path))))
    assert after <= before
    faulty = ir.to_proto(stored.faulty)
    for got, wanted in zip(run(faulty, case.feeds | rates_feed(0.0), fault_options()), expected, strict=True):
        np.testing.assert_allclose(got.astype(np.float64), wanted.astype(np.float64), rtol=4e-3, atol=1e-5)
    assert stored.plan.small is not None
    listed = {tensor.name for tensor in stored.plan.small.tensors}
    assert not listed & {item.name for item in stored.plan.left_out}
    kept = {value.name for _owner, value in stored_words(stored.hardened).values()}
    assert not (listed - set(case.weights)) & kept  # no number of them is left in the file as it was


TYPES: dict[str, Any] = {
    "float32": np.float32, "float16": np.float16, "double": np.float64, "bfloat16": ml_dtypes.bfloat16,
    "int8": np.int8, "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16, "int32": np.int32,
}  # fmt: skip


def every_number(dtype: Any) -> np.ndarray:
    """Extremes, zeros of both signs, subnormals, infinities and random bit patterns without NaN."""
    rng = np.random.default_rng(3)
    size = np.dtype(dtype).itemsize
    patterns = rng.integers(0, 256, (4000, size), dtype=np.uint8)
    patterns[:8] = 0
    patterns[0, -1] = 128
    patterns[1, 0] = 1
    patterns[2, :] = 255
    numbers = patterns.reshape(-1).view(dtype)
    return np.asarray(numbers[~np.isnan(numbers.astype(np.float64))])


@pytest.mark.parametrize("opset", [7, 10, 13, 17])
@pytest.mark.parametrize("kind", TYPES)
def test_the_read_out_of_every_type_is_exact_and_follows_the_majority(kind: str, opset: int) -> None:
    """The graph against NumPy on the same faulty bytes, bit for bit."""
    from qtaml_onnx.passes._graph import NameTable
    from qtaml_onnx.passes.repeat_small import _store

    if kind == "bfloat16" and opset < 13:
        pytest.skip("bfloat16 came with opset 13")
    numbers = every_number(TYPES[kind])
    dtype = ir.DataType.from_numpy(numbers.dtype)
    value = ir.val("c", dtype, ir.Shape(numbers.shape), const_value=ir.tensor(numbers, name="c"))
    node = ir.node("Identity", [value])
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", ir.TensorType(dtype), value.shape
    graph = ir.Graph([], [node.outputs[0]], nodes=[node], initializers=[value], opset_imports={"": opset}, name="g")
    hardened = ir.Model(graph, ir_version=8)
    _store(hardened, hardened.graph, dtype, [value], 5, NameTable(hardened))
    proto = ir.to_proto(hardened)
    words = next(t for t in proto.graph.initializer if t.name.endswith(".words"))
    for rate in (0.0, 0.1, 0.5):
        faulty = fault_inject(
            repeat(numbers, 5), 1, np.full((2, 8), rate, np.float32), stream=0, bits=8, exposed_planes=255
        )
        words.raw_data = faulty.tobytes()
        got = run_raw(proto)
        wanted = majority(faulty, numbers.dtype)
        np.testing.assert_array_equal(got.view(np.uint8), wanted.view(np.uint8))
    assert majority(repeat(numbers, 5), numbers.dtype).tobytes() == numbers.tobytes()


def run_raw(proto: onnx.ModelProto) -> np.ndarray:
    """The output's own bits: bfloat16 comes out of onnxruntime as such only through an OrtValue."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    if proto.graph.output[0].type.tensor_type.elem_type == TensorProto.BFLOAT16:
        proto.graph.node.append(helper.make_node("Cast", ["y"], ["f"], to=TensorProto.FLOAT))
        del proto.graph.output[:]
        proto.graph.output.append(info("f", 1, None))
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result = np.asarray(session.run(None, {})[0]).astype(ml_dtypes.bfloat16)
        del proto.graph.node[-1]
        del proto.graph.output[:]
        proto.graph.output.append(info("y", TensorProto.BFLOAT16, None))
        return result
    return np.asarray(session.run(None, {})[0])


@pytest.mark.parametrize("name", ["conv-float32", "gemm", "transformer", "embed-layer-normalization", "if", "loop"])
def test_the_ledger_counts_every_stored_bit(name: str) -> None:
    stored = store_small(CASES[name]().model, 5)
    words = sum(8 * array.size for array in small_words(stored).values())
    assert stored.plan.small_bits + stored.plan.metadata_bits == words
    plain = _plain(CASES[name]())
    assert stored.plan.metadata_bits == 5 * plain.plan.metadata_bits
    assert plain.plan.small_bits == 0
    assert stored.plan.stored_bits == stored.plan.weight_bits + words


def test_faults_hit_the_copies() -> None:
    """The bias of a layer without other noise moves by exactly what the twin of the fault operator says."""
    bias = normal(64, seed=2)
    nodes = [matmul(result="p"), helper.make_node("Add", ["p", "b"], ["y"])]
    proto = model(nodes, [info("x", 1, None, 6)], [info("y", 1, None, 64)], {"W": normal(6, 64, seed=1), "b": bias})
    stored = store_small(proto, 3)
    faulty = ir.to_proto(stored.faulty)
    node = next(n for n in faulty.graph.node if n.name == f"{SMALL_WORDS}FLOAT.faults")
    attributes = {a.name: a.i for a in node.attribute}
    assert (attributes["bits"], attributes["exposed_planes"]) == (8, 255)
    words = small_words(stored)[node.input[0]]
    x = np.zeros((1, 6), np.float32)
    got = run(faulty, {"x": x, **rates_feed(0.1, seed=7)}, fault_options())[0][0]
    read = majority(fault_inject(words, 7, np.full((2, 8), 0.1, np.float32), **attributes), np.dtype(np.float32))
    at = next(i for i in range(len(read)) if words[0, i].tobytes() == bias[:1].tobytes())
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, read[at : at + 64])


@pytest.mark.parametrize("opset", [7, 17])
@pytest.mark.parametrize("divided", [False, True])
def test_wrong_indices_of_codes_and_channels_stay_within_range(divided: bool, opset: int) -> None:
    """An index that its majority gets wrong is read modulo the number of codes, or of channels; the model runs on."""
    weights = {"W": normal(6, 5) ** np.array([1, 3, 1, 3, 1], np.float32)}
    source = source_model(model([matmul()], [X], [info("y", 1, None, 5)], weights, opset=opset))
    rates = FlipRates.uniform(0.05, 8)
    faults, method = FaultModel(p01=rates.p01, p10=rates.p10), METHODS["channel-optimized"]
    planner = Planner(source, prepare(source), faults, bits=3, code_books="shared" if divided else "channel")
    planner.small = SmallStorage(source.model, 1)
    if divided:
        planner.use_channel_energies({"W": np.array([1.0, 100.0, 1.0, 100.0, 1.0])}, method)
    plan = planner.within_budget(method, 0.3 if divided else 0)
    tensor, stored = plan.tensors[0], Stored(source, plan, *carry_out(source, plan))
    assert len(plan.tensors) == (2 if divided else 1)
    indices = channel_order(plan.tensors).tolist() if divided else list(tensor.channel_groups or ())
    count = 5 if divided else len(tensor.channel_codes or ())
    hardened = ir.to_proto(stored.hardened)
    words = next(t for t in hardened.graph.initializer if t.name.startswith(f"{SMALL_WORDS}UINT8"))
    assert numpy_helper.to_array(words).tobytes() == bytes(indices)
    feeds = {"x": normal(3, 6)}
    clean = run(hardened, feeds, comparison_options())[0]
    for shift, alike in ((count, True), (50 * count, True), (50 * count + 1, False)):
        words.raw_data = bytes(index + shift for index in indices)
        got = run(hardened, feeds, comparison_options())[0]
        assert (got.tobytes() == clean.tobytes()) == alike


def test_a_model_without_weights_has_small_tensors() -> None:
    node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])
    vectors = {name: np.abs(normal(4, seed=i)) for i, name in enumerate("sbmv")}
    proto = model([node], [info("x", 1, 2, 4, 3)], [info("y", 1, 2, 4, 3)], vectors)
    stored = store_small(proto)
    assert stored.plan.small is not None
    assert {t.name: t.role for t in stored.plan.small.tensors} == {
        "s": "scale of BatchNormalization",
        "b": "bias of BatchNormalization",
        "m": "mean of BatchNormalization",
        "v": "variance of BatchNormalization",
    }
    x = normal(2, 4, 3, seed=9)
    np.testing.assert_array_equal(run(ir.to_proto(stored.hardened), {"x": x})[0], run(proto, {"x": x})[0])


def test_numbers_of_the_graph_itself_are_no_small_tensors() -> None:
    """Sizes of a Resize, bounds of a Clip, a padding value: faults there would change what is computed."""
    make = helper.make_node
    nodes = [
        make("Clip", ["x", "low", "high"], ["c"]),
        make("Pad", ["c", "pads", "value"], ["p"]),
        make("Resize", ["p", "", "factors"], ["r"]),
        make("Conv", ["r", "W", "b"], ["y"]),
    ]
    constants = {
        "low": np.array(-1, np.float32), "high": np.array(1, np.float32), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "value": np.array(0.5, np.float32), "factors": np.array([1, 1, 2, 2], np.float32),
        "W": normal(4, 3, 3, 3, seed=1), "b": normal(4, seed=2),
    }  # fmt: skip
    proto = model(nodes, [info("x", 1, 1, 3, 4, 4)], [info("y", 1, 1, 4, None, None)], constants)
    stored = store_small(proto)
    assert stored.plan.small is not None
    assert [t.name for t in stored.plan.small.tensors] == ["b"]
    assert {item.name for item in stored.plan.left_out} == {"low", "high", "value", "factors"}


def test_plain_storage_keeps_one_copy() -> None:
    stored = store_small(CASES["gemm"]().model, None, "none")
    assert stored.plan.small is not None
    assert stored.plan.small.copies == 1
    assert stored.plan.small.residual_rate == pytest.approx(0.01, rel=1e-12)


def test_zero_points_and_biases_of_integer_operators_are_small_their_weights_are_not() -> None:
    """A QLinearConv with a bias of 32 bits, computed without faults as before; the scales of its weight belong to
    that weight, and are stored several times as well."""
    make = helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        make("QLinearConv", ["xq", "s", "z", "W", "ws", "wz", "ys", "z", "b"], ["m"]),
        make("DequantizeLinear", ["m", "ys", "z"], ["y"]),
    ]
    rng = np.random.default_rng(4)
    constants = {
        "s": np.asarray(0.03, np.float32), "z": np.asarray(128, np.uint8), "ws": np.full(4, 0.01, np.float32),
        "wz": np.zeros(4, np.int8), "ys": np.asarray(0.1, np.float32),
        "b": rng.integers(-(2**20), 2**20, 4, dtype=np.int32) // 500,
        "W": rng.integers(-127, 128, (4, 3, 3, 3), dtype=np.int8),
    }  # fmt: skip
    proto = model(nodes, [info("x", 1, 1, 3, 5, 5)], [info("y", 1, 1, 4, 3, 3)], constants)
    stored = store_small(proto)
    assert stored.plan.small is not None
    listed = {t.name: t.dtype for t in stored.plan.small.tensors}
    assert listed == {"z": "UINT8", "wz": "INT8", "b": "INT32", "s": "FLOAT", "ys": "FLOAT"}
    assert stored.plan.tensors[0].parameter_bits == 4 * 32
    assert not {"z", "wz", "b", "s", "ws", "ys", "W"} & set(stored.hardened.graph.initializers)
    feeds = {"x": normal(1, 3, 5, 5, seed=9)}
    plan, weight = stored.plan.tensors[0], find_weights(stored.source.model).weights[0]
    constants["W"] = decode_integers(plan, encode_tensor(plan, stored_values(weight))).astype(np.int8)
    proto = model(nodes, [info("x", 1, 1, 3, 5, 5)], [info("y", 1, 1, 4, 3, 3)], constants)
    expected = run(proto, feeds, comparison_options())[0]
    np.testing.assert_array_equal(run(ir.to_proto(stored.hardened), feeds, comparison_options())[0], expected)
    faulty = run(ir.to_proto(stored.faulty), feeds | rates_feed(0.0), fault_options())[0]
    np.testing.assert_array_equal(faulty, expected)
