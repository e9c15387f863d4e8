"""How much protection each method needs, and what it keeps without any: the figures that README and docs quote.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py [--networks vgg,resnet20,vit] [--rates 0.10,0.05,0.02]
        [--images 1000] [--trials 8] [--jobs N] [--quick] [--minutes M] [--out F.json] [--resume]
    python benchmarks/overhead.py --show F.json [G.json ...]

Networks and data are looked for in `../shared/zoo` and `../shared/data` beside the repository. Trial t draws the faults
of seed t in every row, so that rows meet in pairs; the figures are means over trials as shares of the clean accuracy on
the same images, with 95 % t intervals, which cover the draws of the faults and not the choice of images.

Overhead is the fraction of protected (ideal) bits at which the mean over trials reaches 95 % of clean, found by
bisection over the method's own sequence of allocations. The search looks at up to half of the trials and leaves a
candidate early when it is clearly above or below; the allocation found is then measured with all trials, and the next
ones of the sequence if it falls short.
The most important rows come first; `--minutes` leaves out what does not fit, and the JSON file grows as rows come in.
`--jobs` measures rows side by side in processes of one thread; the figures are the same.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from overhead_network import SHARED, Network, Record, Row, TimeUp
from overhead_tables import merged, show, summary
from overhead_tasks import Task, tasks

QUICK_ROUNDS = 2
RESULTS = {"overhead": "overhead", "budgets": "budgets"}  # what a task adds to a row; the others add what is kept


@dataclass(frozen=True)
class Setting:
    """What all rows of a run share; the deadline is one of `time.monotonic`, which all processes read alike."""

    images: int
    trials: int
    deadline: float


@dataclass(frozen=True)
class Chain:
    """Tasks of one network and rate that are done one after the other, as they share what is prepared."""

    network: str
    rate: float
    items: tuple[tuple[Task, Row], ...]


@dataclass(frozen=True)
class Found:
    """What a task found, None where its time was up, and the seconds of processor time that it took."""

    task: Task
    row: Row
    record: Record | None
    seconds: float


@functools.cache
def network_of(name: str, setting: Setting) -> Network:
    return Network(SHARED / "zoo" / f"{name}.onnx", setting.images, setting.trials, setting.deadline)


def measure(chain: Chain, setting: Setting) -> list[Found]:
    found = []
    for task, row in chain.items:
        started = time.process_time()
        try:
            record: Record | None = task(network_of(chain.network, setting), row, chain.rate)
        except TimeUp:
            record = None
        found.append(Found(task, row, record, time.process_time() - started))
    return found


def planned(arguments: argparse.Namespace, names: list[str], rates: list[float]) -> list[Chain]:
    """The tasks in rounds: all networks and rates have a round before the next begins."""
    rounds = range(QUICK_ROUNDS if arguments.quick else len(tasks(rates[0])))
    return [
        Chain(name, rate, (item,))
        for stage in rounds
        for rate in rates
        for name in names
        for item in tasks(rate)[stage]
    ]


def joined(chains: list[Chain]) -> list[Chain]:
    """Tasks that share a planner as one chain, for a process each."""
    together: dict[tuple[object, ...], list[tuple[Task, Row]]] = {}
    for chain in chains:
        ((task, row),) = chain.items
        shared = (row.method, row.bias, row.input_scales, row.protection, row.bits_per_weight is None, row.channels)
        together.setdefault((chain.network, chain.rate, shared), []).append((task, row))
    return [Chain(str(key[0]), float(str(key[1])), tuple(items)) for key, items in together.items()]


def measured(chains: list[Chain], setting: Setting, jobs: int) -> Iterator[tuple[Chain, Found]]:
    """What the tasks find, as they end."""
    if jobs == 1:
        for chain in chains:
            yield from ((chain, found) for found in measure(chain, setting))
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(measure, chain, setting): chain for chain in joined(chains)}
        for future in as_completed(waiting):
            yield from ((waiting[future], found) for found in future.result())


def run(arguments: argparse.Namespace) -> Record:
    """Measures everything, in order of importance, and writes the file as it goes."""
    setting = Setting(arguments.images, arguments.trials, time.monotonic() + 60 * arguments.minutes)
    names, rates = arguments.networks.split(","), [float(rate) for rate in arguments.rates.split(",")]
    result: Record = {
        "images": arguments.images,
        "trials": arguments.trials,
        "environment": {
            "machine": platform.machine(),
            "onnxruntime": ort.__version__,
            "numpy": np.__version__,
        },
        "networks": {},
        "left_out": [],
    }
    before = json.loads(arguments.out.read_text())["networks"] if arguments.resume and arguments.out.is_file() else {}
    for name in names:
        known = before.get(name, {}).get("rates", {})
        result["networks"][name] = {
            "clean": network_of(name, setting).clean,
            "rates": {f"{rate:g}": known.get(f"{rate:g}", {}) for rate in rates},
        }

    def is_missing(chain: Chain) -> bool:
        ((task, row),) = chain.items
        rows = result["networks"][chain.network]["rates"][f"{chain.rate:g}"]
        return RESULTS.get(task.__name__, "nothing") not in rows.get(row.name, {})

    chains = [chain for chain in planned(arguments, names, rates) if is_missing(chain)]
    for chain, found in measured(chains, setting, arguments.jobs):
        what = (chain.network, chain.rate, found.row.name, found.task.__name__)
        if found.record is None:
            result["left_out"].append(list(what))
            continue
        rows = result["networks"][chain.network]["rates"][f"{chain.rate:g}"]
        rows.setdefault(found.row.name, {}).update(found.record)
        print("# {} {:g} {}: {}".format(*what), summary(found.record), f"({found.seconds:.0f} s)", flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default="vgg,resnet20,vit")
    parser.add_argument("--rates", default="0.10,0.05,0.02")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of a thread each")
    parser.add_argument("--quick", action="store_true", help="the first round only, on 200 images with 4 trials")
    parser.add_argument("--minutes", type=float, default=math.inf, help="leave out what does not fit")
    parser.add_argument("--out", type=Path, help="write the results as JSON to this file")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the file has already")
    parser.add_argument("--show", type=Path, nargs="+", metavar="F.json", help="print the tables of earlier runs")
    arguments = parser.parse_args()
    if arguments.show:
        show(merged(arguments.show))
        return
    if not (SHARED / "zoo").is_dir() or not (SHARED / "data").is_dir():
        print(f"the networks and data of this benchmark are not here: {SHARED}/zoo and {SHARED}/data; nothing to do")
        return
    if arguments.quick:
        arguments.images, arguments.trials = min(200, arguments.images), min(4, arguments.trials)
    show(run(arguments))


if __name__ == "__main__":
    main()
