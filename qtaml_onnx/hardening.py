"""The main job: from a model and flip rates to a hardened model, its plan and its report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from qtaml_onnx import __version__
from qtaml_onnx.calibrate import calibrate_layers
from qtaml_onnx.campaign import Campaign, Result, Variant
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.data import Dataset, input_specs, load_dataset, synthetic_dataset
from qtaml_onnx.errors import GateError, InputError
from qtaml_onnx.methods import METHODS, Method
from qtaml_onnx.modelio import SourceModel, load_model
from qtaml_onnx.options import HardenOptions
from qtaml_onnx.passes.correct_bias import CorrectBias
from qtaml_onnx.passes.inject_faults import InjectFaults
from qtaml_onnx.passes.store_weights import StoreWeights
from qtaml_onnx.plan import FaultModel, StoragePlan
from qtaml_onnx.planner import LONGEST_WORD, Allocation, Planner, prepare
from qtaml_onnx.progress import Progress, Silent
from qtaml_onnx.report.build import build_report
from qtaml_onnx.report.schema import Report
from qtaml_onnx.sensitivity import measure_sensitivity

__all__ = ["HardenOptions", "HardenResult", "harden", "harden_source"]

PROBES = 3
_CALIBRATION_SAMPLES = 128
_STATISTICS_SAMPLES = 1024
_SYNTHETIC_SAMPLES = 8
_SEARCH_SAMPLES = 1000
"""Samples that a search for the smallest budget looks at; the final figures use all."""


@dataclass(frozen=True)
class HardenResult:
    """What hardening gives.

    Attributes:
        model: The hardened model: standard operators, stored words, a read-out that folds at load.
        faulty: The same model with fault operators.
        plan: The decision.
        report: What was decided, predicted and measured.
    """

    model: ir.Model
    faulty: ir.Model
    plan: StoragePlan
    report: Report
    fail_under: float | None = field(default=None)

    def gate(self) -> None:
        """Raises GateError if the hardened model keeps less than `fail_under` of the clean metric."""
        if self.fail_under is None or self.report.evaluation is None:
            return
        designed = max(*self.plan.fault_model.p01, *self.plan.fault_model.p10)
        mean = {(r.variant, r.flip_rate): r.mean for r in self.report.evaluation.results}
        kept = mean["hardened", designed] / mean["clean", 0.0] if mean["clean", 0.0] else 0.0
        if kept < self.fail_under:
            raise GateError(
                f"the hardened model keeps {kept:.4f} of the clean metric, less than --fail-under {self.fail_under:g}; "
                "raise --budget or take a better --method"
            )


def harden(
    model: str | os.PathLike[str],
    rates: FlipRates | FaultModel | float,
    *,
    calibration: str | os.PathLike[str] | Dataset | None = None,
    evaluation: str | os.PathLike[str] | Dataset | None = None,
    progress: Progress | None = None,
    **options: object,
) -> HardenResult:
    """Hardens an ONNX model against bit flips of its stored weights.

    Args:
        model: Path of the model; the file is not changed.
        rates: A flip rate for all bits, rates a plane, or a fault model.
        calibration: `.npz` file or dataset of inputs without labels; synthetic inputs if None.
        evaluation: `.npz` file or dataset to measure on; nothing is measured if None.
        progress: Shows progress.
        **options: Fields of `HardenOptions`.

    Raises:
        InputError: if the model, the data or an option is unfit.
        GateError: if `target` cannot be met even with every bit protected.
    """
    chosen = HardenOptions(**options)  # type: ignore[arg-type]
    chosen.check(evaluation is not None)
    source = load_model(model)
    source.check_plain()
    specs = input_specs(source.model)
    read = {
        option: load_dataset(Path(data), specs, option) if data is not None and not isinstance(data, Dataset) else data
        for option, data in (("--calibration", calibration), ("--eval", evaluation))
    }
    return harden_source(
        source,
        as_fault_model(rates),
        chosen,
        calibration=read["--calibration"],
        evaluation=read["--eval"],
        progress=progress or Silent(),
    )


def as_fault_model(rates: FlipRates | FaultModel | float) -> FaultModel:
    """A fault model from what the Python interface takes; raises InputError for a rate outside [0, 1)."""
    if isinstance(rates, FaultModel):
        return rates
    if not isinstance(rates, FlipRates):
        rates = FlipRates.uniform(float(rates), LONGEST_WORD)
    return FaultModel(p01=rates.p01, p10=rates.p10)


def harden_source(
    source: SourceModel,
    fault_model: FaultModel,
    options: HardenOptions,
    *,
    calibration: Dataset | None,
    evaluation: Dataset | None,
    progress: Progress,
    command: str | None = None,
) -> HardenResult:
    """`harden` on what was read already; see there."""
    method = options.check(evaluation is not None)
    original = ir.to_proto(source.model) if evaluation is not None else None
    inventory = prepare(source, list(options.include), list(options.exclude), keep_codes=options.keep_codes)
    planner = Planner(
        source,
        inventory,
        fault_model,
        bits=options.bits,
        per_tensor_scales=options.per_tensor_scales,
        protection=options.protection,
        input_scales=options.input_scales,
        keep_codes=options.keep_codes,
    )
    warnings: list[str] = []
    if calibration is not None and method.corrects_bias:
        _calibrate(planner, calibration, options.bias_correction, progress)
    if method.needs_sensitivity:
        _probe(planner, method, calibration, options.seed, progress, warnings)
    results: list[Result] = []
    if original is None or evaluation is None:
        plan = _design(planner, method, options, progress)
        campaign = None
        comparison = []
    else:
        campaign = _campaign(evaluation, options)
        plan = _choose(planner, method, original, evaluation, options, progress)
        results = _evaluate(planner, plan, original, campaign, options.off_design, progress)
        comparison = _compare(planner, plan, campaign, progress) if options.compare else []
    hardened, faulty = carry_out(source, plan)
    return HardenResult(
        hardened,
        faulty,
        plan,
        build_report(source, planner, method, plan, campaign, results, comparison, warnings, command),
        options.fail_under,
    )


def carry_out(source: SourceModel, plan: StoragePlan) -> tuple[ir.Model, ir.Model]:
    """The hardened model of a plan and its instrumented twin, both new; the source's weights must be folded."""
    hardened = source.model.clone()
    StoreWeights(plan)(hardened)
    CorrectBias({tensor.name: tensor.bias for tensor in plan.tensors if tensor.bias is not None})(hardened)
    hardened.metadata_props["qtaml_onnx.version"] = __version__
    hardened.metadata_props["qtaml_onnx.plan_sha256"] = plan.sha256
    hardened.metadata_props["qtaml_onnx.source_sha256"] = source.sha256
    faulty = hardened.clone()
    InjectFaults(plan)(faulty)
    return hardened, faulty


