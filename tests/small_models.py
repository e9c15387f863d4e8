"""Small models with known weights, one for every way in which a model can hold them.

A `Case` builds the same model for any weights, so that a test can say what a hardened model should compute: the model
built with the weights that the plan reads out, decoded in NumPy, without any of the passes under test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Weights = Mapping[str, Array]

FLOATS = {"float32": np.float32, "float16": np.float16, "double": np.float64, "bfloat16": ml_dtypes.bfloat16}
CODES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "double": TensorProto.DOUBLE,
    "bfloat16": TensorProto.BFLOAT16,
}


@dataclass(frozen=True)
class Case:
    """A model for any weights.

    Attributes:
        build: The model with the given weights, by the names that `find_weights` must give them. A quantised weight is
            given as integer words, or as floats, and then stands in the model without its DequantizeLinear.
        weights: The original weights.
        feeds: Inputs.
        left_out: Name of each thing that must be reported as left out, with a part of the reason.
        constant: Whether all weights are equal, so that the posterior mean of any word is the weight itself.
        axes: Channel axis that must be found, where it is not what the shape of the weight suggests by itself.
    """

    build: Callable[[Weights], onnx.ModelProto]
    weights: dict[str, Array]
    feeds: dict[str, Array]
    left_out: dict[str, str] = field(default_factory=dict)
    constant: bool = False
    axes: dict[str, int | None] = field(default_factory=dict)

    @property
    def model(self) -> onnx.ModelProto:
        """The original."""
        return self.build(self.weights)


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def info(name: str, kind: int, *shape: int | str | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def initializer(name: str, array: Array) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def constant(name: str, array: Array) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=initializer(f"{name}_value", array))


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A checked model; before IR version 4 the initializers are inputs as well."""
    tensors = [initializer(name, array) for name, array in (initializers or {}).items()]
    listed = list(inputs)
    if ir_version < 4:
        listed += [info(t.name, t.data_type, *t.dims) for t in tensors]
    graph = helper.make_graph(list(nodes), "small", listed, list(outputs), tensors, doc_string="a small model")
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    proto = helper.make_model(
        graph, opset_imports=opsets, ir_version=ir_version, functions=list(functions), producer_name="tests"
    )
    helper.set_model_props(proto, {"author": "somebody"})
    onnx.checker.check_model(proto)
    return proto


X = info("x", TensorProto.FLOAT, None, 6)
ROWS = {"x": normal(5, 6, seed=9)}
OUT = info("y", TensorProto.FLOAT, None, None)


def _conv(kind: str) -> Case:
    dtype, code = FLOATS[kind], CODES[kind]
    bias = normal(4, seed=2, dtype=dtype)

    def build(w: Weights) -> onnx.ModelProto:
        node = helper.make_node("Conv", ["x", "W", "b"], ["y"], pads=[1, 1, 1, 1], name="conv")
        x, y = info("x", code, "N", 3, 7, 7), info("y", code, "N", 4, 7, 7)
        return model([node], [x], [y], {"W": w["W"], "b": bias})

    feeds = {"x": normal(2, 3, 7, 7, seed=9, dtype=dtype)}
    return Case(build, {"W": normal(4, 3, 3, 3, seed=1, dtype=dtype)}, feeds, {"b": "bias of Conv"}, axes={"W": 0})


def _depthwise() -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        node = helper.make_node("Conv", ["x", "W"], ["y"], group=4)
        x, y = info("x", 1, "N", 4, 6), info("y", 1, "N", 8, 4)
        return model([node], [x], [y], {"W": w["W"]})

    return Case(build, {"W": normal(8, 1, 3, seed=1)}, {"x": normal(2, 4, 6, seed=9)}, axes={"W": 0})


def _conv_transpose(kind: str = "float32") -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        node = helper.make_node("ConvTranspose", ["x", "W"], ["y"], strides=[2, 2])
        x, y = info("x", CODES[kind], 1, 3, 4, 4), info("y", CODES[kind], 1, 5, 9, 9)
        return model([node], [x], [y], {"W": w["W"]})

    dtype = FLOATS[kind]
    feeds = {"x": normal(1, 3, 4, 4, seed=9, dtype=dtype)}
    return Case(build, {"W": normal(3, 5, 3, 3, seed=1, dtype=dtype)}, feeds, axes={"W": 1})


