"""What is looked at before anything is decided: the model with computed weights folded, and its weights."""

from __future__ import annotations

from qtaml_onnx.errors import InputError
from qtaml_onnx.modelio import SourceModel
from qtaml_onnx.passes.fold_weights import FoldWeights
from qtaml_onnx.tensors import LONGEST_KEPT
from qtaml_onnx.weights import Inventory, LeftOut, find_weights

__all__ = ["prepare"]


def prepare(
    source: SourceModel,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    *,
    weights_needed: bool = True,
    keep_codes: bool = False,
) -> Inventory:
    """Folds the weights of a model that are computed from constants, in place, and lists what is stored where.

    With `keep_codes`, quantised weights whose words cannot be kept are left out.

    Raises:
        InputError: if a pattern matches nothing, or there is no weight to store and one is needed.
    """
    FoldWeights()(source.model)
    inventory = find_weights(source.model).select(include, exclude)
    if keep_codes:
        long = [weight for weight in inventory.weights if weight.grid is not None and weight.grid.bits > LONGEST_KEPT]
        inventory.weights = [weight for weight in inventory.weights if weight not in long]
        inventory.left_out += [LeftOut(weight.name, "words of 16 bits: too long for --keep-codes") for weight in long]
    if weights_needed and not inventory.weights:
        raise InputError(
            f"{source.path}: no weights to harden: no constant operand of Conv, Gemm, MatMul, Gather or the like; "
            "`qtaml-onnx inspect` tells what is left out and why"
        )
    return inventory
