"""Checks that the parts of a tensor in a plan, some output channels each, are all of it: a file may say anything."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from qtaml_onnx.errors import InputError
from qtaml_onnx.tensor_plan import ChannelPart, TensorPlan

__all__ = ["check_parts"]


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
