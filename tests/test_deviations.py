"""Restored deviations: the closed form of a step, and a deep network on devices that the design has not seen."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from network_models import planner_for, quantised, samples
from onnx import helper
from quantized_models import statically
from small_models import info, model, normal

from qtaml_onnx.calibrate import LayerMeter, calibrate_layers
from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.deviations import DEVICES, ROUNDS, DeviationRestorer, puts_out_reals, transfer_correction
from qtaml_onnx.layers import Layer, LayerStatistics
from qtaml_onnx.methods import METHODS
from qtaml_onnx.passes.inject_faults import RATES_INPUT, SEED_INPUT
from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.planner import Planner

METHOD = METHODS["channel-optimized"]
RATE = 0.1
BLOCKS = 6


def statistics(inputs: list[float], outputs: list[float]) -> LayerStatistics:
    return LayerStatistics(np.zeros(len(inputs)), np.array(inputs), np.array(outputs), np.ones(()))


def test_step_is_the_ratio_of_transfers() -> None:
    """Clean: 3 in, 2 and 8 out. Faulty: 2 in, and 1 and 16 out on average: sqrt(2/3 · 2/1) and sqrt(8/3 · 2/16)."""
    clean = statistics([2.0, 4.0], [2.0, 8.0])
    faulty = [statistics([1.0, 2.0], [0.5, 12.0]), statistics([2.0, 3.0], [1.5, 20.0])]
    np.testing.assert_allclose(transfer_correction(clean, faulty), np.sqrt([4 / 3, 1 / 3]), rtol=1e-15)


@pytest.mark.parametrize(
    ("clean", "faulty", "expected"),
    [
        pytest.param(([1.0], [4.0]), ([1.0], [4.0]), 1.0, id="nothing-to-do"),
        pytest.param(([1.0], [100.0]), ([1.0], [1.0]), 2.0, id="at-most-2"),
        pytest.param(([1.0], [1.0]), ([1.0], [100.0]), 0.5, id="at-least-half"),
        pytest.param(([1.0], [0.0]), ([1.0], [1.0]), 1.0, id="constant-output"),
        pytest.param(([1.0], [1.0]), ([1.0], [0.0]), 1.0, id="dead-on-devices"),
        pytest.param(([0.0], [1.0]), ([1.0], [1.0]), 1.0, id="constant-input"),
        pytest.param(([1.0], [1.0]), ([1.0], [np.nan]), 1.0, id="not-a-number"),
        pytest.param(([1.0], [1.0]), ([np.inf], [1.0]), 1.0, id="infinite"),
    ],
)
def test_step_is_bounded(
    clean: tuple[list[float], list[float]], faulty: tuple[list[float], list[float]], expected: float
) -> None:
    assert transfer_correction(statistics(*clean), [statistics(*faulty)]).tolist() == [expected]


def heavy_tailed(*shape: int, seed: int) -> np.ndarray:
    """Weights of which a few carry most of the signal, as trained ones do: these are read back too small."""
    z = normal(*shape, seed=seed)
    return np.asarray(z * np.abs(z) / np.float32(np.sqrt(3)))


def residual_network(width: int = 12) -> onnx.ModelProto:
    """Residual blocks of two convolutions, where what a layer puts out also travels past the next ones."""
    constants = {"S": normal(width, 3, 3, 3, seed=1) / np.float32(4), "s": normal(width, seed=2) / np.float32(4)}
    nodes = [
        helper.make_node("Conv", ["x", "S", "s"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["b0"]),
    ]
    scale = np.float32(1 / np.sqrt(9 * width / 2))
    for block in range(BLOCKS):
        for half, source in enumerate((f"b{block}", f"r{block}")):
            name = f"W{block}{half}"
            constants[name] = heavy_tailed(width, width, 3, 3, seed=10 * block + half + 3) * scale
            constants[f"{name}b"] = normal(width, seed=10 * block + half + 5) / np.float32(8)
            nodes.append(helper.make_node("Conv", [source, name, f"{name}b"], [f"c{block}{half}"], pads=[1, 1, 1, 1]))
            if half == 0:
                nodes.append(helper.make_node("Relu", [f"c{block}0"], [f"r{block}"]))
        nodes.append(helper.make_node("Add", [f"b{block}", f"c{block}1"], [f"a{block}"]))
        nodes.append(helper.make_node("Relu", [f"a{block}"], [f"b{block + 1}"]))
    nodes.append(helper.make_node("GlobalAveragePool", [f"b{BLOCKS}"], ["g"]))
    nodes.append(helper.make_node("Flatten", ["g"], ["f"]))
    nodes.append(helper.make_node("Gemm", ["f", "F", "fb"], ["y"], transB=1))
    constants |= {"F": normal(5, width, seed=90), "fb": normal(5, seed=91)}
    return model(nodes, [info("x", 1, "N", 3, 6, 6)], [info("y", 1, "N", 5)], constants)


@pytest.fixture(scope="module")
def planner() -> Planner:
    return planner_for(residual_network(), RATE, METHOD)


def measured_layers(planner: Planner) -> dict[str, Layer]:
    """The layers that are restored."""
    weights = {tensor.name: tensor.weight for tensor in planner.tensors}
    return {name: planner.layers[name] for name in planner.restorable if puts_out_reals(weights[name])}


def restorer(planner: Planner, seed: int = 0) -> DeviationRestorer:
    layers = measured_layers(planner)
    return DeviationRestorer(
        planner.source.model, lambda plan: carry_out(planner.source, plan)[1], layers, samples(), seed=seed
    )


def transfers(planner: Planner, plan: StoragePlan, devices: int = 12) -> np.ndarray:
    """Log of each layer's mean output over input variance on devices with seeds from 0, over the clean one's."""
    layers = list(measured_layers(planner).values())
    clean = calibrate_layers(planner.source.model, layers, samples())
    meter = LayerMeter(carry_out(planner.source, plan)[1], layers)
    rates = np.full((2, plan.planes), RATE, np.float32)
    found = []
    for seed in range(devices):
        seen = meter.measure(samples(), extra={SEED_INPUT: np.asarray(seed, np.int64), RATES_INPUT: rates})
        found.append([(s.output_variance.mean(), s.input_variance.mean()) for s in seen.values()])
    outputs, inputs = np.moveaxis(np.mean(found, axis=0), -1, 0)
    wanted = [s.output_variance.mean() / s.input_variance.mean() for s in clean.values()]
    return np.asarray(np.log(outputs / inputs / wanted))


def test_layers_pass_on_as_much_as_without_faults(planner: Planner) -> None:
    """On unseen devices, all but the last layer: the mean error of a layer's transfer falls by at least two fifths.

    What is left is what one device's faults do to a layer's variance, beside which six simulated ones say little more.
    """
    plan = planner.within_budget(METHOD, 0)
    steps: list[None] = []
    restored = restorer(planner)(plan, lambda: steps.append(None))
    before, after = transfers(planner, plan)[:-1], transfers(planner, restored)[:-1]
    assert np.abs(after).mean() < 0.6 * np.abs(before).mean()
    assert np.abs(after).mean() < 0.06
    assert len(steps) == ROUNDS * DEVICES


def test_only_scales_of_corrected_layers_change(planner: Planner) -> None:
    plan = planner.within_budget(METHOD, 0)
    restored = restorer(planner)(plan)
    for before, after in zip(plan.tensors, restored.tensors, strict=True):
        assert before.model_copy(update={"scales": after.scales}) == after
        changed = before.scales != after.scales
        assert changed == (before.name != "F"), before.name  # the model's own output keeps its scale
    assert restored.metadata_bits == plan.metadata_bits


def test_same_seed_same_plan(planner: Planner) -> None:
    plan = planner.within_budget(METHOD, 0)
    first, again, other = (restorer(planner, seed)(plan) for seed in (1, 1, 2))
    assert first.sha256 == again.sha256 != other.sha256


def test_plans_without_self_correcting_biases_are_left_alone(planner: Planner) -> None:
    plan = planner.within_budget(METHODS["tac"], 0.3)
    assert restorer(planner)(plan) is plan


def test_layers_that_read_integers_pass_on_as_much_as_without_faults() -> None:
    """As in floats, though what is read is rounded to the model's own integers and kept within them."""
    planner = planner_for(quantised(residual_network()), RATE, METHOD)
    plan = planner.within_budget(METHOD, 0)
    assert {tensor.form for tensor in plan.tensors} == {"integer-grid"}
    restored = restorer(planner)(plan)
    before, after = transfers(planner, plan)[:-1], transfers(planner, restored)[:-1]
    assert np.abs(after).mean() < 0.6 * np.abs(before).mean()
    assert np.abs(after).mean() < 0.06
    for old, new in zip(plan.tensors, restored.tensors, strict=True):
        assert old.model_copy(update={"scales": new.scales}) == new


def test_operators_on_integers_are_left_as_they_are() -> None:
    planner = planner_for(statically("QOperator", per_channel=True, proto=residual_network()), RATE, METHOD)
    assert planner.restorable
    assert measured_layers(planner) == {}
    plan = planner.within_budget(METHOD, 0)
    assert restorer(planner)(plan) is plan


def test_words_that_are_kept_have_no_scales_to_restore_with() -> None:
    planner = planner_for(quantised(residual_network()), RATE, METHOD, keep_codes=True)
    plan = planner.within_budget(METHOD, 0)
    assert {tensor.form for tensor in plan.tensors} == {"integer-table"}
    assert restorer(planner)(plan) is plan


def test_clean_model_is_not_changed(planner: Planner) -> None:
    before = ir.to_proto(planner.source.model).SerializeToString(deterministic=True)
    restorer(planner)(planner.within_budget(METHOD, 0))
    assert ir.to_proto(planner.source.model).SerializeToString(deterministic=True) == before
