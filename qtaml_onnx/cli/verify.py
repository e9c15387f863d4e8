"""`qtaml-onnx verify`: is a hardened model what it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qtaml_onnx.cli import options as o
from qtaml_onnx.data import input_specs, load_dataset
from qtaml_onnx.errors import GateError
from qtaml_onnx.modelio import load_model
from qtaml_onnx.textio import one_line
from qtaml_onnx.verification import verify_files

__all__ = ["verify"]


def verify(
    model: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The hardened model, its plan beside it.")],
    original: Annotated[Path, typer.Option("--original", help="The model that it was made from.", show_default=False)],
    no_run: Annotated[
        bool, typer.Option("--no-run", help="Do not run the models: leaves out the last two checks.")
    ] = False,
    calibration: o.Calibration = None,
    seed: o.Seed = 0,
    json: o.Json = False,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:
    """Check a hardened model: valid, standard operators, same interface, equal without faults, read-out folded.

    Exit code 1 if a check fails.

    Example: qtaml-onnx verify safe.onnx --original net.onnx
    """
    o.set_verbosity(verbose, quiet)
    data = None
    if calibration is not None:
        data = load_dataset(calibration, input_specs(load_model(original).model), "--calibration")
    checks = verify_files(model, original, data=data, seed=seed, run=not no_run)
    if json:
        print(
            o.to_json(
                {
                    "model": str(model),
                    "passed": all(check.passed for check in checks),
                    "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks],
                }
            )
        )
    elif not quiet:
        for check in checks:
            print(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}: {one_line(check.detail)}")
    failed = [check for check in checks if not check.passed]
    if failed:
        raise GateError(f"{model}: {failed[0].name}: {failed[0].detail}")
