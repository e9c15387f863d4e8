"""Finding layers, and the arithmetic of their mean response: against onnxruntime's own operators."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from layer_models import LAYERS, LayerCase, found_layer
from onnx import helper
from small_models import CASES, constant, info, initializer, matmul, model, normal

from qtaml_onnx.layers import LayerStatistics, extra_variance, mean_response, tap_coverage

CONVOLUTIONS = [name for name, case in LAYERS.items() if case.convolution]


def response_to_ones(case: LayerCase) -> np.ndarray:
    """For each kernel tap the output, averaged over positions, of a kernel that is 1 there and 0 elsewhere.

    One input channel, one output channel, one sample of ones: small integers, so that float32 is exact.
    """
    attributes = {key: value for key, value in case.attributes.items() if key != "group"}
    kernel, spatial = case.shape[2:], case.inputs[1:]
    node = helper.make_node(case.op_type, ["x", "w"], ["y"], **attributes)
    x, w = info("x", 1, 1, 1, *spatial), info("w", 1, 1, 1, *kernel)
    proto = model([node], [x, w], [info("y", 1, *[None] * (2 + len(kernel)))])
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    means = np.zeros(kernel)
    for tap in np.ndindex(*kernel):
        one = np.zeros((1, 1, *kernel), np.float32)
        one[(0, 0, *tap)] = 1
        means[tap] = session.run(None, {"x": np.ones((1, 1, *spatial), np.float32), "w": one})[0].mean(dtype=np.float64)
    return means


def output_extents(case: LayerCase) -> tuple[int, ...]:
    session = ort.InferenceSession(case.build().SerializeToString(), providers=["CPUExecutionProvider"])
    return tuple(session.run(None, {"x": case.samples(1)})[0].shape[2:])


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_tap_coverage_is_the_operator_s_response_to_ones(name: str) -> None:
    case = LAYERS[name]
    layer, reason, _model = found_layer(case.build())
    assert layer is not None, reason
    coverage = tap_coverage(layer.node, case.shape[2:], case.inputs[1:], output_extents(case))
    assert coverage.shape == case.shape[2:]
    np.testing.assert_allclose(coverage, response_to_ones(case), rtol=4e-16 * len(case.inputs), atol=0)
    if case.op_type == "Conv":
        assert coverage.max() <= 1


def test_tap_coverage_by_hand() -> None:
    """Five inputs, three taps, one pad at either end: the outer taps meet padding once in five positions."""
    node = found_layer(LayerCase("Conv", (1, 1, 3), (1, 5), attributes={"pads": [1, 1]}).build())[0]
    assert node is not None
    np.testing.assert_allclose(tap_coverage(node.node, (3,), (5,), (5,)), [0.8, 1.0, 0.8], rtol=1e-15)
    # strides 2, three inputs to seven outputs: taps of a transposed convolution land on 3 of 7 positions each
    node = found_layer(LayerCase("ConvTranspose", (1, 1, 3), (1, 3), attributes={"strides": [2]}).build())[0]
    assert node is not None
    np.testing.assert_allclose(tap_coverage(node.node, (3,), (3,), (7,)), [3 / 7, 3 / 7, 3 / 7], rtol=1e-15)


@pytest.mark.parametrize("name", LAYERS)
def test_mean_response_is_the_mean_output_for_inputs_that_are_equal_everywhere(name: str) -> None:
    """The operator on the mean input itself, averaged over positions, in float64 where onnxruntime has it."""
    case = LAYERS[name]
    layer, reason, _model = found_layer(case.build())
    assert layer is not None, reason
    channels = case.inputs[0] if case.convolution else case.inputs[-1]
    mean = np.linspace(-1.0, 2.0, channels).astype(np.float32)
    spread = mean.reshape(-1, *[1] * (len(case.inputs) - 1)) if case.convolution else mean
    feed = np.broadcast_to(spread, (1, *case.inputs)).astype(np.float32)
    session = ort.InferenceSession(case.build().SerializeToString(), providers=["CPUExecutionProvider"])
    output = session.run(None, {"x": feed})[0].astype(np.float64)
    axes = tuple(i for i in range(output.ndim) if i != layer.channel_axis % output.ndim)
    coverage = np.ones(())
    if case.convolution:
        coverage = tap_coverage(layer.node, case.shape[2:], case.inputs[1:], output.shape[2:])
    got = layer.bias + mean_response(layer, case.weights, mean, coverage)
    terms = np.abs(case.weights).sum() * 2.0
    np.testing.assert_allclose(got, output.mean(axis=axes), rtol=0, atol=3e-7 * terms)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_says_where_the_bias_is(name: str) -> None:
    case = LAYERS[name]
    layer, reason, _model = found_layer(case.build())
    assert layer is not None
    assert reason == ""
    assert (layer.weight, layer.op_type, layer.input, layer.output) == ("W", case.op_type, "x", "y")
    assert layer.has_bias == (case.bias is not None)
    assert layer.groups == case.attributes.get("group", 1)
    outputs = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1 - case.attributes.get("transB", 0), "MatMul": 1}[case.op_type]
    expected = np.zeros(case.shape[outputs]) if case.biases is None else np.ravel(case.biases)
    np.testing.assert_array_equal(layer.bias, np.broadcast_to(expected, (case.shape[outputs],)).astype(np.float32))


@pytest.mark.parametrize(
    "name", ["conv-groups", "conv-depthwise-twice", "transposed-pads", "gemm-transposed", "matmul"]
)
def test_extra_variance_by_monte_carlo(name: str) -> None:
    """Noise of variance 1 in every weight, times column factors, on inputs about their mean: 5 standard errors.

    Over all positions of large inputs, so that border positions count as the coverage has it; each input element is an
    independent normal of the channel's variance.
    """
    case = LAYERS[name]
    layer, _reason, _model = found_layer(case.build())
    assert layer is not None
    channels = case.inputs[0] if case.convolution else case.inputs[-1]
    deviation = np.linspace(0.5, 2.0, channels)
    columns = np.linspace(1.5, 0.5, channels)
    rng = np.random.default_rng(5)
    trials = 300
    per_channel = (lambda a: a.reshape(-1, *[1] * (len(case.inputs) - 1))) if case.convolution else (lambda a: a)
    taps, energy = np.ones(()), []
    zero = LayerCase(case.op_type, case.shape, case.inputs, None, attributes=case.attributes)
    proto = (
        zero.build()
        if case.op_type != "MatMul"
        else model([matmul()], [info("x", 1, None, 6)], [info("y", 1, None, 4)], {"W": case.weights})
    )
    del proto.graph.initializer[:]
    proto.graph.input.append(info("W", 1, *case.shape))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    input_axis = {"Conv": 1, "ConvTranspose": 0, "Gemm": 1, "MatMul": 0}[case.op_type]
    for _ in range(trials):
        x = (rng.standard_normal((1, *case.inputs)) * per_channel(deviation)).astype(np.float32)
        factor = np.ones(case.shape)
        if layer.groups == 1:
            factor = np.broadcast_to(
                columns.reshape([-1 if i == input_axis else 1 for i in range(len(case.shape))]), case.shape
            )
        w = (rng.standard_normal(case.shape) * factor).astype(np.float32)
        y = session.run(None, {"x": x, "W": w})[0].astype(np.float64)
        energy.append((y**2).mean(axis=tuple(i for i in range(y.ndim) if i != layer.channel_axis % y.ndim)))
        if case.convolution:
            taps = tap_coverage(layer.node, case.shape[2:], case.inputs[1:], y.shape[2:])
    statistics = LayerStatistics(np.zeros(channels), deviation**2, np.ones(len(layer.bias)), taps)
    predicted = extra_variance(layer, statistics, columns if layer.groups == 1 else None)
    found, error = np.mean(energy, axis=0), np.std(energy, axis=0, ddof=1) / np.sqrt(trials)
    assert (np.abs(found - predicted) <= 5 * error).all()
    assert (error < 0.15 * predicted).all()


def declined(proto: onnx.ModelProto, name: str = "W") -> str:
    layer, reason, _model = found_layer(proto, name)
    assert layer is None
    return reason


X6, Y = info("x", 1, None, 6), info("y", 1, None, None)


def test_grouped_transposed_convolution_is_declined() -> None:
    case = LayerCase("ConvTranspose", (4, 2, 3, 3), (4, 5, 5), attributes={"group": 2})
    assert declined(case.build()) == "grouped ConvTranspose"


def test_quantised_weights_are_declined() -> None:
    for name in ("int8", "uint8-channels"):
        assert declined(CASES[name]().model) == "quantised: its layer is looked for in the model with float weights"


def test_shared_and_indirect_weights_are_declined() -> None:
    reason = "the weight is shared, or not directly the second operand"
    for name in ("shared", "transpose", "identity", "reshape", "matmul-left", "gemm-left"):
        assert declined(CASES[name]().model) == reason
    nodes = [matmul(result="p"), matmul(result="q"), helper.make_node("Add", ["p", "q"], ["y"])]
    assert declined(model(nodes, [X6], [Y], {"W": normal(6, 4)})) == reason


@pytest.mark.parametrize("name", ["if", "loop", "scan", "if-nested"])
def test_weights_of_subgraphs_are_declined(name: str) -> None:
    case = CASES[name]()
    for weight in case.weights:
        assert declined(case.model, weight) == "inside a subgraph or function"


@pytest.mark.parametrize("name", ["function-constant", "function-arguments", "function-subgraph"])
def test_weights_of_functions_are_declined(name: str) -> None:
    case = CASES[name]()
    for weight in case.weights:
        assert declined(case.model, weight) == "inside a subgraph or function"


def test_matmul_without_a_bias_is_declined() -> None:
    reason = "MatMul without an Add that takes a bias"
    constants = {"W": normal(6, 4), "b": normal(4)}
    add = helper.make_node("Add", ["m", "b"], ["y"])
    shapes = {"m": info("m", 1, None, 4)}
    assert declined(model([matmul(result="y")], [X6], [Y], {"W": normal(6, 4)})) == reason
    relu = [matmul(result="m"), helper.make_node("Relu", ["m"], ["y"])]
    assert declined(model(relu, [X6], [Y], {"W": normal(6, 4)})) == reason
    twice = [matmul(result="m"), helper.make_node("Add", ["m", "m"], ["y"])]
    assert declined(model(twice, [X6], [Y], {"W": normal(6, 4)})) == reason
    assert declined(model([matmul(result="m"), add], [X6], [Y, shapes["m"]], constants)) == reason  # also an output
    read_twice = [matmul(result="m"), add, helper.make_node("Relu", ["m"], ["z"])]
    assert declined(model(read_twice, [X6], [Y, info("z", 1, None, 4)], constants)) == reason
    computed = [matmul(result="m"), helper.make_node("Relu", ["b"], ["c"]), helper.make_node("Add", ["m", "c"], ["y"])]
    assert declined(model(computed, [X6], [Y], constants)) == reason
    for shape in ((1,), (1, 4), (5, 4), ()):
        assert declined(model([matmul(result="m"), add], [X6], [Y], {"W": normal(6, 4), "b": normal(*shape)})) == reason
    assert declined(CASES["matmul-batched"]().model) == "MatMul has no place for a bias"


def test_add_of_another_graph_or_domain_is_no_bias() -> None:
    """The only reader of the product is in a branch of an If, or is a model function that is called Add."""
    reason = "MatMul without an Add that takes a bias"
    bias = initializer("b", normal(4))
    yes = helper.make_graph([helper.make_node("Add", ["m", "b"], ["u"])], "yes", [], [info("u", 1, None, 4)], [bias])
    no = helper.make_graph([constant("v", normal(1, 4))], "no", [], [info("v", 1, 1, 4)])
    nodes = [matmul(result="m"), helper.make_node("If", ["c"], ["y"], then_branch=yes, else_branch=no)]
    assert declined(model(nodes, [X6, info("c", 9)], [Y], {"W": normal(6, 4)})) == reason
    opsets = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Mul", ["a", "b"], ["r"])]
    function = helper.make_function("test", "Add", ["a", "b"], ["r"], body, opsets)
    nodes = [matmul(result="m"), helper.make_node("Add", ["m", "b"], ["y"], domain="test")]
    constants = {"W": normal(6, 4), "b": normal(4)}
    assert declined(model(nodes, [X6], [Y], constants, functions=[function], domains=["test"])) == reason


@pytest.mark.parametrize("attributes", [{"beta": 0.5}, {"alpha": 2.0}, {"transA": 1}, {"alpha": 0.5, "beta": 2.0}])
def test_gemm_with_factors_is_declined(attributes: dict[str, float]) -> None:
    x = info("x", 1, 6, 6)
    node = helper.make_node("Gemm", ["x", "W", "b"], ["y"], **attributes)
    proto = model([node], [x], [Y], {"W": normal(6, 4), "b": normal(4)})
    assert declined(proto) == "Gemm has no place for a bias"


def test_gemm_with_a_bias_a_row_is_declined() -> None:
    """C of shape [rows, 1] is one value a sample, even where there are as many samples as outputs."""
    node = helper.make_node("Gemm", ["x", "W", "b"], ["y"])
    for shape in ((4, 1), (4, 4)):
        proto = model([node], [info("x", 1, 4, 6)], [info("y", 1, 4, 4)], {"W": normal(6, 4), "b": normal(*shape)})
        assert declined(proto) == "the bias is not one value an output channel"


def test_bias_computed_at_run_time_is_declined() -> None:
    nodes = [helper.make_node("Gemm", ["x", "W", "z"], ["y"])]
    proto = model(nodes, [X6, info("z", 1, 4)], [Y], {"W": normal(6, 4)})
    assert declined(proto) == "the bias is computed at run time"


def test_constant_inputs_and_other_operators_are_declined() -> None:
    nodes = [helper.make_node("MatMul", ["k", "W"], ["m"]), helper.make_node("Add", ["m", "x"], ["y"])]
    proto = model(nodes, [info("x", 1, None, 4)], [Y], {"W": normal(6, 4), "k": normal(3, 6)})
    assert declined(proto) == "the input is constant"
    assert declined(CASES["gather-float32"]().model) == "the weight is shared, or not directly the second operand"
