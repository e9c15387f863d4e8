"""The other methods beside the one chosen: at its budget, and at several budgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from qtaml_onnx.campaign import Campaign, Result, Variant
from qtaml_onnx.methods import METHODS
from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.planner import Planner
from qtaml_onnx.progress import Progress
from qtaml_onnx.sweep import quick_campaign, sweep_trials

__all__ = ["BUDGETS", "Comparison", "compare_methods"]

BUDGETS = (0.0, 1 / 32, 1 / 8, 1 / 4, 1 / 2)
"""Protected fractions of the frontier: three of them are whole planes, which Uniform-MSP alone can take."""

_SATURATED = 0.99
"""Share of the clean metric from which on more protection is not measured: there is nothing left to gain."""

Measured = list[tuple[StoragePlan, Result]]
Instrumented = Callable[[StoragePlan], onnx.ModelProto]
Step = Callable[[], None]


@dataclass(frozen=True)
class Comparison:
    """What `--compare` measured.

    Attributes:
        at_budget: The other methods with at most the plan's protected bits, on all samples and trials.
        frontier: All methods at several budgets, on fewer.
        frontier_samples: How many samples those are.
        output_energy: The clean outputs' energy that predicted noise is measured by; 0 if not known.
    """

    at_budget: Measured
    frontier: Measured
    frontier_samples: int
    output_energy: float


def compare_methods(
    planner: Planner,
    plan: StoragePlan,
    original: onnx.ModelProto,
    instrumented: Instrumented,
    campaign: Campaign,
    progress: Progress,
) -> Comparison:
    """Measures the methods under the designed rates, on the seeds of the campaign.

    Args:
        planner: Makes the plans.
        plan: The one that the others stand beside.
        original: The clean model.
        instrumented: Gives a plan's model with fault operators.
        campaign: Gives data, trials, seed, confidence and workers.
        progress: Shows progress.
    """
    methods = [method for method in METHODS.values() if method.weighting != "none"]

    def measure(made: StoragePlan, run: Campaign, step: Step) -> Result:
        return run.measure_faulty(Variant(made.method, instrumented(made)), [planner.rates], progress=step)[0]

    others = [method for method in methods if method.name != plan.method]
    at_budget: Measured = []
    with progress.steps("compare methods", len(others) * campaign.trials) as step:
        for method in others:
            other = planner.within_budget(method, plan.protected_fraction)
            at_budget.append((other, measure(other, campaign, step)))
    small = quick_campaign(campaign, sweep_trials(campaign.trials))
    enough = _SATURATED * small.measure_clean(original).interval.mean
    frontier: Measured = []
    with progress.steps("frontier of methods", len(methods) * len(BUDGETS) * small.trials) as step:
        for method in methods:
            last = -1
            for budget in BUDGETS:
                made = planner.within_budget(method, budget)
                if made.protected_bits == last:
                    continue
                last = made.protected_bits
                frontier.append((made, measure(made, small, step)))
                if frontier[-1][1].interval.mean >= enough:
                    break
    energy = planner.sensitivity.output_energy if planner.sensitivity is not None else 0.0
    return Comparison(at_budget, frontier, len(small.data), energy)
