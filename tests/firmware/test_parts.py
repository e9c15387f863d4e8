"""Images of tensors whose output channels are stored in parts: the C reader gives the parts and the whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx_ir as ir
import pytest
from c_reader import CReader, exported, flip
from image_checks import biased, check, compare_bias
from layer_models import LAYERS
from operator_models import CASES
from small_models import Case
from stored_models import Stored, source_model

from qtaml_onnx import import_image
from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.firmware.manifest import json_schema, read_manifest
from qtaml_onnx.methods import METHODS
from qtaml_onnx.plan import FaultModel, StoragePlan
from qtaml_onnx.planner import Planner, prepare
from qtaml_onnx.small import SmallStorage


def in_parts(planner: Planner, method: str, budget: float = 0.25) -> StoragePlan:
    """Energies a channel that differ widely, so that a budget divides tensors."""
    rng = np.random.default_rng(5)
    energies = {
        tensor.name: np.exp(3 * rng.standard_normal(tensor.weight.shape[tensor.weight.channel_axis]))
        for tensor in planner.tensors
        if tensor.weight.channel_axis is not None
    }
    planner.use_channel_energies(energies, METHODS[method])
    return planner.within_budget(METHODS[method], budget)


def stored_parts(case: Case, method: str, bits: int, small: int = 0, **options: Any) -> Stored:
    source = source_model(case.model)
    rates = FlipRates.asymmetric(0.06, 0.03, 12)
    planner = Planner(source, prepare(source), FaultModel(p01=rates.p01, p10=rates.p10), bits=bits, **options)
    if small:
        planner.small = SmallStorage(source.model, small)
    plan = in_parts(planner, method)
    assert any(tensor.part is not None and tensor.part.number for tensor in plan.tensors)
    return Stored(source, plan, *carry_out(source, plan))


@pytest.mark.parametrize(
    ("name", "method", "bits", "protection", "row_bits"),
    [
        ("conv-float16", "tac", 8, "secded-22-16", 0),
        ("conv-depthwise", "posterior-mean", 8, "bch-15-7-2", 24),
        ("conv-transpose", "channel-optimized", 4, "ideal", 0),
        ("gemm-transposed", "tac", 8, "repetition-3", 0),
        ("gemm", "channel-optimized", 4, "parity-8", 16),
        ("matmul-left", "posterior-mean", 8, "bch-15-7-2", 0),
        ("function-constant", "tac", 8, "ideal", 0),
    ],
)
def test_parts_and_wholes_equal_the_onnx_read_out(
    name: str, method: str, bits: int, protection: str, row_bits: int, tmp_path: Path, sanitized_reader: CReader
) -> None:
    case = CASES[name]()
    stored = stored_parts(case, method, bits, protection=protection)
    hardened, image = exported(stored, tmp_path, row_bits)
    manifest = read_manifest(image)
    jsonschema.Draft202012Validator(json_schema()).validate(json.loads((image / "manifest.json").read_text()))
    assert manifest.tensor_count == stored.plan.tensor_count < len(manifest.tensors)
    reading = sanitized_reader.read(image)
    divided = {tensor.name: tensor.whole_shape for tensor in stored.plan.tensors if tensor.part is not None}
    assert {whole: weights.shape for whole, weights in reading.wholes.items()} == divided
    asked = check(reading, manifest, image, hardened, case)
    assert asked or name.startswith("function")
    assert import_image(image, hardened).wrong_words == 0
    for rate in (0.02, 0.2):
        flip(image, rate)
        check(sanitized_reader.read(image), manifest, image, hardened, case)
    imported = import_image(image, hardened)
    assert imported.wrong_words > 0
    assert (imported.failed_blocks > 0) == protection.startswith(("secded", "bch", "parity"))


@pytest.mark.parametrize(
    ("name", "dtype"), [("conv-pads", np.float32), ("conv-groups", np.float32), ("matmul", np.float16)]
)
def test_a_bias_follows_the_weights_of_all_parts(
    name: str, dtype: Any, tmp_path: Path, sanitized_reader: CReader
) -> None:
    stored, hardened, image = biased(
        name, tmp_path, dtype, planned=lambda planner: in_parts(planner, "channel-optimized"), bits=4
    )
    parts = stored.plan.tensors
    assert len(parts) > 1
    assert [part.bias is None for part in parts] == [False] + [True] * (len(parts) - 1)
    compare_bias(name, dtype, stored, hardened, image, sanitized_reader)
    case = Case(lambda _weights: LAYERS[name].build(dtype=dtype), {}, {"x": LAYERS[name].samples().astype(dtype)})
    assert check(sanitized_reader.read(image), read_manifest(image), image, hardened, case) == 1


def test_order_of_channels_among_the_small_tensors(tmp_path: Path, sanitized_reader: CReader) -> None:
    """What is read by majority is the model's; the C code keeps the order of channels as a constant."""
    case = CASES["gemm"]()
    hardened, image = exported(stored_parts(case, "tac", 8, small=3), tmp_path)
    manifest = read_manifest(image)
    assert any(".channel_order" in tensor.name for group in manifest.small for tensor in group.tensors)
    data = (image / "small.bin").read_bytes()
    flip(image, 0.1)
    (image / "small.bin").write_bytes(data)
    assert check(sanitized_reader.read(image), manifest, image, hardened, case) == 1


def test_names_of_parts_are_told_apart(tmp_path: Path, c_reader: CReader) -> None:
    stored = stored_parts(CASES["gemm"](), "tac", 8)
    hardened, image = exported(stored, tmp_path)
    header = (image / "qtaml_model.h").read_text()
    for number, tensor in enumerate(stored.plan.tensors):
        assert f"#define QTAML_TENSOR_{tensor.label.upper().replace('.', '_')} {number}u" in header
    assert c_reader.read(image).corrected_bits == 0
    assert isinstance(import_image(image, hardened).model, ir.Model)
