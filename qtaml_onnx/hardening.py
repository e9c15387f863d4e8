"""The main job: from a model and flip rates to a hardened model, its plan and its report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from qtaml_onnx.calibrate import calibrate_layers
from qtaml_onnx.campaign import Campaign, Variant
from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.channel_probes import CHANNEL_SAMPLES, channel_energies
from qtaml_onnx.data import Dataset, input_specs, load_dataset, synthetic_dataset
from qtaml_onnx.deviations import DEVICES, ROUNDS, DeviationRestorer, puts_out_reals
from qtaml_onnx.errors import GateError, InputError
from qtaml_onnx.inference_time import measure_inference
from qtaml_onnx.measurement import Models, measure_methods, measure_variants
from qtaml_onnx.methods import METHODS, Method
from qtaml_onnx.modelio import SourceModel, constant_bytes, load_model
from qtaml_onnx.options import HardenOptions
from qtaml_onnx.plan import FaultModel, StoragePlan
from qtaml_onnx.planner import LONGEST_WORD, Allocation, Planner, prepare
from qtaml_onnx.prediction import predict
from qtaml_onnx.progress import Progress, Silent
from qtaml_onnx.report.build import Measurements, build_report
from qtaml_onnx.report.schema import Report
from qtaml_onnx.sensitivity import Sensitivity, measure_sensitivity
from qtaml_onnx.small import SmallStorage
from qtaml_onnx.storage.two_words import LONGEST_PAIR
from qtaml_onnx.sweep import SweepStep, rate_steps
from qtaml_onnx.weights import Inventory

__all__ = ["HardenOptions", "HardenResult", "harden", "harden_source"]

Restore = Callable[[StoragePlan, Progress], StoragePlan]

PROBES = 3
_CALIBRATION_SAMPLES = 128
_STATISTICS_SAMPLES = 1024
_SYNTHETIC_SAMPLES = 8
_INPUTS_WITH_DEFAULTS = 4
"""The IR version from which an initializer that is a graph input may be fed by a caller."""

_MOST_PROBED = 1 << 30
"""Bytes of constants up to which a model is run without being asked to."""

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
        source: The model that was hardened.
    """

    model: ir.Model
    faulty: ir.Model
    plan: StoragePlan
    report: Report
    source: SourceModel

    def gate(self) -> None:
        """Raises GateError if the hardened model keeps less than `fail_under` of the clean metric."""
        gate = self.report.gate
        if gate is not None and not gate.met:
            raise GateError(
                f"the hardened model keeps {gate.kept:.4f} of the clean metric, less than --fail-under "
                f"{gate.fail_under:g}; raise --budget or take a better --method"
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
    specs = input_specs(source.model) if calibration is not None or evaluation is not None else []
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
    sweep: Sequence[SweepStep] | None = None,
) -> HardenResult:
    """`harden` on what was read already; see there. `sweep` takes the place of multiples of the designed rates."""
    method = options.check(evaluation is not None)
    original = ir.to_proto(source.model) if evaluation is not None else None
    inventory = prepare(
        source,
        list(options.include),
        list(options.exclude),
        weights_needed=not options.include_small,
        keep_codes=options.keep_codes,
    )
    planner = Planner(
        source,
        inventory,
        fault_model,
        bits=options.bits,
        per_tensor_scales=options.per_tensor_scales,
        protection=options.protection,
        input_scales=options.input_scales,
        codes={method.name: options.code} if options.code else None,
        keep_codes=options.keep_codes,
        code_books=options.code_books,
    )
    if options.include_small:
        planner.small = SmallStorage(source.model, options.small_copies)
        planner.small.check_any(source.path, inventory)
    warnings = [*source.warnings, *_overridable(source, inventory)]
    if calibration is not None and method.corrects_bias:
        _calibrate(planner, calibration, options.bias_correction, progress)
    if method.needs_sensitivity and _is_probed(source, options, calibration is not None, warnings):
        _probe(planner, method, calibration, options.seed, progress, warnings)
    if options.granularity == "channel":
        probed = planner.sensitivity is not None and any(planner.sensitivity.energy.values())
        data = _probe_data(planner, calibration, options.seed, CHANNEL_SAMPLES) if probed else None
        planner.use_channel_energies(channel_energies(planner, method, data, progress, seed=options.seed), method)
    restore = _restorer(planner, calibration, options.seed)
    plan = _choose(planner, method, original, evaluation, options, restore, progress)

    def plain_sensitivity() -> Sensitivity | None:
        """Without biases that correct themselves: for the methods that have none."""
        if not planner.biases or calibration is None or planner.sensitivity is None:
            return None
        probes = PROBES if options.compare else 1
        with progress.steps("probe plain sensitivity", probes * len(planner.tensors)) as step:
            data = calibration.head(_CALIBRATION_SAMPLES)
            weights = planner.probe_weights(METHODS["uniform-msp"])
            return measure_sensitivity(source.model, weights, data, probes=probes, seed=options.seed, progress=step)

    one_length = options.bits_per_weight is None
    predicted = predict(planner, plan, one_length=one_length, plain_sensitivity=plain_sensitivity)
    hardened, faulty = carry_out(source, plan)
    measured = None
    if original is not None and evaluation is not None:
        campaign = _campaign(evaluation, options)
        models = Models(planner, plan, original, hardened, faulty)
        steps = (sweep or rate_steps(planner.rates)) if options.sweep else []
        results, around = measure_variants(models, campaign, options.off_design, steps, progress)
        comparison = None
        if options.compare:
            if planner.plain_sensitivity is None and (plain := plain_sensitivity()) is not None:
                planner.use_plain_sensitivity(plain)
            comparison = measure_methods(models, campaign, lambda plan: restore(plan, Silent()), progress)
        inference = measure_inference(original, ir.to_proto(hardened), evaluation, options.confidence)
        measured = Measurements(campaign, results, around, comparison, inference, options.fail_under)
    report = build_report(planner, plan, predicted, measured, calibration, warnings, command)
    return HardenResult(hardened, faulty, plan, report, source)


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


