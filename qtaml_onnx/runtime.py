"""onnxruntime sessions that know the operators of domain `qtaml`.

The operators come from the compiled library of `custom_ops/`; where it is missing or cannot be loaded, from their NumPy
twin through onnxruntime-extensions, which gives the same bits, only slower, and for integers and float32 alone
(onnxruntime-extensions knows no Python operators on the shorter floats).
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from qtaml_onnx.errors import InputError, QtamlError
from qtaml_onnx.fault_inject import BurstGeometry, fault_inject

__all__ = [
    "FORCE_PYTHON_OPS",
    "SHARED_ARENA",
    "create_session",
    "library_path",
    "register_shared_arena",
    "run_limited",
    "session_options",
]

FORCE_PYTHON_OPS = "QTAML_FORCE_PYTHON_OPS"
"""Environment variable: "1" makes the NumPy twin serve the operators even where the compiled library is present."""

SHARED_ARENA = {"session.use_env_allocators": "1"}
"""Entry of session options: memory comes from the arena of `register_shared_arena`, not one of the session's own."""

LONGEST_RUN = 600.0
"""Seconds after which a single run of a model that may be anything is stopped."""

_LIBRARY_NAMES = ("libqtaml_ops.so", "libqtaml_ops.dylib", "qtaml_ops.dll")
_SERIALIZED_LIMIT = 2**31 - 2**20  # protobuf refuses 2 GiB; the margin covers what serialising adds
_OPTIMIZATION_LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_LOG_NOTHING = 4  # errors are raised, and an initializer that may be fed (the seed, the rates) is no fault


def library_path() -> Path:
    """Path of the compiled operator library, which any onnxruntime program can register with its session options.

    Raises:
        QtamlError: this installation has no compiled library.
    """
    for candidate in _library_candidates():
        if candidate.is_file():
            return candidate
    raise QtamlError(
        "the compiled operator library is missing from this installation of qtaml-onnx; install a wheel, or build it"
        " with a C++17 compiler by `pip install .`"
    )


def _library_candidates() -> Iterator[Path]:
    root = resources.files("qtaml_onnx")
    for name in _LIBRARY_NAMES:
        found = root / "lib" / name
        if isinstance(found, Path):
            yield found
    # An editable install leaves the sources in place and the library among the installed files.
    try:
        installed = metadata.files("qtaml-onnx") or []
    except metadata.PackageNotFoundError:
        return
    for file in installed:
        if file.name in _LIBRARY_NAMES:
            yield Path(str(file.locate()))


def session_options(*, threads: int | None = None, optimization_level: str = "all") -> ort.SessionOptions:
    """Session options with the operators of domain `qtaml` registered.

    Args:
        threads: intra-operator threads, at least 1; None leaves the choice to onnxruntime (one a physical core).
        optimization_level: graph optimisation: "none", "basic", "extended" or "all" (onnxruntime's default).

    Returns:
        New options, free to be changed further. Messages below severity "error" are silenced, because onnxruntime
        warns of every initializer that can be fed, and the seed and rates of an instrumented model are such.

    Raises:
        InputError: a value out of range.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; give at least 1, or None for onnxruntime's choice")
    if optimization_level not in _OPTIMIZATION_LEVELS:
        raise InputError(f"optimization level {optimization_level!r}; give one of {', '.join(_OPTIMIZATION_LEVELS)}")
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_NOTHING
    options.graph_optimization_level = _OPTIMIZATION_LEVELS[optimization_level]
    if threads is not None:
        options.intra_op_num_threads = threads
    if os.environ.get(FORCE_PYTHON_OPS) == "1" or not _register_compiled(options):
        options.register_custom_ops_library(_python_operators())
    return options


@functools.cache
def register_shared_arena() -> None:
    """Registers an arena for all sessions of this process that ask for it by `SHARED_ARENA`, once.

    For many sessions one after the other: fresh memory for each costs a tenth of its first run and more.
    """
    kind = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    with contextlib.suppress(RuntimeError):  # the program has registered one itself, which does as well
        ort.create_and_register_allocator(kind, None)


def _register_compiled(options: ort.SessionOptions) -> bool:
    try:
        options.register_custom_ops_library(str(library_path()))
    except Exception as error:  # onnxruntime's exceptions share no base class
        _warn_once(str(error).splitlines()[0])
        return False
    return True


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"fault injection runs on the slow NumPy kernel: {reason}", RuntimeWarning, stacklevel=4)


_ATTRIBUTES: dict[str, int | str] = {
    "stream": 0, "bits": -1, "exposed_planes": -1, "kind": "independent", "per_sample": 0,
    "row_cells": 0, "burst_cells": 0, "interleave": 0,
}  # fmt: skip
"""The attributes of FaultInject, each with what stands for its absence: the Python operator needs them all."""


@functools.cache
def _python_operators() -> str:
    """Register the twin with onnxruntime-extensions, once a process; the path of the library that dispatches to it."""
    from onnxruntime_extensions import PyCustomOpDef, get_library_path, onnx_op

    kinds = PyCustomOpDef
    integers = (kinds.dt_uint8, kinds.dt_int8, kinds.dt_uint16, kinds.dt_int16, kinds.dt_uint32, kinds.dt_int32)
    attributes = {n: kinds.dt_string if isinstance(v, str) else kinds.dt_int64 for n, v in _ATTRIBUTES.items()}
    for words in (*integers, kinds.dt_float):
        onnx_op(
            op_type="qtaml::FaultInject",
            inputs=[words, kinds.dt_int64, kinds.dt_float],
            outputs=[words],
            attrs=attributes,
        )(_fault_inject_operator)
    return str(get_library_path())


class _Exact(np.ndarray):
    """An array that answers onnxruntime-extensions' call for a list with itself: lists lose the payload of NaNs."""

    def tolist(self) -> Any:
        return self.view(np.ndarray)