def _gemm(transposed: int, kind: str = "float32") -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        node = helper.make_node("Gemm", ["x", "W", "b"], ["y"], transB=transposed, alpha=0.5, beta=2.0)
        x, y = info("x", CODES[kind], "N", 6), info("y", CODES[kind], "N", 4)
        return model([node], [x], [y], {"W": w["W"], "b": normal(4, seed=2, dtype=FLOATS[kind])})

    shape = (4, 6) if transposed else (6, 4)
    dtype = FLOATS[kind]
    feeds = {"x": normal(5, 6, seed=9, dtype=dtype)}
    weights = {"W": normal(*shape, seed=1, dtype=dtype)}
    return Case(build, weights, feeds, {"b": "bias of Gemm"}, axes={"W": 0 if transposed else 1})


def _gemm_left(transposed: int) -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        node = helper.make_node("Gemm", ["W", "x"], ["y"], transA=transposed)
        return model([node], [info("x", 1, 6, "N")], [info("y", 1, 4, "N")], {"W": w["W"]})

    weights = {"W": normal(*((6, 4) if transposed else (4, 6)), seed=1)}
    return Case(build, weights, {"x": normal(6, 3, seed=9)}, axes={"W": 1 if transposed else 0})


def _matmul(kind: str = "float32", shape: tuple[int, ...] = (6, 4)) -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        rank = max(2, len(shape))
        y = info("y", CODES[kind], *([None] * (rank if len(shape) > 1 else 1)))
        node = helper.make_node("MatMul", ["x", "W"], ["y"])
        return model([node], [info("x", CODES[kind], None, 6)], [y], {"W": w["W"]})

    dtype = FLOATS[kind]
    axis = len(shape) - 1 if len(shape) > 1 else None
    feeds = {"x": normal(5, 6, seed=9, dtype=dtype)}
    return Case(build, {"W": normal(*shape, seed=1, dtype=dtype)}, feeds, axes={"W": axis})


def _matmul_left() -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        node = helper.make_node("MatMul", ["W", "x"], ["y"])
        return model([node], [info("x", 1, 6, "N")], [info("y", 1, 2, 4, "N")], {"W": w["W"]})

    return Case(build, {"W": normal(2, 4, 6, seed=1)}, {"x": normal(6, 3, seed=9)}, axes={"W": 1})


def _gather(kind: str) -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Gather", ["W", "i"], ["g"], axis=0),
            helper.make_node("Cast", ["g"], ["y"], to=TensorProto.FLOAT),
        ]
        return model(nodes, [info("i", TensorProto.INT64, "N")], [info("y", 1, "N", 4)], {"W": w["W"]})

    weights = {"W": normal(9, 4, seed=1, dtype=FLOATS[kind])}
    return Case(build, weights, {"i": np.array([8, 0, 3, 3])}, axes={"W": 1})


def _linear(build: Callable[[Weights], onnx.ModelProto], w: Array | None = None, **more: Any) -> Case:
    return Case(build, {"W": normal(6, 4, seed=1) if w is None else w}, ROWS, **more)


def matmul(weight: str = "W", source: str = "x", result: str = "y") -> onnx.NodeProto:
    return helper.make_node("MatMul", [source, weight], [result], name=f"{source}@{weight}={result}")


def _behind(
    op_type: str, shape: tuple[int, ...], axis: int | None, extra: Array | None = None, **attributes: Any
) -> Case:
    """The weight behind an operator that only changes its layout, to [6, 4]."""

    def build(w: Weights) -> onnx.ModelProto:
        inputs = ["W"] if extra is None else ["W", "extra"]
        nodes = [helper.make_node(op_type, inputs, ["V"], **attributes), matmul("V")]
        return model(nodes, [X], [OUT], {"W": w["W"]} | ({} if extra is None else {"extra": extra}))

    return _linear(build, normal(*shape, seed=1), axes={"W": axis})


def _constant_node() -> Case:
    return _linear(lambda w: model([constant("W", w["W"]), matmul()], [X], [OUT]))


def _constant_node_output() -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        return model([constant("W", w["W"]), matmul()], [X], [OUT, info("W", 1, 6, 4)])

    return _linear(build)


def _initializer_output(ir_version: int) -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        opset = 9 if ir_version < 4 else 17
        outputs = [OUT, info("W", 1, 6, 4)]
        return model([matmul()], [X], outputs, {"W": w["W"]}, opset=opset, ir_version=ir_version)

    return _linear(build)


