"""Checks that what a plan says of its tensors, and of their parts, fits together: a file may say anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import onnx_ir as ir

from qtaml_onnx.errors import InputError
from qtaml_onnx.plan_values import INTEGER_TYPES, ChannelPart
from qtaml_onnx.storage.two_words import LONGEST_PAIR, TWO_WORDS
from qtaml_onnx.tensor_plan import TensorPlan

__all__ = ["check_parts", "check_tensor"]


def check_parts(tensors: Sequence[TensorPlan]) -> None:
    """Refuses a plan in which the parts of a tensor are not all of its channels, each once and in a row."""
    if all(tensor.part is None for tensor in tensors):
        return
    names = [tensor.name for tensor, _others in _runs(tensors)]
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise InputError(f"'{name}' is in the plan twice, or its parts are not one behind the other")
    for first, others in _runs(tensors):
        parts = [tensor.part for tensor in (first, *others) if tensor.part is not None]
        if not others and not parts:
            continue
        for tensor in (first, *others):
            if tensor.part is not None:
                _check_part(tensor, tensor.part)
        channels = sorted(channel for part in parts for channel in part.channels)
        alike = len({(tensor.whole_shape, tensor.dtype, tensor.input_scales) for tensor in (first, *others)}) == 1
        if [part.number for part in parts] != list(range(len(others) + 1)) or not alike:
            raise InputError(f"the parts of '{first.name}' do not fit together")
        if channels != list(range(parts[0].extent)) or any(tensor.bias is not None for tensor in others):
            raise InputError(f"the parts of '{first.name}' are not each of its {parts[0].extent} channels once")


def _check_part(plan: TensorPlan, part: ChannelPart) -> None:
    where = f"'{plan.name}'"
    if plan.quantized:
        raise InputError(f"{where} is in parts, which quantised weights cannot be")
    channels = np.asarray(part.channels, dtype=np.int64)
    if not 0 <= part.axis < len(plan.shape) or len(channels) != plan.shape[part.axis] or part.extent > 1 << 16:
        raise InputError(f"{where} has a part of {len(channels)} channels on axis {part.axis} of {list(plan.shape)}")
    if channels[0] < 0 or channels[-1] >= part.extent or (np.diff(channels) <= 0).any():
        raise InputError(f"{where} has a part whose channels do not ascend from 0 to {part.extent - 1}")


def _runs(tensors: Sequence[TensorPlan]) -> list[tuple[TensorPlan, list[TensorPlan]]]:
    """Entries of one name in a row: the first and the others."""
    groups = [list(group) for _name, group in groupby(tensors, key=lambda tensor: tensor.name)]
    return [(group[0], group[1:]) for group in groups]


def check_tensor(plan: TensorPlan) -> None:
    """Refuses a tensor's plan whose parts do not fit together: a file may say anything."""
    longest, where = LONGEST_PAIR if plan.form == "two-words" else 16, f"'{plan.name}'"
    if (
        not len(plan.word_lengths) <= plan.bits <= longest
        or min(plan.shape, default=1) < 1
        or math.prod(plan.shape) >= 2**48
    ):
        raise InputError(f"{where} has {plan.bits}-bit words of shape {list(plan.shape)}")
    if (plan.form == "two-words") != (plan.code.kind == TWO_WORDS):
        raise InputError(f"{where} has the form {plan.form} and the code {plan.code.kind}")
    if (plan.word_lengths[0] > 8) != (plan.words_type == "UINT16"):
        raise InputError(f"{where} has {plan.bits}-bit words in {plan.words_type}")
    for what, axis, values in (
        ("weight_scales", plan.channel_axis, plan.weight_scales),
        ("scales", plan.channel_axis, plan.scales),
        ("input_scales", plan.input_axis, plan.input_scales),
    ):
        if values is None or len(values) == 1:
            continue
        if axis is None or not 0 <= axis < len(plan.shape) or len(values) != plan.shape[axis]:
            raise InputError(f"{where} has {len(values)} {what} along axis {axis} of shape {list(plan.shape)}")
        if any(value == 0 for value in values) and what != "scales":
            raise InputError(f"{where} has {what} that are 0")
    tabled = plan.form in ("table", "integer-table", "integer-grid")
    entries = len(plan.channel_codes or (None,)) << plan.bits
    if tabled != (plan.table is not None) or (plan.table is not None and len(plan.table) != entries):
        raise InputError(f"{where} has no table of {entries} entries, or one that its form {plan.form} has not")
    if plan.quantized:
        _check_integers(plan, where)
    if not 0 <= plan.stream < 2**31 or any(not 0 <= plane < plan.bits for plane in plan.protected_planes):
        raise InputError(f"{where} has stream {plan.stream} and protected planes {list(plan.protected_planes)}")
    if plan.form == "two-words":
        if plan.protected_planes or plan.dtype in INTEGER_TYPES:
            raise InputError(f"{where} has two words a weight, and protected planes or the type {plan.dtype}")
        plan.code.two_words()
    else:
        plan.code.code()
    if plan.channel_codes is not None or plan.channel_groups is not None:
        axis, groups, grouped = plan.channel_axis, plan.channel_groups or (), plan.grouped_code()
        fits = axis is not None and 0 <= axis < len(plan.shape) and len(groups) == plan.shape[axis]
        if plan.form != "table" or not fits or grouped is None or grouped.bits != plan.bits:
            raise InputError(f"{where} has codes of groups of channels that do not fit its form, shape or word length")


def _check_integers(plan: TensorPlan, where: str) -> None:
    """The same for what the operators of a quantised model read."""
    if plan.dtype not in INTEGER_TYPES or (plan.form != "integer-grid" and plan.bits > 8):
        raise InputError(f"{where} has {plan.bits}-bit words read as integers of type {plan.dtype}")
    packing = plan.packing
    bits = ir.DataType[plan.dtype].bitwidth
    if packing is not None:
        bits = packing.bits
        rows, blocks, size = packing.shape
        room = blocks * size * 8 // bits if bits in (2, 4, 8) and min(packing.shape) > 0 else 0
        if plan.dtype != "UINT8" or len(plan.shape) != 2 or plan.shape[0] != rows or plan.shape[1] > room:
            raise InputError(f"{where} has words of shape {list(plan.shape)} packed as {list(packing.shape)}")
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if plan.dtype.startswith("INT") else (0, (1 << bits) - 1)
    if plan.form == "integer-table" and any(not low <= entry <= high for entry in plan.table or ()):
        raise InputError(f"{where} has a table of integers beyond {bits}-bit {plan.dtype}")
    if not low <= plan.zero_point <= high or (packing is not None and not low <= packing.filler <= high):
        raise InputError(f"{where} has the zero point {plan.zero_point}, beyond {bits}-bit {plan.dtype}")
    if plan.form == "integer-grid" and (plan.limits is None or not low <= plan.limits[0] <= plan.limits[1] <= high):
        raise InputError(f"{where} has the limits {plan.limits}, not within {bits}-bit {plan.dtype}")
