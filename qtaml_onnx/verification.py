"""Checks of a hardened model against its original and its plan. Each says what is wrong, and none changes anything."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.data import Dataset, input_specs, synthetic_dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.graph import STANDARD_DOMAINS, constant_array, walk
from qtaml_onnx.memory import available_memory
from qtaml_onnx.modelio import PLAN_KEY, OutputSet, SourceModel, constant_bytes, load_model, save_model
from qtaml_onnx.passes.correct_bias import CorrectBias
from qtaml_onnx.passes.fold_weights import FoldWeights
from qtaml_onnx.passes.inject_faults import stored_words
from qtaml_onnx.passes.repeat_small import SMALL_WORDS
from qtaml_onnx.passes.substitute_weights import SubstituteWeights
from qtaml_onnx.plan import StoragePlan, read_plan
from qtaml_onnx.runtime import LONGEST_RUN, create_session, run_limited
from qtaml_onnx.storage.tensor import decode_integers, decode_tensor, encode_tensor, join_channels, split_words
from qtaml_onnx.stored import plan_path
from qtaml_onnx.tensor_plan import TensorPlan
from qtaml_onnx.validation import first_line
from qtaml_onnx.weights import find_weights, float_dtype, stored_values

__all__ = ["TOLERANCE", "Check", "comparison_options", "verify_files"]

TOLERANCE = 1e-4
"""Largest error of an output without faults, as a share of that output's root mean square."""

HALF_TOLERANCE = 1e-2
"""The same for 16-bit outputs, whose layers each round to 8 or 11 bits."""

_SAMPLES = 4
_IN_MEMORY = 1 << 28
"""Bytes of constants up to which a model is handed to onnxruntime without a file."""

_WHOLE = 2
"""Float weights that a run holds at most: onnxruntime's, and those it lays out anew or folds."""

Feed = dict[str, NDArray[np.generic]]


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
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def verify_files(
    hardened: Path, original: Path, *, data: Dataset | None = None, seed: int = 0, run: bool = True
) -> list[Check]:
    """All checks of a hardened model, each after those that it rests on.

    Tensors are looked at one at a time; the two models are run one after the other, each of them whole in memory.

    Args:
        hardened: The model; its plan is read from beside it.
        original: The model that it was made from.
        data: Inputs to compare on; synthetic ones if None.
        seed: Of synthetic inputs.
        run: Whether the models are run; else the last checks, which load them, are left out.

    Raises:
        InputError: if a file cannot be read, or is not what it should be at all.
    """
    model, source = load_model(hardened), load_model(original)
    if PLAN_KEY not in model.model.metadata_props:
        raise InputError(f"{hardened} is not a hardened model (no {PLAN_KEY}); make one with `qtaml-onnx harden`")
    if model.instrumented:
        raise InputError(f"{hardened} is instrumented; give the hardened model")
    plan = read_plan(plan_path(hardened))
    checks = [
        _provenance(model, source, plan),
        _standard(model.model, source.model),
        _interface(model.model, source.model),
    ]
    FoldWeights()(source.model)
    checks.append(_words(model.model, source.model, plan))
    if plan.small is not None and checks[-1].passed:
        checks.append(_small_words(model.model, source, plan))
    if not run:
        return checks
    with tempfile.TemporaryDirectory(prefix="qtaml-") as name:
        folder = Path(name)
        if all(check.passed for check in checks):
            checks.append(_equal(model, source.model, plan, data, seed, folder))
        if all(check.passed for check in checks):
            checks.append(_folded(model, source.model, plan, folder))
        if any(tensor.quantized for tensor in plan.tensors) and all(check.passed for check in checks):
            checks.append(_kernels(model, source.model, folder))
    return checks


def _provenance(model: SourceModel, source: SourceModel, plan: StoragePlan) -> Check:
    properties = model.model.metadata_props
    if properties[PLAN_KEY] != plan.sha256:
        return Check("plan", False, "the plan beside the model is not its own; harden again")
    if plan.source_sha256 != source.sha256:
        return Check("plan", False, f"the model was not made from {source.path}; name its original")
    return Check("plan", True, f"{plan.tensor_count} tensors, sha256 {plan.sha256[:12]}…")


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
    def values(graph: ir.Graph) -> list[ir.Value]:
        return [*(value for value in graph.inputs if not value.is_initializer()), *graph.outputs]

    before, after = values(source.graph), values(model.graph)
    for old, new in zip(before, after, strict=False):
        if old.name != new.name or old.type != new.type or not _same_shape(old.shape, new.shape):
            was, now = (f"{value.name}: {value.type} {value.shape}" for value in (old, new))
            return Check("interface", False, f"{was} became {now}")
    if len(before) != len(after):
        return Check("interface", False, f"{len(before)} inputs and outputs became {len(after)}")
    return Check("interface", True, f"{len(before)} inputs and outputs as in the original")


