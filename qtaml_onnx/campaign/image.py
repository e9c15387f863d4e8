"""A trial's stored image, drawn once for all samples, apart from the inference that reads it.

An instrumented model is cut in two. The *image* model holds everything that depends on the seed and the flip rates but
not on the data: words, fault operators, read-outs, self-correcting biases. It runs once a trial and gives the weights
as read. The *inference* model is the rest. It is loaded anew for each trial with these weights as constants, so that
onnxruntime optimises it as it does the plain model (layouts, packing, fusions), which weights that are fed would
forbid. That costs a load a trial and saves up to half of the time of every batch.

A DequantizeLinear stays on the side of the inference: with constant words behind it onnxruntime makes integer operators
of it, as it does in the plain model. So do fault operators inside subgraphs and functions, and those on activations:
they run with each batch, and what is fed to them is the same seed and rates, and the number of the batch's first
sample: every inference draws its own transient faults.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from qtaml_onnx.errors import InputError, QtamlError
from qtaml_onnx.passes.inject_activation_faults import INFERENCE_INPUT
from qtaml_onnx.passes.inject_faults import RATES_INPUT, SEED_INPUT
from qtaml_onnx.runtime import SHARED_ARENA, create_session, register_shared_arena, session_options

__all__ = ["SESSION_OPTIONS", "FaultyModel", "SplitModel", "inference_session", "split_image"]

_OWNED_BUFFERS = {
    TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64, TensorProto.FLOAT16: np.float16,
    TensorProto.INT8: np.int8, TensorProto.UINT8: np.uint8, TensorProto.INT16: np.int16, TensorProto.UINT16: np.uint16,
    TensorProto.INT32: np.int32, TensorProto.UINT32: np.uint32, TensorProto.INT64: np.int64,
}  # fmt: skip
"""Types of weights that onnxruntime reads from our buffers without a copy; the others are copied into the model."""

_ENTRIES = {
    # Integer weights of a MatMul are multiplied as floats: by default their inputs are rounded to 8 bits, an error of
    # 1 % that comes and goes with how the weights are held.
    "session.qdq_matmulnbits_accuracy_level": "1",
    # The sessions of all trials take their memory from one arena: fresh memory for each costs a tenth of its run.
    **SHARED_ARENA,
}

SESSION_OPTIONS = {
    "graph_optimization_level": "all", "intra_op_num_threads": "1", **_ENTRIES, "providers": "CPUExecutionProvider",
}  # fmt: skip
"""How campaigns run models, as reports record it."""


@dataclass(frozen=True)
class SplitModel:
    """An instrumented model in two.

    Attributes:
        image: From seed and rates to the weights as read; None if no fault operator can be drawn ahead of the data.
        inference: From the data to the outputs. Lacks an initializer for each of `weights`.
        weights: Outputs of the one and missing initializers of the other.
        fed: Those of seed and rates that the inference model still reads.
    """

    image: onnx.ModelProto | None
    inference: onnx.ModelProto
    weights: tuple[str, ...]
    fed: tuple[str, ...]


def split_image(model: onnx.ModelProto) -> SplitModel:
    """Cuts an instrumented model in two; `model` is not changed."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs_of_graph = {value.name for value in graph.input}
    late = inputs_of_graph - constants | inputs_of_graph & {INFERENCE_INPUT}  # another one with each batch
    drawn = {SEED_INPUT, RATES_INPUT}  # what depends on these alone, and on constants
    has_words = False
    late -= drawn
    for node in graph.node:
        reads = _reads(node)
        if reads & late or (reads & drawn and node.op_type == "DequantizeLinear" and not node.domain):
            late.update(node.output)
        elif reads & drawn:
            drawn.update(node.output)
            has_words |= node.op_type == "FaultInject"
    drawn = drawn - {SEED_INPUT, RATES_INPUT, ""} if has_words else set()
    outputs = [value.name for value in graph.output]
    main = _needed(graph.node, outputs, stop=drawn)
    main_reads = {name for node in main for name in _reads(node)} | set(outputs)
    weights = tuple(name for node in graph.node for name in node.output if name in drawn and name in main_reads)
    fed = tuple(name for name in (SEED_INPUT, RATES_INPUT) if name in main_reads)
    inputs = [value for value in graph.input if value.name not in (SEED_INPUT, RATES_INPUT) or value.name in fed]
    inference = _part(model, main, inputs, graph.output, main_reads)
    if not weights:
        return SplitModel(None, inference, (), fed)
    ahead = _needed(graph.node, weights)
    reads = {name for node in ahead for name in _reads(node)}
    values = {value.name: value for value in graph.value_info} | {value.name: value for value in graph.output}
    found = [values.get(name, onnx.ValueInfoProto(name=name)) for name in weights]
    image = _part(model, ahead, [value for value in graph.input if value.name in reads], found, reads)
    return SplitModel(image, inference, weights, fed)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, those that its subgraphs take from outside included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            inner = {name for child in graph.node for name in _reads(child)} | {value.name for value in graph.output}
            made = {name for child in graph.node for name in child.output}
            made |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            names |= inner - made
    return names - {""}


