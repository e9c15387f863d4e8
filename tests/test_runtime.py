"""The compiled operator and the Python one inside onnxruntime: the twin's bits, clear refusals, and sessions."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qtaml_onnx import runtime
from qtaml_onnx.errors import InputError, QtamlError
from qtaml_onnx.fault_inject import BurstGeometry, fault_inject, word_bits
from qtaml_onnx.runtime import create_session, library_path, session_options

try:
    LIBRARY: Path | None = library_path()
except QtamlError:
    LIBRARY = None
needs_library = pytest.mark.skipif(LIBRARY is None, reason="the operator library is not built")

TYPES = {
    TensorProto.UINT8: "u1", TensorProto.INT8: "i1", TensorProto.UINT16: "u2", TensorProto.INT16: "i2",
    TensorProto.UINT32: "u4", TensorProto.INT32: "i4", TensorProto.FLOAT: "f4",
}  # fmt: skip
RATES = {  # 0→1, 1→0
    "none": (0.0, 0.0), "half": (0.5, 0.5), "dense": (0.1, 0.1), "asymmetric": (0.3, 0.002), "one way": (0.0, 0.2),
    "edge": (0.0077, 0.0078), "sparse": (0.004, 0.001), "rare": (1e-4, 1e-5), "never seen": (1e-12, 1e-30),
    "nearly one": (0.99999994, 0.9),
}  # fmt: skip


def operator_model(element_type: int, inputs: dict[str, int] | None = None, **attributes: int | str) -> onnx.ModelProto:
    """Y = FaultInject(X, seed, flip_rates), each of any shape."""
    types = {"X": element_type, "seed": TensorProto.INT64, "flip_rates": TensorProto.FLOAT} | (inputs or {})
    node = helper.make_node("FaultInject", list(types), ["Y"], domain="qtaml", **attributes)
    graph = helper.make_graph(
        [node],
        "fault",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in types.items()],
        [helper.make_tensor_value_info("Y", element_type, None)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("qtaml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def random_words(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.random.default_rng(0).integers(0, 256, count, np.uint8).view(dtype).reshape(shape)


def table(pair: tuple[float, float], planes: int) -> NDArray[np.float32]:
    """The pair on every plane but 1 (always dense) and 2 (always sparse)."""
    out = np.repeat(np.array(pair, np.float32)[:, None], planes, axis=1)
    out[:, 1], out[:, 2] = 0.25, 0.003
    return out


def run(session: ort.InferenceSession, words: Any, seed: Any, flip_rates: Any) -> NDArray[Any]:
    feed = {"X": words, "seed": np.asarray(seed, np.int64), "flip_rates": flip_rates}
    return np.asarray(session.run(None, feed)[0])


CASES = [  # shape, rates: every rate once, every awkward size with both regimes
    *(((3, 33, 171), name) for name in RATES),
    *((shape, name) for shape in ((), (0, 4), (7, 73), (512,), (513,), (2, 16384)) for name in ("asymmetric", "edge")),
]


@needs_library
@pytest.mark.parametrize("element_type", TYPES)
def test_compiled_operator_gives_the_twins_bits(element_type: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every instruction set that this processor has."""
    width = 8 * np.dtype(TYPES[element_type]).itemsize
    model = operator_model(element_type, stream=3, bits=width - 1)
    sessions = {}
    for simd in ("plain", "avx2", "avx512"):
        monkeypatch.setenv("QTAML_SIMD", simd)
        try:
            sessions[simd] = create_session(model, session_options(threads=2))
        except InputError as error:
            if "QTAML_SIMD names no kernel of this machine" not in str(error):
                raise
    assert "plain" in sessions
    for shape, name in CASES:
        words, flip_rates = random_words(shape, TYPES[element_type]), table(RATES[name], width + 1)
        seed = -(2**63) + 12345 if name == "dense" else 7
        expected = fault_inject(words, seed, flip_rates, stream=3, bits=width - 1)
        for simd, session in sessions.items():
            found = run(session, words, seed, flip_rates)
            assert found.shape == shape
            assert found.tobytes() == expected.tobytes(), (simd, name, shape)


PACKED = {
    TensorProto.UINT4: ml_dtypes.uint4, TensorProto.INT4: ml_dtypes.int4,
    TensorProto.UINT2: ml_dtypes.uint2, TensorProto.INT2: ml_dtypes.int2,
}  # fmt: skip


