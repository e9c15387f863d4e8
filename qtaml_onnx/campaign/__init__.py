"""Monte-Carlo campaigns: trials of a faulty model, metrics, and intervals."""

from __future__ import annotations

from qtaml_onnx.campaign.metrics import Metric
from qtaml_onnx.campaign.outcomes import OutcomeCounts, Outcomes, outcome_intervals
from qtaml_onnx.campaign.runner import Campaign, Result, StoreOptions, Sweep, Variant
from qtaml_onnx.campaign.sequential import Decision, Stopping, betting_interval, t_mixture_interval
from qtaml_onnx.campaign.statistics import (
    Interval,
    PairedDifference,
    paired_difference,
    t_interval,
    wilson_interval,
)

__all__ = [
    "Campaign",
    "Decision",
    "Interval",
    "Metric",
    "OutcomeCounts",
    "Outcomes",
    "PairedDifference",
    "Result",
    "Stopping",
    "StoreOptions",
    "Sweep",
    "Variant",
    "betting_interval",
    "outcome_intervals",
    "paired_difference",
    "t_interval",
    "t_mixture_interval",
    "wilson_interval",
]