def _is_probed(source: SourceModel, options: HardenOptions, calibrated: bool, warnings: list[str]) -> bool:
    """Whether sensitivity is measured: it needs several times the model in memory."""
    if options.sensitivity == "auto" and not calibrated and constant_bytes(source.model) > _MOST_PROBED:
        warnings.append(
            "more than 1 GiB of weights and no calibration data: tensors are weighed by their magnitude; "
            "give --calibration FILE.npz or --sensitivity probe to run the model, which takes several times its size "
            "in memory"
        )
        return False
    return options.sensitivity != "magnitude"


def _overridable(source: SourceModel, inventory: Inventory) -> list[str]:
    """A warning where callers could feed weights: stored words have no such input. IR 3 lists all initializers so."""
    if source.model.ir_version < _INPUTS_WITH_DEFAULTS:
        return []
    names = [weight.name for weight in inventory.weights if weight.value.is_graph_input()]
    if not names:
        return []
    shown = ", ".join(f"'{name}'" for name in names[:3]) + (", …" if len(names) > 3 else "")
    return [
        f"{len(names)} weights are graph inputs with defaults as well ({shown}): they are hardened, "
        "and callers can no longer feed them; keep them as they are with --exclude"
    ]


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
            data = _probe_data(planner, calibration, seed, _CALIBRATION_SAMPLES)
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


def _probe_data(planner: Planner, calibration: Dataset | None, seed: int, samples: int) -> Dataset:
    if calibration is not None:
        return calibration.head(samples)
    return synthetic_dataset(input_specs(planner.source.model), _SYNTHETIC_SAMPLES, seed, runs=PROBES)


def _restorer(planner: Planner, calibration: Dataset | None, seed: int) -> Restore:
    """What finishes a plan: restores the deviations of layer outputs where biases correct themselves."""
    weights = {tensor.name: tensor.weight for tensor in planner.tensors}
    layers = {name: planner.layers[name] for name in sorted(planner.restorable) if puts_out_reals(weights[name])}
    if calibration is None or not layers:
        return lambda plan, _progress: plan
    restorer = DeviationRestorer(
        planner.source.model, lambda plan: carry_out(planner.source, plan)[1], layers, calibration, seed=seed
    )

    def restore(plan: StoragePlan, progress: Progress) -> StoragePlan:
        if not METHODS[plan.method].corrects_bias:
            return plan
        with progress.steps("simulate devices", ROUNDS * DEVICES) as step:
            return restorer(plan, step)

    return restore


def _campaign(data: Dataset, options: HardenOptions) -> Campaign:
    return Campaign(
        data, trials=options.trials, seed=options.seed, confidence=options.confidence, workers=options.workers
    )


def _design(planner: Planner, method: Method, options: HardenOptions, progress: Progress) -> StoragePlan:
    """The plan within the budget or the bits a weight."""
    with progress.steps(f"design {method.name}", len(planner.tensors)) as step:
        if options.bits_per_weight is not None:
            longest = options.longest_word or LONGEST_PAIR
            return planner.within_bits(method, options.bits_per_weight, step, longest_word=longest)
        planner.menu(method, step, protectable=options.budget > 0)
    return planner.within_budget(method, options.budget)


def _choose(
    planner: Planner,
    method: Method,
    original: onnx.ModelProto | None,
    evaluation: Dataset | None,
    options: HardenOptions,
    restore: Restore,
    progress: Progress,
) -> StoragePlan:
    """The plan within the budget, or the cheapest one that meets the target.

    The target is met where the lower end of the confidence interval over trials reaches it, on the same seeds for all
    candidates; more protection never hurts, so that bisection finds the cheapest.
    """
    if options.target is None or original is None or evaluation is None:
        return restore(_design(planner, method, options, progress), progress)
    campaign = _campaign(evaluation.head(_SEARCH_SAMPLES), options)
    wanted = options.target * campaign.measure_clean(original).interval.mean
    with progress.steps(f"design {method.name}", len(planner.tensors)) as step:
        menu = planner.menu(method, step)
    sequence = menu.sequence()
    steps = max(1, (len(sequence) - 1).bit_length()) + 1
    low, high = 0, len(sequence) - 1

    with progress.steps("search the smallest budget", steps * options.trials) as step:

        def met(allocation: Allocation) -> bool:
            plan = restore(planner.plan(menu, allocation), Silent())
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
    return restore(planner.plan(menu, sequence[high]), progress)
