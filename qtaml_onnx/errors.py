"""The one root error of the package."""

from __future__ import annotations

__all__ = ["GateError", "InputError", "Interrupted", "QtamlError"]


class QtamlError(Exception):
    """Anything that qtaml-onnx refuses or fails to do, in one line that names the thing and the mend."""


class InputError(QtamlError):
    """The caller's input is at fault: a file, an option, a model or an array. The command line exits with 2."""


class GateError(QtamlError):
    """A gate was not met: the run is sound, the model is not good enough. The command line exits with 1."""


class Interrupted(QtamlError):
    """The user stopped a campaign whose trials are stored; it says how to go on. The command line exits with 130."""
