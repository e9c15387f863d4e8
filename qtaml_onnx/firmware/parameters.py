"""What a hardened model holds beside its words: steps and zero points of quantised weights, and small tensors."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.graph import constant_array
from qtaml_onnx.integer_grid import IntegerGrid
from qtaml_onnx.passes.inject_faults import stored_words
from qtaml_onnx.passes.repeat_small import SMALL_WORDS
from qtaml_onnx.quantized import SiteError, dequantize_grid, integer_operands, operator_grid
from qtaml_onnx.storage.repetition import majority
from qtaml_onnx.tensor_plan import TensorPlan

__all__ = ["SmallGroup", "SmallNumbers", "grid_of", "small_groups", "with_plain_parameters"]

_TYPE = re.compile("[A-Z0-9]+")


@dataclass(frozen=True)
class SmallNumbers:
    """A small tensor in its group: its value in the graph, where it starts, and its shape."""

    value: ir.Value
    first: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SmallGroup:
    """Small tensors that are stored together.

    Attributes:
        words: The stored bytes, uint8 [copies, numbers, bytes a number].
        dtype: Type of the numbers.
        tensors: The tensors.
    """

    words: ir.Value
    dtype: ir.DataType
    tensors: tuple[SmallNumbers, ...]

    @property
    def stored(self) -> NDArray[np.uint8]:
        """The stored bytes."""
        return constant_array(self.words)

    def read(self) -> NDArray[Any]:
        """The numbers by majority, flat."""
        return majority(self.stored, np.dtype(self.dtype.numpy()))


def small_groups(model: ir.Model) -> list[SmallGroup]:
    """The small tensors of a hardened model by what they are stored in.

    Raises:
        InputError: if stored bytes are not read as hardening has them read.
    """
    found = []
    for name, (_owner, words) in stored_words(model).items():
        if not (name.startswith(SMALL_WORDS) and name.endswith(".words")):
            continue
        match = _TYPE.match(name.removeprefix(SMALL_WORDS))
        stored, dtype = constant_array(words), ir.DataType.__members__.get(match.group() if match else "")
        if dtype is None or stored.dtype != np.uint8 or stored.ndim != 3 or stored.shape[2] != dtype.itemsize:
            raise InputError(f"'{name}' holds no repeated numbers; harden the model again")
        try:
            tensors = tuple(map(_numbers, _slices(words)))
        except (InputError, IndexError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"what is read from '{name}' was changed; harden the model again") from error
        if any(t.first < 0 or t.first + _size(t.shape) > stored.shape[1] for t in tensors):
            raise InputError(f"what is read from '{name}' was changed; harden the model again")
        found.append(SmallGroup(words, dtype, tensors))
    return found


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _slices(words: ir.Value) -> Iterator[ir.Node]:
    """The nodes that cut the numbers of a group, in order."""
    for node, _index in _readers(words, lambda node, _index: node.op_type == "Slice"):
        yield node


def _numbers(node: ir.Node) -> SmallNumbers:
    if "starts" in node.attributes:
        first = int(node.attributes["starts"].as_ints()[0])
    else:
        first = int(constant_array(node.inputs[1]).reshape(-1)[0])  # type: ignore[arg-type]
    reshape = next(iter(node.outputs[0].uses())).node
    if reshape.op_type != "Reshape":
        raise InputError("not a Reshape")
    shape = tuple(map(int, constant_array(reshape.inputs[1])))  # type: ignore[arg-type]
    if any(extent < 0 for extent in shape):
        raise InputError("not a shape")
    return SmallNumbers(reshape.outputs[0], first, shape)


def _readers(value: ir.Value, wanted: Any) -> Iterator[tuple[ir.Node, int]]:
    """The nearest nodes behind a value, breadth first, that are wanted; what lies behind these is not looked at."""
    queue, seen = deque([value]), set()
    while queue:
        for use in queue.popleft().uses():
            if wanted(use.node, use.idx):
                yield use.node, use.idx
            elif id(use.node) not in seen:
                seen.add(id(use.node))
                queue.extend(use.node.outputs)


def with_plain_parameters(model: ir.Model, groups: list[SmallGroup]) -> ir.Model:
    """The model itself, or, where small tensors are repeated, a copy in which they are plain constants again."""
    if not groups:
        return model
    copy = model.clone()
    for group in small_groups(copy):
        numbers = group.read()
        for tensor in group.tensors:
            part = numbers[tensor.first : tensor.first + _size(tensor.shape)].reshape(tensor.shape)
            node = ir.node("Constant", [], {"value": ir.tensor(part)})
            node.outputs[0].const_value = ir.tensor(part)
            tensor.value.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
    return copy


def grid_of(plan: TensorPlan, words: ir.Value) -> IntegerGrid:
    """What the integers of a quantised weight stand for in a hardened model, by the operator that reads them.

    Args:
        plan: Of the tensor.
        words: Its stored words.

    Raises:
        InputError: if no operator of integers reads them.
    """

    def takes_integers(node: ir.Node, index: int) -> bool:
        return (node.op_type in ("DequantizeLinear", "Gather") and index == 0) or index in integer_operands(node)

    reader = next(_readers(words, takes_integers), None)
    if reader is None:
        raise InputError(f"no operator reads the integers of '{plan.name}'; harden the model again")
    node, operand = reader
    kind = ir.DataType[plan.dtype], plan.packing.shape if plan.packing is not None else plan.shape
    try:
        grid = (
            dequantize_grid(node, kind) if node.op_type == "DequantizeLinear" else operator_grid(node, operand, kind)[0]
        )
    except SiteError as error:
        raise InputError(f"'{plan.name}' cannot be read: {error}; harden the model again") from error
    if grid.shape != plan.shape:
        raise InputError(f"'{plan.name}' has other integers than its plan says; harden the model again")
    return grid
