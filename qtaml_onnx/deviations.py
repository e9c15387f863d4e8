"""Restores the deviations of layer outputs as simulated devices show them.

Faults add variance to the output of a layer. The closed form sqrt(s/(s + v)) of `biases.restored_deviation` takes it
out again as if errors had nothing to do with the weights that they fall on and every layer had its clean input. But the
few large weights that carry most of the signal are read back too small, residual paths and activations do the rest, and
the signal fades with depth. So the factors are corrected by what a few simulated devices show: each is a draw of the
faults, and the calibration samples run through it. Ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import groupby

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.calibrate import LayerMeter
from qtaml_onnx.data import Dataset
from qtaml_onnx.forms import floats
from qtaml_onnx.layers import Layer, LayerStatistics
from qtaml_onnx.methods import METHODS
from qtaml_onnx.passes.inject_faults import RATES_INPUT, SEED_INPUT
from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.tensor_plan import TensorPlan
from qtaml_onnx.weights import Weight

__all__ = ["DEVICES", "ROUNDS", "DeviationRestorer", "puts_out_reals", "transfer_correction"]

DEVICES = 6
"""Simulated devices a round."""

ROUNDS = 2
"""Rounds: the factors of one are the starting point of the next."""

_SAMPLES = 128
_FIRST_SEED = 2**62
"""Seeds of simulated devices are far from those of campaigns: nothing is tuned on the faults that are measured."""

_LARGEST_STEP = 2.0


class DeviationRestorer:
    """Corrects the scales of plans for one model.

    Attributes:
        instrument: Makes the instrumented model of a plan.
        layers: By weight name, layers whose bias corrects itself.
        outputs: Names of values that keep their scale: the model's own outputs, whose scale is the caller's.
        data: Calibration samples.
        seed: Of the simulated devices.
        batch_size: Samples a run.
    """

    def __init__(
        self,
        model: ir.Model,
        instrument: Callable[[StoragePlan], ir.Model],
        layers: Mapping[str, Layer],
        data: Dataset,
        *,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        """Measures the clean model on the samples that the simulated devices will see.

        Args:
            model: The clean model; not changed.
            instrument: Makes the instrumented model of a plan.
            layers: By weight name, layers whose bias corrects itself.
            data: Calibration samples; the first 128 are used, labels are not.
            seed: Of the simulated devices.
            batch_size: Samples a run.

        Raises:
            InputError: if the model does not run on the data.
        """
        self.instrument = instrument
        self.layers = layers
        self.outputs: Collection[str] = {str(value.name) for value in model.graph.outputs}
        self.data = data.head(_SAMPLES)
        self.seed = seed
        self.batch_size = batch_size
        self._clean = LayerMeter(model, list(layers.values())).measure(self.data, batch_size=batch_size)

    def __call__(self, plan: StoragePlan, progress: Callable[[], None] = lambda: None) -> StoragePlan:
        """The plan with corrected scales.

        Args:
            plan: The plan; quantised tensors are left alone, and those without a self-correcting bias or without a
                scale an output channel.
            progress: Called after each simulated device: `ROUNDS` times `DEVICES`.

        Raises:
            InputError: if the instrumented model does not run on the data.
        """
        entries = groupby(plan.tensors, key=lambda tensor: tensor.name)
        layers = {name: self.layers[name] for name, parts in entries if self._scaled(list(parts))}
        if not layers or not METHODS[plan.method].corrects_bias:
            return plan
        rates = np.stack([plan.fault_model.p01, plan.fault_model.p10]).astype(np.float32)
        for number in range(ROUNDS):
            meter = LayerMeter(self.instrument(plan), list(layers.values()))
            seen: list[dict[str, LayerStatistics]] = []
            for device in range(DEVICES):
                seed = (_FIRST_SEED + self.seed + number * DEVICES + device) % 2**63
                extra: dict[str, NDArray[np.generic]] = {
                    SEED_INPUT: np.asarray(seed, dtype=np.int64),
                    RATES_INPUT: rates,
                }
                seen.append(meter.measure(self.data, batch_size=self.batch_size, extra=extra))
                progress()
            tensors = []
            for tensor in plan.tensors:
                if tensor.name in layers:
                    step = transfer_correction(self._clean[tensor.name], [found[tensor.name] for found in seen])
                    own = step if tensor.part is None else step[list(tensor.part.channels)]
                    scales = np.asarray(tensor.scales, dtype=np.float64) * own
                    tensor = tensor.model_copy(update={"scales": floats(scales.astype(np.float32))})
                tensors.append(tensor)
            plan = plan.model_copy(update={"tensors": tuple(tensors)})
        return plan

    def _scaled(self, parts: list[TensorPlan]) -> bool:
        """Whether a tensor's scales, those of all its parts, are corrected."""
        first = parts[0]
        layer = self.layers.get(first.name)
        if layer is None or layer.output in self.outputs or first.form in ("dequantize", "integer-table"):
            return False
        return sum(len(part.scales) for part in parts) == len(layer.bias)


def puts_out_reals(weight: Weight) -> bool:
    """Whether a weight's layer puts out real values, whose variance scales restore.

    Operators on integers saturate, often in place of a ReLU: what a simulated device shows there is no such variance.
    (On a network with one step a tensor, restoring by it cost half the accuracy.)
    """
    return weight.grid is None or weight.dequantize is not None


def transfer_correction(clean: LayerStatistics, faulty: list[LayerStatistics]) -> NDArray[np.float64]:
    """The factor an output channel that brings a layer's output variance over its input variance to the clean value.

    sqrt((s/x) / (ŝ/x̂)): s the variance of the output channel, x the mean variance of the input channels, ŝ and x̂ the
    same on simulated devices, means over these. Correcting each layer for its own share only keeps the corrections of
    all layers at once from adding up to too much.

    Args:
        clean: Of the layer without faults.
        faulty: Of the layer on simulated devices, on the same samples.

    Returns:
        float64 [outputs], from 1/2 to 2; 1 where a channel never varies or a device gave no finite numbers.
    """
    outputs = np.mean([found.output_variance for found in faulty], axis=0)
    inputs = float(np.mean([found.input_variance.mean() for found in faulty]))
    wanted = clean.output_variance * inputs
    found = outputs * float(clean.input_variance.mean())
    usable = np.isfinite(found) & np.isfinite(wanted) & (found > 0) & (wanted > 0)
    ratio = np.sqrt(np.divide(wanted, found, out=np.ones_like(wanted), where=usable))
    return np.asarray(np.clip(ratio, 1 / _LARGEST_STEP, _LARGEST_STEP))
