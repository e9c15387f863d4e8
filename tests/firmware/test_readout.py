"""The C reader against the ONNX read-out: equal bit for bit, with and without faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from c_reader import CReader, exported, flip
from image_checks import biased, check, compare_bias, constants
from layer_models import LAYERS
from network_models import network, samples
from numpy.typing import NDArray
from onnx import TensorProto
from quantized_models import FORMATS as QUANTISED
from quantized_models import feeds, statically
from small_models import CASES, OUT, Case, X, matmul, model, normal
from stored_models import Stored, run, source_model, store

from qtaml_onnx import import_image
from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.data import Dataset
from qtaml_onnx.firmware import dump, writer
from qtaml_onnx.firmware import reader as reader_module
from qtaml_onnx.firmware.export import export_image
from qtaml_onnx.firmware.manifest import json_schema, read_manifest
from qtaml_onnx.hardening import harden
from qtaml_onnx.methods import METHODS
from qtaml_onnx.plan import FaultModel
from qtaml_onnx.planner import Planner, prepare
from qtaml_onnx.small import SmallStorage
from qtaml_onnx.storage.tensor import decode_tensor

Array = NDArray[Any]

QUICK = (
    "conv-float16",
    "conv-depthwise",
    "gather-bfloat16",
    "gemm-double",
    "matmul-batched",
    "matmul-vector",
    "odd-names",
    "empty",
    "function-constant",
    "int8-zero-point",
    "int8-channels",
    "int8-half-scale",
    "uint8-zero-point",
)
METHODS_OF_READ_OUT = ("channel-optimized", "tac", "none")


def compare(name: str, method: str, folder: Path, reader: CReader, row_bits: int = 0) -> int:
    case = CASES[name]()
    stored = store(case.model, method, 0.05)
    if not stored.plan.tensors:
        pytest.skip("nothing in this model is hardened")
    hardened, image = exported(stored, folder, row_bits)
    manifest = read_manifest(image)
    asked = check(reader.read(image), manifest, image, hardened, case)
    flip(image, 0.1)
    check(reader.read(image), manifest, image, hardened, case)
    return asked


@pytest.mark.parametrize("name", QUICK)
def test_weights_equal_the_onnx_read_out(name: str, tmp_path: Path, sanitized_reader: CReader) -> None:
    asked = compare(name, "channel-optimized", tmp_path, sanitized_reader)
    assert asked or name.startswith("function") or name in ("gather-bfloat16",)


@pytest.mark.parametrize(
    ("name", "method", "form"),
    [
        ("qdq-int4-channel-symmetric", "channel-optimized", "integer-grid"),
        ("qdq-uint4-tensor-asymmetric", "tac", "integer-table"),
        ("qdq-int16-channel-symmetric", "channel-optimized", "integer-grid"),
        ("qdq-uint8-tensor-asymmetric", "none", "dequantize"),
        ("qdq-float16-scales", "channel-optimized", "integer-grid"),
        ("opset10-QLinearConv", "channel-optimized", "integer-grid"),
    ],
)
def test_integers_of_quantised_models(
    name: str, method: str, form: str, tmp_path: Path, sanitized_reader: CReader
) -> None:
    """Words, integers and weights of every read-out of quantised models, of the operator's own rounding."""
    proto = QUANTISED[name]()
    stored = store(proto, method, 0.05)
    hardened, image = exported(stored, tmp_path)
    manifest = read_manifest(image)
    assert [tensor.storage.form for tensor in manifest.tensors] == [form]
    case = Case(lambda _values: proto, {}, feeds(proto))
    for rate in (0.0, 0.1):
        flip(image, rate)
        reading = sanitized_reader.read(image)
        assert reading.codes[0] is not None
        asked = check(reading, manifest, image, hardened, case)
        assert asked or "QLinear" in name


OWN_GRIDS = (
    ("qdq-int8-block-symmetric", "channel-optimized"),
    ("qdq-uint4-block-asymmetric", "tac"),
    ("qdq-uint8-channel-asymmetric", "none"),
    ("qdq-Conv-uint4", "channel-optimized"),
    ("qdq-uint16-tensor-symmetric", "channel-optimized"),
    ("qdq-uint16-block-asymmetric", "channel-optimized"),
    ("packed-4-symmetric-64", "channel-optimized"),
    ("packed-4-asymmetric-80", "none"),
    ("packed-2-asymmetric-80", "posterior-mean"),
    ("packed-8-asymmetric-64", "channel-optimized"),
    ("gathered-uint4-asymmetric", "channel-optimized"),
    ("recurrent-both-unit", "channel-optimized"),
)


