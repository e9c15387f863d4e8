"""Checks of a hardened model against its original and its plan. Each says what is wrong, and none changes anything."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from qtaml_onnx.data import Dataset, input_specs, synthetic_dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.graph import STANDARD_DOMAINS, constant_array, walk
from qtaml_onnx.modelio import PLAN_KEY, SourceModel, load_model
from qtaml_onnx.passes.correct_bias import CorrectBias
from qtaml_onnx.passes.fold_weights import FoldWeights
from qtaml_onnx.passes.inject_faults import stored_words
from qtaml_onnx.passes.substitute_weights import SubstituteWeights
from qtaml_onnx.plan import StoragePlan, read_plan
from qtaml_onnx.runtime import create_session
from qtaml_onnx.storage.tensor import decode_integers, decode_tensor, encode_tensor
from qtaml_onnx.stored import plan_path
from qtaml_onnx.weights import find_weights, float_dtype, stored_values

__all__ = ["TOLERANCE", "Check", "comparison_options", "verify_files"]

TOLERANCE = 1e-4
"""Largest error of an output without faults, as a share of that output's root mean square."""

HALF_TOLERANCE = 1e-2
"""The same for 16-bit outputs, whose layers each round to 8 or 11 bits."""

_SAMPLES = 4


@dataclass(frozen=True)
class Check:
    """One check: its name, whether it passed, and what was seen."""

    name: str
    passed: bool
    detail: str


def comparison_options() -> ort.SessionOptions:
    """Session options under which equal weights give equal outputs whether they are constant or computed.

    onnxruntime treats constant weights differently from computed ones: in the fusions of level "extended" (a scale that
    runs over a whole weight moves behind its MatMul), in the layout pass beyond it, and in pre-packing. All change the
    order of sums. Integer kernels are read as float here as well.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def verify_files(hardened: Path, original: Path, *, data: Dataset | None = None, seed: int = 0) -> list[Check]:
    """All checks of a hardened model.

    Args:
        hardened: The model; its plan is read from beside it.
        original: The model that it was made from.
        data: Inputs to compare on; synthetic ones if None.
        seed: Of synthetic inputs.

    Raises:
        InputError: if a file cannot be read, or is not what it should be at all.
    """
    model, source = load_model(hardened), load_model(original)
    if PLAN_KEY not in model.model.metadata_props:
        raise InputError(f"{hardened} is not a hardened model (no {PLAN_KEY}); make one with `qtaml-onnx harden`")
    plan = read_plan(plan_path(hardened))
    checks = [
        _provenance(model, source, plan),
        _standard(model.model, source.model),
        _interface(model.model, source.model),
    ]
    FoldWeights()(source.model)
    checks.append(_words(model.model, source.model, plan))
    if all(check.passed for check in checks):
        checks.append(_equal(model.model, source.model, plan, data, seed))
    if all(check.passed for check in checks):
        checks.append(_folded(model.model, source.model, plan))
        if any(tensor.quantized for tensor in plan.tensors):
            checks.append(_kernels(model.model, source.model))
    return checks


def _provenance(model: SourceModel, source: SourceModel, plan: StoragePlan) -> Check:
    properties = model.model.metadata_props
    if properties[PLAN_KEY] != plan.sha256:
        return Check("plan", False, "the plan beside the model is not its own; harden again")
    if plan.source_sha256 != source.sha256:
        return Check("plan", False, f"the model was not made from {source.path}; name its original")
    return Check("plan", True, f"{len(plan.tensors)} tensors, sha256 {plan.sha256[:12]}…")


def _standard(model: ir.Model, source: ir.Model) -> Check:
    """The checker's verdict is `load_model`'s already; here: no operator that the original did not need."""
    known = {node.op_identifier()[:2] for _root, node in walk(source)}
    foreign = sorted(
        f"{domain}::{name}"
        for domain, name in {node.op_identifier()[:2] for _root, node in walk(model)}
        if domain not in STANDARD_DOMAINS and (domain, name) not in known
    )
    if foreign:
        return Check("standard operators", False, f"{', '.join(foreign)} is not an ONNX operator")
    changed = [
        f"{name} {old} → {new}"
        for name, old, new in (
            ("opset", source.opset_imports.get(""), model.opset_imports.get("")),
            ("IR version", source.ir_version, model.ir_version),
        )
        if old != new
    ]
    if changed:
        return Check("standard operators", False, f"changed: {', '.join(changed)}")
    return Check("standard operators", True, f"opset {model.opset_imports.get('')}, IR version {model.ir_version}")


def _interface(model: ir.Model, source: ir.Model) -> Check:
    def described(graph: ir.Graph) -> list[str]:
        inputs = [value for value in graph.inputs if not value.is_initializer()]
        return [f"{value.name}: {value.type} {value.shape}" for value in (*inputs, *graph.outputs)]

    before, after = described(source.graph), described(model.graph)
    differing = [f"{old} became {new}" for old, new in zip(before, after, strict=False) if old != new]
    if len(before) != len(after):
        differing.append(f"{len(before)} inputs and outputs became {len(after)}")
    if differing:
        return Check("interface", False, differing[0])
    return Check("interface", True, f"{len(before)} inputs and outputs as in the original")


def _words(model: ir.Model, source: ir.Model, plan: StoragePlan) -> Check:
    """The stored words are those that the plan makes of the original's weights."""
    stored = stored_words(model)
    weights = {weight.name: weight for weight in find_weights(source).weights}
    for tensor in plan.tensors:
        if tensor.words_name not in stored:
            return Check("stored words", False, f"'{tensor.words_name}' is gone: another optimiser folded the read-out")
        if tensor.name not in weights:
            return Check("stored words", False, f"the original has no weight '{tensor.name}'")
        expected = encode_tensor(tensor, stored_values(weights[tensor.name]))
        if not np.array_equal(expected, constant_array(stored[tensor.words_name][1])):
            return Check("stored words", False, f"the words of '{tensor.name}' are not those of the original's weights")
    return Check("stored words", True, f"{plan.weight_bits} bits as planned")


