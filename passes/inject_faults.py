"""Puts a `qtaml::FaultInject` operator behind the stored words of every tensor of a plan.

The instrumented model has two more graph inputs, both with defaults: `qtaml_seed` and `qtaml_flip_rates`. One session
therefore serves every trial and every rate; with all rates 0 it computes what the hardened model computes.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_pattern import FaultPattern
from qtaml_onnx.graph import Owner, graphs_of
from qtaml_onnx.modelio import FAULT_DOMAIN
from qtaml_onnx.passes._graph import Carrier, NameTable, add_constant, add_input, insert_at_start
from qtaml_onnx.passes.repeat_small import SMALL_WORDS
from qtaml_onnx.plan import StoragePlan

__all__ = ["DOMAIN", "RATES_INPUT", "SEED_INPUT", "InjectFaults", "allow_defaults", "stored_words"]

logger = logging.getLogger(__name__)

DOMAIN = FAULT_DOMAIN
SEED_INPUT = "qtaml_seed"
RATES_INPUT = "qtaml_flip_rates"
_INPUTS_WITH_DEFAULTS = 4
"""The IR version from which a graph input may have a default that a caller overrides."""


class InjectFaults(ir.passes.InPlacePass):
    """Instruments a model whose weights are stored words.

    Attributes:
        plan: The plan that stored them.
        rates: Default flip rates, at least as many planes as the longest word has.
        seed: Default seed.
        pattern: The kind of fault and the planes that it reaches.
    """

    def __init__(
        self, plan: StoragePlan, rates: FlipRates | None = None, seed: int = 0, pattern: FaultPattern | None = None
    ) -> None:
        """Takes the plan and the defaults; the rates are the plan's own unless given, the flips independent."""
        super().__init__()
        self.plan = plan
        self.rates = rates or plan.fault_model.rates
        self.seed = seed
        self.pattern = pattern or FaultPattern()

    @property
    def _residual_share(self) -> NDArray[np.float32]:
        """What makes the rates of protected planes from those that are fed, [2, 2]: residual over raw rate as designed.

        Both directions get that share of their mean: what a code leaves is symmetric, as it stores its bits under a
        mask. Exact at the designed rates for the plane with the largest, less on planes that flip less, and 0 where
        nothing flips; at other rates than the designed ones the true residual bends more.
        """
        designed = self.plan.fault_model
        raw = max((a + b) / 2 for a, b in zip(designed.p01, designed.p10, strict=True))
        return np.full((2, 2), self.plan.residual_rate / raw / 2 if raw else 0.0, dtype=np.float32)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place; raises InputError if the words of a tensor are missing or the model is instrumented."""
        if SEED_INPUT in model.graph.initializers:
            raise InputError("the model is instrumented already; remove its faults first")
        self.pattern.check_width(max((max(tensor.word_lengths) for tensor in self.plan.tensors), default=8))
        if self.pattern.kind == "burst" and self.plan.residual_rate:
            raise InputError(
                "what the plan's protection leaves of bursts is not known: its residual rate is that of independent"
                " flips; take --kind independent, or a plan with ideal protection"
            )
        words = stored_words(model)
        names = NameTable(model)
        allow_defaults(model)
        model.opset_imports[DOMAIN] = 1
        seed = add_input(model, SEED_INPUT, np.asarray(self.seed, dtype=np.int64))
        rates = add_input(model, RATES_INPUT, self.rates.as_array())
        rates.shape = ir.Shape([2, "qtaml_planes"])  # any number of planes may be fed, as long as the longest word has
        carrier = Carrier(model)
        for tensor in self.plan.tensors:
            for stored in tensor.stored_words:
                if stored.name not in words:
                    raise InputError(f"the stored words '{stored.name}' are not in this model; harden it first")
                owner, value = words[stored.name]
                _import_domain(carrier.root(owner))
                inner_seed, inner_rates = carrier.into(owner, seed), carrier.into(owner, rates)
                name, stream, planes = tensor.name, stored.stream, stored.exposed_planes
                nodes = [self._node(name, value, inner_seed, inner_rates, stream, stored.bits, planes, names)]
                if self.plan.residual_rate and tensor.protected_planes:
                    share = add_constant(model, owner, names.fresh(f"{name}.residual_share"), self._residual_share)
                    residual = ir.node("MatMul", [share, inner_rates], name=names.fresh(f"{name}.residual"))
                    residual.outputs[0].name = names.fresh(f"{name}.residual_rates")
                    protected = ~planes & ((1 << stored.bits) - 1)
                    stream += len(self.plan.tensors)
                    faulty, left = nodes[0].outputs[0], residual.outputs[0]
                    nodes.append(residual)
                    nodes.append(self._node(name, faulty, inner_seed, left, stream, stored.bits, protected, names))
                _put_behind(owner, value, nodes)
        if self.plan.small is not None:
            groups = (name for name in words if name.startswith(SMALL_WORDS) and name.endswith(".words"))
            for number, name in enumerate(sorted(groups)):
                owner, value = words[name]
                _import_domain(carrier.root(owner))
                inner_seed, inner_rates = carrier.into(owner, seed), carrier.into(owner, rates)
                stream = 2 * len(self.plan.tensors) + number
                label = name.removesuffix(".words")
                _put_behind(owner, value, [self._node(label, value, inner_seed, inner_rates, stream, 8, 0xFF, names)])
        logger.info("inject faults: %d tensors", len(self.plan.tensors))
        return ir.passes.PassResult(model, modified=True)

    def _node(
        self,
        name: str,
        words: ir.Value,
        seed: ir.Value,
        rates: ir.Value,
        stream: int,
        bits: int,
        planes: int,
        names: NameTable,
    ) -> ir.Node:
        node = ir.node(
            "FaultInject",
            [words, seed, rates],
            {
                "stream": stream,
                "bits": bits,
                "exposed_planes": self.pattern.exposed(planes),
                **self.pattern.attributes(),
            },
            domain=DOMAIN,
            name=names.fresh(f"{name}.faults"),
        )
        node.outputs[0].name = names.fresh(f"{name}.words.faulty")
        node.outputs[0].type, node.outputs[0].shape = words.type, words.shape
        return node


def _import_domain(root: Owner) -> None:
    """The operator set of the fault operator, in a function; the main graph has the model's."""
    if isinstance(root, ir.Function):
        root.opset_imports[DOMAIN] = 1


