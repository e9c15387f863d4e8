"""Output files: checked before the work, and written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from qtaml_onnx.errors import InputError

__all__ = ["OutputSet", "check_free_space", "check_outputs"]

_MARGIN = 1 << 24
"""Bytes to spare on a disk: for the plan, the report and the file system's own."""


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path | None] = ()) -> None:
    """Refuses, before any work is done, outputs that could not be written, or not without losing something.

    Args:
        outputs: What is to be written, by the option that names it; None where it is not asked for.
        inputs: What is read; None, and what does not exist, is passed over.

    Raises:
        InputError: if a folder does not exist or is not writable, or an output is a folder, an input, or named twice.
    """
    read = [path for path in inputs if path is not None]
    named: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        _check_output(option, path, read)
        other = named.setdefault(path.resolve(), option)
        if other != option:
            raise InputError(f"{option} and {other} name the same file {path}; give two")


def _check_output(option: str, path: Path, inputs: Iterable[Path]) -> None:
    folder = path.parent
    try:
        if not folder.is_dir():
            raise InputError(f"output folder {folder} does not exist; make it or choose another with {option}")
        if path.is_dir():
            raise InputError(f"output {path} is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise InputError(f"output {path} is no regular file; name one that can be replaced")
        if path.exists() and any(source.exists() and path.samefile(source) for source in inputs):
            raise InputError(f"output {path} is one of the input files; choose another name with {option}")
    except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
        raise InputError(f"output {path} is no usable file name ({error}); choose another with {option}") from error
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"output folder {folder} is not writable ({error.strerror}); choose another with {option}"
        ) from error


def check_free_space(path: Path, needed: int) -> None:
    """Refuses an output that its disk has no room for; files are written beside those that they replace.

    Args:
        path: The output.
        needed: Bytes that it takes.

    Raises:
        InputError: if fewer are free.
    """
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return  # the write itself will tell
    if free < needed + _MARGIN:
        raise InputError(
            f"{path} needs {_size(needed + _MARGIN)}, its disk has {_size(free)} free; free space or choose another -o"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class OutputSet:
    """Several output files that appear together or not at all.

    Each is first written in full to a temporary file in its own folder; at the end all are renamed, and if that fails
    for one of them, those renamed before it are put back as they were.
    """

    def __init__(self, inputs: Iterable[Path] = ()) -> None:
        """Starts with no files.

        Args:
            inputs: Files that no output may take the place of.
        """
        self._pending: list[tuple[Path, Path]] = []
        self._inputs = tuple(inputs)

    def __enter__(self) -> OutputSet:
        """Starts the set."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Moves all files into place if nothing failed; else removes the temporary ones."""
        try:
            if kind is None:
                self._commit()
        finally:
            for temporary, _path in self._pending:
                temporary.unlink(missing_ok=True)

    def _commit(self) -> None:
        done: list[tuple[Path, Path | None]] = []
        try:
            for temporary, path in self._pending:
                done.append((path, _keep(path)))
                temporary.replace(path)
        except BaseException as error:
            for path, kept in reversed(done):
                if kept is not None:
                    kept.replace(path)
                else:
                    path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _not_written(done[-1][0] if done else Path(), error) from error
            raise
        for _path, kept in done:
            if kept is not None:
                kept.unlink(missing_ok=True)

    def add(self, path: Path, write: Callable[[Path], None]) -> None:
        """Calls `write` on a temporary path that takes the place of `path` when the set ends well.

        Raises:
            InputError: if `path` is a folder, an input or in the set already, the disk is full or the file cannot be
                written.
        """
        if path.is_dir():
            raise InputError(f"output {path} is a folder; name a file in it")
        if any(path.resolve() == other.resolve() for _temporary, other in self._pending):
            raise InputError(f"two outputs would be written to {path}; give them different names")
        if path.exists() and any(other.exists() and path.samefile(other) for other in self._inputs):
            raise InputError(f"output {path} is one of the input files; choose another name with -o")
        try:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:32]}.", suffix=".part")
            os.close(handle)
            temporary = Path(name)
            self._pending.append((temporary, path))
            temporary.chmod(0o666 & ~_umask())
            write(temporary)
        except OSError as error:
            raise _not_written(path, error) from error

    def add_text(self, path: Path, text: str) -> None:
        """Adds a UTF-8 text file."""
        self.add(path, lambda temporary: _write_text(temporary, text))


def _not_written(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be written ({error.strerror or error}); free space or choose another -o")


def _keep(path: Path) -> Path | None:
    """A second name for a file that is about to be replaced; None if there is no such file."""
    if not path.exists():
        return None
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:32]}.", suffix=".old")
    os.close(handle)
    kept = Path(name)
    try:
        kept.unlink()
        try:
            os.link(path, kept)
        except OSError:  # a file system without links
            shutil.copy2(path, kept)
    except BaseException:
        kept.unlink(missing_ok=True)
        raise
    return kept


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
