"""How fast the physics is: one call, and a sweep of 1000 points, of every shipped device.

Run: python benchmarks/physics.py [OUT.json]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qtaml_onnx.physics import device_names, load_device, solve


def best(call: Callable[[], object], times: int) -> float:
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return min(spent)


def measure(name: str) -> dict[str, float | str]:
    device = load_device(name)
    rate = float(device.cell_rates()[1])
    times = device.retention.value * np.geomspace(1e-4, 1e4, 1000)
    thickness = device.cell().thickness_nm * np.linspace(0.7, 1.3, 1000)
    return {
        "device": name,
        "one_call_s": best(lambda: device.cell_rates(), 10),
        "sweep_temperature_s": best(lambda: device.cell_rates(temperature_k=np.linspace(250, 420, 1000)), 2),
        "sweep_retention_s": best(lambda: device.cell_rates(retention_s=times), 2),
        "sweep_thickness_s": best(lambda: device.cell_rates(thickness_nm=thickness), 2),
        "solve_thickness_s": best(lambda: solve(device, "thickness", rate, direction="10"), 2),
    }


def main() -> None:
    rows = [measure(name) for name in device_names()]
    columns = list(rows[0])
    print("  ".join(f"{column:>20}" for column in columns))
    for row in rows:
        print("  ".join(f"{v:>20.4f}" if isinstance(v, float) else f"{v:>20}" for v in row.values()))
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
