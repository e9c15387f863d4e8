"""Stores small models by a plan, and runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.methods import METHODS
from qtaml_onnx.modelio import SourceModel
from qtaml_onnx.plan import FaultModel, StoragePlan
from qtaml_onnx.planner import Planner, prepare
from qtaml_onnx.runtime import library_path
from qtaml_onnx.verification import comparison_options

Array = NDArray[Any]


@dataclass(frozen=True)
class Stored:
    """A model with its weights stored: the folded source, the plan, the hardened and the instrumented model."""

    source: SourceModel
    plan: StoragePlan
    hardened: ir.Model
    faulty: ir.Model


def source_model(proto: onnx.ModelProto) -> SourceModel:
    return SourceModel(Path("small.onnx"), "0" * 64, ir.from_proto(proto))


def store(
    proto: onnx.ModelProto, method: str = "posterior-mean", rate: float = 0.05, budget: float = 0.0, bits: int = 8
) -> Stored:
    source = source_model(proto)
    rates = FlipRates.uniform(rate, 8)
    planner = Planner(source, prepare(source), FaultModel(p01=rates.p01, p10=rates.p10), bits=bits)
    plan = planner.within_budget(METHODS[method], budget)
    return Stored(source, plan, *carry_out(source, plan))


def run(model: onnx.ModelProto, feeds: Mapping[str, Array], options: ort.SessionOptions | None = None) -> list[Array]:
    """Outputs in stock onnxruntime: no library registered unless `options` has it."""
    if options is None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, dict(feeds))]


def float_options() -> ort.SessionOptions:
    """Stock options, but for integer weights: they are read as floats, as the model says."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def fault_options() -> ort.SessionOptions:
    """Options of exact comparison that know the fault operator."""
    options = comparison_options()
    options.register_custom_ops_library(str(library_path()))
    return options


def rates_feed(rate: float, seed: int = 0, planes: int = 8) -> dict[str, Array]:
    return {
        "qtaml_seed": np.asarray(seed, dtype=np.int64),
        "qtaml_flip_rates": np.full((2, planes), rate, dtype=np.float32),
    }


def optimised(model: onnx.ModelProto, folder: Path, level: str = "basic", **entries: str) -> onnx.ModelProto:
    """What onnxruntime makes of a model at load."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = {
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    }[level]
    for key, value in entries.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath)