def _calibrate(planner: Planner, calibration: Dataset, correct_biases: bool, progress: Progress) -> None:
    """Takes statistics from all calibration samples up to a limit; they are means, so more is better."""
    planner.find_layers()
    data = calibration.head(_STATISTICS_SAMPLES)
    batch = 64
    with progress.steps("calibrate", -(-len(data) // batch)) as step:
        statistics = calibrate_layers(
            planner.analysis, list(planner.layers.values()), data, batch_size=batch, progress=step
        )
    planner.use_statistics(statistics, correct_biases=correct_biases)


def _probe(
    planner: Planner,
    method: Method,
    calibration: Dataset | None,
    seed: int,
    progress: Progress,
    warnings: list[str],
) -> None:
    if calibration is None:
        warnings.append(
            "no calibration data: sensitivity was measured on synthetic inputs, which may misjudge the tensors; "
            "give --calibration FILE.npz"
        )
    with progress.steps("probe sensitivity", PROBES * len(planner.tensors)) as step:
        try:
            if calibration is not None:
                data = calibration.head(_CALIBRATION_SAMPLES)
            else:
                data = synthetic_dataset(input_specs(planner.source.model), _SYNTHETIC_SAMPLES, seed, runs=PROBES)
            sensitivity = measure_sensitivity(
                planner.source.model,
                planner.probe_weights(method),
                data,
                biases=planner.biases,
                probes=PROBES,
                seed=seed,
                progress=step,
            )
        except InputError as error:
            if calibration is not None:
                raise
            warnings.append(f"synthetic inputs do not run ({error}); tensors are weighed by their magnitude instead")
            return
    planner.use_sensitivity(sensitivity, method)
    if not any(sensitivity.energy.values()):
        warnings.append(
            "noise in the weights does not reach the outputs; tensors are weighed by their magnitude instead"
        )


def _campaign(data: Dataset, options: HardenOptions) -> Campaign:
    return Campaign(
        data, trials=options.trials, seed=options.seed, confidence=options.confidence, workers=options.workers
    )


def _design(planner: Planner, method: Method, options: HardenOptions, progress: Progress) -> StoragePlan:
    """The plan within the budget or the bits a weight."""
    with progress.steps(f"design {method.name}", len(planner.tensors)) as step:
        if options.bits_per_weight is not None:
            return planner.within_bits(method, options.bits_per_weight, step)
        planner.menu(method, step, protectable=options.budget > 0)
    return planner.within_budget(method, options.budget)


def _choose(
    planner: Planner,
    method: Method,
    original: onnx.ModelProto,
    evaluation: Dataset,
    options: HardenOptions,
    progress: Progress,
) -> StoragePlan:
    """The plan within the budget, or the cheapest one that meets the target.

    The target is met where the lower end of the confidence interval over trials reaches it, on the same seeds for all
    candidates; more protection never hurts, so that bisection finds the cheapest.
    """
    if options.target is None:
        return _design(planner, method, options, progress)
    campaign = _campaign(evaluation.head(_SEARCH_SAMPLES), options)
    wanted = options.target * campaign.measure_clean(original).interval.mean
    with progress.steps(f"design {method.name}", len(planner.tensors)) as step:
        menu = planner.menu(method, step)
    sequence = menu.sequence()
    steps = max(1, (len(sequence) - 1).bit_length()) + 1
    low, high = 0, len(sequence) - 1

    with progress.steps("search the smallest budget", steps * options.trials) as step:

        def met(allocation: Allocation) -> bool:
            plan = planner.plan(menu, allocation)
            _hardened, faulty = carry_out(planner.source, plan)
            variant = Variant("hardened", ir.to_proto(faulty))
            interval = campaign.measure_faulty(variant, [planner.rates], progress=step)[0].interval
            return interval.low >= wanted

        if not met(sequence[high]):
            raise GateError(
                f"--target {options.target:g} cannot be met: even with every bit protected, {options.bits}-bit weights "
                "keep less of the clean metric; take longer words with --bits or a lower target"
            )
        while low < high:
            middle = (low + high) // 2
            if met(sequence[middle]):
                high = middle
            else:
                low = middle + 1
    return planner.plan(menu, sequence[high])


def _evaluate(
    planner: Planner,
    plan: StoragePlan,
    original: onnx.ModelProto,
    campaign: Campaign,
    off_design: bool,
    progress: Progress,
) -> list[Result]:
    """Clean, quantised, unprotected and hardened, the last two under the designed rates with the same seeds.

    With `off_design` these two also at half and at twice the designed rates, which the designer rarely knows exactly,
    and at the rates before the margin.
    """
    sweep = [planner.rates]
    if off_design:
        doubled = [_doubled(rates) for rates in (planner.rates.p01, planner.rates.p10)]
        given = planner.rates.scaled(1 / planner.fault_model.margin)
        sweep = [planner.rates.scaled(0.5), given, planner.rates, FlipRates(*doubled)]
        sweep = sorted(dict.fromkeys(sweep), key=lambda rates: max(*rates.p01, *rates.p10))
    baseline = METHODS["none"]
    plain = planner.within_budget(baseline, 0)
    results = [campaign.measure_clean(original)]
    quantised, unprotected = carry_out(planner.source, plain)
    results.append(campaign.measure_fixed(Variant("quantized", ir.to_proto(quantised))))
    hardened, faulty = carry_out(planner.source, plan)
    results.append(campaign.measure_fixed(Variant("hardened", ir.to_proto(hardened))))
    with progress.steps("Monte-Carlo trials", 2 * len(sweep) * campaign.trials) as step:
        for name, model, planes in (("unprotected", unprotected, plain.planes), ("hardened", faulty, plan.planes)):
            variant = Variant(name, ir.to_proto(model))
            seen = [rates.truncated(planes) for rates in sweep]  # what its words see, if the rates differ by plane
            results += campaign.measure_faulty(variant, seen, progress=step)
    return results


def _compare(
    planner: Planner, plan: StoragePlan, campaign: Campaign, progress: Progress
) -> list[tuple[StoragePlan, Result]]:
    """The other methods with at most the plan's protected bits, under the designed rates and on the same seeds."""
    others = [method for method in METHODS.values() if method.name != plan.method and method.weighting != "none"]
    measured = []
    with progress.steps("compare methods", len(others) * campaign.trials) as step:
        for method in others:
            other = planner.within_budget(method, plan.protected_fraction)
            variant = Variant(method.name, ir.to_proto(carry_out(planner.source, other)[1]))
            measured.append((other, campaign.measure_faulty(variant, [planner.rates], progress=step)[0]))
    return measured


def _doubled(rates: Sequence[float]) -> tuple[float, ...]:
    """Twice the rates, but no more than a half, where a bit says nothing any more."""
    return tuple(max(rate, min(2 * rate, 0.5)) for rate in rates)
