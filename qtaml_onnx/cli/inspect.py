"""`qtaml-onnx inspect`: what is stored where."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from qtaml_onnx.cli import options as o
from qtaml_onnx.cli.show import TerminalProgress, console, print_warnings
from qtaml_onnx.data import input_specs, load_dataset, synthetic_dataset
from qtaml_onnx.methods import METHODS
from qtaml_onnx.modelio import load_model
from qtaml_onnx.passes.fold_weights import FoldWeights
from qtaml_onnx.plan import FaultModel
from qtaml_onnx.planner import Planner
from qtaml_onnx.sensitivity import measure_sensitivity
from qtaml_onnx.storage.tensor import channel_scales, mean_square
from qtaml_onnx.tensors import TensorData
from qtaml_onnx.textio import printable
from qtaml_onnx.weights import find_weights

__all__ = ["inspect"]

_PROBES = 3
_METHOD = METHODS["posterior-mean"]
"""What is probed with its scales is what the table shows."""


def inspect(
    model: o.ModelPath,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Probe how much noise in each tensor matters at the outputs.")
    ] = False,
    include: o.Include = None,
    exclude: o.Exclude = None,
    calibration: o.Calibration = None,
    seed: o.Seed = 0,
    json: o.Json = False,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:
    """List the weights, their ranges, and what is left out and why.

    Example: qtaml-onnx inspect net.onnx --sensitivity --calibration train.npz
    """
    o.set_verbosity(verbose, quiet)
    source = load_model(model)
    FoldWeights()(source.model)
    inventory = find_weights(source.model).select(include, exclude)
    planner = Planner(source, inventory, FaultModel(p01=(0.0,) * 8, p10=(0.0,) * 8))
    warnings = list(source.warnings)
    if source.hardened or source.instrumented:
        warnings.append(
            "the model is hardened already: shown are its weights as read, its plan says how they are stored"
        )
    if (sensitivity or calibration is not None) and planner.tensors:
        specs = input_specs(source.model)
        if calibration is not None:
            data = load_dataset(calibration, specs, "--calibration").head(128)
        else:
            data = synthetic_dataset(specs, 8, seed)
            warnings.append("no calibration data: sensitivity is measured on synthetic inputs; give --calibration")
        with TerminalProgress(quiet or json).steps("probe sensitivity", _PROBES * len(planner.tensors)) as step:
            planner.sensitivity = measure_sensitivity(
                source.model, planner.probe_weights(_METHOD), data, probes=_PROBES, seed=seed, progress=step
            )
    energy = planner.sensitivity.energy if planner.sensitivity else {}
    rows = [
        {
            "name": tensor.weight.name,
            "op_type": tensor.weight.op_type,
            "shape": list(tensor.weight.shape),
            "dtype": tensor.weight.dtype.name,
            "weights": tensor.weight.size,
            "max_abs": _largest(tensor),
            "rms": _rms(tensor),
            "channels": int(scales.size),
            "channel_range": [float(scales.min()), float(scales.max())],
            "sensitivity": energy.get(tensor.weight.name),
        }
        for tensor, scales in ((tensor, _scales(tensor)) for tensor in planner.tensors)
    ]
    left_out = [{"name": item.name, "reason": item.reason} for item in inventory.left_out]
    print_warnings(warnings, quiet)
    if json:
        print(
            o.to_json(
                {
                    "path": str(model),
                    "sha256": source.sha256,
                    "opset": source.opset,
                    "ir_version": source.model.ir_version,
                    "tensors": rows,
                    "left_out": left_out,
                    "warnings": warnings,
                }
            )
        )
        return
    out = console()
    out.print(_table(planner, energy), markup=False)
    out.print(f"{len(rows)} tensors, {sum(t.weight.size for t in planner.tensors)} weights; left out: {len(left_out)}")
    for item in left_out:
        out.print(printable(f"  {item['name']}: {item['reason']}"), markup=False)


def _table(planner: Planner, energy: dict[str, float]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("weight", overflow="fold")
    for title in ("operator", "shape", "type"):
        table.add_column(title, no_wrap=True, overflow="fold")
    for title in ("weights", "largest", "rms", "scales", *(["sensitivity"] if energy else [])):
        table.add_column(title, justify="right", no_wrap=True, overflow="fold")
    for tensor in planner.tensors:
        weight = tensor.weight
        cells = [weight.name, weight.op_type, "×".join(map(str, weight.shape)), weight.dtype.name, str(weight.size)]
        cells += [f"{_largest(tensor):.4g}", f"{_rms(tensor):.4g}", str(_scales(tensor).size)]
        table.add_row(*(escape(printable(cell)) for cell in cells), *([f"{energy[weight.name]:.3g}"] if energy else []))
    return table


def _largest(tensor: TensorData) -> float:
    return float(channel_scales(tensor.values, None)[0]) if tensor.values.any() else 0.0


def _scales(tensor: TensorData) -> NDArray[np.float32]:
    """The largest weight of each channel."""
    return channel_scales(tensor.values, tensor.axis)


def _rms(tensor: TensorData) -> float:
    return math.sqrt(mean_square(tensor.values))
