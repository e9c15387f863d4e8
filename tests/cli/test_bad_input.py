"""Bad input, in a table: each gives one line that names the thing and the mend, exit code 2, and nothing is written."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from small_models import OUT, X, info, matmul, model, normal

from qtaml_onnx import outputs
from qtaml_onnx.cli import main

W = normal(6, 4, seed=1)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@dataclass(frozen=True)
class Bad:
    """A command line that must be refused.

    Attributes:
        args: Arguments; {d} is a folder with good.onnx, eval.npz and whatever `prepare` puts there.
        parts: What the line must name.
        prepare: Puts bad files into the folder.
    """

    args: str
    parts: tuple[str, ...]
    prepare: Callable[[Path], object] = lambda folder: None


def good_model(folder: Path) -> onnx.ModelProto:
    proto = model([matmul()], [X], [OUT], {"W": W})
    (folder / "good.onnx").write_bytes(proto.SerializeToString())
    np.savez(folder / "eval.npz", x=normal(8, 6), labels=np.arange(8) % 4)
    return proto


def put(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def put_model(name: str, weights: np.ndarray) -> Callable[[Path], object]:
    proto = model([matmul()], [X], [OUT], {"W": weights})
    return put(name, proto.SerializeToString())


def put_arrays(**arrays: np.ndarray) -> Callable[[Path], object]:
    return lambda folder: np.savez(folder / "bad.npz", **arrays)  # type: ignore[arg-type]


def spoiled(index: tuple[int, int], value: float) -> np.ndarray:
    weights = W.copy()
    weights[index] = value
    return weights


def unknown_operator(folder: Path) -> None:
    proto = model([matmul()], [X], [OUT], {"W": W})
    proto.graph.node[0].op_type = "MatMull"
    (folder / "bad.onnx").write_bytes(proto.SerializeToString())


def escaping_name(folder: Path) -> None:
    """A tensor with too few values, named so as to colour a terminal and to turn its writing round."""
    proto = model([matmul()], [X], [OUT], {"W": W})
    proto.graph.initializer[0].name = "\x1b[31mW\u202e"
    proto.graph.initializer[0].ClearField("raw_data")
    (folder / "bad.onnx").write_bytes(proto.SerializeToString())


def no_weights(folder: Path) -> None:
    proto = model([helper.make_node("Relu", ["x"], ["y"])], [X], [info("y", 1, None, 6)])
    (folder / "bad.onnx").write_bytes(proto.SerializeToString())


def hardened(folder: Path) -> None:
    args = f"harden {folder}/good.onnx -o {folder}/done.onnx --flip-rate 0.01 --method tac --no-html -q"
    assert main(args.split()) == 0
    assert main(f"inject {folder}/good.onnx -o {folder}/faulty.onnx --flip-rate 0.01 -q".split()) == 0


HARDEN = "harden {d}/good.onnx -o {d}/out/o.onnx "
BAD = "harden {d}/bad.onnx -o {d}/out/o.onnx --flip-rate 0.1"
NOISE = HARDEN + "--flip-rate 0.1 --method posterior-mean "

INJECT = "inject {d}/good.onnx -o {d}/out/o.onnx --flip-rate 0.1 "

TABLE: dict[str, Bad] = {
    "missing file": Bad("harden {d}/none.onnx -o {d}/out/o.onnx --flip-rate 0.1", ("none.onnx", "no such file")),
    "a folder": Bad("harden {d}/out -o {d}/out/o.onnx --flip-rate 0.1", ("is a folder",)),
    "empty file": Bad(BAD, ("bad.onnx", "empty"), put("bad.onnx", b"")),
    "jpeg": Bad(BAD, ("bad.onnx", "not an ONNX model"), put("bad.onnx", b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(200))),
    "truncated": Bad(
        BAD, ("bad.onnx", "truncated"), lambda d: (d / "bad.onnx").write_bytes((d / "good.onnx").read_bytes()[:90])
    ),
    "checker refuses": Bad(BAD, ("bad.onnx", "checker", "MatMull"), unknown_operator),
    "NaN weights": Bad(BAD, ("'W'", "NaN", "mend"), put_model("bad.onnx", spoiled((2, 3), np.nan))),
    "infinite weights": Bad(BAD, ("'W'", "infinite"), put_model("bad.onnx", spoiled((0, 0), -np.inf))),
    "no weights": Bad(BAD, ("bad.onnx", "no weights", "inspect"), no_weights),
    "hardened already": Bad(
        "harden {d}/done.onnx -o {d}/out/o.onnx --flip-rate 0.1", ("done.onnx", "hardened already"), hardened
    ),
    "instrumented already": Bad(
        "harden {d}/faulty.onnx -o {d}/out/o.onnx --flip-rate 0.1", ("faulty.onnx", "instrumented already"), hardened
    ),
    "inject twice": Bad(
        "inject {d}/faulty.onnx -o {d}/out/o.onnx --flip-rate 0.1", ("faulty.onnx", "instrumented already"), hardened
    ),
    "plan lost": Bad(
        "inject {d}/done.onnx -o {d}/out/o.onnx --flip-rate 0.1",
        ("done.plan.json", "keep it beside"),
        lambda d: (hardened(d), (d / "done.plan.json").unlink()),
    ),
    "rate 1": Bad(HARDEN + "--flip-rate 1", ("--flip-rate 1", "[0, 1)")),
    "rate below 0": Bad(HARDEN + "--flip-rate -0.1", ("-0.1", "[0, 1)")),
    "rate NaN": Bad(HARDEN + "--flip-rate nan", ("nan", "[0, 1)")),
    "rate no number": Bad(HARDEN + "--flip-rate much", ("--flip-rate", "number")),
    "p01 above 1": Bad(HARDEN + "--p01 1.5 --p10 0.1", ("--p01 1.5",)),
    "p01 alone": Bad(HARDEN + "--p01 0.1", ("--p10", "give both")),
    "no fault model": Bad(HARDEN, ("--flip-rate", "--device")),
    "two fault models": Bad(HARDEN + "--flip-rate 0.1 --p01 0.1 --p10 0.1", ("exclude each other",)),
    "no inverse": Bad(HARDEN + "--p01 0.6 --p10 0.5 --method tac", ("p01 + p10", "1")),
    "unknown device": Bad(HARDEN + "--device nonesuch", ("nonesuch",)),
    "bad table": Bad(HARDEN + "--plane-rates {d}/bad.csv", ("bad.csv", "line 2"), put("bad.csv", b"0.1,0.1\n0.1,x\n")),
    "short table": Bad(HARDEN + "--plane-rates {d}/bad.csv", ("bad.csv", "8"), put("bad.csv", b"0.1,0.1\n" * 3)),
    "retention alone": Bad(HARDEN + "--flip-rate 0.1 --retention 1h", ("--retention", "--device")),
    "no such method": Bad(HARDEN + "--flip-rate 0.1 --method magic", ("magic", "tac")),
    "bits": Bad(HARDEN + "--flip-rate 0.1 --bits 99", ("--bits 99", "2 to")),
    "budget": Bad(HARDEN + "--flip-rate 0.1 --budget 2", ("--budget 2", "0 to 1")),
    "target without eval": Bad(HARDEN + "--flip-rate 0.1 --target 0.95", ("--target", "--eval")),
    "gate without eval": Bad(HARDEN + "--flip-rate 0.1 --fail-under 0.95", ("--fail-under", "--eval")),
    "target and budget": Bad(
        HARDEN + "--flip-rate 0.1 --target 0.9 --budget 0.1 --eval {d}/eval.npz", ("--budget and --target",)
    ),
    "include nothing": Bad(NOISE + "--include V*", ("--include 'V*'", "matches no weight", "inspect")),
    "exclude nothing": Bad(NOISE + "--exclude V*", ("--exclude 'V*'", "matches no weight")),
    "exclude everything": Bad(NOISE + "--exclude *", ("no weights",)),
    "trials": Bad(NOISE + "--eval {d}/eval.npz --trials 0", ("--trials 0", "at least 1")),
    "seed": Bad(NOISE + "--eval {d}/eval.npz --seed -1", ("--seed", "greater than or equal to 0")),
    "seed too large": Bad(NOISE + "--eval {d}/eval.npz --seed 99999999999999999999", ("--seed",)),
    "seed without eval": Bad(NOISE + "--seed -1", ("--seed", "greater than or equal to 0")),
    "confidence": Bad(NOISE + "--eval {d}/eval.npz --confidence 95", ("--confidence 95", "0.95")),
    "eval missing": Bad(NOISE + "--eval {d}/none.npz", ("none.npz", "no such file")),
    "eval no archive": Bad(NOISE + "--eval {d}/bad.npz", ("bad.npz", "numpy.savez"), put("bad.npz", b"x,y\n")),
    "eval name": Bad(NOISE + "--eval {d}/bad.npz", ("'x'", "it has image"), put_arrays(image=normal(8, 6))),
    "eval rank": Bad(NOISE + "--eval {d}/bad.npz", ("'x'", "rank 1"), put_arrays(x=normal(8))),
    "eval shape": Bad(NOISE + "--eval {d}/bad.npz", ("'x'", "7", "6"), put_arrays(x=normal(8, 7))),
    "eval dtype": Bad(NOISE + "--eval {d}/bad.npz", ("'x'", "float64"), put_arrays(x=normal(8, 6).astype(np.float64))),
    "eval length": Bad(
        NOISE + "--eval {d}/bad.npz",
        ("x 8, labels 7", "make them equal"),
        put_arrays(x=normal(8, 6), labels=np.arange(7)),
    ),
    "labels shape": Bad(
        NOISE + "--eval {d}/bad.npz",
        ("labels have shape [8, 2]",),
        put_arrays(x=normal(8, 6), labels=np.zeros((8, 2), int)),
    ),
    "calibration name": Bad(
        NOISE + "--calibration {d}/bad.npz", ("--calibration", "'x'"), put_arrays(image=normal(8, 6))
    ),
    "pickled": Bad(
        NOISE + "--eval {d}/bad.npz", ("bad.npz", "plain arrays"), put_arrays(x=np.array([{}, {}], dtype=object))
    ),
    "no output folder": Bad("harden {d}/good.onnx -o {d}/no/o.onnx --flip-rate 0.1", ("does not exist", "-o")),
    "output is a folder": Bad(
        "harden {d}/good.onnx -o {d}/f.onnx --flip-rate 0.1", ("f.onnx", "folder"), lambda d: (d / "f.onnx").mkdir()
    ),
    "output below a file": Bad("harden {d}/good.onnx -o {d}/eval.npz/o.onnx --flip-rate 0.1", ("does not exist",)),
    "output read-only": Bad("harden {d}/good.onnx -o /proc/o.onnx --flip-rate 0.1", ("/proc", "not writable")),
    "output is the input": Bad("harden {d}/good.onnx -o {d}/good.onnx --flip-rate 0.1", ("is one of the input files",)),
    "output suffix": Bad("harden {d}/good.onnx -o {d}/out/o.pb --flip-rate 0.1", (".onnx",)),
    "no output": Bad("harden {d}/good.onnx --flip-rate 0.1", ("output",)),
    "report is a folder": Bad(NOISE, ("o.report.json", "folder"), lambda d: (d / "out" / "o.report.json").mkdir()),
    "faulty is output": Bad(NOISE + "--emit-faulty {d}/out/../out/o.onnx", ("o.onnx", "two")),
    "faulty is the plan": Bad(NOISE + "--emit-faulty {d}/out/o.plan.json", ("o.plan.json",)),
    "faulty is the data": Bad(NOISE + "--emit-faulty {d}/eval.npz", ("eval.npz", ".onnx")),
    "faulty is the input": Bad(NOISE + "--emit-faulty {d}/good.onnx", ("is one of the input files",)),
    "unknown option": Bad(NOISE + "--turbo", ("--turbo",)),
    "unknown command": Bad("strengthen {d}/good.onnx", ("strengthen",)),
    "no model": Bad("harden", ("MODEL",)),
    "inject without faults": Bad("inject {d}/good.onnx -o {d}/out/o.onnx", ("--flip-rate",)),
    "inject unknown kind": Bad(INJECT + "--kind cosmic", ("cosmic", "stuck-at")),
    "inject burst without geometry": Bad(INJECT + "--kind burst", ("--row-cells",)),
    "inject long burst": Bad(INJECT + "--kind burst --row-cells 8 --burst-cells 9", ("burst_cells is 9",)),
    "inject geometry without burst": Bad(INJECT + "--row-cells 8", ("--kind burst",)),
    "inject plane out of range": Bad(INJECT + "--planes 8", ("plane 8 is out of range",)),
    "inject planes": Bad(INJECT + "--planes 3-1", ("planes '3-1'",)),
    "inject unknown place": Bad(INJECT + "--where moon", ("moon",)),
    "inject activations of bits": Bad(INJECT + "--where activations --bits 4", ("--bits",)),
    "inject suffix": Bad("inject {d}/good.onnx -o {d}/out/o.json --flip-rate 0.1", (".onnx",)),
    "inject bits": Bad("inject {d}/good.onnx -o {d}/out/o.onnx --flip-rate 0.1 --bits 40", ("40",)),
    "inject no bits": Bad("inject {d}/good.onnx -o {d}/out/o.onnx --flip-rate 0.1 --bits 0", ("0",)),
    "evaluate sweep": Bad("evaluate {d}/good.onnx --flip-rate 0.1,x --eval {d}/eval.npz", ("'x'", "commas")),
    "gate on an error": Bad(
        "evaluate {d}/good.onnx --flip-rate 0.1 --eval {d}/eval.npz --metric mse --fail-under 0.9",
        ("--fail-under", "mse", "--metric"),
    ),
    "gate on a ratio": Bad(
        "evaluate {d}/good.onnx --flip-rate 0.1 --eval {d}/eval.npz --metric snr --fail-under 0.9",
        ("--fail-under", "snr", "--metric"),
    ),
    "evaluate missing": Bad("evaluate {d}/none.onnx --flip-rate 0.1", ("none.onnx",)),
    "evaluate trials": Bad("evaluate {d}/good.onnx --flip-rate 0.1 --eval {d}/eval.npz --trials 0", ("--trials 0",)),
    "evaluate output": Bad(
        "evaluate {d}/good.onnx --flip-rate 0.1 --eval {d}/eval.npz -o {d}/no/r.json", ("does not exist",)
    ),
    "evaluate onto the model": Bad(
        "evaluate {d}/good.onnx --flip-rate 0.1 --eval {d}/eval.npz -o {d}/good.onnx", ("is one of the input files",)
    ),
    "evaluate retention": Bad("evaluate {d}/good.onnx --flip-rate 0.1 --retention 1h", ("--retention", "--device")),
    "inspect missing": Bad("inspect {d}/none.onnx", ("none.onnx",)),
    "inspect nothing": Bad("inspect {d}/good.onnx --include V", ("--include 'V'",)),
    "verify plain": Bad("verify {d}/good.onnx --original {d}/good.onnx", ("not a hardened model", "harden")),
    "verify missing": Bad("verify {d}/none.onnx --original {d}/good.onnx", ("none.onnx",)),
    "verify no plan": Bad(
        "verify {d}/done.onnx --original {d}/good.onnx",
        ("done.plan.json",),
        lambda d: (hardened(d), (d / "done.plan.json").unlink()),
    ),
    "model is a device": Bad("harden /dev/zero -o {d}/out/o.onnx --flip-rate 0.1", ("/dev/zero", "no regular file")),
    "output is a device": Bad(
        "report {d}/done.report.json -o /dev/full", ("/dev/full", "no regular file"),
        lambda d: main(f"harden {d}/good.onnx -o {d}/done.onnx --flip-rate 0.01 --method tac -q".split()),
    ),
    "table is a device": Bad(HARDEN + "--plane-rates /dev/zero", ("/dev/zero", "no regular file")),
    "data are a device": Bad(NOISE + "--eval /dev/zero", ("/dev/zero", "plain arrays")),
    "deep device": Bad(HARDEN + "--device {d}/d.toml", ("d.toml", "TOML"), put("d.toml", b"a=" + b"[" * 9999)),
    "deep report": Bad("report {d}/r.json -o {d}/out/o.html", ("r.json", "JSON"), put("r.json", b"[" * 99999)),
    "escapes in a name": Bad(BAD, ("tensor '\\x1b[31mW\\u202e'", "need 24"), escaping_name),
    "name too long": Bad("harden {d}/good.onnx -o {d}/out/" + "o" * 300 + ".onnx --flip-rate 0.1", ("file name",)),
    "unknown sensitivity": Bad(NOISE + "--sensitivity guess", ("guess", "magnitude")),
    "report missing": Bad("report {d}/none.json -o {d}/out/o.html", ("none.json",)),
    "report no report": Bad("report {d}/bad.json -o {d}/out/o.html", ("bad.json",), put("bad.json", b'{"a": 1}')),
    "report no JSON": Bad("report {d}/bad.json -o {d}/out/o.html", ("bad.json", "JSON"), put("bad.json", b"<html>")),
    "report binary": Bad("report {d}/good.onnx -o {d}/out/o.html", ("good.onnx",)),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_one_line_exit_2_nothing_written(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = TABLE[name]
    (tmp_path / "out").mkdir()
    good_model(tmp_path)
    bad.prepare(tmp_path)
    capsys.readouterr()
    before = snapshot(tmp_path)
    code = main([part.replace("{d}", str(tmp_path)) for part in bad.args.split()])
    out, err = capsys.readouterr()
    assert code == 2
    assert snapshot(tmp_path) == before
    lines = [line for line in err.splitlines() if "warning:" not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith("qtaml-onnx: error: ")
    assert "Traceback" not in err + out
    for part in bad.parts:
        assert part in lines[0]
    assert out == ""


def _tempting(monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int) -> None:
    """Makes the n-th temporary output fail, half written."""
    count = 0
    write = outputs._write_text

    def failing(path: Path, text: str) -> None:
        nonlocal count
        count += 1
        if count == after:
            path.write_text(text[: len(text) // 2], encoding="utf-8")
            raise error
        write(path, text)

    monkeypatch.setattr(outputs, "_write_text", failing)


@pytest.mark.parametrize("after", [1, 2])
def test_a_full_disk_leaves_nothing(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good_model(tmp_path)
    (tmp_path / "o.plan.json").write_text("of an earlier run")
    before = snapshot(tmp_path)
    _tempting(monkeypatch, OSError(errno.ENOSPC, "No space left on device"), after)
    args = f"harden {tmp_path}/good.onnx -o {tmp_path}/o.onnx --flip-rate 0.1 --method tac --no-html -q"
    assert main(args.split()) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("where", ["write", "probe"])
def test_an_interrupt_leaves_nothing(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good_model(tmp_path)
    before = snapshot(tmp_path)
    if where == "write":
        _tempting(monkeypatch, KeyboardInterrupt(), 2)
    else:

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("qtaml_onnx.hardening.measure_sensitivity", stop)
    args = f"harden {tmp_path}/good.onnx -o {tmp_path}/o.onnx --flip-rate 0.1 --method tac --no-html -q"
    assert main(args.split()) == 130
    assert capsys.readouterr().err == "qtaml-onnx: interrupted; nothing was written\n"
    assert snapshot(tmp_path) == before


def test_read_only_folder_is_found_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an ordinary user meets it; the super-user may write anywhere, so that the refusal is simulated."""
    good_model(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    def never(*_: object) -> None:
        raise AssertionError("the model was read first")

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr("qtaml_onnx.cli.harden.load_model", never)
    args = f"harden {tmp_path}/good.onnx -o {tmp_path}/o.onnx --flip-rate 0.1"
    assert main(args.split()) == 2
    assert "not writable (Permission denied)" in capsys.readouterr().err


def test_unknown_custom_operators_are_kept_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not an error: what cannot run can still be hardened."""
    mystery = helper.make_node("Mystery", ["m"], ["y"], domain="com.example", name="riddle")
    proto = model([matmul(result="m"), mystery], [X], [OUT], {"W": W}, domains=["com.example"])
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    args = f"harden {tmp_path}/m.onnx -o {tmp_path}/o.onnx --flip-rate 0.1 --method posterior-mean --no-html --json"
    assert main(args.split()) == 0
    out, err = capsys.readouterr()
    assert '"com.example::Mystery"' in out
    assert "kept untouched" in out
    assert "Mystery" in err  # sensitivity could not be measured, and says so
    saved = onnx.load(tmp_path / "o.onnx")
    kept = [node for node in saved.graph.node if node.domain == "com.example"]
    assert [node.SerializeToString() for node in kept] == [mystery.SerializeToString()]
    assert main(f"verify {tmp_path}/o.onnx --original {tmp_path}/m.onnx".split()) == 1
    assert "cannot be run" in capsys.readouterr().err


def test_string_inputs_do_not_stop_hardening(tmp_path: Path) -> None:
    """They cannot be evaluated or probed, but the weights can be stored."""
    proto = model([matmul()], [X, info("s", onnx.TensorProto.STRING, None)], [OUT], {"W": W})
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    args = f"harden {tmp_path}/m.onnx -o {tmp_path}/o.onnx --flip-rate 0.1 --method posterior-mean --no-html -q"
    assert main(args.split()) == 0


def test_rate_0_with_a_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good_model(tmp_path)
    args = f"harden {tmp_path}/good.onnx -o {tmp_path}/o.onnx --flip-rate 0 --method tac --no-html -q --fail-under 0.5"
    assert main([*args.split(), "--eval", f"{tmp_path}/eval.npz", "--trials", "2"]) == 0, capsys.readouterr().err
