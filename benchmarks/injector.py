"""Speed of fault injection: the operator in onnxruntime against NumPy, in units of a plain copy of the same words.

    python benchmarks/injector.py [--repeats N] [--out FILE.json]

All rows are measured in one run, turn by turn, so that drifts of the machine meet them alike; in its turn each row runs
once to bring its data back into the caches, then three times, the best of which counts. Figures are medians over the
turns. What runs on one thread is given in processor time, which other programs on the machine disturb less; the row of
two threads, and what it is compared with, in elapsed time. T is the time NumPy takes to copy the words into an array
that exists. Operator times include onnxruntime's own call, with inputs and output bound once: both it and the copy
write into memory that was written before.

NumPy has four ways. *As usual* is what one writes first, and what other injectors do: a float64 uniform a bit, from
NumPy's default generator. *Uniforms* is the same in float32, by NumPy's fastest generator, in buffers made once.
*Positions* draws how many bits flip, then which. *Bit-sliced* compares random 64-bit words with the rate's binary
digits, 24 of them, as a float32 uniform has: the operator's own idea, as far as NumPy goes.
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

from qtaml_onnx.fault_inject import BurstGeometry, fault_inject
from qtaml_onnx.runtime import create_session, session_options

MEBI = 1 << 20
TYPES = {"int8": TensorProto.INT8, "float32": TensorProto.FLOAT}
HUGE_PAGE = 2 * MEBI
KINDS = ("stuck-at", "burst")
GEOMETRY = BurstGeometry(row_cells=1024, burst_cells=4, interleave=8)
NUMPY_TOO_SLOW = 5  # turns of the rows that take a large part of a second

Row = dict[str, Any]


def buffer(words: NDArray[Any]) -> NDArray[Any]:
    """An array of the same words at the start of a huge page: what else an address falls on, chance would decide."""
    room = np.empty(words.nbytes + HUGE_PAGE, np.uint8)
    start = -room.ctypes.data % HUGE_PAGE
    aligned = room[start : start + words.nbytes].view(words.dtype)
    np.copyto(aligned, words)
    return aligned


def operator(words: NDArray[Any], rate: float, threads: int, kind: str = "independent") -> Callable[[int], None]:
    """One trial in onnxruntime: a session with bound input and output, a new seed each time."""
    width = 8 * words.itemsize
    geometry = GEOMETRY if kind == "burst" else None
    attributes = {"stream": 1, "bits": width, "exposed_planes": 2**width - 1, "kind": kind}
    node = helper.make_node(
        "FaultInject",
        ["X", "seed", "rates"],
        ["Y"],
        domain="qtaml",
        **attributes,
        **(vars(geometry) if geometry else {}),
    )
    element_type = TYPES[words.dtype.name]
    graph = helper.make_graph(
        [node],
        "injector",
        [
            helper.make_tensor_value_info("X", element_type, [words.size]),
            helper.make_tensor_value_info("seed", TensorProto.INT64, []),
            helper.make_tensor_value_info("rates", TensorProto.FLOAT, [2, width]),
        ],
        [helper.make_tensor_value_info("Y", element_type, [words.size])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("qtaml", 1)]
    options = session_options(threads=threads)
    session = create_session(helper.make_model(graph, opset_imports=opsets, ir_version=8), options)
    rates = np.full((2, width), rate, np.float32)
    output = ort.OrtValue.ortvalue_from_numpy(buffer(words))
    number = np.array(0)  # onnxruntime reads it where it is
    binding = session.io_binding()
    binding.bind_ortvalue_input("seed", ort.OrtValue.ortvalue_from_numpy(number))
    binding.bind_ortvalue_input("X", ort.OrtValue.ortvalue_from_numpy(words))
    binding.bind_ortvalue_input("rates", ort.OrtValue.ortvalue_from_numpy(rates))
    binding.bind_ortvalue_output("Y", output)

    def trial(seed: int) -> None:
        number[...] = seed
        session.run_with_iobinding(binding)

    trial(0)
    if output.numpy().tobytes() != fault_inject(words, 0, rates, stream=1, kind=kind, geometry=geometry).tobytes():
        raise SystemExit("the operator's result differs from its definition")
    return trial


def numpy_usual(words: NDArray[Any], rate: float) -> Callable[[int], None]:
    """A float64 uniform for each bit, as one writes it first."""
    unsigned = words.view(f"u{words.itemsize}")
    width = 8 * words.itemsize

    def trial(seed: int) -> None:
        flips = np.random.default_rng(seed).random((words.size, width)) < rate
        np.bitwise_xor(unsigned, np.packbits(flips, axis=1, bitorder="little").reshape(-1).view(unsigned.dtype))

    return trial


def numpy_uniforms(words: NDArray[Any], rate: float) -> Callable[[int], None]:
    """A float32 uniform for each bit, plane by plane, in buffers made once, by NumPy's fastest generator."""
    unsigned = words.view(f"u{words.itemsize}")
    faulty = buffer(unsigned)
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
    faulty = buffer(unsigned)

    def trial(seed: int) -> None:
        generator = np.random.Generator(np.random.SFC64(seed))
        np.copyto(faulty, unsigned)
        for plane in range(8 * words.itemsize):
            count = generator.binomial(words.size, rate)
            positions = generator.choice(words.size, count, replace=False, shuffle=False)
            faulty[positions] ^= unsigned.dtype.type(1 << plane)

    return trial


