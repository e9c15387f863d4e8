"""Train the example's network on scikit-learn's digits and write the model and its two data sets.

Only needed to retrain; the files that it writes are committed. Apart from the project's own requirements it needs
``pip install torch scikit-learn``. Run it with ``python examples/digits/train.py``: about half a minute on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from split import split_digits
from torch import Tensor, nn
from torch.nn import functional as F

SEED = 2026
EPOCHS = 60
BATCH = 32
PEAK_LEARNING_RATE = 0.1
WEIGHT_DECAY = 1e-3
NARROW, WIDE = 24, 48  # channels at 8×8 and at 4×4 pixels
OPSET, IR_VERSION = 17, 8
MINIMUM_ACCURACY = 0.97

Floats = npt.NDArray[np.float32]


class ConvNorm(nn.Module):
    """A 3×3 convolution and its batch normalisation, which ``folded`` merges for inference."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(self.conv(x))
        return normalised

    def folded(self) -> tuple[Floats, Floats]:
        """Weight [O, I, 3, 3] and bias [O] of the one convolution that equals both layers in evaluation mode."""
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        gain = self.norm.weight.double() / torch.sqrt(self.norm.running_var.double() + self.norm.eps)
        weight = self.conv.weight.double() * gain[:, None, None, None]
        bias = self.norm.bias.double() - self.norm.running_mean.double() * gain
        return weight.detach().float().numpy(), bias.detach().float().numpy()


class DigitsNet(nn.Module):
    """Five convolutions, two of them in a residual block, average pooling and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, NARROW)
        self.block1 = ConvNorm(NARROW, NARROW)
        self.block2 = ConvNorm(NARROW, NARROW)
        self.down = ConvNorm(NARROW, WIDE, stride=2)
        self.last = ConvNorm(WIDE, WIDE)
        self.classifier = nn.Linear(WIDE, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(image))
        x = F.relu(x + self.block2(F.relu(self.block1(x))))
        x = F.relu(self.last(F.relu(self.down(x))))
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image [N, 1, 8, 8] by at most one pixel a direction; what enters is background."""
    offsets = torch.randint(0, 3, (len(images), 2), generator=generator).tolist()
    padded = F.pad(images, (1, 1, 1, 1))
    return torch.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, offsets, strict=True)])


def train(images: Floats, labels: npt.NDArray[np.int64]) -> DigitsNet:
    """Fit a network to ``images`` [N, 1, 8, 8] and ``labels`` [N] by a fixed recipe: the last epoch is the result."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums in a fixed order
    generator = torch.Generator().manual_seed(SEED)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    net = DigitsNet()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=PEAK_LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    steps = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=EPOCHS * steps)
    net.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            optimizer.zero_grad()
            F.cross_entropy(net(shifted(x[batch], generator)), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net.eval()


def export(net: DigitsNet) -> onnx.ModelProto:
    """Write the network in standard ONNX operators, every batch normalisation folded into its convolution."""
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []

    def node(op_type: str, name: str, *inputs: str, **attributes: Any) -> str:
        output = f"{name}.out" if name != "classifier" else "logits"
        nodes.append(helper.make_node(op_type, list(inputs), [output], name=name, **attributes))
        return output

    def parameters(name: str, weight: Floats, bias: Floats) -> tuple[str, str]:
        initializers.append(numpy_helper.from_array(weight, f"{name}.weight"))
        initializers.append(numpy_helper.from_array(bias, f"{name}.bias"))
        return f"{name}.weight", f"{name}.bias"

    def conv(name: str, source: str, layer: ConvNorm) -> str:
        stride = layer.conv.stride[0]
        return node(
            "Conv",
            name,
            source,
            *parameters(name, *layer.folded()),
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
            strides=[stride, stride],
        )

    stem = node("Relu", "stem.relu", conv("stem", "image", net.stem))
    branch = node("Relu", "block1.relu", conv("block1", stem, net.block1))
    joined = node("Add", "block.add", conv("block2", branch, net.block2), stem)
    x = node("Relu", "block.relu", joined)
    x = node("Relu", "down.relu", conv("down", x, net.down))
    x = node("Relu", "last.relu", conv("last", x, net.last))
    x = node("Flatten", "flatten", node("GlobalAveragePool", "pool", x), axis=1)
    weight = net.classifier.weight.detach().numpy()
    bias = net.classifier.bias.detach().numpy()
    node("Gemm", "classifier", x, *parameters("classifier", weight, bias), transB=1)

    graph = helper.make_graph(
        nodes,
        "digits_cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        initializers,
    )
    return helper.make_model(
        graph,
        producer_name="qtaml-onnx-digits",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )


def check(model: onnx.ModelProto, net: DigitsNet, images: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Return the model's accuracy in onnxruntime; AssertionError unless it is valid and equals the trained network."""
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"image": images})[0]
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert np.array_equal(logits.argmax(axis=1), expected.argmax(axis=1))
    accuracy = float(np.mean(logits.argmax(axis=1) == labels))
    assert accuracy >= MINIMUM_ACCURACY, f"held-out accuracy {accuracy:.4f} is below {MINIMUM_ACCURACY}"
    return accuracy


def main() -> None:
    """Train, check and write ``digits_cnn.onnx``, ``digits_eval.npz`` and ``digits_calibration.npz``."""
    parser = argparse.ArgumentParser(description="Train the digits example and write its model and data.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="existing folder for the three files")
    out: Path = parser.parse_args().out

    data = load_digits()
    images = (data.images[:, np.newaxis] / 16).astype(np.float32)  # 0..16 grey levels become 0..1, without rounding
    labels = data.target.astype(np.int64)
    part = split_digits(labels)

    net = train(images[part.train], labels[part.train])
    model = export(net)
    accuracy = check(model, net, images[part.evaluation], labels[part.evaluation])

    onnx.save(model, out / "digits_cnn.onnx")
    np.savez_compressed(out / "digits_eval.npz", image=images[part.evaluation], labels=labels[part.evaluation])
    np.savez_compressed(out / "digits_calibration.npz", image=images[part.calibration])
    size = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    print(f"{size} parameters, accuracy {accuracy:.4f} on {len(part.evaluation)} held-out images")


if __name__ == "__main__":
    main()
