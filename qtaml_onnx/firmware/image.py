"""A hardened model as an image sees it: what can be written, its constants, and the code of its protected bits."""

from __future__ import annotations

from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.firmware.manifest import Scheme, WeightType
from qtaml_onnx.firmware.parameters import SmallGroup, grid_of, small_groups, with_plain_parameters
from qtaml_onnx.firmware.parity import Coder, LdpcCoder, coder_of
from qtaml_onnx.graph import constant_array
from qtaml_onnx.integer_grid import IntegerGrid
from qtaml_onnx.modelio import PLAN_KEY, SourceModel, load_model
from qtaml_onnx.passes.inject_faults import stored_words
from qtaml_onnx.plan import StoragePlan, read_plan
from qtaml_onnx.plan_values import StoredWords
from qtaml_onnx.protection import scheme
from qtaml_onnx.storage.tensor import decode_tensor
from qtaml_onnx.stored import plan_path
from qtaml_onnx.tensor_plan import TensorPlan

__all__ = ["HardenedModel", "coder_for", "load_hardened", "null_words", "scheme_of", "weight_type"]

_LONGEST_WORD = 16
_MOST_WEIGHTS = 1 << 31
_TYPES: dict[ir.DataType, WeightType] = {
    ir.DataType.FLOAT: "FLOAT",
    ir.DataType.FLOAT16: "FLOAT16",
    ir.DataType.BFLOAT16: "BFLOAT16",
    ir.DataType.DOUBLE: "DOUBLE",
}


class HardenedModel:
    """A hardened model and its plan.

    Attributes:
        path: Its file.
        model: The model.
        plan: Its plan.
        small: Its small tensors, where they are stored several times.
    """

    def __init__(self, source: SourceModel, plan: StoragePlan) -> None:
        """Checks that all of it can be written as an image.

        Raises:
            InputError: if a tensor cannot be written, with the reason.
        """
        self.path, self.model, self.plan = source.path, source.model, plan
        self.small: list[SmallGroup] = small_groups(self.model) if plan.small is not None else []
        if not plan.tensors and not self.small:
            raise InputError(f"{source.path} has no hardened weights; there is nothing to write")
        self._words = stored_words(self.model)
        self._plain = stored_words(with_plain_parameters(self.model, self.small)) if self.small else self._words
        for tensor in plan.tensors:
            _check_tensor(tensor)
            for stored in tensor.stored_words:
                if stored.name not in self._words:
                    raise InputError(
                        f"the stored words '{stored.name}' are not in {source.path}; harden the model again"
                    )

    def value(self, stored: StoredWords) -> ir.Value:
        """The constant that holds stored words."""
        return self._words[stored.name][1]

    def words(self, tensor: TensorPlan, stored: StoredWords) -> NDArray[np.integer]:
        """Some of the stored words of a tensor, flat; read anew each time.

        Raises:
            InputError: if they are not what the plan says.
        """
        words = constant_array(self.value(stored))
        if words.shape != tensor.shape or words.dtype != np.dtype(stored.dtype.lower()):
            raise InputError(f"the words '{stored.name}' are not as the plan says; harden the model again")
        return words.reshape(-1)

    def grid(self, tensor: TensorPlan) -> IntegerGrid | None:
        """What the integers of a quantised tensor stand for, where the plan does not say it."""
        if not tensor.quantized or tensor.steps is not None:
            return None
        return grid_of(tensor, self._plain[tensor.words_name][1])


def load_hardened(path: Path) -> HardenedModel:
    """A hardened model and the plan beside it.

    Raises:
        InputError: if the model is not hardened, its plan is missing or another's, or a tensor cannot be written.
    """
    source = load_model(path)
    if source.instrumented:
        raise InputError(f"{path} is instrumented; give the hardened model")
    wanted = source.model.metadata_props.get(PLAN_KEY)
    if wanted is None:
        raise InputError(f"{path} is not a hardened model (no {PLAN_KEY}); make one with `qtaml-onnx harden`")
    plan = read_plan(plan_path(path))
    if plan.sha256 != wanted:
        raise InputError(f"{plan_path(path)} is not the plan of {path}; harden the model again")
    return HardenedModel(source, plan)


def weight_type(tensor: TensorPlan, grid: IntegerGrid | None) -> WeightType:
    """The type of the weights as the model reads them."""
    if grid is not None:
        if grid.float_type == np.dtype(ml_dtypes.bfloat16):
            return "BFLOAT16"
        return _TYPES[ir.DataType.from_numpy(grid.float_type)]
    return _TYPES[ir.DataType[tensor.steps.dtype if tensor.steps else tensor.dtype]]


def coder_for(protection: Scheme) -> Coder | None:
    """The coder of a manifest's scheme.

    Raises:
        InputError: if the scheme is unknown, or its code is not the one that this program makes.
    """
    coder = coder_of(scheme(protection.name), protection.raw_rate)
    if _scheme(protection.name, protection.raw_rate, coder) != protection:
        raise InputError(f"the manifest's code {protection.name} is not this program's; export the image again")
    return coder


def scheme_of(plan: StoragePlan) -> tuple[Scheme, Coder | None]:
    """How a plan's protected planes are kept, and the coder; None where they have no parity.

    Raises:
        InputError: the code is larger than the C reader takes.
    """
    faults = plan.fault_model
    rate = min(max((a + b) / 2 for a, b in zip(faults.p01, faults.p10, strict=True)), 0.5)
    coder = coder_of(scheme(plan.protection), rate) if plan.protected_bits else None
    return _scheme(plan.protection, rate, coder), coder


def _scheme(name: str, rate: float, coder: Coder | None) -> Scheme:
    return Scheme(
        name=name,
        data_bits=coder.data_bits if coder else 1,
        parity_bits=coder.parity_bits if coder else 0,
        raw_rate=rate,
        ldpc_prior=coder.prior if isinstance(coder, LdpcCoder) else None,
        ldpc_checks_sha256=coder.code.sha256 if isinstance(coder, LdpcCoder) else None,
    )


def _check_tensor(tensor: TensorPlan) -> None:
    if max(tensor.word_lengths) > _LONGEST_WORD or prod(tensor.whole_shape) >= _MOST_WEIGHTS:
        raise InputError(f"'{tensor.name}' is too large for the C reader; --exclude it when hardening")
    steps = tensor.steps.values if tensor.steps is not None else ()
    numbers = [*tensor.scales, *(tensor.input_scales or ()), *(tensor.table or ()), *steps, tensor.offset]
    if not np.isfinite(np.array(numbers)).all():
        raise InputError(f"'{tensor.name}' has constants that are not finite; --exclude it when hardening")


def null_words(tensor: TensorPlan) -> tuple[int, ...]:
    """The word nearest to zero of each code: of one channel as good as of all, as scales are positive.

    0 where weights have two words each: those are never protected, and so no word of theirs is nulled.
    """
    if tensor.form == "two-words":
        return (0,)
    size = 1 << tensor.bits
    words = np.arange(size, dtype=np.uint16 if tensor.words_type == "UINT16" else np.uint8)
    one: dict[str, object] = {"scales": tensor.scales[:1] or (1.0,), "channel_axis": None, "input_scales": None}
    found = []
    for number in range(len(tensor.channel_codes or (None,))):
        if tensor.channel_codes is not None and tensor.table is not None:
            one |= {"channel_codes": None, "table": tensor.table[number * size : (number + 1) * size]}
        values = decode_tensor(tensor.model_copy(update=one), words.view(tensor.words_type.lower()))
        found.append(int(np.argmin(np.abs(values))))
    return tuple(found)
