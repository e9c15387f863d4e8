"""Pictures of a device: transmission, and flip rates against time, temperature and thickness variation."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.physics.cell import state_cases
from qtaml_onnx.physics.device import Device
from qtaml_onnx.physics.units import format_duration, parse_duration

__all__ = ["PANELS", "device_figure", "figure_bytes", "picture_kind", "save_figure"]

Floats = NDArray[np.float64]

_POINTS = 200
_COLOURS = {"01": "#0072b2", "10": "#d55e00"}  # told apart by readers with any colour vision
_LABELS = {"01": "p01: 0 read as 1", "10": "p10: 1 read as 0"}
_TICKS = [f"{number}{unit}" for unit in ("ns", "us", "ms") for number in (1, 10, 100)]
_TICKS += ["1s", "10s", "1min", "10min", "1h", "10h", "3d", "30d", "1y", "10y", "100y", "10000y"]


def _pair(axes: Axes, x: Floats, rates: tuple[Floats, Floats], own: tuple[Floats, Floats]) -> None:
    for key, values, style in zip(("01", "10"), rates, ("-", "--"), strict=True):
        axes.plot(x, values, style, color=_COLOURS[key], label=_LABELS[key])
    axes.set_yscale("log")
    top = float(max(np.max(rates[0]), np.max(rates[1]), 1e-300))
    lowest = float(min(np.min(rates[0]), np.min(rates[1])))
    deepest = min(top * 1e-13, max(float(min(own)), 1e-300) / 10)  # the device's own rates stay in sight
    axes.set_ylim(max(deepest, lowest / 2), min(1.5, top * 3))
    axes.set_ylabel("flip probability")
    axes.legend(frameon=False)


def _transmission(axes: Axes, device: Device, cell: str | None) -> None:
    spec = device.cell(cell)
    thickness = np.linspace(0.3, 1.7, _POINTS) * spec.thickness_nm
    for key, case in zip(("01", "10"), state_cases(spec, device.supply_v.value), strict=True):
        scale = thickness / spec.thickness_nm
        exponent = case.stack.exponent(np.zeros((_POINTS, 1)), scale, case.drop_v)[:, 0]
        style = "-" if key == "01" else "--"
        label = f"stored {key[0]}: {float(case.drop_v):.2g} V across"
        axes.plot(thickness, np.exp(-exponent), style, color=_COLOURS[key], label=label)
    axes.axvline(spec.thickness_nm, color="0.6", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlabel("thickness (nm)")
    axes.set_ylabel("transmission of one attempt")
    axes.legend(frameon=False)


def _retention(axes: Axes, device: Device, cell: str | None) -> None:
    time = device.retention.value * np.geomspace(1e-4, 1e4, _POINTS)
    _pair(axes, time, device.cell_rates(cell, retention_s=time), device.cell_rates(cell))
    axes.set_xscale("log")
    ticks = [parse_duration(text) for text in _TICKS]
    shown = [(tick, text) for tick, text in zip(ticks, _TICKS, strict=True) if time[0] <= tick <= time[-1]]
    axes.set_xticks([tick for tick, _ in shown], [text for _, text in shown])
    axes.minorticks_off()
    axes.axvline(device.retention.value, color="0.6", linewidth=0.8)
    axes.set_xlabel("time between write and read")


def _temperature(axes: Axes, device: Device, cell: str | None) -> None:
    temperature = np.linspace(200.0, 500.0, _POINTS)
    _pair(axes, temperature, device.cell_rates(cell, temperature_k=temperature), device.cell_rates(cell))
    if device.temperature_k:
        axes.axvline(device.temperature_k.value, color="0.6", linewidth=0.8)
    axes.set_xlabel("temperature (K)")


def _variation(axes: Axes, device: Device, cell: str | None) -> None:
    spec = device.cell(cell)
    sigma = np.linspace(0.0, 0.08, _POINTS) * spec.thickness_nm
    _pair(axes, sigma, device.cell_rates(cell, sigma_thickness_nm=sigma), device.cell_rates(cell))
    axes.axvline(spec.sigma_thickness_nm.value, color="0.6", linewidth=0.8)
    axes.set_xlabel("standard deviation of the thickness (nm)")


PANELS: dict[str, Callable[[Axes, Device, str | None], None]] = {
    "transmission": _transmission,
    "retention": _retention,
    "temperature": _temperature,
    "variation": _variation,
}


def device_figure(device: Device, panel: str = "all", cell: str | None = None) -> Figure:
    """One panel of `PANELS`, or all four; a grey line marks the device's own value.

    Raises:
        InputError: no such panel or cell.
    """
    if panel != "all" and panel not in PANELS:
        raise InputError(f"no plot {panel!r}: give one of {', '.join(PANELS)}, all")
    names = list(PANELS) if panel == "all" else [panel]
    figure = Figure(figsize=(10, 7.2) if panel == "all" else (5.6, 4.0), layout="constrained")
    grid = figure.subplots(2, 2) if panel == "all" else figure.subplots(1, 1, squeeze=False)
    for name, axes in zip(names, grid.flat, strict=True):
        PANELS[name](axes, device, cell)
        axes.spines[["top", "right"]].set_visible(False)
    held = format_duration(device.retention.value)
    warmth = f", {device.temperature_k.value:g} K" if device.temperature_k else ""
    chosen = f", cell {cell}" if cell else ""
    figure.suptitle(f"{device.name}{chosen}: {device.supply_v.value:g} V, {held}{warmth}", fontsize=11)
    return figure


def picture_kind(path: Path) -> str:
    """`png` or `svg`, by the name of a picture's file.

    Raises:
        InputError: another file name extension.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise InputError(f"cannot draw {path}: the name must end in .png or .svg")
    return kind


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """A figure as `png` or `svg`; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "qtaml-onnx"}):
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG or SVG, whole or not at all; the same figure gives the same file.

    Raises:
        InputError: another file name extension, or a place that cannot be written.
    """
    target = Path(path)
    picture = figure_bytes(figure, picture_kind(target))
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(picture)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise InputError(f"cannot write {target}: {error.strerror}") from error