def _shared() -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        nodes = [
            matmul(result="p"),
            helper.make_node("Relu", ["x"], ["r"]),
            matmul(source="r", result="q"),
            helper.make_node("Add", ["p", "q"], ["s"]),
            helper.make_node("ReduceSum", ["W"], ["t"], keepdims=0),  # a third reader, which has no weights
            helper.make_node("Add", ["s", "t"], ["y"]),
        ]
        return model(nodes, [X], [OUT], {"W": w["W"]})

    return _linear(build)


def _tied() -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Gather", ["W", "i"], ["g"]),
            helper.make_node("Transpose", ["W"], ["T"], perm=[1, 0]),
            helper.make_node("MatMul", ["g", "T"], ["y"]),
        ]
        return model(nodes, [info("i", TensorProto.INT64, "N")], [info("y", 1, "N", 9)], {"W": w["W"]})

    return Case(build, {"W": normal(9, 4, seed=1)}, {"i": np.array([8, 0, 3])}, axes={"W": 1})


def _listed_as_inputs(ir_version: int) -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        opset = 8 if ir_version < 4 else 17
        proto = model(
            [helper.make_node("Gemm", ["x", "W", "b"], ["y"])], [X], [OUT], {"W": w["W"], "b": normal(4, seed=2)},
            opset=opset, ir_version=ir_version,
        )  # fmt: skip
        if ir_version >= 4:
            proto.graph.input.extend([info("W", 1, 6, 4), info("b", 1, 4)])
        return proto

    return _linear(build, left_out={"b": "bias of Gemm"})


def _absent_inputs() -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Clip", ["x", "", "top"], ["c"]),
            helper.make_node("Gemm", ["c", "W"], ["y"]),
        ]
        return model(nodes, [X], [OUT], {"W": w["W"], "top": np.array(0.5, np.float32)})

    return _linear(build, left_out={"top": "input 2 of Clip"})


def _constant_of_shape(opset: int, ir_version: int) -> Case:
    """As the models in the onnx package have them: weights of one value, made when the model is loaded."""

    def build(w: Weights) -> onnx.ModelProto:
        if np.ptp(w["W"]):
            return model([matmul()], [X], [OUT], {"W": w["W"]}, opset=opset, ir_version=ir_version)
        value = helper.make_tensor("value", TensorProto.FLOAT, [1], [float(w["W"].flat[0])])
        nodes = [helper.make_node("ConstantOfShape", ["shape"], ["W"], value=value), matmul()]
        return model(nodes, [X], [OUT], {"shape": np.array([6, 4])}, opset=opset, ir_version=ir_version)

    return _linear(build, np.full((6, 4), 0.25, np.float32), constant=True)


