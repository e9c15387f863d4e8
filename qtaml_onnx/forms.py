"""How a design is written into the graph: an affine read-out, a table, or integers for a quantised model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.integer_grid import IntegerGrid
from qtaml_onnx.plan_values import HALF_PRECISION_BITS, WordsType
from qtaml_onnx.storage import Code, ReadOut
from qtaml_onnx.storage.grouped import GroupedCode
from qtaml_onnx.storage.two_words import TwoWordCode
from qtaml_onnx.tensor_plan import Form
from qtaml_onnx.tensors import Scaling, TensorData

__all__ = ["ReadOutForm", "floats", "on_grid", "read_out_form"]


@dataclass(frozen=True)
class ReadOutForm:
    """The part of a tensor's plan that says how the graph reads it; see `TensorPlan` for the fields."""

    form: Form
    words_type: WordsType
    scales: NDArray[np.float32]
    offset: float = 0.0
    table: tuple[float, ...] | None = None
    zero_point: int = 0
    limits: tuple[int, int] | None = None


def floats(values: NDArray[np.floating]) -> tuple[float, ...]:
    """An array as plain numbers."""
    return tuple(float(v) for v in np.ravel(values))


def read_out_form(
    tensor: TensorData, code: Code | TwoWordCode | GroupedCode, readout: ReadOut | None, scaling: Scaling
) -> ReadOutForm:
    """The form of a tensor's read-out.

    Args:
        tensor: The weight.
        code: Its code.
        readout: Its read-out, in normalised weights; of two words a weight the code has it.
        scaling: What normalised weights are multiplied by.

    Raises:
        InputError: if a code of one word has no read-out.
    """
    if isinstance(code, TwoWordCode):
        return ReadOutForm("two-words", "UINT8" if code.lengths[0] <= 8 else "UINT16", scaling.rows)
    if readout is None:
        raise InputError(f"'{tensor.name}' has a code without a read-out")
    if isinstance(code, GroupedCode):
        table = floats(readout.table.astype(np.float16 if code.bits <= HALF_PRECISION_BITS else np.float32))
        return ReadOutForm("table", "UINT8" if code.bits <= 8 else "UINT16", scaling.rows, table=table)
    if tensor.grid is not None:
        return _quantised(tensor, tensor.grid, code, readout, scaling)
    return _affine(code, readout, scaling) or ReadOutForm(
        "table",
        "UINT8" if code.bits <= 8 else "UINT16",
        scaling.rows,
        table=_real_table(code, readout),
    )


def _real_table(code: Code, readout: ReadOut) -> tuple[float, ...]:
    return floats(readout.table.astype(np.float16 if code.bits <= HALF_PRECISION_BITS else np.float32))


def _affine(code: Code, readout: ReadOut, scaling: Scaling) -> ReadOutForm | None:
    """A scale and an offset, where the table is a line in the word's integer value."""
    if code.bits != 8 or code.name not in ("twos-complement", "offset-binary"):
        return None
    signed = code.name == "twos-complement"
    value = np.arange(256, dtype=np.uint8).view(np.int8 if signed else np.uint8).astype(np.float64)
    slope = float(np.ptp(readout.table)) / 255
    offset = float(readout.table[0] - slope * value[0])
    if slope <= 0 or np.abs(slope * value + offset - readout.table).max() > 1e-12 * np.abs(readout.table).max():
        return None
    rows = (scaling.rows.astype(np.float64) * slope).astype(np.float32)
    return ReadOutForm("affine", "INT8" if signed else "UINT8", rows, offset=float(np.float32(-offset / slope)))


def on_grid(tensor: TensorData, grid: IntegerGrid, readout: ReadOut) -> ReadOut:
    """The read-out of kept words as integers of the model's own: rounded, and within what the tensor holds anyway.

    Args:
        tensor: The weight.
        grid: Its integers.
        readout: A read-out of its kept code, in normalised weights.
    """
    low, high = tensor.limits
    integers = np.clip(np.floor(readout.table * grid.half_range + grid.center + 0.5), low, high)
    return ReadOut(readout.kind, (integers - grid.center) / grid.half_range)


def _quantised(tensor: TensorData, grid: IntegerGrid, code: Code, readout: ReadOut, scaling: Scaling) -> ReadOutForm:
    """Integers in the place of the model's own, on the same grid: its steps and zero points stay as they are."""
    if code.name.startswith("stored-"):
        if readout.kind == "plain" and grid.bits == 8 and grid.packing is None:
            return ReadOutForm("dequantize", "INT8" if grid.signed else "UINT8", scaling.rows, zero_point=grid.center)
        if readout.kind != "plain":
            readout = on_grid(tensor, grid, readout)
        integers = np.rint(readout.table * grid.half_range) + grid.center
        return ReadOutForm("integer-table", "UINT8", scaling.rows, table=floats(integers), zero_point=grid.center)
    return ReadOutForm(
        "integer-grid",
        "UINT8" if code.bits <= 8 else "UINT16",
        scaling.rows,
        table=_real_table(code, readout),
        zero_point=grid.center,
        limits=tensor.limits,
    )
