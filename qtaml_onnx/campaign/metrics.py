"""What is counted as right: top-1 against labels, or agreement with the clean model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError

__all__ = ["Metric", "decisions"]

_TOLERANCE = 0.05
"""An output that is not a choice between classes agrees if its error is under this share of the clean output's rms."""


@dataclass(frozen=True)
class Metric:
    """Share of samples that are right.

    Attributes:
        name: `top-1` against labels, `agreement` of the chosen class with the clean model, or `agreement-5-percent` of a
            real-valued output with the clean one within 5 % of its rms.
        reference: One entry a sample (and position): labels, or what the clean model gave.
    """

    name: Literal["top-1", "agreement", "agreement-5-percent"]
    reference: NDArray[np.generic]

    @classmethod
    def against(cls, labels: NDArray[np.integer] | None, clean: NDArray[np.generic]) -> Metric:
        """The metric for a model whose clean first output is `clean` [samples, …]; labels win if there are any.

        Raises:
            InputError: if the labels do not fit the output.
        """
        if labels is None:
            kind: Literal["agreement", "agreement-5-percent"] = (
                "agreement" if _is_choice(clean) else "agreement-5-percent"
            )
            return cls(kind, decisions(clean) if kind == "agreement" else clean)
        chosen = decisions(clean)
        if labels.shape != chosen.shape:
            raise InputError(
                f"labels have shape {list(labels.shape)}, the model's decisions {list(chosen.shape)}; "
                "give one label a decision, or none"
            )
        return cls("top-1", labels)

    def right(self, output: NDArray[np.generic]) -> NDArray[np.float64]:
        """The share that is right of each sample, float64 [samples]."""
        if self.name == "agreement-5-percent":
            clean = self.reference.astype(np.float64).reshape(len(self.reference), -1)
            error = np.abs(output.astype(np.float64).reshape(clean.shape) - clean)
            good = error <= _TOLERANCE * max(float(np.sqrt(np.mean(clean**2))), np.finfo(np.float32).tiny)
        else:
            good = decisions(output) == self.reference
        return np.asarray(good.reshape(len(good), -1).mean(axis=1), dtype=np.float64)


def _is_choice(output: NDArray[np.generic]) -> bool:
    return not np.issubdtype(output.dtype, np.floating) or (output.ndim >= 2 and output.shape[-1] > 1)


def decisions(output: NDArray[np.generic]) -> NDArray[np.generic]:
    """The chosen class along the last axis of real-valued outputs; integer outputs are decisions already.

    Trailing axes of one element (the 1×1 picture that some classifiers put out) are dropped, and then the class axis is
    the last one left.
    """
    while output.ndim > 2 and output.shape[-1] == 1:
        output = output[..., 0]
    if np.issubdtype(output.dtype, np.floating) and output.ndim >= 2:
        return np.asarray(output.argmax(axis=-1))
    return output