def _same_shape(old: ir.Shape | None, new: ir.Shape | None) -> bool:
    """Whether a shape is as it was; axes that had no name may have been given one."""
    if old is None or new is None or len(old) != len(new):
        return old is None and new is None
    unnamed = (
        not isinstance(a, int) and a.value is None and not isinstance(b, int) for a, b in zip(old, new, strict=True)
    )
    return all(free or a == b for free, a, b in zip(unnamed, old, new, strict=True))


def _words(model: ir.Model, source: ir.Model, plan: StoragePlan) -> Check:
    """The stored words are those that the plan makes of the original's weights."""
    stored = stored_words(model)
    weights = {weight.name: weight for weight in find_weights(source).weights}
    for tensor in plan.tensors:
        if any(words.name not in stored for words in tensor.stored_words):
            detail = f"the stored words of '{tensor.label}' are gone: another optimiser folded the read-out; "
            return Check("stored words", False, detail + "hardening goes last, after every other tool")
        if not all(stored[words.name][1].uses() for words in tensor.stored_words):
            return Check("stored words", False, f"nothing reads the stored words of '{tensor.label}'; harden again")
        if tensor.name not in weights:
            return Check("stored words", False, f"the original has no weight '{tensor.name}'")
        shape = weights[tensor.name].shape
        if shape != tensor.whole_shape:
            detail = f"'{tensor.name}' is {list(shape)} in the original and {list(tensor.whole_shape)} in the plan"
            return Check("stored words", False, detail)
        expected = split_words(tensor, encode_tensor(tensor, stored_values(weights[tensor.name])))
        found = [constant_array(stored[words.name][1]) for words in tensor.stored_words]
        if not all(map(np.array_equal, expected, found)):
            return Check(
                "stored words", False, f"the words of '{tensor.label}' are not those of the original's weights"
            )
    return Check("stored words", True, f"{plan.weight_bits} bits as planned")


def _small_words(model: ir.Model, source: SourceModel, plan: StoragePlan) -> Check:
    """The stored bytes of small tensors are those that carrying out the plan again gives."""
    found, expected = ({
        name: constant_array(value)
        for name, (_owner, value) in stored_words(of).items()
        if name.startswith(SMALL_WORDS) and name.endswith(".words")
    } for of in (model, carry_out(source, plan)[0]))  # fmt: skip
    for name, array in expected.items():
        if name not in found:
            return Check("small tensors", False, f"'{name}' is gone: another optimiser folded the read-out")
        if not np.array_equal(array, found[name]):
            return Check("small tensors", False, f"'{name}' is not what the original's small tensors are stored as")
    bits = sum(8 * array.size for array in expected.values())
    copies = plan.small.copies if plan.small is not None else 0
    return Check("small tensors", True, f"{bits} bits as planned, metadata included, {copies} of each")


def _equal(
    model: SourceModel, source: ir.Model, plan: StoragePlan, data: Dataset | None, seed: int, folder: Path
) -> Check:
    """Without faults the model computes what the original does with the weights that the plan reads out.

    The read-out is designed for faulty words, so that its fault-free weights are not exactly the original's: what is
    compared is the graph with the plan's own arithmetic, done here in NumPy.
    """
    name = "equal without faults"
    needed, free = _WHOLE * 4 * sum(tensor.size for tensor in plan.tensors), available_memory()
    if needed > free:
        detail = f"to be run it needs about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; "
        return Check(name, False, detail + "use a larger machine, or leave the run out with --no-run")
    try:
        specs = input_specs(source)
        data = (data or synthetic_dataset(specs, _SAMPLES, seed)).head(_SAMPLES)
        feeds = [feed for feed, _count in data.feeds(_SAMPLES)] or [{}]  # a model without inputs runs as well
        ours = _outputs(model.model, feeds, folder / "hardened.onnx")
        theirs = _outputs(_expected(source, plan), feeds, folder / "expected.onnx")
    except InputError as error:
        return Check(name, False, f"cannot be run on {data.source if data else 'inputs'}: {str(error)[:200]}")
    worst, good = 0.0, True
    for got, wanted in zip(ours, theirs, strict=True):
        off = _relative_error(got, wanted)
        worst = max(worst, off)
        good &= off <= (HALF_TOLERANCE if wanted.dtype.itemsize == 2 else TOLERANCE)
    return Check(name, good, f"largest error {worst:.2g} of the output's rms on {len(data)} samples ({data.source})")


