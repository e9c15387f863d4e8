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
        name: `top-1` against labels, `agreement` of the chosen class with the clean model, or `agreement-5-percent` of
            a real-valued output with the clean one within 5 % of its rms.
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
        """The share that is right of each sample, float64 [samples]. Where faults made a NaN, nothing is right.

        Raises:
            InputError: if the output has another shape than the clean model's.
        """
        if self.name == "agreement-5-percent":
            clean = self.reference.astype(np.float64).reshape(len(self.reference), -1)
            values = output.astype(np.float64).reshape(len(output), -1)
            _check_shape(values, clean)
            with np.errstate(invalid="ignore"):
                error = np.abs(values - clean)
            rms = float(np.sqrt(np.mean(clean**2)))
            good = error <= _TOLERANCE * max(rms, float(np.finfo(np.float32).tiny))
        else:
            chosen = decisions(output)
            _check_shape(chosen, self.reference)
            good = (chosen == self.reference) & ~_undecided(output, chosen)
        return np.asarray(good.reshape(len(good), -1).mean(axis=1), dtype=np.float64)


def _check_shape(output: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
    if output.shape != reference.shape:
        raise InputError(
            f"the first output has shape {list(output.shape)}, that of the clean model {list(reference.shape)}; "
            "outputs whose size depends on the weights cannot be compared"
        )


def _is_choice(output: NDArray[np.generic]) -> bool:
    output = _without_trailing_ones(output)
    return not np.issubdtype(output.dtype, np.floating) or (output.ndim >= 2 and output.shape[-1] > 1)


def _without_trailing_ones(output: NDArray[np.generic]) -> NDArray[np.generic]:
    while output.ndim > 2 and output.shape[-1] == 1:
        output = output[..., 0]
    return output


def _undecided(output: NDArray[np.generic], chosen: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Where a choice rests on a NaN, which `argmax` takes for the largest number."""
    output = _without_trailing_ones(output)
    if not np.issubdtype(output.dtype, np.floating):
        return np.zeros(chosen.shape, dtype=np.bool_)
    lost = np.isnan(output)
    return np.asarray(lost.any(axis=-1) if lost.ndim > chosen.ndim else lost)


def decisions(output: NDArray[np.generic]) -> NDArray[np.generic]:
    """The chosen class along the last axis of real-valued outputs; integer outputs are decisions already.

    Trailing axes of one element (the 1×1 picture that some classifiers put out) are dropped, and then the class axis is
    the last one left.
    """
    output = _without_trailing_ones(output)
    if np.issubdtype(output.dtype, np.floating) and output.ndim >= 2:
        return np.asarray(output.argmax(axis=-1))
    return output
