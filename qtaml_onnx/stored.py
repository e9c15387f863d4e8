"""Models as a campaign meets them: plain, hardened with a plan beside them, or instrumented already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_pattern import FaultPattern
from qtaml_onnx.methods import METHODS
from qtaml_onnx.modelio import PLAN_KEY, SourceModel, load_model
from qtaml_onnx.passes.inject_faults import InjectFaults
from qtaml_onnx.plan import FaultModel, StoragePlan, read_plan
from qtaml_onnx.planner import LONGEST_WORD, Planner, prepare
from qtaml_onnx.small import SmallStorage

__all__ = ["StoredModel", "plan_path", "stored_model"]

_QUANTISED_BITS = 8
"""Word length of weights that a model has quantised itself, whatever that of its float weights."""


@dataclass(frozen=True)
class StoredModel:
    """A model whose weights are stored words.

    Attributes:
        source: The file as read; of a plain model, with the weights folded.
        plan: How its weights are stored.
        fixed: The model without faults.
        faulty: The instrumented model.
        hardened: Whether the file was a hardened model; else its weights were quantised plainly, here and now.
    """

    source: SourceModel
    plan: StoragePlan
    fixed: ir.Model
    faulty: ir.Model
    hardened: bool

    @property
    def names(self) -> tuple[str, str]:
        """What results call the model without faults and with them."""
        return ("hardened", "hardened") if self.hardened else ("quantized", "unprotected")


def plan_path(model: Path) -> Path:
    """Where the plan of a hardened model is: `OUT.plan.json` beside `OUT.onnx`."""
    return model.with_suffix(".plan.json")


def stored_model(
    path: Path,
    faults: FaultModel | Callable[[int], FaultModel],
    *,
    bits: int = 8,
    per_tensor_scales: bool = False,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    include_small: bool = False,
    pattern: FaultPattern | None = None,
) -> StoredModel:
    """Reads a model and instruments it: a hardened one by its plan, a plain one after plain quantisation.

    Args:
        path: The model.
        faults: Default rates of the instrumented model, and what a plain model's plan records; a function if they
            depend on the word length, as those of a device do whose top planes are in better cells.
        bits: Word length for a plain model.
        per_tensor_scales: Of a plain model.
        include: Patterns for a plain model.
        exclude: Patterns for a plain model.
        include_small: Whether a plain model's biases, norms, scales and zero points are stored words too, once.
        pattern: How the faults fall, unless independently on all planes that are not protected.

    Raises:
        InputError: if the model is instrumented already, or is hardened and its plan is missing or of another model, or
            patterns are given; if no word has that many bits.
    """
    if not 2 <= bits <= LONGEST_WORD:
        raise InputError(f"--bits {bits} is out of range; plain words have 2 to {LONGEST_WORD} bits")
    source = load_model(path)
    if source.instrumented:
        source.check_plain()
    wanted = source.model.metadata_props.get(PLAN_KEY)
    if wanted is None:
        inventory = prepare(source, include, exclude, weights_needed=not include_small)
        planner = Planner(
            source,
            inventory,
            _for_length(faults, max(bits, _QUANTISED_BITS)),
            bits=bits,
            per_tensor_scales=per_tensor_scales,
        )
        if include_small:
            planner.small = SmallStorage(source.model)
            planner.small.check_any(path, inventory)
        plan = planner.within_budget(METHODS["none"], 0)
        fixed, faulty = carry_out(source, plan)
        if pattern is not None:
            faulty = fixed.clone()
            InjectFaults(plan, pattern=pattern)(faulty)
        return StoredModel(source, plan, fixed, faulty, hardened=False)
    if include or exclude:
        raise InputError(f"{path} is hardened, and its plan says which weights are; leave out --include and --exclude")
    plan = read_plan(plan_path(path))
    if plan.sha256 != wanted:
        raise InputError(f"{plan_path(path)} is not the plan of {path}; harden the model again")
    faulty = source.model.clone()
    InjectFaults(plan, _for_length(faults, plan.planes).rates, pattern=pattern)(faulty)
    return StoredModel(source, plan, source.model, faulty, hardened=True)


def _for_length(faults: FaultModel | Callable[[int], FaultModel], planes: int) -> FaultModel:
    return faults if isinstance(faults, FaultModel) else faults(planes)
