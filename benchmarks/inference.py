"""Inference time of hardened models over their originals', in stock onnxruntime.

    python benchmarks/inference.py [--networks vgg,resnet20,vit] [--flip-rate 0.05] [--rounds 5] [--out F.json]

Networks and calibration data are looked for in `../shared/zoo` and `../shared/data` beside the repository. Sessions
have onnxruntime's default options and no operator library, but one thread. Variants: the original; the same a second
time, which shows how far two equal sessions differ; plainly quantised words, without a QuantizeLinear anywhere (method
`none`); hardened by the default method with calibration data. They run by turns, in an order that rotates, so that
drifts of the machine meet all alike; each round makes new sessions, as where memory falls moves times by a percent or
two. A ratio is that of medians over all runs; its interval is a bootstrap over turns, which keeps together what ran
together. Processor time is given beside wall time, as it does not count what other programs take.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

import qtaml_onnx

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
RUNS = {1: 60, 64: 12}  # turns of a round by batch size: 300 and 60 in all with 5 rounds
LOADS = 4  # of a round
LIMIT = 1.02
RESAMPLES = 2000

Row = dict[str, Any]


def options() -> ort.SessionOptions:
    """The defaults, one thread."""
    made = ort.SessionOptions()
    made.intra_op_num_threads = 1
    made.log_severity_level = 3
    return made


def nodes(model: bytes) -> Counter[str]:
    """Operators that are left when onnxruntime has optimised a model as it does by default."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = options()
        wanted.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(model, wanted, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(wanted.optimized_model_filepath).graph.node)


def variants(path: Path, rate: float) -> dict[str, bytes]:
    """The models to compare, serialised."""
    calibration = SHARED / "data" / "cifar10_calibration.npz"
    models = {"original": path.read_bytes()}
    models["original again"] = models["original"]
    for name, method in (("plain words", "none"), ("hardened", "channel-optimized")):
        result = qtaml_onnx.harden(path, rate, method=method, calibration=calibration)
        models[name] = ir.to_proto(result.model).SerializeToString()
    return models


def by_turns(
    sessions: dict[str, ort.InferenceSession], feed: dict[str, NDArray[np.uint8]], turns: int
) -> NDArray[np.float64]:
    """Seconds of wall and processor time, float64 [turns, variants, 2]."""
    names = list(sessions)
    times = np.empty((turns, len(names), 2))
    for turn in range(-2, turns):  # the first two warm up
        for place in range(len(names)):
            number = (turn + place) % len(names)
            session = sessions[names[number]]
            processor, wall = time.process_time(), time.perf_counter()
            session.run(None, feed)
            times[max(turn, 0), number] = time.perf_counter() - wall, time.process_time() - processor
    return times


def loads(models: dict[str, bytes]) -> NDArray[np.float64]:
    """Seconds of wall and processor time to make a session, float64 [LOADS, variants, 2]."""
    times = np.empty((LOADS, len(models), 2))
    for turn in range(LOADS):
        for number, model in enumerate(models.values()):
            processor, wall = time.process_time(), time.perf_counter()
            ort.InferenceSession(model, options(), providers=["CPUExecutionProvider"])
            times[turn, number] = time.perf_counter() - wall, time.process_time() - processor
    return times


def rows(network: str, what: str, names: list[str], times: NDArray[np.float64]) -> list[Row]:
    """Medians, and ratios to the original with their intervals."""
    rng = np.random.default_rng(0)
    medians = np.median(times, axis=0)
    drawn = np.array(
        [np.median(times[rng.integers(0, len(times), len(times))], axis=0) for _ in range(RESAMPLES)]
    )  # [resamples, variants, 2]
    low, high = np.quantile(drawn / drawn[:, :1], [0.025, 0.975], axis=0)
    return [
        {
            "network": network,
            "what": what,
            "variant": name,
            "runs": len(times),
            **{
                kind: {
                    "seconds": medians[number, part],
                    "ratio": medians[number, part] / medians[0, part],
                    "low": low[number, part],
                    "high": high[number, part],
                }
                for part, kind in enumerate(("wall", "processor"))
            },
        }
        for number, name in enumerate(names)
    ]


def measure(network: str, rate: float, rounds: int) -> list[Row]:
    """All rows of a network."""
    models = variants(SHARED / "zoo" / f"{network}.onnx", rate)
    names = list(models)
    images = np.load(SHARED / "data" / "cifar10_calibration.npz")["image"]
    taken: dict[str, list[NDArray[np.float64]]] = {}
    for _ in range(rounds):
        sessions = {
            name: ort.InferenceSession(model, options(), providers=["CPUExecutionProvider"])
            for name, model in models.items()
        }
        taken.setdefault("load", []).append(loads(models))
        for batch, turns in RUNS.items():
            taken.setdefault(f"batch {batch}", []).append(by_turns(sessions, {"image": images[:batch]}, turns))
    counts = {name: nodes(model) for name, model in models.items()}
    found = [row for what, times in taken.items() for row in rows(network, what, names, np.concatenate(times))]
    for row in found:
        row["nodes"] = counts[row["variant"]].total()
        row["same_operators"] = counts[row["variant"]] == counts["original"]
        row["file_bytes"] = len(models[row["variant"]])
    return found


def show(found: list[Row]) -> None:
    head = ("network", "what", "variant", "runs", "ms", "wall ratio", "processor ratio", "nodes", "bytes")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in found:
        wall, processor = row["wall"], row["processor"]
        same = "" if row["same_operators"] else " (other operators)"
        cells = (
            row["network"],
            row["what"],
            row["variant"],
            str(row["runs"]),
            f"{1e3 * wall['seconds']:.2f}",
            *(f"{kind['ratio']:.3f} ({kind['low']:.3f} – {kind['high']:.3f})" for kind in (wall, processor)),
            f"{row['nodes']}{same}",
            str(row["file_bytes"]),
        )
        print("| " + " | ".join(cells) + " |")
    hardened = [row for row in found if row["variant"] == "hardened" and row["what"] != "load"]
    worst = max(hardened, key=lambda row: row["processor"]["ratio"])
    print(
        f"\nlargest ratio of processor time, hardened over original: {worst['processor']['ratio']:.3f} "
        f"({worst['network']}, {worst['what']}); wanted at most {LIMIT}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default="vgg,resnet20,vit")
    parser.add_argument("--flip-rate", type=float, default=0.05, help="what models are hardened for")
    parser.add_argument("--rounds", type=int, default=5, help="rounds with new sessions")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    arguments = parser.parse_args()
    if not (SHARED / "zoo").is_dir() or not (SHARED / "data").is_dir():
        print(f"the networks and data of this benchmark are not here: {SHARED}/zoo and {SHARED}/data; nothing to do")
        return
    found = []
    for network in arguments.networks.split(","):
        found += measure(network, arguments.flip_rate, arguments.rounds)
    show(found)
    if arguments.out:
        environment = {"machine": platform.machine(), "cpus": os.cpu_count(), "onnxruntime": ort.__version__}
        arguments.out.write_text(json.dumps({"environment": environment, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
