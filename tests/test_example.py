"""The bundled example: the committed model, its data sets and what its README claims about them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from digits_example import DIGITS, MODEL
from onnx import numpy_helper
from scripts import load_script
from sklearn.datasets import load_digits  # type: ignore[import-untyped]


def arrays(name: str) -> dict[str, npt.NDArray[np.generic]]:
    with np.load(DIGITS / name, allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(MODEL)


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    return ort.InferenceSession(MODEL, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    data = load_digits()
    return (data.images[:, np.newaxis] / 16).astype(np.float32), data.target.astype(np.int64)


def rows_of(images: npt.NDArray[np.generic], everything: npt.NDArray[np.float32]) -> list[int]:
    """Row of each image in the data set, KeyError for one that is not in it; all 1797 images differ."""
    row = {image.tobytes(): number for number, image in enumerate(everything)}
    assert len(row) == len(everything) == 1797
    return [row[image.tobytes()] for image in images]


def test_model_is_valid_and_its_size_is_the_readme_s(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    assert len(inferred.graph.value_info) == len(model.graph.node) - 1  # every tensor but the output
    assert model.ir_version == 8
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    parameters = sum(numpy_helper.to_array(tensor).size for tensor in model.graph.initializer)
    assert 20_000 <= parameters <= 60_000
    assert f"{parameters:,} parameters" in (DIGITS / "README.md").read_text(encoding="utf-8")


def test_graph_is_an_inference_graph_with_clean_names(model: onnx.ModelProto) -> None:
    graph = model.graph
    assert [node.op_type for node in graph.node].count("Conv") == 5
    assert {node.op_type for node in graph.node} == {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    assert [value.name for value in graph.input] == ["image"]
    assert [value.name for value in graph.output] == ["logits"]
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert [tensor.name for tensor in graph.initializer] == [
        f"{node.name}.{kind}" for node in layers for kind in ("weight", "bias")
    ]
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert values.std() > 0
    assert not model.metadata_props
    assert not any(part.doc_string for part in (model, graph, *graph.node, *graph.initializer))


def test_batch_axis_is_dynamic(session: ort.InferenceSession) -> None:
    images = arrays("digits_eval.npz")["image"]
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]
    together = session.run(["logits"], {"image": images[:32]})[0]
    alone = np.concatenate([session.run(["logits"], {"image": images[i : i + 1]})[0] for i in range(32)])
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-4)


def test_held_out_accuracy(session: ort.InferenceSession) -> None:
    data = arrays("digits_eval.npz")
    predicted = session.run(["logits"], {"image": data["image"]})[0].argmax(axis=1)
    accuracy = float(np.mean(predicted == data["labels"]))
    assert accuracy >= 0.97
    assert f"{100 * accuracy:.1f} % of the {len(predicted)} held-out" in (DIGITS / "README.md").read_text("utf-8")


def test_arrays_are_what_the_command_line_reads() -> None:
    evaluation, calibration = arrays("digits_eval.npz"), arrays("digits_calibration.npz")
    assert set(evaluation) == {"image", "labels"}
    assert set(calibration) == {"image"}
    assert evaluation["labels"].dtype == np.int64
    assert evaluation["labels"].shape == evaluation["image"].shape[:1]
    assert np.bincount(evaluation["labels"].astype(np.int64), minlength=10).min() >= 58
    for images in (evaluation["image"], calibration["image"]):
        assert images.dtype == np.float32
        assert images.shape[1:] == (1, 8, 8)
        assert (images.min(), images.max()) == (0, 1)


def test_held_out_images_are_genuine_and_served_nothing_else(
    digits: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
) -> None:
    everything, labels = digits
    evaluation = arrays("digits_eval.npz")
    held_out = rows_of(evaluation["image"], everything)
    calibration = rows_of(arrays("digits_calibration.npz")["image"], everything)
    np.testing.assert_array_equal(evaluation["labels"], labels[held_out])

    split = load_script(DIGITS / "split.py").split_digits(labels)
    assert held_out == split.evaluation.tolist()
    assert calibration == split.calibration.tolist()
    train = set(split.train.tolist())
    assert len(train) == len(split.train) == 1201
    assert train.isdisjoint(held_out)
    assert train.union(held_out) == set(range(1797))
    assert train.issuperset(calibration)
    assert len(set(held_out)) == 596
    assert len(set(calibration)) == 197


def test_split_is_stratified() -> None:
    labels = np.array([3, 7] * 9, dtype=np.int64)
    split = load_script(DIGITS / "split.py").split_digits(labels)
    # a class's rows 2, 5, 8 are held out; of the six that remain the last calibrates
    assert split.evaluation.tolist() == [4, 5, 10, 11, 16, 17]
    assert split.train.tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15]
    assert split.calibration.tolist() == [14, 15]
