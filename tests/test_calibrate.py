"""Calibration statistics against NumPy on the same activations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from layer_models import LAYERS, found_layer
from onnx import helper
from small_models import info, matmul, model, normal
from stored_models import run, source_model

from qtaml_onnx.calibrate import calibrate_layers
from qtaml_onnx.data import Dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.layers import find_layer, tap_coverage
from qtaml_onnx.weights import find_weights


def dataset(x: np.ndarray, *, one_by_one: bool = False, batch: int | None = None) -> Dataset:
    return Dataset({"x": x}, None, one_by_one, batch, "tests")


@pytest.mark.parametrize(
    "name", ["conv-2d", "conv-strides", "conv-groups", "transposed-pads", "gemm", "matmul-sequence"]
)
def test_statistics_are_those_of_the_activations(name: str) -> None:
    """13 samples in runs of 5: mean and variance a channel over all samples and positions."""
    case = LAYERS[name]
    layer, _reason, loaded = found_layer(case.build())
    assert layer is not None
    x = case.samples(13)
    before = ir.to_proto(loaded).SerializeToString(deterministic=True)
    steps: list[None] = []
    found = calibrate_layers(loaded, [layer], dataset(x), batch_size=5, progress=lambda: steps.append(None))["W"]
    assert len(steps) == 3
    assert ir.to_proto(loaded).SerializeToString(deterministic=True) == before
    y = run(case.build(), {"x": x})[0].astype(np.float64)
    inputs = np.moveaxis(x.astype(np.float64), layer.channel_axis, -1)
    outputs = np.moveaxis(y, layer.channel_axis, -1)
    np.testing.assert_allclose(found.mean_input, inputs.reshape(-1, inputs.shape[-1]).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.input_variance, inputs.reshape(-1, inputs.shape[-1]).var(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.output_variance, outputs.reshape(-1, outputs.shape[-1]).var(axis=0), rtol=1e-4)
    if case.convolution:
        expected = tap_coverage(layer.node, case.shape[2:], x.shape[2:], y.shape[2:])
        np.testing.assert_array_equal(found.coverage, expected)
    else:
        assert found.coverage.shape == ()


def two_layers(batch: int | str = "N") -> ir.Model:
    nodes = [
        matmul("A", result="m"),
        helper.make_node("Add", ["m", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "B", "b"], ["y"]),
    ]
    constants = {"A": normal(6, 5, seed=1), "a": normal(5, seed=2), "B": normal(5, 3, seed=3), "b": normal(3, seed=4)}
    return source_model(model(nodes, [info("x", 1, batch, 6)], [info("y", 1, batch, 3)], constants)).model


def layers_of(loaded: ir.Model) -> list:
    return [layer for weight in find_weights(loaded).weights if (layer := find_layer(loaded, weight)[0]) is not None]


def hidden(loaded: ir.Model, x: np.ndarray) -> np.ndarray:
    constants = {name: np.asarray(value.const_value.numpy()) for name, value in loaded.graph.initializers.items()}  # type: ignore[union-attr]
    return np.maximum(x @ constants["A"] + constants["a"], 0).astype(np.float64)


def test_values_inside_the_graph() -> None:
    loaded, x = two_layers(), normal(20, 6, seed=9)
    found = calibrate_layers(loaded, layers_of(loaded), dataset(x), batch_size=8)
    assert set(found) == {"A", "B"}
    inner = hidden(loaded, x)
    np.testing.assert_allclose(found["B"].mean_input, inner.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["B"].input_variance, inner.var(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["A"].mean_input, x.astype(np.float64).mean(axis=0), rtol=1e-9)


def test_samples_that_fill_up_a_fixed_batch_do_not_count() -> None:
    loaded, x = two_layers(batch=8), normal(11, 6, seed=9)
    x[0] += 10  # the sample that fills up
    found = calibrate_layers(loaded, layers_of(loaded), dataset(x, batch=8))
    np.testing.assert_allclose(found["A"].mean_input, x.astype(np.float64).mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found["B"].mean_input, hidden(loaded, x).mean(axis=0), rtol=1e-6)


def test_samples_that_are_whole_inputs_count_with_all_their_rows() -> None:
    """A model without a batch axis: each sample is a [4, 6] input."""
    loaded, x = two_layers(batch=4), normal(7, 4, 6, seed=9)
    found = calibrate_layers(loaded, layers_of(loaded), dataset(x, one_by_one=True))
    rows = x.reshape(-1, 6)
    np.testing.assert_allclose(found["A"].mean_input, rows.astype(np.float64).mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found["B"].mean_input, hidden(loaded, rows).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["B"].input_variance, hidden(loaded, rows).var(axis=0), rtol=1e-5)


def test_a_constant_channel_has_no_variance_and_nothing_asked_is_nothing_run() -> None:
    loaded, x = two_layers(), normal(20, 6, seed=9)
    x[:, 2] = 1000.1
    found = calibrate_layers(loaded, layers_of(loaded), dataset(x), batch_size=7)
    assert 0 <= found["A"].input_variance[2] < 1e-6
    assert calibrate_layers(loaded, [], dataset(x)) == {}


def test_data_that_do_not_fit_are_named() -> None:
    loaded = two_layers()
    with pytest.raises(InputError, match="the model does not run on tests: "):
        calibrate_layers(loaded, layers_of(loaded), dataset(normal(5, 7)))
