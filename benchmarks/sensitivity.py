"""Cost of sensitivity probes, in forward passes of the whole network.

    OMP_NUM_THREADS=1 python benchmarks/sensitivity.py [--networks vgg,resnet20,vit] [--samples 128] [--probes 3]
        [--out FILE.json]

Networks and data are looked for in `../shared/zoo` and `../shared/data` beside the repository. A pass is one run on
the same samples; its time is the median of passes before and after the probes. Probes without cuts would take K·L
passes, and more, of the model with its weights as inputs: the first share is of those. onnxruntime arranges constants
for speed, so that passes of the plain model take less: the second share is of those. Everything is counted in processor
time: probes, the cuts of the graph, their sessions, the noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qtaml_onnx.data import Dataset, input_specs, load_dataset
from qtaml_onnx.methods import METHODS
from qtaml_onnx.modelio import load_model
from qtaml_onnx.passes.expose_weights import ExposeWeights
from qtaml_onnx.plan import FaultModel
from qtaml_onnx.planner import LONGEST_WORD, Planner, prepare
from qtaml_onnx.runtime import create_session, session_options
from qtaml_onnx.sensitivity import measure_sensitivity

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
BATCH = 128
TURNS = 7


def passes(model: ir.Model, names: list[str], data: Dataset) -> list[float]:
    """Processor time of whole passes over the samples, with the named weights as inputs."""
    exposed = model.clone()
    ExposeWeights(names)(exposed)
    session = create_session(ir.to_proto(exposed), session_options())
    times = []
    for _ in range(TURNS + 1):
        start = time.process_time()
        for feed, _count in data.feeds(BATCH):
            session.run(None, feed)
        times.append(time.process_time() - start)
    return times[1:]


def measure(path: Path, samples: int, probes: int) -> dict[str, Any]:
    source = load_model(path)
    inventory = prepare(source)
    planner = Planner(source, inventory, FaultModel(p01=(0.1,) * LONGEST_WORD, p10=(0.1,) * LONGEST_WORD))
    calibration = SHARED / "data" / "cifar10_calibration.npz"
    data = load_dataset(calibration, input_specs(source.model), "--calibration").head(samples)
    weights = planner.probe_weights(METHODS["channel-optimized"])
    units = {"fed": list(weights), "plain": []}
    times = {unit: passes(source.model, names, data) for unit, names in units.items()}
    start = time.process_time()
    measure_sensitivity(source.model, weights, data, probes=probes, batch_size=BATCH)
    spent = time.process_time() - start
    one = {unit: statistics.median(times[unit] + passes(source.model, names, data)) for unit, names in units.items()}
    probed = probes * len(weights)
    return {
        "tensors": len(weights),
        "probes": probes,
        "pass_s": one["fed"],
        "plain_pass_s": one["plain"],
        "spent_s": spent,
        "share": spent / one["fed"] / probed,
        "plain_share": spent / one["plain"] / probed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default="vgg,resnet20,vit")
    parser.add_argument("--samples", type=int, default=BATCH)
    parser.add_argument("--probes", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the results as JSON to this file")
    arguments = parser.parse_args()
    if not (SHARED / "zoo").is_dir() or not (SHARED / "data").is_dir():
        print(f"the networks and data of this benchmark are not here: {SHARED}/zoo and {SHARED}/data; nothing to do")
        return
    print("| network | tensors L | probes K | K·L | share of K·L passes | of the plain model |")
    print("|---|---|---|---|---|---|")
    results = {}
    for name in arguments.networks.split(","):
        found = measure(SHARED / "zoo" / f"{name}.onnx", arguments.samples, arguments.probes)
        results[name] = found
        whole = found["tensors"] * found["probes"]
        print(
            f"| {name} | {found['tensors']} | {found['probes']} | {whole} | {found['share']:.2f} "
            f"| {found['plain_share']:.2f} |",
            flush=True,
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