@pytest.mark.parametrize(("name", "method"), OWN_GRIDS)
def test_steps_of_blocks_and_zero_points_of_channels(
    name: str, method: str, tmp_path: Path, sanitized_reader: CReader
) -> None:
    """MatMulNBits, blocked DequantizeLinear, zero points a channel, and integers of 16 bits."""
    proto = QUANTISED[name]()
    hardened, image = exported(store(proto, method, 0.05, budget=0.1), tmp_path, row_bits=32 if method == "tac" else 0)
    manifest = read_manifest(image)
    blocked = "uint16-tensor" not in name
    assert [tensor.grid is not None for tensor in manifest.tensors] == [blocked] * len(manifest.tensors)
    assert ((image / "constants.bin").exists()) == blocked
    case = Case(lambda _values: proto, {}, feeds(proto))
    for rate in (0.0, 0.1):
        flip(image, rate)
        asked = check(sanitized_reader.read(image), manifest, image, hardened, case)
        assert asked or name.startswith(("packed", "gathered", "recurrent"))


def grouped_gemm() -> Case:
    layer = LAYERS["gemm"]
    return Case(lambda _weights: layer.build(), {}, {"x": layer.samples()})


@pytest.mark.parametrize(
    ("make", "copies", "options"),
    [
        (CASES["conv-float16"], 3, {}),
        (CASES["gemm"], 5, {}),
        (grouped_gemm, 3, {"bits": 3, "code_books": "channel"}),
        (QUANTISED["packed-4-asymmetric-80"], 3, {}),
    ],
)
def test_small_tensors_are_read_by_majority(
    make: Any, copies: int, options: dict[str, Any], tmp_path: Path, sanitized_reader: CReader
) -> None:
    """All numbers of small.bin are those that onnxruntime computes, also where the majority is wrong."""
    made = make()
    proto = made if isinstance(made, onnx.ModelProto) else made.model
    fed = feeds(proto) if isinstance(made, onnx.ModelProto) else made.feeds
    source = source_model(proto)
    rates = FlipRates.uniform(0.05, 8)
    planner = Planner(source, prepare(source), FaultModel(p01=rates.p01, p10=rates.p10), **options)
    planner.small = SmallStorage(source.model, copies)
    plan = planner.within_budget(METHODS["channel-optimized"], 0)
    hardened, image = exported(Stored(source, plan, *carry_out(source, plan)), tmp_path)
    manifest = read_manifest(image)
    assert {group.copies for group in manifest.small} == {copies}
    wrong = 0
    for rate in (0.0, 0.03, 0.25):
        flip(image, rate)
        reading, imported = sanitized_reader.read(image), import_image(image, hardened)
        assert imported.small == sum(group.numbers for group in manifest.small) > 0
        wrong += imported.wrong_small
        assert (imported.wrong_small == 0) or rate > 0
        result = ir.to_proto(imported.model)
        makers = {output: node for node in result.graph.node for output in node.output}
        kept = {output.name for output in result.graph.output}
        names = [name for name in reading.small if name in makers and name not in kept]
        assert len(names) == len(reading.small)
        kinds = {tensor.name: group.dtype for group in manifest.small for tensor in group.tensors}
        for name in names:
            kind = getattr(TensorProto, kinds[name])
            result.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
        with np.errstate(all="ignore"):
            found = dict(zip([output.name for output in result.graph.output], run(result, fed), strict=True))
        for name in names:
            got, theirs = reading.small[name], found[name]
            assert got.dtype == theirs.dtype
            np.testing.assert_array_equal(got.view(f"u{got.itemsize}"), theirs.view(f"u{got.itemsize}"))
    assert wrong > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS_OF_READ_OUT)
@pytest.mark.parametrize("name", CASES)
def test_weights_of_every_model_equal_the_onnx_read_out(
    name: str, method: str, tmp_path: Path, c_reader: CReader
) -> None:
    compare(name, method, tmp_path, c_reader, row_bits=24 if method == "tac" else 0)


