"""Data sets: what is read, what is refused and in which words, how batches are fed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qtaml_onnx.data import Dataset, InputSpec, load_dataset, synthetic_dataset
from qtaml_onnx.errors import InputError

F32 = np.dtype(np.float32)
SPEC = InputSpec("x", F32, (None, 3, 2))


def save(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def image(samples: int = 5, dtype: object = np.float32) -> np.ndarray:
    return np.arange(samples * 6).reshape(samples, 3, 2).astype(dtype)  # type: ignore[call-overload]


def test_reads_samples_and_labels(tmp_path: Path) -> None:
    data = load_dataset(save(tmp_path / "d.npz", x=image(), labels=np.arange(5), other=np.zeros(2)), [SPEC], "--eval")
    assert len(data) == 5
    assert set(data.arrays) == {"x"}
    assert data.labels is not None
    np.testing.assert_array_equal(data.labels, np.arange(5))
    assert (data.one_by_one, data.batch) == (False, None)
    assert len(data.head(2)) == 2
    assert list(data.head(2).labels) == [0, 1]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": image()}, "has no array 'x' .it has y.; save one array a graph input"),
        ({"x": image(dtype=np.float64)}, "array 'x' is float64, the graph input is float32; convert it"),
        ({"x": np.zeros(5, np.float32)}, "rank 1, the graph input 3"),
        ({"x": np.zeros((5, 2, 2), np.float32)}, "samples of 'x' are 2×2, the graph input takes 3×2"),
        ({"x": np.zeros((5, 1, 1, 3, 2), np.float32)}, "rank 5"),
        ({"x": np.float32(3)}, "'x' is a single number"),
        ({"x": image(), "labels": np.arange(4)}, "differ in their number of samples .x 5, labels 4."),
        ({"x": image(), "labels": np.arange(5.0)}, "labels are float64; save them as integers"),
        ({"x": image(), "labels": np.int64(3)}, "labels are a single number"),
        ({"x": image(0)}, "holds no samples"),
        ({"x": np.full((5, 3, 2), np.nan, np.float32)}, "'x' has NaN or infinite values"),
        ({"x": np.array([{"a": 1}], dtype=object)}, "is not an .npz file of plain arrays"),
    ],
)
def test_refuses_with_the_thing_and_the_mend(arrays: dict[str, object], message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(path, [SPEC], "--eval")
    assert str(caught.value).startswith(f"--eval {path}")
    assert "\n" not in str(caught.value)


def test_refuses_files_that_are_no_archive(tmp_path: Path) -> None:
    whole = save(tmp_path / "d.npz", x=image()).read_bytes()
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("x,y\n1,2\n")
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "jpeg.npz").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    np.save(tmp_path / "single.npy", image())
    (tmp_path / "folder.npz").mkdir()
    broken = bytearray(whole)
    broken[60:90] = bytes(30)  # inside the array's header
    (tmp_path / "broken.npz").write_bytes(broken)
    for name in ("empty.npz", "text.npz", "cut.npz", "jpeg.npz", "single.npy", "folder.npz", "broken.npz"):
        with pytest.raises(InputError, match=r"not an .npz file of plain arrays"):
            load_dataset(tmp_path / name, [SPEC], "--calibration")
    with pytest.raises(InputError, match="no such file"):
        load_dataset(tmp_path / "missing.npz", [SPEC], "--calibration")


def test_members_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x", b"not an array")
    with pytest.raises(InputError):
        load_dataset(tmp_path / "d.npz", [SPEC], "--eval")


def test_an_input_may_be_called_labels(tmp_path: Path) -> None:
    spec = InputSpec("labels", F32, (None, 3))
    data = load_dataset(save(tmp_path / "d.npz", labels=np.zeros((4, 3), np.float32)), [spec], "--eval")
    assert data.labels is None
    assert data.arrays["labels"].shape == (4, 3)


def test_samples_that_are_whole_inputs(tmp_path: Path) -> None:
    specs = [InputSpec("x", F32, (1, None, 3)), InputSpec("h", F32, (2, 1, 4)), InputSpec("n", np.dtype(np.int64), ())]
    arrays = {"x": np.zeros((5, 1, 7, 3), np.float32), "h": np.zeros((5, 2, 1, 4), np.float32), "n": np.arange(5)}
    data = load_dataset(save(tmp_path / "d.npz", **arrays), specs, "--eval")
    assert data.one_by_one
    feeds = list(data.feeds(256))
    assert len(feeds) == 5
    assert {name: value.shape for name, value in feeds[3][0].items()} == {"x": (1, 7, 3), "h": (2, 1, 4), "n": ()}
    assert feeds[3][0]["n"] == 3
    mixed = arrays | {"x": np.zeros((5, 7, 3), np.float32)}
    with pytest.raises(InputError, match="some arrays have a sample axis before the batch axis"):
        load_dataset(save(tmp_path / "m.npz", **mixed), specs, "--eval")


def test_fixed_batches_are_filled_up_with_the_first_sample() -> None:
    data = Dataset({"x": np.arange(7)}, None, False, 3, "test")
    feeds = [(list(feed["x"]), count) for feed, count in data.feeds(256)]
    assert feeds == [([0, 1, 2], 3), ([3, 4, 5], 3), ([6, 6, 6], 1)]


def test_free_batches_are_cut() -> None:
    data = Dataset({"x": np.arange(7)}, None, False, None, "test")
    assert [(list(feed["x"]), count) for feed, count in data.feeds(4)] == [([0, 1, 2, 3], 4), ([4, 5, 6], 3)]


def test_synthetic_inputs_are_seeded_and_fit() -> None:
    specs = [
        InputSpec("f", F32, (None, 3, None)),
        InputSpec("b", np.dtype(np.uint8), (None, 4)),
        InputSpec("i", np.dtype(np.int64), (None,)),
        InputSpec("t", np.dtype(np.bool_), (None, 2)),
        InputSpec("h", np.dtype(np.float16), (None, 2)),
    ]
    data = synthetic_dataset(specs, 9, 3)
    assert {name: (array.shape, array.dtype.name) for name, array in data.arrays.items()} == {
        "f": ((9, 3, 16), "float32"), "b": ((9, 4), "uint8"), "i": ((9,), "int64"), "t": ((9, 2), "bool"),
        "h": ((9, 2), "float16"),
    }  # fmt: skip
    again, other = synthetic_dataset(specs, 9, 3), synthetic_dataset(specs, 9, 4)
    assert all((again.arrays[name] == array).all() for name, array in data.arrays.items())
    assert (other.arrays["f"] != data.arrays["f"]).any()
    assert data.arrays["i"].min() >= 0
    assert "seed 3" in data.source


def test_synthetic_runs_bound_the_samples_of_fixed_batches() -> None:
    assert len(synthetic_dataset([InputSpec("x", F32, (1, 3))], 64, 0, runs=2)) == 2
    assert len(synthetic_dataset([InputSpec("x", F32, (4, 3))], 64, 0, runs=2)) == 8
    assert len(synthetic_dataset([InputSpec("x", F32, (None, 3))], 64, 0, runs=2)) == 64
    two = [InputSpec("x", F32, (1, 3)), InputSpec("h", F32, (2, 1, 3))]
    data = synthetic_dataset(two, 64, 0, runs=3)
    assert data.one_by_one
    assert data.arrays["h"].shape == (3, 2, 1, 3)
