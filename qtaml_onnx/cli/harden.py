"""`qtaml-onnx harden`: the main job."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from qtaml_onnx.cli import options as o
from qtaml_onnx.cli.groups import FaultOptions, with_groups
from qtaml_onnx.cli.show import TerminalProgress, print_warnings, summary
from qtaml_onnx.data import input_specs, load_dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_model import retention_steps
from qtaml_onnx.hardening import HardenResult, harden_source
from qtaml_onnx.methods import METHODS
from qtaml_onnx.modelio import least_hardened_bytes, load_model, save_model
from qtaml_onnx.options import DEFAULT_METHOD, HardenOptions
from qtaml_onnx.outputs import OutputSet, check_free_space, check_outputs
from qtaml_onnx.report import Report, render_html
from qtaml_onnx.report.junit import harden_cases, junit_xml
from qtaml_onnx.report.schema import Output
from qtaml_onnx.stored import plan_path
from qtaml_onnx.sweep import SweepStep
from qtaml_onnx.textio import printable
from qtaml_onnx.uniform_codes import CODE_CHOICES

__all__ = ["harden"]

_log = logging.getLogger(__name__)

_METHODS = "; ".join(f"{method.name}: {method.summary}" for method in METHODS.values())


@with_groups
def harden(
    model: o.ModelPath,
    output: o.OutputPath,
    faults: FaultOptions,
    method: Annotated[str, typer.Option("--method", help=f"{_METHODS}.")] = DEFAULT_METHOD,
    bits: o.Bits = 8,
    bits_per_weight: Annotated[
        float | None,
        typer.Option(
            "--bits-per-weight", help="Choose word lengths a tensor under this total of bits a weight, all in."
        ),
    ] = None,
    longest_word: Annotated[
        int | None,
        typer.Option(
            "--longest-word",
            help="With --bits-per-weight: most bits of a weight, up to 20; beyond 12 it is stored as two words.",
        ),
    ] = None,
    code_books: Annotated[
        str,
        typer.Option(
            "--code-books",
            help="Designed code books: shared, tensor, channel (groups of alike ones), or auto: where what they "
            "save pays for their bits (groups under --bits-per-weight alone).",
        ),
    ] = "auto",
    code: Annotated[
        str | None,
        typer.Option(
            "--code",
            help=f"Code of methods that design none: {', '.join(CODE_CHOICES)}; auto takes the least predicted noise.",
        ),
    ] = None,
    protection: Annotated[
        str,
        typer.Option(
            "--protection",
            help="How protected bits are kept: ideal, repetition-3, secded-72-64, bch-511-340-20, ldpc-3-5, …, auto.",
        ),
    ] = "ideal",
    budget: Annotated[float, typer.Option("--budget", help="Most protected bits, as a fraction of all.")] = 0.0,
    target: Annotated[
        float | None,
        typer.Option("--target", help="Find the smallest budget that keeps this share of the clean metric."),
    ] = None,
    granularity: Annotated[
        str,
        typer.Option(
            "--granularity",
            help="What gets protected planes (with --bits-per-weight: word lengths) of its own: tensor, or channel: "
            "groups of output channels.",
        ),
    ] = "tensor",
    no_bias_correction: Annotated[
        bool, typer.Option("--no-bias-correction", help="No self-correcting biases (they need --calibration).")
    ] = False,
    no_input_scales: Annotated[
        bool, typer.Option("--no-input-scales", help="No scales an input channel (they need --calibration).")
    ] = False,
    keep_codes: Annotated[
        bool, typer.Option("--keep-codes", help="Keep the words of quantised weights; change how they are read alone.")
    ] = False,
    per_tensor_scales: o.PerTensor = False,
    sensitivity: Annotated[
        str,
        typer.Option(
            "--sensitivity",
            help="What tensors are weighed by: probe (runs the model), magnitude (needs no more memory than a tensor), "
            "or auto: probe up to 1 GiB of weights, and with --calibration.",
        ),
    ] = "auto",
    include: o.Include = None,
    exclude: o.Exclude = None,
    include_small: o.IncludeSmall = False,
    small_copies: Annotated[
        int | None,
        typer.Option("--small-copies", help="How often each bit of them is stored; default: as the rates need."),
    ] = None,
    emit_faulty: Annotated[
        Path | None, typer.Option("--emit-faulty", help="Also write the instrumented model here.")
    ] = None,
    fail_under: Annotated[
        float | None, typer.Option("--fail-under", help="Exit 1 if less than this share of clean is kept.")
    ] = None,
    junit: o.JUnit = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also measure the other methods, with no more protected bits and at budgets."),
    ] = False,
    off_design: Annotated[
        bool,
        typer.Option("--off-design", help="Also measure at half and twice the designed rates; implied by --margin."),
    ] = False,
    no_sweep: Annotated[
        bool, typer.Option("--no-sweep", help="No quick look at rates (with --device: times) around the designed ones.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide and measure, write nothing.")] = False,
    calibration: o.Calibration = None,
    evaluation: o.Evaluation = None,
    trials: o.Trials = 20,
    seed: o.Seed = 0,
    workers: o.Workers = 1,
    confidence: o.Confidence = 0.95,
    json: o.Json = False,
    no_html: Annotated[bool, typer.Option("--no-html", help="No HTML report.")] = False,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:
    """Harden a model: hardened model, storage plan and report.

    The hardened model is plain ONNX for stock onnxruntime, with nothing added at inference. Beside OUT.onnx it writes
    OUT.plan.json, OUT.report.json and OUT.report.html.

    Example: qtaml-onnx harden net.onnx -o safe.onnx --flip-rate 0.05 --eval test.npz --calibration train.npz
    """
    o.set_verbosity(verbose, quiet)
    if output.suffix != ".onnx":
        raise InputError(f"output {output} does not end in .onnx; name the hardened model OUT.onnx")
    if emit_faulty is not None and emit_faulty.suffix != ".onnx":
        raise InputError(f"--emit-faulty {emit_faulty} does not end in .onnx; name the instrumented model FAULTY.onnx")
    if junit is not None and evaluation is None:
        raise InputError("--junit needs data to measure on; add --eval FILE.npz")
    if not dry_run:
        check_outputs(
            {
                "-o": output,
                "-o (plan)": plan_path(output),
                "-o (report)": output.with_suffix(".report.json"),
                "-o (page)": None if no_html else output.with_suffix(".report.html"),
                "--emit-faulty": emit_faulty,
                "--junit": junit,
            },
            [model, evaluation, calibration, *faults.files],
        )
    chosen = HardenOptions(
        method=method,
        bits=bits,
        bits_per_weight=bits_per_weight,
        longest_word=longest_word,
        code_books=code_books,  # type: ignore[arg-type]
        code=code,
        protection=protection,
        budget=budget,
        target=target,
        granularity=granularity,
        per_tensor_scales=per_tensor_scales,
        bias_correction=not no_bias_correction,
        input_scales=not no_input_scales,
        sensitivity=sensitivity,
        keep_codes=keep_codes,
        include=include or (),
        exclude=exclude or (),
        include_small=include_small,
        small_copies=small_copies,
        trials=trials,
        seed=seed,
        workers=workers,
        confidence=confidence,
        compare=compare,
        off_design=off_design or faults.margin != 1.0,
        sweep=not no_sweep,
        fail_under=fail_under,
    )
    chosen.check(evaluation is not None)
    least_planes = 8 if faults.device is None or include_small else bits
    planes = o.MOST_BITS if bits_per_weight is not None else max(bits, least_planes)
    designed = faults.model(planes)
    source = load_model(model)
    source.check_plain()
    if not dry_run:
        copies = 2 if emit_faulty is not None else 1
        check_free_space(output, copies * least_hardened_bytes(source.model, 1 if bits <= 8 else 2))
    specs = input_specs(source.model) if calibration or evaluation else []
    result = harden_source(
        source,
        designed,
        chosen,
        calibration=load_dataset(calibration, specs, "--calibration") if calibration else None,
        evaluation=load_dataset(evaluation, specs, "--eval") if evaluation else None,
        progress=TerminalProgress(quiet or json),
        command=printable(shlex.join(["qtaml-onnx", *sys.argv[1:]])),
        sweep=_times(faults, planes),
    )
    report = result.report if dry_run else _write(result, output, emit_faulty, junit, not no_html)
    print_warnings(report.warnings, quiet)
    if json:
        print(report.to_json(), end="")
    elif not quiet:
        summary(report)
        if not dry_run:
            print(f"hardened model {printable(output)}")
            print(f"report {printable(output.with_suffix('.report.json' if no_html else '.report.html'))}")
            if junit is not None:
                print(f"JUnit {printable(junit)}")
    result.gate()


def _times(faults: FaultOptions, planes: int) -> list[SweepStep] | None:
    """Times around that of the design, if a device says what they do."""
    if faults.device is None:
        return None
    return retention_steps(faults.device, planes, faults.retention_s, faults.margin)


def _write(result: HardenResult, output: Path, emit_faulty: Path | None, junit: Path | None, html: bool) -> Report:
    """Writes all files or none, and gives the report with the hardened model's hash."""
    external = bool(result.source.external_files)
    with OutputSet(result.source.files) as outputs:
        digest = save_model(result.model, outputs, output, external_data=external)
        report = result.report.model_copy(update={"output": Output(path=printable(output), sha256=digest)})
        outputs.add_text(plan_path(output), result.plan.to_json())
        outputs.add_text(output.with_suffix(".report.json"), report.to_json())
        if html:
            start = time.perf_counter()
            outputs.add_text(output.with_suffix(".report.html"), render_html(report, result.plan))
            _log.info("report drawn in %.2f s", time.perf_counter() - start)
        if junit is not None:
            outputs.add_text(junit, junit_xml(f"harden {report.source.path}", harden_cases(report)))
        if emit_faulty is not None:
            save_model(result.faulty, outputs, emit_faulty, external_data=external)
    return report
