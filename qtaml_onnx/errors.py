"""The one root error of the package."""

from __future__ import annotations

__all__ = ["InputError", "QtamlError"]


class QtamlError(Exception):
    """Anything that qtaml-onnx refuses or fails to do, in one line that names the thing and the mend."""


class InputError(QtamlError):
    """The caller's input is at fault: a file, an option, a model or an array. The command line exits with 2."""
