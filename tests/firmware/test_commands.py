"""export-image and import-image as a user runs them, on good and on bad input."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx_ir as ir
import pytest
from c_reader import CReader, flip
from command_line import Run
from scipy import stats
from small_models import OUT, X, matmul, model, normal

import qtaml_onnx
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.cli import main
from qtaml_onnx.errors import InputError
from qtaml_onnx.firmware.flips import FlipCounts, plane_rates_csv
from qtaml_onnx.firmware.manifest import json_schema, read_manifest
from qtaml_onnx.modelio import load_model
from qtaml_onnx.plan import read_plan


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plain model, it hardened with half its planes protected, another one, and its image."""
    folder = tmp_path_factory.mktemp("made")
    for name, seed in (("net", 1), ("other", 2)):
        proto = model([matmul()], [X], [OUT], {"W": normal(6, 4000, seed=seed)})
        (folder / f"{name}.onnx").write_bytes(proto.SerializeToString())
        args = f"harden {folder}/{name}.onnx -o {folder}/{name}-safe.onnx --flip-rate 0.02 --method uniform-msp"
        assert main(f"{args} --budget 0.25 --protection secded-72-64 --no-html -q".split()) == 0
    assert main(f"export-image {folder}/net-safe.onnx -o {folder}/image -q".split()) == 0
    return folder


@pytest.fixture
def image(made: Path, tmp_path: Path) -> Path:
    """A copy of the image, to be spoiled."""
    return Path(shutil.copytree(made / "image", tmp_path / "image"))


def test_export_writes_what_the_manifest_says(made: Path, command: Run, tmp_path: Path) -> None:
    out, err = command(f"export-image {made}/net-safe.onnx -o {tmp_path}/new --row-bits 128 --json")
    assert not err
    summary = json.loads(out)
    folder = tmp_path / "new"
    manifest = read_manifest(folder)
    data = json.loads((folder / "manifest.json").read_text())
    schema = json.loads((folder / "manifest.schema.json").read_text())
    assert schema == json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(data)
    fields = schema["$defs"]["TensorPlan"]["properties"]
    assert set(data["tensors"][0]["storage"]) | {"channel_codes", "channel_groups", "part"} == set(fields)
    assert summary["files"] == data["files"]
    assert {path.name for path in folder.iterdir()} == {
        *("bulk.bin", "protected.bin", "parity.bin", "manifest.json", "manifest.schema.json"),
        *("qtaml_readout.h", "qtaml_readout.c", "qtaml_model.h", "qtaml_model.c"),
    }
    for file in manifest.files:
        content = (folder / file.name).read_bytes()
        assert len(content) == file.size
        assert hashlib.sha256(content).hexdigest() == file.sha256
        assert zlib.crc32(content) == file.crc32
        assert f"0x{file.crc32:08x}u" in (folder / "qtaml_model.h").read_text()
    plan = read_plan(made / "net-safe.plan.json")
    assert manifest.plan_sha256 == plan.sha256
    assert [tensor.storage for tensor in manifest.tensors] == list(plan.tensors)
    assert manifest.row_bits == 128
    assert sum(tensor.parity.bits for tensor in manifest.tensors) == plan.parity_bits > 0
    assert folder.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_two_exports_are_the_same(made: Path, tmp_path: Path) -> None:
    qtaml_onnx.export_image(made / "net-safe.onnx", tmp_path / "again")
    for path in (made / "image").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_perfect_dump_gives_the_model_back(made: Path, image: Path, command: Run, tmp_path: Path) -> None:
    out, _err = command(f"import-image {image} --model {made}/net-safe.onnx -o {tmp_path}/real.onnx --json")
    summary = json.loads(out)
    assert summary["wrong_words"] == summary["wrong_bits"] == summary["corrected_bits"] == 0
    assert sum(row["flips_01"] + row["flips_10"] for row in summary["flips"]) == 0
    before, after = (ir.to_proto(load_model(path).model) for path in (made / "net-safe.onnx", tmp_path / "real.onnx"))
    assert before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
    assert (tmp_path / "real.plan.json").read_text() == (made / "net-safe.plan.json").read_text()


