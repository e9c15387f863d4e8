"""What can be done with each tensor, and which combination to take at a cost."""

from __future__ import annotations

from dataclasses import dataclass

from qtaml_onnx.allocation import Allocation, Option, best_within, greedy_sequence, uniform_sequence
from qtaml_onnx.methods import Design, Method

__all__ = ["Choice", "Menu"]


@dataclass(frozen=True)
class Choice:
    """One thing that can be done with a tensor.

    Attributes:
        bits: Word length.
        protected: Number of protected planes.
        cost: What is counted against the budget: protected bits, or all stored bits.
        energy: Predicted output noise energy.
        design: The design, where it was made for this tensor; None where a shared code book serves.
        pair: Whether these bits are those of two words a weight.
    """

    bits: int
    protected: int
    cost: int
    energy: float
    design: Design | None = None
    pair: bool = False


@dataclass(frozen=True)
class Menu:
    """The choices of every tensor under one method.

    Attributes:
        method: The method.
        choices: For each tensor.
        all_bits: Whether costs are all stored bits, so that tables have to earn their bits within the same total.
    """

    method: Method
    choices: list[list[Choice]]
    all_bits: bool = False

    @property
    def _options(self) -> list[list[Option]]:
        return [[Option(choice.cost, choice.energy) for choice in choices] for choices in self.choices]

    def sequence(self) -> list[Allocation]:
        """Allocations of growing cost, from the cheapest to the one with the least noise."""
        uniform = self.method.weighting == "uniform"
        return uniform_sequence(self._options) if uniform else greedy_sequence(self._options)

    def within(self, cost: float) -> Allocation:
        """The allocation of at most that cost; the cheapest if none is."""
        if self.method.weighting != "uniform":
            return best_within(self._options, cost)
        affordable = [a for a in self.sequence() if self.cost(a) <= cost]
        return affordable[-1] if affordable else self.sequence()[0]

    def cost(self, allocation: Allocation) -> int:
        """Total cost of an allocation."""
        return sum(choices[i].cost for choices, i in zip(self.choices, allocation, strict=True))

    def energy(self, allocation: Allocation) -> float:
        """Predicted output noise energy of an allocation."""
        return sum(choices[i].energy for choices, i in zip(self.choices, allocation, strict=True))
