"""Reads and writes ONNX models: nothing half-read, nothing half-written, no path followed out of the model's folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model

from qtaml_onnx.errors import InputError
from qtaml_onnx.graph import constant_tensor, graphs_of, is_constant, walk
from qtaml_onnx.old_opsets import raise_opset
from qtaml_onnx.sparse import has_sparse, make_dense, make_sparse

__all__ = ["OutputSet", "SourceModel", "check_output_path", "file_sha256", "load_model", "save_model"]

PLAN_KEY = "qtaml_onnx.plan_sha256"
"""The metadata entry by which a hardened model names its plan."""

FAULT_DOMAIN = "qtaml"
"""Domain of the fault operators."""

_EXTERNAL_THRESHOLD = 1 << 30
"""Above this many bytes of weights a model is saved with external data (protobuf ends at 2 GiB)."""


@dataclass(frozen=True)
class SourceModel:
    """A model as read: the path and hash that a report names, the graph to work on, and what to tell of the reading."""

    path: Path
    sha256: str
    model: ir.Model
    warnings: tuple[str, ...] = ()

    @property
    def hardened(self) -> bool:
        """Whether the weights are stored by a plan already."""
        return PLAN_KEY in self.model.metadata_props

    @property
    def instrumented(self) -> bool:
        """Whether the model has fault operators."""
        return any(node.domain == FAULT_DOMAIN for _root, node in walk(self.model))

    def check_plain(self) -> None:
        """Raises InputError if the model is hardened or instrumented already."""
        if self.instrumented:
            raise InputError(f"{self.path} is instrumented already; give the model that it was made from")
        if self.hardened:
            raise InputError(f"{self.path} is hardened already; give the model that it was made from")

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return int(self.model.opset_imports.get("", 0))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_model(path: str | os.PathLike[str]) -> SourceModel:
    """Reads and checks a model.

    External data is read from inside the model's folder alone.

    Raises:
        InputError: if the file is missing, empty, not an ONNX model, refused by the ONNX checker, too old to
            be converted, or names external data outside its folder.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the .onnx file in it")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not data:
        raise InputError(f"{path} is empty; export the model again")
    proto, raised = raise_opset(path, _parse(path, data))
    _check(path, proto)
    make_dense(path, proto)
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # wraps whatever went wrong, without a common base
        raise InputError(f"{path}: its graph cannot be read: {_first_line(error)}; export the model again") from error
    return SourceModel(path, hashlib.sha256(data).hexdigest(), model, (raised,) if raised else ())


def _parse(path: Path, data: bytes) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not an ONNX model or is truncated; export or copy it again") from error
    if not proto.HasField("graph") or not proto.opset_import or not proto.ir_version:
        raise InputError(f"{path} is not an ONNX model (no graph, opset or IR version); name an .onnx file")
    for tensor in _external_tensors(proto):
        _check_location(path, tensor)
    try:
        load_external_data_for_model(proto, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path}: its external data cannot be read: {_first_line(error)}") from error
    return proto


def _external_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for tensor in onnx.external_data_helper._get_all_tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor


def _check_location(path: Path, tensor: onnx.TensorProto) -> None:
    try:
        location = ExternalDataInfo(tensor).location
    except ValueError as error:
        raise InputError(
            f"{path}: external data of tensor '{tensor.name}': {_first_line(error)}; copy it again"
        ) from error
    folder = path.parent.resolve()
    target = (folder / location).resolve()
    if not location or Path(location).is_absolute() or folder not in target.parents:
        raise InputError(
            f"{path}: tensor '{tensor.name}' points to '{location}', outside the model's folder; "
            "put its external data beside the model"
        )
    if not target.is_file():
        raise InputError(f"{path}: external data '{location}' of tensor '{tensor.name}' is missing; copy it along")


def _check(path: Path, proto: onnx.ModelProto) -> None:
    opset = {entry.domain: entry.version for entry in proto.opset_import}.get("", 0)
    if not opset:
        raise InputError(f"{path}: imports no version of the ONNX operator set; export it again")
    if proto.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        return  # the checker takes larger models from a file alone, and refuses external data it has not seen
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise InputError(f"{path}: the ONNX checker refuses it: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_output_path(path: Path, source: Path | None = None) -> None:
    """Refuses, before any work is done, an output that could not be written or that would overwrite the input.

    Raises:
        InputError: if the folder does not exist or is not writable, or `path` is a folder or the source itself.
    """
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"output folder {folder} does not exist; make it or choose another with -o")
    if path.is_dir():
        raise InputError(f"output {path} is a folder; name a file in it")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise InputError(f"output {path} is the input model; choose another name with -o")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"output folder {folder} is not writable ({error.strerror}); choose another with -o"
        ) from error


class OutputSet:
    """Several output files that appear together or not at all.

    Each is first written in full to a temporary file in its own folder; at the end all are renamed, and if that fails
    for one of them, those renamed before it are put back as they were.
    """

    def __init__(self) -> None:
        """Starts with no files."""
        self._pending: list[tuple[Path, Path]] = []

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
            InputError: if `path` is a folder or in the set already, the disk is full or the file cannot be written.
        """
        if path.is_dir():
            raise InputError(f"output {path} is a folder; name a file in it")
        if any(path.resolve() == other.resolve() for _temporary, other in self._pending):
            raise InputError(f"two outputs would be written to {path}; give them different names")
        try:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old")
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


def save_model(model: ir.Model, outputs: OutputSet, path: Path) -> str:
    """Adds a model to a set of outputs; one with more than 1 GiB of weights gets external data `<name>.data` beside it.

    Returns:
        The SHA-256 of the model's file.

    Raises:
        InputError: if it cannot be written, or has sparse tensors and external data.
    """
    if _constant_bytes(model) <= _EXTERNAL_THRESHOLD:
        data = make_sparse(ir.to_proto(model)).SerializeToString(deterministic=True)
        outputs.add(path, lambda temporary: _write_bytes(temporary, data))
        return hashlib.sha256(data).hexdigest()
    if has_sparse(model):
        raise InputError(f"{path}: a model with sparse tensors and more than 1 GiB of weights cannot be written")
    try:
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _not_written(path, error) from error
    with folder:
        staged = Path(folder.name) / path.name
        try:
            ir.save(model, staged, external_data=f"{path.name}.data")
        except OSError as error:
            raise _not_written(path, error) from error
        digest = file_sha256(staged)
        outputs.add(path, lambda temporary: _move(staged, temporary))
        outputs.add(path.with_name(f"{path.name}.data"), lambda temporary: _move(Path(f"{staged}.data"), temporary))
    return digest


def _constant_bytes(model: ir.Model) -> int:
    """Bytes of all constants of a model, wherever they are held."""
    total = 0
    for _root, graph in graphs_of(model):
        local = graph.graph if isinstance(graph, ir.Function) else graph
        total += sum(value.const_value.nbytes for value in local.initializers.values() if value.const_value is not None)
        for node in graph:
            if node.op_type == "Constant" and is_constant(node.outputs[0]):
                total += constant_tensor(node.outputs[0]).nbytes
    return total


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _move(source: Path, target: Path) -> None:
    source.replace(target)
