"""The CIFAR-10 networks by onnxruntime's static quantisation: hardened like in floats, on integer operators."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir
import pytest
from scripts import ROOT, load_script

SHARED = ROOT.parent / "shared"

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"no folder {SHARED}: the quantised networks are NOT tested"),
]
TRIALS, IMAGES = 4, 300
INTEGER_OPERATORS = {"vgg": 8, "resnet20": 22, "vit": 20}
"""Layers with weights, and the products of activations in vit: QLinearConv, QLinearMatMul and QGemm."""


@cache
def benchmark() -> ModuleType:
    """The script that measures quantised models."""
    return load_script(ROOT / "benchmarks" / "quantized.py")


@cache
def floats(network: str, rate: float) -> dict[str, Any]:
    """What the float network keeps."""
    path = SHARED / "zoo" / f"{network}.onnx"
    script = benchmark()
    row: dict[str, Any] = script.kept(path, rate, script.evaluation(path, IMAGES), TRIALS)[0]
    return row


@pytest.mark.parametrize(
    ("network", "form", "rate"),
    [
        ("vgg", "qdq-channel", 0.05),
        ("vgg", "qdq-channel", 0.10),
        ("vgg", "qdq-tensor", 0.10),
        ("vgg", "qoperator-tensor", 0.10),
        ("resnet20", "qdq-channel", 0.05),
        ("resnet20", "qdq-channel", 0.10),
        ("vit", "qdq-channel", 0.05),
        ("vit", "qdq-channel", 0.10),
    ],
)
def test_as_good_as_the_float_path_and_integer(network: str, form: str, rate: float, tmp_path: Path) -> None:
    """The 95 % intervals of what is kept meet, or the quantised one is above; the optimised graphs are the same."""
    script = benchmark()
    path = script.quantised(network, form, tmp_path)
    row, result = script.kept(path, rate, script.evaluation(path, IMAGES), TRIALS)
    assert row["high"] >= floats(network, rate)["low"], (row, floats(network, rate))
    assert row["kept"] > row["unprotected"] + 0.3
    before, after = script.nodes(path.read_bytes()), script.nodes(ir.to_proto(result.model).SerializeToString())
    assert before == after
    assert sum(after[name] for name in ("QLinearConv", "QLinearMatMul", "QGemm")) == INTEGER_OPERATORS[network]
