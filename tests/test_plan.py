"""Plans: JSON there and back, a canonical hash, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from pydantic import ValidationError
from quantized_models import FORMATS as QUANTISED
from small_models import CASES
from stored_models import store

from qtaml_onnx.errors import InputError
from qtaml_onnx.plan import FaultModel, StoragePlan, read_plan
from qtaml_onnx.plan_values import CodeSpec
from qtaml_onnx.storage.codes import UNIFORM_KINDS, Code, uniform_code
from qtaml_onnx.storage.tensor import decode_tensor, encode_tensor
from qtaml_onnx.tensor_plan import TensorPlan

floats = st.floats(-10, 10, allow_subnormal=True)
positive = st.floats(0, 1e6)
singles = st.floats(-10, 10, width=32)


@st.composite
def codes(draw: st.DrawFn) -> Code:
    bits = draw(st.integers(1, 6))
    if draw(st.booleans()):
        return uniform_code(draw(st.sampled_from(UNIFORM_KINDS)), bits, draw(st.integers(0, (1 << bits) - 1)))
    cells = draw(st.integers(1, 1 << bits))
    boundaries = sorted(draw(st.lists(floats, min_size=cells - 1, max_size=cells - 1)))
    words = draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=cells, max_size=cells))
    levels = draw(st.lists(floats, min_size=1 << bits, max_size=1 << bits))
    return Code("channel-optimized", bits, np.array(boundaries), np.array(words), np.array(levels))


@st.composite
def tensor_plans(draw: st.DrawFn) -> TensorPlan:
    code = draw(codes())
    channels = draw(st.integers(1, 3))
    scales = tuple(draw(st.lists(singles, min_size=channels, max_size=channels)))
    table = tuple(draw(st.lists(st.floats(-2, 2, width=16), min_size=1 << code.bits, max_size=1 << code.bits)))
    return TensorPlan(
        name=draw(st.text(min_size=1, max_size=8)), op_type="Conv", dtype="FLOAT", shape=(channels, 2),
        channel_axis=draw(st.sampled_from([None, 0])), code=CodeSpec.of(code), form="table", words_type="UINT8",
        weight_scales=scales, scales=scales, table=table, readout="posterior-mean",
        protected_planes=tuple(sorted(draw(st.sets(st.integers(0, code.bits - 1))))), stream=draw(st.integers(0, 99)),
        sensitivity=draw(st.none() | positive), noise=draw(positive), signal=draw(positive),
    )  # fmt: skip


@st.composite
def plans(draw: st.DrawFn) -> StoragePlan:
    rates = draw(st.lists(st.floats(0, 0.99), min_size=8, max_size=8))
    model = FaultModel(p01=tuple(rates), p10=tuple(reversed(rates)), margin=draw(st.floats(0.1, 10)))
    tensors = tuple(draw(st.lists(tensor_plans(), min_size=1, max_size=3)))
    return StoragePlan(source_sha256="ab" * 32, method="tac", fault_model=model, tensors=tensors)


@given(plans())
@settings(max_examples=60, deadline=None)
def test_json_there_and_back_is_the_same_plan(plan: StoragePlan) -> None:
    """Every float survives to the last bit, and so does the hash."""
    again = StoragePlan.model_validate_json(plan.to_json())
    assert again == plan
    assert again.sha256 == plan.sha256
    for tensor, other in zip(plan.tensors, again.tensors, strict=True):
        assert tensor.code.code() == other.code.code()


@given(codes())
@settings(deadline=None)
def test_codes_survive_their_specification(code: Code) -> None:
    assert CodeSpec.of(code).code() == code


@given(tensor_plans())
@settings(deadline=None)
def test_exposed_planes_are_those_not_protected(plan: TensorPlan) -> None:
    exposed = {plane for plane in range(16) if plan.exposed_planes >> plane & 1}
    assert exposed == set(range(plan.bits)) - set(plan.protected_planes)


@pytest.mark.parametrize("method", ["none", "tac", "posterior-mean", "channel-optimized"])
@pytest.mark.parametrize("name", ["conv-float32", "gather-float32", "int8-channels", "uint8-zero-point"])
def test_encode_and_decode_agree_with_the_plan(name: str, method: str) -> None:
    """Words fit their length, and the mean square of what is read without faults is near the weights' own."""
    case = CASES[name]()
    plan = StoragePlan.model_validate_json(store(case.model, method, 0.001).plan.to_json())
    for tensor in plan.tensors:
        words = encode_tensor(tensor, case.weights[tensor.name])
        assert words.dtype.name.upper() == tensor.words_type
        assert int(words.view(np.uint8).max()) < 1 << tensor.bits
        back = decode_tensor(tensor, words)
        assert back.dtype == np.float32
        assert back.shape == words.shape
        if np.issubdtype(case.weights[tensor.name].dtype, np.floating):
            error = back - case.weights[tensor.name]
            assert float(np.sqrt((error**2).mean())) < 0.05 * float(np.sqrt((case.weights[tensor.name] ** 2).mean()))


