"""Exports networks with random weights by both of torch's exporters, and quantises some: what exported.py hardens.

    python benchmarks/export_models.py DIR [--only PATTERN]

Needs torch, torchvision, onnxscript and onnxruntime, which this project does not install; says so where they are
missing. A file is <network>-<script|dynamo>.onnx, by the exporter that goes through TorchScript or the newer one, with
-qdq, -qoperator or -dynamic behind it where onnxruntime quantised it. Files that exist are kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

try:
    import torch
    import torchvision
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from torch import nn
except ImportError as missing:
    print(f"NOTHING IS EXPORTED: {missing}; install torch, torchvision, onnxscript and onnxruntime", file=sys.stderr)
    sys.exit(0)

SIDE, TOKENS, WIDTH, WORDS = 64, 12, 48, 200
OPSET = 20


class Tagger(nn.Module):
    """An embedding, a recurrent network in both directions, and a linear layer."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.recurrent = kind(WIDTH, WIDTH, num_layers=2, bidirectional=True, batch_first=True)
        self.last = nn.Linear(2 * WIDTH, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.last(self.recurrent(self.embedding(tokens))[0])


class Encoder(nn.Module):
    """An embedding and a transformer encoder of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(WIDTH, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.last(self.encoder(self.embedding(tokens)))


class UNet(nn.Module):
    """Two scales, with a transposed convolution back up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.GroupNorm(4, 32), nn.SiLU())
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.last = nn.Conv2d(32, 5, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        wide = self.down(image)
        return self.last(torch.cat([wide, self.up(self.deep(wide))], dim=1))


def _vision(name: str, **more: Any) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, **more)


VISION: dict[str, Callable[[], nn.Module]] = {
    "unet": UNet,
    "vit": lambda: torchvision.models.VisionTransformer(SIDE, 16, 4, 3, 192, 768),
    "squeezenet1_1": _vision("squeezenet1_1"),
    "mobilenet_v3_small": _vision("mobilenet_v3_small"),
    "shufflenet_v2_x0_5": _vision("shufflenet_v2_x0_5"),
    "mnasnet0_5": _vision("mnasnet0_5"),
    "efficientnet_b0": _vision("efficientnet_b0"),
    "regnet_y_400mf": _vision("regnet_y_400mf"),
    "densenet121": _vision("densenet121"),
    "googlenet": _vision("googlenet", aux_logits=False, init_weights=False),
    "lraspp": _vision("lraspp_mobilenet_v3_large", weights_backbone=None),
    "convnext_tiny": _vision("convnext_tiny"),
    "swin_t": _vision("swin_t"),
}
LANGUAGE: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Tagger(nn.LSTM),
    "gru": lambda: Tagger(nn.GRU),
    "encoder": Encoder,
}
QUANTISED = ("mobilenet_v3_small", "vit", "lstm", "encoder", "unet")


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network with random weights, and an input of one sample.

    Everything is a little off what networks start out with: exporters drop biases that are all 0, and share norms that
    are all 1, and the weights of layers that are copies.
    """
    torch.manual_seed(0)
    model = (LANGUAGE | VISION)[name]().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor *= 1 + 0.1 * torch.rand_like(tensor)
                if tensor.ndim == 1:
                    tensor += 0.1 * torch.rand_like(tensor)
                elif not tensor.any():  # a head that would give its bias whatever it reads
                    tensor.normal_(std=0.02)
    if name in LANGUAGE:
        return model, torch.randint(0, WORDS, (1, TOKENS))
    return model, torch.randn(1, 3, SIDE, SIDE)


def export(name: str, exporter: str, path: Path) -> None:
    """Writes one model; its first axis is the batch."""
    model, sample = build(name)
    batch: dict[str, Any] = {"dynamic_axes": {"input": {0: "batch"}}}
    if exporter == "dynamo":
        batch = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
        sample = torch.cat([sample, sample])  # an extent of 1 is taken for a constant
    torch.onnx.export(
        model, (sample,), str(path), dynamo=exporter == "dynamo", input_names=["input"], opset_version=OPSET, **batch
    )


class Samples:
    """A few random inputs, as onnxruntime's quantiser reads them."""

    def __init__(self, name: str) -> None:
        generator = np.random.default_rng(1)

        def draw() -> Any:
            if name in LANGUAGE:
                return generator.integers(0, WORDS, (2, TOKENS))
            return generator.standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)

        self._feeds: Iterator[dict[str, Any]] = iter([{"input": draw()} for _ in range(4)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def quantise(name: str, source: Path, form: str, path: Path) -> None:
    """Writes a model quantised by onnxruntime, prepared as its documentation asks: shapes known, constants folded."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / source.name
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        _quantise(name, prepared, form, path)


def _quantise(name: str, source: Path, form: str, path: Path) -> None:
    if form == "dynamic":
        quantize_dynamic(source, path, weight_type=QuantType.QInt8)
        return
    quantize_static(
        source,
        path,
        Samples(name),
        quant_format=QuantFormat.QDQ if form == "qdq" else QuantFormat.QOperator,
        per_channel=form == "qdq",
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def main() -> None:
    """Exports what is asked for; a network that an exporter cannot take is named and left out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", help="networks whose names match this pattern")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    jobs: list[tuple[Path, Callable[[Path], None]]] = []
    for name in (name for name in LANGUAGE | VISION if fnmatchcase(name, arguments.only)):
        for exporter in ("script", "dynamo"):
            path = arguments.folder / f"{name}-{exporter}.onnx"
            jobs.append((path, lambda to, n=name, e=exporter: export(n, e, to)))
        for form in ("qdq", "qoperator", "dynamic") if name in QUANTISED else ():
            source = arguments.folder / f"{name}-script.onnx"
            path = source.with_name(f"{source.stem}-{form}.onnx")
            jobs.append((path, lambda to, n=name, s=source, f=form: quantise(n, s, f, to)))
    for path, write in jobs:
        if path.exists():
            continue
        try:
            write(path)
        except Exception as error:
            path.unlink(missing_ok=True)
            print(f"{path.name}: not exported: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        else:
            print(path.name, flush=True)


if __name__ == "__main__":
    main()