def _computed() -> Case:
    """Halves in the file, scaled and cast by the graph: what is stored is the result."""
    half = normal(6, 4, seed=1, dtype=np.float16)

    def build(w: Weights) -> onnx.ModelProto:
        if (w["V"] != np.float32(2) * half.astype(np.float32)).any():
            return model([matmul("V")], [X], [OUT], {"V": w["V"]})
        nodes = [
            helper.make_node("Cast", ["H"], ["F"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["F", "two"], ["V"]),
            matmul("V"),
        ]
        return model(nodes, [X], [OUT], {"H": half, "two": np.array(2, np.float32)})

    return Case(build, {"V": np.float32(2) * half.astype(np.float32)}, ROWS)


def _odd_names() -> Case:
    names = ["a/b:0", "λ weight", "[0]*?", "W\"'\\", "%d{}"]

    def build(w: Weights) -> onnx.ModelProto:
        nodes = [matmul(name, result=f"{name}→") for name in names]
        nodes.append(helper.make_node("Sum", [f"{name}→" for name in names], ["y"]))
        return model(nodes, [X], [OUT], dict(w))

    return Case(build, {name: normal(6, 4, seed=i) for i, name in enumerate(names)}, ROWS)


def _colliding_names() -> Case:
    """Names that the stored words, table, scale and read-out would take."""
    taken = ["W.words", "W.table", "W.scale", "W.offset", "W.read_out/Mul_output"]

    def build(w: Weights) -> onnx.ModelProto:
        extras = {name: normal(4, seed=i + 20) for i, name in enumerate(taken)}
        nodes = [matmul(result="p"), helper.make_node("Sum", ["p", *taken], ["y"], name="W.read_out/Cast")]
        return model(nodes, [X], [OUT], {"W": w["W#1"]} | extras)

    left_out = dict.fromkeys(taken, "of Sum")
    return Case(build, {"W#1": normal(6, 4, seed=1)}, ROWS, left_out)


def _empty() -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        nodes = [
            helper.make_node("MatMul", ["none", "E"], ["z"]),
            matmul(result="p"),
            helper.make_node("ReduceSum", ["z"], ["t"], keepdims=0),
            helper.make_node("Add", ["p", "t"], ["y"]),
        ]
        none = np.zeros((2, 0), np.float32)
        return model(nodes, [X], [OUT], {"W": w["W"], "E": np.zeros((0, 4), np.float32), "none": none})

    return _linear(build, left_out={"E": "empty", "none": "empty"})


def _equal_weights(value: float) -> Case:
    w = np.full((6, 4), value, np.float32)
    return _linear(lambda weights: model([matmul()], [X], [OUT], {"W": weights["W"]}), w, constant=True)


def _subnormal() -> Case:
    return _linear(lambda w: model([matmul()], [X], [OUT], {"W": w["W"]}), normal(6, 4, seed=1) * np.float32(1e-39))


def _branch(weight: Array, name: str, result: str, ir_version: int) -> onnx.GraphProto:
    out = [info(result, 1, None, None)]
    if ir_version < 4:  # subgraphs have no initializers of their own then
        return helper.make_graph([constant(name, weight), matmul(name, result=result)], f"{result}_branch", [], out)
    return helper.make_graph([matmul(name, result=result)], f"{result}_branch", [], out, [initializer(name, weight)])


def _if(ir_version: int = 8) -> Case:
    """Both branches have a weight of the same name, and one reads a weight of the main graph as well."""

    def build(w: Weights) -> onnx.ModelProto:
        yes = _branch(w["B#2"], "B", "yes", ir_version)  # attributes are in the order of their names
        no = _branch(w["B#1"], "B", "p", ir_version)
        no.node.extend([matmul("W", result="q"), helper.make_node("Add", ["p", "q"], ["no"])])
        del no.output[:]
        no.output.append(info("no", 1, None, None))
        nodes = [
            helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
            helper.make_node("Greater", ["s", "zero"], ["c"]),
            helper.make_node("If", ["c"], ["y"], then_branch=yes, else_branch=no),
        ]
        opset = 11 if ir_version < 4 else 17
        weights = {"W": w["W"], "zero": np.array(0, np.float32)}
        return model(nodes, [X], [OUT], weights, ir_version=ir_version, opset=opset)

    weights = {"W": normal(6, 4, seed=1), "B#1": normal(6, 4, seed=2), "B#2": normal(6, 4, seed=3)}
    return Case(build, weights, {"x": -np.abs(ROWS["x"])}, {"zero": "Greater"})


def _nested_if() -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        inner = helper.make_node(
            "If", ["c"], ["z"], then_branch=_branch(w["B#2"], "B", "u", 8), else_branch=_branch(w["B#1"], "B", "v", 8)
        )
        outer = helper.make_graph([inner], "outer", [], [info("z", 1, None, None)])
        other = helper.make_graph([matmul("W", result="o")], "other", [], [info("o", 1, None, None)])
        node = helper.make_node("If", ["c"], ["y"], then_branch=outer, else_branch=other)
        return model([node], [X, info("c", TensorProto.BOOL)], [OUT], {"W": w["W"]})

    weights = {"W": normal(6, 4, seed=1), "B#1": normal(6, 4, seed=2), "B#2": normal(6, 4, seed=3)}
    return Case(build, weights, ROWS | {"c": np.array(True)})


def _loop() -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        body = helper.make_graph(
            [
                helper.make_node("MatMul", ["h", "L"], ["hl"]),
                helper.make_node("Tanh", ["hl"], ["next"]),
                helper.make_node("Identity", ["go"], ["on"]),
            ],
            "body",
            [info("i", TensorProto.INT64), info("go", TensorProto.BOOL), info("h", 1, None, 6)],
            [info("on", TensorProto.BOOL), info("next", 1, None, 6)],
            [initializer("L", w["L"])],
        )
        node = helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)
        return model([node], [X], [OUT], {"times": np.array(3)})

    return Case(build, {"L": normal(6, 6, seed=1)}, ROWS)


