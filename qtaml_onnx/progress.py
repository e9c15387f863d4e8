"""How long work tells whoever waits for it, without knowing how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

__all__ = ["CountedStep", "Progress", "Silent", "Step"]


class Step(Protocol):
    """Called after each step of some work."""

    def __call__(self) -> None:
        """One more step is done."""
        ...

    def expect(self, total: int) -> None:
        """The work turns out to have so many steps in all."""
        ...


class CountedStep:
    """A step of work whose number of steps is known to whoever shows it."""

    def __init__(self, call: Callable[[], None] = lambda: None) -> None:
        """Takes what to call after each step."""
        self._call = call

    def __call__(self) -> None:
        """One more step is done."""
        self._call()

    def expect(self, total: int) -> None:
        """Changes nothing."""


class Progress(Protocol):
    """Shows steps of known number."""

    def steps(self, title: str, total: int) -> AbstractContextManager[Step]:
        """A context whose value is called after each of `total` steps."""
        ...


class Silent:
    """Shows nothing."""

    def steps(self, title: str, total: int) -> AbstractContextManager[Step]:
        """Does nothing after each step."""
        return nullcontext(CountedStep())
