"""What a trial of a campaign costs over clean inference of the plain model, in time and memory, and how many it takes.

    python benchmarks/campaign.py [--networks vgg,resnet20,vit] [--rates 0.05] [--samples 1024] [--batch 256]
                                  [--turns 5] [--workers 1,2] [--peers-python PATH] [--out FILE.json]

Networks and images are looked for in `../shared/zoo` and `../shared/data` beside the repository; without them only the
rows of the bundled example are made. Each trial draws new weights and runs all samples, on one thread. The rows run by
turns, so that drifts of the machine meet all alike; figures are medians over turns of processor time, which other
programs disturb least. Rows:

    clean, plain model     onnxruntime's default optimisation
    the same again         how far two equal sessions differ
    campaign               what `evaluate` does: weights drawn once, a session with them as constants
      of which draw        … without the inference: faults, read-out, loading
    weights fed            the alternative without loading: weights drawn once, fed with each batch
    operators each batch   the instrumented model as it is, drawing the same faults with each batch
    NumPy                  as the campaign, but faults drawn and words read out by NumPy
    torch, pytorchfi, mrfi by `campaign_peers.py` in the Python of --peers-python, where they are

Memory is the peak of a fresh process over what it had before the model was loaded, for one trial and for five.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import qtaml_onnx
from qtaml_onnx.campaign import Campaign, Variant
from qtaml_onnx.campaign.image import FaultyModel, inference_session, split_image
from qtaml_onnx.campaign.sequential import worst_case_trials
from qtaml_onnx.campaign.trials import run_first_output
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.data import Dataset
from qtaml_onnx.passes.inject_faults import RATES_INPUT, SEED_INPUT
from qtaml_onnx.plan import FaultModel
from qtaml_onnx.runtime import create_session, session_options
from qtaml_onnx.stored import StoredModel, stored_model

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
DIGITS = ROOT / "examples" / "digits"
NO_FAULTS = FaultModel(p01=(0.0,) * 12, p10=(0.0,) * 12)
TIME_LIMIT, MEMORY_LIMIT, PEERS_LIMIT, TRIALS_LIMIT = 1.10, 1.3, 5.0, 3.0
PRECISION = 0.005
SCALING_TRIALS = 200

Row = dict[str, Any]


def images(samples: int) -> Dataset:
    with np.load(SHARED / "data" / "cifar10_eval.npz") as file:
        return Dataset({"image": file["image"][:samples]}, file["labels"][:samples], False, None, "cifar10")


def numpy_trial(stored: StoredModel) -> Callable[[int, float], ort.InferenceSession]:
    """Faults and read-out of plain two's complement words by NumPy, in as few passes over the bits as it allows."""
    parts = split_image(ir.to_proto(stored.faulty))
    initializers = {tensor.name: tensor for tensor in ir.to_proto(stored.fixed).graph.initializer}
    words = {t.name: numpy_helper.to_array(initializers[t.words_name]) for t in stored.plan.tensors}
    scales = {t.name: numpy_helper.to_array(initializers[f"{t.name}.scale"]) for t in stored.plan.tensors}
    model = parts.inference
    placed = {name: model.graph.initializer.add(name=name) for name in parts.weights}

    def draw(seed: int, rate: float) -> ort.InferenceSession:
        rng = np.random.default_rng(seed)
        threshold = np.uint16(round(rate * 65536))
        for name, clean in words.items():
            if rate < 0.01:  # the number of flips, then where they fall: repeats are rare and flip back
                flat = clean.reshape(-1).copy()
                flips = rng.integers(0, 8 * flat.size, rng.binomial(8 * flat.size, rate))
                np.bitwise_xor.at(flat.view(np.uint8), flips >> 3, (1 << (flips & 7)).astype(np.uint8))
                read = flat.reshape(clean.shape)
            else:  # sixteen random bits a stored bit
                random = np.frombuffer(rng.bytes(16 * clean.size), np.uint16)
                masks = np.packbits(random < threshold).view(np.int8)
                read = clean ^ masks.reshape(clean.shape)
            weights = read.astype(np.float32) * scales[name]
            placed[name].CopyFrom(numpy_helper.from_array(weights, name))
        return inference_session(model)

    return draw


