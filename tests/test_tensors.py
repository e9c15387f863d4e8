"""Scales of weights: how outputs and inputs of a layer are normalised, and what a read-out form computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from layer_models import LAYERS, LayerCase
from numpy.typing import NDArray
from onnx import helper
from scipy.optimize import minimize
from small_models import CASES, info, matmul, model, normal
from stored_models import float_options, run, source_model

from qtaml_onnx.calibrate import calibrate_layers
from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.data import Dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.forms import read_out_form
from qtaml_onnx.layers import find_layer
from qtaml_onnx.methods import METHODS
from qtaml_onnx.passes.dequantize_weights import DequantizeWeights
from qtaml_onnx.plan import FaultModel
from qtaml_onnx.planner import Planner, prepare
from qtaml_onnx.storage import ReadOut, design_readout, uniform_code, word_sums
from qtaml_onnx.storage.tensor import decode_tensor, encode_tensor, normalise
from qtaml_onnx.tensors import TensorData, gather
from qtaml_onnx.weights import find_weights, stored_values

Array = NDArray[Any]
METHOD = METHODS["channel-optimized"]


def data_of(case_or_proto: Any, name: str = "W", per_tensor: bool = False) -> TensorData:
    loaded = source_model(case_or_proto).model
    return gather(next(w for w in find_weights(loaded).weights if w.name == name), per_tensor)


def linear(weights: Array, transposed: int = 0) -> TensorData:
    node = helper.make_node("Gemm", ["x", "W"], ["y"], transB=transposed)
    inputs = weights.shape[1] if transposed else weights.shape[0]
    return data_of(model([node], [info("x", 1, None, inputs)], [info("y", 1, None, None)], {"W": weights}))


def test_input_factors_are_the_numerical_minimum() -> None:
    """Σ Var[x_j] c_j² at a given Σ E[w_j²]/c_j², minimised without the formula: the same c up to a common factor."""
    rng = np.random.default_rng(1)
    weights = (rng.standard_normal((5, 400)) * np.array([0.3, 1.0, 2.0, 0.7, 1.4])[:, None]).astype(np.float32)
    deviation = np.array([2.0, 0.5, 1.0, 1.5, 0.8])
    columns = linear(weights).scaling("rms", deviation).columns
    assert columns is not None
    power = np.mean(weights.astype(np.float64) ** 2, axis=1)

    def energy(logarithms: Array) -> float:  # free of the constraint: the product is the same for any common factor
        squares = np.exp(2 * logarithms)
        return float((deviation**2 * squares).sum() * (power / squares).sum())

    best = np.exp(minimize(energy, np.zeros(5), tol=1e-14).x)
    got = columns.astype(np.float64)
    np.testing.assert_allclose(got / got[0], best / best[0], rtol=2e-3)  # half precision, and the search's own error
    assert energy(np.log(got)) == pytest.approx(energy(np.log(best)), rel=1e-5)
    assert energy(np.log(got)) < 0.9 * energy(np.zeros(5))
    np.testing.assert_allclose(np.median(got), 1.0, rtol=1e-3)


@pytest.mark.parametrize("name", ["conv-2d", "transposed-pads", "gemm", "gemm-transposed", "matmul"])
def test_factors_run_along_the_axis_of_inputs(name: str) -> None:
    case = LAYERS[name]
    tensor = data_of(case.build())
    axis = {"Conv": 1, "ConvTranspose": 0, "Gemm": case.attributes.get("transB", 0), "MatMul": 0}[case.op_type]
    inputs = case.shape[axis]
    deviation = np.linspace(0.5, 2.0, inputs)
    scaling = tensor.scaling("rms", deviation)
    assert scaling.columns is not None
    assert (scaling.column_axis, scaling.row_axis) == (axis, 1 - axis)
    assert scaling.columns.dtype == np.float16
    assert scaling.columns.shape == (inputs,)
    assert scaling.rows.shape == (case.shape[1 - axis],)
    others = tuple(i for i in range(len(case.shape)) if i != axis)
    wanted = np.sqrt(np.sqrt(np.mean(case.weights.astype(np.float64) ** 2, axis=others)) / deviation)
    np.testing.assert_array_equal(scaling.columns, (wanted / np.median(wanted)).astype(np.float16))
    # what is coded has one deviation in every output channel: 1/4 of the range
    x = normalise(tensor.values, scaling.factors(len(case.shape))).astype(np.float64)
    rest = tuple(i for i in range(len(case.shape)) if i != 1 - axis)
    np.testing.assert_allclose(np.sqrt(np.mean(x**2, axis=rest)), 0.25, rtol=1e-5)


def test_factors_are_clamped_to_eight_times_the_typical_one() -> None:
    weights = normal(6, 300)
    tensor = linear(weights)
    for odd, limit, unclamped in ((0.005, 8.0, np.sqrt(200)), (100.0, 1 / 8, 0.1)):
        columns = tensor.scaling("rms", np.array([1.0, 1.0, 1.0, 1.0, 1.0, odd])).columns
        assert columns is not None
        assert columns[5] == np.float16(limit)
        assert abs(np.log(unclamped / limit)) > 0.2
        np.testing.assert_allclose(columns[:5], 1.0, atol=0.1)


def test_dead_inputs_and_dead_weights() -> None:
    """An input that never varies, or that no weight reads, has a finite factor; all dead, or one alone, has none."""
    weights = normal(4, 50)
    weights[2] = 0
    tensor = linear(weights)
    columns = tensor.scaling("rms", np.array([1.0, 0.0, 1.0, 0.5])).columns
    assert columns is not None
    assert ((columns >= np.float16(1 / 8)) & (columns <= np.float16(8))).all()
    assert columns[1] == np.float16(8)
    assert columns[2] == np.float16(1 / 8)
    assert tensor.scaling("rms", np.zeros(4)).columns is None
    assert tensor.scaling("rms", np.ones(3)).columns is None
    assert tensor.scaling("rms").columns is None
    assert linear(np.zeros((4, 5), np.float32)).scaling("rms", np.ones(4)).columns is None
    assert linear(normal(1, 9)).scaling("rms", np.ones(1)).columns is None


def test_no_input_factors_for_peaks_single_scales_and_vectors() -> None:
    weights = normal(6, 4, seed=1)
    tensor = linear(weights)
    assert tensor.scaling("peak", np.linspace(1, 2, 6)).columns is None
    np.testing.assert_array_equal(tensor.scaling("peak").rows, np.abs(weights).max(axis=0))
    single = data_of(model([matmul()], [info("x", 1, None, 6)], [info("y", 1, None, 4)], {"W": weights}), "W", True)
    scaling = single.scaling("rms", np.linspace(1, 2, 6))
    assert scaling.columns is None
    assert scaling.row_axis is None
    np.testing.assert_allclose(scaling.rows, [4 * np.sqrt(np.mean(weights.astype(np.float64) ** 2))], rtol=1e-6)
    vector = data_of(CASES["matmul-vector"]().model)
    assert vector.scaling("rms", np.ones(6)).columns is None


def test_channels_of_zeros_have_scale_one() -> None:
    weights = normal(6, 4, seed=1)
    weights[:, 2] = 0
    for kind in ("peak", "rms"):
        assert linear(weights).scaling(kind).rows[2] == 1  # type: ignore[arg-type]


def test_kept_words_stand_for_their_own_integers() -> None:
    """With `peak` scales a normalised weight of 1 is 127 steps from the zero point, whatever the scales of channels."""
    for name, low in (("int8-zero-point", -128), ("uint8-zero-point", 0), ("uint8-channels", 0)):
        tensor = data_of(CASES[name]().model)
        assert tensor.fixed is not None
        assert tensor.grid is not None
        scaling = tensor.scaling("peak")
        np.testing.assert_array_equal(scaling.rows, [127])
        units = np.broadcast_to(tensor.units(scaling), tensor.values.shape)
        wanted = np.broadcast_to(127 * tensor.grid.spread(tensor.grid.step), tensor.values.shape)
        np.testing.assert_array_equal(units, wanted)
        integers = np.arange(low, low + 256)
        x = (integers - tensor.grid.center) / 127
        np.testing.assert_array_equal(tensor.fixed.encode(x), (integers & 255).astype(np.uint8))
        np.testing.assert_allclose(tensor.fixed.levels[integers & 255], x, rtol=0, atol=0)


def test_scales_of_integers_give_the_weights_deviations() -> None:
    """`rms` scales of a quantised weight times its steps are those of the same weight in floats."""
    for name in ("int8-channels", "uint8-channels", "int8"):
        tensor = data_of(CASES[name]().model)
        scaling = tensor.scaling("rms", np.linspace(1, 2, 3))
        assert scaling.columns is not None
        real = source_model(CASES[name]().model).model
        DequantizeWeights()(real)
        plain = TensorData(find_weights(real).weights[0], 0).scaling("rms", np.linspace(1, 2, 3))
        np.testing.assert_array_equal(scaling.columns, plain.columns)
        np.testing.assert_allclose(tensor.row_units(scaling), plain.rows, rtol=1e-6)


def test_weights_that_are_not_finite_are_refused() -> None:
    weights = normal(6, 4)
    weights[3, 2] = np.nan
    with pytest.raises(InputError, match="weight 'W' has NaN or infinite values"):
        linear(weights)


def planner_of(case: Any, rate: float, bits: int, weights: Array | None = None) -> tuple[Planner, Any]:
    """A planner with calibration statistics of a layer case."""
    proto = case.build(weights)
    source = source_model(proto)
    inventory = prepare(source)
    rates = FlipRates.uniform(rate, bits)
    planner = Planner(source, inventory, FaultModel(p01=rates.p01, p10=rates.p10), bits=bits)
    layer, _reason = find_layer(source.model, inventory.weights[0])
    assert layer is not None
    planner.find_layers()
    samples = Dataset({"x": case.samples(40)}, None, False, None, "tests")
    planner.use_statistics(calibrate_layers(source.model, [layer], samples), correct_biases=True)
    return planner, source


@pytest.mark.parametrize("name", ["conv-2d", "transposed-pads", "gemm", "gemm-transposed", "matmul"])
def test_graph_reads_what_decode_tensor_says_bit_for_bit(name: str) -> None:
    """With factors of inputs and outputs, on the words as stored: the weight as the operator sees it."""
    case = LAYERS[name]
    planner, source = planner_of(case, 0.02, 4)
    plan = planner.within_budget(METHOD, 0)
    tensor = plan.tensors[0]
    assert tensor.input_scales is not None
    assert len(set(tensor.input_scales)) > 1
    hardened, _faulty = carry_out(source, plan)
    proto = ir.to_proto(hardened)
    proto.graph.output.append(info("W", 1, *case.shape))
    decoded = decode_tensor(tensor, encode_tensor(tensor, case.weights))
    got = run(proto, {"x": case.samples(2)}, float_options())[-1]
    np.testing.assert_array_equal(got, decoded)


def test_words_without_faults_give_the_weights_back() -> None:
    """Rate 0, 8 bits, 200 × 30 Gaussian weights: below the 2.72 · 4^−8 (−43.8 dB) of an optimal quantiser at high
    resolution (Panter & Dite 1951) plus what sharing out over rows and columns changes, half a decibel."""
    case = LayerCase("Gemm", (200, 30), (30,), (200,), attributes={"transB": 1})
    planner, _source = planner_of(case, 0.0, 8, normal(200, 30, seed=1))
    tensor = planner.within_budget(METHOD, 0).tensors[0]
    weights = planner.tensors[0].values
    decoded = decode_tensor(tensor, encode_tensor(tensor, weights))
    assert 10 * np.log10(np.sum((decoded - weights) ** 2) / np.sum(weights**2)) <= -43.3


def test_affine_form_is_the_table_and_tables_are_halves_up_to_ten_bits() -> None:
    """Two's complement read bitwise: one scale and one offset give the table to float32; else the table is stored."""
    tensor = linear(normal(40, 30, seed=1))
    scaling = tensor.scaling("peak")
    x = normalise(tensor.values, scaling.factors(2))
    rates = FlipRates.asymmetric(0.02, 0.07, 12)
    for bits, form, words_type in ((8, "affine", "INT8"), (5, "table", "UINT8"), (9, "table", "UINT16")):
        code = uniform_code("twos-complement", bits)
        readout = design_readout("bitwise-affine", code, rates.truncated(bits), word_sums(code, x))
        found = read_out_form(tensor, code, readout, scaling)
        assert (found.form, found.words_type) == (form, words_type)
        if found.form == "affine":
            words = np.arange(256, dtype=np.uint8)
            value = (words.view(np.int8).astype(np.float64) - found.offset) * float(found.scales[0])
            wanted = readout.table * float(scaling.rows[0])
            np.testing.assert_allclose(value, wanted, rtol=0, atol=2e-7 * np.abs(wanted).max())
            assert found.offset == pytest.approx(-0.02, rel=1e-5)  # the drift of two's complement is −p01
            assert found.scales[0] == pytest.approx(scaling.rows[0] / 127 / (1 - 0.09), rel=1e-6)
        else:
            np.testing.assert_array_equal(found.table, readout.table.astype(np.float16))
    code = uniform_code("twos-complement", 8)
    posterior = design_readout("posterior-mean", code, rates.truncated(8), word_sums(code, x))
    assert read_out_form(tensor, code, posterior, scaling).form == "table"  # no line


