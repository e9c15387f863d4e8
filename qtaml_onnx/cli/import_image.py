"""`qtaml-onnx import-image`: a dumped memory image as a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qtaml_onnx.campaign.statistics import Interval
from qtaml_onnx.cli import options as o
from qtaml_onnx.errors import InputError
from qtaml_onnx.firmware.dump import ImportedImage
from qtaml_onnx.firmware.dump import import_image as read_image
from qtaml_onnx.firmware.flips import FlipCounts
from qtaml_onnx.modelio import save_model
from qtaml_onnx.outputs import OutputSet, check_outputs
from qtaml_onnx.stored import plan_path

__all__ = ["import_image"]


def import_image(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="What export-image wrote, its images replaced by dumped ones.", show_default=False
        ),
    ],
    model: Annotated[
        Path, typer.Option("--model", help="The hardened model that the image is of.", show_default=False)
    ],
    output: o.OutputPath,
    write_plane_rates: Annotated[
        Path | None,
        typer.Option("--write-plane-rates", help="CSV file of the measured rates, for --plane-rates."),
    ] = None,
    confidence: o.Confidence = 0.95,
    json: o.Json = False,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:
    """Put a dumped memory image back into the model, and measure what flipped.

    Errors are corrected as the image's code can, and the words that result, right or wrong, become those of the model:
    it computes what the device computes, in any ONNX runtime. Its plan is written beside it, for `evaluate`.

    Example: qtaml-onnx import-image dump --model safe.onnx -o real.onnx --write-plane-rates chip.csv
    """
    o.set_verbosity(verbose, quiet)
    check_outputs(
        {"-o": output, "-o (plan)": plan_path(output), "--write-plane-rates": write_plane_rates},
        [model, plan_path(model), *(folder.iterdir() if folder.is_dir() else ())],
    )
    if output.suffix != ".onnx":
        raise InputError(f"output {output} does not end in .onnx; name the model REAL.onnx")
    if not 0 < confidence < 1:
        raise InputError(f"--confidence {confidence:g} is not between 0 and 1; 0.95 is usual")
    read = read_image(folder, model)
    with OutputSet() as outputs:
        save_model(read.model, outputs, output)
        outputs.add_text(plan_path(output), read.plan.to_json())
        if write_plane_rates is not None:
            outputs.add_text(write_plane_rates, read.plane_rates())
    if json:
        print(o.to_json(_summary(output, read, confidence)))
    elif not quiet:
        _print(output, read, confidence)


def _summary(output: Path, read: ImportedImage, confidence: float) -> dict[str, object]:
    return {
        "output": str(output),
        "confidence": confidence,
        "flips": [_rates(count, confidence) for count in read.flips],
        "corrected_bits": read.corrected_bits,
        "failed_blocks": read.failed_blocks,
        "wrong_bits": read.wrong_bits,
        "wrong_words": read.wrong_words,
        "words": read.words,
        "wrong_small_numbers": read.wrong_small,
        "small_numbers": read.small,
    }


def _rates(count: FlipCounts, confidence: float) -> dict[str, object]:
    row: dict[str, object] = {"cells": count.cells, "plane": count.plane}
    for direction, size, flips, interval in (
        ("01", count.zeros, count.flips01, count.p01(confidence)),
        ("10", count.ones, count.flips10, count.p10(confidence)),
    ):
        row |= {f"bits_{direction[0]}": size, f"flips_{direction}": flips}
        known = interval and {"mean": interval.mean, "low": interval.low, "high": interval.high}
        row[f"p{direction}"] = known
    return row


def _print(output: Path, read: ImportedImage, confidence: float) -> None:
    print(f"{'cells':9}  plane        bits       flips  {'p01':27}  p10")
    for count in read.flips:
        plane = "-" if count.plane is None else str(count.plane)
        rates = f"{_text(count.p01(confidence)):27}  {_text(count.p10(confidence))}"
        print(f"{count.cells:9}  {plane:>5}  {count.bits:>10}  {count.flips:>10}  {rates}")
    print(f"{read.corrected_bits} stored bits corrected, {read.failed_blocks} blocks with errors left")
    print(f"{read.wrong_words} of {read.words} words wrong as read, in {read.wrong_bits} bits")
    if read.small:
        print(f"{read.wrong_small} of {read.small} numbers of small tensors wrong as read")
    print(f"model with these words {output}")


def _text(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.mean:.3g} ({interval.low:.3g} – {interval.high:.3g})"
