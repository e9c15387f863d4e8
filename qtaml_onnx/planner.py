"""Makes storage plans: gathers a model's weights, designs each tensor, and puts a chosen allocation into a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.allocation import Option, best_within, greedy_sequence, uniform_sequence
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.errors import InputError
from qtaml_onnx.layers import Layer, LayerStatistics, extra_variance, find_layer, mean_response
from qtaml_onnx.methods import Design, Method, TensorSamples
from qtaml_onnx.modelio import SourceModel
from qtaml_onnx.passes.fold_weights import FoldWeights
from qtaml_onnx.plan import BiasPlan, CodeSpec, FaultModel, LeftOutTensor, StoragePlan, TensorPlan
from qtaml_onnx.sensitivity import Sensitivity
from qtaml_onnx.storage import Code
from qtaml_onnx.storage.tensor import along_channels, channel_scales, normalise
from qtaml_onnx.weights import (
    Inventory,
    Weight,
    constant_array,
    dequantize_parameters,
    find_weights,
    float_weights,
)

__all__ = ["Allocation", "Planner", "TensorData", "prepare"]

_HALF_RANGE = 127
"""Largest magnitude of a symmetric 8-bit weight: normalised weights of quantised models count in 127ths."""

Allocation = tuple[int, ...]


@dataclass(frozen=True)
class TensorData:
    """One weight with all that its design needs.

    Attributes:
        weight: Where it is.
        values: The float weights that the operator sees, in the model's type.
        scales: What normalised weights are multiplied by, float32 [channels] or [1].
        samples: Normalised weights and, for a quantised model, the code of its words.
        zero_point: Of a quantised weight.
    """

    weight: Weight
    values: NDArray[np.floating]
    scales: NDArray[np.float32]
    samples: TensorSamples
    zero_point: int = 0

    @property
    def broadcast_scales(self) -> NDArray[np.float32]:
        """`scales` in a shape that broadcasts against the weights."""
        return along_channels(self.scales, self.values.ndim, self.weight.channel_axis)

    @property
    def magnitude(self) -> float:
        """Σ scale² over all weights: the noise energy in the weights for normalised noise of variance 1."""
        return self.weight.size * float(np.mean(self.scales.astype(np.float64) ** 2))


def prepare(source: SourceModel, include: list[str] | None = None, exclude: list[str] | None = None) -> Inventory:
    """Folds the weights of a model that are computed from constants, in place, and lists what is stored where.

    Raises:
        InputError: if a pattern matches nothing, or there is no weight to store.
    """
    FoldWeights()(source.model)
    inventory = find_weights(source.model).select(include, exclude)
    if not inventory.weights:
        raise InputError(
            f"{source.path}: no weights of Conv, ConvTranspose, Gemm, MatMul or Gather to harden; "
            "`qtaml-onnx inspect` tells why"
        )
    return inventory


def _gather(weight: Weight, per_tensor: bool) -> TensorData:
    values = float_weights(weight)
    if not np.isfinite(values).all():
        raise InputError(f"weight '{weight.name}' has NaN or infinite values; mend the model before hardening")
    node = weight.dequantize
    if node is None:
        axis = None if per_tensor else weight.channel_axis
        scales = channel_scales(values.astype(np.float32), axis)
        return TensorData(weight, values, scales, TensorSamples(normalise(values, scales, axis)))
    words = constant_array(weight.stored)
    scale, point = dequantize_parameters(node, words.shape)
    zero = int(np.ravel(point)[0])
    x = (words.astype(np.float32) - np.float32(zero)) / np.float32(_HALF_RANGE)
    scales = (np.ravel(scale).astype(np.float32) * np.float32(_HALF_RANGE)).astype(np.float32)
    return TensorData(weight, values, scales, TensorSamples(x, _stored_code(words.dtype, zero)), zero)


def _stored_code(dtype: np.dtype[np.generic], zero_point: int) -> Code:
    """The code of 8-bit words as a quantised model has them: every word its own cell."""
    signed = np.arange(-128, 128) if dtype == np.int8 else np.arange(256)
    levels = np.empty(256)
    levels[signed & 255] = (signed - zero_point) / _HALF_RANGE
    boundaries = (signed[:-1] + 0.5 - zero_point) / _HALF_RANGE
    return Code(f"stored-{dtype.name}", 8, boundaries, signed & 255, levels)


class Planner:
    """Everything that is decided about one model under one fault model.

    Attributes:
        source: The model.
        inventory: Its weights.
        fault_model: What is designed for.
        bits: Word length of float weights.
        tensors: The weights' data, in graph order.
        sensitivity: Measured by forward probes; None where no method needs it.
        layers: By weight name, the layers whose bias can correct itself.
        statistics: What calibration says of them; empty without calibration data.
        biases: Plans of their biases.
    """

    def __init__(
        self,
        source: SourceModel,
        inventory: Inventory,
        fault_model: FaultModel,
        *,
        bits: int = 8,
        per_tensor_scales: bool = False,
    ) -> None:
        """Reads the weights; raises InputError if one is not finite or the rates are too few for the word length."""
        self.source = source
        self.inventory = inventory
        self.fault_model = fault_model
        self.bits = bits
        self.rates: FlipRates = fault_model.rates
        self.rates.truncated(bits)  # refuses too few planes before any work
        self.tensors = [_gather(weight, per_tensor_scales) for weight in inventory.weights]
        self.per_tensor_scales = per_tensor_scales
        self.sensitivity: Sensitivity | None = None
        self._designs: dict[tuple[str, bool], list[list[Design]]] = {}
        self.layers: dict[str, Layer] = {}
        self.statistics: dict[str, LayerStatistics] = {}
        self.biases: dict[str, BiasPlan] = {}

    @cached_property
    def probe_weights(self) -> dict[str, tuple[NDArray[np.floating], NDArray[np.floating]]]:
        """What sensitivity probes need: float weights and broadcast scales by name."""
        result = {}
        for tensor in self.tensors:
            scales = along_channels(tensor.scales, tensor.values.ndim, self._axis(tensor))
            result[tensor.weight.name] = (tensor.values, scales)
        return result

    def _axis(self, tensor: TensorData) -> int | None:
        if tensor.weight.dequantize is None and self.per_tensor_scales:
            return None
        return tensor.weight.channel_axis

    def correct_biases(self, statistics: dict[str, LayerStatistics]) -> None:
        """Plans self-correcting biases from calibration statistics of `self.layers`."""
        values = {tensor.weight.name: tensor.values for tensor in self.tensors}
        self.statistics = statistics
        self.biases = {
            name: plan
            for name, found in statistics.items()
            if (plan := _bias_plan(self.layers[name], found, values[name])) is not None
        }

    def find_layers(self) -> None:
        """Looks for the layers whose bias can correct itself."""
        found = {weight.name: find_layer(self.source.model, weight)[0] for weight in self.inventory.weights}
        self.layers = {name: layer for name, layer in found.items() if layer is not None}

    def designs(
        self, method: Method, progress: Callable[[], None] = lambda: None, *, protectable: bool = True
    ) -> list[list[Design]]:
        """For each tensor its designs with 0, 1, 2, … protected planes, or with 0 alone; made once a method."""
        if (method.name, True) in self._designs:
            protectable = True
        key = (method.name, protectable)
        if key not in self._designs:
            made = []
            for tensor in self.tensors:
                made.append(method.designs(tensor.samples, self.rates, self.bits, protectable=protectable))
                progress()
            self._designs[key] = made
        return self._designs[key]

    def _weighting(self, method: Method) -> list[float]:
        if method.weighting != "magnitude" and self.sensitivity is not None:
            energy = self.sensitivity.energy
            if any(energy[tensor.weight.name] > 0 for tensor in self.tensors):
                return [energy[tensor.weight.name] for tensor in self.tensors]
        return [tensor.magnitude for tensor in self.tensors]

    def _options(self, method: Method) -> list[list[Option]]:
        """For each tensor the cost and predicted output noise energy of its designs."""
        return [
            [Option(tensor.weight.size * len(d.protected_planes), weight * d.noise) for d in designs]
            for tensor, designs, weight in zip(
                self.tensors, self.designs(method), self._weighting(method), strict=True
            )
        ]

    @property
    def weight_bits(self) -> int:
        """All stored weight bits at the plan's word lengths."""
        return sum(t.weight.size * (t.samples.fixed.bits if t.samples.fixed else self.bits) for t in self.tensors)

    def sequence(self, method: Method) -> list[Allocation]:
        """Allocations of growing protection, from none to all."""
        options = self._options(method)
        return uniform_sequence(options) if method.weighting == "uniform" else greedy_sequence(options)

    def within(self, method: Method, budget: float) -> Allocation:
        """The allocation that protects at most `budget`, a fraction of all weight bits."""
        if budget == 0:
            return (0,) * len(self.tensors)
        options = self._options(method)
        most = budget * self.weight_bits * (1 + 1e-12)
        if method.weighting != "uniform":
            return best_within(options, most)
        cost = [sum(o[i].cost for o, i in zip(options, a, strict=True)) for a in uniform_sequence(options)]
        return uniform_sequence(options)[max(i for i, c in enumerate(cost) if c <= most)]

    def smallest_overhead(self, method: Method, energy: float) -> float | None:
        """The smallest protected fraction whose predicted output noise energy is at most `energy`; None if none is."""
        options = self._options(method)
        for allocation in self.sequence(method):
            chosen = [o[i] for o, i in zip(options, allocation, strict=True)]
            if sum(option.energy for option in chosen) <= energy:
                return sum(option.cost for option in chosen) / self.weight_bits
        return None

    def plan(self, method: Method, allocation: Sequence[int]) -> StoragePlan:
        """The plan of a method at an allocation."""
        energy = self.sensitivity.energy if self.sensitivity else {}
        all_designs = self.designs(method, protectable=any(allocation))
        return StoragePlan(
            source_sha256=self.source.sha256,
            method=method.name,
            fault_model=self.fault_model,
            tensors=tuple(
                self._tensor_plan(method, tensor, designs[index], stream, energy.get(tensor.weight.name))
                for stream, (tensor, designs, index) in enumerate(
                    zip(self.tensors, all_designs, allocation, strict=True)
                )
            ),
            left_out=tuple(LeftOutTensor(name=item.name, reason=item.reason) for item in self.inventory.left_out),
        )

    def _tensor_plan(
        self, method: Method, tensor: TensorData, design: Design, stream: int, sensitivity: float | None
    ) -> TensorPlan:
        weight = tensor.weight
        bias = self.biases.get(weight.name) if method.corrects_bias else None
        shared = {
            "name": weight.name,
            "op_type": weight.op_type,
            "dtype": weight.dtype.name,
            "shape": weight.shape,
            "channel_axis": self._axis(tensor) if tensor.scales.size > 1 else None,
            "code": CodeSpec.of(design.code),
            "weight_scales": _floats(tensor.scales),
            "readout": design.readout.kind,
            "protected_planes": design.protected_planes,
            "stream": stream,
            "sensitivity": sensitivity,
            "noise": design.noise,
            "signal": float(np.mean(tensor.samples.x.astype(np.float64) ** 2)),
            "bias": bias,
        }
        form = (_quantised_form if weight.dequantize is not None else _float_form)(tensor, design)
        if bias is not None and (gain := self._restored_deviation(tensor, design.noise)) is not None:
            form["scales"] = _floats((np.asarray(form["scales"]) * gain).astype(np.float32))
        return TensorPlan.model_validate(shared | form)

    def _restored_deviation(self, tensor: TensorData, noise: float) -> NDArray[np.float64] | None:
        """The factor an output channel that takes the variance which faults add out of the layer's output again.

        sqrt(s/(s + v)), s the clean variance of the channel, v the variance that the noise adds on x − x̄. Folded into
        the scales, so that it costs nothing; only where there is a scale for each output channel, and not at the
        model's own outputs, whose scale is the caller's.
        """
        name = tensor.weight.name
        layer, statistics = self.layers[name], self.statistics[name]
        outputs = {str(value.name) for value in self.source.model.graph.outputs}
        if layer.output in outputs or tensor.scales.size != len(layer.bias):
            return None
        clean = statistics.output_variance
        added = noise * tensor.scales.astype(np.float64) ** 2 * extra_variance(layer, statistics)
        return np.asarray(np.sqrt(np.divide(clean, clean + added, out=np.ones_like(clean), where=clean > 0)))


