"""How long work tells whoever waits for it, without knowing how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Shows steps of known number."""

    def steps(self, title: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """A context whose value is called after each of `total` steps."""
        ...


class Silent:
    """Shows nothing."""

    def steps(self, title: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """Does nothing after each step."""
        return nullcontext(lambda: None)