def numpy_sliced(words: NDArray[Any], rate: float) -> Callable[[int], None]:
    """Bernoulli masks from random planes and the 24 binary digits of the rate, a block of planes at a time."""
    unsigned = words.view(f"u{words.itemsize}")
    faulty = buffer(unsigned)
    threshold = round(float(np.float32(rate)) * 2**24)
    digits = [threshold >> i & 1 for i in range(24)]
    digits = digits[digits.index(1) :]
    lines = faulty.view(np.uint64)
    block = 1 << 13

    def trial(seed: int) -> None:
        random = np.random.SFC64(seed).random_raw
        np.copyto(faulty, unsigned)
        for start in range(0, lines.size, block):
            part = lines[start : start + block]
            mask = random(part.size)  # the last digit that is 1
            for digit in digits[1:]:
                combine = np.bitwise_or if digit else np.bitwise_and
                combine(mask, random(part.size), out=mask)
            np.bitwise_xor(part, mask, out=part)

    return trial


def copy(words: NDArray[Any]) -> Callable[[int], None]:
    target = buffer(words)
    return lambda _: np.copyto(target, words)


def measure(rows: list[Row], repeats: int) -> None:
    """Adds the median processor time, and elapsed time, in seconds to each row."""
    times: list[list[tuple[float, float]]] = [[] for _ in rows]
    for turn in range(repeats):
        for row, taken in zip(rows, times, strict=True):
            if turn >= NUMPY_TOO_SLOW and row["what"].startswith("NumPy") and taken[0][1] > 0.05:
                continue
            best = (float("inf"), float("inf"))
            for again in range(4):
                start = time.process_time(), time.perf_counter()
                row["trial"](4 * turn + again + 1)
                now = time.process_time(), time.perf_counter()
                if again:
                    best = min(best[0], now[0] - start[0]), min(best[1], now[1] - start[1])
            taken.append(best)
    for row, taken in zip(rows, times, strict=True):
        row["elapsed"] = statistics.median(elapsed for _, elapsed in taken)
        processor = statistics.median(processor for processor, _ in taken)
        row["seconds"] = row["elapsed"] if row["what"].endswith("2 threads") else processor
        del row["trial"]


