"""Hardened models elsewhere than in onnxruntime: ONNX's reference evaluator, and OpenVINO where it is installed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from digits_example import CALIBRATION, EVAL, MODEL
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from small_models import CASES
from stored_models import float_options, run, store

import qtaml_onnx

Array = NDArray[Any]
BOUND = 1e-5
"""Largest difference of a float32 output, as a share of its root mean square; other sums, other order."""
HALF_BOUND = 1e-2
"""The same of 16-bit outputs: a few units of their last place."""

NAMES = (
    "conv-float32",
    "conv-float16",
    "conv-depthwise",
    "conv-transpose",
    "gemm-transposed",
    "gemm-double",
    "matmul-batched",
    "matmul-left",
    "gather-float32",
    "constant-node",
    "tied",
    "transpose-perm",
    "if",
    "loop",
    "scan",
    "function-arguments",
    "int8-zero-point",
    "int8-channels",
    "uint8-channels",
)
LOOP = "loop"
"""Of onnx 1.23 the reference evaluator returns the initial value of this Loop, hardened or not."""


def worst(got: Array, wanted: Array) -> float:
    """Largest difference over the root mean square of what is wanted."""
    assert got.shape == wanted.shape
    if not wanted.size:
        return 0.0
    scale = float(np.sqrt(np.mean(wanted.astype(np.float64) ** 2)))
    return float(np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max()) / scale


def assert_close(got: list[Array], wanted: list[Array]) -> None:
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert worst(np.asarray(ours), theirs) <= (HALF_BOUND if theirs.dtype.itemsize == 2 else BOUND)


@pytest.fixture(scope="module")
def digits() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The example network with self-correcting biases, and images."""
    if not MODEL.is_file():
        pytest.skip("the example network is not beside these tests")
    result = qtaml_onnx.harden(MODEL, 0.05, method="posterior-mean", calibration=CALIBRATION)
    assert all(tensor.bias is not None for tensor in result.plan.tensors)
    with np.load(EVAL) as data:
        return ir.to_proto(result.model), {"image": data["image"][:32].astype(np.float32)}


@pytest.mark.parametrize("method", ["channel-optimized", "tac"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != LOOP])
def test_reference_evaluator_agrees(name: str, method: str) -> None:
    case = CASES[name]()
    hardened = ir.to_proto(store(case.model, method).hardened)
    got = ReferenceEvaluator(hardened).run(None, dict(case.feeds))
    assert_close([np.asarray(value) for value in got], run(hardened, case.feeds, float_options()))


def test_reference_evaluator_treats_the_loop_alike_before_and_after() -> None:
    """It differs from onnxruntime on the original as well; hardening changes nothing about that."""
    case = CASES[LOOP]()
    before = ReferenceEvaluator(case.model).run(None, dict(case.feeds))
    after = ReferenceEvaluator(ir.to_proto(store(case.model, "none", 0.0).hardened)).run(None, dict(case.feeds))
    for a, b in zip(after, before, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0.1, atol=0.1)


def test_reference_evaluator_agrees_on_the_example(digits: tuple[onnx.ModelProto, dict[str, Array]]) -> None:
    model, feeds = digits
    assert_close(ReferenceEvaluator(model).run(None, feeds), run(model, feeds))


class OpenVino:
    """OpenVINO on the CPU in single precision."""

    def __init__(self, module: ModuleType) -> None:
        self._core = module.Core()

    def compile(self, proto: onnx.ModelProto) -> Any:
        loaded = self._core.read_model(proto.SerializeToString())
        return self._core.compile_model(loaded, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(self, compiled: Any, feeds: Mapping[str, Array]) -> list[Array]:
        results = compiled(dict(feeds))
        return [np.asarray(results[output]) for output in compiled.outputs]

    @staticmethod
    def operators(compiled: Any) -> Counter[str]:
        """What is executed at inference, constants aside."""
        kinds = [op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ops()]
        return Counter(kind for kind in kinds if kind != "Const")


@pytest.fixture(scope="module")
def openvino() -> OpenVino:
    return OpenVino(pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install openvino"))


@pytest.mark.parametrize("name", NAMES)
def test_openvino_agrees(name: str, openvino: OpenVino) -> None:
    case = CASES[name]()
    try:
        openvino.compile(case.model)
    except RuntimeError as error:
        pytest.skip(f"OpenVINO does not load the original either: {str(error).strip().splitlines()[-1]}")
    hardened = ir.to_proto(store(case.model, "channel-optimized").hardened)
    got = openvino.run(openvino.compile(hardened), case.feeds)
    assert_close(got, run(hardened, case.feeds, float_options()))


def test_openvino_agrees_on_the_example_and_folds_its_read_out(
    openvino: OpenVino, digits: tuple[onnx.ModelProto, dict[str, Array]]
) -> None:
    """The hardened network executes the operators of the original and no others: nothing reads words at inference."""
    model, feeds = digits
    compiled = openvino.compile(model)
    assert_close(openvino.run(compiled, feeds), run(model, feeds))
    original = openvino.compile(onnx.load(MODEL))
    assert OpenVino.operators(compiled) == OpenVino.operators(original)
    assert "Convolution" in OpenVino.operators(compiled)
