"""From what was chosen for a tensor to its plan: the design, the scales that it is read with, the layer's bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.biases import restored_deviation
from qtaml_onnx.channel_groups import Part
from qtaml_onnx.codebooks import CodeBooks, restored_gain
from qtaml_onnx.forms import floats, read_out_form
from qtaml_onnx.integer_bias import integer_bias
from qtaml_onnx.layers import Layer, LayerStatistics, extra_variance
from qtaml_onnx.menu import Choice
from qtaml_onnx.methods import Design, Method
from qtaml_onnx.recoding import one_step_a_channel, packed_words, rounding_noise, unit_ratio
from qtaml_onnx.storage import word_sums
from qtaml_onnx.storage.channel_optimized import design_channel_optimized
from qtaml_onnx.storage.tensor import mean_square
from qtaml_onnx.tensor_plan import BiasPlan, CodeSpec, TensorPlan, table_bits
from qtaml_onnx.tensors import Scaling, TensorData

__all__ = ["Correction", "tensor_plan"]


@dataclass(frozen=True)
class Correction:
    """The bias of a tensor's layer that corrects itself.

    Attributes:
        bias: Its plan, for float weights.
        layer: The layer.
        statistics: Its calibration.
        rescaled: Whether scales of the layer's output channels may be changed: not at the model's own outputs, whose
            scale is the caller's.
    """

    bias: BiasPlan
    layer: Layer
    statistics: LayerStatistics
    rescaled: bool


def tensor_plan(
    method: Method,
    part: Part,
    choice: Choice,
    scaling: Scaling,
    books: Callable[[], CodeBooks],
    *,
    stream: int,
    worth: float,
    correction: Correction | None,
    sensitivity: float | None,
) -> TensorPlan:
    """The plan of a tensor, or of some of its output channels.

    Args:
        method: The method.
        part: What is stored.
        choice: What was chosen for it.
        scaling: How the method normalises the tensor.
        books: Gives the shared code books.
        stream: Decorrelates the faults of tensors.
        worth: What the part's noise is worth in bits: its share of all predicted noise energy, times all bits.
        correction: The bias that corrects itself; None for none.
        sensitivity: Output noise energy for normalised noise of variance 1 in the part; None if not measured.
    """
    tensor = part.tensor
    weight, grid = tensor.weight, tensor.grid
    kept = choice.design is not None and tensor.fixed is not None
    if kept:
        scaling = tensor.scaling("peak")
    x = part.normalised(scaling)
    design = choice.design or _design(books(), choice, x, worth)
    noise = design.noise if choice.design is not None else design.noise + rounding_noise(tensor, scaling)
    form = read_out_form(tensor, design.code, design.readout, scaling)
    rows = form.scales.astype(np.float64) * design.gain
    bias = correction.bias if correction is not None else None
    if correction is not None and grid is not None:
        coverage = correction.statistics.coverage
        bias = integer_bias(weight, correction.bias, correction.layer, tensor.values, coverage)
    if bias is not None and correction is not None and form.form not in ("dequantize", "integer-table"):
        rows = rows * _restored(correction, tensor, scaling, noise)
    if sensitivity is not None and kept:
        sensitivity *= unit_ratio(method, tensor, scaling)
    own, scales = part.rows(scaling.rows, scaling), part.rows(rows, scaling)
    return TensorPlan(
        name=tensor.name,
        op_type=weight.op_type,
        dtype=weight.dtype.name,
        shape=part.shape,
        channel_axis=scaling.row_axis if own.size > 1 else None,
        code=CodeSpec.of(design.code),
        form=form.form,
        words_type=form.words_type,
        weight_scales=floats(own),
        scales=floats(scales.astype(np.float32)),
        input_scales=None if scaling.columns is None else floats(scaling.columns),
        input_axis=scaling.column_axis,
        offset=form.offset,
        table=form.table,
        zero_point=form.zero_point,
        limits=form.limits,
        packing=packed_words(tensor),
        steps=one_step_a_channel(tensor),
        parameter_bits=grid.parameter_bits if grid is not None else 0,
        readout=method.readout,
        protected_planes=design.protected_planes,
        stream=stream,
        sensitivity=sensitivity,
        noise=noise,
        signal=mean_square(x),
        bias=bias if part.number == 0 else None,
        part=part.planned(),
    )


def _design(books: CodeBooks, choice: Choice, x: NDArray[np.float32], worth: float) -> Design:
    """The shared code book with a gain of the tensor's own, or a code book of its own.

    Its own pays where it saves a larger share of the model's noise than its table adds to the model's bits.
    """
    rates, planes = books.rates(choice.bits, choice.protected)
    book = books.book(choice.bits, choice.protected)
    gain, noise = restored_gain(book.readout, rates, word_sums(book.code, x))
    shared = Design(book.code, book.readout, planes, noise, gain)
    price = table_bits(choice.bits)
    if worth < price or noise <= 0:
        return shared
    code, readout = design_channel_optimized(x, rates, restore_gain=False)
    gain, own = restored_gain(readout, rates, word_sums(code, x))
    return Design(code, readout, planes, own, gain) if (1 - own / noise) * worth > price else shared


def _restored(
    correction: Correction, tensor: TensorData, scaling: Scaling, noise: float
) -> NDArray[np.float64] | float:
    """The factor a channel that restores the layer's output deviation; 1 where there is no scale to fold it into."""
    layer, rows = correction.layer, tensor.row_units(scaling)
    if not correction.rescaled or scaling.rows.size != len(layer.bias) or rows is None:
        return 1.0
    columns = None if scaling.columns is None else scaling.columns.astype(np.float64)
    added = noise * rows**2 * extra_variance(layer, correction.statistics, columns)
    return restored_deviation(correction.statistics, added)
