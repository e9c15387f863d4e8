"""`harden --granularity channel` as a user runs it, and every command on what it makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from digits_example import CALIBRATION, MODEL, first_samples

from qtaml_onnx.cli import main
from qtaml_onnx.errors import InputError
from qtaml_onnx.options import HardenOptions
from qtaml_onnx.plan import read_plan
from qtaml_onnx.report import render_html
from qtaml_onnx.report.schema import json_schema, read_report


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 100 evaluation samples and a model hardened by output channel."""
    folder = tmp_path_factory.mktemp("channels")
    first_samples(folder / "eval.npz", 100)
    args = f"harden {MODEL} -o {folder}/safe.onnx --flip-rate 0.05 --method posterior-mean --budget 0.15 --trials 2 -q"
    more = f"--granularity channel --eval {folder}/eval.npz --calibration {CALIBRATION} --no-sweep --include-small"
    assert main([*args.split(), *more.split()]) == 0
    return folder


def report(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "safe.report.json").read_text())
    jsonschema.validate(document, json_schema())
    return document


def test_report_has_an_entry_a_part(made: Path) -> None:
    document, plan = report(made), read_plan(made / "safe.plan.json")
    parts = [tensor for tensor in document["tensors"] if tensor["channels"] is not None]
    assert len(parts) >= 2
    assert len(document["tensors"]) == len(plan.tensors) > plan.tensor_count
    for section, tensor in zip(document["tensors"], plan.tensors, strict=True):
        assert section["name"] == tensor.name
        assert section["channels"] == (list(tensor.part.channels) if tensor.part is not None else None)
        assert section["protected_planes"] == list(tensor.protected_planes)
        assert section["shape"] == list(tensor.shape)
        assert section["bias_correction"]
    storage = document["storage"]
    protected = sum(len(t["protected_planes"]) * int(np.prod(t["shape"])) for t in document["tensors"])
    assert storage["protected_bits"] == protected <= 0.15 * storage["weight_bits"]
    assert storage["weights"] == sum(int(np.prod(t["shape"])) for t in document["tensors"])
    energies = [t.noise * t.sensitivity for t in plan.tensors if t.sensitivity is not None]
    assert plan.noise_energy == pytest.approx(sum(energies))


def test_page_shows_the_parts(made: Path) -> None:
    page = (made / "safe.report.html").read_text()
    again = render_html(read_report(made / "safe.report.json"), read_plan(made / "safe.plan.json"))
    for section in report(made)["tensors"]:
        if section["channels"] is not None:
            assert f"{len(section['channels'])} of its channels" in page
    assert "stored in parts: groups of output channels" in page
    assert again.count("of its channels") == page.count("of its channels")


def test_verify_evaluate_inject_and_summary(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = read_plan(made / "safe.plan.json")
    assert main(f"verify {made}/safe.onnx --original {MODEL}".split()) == 0
    assert f"{plan.tensor_count} tensors" in capsys.readouterr().out
    args = f"evaluate {made}/safe.onnx --flip-rate 0.05 --eval {made}/eval.npz --trials 2 --json -q"
    assert main(args.split()) == 0
    results = json.loads(capsys.readouterr().out)["models"][0]["evaluation"]["results"]
    measured = [r for r in report(made)["evaluation"]["results"] if r["variant"] == "hardened" and r["flip_rate"]]
    assert [r["mean"] for r in results if r["flip_rate"] == 0.05] == [r["mean"] for r in measured]
    assert main(f"inject {made}/safe.onnx -o {made}/faulty.onnx --flip-rate 0.05 --json -q".split()) == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == plan.tensor_count
    assert main(f"report {made}/safe.report.json".split()) == 0
    assert f"{plan.tensor_count} tensors in {len(plan.tensors)} parts" in capsys.readouterr().out


def test_images_hold_every_part_and_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = f"harden {MODEL} -o {tmp_path}/s.onnx --flip-rate 0.05 --method magnitude --budget 0.2 --no-html -q"
    assert main([*args.split(), "--granularity", "channel"]) == 0
    capsys.readouterr()
    plan = read_plan(tmp_path / "s.plan.json")
    assert main(f"export-image {tmp_path}/s.onnx -o {tmp_path}/image --json".split()) == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == plan.tensor_count
    assert main(f"import-image {tmp_path}/image --model {tmp_path}/s.onnx -o {tmp_path}/r.onnx --json".split()) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["wrong_words"], summary["words"]) == (0, sum(tensor.size for tensor in plan.tensors))


def test_without_data_channels_go_by_synthetic_inputs(tmp_path: Path) -> None:
    args = f"harden {MODEL} -o {tmp_path}/s.onnx --flip-rate 0.05 --method tac --budget 0.2 --no-html -q --sensitivity"
    plans = []
    for how in ("probe", "magnitude"):
        assert main([*args.split(), how, "--granularity", "channel"]) == 0
        plans.append(read_plan(tmp_path / "s.plan.json"))
        assert len(plans[-1].tensors) > plans[-1].tensor_count
    assert plans[0] != plans[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"granularity": "row"}, "unknown --granularity 'row'; choose from tensor, channel"),
        ({"granularity": "channel", "method": "uniform-msp"}, "uniform-msp protects the same planes everywhere"),
        ({"granularity": "channel", "method": "none"}, "none protects nothing"),
    ],
)
def test_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        HardenOptions(**options).check(False)  # type: ignore[arg-type]