def rows_of(
    stored: StoredModel, plain: bytes, data: Dataset, rate: float, batch: int
) -> dict[str, Callable[[int], Any]]:
    """What to time: functions of the seed."""
    rates = np.full((2, 8), rate, np.float32)
    proto = ir.to_proto(stored.faulty)
    clean = [create_session(plain, session_options(threads=1)) for _ in range(2)]
    ours, again, fed = FaultyModel(proto), FaultyModel(proto), split_image(proto)
    assert fed.image is not None
    image = create_session(fed.image, session_options(threads=1))
    values = image.run(None, {})
    for name, value in zip(fed.weights, values, strict=True):
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        fed.inference.graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
    feeding = create_session(fed.inference, session_options(threads=1))
    whole = create_session(proto, session_options(threads=1))
    by_numpy = numpy_trial(stored)

    def trial(seed: int) -> dict[str, NDArray[Any]]:
        return {SEED_INPUT: np.asarray(seed, np.int64), RATES_INPUT: rates}

    def run(session: ort.InferenceSession, extra: dict[str, NDArray[Any]] | None = None) -> None:
        run_first_output(session, data, batch, extra)

    return {
        "clean, plain model": lambda _seed: run(clean[0]),
        "the same again": lambda _seed: run(clean[1]),
        "campaign": lambda seed: run(*ours.draw(seed, rates)),
        "  of which draw": lambda seed: again.draw(seed, rates),
        "weights fed": lambda seed: run(feeding, dict(zip(fed.weights, image.run(None, trial(seed)), strict=True))),
        "operators each batch": lambda seed: run(whole, trial(seed)),
        "NumPy": lambda seed: run(by_numpy(seed, rate)),
    }


def timed(network: str, stored: StoredModel, rate: float, data: Dataset, options: argparse.Namespace) -> list[Row]:
    functions = rows_of(stored, (SHARED / "zoo" / f"{network}.onnx").read_bytes(), data, rate, options.batch)
    times: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for turn in range(-1, options.turns):  # the first warms up
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            start = time.process_time()
            functions[name](turn + 1)
            if turn >= 0:
                times[name].append(time.process_time() - start)
    clean = statistics.median(times[names[0]])
    return [row(network, rate, name, statistics.median(found), clean) for name, found in times.items()]


def row(network: str, rate: float, name: str, seconds: float, clean: float) -> Row:
    return {"network": network, "rate": rate, "row": name, "seconds": seconds, "ratio": seconds / clean}


def peers(network: str, rate: float, clean: float, options: argparse.Namespace) -> list[Row]:
    command = [options.peers_python, ROOT / "benchmarks" / "campaign_peers.py", SHARED / "zoo" / f"{network}.onnx"]
    command += [SHARED / "data" / "cifar10_eval.npz", "--samples", options.samples, "--batch", options.batch]
    command += ["--rate", rate, "--trials", 1]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1][:120]
        return [{"network": network, "rate": rate, "row": "torch, pytorchfi, mrfi", "skipped": reason}]
    return [
        {"network": network, "rate": rate, "row": name, **found}
        if "skipped" in found
        else row(network, rate, name, found["seconds"], clean)
        for name, found in json.loads(done.stdout.splitlines()[-1]).items()
    ]


