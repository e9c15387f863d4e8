"""From what was chosen for a tensor to its plan: the design, the scales that it is read with, the layer's bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.biases import restored_deviation
from qtaml_onnx.book_choice import BookKind, choose_design
from qtaml_onnx.channel_groups import Part
from qtaml_onnx.codebooks import CodeBooks
from qtaml_onnx.forms import floats, read_out_form
from qtaml_onnx.integer_bias import integer_bias
from qtaml_onnx.layers import Layer, LayerStatistics, extra_variance
from qtaml_onnx.menu import Choice
from qtaml_onnx.methods import Design, Method
from qtaml_onnx.plan_values import BiasPlan, CodeSpec
from qtaml_onnx.recoding import one_step_a_channel, packed_words, rounding_noise, unit_ratio
from qtaml_onnx.storage import Code, WordSums
from qtaml_onnx.storage.grouped import GroupedCode
from qtaml_onnx.storage.tensor import mean_square
from qtaml_onnx.tensor_plan import TensorPlan
from qtaml_onnx.tensors import Scaling, TensorData

__all__ = ["Books", "Correction", "tensor_plan"]


@dataclass(frozen=True)
class Books:
    """What the design of a tensor may draw on.

    Attributes:
        shared: Gives the shared code books.
        kind: Which code books tensors get, see `qtaml_onnx.book_choice`.
        grouped: Whether `auto` may take one a group of channels.
        sums_under: Word sums of these normalised weights, as a function of the code.
        mean_square: Of these normalised weights.
    """

    shared: Callable[[], CodeBooks]
    kind: BookKind
    grouped: bool
    sums_under: Callable[[NDArray[np.float32]], Callable[[Code], WordSums]]
    mean_square: Callable[[NDArray[np.float32]], float]


@dataclass(frozen=True)
class Correction:
    """The layer of a tensor, whose scales restore the deviations of its outputs.

    Attributes:
        bias: Plan of the bias that corrects itself, for float weights; None where the layer has no place for one.
        layer: The layer.
        statistics: Its calibration.
        rescaled: Whether scales of the layer's output channels may be changed: not at the model's own outputs, whose
            scale is the caller's.
    """

    bias: BiasPlan | None
    layer: Layer
    statistics: LayerStatistics
    rescaled: bool


def tensor_plan(
    method: Method,
    part: Part,
    choice: Choice,
    scaling: Scaling,
    books: Books,
    *,
    stream: int,
    share: float,
    correction: Correction | None,
    sensitivity: float | None,
) -> TensorPlan:
    """The plan of a tensor, or of some of its output channels.

    Args:
        method: The method.
        part: What is stored.
        choice: What was chosen for it.
        scaling: How the method normalises the tensor.
        books: What the design may draw on.
        stream: Decorrelates the faults of tensors.
        share: Of all predicted noise energy, times the number of all weights.
        correction: The layer that is corrected; None for none.
        sensitivity: Output noise energy for normalised noise of variance 1 in the part; None if not measured.
    """
    tensor = part.tensor
    weight, grid = tensor.weight, tensor.grid
    kept = choice.design is not None and tensor.fixed is not None
    if kept:
        scaling = tensor.scaling("peak")
    x = part.normalised(scaling)
    design = choice.design or _design(books, choice, part, x, scaling, share)
    code = design.code
    codes = code.codes if isinstance(code, GroupedCode) else (code,)
    noise = design.noise if choice.design is not None else design.noise + rounding_noise(tensor, scaling)
    form = read_out_form(tensor, design.code, design.readout, scaling)
    rows = form.scales.astype(np.float64) * design.gain
    bias = correction.bias if correction is not None else None
    if correction is not None and bias is not None and grid is not None:
        bias = integer_bias(weight, bias, correction.layer, tensor.values, correction.statistics.coverage)
    if correction is not None and form.form not in ("dequantize", "integer-table"):
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
        code=CodeSpec.of(codes[0]),
        channel_codes=tuple(map(CodeSpec.of, codes)) if isinstance(code, GroupedCode) else None,
        channel_groups=code.groups if isinstance(code, GroupedCode) else None,
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
        signal=mean_square(x) if kept else books.mean_square(x),
        bias=bias if part.number == 0 else None,
        part=part.planned(),
    )


def _design(books: Books, choice: Choice, part: Part, x: NDArray[np.float32], scaling: Scaling, share: float) -> Design:
    """The design of a choice that came without: from the code books, or for this part alone where that pays."""
    made = books.shared()
    worth = share * made.worth(choice.bits, choice.protected, pair=choice.pair)
    name = part.name if part.channels is None else f"{part.name} {part.channels.tolist()}"
    if choice.pair:
        return made.pair_design(name, choice.bits, x, worth, books.kind)
    axis = scaling.row_axis if part.tensor.grid is None and part.rows(scaling.rows, scaling).size > 1 else None
    sums = books.sums_under(x)
    if books.kind == "auto" and not books.grouped:
        axis = None
    return choose_design(made, choice.bits, choice.protected, x, axis, worth, books.kind, sums, name=name)


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
