"""Compiles the shipped C code, and runs it on images."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qtaml_onnx.firmware.manifest import Manifest, read_manifest

HERE = Path(__file__).resolve().parent
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wshadow", "-ffp-contract=off"]
SANITIZERS = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@dataclass(frozen=True)
class Reading:
    """What the C code reads out of an image, in the order of its tensors; None for codes and biases that are none."""

    words: list[NDArray[np.uint16]]
    weights: list[NDArray[np.float32]]
    codes: list[NDArray[np.int16] | None]
    biases: list[NDArray[np.float32] | None]
    corrected_bits: int
    failed_blocks: int


def c_compiler() -> str:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: install gcc or clang, or set CC")
    return compiler


def compile_reader(folder: Path, program: Path, flags: list[str]) -> None:
    """Builds the test's reader with the C files of an image."""
    sources = [str(HERE / "dump_weights.c"), str(folder / "qtaml_readout.c"), str(folder / "qtaml_model.c")]
    command = [c_compiler(), *WARNINGS, *flags, f"-I{folder}", *sources, "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def parse(data: bytes, manifest: Manifest) -> Reading:
    at = 0

    def take(dtype: Any, count: int) -> NDArray[Any]:
        nonlocal at
        array = np.frombuffer(data, dtype, count, at)
        at += array.nbytes
        return array

    reading = Reading([], [], [], [], 0, 0)
    for tensor in manifest.tensors:
        plan = tensor.storage
        reading.words.append(take(np.uint16, plan.size).reshape(plan.shape))
        reading.weights.append(take(np.float32, plan.size).reshape(plan.shape))
        integer = plan.form in ("dequantize", "integer-table")
        reading.codes.append(take(np.int16, plan.size).reshape(plan.shape) if integer else None)
        reading.biases.append(take(np.float32, len(plan.bias.target)) if plan.bias else None)
    corrected, failed = map(int, take(np.uint64, 2))
    assert at == len(data)
    return Reading(reading.words, reading.weights, reading.codes, reading.biases, corrected, failed)


@pytest.fixture
def read_in_c(tmp_path: Path) -> Callable[..., Reading]:
    """Builds the C code of an image folder and reads the images of that folder, or of another, with it."""

    def read(folder: Path, images: Path | None = None, sanitize: bool = False) -> Reading:
        program, out = tmp_path / f"reader-{folder.name}-{sanitize}", tmp_path / "out.bin"
        if not program.exists():
            compile_reader(folder, program, SANITIZERS if sanitize else ["-O2"])
        done = subprocess.run([str(program), str(images or folder), str(out)], capture_output=True, check=False)
        assert done.returncode == 0, (done.returncode, done.stderr.decode())
        return parse(out.read_bytes(), read_manifest(folder))

    return read
