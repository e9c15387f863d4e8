"""What a trial is worth: accuracies, errors of the outputs, or a function of the user's."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.campaign.statistics import SHARE, Bounds, Interval, t_interval, wilson_interval
from qtaml_onnx.campaign.user_metrics import UserFunction, load_function
from qtaml_onnx.errors import InputError

__all__ = ["SNR_LIMIT_DB", "Metric", "decisions"]

_TOLERANCE = 0.05
"""An output that is not a choice between classes agrees if its error is under this share of the clean output's rms."""

SNR_LIMIT_DB = 150.0
"""Signal-to-noise ratios are cut here, and at its negative: above what the 24 bits of float32 resolve, 144.5 dB."""

_TOP = re.compile(r"top-([1-9]\d*)")
_NAMES = "top-1, top-5 (or another number), agreement, agreement-5-percent, mse, snr, or module:function"


@dataclass(frozen=True)
class Metric:
    """What is measured on the first output of a model, and against what.

    | name | value of a trial | better | bounds | an output that is NaN | infinite |
    |---|---|---|---|---|---|
    | `top-1` | share of samples whose chosen class is the label | higher | 0, 1 | wrong | a number like others |
    | `top-5`, `top-K` | label among K highest scores | higher | 0, 1 | wrong | a number like others |
    | `agreement` | share whose chosen class is the clean model's | higher | 0, 1 | wrong | a number like others |
    | `agreement-5-percent` | share of numbers within 5 % of the clean outputs' rms | higher | 0, 1 | wrong | wrong |
    | `mse` | mean square error against the clean outputs | lower | 0, none | infinite | infinite |
    | `snr` | clean energy over the error's, all samples, dB | higher | ±150 dB | −150 dB | −150 dB |
    | `module:function` | as in `user_metrics` | its say | its say | its say | its say |

    Equal scores are ranked in the order of the classes, the first highest.

    Attributes:
        name: As above.
        reference: Labels or what the clean model gave, one entry a sample (and position).
        labels: For a user's function: the labels, if there are any.
        function: A user's function.
    """

    name: str
    reference: NDArray[np.generic]
    labels: NDArray[np.generic] | None = None
    function: UserFunction | None = None

    @classmethod
    def against(cls, labels: NDArray[np.integer] | None, clean: NDArray[np.generic], name: str | None = None) -> Metric:
        """The metric for a model whose clean first output is `clean` [samples, …].

        Without a name it is `top-1` if there are labels, and else `agreement`, or `agreement-5-percent` of outputs that
        are no choice between classes.

        Raises:
            InputError: if there is no such metric, or it does not fit the labels or the output.
        """
        if name is None:
            name = "top-1" if labels is not None else "agreement" if _is_choice(clean) else "agreement-5-percent"
        if ":" in name:
            return cls(name, clean, labels, load_function(name))
        if top := _TOP.fullmatch(name):
            return cls(name, _fitting_labels(name, int(top[1]), labels, clean))
        if name == "agreement":
            if not _is_choice(clean):
                raise InputError("the model's outputs are no choice between classes; use --metric agreement-5-percent")
            return cls(name, decisions(clean))
        if name not in ("agreement-5-percent", "mse", "snr"):
            raise InputError(f"--metric {name} is unknown; give one of {_NAMES}")
        if name != "agreement-5-percent":
            _check_energy(name, clean)
        return cls(name, clean)

    @property
    def bounds(self) -> Bounds:
        """What the values of trials never leave; ±inf where there is no such bound."""
        if self.function is not None:
            return self.function.bounds
        return {"mse": (0.0, math.inf), "snr": (-SNR_LIMIT_DB, SNR_LIMIT_DB)}.get(self.name, SHARE)

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is a better model."""
        return self.name != "mse" if self.function is None else self.function.higher_is_better

    @property
    def has_shares(self) -> bool:
        """Whether a share of the clean value means something: more is better, and the clean value is no limit."""
        return self.higher_is_better and self.name != "snr"

    @property
    def is_share(self) -> bool:
        """Whether a trial's value is a share of right samples, as told by `right`."""
        return self.function is None and self.name not in ("mse", "snr")

    def value(self, output: NDArray[np.generic]) -> float:
        """The value of a trial by the first output for all samples, [samples, …]. Never NaN.

        Raises:
            InputError: if the output has another shape than the clean model's, or a user's function fails.
        """
        if self.is_share:
            return float(self.right(output).mean())
        _check_shape(output, self.reference)
        if self.function is not None:
            return self.function(output, self.reference, self.labels)
        clean = self.reference.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            noise = float(np.square(output.astype(np.float64) - clean).sum())
        if self.name == "mse":
            return noise / clean.size if math.isfinite(noise) else math.inf
        if not math.isfinite(noise):
            return -SNR_LIMIT_DB
        signal = float(np.square(clean).sum())
        ratio = 10 * (math.log10(signal) - math.log10(noise)) if noise else math.inf
        return min(SNR_LIMIT_DB, max(-SNR_LIMIT_DB, ratio))

    def right(self, output: NDArray[np.generic]) -> NDArray[np.float64]:
        """The share that is right of each sample, float64 [samples]. Where faults made a NaN, nothing is right.

        Raises:
            InputError: if the output has another shape than the clean model's, or the metric is no share.
        """
        if not self.is_share:
            raise InputError(f"{self.name} counts no right samples; ask for its value")
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
            top = _TOP.fullmatch(self.name)
            if top is not None and top[1] != "1":
                good = _rank(_without_trailing_ones(output), self.reference) < int(top[1])
            else:
                good = chosen == self.reference
            good &= ~_undecided(output, chosen)
        return np.asarray(good.reshape(len(good), -1).mean(axis=1), dtype=np.float64)

    def interval_of_one(self, output: NDArray[np.generic], confidence: float) -> Interval:
        """The value of a model without faults; Wilson's interval over samples where the metric is a share.

        Other metrics have no interval there: its ends are the bounds, as for a single trial.

        Raises:
            InputError: if the output does not fit, or the confidence is not in (0, 1).
        """
        if not self.is_share:
            return t_interval([self.value(output)], confidence, bounds=self.bounds)
        right = self.right(output)
        wilson = wilson_interval(round(float(right.sum())), len(right), confidence)
        return Interval(float(right.mean()), wilson.low, wilson.high, "wilson")


