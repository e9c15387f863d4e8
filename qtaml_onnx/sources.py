"""Which constants are behind an operand: through layout operators, calls of model functions and bodies of Scans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from qtaml_onnx.axes import axis_before
from qtaml_onnx.graph import STANDARD_DOMAINS, is_constant, walk
from qtaml_onnx.operands import LAYOUT_OPERATORS

__all__ = ["find_arguments", "sources_of"]


@dataclass(frozen=True)
class _Argument:
    """What a formal input of a function or of a Scan's body stands for.

    Attributes:
        value: The value that the call passes.
        sliced: Whether the formal input is a slice of it along its first axis.
    """

    value: ir.Value
    sliced: bool = False

    def axis(self, axis: int | None) -> int | None:
        """The axis of the value that is `axis` of the formal input."""
        return axis + 1 if axis is not None and axis >= 0 and self.sliced else axis


Arguments = dict[int, list[_Argument]]


def find_arguments(model: ir.Model) -> Arguments:
    """For each input of a model function or of a Scan's body, by identity, what its calls pass."""
    arguments: Arguments = {}
    for _root, node in walk(model):
        function = model.functions.get(node.op_identifier())
        if function is not None:
            for formal, actual in zip(function.inputs, node.inputs, strict=False):
                if actual is not None:
                    arguments.setdefault(id(formal), []).append(_Argument(actual))
        elif node.op_type == "Scan" and node.domain in STANDARD_DOMAINS:
            for formal, actual in _scanned(node):
                arguments.setdefault(id(formal), []).append(_Argument(actual, sliced=True))
    return arguments


def _scanned(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The body's inputs that are slices of a Scan's inputs along the first axis, as the layers of a stack are."""
    body, count = node.attributes["body"].as_graph(), node.attributes["num_scan_inputs"].as_int()
    if len(body.inputs) != len(node.inputs):
        return  # the Scan of opset 8, which has a batch axis before
    axes = node.attributes["scan_input_axes"].as_ints() if "scan_input_axes" in node.attributes else (0,) * count
    if not 0 < count <= len(node.inputs) or len(axes) != count:
        return
    for formal, actual, axis in zip(list(body.inputs)[-count:], node.inputs[-count:], axes, strict=True):
        if actual is not None and axis == 0:
            yield formal, actual


def sources_of(value: ir.Value | None, axis: int | None, arguments: Arguments) -> Iterator[tuple[ir.Value, int | None]]:
    """The constants, or DequantizeLinear outputs over constants, behind an operand, with the channel axis of each."""
    if value is None:
        return
    if is_constant(value):
        yield value, axis
        return
    producer = value.producer()
    if producer is None:
        for argument in arguments.get(id(value), []):
            yield from sources_of(argument.value, argument.axis(axis), arguments)
    elif producer.domain in STANDARD_DOMAINS and producer.op_type == "DequantizeLinear":
        if is_constant(producer.inputs[0]):
            yield value, axis
    elif producer.domain in STANDARD_DOMAINS and producer.op_type in LAYOUT_OPERATORS:
        for source, _axis in sources_of(producer.inputs[0], None, arguments):
            yield source, axis_before(producer, source, axis)
