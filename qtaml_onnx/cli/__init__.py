"""The command line, `qtaml-onnx`: one module a command."""

from __future__ import annotations

from qtaml_onnx.cli.app import app, main

__all__ = ["app", "main"]