@pytest.mark.parametrize("bits", [1, 2, 5, 9, 11, 12])
@pytest.mark.parametrize("row_bits", [0, 40])
def test_other_word_lengths(bits: int, row_bits: int, tmp_path: Path, sanitized_reader: CReader) -> None:
    """Tables of half and of single precision, words across bytes, rows with bits to spare."""
    case = CASES["gemm"]()
    rates = FlipRates.uniform(0.01, 12)
    source = source_model(case.model)
    planner = Planner(source, prepare(source), FaultModel(p01=rates.p01, p10=rates.p10), bits=bits)
    method = "channel-optimized" if bits < 8 else "posterior-mean"  # the design of long codes takes its time
    plan = planner.within_budget(METHODS[method], 0.2)
    stored = Stored(source, plan, *carry_out(source, plan))
    hardened, image = exported(stored, tmp_path, row_bits)
    manifest = read_manifest(image)
    assert [t.storage.bits for t in manifest.tensors] == [bits] * len(plan.tensors)
    assert check(sanitized_reader.read(image), manifest, image, hardened, case)
    flip(image, 0.2)
    assert check(sanitized_reader.read(image), manifest, image, hardened, case)


SCHEMES = {
    "ideal": 0.05,
    "robust-4-0.001": 0.05,
    "repetition-3": 0.08,
    "repetition-7": 0.2,
    "secded-72-64": 0.02,
    "secded-22-16": 0.05,
    "parity-8": 0.03,
    "parity-64": 0.02,
    "bch-15-7-2": 0.1,
    "bch-127-64-10": 0.07,
    "bch-200-100-4": 0.02,
    "bch-511-421-10": 0.02,
    "ldpc-3-4": 0.15,
}


def protected(name: str, folder: Path, row_bits: int = 0) -> tuple[Path, Path]:
    """A hardened model with many protected planes, and its image."""
    case = CASES["conv-depthwise"]() if name.startswith("ldpc") else None
    weights = {"W": normal(6, 4, seed=1)}
    proto = case.model if case else model([matmul(), *extra()], [X], [OUT], {**weights, "V": normal(4, 90, seed=2)})
    source = source_model(proto)
    rates = FlipRates.asymmetric(0.06, 0.02, 8)
    planner = Planner(source, prepare(source), FaultModel(p01=rates.p01, p10=rates.p10), bits=8, protection=name)
    plan = planner.within_budget(METHODS["uniform-msp"], 0.5)
    assert plan.protected_bits
    stored = Stored(source, plan, *carry_out(source, plan))
    hardened, image = exported(stored, folder, row_bits)
    parity = sum(tensor.parity.bits for tensor in read_manifest(image).tensors)
    assert parity == (0 if name.startswith(("ideal", "robust")) else plan.parity_bits)
    return hardened, image


def extra() -> list[onnx.NodeProto]:
    """A second weight, so that a second tensor's code words start anew."""
    return [onnx.helper.make_node("MatMul", ["y", "V"], ["z"]), onnx.helper.make_node("Relu", ["z"], ["unused"])]


@pytest.mark.parametrize("name", SCHEMES)
def test_codes_correct_alike(name: str, tmp_path: Path, sanitized_reader: CReader) -> None:
    """The C decoder and the Python one give the same words and counts, where the code is overwhelmed as well."""
    hardened, image = protected(name, tmp_path, row_bits=16 if name == "bch-15-7-2" else 0)
    manifest = read_manifest(image)
    clean = shutil.copytree(image, tmp_path / "clean")
    reading = sanitized_reader.read(image)
    assert (reading.corrected_bits, reading.failed_blocks) == (0, 0)
    check(reading, manifest, image, hardened, None)
    corrected = failed = 0
    for seed, factor in enumerate((0.3, 1.0, 3.0)):
        shutil.copytree(clean, image, dirs_exist_ok=True)
        flip(image, SCHEMES[name] * factor / 2, SCHEMES[name] * factor, seed)
        reading = sanitized_reader.read(image)
        check(reading, manifest, image, hardened, None)
        corrected, failed = corrected + reading.corrected_bits, failed + reading.failed_blocks
    assert (corrected > 0) == (not name.startswith(("ideal", "robust", "parity")))
    assert (failed > 0) == name.startswith(("secded", "parity", "bch", "ldpc"))