def _expected(source: ir.Model, plan: StoragePlan) -> ir.Model:
    """The original with the weights that the plan reads out without faults, computed when they are written."""
    weights = {weight.name: weight for weight in find_weights(source).weights}

    def decoded(parts: list[TensorPlan]) -> ir.LazyTensor:
        tensor = parts[0]
        weight = weights[tensor.name]
        grid, dtype, shape = weight.grid, ir.DataType.from_numpy(float_dtype(weight)), tensor.whole_shape
        if grid is not None:
            dtype, shape = grid.dtype, shape if grid.packing is None else grid.packing.shape

        def compute() -> ir.TensorProtocol:
            stored = stored_values(weight)
            if grid is not None:
                return ir.tensor(grid.constant(decode_integers(tensor, encode_tensor(tensor, stored))))
            read = [decode_tensor(part, encode_tensor(part, stored)) for part in parts]
            return ir.tensor(join_channels(parts, read).astype(dtype.numpy()))

        return ir.LazyTensor(compute, dtype=dtype, shape=ir.Shape(shape))

    expected = source.clone()
    entries = groupby(plan.tensors, key=lambda tensor: tensor.name)
    SubstituteWeights({name: decoded(list(parts)) for name, parts in entries})(expected)
    CorrectBias({tensor.name: tensor.bias for tensor in plan.tensors if tensor.bias is not None})(expected)
    return expected


def _outputs(model: ir.Model, feeds: list[Feed], path: Path) -> list[NDArray[np.generic]]:
    """The outputs of a model, one run after the other."""
    session = _session(model, comparison_options(), path)
    return [np.asarray(value) for feed in feeds for value in run_limited(session, feed, LONGEST_RUN)]


def _session(model: ir.Model, options: ort.SessionOptions, path: Path) -> ort.InferenceSession:
    """A session of a model, through a file with external data where the model is large: that is read in place."""
    if constant_bytes(model) <= _IN_MEMORY:
        try:
            proto = ir.to_proto(model)
        except Exception as error:  # onnx_ir wraps whatever went wrong
            raise InputError(f"the model cannot be written to run it ({first_line(error)}); export it again") from error
        return create_session(proto, options)
    with OutputSet() as outputs:
        save_model(model, outputs, path, external_data=True)
    session = create_session(path, options)
    for file in (path, path.with_name(f"{path.name}.data")):
        file.unlink()
    return session


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


def _folded(model: SourceModel, source: ir.Model, plan: StoragePlan, folder: Path) -> Check:
    """After onnxruntime's load-time folding the model has no operator that the original, so folded, has not.

    But for the DequantizeLinear of a bias that the original had not: it becomes part of an integer operator.
    """
    basic = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        left = _operators_at_inference(model.model, basic, folder) - _operators_at_inference(source, basic, folder)
    except InputError as error:
        return Check("read-out folded", False, f"cannot be loaded: {str(error)[:200]}")
    biases = [tensor.bias.quantized for tensor in plan.tensors if tensor.bias is not None]
    left -= Counter(DequantizeLinear=sum(bool(bias.step) for bias in biases if bias is not None))
    if left:
        what = ", ".join(f"{count} {op_type}" for op_type, count in sorted(left.items()))
        return Check("read-out folded", False, f"operators that read stored words at inference: {what}")
    return Check("read-out folded", True, "no operator reads stored words at inference")


def _kernels(model: SourceModel, source: ir.Model, folder: Path) -> Check:
    """Of a quantised model onnxruntime makes, by default, the very operators that it makes of the original."""
    default = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    try:
        ours, theirs = (_operators_at_inference(one, default, folder) for one in (model.model, source))
    except InputError as error:
        return Check("integer kernels", False, f"cannot be loaded: {str(error)[:200]}")
    if ours != theirs:
        what = ", ".join(
            f"{ours[name]} {name}, not {theirs[name]}" for name in sorted((ours - theirs) + (theirs - ours))
        )
        return Check("integer kernels", False, f"not those of the original: {what}")
    return Check("integer kernels", True, f"{ours.total()} operators as in the original")


def _operators_at_inference(model: ir.Model, level: ort.GraphOptimizationLevel, folder: Path) -> Counter[str]:
    """How many operators of each type are left when onnxruntime has loaded a model."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    _session(model, options, folder / "model.onnx")
    optimised = ir.from_proto(onnx.load(options.optimized_model_filepath, load_external_data=False))
    for file in (folder / "optimised.onnx", folder / "weights.data"):
        file.unlink(missing_ok=True)
    return Counter(node.op_type for _root, node in walk(optimised) if node.op_type != "Constant")
