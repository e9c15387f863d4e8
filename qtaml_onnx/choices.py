"""What can be done with one tensor, or with some of its output channels: at one word length, or at any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.channel_groups import Part
from qtaml_onnx.codebooks import CodeBooks
from qtaml_onnx.menu import Choice
from qtaml_onnx.methods import Method
from qtaml_onnx.protection import Protection
from qtaml_onnx.recoding import design_choice, kept_choices, rounding_noise
from qtaml_onnx.tensors import Scaling
from qtaml_onnx.uniform_codes import candidate_codes

__all__ = ["Conditions", "fixed_length_choices", "join_parts", "word_length_choices"]


@dataclass(frozen=True)
class Conditions:
    """What is the same for all tensors of a model.

    Attributes:
        rates: Flip rates.
        residual: Flip rate of protected planes.
        bits: Word length of float weights.
        code: Which uniform code they get, see `qtaml_onnx.uniform_codes.CODE_CHOICES`.
        keep_codes: Whether the words that a quantised model brings along stay as they are.
        books: Gives the shared code books, made when first asked for.
    """

    rates: FlipRates
    residual: float
    bits: int
    code: str
    keep_codes: bool
    books: Callable[[], CodeBooks]


def fixed_length_choices(
    method: Method,
    part: Part,
    weight: float,
    scaling: Scaling,
    conditions: Conditions,
    mean_square: Callable[[], float],
    *,
    protectable: bool,
) -> list[Choice]:
    """The choices at one word length: 0, 1, 2, … protected planes, or 0 alone.

    Args:
        method: The method.
        part: What is stored.
        weight: Output noise energy for normalised noise of variance 1 in it.
        scaling: How the method normalises the tensor.
        conditions: The same for all tensors.
        mean_square: Gives that of its normalised weights.
        protectable: Whether planes may be protected.
    """
    tensor, rates = part.tensor, conditions.rates
    kept = kept_choices(method, tensor, weight, rates, conditions.residual, protectable)
    if kept and (conditions.keep_codes or method.code != "channel-optimized"):
        return kept
    rounding = rounding_noise(tensor, scaling)
    if method.code == "channel-optimized":
        books, signal = conditions.books(), weight * mean_square()
        bits = tensor.fixed.bits if tensor.fixed is not None else conditions.bits
        coded = [
            Choice(bits, m, part.size * m, signal * books.book(bits, m).noise_to_signal + weight * rounding)
            for m in (range(bits + 1) if protectable else (0,))
        ]
        # A quantised model's own words are exact without faults: they stay unless another code has less noise.
        pairs = [(kept[min(m, len(kept) - 1)] if kept else choice, choice) for m, choice in enumerate(coded)]
        return [own if own.energy <= choice.energy else choice for own, choice in pairs]
    x = part.normalised(scaling)
    candidates = candidate_codes(conditions.code, conditions.bits, x, rates)
    made = [
        method.designs(x, code, rates, residual=conditions.residual, protectable=protectable) for code in candidates
    ]
    # A code whose exposed planes hold nothing fragile has fewer designs: beyond, protection gains nothing.
    best = [min(designs, key=lambda design: design.noise) for designs in zip(*made, strict=False)]
    return [design_choice(part.size, replace(design, noise=design.noise + rounding), weight) for design in best]


def word_length_choices(
    part: Part,
    weight: float,
    signal: float,
    scaling: Scaling,
    books: CodeBooks,
    protection: Protection,
    longest: int,
    pairs: Sequence[int] = (),
) -> list[Choice]:
    """The choices at any word length; cost is all stored bits, parity included.

    With ideal protection nothing is protected: a bit that costs nothing and never fails would win everywhere.

    Args:
        part: What is stored.
        weight: Output noise energy for normalised noise of variance 1 in it.
        signal: The same for the mean square of its normalised weights.
        scaling: How the method normalises the tensor.
        books: The shared code books.
        protection: How protected planes are kept.
        longest: Longest single word.
        pairs: Bits of two words a weight, for float weights; they are not protected.
    """
    rounding = weight * rounding_noise(part.tensor, scaling)
    options = []
    for bits in range(1, longest + 1):
        for protected in (0,) if protection.name == "ideal" else (0, bits):
            cost = part.size * bits + protection.parity_bits(part.size * protected)
            options.append(
                Choice(bits, protected, cost, signal * books.book(bits, protected).noise_to_signal + rounding)
            )
    for bits in pairs if part.tensor.grid is None else ():
        energy = signal * books.pair(bits).noise_to_signal
        options.append(Choice(bits, 0, part.size * bits, energy, pair=True))
    return options


def join_parts(
    parts: Sequence[Part], picked: Sequence[Choice], choices: Callable[[Part], list[Choice]]
) -> list[tuple[Part, Choice]]:
    """Makes one of the parts of a tensor for which the same was chosen.

    Args:
        parts: The parts, those of a tensor in a row.
        picked: What was chosen for each.
        choices: Gives what can be done with joined channels, whose design is that of all their weights.
    """
    result: list[tuple[Part, Choice]] = []
    for _name, items in groupby(zip(parts, picked, strict=True), key=lambda item: item[0].name):
        alike: dict[tuple[int, int, bool], list[tuple[Part, Choice]]] = {}
        for part, choice in items:
            alike.setdefault((choice.bits, choice.protected, choice.pair), []).append((part, choice))
        for number, group in enumerate(alike.values()):
            part, choice = group[0]
            channels = [part.channels for part, _choice in group if part.channels is not None]
            own = np.sort(np.concatenate(channels)) if channels and len(alike) > 1 else None
            joined = Part(part.tensor, own, sum(part.share for part, _choice in group), number)
            if len(group) > 1 and choice.design is None:
                cost, energy = sum(one.cost for _part, one in group), sum(one.energy for _part, one in group)
                choice = Choice(choice.bits, choice.protected, cost, energy, pair=choice.pair)
            elif len(group) > 1:
                made = choices(joined)
                choice = made[min(choice.protected, len(made) - 1)]
            result.append((joined, choice))
    return result