def test_a_faulty_dump_closes_the_loop(made: Path, image: Path, command: Run, tmp_path: Path) -> None:
    """Measured rates are the injected ones within their intervals, and the other commands take what comes out."""
    p01, p10 = 0.005, 0.03
    flip(image, p01, p10, seed=3)
    rates, real = tmp_path / "chip.csv", tmp_path / "real.onnx"
    args = (
        f"import-image {image} --model {made}/net-safe.onnx -o {real} --write-plane-rates {rates} --confidence 0.9999"
    )
    summary = json.loads(command(f"{args} --json")[0])
    assert [(row["cells"], row["plane"]) for row in summary["flips"]] == [
        *(("bulk", plane) for plane in range(6)),
        *(("protected", plane) for plane in (6, 7)),
        ("parity", None),
    ]
    for row in summary["flips"]:
        for key, true in (("p01", p01), ("p10", p10)):
            assert row[key]["low"] <= true <= row[key]["high"]
            assert row[key]["mean"] == row[f"flips_{key[1:]}"] / row[f"bits_{key[1]}"]
    assert sum(row["bits_0"] + row["bits_1"] for row in summary["flips"][:8]) == 8 * 24000
    measured = FlipRates.from_csv(rates)
    assert measured.bits == 8
    for plane, row in enumerate(summary["flips"][:8]):
        assert measured.p01[plane] == pytest.approx(row["p01"]["mean"], rel=1e-8)
        assert measured.p10[plane] == pytest.approx(row["p10"]["mean"], rel=1e-8)
    # Of 750 blocks of 72 bits at a mean rate of 1.75 % so many have one flip, which is corrected.
    single = 750 * float(stats.binom.pmf(1, 72, (p01 + p10) / 2))
    assert abs(summary["corrected_bits"] - single) < 0.3 * single
    assert 0 < summary["wrong_words"] < summary["words"] == 24000
    words = np.asarray(load_model(real).model.graph.initializers["W.words"].const_value.numpy())
    true = np.asarray(load_model(made / "net-safe.onnx").model.graph.initializers["W.words"].const_value.numpy())
    assert int((words != true).sum()) == summary["wrong_words"]
    out, _err = command(f"{args} -q")
    assert not out
    text = command(args)[0]
    assert f"{summary['corrected_bits']} stored bits corrected" in text
    np.savez(tmp_path / "eval.npz", x=normal(20, 6))
    command(f"evaluate {real} --flip-rate 0 --eval {tmp_path}/eval.npz --trials 1 -q")
    command(f"evaluate {made}/net-safe.onnx --plane-rates {rates} --eval {tmp_path}/eval.npz --trials 1 -q")
    command(f"harden {made}/net.onnx -o {tmp_path}/new.onnx --plane-rates {rates} --method tac --no-html -q")