def _put_behind(owner: Owner, value: ir.Value, nodes: list[ir.Node]) -> None:
    """Lets all who read a value read what the nodes, of which the first reads it as well, make of it."""
    for use in list(value.uses()):
        if use.node is not nodes[0]:
            use.node.replace_input_with(use.idx, nodes[-1].outputs[0])
    producer = value.producer()
    if producer is not None:
        owner.insert_after(producer, nodes)
    else:
        insert_at_start(owner, nodes)


def stored_words(model: ir.Model) -> dict[str, tuple[Owner, ir.Value]]:
    """Every named constant of a model with the graph or function that holds it."""
    found: dict[str, tuple[Owner, ir.Value]] = {}
    for _root, graph in graphs_of(model):
        local = graph.graph if isinstance(graph, ir.Function) else graph
        for value in local.initializers.values():
            found[str(value.name)] = (graph, value)
        for node in graph:
            if node.op_type == "Constant" and not node.domain:
                found[str(node.outputs[0].name)] = (graph, node.outputs[0])
    return found


def allow_defaults(model: ir.Model) -> None:
    """Raises the IR version to one whose graph inputs can have defaults.

    IR 3 lists every initializer as an input; from IR 4 on that would make them all ones that a caller may override.
    """
    if model.ir_version < _INPUTS_WITH_DEFAULTS:
        for value in list(model.graph.inputs):
            if value.is_initializer():
                model.graph.inputs.remove(value)
        model.ir_version = _INPUTS_WITH_DEFAULTS
        logger.info("IR version raised to %d, for inputs with defaults", model.ir_version)
