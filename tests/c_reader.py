"""Builds the shipped C code, runs it on images, and makes images faulty."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from stored_models import Stored

from qtaml_onnx.firmware.export import export_image
from qtaml_onnx.firmware.manifest import Manifest, read_manifest

PROGRAM = Path(__file__).resolve().parent / "firmware" / "dump_weights.c"
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wshadow", "-ffp-contract=off"]
SANITIZERS = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@dataclass(frozen=True)
class Reading:
    """What the C code reads out of an image, in the order of its tensors; None for codes and biases that are none.

    Words are one array a tensor, or two; `wholes` are the weights of tensors that are stored in parts, by name.
    """

    words: list[tuple[NDArray[np.uint16], ...]]
    weights: list[NDArray[np.float32]]
    codes: list[NDArray[np.int32] | None]
    biases: list[NDArray[np.float32] | NDArray[np.int32] | None]
    wholes: dict[str, NDArray[np.float32]]
    small: dict[str, NDArray[Any]]
    corrected_bits: int
    failed_blocks: int


def c_compiler() -> str:
    """A C compiler; without one the test is skipped."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: install gcc or clang, or set CC")
    return compiler


class CReader:
    """The C code, compiled once, and with the tables of each image again."""

    def __init__(self, folder: Path, flags: list[str]) -> None:
        self._command = [c_compiler(), *WARNINGS, *flags]
        self._folder = folder
        self._objects: dict[str, Path] = {}
        self._programs: dict[Path, Path] = {}

    def read(self, folder: Path, images: Path | None = None) -> Reading:
        """Reads the images of a folder, or those of another folder with the first one's code."""
        program, out = self._programs.get(folder), self._folder / "out.bin"
        if program is None:
            program = self._programs[folder] = self._build(folder)
        done = subprocess.run([str(program), str(images or folder), str(out)], capture_output=True, check=False)
        assert done.returncode == 0, (done.returncode, done.stderr.decode())
        return parse(out.read_bytes(), read_manifest(folder))

    def _build(self, folder: Path) -> Path:
        program = self._folder / f"program-{len(self._programs)}"
        source = (folder / "qtaml_readout.c").read_text()
        if source not in self._objects:
            made = self._folder / f"readout-{len(self._objects)}.o"
            self._compile("-c", str(folder / "qtaml_readout.c"), "-o", str(made))
            self._objects[source] = made
        sources = [str(PROGRAM), str(folder / "qtaml_model.c"), str(self._objects[source])]
        self._compile(f"-I{folder}", *sources, "-o", str(program))
        return program

    def _compile(self, *arguments: str) -> None:
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def parse(data: bytes, manifest: Manifest) -> Reading:
    """What dump_weights.c wrote."""
    at = 0

    def take(dtype: Any, count: int) -> NDArray[Any]:
        nonlocal at
        array = np.frombuffer(data, dtype, count, at)
        at += array.nbytes
        return array

    words, weights, codes, biases, wholes = [], [], [], [], {}
    for tensor in manifest.tensors:
        plan = tensor.storage
        words.append(tuple(take(np.uint16, plan.size).reshape(plan.shape) for _stored in plan.stored_words))
        weights.append(take(np.float32, plan.size).reshape(plan.shape))
        codes.append(take(np.int32, plan.size).reshape(plan.shape) if plan.quantized else None)
        if plan.part is not None and plan.part.number == 0:
            wholes[plan.name] = take(np.float32, int(np.prod(plan.whole_shape))).reshape(plan.whole_shape)
        integer = plan.bias is not None and plan.bias.quantized is not None and plan.bias.quantized.rounded
        biases.append(take(np.int32 if integer else np.float32, len(plan.bias.target)) if plan.bias else None)
    small = {
        tensor.name: take(ir.DataType[group.dtype].numpy(), int(np.prod(tensor.shape))).reshape(tensor.shape)
        for group in manifest.small
        for tensor in group.tensors
    }
    corrected, failed = map(int, take(np.uint64, 2))
    assert at == len(data)
    return Reading(words, weights, codes, biases, wholes, small, corrected, failed)


def exported(stored: Stored, folder: Path, row_bits: int = 0) -> tuple[Path, Path]:
    """Writes a hardened model with its plan, and its image: the model's path and the image's folder."""
    path = folder / "hardened.onnx"
    ir.save(stored.hardened, path)
    path.with_suffix(".plan.json").write_text(stored.plan.to_json(), encoding="utf-8")
    image = folder / f"image-{row_bits}"
    export_image(path, image, row_bits=row_bits)
    return path, image


def flip(image: Path, p01: float, p10: float | None = None, seed: int = 0) -> None:
    """Flips bits of all images of a folder at random, in place."""
    rng = np.random.default_rng(seed)
    for file in read_manifest(image).files:
        if file.name == "constants.bin":  # in safe memory
            continue
        bits = np.unpackbits(np.fromfile(image / file.name, np.uint8))
        wrong = rng.random(bits.size) < np.where(bits == 1, p01 if p10 is None else p10, p01)
        np.packbits(bits ^ wrong).tofile(image / file.name)
