"""`qtaml-onnx evaluate`: accuracy under faults, over a sweep of rates or of retention times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import onnx_ir as ir
import typer

from qtaml_onnx.campaign import Campaign, Result, Variant
from qtaml_onnx.cli import options as o
from qtaml_onnx.cli.show import TerminalProgress, console, print_warnings, results_table
from qtaml_onnx.data import Dataset, input_specs, load_dataset, synthetic_dataset
from qtaml_onnx.errors import GateError, InputError
from qtaml_onnx.fault_model import fault_model, sweep_models
from qtaml_onnx.modelio import OutputSet, check_output_path, load_model
from qtaml_onnx.physics import parse_duration
from qtaml_onnx.plan import FaultModel
from qtaml_onnx.report.build import environment, evaluation_section
from qtaml_onnx.report.junit import campaign_cases, evaluation_gate, junit_xml
from qtaml_onnx.report.schema import Evaluation
from qtaml_onnx.stored import StoredModel, stored_model

__all__ = ["evaluate"]

_SYNTHETIC_SAMPLES = 64
_NO_FAULTS = FaultModel(p01=(0.0,) * o.MOST_BITS, p10=(0.0,) * o.MOST_BITS)
"""Default rates of the instrumented models; each trial feeds its own."""


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
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the sweep, .svg or .png: the metric against time or flip rate.")
    ] = None,
    evaluation: o.Evaluation = None,
    trials: o.Trials = 20,
    seed: o.Seed = 0,
    workers: o.Workers = 1,
    confidence: o.Confidence = 0.95,
    fail_under: Annotated[
        float | None,
        typer.Option(
            "--fail-under", help="Exit 1 if a hardened model (any, if none is) keeps less than this share of clean."
        ),
    ] = None,
    junit: o.JUnit = None,
    json: o.Json = False,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:
    """Run Monte-Carlo campaigns.

    Plain models are quantised plainly and stand unprotected; hardened models are read with the plan beside them. All
    meet the same seeds. Without labels the metric is agreement with the clean model: --original, or the first plain
    model.

    Example: qtaml-onnx evaluate net.onnx safe.onnx --flip-rate 0.01,0.05,0.1 --eval test.npz
    """
    o.set_verbosity(verbose, quiet)
    if fail_under is not None and not 0 < fail_under <= 1:
        raise InputError(
            f"--fail-under {fail_under:g} is not a share of the clean metric; give one above 0 and up to 1"
        )
    for path in (output, plot, junit):
        if path is not None:
            for source in models:
                check_output_path(path, source)
    kind = _picture_kind(plot, output)
    conditions = _conditions(flip_rate, p01, p10, plane_rates, device, retention)
    stored = [stored_model(path, _NO_FAULTS, bits=bits, per_tensor_scales=per_tensor_scales) for path in models]
    lengths = sorted({model.plan.planes for model in stored})
    faults = {length: [condition.fault_model(length) for condition in conditions] for length in lengths}
    reference = _reference(stored, original)
    warnings: list[str] = []
    data = _data(evaluation, reference, seed, warnings)
    campaign = Campaign(data, trials=trials, seed=seed, confidence=confidence, workers=workers)
    clean = campaign.measure_clean(ir.to_proto(reference))
    if original is None and all(model.hardened for model in stored) and data.labels is None:
        warnings.append("no plain model and no labels: agreement is with the hardened model without faults")
    warnings += [warning for model in stored for warning in _uneven(model, faults[model.plan.planes])]
    sections, show = [], TerminalProgress(quiet or json)
    with show.steps("Monte-Carlo trials", len(stored) * len(conditions) * trials) as step:
        for path, model in zip(models, stored, strict=True):
            results = [clean, *_one(campaign, model, faults[model.plan.planes], conditions, step)]
            sections.append((path, evaluation_section(campaign, results)))
    document = {
        "models": [{"path": str(path), "evaluation": section.model_dump()} for path, section in sections],
        "fault_models": [
            condition.described(length, fault)
            for length in lengths
            for condition, fault in zip(conditions, faults[length], strict=True)
        ],
        "environment": environment().model_dump(),
        "warnings": warnings,
    }
    with OutputSet() as outputs:
        if output is not None:
            outputs.add_text(output, o.to_json(document) + "\n")
        if plot is not None:
            picture = _picture(kind, sections, conditions, device)
            outputs.add(plot, lambda temporary: _write_bytes(temporary, picture))
        named = [(str(path), section) for path, section in sections]
        if junit is not None:
            outputs.add_text(junit, junit_xml("evaluate", campaign_cases(named, fail_under)))
    print_warnings(warnings, quiet)
    if json:
        print(o.to_json(document))
    elif not quiet:
        for path, section in sections:
            console().print(f"[bold]{path}[/bold]" if len(sections) > 1 else str(path))
            console().print(results_table(section.results, section.metric, section.confidence))
        console().print(f"{len(data)} samples of {Path(data.source).name}, seed {seed}")
        if plot is not None:
            print(f"picture {plot}")
    if fail_under is not None and (failures := evaluation_gate(named, fail_under)):
        raise GateError(failures[0] + (f" (and {len(failures) - 1} more)" if failures[1:] else ""))


@dataclass(frozen=True)
class _Condition:
    """One step of a sweep: fault-model options, what to call them, and how the user wrote them."""

    options: dict[str, Any]
    origin: str
    label: str | None = None

    def fault_model(self, planes: int) -> FaultModel:
        """The rates of words of that length: which cell a device puts a plane in depends on it."""
        return fault_model(bits=planes, **self.options)

    def described(self, planes: int, fault: FaultModel) -> dict[str, Any]:
        """What the JSON says of it."""
        return {"label": self.label, "origin": self.origin, "word_bits": planes, **fault.model_dump(mode="json")}


def _conditions(
    flip_rate: str | None,
    p01: float | None,
    p10: float | None,
    plane_rates: Path | None,
    device: str | None,
    retention: str | None,
) -> list[_Condition]:
    """The steps of the sweep, checked as far as they can be without the models."""
    others = {"p01": p01, "p10": p10, "plane_rates": plane_rates, "device": device}
    if retention is not None and device is None:
        raise InputError("--retention needs --device NAME, whose rates depend on it")
    if flip_rate is not None:
        if any(value is not None for value in others.values()):
            raise InputError("--flip-rate excludes the other fault models; give one")
        rates = [model.p01[0] for model in sweep_models(flip_rate, 1)]
        return [_Condition({"flip_rate": rate}, f"--flip-rate {rate:g}") for rate in rates]
    given = [f"--{name.replace('_', '-')} {value}" for name, value in others.items() if value is not None]
    conditions = [_Condition(others, " ".join(given))]
    if retention is not None:
        times = [part.strip() for part in retention.split(",")]
        conditions = [
            _Condition({**others, "retention_s": parse_duration(time)}, f"--device {device} --retention {time}", time)
            for time in times
        ]
    for condition in conditions:
        condition.fault_model(1)
    return conditions


def _picture_kind(plot: Path | None, output: Path | None) -> str:
    """`svg` or `png`; an InputError before any work if the name says neither. Without a plot, nothing."""
    if plot is None:
        return ""
    if output is not None and plot.absolute() == output.absolute():
        raise InputError("--plot and -o name the same file; give two")
    from qtaml_onnx.physics.plots import picture_kind  # loads matplotlib, which only pictures need

    return picture_kind(plot)


def _picture(
    kind: str, sections: Sequence[tuple[Path, Evaluation]], conditions: Sequence[_Condition], device: str | None
) -> bytes:
    from qtaml_onnx.campaign.plots import Curve, sweep_picture

    names = [path.name for path, _ in sections]
    curves = []
    for path, section in sections:
        faulty = section.results[-len(conditions) :]
        name = path.name if names.count(path.name) == 1 else str(path)
        curves.append(Curve(f"{faulty[0].variant}: {name}" if len(sections) > 1 else faulty[0].variant, faulty))
    held = conditions[0].label is not None
    times = [float(condition.options["retention_s"]) for condition in conditions] if held else None
    what = sections[0][0].name if len(sections) == 1 else f"{len(sections)} models"
    where = f"device {device}" if device is not None else "bit flips of stored weights"
    return sweep_picture(kind, sections[0][1], curves, times, f"{what}, {where}")


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _uneven(model: StoredModel, faults: Sequence[FaultModel]) -> list[str]:
    """A warning where words of several lengths meet rates that differ from plane to plane."""
    lengths = {tensor.bits for tensor in model.plan.tensors}
    if len(lengths) < 2 or all(len({*zip(fault.p01, fault.p10, strict=True)}) == 1 for fault in faults):
        return []
    return [
        f"{model.source.path} has words of {min(lengths)} to {max(lengths)} bits: planes count from the least "
        "significant, so the rates of the top planes meet the longest words alone"
    ]


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
    campaign: Campaign,
    model: StoredModel,
    faults: Sequence[FaultModel],
    conditions: Sequence[_Condition],
    step: o.Step,
) -> list[Result]:
    """A model without faults, then under each fault model."""
    name = "hardened" if model.hardened else "unprotected"
    fixed = campaign.measure_fixed(Variant("hardened" if model.hardened else "quantized", ir.to_proto(model.fixed)))
    rates = [fault.rates.truncated(model.plan.planes) for fault in faults]
    labels = [condition.label for condition in conditions if condition.label is not None] or None
    variant = Variant(name, ir.to_proto(model.faulty))
    return [fixed, *campaign.measure_faulty(variant, rates, labels=labels, progress=step)]