@needs_library
@pytest.mark.parametrize("element_type", PACKED)
@pytest.mark.parametrize("kind", ["independent", "stuck-at", "burst"])
def test_packed_words_from_initializer_to_dequantize_linear(element_type: int, kind: str) -> None:
    """As a model stores them: packed initializer, fault, DequantizeLinear; odd lengths, too."""
    dtype = np.dtype(PACKED[element_type])
    width = word_bits(dtype)
    opset, ir_version = (25, 13) if width == 2 else (21, 10)
    geometry = BurstGeometry(64, 3, 2) if kind == "burst" else None
    attributes = {"row_cells": 64, "burst_cells": 3, "interleave": 2} if geometry else {}
    low = -(1 << width - 1) if dtype.name.startswith("int") else 0
    for count in (1, 7, 513, 16387):
        words = np.random.default_rng(count).integers(low, low + (1 << width), count).astype(dtype)
        graph = helper.make_graph(
            [
                helper.make_node(
                    "FaultInject", ["W", "seed", "rates"], ["F"], domain="qtaml", stream=2, kind=kind, **attributes
                ),
                helper.make_node("DequantizeLinear", ["F", "scale"], ["Y"]),
            ],
            "packed",
            [
                helper.make_tensor_value_info("seed", TensorProto.INT64, []),
                helper.make_tensor_value_info("rates", TensorProto.FLOAT, [2, width]),
            ],
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [count])],
            [
                onnx.numpy_helper.from_array(words, "W"),
                helper.make_tensor("scale", TensorProto.FLOAT, [], [1.0]),
            ],
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("qtaml", 1)]
        session = create_session(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version))
        for pair in ((0.3, 0.3), (0.1, 0.002), (1e-3, 1e-3), (0.0, 0.0)):
            flip_rates = np.repeat(np.array(pair, np.float32)[:, None], width, axis=1)
            expected = fault_inject(words, 5, flip_rates, stream=2, kind=kind, geometry=geometry)
            found = session.run(None, {"seed": np.array(5), "rates": flip_rates})[0]
            np.testing.assert_array_equal(found, expected.astype(np.float32))


KIND_OPTIONS: list[tuple[str, BurstGeometry | None]] = [
    ("stuck-at", None),
    ("burst", BurstGeometry(64, 5)),
    ("burst", BurstGeometry(1000, 1000, 7)),
    ("burst", BurstGeometry(9, 2, 20000)),
]


@needs_library
@pytest.mark.parametrize(("kind", "geometry"), KIND_OPTIONS)
@pytest.mark.parametrize("element_type", [TensorProto.INT8, TensorProto.UINT16, TensorProto.FLOAT])
def test_other_kinds_give_the_twins_bits(
    kind: str, geometry: BurstGeometry | None, element_type: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = 8 * np.dtype(TYPES[element_type]).itemsize
    attributes = {} if geometry is None else vars(geometry)
    for simd, threads in (("plain", 1), ("", 3)):
        monkeypatch.setenv("QTAML_SIMD", simd)
        model = operator_model(element_type, stream=3, bits=width - 1, kind=kind, **attributes)
        session = create_session(model, session_options(threads=threads))
        for count in (1, 513, 70_001):
            for pair in ((0.3, 0.3), (0.5, 0.002), (0.0, 1e-4), (1e-12, 0.0)):
                words = random_words((count,), TYPES[element_type])
                flip_rates = np.repeat(np.array(pair, np.float32)[:, None], width, axis=1)
                expected = fault_inject(words, -7, flip_rates, stream=3, bits=width - 1, kind=kind, geometry=geometry)
                assert run(session, words, -7, flip_rates).tobytes() == expected.tobytes(), (simd, count, pair)


@needs_library
def test_inferences_and_samples_give_the_twins_bits() -> None:
    for shape in ((5, 3000), (3, 2, 40_000), (1, 7), (4, 0)):
        words = random_words(shape, "f4")
        for per_sample in (0, 1):
            session = create_session(operator_model(TensorProto.FLOAT, stream=3, per_sample=per_sample))
            for inference in (0, 2**40, -1):
                for name in ("dense", "rare"):
                    expected = fault_inject(
                        words, 7, table(RATES[name], 32), stream=3, inference=inference, per_sample=bool(per_sample)
                    )
                    found = run(session, words, [7, inference], table(RATES[name], 32))
                    assert found.tobytes() == expected.tobytes()


@needs_library
@pytest.mark.parametrize("pair", [(0.1, 0.1), (0.1, 0.03), (0.002, 0.002), (1e-5, 1e-5)])
def test_threads_and_runs_do_not_matter(pair: tuple[float, float]) -> None:
    model = operator_model(TensorProto.INT8, stream=1, bits=8, exposed_planes=0b11101111)
    words = random_words((300_007,), "i1")
    results = {
        run(session, words, [5], table(pair, 8)).tobytes()
        for session in (create_session(model, session_options(threads=n)) for n in (1, 2, 3, 8))
        for _ in range(2)
    }
    assert results == {fault_inject(words, 5, table(pair, 8), stream=1, exposed_planes=0b11101111).tobytes()}


@needs_library
def test_concurrent_runs_of_one_session() -> None:
    """Nothing of a run stays in the kernel: other seeds and rates at the same time do not mix in."""
    from concurrent.futures import ThreadPoolExecutor

    session = create_session(operator_model(TensorProto.UINT8), session_options(threads=1))
    words = random_words((50_000,), "u1")
    pairs = list(RATES.values())
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: run(session, words, i, table(pairs[i % len(pairs)], 8)).tobytes(), range(20)))
    assert found == [fault_inject(words, i, table(pairs[i % len(pairs)], 8)).tobytes() for i in range(20)]


