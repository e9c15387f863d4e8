"""Measures layer inputs and outputs on calibration samples: means and variances a channel, nothing else is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.data import Dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.layers import Layer, LayerStatistics, tap_coverage
from qtaml_onnx.runtime import create_session, session_options

__all__ = ["LayerMeter", "calibrate_layers"]


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


class LayerMeter:
    """Measures layers of one model, with one session for any number of measurements."""

    def __init__(self, model: ir.Model, layers: Sequence[Layer]) -> None:
        """Makes the session.

        Args:
            model: The model, or an instrumented one that has the layers' inputs and outputs under the same names; not
                changed.
            layers: Which layers.
        """
        self._layers = list(layers)
        self._inputs = {str(value.name) for value in model.graph.inputs}
        self._wanted = sorted({name for layer in layers for name in (layer.input, layer.output)})
        self._names = [name for name in self._wanted if name not in self._inputs]
        proto = ir.to_proto(model)
        present = {output.name for output in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._names if name not in present)
        self._session = create_session(proto, session_options(optimization_level="basic")) if self._wanted else None

    def measure(
        self,
        data: Dataset,
        *,
        batch_size: int = 64,
        extra: Mapping[str, NDArray[np.generic]] | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> dict[str, LayerStatistics]:
        """Statistics of each layer by the name of its weight.

        Args:
            data: Samples; labels are not used.
            batch_size: Samples a run.
            extra: More inputs, the same for all runs.
            progress: Called after each run.

        Raises:
            InputError: if the model does not run on the data.
        """
        if self._session is None:
            return {}
        pairs = [(name, layer.channel_axis) for layer in self._layers for name in (layer.input, layer.output)]
        moments = {pair: _Moments() for pair in pairs}
        for feed, count in data.feeds(batch_size):
            try:
                found = self._session.run(self._names, {**feed, **(extra or {})}) if self._names else []
            except Exception as error:  # onnxruntime raises types of its own, without a common base
                text = str(error).splitlines()[0][:200]
                raise InputError(f"the model does not run on {data.source}: {text}") from error
            values = dict(zip(self._names, found, strict=True))
            values |= {name: feed[name] for name in self._wanted if name in feed}
            fed = None if data.one_by_one else len(next(iter(feed.values())))
            for (name, axis), moment in moments.items():
                array = np.asarray(values[name])
                filled_up = len(array) == fed and count < len(array)  # a fixed batch whose last samples are repeats
                moment.add(array[:count] if filled_up else array, axis)
            progress()
        result = {}
        for layer in self._layers:
            before, after = moments[layer.input, layer.channel_axis], moments[layer.output, layer.channel_axis]
            coverage = np.ones(())
            if layer.op_type in ("Conv", "ConvTranspose"):
                kernel = tuple(int(n) for n in _kernel(layer))
                coverage = tap_coverage(layer.node, kernel, before.spatial, after.spatial)
            result[layer.weight] = LayerStatistics(before.mean, before.variance, after.variance, coverage)
        return result


def calibrate_layers(
    model: ir.Model,
    layers: list[Layer],
    data: Dataset,
    *,
    batch_size: int = 64,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, LayerStatistics]:
    """Statistics of each layer by the name of its weight: one measurement of a `LayerMeter`."""
    return LayerMeter(model, layers).measure(data, batch_size=batch_size, progress=progress)


def _kernel(layer: Layer) -> tuple[int, ...]:
    weight = layer.node.inputs[1]
    shape = weight.shape if weight is not None else None
    if shape is None:
        raise InputError(f"the kernel of '{layer.weight}' has no shape; run shape inference on the model")
    return tuple(int(n) for n in shape[2:])  # type: ignore[arg-type]
