"""Storing weights: any way that a model can hold them, the hardened model computes what the plan's arithmetic says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from operator_models import CASES
from small_models import Case, constant, info, initializer, matmul, model, normal
from stored_models import fault_options, float_options, optimised, rates_feed, run, source_model, store

from qtaml_onnx.errors import InputError
from qtaml_onnx.graph import walk
from qtaml_onnx.passes.store_weights import StoreWeights
from qtaml_onnx.storage.tensor import decode_integers, decode_tensor, encode_tensor
from qtaml_onnx.verification import comparison_options

METHODS = ("none", "tac", "posterior-mean")
ROUNDING = {"float32": 2e-6, "float64": 2e-6, "float16": 4e-3}
"""Allowed error of an output as a share of its rms: sums of a few dozen float32 products in another order. The scales
of the read-out are float32 in float64 models too; half precision has 11 bits."""
ROUNDS_ELSEWHERE = {"int8-half-scale"}
"""onnxruntime computes a half-precision DequantizeLinear in float32 and drops the rounding unless it is constant."""


def described(values: list[onnx.ValueInfoProto]) -> list[bytes]:
    return [value.SerializeToString(deterministic=True) for value in values]


def required_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in constants]


def as_decoded(case: Case, plan: object) -> onnx.ModelProto:
    """The original model built with the weights that the plan reads out, by NumPy alone."""
    decoded = {}
    for tensor in plan.tensors:  # type: ignore[attr-defined]
        weights = case.weights[tensor.name]
        read_out = decode_integers if tensor.quantized else decode_tensor
        decoded[tensor.name] = read_out(tensor, encode_tensor(tensor, weights)).astype(weights.dtype)
    return case.build(decoded)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_hardened_model_computes_what_the_plan_reads_out(name: str, method: str) -> None:
    case = CASES[name]()
    stored = store(case.model, method)
    hardened = ir.to_proto(stored.hardened)

    onnx.checker.check_model(hardened, full_check=name != "gather-bfloat16")
    assert {tensor.name for tensor in stored.plan.tensors} == set(case.weights)
    assert {node.domain for _root, node in walk(stored.hardened)} <= {"", "test", "com.microsoft"}
    assert hardened.ir_version == case.model.ir_version
    assert hardened.opset_import == case.model.opset_import
    assert described(required_inputs(hardened)) == described(required_inputs(case.model))
    assert described(hardened.graph.output) == described(case.model.graph.output)
    assert {p.key: p.value for p in hardened.metadata_props}["author"] == "somebody"
    assert [f.name for f in hardened.functions] == [f.name for f in case.model.functions]
    for axis_name, axis in case.axes.items():
        assert {t.name: t.channel_axis for t in stored.plan.tensors}[axis_name] == axis

    run(hardened, case.feeds)  # under default options as well, in which a MatMul of integers has errors of its own
    expected = run(as_decoded(case, stored.plan), case.feeds, float_options())
    for got, wanted in zip(run(hardened, case.feeds, float_options()), expected, strict=True):
        assert got.dtype == wanted.dtype
        if not np.issubdtype(wanted.dtype, np.floating):
            np.testing.assert_array_equal(got, wanted)
            continue
        rms = float(np.sqrt(np.mean(wanted.astype(np.float64) ** 2)))
        assert np.abs(got.astype(np.float64) - wanted).max() <= ROUNDING[str(wanted.dtype)] * rms


@pytest.mark.parametrize("name", CASES)
def test_everything_left_out_is_listed_with_its_reason(name: str) -> None:
    case = CASES[name]()
    left_out = {item.name: item.reason for item in store(case.model, "none").plan.left_out}
    assert set(left_out) == set(case.left_out)
    for key, part in case.left_out.items():
        assert part in left_out[key]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_nothing_of_the_read_out_is_left_after_load(name: str, method: str, tmp_path: Path) -> None:
    case = CASES[name]()
    stored = store(case.model, method)
    result = ir.from_proto(optimised(ir.to_proto(stored.hardened), tmp_path))
    small = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.UINT16}
    readers = {
        node.op_type
        for _root, node in walk(result)
        for value in node.inputs
        if value is not None and value.const_value is not None and value.const_value.dtype in small
    }
    assert readers <= {"DequantizeLinear"}  # the model's own, of which onnxruntime makes integer kernels
    before = sum(node.op_type != "Constant" for _root, node in walk(ir.from_proto(optimised(case.model, tmp_path))))
    assert sum(node.op_type != "Constant" for _root, node in walk(result)) <= before


@pytest.mark.parametrize("method", ["tac", "posterior-mean"])
@pytest.mark.parametrize("name", CASES)
def test_instrumented_model_without_faults_is_the_hardened_one_bit_for_bit(name: str, method: str) -> None:
    case = CASES[name]()
    stored = store(case.model, method)
    hardened = run(ir.to_proto(stored.hardened), case.feeds, comparison_options())
    faulty = ir.to_proto(stored.faulty)
    for got, wanted in zip(run(faulty, case.feeds | rates_feed(0.0), fault_options()), hardened, strict=True):
        if name in ROUNDS_ELSEWHERE:
            rms = float(np.sqrt(np.mean(wanted.astype(np.float64) ** 2)))
            assert np.abs(got.astype(np.float64) - wanted).max() <= ROUNDING["float16"] * rms
        else:
            assert got.tobytes() == wanted.tobytes()
    changed = run(faulty, case.feeds | rates_feed(0.5, seed=1), fault_options())
    same = all(got.tobytes() == wanted.tobytes() for got, wanted in zip(changed, hardened, strict=True))
    assert same == (case.constant and method == "posterior-mean")


@pytest.mark.parametrize("budget", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_word_lengths_and_protected_planes(bits: int, budget: float) -> None:
    case = CASES["conv-float32"]()
    stored = store(case.model, "tac", 0.1, budget, bits)
    assert stored.plan.protected_fraction <= budget + 1e-12
    hardened = ir.to_proto(stored.hardened)
    expected, got = run(as_decoded(case, stored.plan), case.feeds)[0], run(hardened, case.feeds)[0]
    assert np.abs(got - expected).max() <= 2e-6 * float(np.sqrt(np.mean(expected**2)))
    words = {t.name: onnx.numpy_helper.to_array(t) for t in hardened.graph.initializer}["W.words"]
    assert int(words.view(np.uint8).max()) < 1 << bits


def test_shared_weights_are_stored_once() -> None:
    for name, count in (("shared", 1), ("tied", 1), ("function-constant", 1), ("function-arguments", 2)):
        stored = store(CASES[name]().model)
        proto = ir.to_proto(stored.hardened)
        constants = [t.name for t in proto.graph.initializer]
        constants += [n.output[0] for f in proto.functions for n in f.node if n.op_type == "Constant"]
        assert len([key for key in constants if key.endswith(".words")]) == count
        assert not set(constants) & set(CASES[name]().weights)  # the floats are gone


def _qdq_model(op_type: str, channels: bool) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Activations and weights quantised: what onnxruntime turns into one integer kernel."""
    shape, x = ((4, 3, 3, 3), normal(2, 3, 7, 7, seed=9)) if op_type == "Conv" else ((6, 4), normal(5, 6, seed=9))
    real = normal(*shape, seed=1)
    axis = 0 if op_type == "Conv" else 1
    spread = tuple(-1 if i == axis else 1 for i in range(len(shape)))
    peak = np.abs(real).max(axis=tuple(i for i in range(len(shape)) if i != axis)) if channels else np.abs(real).max()
    scale = np.asarray(peak / 127, np.float32)
    words = np.rint(real / (scale.reshape(spread) if channels else scale)).astype(np.int8)
    zero = np.zeros(scale.shape, np.int8)
    node = onnx.helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        node("DequantizeLinear", ["W", "s", "z"], ["V"], axis=axis),
        node(op_type, ["xd", "V"], ["m"]),
        node("QuantizeLinear", ["m", "ys", "xz"], ["mq"]),
        node("DequantizeLinear", ["mq", "ys", "xz"], ["y"]),
    ]
    constants = {
        "xs": np.asarray(0.03, np.float32), "ys": np.asarray(0.1, np.float32), "xz": np.asarray(128, np.uint8),
        "s": scale, "z": zero, "W": words,
    }  # fmt: skip
    rank = [None] * len(x.shape)
    proto = model(nodes, [info("x", 1, None, *x.shape[1:])], [info("y", 1, *rank)], constants)
    return proto, {"x": x}


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("op_type", ["Conv", "MatMul"])
def test_integer_kernels_stay_integer(op_type: str, method: str, channels: bool, tmp_path: Path) -> None:
    proto, feeds = _qdq_model(op_type, channels)
    kernels = [n.op_type for n in optimised(proto, tmp_path, "extended").graph.node]
    assert f"QLinear{op_type}" in kernels
    stored = store(proto, method)
    hardened = ir.to_proto(stored.hardened)
    assert [n.op_type for n in optimised(hardened, tmp_path, "extended").graph.node] == kernels
    if method == "none":  # the words are the model's own
        np.testing.assert_array_equal(run(hardened, feeds)[0], run(proto, feeds)[0])


