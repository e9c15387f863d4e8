"""The bundled example as tests use it: where its files are, and the first samples of its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"
MODEL, EVAL, CALIBRATION = DIGITS / "digits_cnn.onnx", DIGITS / "digits_eval.npz", DIGITS / "digits_calibration.npz"


def first_samples(path: Path, count: int, source: Path = EVAL) -> Path:
    """Writes the first samples of a data set, labels included, to `path`; gives `path`."""
    with np.load(source) as data:
        np.savez(path, **{name: data[name][:count] for name in data.files})
    return path
