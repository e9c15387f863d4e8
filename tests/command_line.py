"""What the fixture `command` is: a command line and the exit code expected of it, to stdout and stderr."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., tuple[str, str]]