def test_integer_tables_stay_on_the_model_s_own_grid() -> None:
    """The read-out of kept words: integers of the same type around the same zero point, each within half a step of the
    posterior mean, and none beyond what the tensor holds."""
    for name, dtype, zero in (("int8-zero-point", np.int8, -7), ("uint8-channels", np.uint8, 100)):
        tensor = data_of(CASES[name]().model)
        assert tensor.fixed is not None
        scaling = tensor.scaling("peak")
        x = tensor.normalised(scaling)
        readout = design_readout("posterior-mean", tensor.fixed, FlipRates.uniform(0.1, 8), word_sums(tensor.fixed, x))
        form = read_out_form(tensor, tensor.fixed, readout, scaling)
        assert (form.form, form.words_type, form.zero_point) == ("integer-table", "UINT8", zero)
        assert form.table is not None
        table = np.asarray(form.table)
        assert np.array_equal(table, table.astype(dtype))
        np.testing.assert_allclose((table - zero) / 127, readout.table, rtol=0, atol=0.5001 / 127)
        stretched = ReadOut("posterior-mean", readout.table * 100)
        integers = stored_values(tensor.weight)
        wide = np.asarray(read_out_form(tensor, tensor.fixed, stretched, scaling).table)
        assert (wide.min(), wide.max()) == tensor.limits == (integers.min(), integers.max())
        plain = design_readout("plain", tensor.fixed, FlipRates.uniform(0.1, 8), word_sums(tensor.fixed, x))
        assert read_out_form(tensor, tensor.fixed, plain, scaling).form == "dequantize"
