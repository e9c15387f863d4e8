"""Puts a `qtaml::FaultInject` operator behind the outputs of Conv, MatMul and Gemm: new faults at each inference.

In a quantised (QDQ) graph the fault falls on the integers that a QuantizeLinear makes of the output, after a bias and
an activation function if they come between; elsewhere on the bit pattern of the float output itself.

The instrumented model has three more graph inputs, all with defaults: `qtaml_seed`, `qtaml_flip_rates` and
`qtaml_inference`, the number of the inference's first sample. The faults are a function of the three: whoever feeds the
same numbers sees the same faults. Nothing is counted inside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_inject import word_bits
from qtaml_onnx.fault_pattern import FaultPattern
from qtaml_onnx.graph import STANDARD_DOMAINS, Owner, is_constant, walk
from qtaml_onnx.passes._graph import Carrier, NameTable, add_constant, add_input
from qtaml_onnx.passes.inject_faults import DOMAIN, RATES_INPUT, SEED_INPUT, allow_defaults

__all__ = ["INFERENCE_INPUT", "Activation", "InjectActivationFaults", "activations", "longest_word"]

logger = logging.getLogger(__name__)

INFERENCE_INPUT = "qtaml_inference"
SEED_AND_INFERENCE = "qtaml_seed.inference"
"""Name of the value that holds both numbers, in the main graph and in functions."""
_LAYERS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "QLinearConv", "QLinearMatMul"})
_ELEMENTWISE = frozenset(
    {"Add", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"}
)

_WORDS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    | {ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT16, ir.DataType.INT16, ir.DataType.UINT4, ir.DataType.INT4}
    | {ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E5M2FNUZ}
)


@dataclass(frozen=True)
class Activation:
    """A tensor that faults fall on.

    Attributes:
        owner: The main graph or function that it is in.
        value: The tensor.
        dtype: Its type.
        shape: Its shape, if known.
        per_sample: Its first axis is the batch, by its shape.
    """

    owner: Owner
    value: ir.Value
    dtype: ir.DataType
    shape: ir.Shape | None
    per_sample: bool

    @property
    def bits(self) -> int:
        """Of a word."""
        return word_bits(self.dtype.numpy())


def activations(model: ir.Model) -> list[Activation]:
    """The tensors of all layers of a model that depend on its inputs, in order, with types and shapes as inferred.

    Layers whose output type stays unknown, as in model functions, or is no word type, are left out, with a warning.
    """
    inferred = _inferred(model)
    batches = [value.shape[0] for value in model.graph.inputs if not value.is_initializer() and value.shape]
    batches = [batch for batch in batches if isinstance(batch, int) or batch.value is not None]
    found: dict[int, Activation] = {}
    fixed: dict[int, bool] = {}
    for owner, node in walk(model):
        if node.domain not in STANDARD_DOMAINS or node.op_type not in _LAYERS:
            continue
        if all(_is_fixed(value, fixed) for value in node.inputs if value is not None):
            continue  # part of how weights are read
        value = _as_stored(node.outputs[0], fixed)
        known = isinstance(owner, ir.Graph) and inferred.get(str(value.name))
        dtype, shape = known or (value.dtype, value.shape)
        if dtype not in _WORDS:
            logger.warning("activation '%s' is left out: its type is %s", value.name, dtype or "not known")
            continue
        batched = shape is not None and len(shape) > 1 and shape[0] in batches and value.graph is model.graph
        found[id(value)] = Activation(owner, value, dtype, shape, batched)
    return list(found.values())


def _inferred(model: ir.Model) -> dict[str, tuple[ir.DataType | None, ir.Shape | None]]:
    """Types and shapes of the values outside of functions, by name; the model is left as it is."""
    copy = model.clone()
    ShapeInferencePass()(copy)
    return {str(value.name): (value.dtype, value.shape) for node in copy.graph.all_nodes() for value in node.outputs}


def longest_word(tensors: list[Activation]) -> int:
    """Bits of the longest word of these tensors; raises InputError if there is no tensor."""
    if not tensors:
        raise InputError("no Conv, MatMul or Gemm of this model depends on its inputs; there is no activation to fault")
    return max(tensor.bits for tensor in tensors)


def _is_fixed(value: ir.Value, known: dict[int, bool]) -> bool:
    """Whether a value is made of constants alone."""
    if id(value) not in known:
        producer = value.producer()
        if producer is None:
            known[id(value)] = is_constant(value) and not value.is_graph_input()
        else:
            has_subgraphs = any(
                a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in producer.attributes.values()
            )
            inputs = [i for i in producer.inputs if i is not None]
            random = not inputs and producer.op_type != "Constant"
            known[id(value)] = not has_subgraphs and not random and all(_is_fixed(i, known) for i in inputs)
    return known[id(value)]


def _as_stored(output: ir.Value, fixed: dict[int, bool]) -> ir.Value:
    """The quantised tensor that a layer's output becomes, if it does; else the output."""
    value = output
    while True:
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return output
        node = uses[0].node
        if node.domain not in STANDARD_DOMAINS:
            return output
        if node.op_type == "QuantizeLinear":
            return node.outputs[0] if uses[0].idx == 0 else output
        others = [i for i in node.inputs if i is not None and i is not value]
        if node.op_type not in _ELEMENTWISE or not all(_is_fixed(i, fixed) for i in others):
            return output
        value = node.outputs[0]