def test_plan_of_another_model_is_refused() -> None:
    plan = store(CASES["matmul"]().model).plan
    with pytest.raises(InputError, match=r"'W' \[6, 4\] is not in this model"):
        StoreWeights(plan)(ir.from_proto(CASES["gemm-transposed"]().model))
    with pytest.raises(InputError, match="not in this model"):
        StoreWeights(plan)(ir.from_proto(CASES["loop"]().model))


def test_what_is_not_stored_says_why() -> None:
    """Each of these holds weights that the package cannot store; one that it can is beside them."""
    node = onnx.helper.make_node
    words = np.arange(24, dtype=np.int8).reshape(6, 4)
    nodes = [
        matmul(result="p"),
        node("ReduceMax", ["x"], ["top"], keepdims=0),
        node("DequantizeLinear", ["computed", "top"], ["d1"]),
        matmul("d1", result="q"),
        node("DequantizeLinear", ["twice", "s"], ["d2"]),
        node("DequantizeLinear", ["twice", "s"], ["d3"]),
        matmul("d2", result="r"),
        matmul("d3", result="t"),
        node("Gather", ["vector", "first"], ["g"]),
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("QLinearMatMul", ["xq", "s", "z", "uneven", "s6", "z6", "s", "z"], ["u"]),
        node("DequantizeLinear", ["u", "s", "z"], ["w"]),
        node("DequantizeLinear", ["long", "s"], ["b"]),
        node("Sum", ["p", "q", "r", "t", "g", "w", "b"], ["y"]),
    ]
    constants = {
        "W": normal(6, 4), "computed": words, "s6": np.full(6, 0.1, np.float32), "z6": np.zeros(6, np.int8),
        "twice": words, "s": np.asarray(0.1, np.float32), "z": np.asarray(0, np.int8), "vector": normal(5),
        "uneven": words, "long": np.arange(4, dtype=np.int32), "first": np.array(0),
    }  # fmt: skip
    x, y = info("x", 1, None, 6), info("y", 1, None, 4)
    inventory = {i.name: i.reason for i in store(model(nodes, [x], [y], constants)).plan.left_out}
    assert inventory["twice"] == "quantised words that several operators read"
    assert inventory["vector"] == "Gather from a vector: not an embedding"
    assert inventory["computed"] == "DequantizeLinear with a scale or zero point computed at run time"
    assert inventory["uneven"] == "scales of QLinearMatMul that are neither one for all nor one for each output channel"
    assert inventory["long"] == "bias in 32-bit integers: kept in safe storage"
    assert set(inventory) == {"computed", "uneven", "long", "z6", "twice", "s", "s6", "vector"}