def _fault_inject_operator(words: Any, seed: Any, flip_rates: Any, **attributes: Any) -> Any:
    a = _ATTRIBUTES | attributes
    numbers = [int(number) for number in np.atleast_1d(seed)]
    geometry = BurstGeometry(a["row_cells"], a["burst_cells"], a["interleave"] or 1) if a["kind"] == "burst" else None
    return fault_inject(
        words,
        numbers[0],
        flip_rates,
        stream=a["stream"],
        bits=None if a["bits"] == -1 else a["bits"],
        exposed_planes=None if a["exposed_planes"] == -1 else a["exposed_planes"],
        kind=a["kind"],
        geometry=geometry,
        inference=numbers[1] if len(numbers) > 1 else None,
        per_sample=bool(a["per_sample"]),
    ).view(_Exact)


def _with_all_attributes(model: onnx.ModelProto) -> bool:
    """Give every fault operator of a model, at whatever depth, the attributes that it lacks; whether any lacked one."""
    changed = False
    graphs: list[Any] = [model.graph, *model.functions]
    while graphs:
        for node in graphs.pop().node:
            for attribute in node.attribute:
                graphs += [attribute.g, *attribute.graphs]
            if (node.domain, node.op_type) == ("qtaml", "FaultInject"):
                present = {attribute.name for attribute in node.attribute}
                missing = {name: value for name, value in _ATTRIBUTES.items() if name not in present}
                node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in missing.items())
                changed |= bool(missing)
    return changed


def _for_python_operators(
    model: onnx.ModelProto | bytes | str | os.PathLike[str], options: ort.SessionOptions
) -> onnx.ModelProto | bytes | str | os.PathLike[str]:
    """The model as the Python operators need it: the same, or a copy in memory; external data stay where they are."""
    try:
        if isinstance(model, onnx.ModelProto):
            proto = onnx.ModelProto()
            proto.CopyFrom(model)
        elif isinstance(model, bytes):
            proto = onnx.load_model_from_string(model)
        else:
            proto = onnx.load_model(os.fspath(model), load_external_data=False)
    except Exception:  # onnxruntime will say what is wrong with it
        return model
    if not _with_all_attributes(proto):
        return model
    if isinstance(model, str | os.PathLike):
        folder = str(Path(model).resolve().parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    return proto


def create_session(
    model: onnx.ModelProto | bytes | str | os.PathLike[str],
    options: ort.SessionOptions | None = None,
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> ort.InferenceSession:
    """An inference session of a model that may contain operators of domain `qtaml`.

    Args:
        model: a model proto, a serialised model, or the path of one. A proto of more than 2 GiB passes through a
            temporary file with external data, removed before this returns.
        options: as `session_options` gives, which is also the default.
        providers: onnxruntime's execution providers, in order of preference.

    Raises:
        InputError: onnxruntime refuses the model; the message holds its reason.
    """
    options = session_options() if options is None else options
    if _python_operators.cache_info().currsize:
        model = _for_python_operators(model, options)
    if isinstance(model, bytes):
        return _session("the model", model, options, providers)
    if not isinstance(model, onnx.ModelProto):
        path = os.fspath(model)
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        return _session(path, path, options, providers)
    if model.ByteSize() < _SERIALIZED_LIMIT:
        return _session("the model", model.SerializeToString(), options, providers)
    with tempfile.TemporaryDirectory(prefix="qtaml-", ignore_cleanup_errors=True) as folder:
        path = str(Path(folder) / "model.onnx")
        ir.save(ir.from_proto(model), path, external_data="model.data")
        return _session("the model", path, options, providers)


def run_limited(session: ort.InferenceSession, feed: dict[str, Any], seconds: float = LONGEST_RUN) -> list[Any]:
    """All outputs of a session; a run that does not end is stopped.

    onnxruntime does not hear Ctrl-C, and a Loop may run for ever.

    Args:
        session: The session.
        feed: Its inputs.
        seconds: After which the run is stopped.

    Raises:
        InputError: it was stopped, or onnxruntime refuses the inputs; the message holds its reason.
    """
    options = ort.RunOptions()
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        options.terminate = True

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        return list(session.run(None, feed, options))
    except Exception as error:  # onnxruntime's exceptions share no base class
        if stopped.is_set():
            raise InputError(f"the model does not end within {seconds:g} s; has it a loop without an end?") from error
        raise InputError(" ".join(str(error).split())) from error
    finally:
        timer.cancel()


def _session(
    name: str, model: bytes | str, options: ort.SessionOptions, providers: Sequence[str]
) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(model, options, providers=list(providers))
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise InputError(f"{name}: onnxruntime cannot load it: {' '.join(str(error).split())}") from error
