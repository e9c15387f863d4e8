"""Fault models from options: exactly one, in range, and every refusal says how to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_model import fault_model, sweep_models


def test_one_of_each(tmp_path: Path) -> None:
    assert fault_model(bits=8, flip_rate=0.1).p01 == (0.1,) * 8
    pair = fault_model(bits=4, p01=0.1, p10=0.0)
    assert (pair.p01, pair.p10) == ((0.1,) * 4, (0.0,) * 4)
    table = tmp_path / "r.csv"
    table.write_text("p01,p10\n" + "".join(f"0.0{k},0.1\n" for k in range(8)))
    assert fault_model(bits=8, plane_rates=table).p01 == tuple(k / 100 for k in range(8))
    assert fault_model(bits=8, flip_rate=0.01, margin=3).p10 == pytest.approx((0.03,) * 8)
    assert fault_model(bits=8, flip_rate=0.01, margin=3).margin == 3
    assert [model.p01[0] for model in sweep_models("0, 0.05,0.1", 8)] == [0, 0.05, 0.1]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({}, "no fault model; give one of --flip-rate P"),
        ({"flip_rate": 0.1, "p01": 0.1, "p10": 0.1}, "--flip-rate and --p01/--p10 exclude each other"),
        ({"flip_rate": 0.1, "device": "x"}, "--flip-rate and --device exclude each other"),
        ({"flip_rate": 1.0}, "--flip-rate 1 is outside"),
        ({"flip_rate": -0.1}, "--flip-rate -0.1 is outside"),
        ({"flip_rate": float("nan")}, "--flip-rate nan is outside"),
        ({"flip_rate": float("inf")}, "--flip-rate inf is outside"),
        ({"p01": 0.1}, "go together"),
        ({"p10": 0.1}, "go together"),
        ({"p01": 0.1, "p10": 1.5}, "--p10 1.5 is outside"),
        ({"flip_rate": 0.1, "margin": 0}, "--margin 0 is not a positive number"),
        ({"flip_rate": 0.1, "margin": float("nan")}, "--margin nan"),
        ({"flip_rate": 0.5, "margin": 3}, "0, 1"),
        ({"flip_rate": 0.1, "retention_s": 3.0}, "--retention needs --device"),
        ({"plane_rates": Path("missing.csv")}, "missing.csv"),
        ({"device": "no-such-device"}, "no-such-device"),
    ],
)
def test_refusals(options: dict[str, object], part: str) -> None:
    with pytest.raises(InputError, match=part) as caught:
        fault_model(bits=8, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_too_few_planes(tmp_path: Path) -> None:
    table = tmp_path / "r.csv"
    table.write_text("0.1,0.1\n" * 4)
    with pytest.raises(InputError, match="has 4 planes, the stored words have 8; add rows"):
        fault_model(bits=8, plane_rates=table)


def test_sweeps_refuse_what_is_no_rate() -> None:
    for text, part in (("0.1,x", "'x' is not a number"), ("0.1,,0.2", "'' is not a number"), ("0.1,2", "2 is outside")):
        with pytest.raises(InputError, match=part):
            sweep_models(text, 8)
