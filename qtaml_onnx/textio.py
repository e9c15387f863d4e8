"""Text from strangers: read with a limit, and shown without what a terminal would obey."""

from __future__ import annotations

import os
from pathlib import Path

from qtaml_onnx.errors import InputError

__all__ = ["one_line", "printable", "read_text"]

_LINE = 2000

_LONGEST = 1 << 28


def printable(text: str | os.PathLike[str]) -> str:
    r"""Text with everything that is not printable written as an escape (`\x1b`, `\u202e`): safe on a terminal.

    Control characters, line breaks, marks that change the direction of writing, and bytes of file names that are no
    text. Blanks stay.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in os.fspath(text))


def one_line(text: str) -> str:
    """Printable text on one line, not too long for one."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _LINE else line[: _LINE - 1] + "…"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def read_text(path: Path, what: str, mend: str) -> str:
    """The content of a UTF-8 text file.

    Args:
        path: The file.
        what: What it is, for messages: "plan".
        mend: What to do if it cannot be read.

    Raises:
        InputError: if it is missing, no regular file, larger than 256 MiB or not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{what} {path} is no regular file; {mend}")
        if path.stat().st_size > _LONGEST:
            raise InputError(f"{what} {path} is larger than {_LONGEST >> 20} MiB; {mend}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path} cannot be read (it is not UTF-8 text); {mend}") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{what} {path} cannot be read ({getattr(error, 'strerror', None) or error}); {mend}"
        ) from error
