"""How fast the physics is, against what it promises: one call within 50 ms, a sweep of 1000 points within 2 s.

For every shipped device the best of several runs, with cell-to-cell variation and the thermal average. The limits are
those of an idle desktop core; a busy machine may miss them without a fault of the code.

Run: python benchmarks/physics.py [--out OUT.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qtaml_onnx.physics import device_names, load_device, solve

CALL_S, SWEEP_S = 0.05, 2.0
LIMITS = {"one call": CALL_S, "sweep temperature": SWEEP_S, "sweep retention": SWEEP_S, "sweep thickness": SWEEP_S}


def best(call: Callable[[], object], times: int) -> float:
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return min(spent)


def measure(name: str) -> dict[str, float]:
    """Seconds of each job with one device."""
    device = load_device(name)
    rate = float(device.cell_rates()[1])
    times = device.retention.value * np.geomspace(1e-4, 1e4, 1000)
    thickness = device.cell().thickness_nm * np.linspace(0.7, 1.3, 1000)
    return {
        "one call": best(lambda: device.cell_rates(), 10),
        "sweep temperature": best(lambda: device.cell_rates(temperature_k=np.linspace(250, 420, 1000)), 2),
        "sweep retention": best(lambda: device.cell_rates(retention_s=times), 2),
        "sweep thickness": best(lambda: device.cell_rates(thickness_nm=thickness), 2),
        "solve thickness": best(lambda: solve(device, "thickness", rate, direction="10"), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the physics against its limits.")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    arguments = parser.parse_args()
    rows = {name: measure(name) for name in device_names()}
    jobs = list(next(iter(rows.values())))
    print(f"{'seconds, best run':<18}" + "".join(f"{job:>20}" for job in jobs))
    for name, row in rows.items():
        print(f"{name:<18}" + "".join(f"{row[job]:>20.4f}" for job in jobs))
    worst = {job: max(row[job] for row in rows.values()) for job in LIMITS}
    print(f"{'limit':<18}" + "".join(f"{LIMITS[job]:>20g}" if job in LIMITS else " " * 20 for job in jobs))
    print(f"{'slowest / limit':<18}" + "".join(f"{worst[job] / LIMITS[job]:>20.2f}" for job in LIMITS))
    missed = [job for job in LIMITS if worst[job] > LIMITS[job]]
    print(f"limits missed: {', '.join(missed)}" if missed else "all limits met")
    if arguments.out is not None:
        document = {"seconds": rows, "limits_s": LIMITS, "slowest_over_limit": {j: worst[j] / LIMITS[j] for j in worst}}
        arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
