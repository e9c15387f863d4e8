"""The physics: from a tunnelling barrier to the flip rates of a stored bit, and back."""

from __future__ import annotations

from qtaml_onnx.physics.device import Device, DeviceFlipRates, device_names, inline_device, load_device
from qtaml_onnx.physics.inverse import Solution, solve
from qtaml_onnx.physics.units import format_duration, parse_duration

__all__ = [
    "Device",
    "DeviceFlipRates",
    "Solution",
    "device_names",
    "format_duration",
    "inline_device",
    "load_device",
    "parse_duration",
    "solve",
]