def _needed(nodes: Iterable[onnx.NodeProto], results: Iterable[str], stop: Iterable[str] = ()) -> list[onnx.NodeProto]:
    """The nodes that make `results`, in order; none that make what is in `stop`."""
    wanted, ends, kept = set(results), set(stop), []
    for node in reversed(list(nodes)):
        made = {name for name in node.output if name}
        if made & wanted and not made & ends:
            kept.append(node)
            wanted |= _reads(node)
    return kept[::-1]


def _part(
    model: onnx.ModelProto,
    nodes: Iterable[onnx.NodeProto],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
    reads: set[str],
) -> onnx.ModelProto:
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    part.graph.name = model.graph.name
    part.graph.node.extend(nodes)
    part.graph.input.extend(inputs)
    part.graph.output.extend(outputs)
    made = {name for node in part.graph.node for name in node.output}
    part.graph.value_info.extend(value for value in model.graph.value_info if value.name in made)
    kept = reads | {value.name for value in part.graph.input}
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in kept)
    return part


def inference_session(
    model: onnx.ModelProto | bytes, weights: dict[str, ort.OrtValue] | None = None
) -> ort.InferenceSession:
    """A session as campaigns use it: all optimisations, one thread.

    With several threads within an operator, sums may be taken in another order; campaigns run batches side by side
    instead, which changes no bit.

    Args:
        model: The model.
        weights: Values of initializers that the model names as external data. They must stay as they are as long as
            the session lives.
    """
    options = session_options(threads=1)
    register_shared_arena()
    for key, value in _ENTRIES.items():
        options.add_session_config_entry(key, value)
    if weights:
        options.add_external_initializers(list(weights), list(weights.values()))
    return create_session(model, options)


class FaultyModel:
    """An instrumented model, ready for trials."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Takes an instrumented model; raises InputError if onnxruntime refuses it."""
        parts = split_image(model)
        self._fed = parts.fed
        self._inference = parts.inference
        self._weights = parts.weights
        self._buffers: dict[str, ort.OrtValue] = {}
        self._session: ort.InferenceSession | None = None
        self._image: ort.InferenceSession | None = None
        if parts.image is None:
            self._session = inference_session(parts.inference)
            return
        options = session_options(threads=1)
        options.enable_cpu_mem_arena = False  # an arena would keep the read-out's temporaries between trials
        self._image = create_session(parts.image, options)
        self._declare(self._image)

    def _declare(self, image: ort.InferenceSession) -> None:
        """Puts the weights into the inference model: types and shapes, which only a run tells, and who owns them."""
        for name, value in zip(self._weights, image.run_with_ort_values(list(self._weights), {}), strict=True):
            kind = value.element_type()
            tensor = self._inference.graph.initializer.add(name=name, data_type=kind, dims=value.shape())
            size = value.tensor_size_in_bytes()
            if kind in _OWNED_BUFFERS and size:
                self._buffers[name] = ort.OrtValue.ortvalue_from_numpy(np.empty(value.shape(), _OWNED_BUFFERS[kind]))
                tensor.data_location = TensorProto.EXTERNAL
                for key, entry in (("location", "fed"), ("offset", "0"), ("length", str(size))):
                    tensor.external_data.add(key=key, value=entry)

    def draw(self, seed: int, rates: NDArray[np.float32]) -> tuple[ort.InferenceSession, dict[str, NDArray[Any]]]:
        """The model with the faults of a trial.

        Args:
            seed: Of the trial, an int64.
            rates: float32 [2, planes].

        Returns:
            A session, and what to feed to it beside the data. That of the last draw is void: its weights have changed.

        Raises:
            InputError: if onnxruntime refuses the rates or the model.
        """
        trial: dict[str, NDArray[Any]] = {SEED_INPUT: np.asarray(seed, dtype=np.int64), RATES_INPUT: rates}
        session = self._session
        if self._image is not None:
            self._session = None  # before there is another one: two would double the memory
            self._read_out(self._image, trial)
            self._session = session = inference_session(self._inference, self._buffers)
        if session is None:
            raise QtamlError("the model has no session; this is a defect of qtaml-onnx")
        return session, {name: trial[name] for name in self._fed}

    def _read_out(self, image: ort.InferenceSession, trial: dict[str, NDArray[Any]]) -> None:
        """Fills the weights with what is read under the faults of a trial."""
        binding = image.io_binding()
        known = {value.name for value in (*image.get_inputs(), *image.get_overridable_initializers())}
        for name, array in trial.items():
            if name in known:
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name in self._weights:
            if name in self._buffers:
                binding.bind_ortvalue_output(name, self._buffers[name])
            else:
                binding.bind_output(name)
        try:
            image.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises types of its own, without a common base
            raise InputError(f"the stored words cannot be read out: {str(error).splitlines()[0][:200]}") from error
        tensors = {tensor.name: tensor for tensor in self._inference.graph.initializer}
        for name, value in zip(self._weights, binding.get_outputs(), strict=True):
            if name not in self._buffers:
                tensors[name].raw_data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
