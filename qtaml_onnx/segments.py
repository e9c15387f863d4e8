"""Parts of a model that run one after the other, so that what comes before a change is computed once.

A probe changes one weight; everything before its operator stays as it was. The main graph is cut before the first
readers of some weights, evenly spaced; the values that cross a cut are kept, and a probe runs what lies behind the last
cut before its weight.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from qtaml_onnx.runtime import SHARED_ARENA, create_session, register_shared_arena, session_options
from qtaml_onnx.topology import names_read_by

__all__ = ["Cuts", "Values", "can_cross", "find_cuts"]

Values = dict[str, NDArray[np.generic]]

_MOST_CUTS = 24
_MOST_BYTES = 1 << 30
"""Largest size of the values that cross a cut, over all samples."""


@dataclass(frozen=True)
class Cuts:
    """Where a model is cut.

    Attributes:
        model: The model, its nodes in topological order.
        starts: Index of the first node behind each cut, ascending, the first one 0.
        members: For each cut the names, of those asked for, whose first reader lies between it and the next one.
    """

    model: onnx.ModelProto
    starts: tuple[int, ...]
    members: tuple[tuple[str, ...], ...]

    def suffix(
        self, number: int, crossing: Mapping[str, NDArray[np.generic]], *, fed: Set[str] | None = None
    ) -> ort.InferenceSession | None:
        """Everything behind a cut: its outputs are the model's outputs that are computed there; None if none is.

        Args:
            number: Of the cut.
            crossing: Values that cross it, for their types.
            fed: Which of the names asked for can be fed, None for all. The others are constants, whose layout
                onnxruntime chooses for speed.
        """
        graph = self.model.graph
        nodes = graph.node[self.starts[number] :]
        made = {name for node in nodes for name in node.output}
        outputs = [output for output in graph.output if output.name in made or not number]
        return self._session(nodes, crossing, outputs, fed=fed) if outputs else None

    def whole(self, optimization_level: str = "all") -> ort.InferenceSession:
        """The model with the values that cross its cuts as outputs, behind its own."""
        crossing: set[str] = set().union(*self._crossings)
        own = self.model.graph.output
        more = sorted(crossing - {output.name for output in own})
        outputs = [*own, *(onnx.ValueInfoProto(name=name) for name in more)]
        return self._session(self.model.graph.node, {}, outputs, optimization_level, fed=frozenset())

    def step(self, number: int, crossing: Mapping[str, NDArray[np.generic]]) -> ort.InferenceSession | None:
        """What lies between a cut and the next one: its outputs cross the next one; None if nothing new does."""
        nodes = self.model.graph.node[self.starts[number] : self.starts[number + 1]]
        made = {name for node in nodes for name in node.output}
        wanted = sorted(made & self.crossing(number + 1))
        return self._session(nodes, crossing, [onnx.ValueInfoProto(name=name) for name in wanted]) if wanted else None

    def crossing(self, number: int) -> Set[str]:
        """Names of the values computed before a cut and read behind it."""
        return self._crossings[number]

    @cached_property
    def _crossings(self) -> list[set[str]]:
        """Those of all cuts."""
        nodes = self.model.graph.node
        made = {name: index for index, node in enumerate(nodes) for name in node.output if name}
        last = {name: index for index, node in enumerate(nodes) for name in names_read_by(node) if name in made}
        found: list[set[str]] = [set() for _ in self.starts]
        for name, index in last.items():
            for number in range(bisect_right(self.starts, made[name]), bisect_right(self.starts, index)):
                found[number].add(name)
        return found

    def _session(
        self,
        nodes: Sequence[onnx.NodeProto],
        crossing: Mapping[str, NDArray[np.generic]],
        outputs: Sequence[onnx.ValueInfoProto],
        optimization_level: str = "all",
        fed: Set[str] | None = None,
    ) -> ort.InferenceSession:
        whole, part = self.model.graph, onnx.ModelProto()
        constant = frozenset() if fed is None else frozenset().union(*self.members) - fed
        part.ir_version = self.model.ir_version
        part.opset_import.extend(self.model.opset_import)
        part.functions.extend(self.model.functions)
        read = {name for node in nodes for name in names_read_by(node)} | {output.name for output in outputs}
        graph = part.graph
        graph.name = whole.name
        graph.node.extend(nodes)
        graph.initializer.extend(tensor for tensor in whole.initializer if tensor.name in read)
        graph.input.extend(value for value in whole.input if value.name in read and value.name not in constant)
        graph.input.extend(
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), None)
            for name, array in crossing.items()
            if name in read
        )
        graph.output.extend(outputs)
        register_shared_arena()  # a session a cut, each for a few runs
        options = session_options(optimization_level=optimization_level)
        for key, value in SHARED_ARENA.items():
            options.add_session_config_entry(key, value)
        return create_session(part, options)


def find_cuts(model: onnx.ModelProto, names: Sequence[str]) -> Cuts:
    """Cuts before the first readers of at most two dozen of the names, evenly spaced.

    Args:
        model: A model with its nodes in topological order.
        names: Graph inputs or initializers; those that nothing reads belong to the first cut.
    """
    first: dict[str, int] = {}
    for index, node in enumerate(model.graph.node):
        for name in names_read_by(node):
            first.setdefault(name, index)
    places = {name: first.get(name, 0) for name in names}
    distinct = sorted({*places.values()} - {0})
    spaced = distinct if len(distinct) < _MOST_CUTS else [distinct[i] for i in _spread(len(distinct), _MOST_CUTS - 1)]
    starts = (0, *spaced)
    ends = (*starts[1:], len(model.graph.node) + 1)
    members = tuple(
        tuple(name for name in names if start <= places[name] < end) for start, end in zip(starts, ends, strict=True)
    )
    return Cuts(model, starts, members)


def can_cross(values: Sequence[Values]) -> bool:
    """Whether values can be kept and fed again: plain arrays, and not too large in all."""
    arrays = [array for one in values for array in one.values()]
    plain = all(isinstance(array, np.ndarray) and array.dtype.kind in "fiub" for array in arrays)
    return plain and sum(array.nbytes for array in arrays) <= _MOST_BYTES


def _spread(length: int, count: int) -> list[int]:
    return [round(i * length / count) for i in range(count)]