def test_a_wrong_parity_reads_as_the_word_nearest_to_zero(tmp_path: Path, c_reader: CReader) -> None:
    hardened, image = protected("parity-8", tmp_path)
    manifest = read_manifest(image)
    clean = c_reader.read(image)
    data = bytearray((image / "protected.bin").read_bytes())
    data[0] ^= 1  # the first protected bit of the first word: eight bits a block, four of a word
    (image / "protected.bin").write_bytes(data)
    reading = c_reader.read(image)
    plan, null = manifest.tensors[0].storage, manifest.tensors[0].null_word
    assert len(plan.protected_planes) == 4
    assert (reading.words[0][0].ravel()[:2] == null).all()
    np.testing.assert_array_equal(reading.words[0][0].ravel()[2:], clean.words[0][0].ravel()[2:])
    everything = decode_tensor(
        plan.model_copy(update={"scales": (1.0,), "channel_axis": None}), np.arange(256, dtype=np.uint8).view(np.int8)
    )
    assert abs(everything[null]) == np.abs(everything).min()
    assert import_image(image, hardened).failed_blocks == 1


@pytest.mark.parametrize("name", ["ldpc-3-5", "ldpc-3-6"])
@pytest.mark.slow
def test_the_other_long_codes_correct_alike(name: str, tmp_path: Path, c_reader: CReader) -> None:
    hardened, image = protected(name, tmp_path)
    for rate in (0.06, 0.12):
        flip(image, rate)
        check(c_reader.read(image), read_manifest(image), image, hardened, None)


FEW_LAYERS = ("conv-pads", "conv-groups", "conv-depthwise-twice", "transposed-pads", "gemm-transposed", "matmul")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", FEW_LAYERS)
def test_bias_corrects_itself_alike(name: str, dtype: Any, tmp_path: Path, sanitized_reader: CReader) -> None:
    check_bias(name, dtype, tmp_path, sanitized_reader)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_every_bias_corrects_itself_alike(name: str, tmp_path: Path, c_reader: CReader) -> None:
    check_bias(name, np.float32, tmp_path, c_reader)


def check_bias(name: str, dtype: Any, folder: Path, reader: CReader) -> None:
    compare_bias(name, dtype, *biased(name, folder, dtype), reader)


GROUPED: dict[str, tuple[str, Any, int, dict[str, Any]]] = {
    "rows": ("gemm-transposed", np.float32, 0, {"bits": 3}),
    "columns": ("gemm", np.float32, 1, {"bits": 3}),
    "matmul-half": ("matmul", np.float16, 1, {"bits": 4, "row_bits": 24}),
    "inner-axes": ("transposed-pads", np.float32, 1, {"bits": 4}),
    "conv-groups": ("conv-groups", np.float32, 0, {"bits": 3}),
    "long-words": ("gemm", np.float32, 1, {"bits": 9}),
    "protected": ("matmul", np.float32, 1, {"bits": 4, "budget": 0.5, "protection": "secded-22-16"}),
    "parity": ("transposed-pads", np.float32, 1, {"bits": 5, "budget": 0.4, "protection": "parity-8"}),
}
"""Layers whose channels differ in their code: the layer, its type, the axis of channels, how they are stored."""


@pytest.mark.parametrize("kind", GROUPED)
def test_channels_with_codes_of_their_own(kind: str, tmp_path: Path, sanitized_reader: CReader) -> None:
    """Weights and biases, with and without faults, of codes for groups of channels along either axis."""
    name, dtype, axis, options = GROUPED[kind]
    stored, hardened, image = biased(name, tmp_path, dtype, code_books="channel", **options)
    plan, manifest = stored.plan.tensors[0], read_manifest(image)
    assert plan.channel_axis == axis
    assert plan.channel_codes is not None
    tables = np.reshape(plan.table, (len(plan.channel_codes), -1))
    assert len(np.unique(tables, axis=0)) == len(set(plan.channel_groups or ())) > 1
    assert (plan.input_scales is not None) == (name != "conv-groups")
    assert manifest.tensors[0].storage == plan
    jsonschema.Draft202012Validator(json_schema()).validate(json.loads((image / "manifest.json").read_text()))
    case = Case(lambda _weights: LAYERS[name].build(dtype=dtype), {}, {"x": LAYERS[name].samples().astype(dtype)})
    assert check(sanitized_reader.read(image), manifest, image, hardened, case) == 1
    clean = import_image(image, hardened)
    assert (clean.wrong_words, clean.failed_blocks) == (0, 0)
    before, after = (ir.to_proto(one).SerializeToString(deterministic=True) for one in (stored.hardened, clean.model))
    assert before == after
    compare_bias(name, dtype, stored, hardened, image, sanitized_reader)
    assert check(sanitized_reader.read(image), manifest, image, hardened, case) == 1
    assert import_image(image, hardened).wrong_words > 0


