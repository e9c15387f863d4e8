"""`qtaml-onnx device`: the physics of a memory, from a barrier to flip rates and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from qtaml_onnx.cli.groups import with_groups
from qtaml_onnx.errors import InputError
from qtaml_onnx.physics import Device, device_names, format_duration, inline_device, load_device, parse_duration, solve
from qtaml_onnx.physics.inverse import DIRECTIONS, VARIABLES

__all__ = ["device_app"]

device_app = typer.Typer(
    name="device",
    help="The physics: from a tunnelling barrier to flip rates, and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Name = Annotated[str | None, typer.Argument(metavar="NAME|FILE", help="A shipped device, or a TOML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print a machine summary and nothing else.")]
Barrier = Annotated[float | None, typer.Option(help="Without a device: barrier height, eV.")]
Mass = Annotated[float | None, typer.Option(help="Without a device: tunnelling mass, electron masses.")]
Thickness = Annotated[float | None, typer.Option(help="Thickness of the dielectric, nm.")]
Sigma = Annotated[float | None, typer.Option(help="Standard deviation of the thickness from cell to cell, nm.")]
Voltage = Annotated[
    float | None, typer.Option(help="Supply voltage; without a device, the voltage across the dielectric in a 1, V.")
]
Energy = Annotated[float | None, typer.Option(help="Without a device: energy of the electron, eV.")]
Attempts = Annotated[float | None, typer.Option(help="Without a device: attempt frequency, 1/s (default 1e13).")]
Temperature = Annotated[
    float | None, typer.Option(help="Temperature, K; without it and without a device, no thermal average.")
]
Retention = Annotated[str | None, typer.Option(help="Time between write and read, as in 10ms, 30d, 10y.")]
Cell = Annotated[str | None, typer.Option(help="Cell of the device; by default that of the planes with no other.")]


@dataclass(frozen=True)
class DeviceOptions:
    """A device, or one dielectric, and under what conditions: the fields are arguments and options."""

    name: Name = None
    barrier_ev: Barrier = None
    mass: Mass = None
    thickness_nm: Thickness = None
    sigma_nm: Sigma = None
    voltage: Voltage = None
    energy_ev: Energy = None
    attempt_hz: Attempts = None
    temperature_k: Temperature = None
    retention: Retention = None
    cell: Cell = None

    def device(self) -> Device:
        """The device under these conditions.

        Raises:
            InputError: if the options do not go together, or one is out of range.
        """
        seconds = None if self.retention is None else parse_duration(self.retention)
        if self.name is not None:
            own = {"--barrier-ev": self.barrier_ev, "--mass": self.mass}
            own |= {"--energy-ev": self.energy_ev, "--attempt-hz": self.attempt_hz}
            if clash := [option for option, value in own.items() if value is not None]:
                raise InputError(f"{', '.join(clash)} cannot change the device {self.name}: leave out one or the other")
            return load_device(self.name).at(
                retention_s=seconds,
                temperature_k=self.temperature_k,
                supply_v=self.voltage,
                cell=self.cell,
                thickness_nm=self.thickness_nm,
                sigma_thickness_nm=self.sigma_nm,
            )
        if self.barrier_ev is None or self.mass is None or self.thickness_nm is None:
            known = ", ".join(device_names())
            raise InputError(f"give a device ({known}, or a TOML file), or --barrier-ev, --mass and --thickness-nm")
        return inline_device(
            barrier_ev=self.barrier_ev,
            mass=self.mass,
            thickness_nm=self.thickness_nm,
            voltage_v=self.voltage,
            energy_ev=self.energy_ev,
            temperature_k=self.temperature_k,
            retention_s=seconds,
            sigma_thickness_nm=self.sigma_nm,
            attempt_hz=self.attempt_hz,
        )


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _conditions(device: Device) -> str:
    warmth = f"{device.temperature_k.value:g} K" if device.temperature_k else "no thermal average"
    return f"{device.supply_v.value:g} V, {warmth}, {format_duration(device.retention.value)}"


@device_app.command("list")
def list_devices(as_json: Json = False) -> None:
    """List the devices that ship with the package."""
    devices = [load_device(name) for name in device_names()]
    if as_json:
        _print_json([{"name": device.name, "summary": device.summary} for device in devices])
        return
    width = max(len(device.name) for device in devices)
    for device in devices:
        typer.echo(f"{device.name:<{width}}  {device.summary}")


@device_app.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME|FILE")], bits: int = 8, as_json: Json = False) -> None:
    """Show every parameter of a device with its source, and what follows from it."""
    device = load_device(name)
    described = device.describe(bits)
    if as_json:
        _print_json(described)
        return
    typer.echo(f"{device.name}: {device.summary}")
    for key, parameter in described["conditions"].items():
        _show_parameter(key, parameter)
    for label, cell in described["cells"].items():
        planes = [str(plane["plane"]) for plane in described["planes"] if plane["cell"] == label]
        typer.echo(f"\ncell {label} ({cell['parameters']['model']}), planes {', '.join(planes)} of {bits}")
        for key, parameter in cell["parameters"].items():
            _show_parameter(key, parameter)
        for state, numbers in cell["derived"]["states"].items():
            listed = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
            typer.echo(f"  stored {state}: {listed}")
        typer.echo(f"  p01 {cell['derived']['p01']:.4g}, p10 {cell['derived']['p10']:.4g}")


def _show_parameter(key: str, parameter: Any, indent: str = "  ") -> None:
    if isinstance(parameter, dict) and "source" in parameter:
        typer.echo(f"{indent}{key} = {parameter['value']:g}    [{parameter['source']}]")
    elif isinstance(parameter, dict):
        typer.echo(f"{indent}{key}:")
        for inner, value in parameter.items():
            _show_parameter(inner, value, indent + "  ")
    elif isinstance(parameter, list):
        for entry in parameter:
            typer.echo(f"{indent}layer {entry['material']}{' (fixed)' if entry['fixed'] else ''}:")
            for inner in ("thickness_nm", "barrier_ev", "mass", "permittivity"):
                _show_parameter(inner, entry[inner], indent + "  ")


@device_app.command()
@with_groups
def rates(
    chosen: DeviceOptions,
    bits: Annotated[int, typer.Option(help="Bits of a word.")] = 8,
    as_json: Json = False,
) -> None:
    """Flip rates of a device, or of one dielectric given by --barrier-ev, --mass and --thickness-nm.

    The transmission is that of one attempt by an electron at the band edge, out of a stored 1.
    """
    device = chosen.device()
    described = device.describe(bits)
    cell = chosen.cell if chosen.cell in described["cells"] else described["planes"][0]["cell"]
    derived = described["cells"][cell]["derived"]
    if as_json:
        stored_1 = derived["states"]["1"]
        summary = {"name": described["name"], "cell": cell}
        summary |= {key: stored_1[key] for key in ("transmission", "transmission_thermal", "escape_rate_per_s")}
        summary |= {"p01": derived["p01"], "p10": derived["p10"], "bits": bits}
        _print_json(summary | described)
        return
    typer.echo(f"{device.name}: {_conditions(device)}")
    for label, entry in described["cells"].items():
        typer.echo(f"cell {label}, {entry['derived']['thickness_nm']:g} nm")
        for state, numbers in entry["derived"]["states"].items():
            typer.echo(
                f"  stored {state}: {numbers['drop_v']:.3g} V across, transmission {numbers['transmission']:.3g}"
                f" (thermal {numbers['transmission_thermal']:.3g}), escape rate {numbers['escape_rate_per_s']:.3g}/s"
            )
    typer.echo("plane  cell          p01        p10")
    for plane in reversed(described["planes"]):
        typer.echo(f"{plane['plane']:>5}  {plane['cell']:<10}{plane['p01']:>9.3g}  {plane['p10']:>9.3g}")


@device_app.command("solve")
@with_groups
def solve_command(
    variable: Annotated[str, typer.Argument(metavar="VARIABLE", help="thickness, voltage, retention or temperature.")],
    *,
    rate: Annotated[float | None, typer.Option(help="Wanted flip rate.")] = None,
    direction: Annotated[str, typer.Option(help="Which rate: 01, 10, or the worst of both.")] = "worst",
    low: Annotated[str | None, typer.Option(help="Lower end of the range (nm, V, K, or a time).")] = None,
    high: Annotated[str | None, typer.Option(help="Upper end of the range.")] = None,
    chosen: DeviceOptions,
    as_json: Json = False,
) -> None:
    """The thickness, voltage, retention time or temperature at which a cell has a wanted flip rate.

    Where the rate is not monotone over the range, only the branch around the device's own value is searched.
    """
    if variable not in VARIABLES:
        raise InputError(f"cannot solve for {variable!r}: give one of {', '.join(VARIABLES)}")
    if direction not in DIRECTIONS:
        raise InputError(f"no direction {direction!r}: give one of {', '.join(DIRECTIONS)}")
    if rate is None:
        raise InputError("give the wanted flip rate with --rate")
    device = chosen.device()

    found = solve(
        device,
        variable,
        rate,
        cell=chosen.cell,
        direction=direction,
        low=_bound(variable, low),
        high=_bound(variable, high),
    )
    if as_json:
        _print_json(
            {"device": device.name, "cell": chosen.cell or device.planes.default, "direction": direction} | vars(found)
        )
        return
    value = format_duration(found.value) if variable == "retention" else f"{found.value:.6g} {found.unit}"
    trend = "rises" if found.rises else "falls"
    typer.echo(f"{device.name}: {_conditions(device)}")
    typer.echo(f"{variable} {value} gives a flip rate of {found.rate:.6g}; the rate {trend} with the {variable}")
    if not found.whole_range:
        typer.echo(
            f"searched from {found.low:.4g} to {found.high:.4g} {found.unit} only: beyond, the rate turns around"
        )


def _bound(variable: str, text: str | None) -> float | None:
    if text is None:
        return None
    if variable == "retention":
        return parse_duration(text)
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"the end of the range {text!r} is not a number; give --low and --high in nm, V or K"
        ) from None


@device_app.command()
def plot(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped device, or a TOML file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Picture to write, .png or .svg.")],
    panel: Annotated[str, typer.Option(help="transmission, retention, temperature, variation, or all.")] = "all",
    voltage: Voltage = None,
    temperature_k: Temperature = None,
    retention: Retention = None,
    cell: Cell = None,
) -> None:
    """Draw a device: transmission against thickness, flip rates against time, temperature and variation."""
    device = load_device(name).at(
        retention_s=None if retention is None else parse_duration(retention),
        temperature_k=temperature_k,
        supply_v=voltage,
    )
    from qtaml_onnx.physics.plots import device_figure, save_figure  # matplotlib takes a second to load

    save_figure(device_figure(device, panel, cell), output)
    typer.echo(f"wrote {output}")
