"""A network of the overhead benchmark: its data, and everything that several rows share."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
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
from qtaml_onnx.hardening import PROBES
from qtaml_onnx.layers import LayerStatistics
from qtaml_onnx.methods import METHODS
from qtaml_onnx.modelio import load_model
from qtaml_onnx.passes.inject_faults import RATES_INPUT, SEED_INPUT
from qtaml_onnx.plan import FaultModel, StoragePlan
from qtaml_onnx.planner import LONGEST_WORD, Planner, prepare
from qtaml_onnx.progress import Silent
from qtaml_onnx.runtime import create_session, session_options
from qtaml_onnx.sensitivity import Sensitivity, measure_sensitivity

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
WANTED = 0.95
BATCH = 50
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
        clean = run_first_output(plain_session(self.original), self.data, BATCH)
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
            session = plain_session(proto)
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


def plain_session(proto: onnx.ModelProto) -> ort.InferenceSession:
    return create_session(proto, session_options(threads=1, optimization_level="extended"))
