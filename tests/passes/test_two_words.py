"""Two words a weight in any way that a model can hold weights: the graph, its faults, its ledger and its checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from network_models import network, planner_for
from onnx import numpy_helper
from operator_models import CASES
from stored_models import Stored, fault_options, float_options, optimised, rates_feed, run, source_model

from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_inject import fault_inject
from qtaml_onnx.graph import walk
from qtaml_onnx.methods import METHODS
from qtaml_onnx.modelio import OutputSet, save_model
from qtaml_onnx.plan import FaultModel, StoragePlan, read_plan
from qtaml_onnx.planner import Planner, prepare
from qtaml_onnx.small import SmallStorage
from qtaml_onnx.storage.tensor import decode_tensor, encode_tensor, join_words, split_words
from qtaml_onnx.verification import comparison_options, verify_files

CODED = METHODS["channel-optimized"]
BITS, RATE = 13, 0.05
NAMES = (
    "conv-float32", "conv-float16", "conv-depthwise", "gemm", "matmul-double", "matmul-left", "shared",
    "constant-node", "inputs-ir3", "initializer-output", "if", "if-ir3", "loop", "function-constant", "function-nested",
    "colliding-names", "all-zero", "all-equal", "transformer", "lstm-reverse",
)  # fmt: skip


def planner_of(proto: onnx.ModelProto) -> Planner:
    source = source_model(proto)
    return Planner(source, prepare(source), FaultModel(p01=(RATE,) * 12, p10=(RATE,) * 12))


def store_pairs(proto: onnx.ModelProto, bits: int = BITS, small: bool = False) -> Stored:
    """Every weight as two words."""
    planner = planner_of(proto)
    if small:
        planner.small = SmallStorage(planner.source.model, 5)
    menu = planner.word_length_menu(CODED, longest=1, pairs=(bits,))
    plan = planner.plan(menu, tuple(len(choices) - 1 for choices in menu.choices))
    return Stored(planner.source, plan, *carry_out(planner.source, plan))


@pytest.mark.parametrize("name", NAMES)
def test_graph_reads_what_the_plan_says_and_folds(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    stored = store_pairs(case.model)
    assert {tensor.form for tensor in stored.plan.tensors} == {"two-words"}
    hardened = ir.to_proto(stored.hardened)
    onnx.checker.check_model(hardened, full_check=True)
    decoded = {}
    for tensor in stored.plan.tensors:
        weights = case.weights[tensor.name]
        words = encode_tensor(tensor, weights)
        np.testing.assert_array_equal(join_words(tensor, split_words(tensor, words)), words)
        decoded[tensor.name] = decode_tensor(tensor, words).astype(weights.dtype)
    wanted = run(case.build(decoded), case.feeds, float_options())
    for got, expected in zip(run(hardened, case.feeds, float_options()), wanted, strict=True):
        rms = float(np.sqrt(np.mean(expected.astype(np.float64) ** 2))) or 1.0
        tolerance = 2e-6 if expected.dtype.itemsize > 2 else 1e-2
        assert np.abs(got.astype(np.float64) - expected).max() <= tolerance * rms
    result = ir.from_proto(optimised(hardened, tmp_path))
    before = sum(node.op_type != "Constant" for _root, node in walk(ir.from_proto(optimised(case.model, tmp_path))))
    assert sum(node.op_type != "Constant" for _root, node in walk(result)) <= before
    clean = run(hardened, case.feeds, comparison_options())
    faulty = ir.to_proto(stored.faulty)
    for got, expected in zip(run(faulty, case.feeds | rates_feed(0.0), fault_options()), clean, strict=True):
        assert got.tobytes() == expected.tobytes()
    changed = run(faulty, case.feeds | rates_feed(0.4, seed=1), fault_options())
    same = all(got.tobytes() == expected.tobytes() for got, expected in zip(changed, clean, strict=True))
    assert same == (name in ("all-zero", "all-equal"))


def test_each_word_has_faults_of_its_own() -> None:
    """The faulty model computes what the twin of the operator makes of both words, with the streams of the plan."""
    case = CASES["gemm"]()
    stored = store_pairs(case.model, 20)
    tensor = stored.plan.tensors[0]
    words = encode_tensor(tensor, case.weights[tensor.name])
    rates = np.full((2, 12), 0.2, dtype=np.float32)
    read = [
        fault_inject(part, 7, rates, stream=place.stream, bits=place.bits, exposed_planes=place.exposed_planes)
        for part, place in zip(split_words(tensor, words), tensor.stored_words, strict=True)
    ]
    decoded = decode_tensor(tensor, join_words(tensor, read))
    wanted = run(case.build({tensor.name: decoded}), case.feeds, float_options())
    got = run(ir.to_proto(stored.faulty), case.feeds | rates_feed(0.2, seed=7, planes=12), fault_options())
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5, atol=1e-6)
    assert len({place.stream for plan in stored.plan.tensors for place in plan.stored_words}) == 2 * len(
        stored.plan.tensors
    )
    assert stored.plan.weight_bits == 20 * sum(plan.size for plan in stored.plan.tensors)
    assert stored.plan.planes == 10


def test_ledger_counts_every_bit_of_the_list_once() -> None:
    """Tensors that share a code share its list of cells: words of 8 bits, halves for shares and means, four rates."""
    stored = store_pairs(network())
    constants = {name: value.const_value for name, value in stored.hardened.graph.initializers.items()}
    suffixes = ("cell_first_words", "cell_second_words", "cell_shares", "cell_means", "flip_rates", "scale")
    found = [tensor for name, tensor in constants.items() if name.rsplit(".", 1)[-1] in suffixes and tensor is not None]
    bits = sum(8 * tensor.nbytes for tensor in found)
    assert bits == stored.plan.metadata_bits
    cells = len(stored.plan.tensors[0].code.words or ())
    assert stored.plan.metadata_bits == cells * (8 + 8 + 16 + 16) + 4 * 32 + sum(
        32 * len(tensor.scales) for tensor in stored.plan.tensors
    )


def test_lists_of_cells_are_repeated_with_the_small_tensors() -> None:
    case = CASES["gemm"]()
    stored = store_pairs(case.model, small=True)
    words = [v.const_value for n, v in stored.hardened.graph.initializers.items() if n.startswith("qtaml.small.")]
    bits = sum(8 * tensor.nbytes for tensor in words if tensor is not None and tensor.dtype == ir.DataType.UINT8)
    assert bits == stored.plan.metadata_bits + stored.plan.small_bits
    clean = run(ir.to_proto(stored.hardened), case.feeds, comparison_options())
    plain = run(ir.to_proto(store_pairs(case.model).hardened), case.feeds, comparison_options())
    for got, wanted in zip(clean, plain, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_predicted_noise_meets_monte_carlo_and_plans_survive_a_file(tmp_path: Path) -> None:
    """Noise of each tensor of a plan within 4.5 standard errors over 60 draws of both words."""
    planner = planner_for(network(32), RATE, CODED, calibrate=False)
    plan = planner.within_bits(CODED, 16.0, longest_word=14)
    path = tmp_path / "net.plan.json"
    path.write_text(plan.to_json())
    assert read_plan(path) == plan
    assert plan.stored_bits <= 16 * planner.weights
    pairs = [tensor for tensor in plan.tensors if tensor.form == "two-words"]
    assert pairs
    assert all(tensor.bits <= 14 for tensor in plan.tensors)
    for tensor in pairs:
        data = next(data for data in planner.tensors if data.name == tensor.name)
        words, units = split_words(tensor, encode_tensor(tensor, data.values)), data.units(planner.scaling(CODED, data))
        errors = []
        for seed in range(60):
            read = [
                fault_inject(part, seed, np.full((2, 12), RATE, np.float32), stream=place.stream, bits=place.bits)
                for part, place in zip(words, tensor.stored_words, strict=True)
            ]
            off = (decode_tensor(tensor, join_words(tensor, read)) - data.values) / units
            errors.append(float(np.mean(off.astype(np.float64) ** 2)))
        deviation = np.std(errors, ddof=1) / np.sqrt(len(errors))
        assert abs(np.mean(errors) - tensor.noise) < 4.5 * deviation


def test_longer_words_never_predict_more_noise() -> None:
    planner = planner_for(network(32), RATE, CODED, calibrate=False)
    energies = [planner.within_bits(CODED, 16.0, longest_word=longest).noise_energy for longest in (12, 14, 16)]
    assert energies == sorted(energies, key=lambda energy: -(energy or 0.0))
    assert (energies[2] or 0.0) < 0.6 * (energies[0] or 0.0)


def written(folder: Path) -> tuple[Path, Path]:
    """The original and the hardened model as files, the plan beside it."""
    original, hardened = folder / "net.onnx", folder / "safe.onnx"
    onnx.save(CASES["gemm"]().model, original)
    from qtaml_onnx.modelio import load_model

    source = load_model(original)
    planner = Planner(source, prepare(source), FaultModel(p01=(RATE,) * 12, p10=(RATE,) * 12))
    menu = planner.word_length_menu(CODED, longest=1, pairs=(BITS,))
    plan = planner.plan(menu, tuple(len(choices) - 1 for choices in menu.choices))
    with OutputSet() as outputs:
        save_model(carry_out(source, plan)[0], outputs, hardened)
        outputs.add_text(hardened.with_suffix(".plan.json"), plan.to_json())
    return original, hardened


def test_verify_looks_at_both_words(tmp_path: Path) -> None:
    original, hardened = written(tmp_path)
    assert [check.detail for check in verify_files(hardened, original) if not check.passed] == []
    proto = onnx.load(hardened)
    second = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith(".words.second"))
    words = numpy_helper.to_array(second).copy()
    words.flat[0] ^= 1
    second.CopyFrom(numpy_helper.from_array(words, second.name))
    onnx.save(proto, hardened)
    assert "stored words" in {check.name for check in verify_files(hardened, original) if not check.passed}


def test_damaged_plans_are_refused(tmp_path: Path) -> None:
    plan = store_pairs(CASES["gemm"]().model).plan
    tensor = plan.tensors[0]
    for change, message in (
        ({"protected_planes": (0,)}, "protected planes"),
        ({"words_type": "UINT16"}, "13-bit words in UINT16"),
        ({"code": tensor.code.model_copy(update={"shares": None})}, "lists no cells"),
        ({"code": tensor.code.model_copy(update={"bits": 30})}, "flip rates are given for 7 bit planes"),
    ):
        bad = StoragePlan(**{**dict(plan), "tensors": (tensor.model_copy(update=change), *plan.tensors[1:])})
        path = tmp_path / "bad.plan.json"
        path.write_text(bad.to_json())
        with pytest.raises(InputError, match=message):
            read_plan(path)
