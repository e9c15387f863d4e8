"""Real models that are too large for the repository, from a folder `shared` beside it; skipped where it is absent."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import ROOT, load_script

from qtaml_onnx.cli import main

SHARED = ROOT.parent / "shared"
MODELS = sorted(SHARED.glob("models/**/*.onnx"))

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"no folder {SHARED}: real models are NOT tested"),
]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_public_models_harden_and_verify(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = f"harden {path} -o {tmp_path}/o.onnx --flip-rate 0.05 --method posterior-mean --no-html --json"
    assert main(args.split()) == 0, capsys.readouterr().err
    document = json.loads(capsys.readouterr().out)
    assert document["tensors"]
    assert main(f"verify {tmp_path}/o.onnx --original {path}".split()) == 0, capsys.readouterr().out


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 500 evaluation images."""
    path = tmp_path_factory.mktemp("cifar10") / "eval.npz"
    with np.load(SHARED / "data" / "cifar10_eval.npz") as data:
        np.savez(path, **{name: data[name][:500] for name in data.files})
    return path


def kept(images: Path, folder: Path, capsys: pytest.CaptureFixture[str], options: str) -> float:
    """Share of the clean accuracy that the hardened vgg keeps at a flip rate of 0.10, 4 trials."""
    model, calibration = SHARED / "zoo" / "vgg.onnx", SHARED / "data" / "cifar10_calibration.npz"
    args = f"harden {model} -o {folder}/o.onnx --flip-rate 0.10 --trials 4 --no-html --json {options}"
    assert main([*args.split(), "--eval", str(images), "--calibration", str(calibration)]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    mean = {(r["variant"], r["flip_rate"] > 0): r["mean"] for r in document["evaluation"]["results"]}
    return float(mean["hardened", True] / mean["clean", False])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "enough"),
    [
        ("--method tac --budget 0.22", True),
        ("--method uniform-msp --budget 0.25", False),
        ("--method uniform-msp --budget 0.50", True),
    ],
)
def test_overhead_on_vgg(
    options: str, enough: bool, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sensitivity allocation keeps 95 % of clean with 22 % of the bits protected; uniform planes need twice as many."""
    assert (kept(images, tmp_path, capsys, options) >= 0.95) == enough


@pytest.mark.slow
def test_really_decoded_images_keep_what_campaigns_state(tmp_path: Path) -> None:
    """vgg at 8 bits a weight, all in, behind an LDPC code: two chips with every bit flipped at 0.10, then decoded."""
    script = load_script(ROOT / "benchmarks" / "real_codes.py")
    options = argparse.Namespace(keep=None, images=500, trials=4, chips=2)
    row = script.measure("vgg", "ldpc-3-5", 0.10, options, tmp_path)
    assert row["bits_per_weight"] <= 8
    assert row["campaign"]["mean"] >= 0.95 * row["clean"]
    for chip in row["chips"]:
        # A code word that fails leaves some 250 wrong bits at once, which the campaign spreads over all images.
        assert chip["decoded"] >= row["campaign"]["mean"] - 0.03
        assert chip["wrong"] <= 500 * max(chip["failed"], 1)
