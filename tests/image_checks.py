"""Compares what the C reader gives with the ONNX read-out of the imported model: equal bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from c_reader import CReader, Reading, exported, flip
from layer_models import LAYERS
from numpy.typing import NDArray
from onnx import TensorProto
from small_models import Case
from stored_models import Stored, run, source_model

from qtaml_onnx import import_image
from qtaml_onnx.calibrate import calibrate_layers
from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.data import Dataset
from qtaml_onnx.firmware.manifest import Manifest
from qtaml_onnx.methods import METHODS
from qtaml_onnx.plan import FaultModel, StoragePlan
from qtaml_onnx.planner import Planner, prepare
from qtaml_onnx.storage.tensor import along_channels, decode_integers, decode_tensor, join_channels, join_words
from qtaml_onnx.tensor_plan import TensorPlan
from qtaml_onnx.weights import find_weights

Array = NDArray[Any]


def read_in_onnxruntime(proto: onnx.ModelProto, case: Case, plan: StoragePlan) -> dict[str, Array]:
    """The weights that onnxruntime computes at load, of the tensors whose read-out is in the main graph."""
    makers = {output: node for node in proto.graph.node for output in node.output}
    readers = {name: node for node in proto.graph.node for name in node.input}
    wanted: dict[str, str] = {}
    for tensor in plan.tensors:
        value = tensor.words_name
        if not tensor.quantized:
            if tensor.name in makers and tensor.dtype != "BFLOAT16":  # whose arrays onnxruntime does not hand out
                wanted[tensor.name] = tensor.name
            continue
        while value in readers and readers[value].op_type not in ("DequantizeLinear", "QLinearConv"):
            value = readers[value].output[0]
        if value in readers and readers[value].op_type == "DequantizeLinear":
            wanted[tensor.name] = readers[value].output[0]
    probed = onnx.ModelProto()
    probed.CopyFrom(proto)
    inferred = {info.name: info for info in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    kept = {output.name for output in proto.graph.output}
    probed.graph.output.extend(inferred[name] for name in wanted.values() if name not in kept)
    names = [output.name for output in probed.graph.output]
    found = dict(zip(names, run(probed, case.feeds), strict=True)) if wanted else {}
    return {tensor: found[value] for tensor, value in wanted.items()}


def check(reading: Reading, manifest: Manifest, image: Path, hardened: Path, case: Case | None) -> int:
    """Compares with the imported model; gives how many tensors onnxruntime itself was asked for."""
    before = {path: path.read_bytes() for path in image.iterdir()}
    imported = import_image(image, hardened)
    assert before == {path: path.read_bytes() for path in image.iterdir()}
    assert reading.corrected_bits == imported.corrected_bits
    assert reading.failed_blocks == imported.failed_blocks
    words = {str(v.name): v.const_value.numpy() for v in constants(imported.model)}
    seen = read_in_onnxruntime(ir.to_proto(imported.model), case, imported.plan) if case is not None else {}
    parts: dict[str, list[tuple[TensorPlan, Array]]] = {}
    for number, tensor in enumerate(manifest.tensors):
        plan = tensor.storage
        places = [words[place.name] for place in plan.stored_words]
        for got, place in zip(reading.words[number], places, strict=True):
            np.testing.assert_array_equal(got, place.view(f"u{place.itemsize}"))
        stored = join_words(plan, places)
        dtype = {"FLOAT": np.float32, "DOUBLE": np.float64, "FLOAT16": np.float16}.get(tensor.weight_type)
        expected = decode_tensor(plan, stored)
        if plan.steps is not None:
            axis = plan.steps.axis
            expected = expected * along_channels(np.asarray(plan.steps.values, np.float32), expected.ndim, axis)
        elif plan.quantized:
            assert case is not None
            assert tensor.grid is not None
            grid = next(w.grid for w in find_weights(source_model(case.model).model).weights if w.name == plan.name)
            assert grid is not None
            expected = grid.dequantize(decode_integers(plan, stored)).astype(np.float32)
        expected = expected.astype(ml_dtypes.bfloat16 if dtype is None else dtype)
        same_bits(reading.weights[number], expected.astype(np.float32))
        if plan.part is not None:
            parts.setdefault(plan.name, []).append((plan, expected))
        elif plan.name in seen:
            assert seen[plan.name].dtype == expected.dtype
            same_bits(reading.weights[number], seen[plan.name].astype(np.float32))
        codes = reading.codes[number]
        if codes is not None:
            np.testing.assert_array_equal(codes, decode_integers(plan, stored))
    assert set(parts) == set(reading.wholes)
    for name, found in parts.items():
        joined = join_channels([plan for plan, _weights in found], [weights for _plan, weights in found])
        same_bits(reading.wholes[name], joined.astype(np.float32))
        if name in seen:
            same_bits(reading.wholes[name], seen[name].astype(np.float32))
    return len(seen)


def constants(loaded: ir.Model) -> list[ir.Value]:
    graphs = [loaded.graph, *(f.graph for f in loaded.functions.values())]
    found = [value for graph in graphs for value in graph.initializers.values()]
    for graph in graphs:
        for node in graph.all_nodes():
            found += [value for sub in node.graph.initializers.values() if (value := sub) not in found]
            found += [
                output for output in node.outputs if node.op_type == "Constant" and output.const_value is not None
            ]
    return [value for value in found if value.const_value is not None]


def same_bits(got: Array, wanted: Array) -> None:
    assert got.shape == wanted.shape
    np.testing.assert_array_equal(got.view(np.uint32), np.ascontiguousarray(wanted).view(np.uint32))


def biased(
    name: str,
    folder: Path,
    dtype: type[np.generic],
    *,
    budget: float = 0.0,
    row_bits: int = 0,
    planned: Callable[[Planner], StoragePlan] | None = None,
    **options: Any,
) -> tuple[Stored, Path, Path]:
    """A layer whose bias corrects itself, with scales of its inputs where it can have them; planned within a budget
    unless told how."""
    case = LAYERS[name]
    source = source_model(case.build(dtype=dtype))
    rates = FlipRates.uniform(0.05, 16)
    planner = Planner(source, prepare(source), FaultModel(p01=rates.p01, p10=rates.p10), **options)
    planner.find_layers()
    data = Dataset({"x": case.samples().astype(dtype)}, None, False, None, "tests")
    planner.use_statistics(calibrate_layers(source.model, list(planner.layers.values()), data), correct_biases=True)
    plan = planned(planner) if planned else planner.within_budget(METHODS["channel-optimized"], budget)
    assert plan.tensors[0].bias is not None
    stored = Stored(source, plan, *carry_out(source, plan))
    return stored, *exported(stored, folder, row_bits)


def compare_bias(name: str, dtype: Any, stored: Stored, hardened: Path, image: Path, reader: CReader) -> None:
    """The bias from the weights as read is onnxruntime's, but for the rounding of its float32 sum.

    A sum of n float32 terms in any order is off by at most (n − 1) 2^−24 Σ|term|; the difference from the target by
    half a unit of each more, and that of a model in half precision by its rounding, where it may fall to either side.
    """
    flip(image, 0.1)
    reading = reader.read(image)
    imported = import_image(image, hardened)
    proto = ir.to_proto(imported.model)
    plan = stored.plan.tensors[0]
    bias = plan.bias
    assert bias is not None
    last = next(node for node in proto.graph.node if "y" in node.output)
    used = last.input[2] if last.op_type != "Add" else next(i for i in last.input if i.startswith("W.bias"))
    kind = TensorProto.FLOAT if dtype == np.float32 else TensorProto.FLOAT16
    proto.graph.output.append(onnx.helper.make_tensor_value_info(used, kind, [len(bias.target)]))
    theirs = run(proto, {"x": LAYERS[name].samples().astype(dtype)})[-1].astype(np.float64)
    ours = reading.biases[0]
    assert ours is not None
    weights = reading.wholes.get(plan.name, reading.weights[0]).astype(np.float64)
    terms = weights.reshape(bias.grouped_shape or plan.whole_shape) * np.reshape(bias.mean_input, bias.mean_shape)
    terms = terms * (1.0 if bias.coverage is None else np.reshape(bias.coverage, bias.coverage_shape))
    size = np.abs(terms).sum(axis=bias.summed_axes).ravel()
    exact = np.asarray(bias.target) - terms.sum(axis=bias.summed_axes).ravel()
    count = terms.size // size.size
    bound = 2.0**-24 * ((count + 3) * size + np.abs(bias.target) + np.abs(exact))
    if dtype == np.float16:
        bound = bound + 2.0**-10 * np.abs(exact)
    assert (np.abs(ours - theirs) <= bound).all()
    assert (np.abs(ours - exact) <= 2.0**-24 * (4 * size + np.abs(exact)) + (bound if dtype == np.float16 else 0)).all()
    change = np.abs(exact - (0 if LAYERS[name].biases is None else np.ravel(LAYERS[name].biases)))
    assert change.max() > 100 * bound.max() or dtype == np.float16  # the faults are there, and the bias follows them
