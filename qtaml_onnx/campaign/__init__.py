"""Monte-Carlo campaigns: trials of a faulty model, metrics, and intervals."""

from __future__ import annotations

from qtaml_onnx.campaign.metrics import Metric
from qtaml_onnx.campaign.statistics import Interval, t_interval, wilson_interval
from qtaml_onnx.campaign.trials import Campaign, Result, Variant

__all__ = ["Campaign", "Interval", "Metric", "Result", "Variant", "t_interval", "wilson_interval"]
