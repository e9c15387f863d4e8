"""A user's own device as a TOML file."""

from __future__ import annotations

__all__ = ["threshold_device"]


def threshold_device(name: str, retention: str, barrier: str = "3.1", more: str = "") -> str:
    """One cell of 100 aF behind 3 nm of oxide; a stored 1 leaks.

    Args:
        name: Of the device.
        retention: As TOML has it after `retention =`, without quotes.
        barrier: The barrier's height, a number or a table.
        more: Lines after those of the stored 1, tables too.
    """
    return f"""
name = "{name}"
supply_v = 0.9
temperature_k = 300
retention = "{retention}"
[planes]
default = "a"
[cells.a]
model = "threshold"
attempt_hz = 1e13
capacitance_af = 100
sense_v = 0.4
[[cells.a.layers]]
material = "SiO2"
thickness_nm = 3.0
barrier_ev = {barrier}
mass = 0.4
permittivity = 3.9
[cells.a.one]
supply_fraction = 1.0
{more}"""
