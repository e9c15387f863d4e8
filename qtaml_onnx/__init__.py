"""qtaml-onnx: make ONNX models survive bit flips in leaky memory."""

from __future__ import annotations

from importlib.metadata import version

from qtaml_onnx.errors import InputError, QtamlError

__version__ = version("qtaml-onnx")

__all__ = ["InputError", "QtamlError", "__version__"]
