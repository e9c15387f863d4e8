"""The C++ example: it loads an instrumented model with the operator library and gets Python's bits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from digits_example import EVAL, MODEL

import qtaml_onnx
from qtaml_onnx.runtime import create_session, library_path, session_options

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "cpp" / "run_faulty.cpp"
pytestmark = pytest.mark.skipif(not EXAMPLE.is_file(), reason="the examples are not beside these tests")


def runtime_library() -> Path:
    """libonnxruntime.so of the installed package."""
    found = sorted((Path(ort.__file__).parent / "capi").glob("libonnxruntime.*so*"))
    found = [path for path in found if re.fullmatch(r"libonnxruntime\.so[.\d]*", path.name)]
    if not found:
        pytest.skip("this onnxruntime package ships no libonnxruntime.so: the C++ example cannot be run")
    return found[0]


def build(program: Path, *flags: str) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler: install g++ or clang, or set CXX")
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", *flags, str(EXAMPLE), "-ldl", "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("headers", [False, True], ids=["slots", "headers"])
def test_cpp_program_gets_pythons_bits(headers: bool, tmp_path: Path) -> None:
    """With the slot numbers of the example; and with the runtime's own headers where ONNXRUNTIME_INCLUDE_DIR is set."""
    include = os.environ.get("ONNXRUNTIME_INCLUDE_DIR")
    if headers and not include:
        pytest.skip("ONNXRUNTIME_INCLUDE_DIR is not set")
    runtime = runtime_library()
    build(tmp_path / "run_faulty", *(["-DUSE_ONNXRUNTIME_HEADERS", f"-I{include}"] if headers else []))
    faulty = qtaml_onnx.inject(MODEL, 0.0)
    ir.save(faulty, tmp_path / "faulty.onnx")
    with np.load(EVAL) as data:
        images = np.ascontiguousarray(data["image"][:3], np.float32)
    images.tofile(tmp_path / "input.bin")
    shape = "x".join(map(str, images.shape))
    seeds = (0, 1, 2**40 + 7)
    command = [str(tmp_path / "run_faulty"), str(runtime), str(library_path()), str(tmp_path / "faulty.onnx")]
    command += [str(tmp_path / "input.bin"), shape, "0.05", *map(str, seeds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    session = create_session(str(tmp_path / "faulty.onnx"), session_options())
    name = session.get_inputs()[0].name
    rates = np.full((2, 12), 0.05, np.float32)
    lines = done.stdout.splitlines()
    assert len(lines) == len(seeds)
    seen = set()
    for seed, line in zip(seeds, lines, strict=True):
        printed = np.array([float.fromhex(word) for word in line.split()], np.float32)
        feed = {name: images, "qtaml_seed": np.asarray(seed, np.int64), "qtaml_flip_rates": rates}
        expected = np.asarray(session.run(None, feed)[0])
        np.testing.assert_array_equal(printed.view(np.uint32), expected.ravel().view(np.uint32))
        seen.add(line)
    assert len(seen) == len(seeds)  # other seeds, other faults


def test_cpp_program_says_what_is_wrong(tmp_path: Path) -> None:
    runtime = runtime_library()
    build(tmp_path / "run_faulty")
    command = [str(tmp_path / "run_faulty"), str(runtime), str(library_path()), str(tmp_path / "none.onnx")]
    (tmp_path / "input.bin").write_bytes(b"\0\0\0\0")
    done = subprocess.run([*command, str(tmp_path / "input.bin"), "1", "0", "0"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "none.onnx" in done.stderr


def test_slots_match_the_real_headers(tmp_path: Path) -> None:
    """Set ONNXRUNTIME_INCLUDE_DIR to the folder of onnxruntime_c_api.h (1.17 or later)."""
    include = os.environ.get("ONNXRUNTIME_INCLUDE_DIR")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not include or not compiler:
        pytest.skip("ONNXRUNTIME_INCLUDE_DIR is not set, or there is no compiler")
    slots = re.findall(r"X\((\d+), (\w+),", (EXAMPLE.parent / "ort_slots.h").read_text())
    assert len(slots) == 23
    checks = "\n".join(f'static_assert(offsetof(OrtApi, {n}) == {s} * sizeof(void*), "{n}");' for s, n in slots)
    source = tmp_path / "check.cpp"
    source.write_text(f"#include <cstddef>\n#include <onnxruntime_c_api.h>\n{checks}\n")
    done = subprocess.run(
        [compiler, "-std=c++17", "-fsyntax-only", f"-I{include}", str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
