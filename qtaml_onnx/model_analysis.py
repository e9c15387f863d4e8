"""What is known of a model's weights before anything is decided: values, scales, layers, statistics, sensitivities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.biases import bias_plan
from qtaml_onnx.channel_groups import Part
from qtaml_onnx.layers import Layer, LayerStatistics, find_layer, product_layer
from qtaml_onnx.methods import Method
from qtaml_onnx.modelio import SourceModel
from qtaml_onnx.plan_values import BiasPlan, CodeSpec
from qtaml_onnx.recoding import analysis_model
from qtaml_onnx.sensitivity import Sensitivity
from qtaml_onnx.storage import Code, WordSums, word_sums
from qtaml_onnx.storage.histogram import sums_under
from qtaml_onnx.storage.tensor import mean_square, part_of
from qtaml_onnx.storage.two_words import long_word_sums
from qtaml_onnx.tensor_plan import TensorPlan
from qtaml_onnx.tensors import Scaling, ScalingKind, TensorData, gather
from qtaml_onnx.weights import Inventory, find_weights

__all__ = ["ModelAnalysis"]

Channels = tuple[int, ...] | None
"""Output channels of a part; None for the whole tensor."""


class ModelAnalysis:
    """What is known of one model's weights.

    Attributes:
        source: The model.
        inventory: Its weights.
        input_scales: Whether inputs of a layer get scales of their own where calibration says how much they vary.
        tensors: The weights' data, in graph order.
        layers: By weight name, the layers whose bias can correct itself.
        statistics: What calibration says of them; empty without calibration data.
        biases: Plans of their biases.
        restorable: Names of layers whose output deviations are restored.
        sensitivity: Measured by forward probes; None where no method needs it.
        plain_sensitivity: The same without self-correcting biases, for methods that have none; None where not measured,
            and then `sensitivity` serves them too.
    """

    def __init__(
        self, source: SourceModel, inventory: Inventory, *, per_tensor_scales: bool = False, input_scales: bool = True
    ) -> None:
        """Reads the weights; raises InputError if one is not finite."""
        self.source = source
        self.inventory = inventory
        self.input_scales = input_scales
        self.tensors = [gather(weight, per_tensor_scales) for weight in inventory.weights]
        self.layers: dict[str, Layer] = {}
        self.statistics: dict[str, LayerStatistics] = {}
        self.biases: dict[str, BiasPlan] = {}
        self.restorable: frozenset[str] = frozenset()
        self.sensitivity: Sensitivity | None = None
        self.plain_sensitivity: Sensitivity | None = None
        self._probed_with: ScalingKind = "peak"
        self._scalings: dict[tuple[str, str], Scaling] = {}
        self._signals: dict[tuple[str, str, Channels], float] = {}
        self._sums: dict[tuple[str, str, Channels, CodeSpec], WordSums] = {}

    @property
    def analysis(self) -> ir.Model:
        """The model with quantised weights as floats: where layers are found and measured."""
        return self._analysis[0]

    @cached_property
    def _analysis(self) -> tuple[ir.Model, dict[str, str]]:
        """The same, made when it is first asked for, and the name of each weight there."""
        return analysis_model(self.source, self.inventory)

    def find_layers(self) -> None:
        """Looks for the layers whose bias can correct itself."""
        weights = {weight.name: weight for weight in find_weights(self.analysis).weights}
        quantised = {weight.name for weight in self.inventory.weights if weight.grid is not None}
        for name, analysed in self._analysis[1].items():
            layer, _reason = find_layer(self.analysis, weights[analysed])
            if layer is None and name in quantised:
                layer = product_layer(self.analysis, weights[analysed])
            if layer is not None:
                self.layers[name] = replace(layer, weight=name)

    def use_statistics(self, statistics: dict[str, LayerStatistics], *, correct_biases: bool) -> None:
        """Takes calibration statistics of `self.layers` for scales, and for self-correcting biases if wanted."""
        self.statistics = statistics
        self._scalings.clear()
        self._signals.clear()
        self._sums.clear()
        if correct_biases:
            tensors = {tensor.name: tensor for tensor in self.tensors}
            placed = {name: found for name, found in statistics.items() if self.layers[name].has_place}
            plans = {n: bias_plan(self.layers[n], found, tensors[n].values) for n, found in placed.items()}
            self.biases = {name: plan for name, plan in plans.items() if plan is not None}
            self.restorable = frozenset({*self.biases, *(statistics.keys() - placed.keys())})

    def scaling(self, method: Method, tensor: TensorData) -> Scaling:
        """How a method normalises a tensor."""
        key = (method.scaling, tensor.name)
        if key not in self._scalings:
            found = self.statistics.get(tensor.name)
            deviation = None
            if self.input_scales and found is not None and self.layers[tensor.name].groups == 1:
                deviation = np.sqrt(found.input_variance)
            self._scalings[key] = tensor.scaling(method.scaling, deviation)
        return self._scalings[key]

    def normalised(self, method: Method, tensor: TensorData) -> NDArray[np.float32]:
        """Normalised weights, float32: what a code is made for."""
        return tensor.normalised(self.scaling(method, tensor))

    def _signal(self, method: Method, part: Part, x: NDArray[np.float32] | None = None) -> float:
        """Mean square of a part's normalised weights; `x` are these, where they are at hand."""
        key = (method.scaling, part.name, _channels(part.channels))
        if key not in self._signals:
            found = part.normalised(self.scaling(method, part.tensor)) if x is None else x
            self._signals[key] = mean_square(found)
        return self._signals[key]

    def stored_sums(self, method: Method, tensor: TensorData, plan: TensorPlan) -> WordSums:
        """Sums over the normalised weights of a plan by the word that each is stored as, or by the long word of two.

        Of a tensor with codes of its own for groups of channels, over the channels of the first group.

        Args:
            method: The method of the plan.
            tensor: The weight.
            plan: Its plan, made here, or that of a part.
        """
        grouped = plan.grouped_code()
        if plan.form == "two-words" or grouped is not None:
            x = part_of(plan, self.normalised(method, tensor))
            if grouped is not None:
                first = np.take(x, np.flatnonzero(np.equal(grouped.groups, 0)), axis=grouped.axis)
                return word_sums(plan.code.code(), first)
            return long_word_sums(plan.code.two_words(), x)
        key = (method.scaling, tensor.name, None if plan.part is None else tuple(plan.part.channels), plan.code)
        if key not in self._sums:
            code = plan.code.code()
            kept = tensor.fixed is not None and code == tensor.fixed
            scaling = tensor.scaling("peak") if kept else self.scaling(method, tensor)
            self._sums[key] = word_sums(code, part_of(plan, tensor.normalised(scaling)))
        return self._sums[key]

    def probe_weights(self, method: Method) -> dict[str, tuple[NDArray[np.floating], NDArray[np.floating]]]:
        """What sensitivity probes need: float weights, and the scale of the noise in each, by name."""
        return {tensor.name: (tensor.values, tensor.units(self.scaling(method, tensor))) for tensor in self.tensors}

    def use_plain_sensitivity(self, sensitivity: Sensitivity) -> None:
        """Takes sensitivities probed with peak scales and without self-correcting biases, for methods without them."""
        self.plain_sensitivity = sensitivity

    def use_sensitivity(self, sensitivity: Sensitivity, method: Method) -> None:
        """Takes sensitivities that were probed with the scales of `method`."""
        self.sensitivity = sensitivity
        self._probed_with = method.scaling

    def _probed(self, method: Method) -> tuple[Sensitivity | None, ScalingKind]:
        """The sensitivities that a method goes by, and the scales they were probed with."""
        if self.plain_sensitivity is not None and not method.corrects_bias:
            return self.plain_sensitivity, "peak"
        return self.sensitivity, self._probed_with

    def _weighting(self, method: Method) -> list[float]:
        """Output noise energy of each tensor for normalised noise of variance 1, or what stands in for it."""
        magnitude = [tensor.weight.size * tensor.unit_energy(self.scaling(method, tensor)) for tensor in self.tensors]
        sensitivity, probed_with = self._probed(method)
        if method.weighting == "magnitude" or sensitivity is None or not any(sensitivity.energy.values()):
            return magnitude
        energy = [sensitivity.energy[tensor.name] for tensor in self.tensors]
        if probed_with == method.scaling:
            return energy
        probed = []
        for tensor in self.tensors:
            probed.append(tensor.weight.size * tensor.unit_energy(self._scalings[probed_with, tensor.name]))
        return [e * m / p for e, m, p in zip(energy, magnitude, probed, strict=True)]

    def _sums_under(self, method: Method, part: Part, x: NDArray[np.float32]) -> Callable[[Code], WordSums]:
        """Word sums of a part's normalised weights under any code, which are kept for the report."""
        under, key = sums_under(x), (method.scaling, part.name, _channels(part.channels))

        def sums(code: Code) -> WordSums:
            return self._sums.setdefault((*key, CodeSpec.of(code)), under(code))

        return sums


def _channels(found: NDArray[np.int64] | None) -> Channels:
    return None if found is None else tuple(map(int, found))