def _equal(model: ir.Model, source: ir.Model, plan: StoragePlan, data: Dataset | None, seed: int) -> Check:
    """Without faults the model computes what the original does with the weights that the plan reads out.

    The read-out is designed for faulty words, so that its fault-free weights are not exactly the original's: what is
    compared is the graph with the plan's own arithmetic, done here in NumPy.
    """
    weights = {weight.name: weight for weight in find_weights(source).weights}
    read: dict[str, NDArray[np.generic]] = {}
    for tensor in plan.tensors:
        weight = weights[tensor.name]
        words = encode_tensor(tensor, stored_values(weight))
        if tensor.quantized:
            read[tensor.name] = decode_integers(tensor, words)
        else:
            read[tensor.name] = decode_tensor(tensor, words).astype(float_dtype(weight))
    expected = source.clone()
    SubstituteWeights(read)(expected)
    CorrectBias({tensor.name: tensor.bias for tensor in plan.tensors if tensor.bias is not None})(expected)
    options = comparison_options()
    try:
        ours = create_session(ir.to_proto(model), options)
        theirs = create_session(ir.to_proto(expected), options)
        specs = input_specs(source)
    except InputError as error:
        return Check("equal without faults", False, f"cannot be run: {str(error)[:200]}")
    data = (data or synthetic_dataset(specs, _SAMPLES, seed)).head(_SAMPLES)
    worst, good = 0.0, True
    for feed, _count in list(data.feeds(_SAMPLES)) or [({}, 1)]:  # a model without inputs runs as well
        try:
            pairs = list(zip(ours.run(None, feed), theirs.run(None, feed), strict=True))
        except Exception as error:  # onnxruntime raises types of its own, without a common base
            return Check("equal without faults", False, f"does not run on {data.source}: {str(error).splitlines()[0]}")
        for got, wanted in pairs:
            off = _relative_error(np.asarray(got), np.asarray(wanted))
            worst = max(worst, off)
            good &= off <= (HALF_TOLERANCE if np.asarray(wanted).dtype.itemsize == 2 else TOLERANCE)
    detail = f"largest error {worst:.2g} of the output's rms on {len(data)} samples ({data.source})"
    return Check("equal without faults", good, detail)


def _relative_error(got: NDArray[np.generic], wanted: NDArray[np.generic]) -> float:
    if got.shape != wanted.shape:
        return float("inf")
    if not np.issubdtype(got.dtype, np.floating):
        return float(not np.array_equal(got, wanted))
    if not got.size:
        return 0.0
    same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
    error = np.where(same, 0, got.astype(np.float64) - wanted.astype(np.float64))
    rms = float(np.sqrt(np.mean(wanted.astype(np.float64)[np.isfinite(wanted)] ** 2))) or 1.0
    return float(np.abs(error).max()) / rms


def _folded(model: ir.Model, source: ir.Model, plan: StoragePlan) -> Check:
    """After onnxruntime's load-time folding the model has no operator that the original, so folded, has not.

    But for the DequantizeLinear of a bias that the original had not: it becomes part of an integer operator.
    """
    basic = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    left = _operators_at_inference(model, basic) - _operators_at_inference(source, basic)
    biases = [tensor.bias.quantized for tensor in plan.tensors if tensor.bias is not None]
    left -= Counter(DequantizeLinear=sum(bool(bias.step) for bias in biases if bias is not None))
    if left:
        what = ", ".join(f"{count} {op_type}" for op_type, count in sorted(left.items()))
        return Check("read-out folded", False, f"operators that read stored words at inference: {what}")
    return Check("read-out folded", True, "no operator reads stored words at inference")


def _kernels(model: ir.Model, source: ir.Model) -> Check:
    """Of a quantised model onnxruntime makes, by default, the very operators that it makes of the original."""
    default = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    ours, theirs = _operators_at_inference(model, default), _operators_at_inference(source, default)
    if ours != theirs:
        what = ", ".join(
            f"{ours[name]} {name}, not {theirs[name]}" for name in sorted((ours - theirs) + (theirs - ours))
        )
        return Check("integer kernels", False, f"not those of the original: {what}")
    return Check("integer kernels", True, f"{ours.total()} operators as in the original")


def _operators_at_inference(model: ir.Model, level: ort.GraphOptimizationLevel) -> Counter[str]:
    """How many operators of each type are left when onnxruntime has loaded a model."""
    with tempfile.TemporaryDirectory(prefix="qtaml-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        create_session(ir.to_proto(model), options)
        optimised = ir.from_proto(onnx.load(options.optimized_model_filepath, load_external_data=False))
    return Counter(node.op_type for _root, node in walk(optimised) if node.op_type != "Constant")
