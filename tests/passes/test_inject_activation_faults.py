"""Faults of activations: on which tensors, new at each inference, the same for any batch, and gone without a trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import helper
from scipy import stats
from small_models import CASES, info, matmul, model, normal
from stored_models import fault_options, run, store

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_inject import BurstGeometry, fault_inject
from qtaml_onnx.fault_pattern import FaultPattern, parse_planes
from qtaml_onnx.graph import walk
from qtaml_onnx.passes.inject_activation_faults import InjectActivationFaults, activations
from qtaml_onnx.passes.inject_faults import InjectFaults
from qtaml_onnx.passes.remove_faults import RemoveFaults


def inject(proto: onnx.ModelProto, rate: float = 0.01, pattern: FaultPattern | None = None) -> ir.Model:
    faulty = ir.from_proto(proto)
    InjectActivationFaults(lambda bits: FlipRates.uniform(rate, bits), pattern)(faulty)
    return faulty


def numbers(rate: float, inference: int = 0, seed: int = 0, planes: int = 32) -> dict[str, NDArray[Any]]:
    return {
        "qtaml_seed": np.asarray(seed, np.int64),
        "qtaml_inference": np.asarray(inference, np.int64),
        "qtaml_flip_rates": np.full((2, planes), rate, np.float32),
    }


def two_layers() -> onnx.ModelProto:
    x, y = info("x", 1, "batch", 64), info("y", 1, "batch", 32)
    return model(
        [matmul("A", result="h"), matmul("B", "h")],
        [x],
        [y],
        {"A": normal(64, 48, seed=1), "B": normal(48, 32, seed=2)},
    )


def quantised() -> onnx.ModelProto:
    """x → QDQ → MatMul → Add bias → Relu → QuantizeLinear → DequantizeLinear → y."""
    constants = {
        "W": normal(16, 24, seed=3),
        "b": normal(24, seed=4),
        "scale": np.asarray(0.05, np.float32),
        "zero": np.asarray(0, np.uint8),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    return model(nodes, [info("x", 1, "n", 16)], [info("y", 1, "n", 24)], constants)


@pytest.mark.parametrize("name", CASES)
def test_rates_of_zero_change_nothing_and_removing_leaves_no_trace(name: str) -> None:
    case = CASES[name]()
    source = ir.from_proto(case.model)
    before = ir.to_proto(source).SerializeToString(deterministic=True)
    try:
        tensors = activations(source)
    except InputError:
        tensors = []
    if not tensors:
        with pytest.raises(InputError, match="no activation to fault"):
            inject(case.model)
        return
    faulty = source.clone()
    InjectActivationFaults(lambda bits: FlipRates.uniform(0.1, bits))(faulty)
    assert sum(node.domain == "qtaml" for _root, node in walk(faulty)) == len(tensors)
    proto = ir.to_proto(faulty)
    onnx.checker.check_model(proto)
    clean = run(case.model, case.feeds, fault_options())
    quiet = run(proto, case.feeds | numbers(0.0), fault_options())
    assert [a.tobytes() for a in quiet] == [b.tobytes() for b in clean]
    assert RemoveFaults()(faulty).modified
    if source.ir_version >= 4:
        assert ir.to_proto(faulty).SerializeToString(deterministic=True) == before


def test_faults_are_those_of_the_twin() -> None:
    """The first layer's output, read back: its stream, its samples' numbers, its float patterns."""
    proto = ir.to_proto(inject(two_layers()))
    faulty = next(node.output[0] for node in proto.graph.node if node.op_type == "FaultInject")
    proto.graph.output.append(onnx.ValueInfoProto(name=faulty))
    clean = two_layers()
    clean.graph.output.append(onnx.ValueInfoProto(name="h"))
    x = normal(5, 64)
    h = run(clean, {"x": x}, fault_options())[1]
    found = run(proto, {"x": x} | numbers(0.02, inference=40, seed=9), fault_options())[1]
    table = np.full((2, 32), 0.02, np.float32)
    assert found.tobytes() == fault_inject(h, 9, table, stream=0, inference=40, per_sample=True).tobytes()


def test_new_faults_at_each_inference_and_the_same_for_any_batch() -> None:
    """By numbers that are fed: no state, so that an inference repeated is repeated to the bit."""
    proto = ir.to_proto(inject(two_layers()))
    x = normal(12, 64)

    def outputs(rows: slice, inference: int, seed: int = 1) -> NDArray[Any]:
        # The mantissa's low half, so that no fault makes a number that is none.
        rates = numbers(0.0, inference, seed)
        rates["qtaml_flip_rates"][:, :12] = 0.05
        return run(proto, {"x": x[rows]} | rates, fault_options())[0]

    whole = outputs(slice(0, 12), 100)
    parts = np.concatenate([outputs(slice(i, i + 4), 100 + i) for i in (0, 4, 8)])
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_array_equal(whole, outputs(slice(0, 12), 100))
    assert (whole != outputs(slice(0, 12), 112)).mean() > 0.99
    assert (whole != outputs(slice(0, 12), 100, seed=2)).mean() > 0.99


def test_quantised_tensors_are_hit_after_bias_and_activation_function() -> None:
    proto = ir.to_proto(inject(quantised()))
    node = next(node for node in proto.graph.node if node.op_type == "FaultInject")
    assert node.input[0] == "q"
    assert next(a.i for a in node.attribute if a.name == "bits") == 8
    x = normal(400, 16)
    clean = run(quantised(), {"x": x}, fault_options())[0] / np.float32(0.05)
    faulty = run(proto, {"x": x} | numbers(0.01, planes=8), fault_options())[0] / np.float32(0.05)
    words, read = (np.rint(a).astype(np.uint8) for a in (clean, faulty))
    flips = int(np.unpackbits(words ^ read).sum())
    assert stats.binomtest(flips, 8 * words.size, 0.01).pvalue > 1e-4


def test_a_model_with_stored_weights_has_no_faults_in_its_read_out() -> None:
    """Only what depends on the inputs is an activation; the bias correction's sums are not."""
    stored = store(CASES["matmul"]().model)
    plain = len(activations(ir.from_proto(CASES["matmul"]().model)))
    assert len(activations(stored.hardened.clone())) == plain