def test_a_wrong_parity_reads_as_the_word_nearest_to_zero_of_its_channel(tmp_path: Path, c_reader: CReader) -> None:
    name, dtype, axis, options = GROUPED["parity"]
    stored, hardened, image = biased(name, tmp_path, dtype, code_books="channel", **options)
    plan, tensor = stored.plan.tensors[0], read_manifest(image).tensors[0]
    nulls = tensor.null_words
    assert nulls is not None
    assert tensor.null_word == nulls[0]
    assert len(set(nulls)) > 1
    tables = np.abs(np.reshape(plan.table, (len(nulls), -1)))
    np.testing.assert_array_equal(tables[range(len(nulls)), nulls], tables.min(axis=1))
    parity = np.fromfile(image / "parity.bin", np.uint8)
    (parity ^ np.uint8(255)).tofile(image / "parity.bin")  # every block fails
    reading = c_reader.read(image)
    assert reading.failed_blocks == import_image(image, hardened).failed_blocks == tensor.parity.bits > 1
    own = np.asarray(nulls)[np.asarray(plan.channel_groups)]
    spread = tuple(-1 if place == axis else 1 for place in range(len(plan.shape)))
    np.testing.assert_array_equal(reading.words[0][0], np.broadcast_to(own.reshape(spread), plan.shape))
    check(reading, read_manifest(image), image, hardened, None)


@pytest.mark.parametrize(("form", "per_channel"), [("QDQ", True), ("QOperator", False)])
def test_integer_biases_correct_themselves_alike(
    form: str, per_channel: bool, tmp_path: Path, sanitized_reader: CReader
) -> None:
    """A 32-bit bias is onnxruntime's, or one beside it where the two sums round to either side of a half."""
    proto = statically(form, per_channel=per_channel, proto=network())
    onnx.save(proto, tmp_path / "q.onnx")
    result = harden(tmp_path / "q.onnx", 0.05, calibration=samples())
    source = source_model(proto)
    hardened, image = exported(Stored(source, result.plan, result.model, result.faulty), tmp_path)
    flip(image, 0.1)
    reading, imported = sanitized_reader.read(image), import_image(image, hardened)
    probed = ir.to_proto(imported.model)
    compared = 0
    for tensor, bias in zip(result.plan.tensors, reading.biases, strict=True):
        if tensor.bias is None or tensor.bias.quantized is None or not tensor.bias.quantized.rounded:
            continue
        assert bias is not None
        assert bias.dtype == np.int32
        casts = [
            n.output[0] for n in probed.graph.node if n.op_type == "Cast" and n.name.startswith(f"{tensor.name}.bias")
        ]
        extended = onnx.ModelProto()
        extended.CopyFrom(probed)
        extended.graph.output.append(onnx.helper.make_tensor_value_info(casts[-1], TensorProto.INT32, [bias.size]))
        theirs = run(extended, feeds_of(samples()))[-1]
        assert theirs.dtype == np.int32
        assert np.abs(bias.astype(np.int64) - theirs).max() <= 1
        assert (bias == theirs).mean() > 0.5
        assert np.abs(bias).max() > 10
        compared += 1
    assert compared >= 2


def feeds_of(data: Dataset) -> dict[str, Array]:
    return {name: array[:4] for name, array in data.arrays.items()}


@pytest.mark.parametrize("name", SCHEMES)
def test_images_do_not_depend_on_the_length_of_chunks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hardened, image = protected(name, tmp_path, row_bits=40)
    monkeypatch.setattr(writer, "CHUNK", 16)
    monkeypatch.setattr(reader_module, "CHUNK", 16)
    monkeypatch.setattr(dump, "_MOST_WORDS", 0)
    again = tmp_path / "again"
    export_image(hardened, again, row_bits=40)
    assert {path.name: path.read_bytes() for path in image.iterdir()} == {
        path.name: path.read_bytes() for path in again.iterdir()
    }
    flip(image, SCHEMES[name] / 2)
    chunked = import_image(image, hardened)
    monkeypatch.undo()
    whole = import_image(image, hardened)
    for field in ("flips", "corrected_bits", "failed_blocks", "wrong_bits", "wrong_words", "words"):
        assert getattr(chunked, field) == getattr(whole, field)
    assert whole.wrong_words
    for got, wanted in zip(constants(chunked.model), constants(whole.model), strict=True):
        assert got.name == wanted.name
        np.testing.assert_array_equal(got.const_value.numpy(), wanted.const_value.numpy())