def memory(network: str, stored: StoredModel, options: argparse.Namespace) -> list[Row]:
    """Peaks of fresh processes, which run this file with --memory."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        faulty = Path(folder) / "faulty.onnx"
        onnx.save(ir.to_proto(stored.faulty), faulty)
        plain = SHARED / "zoo" / f"{network}.onnx"
        for name, model, trials in (("clean, plain model", plain, 0), ("campaign", faulty, 1), ("campaign", faulty, 5)):
            command = [
                sys.executable, __file__, "--memory", str(model), "--memory-trials", str(trials),
                "--samples", str(options.samples), "--batch", str(options.batch),
            ]  # fmt: skip
            peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            title = f"{name}, {trials} trials" if trials else name
            found.append({"network": network, "row": title, "mebibytes": peak / 1024})
    for entry in found:
        entry["ratio"] = entry["mebibytes"] / found[0]["mebibytes"]
    return found


def memory_child(model: Path, trials: int, samples: int, batch: int) -> None:
    """Peak over the start in KiB, printed; 0 trials: the session that a user of the plain model has."""
    data = images(samples)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (man proc)
    before = kibibytes("VmRSS")
    if trials == 0:
        run_first_output(create_session(str(model), session_options(threads=1)), data, batch)
    else:
        faulty = FaultyModel(onnx.load(model))
        for seed in range(trials):
            session, extra = faulty.draw(seed, np.full((2, 8), 0.05, np.float32))
            run_first_output(session, data, batch, extra)
            del session
    print(kibibytes("VmHWM") - before)


def kibibytes(name: str) -> int:
    """A figure of this process as Linux tells it; `getrusage` has the peak of whoever started it in it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def sequential() -> list[Row]:
    """Trials that `--precision 0.005` takes on the bundled example, over the fixed number for any accuracy."""
    rate = 0.05
    found = []
    worst = worst_case_trials(PRECISION, 0.95)
    evaluation = DIGITS / "digits_eval.npz"
    hardened = qtaml_onnx.harden(DIGITS / "digits_cnn.onnx", rate, calibration=DIGITS / "digits_calibration.npz")
    with np.load(evaluation) as file:
        data = Dataset({"image": file["image"]}, file["labels"], False, None, str(evaluation))
    campaign = Campaign(data, trials=worst, precision=PRECISION)
    campaign.measure_clean(onnx.load(DIGITS / "digits_cnn.onnx"))
    start = time.perf_counter()
    variant = Variant("hardened", ir.to_proto(hardened.faulty))
    result = campaign.measure_faulty(variant, [FlipRates.uniform(rate, 8)])[0]
    interval = result.interval
    found.append(
        {
            "network": "digits, hardened",
            "row": f"--precision {PRECISION}",
            "trials": len(result.values),
            "seconds": time.perf_counter() - start,
            "mean": interval.mean,
            "half_width": interval.half_width,
            "method": interval.method,
            "fixed": worst,
            "saved": worst / len(result.values),
        }
    )
    return found


def scaling(workers: list[int]) -> list[Row]:
    """Trials a second of wall time on the bundled example, from the first trial that ends to the last."""
    stored = stored_model(DIGITS / "digits_cnn.onnx", NO_FAULTS)
    with np.load(DIGITS / "digits_eval.npz") as file:
        data = Dataset({"image": file["image"]}, file["labels"], False, None, "digits")
    found = []
    for count in workers:
        ended: list[float] = []
        campaign = Campaign(data, trials=SCALING_TRIALS, workers=count)
        campaign.measure_clean(onnx.load(DIGITS / "digits_cnn.onnx"))
        campaign.measure_faulty(
            Variant("unprotected", ir.to_proto(stored.faulty)),
            [FlipRates.uniform(0.05, 8)],
            progress=lambda ended=ended: ended.append(time.perf_counter()),  # type: ignore[misc]
        )
        ended = ended[count:]  # until then some processes were starting
        speed = (len(ended) - 1) / (ended[-1] - ended[0])
        load = os.getloadavg()[0]
        found.append({"network": "digits", "row": f"--workers {count}", "trials_a_second": speed, "load": load})
    return found