def _fitting_labels(
    name: str, k: int, labels: NDArray[np.integer] | None, clean: NDArray[np.generic]
) -> NDArray[np.integer]:
    if labels is None:
        raise InputError(f"--metric {name} needs labels; add an array 'labels' to the data, or use agreement")
    chosen = decisions(clean)
    if labels.shape != chosen.shape:
        raise InputError(
            f"labels have shape {list(labels.shape)}, the model's decisions {list(chosen.shape)}; "
            "give one label a decision, or none"
        )
    scores = _without_trailing_ones(clean)
    if scores.ndim == chosen.ndim:
        if k > 1:
            raise InputError(f"--metric {name} needs scores of classes, the model puts out decisions; use top-1")
        return labels
    classes = scores.shape[-1]
    if k >= max(classes, 2):
        raise InputError(f"--metric {name} is always 1 for {classes} classes; ask for fewer, such as top-1")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise InputError(f"label {wrong} is none of the {classes} classes 0 to {classes - 1}; mend the labels")
    return labels


def _rank(scores: NDArray[np.generic], labels: NDArray[np.generic]) -> NDArray[np.integer]:
    """How many classes come before the label: those with a higher score, or the same and a lower number."""
    places = labels.astype(np.int64)[..., None]
    own = np.take_along_axis(scores, places, axis=-1)
    before = np.greater(scores, own) | ((scores == own) & (np.arange(scores.shape[-1]) < places))
    return np.asarray(before.sum(axis=-1))


def _check_energy(name: str, clean: NDArray[np.generic]) -> None:
    if not np.issubdtype(clean.dtype, np.floating):
        raise InputError(f"--metric {name} needs real-valued outputs, the model's are {clean.dtype}; use agreement")
    if not np.isfinite(clean).all():
        raise InputError("the clean model's outputs are not finite; give other data")
    if name == "snr" and not clean.any():
        raise InputError("the clean model's outputs are all 0, they carry no signal; use --metric mse")


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
