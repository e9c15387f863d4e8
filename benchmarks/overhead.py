"""How much protection each method needs, and what it keeps without any: the figures that README and docs quote.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py [--networks vgg,resnet20,vit] [--rates 0.10,0.05,0.02]
        [--images 1000] [--trials 8] [--quick] [--minutes M] [--out F.json]
    python benchmarks/overhead.py --show F.json [G.json ...]

Networks and data are looked for in `../shared/zoo` and `../shared/data` beside the repository. Trial t draws the faults
of seed t in every row, so that rows meet in pairs; the figures are means over trials as shares of the clean accuracy on
the same images, with 95 % t intervals, which cover the draws of the faults and not the choice of images.

Overhead is the fraction of protected (ideal) bits at which the mean over trials reaches 95 % of clean, found by
bisection over the method's own sequence of allocations. The search looks at up to half of the trials and leaves a
candidate early when it is clearly above or below; the allocation found is then measured with all trials, and the next
ones of the sequence if it falls short.
The most important rows come first; `--minutes` leaves out what does not fit, and the JSON file grows as rows come in.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from qtaml_onnx.calibrate import calibrate_layers
from qtaml_onnx.campaign.metrics import Metric
from qtaml_onnx.campaign.statistics import t_interval
from qtaml_onnx.campaign.trials import run_first_output
from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.channel_probes import CHANNEL_SAMPLES, channel_energies
from qtaml_onnx.data import input_specs, load_dataset
from qtaml_onnx.deviations import DeviationRestorer
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_inject import fault_inject
from qtaml_onnx.hardening import PROBES
from qtaml_onnx.layers import LayerStatistics
from qtaml_onnx.methods import METHODS, Method
from qtaml_onnx.modelio import SourceModel, load_model
from qtaml_onnx.passes.expose_weights import ExposeWeights
from qtaml_onnx.passes.inject_faults import RATES_INPUT, SEED_INPUT
from qtaml_onnx.passes.substitute_weights import SubstituteWeights
from qtaml_onnx.plan import FaultModel, StoragePlan
from qtaml_onnx.planner import LONGEST_WORD, Planner, prepare
from qtaml_onnx.progress import Silent
from qtaml_onnx.report.build import SATURATION_LEVEL
from qtaml_onnx.runtime import create_session, session_options
from qtaml_onnx.sensitivity import Sensitivity, measure_sensitivity
from qtaml_onnx.storage.tensor import decode_tensor, encode_tensor

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
WANTED = 0.95
HIGH_RATE = 0.1  # from which word lengths are a matter of the first round
QUICK_ROUNDS = 2
BUDGETS = (0.005, 0.01, 0.02, 0.05, 0.10, 0.20)
BATCH = 50
PERCENTILE = 99.9
STATISTICS_SAMPLES, PROBE_SAMPLES = 1024, 128  # as `harden` takes them
FAR, CLEARLY_FAR = 0.05, 0.2  # distances from the target at which a search stops after two trials, and after one

Feed = dict[str, NDArray[Any]]
Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A way to harden: a method, what of it is switched off, what protects and how long words are."""

    name: str
    method: str
    bias: bool = True
    input_scales: bool = True
    protection: str = "ideal"
    bits_per_weight: float | None = None
    channels: bool = False


METHOD_ROWS = {name: Row(name, name) for name in ("uniform-msp", "tac", "channel-optimized", "magnitude")}
METHOD_ROWS["posterior-mean"] = Row("posterior-mean", "posterior-mean")
ABLATIONS = (
    Row("channel-optimized, no bias correction", "channel-optimized", bias=False),
    Row("channel-optimized, no input scales", "channel-optimized", input_scales=False),
    Row("channel-optimized, neither", "channel-optimized", bias=False, input_scales=False),
)
LENGTHS = tuple(
    Row(f"{bits} bits a weight all in, {title}", "channel-optimized", protection=protection, bits_per_weight=bits)
    for bits in (8, 4)
    for protection, title in (("ideal", "nothing protected"), ("ldpc-3-5", "ldpc-3-5"))
)
BY_CHANNEL = tuple(
    Row(f"{name}, by output channel", name, channels=True) for name in ("channel-optimized", "tac", "magnitude")
)
BASELINE = Row("plain int8", "none")


