"""`qtaml-onnx evaluate`: accuracy under faults, over a sweep of rates or of retention times."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import onnx_ir as ir
import typer

from qtaml_onnx.campaign import Campaign, Result, Variant
from qtaml_onnx.cli import options as o
from qtaml_onnx.cli.show import TerminalProgress, console, print_warnings, results_table
from qtaml_onnx.data import Dataset, input_specs, load_dataset, synthetic_dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_model import fault_model, sweep_models
from qtaml_onnx.modelio import OutputSet, check_output_path, load_model
from qtaml_onnx.physics import parse_duration
from qtaml_onnx.plan import FaultModel
from qtaml_onnx.report.build import environment, evaluation_section
from qtaml_onnx.stored import StoredModel, stored_model

__all__ = ["evaluate"]

_SYNTHETIC_SAMPLES = 64


def evaluate(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Plain or hardened ONNX models of one interface.")
    ],
    flip_rate: Annotated[
        str | None, typer.Option("--flip-rate", help="Rates, separated by commas: 0.01,0.05,0.1.")
    ] = None,
    p01: o.P01 = None,
    p10: o.P10 = None,
    plane_rates: o.PlaneRates = None,
    device: o.Device = None,
    retention: Annotated[
        str | None, typer.Option("--retention", help="With --device, how long words are held: 1h,1d,1y.")
    ] = None,
    bits: o.Bits = 8,
    per_tensor_scales: o.PerTensor = False,
    original: Annotated[
        Path | None,
        typer.Option("--original", help="The float model that accuracy without labels is compared with."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the results as JSON.")] = None,
    evaluation: o.Evaluation = None,
    trials: o.Trials = 20,
    seed: o.Seed = 0,
    workers: o.Workers = 1,
    confidence: o.Confidence = 0.95,
    json: o.Json = False,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:
    """Run Monte-Carlo campaigns.

    Plain models are quantised plainly and stand unprotected; hardened models are read with the plan beside them. All meet
    the same seeds. Without labels the metric is agreement with the clean model: --original, or the first plain model.

    Example: qtaml-onnx evaluate net.onnx safe.onnx --flip-rate 0.01,0.05,0.1 --eval test.npz
    """
    o.set_verbosity(verbose, quiet)
    if output is not None:
        check_output_path(output)
    faults, labels = _faults(flip_rate, p01, p10, plane_rates, device, retention)
    stored = [stored_model(path, faults[0], bits=bits, per_tensor_scales=per_tensor_scales) for path in models]
    reference = _reference(stored, original)
    warnings: list[str] = []
    data = _data(evaluation, reference, seed, warnings)
    campaign = Campaign(data, trials=trials, seed=seed, confidence=confidence, workers=workers)
    clean = campaign.measure_clean(ir.to_proto(reference))
    if original is None and all(model.hardened for model in stored) and data.labels is None:
        warnings.append("no plain model and no labels: agreement is with the hardened model without faults")
    sections, show = [], TerminalProgress(quiet or json)
    with show.steps("Monte-Carlo trials", len(stored) * len(faults) * trials) as step:
        for path, model in zip(models, stored, strict=True):
            results = [clean, *_one(campaign, model, faults, labels, step)]
            sections.append((path, evaluation_section(campaign, results)))
    document = {
        "models": [{"path": str(path), "evaluation": section.model_dump()} for path, section in sections],
        "environment": environment().model_dump(),
        "warnings": warnings,
    }
    if output is not None:
        with OutputSet() as outputs:
            outputs.add_text(output, o.to_json(document) + "\n")
    print_warnings(warnings, quiet)
    if json:
        print(o.to_json(document))
    elif not quiet:
        for path, section in sections:
            console().print(f"[bold]{path}[/bold]" if len(sections) > 1 else str(path))
            console().print(results_table(section.results, section.metric, section.confidence))
        console().print(f"{len(data)} samples of {Path(data.source).name}, seed {seed}")


def _faults(
    flip_rate: str | None,
    p01: float | None,
    p10: float | None,
    plane_rates: Path | None,
    device: str | None,
    retention: str | None,
) -> tuple[list[FaultModel], list[str] | None]:
    """The fault models of a sweep, and what to call them."""
    others = {"p01": p01, "p10": p10, "plane_rates": plane_rates, "device": device}
    if flip_rate is not None:
        if any(value is not None for value in others.values()):
            raise InputError("--flip-rate excludes the other fault models; give one")
        return sweep_models(flip_rate, o.MOST_BITS), None
    times = [part.strip() for part in retention.split(",")] if retention is not None else None
    if times is not None and device is None:
        raise InputError("--retention needs --device NAME, whose rates depend on it")
    if times is None:
        return [fault_model(bits=o.MOST_BITS, p01=p01, p10=p10, plane_rates=plane_rates, device=device)], None
    return [
        fault_model(
            bits=o.MOST_BITS, p01=p01, p10=p10, plane_rates=plane_rates, device=device, retention_s=parse_duration(time)
        )
        for time in times
    ], times


def _reference(stored: list[StoredModel], original: Path | None) -> ir.Model:
    if original is not None:
        return load_model(original).model
    return next((model.source.model for model in stored if not model.hardened), stored[0].fixed)


def _data(path: Path | None, reference: ir.Model, seed: int, warnings: list[str]) -> Dataset:
    specs = input_specs(reference)
    if path is not None:
        return load_dataset(path, specs, "--eval")
    warnings.append("no --eval data: agreement with the clean model on synthetic inputs is a rough stand-in")
    return synthetic_dataset(specs, _SYNTHETIC_SAMPLES, seed)


def _one(
    campaign: Campaign, model: StoredModel, faults: list[FaultModel], labels: list[str] | None, step: o.Step
) -> list[Result]:
    """A model without faults, then under each fault model."""
    name = "hardened" if model.hardened else "unprotected"
    planes = model.plan.planes
    fixed = campaign.measure_fixed(Variant("hardened" if model.hardened else "quantized", ir.to_proto(model.fixed)))
    rates = [fault.rates.truncated(planes) for fault in faults]
    variant = Variant(name, ir.to_proto(model.faulty))
    return [fixed, *campaign.measure_faulty(variant, rates, labels=labels, progress=step)]
