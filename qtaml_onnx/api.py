"""The commands as functions: what `import qtaml_onnx` offers beside `harden`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from qtaml_onnx.campaign import Campaign, Result, Variant
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.data import Dataset, input_specs, load_dataset
from qtaml_onnx.hardening import as_fault_model
from qtaml_onnx.modelio import load_model
from qtaml_onnx.passes.fold_weights import FoldWeights
from qtaml_onnx.plan import FaultModel
from qtaml_onnx.stored import stored_model
from qtaml_onnx.verification import Check, verify_files
from qtaml_onnx.weights import Inventory, find_weights

__all__ = ["evaluate", "inject", "inspect", "verify"]

PathLike = str | os.PathLike[str]


def inject(model: PathLike, rates: FlipRates | FaultModel | float, *, bits: int = 8) -> ir.Model:
    """The instrumented model: a hardened one by the plan beside it, any other after plain quantisation.

    Run it in a session made with `qtaml_onnx.runtime.session_options()`.

    Args:
        model: Path of the model.
        rates: Default flip rates; a caller may feed others.
        bits: Word length of a model that is not hardened.

    Raises:
        InputError: if the model or the rates are unfit.
    """
    faults = as_fault_model(rates)
    return stored_model(Path(model), lambda _planes: faults, bits=bits).faulty


def evaluate(
    model: PathLike,
    rates: Sequence[FlipRates | FaultModel | float],
    evaluation: PathLike | Dataset,
    *,
    original: PathLike | None = None,
    trials: int = 20,
    seed: int = 0,
    workers: int = 1,
    confidence: float = 0.95,
    metrics: Sequence[str] = (),
    precision: float | None = None,
) -> list[Result]:
    """A Monte-Carlo campaign: the clean model, the stored words without faults, and the trials at each of the rates.

    Args:
        model: A plain model, which is quantised plainly and stands unprotected, or a hardened one with its plan beside.
        rates: Flip rates to run at.
        evaluation: `.npz` file or dataset; without labels the metric is agreement with the clean model.
        original: The clean model; `model` itself, without faults, if None.
        trials: Trials a rate; the most of them if there is a `precision`.
        seed: Of the first trial; equal seeds give equal faults to all models with the same plan.
        workers: Processes.
        confidence: Of the intervals.
        metrics: As `--metric` names them; the first one is that of the results' `values`.
        precision: Half-width of its interval at which a rate has trials enough.

    Raises:
        InputError: if the model, the data, a rate or a metric is unfit.
    """
    faults = [as_fault_model(rate) for rate in rates]
    stored = stored_model(Path(model), lambda _planes: as_fault_model(0.0))
    clean = load_model(original).model if original is not None else stored.source.model
    data = evaluation
    if not isinstance(data, Dataset):
        data = load_dataset(Path(data), input_specs(clean), "evaluation")
    campaign = Campaign(
        data,
        trials=trials,
        seed=seed,
        confidence=confidence,
        workers=workers,
        metrics=metrics,
        precision=precision,
    )
    results = [campaign.measure_clean(ir.to_proto(clean))]
    results.append(campaign.measure_fixed(Variant(stored.names[0], ir.to_proto(stored.fixed))))
    sweep = [fault.rates.truncated(stored.plan.planes) for fault in faults]
    return results + campaign.measure_faulty(Variant(stored.names[1], ir.to_proto(stored.faulty)), sweep)


def inspect(model: PathLike) -> Inventory:
    """What is stored where: the weights that can be hardened, and what is left out and why.

    Raises:
        InputError: if the model cannot be read.
    """
    source = load_model(model)
    FoldWeights()(source.model)
    return find_weights(source.model)


def verify(hardened: PathLike, original: PathLike, *, data: Dataset | None = None, seed: int = 0) -> list[Check]:
    """Checks a hardened model against its original and the plan beside it; see `qtaml_onnx.verification.verify_files`.

    Raises:
        InputError: if a file cannot be read, or is no hardened model.
    """
    return verify_files(Path(hardened), Path(original), data=data, seed=seed)
