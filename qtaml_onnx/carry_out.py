"""Makes the two models of a plan: the hardened one, and its instrumented twin."""

from __future__ import annotations

import onnx_ir as ir

from qtaml_onnx import __version__
from qtaml_onnx.modelio import SourceModel
from qtaml_onnx.passes.correct_bias import CorrectBias
from qtaml_onnx.passes.inject_faults import InjectFaults
from qtaml_onnx.passes.repeat_small import RepeatSmall
from qtaml_onnx.passes.store_weights import StoreWeights
from qtaml_onnx.plan import StoragePlan

__all__ = ["carry_out"]


def carry_out(source: SourceModel, plan: StoragePlan) -> tuple[ir.Model, ir.Model]:
    """The hardened model of a plan and its instrumented twin, both new; the source's weights must be folded."""
    hardened = source.model.clone()
    repeat_small = RepeatSmall(plan, hardened)
    StoreWeights(plan)(hardened)
    CorrectBias({tensor.name: tensor.bias for tensor in plan.tensors if tensor.bias is not None})(hardened)
    repeat_small(hardened)
    hardened.metadata_props["qtaml_onnx.version"] = __version__
    hardened.metadata_props["qtaml_onnx.plan_sha256"] = plan.sha256
    hardened.metadata_props["qtaml_onnx.source_sha256"] = source.sha256
    faulty = hardened.clone()
    InjectFaults(plan)(faulty)
    return hardened, faulty
