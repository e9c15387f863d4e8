"""Metrics that a user wrote: `module:function`, found, called and checked.

The function is called once a trial, and once for each model without faults:

    def function(outputs, clean, labels):
        ...
        return value

    outputs: The first output of the model with faults, [samples, …], in the model's own dtype.
    clean: The same of the clean model, same shape and dtype.
    labels: The labels of the data, [samples, …], or None if there are none.
    value: A number for the trial, or an array of a number a sample, [samples], which is averaged.

The arrays are read-only. What a NaN among the outputs is worth is the function's to say: it must return a number, never
NaN. Two attributes of the function, both optional, say how to read its values: `higher_is_better` (True if not given)
and `bounds`, a pair of numbers that values never leave (none if not given). With bounds, a campaign that stops by
itself needs no assumption on how the values are distributed.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtaml_onnx.campaign.statistics import Bounds
from qtaml_onnx.errors import InputError

__all__ = ["UserFunction", "load_function"]

Array = NDArray[np.generic]


@dataclass(frozen=True)
class UserFunction:
    """A user's function with what it says of itself; call it for the value of a trial.

    Attributes:
        name: `module:function`.
        function: The function.
        higher_is_better: Whether a larger value is a better model.
        bounds: What values never leave.
    """

    name: str
    function: Callable[..., Any]  # Any: what it returns is checked
    higher_is_better: bool
    bounds: Bounds

    def __call__(self, outputs: Array, clean: Array, labels: Array | None) -> float:
        """The value of a trial.

        Raises:
            InputError: if the function raises, or returns something else than a number or one a sample, NaN, or a value
                outside its bounds.
        """
        try:
            value = self.function(
                _read_only(outputs), _read_only(clean), None if labels is None else _read_only(labels)
            )
        except Exception as error:  # whatever the user's code raises
            raise InputError(f"--metric {self.name} raised {_in_words(error)}; mend the function") from error
        try:
            numbers = np.asarray(value)
        except ValueError:  # ragged lists
            numbers = np.asarray(None)
        if numbers.dtype.kind not in "biuf" or numbers.shape not in ((), (len(outputs),)):
            raise InputError(
                f"--metric {self.name} returned {_described(value)}; return a number, or an array of {len(outputs)} "
                "numbers, one a sample"
            )
        numbers = numbers.astype(np.float64)
        if np.isnan(numbers).any():
            raise InputError(f"--metric {self.name} returned NaN; return what an output that is not a number is worth")
        low, high = self.bounds
        if numbers.min() < low or numbers.max() > high:
            worst = numbers.min() if numbers.min() < low else numbers.max()
            raise InputError(f"--metric {self.name} returned {worst:g}, outside its bounds {low:g} to {high:g}")
        with np.errstate(invalid="ignore"):
            mean = float(numbers.mean())
        if math.isnan(mean):
            raise InputError(f"--metric {self.name} returned inf and -inf, which have no mean; return finite numbers")
        return mean

    def __reduce__(self) -> tuple[Callable[[str], UserFunction], tuple[str]]:
        """Travels to workers by name: functions that are wrapped, or lambdas, cannot be pickled."""
        return load_function, (self.name,)


@cache
def load_function(name: str) -> UserFunction:
    """Imports `module:function`; modules are also looked for in the working directory.

    Raises:
        InputError: if the name is not of that form, the module does not import, it has no such function, or what the
            function says of itself makes no sense.
    """
    module_name, _, path = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), *path.split(".")]):
        raise InputError(f"--metric {name} is not of the form module:function, such as my_metrics:iou")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that no file there hides a library
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise InputError(
            f"--metric {name}: module {module_name} does not import ({_in_words(error)}); "
            "run where it lies, or add its folder to PYTHONPATH"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise InputError(f"--metric {name}: module {module_name} has no {path}; check the spelling")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"--metric {name}: {path} is a {type(found).__name__}, not a function")
    higher = getattr(found, "higher_is_better", True)
    if not isinstance(higher, bool):
        raise InputError(f"--metric {name}: its higher_is_better is {higher!r}; give True or False")
    return UserFunction(name, found, higher, _bounds(name, getattr(found, "bounds", (-math.inf, math.inf))))


def _bounds(name: str, given: object) -> Bounds:
    try:
        low, high = (float(end) for end in given)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not low < high:
        raise InputError(f"--metric {name}: its bounds are {given!r}; give a pair of rising numbers, such as (0, 1)")
    return low, high


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} with shape {list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _in_words(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
