"""Makes storage plans: what can be done with each tensor, what that costs and leaves, and the plan of a choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.allocation import Allocation
from qtaml_onnx.biases import bias_plan
from qtaml_onnx.book_choice import BookKind
from qtaml_onnx.channel_groups import Part, split
from qtaml_onnx.choices import Conditions, fixed_length_choices, join_parts, word_length_choices
from qtaml_onnx.codebooks import CodeBooks
from qtaml_onnx.errors import InputError
from qtaml_onnx.layers import Layer, LayerStatistics, find_layer, product_layer
from qtaml_onnx.menu import Choice, Menu
from qtaml_onnx.methods import Method
from qtaml_onnx.modelio import SourceModel
from qtaml_onnx.plan import FaultModel, LeftOutTensor, StoragePlan
from qtaml_onnx.preparation import prepare
from qtaml_onnx.protection import Protection, scheme
from qtaml_onnx.recoding import analysis_model
from qtaml_onnx.sensitivity import Sensitivity
from qtaml_onnx.small import SmallStorage
from qtaml_onnx.storage import Code, WordSums, word_sums
from qtaml_onnx.storage.histogram import sums_under
from qtaml_onnx.storage.tensor import mean_square, part_of
from qtaml_onnx.storage.two_words import LONGEST_PAIR, long_word_sums
from qtaml_onnx.tensor_design import Books, Correction, tensor_plan
from qtaml_onnx.tensor_plan import BiasPlan, CodeSpec, TensorPlan, table_bits
from qtaml_onnx.tensors import Scaling, ScalingKind, TensorData, gather
from qtaml_onnx.uniform_codes import DEFAULT_CODE
from qtaml_onnx.weights import Inventory, find_weights

__all__ = ["Allocation", "Menu", "Planner", "prepare"]

LONGEST_WORD = 12

_TABLE_SHARE = 0.03
_PAIR_LENGTHS = (11, 12, 13, 14, 15, 16, 18, 20)
_PAIR_LIST = 4096
"""Bits of a list of 64 cells: what a code of two words takes, roughly."""

_REFINEMENTS = 5
_LEAST_STEP = 1e-3

Channels = tuple[int, ...] | None
"""Output channels of a part; None for the whole tensor."""


class Planner:
    """Everything that is decided about one model under one fault model.

    Attributes:
        source: The model.
        inventory: Its weights.
        fault_model: What is designed for.
        bits: Word length of float weights, where it is not chosen a tensor.
        input_scales: Whether inputs of a layer get scales of their own where calibration says how much they vary.
        keep_codes: Whether the words that a quantised model brings along stay as they are.
        codes: By method name, the uniform code of its float weights, where it is not two's complement.
        code_books: Which code books tensors get, see `qtaml_onnx.book_choice`.
        protection: How protected planes are kept.
        residual: Rate at which they still flip.
        tensors: The weights' data, in graph order.
        layers: By weight name, the layers whose bias can correct itself.
        statistics: What calibration says of them; empty without calibration data.
        biases: Plans of their biases.
        restorable: Names of layers whose output deviations are restored.
        sensitivity: Measured by forward probes; None where no method needs it.
        small: How the tensors beside the weights are stored; None where they are taken to be safe.
        plain_sensitivity: The same without self-correcting biases, for methods that have none; None where not measured,
            and then `sensitivity` serves them too.
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
        self.source = source
        self.inventory = inventory
        self.fault_model = fault_model
        self.bits = bits
        self.rates = fault_model.rates
        self.rates.truncated(bits)  # refuses too few planes before any work
        raw = max((a + b) / 2 for a, b in zip(self.rates.p01, self.rates.p10, strict=True))
        self.input_scales = input_scales
        self.codes = codes or {}
        self.keep_codes = keep_codes
        self.code_books: BookKind = code_books
        self.protection: Protection = scheme(protection, rate=raw)
        ideal = self.protection.name == "ideal"  # whatever the raw rate; codes are defined up to 1/2
        self.residual = 0.0 if ideal else self.protection.residual(raw)
        self.tensors = [gather(weight, per_tensor_scales) for weight in inventory.weights]
        self.layers: dict[str, Layer] = {}
        self.statistics: dict[str, LayerStatistics] = {}
        self.biases: dict[str, BiasPlan] = {}
        self.restorable: frozenset[str] = frozenset()
        self.sensitivity: Sensitivity | None = None
        self.small: SmallStorage | None = None
        self.plain_sensitivity: Sensitivity | None = None
        self._probed_with: ScalingKind = "peak"
        self._menus: dict[tuple[str, bool], Menu] = {}
        self._scalings: dict[tuple[str, str], Scaling] = {}
        self._signals: dict[tuple[str, str, Channels], float] = {}
        self._sums: dict[tuple[str, str, Channels, CodeSpec], WordSums] = {}
        self._books: CodeBooks | None = None
        self._parts: dict[str, list[Part]] = {}
        self._joined_menus: dict[tuple[str, str, bytes], list[Choice]] = {}

    @property
    def analysis(self) -> ir.Model:
        """The model with quantised weights as floats: where layers are found and measured."""
        return self._analysis[0]

    @cached_property
    def _analysis(self) -> tuple[ir.Model, dict[str, str]]:
        """The same, made when it is first asked for, and the name of each weight there."""
        return analysis_model(self.source, self.inventory)

    def find_layers(self) -> None:
        """Looks for the layers whose bias can correct itself."""
        weights = {weight.name: weight for weight in find_weights(self.analysis).weights}
        quantised = {weight.name for weight in self.inventory.weights if weight.grid is not None}
        for name, analysed in self._analysis[1].items():
            layer, _reason = find_layer(self.analysis, weights[analysed])
            if layer is None and name in quantised:
                layer = product_layer(self.analysis, weights[analysed])
            if layer is not None:
                self.layers[name] = replace(layer, weight=name)

    def use_statistics(self, statistics: dict[str, LayerStatistics], *, correct_biases: bool) -> None:
        """Takes calibration statistics of `self.layers` for scales, and for self-correcting biases if wanted."""
        self.statistics = statistics
        self._scalings.clear()
        self._signals.clear()
        self._sums.clear()
        if correct_biases:
            tensors = {tensor.name: tensor for tensor in self.tensors}
            placed = {name: found for name, found in statistics.items() if self.layers[name].has_place}
            plans = {n: bias_plan(self.layers[n], found, tensors[n].values) for n, found in placed.items()}
            self.biases = {name: plan for name, plan in plans.items() if plan is not None}
            self.restorable = frozenset({*self.biases, *(statistics.keys() - placed.keys())})

    def scaling(self, method: Method, tensor: TensorData) -> Scaling:
        """How a method normalises a tensor."""
        key = (method.scaling, tensor.name)
        if key not in self._scalings:
            found = self.statistics.get(tensor.name)
            deviation = None
            if self.input_scales and found is not None and self.layers[tensor.name].groups == 1:
                deviation = np.sqrt(found.input_variance)
            self._scalings[key] = tensor.scaling(method.scaling, deviation)
        return self._scalings[key]

    def normalised(self, method: Method, tensor: TensorData) -> NDArray[np.float32]:
        """Normalised weights, float32: what a code is made for."""
        return tensor.normalised(self.scaling(method, tensor))

    def _signal(self, method: Method, part: Part, x: NDArray[np.float32] | None = None) -> float:
        """Mean square of a part's normalised weights; `x` are these, where they are at hand."""
        key = (method.scaling, part.name, _channels(part.channels))
        if key not in self._signals:
            found = part.normalised(self.scaling(method, part.tensor)) if x is None else x
            self._signals[key] = mean_square(found)
        return self._signals[key]

    def stored_sums(self, method: Method, tensor: TensorData, plan: TensorPlan) -> WordSums:
        """Sums over the normalised weights of a plan by the word that each is stored as, or by the long word of two.

        Of a tensor with codes of its own for groups of channels, over the channels of the first group.

        Args:
            method: The method of the plan.
            tensor: The weight.
            plan: Its plan, made here, or that of a part.
        """
        grouped = plan.grouped_code()
        if plan.form == "two-words" or grouped is not None:
            x = part_of(plan, self.normalised(method, tensor))
            if grouped is not None:
                first = np.take(x, np.flatnonzero(np.equal(grouped.groups, 0)), axis=grouped.axis)
                return word_sums(plan.code.code(), first)
            return long_word_sums(plan.code.two_words(), x)
        key = (method.scaling, tensor.name, None if plan.part is None else tuple(plan.part.channels), plan.code)
        if key not in self._sums:
            code = plan.code.code()
            kept = tensor.fixed is not None and code == tensor.fixed
            scaling = tensor.scaling("peak") if kept else self.scaling(method, tensor)
            self._sums[key] = word_sums(code, part_of(plan, tensor.normalised(scaling)))
        return self._sums[key]

    def probe_weights(self, method: Method) -> dict[str, tuple[NDArray[np.floating], NDArray[np.floating]]]:
        """What sensitivity probes need: float weights, and the scale of the noise in each, by name."""
        return {tensor.name: (tensor.values, tensor.units(self.scaling(method, tensor))) for tensor in self.tensors}

    def use_sensitivity(self, sensitivity: Sensitivity, method: Method) -> None:
        """Takes sensitivities that were probed with the scales of `method`."""
        self.sensitivity = sensitivity
        self._probed_with = method.scaling

    def use_plain_sensitivity(self, sensitivity: Sensitivity) -> None:
        """Takes sensitivities probed with peak scales and without self-correcting biases, for methods without them."""
        self.plain_sensitivity = sensitivity
        self._menus = {key: menu for key, menu in self._menus.items() if menu.method.corrects_bias}

    def _probed(self, method: Method) -> tuple[Sensitivity | None, ScalingKind]:
        """The sensitivities that a method goes by, and the scales they were probed with."""
        if self.plain_sensitivity is not None and not method.corrects_bias:
            return self.plain_sensitivity, "peak"
        return self.sensitivity, self._probed_with

    def _weighting(self, method: Method) -> list[float]:
        """Output noise energy of each tensor for normalised noise of variance 1, or what stands in for it."""
        magnitude = [tensor.weight.size * tensor.unit_energy(self.scaling(method, tensor)) for tensor in self.tensors]
        sensitivity, probed_with = self._probed(method)
        if method.weighting == "magnitude" or sensitivity is None or not any(sensitivity.energy.values()):
            return magnitude
        energy = [sensitivity.energy[tensor.name] for tensor in self.tensors]
        if probed_with == method.scaling:
            return energy
        probed = []
        for tensor in self.tensors:
            probed.append(tensor.weight.size * tensor.unit_energy(self._scalings[probed_with, tensor.name]))
        return [e * m / p for e, m, p in zip(energy, magnitude, probed, strict=True)]

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
        return Menu(method, choices)

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
        """The smallest protected fraction whose predicted output noise energy is at most `energy`; None if none is."""
        menu = self.menu(method)
        for allocation in menu.sequence():
            if menu.energy(allocation) <= energy:
                return menu.cost(allocation) / self.weight_bits
        return None

    def plan(self, menu: Menu, allocation: Sequence[int]) -> StoragePlan:
        """The plan of an allocation."""
        method = menu.method
        chosen = self._joined(menu, allocation)
        bits = sum(part.size * choice.bits for part, choice in chosen)
        energy = sum(choice.energy for _part, choice in chosen)
        tensors = tuple(
            self._tensor_plan(method, part, choice, stream, choice.energy / energy * bits if energy > 0 else 0.0)
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

    def _sums_under(self, method: Method, part: Part, x: NDArray[np.float32]) -> Callable[[Code], WordSums]:
        """Word sums of a part's normalised weights under any code, which are kept for the report."""
        under, key = sums_under(x), (method.scaling, part.name, _channels(part.channels))

        def sums(code: Code) -> WordSums:
            return self._sums.setdefault((*key, CodeSpec.of(code)), under(code))

        return sums

    def _joined(self, menu: Menu, allocation: Sequence[int]) -> list[tuple[Part, Choice]]:
        """The parts with what was chosen for each, those of a tensor for which the same was chosen as one."""
        method = menu.method

        def choices(part: Part) -> list[Choice]:
            key = (method.name, part.name, b"" if part.channels is None else part.channels.tobytes())
            if key not in self._joined_menus:
                weights = dict(zip((tensor.name for tensor in self.tensors), self._weighting(method), strict=True))
                self._joined_menus[key] = self._fixed_length(method, part, weights[part.name] * part.share, True)
            return self._joined_menus[key]

        picked = [choices[index] for choices, index in zip(menu.choices, allocation, strict=True)]
        return join_parts(self.parts(method), picked, choices)

    def _tensor_plan(self, method: Method, part: Part, choice: Choice, stream: int, worth: float) -> TensorPlan:
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
                lambda x: self._sums_under(method, part, x),
                lambda x: self._signal(method, part, x),
            ),
            stream=stream,
            worth=worth,
            correction=correction,
            sensitivity=sensitivity,
        )


def _channels(found: NDArray[np.int64] | None) -> Channels:
    return None if found is None else tuple(map(int, found))


def _longest_word(total: float) -> int:
    """The longest word whose table takes but a small share of all bits."""
    return max((b for b in range(1, LONGEST_WORD + 1) if table_bits(b) <= _TABLE_SHARE * total), default=1)


def _pair_lengths(total: float, longest: int, longest_word: int) -> list[int]:
    """Bits of two words a weight beyond the longest single word, where a code's list is a small share of all bits."""
    return [b for b in _PAIR_LENGTHS if longest < b <= longest_word and _TABLE_SHARE * total >= _PAIR_LIST]
