"""Every model of the onnx package's backend tests: hardened and verified, or declined with a reason.

The groups `simple`, `pytorch-operator` and `pytorch-converted` come with their models and data. `light` has a test file
of its own, and `real` is a list of addresses to download from. Nearly all are older than opset 7, so that their outputs
also show that raising the opset keeps their meaning.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import backend, numpy_helper
from stored_models import run

import qtaml_onnx
from qtaml_onnx.errors import InputError
from qtaml_onnx.hardening import HardenResult
from qtaml_onnx.modelio import OutputSet, save_model

DATA = Path(backend.__file__).parent / "test" / "data"
GROUPS = ("simple", "pytorch-operator", "pytorch-converted")

WITH_WEIGHTS = """
    operator_conv operator_convtranspose Conv1d Conv1d_dilated Conv1d_groups Conv1d_pad1 Conv1d_pad1size1 Conv1d_pad2
    Conv1d_pad2size1 Conv1d_stride Conv2d Conv2d_depthwise Conv2d_depthwise_padded Conv2d_depthwise_strided
    Conv2d_depthwise_with_multiplier Conv2d_dilated Conv2d_groups Conv2d_groups_thnn Conv2d_no_bias Conv2d_padding
    Conv2d_strided Conv3d Conv3d_dilated Conv3d_dilated_strided Conv3d_groups Conv3d_no_bias Conv3d_stride
    Conv3d_stride_padding ConvTranspose2d ConvTranspose2d_no_bias Embedding Embedding_sparse Linear Linear_no_bias
"""
"""Models whose weights are stored."""

WITH_SMALL = """
    operator_params operator_symbolic_override BatchNorm1d_3d_input_eval BatchNorm2d_eval BatchNorm2d_momentum_eval
    BatchNorm3d_eval BatchNorm3d_momentum_eval PReLU_1d PReLU_1d_multiparam PReLU_2d PReLU_2d_multiparam PReLU_3d
    PReLU_3d_multiparam PoissonNLLLLoss_no_reduce
"""
"""Models without weights, whose norms, slopes and the like are stored with --include-small."""

MODELS = {
    path.parent.name.removeprefix("test_"): path for group in GROUPS for path in (DATA / group).glob("*/model.onnx")
}

ERROR = 0.02
"""Largest error of outputs with 8-bit weights, without faults, as a share of their rms."""


def verify(path: Path, result: HardenResult, folder: Path) -> None:
    hardened = folder / "o.onnx"
    with OutputSet() as outputs:
        save_model(result.model, outputs, hardened)
        outputs.add_text(hardened.with_suffix(".plan.json"), result.plan.to_json())
    failed = [check for check in qtaml_onnx.verify(hardened, path) if not check.passed]
    assert not failed, failed


def check_outputs(path: Path, result: HardenResult, allowed: float) -> None:
    """The hardened model against the outputs that the onnx package says the original has."""
    proto = ir.to_proto(result.model)
    constants = {tensor.name for tensor in proto.graph.initializer}
    names = [value.name for value in proto.graph.input if value.name not in constants]

    def tensors(kind: str) -> list[np.ndarray]:
        files = sorted((path.parent / "test_data_set_0").glob(f"{kind}_*.pb"), key=lambda f: int(f.stem.split("_")[1]))
        return [numpy_helper.to_array(onnx.load_tensor(str(file))) for file in files]

    for got, wanted in zip(run(proto, dict(zip(names, tensors("input"), strict=True))), tensors("output"), strict=True):
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= allowed * np.sqrt(np.mean(wanted.astype(np.float64) ** 2))


def hardened_or_reason(path: Path, **options: object) -> HardenResult | str:
    try:
        return qtaml_onnx.harden(path, 0.01, **options)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_hardened_and_verified_or_declined(name: str, tmp_path: Path) -> None:
    path = MODELS[name]
    result, allowed = hardened_or_reason(path, method="none"), ERROR
    if name not in WITH_WEIGHTS.split():
        assert isinstance(result, str)
        assert "no weights to harden" in result
        result, allowed = hardened_or_reason(path, method="tac", include_small=True), 1e-5
    if name not in WITH_WEIGHTS.split() + WITH_SMALL.split():
        assert isinstance(result, str)
        assert "it holds neither weights nor other trained constants" in result
        assert not trained_numbers(path)
        return
    assert isinstance(result, HardenResult), result
    verify(path, result, tmp_path)
    check_outputs(path, result, allowed)


def trained_numbers(path: Path) -> int:
    """Float numbers in initializers, and in Constant nodes of more than one."""
    graph = onnx.load(path).graph
    tensors = list(graph.initializer)
    tensors += [a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.HasField("t")]
    arrays = [numpy_helper.to_array(tensor) for tensor in tensors]
    kept = {tensor.name for tensor in graph.initializer}
    return sum(
        array.size
        for tensor, array in zip(tensors, arrays, strict=True)
        if np.issubdtype(array.dtype, np.floating) and (tensor.name in kept or array.size > 1)
    )


def test_the_table_names_models_of_the_package() -> None:
    named = [*WITH_WEIGHTS.split(), *WITH_SMALL.split()]
    assert len(named) == len(set(named)) == 48
    assert set(named) <= set(MODELS)
    assert len(MODELS) == 23 + 35 + 82
