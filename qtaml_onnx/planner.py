"""Makes storage plans: what can be done with each tensor, what that costs and leaves, and the plan of a choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.allocation import Allocation
from qtaml_onnx.biases import bias_plan, restored_deviation
from qtaml_onnx.book_choice import BookKind, choose_design
from qtaml_onnx.codebooks import CodeBooks
from qtaml_onnx.errors import InputError
from qtaml_onnx.forms import floats, read_out_form
from qtaml_onnx.integer_bias import integer_bias
from qtaml_onnx.layers import Layer, LayerStatistics, extra_variance, find_layer, product_layer
from qtaml_onnx.menu import Choice, Menu
from qtaml_onnx.methods import Method
from qtaml_onnx.modelio import SourceModel
from qtaml_onnx.passes.fold_weights import FoldWeights
from qtaml_onnx.plan import FaultModel, LeftOutTensor, StoragePlan
from qtaml_onnx.protection import Protection, scheme
from qtaml_onnx.recoding import (
    analysis_model,
    design_choice,
    kept_choices,
    one_step_a_channel,
    packed_words,
    rounding_noise,
    unit_ratio,
)
from qtaml_onnx.sensitivity import Sensitivity
from qtaml_onnx.small import SmallStorage
from qtaml_onnx.storage import Code, WordSums, word_sums
from qtaml_onnx.storage.grouped import GroupedCode
from qtaml_onnx.storage.histogram import sums_under
from qtaml_onnx.storage.tensor import mean_square
from qtaml_onnx.storage.two_words import LONGEST_PAIR, cell_sums
from qtaml_onnx.tensor_plan import BiasPlan, CodeSpec, TensorPlan, table_bits
from qtaml_onnx.tensors import LONGEST_KEPT, Scaling, ScalingKind, TensorData, gather
from qtaml_onnx.uniform_codes import DEFAULT_CODE, candidate_codes
from qtaml_onnx.weights import Inventory, LeftOut, find_weights

__all__ = ["Allocation", "Menu", "Planner", "prepare"]

LONGEST_WORD = 12

_TABLE_SHARE = 0.03
_PAIR_LENGTHS = (11, 12, 13, 14, 15, 16, 18, 20)
_PAIR_LIST = 4096
"""Bits of a list of 64 cells: what a code of two words takes, roughly."""

_REFINEMENTS = 5
_LEAST_STEP = 1e-3


def prepare(
    source: SourceModel,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    *,
    weights_needed: bool = True,
    keep_codes: bool = False,
) -> Inventory:
    """Folds the weights of a model that are computed from constants, in place, and lists what is stored where.

    With `keep_codes`, quantised weights whose words cannot be kept are left out.

    Raises:
        InputError: if a pattern matches nothing, or there is no weight to store and one is needed.
    """
    FoldWeights()(source.model)
    inventory = find_weights(source.model).select(include, exclude)
    if keep_codes:
        long = [weight for weight in inventory.weights if weight.grid is not None and weight.grid.bits > LONGEST_KEPT]
        inventory.weights = [weight for weight in inventory.weights if weight not in long]
        inventory.left_out += [LeftOut(weight.name, "words of 16 bits: too long for --keep-codes") for weight in long]
    if weights_needed and not inventory.weights:
        raise InputError(
            f"{source.path}: no weights to harden: no constant operand of Conv, Gemm, MatMul, Gather or the like; "
            "`qtaml-onnx inspect` tells what is left out and why"
        )
    return inventory


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
        self._signals: dict[tuple[str, str], float] = {}
        self._sums: dict[tuple[str, str, CodeSpec], WordSums] = {}
        self._books: CodeBooks | None = None

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

    def _signal(self, method: Method, tensor: TensorData, x: NDArray[np.float32] | None = None) -> float:
        """Mean square of a tensor's normalised weights; `x` are these, where they are at hand."""
        key = (method.scaling, tensor.name)
        if key not in self._signals:
            self._signals[key] = mean_square(self.normalised(method, tensor) if x is None else x)
        return self._signals[key]

    def stored_sums(self, method: Method, tensor: TensorData, plan: TensorPlan) -> WordSums:
        """Sums over a tensor's normalised weights by the word that each is stored as, or by the long word of two.

        Of a tensor with codes of its own for groups of channels, over the channels of the first group.

        Args:
            method: The method of the plan.
            tensor: The weight.
            plan: Its plan, made here.
        """
        grouped = plan.grouped_code()
        if plan.form == "two-words":
            code = plan.code.two_words()
            found = cell_sums(code, self.normalised(method, tensor))
            sums = np.zeros((3, 1 << code.bits))
            sums[:, code.words] = found.count, found.first, found.second
            return WordSums(*sums)
        if grouped is not None:
            x = self.normalised(method, tensor)
            first = np.take(x, np.flatnonzero(np.equal(grouped.groups, 0)), axis=grouped.axis)
            return word_sums(plan.code.code(), first)
        key = (method.scaling, tensor.name, plan.code)
        if key not in self._sums:
            word = plan.code.code()
            kept = tensor.fixed is not None and word == tensor.fixed
            scaling = tensor.scaling("peak") if kept else self.scaling(method, tensor)
            self._sums[key] = word_sums(word, tensor.normalised(scaling))
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

    def menu(self, method: Method, progress: Callable[[], None] = lambda: None, *, protectable: bool = True) -> Menu:
        """The choices at one word length: 0, 1, 2, … protected planes, or 0 alone; made once a method."""
        key = (method.name, protectable)
        if (method.name, True) in self._menus:
            return self._menus[method.name, True]
        if key not in self._menus:
            choices = []
            for tensor, weight in zip(self.tensors, self._weighting(method), strict=True):
                choices.append(self._fixed_length(method, tensor, weight, protectable))
                progress()
            self._menus[key] = Menu(method, choices)
        return self._menus[key]

    def _fixed_length(self, method: Method, tensor: TensorData, weight: float, protectable: bool) -> list[Choice]:
        kept = kept_choices(method, tensor, weight, self.rates, self.residual, protectable)
        if kept and (self.keep_codes or method.code != "channel-optimized"):
            return kept
        size = tensor.weight.size
        rounding = rounding_noise(tensor, self.scaling(method, tensor))
        if method.code == "channel-optimized":
            books, signal = self.books(method), weight * self._signal(method, tensor)
            bits = self._word_bits(tensor)
            coded = [
                Choice(bits, m, size * m, signal * books.book(bits, m).noise_to_signal + weight * rounding)
                for m in (range(bits + 1) if protectable else (0,))
            ]
            # A quantised model's own words are exact without faults: they stay unless another code has less noise.
            pairs = [(kept[min(m, len(kept) - 1)] if kept else choice, choice) for m, choice in enumerate(coded)]
            return [own if own.energy <= choice.energy else choice for own, choice in pairs]
        x = self.normalised(method, tensor)
        candidates = candidate_codes(self.codes.get(method.name, DEFAULT_CODE), self.bits, x, self.rates)
        made = [
            method.designs(x, code, self.rates, residual=self.residual, protectable=protectable) for code in candidates
        ]
        # A code whose exposed planes hold nothing fragile has fewer designs: beyond, protection gains nothing.
        best = [min(designs, key=lambda design: design.noise) for designs in zip(*made, strict=False)]
        return [design_choice(tensor, replace(design, noise=design.noise + rounding), weight) for design in best]

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
        """The choices where each tensor may have a word length of its own; cost is all stored bits, parity included.

        With ideal protection nothing is protected: a bit that costs nothing and never fails would win everywhere.

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
        for tensor, weight in zip(self.tensors, self._weighting(method), strict=True):
            size, signal = tensor.weight.size, weight * self._signal(method, tensor)
            rounding = weight * rounding_noise(tensor, self.scaling(method, tensor))
            options = []
            for bits in range(1, min(longest, self.rates.bits) + 1):
                for protected in (0,) if self.protection.name == "ideal" else (0, bits):
                    cost = size * bits + self.protection.parity_bits(size * protected)
                    noise = books.book(bits, protected).noise_to_signal
                    options.append(Choice(bits, protected, cost, signal * noise + rounding))
            for bits in pairs if tensor.grid is None else ():
                options.append(Choice(bits, 0, size * bits, signal * books.pair(bits).noise_to_signal, pair=True))
            choices.append(options)
            progress()
        return Menu(method, choices)

    def books(self, method: Method) -> CodeBooks:
        """The shared code books of the tensors whose words may be chosen."""
        if self._books is None:
            free = [tensor for tensor in self.tensors if tensor.fixed is None or not self.keep_codes]
            weights = dict(zip((t.name for t in self.tensors), self._weighting(method), strict=True))

            def normalised(tensor: TensorData) -> NDArray[np.float32]:
                x = self.normalised(method, tensor)
                self._signal(method, tensor, x)
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
        chosen = [choices[index] for choices, index in zip(menu.choices, allocation, strict=True)]
        bits = sum(tensor.weight.size * choice.bits for tensor, choice in zip(self.tensors, chosen, strict=True))
        energy = sum(choice.energy for choice in chosen)
        tensors = tuple(
            self._tensor_plan(method, tensor, choice, stream, choice.energy / energy * bits if energy > 0 else 0.0)
            for stream, (tensor, choice) in enumerate(zip(self.tensors, chosen, strict=True))
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

    def _sums_under(self, method: Method, tensor: TensorData, x: NDArray[np.float32]) -> Callable[[Code], WordSums]:
        """Word sums of a tensor's normalised weights under any code, which are kept for the report."""
        under = sums_under(x)

        def sums(code: Code) -> WordSums:
            return self._sums.setdefault((method.scaling, tensor.name, CodeSpec.of(code)), under(code))

        return sums

    def _tensor_plan(self, method: Method, tensor: TensorData, choice: Choice, stream: int, worth: float) -> TensorPlan:
        weight, grid = tensor.weight, tensor.grid
        kept = choice.design is not None and tensor.fixed is not None
        scaling = tensor.scaling("peak") if kept else self.scaling(method, tensor)
        x = tensor.normalised(scaling)
        if choice.design is not None:
            design = choice.design
        elif choice.pair:
            design = self.books(method).pair_design(tensor.name, choice.bits, x, worth, self.code_books)
        else:
            axis = scaling.row_axis if grid is None and scaling.rows.size > 1 else None
            books = self.books(method)
            sums = self._sums_under(method, tensor, x)
            design = choose_design(books, choice.bits, choice.protected, x, axis, worth, self.code_books, sums)
        code = design.code
        codes = code.codes if isinstance(code, GroupedCode) else (code,)
        noise = design.noise if choice.design is not None else design.noise + rounding_noise(tensor, scaling)
        bias = self.biases.get(tensor.name) if method.corrects_bias else None
        if bias is not None and grid is not None:
            layer, coverage = self.layers[tensor.name], self.statistics[tensor.name].coverage
            bias = integer_bias(weight, bias, layer, tensor.values, coverage)
        form = read_out_form(tensor, design.code, design.readout, scaling)
        rows = form.scales.astype(np.float64) * design.gain
        restored = method.corrects_bias and tensor.name in self.restorable
        if restored and form.form not in ("dequantize", "integer-table"):
            rows = rows * self._restored(tensor, scaling, noise)
        probed, probed_with = self._probed(method)
        sensitivity = None
        if probed is not None and probed_with == method.scaling:
            sensitivity = probed.energy[tensor.name] * (unit_ratio(method, tensor, scaling) if kept else 1.0)
        return TensorPlan(
            name=tensor.name,
            op_type=weight.op_type,
            dtype=weight.dtype.name,
            shape=weight.shape,
            channel_axis=scaling.row_axis if scaling.rows.size > 1 else None,
            code=CodeSpec.of(codes[0]),
            channel_codes=tuple(map(CodeSpec.of, codes)) if isinstance(code, GroupedCode) else None,
            channel_groups=code.groups if isinstance(code, GroupedCode) else None,
            form=form.form,
            words_type=form.words_type,
            weight_scales=floats(scaling.rows),
            scales=floats(rows.astype(np.float32)),
            input_scales=None if scaling.columns is None else floats(scaling.columns),
            input_axis=scaling.column_axis,
            offset=form.offset,
            table=form.table,
            zero_point=form.zero_point,
            limits=form.limits,
            packing=packed_words(tensor),
            steps=one_step_a_channel(tensor),
            parameter_bits=grid.parameter_bits if grid is not None else 0,
            readout=method.readout,
            protected_planes=design.protected_planes,
            stream=stream,
            sensitivity=sensitivity,
            noise=noise,
            signal=mean_square(x) if kept else self._signal(method, tensor, x),
            bias=bias,
        )

    def _restored(self, tensor: TensorData, scaling: Scaling, noise: float) -> NDArray[np.float64] | float:
        """The factor a channel that restores the layer's output deviation; 1 where there is no scale to fold it into.

        Not at the model's own outputs, whose scale is the caller's.
        """
        layer, statistics = self.layers[tensor.name], self.statistics[tensor.name]
        outputs = {str(value.name) for value in self.source.model.graph.outputs}
        rows = tensor.row_units(scaling)
        if layer.output in outputs or scaling.rows.size != len(layer.bias) or rows is None:
            return 1.0
        columns = None if scaling.columns is None else scaling.columns.astype(np.float64)
        added = noise * rows**2 * extra_variance(layer, statistics, columns)
        return restored_deviation(statistics, added)


def _longest_word(total: float) -> int:
    """The longest word whose table takes but a small share of all bits."""
    return max((b for b in range(1, LONGEST_WORD + 1) if table_bits(b) <= _TABLE_SHARE * total), default=1)


def _pair_lengths(total: float, longest: int, longest_word: int) -> list[int]:
    """Bits of two words a weight beyond the longest single word, where a code's list is a small share of all bits."""
    return [b for b in _PAIR_LENGTHS if longest < b <= longest_word and _TABLE_SHARE * total >= _PAIR_LIST]