def test_ledger_adds_up() -> None:
    plan = store(CASES["if"]().model, "tac", 0.1, 0.25).plan
    assert plan.weight_bits == sum(8 * 24 for _ in plan.tensors)
    assert plan.protected_bits == sum(24 * len(t.protected_planes) for t in plan.tensors)
    assert plan.protected_fraction == plan.protected_bits / plan.weight_bits <= 0.25
    assert plan.planes == 8


def test_hash_changes_with_any_decision() -> None:
    plan = store(CASES["matmul"]().model, "tac").plan
    tensor = plan.tensors[0]
    others = [
        plan.model_copy(update={"tensors": (tensor.model_copy(update=change),)})
        for change in ({"protected_planes": (7,)}, {"stream": 1}, {"offset": 0.5}, {"name": "V"})
    ]
    assert len({plan.sha256, *(other.sha256 for other in others)}) == 5


def test_plans_are_immutable_and_closed() -> None:
    plan = store(CASES["matmul"]().model).plan
    with pytest.raises(ValidationError):
        plan.method = "none"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        StoragePlan.model_validate(plan.model_dump() | {"surprise": 1})


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("qdq-int8-channel-symmetric", {"dtype": "FLOAT"}, "read as integers of type FLOAT"),
        ("qdq-int8-channel-symmetric", {"limits": None}, "has the limits None"),
        ("qdq-int4-channel-symmetric", {"limits": [-8, 8]}, "not within 4-bit INT4"),
        ("qdq-int4-channel-symmetric", {"zero_point": -9}, "the zero point -9, beyond 4-bit INT4"),
        ("qdq-int8-channel-symmetric", {"table": None}, "has no table of 256 entries"),
        ("qdq-int8-channel-symmetric", {"table": []}, "has no table of 256 entries"),
        ("packed-4-symmetric-64", {"packing": {"bits": 4, "shape": [24, 1, 16], "filler": 8}}, "packed as"),
        ("packed-4-symmetric-64", {"packing": {"bits": 3, "shape": [24, 2, 16], "filler": 4}}, "packed as"),
        ("packed-4-symmetric-64", {"zero_point": 16}, "the zero point 16, beyond 4-bit UINT8"),
    ],
)
def test_reading_refuses_integers_that_cannot_be(name: str, change: dict[str, Any], part: str, tmp_path: Path) -> None:
    good = json.loads(store(QUANTISED[name](), "channel-optimized", 0.05).plan.to_json())
    path = tmp_path / "m.plan.json"
    path.write_text(json.dumps(good))
    assert read_plan(path).tensors[0].form == "integer-grid"
    good["tensors"][0] |= change
    path.write_text(json.dumps(good))
    with pytest.raises(InputError, match=part):
        read_plan(path)


def test_reading_refuses_what_is_no_plan(tmp_path: Path) -> None:
    path = tmp_path / "m.plan.json"
    with pytest.raises(InputError, match="keep it beside the hardened model"):
        read_plan(path)
    good = json.loads(store(CASES["matmul"]().model).plan.to_json())
    for text, part in (
        ("", "m.plan.json"),
        ("{", "m.plan.json"),
        ("[]", "m.plan.json"),
        (json.dumps(good | {"tensors": "none"}), "tensors"),
        (json.dumps(good | {"surprise": 1}), "surprise"),
        (json.dumps({k: v for k, v in good.items() if k != "method"}), "method"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=part) as caught:
            read_plan(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_plan(path)
    path.write_text(json.dumps(good))
    assert read_plan(path).tensors[0].name == "W"
