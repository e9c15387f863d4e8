"""Images of weights that are described by two words: the C reader, the images and their manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from c_reader import CReader, exported, flip
from image_checks import biased, check, compare_bias, constants, same_bits
from layer_models import LAYERS
from small_models import CASES, OUT, Case, X, matmul, model, normal
from stored_models import Stored, source_model

from qtaml_onnx import export_image, import_image
from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.errors import InputError
from qtaml_onnx.firmware import dump, writer
from qtaml_onnx.firmware import reader as reader_module
from qtaml_onnx.firmware.layout import Rows
from qtaml_onnx.firmware.manifest import json_schema, read_manifest
from qtaml_onnx.methods import METHODS
from qtaml_onnx.plan import CodeSpec, FaultModel, StoragePlan
from qtaml_onnx.planner import Planner, prepare
from qtaml_onnx.small import SmallStorage
from qtaml_onnx.storage.two_words import TwoWordCode

CODED = METHODS["channel-optimized"]


def pairs(planner: Planner, bits: int) -> StoragePlan:
    """Every weight as two words."""
    menu = planner.word_length_menu(CODED, longest=1, pairs=(bits,))
    return planner.plan(menu, tuple(len(choices) - 1 for choices in menu.choices))


def stored_pairs(
    case: Case, bits: int, rates: FlipRates | None = None, small: int = 0, code: TwoWordCode | None = None
) -> Stored:
    source = source_model(case.model)
    rates = rates or FlipRates.uniform(0.05, 12)
    planner = Planner(source, prepare(source), FaultModel(p01=rates.p01, p10=rates.p10))
    if small:
        planner.small = SmallStorage(source.model, small)
    plan = pairs(planner, bits)
    if code is not None:
        spec = CodeSpec.of(code)
        plan = plan.model_copy(update={"tensors": tuple(t.model_copy(update={"code": spec}) for t in plan.tensors)})
    assert {tensor.form for tensor in plan.tensors} == {"two-words"}
    return Stored(source, plan, *carry_out(source, plan))


@pytest.mark.parametrize(
    ("name", "bits", "row_bits"),
    [
        ("conv-float16", 13, 0),
        ("conv-depthwise", 14, 24),
        ("gather-bfloat16", 13, 0),
        ("gemm", 20, 0),
        ("gemm-double", 19, 16),
        ("matmul-batched", 16, 40),
        ("function-constant", 13, 0),
        ("odd-names", 17, 0),
    ],
)
def test_weights_equal_the_onnx_read_out(
    name: str, bits: int, row_bits: int, tmp_path: Path, sanitized_reader: CReader
) -> None:
    case = CASES[name]()
    stored = stored_pairs(case, bits, FlipRates.asymmetric(0.06, 0.03, 12))
    hardened, image = exported(stored, tmp_path, row_bits)
    manifest = read_manifest(image)
    jsonschema.Draft202012Validator(json_schema()).validate(json.loads((image / "manifest.json").read_text()))
    for tensor in manifest.tensors:
        assert tensor.second is not None
        assert (tensor.bulk.bits, tensor.second.bits) == tensor.storage.word_lengths
        assert tensor.second.size == Rows(row_bits).size(tensor.storage.size, tensor.second.bits)
    assert {file.name for file in manifest.files} == {"bulk.bin"}
    asked = check(sanitized_reader.read(image), manifest, image, hardened, case)
    assert asked or name.startswith("function") or name == "gather-bfloat16"
    clean = import_image(image, hardened)
    assert (clean.wrong_words, clean.words) == (0, 2 * sum(tensor.storage.size for tensor in manifest.tensors))
    before = {value.name: value.const_value for value in constants(stored.hardened)}
    for value in constants(clean.model):
        np.testing.assert_array_equal(value.const_value.numpy(), before[value.name].numpy())
    for rate in (0.1, 0.5):
        flip(image, rate)
        check(sanitized_reader.read(image), manifest, image, hardened, case)
    assert import_image(image, hardened).wrong_words > 0


def every_pair(bits: int, folder: Path, code: TwoWordCode | None = None) -> tuple[Path, Path, Case]:
    """A model of 2^bits weights and its image, in which each pair of words is stored once."""
    first, second = bits - bits // 2, bits // 2
    proto = model([matmul()], [X], [OUT], {"W": normal(1 << first, 1 << second, seed=4)})
    proto.graph.input[0].type.tensor_type.shape.dim[-1].dim_value = 1 << first
    case = Case(lambda _weights: proto, {}, {"x": normal(2, 1 << first)})
    hardened, image = exported(stored_pairs(case, bits, code=code), folder)
    manifest = read_manifest(image)
    words = np.arange(1 << bits)
    bulk = np.zeros(manifest.files[0].size, np.uint8)
    for region, own in zip(
        manifest.tensors[0].bulk_regions, (words >> second, words & ((1 << second) - 1)), strict=True
    ):
        bulk[region.offset : region.offset + region.size] = Rows().pack(own.astype(np.uint16), region.bits)
    bulk.tofile(image / "bulk.bin")
    return hardened, image, case


def test_every_pair_of_words_is_read_as_the_table_says(tmp_path: Path, c_reader: CReader) -> None:
    """All 2^13 of them, by the formula alone: against the table of the plan and against onnxruntime."""
    hardened, image, case = every_pair(13, tmp_path)
    reading, manifest = c_reader.read(image), read_manifest(image)
    plan = manifest.tensors[0].storage
    code = plan.code.two_words()
    assert code.unsettled().size < 10
    scale = np.asarray(plan.scales, np.float32) * np.ones(plan.shape, np.float32)
    same_bits(reading.weights[0], code.table.reshape(plan.shape) * scale)
    assert check(reading, manifest, image, hardened, case) == 1


def test_read_outs_that_hang_on_the_order_of_sums_are_listed(tmp_path: Path, c_reader: CReader) -> None:
    """Two cells that mirror each other: words as far from one as from the other are read as a zero of rounding."""
    code = TwoWordCode(12, np.zeros(1), np.array([0, 0xFFF]), np.full(2, 0.5), np.array([-0.75, 0.75]), 0.0625, 0.0625)
    ties = np.flatnonzero(np.bitwise_count(np.arange(1 << 12)) == 6)
    np.testing.assert_array_equal(code.unsettled(), ties)
    _hardened, image, _case = every_pair(12, tmp_path, code)
    assert f"{ties.size}u, 6" in (image / "qtaml_model.c").read_text()
    plan = read_manifest(image).tensors[0].storage
    scale = np.asarray(plan.scales, np.float32) * np.ones(plan.shape, np.float32)
    same_bits(c_reader.read(image).weights[0], code.table.reshape(plan.shape) * scale)


@pytest.mark.parametrize(("name", "dtype"), [("conv-pads", np.float32), ("matmul", np.float16), ("gemm", np.float32)])
def test_bias_corrects_itself_alike(name: str, dtype: Any, tmp_path: Path, sanitized_reader: CReader) -> None:
    stored, hardened, image = biased(name, tmp_path, dtype, planned=lambda planner: pairs(planner, 14))
    assert stored.plan.tensors[0].form == "two-words"
    compare_bias(name, dtype, stored, hardened, image, sanitized_reader)
    case = Case(lambda _weights: LAYERS[name].build(dtype=dtype), {}, {"x": LAYERS[name].samples().astype(dtype)})
    assert check(sanitized_reader.read(image), read_manifest(image), image, hardened, case) == 1


def test_flips_are_counted_by_the_plane_of_their_word(tmp_path: Path) -> None:
    """Plane p of the first and of the second word have one rate, as they have in campaigns."""
    case = Case(lambda _weights: model([matmul()], [X], [OUT], {"W": normal(6, 3000)}), {}, {})
    hardened, image = exported(stored_pairs(case, 13), tmp_path)
    flip(image, 0.04)
    imported = import_image(image, hardened)
    size = 6 * 3000
    assert [(count.cells, count.plane, count.bits) for count in imported.flips] == [
        ("bulk", plane, (2 if plane < 6 else 1) * size) for plane in range(7)
    ]
    for count in imported.flips:
        assert abs(count.flips - 0.04 * count.bits) < 5 * (0.04 * 0.96 * count.bits) ** 0.5
    assert imported.wrong_bits == sum(count.flips for count in imported.flips)
    assert imported.plane_rates().count("\n") == 1 + 7


def test_manifests_without_second_words_are_read_as_before(tmp_path: Path) -> None:
    """A manifest of before there were such tensors lacks the field; one of two words must have it."""
    case = CASES["gemm"]()
    rates = FlipRates.uniform(0.05, 12)
    source = source_model(case.model)
    plan = Planner(source, prepare(source), FaultModel(p01=rates.p01, p10=rates.p10)).within_budget(CODED, 0)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for folder, stored in (
        ("one", Stored(source, plan, *carry_out(source, plan))),
        ("two", stored_pairs(case, 13)),
    ):
        hardened, image = exported(stored, tmp_path / folder)
        data = json.loads((image / "manifest.json").read_text())
        for tensor in data["tensors"]:
            del tensor["second"]
        jsonschema.Draft202012Validator(json_schema()).validate(data)
        (image / "manifest.json").write_text(json.dumps(data))
        if folder == "one":
            assert import_image(image, hardened).wrong_words == 0
        else:
            with pytest.raises(InputError, match=r"manifest\.json was changed"):
                import_image(image, hardened)


def test_images_do_not_depend_on_the_length_of_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hardened, image = exported(stored_pairs(CASES["gemm"](), 13), tmp_path, 40)
    monkeypatch.setattr(writer, "CHUNK", 16)
    monkeypatch.setattr(reader_module, "CHUNK", 16)
    monkeypatch.setattr(dump, "_MOST_WORDS", 0)
    export_image(hardened, tmp_path / "again", row_bits=40)
    for path in image.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    flip(image, 0.1)
    chunked = import_image(image, hardened)
    monkeypatch.undo()
    whole = import_image(image, hardened)
    assert (chunked.flips, chunked.wrong_bits, chunked.wrong_words) == (
        whole.flips,
        whole.wrong_bits,
        whole.wrong_words,
    )
    assert whole.wrong_words
    for got, wanted in zip(constants(chunked.model), constants(whole.model), strict=True):
        np.testing.assert_array_equal(got.const_value.numpy(), wanted.const_value.numpy())


def test_lists_of_cells_among_the_small_tensors(tmp_path: Path, sanitized_reader: CReader) -> None:
    """They are in small.bin as well; weights are read with the constants of the C code."""
    case = CASES["gemm"]()
    hardened, image = exported(stored_pairs(case, 13, small=3), tmp_path)
    manifest = read_manifest(image)
    names = [tensor.name for group in manifest.small for tensor in group.tensors]
    for suffix in ("cell_first_words", "cell_second_words", "cell_shares", "cell_means", "flip_rates"):
        assert sum(f".{suffix}" in name for name in names) == 1, names
    data = (image / "small.bin").read_bytes()
    flip(image, 0.1)
    (image / "small.bin").write_bytes(data)  # as onnxruntime reads them, too
    assert check(sanitized_reader.read(image), manifest, image, hardened, case) >= 1
