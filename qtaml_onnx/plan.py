"""The storage plan: for each tensor its word length, code, read-out and protected planes. Plain and immutable.

Analysis makes a plan, passes carry it out, reports read it. Nothing in a plan depends on the graph's node order or on
anything measured later.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
from pydantic import ValidationError

from qtaml_onnx import __version__
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.errors import InputError
from qtaml_onnx.plan_checks import check_parts, check_tensor
from qtaml_onnx.plan_values import BiasPlan, ChannelPart, CodeSpec, PlanValue
from qtaml_onnx.tensor_plan import TensorPlan
from qtaml_onnx.textio import read_text

__all__ = [
    "BiasPlan",
    "ChannelPart",
    "CodeSpec",
    "FaultModel",
    "LeftOutTensor",
    "SmallPlan",
    "SmallTensor",
    "StoragePlan",
    "TensorPlan",
    "read_plan",
]

SCHEMA_VERSION = 1


class FaultModel(PlanValue):
    """The flip rates that a plan is designed for, least significant plane first, and where they came from."""

    p01: tuple[float, ...]
    p10: tuple[float, ...]
    device: dict[str, object] | None = None
    location: Literal["weights"] = "weights"
    margin: float = 1.0

    @property
    def rates(self) -> FlipRates:
        """The rates as the channel takes them."""
        return FlipRates(self.p01, self.p10)


class LeftOutTensor(PlanValue):
    """A tensor or operator that the plan does not touch, and why."""

    name: str
    reason: str


class SmallTensor(PlanValue):
    """A tensor beside the weights whose bits are stored several times: its name, what it is, its type and shape."""

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bits(self) -> int:
        """Bits of one copy."""
        return int(np.prod(self.shape, dtype=np.int64)) * ir.DataType[self.dtype].bitwidth


class SmallPlan(PlanValue):
    """How biases, norms, scales and zero points are stored, and the scales, tables and means that hardening adds.

    Attributes:
        copies: How often each bit is stored, read by majority.
        residual_rate: Rate at which a bit is still read wrong.
        tensors: The model's own small tensors.
    """

    copies: int
    residual_rate: float
    tensors: tuple[SmallTensor, ...]

    @property
    def bits(self) -> int:
        """Stored bits of the model's own small tensors, all copies."""
        return self.copies * sum(tensor.bits for tensor in self.tensors)


class StoragePlan(PlanValue):
    """The whole decision for a model.

    Attributes:
        source_sha256: Of the model that it is made for.
        method: How it was made.
        fault_model: What it is designed for.
        protection: The scheme that protected planes are kept by.
        parity_bits: Redundant bits of that scheme; an ideal protected bit has none.
        residual_rate: Rate at which protected planes still flip.
        tensors: How each tensor is stored; of one whose output channels are stored in parts, each part, in a row.
        left_out: What is not, and why.
        small: How the tensors beside the weights are stored; None where they are taken to be safe.
    """

    schema_version: int = SCHEMA_VERSION
    tool_version: str = __version__
    source_sha256: str
    method: str
    fault_model: FaultModel
    protection: str = "ideal"
    parity_bits: int = 0
    residual_rate: float = 0.0
    tensors: tuple[TensorPlan, ...]
    left_out: tuple[LeftOutTensor, ...] = ()
    small: SmallPlan | None = None

    @property
    def tensor_count(self) -> int:
        """Number of tensors, however many parts they are stored in."""
        return len({tensor.name for tensor in self.tensors})

    @property
    def weight_bits(self) -> int:
        """All stored weight bits."""
        return sum(t.size * t.bits for t in self.tensors)

    @property
    def protected_bits(self) -> int:
        """Weight bits in protected planes."""
        return sum(t.size * len(t.protected_planes) for t in self.tensors)

    @property
    def protected_fraction(self) -> float:
        """Protected over all weight bits: the overhead of the comparison with TAC."""
        return self.protected_bits / self.weight_bits if self.weight_bits else 0.0

    @property
    def metadata_bits(self) -> int:
        """Bits of scales, tables and bias corrections, all copies; a table that several tensors share counts once."""
        tables = {t.table_key: t.table_bits for t in self.tensors}
        copies = self.small.copies if self.small is not None else 1
        return copies * (sum(t.metadata_bits for t in self.tensors) + sum(tables.values()))

    @property
    def small_bits(self) -> int:
        """Stored bits of the model's own small tensors, all copies; 0 where they are taken to be safe."""
        return self.small.bits if self.small is not None else 0

    @property
    def stored_bits(self) -> int:
        """All bits that are stored: words, parity, metadata and small tensors."""
        return self.weight_bits + self.parity_bits + self.metadata_bits + self.small_bits

    @property
    def bits_per_weight(self) -> float:
        """All stored bits over the weights of the plan; 0 where it has none."""
        weights = sum(tensor.size for tensor in self.tensors)
        return self.stored_bits / weights if weights else 0.0

    @property
    def planes(self) -> int:
        """Planes of the longest word; a byte of a small tensor has 8."""
        return max(
            (*(max(t.word_lengths) for t in self.tensors), *([8] if self.small is not None or not self.tensors else []))
        )

    @property
    def noise_energy(self) -> float | None:
        """Predicted output noise energy, Σ sensitivity · noise; None if no sensitivity was measured."""
        if any(t.sensitivity is None for t in self.tensors):
            return None
        return sum(t.noise * (t.sensitivity or 0.0) for t in self.tensors)

    def to_json(self) -> str:
        """Canonical JSON: the text whose hash is the plan's."""
        return self.model_dump_json(indent=1, exclude=None if self.small is not None else {"small"}) + "\n"

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def read_plan(path: Path) -> StoragePlan:
    """Reads a plan.

    Raises:
        InputError: if the file is missing, not JSON, or not a plan of this version.
    """
    text = read_text(path, "plan", "keep it beside the hardened model")
    try:
        plan = StoragePlan.model_validate_json(text)
        plan.fault_model.rates.truncated(plan.planes)  # refuses rates out of range, and too few
        for tensor in plan.tensors:
            check_tensor(tensor)
        check_parts(plan.tensors)
        return plan
    except InputError as error:
        raise InputError(f"plan {path}: {error}; make it again with `qtaml-onnx harden`") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"plan {path}: {where}: {first['msg']}; make it again with `qtaml-onnx harden`") from error