REFUSALS = [
    ({"seed": np.zeros(3, np.int64)}, TensorProto.UINT8, r"input seed has shape \[3\]; give one int64, or two"),
    ({"seed": np.zeros(0, np.int64)}, TensorProto.UINT8, r"input seed has shape \[0\]"),
    ({"seed": np.zeros((1, 1), np.int64)}, TensorProto.UINT8, r"input seed has shape \[1, 1\]"),
    ({"flip_rates": np.zeros(16, np.float32)}, TensorProto.UINT8, r"input flip_rates has shape \[16\]"),
    ({"flip_rates": np.zeros((3, 8), np.float32)}, TensorProto.UINT8, r"shape \[3, 8\]; give float32 \[2, planes\]"),
    ({"flip_rates": np.zeros((2, 7), np.float32)}, TensorProto.UINT8, "has 7 planes; give at least bits = 8"),
    ({"flip_rates": np.array([[0.1] * 8, [0.1] * 7 + [np.nan]], np.float32)}, TensorProto.UINT8, r"\[1, 7\] is -?nan"),
    ({"flip_rates": np.array([[1.0] * 8] * 2, np.float32)}, TensorProto.UINT8, r"\[0, 0\] is 1; rates lie in \[0, 1\)"),
    ({"flip_rates": np.array([[0] * 8, [0, -0.5] * 4], np.float32)}, TensorProto.UINT8, r"\[1, 1\] is -0.5"),
    ({"flip_rates": np.full((2, 8), np.inf, np.float32)}, TensorProto.UINT8, r"\[0, 0\] is inf"),
]


@needs_library
@pytest.mark.parametrize(("change", "element_type", "message"), REFUSALS)
def test_operator_refuses_bad_inputs(change: dict[str, Any], element_type: int, message: str) -> None:
    session = create_session(operator_model(element_type))
    feed = {"X": np.zeros(4, np.uint8), "seed": np.int64(1), "flip_rates": np.zeros((2, 8), np.float32)} | change
    with pytest.raises(Exception, match="FaultInject: .*" + message):
        session.run(None, {name: np.asarray(value) for name, value in feed.items()})


