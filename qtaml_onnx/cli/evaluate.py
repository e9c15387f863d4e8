"""`qtaml-onnx evaluate`: accuracy under faults, over a sweep of rates or of retention times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import onnx_ir as ir
import typer

from qtaml_onnx.campaign import Campaign, Result, StoreOptions, Sweep, Variant
from qtaml_onnx.cli import options as o
from qtaml_onnx.cli.conditions import Condition, sweep_conditions
from qtaml_onnx.cli.show import (
    TerminalProgress,
    console,
    differences_table,
    outcomes_table,
    print_warnings,
    results_table,
)
from qtaml_onnx.data import Dataset, input_specs, load_dataset, synthetic_dataset
from qtaml_onnx.errors import GateError, InputError
from qtaml_onnx.modelio import load_model
from qtaml_onnx.outputs import OutputSet, check_outputs
from qtaml_onnx.plan import FaultModel
from qtaml_onnx.report.build import environment
from qtaml_onnx.report.evaluation import differences, evaluation_section
from qtaml_onnx.report.junit import campaign_cases, evaluation_gate, junit_xml
from qtaml_onnx.report.schema import Evaluation
from qtaml_onnx.stored import StoredModel, plan_path, stored_model
from qtaml_onnx.textio import printable

__all__ = ["evaluate"]

_SYNTHETIC_SAMPLES = 64
_TRIALS = 20
_MOST_TRIALS = 10_000
"""With --precision: where a metric that never settles ends."""
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
    include_small: o.IncludeSmall = False,
    original: Annotated[
        Path | None,
        typer.Option("--original", help="The float model that accuracy without labels is compared with."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the results as JSON.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the sweep, .svg or .png: the metric against time or flip rate.")
    ] = None,
    evaluation: o.Evaluation = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="top-1, top-5, agreement, mse, snr, or a function of your own, module:function; repeatable, the first "
            "is drawn and decides.",
            rich_help_panel=o.MEASURING,
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            help=f"Draws of the faults a rate: {_TRIALS}, or with --precision at most {_MOST_TRIALS}.",
            show_default=False,
            rich_help_panel=o.MEASURING,
        ),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(
            "--precision",
            help="Stop at a rate when half the interval's width is at most this: 0.005 is half a point.",
            rich_help_panel=o.MEASURING,
        ),
    ] = None,
    seed: o.Seed = 0,
    workers: o.Workers = 1,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", help="Run on a Dask cluster: its scheduler's address.", rich_help_panel=o.MEASURING),
    ] = None,
    confidence: o.Confidence = 0.95,
    fail_under: Annotated[
        float | None,
        typer.Option(
            "--fail-under", help="Exit 1 if a hardened model (any, if none is) keeps less than this share of clean."
        ),
    ] = None,
    junit: o.JUnit = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", help="Keep each trial in this SQLite file as it ends.", rich_help_panel=o.MEASURING),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the campaign in --store.", rich_help_panel=o.MEASURING),
    ] = False,
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
    check_outputs(
        {"-o": output, "--plot": plot, "--store": store, "--junit": junit},
        [*models, *map(plan_path, models), original, evaluation, plane_rates, Path(device) if device else None],
    )
    if resume and store is None:
        raise InputError("--resume needs --store FILE.db, the store to go on with")
    kind = _picture_kind(plot)
    conditions = sweep_conditions(flip_rate, p01, p10, plane_rates, device, retention)
    stored = [
        stored_model(path, _NO_FAULTS, bits=bits, per_tensor_scales=per_tensor_scales, include_small=include_small)
        for path in models
    ]
    lengths = sorted({model.plan.planes for model in stored})
    faults = {length: [condition.fault_model(length) for condition in conditions] for length in lengths}
    reference = _reference(stored, original)
    warnings: list[str] = []
    data = _data(evaluation, reference, seed, warnings)
    campaign = Campaign(
        data,
        trials=trials if trials is not None else _TRIALS if precision is None else _MOST_TRIALS,
        seed=seed,
        confidence=confidence,
        workers=workers,
        precision=precision,
        metrics=metric or (),
        cluster=cluster,
    )
    clean = campaign.measure_clean(ir.to_proto(reference))
    if fail_under is not None and not campaign.metric.has_shares:
        raise InputError(
            f"--fail-under asks for a share of the clean metric, which means nothing for {campaign.metric.name}; "
            "put another --metric first"
        )
    if original is None and all(model.hardened for model in stored) and data.labels is None:
        warnings.append("no plain model and no labels: agreement is with the hardened model without faults")
    warnings += [warning for model in stored for warning in _uneven(model, faults[model.plan.planes])]
    fixed = [campaign.measure_fixed(Variant(model.names[0], ir.to_proto(model.fixed))) for model in stored]
    sweeps = [
        _sweep(path, model, faults[model.plan.planes], conditions) for path, model in zip(models, stored, strict=True)
    ]
    with TerminalProgress(quiet or json).steps("Monte-Carlo trials", 1) as step:
        faulty = campaign.measure_sweeps(sweeps, progress=step, store=StoreOptions(store, resume) if store else None)
    sections = [
        (path, evaluation_section(campaign, [clean, without, *found]))
        for path, without, found in zip(models, fixed, faulty, strict=True)
    ]
    paired = differences(campaign, [(str(path), found) for path, found in zip(models, faulty, strict=True)])
    document = {
        "models": [{"path": printable(path), "evaluation": section.model_dump()} for path, section in sections],
        "differences": [difference.model_dump() for difference in paired],
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
            console().print(printable(path), markup=False, style="bold" if len(sections) > 1 else None)
            for measure in campaign.metrics:
                console().print(results_table(section.results, measure.name, section.confidence))
            if verbose:
                console().print(outcomes_table(section.results))
        if paired:
            console().print(differences_table(paired, campaign.metric.name, confidence))
        console().print(printable(f"{len(data)} samples of {Path(data.source).name}, seed {seed}"), markup=False)
        if precision is not None:
            print(_ended(precision, campaign.trials, [result for found in faulty for result in found]))
        if plot is not None:
            print(f"picture {printable(plot)}")
    if fail_under is not None and (failures := evaluation_gate(named, fail_under)):
        raise GateError(failures[0] + (f" (and {len(failures) - 1} more)" if failures[1:] else ""))


def _picture_kind(plot: Path | None) -> str:
    """`svg` or `png`; an InputError before any work if the name says neither. Without a plot, nothing."""
    if plot is None:
        return ""
    from qtaml_onnx.physics.plots import picture_kind  # loads matplotlib, which only pictures need

    return picture_kind(plot)


def _picture(
    kind: str, sections: Sequence[tuple[Path, Evaluation]], conditions: Sequence[Condition], device: str | None
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


def _ended(precision: float, most: int, results: Sequence[Result]) -> str:
    """What ended the trials."""
    open_ended = sum(result.stopped == "trials" for result in results)
    said = f"half-width {precision:g} reached at {len(results) - open_ended} of {len(results)} rates"
    return f"{said}, the others ended after {most} trials; raise --trials" if open_ended else said


def _sweep(path: Path, model: StoredModel, faults: Sequence[FaultModel], conditions: Sequence[Condition]) -> Sweep:
    rates = [fault.rates.truncated(model.plan.planes) for fault in faults]
    labels = [condition.label for condition in conditions if condition.label is not None] or None
    return Sweep(Variant(model.names[1], ir.to_proto(model.faulty)), rates, labels, str(path))