def _scan() -> Case:
    def build(w: Weights) -> onnx.ModelProto:
        body = helper.make_graph(
            [
                helper.make_node("Gemm", ["row", "S", "state"], ["new"]),
                helper.make_node("Identity", ["new"], ["seen"]),
            ],
            "body",
            [info("state", 1, 1, 4), info("row", 1, 1, 6)],
            [info("new", 1, 1, 4), info("seen", 1, 1, 4)],
            [initializer("S", w["S"])],
        )
        node = helper.make_node("Scan", ["start", "rows"], ["last", "y"], body=body, num_scan_inputs=1)
        rows = helper.make_node("Unsqueeze", ["x", "one"], ["rows"])
        outputs = [info("last", 1, 1, 4), info("y", 1, None, 1, 4)]
        start = {"start": np.zeros((1, 4), np.float32), "one": np.array([1])}
        return model([rows, node], [X], outputs, start)

    return Case(build, {"S": normal(6, 4, seed=1)}, ROWS, {"start": "input 0 of Scan"})


def _function(
    name: str, inputs: list[str], nodes: list[onnx.NodeProto], domains: Sequence[str] = ()
) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_function("test", name, inputs, ["r"], nodes, opsets)


def _call(name: str, inputs: list[str], output: str) -> onnx.NodeProto:
    return helper.make_node(name, inputs, [output], domain="test", name=f"call_{name}_{output}")


def _function_constant() -> Case:
    """A function that holds its weight, called twice: one storage."""

    def build(w: Weights) -> onnx.ModelProto:
        f = _function(
            "f", ["a"], [constant("W", w["test::f/W"]), matmul("W", "a", "m"), helper.make_node("Tanh", ["m"], ["r"])]
        )
        nodes = [_call("f", ["x"], "p"), _call("f", ["p"], "y")]
        return model(nodes, [X], [OUT], functions=[f], domains=["test"])

    return Case(build, {"test::f/W": normal(6, 6, seed=1)}, ROWS)


def _function_arguments() -> Case:
    """A function that takes its weight, called twice with two weights, which it hands on to another."""

    def build(w: Weights) -> onnx.ModelProto:
        inner = _function("inner", ["a", "v"], [matmul("v", "a", "r")])
        outer = _function(
            "outer", ["a", "v"], [_call("inner", ["a", "v"], "m"), helper.make_node("Tanh", ["m"], ["r"])], ["test"]
        )
        nodes = [_call("outer", ["x", "V"], "p"), _call("outer", ["p", "W"], "y")]
        return model(nodes, [X], [OUT], dict(w), functions=[inner, outer], domains=["test"])

    return Case(build, {"V": normal(6, 5, seed=1), "W": normal(5, 4, seed=2)}, ROWS, axes={"V": 1, "W": 1})


def _function_nested() -> Case:
    """The weight is in a function that only another function calls, with an optional input left out."""

    def build(w: Weights) -> onnx.ModelProto:
        inner = _function(
            "inner",
            ["a", "low"],
            [constant("W", w["test::inner/W"]), matmul("W", "a", "m"), helper.make_node("Clip", ["m", "low"], ["r"])],
        )
        outer = _function(
            "outer", ["a"], [_call("inner", ["a"], "m"), helper.make_node("Tanh", ["m"], ["r"])], ["test"]
        )
        return model([_call("outer", ["x"], "y")], [X], [OUT], functions=[inner, outer], domains=["test"])

    return Case(build, {"test::inner/W": normal(6, 4, seed=1)}, ROWS)


def _function_subgraph() -> Case:
    """The weights are in the branches of an If of a function."""

    def build(w: Weights) -> onnx.ModelProto:
        yes, no = _branch(w["test::f/B#2"], "B", "u", 8), _branch(w["test::f/B#1"], "B", "v", 8)
        f = _function("f", ["x", "c"], [helper.make_node("If", ["c"], ["r"], then_branch=yes, else_branch=no)])
        inputs = [X, info("c", TensorProto.BOOL)]
        return model([_call("f", ["x", "c"], "y")], inputs, [OUT], functions=[f], domains=["test"])

    weights = {"test::f/B#1": normal(6, 4, seed=2), "test::f/B#2": normal(6, 4, seed=3)}
    return Case(build, weights, ROWS | {"c": np.array(False)})