def test_custom_operators_are_listed() -> None:
    node = onnx.helper.make_node
    nodes = [matmul(result="p"), node("Mystery", ["p", "M"], ["y"], domain="com.example")]
    x, y = info("x", 1, None, 6), info("y", 1, None, 4)
    proto = model(nodes, [x], [y], {"W": normal(6, 4), "M": normal(4)}, domains=["com.example"])
    stored = store(proto)
    reasons = {item.name: item.reason for item in stored.plan.left_out}
    assert reasons["com.example::Mystery"] == "custom operator: kept untouched"
    assert reasons["M"] == "input 1 of Mystery: not a weight operand"
    kept = [n for n in ir.to_proto(stored.hardened).graph.node if n.domain == "com.example"]
    assert [n.SerializeToString() for n in kept] == [nodes[1].SerializeToString()]


def test_constants_of_other_kinds_do_not_stop_it() -> None:
    """A Constant given by a call's attribute, a list, and scalars of Constant nodes."""
    node = onnx.helper.make_node
    given = node("Constant", [], ["c"])
    given.attribute.append(onnx.AttributeProto(name="value", ref_attr_name="w", type=onnx.AttributeProto.TENSOR))
    body = [given, node("MatMul", ["a", "c"], ["r"])]
    f = onnx.helper.make_function("test", "f", ["a"], ["r"], body, [onnx.helper.make_opsetid("", 17)], ["w"])
    nodes = [
        node("Constant", [], ["half"], value_float=0.5),
        constant("list", normal(4, seed=4)),
        matmul(result="p"),
        node("f", ["x"], ["q"], domain="test", w=initializer("w", normal(6, 4, seed=3))),
        node("Sum", ["p", "q", "list"], ["m"]),
        node("Mul", ["m", "half"], ["y"]),
    ]
    x, y = info("x", 1, None, 6), info("y", 1, None, 4)
    stored = store(model(nodes, [x], [y], {"W": normal(6, 4)}, functions=[f], domains=["test"]))
    assert [t.name for t in stored.plan.tensors] == ["W"]
    assert {i.name: i.reason for i in stored.plan.left_out} == {
        "list": "input 2 of Sum: not a weight operand",
        "test::f/c": "given by an attribute of the function's call",
    }
    onnx.checker.check_model(ir.to_proto(stored.hardened))