@needs_library
@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"bits": 9}, "bits is 9; give 1 to 8 for the words of input X"),
        ({"bits": 0}, "bits is 0"),
        ({"bits": -3}, "bits is -3"),
        ({"bits": 4, "exposed_planes": 16}, "exposed_planes is 16; only planes 0 to 3 exist"),
        ({"exposed_planes": 256}, "exposed_planes is 256; only planes 0 to 7 exist"),
        ({"exposed_planes": -1}, "exposed_planes is -1"),
        ({"stream": -1}, "stream is -1; give 0 to 4294967295"),
        ({"stream": 2**32}, "stream is 4294967296"),
        ({"kind": "cosmic"}, "kind is 'cosmic'; give independent, stuck-at or burst"),
        ({"kind": "burst"}, "row_cells is 0; give 1 to 1048576"),
        ({"kind": "burst", "row_cells": 8}, "burst_cells is 0; give 1 to 8"),
        ({"kind": "burst", "row_cells": 8, "burst_cells": 9}, "burst_cells is 9; give 1 to 8"),
        ({"kind": "burst", "row_cells": 8, "burst_cells": 1, "interleave": -1}, "interleave is -1"),
        ({"kind": "stuck-at", "row_cells": 8}, "row_cells belongs to the kind burst, this is stuck-at"),
        ({"per_sample": 2}, "per_sample is 2; give 0 to 1"),
        ({"per_sample": 1}, "per_sample is 1; give two numbers as input seed"),
    ],
)
def test_operator_refuses_bad_attributes(attributes: dict[str, int | str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        run(create_session(operator_model(TensorProto.UINT8, **attributes)), np.zeros(4, np.uint8), 1, table((0, 0), 8))


@needs_library
def test_operator_refuses_wrong_input_types_and_unknown_simd(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, name in ((TensorProto.DOUBLE, "double"), (TensorProto.INT64, "int64"), (TensorProto.BOOL, "bool")):
        with pytest.raises(InputError, match=rf"'tensor\({name}\)' of input parameter \(X\) .*FaultInject"):
            create_session(operator_model(kind))
    with pytest.raises(InputError, match="onnxruntime cannot load it"):
        create_session(operator_model(TensorProto.UINT8, {"seed": TensorProto.FLOAT}))
    with pytest.raises(InputError, match="onnxruntime cannot load it"):
        create_session(operator_model(TensorProto.UINT8, {"flip_rates": TensorProto.DOUBLE}))
    monkeypatch.setenv("QTAML_SIMD", "mmx")
    with pytest.raises(InputError, match="QTAML_SIMD names no kernel of this machine"):
        create_session(operator_model(TensorProto.UINT8))


@needs_library
def test_shape_and_type_inference() -> None:
    model = operator_model(TensorProto.INT8)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("X", TensorProto.INT8, [3, "n", 5]))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    output = create_session(model).get_outputs()[0]
    assert (output.shape, output.type) == ([3, "n", 5], "tensor(int8)")


def test_python_operator_gives_the_same_bits() -> None:
    """In a process of its own, as the choice is made when the operators are first registered."""
    script = """
        import numpy as np
        from onnx import TensorProto
        from qtaml_onnx.fault_inject import BurstGeometry, fault_inject
        from qtaml_onnx.runtime import create_session
        from test_runtime import RATES, TYPES, operator_model, random_words, run, table

        for element_type, dtype in TYPES.items():
            width = 8 * np.dtype(dtype).itemsize
            bits = width - 1
            session = create_session(operator_model(element_type, stream=3, bits=bits, exposed_planes=2**bits - 1))
            for shape, name in (((), "dense"), ((0, 4), "dense"), ((7, 73), "asymmetric"), ((17000,), "edge")):
                words, flip_rates = random_words(shape, dtype), table(RATES[name], width)
                found = run(session, words, -9, flip_rates)
                assert found.shape == shape
                assert found.tobytes() == fault_inject(words, -9, flip_rates, stream=3, bits=bits).tobytes()
        # The other kinds; and attributes that a node lacks, which the compiled operator has defaults for.
        words, flip_rates = random_words((4, 700), "u1"), table((0.2, 0.1), 8)
        expected = fault_inject(words, 3, flip_rates, kind="burst", geometry=BurstGeometry(64, 3, 2))
        burst = operator_model(TensorProto.UINT8, kind="burst", row_cells=64, burst_cells=3, interleave=2)
        assert run(create_session(burst), words, 3, flip_rates).tobytes() == expected.tobytes()
        expected = fault_inject(words, 3, flip_rates, kind="stuck-at", inference=8, per_sample=True)
        stuck = operator_model(TensorProto.UINT8, kind="stuck-at", per_sample=1)
        assert run(create_session(stuck.SerializeToString()), words, [3, 8], flip_rates).tobytes() == expected.tobytes()
        print("equal")
    """
    environment = os.environ | {runtime.FORCE_PYTHON_OPS: "1", "PYTHONPATH": _python_path()}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "equal\n", done.stderr


def test_missing_library_falls_back_with_one_warning(tmp_path: Path) -> None:
    """A library that cannot be loaded: the twin serves, and says so once."""
    script = f"""
        import warnings, pathlib
        from onnx import TensorProto
        from qtaml_onnx import runtime
        from test_runtime import operator_model, random_words, run, table
        from qtaml_onnx.fault_inject import fault_inject

        broken = pathlib.Path({str(tmp_path)!r}) / "libqtaml_ops.so"
        broken.write_bytes(b"no library")
        runtime.library_path = lambda: broken
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            options = [runtime.session_options() for _ in range(3)]
        assert len(caught) == 1, caught
        assert "slow NumPy kernel" in str(caught[0].message)
        model = operator_model(TensorProto.UINT8, stream=0, bits=8, exposed_planes=255)
        words = random_words((1000,), "u1")
        found = run(runtime.create_session(model, options[2]), words, 4, table((0.1, 0.2), 8))
        assert (found == fault_inject(words, 4, table((0.1, 0.2), 8))).all()
        print("served")
    """
    environment = os.environ | {"PYTHONPATH": _python_path()}
    environment.pop(runtime.FORCE_PYTHON_OPS, None)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "served\n", done.stderr


def _python_path() -> str:
    return os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_session_options() -> None:
    options = session_options(threads=3, optimization_level="basic")
    assert options.intra_op_num_threads == 3
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with pytest.raises(InputError, match="threads is 0"):
        session_options(threads=0)
    with pytest.raises(InputError, match="optimization level 'fast'; give one of none, basic, extended, all"):
        session_options(optimization_level="fast")


def instrumented() -> onnx.ModelProto:
    """A stored tensor behind a fault, with the seed and the rates as inputs that have defaults."""
    words = helper.make_tensor("words", TensorProto.UINT8, [6], bytes(range(6)), raw=True)
    seed = helper.make_tensor("qtaml_seed", TensorProto.INT64, [], [0])
    flip_rates = helper.make_tensor("qtaml_flip_rates", TensorProto.FLOAT, [2, 8], [0.0] * 16)
    nodes = [
        helper.make_node("FaultInject", ["words", "qtaml_seed", "qtaml_flip_rates"], ["read"], domain="qtaml"),
        helper.make_node("Cast", ["read"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["floats", "x"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "instrumented",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [6]),
            helper.make_tensor_value_info("qtaml_seed", TensorProto.INT64, []),
            helper.make_tensor_value_info("qtaml_flip_rates", TensorProto.FLOAT, [2, 8]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [6])],
        [words, seed, flip_rates],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("qtaml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@needs_library
def test_create_session_from_proto_bytes_and_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = instrumented()
    before = model.SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(before)
    flip_rates = table((0.3, 0.3), 8)
    feed = {"x": np.zeros(6, np.float32), "qtaml_seed": np.array(6), "qtaml_flip_rates": flip_rates}
    expected = fault_inject(np.arange(6, dtype=np.uint8), 6, flip_rates)
    for given in (model, before, path, str(path)):
        session = create_session(given)
        assert [i.name for i in session.get_inputs()] == ["x"]
        np.testing.assert_array_equal(session.run(None, feed)[0], expected)
        np.testing.assert_array_equal(session.run(None, {"x": feed["x"]})[0], np.arange(6))
    # A model too long for protobuf goes through a file with external data: the limit is lowered to reach that path.
    monkeypatch.setattr(runtime, "_SERIALIZED_LIMIT", 10)
    np.testing.assert_array_equal(create_session(model).run(None, feed)[0], expected)
    assert model.SerializeToString() == before
    assert capfd.readouterr().err == ""  # no warning about initializers that can be fed


def test_create_session_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.onnx: no such file"):
        create_session(tmp_path / "nowhere.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xd8\xff\xe0 a picture")
    with pytest.raises(InputError, match=r"bad\.onnx: onnxruntime cannot load it") as caught:
        create_session(tmp_path / "bad.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="the model: onnxruntime cannot load it"):
        create_session(b"")


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF symbols")
def test_library_exports_one_symbol() -> None:
    import ctypes

    assert LIBRARY is not None
    assert ctypes.CDLL(str(LIBRARY)).RegisterCustomOps
    listing = subprocess.run(["nm", "-D", "--defined-only", str(LIBRARY)], capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("no nm here")
    assert [line.split()[-1] for line in listing.stdout.splitlines()] == ["RegisterCustomOps"]
