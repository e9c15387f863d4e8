"""What a model stores besides its weights: biases, norms, scales, zero points. They may be put in the fault model too.

They are stored as they are, each bit several times (`qtaml_onnx.storage.repetition`), and so is what hardening adds:
scales, tables, means. Nothing that was trained or derived from training is then taken to be safe.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtaml_onnx.errors import InputError
from qtaml_onnx.graph import constant_array, constant_tensor, is_constant
from qtaml_onnx.operands import role_of
from qtaml_onnx.plan import SmallPlan, SmallTensor, StoragePlan
from qtaml_onnx.sparse import is_sparse
from qtaml_onnx.storage.repetition import FLOAT_LAYOUT, REPEATABLE, copies_needed, residual_rate
from qtaml_onnx.weights import Inventory, constants_of, find_weights, may_be_weights

__all__ = ["SmallConstant", "SmallStorage", "find_small"]

_MOST_BYTES = 1 << 22
"""Larger constants are not small: their copies would not fold."""

_STRUCTURAL = {
    "Clip": (1, 2), "ConstantOfShape": (0,), "Dropout": (1,), "Equal": (0, 1), "Expand": (), "Greater": (0, 1),
    "GreaterOrEqual": (0, 1), "Less": (0, 1), "LessOrEqual": (0, 1), "NonMaxSuppression": (2, 3, 4), "OneHot": (1, 2),
    "Pad": (1, 2), "Pow": (1,), "Range": (0, 1, 2), "Resize": (1, 2, 3), "Upsample": (1,),
}  # fmt: skip
"""Operands that say how a graph computes, not what it learned."""

_INTEGER_OPERANDS = {
    "ConvInteger": (2, 3), "DequantizeLinear": (2,), "DynamicQuantizeLSTM": (9, 11), "GatherBlockQuantized": (3,),
    "MatMulInteger": (2, 3), "MatMulNBits": (3,),
    "QGemm": (2, 5, 6, 8), "QLinearAdd": (2, 5, 7), "QLinearConv": (2, 5, 7, 8), "QLinearMatMul": (2, 5, 7),
    "QLinearMul": (2, 5, 7), "QuantizeLinear": (2,),
}  # fmt: skip
"""Integer operands that are zero points or biases; a bias of 32 bits may also stand before a DequantizeLinear."""


@dataclass(frozen=True)
class SmallConstant:
    """A constant to be stored several times: its name, the value in the graph, and what it is."""

    name: str
    value: ir.Value
    role: str


def find_small(model: ir.Model) -> list[SmallConstant]:
    """The constants of a model that are no weights but hold something trained."""
    weights = find_weights(model).weights
    stored = {id(weight.stored) for weight in weights}
    stored |= {id(value) for weight in weights for value in weight.parameters}  # in its plan
    found = []
    for name, value in constants_of(model):
        if id(value) in stored or not value.uses() or not is_constant(value) or is_sparse(value):
            continue
        tensor = constant_tensor(value)
        if tensor.dtype not in REPEATABLE or not 0 < tensor.nbytes <= _MOST_BYTES:
            continue
        uses = [(use.node.op_type, use.idx) for use in value.uses()]
        if tensor.dtype in FLOAT_LAYOUT:
            if not may_be_weights(value) or np.isnan(constant_array(value).astype(np.float64)).any():
                continue
            if all(index in _STRUCTURAL.get(op_type, ()) for op_type, index in uses):
                continue
        elif not any(
            index in _INTEGER_OPERANDS.get(op_type, ())
            or (op_type == "DequantizeLinear" and tensor.dtype == ir.DataType.INT32)
            for op_type, index in uses
        ):
            continue
        found.append(SmallConstant(name, value, role_of(value).partition(":")[0]))
    return found


class SmallStorage:
    """Puts small tensors into storage plans.

    Attributes:
        tensors: The small tensors of a model.
        copies: How often each bit is stored; None to choose for the flip rates.
    """

    def __init__(self, model: ir.Model, copies: int | None = None) -> None:
        """Looks for the small tensors."""
        self.copies = copies
        self.tensors = tuple(
            SmallTensor(
                name=small.name,
                role=small.role,
                dtype=constant_tensor(small.value).dtype.name,
                shape=tuple(int(n) for n in constant_tensor(small.value).shape),  # type: ignore[arg-type]
            )
            for small in find_small(model)
        )
        names = {id(value): name for name, value in constants_of(model)}
        self._parameters = {
            weight.name: [names[id(value)] for value in weight.parameters] for weight in find_weights(model).weights
        }

    def check_any(self, path: Path, inventory: Inventory) -> None:
        """Raises InputError if there is nothing at all to store."""
        if not self.tensors and not inventory.weights:
            raise InputError(f"{path}: nothing to harden: it holds neither weights nor other trained constants")

    def added_to(self, plan: StoragePlan) -> StoragePlan:
        """The plan with the small tensors; plain storage, which hardens nothing, stores them once.

        Raises:
            InputError: if no number of copies is enough for the rates, or the one given is out of range.
        """
        rates = plan.fault_model.rates
        bits = sum(tensor.bits for tensor in self.tensors) + plan.metadata_bits
        copies = 1 if plan.method == "none" else self.copies or copies_needed(rates, bits)
        small = SmallPlan(copies=copies, residual_rate=residual_rate(rates, copies), tensors=self.tensors)
        names = {tensor.name for tensor in self.tensors}
        names.update(name for tensor in plan.tensors for name in self._parameters.get(tensor.name, ()))
        left_out = tuple(item for item in plan.left_out if item.name not in names)
        return plan.model_copy(update={"small": small, "left_out": left_out})
