"""A trial's weights, drawn once: the same bits as the instrumented model's, in every way a model can hold weights."""

from __future__ import annotations

import ctypes

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import CASES, OUT, Array, X, info, matmul, model, normal
from stored_models import Stored, fault_options, rates_feed, run, store

from qtaml_onnx.campaign.image import FaultyModel, split_image
from qtaml_onnx.errors import InputError
from qtaml_onnx.passes.inject_faults import RATES_INPUT, SEED_INPUT
from qtaml_onnx.runtime import create_session

W = normal(6, 4, seed=1)


def matmul_stored(method: str = "posterior-mean", budget: float = 0.0) -> Stored:
    return store(model([matmul()], [X], [OUT], {"W": W}), method, 0.05, budget)


def rejoined(faulty: onnx.ModelProto, rate: float, seed: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The inference model with the weights of a trial as initializers, and what it is still fed."""
    parts = split_image(faulty)
    feed = rates_feed(rate, seed)
    whole = onnx.ModelProto()
    whole.CopyFrom(parts.inference)
    if parts.image is not None:
        session = create_session(parts.image, fault_options())
        known = {value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())}
        values = session.run_with_ort_values(
            list(parts.weights), {name: _value(array) for name, array in feed.items() if name in known}
        )
        for name, value in zip(parts.weights, values, strict=True):
            raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
            whole.graph.initializer.add(name=name, data_type=value.element_type(), dims=value.shape(), raw_data=raw)
    return whole, {name: feed[name] for name in parts.fed}


def _value(array: Array) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(array)


# Half-precision scales of constant words are folded in single precision: that case is compared below alone.
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"int8-half-scale"}))
def test_the_parts_are_the_whole(name: str) -> None:
    """Bit for bit, where onnxruntime treats constant weights like computed ones."""
    case = CASES[name]()
    faulty = ir.to_proto(store(case.model, "posterior-mean", 0.05).faulty)
    for rate, seed in ((0.2, 3), (0.0, 1)):
        wanted = run(faulty, case.feeds | rates_feed(rate, seed), fault_options())
        whole, fed = rejoined(faulty, rate, seed)
        for one, other in zip(run(whole, case.feeds | fed, fault_options()), wanted, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", sorted(CASES))
def test_trials_are_those_of_the_instrumented_model(name: str) -> None:
    """With all optimisations, to the rounding of sums: half precision where a kernel computes in it."""
    case = CASES[name]()
    faulty = ir.to_proto(store(case.model, "posterior-mean", 0.05).faulty)
    ready = FaultyModel(faulty)
    for rate, seed in ((0.2, 3), (0.2, 4), (0.0, 1), (0.2, 3)):
        session, extra = ready.draw(seed, rates_feed(rate)[RATES_INPUT])
        wanted = run(faulty, case.feeds | rates_feed(rate, seed), fault_options())
        for one, other in zip(session.run(None, case.feeds | extra), wanted, strict=True):
            exact, off = np.asarray(other, np.float64), np.asarray(one, np.float64)
            largest = np.abs(exact).max(initial=0)
            tolerance = 2e-3 if "half" in name or "float16" in name or other.dtype == np.float16 else 1e-5
            np.testing.assert_allclose(off, exact, rtol=0, atol=tolerance * largest)


def test_what_is_drawn_ahead() -> None:
    """Everything from the words to the weights; nothing of it is left in the other part."""
    stored = matmul_stored(budget=0.25)
    parts = split_image(ir.to_proto(stored.faulty))
    assert parts.image is not None
    assert parts.weights == ("W",)
    assert parts.fed == ()
    assert [node.op_type for node in parts.inference.graph.node] == ["MatMul"]
    assert not parts.inference.graph.initializer
    assert "FaultInject" in {node.op_type for node in parts.image.graph.node}
    assert {value.name for value in parts.image.graph.input} == {SEED_INPUT, RATES_INPUT}


def test_what_stays_with_the_data() -> None:
    """DequantizeLinear, for integer kernels; and faults inside subgraphs, which are then fed."""
    quantised = split_image(ir.to_proto(store(CASES["int8"]().model, "none", 0.05).faulty))
    assert "DequantizeLinear" in {node.op_type for node in quantised.inference.graph.node}
    assert quantised.image is not None
    assert quantised.fed == ()
    looped = split_image(ir.to_proto(store(CASES["loop"]().model, "none", 0.05).faulty))
    assert looped.image is None
    assert looped.fed == (SEED_INPUT, RATES_INPUT)


def test_faults_of_activations_stay_with_the_data() -> None:
    """An operator on what the data make is no part of the image, though the weights' are."""
    faulty = ir.to_proto(matmul_stored().faulty)
    del faulty.graph.output[:]
    faulty.graph.output.append(info("z", TensorProto.FLOAT, None, None))
    faulty.graph.node.append(
        helper.make_node(
            "FaultInject", ["y", SEED_INPUT, "wide"], ["z"], domain="qtaml", stream=7, bits=32, exposed_planes=2**32 - 1
        )
    )
    faulty.graph.initializer.append(numpy_helper.from_array(np.full((2, 32), 0.01, np.float32), "wide"))
    parts = split_image(faulty)
    assert parts.weights == ("W",)
    assert parts.fed == (SEED_INPUT,)
    feeds = {"x": normal(5, 6, seed=9)}
    session, extra = FaultyModel(faulty).draw(5, rates_feed(0.1)[RATES_INPUT])
    wanted = run(faulty, feeds | rates_feed(0.1, 5), fault_options())[0]
    got = session.run(None, feeds | extra)[0]
    without = run(ir.to_proto(matmul_stored().faulty), feeds | rates_feed(0.1, 5), fault_options())[0]
    assert (wanted != without).any()
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_the_source_is_not_changed_and_seeds_matter() -> None:
    faulty = ir.to_proto(matmul_stored().faulty)
    before = faulty.SerializeToString(deterministic=True)
    ready = FaultyModel(faulty)
    feeds = {"x": normal(5, 6, seed=9)}
    rates = rates_feed(0.2)[RATES_INPUT]
    outputs = [ready.draw(seed, rates)[0].run(None, feeds)[0] for seed in (1, 2, 1)]
    assert faulty.SerializeToString(deterministic=True) == before
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert (outputs[0] != outputs[1]).any()


def test_rates_out_of_range_are_refused() -> None:
    ready = FaultyModel(ir.to_proto(matmul_stored().faulty))
    with pytest.raises(InputError, match=r"rates lie in \[0, 1\)"):
        ready.draw(0, np.full((2, 8), 1.5, np.float32))
