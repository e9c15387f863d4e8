"""Speed of fault injection: the operator in onnxruntime against NumPy, in units of a plain copy of the same words.

    python benchmarks/injector.py [--repeats N] [--out FILE.json]

All rows are measured in one run, turn by turn, so that drifts of the machine meet them alike; in its turn each row runs
once to bring its data back into the caches, then three times for the record. Figures are medians. T is the time NumPy
takes to copy the words into an array that exists. Operator times include onnxruntime's own call.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qtaml_onnx.fault_inject import fault_inject
from qtaml_onnx.runtime import create_session, session_options

MEBI = 1 << 20
TYPES = {"int8": TensorProto.INT8, "float32": TensorProto.FLOAT}
NUMPY_TOO_SLOW = 2  # turns of the rows that take a large part of a second

Row = dict[str, Any]


def operator(words: NDArray[Any], rate: float, threads: int) -> Callable[[int], None]:
    """One trial in onnxruntime: a session with bound input and output, a new seed each time."""
    width = 8 * words.itemsize
    node = helper.make_node(
        "FaultInject", ["X", "seed", "rates"], ["Y"], domain="qtaml", stream=1, bits=width, exposed_planes=2**width - 1
    )
    kind = TYPES[words.dtype.name]
    graph = helper.make_graph(
        [node],
        "injector",
        [
            helper.make_tensor_value_info("X", kind, [words.size]),
            helper.make_tensor_value_info("seed", TensorProto.INT64, []),
            helper.make_tensor_value_info("rates", TensorProto.FLOAT, [2, width]),
        ],
        [helper.make_tensor_value_info("Y", kind, [words.size])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("qtaml", 1)]
    options = session_options(threads=threads)
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads must not disturb other rows
    session = create_session(helper.make_model(graph, opset_imports=opsets, ir_version=8), options)
    rates = np.full((2, width), rate, np.float32)
    output = ort.OrtValue.ortvalue_from_numpy(np.empty_like(words))
    binding = session.io_binding()
    binding.bind_ortvalue_input("X", ort.OrtValue.ortvalue_from_numpy(words))
    binding.bind_ortvalue_input("rates", ort.OrtValue.ortvalue_from_numpy(rates))
    binding.bind_ortvalue_output("Y", output)

    def trial(seed: int) -> None:
        binding.bind_ortvalue_input("seed", ort.OrtValue.ortvalue_from_numpy(np.array(seed)))
        session.run_with_iobinding(binding)

    trial(0)
    if output.numpy().tobytes() != fault_inject(words, 0, rates, stream=1).tobytes():
        raise SystemExit("the operator's result differs from its definition")
    return trial


def numpy_uniforms(words: NDArray[Any], rate: float) -> Callable[[int], None]:
    """A float32 uniform for each bit, plane by plane, in buffers made once, by NumPy's fastest generator."""
    unsigned = words.view(f"u{words.itemsize}")
    faulty = np.empty_like(unsigned)
    uniform, flips = np.empty(words.size, np.float32), np.empty(words.size, bool)

    def trial(seed: int) -> None:
        generator = np.random.Generator(np.random.SFC64(seed))
        np.copyto(faulty, unsigned)
        for plane in range(8 * words.itemsize):
            generator.random(dtype=np.float32, out=uniform)
            np.less(uniform, np.float32(rate), out=flips)
            mask = flips.view(np.uint8) if words.itemsize == 1 else flips.astype(unsigned.dtype)
            np.left_shift(mask, plane, out=mask)
            np.bitwise_xor(faulty, mask, out=faulty)

    return trial


def numpy_positions(words: NDArray[Any], rate: float) -> Callable[[int], None]:
    """The number of flips of each plane from the binomial, then as many positions without replacement."""
    unsigned = words.view(f"u{words.itemsize}")
    faulty = np.empty_like(unsigned)

    def trial(seed: int) -> None:
        generator = np.random.Generator(np.random.SFC64(seed))
        np.copyto(faulty, unsigned)
        for plane in range(8 * words.itemsize):
            count = generator.binomial(words.size, rate)
            positions = generator.choice(words.size, count, replace=False, shuffle=False)
            faulty[positions] ^= unsigned.dtype.type(1 << plane)

    return trial


def copy(words: NDArray[Any]) -> Callable[[int], None]:
    target = np.empty_like(words)
    return lambda _: np.copyto(target, words)


def measure(rows: list[Row], repeats: int) -> None:
    """Adds the median time in seconds to each row."""
    times: list[list[float]] = [[] for _ in rows]
    for turn in range(repeats):
        for row, taken in zip(rows, times, strict=True):
            if turn >= NUMPY_TOO_SLOW and row["what"].startswith("NumPy") and taken[0] > 0.05:
                continue
            for again in range(4):
                start = time.perf_counter()
                row["trial"](4 * turn + again + 1)
                if again:
                    taken.append(time.perf_counter() - start)
    for row, taken in zip(rows, times, strict=True):
        row["seconds"] = statistics.median(taken)
        del row["trial"]


def group(dtype: str, count: int, rate: float, repeats: int) -> list[Row]:
    """Rows of one tensor and rate, with their ratios to the copy and to the better of the two NumPy ways."""
    words = np.random.default_rng(0).integers(0, 256, count * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    rows: list[Row] = [
        {"what": "copy (T)", "trial": copy(words)},
        {"what": "FaultInject, 1 thread", "trial": operator(words, rate, 1)},
        {"what": "FaultInject, 2 threads", "trial": operator(words, rate, 2)},
        {"what": "NumPy, positions", "trial": numpy_positions(words, rate)},
    ]
    if rate > 1e-3:  # a uniform a bit is the better way at high rates only
        rows.append({"what": "NumPy, uniforms", "trial": numpy_uniforms(words, rate)})
    measure(rows, repeats)
    unit = rows[0]["seconds"]
    best = min(row["seconds"] for row in rows if row["what"].startswith("NumPy"))
    for row in rows:
        row |= {"type": dtype, "words": count, "rate": rate, "copies": row["seconds"] / unit}
        row["times_faster_than_numpy"] = best / row["seconds"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="turns over the rows of a group")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    arguments = parser.parse_args()
    rows = [
        *group("int8", 4 * MEBI, 0.10, arguments.repeats),
        *group("int8", 4 * MEBI, 0.01, arguments.repeats),
        *group("int8", 4 * MEBI, 1e-4, arguments.repeats),
        *group("float32", 16 * MEBI, 1e-6, max(arguments.repeats // 3, 1)),
    ]
    print(f"{'words':>18} {'rate':>7}  {'what':<24}{'ms':>10}{'T':>9}{'× NumPy':>10}")
    for row in rows:
        print(
            f"{row['words'] // MEBI:>7} Mi {row['type']:>7} {row['rate']:>7g}  {row['what']:<24}"
            f"{1e3 * row['seconds']:>10.3f}{row['copies']:>9.2f}{row['times_faster_than_numpy']:>10.1f}"
        )
    if arguments.out:
        environment = {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "numpy": np.__version__,
            "onnxruntime": ort.__version__,
            "simd": os.environ.get("QTAML_SIMD", "best"),
        }
        arguments.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