def words_of(array: Array, scale: Array, zero: int, dtype: Any) -> Array:
    limits = np.iinfo(dtype)
    return np.clip(np.rint(array / scale) + zero, limits.min, limits.max).astype(dtype)


def _int8() -> tuple[Array, Array, Array]:
    """Weights, one scale for all, and their 8-bit words."""
    real = normal(6, 4, seed=1)
    scale = np.asarray(np.abs(real).max() / 127, np.float32)
    return real, scale, words_of(real, scale, 0, np.int8)


def _dequantized(
    dtype: Any, zero: int | None, axis: int | None = None, *, node: bool = False, scale_type: Any = np.float32
) -> Case:
    """A Conv whose weight stands behind a DequantizeLinear."""
    real = normal(4, 3, 3, 3, seed=1)
    scale = np.asarray(np.abs(real).max(axis=(1, 2, 3)) / 127 if axis == 0 else np.abs(real).max() / 127, scale_type)
    words = words_of(real, scale.astype(np.float32).reshape((4, 1, 1, 1) if axis == 0 else ()), zero or 0, dtype)
    point = None if zero is None else np.full(scale.shape, zero, dtype)
    code = TensorProto.FLOAT16 if scale_type == np.float16 else TensorProto.FLOAT

    def build(w: Weights) -> onnx.ModelProto:
        conv = helper.make_node("Conv", ["x", "V"], ["y"])
        x, y = info("x", code, "N", 3, 7, 7), info("y", code, "N", 4, 5, 5)
        if w["W"].dtype != dtype:
            return model([conv], [x], [y], {"V": w["W"].astype(scale_type)}, opset=19, ir_version=9)
        parameters = ["W", "s"] + ([] if point is None else ["z"])
        attributes = {} if axis is None else {"axis": axis}
        nodes = [helper.make_node("DequantizeLinear", parameters, ["V"], **attributes), conv]
        tensors = {"s": scale} | ({} if point is None else {"z": point})
        if node:
            nodes.insert(0, constant("W", w["W"]))
        else:
            tensors["W"] = w["W"]
        return model(nodes, [x], [y], tensors, opset=19, ir_version=9)

    feeds = {"x": normal(2, 3, 7, 7, seed=9, dtype=scale_type)}
    left_out = {"s": "DequantizeLinear"} | ({"z": "DequantizeLinear"} if axis == 0 and zero is not None else {})
    return Case(build, {"W": words}, feeds, left_out, axes={"W": None})


def _dequantized_transposed() -> Case:
    """A MatMul whose weight is dequantised, then transposed."""
    real = normal(4, 6, seed=1)
    scale = np.asarray(np.abs(real).max(axis=1) / 127, np.float32)
    words = words_of(real, scale[:, None], 0, np.int8)

    def build(w: Weights) -> onnx.ModelProto:
        tail = [helper.make_node("Transpose", ["D"], ["V"]), matmul("V")]
        if w["W"].dtype != np.int8:
            return model(tail, [X], [OUT], {"D": w["W"]})
        head = helper.make_node("DequantizeLinear", ["W", "s"], ["D"], axis=0)
        return model([head, *tail], [X], [OUT], {"W": w["W"], "s": scale})

    return Case(build, {"W": words}, ROWS, {"s": "DequantizeLinear"}, axes={"W": None})


def _quantised_by_graph() -> Case:
    """A float weight behind QuantizeLinear and DequantizeLinear, as quantisation-aware training exports it."""
    real, scale, words = _int8()

    def build(w: Weights) -> onnx.ModelProto:
        if w["Q"].dtype != np.int8:
            return model([matmul("V")], [X], [OUT], {"V": w["Q"]})
        if (w["Q"] != words).any():
            head = helper.make_node("DequantizeLinear", ["Q", "s"], ["V"])
            return model([head, matmul("V")], [X], [OUT], {"Q": w["Q"], "s": scale})
        nodes = [
            helper.make_node("QuantizeLinear", ["R", "s", "z"], ["Q"]),
            helper.make_node("DequantizeLinear", ["Q", "s", "z"], ["V"]),
            matmul("V"),
        ]
        return model(nodes, [X], [OUT], {"R": real, "s": scale, "z": np.array(0, np.int8)})

    return Case(build, {"Q": words}, ROWS, {"s": "DequantizeLinear"}, axes={"Q": None})


