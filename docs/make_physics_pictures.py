"""Makes the pictures of docs/physics.md. Run from anywhere: python docs/make_physics_pictures.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qtaml_onnx.physics import device_names, load_device, parse_duration
from qtaml_onnx.physics.current import simmons_current, tunnel_current
from qtaml_onnx.physics.plots import device_figure, save_figure
from qtaml_onnx.physics.stack import Layer, Stack

PICTURES = Path(__file__).parent / "pictures"
BLUE, ORANGE, GREEN, GREY, PURPLE = "#0072b2", "#d55e00", "#009e73", "0.5", "#cc79a7"


def barriers() -> Figure:
    """The barrier as an electron meets it: under a voltage, with image force, in a stack."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True)
    oxide = Stack((Layer(2.0, 3.1, 0.4),))
    for volts, colour, name in (
        (0.0, GREY, "0 V: rectangle"),
        (1.5, BLUE, "1.5 V: trapezoid"),
        (5.0, ORANGE, "5 V: triangle"),
    ):
        x = np.linspace(0, 2, 300)
        left.plot(x, [oxide.potential_ev(float(v), volts) for v in x], color=colour, label=name)
    left.set_title("2 nm of SiO2")
    image = Stack((Layer(2.0, 3.1, 0.4),), image_permittivity=2.13)
    x = np.linspace(0.02, 1.98, 400)
    middle.plot(x, [oxide.potential_ev(float(v), 0.7) for v in x], color=GREY, label="without image force")
    middle.plot(x, [image.potential_ev(float(v), 0.7) for v in x], color=BLUE, label="with image force")
    middle.set_title("image force, 0.7 V")
    stack = load_device("scaled-node").cell().stack()
    x = np.linspace(0, 2.7, 541)
    for volts, colour, name in ((0.0, GREY, "0 V"), (0.7, GREEN, "0.7 V")):
        right.plot(x, [stack.potential_ev(float(v), volts) for v in x], color=colour, label=name)
    right.set_title("2 nm HfO2 on 0.7 nm SiO2")
    for axes in (left, middle, right):
        axes.set_ylim(-0.5, 4.4)
        axes.axhline(0, color="0.8", linewidth=0.8)
        axes.set_xlabel("depth (nm)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper right", fontsize=9)
    left.set_ylabel("energy of the barrier (eV)")
    return figure


def leakage() -> Figure:
    """Current density against thickness: the slope that every published leakage curve of SiO2 shows."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    thickness = np.linspace(0.8, 3.0, 45)
    for volts, colour in ((0.5, GREEN), (1.0, BLUE), (2.0, ORANGE)):
        exact = [tunnel_current(Stack((Layer(float(d), 3.1, 0.4),)), volts, 300.0) for d in thickness]
        axes.plot(thickness, exact, color=colour, label=f"{volts:g} V, integral")
        axes.plot(thickness, simmons_current(volts, thickness, 3.1, 0.4), "--", color=colour, linewidth=1)
    axes.plot([], [], "--", color=GREY, label="Simmons 1963")
    axes.plot([1.0, 2.0], [1e-1, 1e-6], color="black", linewidth=1, label="one decade each 0.2 nm")
    axes.set_yscale("log")
    axes.set_xlabel("SiO2 thickness (nm)")
    axes.set_ylabel("current density (A/cm²)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def retention() -> Figure:
    """Flip probability against time for every shipped device."""
    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    axes = figure.subplots()
    time = np.geomspace(1e-10, parse_duration("1e11y"), 400)
    names = [name for name in device_names() if name != "mixed-planes"]
    for name, colour in zip(names, (PURPLE, BLUE, ORANGE, GREEN), strict=True):
        p01, p10 = load_device(name).cell_rates(retention_s=time)
        axes.plot(time, p10, "--", color=colour)
        axes.plot(time, p01, "-", color=colour, label=name)
    axes.plot([], [], "-", color=GREY, label="p01: 0 read as 1")
    axes.plot([], [], "--", color=GREY, label="p10: 1 read as 0")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(1e-12, 2)
    axes.set_xlim(time[0], time[-1])
    labels = ["1ns", "1us", "1ms", "1s", "1h", "30d", "10y", "1e4y", "1e7y", "1e10y"]
    axes.set_xticks([parse_duration(label) for label in labels], labels)
    axes.minorticks_off()
    axes.set_xlabel("time between write and read")
    axes.set_ylabel("flip probability")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def main() -> None:
    """Writes all pictures beside this script, in pictures/."""
    PICTURES.mkdir(exist_ok=True)
    save_figure(barriers(), PICTURES / "physics_barriers.svg")
    save_figure(leakage(), PICTURES / "physics_leakage.svg")
    save_figure(retention(), PICTURES / "physics_retention.svg")
    save_figure(device_figure(load_device("gain-cell")), PICTURES / "physics_gain_cell.svg")


if __name__ == "__main__":
    main()