def _bias_plan(layer: Layer, statistics: LayerStatistics, weights: NDArray[np.floating]) -> BiasPlan | None:
    """The plan of a self-correcting bias; None if x̄ does not fit half precision."""
    mean = statistics.mean_input.astype(np.float16)
    if not np.isfinite(mean).all():
        return None
    kernel = statistics.coverage.shape
    coverage = statistics.coverage.astype(np.float16)
    target = layer.bias + mean_response(layer, weights, mean.astype(np.float64), coverage.astype(np.float64))
    grouped: tuple[int, ...] | None = None
    taps = (1,) * len(kernel)
    match layer.op_type:
        case "Conv" if layer.groups > 1:
            inputs = weights.shape[1]
            grouped = (layer.groups, len(layer.bias) // layer.groups, inputs, *kernel)
            shape, summed = (layer.groups, 1, inputs, *taps), tuple(range(2, 3 + len(kernel)))
        case "Conv":
            shape, summed = (1, -1, *taps), tuple(range(1, 2 + len(kernel)))
        case "ConvTranspose":
            shape, summed = (-1, 1, *taps), (0, *range(2, 2 + len(kernel)))
        case _:
            shape, summed = ((1, -1), (1,)) if layer.outputs_first else ((-1, 1), (0,))
    return BiasPlan(
        output=layer.output,
        mean_input=_floats(mean),
        mean_shape=shape,
        coverage=None if (coverage == 1).all() else _floats(coverage),
        coverage_shape=kernel,
        summed_axes=summed,
        target=_floats(target.astype(np.float32)),
        grouped_shape=grouped,
        has_bias=layer.has_bias,
    )


def _floats(values: NDArray[np.floating]) -> tuple[float, ...]:
    return tuple(float(v) for v in np.ravel(values))


def _float_form(tensor: TensorData, design: Design) -> dict[str, object]:
    """A scale and an offset where the table is a line in the word's integer value, else the table."""
    code, table = design.code, design.readout.table
    if code.bits == 8 and code.name in ("twos-complement", "offset-binary"):
        value = np.arange(256) if code.name == "offset-binary" else np.arange(256).astype(np.uint8).view(np.int8)
        slope = float(np.ptp(table)) / 255
        line = slope * value.astype(np.float64)
        offset = float(table[0] - line[0])
        if slope > 0 and np.abs(line + offset - table).max() <= 1e-12 * np.abs(table).max():
            return {
                "form": "affine",
                "words_type": "UINT8" if code.name == "offset-binary" else "INT8",
                "scales": _floats((tensor.scales.astype(np.float64) * slope).astype(np.float32)),
                "offset": float(np.float32(-offset / slope)),
            }
    kept = np.float16 if code.bits <= 10 else np.float32
    return {
        "form": "table",
        "words_type": "UINT8" if code.bits <= 8 else "UINT16",
        "scales": _floats(tensor.scales),
        "table": tuple(float(v) for v in table.astype(kept)),
    }


def _quantised_form(tensor: TensorData, design: Design) -> dict[str, object]:
    """Words of a DequantizeLinear: as they are for a plain read-out, else through a table of integers of the same type."""
    signed = tensor.weight.dtype == ir.DataType.INT8
    step = tensor.scales.astype(np.float64) / _HALF_RANGE
    if design.readout.kind == "plain":
        return {
            "form": "dequantize",
            "words_type": "INT8" if signed else "UINT8",
            "scales": _floats(step.astype(np.float32)),
            "zero_point": tensor.zero_point,
        }
    values = design.readout.table * _HALF_RANGE
    stretch = float(np.abs(values).max()) / _HALF_RANGE or 1.0
    zero = 0 if signed else 128
    return {
        "form": "integer-table",
        "words_type": "UINT8",
        "scales": _floats((step * stretch).astype(np.float32)),
        "table": tuple(float(v) for v in np.rint(values / stretch) + zero),
        "zero_point": zero,
    }
