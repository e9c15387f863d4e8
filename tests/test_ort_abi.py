"""The declared part of onnxruntime's C ABI, by itself and against the real headers where they are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CUSTOM_OPS = Path(__file__).parents[1] / "custom_ops"
HEADER = CUSTOM_OPS / "include" / "qtaml" / "ort_abi.h"
pytestmark = pytest.mark.skipif(not HEADER.is_file(), reason="the C++ sources are not here")


def test_every_function_has_its_own_slot_and_is_used() -> None:
    slots = re.findall(r"X\((\d+), (\w+),", HEADER.read_text())
    assert len(slots) == 19
    numbers = [int(slot) for slot, _ in slots]
    assert numbers == sorted(set(numbers))
    files = [*(CUSTOM_OPS / "src").glob("*.cpp"), CUSTOM_OPS / "include" / "qtaml" / "ort_helpers.h"]
    sources = "".join(path.read_text() for path in files)
    assert [name for _, name in slots if not re.search(rf"api\.{name}\(", sources)] == []


def test_slots_match_the_real_headers() -> None:
    """Set ONNXRUNTIME_INCLUDE_DIR to the folder of onnxruntime_c_api.h (1.17 or later)."""
    include = os.environ.get("ONNXRUNTIME_INCLUDE_DIR")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not include or not compiler:
        pytest.skip("ONNXRUNTIME_INCLUDE_DIR is not set, or there is no compiler")
    command = [compiler, "-std=c++17", "-fsyntax-only", f"-I{include}", f"-I{CUSTOM_OPS / 'include'}"]
    done = subprocess.run(
        [*command, str(CUSTOM_OPS / "src" / "abi_check.cpp")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