def _words_output() -> Case:
    """The quantised words are an output of the model as well."""
    _real, scale, words = _int8()

    def build(w: Weights) -> onnx.ModelProto:
        outputs = [OUT, info("W", TensorProto.INT8, 6, 4)]
        if w["W"].dtype != np.int8:
            return model([matmul("V")], [X], outputs, {"V": w["W"], "W": words})
        head = helper.make_node("DequantizeLinear", ["read", "s"], ["V"])
        if (w["W"] == words).all():
            head.input[0] = "W"
        return model([head, matmul("V")], [X], outputs, {"W": words, "read": w["W"], "s": scale})

    return Case(build, {"W": words}, ROWS, {"s": "DequantizeLinear"})


CASES: dict[str, Callable[[], Case]] = {
    **{f"conv-{kind}": (lambda kind=kind: _conv(kind)) for kind in ("float32", "float16")},
    "conv-depthwise": _depthwise,
    "conv-transpose": _conv_transpose,
    "gemm": lambda: _gemm(0),
    "gemm-transposed": lambda: _gemm(1),
    "gemm-double": lambda: _gemm(1, "double"),
    "gemm-left": lambda: _gemm_left(0),
    "gemm-left-transposed": lambda: _gemm_left(1),
    "matmul": _matmul,
    "matmul-float16": lambda: _matmul("float16"),
    "matmul-double": lambda: _matmul("double"),
    "matmul-batched": lambda: _matmul(shape=(2, 6, 4)),
    "matmul-vector": lambda: _matmul(shape=(6,)),
    "matmul-left": _matmul_left,
    **{f"gather-{kind}": (lambda kind=kind: _gather(kind)) for kind in FLOATS},
    "constant-node": _constant_node,
    "constant-node-output": _constant_node_output,
    "initializer-output": lambda: _initializer_output(8),
    "initializer-output-ir3": lambda: _initializer_output(3),
    "shared": _shared,
    "tied": _tied,
    "inputs-ir3": lambda: _listed_as_inputs(3),
    "inputs-ir8": lambda: _listed_as_inputs(8),
    "absent-inputs": _absent_inputs,
    "identity": lambda: _behind("Identity", (6, 4), 1),
    "transpose": lambda: _behind("Transpose", (4, 6), 0),
    "transpose-perm": lambda: _behind("Transpose", (4, 6), 0, perm=[1, 0]),
    "reshape": lambda: _behind("Reshape", (2, 3, 4), 2, np.array([6, -1])),
    "reshape-zero": lambda: _behind("Reshape", (6, 2, 2), None, np.array([0, -1])),
    "squeeze": lambda: _behind("Squeeze", (1, 6, 4), None, np.array([0])),
    "flatten": lambda: _behind("Flatten", (6, 2, 2), None),
    "constant-of-shape-ir3": lambda: _constant_of_shape(9, 3),
    "constant-of-shape": lambda: _constant_of_shape(17, 8),
    "computed": _computed,
    "odd-names": _odd_names,
    "colliding-names": _colliding_names,
    "empty": _empty,
    "all-zero": lambda: _equal_weights(0.0),
    "all-equal": lambda: _equal_weights(-0.3),
    "subnormal": _subnormal,
    "if": _if,
    "if-ir3": lambda: _if(3),
    "if-nested": _nested_if,
    "loop": _loop,
    "scan": _scan,
    "function-constant": _function_constant,
    "function-arguments": _function_arguments,
    "function-nested": _function_nested,
    "function-subgraph": _function_subgraph,
    "int8": lambda: _dequantized(np.int8, 0),
    "int8-no-zero-point": lambda: _dequantized(np.int8, None),
    "int8-zero-point": lambda: _dequantized(np.int8, -7),
    "int8-channels": lambda: _dequantized(np.int8, 0, 0),
    "int8-node": lambda: _dequantized(np.int8, 0, node=True),
    "int8-half-scale": lambda: _dequantized(np.int8, 0, scale_type=np.float16),
    "uint8": lambda: _dequantized(np.uint8, 128),
    "uint8-zero-point": lambda: _dequantized(np.uint8, 3),
    "uint8-no-zero-point": lambda: _dequantized(np.uint8, None),
    "uint8-channels": lambda: _dequantized(np.uint8, 100, 0),
    "int8-transposed": _dequantized_transposed,
    "quantised-by-graph": _quantised_by_graph,
    "int8-output": _words_output,
}
"""Every case by name."""
