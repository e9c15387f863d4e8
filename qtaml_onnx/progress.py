"""How long work tells whoever waits for it, without knowing how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Shows steps of known number."""

    def steps(self, title: str, total: int) -> StepContext:
        """A context whose value is called after each of `total` steps."""
        ...


class StepContext(Protocol):
    """A context manager that gives the function to call after a step."""

    def __enter__(self) -> Callable[[], None]:
        """Starts showing."""
        ...

    def __exit__(self, *details: object) -> bool | None:
        """Stops showing."""
        ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def steps(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        """Does nothing after each step."""
        yield lambda: None
