"""qtaml-onnx: make ONNX models survive bit flips in leaky memory.

The public names are loaded when they are first used, so that `import qtaml_onnx` is quick.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from qtaml_onnx.errors import GateError, InputError, QtamlError

if TYPE_CHECKING:
    from qtaml_onnx.api import evaluate, inject, inspect, verify
    from qtaml_onnx.channel import FlipRates
    from qtaml_onnx.firmware.dump import ImportedImage, import_image
    from qtaml_onnx.firmware.export import export_image
    from qtaml_onnx.hardening import HardenResult, harden
    from qtaml_onnx.options import HardenOptions
    from qtaml_onnx.plan import FaultModel, StoragePlan

__version__ = version("qtaml-onnx")

__all__ = [
    "FaultModel",
    "FlipRates",
    "GateError",
    "HardenOptions",
    "HardenResult",
    "ImportedImage",
    "InputError",
    "QtamlError",
    "StoragePlan",
    "__version__",
    "evaluate",
    "export_image",
    "harden",
    "import_image",
    "inject",
    "inspect",
    "verify",
]

_HOMES = {
    "FaultModel": "plan",
    "FlipRates": "channel",
    "HardenOptions": "options",
    "HardenResult": "hardening",
    "ImportedImage": "firmware.dump",
    "StoragePlan": "plan",
    "evaluate": "api",
    "export_image": "firmware.export",
    "harden": "hardening",
    "import_image": "firmware.dump",
    "inject": "api",
    "inspect": "api",
    "verify": "api",
}


def __getattr__(name: str) -> object:
    """Loads a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qtaml_onnx' has no attribute '{name}'")
    return getattr(import_module(f"qtaml_onnx.{_HOMES[name]}"), name)
