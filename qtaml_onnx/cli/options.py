"""Options that several commands share, and what they mean."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "MEASURING",
    "MOST_BITS",
    "P01",
    "P10",
    "Bits",
    "Calibration",
    "Confidence",
    "Device",
    "Evaluation",
    "Exclude",
    "FlipRate",
    "Include",
    "IncludeSmall",
    "JUnit",
    "Json",
    "Margin",
    "ModelPath",
    "OutputPath",
    "PerTensor",
    "PlaneRates",
    "Quiet",
    "Retention",
    "Seed",
    "Step",
    "Trials",
    "Verbose",
    "Workers",
    "set_verbosity",
    "to_json",
]

MOST_BITS = 12
"""Planes that rates are given for: the longest word of any plan."""

Step = Callable[[], None]

_FAULTS = "Fault model (exactly one)"
MEASURING = "Measuring"
_OUTPUT = "Output"

ModelPath = Annotated[
    Path, typer.Argument(help="The ONNX model. It is not changed.", metavar="MODEL", show_default=False)
]
OutputPath = Annotated[Path, typer.Option("-o", "--output", help="Where to write.", show_default=False)]

FlipRate = Annotated[
    float | None, typer.Option("--flip-rate", help="Every bit flips with this probability.", rich_help_panel=_FAULTS)
]
P01 = Annotated[float | None, typer.Option("--p01", help="Probability of 0→1; with --p10.", rich_help_panel=_FAULTS)]
P10 = Annotated[float | None, typer.Option("--p10", help="Probability of 1→0; with --p01.", rich_help_panel=_FAULTS)]
PlaneRates = Annotated[
    Path | None,
    typer.Option(
        "--plane-rates", help="CSV file: p01,p10 a bit plane, least significant first.", rich_help_panel=_FAULTS
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="A device by name (`device list`) or TOML file.", rich_help_panel=_FAULTS),
]
Retention = Annotated[
    str | None, typer.Option("--retention", help="How long words are held, with --device: 250ms, 1h, 10y.")
]
Margin = Annotated[float, typer.Option("--margin", help="Design for this many times the given rates.")]

Bits = Annotated[int, typer.Option("--bits", help="Word length of float weights.")]
PerTensor = Annotated[
    bool, typer.Option("--per-tensor-scales", help="One scale a tensor in place of one an output channel.")
]
Include = Annotated[
    list[str] | None, typer.Option("--include", help="Harden only weights whose name matches; repeatable.")
]
IncludeSmall = Annotated[
    bool,
    typer.Option("--include-small", help="Biases, norms, scales and zero points meet faults too (hardened: repeated)."),
]
Exclude = Annotated[list[str] | None, typer.Option("--exclude", help="Leave these weights alone; repeatable.")]
Calibration = Annotated[
    Path | None,
    typer.Option("--calibration", help=".npz of sample inputs without labels.", rich_help_panel=MEASURING),
]
Evaluation = Annotated[
    Path | None,
    typer.Option("--eval", help=".npz of inputs, with `labels` or without, to measure on.", rich_help_panel=MEASURING),
]
Trials = Annotated[int, typer.Option("--trials", help="Draws of the faults a rate.", rich_help_panel=MEASURING)]
Seed = Annotated[
    int,
    typer.Option("--seed", help="Of the first trial.", min=0, max=2**63 - 1, rich_help_panel=MEASURING),
]
Workers = Annotated[int, typer.Option("--workers", help="Processes.", rich_help_panel=MEASURING)]
Confidence = Annotated[float, typer.Option("--confidence", help="Of the intervals.", rich_help_panel=MEASURING)]

JUnit = Annotated[
    Path | None,
    typer.Option("--junit", help="Write JUnit XML: a test case a rate, failed where --fail-under is not met."),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable summary on stdout.", rich_help_panel=_OUTPUT)]
Verbose = Annotated[
    int, typer.Option("-v", "--verbose", count=True, help="Say more; twice: everything.", rich_help_panel=_OUTPUT)
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.", rich_help_panel=_OUTPUT)]


def set_verbosity(verbose: int, quiet: bool) -> None:
    """Sets how much the package logs: warnings, with -v summaries of passes, with -vv every node, with -q errors."""
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.getLogger("qtaml_onnx").setLevel(level)


def to_json(document: object) -> str:
    """The text that `--json` prints; what is infinite, as an error without bounds can be, is null."""
    return json.dumps(_finite(document), indent=1, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
