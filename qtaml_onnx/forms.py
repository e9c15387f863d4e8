"""How a design is written into the graph: as an affine read-out, a table, or through a DequantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.plan import HALF_PRECISION_BITS, Form, WordsType
from qtaml_onnx.storage import Code, ReadOut
from qtaml_onnx.tensors import HALF_RANGE, Scaling, TensorData

__all__ = ["ReadOutForm", "floats", "read_out_form"]


@dataclass(frozen=True)
class ReadOutForm:
    """The part of a tensor's plan that says how the graph reads it; see `TensorPlan` for the fields."""

    form: Form
    words_type: WordsType
    scales: NDArray[np.float32]
    offset: float = 0.0
    table: tuple[float, ...] | None = None
    zero_point: int = 0


def floats(values: NDArray[np.floating]) -> tuple[float, ...]:
    """An array as plain numbers."""
    return tuple(float(v) for v in np.ravel(values))


def read_out_form(tensor: TensorData, code: Code, readout: ReadOut, scaling: Scaling) -> ReadOutForm:
    """The form of a tensor's read-out.

    Args:
        tensor: The weight.
        code: Its code.
        readout: Its read-out, in normalised weights.
        scaling: What normalised weights are multiplied by.
    """
    if tensor.step is not None:
        return _quantised(tensor, readout)
    return _affine(code, readout, scaling) or ReadOutForm(
        "table",
        "UINT8" if code.bits <= 8 else "UINT16",
        scaling.rows,
        table=floats(readout.table.astype(np.float16 if code.bits <= HALF_PRECISION_BITS else np.float32)),
    )


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


def _quantised(tensor: TensorData, readout: ReadOut) -> ReadOutForm:
    """Words of a DequantizeLinear: as they are for a plain read-out, else through a table of integers of that type."""
    signed = tensor.weight.dtype == ir.DataType.INT8
    step = np.asarray(tensor.step, dtype=np.float64)
    if readout.kind == "plain":
        kind: WordsType = "INT8" if signed else "UINT8"
        return ReadOutForm("dequantize", kind, step.astype(np.float32), zero_point=tensor.zero_point)
    values = readout.table * HALF_RANGE
    stretch = float(np.abs(values).max()) / HALF_RANGE or 1.0
    zero = 0 if signed else 128
    rows = (step * stretch).astype(np.float32)
    return ReadOutForm("integer-table", "UINT8", rows, table=floats(np.rint(values / stretch) + zero), zero_point=zero)