def test_kind_geometry_and_planes_reach_the_operator() -> None:
    pattern = FaultPattern("burst", BurstGeometry(128, 3, 2), parse_planes("0-22,31"))
    faulty = inject(two_layers(), pattern=pattern)
    for _root, node in walk(faulty):
        if node.domain == "qtaml":
            found = {name: attribute.value for name, attribute in node.attributes.items()}
            assert found["kind"] == "burst"
            assert (found["row_cells"], found["burst_cells"], found["interleave"]) == (128, 3, 2)
            assert found["exposed_planes"] == (1 << 23) - 1 | 1 << 31
    words = store(two_layers(), "none", 0.1)
    faulty = words.hardened.clone()
    InjectFaults(words.plan, pattern=FaultPattern("stuck-at", planes=0b11))(faulty)
    nodes = [node for _root, node in walk(faulty) if node.domain == "qtaml"]
    assert {(node.attributes["kind"].value, node.attributes["exposed_planes"].value) for node in nodes} == {
        ("stuck-at", 3)
    }
    RemoveFaults()(faulty)
    assert ir.to_proto(faulty).SerializeToString() == ir.to_proto(words.hardened).SerializeToString()


@pytest.mark.parametrize(
    ("text", "mask"), [("0", 1), ("31", 1 << 31), ("0-3", 15), ("7, 1-2", 0b10000110), ("0-31", 2**32 - 1)]
)
def test_lists_of_planes(text: str, mask: int) -> None:
    assert parse_planes(text) == mask


def test_refusals() -> None:
    for text in ("", "32", "3-1", "a", "-1", "1-", "0,,1"):
        with pytest.raises(InputError, match="is neither a plane"):
            parse_planes(text)
    with pytest.raises(InputError, match="kind 'cosmic' is unknown"):
        FaultPattern("cosmic")
    with pytest.raises(InputError, match="kind burst needs"):
        FaultPattern("burst")
    with pytest.raises(InputError, match="kind stuck-at has no burst geometry"):
        FaultPattern("stuck-at", BurstGeometry(8, 2))
    stored = store(two_layers())
    with pytest.raises(InputError, match="plane 9 is out of range: the longest word has planes 0 to 7"):
        InjectFaults(stored.plan, pattern=FaultPattern(planes=1 << 9))(stored.hardened)
    residual = stored.plan.model_copy(update={"residual_rate": 0.02})
    with pytest.raises(InputError, match="of bursts is not known"):
        InjectFaults(residual, pattern=FaultPattern("burst", BurstGeometry(8, 2)))(stored.hardened)
    faulty = inject(two_layers())
    with pytest.raises(InputError, match="instrumented already"):
        InjectActivationFaults(FlipRates.uniform(0.1, 32))(faulty)
    with pytest.raises(InputError, match="have 8 planes, the activations 32"):
        InjectActivationFaults(FlipRates.uniform(0.1, 8))(ir.from_proto(two_layers()))