class TimeUp(Exception):
    """The minutes given are used up."""


class Network:
    """One network: its data, and everything that several rows share."""

    def __init__(self, path: Path, images: int, trials: int, deadline: float) -> None:
        self.source = load_model(path)
        self.original = ir.to_proto(self.source.model)
        self.inventory = prepare(self.source)
        specs = input_specs(self.source.model)
        self.data = load_dataset(SHARED / "data" / "cifar10_eval.npz", specs, "--eval").head(images)
        self.calibration = load_dataset(SHARED / "data" / "cifar10_calibration.npz", specs, "--calibration")
        self.trials, self.deadline = trials, deadline
        clean = run_first_output(_session(self.original), self.data, BATCH)
        self.metric = Metric.against(self.data.labels, clean)
        self.clean = float(self.metric.right(clean).mean())
        self._statistics: dict[str, LayerStatistics] | None = None
        self._sensitivity: dict[tuple[str, bool, bool], Sensitivity] = {}
        self._channels: dict[tuple[str, bool, bool, str], dict[str, NDArray[np.float64]]] = {}
        self._planners: dict[tuple[float, str, bool, bool, str, str], Planner] = {}
        self._values: dict[str, list[float]] = {}
        self._restorer: DeviationRestorer | None = None

    def planner(self, row: Row, rate: float) -> Planner:
        """What `harden` prepares for a row: calibration, probes."""
        method = METHODS[row.method]
        bias, scales = row.bias and method.corrects_bias, row.input_scales and method.corrects_bias
        key = (rate, method.scaling, bias, scales, row.protection, row.method if row.channels else "")
        if key not in self._planners:
            if time.monotonic() > self.deadline:
                raise TimeUp
            faults = FaultModel(p01=(rate,) * LONGEST_WORD, p10=(rate,) * LONGEST_WORD)
            made = Planner(
                self.source, self.inventory, faults, protection=row.protection, input_scales=row.input_scales
            )
            if method.corrects_bias:
                made.find_layers()
                made.use_statistics(self.statistics(made), correct_biases=bias)
            probed = key[1:4]
            if probed not in self._sensitivity:
                self._sensitivity[probed] = measure_sensitivity(
                    self.source.model,
                    made.probe_weights(method),
                    self.calibration.head(PROBE_SAMPLES),
                    biases=made.biases,
                    probes=PROBES,
                )
            made.use_sensitivity(self._sensitivity[probed], method)
            if row.channels:
                channels = (*probed, row.method)
                if channels not in self._channels:
                    data = self.calibration.head(CHANNEL_SAMPLES)
                    self._channels[channels] = channel_energies(made, method, data, Silent())
                made.use_channel_energies(self._channels[channels], method)
            self._planners[key] = made
        return self._planners[key]

    def statistics(self, planner: Planner) -> dict[str, LayerStatistics]:
        """Calibration statistics of a planner's layers."""
        if self._statistics is None:
            data = self.calibration.head(STATISTICS_SAMPLES)
            self._statistics = calibrate_layers(self.source.model, list(planner.layers.values()), data, batch_size=64)
        return self._statistics

    def restored(self, plan: StoragePlan) -> StoragePlan:
        """The plan as `harden` finishes it."""
        layers = {name: layer for made in self._planners.values() for name, layer in made.layers.items()}
        if not layers or all(tensor.bias is None for tensor in plan.tensors):
            return plan
        if self._restorer is None:
            self._restorer = DeviationRestorer(
                self.source.model, lambda plan: carry_out(self.source, plan)[1], layers, self.calibration
            )
        return self._restorer(plan)

    def faulty(self, plan: StoragePlan) -> Callable[[], Trial]:
        """Trials of a plan's instrumented model. Plans that make the same model share them."""
        proto = ir.to_proto(carry_out(self.source, self.restored(plan))[1])
        return self.instrumented(proto, max(plan.fault_model.p01))

    def instrumented(self, proto: onnx.ModelProto, rate: float) -> Callable[[], Trial]:
        del proto.metadata_props[:]
        rates = np.full((2, LONGEST_WORD), rate, dtype=np.float32)

        def make() -> Trial:
            session = _session(proto)
            return lambda seed: self.right(session, {SEED_INPUT: np.asarray(seed, dtype=np.int64), RATES_INPUT: rates})

        return self.cached(hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest(), make)

    def right(self, session: ort.InferenceSession, extra: Feed) -> float:
        return float(self.metric.right(run_first_output(session, self.data, BATCH, extra)).mean())

    def cached(self, key: str, make: Callable[[], Trial]) -> Callable[[], Trial]:
        """Trials that remember their results under a key."""
        values = self._values.setdefault(key, [])

        def start() -> Trial:
            made: list[Trial] = []

            def trial(seed: int) -> float:
                while len(values) <= seed:
                    if time.monotonic() > self.deadline:
                        raise TimeUp
                    if not made:
                        made.append(make())
                    values.append(made[0](len(values)))
                return values[seed]

            return trial

        return start

    def kept(self, start: Callable[[], Trial]) -> Record:
        """Share of clean over all trials, with its interval."""
        trial = start()
        values = [trial(seed) for seed in range(self.trials)]
        interval = t_interval(values, 0.95)
        return {
            "mean": interval.mean / self.clean,
            "low": interval.low / self.clean,
            "high": interval.high / self.clean,
            "trials": self.trials,
        }

    def meets(self, start: Callable[[], Trial]) -> bool:
        """Whether the mean over up to half of the trials reaches the target."""
        trial, values = start(), []
        for seed in range(max(1, self.trials // 2)):
            values.append(trial(seed) / self.clean - WANTED)
            distance = abs(float(np.mean(values)))
            if distance > CLEARLY_FAR or (seed >= 1 and distance > FAR):
                break
        return float(np.mean(values)) >= 0


Trial = Callable[[int], float]


def _session(proto: onnx.ModelProto) -> ort.InferenceSession:
    return create_session(proto, session_options(threads=1, optimization_level="extended"))


def ledger(plan: StoragePlan) -> Record:
    """What is stored."""
    weights = sum(tensor.size for tensor in plan.tensors)
    return {
        "protected": plan.protected_fraction,
        "words": plan.weight_bits / weights,
        "parity": plan.parity_bits / weights,
        "metadata": plan.metadata_bits / weights,
        "all_in": (plan.weight_bits + plan.parity_bits + plan.metadata_bits) / weights,
    }


def nothing(network: Network, row: Row, rate: float) -> Record:
    """What is kept with nothing protected, or at the word lengths chosen for a total."""
    planner, method = network.planner(row, rate), METHODS[row.method]
    try:
        plan = (
            planner.within_budget(method, 0)
            if row.bits_per_weight is None
            else planner.within_bits(method, row.bits_per_weight)
        )
    except InputError as error:
        return {"impossible": str(error)}
    return {"nothing": network.kept(network.faulty(plan)), "ledger": ledger(plan)}


def overhead(network: Network, row: Row, rate: float) -> Record:
    """The smallest overhead that reaches the target, measured and predicted."""
    planner, method = network.planner(row, rate), METHODS[row.method]
    plan = planner.within_budget(method, 0)
    kept = network.kept(network.faulty(plan))
    if kept["mean"] < WANTED:
        menu = planner.menu(method)
        sequence = menu.sequence()
        low, high = 1, len(sequence) - 1
        while low < high:
            middle = (low + high) // 2
            met = network.meets(network.faulty(planner.plan(menu, sequence[middle])))
            low, high = (low, middle) if met else (middle + 1, high)
        plan = planner.plan(menu, sequence[high])
        kept = network.kept(network.faulty(plan))
        while kept["mean"] < WANTED and high < len(sequence) - 1:  # all trials may say other than the search's
            high += 1
            plan = planner.plan(menu, sequence[high])
            kept = network.kept(network.faulty(plan))
    return {
        "overhead": plan.protected_fraction,
        "kept": kept,
        "ledger_there": ledger(plan),
        **prediction(network, row, planner, method, rate),
    }


def prediction(network: Network, row: Row, planner: Planner, method: Method, rate: float) -> Record:
    """Overheads predicted at the level of noise where ρ* compares them, and ρ* as a report gives it."""
    sensitivity = planner.sensitivity
    if sensitivity is None:
        return {}
    limit = SATURATION_LEVEL * sensitivity.output_energy
    unprotected = planner.within_budget(method, 0).noise_energy
    if unprotected is not None and unprotected <= limit:
        return {"predicted_overhead": 0.0}  # no ratio; and the designs with protected planes need not be made
    own = planner.smallest_overhead(method, limit)
    plain = network.planner(METHOD_ROWS["uniform-msp"], rate)  # has no self-correcting biases, and is probed without
    found = plain.sensitivity
    uniform = plain.smallest_overhead(METHODS["uniform-msp"], SATURATION_LEVEL * found.output_energy) if found else 0
    return {"predicted_overhead": own, "predicted_ratio": uniform / own if uniform and own else None}


def budgets(network: Network, row: Row, rate: float) -> Record:
    """What is kept at each budget."""
    planner, method = network.planner(row, rate), METHODS[row.method]
    return {"budgets": {f"{b:g}": network.kept(network.faulty(planner.within_budget(method, b))) for b in BUDGETS}}


def clipped(network: Network, _row: Row, rate: float) -> Record:
    """Plain int8 after clipping each tensor at a percentile of its magnitudes."""
    values = {}
    for tensor in network.planner(BASELINE, rate).tensors:
        limit = float(np.percentile(np.abs(tensor.values), PERCENTILE))
        values[tensor.name] = np.clip(tensor.values, -limit, limit).astype(tensor.values.dtype)
    model = network.source.model.clone()
    SubstituteWeights(values)(model)
    source = SourceModel(network.source.path, network.source.sha256, model)
    planner = Planner(source, prepare(source), network.planner(BASELINE, rate).fault_model)
    plan = planner.within_budget(METHODS["none"], 0)
    proto = ir.to_proto(carry_out(source, plan)[1])
    return {"nothing": network.kept(network.instrumented(proto, rate)), "ledger": ledger(plan)}


def ranger(network: Network, _row: Row, rate: float) -> Record:
    """Plain int8 with the output of every layer held to the range that calibration saw (Ranger; Chen et al. 2021)."""
    planner = network.planner(METHOD_ROWS["posterior-mean"], rate)
    final = {str(value.name) for value in network.source.model.graph.outputs}
    outputs = [layer.output for layer in planner.layers.values() if layer.output not in final]
    probe = onnx.ModelProto()
    probe.CopyFrom(network.original)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    session = _session(probe)
    ranges = dict.fromkeys(outputs, (math.inf, -math.inf))
    for feed, _count in network.calibration.head(STATISTICS_SAMPLES).feeds(BATCH):
        for name, array in zip(outputs, session.run(outputs, feed), strict=True):
            low, high = ranges[name]
            ranges[name] = (min(low, float(array.min())), max(high, float(array.max())))
    plan = network.planner(BASELINE, rate).within_budget(METHODS["none"], 0)
    proto = ir.to_proto(carry_out(network.source, plan)[1])
    nodes = []
    for node in proto.graph.node:
        nodes.append(node)
        for name in set(node.output) & ranges.keys():
            node.output[list(node.output).index(name)] = f"{name}.free"
            limits = [f"{name}.low", f"{name}.high"]
            proto.graph.initializer.extend(
                onnx.helper.make_tensor(limit, onnx.TensorProto.FLOAT, [], [value])
                for limit, value in zip(limits, ranges[name], strict=True)
            )
            nodes.append(onnx.helper.make_node("Clip", [f"{name}.free", *limits], [name]))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return {"nothing": network.kept(network.instrumented(proto, rate)), "ledger": ledger(plan)}


def parity(network: Network, _row: Row, rate: float) -> Record:
    """Plain int8 with a parity bit a word, which flips like the others; a word of wrong parity is read as zero."""
    plan = network.planner(BASELINE, rate).within_budget(METHODS["none"], 0)
    weights = {tensor.name: tensor.values for tensor in network.planner(BASELINE, rate).tensors}
    model = network.source.model.clone()
    expose = ExposeWeights([tensor.name for tensor in plan.tensors])
    expose(model)
    rates = np.full((2, LONGEST_WORD), rate, dtype=np.float32)

    def make() -> Trial:
        session = _session(ir.to_proto(model))

        def trial(seed: int) -> float:
            feed: Feed = {}
            for tensor in plan.tensors:
                words = encode_tensor(tensor, weights[tensor.name])
                bit = np.bitwise_count(words.view(np.uint8)) & 1
                read = fault_inject(words, seed, rates, stream=tensor.stream)
                stored = fault_inject(bit, seed, rates, stream=len(plan.tensors) + tensor.stream, bits=1)
                right = (np.bitwise_count(read.view(np.uint8)) & 1) == stored
                feed[expose.inputs[tensor.name]] = np.where(right, decode_tensor(tensor, read), np.float32(0))
            return network.right(session, feed)

        return trial

    row = ledger(plan)
    return {
        "nothing": network.kept(network.cached(f"parity {rate}", make)),
        "ledger": {**row, "parity": 1.0, "all_in": row["all_in"] + 1.0},
    }


Task = Callable[[Network, Row, float], Record]
RESULTS = {"overhead": "overhead", "budgets": "budgets"}  # what a task adds to a row; the others add what is kept


def tasks(rate: float) -> list[list[tuple[Task, Row]]]:
    """What to measure at a rate, in rounds: all networks and rates have a round before the next begins."""
    main, lengths = METHOD_ROWS["channel-optimized"], [(nothing, row) for row in LENGTHS]
    high = rate >= HIGH_RATE
    return [
        [(nothing, main), *(lengths if high else [])],
        [
            (overhead, main),
            (nothing, METHOD_ROWS["tac"]),
            *((overhead, METHOD_ROWS[name]) for name in ("uniform-msp", "tac")),
        ],
        [(nothing, row) for row in (*ABLATIONS, METHOD_ROWS["posterior-mean"], BASELINE)],
        [
            (clipped, Row(f"plain int8, clipped at the {PERCENTILE:g}th percentile", "none")),
            (parity, Row("plain int8, parity and nulling", "none")),
            (ranger, Row("plain int8, layer outputs in range", "none")),
        ],
        [(task, METHOD_ROWS[name]) for name in ("posterior-mean", "magnitude") for task in (nothing, overhead)],
        [(nothing, METHOD_ROWS["uniform-msp"]), *((budgets, METHOD_ROWS[n]) for n in ("channel-optimized", "tac"))],
        [] if high else lengths,
        [(overhead, row) for row in BY_CHANNEL] if high else [],
        [(overhead, row) for row in ABLATIONS],
    ]


def run(arguments: argparse.Namespace) -> Record:
    """Measures everything, in order of importance, and writes the file as it goes."""
    deadline = time.monotonic() + 60 * arguments.minutes
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
    before = json.loads(arguments.out.read_text())["networks"] if arguments.resume else {}
    networks = {}
    for name in names:
        network = Network(SHARED / "zoo" / f"{name}.onnx", arguments.images, arguments.trials, deadline)
        networks[name] = network
        result["networks"][name] = {
            "clean": network.clean,
            "rates": {f"{rate:g}": before.get(name, {}).get("rates", {}).get(f"{rate:g}", {}) for rate in rates},
        }
    for stage in range(QUICK_ROUNDS if arguments.quick else len(tasks(rates[0]))):
        for rate in rates:
            for name in names:
                rows = result["networks"][name]["rates"][f"{rate:g}"]
                for task, row in tasks(rate)[stage]:
                    if RESULTS.get(task.__name__, "nothing") in rows.get(row.name, {}):
                        continue
                    started = time.process_time()
                    try:
                        found = task(networks[name], row, rate)
                    except TimeUp:
                        result["left_out"].append([name, rate, row.name, task.__name__])
                        continue
                    rows.setdefault(row.name, {}).update(found)
                    print(f"# {name} {rate:g} {row.name}: {task.__name__} {summary(found)}", end=" ", flush=True)
                    print(f"({time.process_time() - started:.0f} s)", flush=True)
                    if arguments.out:
                        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def summary(found: Record) -> str:
    """A found record in a few words, for those who watch."""
    parts = [f"{100 * found['overhead']:.2f} % protected keep"] if "overhead" in found else []
    parts += [share(found[name]) for name in ("kept", "nothing") if name in found]
    parts += [share(kept) for kept in found.get("budgets", {}).values()]
    return " ".join(parts) or found.get("impossible", "")


def share(kept: Record | None) -> str:
    """A share of clean with its interval."""
    return f"{kept['mean']:.3f} ± {(kept['high'] - kept['low']) / 2:.3f}" if kept else "–"


def table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Lines of a Markdown table; the first row is its head."""
    for number, row in enumerate(rows):
        yield "| " + " | ".join(row) + " |"
        if number == 0:
            yield "|" + "---|" * len(row)


def show(result: Record) -> None:
    """Prints the tables."""
    for name, network in result["networks"].items():
        for rate, rows in network["rates"].items():
            if not rows:
                continue
            print(f"\n### {name}, rate {rate}, clean accuracy {network['clean']:.3f}\n")
            print("\n".join(table(main_table(rows))))
            ratios = list(ratio_table(rows))
            if len(ratios) > 1:
                print("\n" + "\n".join(table(ratios)))
            curves = [
                (row, found["budgets"], found.get("nothing")) for row, found in rows.items() if "budgets" in found
            ]
            if curves:
                head = ("share of clean at a budget of", "0", *(f"{100 * b:g} %" for b in BUDGETS))
                lines = [(row, share(zero), *(share(at[f"{b:g}"]) for b in BUDGETS)) for row, at, zero in curves]
                print("\n" + "\n".join(table([head, *lines])))
    if result["left_out"]:
        print("\nleft out for lack of time: " + "; ".join(f"{n} {r:g} {w} ({t})" for n, r, w, t in result["left_out"]))


def main_table(rows: dict[str, Record]) -> Iterator[tuple[str, ...]]:
    """A line a row: overhead, shares of clean, and the ledger with nothing protected."""
    yield (
        "row",
        "protected at 95 %",
        "kept there",
        "kept with nothing protected",
        "bits a weight, all in",
        "parity",
        "metadata",
    )
    for name in in_order(rows):
        found = rows[name]
        own, bits = found.get("overhead"), found.get("ledger") or found.get("ledger_there")
        yield (
            name,
            "–" if own is None else f"{100 * own:.2f} %",
            share(found.get("kept")),
            share(found.get("nothing")) if "impossible" not in found else found["impossible"],
            *((f"{bits['all_in']:.3f}", f"{bits['parity']:.3f}", f"{bits['metadata']:.3f}") if bits else ("–",) * 3),
        )


def ratio_table(rows: dict[str, Record]) -> Iterator[tuple[str, ...]]:
    """Predicted and measured overheads, and the saturation ratio, predicted as reports give it and measured."""
    yield "row", "protected, predicted", "measured", "ρ*", "ratio measured"
    uniform = rows.get("uniform-msp", {}).get("overhead")
    for name in in_order(rows):
        found = rows[name]
        own, predicted = found.get("overhead"), found.get("predicted_overhead")
        if own is None or predicted is None:
            continue
        ratios = [found.get("predicted_ratio"), uniform / own if uniform and own else None]
        percents = [f"{100 * value:.2f} %" for value in (predicted, own)]
        yield name, *percents, *(f"{ratio:.1f}" if ratio else "–" for ratio in ratios)


def in_order(rows: dict[str, Record]) -> list[str]:
    """Rows in the order of the text above, the published alternatives last."""
    order = [*METHOD_ROWS, *(row.name for row in (*BY_CHANNEL, *ABLATIONS, *LENGTHS))]
    return sorted(rows, key=lambda name: order.index(name) if name in order else len(order))


def merged(files: list[Path]) -> Record:
    """Results of several runs as one."""
    results = [json.loads(file.read_text()) for file in files]
    return {
        **results[0],
        "networks": {name: network for result in results for name, network in result["networks"].items()},
        "left_out": [item for result in results for item in result["left_out"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default="vgg,resnet20,vit")
    parser.add_argument("--rates", default="0.10,0.05,0.02")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=8)
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
