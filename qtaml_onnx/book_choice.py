"""Which code book a tensor gets: the model's shared one, one of its own, or one a group of its channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.codebooks import CodeBooks, restored_gain
from qtaml_onnx.methods import Design
from qtaml_onnx.plan_values import table_bits
from qtaml_onnx.storage import Code, ReadOut, WordSums, word_sums
from qtaml_onnx.storage.channel_optimized import design_channel_optimized
from qtaml_onnx.storage.grouped import MOST_GROUPS, GroupedCode, channels_by_shape

__all__ = ["CODE_BOOKS", "BookKind", "choose_design", "grouped_design"]

BookKind = Literal["auto", "shared", "tensor", "channel"]

CODE_BOOKS: tuple[str, ...] = get_args(BookKind)
"""What `--code-books` takes."""

_GROUP_BITS = 8
"""Bits in which a channel names its group."""


def choose_design(
    books: CodeBooks,
    bits: int,
    protected: int,
    x: NDArray[np.float32],
    axis: int | None,
    worth: float,
    kind: BookKind = "auto",
    sums_under: Callable[[Code], WordSums] | None = None,
    *,
    name: str,
) -> Design:
    """The design of least noise and bits of metadata together, at what the noise is worth in bits.

    Args:
        books: The shared code books.
        bits: Word length.
        protected: Number of protected planes.
        x: Normalised weights.
        axis: Of channels that may have codes of their own; None for none.
        worth: What the tensor's noise is worth in bits: its share of all predicted noise, times what that is worth.
        kind: Which to take whatever it is worth; `auto` compares them. A tensor without channels has its own instead.
        sums_under: Gives the word sums of `x` under a code, where there is a quicker way than another look at `x`.
        name: The tensor's, under which the code books remember what was designed for it.
    """
    sums = sums_under or partial(word_sums, x=x)
    rates, planes = books.rates(bits, protected)
    book = books.book(bits, protected)
    gain, noise = restored_gain(book.readout, rates, sums(book.code))
    shared = Design(book.code, book.readout, planes, noise, gain)
    price = table_bits(bits)
    if kind == "shared" or (kind == "auto" and (worth < price or noise <= 0)):
        return shared

    def one_code() -> Design:
        code, readout = design_channel_optimized(x, rates, restore_gain=False, sums_under=sums)
        gain, own = restored_gain(readout, rates, sums(code))
        return Design(code, readout, planes, own, gain)

    tensor = books.own(name, bits, protected, 1, one_code)

    def loss(design: Design, price: float) -> float:
        return design.noise / noise * worth + price if noise > 0 else design.noise + price

    channels = x.shape[axis] if axis is not None else 1
    grouped: list[tuple[float, Design]] = []
    groups = 2
    while axis is not None and groups <= min(channels, MOST_GROUPS):
        cost = groups * price + _GROUP_BITS * channels
        if kind == "auto" and worth * (tensor.noise / noise) < cost - price:
            break  # more than all of the noise that is left would have to go
        design = books.own(name, bits, protected, groups, partial(grouped_design, x, axis, groups, rates, planes))
        grouped.append((loss(design, cost), design))
        if grouped[-1][0] > min(found for found, _design in grouped):
            break
        groups *= 2
    found = [(loss(shared, 0.0), shared)] if kind == "auto" else []
    found += [(loss(tensor, price), tensor)] if kind != "channel" or not grouped else []
    found += grouped if kind != "tensor" else []
    return min(found, key=lambda one: one[0])[1]


def grouped_design(x: NDArray[np.float32], axis: int, groups: int, rates: FlipRates, planes: tuple[int, ...]) -> Design:
    """A code for each of so many groups of channels; the gain of each is in its part of the table.

    Args:
        x: Normalised weights.
        axis: Of channels.
        groups: How many, at most as many as channels.
        rates: Flip rates, protected planes included.
        planes: Which are protected.
    """
    members, values = channels_by_shape(x, axis, groups), np.moveaxis(x, axis, 0)
    codes, tables, noise = [], [], 0.0
    for number in range(groups):
        part = values[np.flatnonzero(np.equal(members, number))]
        code, readout = design_channel_optimized(part, rates, restore_gain=False)
        gain, own = restored_gain(readout, rates, word_sums(code, part))
        codes.append(code)
        tables.append(gain * readout.table)
        noise += own * part.size / x.size
    table = ReadOut("restored-posterior-mean", np.concatenate(tables))
    return Design(GroupedCode(tuple(codes), members, axis), table, planes, noise)
