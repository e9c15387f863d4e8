"""What is measured of a hardening: its variants at the designed rates and around them, and the other methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from qtaml_onnx.campaign import Campaign, Result, Variant
from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.comparison import Comparison, compare_methods
from qtaml_onnx.methods import METHODS
from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.planner import Planner
from qtaml_onnx.progress import Progress
from qtaml_onnx.sweep import MeasuredSweep, SweepStep, measure_sweep, scaled, sweep_trials

__all__ = ["Models", "measure_methods", "measure_variants"]


@dataclass(frozen=True)
class Models:
    """A plan with the models that are measured."""

    planner: Planner
    plan: StoragePlan
    original: onnx.ModelProto
    hardened: ir.Model
    faulty: ir.Model


def measure_variants(
    models: Models, campaign: Campaign, off_design: bool, steps: Sequence[SweepStep], progress: Progress
) -> tuple[list[Result], MeasuredSweep | None]:
    """Clean, quantised, unprotected and hardened, the last two under the designed rates with the same seeds.

    With `off_design` these two also at half and at twice the designed rates, which the designer rarely knows exactly,
    and at the rates before the margin. With `steps` a sweep over them.
    """
    planner, plan = models.planner, models.plan
    rates = [planner.rates]
    if off_design:
        given = planner.rates.scaled(1 / planner.fault_model.margin)
        rates = [scaled(planner.rates, 0.5), given, planner.rates, scaled(planner.rates, 2)]
        rates = sorted(dict.fromkeys(rates), key=lambda rates: max(*rates.p01, *rates.p10))
    plain = planner.within_budget(METHODS["none"], 0)
    results = [campaign.measure_clean(models.original)]
    quantised, unprotected = carry_out(planner.source, plain)
    results.append(campaign.measure_fixed(Variant("quantized", ir.to_proto(quantised))))
    results.append(campaign.measure_fixed(Variant("hardened", ir.to_proto(models.hardened))))
    variants = [
        (Variant("unprotected", ir.to_proto(unprotected)), plain.planes),
        (Variant("hardened", ir.to_proto(models.faulty)), plan.planes),
    ]
    with progress.steps("Monte-Carlo trials", 2 * len(rates) * campaign.trials) as step:
        for variant, planes in variants:
            seen = [rate.truncated(planes) for rate in rates]  # what its words see, if the rates differ by plane
            results += campaign.measure_faulty(variant, seen, progress=step)
    if not steps:
        return results, None
    with progress.steps("sweep", 2 * len(steps) * sweep_trials(campaign.trials)) as step:
        return results, measure_sweep(models.original, variants, steps, campaign, step)


def measure_methods(
    models: Models, campaign: Campaign, finish: Callable[[StoragePlan], StoragePlan], progress: Progress
) -> Comparison:
    """The other methods, beside the plan's own; `finish` is what is done to a plan before it is carried out."""
    planner = models.planner

    def instrumented(plan: StoragePlan) -> onnx.ModelProto:
        return ir.to_proto(carry_out(planner.source, finish(plan))[1])

    return compare_methods(planner, models.plan, models.original, instrumented, campaign, progress)
