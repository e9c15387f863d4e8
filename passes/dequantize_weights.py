"""Rewrites a quantised model so that its weights are floats: the form in which weights are analysed, never saved.

    DequantizeLinear(W)              W as a float constant; so for a bias in 32-bit integers
    QLinearConv, QLinearMatMul,
    com.microsoft::QGemm             Dequantize(x), Conv, MatMul or Gemm on floats, Quantize
    ConvInteger, MatMulInteger       the same in floats: W − zero point, the result cast back to 32-bit integers
    Gather(W), DequantizeLinear      Gather of floats; a QuantizeLinear before other readers of the integers
    com.microsoft::GatherBlockQuantized    Gather of floats
    com.microsoft::DynamicQuantizeLSTM     Transpose, LSTM
    com.microsoft::MatMulNBits       Transpose, MatMul[, Add]
    com.microsoft::QLinearAdd, …Mul  Dequantize, Add or Mul on floats, Quantize

    QuantizeLinear, DequantizeLinear  Max, Min: values stay within the range, which stands in for a Relu that quantisers
                                      drop, but are not rounded: the change that a small change of weights makes would
                                      drown in that

Layers, sensitivity and statistics are then found by the same code as those of float models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.graph import Owner, constant_array, constant_tensor, is_constant, walk
from qtaml_onnx.passes._graph import NameTable, NodeBuilder, add_constant, discard
from qtaml_onnx.quantized import BIAS_INPUTS, MICROSOFT, gathered_readers
from qtaml_onnx.weights import Weight, find_weights

__all__ = ["DequantizeWeights"]


class DequantizeWeights(ir.passes.InPlacePass):
    """Puts float weights in the place of integers; a model without quantised weights is left as it is.

    Attributes:
        weights: After the pass, by the name of each weight before it, the weight as it is now.
    """

    def __init__(self) -> None:
        """Starts without weights."""
        super().__init__()
        self.weights: dict[str, Weight] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        weights = find_weights(model).weights
        quantised = [weight for weight in weights if weight.grid is not None]
        if not quantised:
            self.weights = {weight.name: weight for weight in weights}
            return ir.passes.PassResult(model, modified=False)
        names = NameTable(model)
        held = {weight.name: weight.value for weight in weights if weight.grid is None}
        floats = _expand_recurrent(model, quantised, names)
        for weight in quantised:
            held[weight.name] = _Rewriter(model, weight, names, floats.get(id(weight.stored))).run()
        _expand_elementwise(model, names)
        _unround(model, names)
        now = {id(weight.value): weight for weight in find_weights(model).weights}
        self.weights = {name: now[id(value)] for name, value in held.items() if id(value) in now}
        return ir.passes.PassResult(model, modified=True)


class _Rewriter:
    """Rewrites the reader of one weight."""

    def __init__(self, model: ir.Model, weight: Weight, names: NameTable, floats: ir.Value | None) -> None:
        self.model, self.weight, self.names, self.floats = model, weight, names, floats
        self.node = weight.consumer
        self.builder = NodeBuilder(model, weight.owner, weight.name, "real", names)
        self.then = self.builder.then

    def run(self) -> ir.Value:
        """The float constant that stands for the weight now."""
        old = self.weight.stored
        value = self.constant(str(old.name), _floats(self.weight))
        if self.weight.dequantize is not None:
            self.weight.value.replace_all_uses_with(value, replace_graph_outputs=True)
            _drop(self.weight.dequantize)
            self._dequantize_bias()
        else:
            self._expand(value)
        discard(old)
        return value

    def _dequantize_bias(self) -> None:
        """Floats in the place of a bias that a DequantizeLinear makes of 32-bit integers."""
        bias = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        producer = bias.producer() if bias is not None else None
        if bias is None or producer is None or producer.op_type != "DequantizeLinear":
            return
        if not all(value is None or is_constant(value) for value in producer.inputs):
            return
        integers, scale = (constant_array(value) for value in producer.inputs[:2])  # type: ignore[arg-type]
        if integers.dtype == np.int32 and integers.size % scale.size == 0:
            real = (integers * scale.astype(np.float64)).astype(scale.dtype)
            bias.replace_all_uses_with(self.constant(str(bias.name), real))
            _drop(producer)

    def constant(self, name: str, array: NDArray[np.generic] | ir.TensorProtocol) -> ir.Value:
        """A float constant beside the weight."""
        return add_constant(self.model, self.weight.owner, self.names.fresh(f"{name}.real"), array)

    def _expand(self, value: ir.Value) -> None:
        node = self.node
        if self.floats is not None:
            product = self.floats.producer()
            self.floats.replace_all_uses_with(value)
            _drop_all(product)
            return
        if node.op_type == "Gather":
            self._gather(value)
            return
        result = {
            "QLinearConv": self._convolution,
            "QLinearMatMul": self._matmul,
            "QGemm": self._gemm,
            "ConvInteger": self._integer,
            "MatMulInteger": self._integer,
            "MatMulNBits": self._packed,
            "GatherBlockQuantized": self._gathered_blocks,
        }[node.op_type](value)
        _replace(node, self.builder.nodes, result, "before")

    def _gather(self, value: ir.Value) -> None:
        """A Gather of floats: layout operators pass these on as they did the integers."""
        readers = gathered_readers(self.node)
        self.node.replace_input_with(0, value)
        for reader, index in readers:
            passed_on = reader.inputs[index]
            self._untype(passed_on)
            builder = NodeBuilder(self.model, self.weight.owner, self.weight.name, "real", self.names)
            if reader.op_type == "DequantizeLinear":
                _replace(reader, builder.nodes, builder.then("Identity", [passed_on]), "integers")
            else:
                scale, point = (*reader.inputs[index + 1 : index + 3], None, None)[:2]
                if point is None:
                    point = self.constant("zero_point", np.zeros((), self.weight.dtype.numpy()))
                quantised = builder.then("QuantizeLinear", [passed_on, scale, point])
                reader.prepend(builder.nodes)
                reader.replace_input_with(index, quantised)

    def _untype(self, value: ir.Value | None) -> None:
        """Forgets that values between the table and a reader were integers."""
        while value is not None and not is_constant(value):
            value.type = None
            producer = value.producer()
            value = producer.inputs[0] if producer is not None else None

    def _gathered_blocks(self, value: ir.Value) -> ir.Value:
        axis = self.node.attributes["gather_axis"].as_int() if "gather_axis" in self.node.attributes else 0
        return self.then("Gather", [value, self._input(1)], {"axis": axis})

    def _input(self, index: int) -> ir.Value | None:
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def _dequantized(self, first: int) -> ir.Value:
        return self.then("DequantizeLinear", [self._input(first + i) for i in range(3)])

    def _real_bias(self, factor: float = 1.0) -> list[ir.Value]:
        """The bias in floats: 32-bit integers times both scales."""
        bias, scale = self._input(BIAS_INPUTS[self.node.op_type]), self._input(1)
        if bias is None or scale is None or self.weight.grid is None:
            return []
        step = factor * constant_array(scale).astype(np.float64) * np.ravel(self.weight.grid.step)
        if is_constant(bias):
            return [self.constant("bias", (constant_array(bias) * step).astype(np.float32))]
        real = self.then("Cast", [bias], {"to": ir.DataType.FLOAT})
        return [self.then("Mul", [real, self.constant("bias_scale", step.astype(np.float32))])]

    def _convolution(self, value: ir.Value) -> ir.Value:
        inputs = [self._dequantized(0), value, *self._real_bias()]
        result = self.then("Conv", inputs, dict(self.node.attributes))
        return self.then("QuantizeLinear", [result, self._input(6), self._input(7)])

    def _matmul(self, value: ir.Value) -> ir.Value:
        pair = [self._dequantized(0), value] if self.weight.operand == 3 else [value, self._dequantized(3)]
        return self.then("QuantizeLinear", [self.then("MatMul", pair), self._input(6), self._input(7)])

    def _gemm(self, value: ir.Value) -> ir.Value:
        alpha = self.node.attributes["alpha"].as_float() if "alpha" in self.node.attributes else 1.0
        result = self.then("Gemm", [self._dequantized(0), value, *self._real_bias(alpha)], dict(self.node.attributes))
        if self._input(7) is None:
            return result
        return self.then("QuantizeLinear", [result, self._input(7), self._input(8)])

    def _integer(self, value: ir.Value) -> ir.Value:
        other = 1 - self.weight.operand
        x = self.then("Cast", [self._input(other)], {"to": ir.DataType.FLOAT})
        point = self._input(2 + other)
        if point is not None:
            x = self.then("Sub", [x, self.then("Cast", [point], {"to": ir.DataType.FLOAT})])
        pair = [x, value] if other == 0 else [value, x]
        op_type = "Conv" if self.node.op_type == "ConvInteger" else "MatMul"
        result = self.then(op_type, pair, dict(self.node.attributes))
        return self.then("Cast", [self.then("Floor", [self._half_up(result)])], {"to": ir.DataType.INT32})

    def _half_up(self, value: ir.Value) -> ir.Value:
        return self.then("Add", [value, self.constant("half", np.asarray(0.5, np.float32))])

    def _packed(self, value: ir.Value) -> ir.Value:
        result = self.then("MatMul", [self._input(0), self.then("Transpose", [value], {"perm": [1, 0]})])
        bias = self._input(BIAS_INPUTS["MatMulNBits"])
        return result if bias is None else self.then("Add", [result, bias])


def _floats(weight: Weight) -> ir.TensorProtocol:
    """The weight in floats, computed whenever it is read: those of a whole model may not fit in memory."""
    tensor, grid = constant_tensor(weight.stored), weight.grid
    if grid is None:
        return tensor

    def compute() -> ir.TensorProtocol:
        return ir.tensor(grid.dequantize(grid.integers(np.asarray(tensor.numpy()))))

    return ir.LazyTensor(compute, dtype=ir.DataType.from_numpy(grid.float_type), shape=ir.Shape(grid.shape))


def _expand_recurrent(model: ir.Model, weights: Sequence[Weight], names: NameTable) -> dict[int, ir.Value]:
    """An LSTM in the place of each com.microsoft::DynamicQuantizeLSTM that reads one of the weights.

    Its matrices are (integer − zero point) · step, transposed, as the integers stand with their units last.

    Returns:
        For the matrices, by the identity of their integers, that product.
    """
    floats: dict[int, ir.Value] = {}
    readers = {id(weight.consumer): weight for weight in weights if weight.consumer.op_type == "DynamicQuantizeLSTM"}
    for weight in readers.values():
        node, builder = weight.consumer, NodeBuilder(model, weight.owner, weight.name, "real", names)
        given = [*node.inputs, *[None] * (12 - len(node.inputs))]
        matrices = []
        for operand, first in ((1, 8), (2, 10)):
            integers, step, point = given[operand], *given[first : first + 2]
            shape = builder.constant("spread", np.asarray([0, 1, -1], np.int64))  # a step a direction or unit
            product = builder.then("Cast", [integers], {"to": ir.DataType.FLOAT})
            if point is not None:
                counted = builder.then("Cast", [point], {"to": ir.DataType.FLOAT})
                product = builder.then("Sub", [product, builder.then("Reshape", [counted, shape])])
            product = builder.then("Mul", [product, builder.then("Reshape", [step, shape])])
            matrices.append(builder.then("Transpose", [product], {"perm": [0, 2, 1]}))
            if integers is not None:
                floats[id(integers)] = product
        inputs = [given[0], *matrices, *given[3:8]]
        lstm = ir.node("LSTM", inputs, dict(node.attributes), num_outputs=len(node.outputs), name=names.fresh("LSTM"))
        node.prepend([*builder.nodes, lstm])
        for old, new in zip(node.outputs, lstm.outputs, strict=True):
            name = old.name
            old.name = names.fresh(f"{name}.quantised") if name else name
            new.type, new.shape = old.type, old.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            new.name = name
        _drop(node)
    return floats


def _expand_elementwise(model: ir.Model, names: NameTable) -> None:
    """Floats between Dequantize and Quantize in the place of com.microsoft::QLinearAdd and QLinearMul."""
    for _root, node in list(walk(model)):
        if node.domain != MICROSOFT or node.op_type not in ("QLinearAdd", "QLinearMul"):
            continue
        given = [*node.inputs, *[None] * (8 - len(node.inputs))]
        parts = [ir.node("DequantizeLinear", given[first : first + 3]) for first in (0, 3)]
        parts.append(ir.node(node.op_type.removeprefix("QLinear"), [part.outputs[0] for part in parts]))
        parts.append(ir.node("QuantizeLinear", [parts[-1].outputs[0], *given[6:8]]))
        for part in parts:
            part.name = names.fresh(f"{node.name}/{part.op_type}")
            part.outputs[0].name = names.fresh(f"{part.name}_output")
        _replace(node, parts, parts[-1].outputs[0], "before")


def _unround(model: ir.Model, names: NameTable) -> None:
    """Limits in the place of every QuantizeLinear whose result is dequantised by the same constants."""
    for root, node in list(walk(model)):
        source = (
            node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] is not None else None
        )
        if source is None or source.op_type != "QuantizeLinear" or source.inputs[0] is None:
            continue
        limits = _range(source)
        if limits is None or node.graph is None:
            continue
        owner: Owner = root if isinstance(root, ir.Function) and node.graph in (root, root.graph) else node.graph
        value, nodes = source.inputs[0], []
        for op_type, limit in zip(("Max", "Min"), limits, strict=True):
            constant = add_constant(model, owner, names.fresh(f"{node.outputs[0].name}.{op_type.lower()}"), limit)
            nodes.append(ir.node(op_type, [value, constant], name=names.fresh(f"{node.name}/{op_type}")))
            value = nodes[-1].outputs[0]
            value.name = names.fresh(f"{node.outputs[0].name}.{op_type}")
        _replace(node, nodes, value, "rounded")
        _drop(source)


def _range(quantize: ir.Node) -> tuple[NDArray[np.generic], NDArray[np.generic]] | None:
    """The least and the largest number that a QuantizeLinear with one scale leaves; None where it is not constant."""
    if not all(value is None or is_constant(value) for value in quantize.inputs[1:]):
        return None
    scale = constant_array(quantize.inputs[1])  # type: ignore[arg-type]
    given = len(quantize.inputs) > 2 and quantize.inputs[2] is not None
    point = constant_array(quantize.inputs[2]) if given else np.zeros((), np.uint8)  # type: ignore[arg-type]
    if scale.size != 1 or point.dtype.kind not in "iu":
        return None
    ends = (np.asarray([np.iinfo(point.dtype).min, np.iinfo(point.dtype).max], np.float64) - float(point)) * float(
        scale
    )
    return np.asarray(ends[0], dtype=scale.dtype), np.asarray(ends[1], dtype=scale.dtype)


def _replace(node: ir.Node, nodes: Sequence[ir.Node], result: ir.Value, was: str) -> None:
    """Puts other nodes in the place of one with one output, whose name and type their result takes over."""
    old = node.outputs[0]
    node.prepend(nodes)
    name, old.name = old.name, f"{old.name}.{was}"
    result.type, result.shape = old.type, old.shape
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    result.name = name
    _drop(node)


def _drop_all(node: ir.Node | None) -> None:
    """Drops an operator whose results nothing reads, and those before it that were for it alone."""
    if node is not None and not any(output.uses() or output.is_graph_output() for output in node.outputs):
        before = [value.producer() for value in node.inputs if value is not None and not is_constant(value)]
        _drop(node)
        for producer in before:
            _drop_all(producer)


def _drop(node: ir.Node) -> None:
    if node.graph is not None and not any(output.uses() or output.is_graph_output() for output in node.outputs):
        inputs = [value for value in node.inputs if value is not None]
        node.graph.remove(node, safe=True)
        for value in inputs:
            if is_constant(value):
                discard(value)