class InjectActivationFaults(ir.passes.InPlacePass):
    """Instruments the activations of a model.

    Attributes:
        rates: Default flip rates, or a function that gives them for a number of planes.
        pattern: The kind of fault and the planes that it reaches.
        seed: Default seed.
    """

    def __init__(
        self, rates: FlipRates | Callable[[int], FlipRates], pattern: FaultPattern | None = None, seed: int = 0
    ) -> None:
        """Takes the defaults and the pattern, which are independent flips of all planes unless given."""
        super().__init__()
        self.rates = rates
        self.pattern = pattern or FaultPattern()
        self.seed = seed

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place; raises InputError if nothing can be instrumented, or the model is instrumented already."""
        if SEED_INPUT in model.graph.initializers:
            raise InputError("the model is instrumented already; remove its faults first")
        tensors = activations(model)
        bits = longest_word(tensors)
        self.pattern.check_width(bits)
        rates = self.rates if isinstance(self.rates, FlipRates) else self.rates(bits)
        if rates.bits < bits:
            raise InputError(f"flip rates have {rates.bits} planes, the activations {bits}; give all {bits}")
        names = NameTable(model)
        allow_defaults(model)
        model.opset_imports[DOMAIN] = 1
        seed = add_input(model, SEED_INPUT, np.asarray(self.seed, dtype=np.int64))
        rates_input = add_input(model, RATES_INPUT, rates.as_array())
        rates_input.shape = ir.Shape([2, "qtaml_planes"])
        inference = add_input(model, INFERENCE_INPUT, np.asarray(0, dtype=np.int64))
        both = _seed_and_inference(model, seed, inference, names)
        carrier = Carrier(model)
        for stream, tensor in enumerate(tensors):
            self._inject(tensor, stream, carrier, both, rates_input, names)
        logger.info("inject faults: %d activations", len(tensors))
        return ir.passes.PassResult(model, modified=True)

    def _inject(
        self, tensor: Activation, stream: int, carrier: Carrier, seed: ir.Value, rates: ir.Value, names: NameTable
    ) -> None:
        value, producer = tensor.value, tensor.value.producer()
        if producer is None or producer.graph is None:
            raise InputError(f"activation '{value.name}' has no producer")
        if isinstance(tensor.owner, ir.Function):
            tensor.owner.opset_imports[DOMAIN] = 1
        attributes: dict[str, int | str] = {
            "stream": stream,
            "bits": tensor.bits,
            "exposed_planes": self.pattern.exposed((1 << tensor.bits) - 1),
            "per_sample": int(tensor.per_sample),
        }
        node = ir.node(
            "FaultInject",
            [value, carrier.into(producer.graph, seed), carrier.into(producer.graph, rates)],
            attributes | self.pattern.attributes(),
            domain=DOMAIN,
            name=names.fresh(f"{value.name}.faults"),
        )
        faulty = node.outputs[0]
        faulty.name = names.fresh(f"{value.name}.faulty")
        faulty.type, faulty.shape = ir.TensorType(tensor.dtype), tensor.shape
        uses = [use for use in value.uses() if use.node is not node]
        if value.is_graph_output():  # whose name is public
            faulty.name, value.name = value.name, faulty.name
            for position, output in enumerate(producer.graph.outputs):
                if output is value:
                    producer.graph.outputs[position] = faulty
        for use in uses:
            use.node.replace_input_with(use.idx, faulty)
        producer.graph.insert_after(producer, node)


def _seed_and_inference(model: ir.Model, seed: ir.Value, inference: ir.Value, names: NameTable) -> ir.Value:
    """Both numbers as one tensor of two, which the operator takes as its seed."""
    one = add_constant(model, model.graph, names.fresh("qtaml_one_number"), np.array([1], dtype=np.int64))
    nodes = []
    for scalar in (seed, inference):
        nodes.append(ir.node("Reshape", [scalar, one], name=names.fresh(f"{scalar.name}.vector")))
        nodes[-1].outputs[0].name = names.fresh(f"{scalar.name}.vector")
    nodes.append(ir.node("Concat", [n.outputs[0] for n in nodes], {"axis": 0}, name=names.fresh(SEED_AND_INFERENCE)))
    both = nodes[-1].outputs[0]
    both.name = SEED_AND_INFERENCE
    both.type, both.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([2])
    first = next(iter(model.graph))
    model.graph.insert_before(first, nodes)
    return both