def show(found: dict[str, list[Row]], limits: bool) -> None:
    print("| network | flip rate | row | s a trial | over clean |\n|---|---|---|---|---|")
    for entry in found["time"]:
        cells = (
            ("skipped", entry["skipped"])
            if "skipped" in entry
            else (f"{entry['seconds']:.3f}", f"{entry['ratio']:.3f}")
        )
        print(f"| {entry['network']} | {entry['rate']:g} | {entry['row']} | {cells[0]} | {cells[1]} |")
    print("\n| network | row | MiB | over clean |\n|---|---|---|---|")
    for entry in found["memory"]:
        print(f"| {entry['network']} | {entry['row']} | {entry['mebibytes']:.0f} | {entry['ratio']:.2f} |")
    head = ("model", "row", "trials", "half-width", "method", "fixed for the worst case", "fewer by")
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for entry in found["trials"]:
        half, saved = f"{entry['half_width']:.4f}", f"{entry['saved']:.0f} ×"
        cells = (entry["network"], entry["row"], entry["trials"], half, entry["method"], entry["fixed"], saved)
        print("| " + " | ".join(map(str, cells)) + " |")
    print("\n| model | row | trials a second | load of the machine |\n|---|---|---|---|")
    for entry in found["scaling"]:
        print(f"| {entry['network']} | {entry['row']} | {entry['trials_a_second']:.1f} | {entry['load']:.1f} |")
    if limits:
        ours = {(e["network"], e["rate"]): e for e in found["time"] if e["row"] == "campaign"}
        print(f"\ncampaign over clean: at most {max(e['ratio'] for e in ours.values()):.3f}; wanted {TIME_LIMIT:.2f}")
        print(f"memory over clean: at most {max(e['ratio'] for e in found['memory']):.2f}; wanted {MEMORY_LIMIT}")
        for name in ("pytorchfi", "mrfi"):
            faster = [
                e["seconds"] / ours[e["network"], e["rate"]]["seconds"]
                for e in found["time"]
                if e["row"] == name and "seconds" in e
            ]
            if faster:
                print(f"faster than {name}: {min(faster):.1f} to {max(faster):.1f} ×; wanted {PEERS_LIMIT:g} ×")
        for entry in found["time"]:
            # A peer's trial holds torch's clean inference: more than this is the peer's injection.
            if entry["row"] == "torch, clean" and "seconds" in entry:
                bound = entry["seconds"] / ours[entry["network"], entry["rate"]]["seconds"]
                print(f"{entry['network']}: a peer that injects at no cost takes {bound:.2f} × a trial of ours")
    print(f"trials saved: {min(e['saved'] for e in found['trials']):.0f} ×; wanted {TRIALS_LIMIT:g} ×")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default="vgg,resnet20,vit")
    parser.add_argument("--rates", default="0.05")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", default="1,2", help="numbers of processes to compare")
    parser.add_argument("--peers-python", type=Path, help="a Python with torch, onnx2torch, pytorchfi and mrfi")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory-trials", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory is not None:
        memory_child(options.memory, options.memory_trials, options.samples, options.batch)
        return
    found: dict[str, list[Row]] = {"time": [], "memory": [], "trials": [], "scaling": []}
    present = (SHARED / "zoo").is_dir() and (SHARED / "data").is_dir()
    if not present:
        print(f"skipped: the networks and images of most rows are not here: {SHARED}/zoo and {SHARED}/data")
    for network in options.networks.split(",") if present else ():
        stored = stored_model(SHARED / "zoo" / f"{network}.onnx", NO_FAULTS)
        data = images(options.samples)
        for rate in map(float, options.rates.split(",")):
            rows = timed(network, stored, rate, data, options)
            found["time"] += rows
            if options.peers_python is not None:
                found["time"] += peers(network, rate, rows[0]["seconds"], options)
        found["memory"] += memory(network, stored, options)
    found["trials"] = sequential()
    found["scaling"] = scaling([int(count) for count in options.workers.split(",")])
    show(found, limits=present)
    if options.peers_python is None:
        print("skipped: torch, pytorchfi and mrfi; name a Python that has them by --peers-python")
    if options.out:
        environment = {"machine": platform.machine(), "cpus": os.cpu_count(), "onnxruntime": ort.__version__}
        options.out.write_text(json.dumps({"environment": environment, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
