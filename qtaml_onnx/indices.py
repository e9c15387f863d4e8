"""Which graph inputs are indices into tables of the model, such as token numbers, and how large they may be."""

from __future__ import annotations

import onnx_ir as ir

from qtaml_onnx.graph import STANDARD_DOMAINS, constant_tensor, is_constant

__all__ = ["index_limits"]

_PASSING = frozenset({"Cast", "Concat", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators whose results are still indices."""


def index_limits(model: ir.Model) -> dict[str, int]:
    """By graph input that indexes constant tables: the number of entries of the smallest table.

    Looks through operators that only move indices, into subgraphs and into model functions.
    """
    found: dict[str, int] = {}
    for start in model.graph.inputs:
        limits: list[int] = []
        seen: set[int] = set()
        stack = [start]
        while stack:
            value = stack.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            for use in value.uses():
                node = use.node
                function = model.functions.get(node.op_identifier())
                if function is not None:
                    stack += function.inputs[use.idx : use.idx + 1]
                elif (length := _table_length(node, use.idx)) is not None:
                    limits.append(length)
                elif node.domain in STANDARD_DOMAINS and node.op_type in _PASSING and use.idx == 0:
                    stack.append(node.outputs[0])
        if limits:
            found[str(start.name)] = min(limits)
    return found


def _table_length(node: ir.Node, operand: int) -> int | None:
    """Entries of the constant table that an operand of a node is an index into; None if it is none."""
    if node.op_type == "Gather" and node.domain in STANDARD_DOMAINS and operand == 1:
        table, axis = node.inputs[0], node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    elif node.op_type == "GatherBlockQuantized" and operand == 1:
        table, axis = node.inputs[0], node.attributes["gather_axis"].as_int() if "gather_axis" in node.attributes else 0
    elif node.op_type == "EmbedLayerNormalization" and operand < 2:
        table, axis = node.inputs[(2, 4)[operand]], 0
    else:
        return None
    shape = constant_tensor(table).shape if table is not None and is_constant(table) else None
    return int(shape[axis]) if shape is not None and -len(shape) <= axis < len(shape) else None  # type: ignore[arg-type]
