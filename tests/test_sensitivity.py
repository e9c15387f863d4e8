"""Sensitivity by probes against the exact Jacobian, and models that cannot be probed."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from small_models import CASES, OUT, X, info, matmul, model, normal
from stored_models import source_model

from qtaml_onnx.data import Dataset, input_specs, synthetic_dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.sensitivity import Sensitivity, measure_sensitivity
from qtaml_onnx.storage.tensor import along_channels, channel_scales
from qtaml_onnx.weights import find_weights, float_weights


def probe(proto: object, data: Dataset, probes: int = 3, seed: int = 0) -> Sensitivity:
    loaded = source_model(proto).model  # type: ignore[arg-type]
    weights = {}
    for weight in find_weights(loaded).weights:
        values = float_weights(weight)
        scales = channel_scales(values.astype(np.float32), weight.channel_axis)
        weights[weight.name] = (values, along_channels(scales, values.ndim, weight.channel_axis))
    return measure_sensitivity(loaded, weights, data, probes=probes, seed=seed)


def dataset(x: np.ndarray, **more: object) -> Dataset:
    return Dataset(
        **({"arrays": {"x": x}, "labels": None, "one_by_one": False, "batch": None, "source": "test"} | more)
    )  # type: ignore[arg-type]


def test_linear_model_against_the_exact_jacobian() -> None:
    """y = xW: Σ over weights of (scale · dy/dw)², averaged over samples, is Σ_i mean(x_i²) · Σ_j s_j².

    The probe is an average of 400 quadratic forms in standard normals; its relative standard deviation is below
    sqrt(2/(400·4)) for four independent columns, so that 4 of them are 15 %.
    """
    w, x = normal(6, 4, seed=1), normal(50, 6, seed=2)
    found = probe(model([matmul()], [X], [OUT], {"W": w}), dataset(x), probes=400)
    exact = float(
        (x.astype(np.float64) ** 2).mean(axis=0).sum() * (np.abs(w).max(axis=0).astype(np.float64) ** 2).sum()
    )
    assert found.energy["W"] == pytest.approx(exact, rel=0.15)
    y = x.astype(np.float64) @ w
    assert found.output_energy == pytest.approx(float(((y - y.mean(axis=0)) ** 2).sum(axis=1).mean()), rel=1e-4)
    assert (found.samples, found.probes) == (50, 400)


def test_mlp_against_the_exact_jacobian() -> None:
    """y = tanh(xA)B: the Jacobian of each layer by the chain rule."""
    a, b, x = normal(6, 8, seed=1), normal(8, 3, seed=2), normal(40, 6, seed=3)
    nodes = [matmul("A", result="h"), helper.make_node("Tanh", ["h"], ["t"]), matmul("B", "t")]
    found = probe(model(nodes, [X], [OUT], {"A": a, "B": b}), dataset(x), probes=400)
    hidden = np.tanh(x.astype(np.float64) @ a)
    slope = 1 - hidden**2
    # dy_k/dA_ij = x_i · slope_j · B_jk, in units of A's column scales; dy_k/dB_jk = hidden_j
    scale_a, scale_b = np.abs(a).max(axis=0).astype(np.float64), np.abs(b).max(axis=0).astype(np.float64)
    by_a = (
        (x.astype(np.float64) ** 2).sum(axis=1)[:, None]
        * slope**2
        * (b.astype(np.float64) ** 2).sum(axis=1)
        * scale_a**2
    )
    by_b = (hidden**2).sum(axis=1).mean() * (scale_b**2).sum()
    assert found.energy["A"] == pytest.approx(float(by_a.sum(axis=1).mean()), rel=0.15)
    assert found.energy["B"] == pytest.approx(float(by_b), rel=0.15)


def test_fixed_and_free_batches_agree() -> None:
    """The last batch of a fixed size is filled up; what fills it does not count. Here each probe sees every run."""
    w, x = normal(6, 4, seed=1), normal(7, 6, seed=2)
    free = probe(model([matmul()], [X], [OUT], {"W": w}), dataset(x), probes=4)
    fixed_model = model([matmul()], [info("x", 1, 3, 6)], [info("y", 1, 3, 4)], {"W": w})
    fixed = probe(fixed_model, dataset(x, batch=3), probes=4)
    assert fixed.energy["W"] == pytest.approx(free.energy["W"], rel=1e-4)
    assert fixed.output_energy == pytest.approx(free.output_energy, rel=1e-5)


def test_many_runs_are_shared_out_over_the_probes() -> None:
    """Each sample is run once a tensor, and the mean is still that of the exact Jacobian (four deviations: 20 %)."""
    w, x = normal(6, 4, seed=1), normal(600, 6, seed=2)
    fixed_model = model([matmul()], [info("x", 1, 1, 6)], [info("y", 1, 1, 4)], {"W": w})
    found = probe(fixed_model, dataset(x, batch=1), probes=200)
    peaks = np.abs(w).max(axis=0).astype(np.float64)
    exact = float((x.astype(np.float64) ** 2).mean(axis=0).sum() * (peaks**2).sum())
    assert found.energy["W"] == pytest.approx(exact, rel=0.2)
    assert found.samples == 600


def test_one_by_one_counts_whole_outputs() -> None:
    """A sample that is a whole input of several rows counts with all of them."""
    w, x = normal(6, 4, seed=1), normal(5, 6, seed=2)
    rows = probe(model([matmul()], [X], [OUT], {"W": w}), dataset(x))
    whole = probe(model([matmul()], [info("x", 1, 5, 6)], [OUT], {"W": w}), dataset(x[None], one_by_one=True))
    assert whole.energy["W"] == pytest.approx(5 * rows.energy["W"], rel=1e-4)


def test_same_seed_same_result() -> None:
    case = CASES["conv-float32"]()
    data = synthetic_dataset(input_specs(source_model(case.model).model), 4, 0)
    assert probe(case.model, data, seed=1) == probe(case.model, data, seed=1)
    assert probe(case.model, data, seed=1) != probe(case.model, data, seed=2)


@pytest.mark.parametrize(
    "name", ["if", "loop", "function-arguments", "function-subgraph", "int8-channels", "matmul-double"]
)
def test_every_kind_of_weight_is_probed(name: str) -> None:
    case = CASES[name]()
    specs = input_specs(source_model(case.model).model)
    arrays = {spec.name: case.feeds[spec.name][None] for spec in specs}
    found = probe(case.model, Dataset(arrays, None, True, None, "test"))
    used = {key for key in case.weights if key not in ("B#2", "test::f/B#2")}  # the branch that the feeds do not take
    assert {key for key, energy in found.energy.items() if energy > 0} == used


def test_what_cannot_be_probed_is_refused_with_its_reason() -> None:
    w = normal(6, 4, seed=1)
    counted = [
        matmul(result="m"),
        helper.make_node("NonZero", ["r"], ["n"]),
        helper.make_node("Cast", ["n"], ["y"], to=1),
    ]
    counted.insert(1, helper.make_node("Relu", ["m"], ["r"]))
    with pytest.raises(InputError, match="depend on the weights"):
        probe(model(counted, [X], [OUT], {"W": w}), dataset(normal(5, 6)), probes=200)
    inverse = [
        matmul(result="m"),
        helper.make_node("Sub", ["m", "m"], ["z"]),
        helper.make_node("Reciprocal", ["z"], ["y"]),
    ]
    with pytest.raises(InputError, match="not finite"):
        probe(model(inverse, [X], [OUT], {"W": w}), dataset(normal(5, 6)))
    with pytest.raises(InputError, match="does not run on"):
        probe(model([matmul()], [X], [OUT], {"W": w}), dataset(normal(5, 7)))
    mystery = helper.make_node("Mystery", ["m"], ["y"], domain="com.example")
    with pytest.raises(InputError, match="Mystery"):
        probe(
            model([matmul(result="m"), mystery], [X], [OUT], {"W": w}, domains=["com.example"]), dataset(normal(5, 6))
        )
    no_inputs = model([matmul("W", "c")], [], [OUT], {"W": w, "c": normal(2, 6)})
    with pytest.raises(InputError, match="no inputs"):
        probe(no_inputs, Dataset({}, None, False, None, "test"))


def test_integer_outputs_alone_have_no_energy() -> None:
    """A model that only decides: noise moves nothing that could be measured, and that is not an error."""
    nodes = [matmul(result="m"), helper.make_node("ArgMax", ["m"], ["y"], axis=1, keepdims=0)]
    found = probe(model(nodes, [X], [info("y", TensorProto.INT64, None)], {"W": normal(6, 4)}), dataset(normal(5, 6)))
    assert found.energy == {"W": 0.0}
