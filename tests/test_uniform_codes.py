"""Uniform codes by name: which are tried, that the best is taken, and that the graph reads each of them right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from network_models import fault_model, network, planner_for, samples
from small_models import normal
from stored_models import run

from qtaml_onnx.channel import FlipRates
from qtaml_onnx.errors import InputError
from qtaml_onnx.hardening import harden
from qtaml_onnx.methods import METHODS
from qtaml_onnx.options import HardenOptions
from qtaml_onnx.storage import best_mask, word_sums
from qtaml_onnx.storage.codes import UNIFORM_KINDS, uniform_code
from qtaml_onnx.storage.tensor import decode_tensor, encode_tensor
from qtaml_onnx.uniform_codes import CODE_CHOICES, candidate_codes

ONES_LEAK = FlipRates((0.0,) * 12, (0.1,) * 12)
ZEROS_LEAK = FlipRates((0.1,) * 12, (0.0,) * 12)


def weights() -> np.ndarray:
    x = normal(4000, seed=5) / np.float32(4)
    return np.asarray(x / np.abs(x).max(), dtype=np.float32)


@pytest.mark.parametrize("kind", UNIFORM_KINDS)
def test_a_kind_is_taken_as_it_is(kind: str) -> None:
    assert candidate_codes(kind, 6, weights(), ONES_LEAK) == [uniform_code(kind, 6)]


def test_complemented_stores_small_negative_weights_safely() -> None:
    """Two's complement holds −1 as all ones; where zeros leak instead the mask is the other planes."""
    x = -np.abs(weights())
    plain, masked = candidate_codes("complemented", 8, x, ONES_LEAK)
    assert plain == uniform_code("twos-complement", 8)
    mask = best_mask(ONES_LEAK.truncated(8), word_sums(plain, x).count)
    assert masked == uniform_code("twos-complement", 8, mask)
    assert mask & 0x80, "the sign plane holds a one in every word"
    others = candidate_codes("complemented", 8, x, ZEROS_LEAK)
    assert len(others) == 1 or others[1].name == f"twos-complement^{0xFF & ~mask:#x}"


def test_equal_rates_need_no_complement() -> None:
    found = candidate_codes("auto", 8, weights(), FlipRates.uniform(0.05, 12))
    assert [code.name for code in found] == list(UNIFORM_KINDS)


@pytest.mark.parametrize("rates", [FlipRates.uniform(0.02, 12), ONES_LEAK, ZEROS_LEAK], ids=["equal", "ones", "zeros"])
@pytest.mark.parametrize("method", ["posterior-mean", "tac"])
def test_auto_is_never_noisier_than_any_kind(method: str, rates: FlipRates) -> None:
    """Tensor by tensor and at any number of protected planes; and better than two's complement where rates differ."""
    menus = {
        code: planner_for(network(), rates, METHODS[method], calibrate=False, probe=False, codes={method: code}).menu(
            METHODS[method]
        )
        for code in CODE_CHOICES
    }
    for number, choices in enumerate(menus["auto"].choices):
        for code in ("complemented", *UNIFORM_KINDS):
            for best, other in zip(choices, menus[code].choices[number], strict=False):
                assert best.protected == other.protected
                assert best.energy <= other.energy * (1 + 1e-12)
    if rates is not ONES_LEAK:
        return
    best, plain = (sum(c[0].energy for c in menus[code].choices) for code in ("auto", "twos-complement"))
    assert best < 0.9 * plain


@pytest.mark.parametrize("code", CODE_CHOICES)
def test_the_graph_reads_every_code(code: str, tmp_path: Path) -> None:
    """The hardened model equals the network with the words decoded in NumPy, to float32 rounding."""
    proto = network()
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    options = {"method": "posterior-mean", "code": code, "bias_correction": False}
    result = harden(path, fault_model(ONES_LEAK), calibration=samples(), **options)
    kinds = {tensor.code.kind for tensor in result.plan.tensors}
    if code in UNIFORM_KINDS:
        assert kinds == {code}
    expected = onnx.ModelProto()
    expected.CopyFrom(proto)
    plans = {tensor.name: tensor for tensor in result.plan.tensors}
    for tensor in expected.graph.initializer:
        if tensor.name in plans:
            plan = plans[tensor.name]
            values = decode_tensor(plan, encode_tensor(plan, onnx.numpy_helper.to_array(tensor)))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    x = samples(8, seed=77).arrays
    found, wanted = run(ir.to_proto(result.model), x)[0], run(expected, x)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "posterior-mean", "code": "huffman"}, "unknown --code 'huffman'; choose from auto, complemented"),
        ({"code": "gray"}, "--code gray: method channel-optimized designs its own code"),
        ({"method": "none", "code": "gray"}, "--code gray: method none is the plain baseline"),
    ],
)
def test_codes_that_do_not_fit(options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        HardenOptions(**options).check(has_evaluation=False)