def group(dtype: str, count: int, rate: float, repeats: int, *, others: bool = False) -> list[Row]:
    """Rows of one tensor and rate, with their ratios to the copy, to NumPy's uniforms and to its best way."""
    drawn = np.random.default_rng(0).integers(0, 256, count * np.dtype(dtype).itemsize, np.uint8)
    words = buffer(drawn.view(dtype))
    rows: list[Row] = [
        {"what": "copy (T)", "trial": copy(words)},
        {"what": "FaultInject, 1 thread", "trial": operator(words, rate, 1)},
        {"what": "FaultInject, 2 threads", "trial": operator(words, rate, 2)},
        {"what": "NumPy, positions", "trial": numpy_positions(words, rate)},
    ]
    if rate > 1e-3:  # a uniform a bit is the better way at high rates only
        rows.append({"what": "NumPy, as usual", "trial": numpy_usual(words, rate)})
        rows.append({"what": "NumPy, uniforms", "trial": numpy_uniforms(words, rate)})
        rows.append({"what": "NumPy, bit-sliced", "trial": numpy_sliced(words, rate)})
    for kind in KINDS if others else ():
        rows.append({"what": f"{kind}, 1 thread", "trial": operator(words, rate, 1, kind)})
    measure(rows, repeats)
    unit = rows[0]["seconds"]
    ways = {row["what"]: row["seconds"] for row in rows if row["what"].startswith("NumPy")}
    one = next(row["elapsed"] for row in rows if row["what"].endswith("1 thread"))
    for row in rows:
        row |= {"type": dtype, "words": count, "rate": rate, "copies": row["seconds"] / unit}
        row["times_faster_than_usual"] = ways.get("NumPy, as usual", float("nan")) / row["seconds"]
        row["times_faster_than_uniforms"] = ways.get("NumPy, uniforms", float("nan")) / row["seconds"]
        row["times_faster_than_best_numpy"] = min(ways.values()) / row["seconds"]
        row["times_faster_than_one_thread"] = one / row["elapsed"]
    return rows


def targets(rows: list[Row]) -> list[tuple[str, float, str, bool]]:
    """What this project asks of the injector: what, figure, target, whether it is met."""

    def value(dtype: str, rate: float, what: str, of: str) -> float:
        found = (r for r in rows if (r["type"], r["rate"], r["what"]) == (dtype, rate, what))
        return float(next(found)[of])

    one, two = "FaultInject, 1 thread", "FaultInject, 2 threads"
    wanted: list[tuple[str, float, str, float]] = [
        ("int8 at 0.10, copies", value("int8", 0.10, one, "copies"), "at most", 20),
        ("int8 at 0.10, × NumPy as usual", value("int8", 0.10, one, "times_faster_than_usual"), "at least", 60),
        ("int8 at 0.10, × NumPy's uniforms", value("int8", 0.10, one, "times_faster_than_uniforms"), "at least", 60),
        ("int8 at 0.10, × NumPy's best", value("int8", 0.10, one, "times_faster_than_best_numpy"), "at least", 60),
        ("int8 at 1e-4, copies", value("int8", 1e-4, one, "copies"), "at most", 1.6),
        ("float32 at 1e-6, copies", value("float32", 1e-6, one, "copies"), "at most", 1.2),
        ("2 threads against 1 at 0.10", value("int8", 0.10, two, "times_faster_than_one_thread"), "at least", 1.8),
    ]
    return [
        (what, figure, f"{side} {limit:g}", figure <= limit if side == "at most" else figure >= limit)
        for what, figure, side, limit in wanted
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="turns over the rows of a group")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    arguments = parser.parse_args()
    rows = [
        *group("int8", 4 * MEBI, 0.10, arguments.repeats, others=True),
        *group("int8", 4 * MEBI, 0.01, arguments.repeats),
        *group("int8", 4 * MEBI, 1e-4, arguments.repeats),
        *group("float32", 16 * MEBI, 1e-6, max(arguments.repeats // 3, 1)),
    ]
    print(
        f"{'words':>15} {'rate':>6}  {'what':<24}{'ms':>9}{'T':>9}{'× usual':>10}{'× uniforms':>12}{'× best NumPy':>14}"
    )
    for row in rows:
        print(
            f"{row['words'] // MEBI:>4} Mi {row['type']:>7} {row['rate']:>6g}  {row['what']:<24}"
            f"{1e3 * row['seconds']:>9.3f}{row['copies']:>9.2f}{row['times_faster_than_usual']:>10.1f}"
            f"{row['times_faster_than_uniforms']:>12.1f}"
            f"{row['times_faster_than_best_numpy']:>14.1f}"
        )
    print()
    for what, value, target, met in targets(rows):
        print(f"{what:<52}{value:>8.2f}   target {target:<14}{'met' if met else 'missed'}")
    if arguments.out:
        environment = {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "numpy": np.__version__,
            "onnxruntime": ort.__version__,
            "simd": os.environ.get("QTAML_SIMD", "best"),
        }
        checked = [dict(zip(("what", "value", "target", "met"), row, strict=True)) for row in targets(rows)]
        arguments.out.write_text(
            json.dumps({"environment": environment, "targets": checked, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
