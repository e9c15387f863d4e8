"""Reports and plans for the tests of the report package."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.plan import FaultModel, StoragePlan
from qtaml_onnx.plan_values import CodeSpec
from qtaml_onnx.report.schema import (
    Calibration,
    Difference,
    Environment,
    Evaluation,
    EvaluationResult,
    FaultModelSection,
    Gate,
    Inference,
    IntervalSection,
    LeftOutSection,
    MethodResult,
    NamedCode,
    Output,
    Prediction,
    Report,
    SmallSection,
    SmallTensorSection,
    Source,
    Storage,
    Sweep,
    TensorSection,
    Tool,
    read_report,
)
from qtaml_onnx.storage.codes import uniform_code
from qtaml_onnx.storage.readout import bitwise_affine, restored_posterior_mean, word_sums
from qtaml_onnx.tensor_plan import TensorPlan

MakeReport = Callable[..., Report]
FIXTURES = Path(__file__).with_name("fixtures")


def result(variant: str, rate: float, mean: float, half: float, **more: Any) -> EvaluationResult:
    ends = {"ci_low": max(0.0, mean - half), "ci_high": min(1.0, mean + half)}
    fixed = {"trials": 1, "interval": "wilson"} if rate == 0 else {"trials": 20, "interval": "t"}
    values = {"values": [mean + half * (2 * i / 19 - 1) for i in range(20)] if rate else [mean]}
    return EvaluationResult.model_validate(
        {"variant": variant, "flip_rate": rate, "mean": mean, **ends, **fixed, **values, **more}
    )


CERTAIN = [result("clean", 0.0, 0.98657718, 0.011), result("quantized", 0.0, 0.985, 0.012)]
ONE_RATE = [*CERTAIN, result("unprotected", 0.1, 0.1532, 0.03), result("hardened", 0.1, 0.95234899, 0.00731)]
SWEEP = [
    *CERTAIN,
    *(result("unprotected", rate, mean, 0.04) for rate, mean in ((0.01, 0.71), (0.05, 0.33), (0.1, 0.1532))),
    *(result("hardened", rate, mean, 0.01) for rate, mean in ((0.01, 0.981), (0.05, 0.975), (0.1, 0.952))),
]


def frontier() -> list[MethodResult]:
    """Two methods at three budgets each."""
    return [
        MethodResult(
            method=method,
            protected_fraction=budget,
            bits_per_weight=8.1 + budget / 3,
            mean=0.9 - fall * (0.5 - budget),
            ci_low=0.85 - fall * (0.5 - budget),
            ci_high=0.93 - fall * (0.5 - budget),
            trials=4,
            noise_energy=None if method == "magnitude" else 0.07 * (1 - budget),
        )
        for method, fall in (("posterior-mean", 0.1), ("uniform-msp", 1.2), ("magnitude", 1.0), ("new <one>", 0.5))
        for budget in (0.0, 0.125, 0.5)
    ]


def tensor(index: int, name: str | None = None, **more: Any) -> TensorSection:
    values: dict[str, Any] = {
        "name": f"layers.{index}.weight" if name is None else name,
        "op_type": "Conv",
        "shape": [16, 8 + index % 5, 3, 3],
        "bits": 8,
        "code": "twos-complement",
        "readout": "restored-posterior-mean",
        "bias_correction": index % 2 == 0,
        "protected_planes": list(range(8 - index % 4, 8)),
        "sensitivity": math.pi * 10.0 ** (index % 7 - 4),
        "noise_to_signal_db": -23.456789 + index % 11,
        "plain_flips": [0.01234567 * 2**k for k in range(8)],
        "stored_flips": [0.1234567 + 0.01 * (k + index) for k in range(more.get("bits", 8))],
        "words_used": 16 + index,
    }
    return TensorSection.model_validate(values | more)


OUTCOMES = {
    name: IntervalSection(mean=mean, ci_low=mean * 0.9, ci_high=min(1.0, mean * 1.1 + 0.001), interval="t")
    for name, mean in (("masked", 0.0125), ("tolerable", 0.95123), ("critical", 0.03627), ("detected", 0.0))
}


def evaluation(results: list[EvaluationResult], metric: str = "top-1", **more: Any) -> Evaluation:
    values: dict[str, Any] = {
        "metric": metric, "data": "digits_eval.npz", "samples": 596, "trials": 20, "seed": 7, "confidence": 0.95,
        "results": results, "data_sha256": "c2" * 32,
    }  # fmt: skip
    return Evaluation(**(values | more))


def build(
    tensors: int | list[TensorSection] = 6, results: list[EvaluationResult] | None = ONE_RATE, **more: Any
) -> Report:
    sections = [tensor(i) for i in range(tensors)] if isinstance(tensors, int) else tensors
    weights = sum(math.prod(t.shape) for t in sections)
    protected = sum(math.prod(t.shape) * len(t.protected_planes) for t in sections)
    bits = sum(math.prod(t.shape) * t.bits for t in sections)
    values: dict[str, Any] = {
        "tool": Tool(version="0.1.0"),
        "created": "2026-01-02T03:04:05+00:00",
        "command": "qtaml-onnx harden digits_cnn.onnx -o out.onnx --flip-rate 0.1 --seed 7",
        "source": Source(
            path="models/digits_cnn.onnx", sha256="0a" * 32, opset=17, ir_version=8, parameters=weights + 90
        ),
        "output": Output(path="out.onnx", sha256="b1" * 32),
        "fault_model": FaultModelSection(p01=[0.1] * 8, p10=[0.1] * 8),
        "method": "posterior-mean",
        "storage": Storage(
            weights=weights,
            weight_bits=bits,
            protected_bits=protected,
            protected_fraction=protected / bits if bits else 0.0,
            parity_bits=0,
            metadata_bits=12345,
            bits_per_weight=(bits + 12345) / weights if weights else 0.0,
            protection="ideal",
        ),
        "tensors": sections,
        "left_out": [LeftOutSection(name="stem.bias", reason="bias of Conv: kept in safe storage")],
        "prediction": Prediction(noise_energy=0.031712345, saturation_ratio=4.2112345, saturation_level=0.08),
        "evaluation": None if results is None else evaluation(results),
        "environment": Environment(
            onnxruntime="1.31.1", numpy="2.3.1", cpu="x86-64", session_options={"graph_optimization_level": "extended"}
        ),
    }
    return Report(**(values | more))


DEVICE = {
    "name": "thin oxide",
    "oxide": {"thickness_nm": 1.5, "barrier_ev": 3.1},
    "a/b~c": [1, "two", None, True],
    "note": {},
}

REPORTS: dict[str, Callable[[], Report]] = {
    "one rate": build,
    "sweep": lambda: build(results=SWEEP, warnings=["no --calibration: synthetic inputs", "second <warning>"]),
    "one tensor": lambda: build(1),
    "300 tensors": lambda: build(300),
    "no tensor": lambda: build(0, None),
    "no evaluation": lambda: build(results=None),
    "empty evaluation": lambda: build(results=[]),
    "nothing predicted": lambda: build(
        [tensor(0, sensitivity=None, noise_to_signal_db=None), tensor(1, sensitivity=0.0, noise_to_signal_db=None)],
        None,
        prediction=Prediction(noise_energy=None, saturation_ratio=None),
    ),
    "clean alone": lambda: build(results=CERTAIN[:1]),
    "clean is never right": lambda: build(results=[result("clean", 0.0, 0.0, 0.1), result("hardened", 0.1, 0.1, 0.1)]),
    "unprotected alone": lambda: build(results=[result("unprotected", 0.1, 0.4, 0.1)]),
    "single trial": lambda: build(results=[CERTAIN[0], result("hardened", 0.1, 0.9, 1.0, trials=1)]),
    "device": lambda: build(
        results=[r if r.flip_rate == 0 else r.model_copy(update={"label": f"{r.flip_rate * 100:g} h"}) for r in SWEEP],
        fault_model=FaultModelSection(
            p01=[0.001 * k for k in range(1, 9)], p10=[0.0125 * k for k in range(1, 9)], device=DEVICE, margin=1.25
        ),
    ),
    "dry run": lambda: build(output=None, command=None, left_out=[]),
    "small tensors": lambda: build(
        small=SmallSection(
            copies=11,
            residual_rate=7.25e-6,
            tensors=[
                SmallTensorSection(name="stem.bias", role="bias of Conv", dtype="FLOAT", shape=[16]),
                SmallTensorSection(name="factor", role="input 1 of Mul", dtype="FLOAT16", shape=[]),
            ],
        ),
        left_out=[],
    ),
    "outcomes and differences": lambda: build(
        evaluation=evaluation(
            [*ONE_RATE[:-1], ONE_RATE[-1].model_copy(update={"outcomes": OUTCOMES, "stopped": "trials"})],
            differences=[
                Difference(
                    first="unprotected",
                    second="hardened",
                    flip_rate=0.1,
                    mean=0.79914899,
                    ci_low=0.7801,
                    ci_high=0.8182,
                    interval="t",
                    pairs=20,
                )
            ],
        )
    ),
    "words of many lengths": lambda: build([tensor(i, bits=1 + i, protected_planes=[i]) for i in range(12)]),
    "sweep beside the campaign": lambda: build(
        evaluation=evaluation(ONE_RATE, sweep=Sweep(samples=100, trials=5, results=SWEEP))
    ),
    "sweep over times": lambda: build(
        fault_model=FaultModelSection(
            p01=[0.05] * 8, p10=[0.05] * 8, device={"name": "d", "conditions": {"retention": {"value": 3600.0}}}
        ),
        evaluation=evaluation(
            ONE_RATE,
            sweep=Sweep(
                samples=100,
                trials=5,
                results=[
                    r if r.flip_rate == 0 else r.model_copy(update={"label": "t", "retention_s": 72e3 * r.flip_rate})
                    for r in SWEEP
                ],
            ),
        ),
    ),
    "methods": lambda: build(
        evaluation=evaluation(ONE_RATE, comparison=frontier()[:2], frontier=frontier(), frontier_samples=77)
    ),
    "methods that predict nothing": lambda: build(
        evaluation=evaluation(
            ONE_RATE,
            comparison=frontier()[6:7],
            frontier=[p.model_copy(update={"protected_fraction": 0.0}) for p in frontier()[6:7]],
        )
    ),
    "everything": lambda: build(
        calibration=Calibration(data="calibration.npz", sha256="d3" * 32, samples=197),
        inference=Inference(
            batch=1,
            runs=101,
            threads=1,
            original_ms=0.03712345,
            hardened_ms=0.03734567,
            ratio=1.0061234,
            ratio_low=0.9961234,
            ratio_high=1.0161234,
            confidence=0.9539559,
        ),
        gate=Gate(fail_under=0.9, kept=0.96543, met=True),
        prediction=Prediction(noise_energy=0.03, saturation_ratio=None, saturation_note="words of several lengths"),
    ),
    "gate failed": lambda: build(gate=Gate(fail_under=0.99, kept=0.96543, met=False)),
    "in a named code": lambda: build(
        storage=Storage(
            weights=100,
            weight_bits=800,
            protected_bits=100,
            protected_fraction=0.125,
            parity_bits=0,
            metadata_bits=32,
            bits_per_weight=8.32,
            protection="ideal",
            named_code=NamedCode(name="ldpc-3-5", residual_rate=3.21e-6, parity_bits=150, bits_per_weight=9.82),
        )
    ),
    "version 1": lambda: read_report(FIXTURES / "version-1.report.json"),
    "energy metric": lambda: build(
        evaluation=evaluation(
            [result("clean", 0.0, 0.0, 0.0, ci_high=0.0), result("hardened", 0.1, 12.345678, 0.5, ci_high=13.0)], "mse"
        )
    ),
    "other metric": lambda: build(evaluation=evaluation(ONE_RATE, "agreement-5-percent")),
}


def _tensor_plan(index: int, section: TensorSection) -> TensorPlan:
    rng = np.random.default_rng(index)
    x = np.clip(rng.normal(0, 0.3, 4000), -1, 1).astype(np.float32)
    code = uniform_code("twos-complement", section.bits)
    rates = FlipRates.uniform(0.1, section.bits)
    sums = word_sums(code, x)
    values: dict[str, Any] = {
        "name": section.name,
        "op_type": section.op_type,
        "dtype": "FLOAT",
        "shape": tuple(section.shape),
        "channel_axis": 0,
        "code": CodeSpec.of(code),
        "weight_scales": tuple(0.5 + 0.1 * c for c in range(section.shape[0])),
        "protected_planes": tuple(section.protected_planes),
        "stream": index,
        "sensitivity": section.sensitivity,
        "noise": 0.01,
        "signal": 0.09,
    }
    if index % 2 or section.bits != 8:
        table = restored_posterior_mean(code, rates, sums).table
        form = {"form": "table", "words_type": "UINT8" if section.bits <= 8 else "UINT16", "table": tuple(table)}
        return TensorPlan.model_validate(
            values | form | {"scales": values["weight_scales"], "readout": "restored-posterior-mean"}
        )
    table = bitwise_affine(code, rates, sums).table  # a line in the words of two's complement
    slope = (table[127] - table[128]) / 255
    scales = tuple(slope * s for s in values["weight_scales"])
    form = {"form": "affine", "words_type": "INT8", "scales": scales, "offset": -table[0] / slope}
    return TensorPlan.model_validate(values | form | {"readout": "bitwise-affine"})


def plan_of(report: Report) -> StoragePlan:
    return StoragePlan(
        source_sha256=report.source.sha256,
        method=report.method,
        fault_model=FaultModel(p01=(0.1,) * 16, p10=(0.1,) * 16),
        tensors=tuple(_tensor_plan(i, t) for i, t in enumerate(report.tensors)),
    )