def test_bfloat16_matmul_by_the_reference_evaluator() -> None:
    """onnxruntime's CPU has no bfloat16 MatMul; the graph is checked by the ONNX reference instead."""
    import ml_dtypes

    w = normal(6, 4, seed=1, dtype=ml_dtypes.bfloat16)
    x, y = info("x", onnx.TensorProto.BFLOAT16, None, 6), info("y", onnx.TensorProto.BFLOAT16, None, 4)
    stored = store(model([matmul()], [x], [y], {"W": w}))
    proto = ir.to_proto(stored.hardened)
    onnx.checker.check_model(proto)
    plan = stored.plan.tensors[0]
    assert plan.dtype == "BFLOAT16"
    proto.graph.output.append(info("W", onnx.TensorProto.BFLOAT16, 6, 4))
    evaluator = onnx.reference.ReferenceEvaluator(proto)
    got = np.asarray(evaluator.run(["W"], {"x": np.zeros((1, 6), ml_dtypes.bfloat16)})[0])
    wanted = decode_tensor(plan, encode_tensor(plan, w)).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got.astype(np.float32), wanted.astype(np.float32))


def test_source_is_not_changed() -> None:
    source = source_model(CASES["if"]().model)
    before = ir.to_proto(source.model).SerializeToString(deterministic=True)
    stored = store(CASES["if"]().model)
    assert ir.to_proto(stored.source.model).SerializeToString(deterministic=True) == before
