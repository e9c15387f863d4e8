"""Measures layer inputs and outputs on calibration samples: means and variances a channel, nothing else is kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.data import Dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.layers import Layer, LayerStatistics, tap_coverage
from qtaml_onnx.runtime import create_session, session_options

__all__ = ["calibrate_layers"]


class _Moments:
    """Running sum and sum of squares a channel, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: NDArray[np.float64] | None = None
        self.spatial: tuple[int, ...] = ()

    def add(self, array: NDArray[np.floating], axis: int) -> None:
        values = np.moveaxis(array.astype(np.float64), axis, -1)
        self.spatial = values.shape[1:-1]
        flat = values.reshape(-1, values.shape[-1])
        sums = np.stack([flat.sum(axis=0), (flat**2).sum(axis=0)])
        self.sums = sums if self.sums is None else self.sums + sums
        self.count += len(flat)

    @property
    def mean(self) -> NDArray[np.float64]:
        assert self.sums is not None
        return np.asarray(self.sums[0] / self.count)

    @property
    def variance(self) -> NDArray[np.float64]:
        assert self.sums is not None
        return np.asarray(np.maximum(self.sums[1] / self.count - self.mean**2, 0.0))


def calibrate_layers(
    model: ir.Model,
    layers: list[Layer],
    data: Dataset,
    *,
    batch_size: int = 64,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, LayerStatistics]:
    """Statistics of each layer by the name of its weight.

    Args:
        model: The model; not changed.
        layers: Which layers.
        data: Calibration samples; labels are not used.
        batch_size: Samples a run.
        progress: Called after each run.

    Raises:
        InputError: if the model does not run on the data.
    """
    wanted = sorted({name for layer in layers for name in (layer.input, layer.output)})
    if not wanted:
        return {}
    inputs = {str(value.name) for value in model.graph.inputs}
    proto = ir.to_proto(model)
    present = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in wanted if name not in present and name not in inputs
    )
    session = create_session(proto, session_options(optimization_level="basic"))
    names = [name for name in wanted if name not in inputs]
    moments = {(name, layer.channel_axis): _Moments() for layer in layers for name in (layer.input, layer.output)}
    for feed, count in data.feeds(batch_size):
        try:
            values = dict(zip(names, session.run(names, feed), strict=True)) if names else {}
        except Exception as error:  # onnxruntime raises types of its own, without a common base
            raise InputError(f"the model does not run on {data.source}: {str(error).splitlines()[0][:200]}") from error
        values |= {name: feed[name] for name in wanted if name in feed}
        fed = None if data.one_by_one else len(next(iter(feed.values())))
        for (name, axis), moment in moments.items():
            array = np.asarray(values[name])
            filled_up = len(array) == fed and count < len(array)  # a fixed batch whose last samples are repeats
            moment.add(array[:count] if filled_up else array, axis)
        progress()
    result = {}
    for layer in layers:
        before, after = moments[layer.input, layer.channel_axis], moments[layer.output, layer.channel_axis]
        coverage = np.ones(())
        if layer.op_type in ("Conv", "ConvTranspose"):
            kernel = tuple(int(n) for n in _kernel(layer))
            coverage = tap_coverage(layer.node, kernel, before.spatial, after.spatial)
        result[layer.weight] = LayerStatistics(before.mean, before.variance, after.variance, coverage)
    return result


def _kernel(layer: Layer) -> tuple[int, ...]:
    weight = layer.node.inputs[1]
    shape = weight.shape if weight is not None else None
    if shape is None:
        raise InputError(f"the kernel of '{layer.weight}' has no shape; run shape inference on the model")
    return tuple(int(n) for n in shape[2:])  # type: ignore[arg-type]
