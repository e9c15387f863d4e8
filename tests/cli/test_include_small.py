"""`--include-small` from the command line: report, verify, evaluate and inject."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from small_models import info, matmul, model, normal

from qtaml_onnx.cli import main


def network() -> onnx.ModelProto:
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "V", "c"], ["h"], pads=[1, 1, 1, 1]),
        make("BatchNormalization", ["h", "s", "b", "m", "v"], ["n"]),
        make("Relu", ["n"], ["r"]),
        make("ReduceMean", ["r"], ["f"], axes=[2, 3], keepdims=0),
        matmul("W", "f", "p"),
        make("Add", ["p", "d"], ["y"]),
    ]
    vectors = {name: normal(8, seed=number) for number, name in enumerate("csbm")}
    constants = {
        "V": normal(8, 3, 3, 3, seed=5), "W": normal(8, 4, seed=6) * np.float32(4), "d": normal(4, seed=7),
        "v": np.abs(normal(8, seed=8)) + np.float32(0.5), **vectors,
    }  # fmt: skip
    return model(nodes, [info("x", 1, "N", 3, 6, 6)], [info("y", 1, "N", 4)], constants)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "m.onnx").write_bytes(network().SerializeToString())
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "c.npz", x=rng.normal(size=(64, 3, 6, 6)).astype(np.float32) + 0.5)
    np.savez(tmp_path / "e.npz", x=rng.normal(size=(200, 3, 6, 6)).astype(np.float32) + 0.5)
    return tmp_path


def harden(folder: Path, capsys: pytest.CaptureFixture[str], more: str) -> dict[str, dict[str, object]]:
    command = f"harden {folder}/m.onnx -o {folder}/o.onnx --flip-rate 0.02 --no-html --json {more}"
    assert main(command.split()) == 0, capsys.readouterr().err
    report: dict[str, dict[str, object]] = json.loads(capsys.readouterr().out)
    return report


def test_report_ledger_verify_and_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"--calibration {folder}/c.npz --eval {folder}/e.npz --trials 5"
    safe = harden(folder, capsys, data)
    report = harden(folder, capsys, f"--include-small {data}")
    small, storage = report["small"], report["storage"]
    assert {t["name"]: t["role"] for t in small["tensors"]} == {  # type: ignore[index,union-attr]
        "c": "bias of Conv", "s": "scale of BatchNormalization", "b": "bias of BatchNormalization",
        "m": "mean of BatchNormalization", "v": "variance of BatchNormalization", "d": "bias of MatMul",
    }  # fmt: skip
    assert report["left_out"] == []
    copies = small["copies"]
    assert storage["small_bits"] == copies * 32 * (5 * 8 + 4)  # type: ignore[operator]
    assert storage["metadata_bits"] == copies * safe["storage"]["metadata_bits"]  # type: ignore[operator]
    parts = sum(storage[key] for key in ("weight_bits", "parity_bits", "metadata_bits", "small_bits"))  # type: ignore[misc]
    assert storage["bits_per_weight"] == pytest.approx(parts / storage["weights"], rel=1e-12)  # type: ignore[operator]
    assert safe["small"] is None
    assert safe["storage"]["small_bits"] == 0

    def mean(of: dict[str, dict[str, object]], variant: str) -> float:
        results = of["evaluation"]["results"]
        return next(r["mean"] for r in results if r["variant"] == variant and r["flip_rate"])  # type: ignore[union-attr,misc,index]

    # With enough copies no small bit is wrong in 99 of 100 draws: the trials are the same as with safe small tensors.
    assert mean(report, "hardened") == pytest.approx(mean(safe, "hardened"), abs=1e-12)
    assert mean(report, "unprotected") < mean(safe, "unprotected") - 0.1  # one copy of every exponent

    assert main(f"verify {folder}/o.onnx --original {folder}/m.onnx --json".split()) == 0, capsys.readouterr()
    checks = {check["name"]: check["detail"] for check in json.loads(capsys.readouterr().out)["checks"]}
    stored = storage["small_bits"] + storage["metadata_bits"]  # type: ignore[operator]
    assert checks["small tensors"] == f"{stored} bits as planned, metadata included, {copies} of each"

    command = f"evaluate {folder}/m.onnx {folder}/o.onnx --flip-rate 0.02 --include-small --eval {folder}/e.npz"
    assert main([*command.split(), "--trials", "5", "--json"]) == 0, capsys.readouterr().err
    plain, hardened = json.loads(capsys.readouterr().out)["models"]
    assert hardened["evaluation"]["results"][-1]["mean"] == pytest.approx(mean(report, "hardened"), abs=1e-12)
    assert plain["evaluation"]["results"][-1]["mean"] == pytest.approx(mean(report, "unprotected"), abs=1e-12)


def test_too_few_copies_cost_accuracy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = []
    for copies in (1, 3, 9):
        more = f"--include-small --small-copies {copies} --method posterior-mean --eval {folder}/e.npz --trials 10"
        report = harden(folder, capsys, more)
        assert report["small"]["copies"] == copies
        results = report["evaluation"]["results"]
        kept.append(next(r["mean"] for r in results if r["variant"] == "hardened" and r["flip_rate"]))  # type: ignore[union-attr,index]
    assert kept[0] < kept[1] < kept[2]


def test_changed_small_words_are_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harden(folder, capsys, "--include-small")
    hardened = onnx.load(folder / "o.onnx")
    words = next(t for t in hardened.graph.initializer if t.name == "qtaml.small.FLOAT.words")
    words.raw_data = bytes([words.raw_data[0] ^ 1]) + words.raw_data[1:]
    (folder / "o.onnx").write_bytes(hardened.SerializeToString())
    assert main(f"verify {folder}/o.onnx --original {folder}/m.onnx".split()) == 1
    assert "'qtaml.small.FLOAT.words' is not what the original's small tensors" in capsys.readouterr().out


def test_inject(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = []
    for more in ("", "--include-small"):
        command = f"inject {folder}/m.onnx -o {folder}/f{more}.onnx --flip-rate 0.01 {more}"
        assert main(command.split()) == 0, capsys.readouterr().err
        faulty = onnx.load(folder / f"f{more}.onnx")
        counts.append(sum(node.op_type == "FaultInject" for node in faulty.graph.node))
    assert counts == [2, 3]  # two weights, and all float32 numbers together


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ("--small-copies 3", "add --include-small"),
        ("--include-small --small-copies 4", "give an odd number from 1 to 31"),
        ("--include-small --p01 0.4 --p10 0.4", "even 31 copies leave wrong bits"),
    ],
)
def test_refused(more: str, part: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rate = "" if "--p01" in more else "--flip-rate 0.01"
    assert main(f"harden {folder}/m.onnx -o {folder}/o.onnx {rate} {more}".split()) == 2
    message = capsys.readouterr().err
    assert part in message
    assert "Traceback" not in message
    assert not (folder / "o.onnx").exists()


def test_word_lengths_leave_room_for_small_tensors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--bits-per-weight is all in."""
    report = harden(folder, capsys, "--include-small --small-copies 3 --bits-per-weight 40")
    assert report["storage"]["bits_per_weight"] <= 40  # type: ignore[operator]
    assert report["storage"]["small_bits"] == 3 * 32 * 44