def spoil(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def edit(**fields: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def deep(folder: Path) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    data["tensors"][0]["bulk"]["offset"] = 1 << 62
    (folder / "manifest.json").write_text(json.dumps(data))


def shorten(folder: Path) -> None:
    data = (folder / "parity.bin").read_bytes()
    (folder / "parity.bin").write_bytes(data[:-1])


BAD: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no manifest": (lambda d: (d / "manifest.json").unlink(), ("manifest.json", "cannot be read")),
    "not json": (spoil("manifest.json", b"{"), ("not JSON",)),
    "not text": (spoil("manifest.json", b"\xff\xfe\x00"), ("cannot be read",)),
    "nested": (spoil("manifest.json", b"[" * 100_000), ("manifest.json",)),
    "a list": (spoil("manifest.json", b"[]"), ("format version None",)),
    "newer": (edit(format_version=2), ("format version 2", "this program reads 1")),
    "true version": (edit(format_version=True), ("format version True",)),
    "extra field": (edit(magic=1), ("magic", "Extra inputs")),
    "no tensors": (edit(tensors=3), ("tensors",)),
    "other plan": (edit(plan_sha256="0" * 64), ("is not the image of",)),
    "other rows": (edit(row_bits=64), ("manifest.json was changed",)),
    "odd rows": (edit(row_bits=3), ("rows of 3 bits",)),
    "offset": (deep, ("manifest.json was changed",)),
    "no bulk": (lambda d: (d / "bulk.bin").unlink(), ("bulk.bin", "cannot be read")),
    "short": (shorten, ("parity.bin", "bytes, the image has")),
    "folder": (
        lambda d: ((d / "bulk.bin").unlink(), (d / "bulk.bin").mkdir()),
        ("bulk.bin",),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_in_one_line(name: str, made: Path, image: Path, command: Run, tmp_path: Path) -> None:
    change, parts = BAD[name]
    change(image)
    out, err = command(f"import-image {image} --model {made}/net-safe.onnx -o {tmp_path}/real.onnx", 2)
    assert not out
    assert err.startswith("qtaml-onnx: error: ")
    assert err.count("\n") == 1
    assert all(part in err for part in parts), err
    assert {path.name for path in tmp_path.iterdir()} == {"image"}


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ("import-image {image} --model {made}/other-safe.onnx -o {d}/real.onnx", "is not the image of"),
        ("import-image {image} --model {made}/net.onnx -o {d}/real.onnx", "not a hardened model"),
        ("import-image {image}/bulk.bin --model {made}/net-safe.onnx -o {d}/real.onnx", "is not a folder"),
        ("import-image {d}/none --model {made}/net-safe.onnx -o {d}/real.onnx", "is not a folder"),
        ("import-image {image} --model {made}/net-safe.onnx -o {d}/real.bin", "does not end in .onnx"),
        ("import-image {image} --model {made}/net-safe.onnx -o {d}/real.onnx --confidence 2", "--confidence"),
        (
            "import-image {image} --model {made}/net-safe.onnx -o {d}/real.onnx --write-plane-rates {d}/real.onnx",
            "name the same file",
        ),
        ("export-image {made}/net.onnx -o {d}/new", "not a hardened model"),
        ("export-image {made}/net-safe.onnx -o {image}", "is not empty"),
        ("export-image {made}/net-safe.onnx -o {image}/bulk.bin", "is a file"),
        ("export-image {made}/net-safe.onnx -o {d}/no/new", "does not exist"),
        ("export-image {made}/net-safe.onnx -o {d}/new --row-bits 7", "rows of 7 bits"),
        ("export-image {made}/none.onnx -o {d}/new", "no such file"),
    ],
)
def test_bad_usage_is_refused_in_one_line(
    args: str, part: str, made: Path, image: Path, command: Run, tmp_path: Path
) -> None:
    before = sorted(image.iterdir())
    out, err = command(args.format(made=made, image=image, d=tmp_path), 2)
    assert not out
    assert err.count("\n") == 1
    assert part in err
    assert {path.name for path in tmp_path.iterdir()} == {"image"}
    assert sorted(image.iterdir()) == before


def test_export_leaves_nothing_when_it_fails(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_more: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="No space left on device"):
        qtaml_onnx.export_image(made / "net-safe.onnx", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_export_takes_an_empty_folder(made: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    qtaml_onnx.export_image(made / "net-safe.onnx", tmp_path / "new")
    assert (tmp_path / "new" / "manifest.json").is_file()


def test_hostile_names_stay_inside_their_strings(tmp_path: Path, c_reader: CReader) -> None:
    name = 'W"; int x??/\n*/ \\ \x07 é ' + "n" * 5000
    proto = model([matmul(name), matmul("w w", "y", "z")], [X], [OUT], {name: normal(6, 4), "w w": normal(4, 3)})
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    result = qtaml_onnx.harden(tmp_path / "net.onnx", 0.01, method="tac")
    ir.save(result.model, tmp_path / "safe.onnx")
    (tmp_path / "safe.plan.json").write_text(result.plan.to_json())
    manifest = qtaml_onnx.export_image(tmp_path / "safe.onnx", tmp_path / "image")
    assert len(manifest.tensors) == 2
    reading = c_reader.read(tmp_path / "image")
    assert [weights.shape for weights in reading.weights] == [tensor.storage.shape for tensor in manifest.tensors]


def test_plane_rates_take_what_cells_there_are() -> None:
    counts = [
        FlipCounts("bulk", 0, zeros=100, ones=50, flips01=1, flips10=5),
        FlipCounts("protected", 0, zeros=10, ones=10, flips01=9, flips10=9),
        FlipCounts("protected", 1, zeros=40, ones=0, flips01=4),
    ]
    rows = [tuple(map(float, row.split(","))) for row in plane_rates_csv(counts, 3).splitlines()[1:]]
    pooled01, pooled10 = 14 / 150, 14 / 60
    np.testing.assert_allclose(rows, [(0.01, 0.1), (0.1, pooled10), (pooled01, pooled10)], rtol=1e-8)
    with pytest.raises(InputError, match="inverted"):
        plane_rates_csv([FlipCounts("bulk", 0, zeros=5, ones=5, flips01=5, flips10=5)], 1)
    with pytest.raises(InputError, match="no bits"):
        plane_rates_csv([], 1)


def test_flips_are_counted_by_what_was_written() -> None:
    written = np.array([0, 0, 0, 1, 1], np.uint8)
    count = FlipCounts.of("bulk", 0, written, np.array([0, 1, 0, 0, 0], np.uint8))
    assert (count.zeros, count.ones, count.flips01, count.flips10) == (3, 2, 1, 2)
    assert (count.bits, count.flips) == (5, 3)
    assert FlipCounts("bulk", 0).p01(0.95) is None
