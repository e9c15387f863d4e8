"""The commands on the bundled example, as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from command_line import Run
from digits_example import CALIBRATION, MODEL, first_samples
from stored_models import fault_options, rates_feed, run

from qtaml_onnx.cli import main
from qtaml_onnx.modelio import file_sha256
from qtaml_onnx.plan import read_plan
from qtaml_onnx.report.schema import json_schema

FAST = "--method posterior-mean --budget 0.15 --trials 3 --no-html"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first 200 evaluation samples and a hardened model in it."""
    folder = tmp_path_factory.mktemp("digits")
    first_samples(folder / "eval.npz", 200)
    args = f"harden {MODEL} -o {folder}/safe.onnx --flip-rate 0.05 {FAST} --eval {folder}/eval.npz -q"
    assert main([*args.split(), "--calibration", str(CALIBRATION), "--emit-faulty", f"{folder}/faulty.onnx"]) == 0
    return folder


def report(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    jsonschema.validate(document, json_schema())
    return document


def accuracy(document: dict[str, Any]) -> dict[tuple[str, bool], float]:
    return {(r["variant"], r["flip_rate"] > 0): r["mean"] for r in document["evaluation"]["results"]}


def test_harden_writes_model_plan_and_report(small: Path) -> None:
    assert {p.name for p in small.iterdir()} == {
        "eval.npz", "safe.onnx", "safe.plan.json", "safe.report.json", "faulty.onnx",
    }  # fmt: skip
    document = report(small / "safe.report.json")
    assert document["source"]["sha256"] == file_sha256(MODEL)
    assert document["output"]["sha256"] == file_sha256(small / "safe.onnx")
    found = accuracy(document)
    assert set(found) == {
        ("clean", False), ("quantized", False), ("hardened", False), ("unprotected", True), ("hardened", True),
    }  # fmt: skip
    assert found["clean", False] > 0.97
    assert found["unprotected", True] < 2 / 3 * found["clean", False]
    assert found["hardened", True] > 0.95 * found["clean", False]
    proto = onnx.load(small / "safe.onnx")
    properties = {p.key: p.value for p in proto.metadata_props}
    assert properties["qtaml_onnx.plan_sha256"] == read_plan(small / "safe.plan.json").sha256
    assert properties["qtaml_onnx.source_sha256"] == file_sha256(MODEL)


def test_emitted_faulty_model_is_the_hardened_one_with_faults(small: Path) -> None:
    proto, faulty = onnx.load(small / "safe.onnx"), onnx.load(small / "faulty.onnx")
    with np.load(small / "eval.npz") as data:
        feeds = {name: data[name][:8] for name in data.files if name != "labels"}
    from qtaml_onnx.verification import comparison_options

    wanted = run(proto, feeds, comparison_options())[0]
    assert run(faulty, feeds | rates_feed(0.0), fault_options())[0].tobytes() == wanted.tobytes()
    assert run(faulty, feeds, fault_options())[0].tobytes() != wanted.tobytes()  # the designed rate is the default


def test_json_alone_on_stdout(command: Run, tmp_path: Path) -> None:
    out, err = command(f"harden {MODEL} -o {tmp_path}/o.onnx --flip-rate 0.05 {FAST} --json")
    document = json.loads(out)
    jsonschema.validate(document, json_schema())
    assert document["output"]["path"] == f"{tmp_path}/o.onnx"
    assert json.loads((tmp_path / "o.report.json").read_text()) == document
    assert "no calibration data" in err
    assert document["warnings"]


def test_dry_run_decides_and_measures_and_writes_nothing(command: Run, small: Path, tmp_path: Path) -> None:
    args = f"harden {MODEL} -o {tmp_path}/no/o.onnx --flip-rate 0.05 {FAST} --eval {small}/eval.npz --dry-run --json"
    document = json.loads(command(f"{args} --calibration {CALIBRATION}")[0])
    assert document["output"] is None
    assert not list(tmp_path.iterdir())
    assert accuracy(document) == accuracy(report(small / "safe.report.json"))


def test_same_seed_same_files(command: Run, small: Path, tmp_path: Path) -> None:
    """Model and plan byte for byte, the report but for its times and command line; another seed, other trials."""
    base = f"--flip-rate 0.05 {FAST} --eval {small}/eval.npz --calibration {CALIBRATION}"
    command(f"harden {MODEL} -o {tmp_path}/o.onnx {base}")
    command(f"harden {MODEL} -o {tmp_path}/p.onnx {base} --seed 7")
    assert (tmp_path / "o.onnx").read_bytes() == (small / "safe.onnx").read_bytes()
    assert (tmp_path / "o.plan.json").read_bytes() == (small / "safe.plan.json").read_bytes()
    first, second = report(small / "safe.report.json"), report(tmp_path / "o.report.json")
    for document in (first, second):
        for key in ("created", "command", "inference"):
            document.pop(key)
        document["output"].pop("path")
    assert first == second
    other = accuracy(report(tmp_path / "p.report.json"))
    assert other["clean", False] == accuracy(first)["clean", False]
    assert other["unprotected", True] != accuracy(first)["unprotected", True]


def test_gate(command: Run, small: Path, tmp_path: Path) -> None:
    """Exit 1 and a line that says by how much; the files are written, for whoever wants to look."""
    base = f"--flip-rate 0.2 --method tac --trials 2 --no-html --eval {small}/eval.npz"
    _out, err = command(f"harden {MODEL} -o {tmp_path}/o.onnx {base} --fail-under 0.99", code=1)
    assert "less than --fail-under 0.99" in err
    assert (tmp_path / "o.onnx").is_file()
    command(f"harden {MODEL} -o {tmp_path}/o.onnx {base} --fail-under 0.01")


def test_target_finds_a_budget(command: Run, small: Path, tmp_path: Path) -> None:
    """TAC protects some bits to keep 95 % of clean, and less than everything."""
    args = (
        f"harden {MODEL} -o {tmp_path}/o.onnx --flip-rate 0.05 --method tac --trials 3 --no-html --target 0.95 --json"
    )
    document = json.loads(command(f"{args} --eval {small}/eval.npz --calibration {CALIBRATION}")[0])
    assert 0 < document["storage"]["protected_fraction"] < 0.5
    assert accuracy(document)["hardened", True] >= 0.95 * accuracy(document)["clean", False]


def test_target_out_of_reach(command: Run, small: Path, tmp_path: Path) -> None:
    args = f"harden {MODEL} -o {tmp_path}/o.onnx --flip-rate 0.05 --method tac --bits 2 --trials 2 --target 1 --no-html"
    _out, err = command(f"{args} --eval {small}/eval.npz --calibration {CALIBRATION}", code=1)
    assert "--target 1 cannot be met" in err
    assert not list(tmp_path.iterdir())


def test_include_and_exclude(command: Run, tmp_path: Path) -> None:
    names = [t["name"] for t in json.loads(command(f"inspect {MODEL} --json")[0])["tensors"]]
    base = f"harden {MODEL} --flip-rate 0.05 {FAST} --json -o {tmp_path}/o.onnx"
    kept = json.loads(command(f"{base} --include {names[0]} --include {names[1]} --exclude {names[1]}")[0])
    assert [t["name"] for t in kept["tensors"]] == names[:1]
    reasons = {item["name"]: item["reason"] for item in kept["left_out"]}
    assert reasons[names[1]] == "matched by --exclude"
    assert all(reasons[name] == "not matched by --include" for name in names[2:])


def test_quiet_says_nothing(command: Run, tmp_path: Path) -> None:
    assert command(f"harden {MODEL} -o {tmp_path}/o.onnx --flip-rate 0.05 {FAST} -q") == ("", "")
    assert command(f"verify {tmp_path}/o.onnx --original {MODEL} -q") == ("", "")


@pytest.mark.parametrize("rates", ["--p01 0.02 --p10 0.08", "--plane-rates {d}/r.csv", "--flip-rate 0.01 --margin 4"])
def test_other_fault_models(rates: str, command: Run, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("p01,p10\n" + "".join(f"{0.001 * (8 - k)},0.01\n" for k in range(8)))
    given = rates.replace("{d}", str(tmp_path))
    document = json.loads(command(f"harden {MODEL} -o {tmp_path}/o.onnx {given} {FAST} --json")[0])
    expected = {"--p01": [0.02] * 8, "--plane": [0.001 * (8 - k) for k in range(8)], "--flip": [0.04] * 8}
    wanted = next(values for key, values in expected.items() if rates.startswith(key))
    assert document["fault_model"]["p01"][:8] == pytest.approx(wanted)
    command(f"verify {tmp_path}/o.onnx --original {MODEL}")
    assert command(f"inject {tmp_path}/o.onnx -o {tmp_path}/f.onnx {given} -q") == ("", "")


def test_verify_passes_and_says_what_it_saw(command: Run, small: Path) -> None:
    out, _err = command(f"verify {small}/safe.onnx --original {MODEL} --calibration {CALIBRATION}")
    assert [line.split()[0] for line in out.splitlines()] == ["ok"] * 6
    document = json.loads(command(f"verify {small}/safe.onnx --original {MODEL} --json")[0])
    assert document["passed"]
    assert len(document["checks"]) == 6


def test_inject_plain_and_hardened(command: Run, small: Path, tmp_path: Path) -> None:
    with np.load(small / "eval.npz") as data:
        feeds = {name: data[name][:16] for name in data.files if name != "labels"}
    for source, planes in ((MODEL, 8), (small / "safe.onnx", 8)):
        document = json.loads(command(f"inject {source} -o {tmp_path}/f.onnx --flip-rate 0.1 --json")[0])
        assert Path(document["operator_library"]).is_file()
        proto = onnx.load(tmp_path / "f.onnx")
        assert document["tensors"] == sum(node.op_type == "FaultInject" for node in proto.graph.node)
        default = run(proto, feeds, fault_options())[0]
        assert default.tobytes() == run(proto, feeds | rates_feed(0.1, 0, planes), fault_options())[0].tobytes()
        assert default.tobytes() != run(proto, feeds | rates_feed(0.1, 1, planes), fault_options())[0].tobytes()


def test_evaluate_sweeps_plain_and_hardened(command: Run, small: Path, tmp_path: Path) -> None:
    args = f"evaluate {MODEL} {small}/safe.onnx --flip-rate 0,0.05 --eval {small}/eval.npz --trials 3"
    document = json.loads(command(f"{args} --json -o {tmp_path}/r.json")[0])
    assert json.loads((tmp_path / "r.json").read_text()) == document
    plain, hardened = (
        {(r["variant"], r["flip_rate"]): r["mean"] for r in model["evaluation"]["results"]}
        for model in document["models"]
    )
    same = accuracy(report(small / "safe.report.json"))  # the same seeds give the same figures as harden did
    assert plain["unprotected", 0.05] == same["unprotected", True]
    assert hardened["hardened", 0.05] == same["hardened", True]
    assert plain["unprotected", 0.0] == plain["quantized", 0.0] == same["quantized", False]
    assert document["warnings"] == []


def test_evaluate_without_data_says_so(command: Run) -> None:
    out, err = command(f"evaluate {MODEL} --flip-rate 0.01 --trials 2 --bits 6")
    assert "agreement" in out
    assert "synthetic inputs is a rough stand-in" in err


def test_evaluate_over_retention(command: Run, small: Path) -> None:
    devices = json.loads(command("device list --json")[0])
    name = next(iter(devices if isinstance(devices, dict) else (d["name"] for d in devices)), None)
    if isinstance(devices, dict) and "devices" in devices:
        name = devices["devices"][0]["name"]
    out = command(f"evaluate {MODEL} --device {name} --retention 1us,1ms --eval {small}/eval.npz --trials 2 --json")[0]
    faulty = [r for r in json.loads(out)["models"][0]["evaluation"]["results"] if r["variant"] == "unprotected"]
    assert [r["label"] for r in faulty] == ["1us", "1ms"]
    assert faulty[0]["flip_rate"] <= faulty[1]["flip_rate"]


def test_inspect_lists_ranges_and_reasons(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # narrow tables fold names
    document = json.loads(command(f"inspect {MODEL} --json --sensitivity --calibration {CALIBRATION}")[0])
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(MODEL).graph.initializer}
    for tensor in document["tensors"]:
        values = constants[tensor["name"]]
        assert tensor["shape"] == list(values.shape)
        assert tensor["max_abs"] == pytest.approx(float(np.abs(values).max()))
        assert tensor["rms"] == pytest.approx(float(np.sqrt((values.astype(np.float64) ** 2).mean())))
        assert tensor["sensitivity"] > 0
    assert document["sha256"] == file_sha256(MODEL)
    assert {item["name"] for item in document["left_out"]} == set(constants) - {t["name"] for t in document["tensors"]}
    out, _err = command(f"inspect {MODEL}")
    for tensor in document["tensors"]:
        assert tensor["name"] in out


def test_inspect_says_that_a_model_is_hardened(command: Run, small: Path) -> None:
    assert "hardened already" in command(f"inspect {small}/safe.onnx")[1]


def test_a_plan_of_another_model_fails(command: Run, small: Path, tmp_path: Path) -> None:
    for name in ("safe.onnx", "safe.plan.json"):
        shutil.copy(small / name, tmp_path / name)
    plan = (tmp_path / "safe.plan.json").read_text()
    (tmp_path / "safe.plan.json").write_text(plan.replace('"stream": 0', '"stream": 9'))
    assert "plan" in command(f"verify {tmp_path}/safe.onnx --original {MODEL}", code=1)[1]
    assert (
        "is not the plan of" in command(f"inject {tmp_path}/safe.onnx -o {tmp_path}/f.onnx --flip-rate 0.1", code=2)[1]
    )


def test_help_and_version(command: Run) -> None:
    assert command("--version")[0].startswith("qtaml-onnx ")
    for name in ("harden", "inject", "evaluate", "inspect", "verify", "report", "device"):
        assert "Usage" in command(f"{name} --help")[0]
