"""Metrics that a user wrote: how they are found, called and checked."""

from __future__ import annotations

import math
import pickle
import sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from qtaml_onnx.campaign.metrics import Metric
from qtaml_onnx.campaign.user_metrics import load_function
from qtaml_onnx.errors import InputError

LOGITS = np.array([[1, 5, 2], [7, 1, 0], [0, 2, 3], [4, 4, 1]], dtype=np.float32)
LABELS = np.array([1, 0, 0, 0])

SOURCE = '''
import numpy as np

def worst(outputs, clean, labels):
    """Largest error."""
    return np.abs(outputs - clean).max()
worst.higher_is_better = False
worst.bounds = (0, float("inf"))

def hits(outputs, clean, labels):
    return outputs.argmax(-1) == labels
hits.bounds = [0, 1]

half_hits = lambda outputs, clean, labels: 0.5 * hits(outputs, clean, labels).mean()

class Group:
    @staticmethod
    def labelled(outputs, clean, labels):
        return -1 if labels is None else 1

def spoil(outputs, clean, labels):
    outputs[0] = 0
    return 0.0

def raises(outputs, clean, labels):
    raise ZeroDivisionError("nothing\\nto divide")

def nothing(outputs, clean, labels): pass
def word(outputs, clean, labels): return "good"
def shape(outputs, clean, labels): return np.zeros((2, 2))
def ragged(outputs, clean, labels): return [[1], [1, 2]]
def imaginary(outputs, clean, labels): return 1j
def nan(outputs, clean, labels): return [0.0, float("nan"), 0.0, 0.0]
def both(outputs, clean, labels): return np.array([np.inf, -np.inf, 0, 0])
def outside(outputs, clean, labels): return 1.5
outside.bounds = (0, 1)
def turned(outputs, clean, labels): return 0.0
turned.bounds = (1, 0)
def unsure(outputs, clean, labels): return 0.0
unsure.higher_is_better = "yes"
constant = 3
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, which is not on the path."""
    name = f"metrics_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_a_number_for_the_trial(module: str) -> None:
    metric = Metric.against(LABELS, LOGITS, f"{module}:worst")
    assert metric.value(LOGITS + np.array([[0, -2.5, 1]], dtype=np.float32)) == 2.5
    assert (metric.name, metric.bounds, metric.higher_is_better) == (f"{module}:worst", (0.0, math.inf), False)


def test_a_number_a_sample_is_averaged(module: str) -> None:
    metric = Metric.against(LABELS, LOGITS, f"{module}:hits")
    assert metric.value(LOGITS) == Metric.against(LABELS, LOGITS).value(LOGITS) == 0.75
    assert (metric.bounds, metric.higher_is_better) == ((0.0, 1.0), True)


def test_defaults_and_nested_names(module: str) -> None:
    metric = Metric.against(None, LOGITS, f"{module}:Group.labelled")
    assert metric.value(LOGITS) == -1
    assert Metric.against(LABELS, LOGITS, f"{module}:Group.labelled").value(LOGITS) == 1
    assert (metric.bounds, metric.higher_is_better) == ((-math.inf, math.inf), True)


def test_arrays_are_read_only(module: str) -> None:
    output = LOGITS.copy()
    with pytest.raises(InputError, match=r"spoil raised ValueError: assignment destination is read-only"):
        Metric.against(LABELS, LOGITS, f"{module}:spoil").value(output)
    np.testing.assert_array_equal(output, LOGITS)
    assert output.flags.writeable


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("raises", r"raised ZeroDivisionError: nothing; mend the function$"),
        ("nothing", r"returned None; return a number, or an array of 4 numbers"),
        ("word", r"returned a str"),
        ("shape", r"returned an array of float64 with shape \[2, 2\]"),
        ("ragged", r"returned a list"),
        ("imaginary", r"returned a complex"),
        ("nan", r"returned NaN"),
        ("both", r"returned inf and -inf"),
        ("outside", r"returned 1\.5, outside its bounds 0 to 1"),
    ],
)
def test_what_functions_may_not_do(module: str, name: str, refused: str) -> None:
    with pytest.raises(InputError, match=refused) as caught:
        Metric.against(LABELS, LOGITS, f"{module}:{name}").value(LOGITS)
    assert "\n" not in str(caught.value)


def test_names_that_lead_nowhere(module: str, tmp_path: Path) -> None:
    (tmp_path / "breaks_on_import_.py").write_text("import no_such_library_\n")
    (tmp_path / "leaves_on_import_.py").write_text("raise SystemExit('bye')\n")
    for name, refused in (
        (":f", "not of the form module:function"),
        ("m:", "not of the form module:function"),
        ("a/b.py:f", "not of the form module:function"),
        ("a:b:c", "not of the form module:function"),
        ("no_such_module_:f", "module no_such_module_ does not import .ModuleNotFoundError"),
        ("breaks_on_import_:f", "ModuleNotFoundError: No module named 'no_such_library_'"),
        ("leaves_on_import_:f", "SystemExit: bye"),
        (f"{module}:no_such", "has no no_such"),
        (f"{module}:constant", "constant is a int, not a function"),
        (f"{module}:turned", r"its bounds are \(1, 0\)"),
        (f"{module}:unsure", "its higher_is_better is 'yes'"),
    ):
        with pytest.raises(InputError, match=refused) as caught:
            Metric.against(LABELS, LOGITS, name)
        assert "\n" not in str(caught.value)


def test_it_travels_to_workers_by_name(module: str) -> None:
    """A lambda, which cannot be pickled, in a process of its own."""
    metric = Metric.against(LABELS, LOGITS, f"{module}:half_hits")
    assert pickle.loads(pickle.dumps(metric)).value(LOGITS) == 0.375  # noqa: S301
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(metric.value, (LOGITS,)) == 0.375


def test_a_file_here_hides_no_library(module: str, tmp_path: Path) -> None:
    (tmp_path / "statistics.py").write_text("def mean(outputs, clean, labels): return 0.0\n")
    before = list(sys.path)
    assert load_function("statistics:median").function.__module__ == "statistics"
    assert sys.path[: len(before)] == before
