"""Makes storage plans: what can be done with each tensor, what that costs and leaves, and the plan of a choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.allocation import Allocation
from qtaml_onnx.book_choice import BookKind
from qtaml_onnx.channel_groups import Part, split
from qtaml_onnx.choices import Conditions, fixed_length_choices, join_parts, word_length_choices
from qtaml_onnx.codebooks import CodeBooks
from qtaml_onnx.errors import InputError
from qtaml_onnx.menu import Choice, Menu
from qtaml_onnx.methods import Method
from qtaml_onnx.model_analysis import ModelAnalysis
from qtaml_onnx.modelio import SourceModel
from qtaml_onnx.plan import FaultModel, LeftOutTensor, StoragePlan
from qtaml_onnx.plan_values import table_bits
from qtaml_onnx.preparation import prepare
from qtaml_onnx.protection import Protection, scheme
from qtaml_onnx.sensitivity import Sensitivity
from qtaml_onnx.small import SmallStorage
from qtaml_onnx.storage.two_words import LONGEST_PAIR
from qtaml_onnx.tensor_design import Books, Correction, tensor_plan
from qtaml_onnx.tensor_plan import TensorPlan
from qtaml_onnx.tensors import TensorData
from qtaml_onnx.uniform_codes import DEFAULT_CODE
from qtaml_onnx.weights import Inventory

__all__ = ["Allocation", "Menu", "Planner", "prepare"]

LONGEST_WORD = 12

_TABLE_SHARE = 0.03
_PAIR_LENGTHS = (11, 12, 13, 14, 15, 16, 18, 20)
_PAIR_LIST = 4096
"""Bits of a list of 64 cells: what a code of two words takes, roughly."""

_REFINEMENTS = 5
_LEAST_STEP = 1e-3


class Planner(ModelAnalysis):
    """Everything that is decided about one model under one fault model.

    Attributes:
        fault_model: What is designed for.
        bits: Word length of float weights, where it is not chosen a tensor.
        keep_codes: Whether the words that a quantised model brings along stay as they are.
        codes: By method name, the uniform code of its float weights, where it is not two's complement.
        code_books: Which code books tensors get, see `qtaml_onnx.book_choice`.
        protection: How protected planes are kept.
        residual: Rate at which they still flip.
        small: How the tensors beside the weights are stored; None where they are taken to be safe.
    """

    def __init__(
        self,
        source: SourceModel,
        inventory: Inventory,
        fault_model: FaultModel,
        *,
        bits: int = 8,
        per_tensor_scales: bool = False,
        protection: str = "ideal",
        input_scales: bool = True,
        codes: Mapping[str, str] | None = None,
        keep_codes: bool = False,
        code_books: BookKind = "auto",
    ) -> None:
        """Reads the weights; raises InputError if one is not finite or the rates are too few for the word length."""
        super().__init__(source, inventory, per_tensor_scales=per_tensor_scales, input_scales=input_scales)
        self.fault_model = fault_model
        self.bits = bits
        self.rates = fault_model.rates
        self.rates.truncated(bits)  # refuses too few planes before any work
        raw = max((a + b) / 2 for a, b in zip(self.rates.p01, self.rates.p10, strict=True))
        self.codes = codes or {}
        self.keep_codes = keep_codes
        self.code_books: BookKind = code_books
        self.protection: Protection = scheme(protection, rate=raw)
        ideal = self.protection.name == "ideal"  # whatever the raw rate; codes are defined up to 1/2
        self.residual = 0.0 if ideal else self.protection.residual(raw)
        self.small: SmallStorage | None = None
        self._menus: dict[tuple[str, bool], Menu] = {}
        self._books: CodeBooks | None = None
        self._parts: dict[str, list[Part]] = {}
        self._joined_menus: dict[tuple[str, str, bytes], list[Choice]] = {}

    def use_plain_sensitivity(self, sensitivity: Sensitivity) -> None:
        """Takes sensitivities probed with peak scales and without self-correcting biases, for methods without them."""
        super().use_plain_sensitivity(sensitivity)
        self._menus = {key: menu for key, menu in self._menus.items() if menu.method.corrects_bias}

    def parts(self, method: Method) -> list[Part]:
        """What gets planes of its own under a method: the tensors, or groups of their output channels."""
        return self._parts.get(method.name) or [Part(tensor) for tensor in self.tensors]

    def use_channel_energies(self, energies: Mapping[str, NDArray[np.float64]], method: Method) -> None:
        """Lets a method share out planes by output channel.

        Args:
            energies: By tensor, output noise energy a channel for noise of one variance in its weights as the method
                normalises them, float64 [channels], in any unit; tensors without stay whole.
            method: The method.
        """
        self._parts[method.name] = [
            part for tensor in self.tensors for part in split(tensor, energies.get(tensor.name))
        ]
        self._menus = {key: menu for key, menu in self._menus.items() if menu.method.name != method.name}

    def _weighted_parts(self, method: Method) -> list[tuple[Part, float]]:
        """The parts, each with the output noise energy for normalised noise of variance 1 in it."""
        weights = dict(zip((tensor.name for tensor in self.tensors), self._weighting(method), strict=True))
        return [(part, weights[part.name] * part.share) for part in self.parts(method)]

    def menu(self, method: Method, progress: Callable[[], None] = lambda: None, *, protectable: bool = True) -> Menu:
        """The choices at one word length: 0, 1, 2, … protected planes, or 0 alone; made once a method."""
        key = (method.name, protectable)
        if (method.name, True) in self._menus:
            return self._menus[method.name, True]
        if key not in self._menus:
            choices = []
            for part, weight in self._weighted_parts(method):
                choices.append(self._fixed_length(method, part, weight, protectable))
                if not part.number:
                    progress()
            self._menus[key] = Menu(method, choices)
        return self._menus[key]

    def _fixed_length(self, method: Method, part: Part, weight: float, protectable: bool) -> list[Choice]:
        conditions = Conditions(
            self.rates,
            self.residual,
            self.bits,
            self.codes.get(method.name, DEFAULT_CODE),
            self.keep_codes,
            lambda: self.books(method),
        )
        scaling = self.scaling(method, part.tensor)
        return fixed_length_choices(
            method, part, weight, scaling, conditions, lambda: self._signal(method, part), protectable=protectable
        )

    def _word_bits(self, tensor: TensorData) -> int:
        """Word length of a tensor where it is not chosen: that of the words which a quantised model brings along."""
        return tensor.fixed.bits if tensor.fixed is not None else self.bits

    def word_length_menu(
        self,
        method: Method,
        progress: Callable[[], None] = lambda: None,
        *,
        longest: int = LONGEST_WORD,
        pairs: Sequence[int] = (),
    ) -> Menu:
        """The choices where each tensor may have a word length of its own: see `word_length_choices`.

        Args:
            method: The method.
            progress: Called after each tensor.
            longest: Longest single word.
            pairs: Bits of two words a weight, for float weights; they are not protected.

        Raises:
            InputError: if the method has no code books, or the model brings its own words along.
        """
        if method.code != "channel-optimized":
            raise InputError(f"--bits-per-weight needs --method channel-optimized, not {method.name}")
        if len(set(self.rates.p01)) > 1 or len(set(self.rates.p10)) > 1:
            raise InputError(
                "--bits-per-weight needs flip rates that are the same on all planes, as word lengths differ; "
                "give --flip-rate, or one length with --bits"
            )
        for tensor in self.tensors:
            if tensor.fixed is not None and self.keep_codes:
                raise InputError(f"'{tensor.name}' has words already; leave out --bits-per-weight or --keep-codes")
        books, choices = self.books(method), []
        longest = min(longest, self.rates.bits)
        for part, weight in self._weighted_parts(method):
            scaling = self.scaling(method, part.tensor)
            signal = weight * self._signal(method, part)
            choices.append(word_length_choices(part, weight, signal, scaling, books, self.protection, longest, pairs))
            if not part.number:
                progress()
        return Menu(method, choices, all_bits=True)

    def books(self, method: Method) -> CodeBooks:
        """The shared code books of the tensors whose words may be chosen."""
        if self._books is None:
            free = [tensor for tensor in self.tensors if tensor.fixed is None or not self.keep_codes]
            weights = dict(zip((t.name for t in self.tensors), self._weighting(method), strict=True))

            def normalised(tensor: TensorData) -> NDArray[np.float32]:
                x = self.normalised(method, tensor)
                self._signal(method, Part(tensor), x)
                return x

            pools = map(normalised, free)  # one at a time
            self._books = CodeBooks(pools, self.rates, self.residual, [weights[tensor.name] for tensor in free])
        return self._books

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(tensor.weight.size for tensor in self.tensors)

    @property
    def weight_bits(self) -> int:
        """All stored weight bits at the fixed word length."""
        return sum(tensor.weight.size * self._word_bits(tensor) for tensor in self.tensors)

    def within_budget(self, method: Method, budget: float) -> StoragePlan:
        """The plan that protects at most `budget`, a fraction of all weight bits."""
        menu = self.menu(method, protectable=budget > 0)
        return self.plan(menu, menu.within(budget * self.weight_bits * (1 + 1e-12)))

    def within_bits(
        self,
        method: Method,
        bits_per_weight: float,
        progress: Callable[[], None] = lambda: None,
        *,
        longest_word: int = LONGEST_PAIR,
    ) -> StoragePlan:
        """The plan of at most that many stored bits a weight, all in: words, parity and metadata.

        Args:
            method: The method.
            bits_per_weight: The bits.
            progress: Called after each tensor.
            longest_word: Most bits of a weight's words, of which it has two where one would need too large a table.

        Raises:
            InputError: if not even the shortest words fit.
        """
        total = bits_per_weight * self.weights
        longest = min(_longest_word(total), longest_word)
        pairs = _pair_lengths(total, longest, longest_word)
        menu = self.word_length_menu(method, progress, longest=longest, pairs=pairs)
        least = menu.cost(menu.within(0))
        room = high = total
        # Metadata depend on the word lengths chosen: take off what they turn out to be, until all fits.
        while (excess := self._stored(plan := self.plan(menu, menu.within(room))) - total) > 0:
            high = menu.cost(menu.within(room))
            if high == least:
                raise InputError(
                    f"--bits-per-weight {bits_per_weight:g} is too little: the shortest words and their metadata take "
                    f"{(total + excess) / self.weights:.3f}"
                )
            room = high - excess
        for _attempt in range(_REFINEMENTS):  # that was perhaps too much: fewer lengths have fewer tables
            middle = (room + high) / 2
            if menu.within(middle) != menu.within(room):
                larger = self.plan(menu, menu.within(middle))
                if self._stored(larger) > total:
                    high = middle
                    continue
                plan = larger
            room = middle
        return plan

    @staticmethod
    def _stored(plan: StoragePlan) -> int:
        return plan.stored_bits

    def smallest_overhead(self, method: Method, energy: float) -> float | None:
        """The smallest protected fraction whose predicted output noise energy is at most `energy`; None if none is.

        The noise of a method that goes by something else than sensitivities is predicted by them all the same.
        """
        menu = self.menu(method)
        ranked, measured = self._weighting(method), self._weighting(replace(method, weighting="sensitivity"))
        ratios = {t.name: m / r if r > 0 else 0.0 for t, r, m in zip(self.tensors, ranked, measured, strict=True)}
        scales = [ratios[part.name] for part in self.parts(method)]
        for allocation in menu.sequence():
            picked = [choices[index] for choices, index in zip(menu.choices, allocation, strict=True)]
            if sum(scale * choice.energy for scale, choice in zip(scales, picked, strict=True)) <= energy:
                return menu.cost(allocation) / self.weight_bits
        return None

    def plan(self, menu: Menu, allocation: Sequence[int]) -> StoragePlan:
        """The plan of an allocation."""
        method = menu.method
        chosen = self._joined(menu, allocation)
        energy = sum(choice.energy for _part, choice in chosen)
        tensors = tuple(
            self._tensor_plan(menu, part, choice, stream, choice.energy / energy * self.weights if energy > 0 else 0.0)
            for stream, (part, choice) in enumerate(chosen)
        )
        longest = max((max(tensor.word_lengths) for tensor in tensors), default=0)
        longest = longest if self.small is None else max(longest, 8)
        faults = self.fault_model
        plan = StoragePlan(
            source_sha256=self.source.sha256,
            method=method.name,
            fault_model=faults.model_copy(update={"p01": faults.p01[:longest], "p10": faults.p10[:longest]}),
            protection=self.protection.name,
            parity_bits=sum(self.protection.parity_bits(t.size * len(t.protected_planes)) for t in tensors),
            residual_rate=self.residual,
            tensors=tensors,
            left_out=tuple(LeftOutTensor(name=item.name, reason=item.reason) for item in self.inventory.left_out),
        )
        return plan if self.small is None else self.small.added_to(plan)

    def _joined(self, menu: Menu, allocation: Sequence[int]) -> list[tuple[Part, Choice]]:
        """The parts with what was chosen for each, those of a tensor for which the same was chosen as one."""
        method = menu.method

        def choices(part: Part) -> list[Choice]:
            key = (method.name, part.name, b"" if part.channels is None else part.channels.tobytes())
            if key not in self._joined_menus:
                weights = dict(zip((tensor.name for tensor in self.tensors), self._weighting(method), strict=True))
                self._joined_menus[key] = self._fixed_length(method, part, weights[part.name] * part.share, True)
            return self._joined_menus[key]

        picked = [offered[index] for offered, index in zip(menu.choices, allocation, strict=True)]
        return join_parts(self.parts(method), picked, choices)

    def _tensor_plan(self, menu: Menu, part: Part, choice: Choice, stream: int, share: float) -> TensorPlan:
        method = menu.method
        name, correction, sensitivity = part.name, None, None
        if method.corrects_bias and name in self.restorable:
            layer, statistics = self.layers[name], self.statistics[name]
            outputs = {str(value.name) for value in self.source.model.graph.outputs}
            correction = Correction(self.biases.get(name), layer, statistics, layer.output not in outputs)
        probed, probed_with = self._probed(method)
        if probed is not None and probed_with == method.scaling:
            sensitivity = probed.energy[name] * part.share
        return tensor_plan(
            method,
            part,
            choice,
            self.scaling(method, part.tensor),
            Books(
                lambda: self.books(method),
                self.code_books,
                menu.all_bits,
                lambda x: self._sums_under(method, part, x),
                lambda x: self._signal(method, part, x),
            ),
            stream=stream,
            share=share,
            correction=correction,
            sensitivity=sensitivity,
        )


def _longest_word(total: float) -> int:
    """The longest word whose table takes but a small share of all bits."""
    return max((b for b in range(1, LONGEST_WORD + 1) if table_bits(b) <= _TABLE_SHARE * total), default=1)


def _pair_lengths(total: float, longest: int, longest_word: int) -> list[int]:
    """Bits of two words a weight beyond the longest single word, where a code's list is a small share of all bits."""
    return [b for b in _PAIR_LENGTHS if longest < b <= longest_word and _TABLE_SHARE * total >= _PAIR_LIST]
