"""Campaigns: the same faults for all samples, the same seeds for all variants, the same result for any workers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from small_models import OUT, X, info, matmul, model, normal
from stored_models import Stored, fault_options, rates_feed, run, store

from qtaml_onnx.campaign import Campaign, Result, Variant
from qtaml_onnx.campaign.image import FaultyModel
from qtaml_onnx.campaign.trials import run_first_output
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.data import Dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_inject import fault_inject
from qtaml_onnx.fault_pattern import FaultPattern
from qtaml_onnx.passes.inject_activation_faults import InjectActivationFaults

SAMPLES = normal(64, 6, seed=9)
W = normal(6, 4, seed=1)
RATES = [FlipRates.uniform(rate, 8) for rate in (0.0, 0.02, 0.2)]


def network() -> Stored:
    return store(model([matmul()], [X], [OUT], {"W": W}), "tac", 0.05)


def dataset(labels: bool = False, **more: object) -> Dataset:
    truth = (SAMPLES @ W).argmax(axis=1) if labels else None
    fields = {"arrays": {"x": SAMPLES}, "labels": truth, "one_by_one": False, "batch": None, "source": "test"}
    return Dataset(**(fields | more))  # type: ignore[arg-type]


def campaign(**options: int) -> tuple[Campaign, list[Result]]:
    stored = network()
    found = Campaign(dataset(), **({"trials": 6, "seed": 3} | options))  # type: ignore[arg-type]
    clean = found.measure_clean(ir.to_proto(stored.source.model))
    return found, [clean, *found.measure_faulty(Variant("hardened", ir.to_proto(stored.faulty)), RATES)]


def test_trial_t_has_seed_plus_t() -> None:
    """Each value is that of a run by hand with that seed."""
    stored = network()
    _found, (clean, zero, low, high) = campaign()
    assert clean.values == (1.0,)
    assert zero.values == (zero.values[0],) * 6  # without faults every trial is the same
    reference = (SAMPLES @ W).argmax(axis=1)
    for result, rate in ((low, 0.02), (high, 0.2)):
        assert result.flip_rate == rate
        for trial, value in enumerate(result.values):
            feeds = {"x": SAMPLES} | rates_feed(rate, 3 + trial)
            output = run(ir.to_proto(stored.faulty), feeds, fault_options())[0]
            assert value == (output.argmax(axis=1) == reference).mean()
    assert low.interval.mean > high.interval.mean
    assert high.interval.low < np.mean(high.values) < high.interval.high


def test_workers_and_batch_size_do_not_matter() -> None:
    alone = campaign()[1]
    assert campaign(workers=2)[1] == alone
    assert campaign(batch_size=7)[1] == alone


def test_campaigns_that_start_later_share_their_trials() -> None:
    """Seeds are shared by position: trials 2…5 of seed 3 are trials 0…3 of seed 5."""
    assert campaign(seed=5, trials=4)[1][-1].values == campaign(seed=3, trials=6)[1][-1].values[2:]


def test_labels_make_it_top_1() -> None:
    stored = network()
    found = Campaign(dataset(labels=True), trials=2)
    clean = found.measure_clean(ir.to_proto(stored.source.model))
    fixed = found.measure_fixed(Variant("hardened", ir.to_proto(stored.hardened)))
    assert found.metrics
    assert found.metric.name == "top-1"
    assert clean.interval.mean == 1.0
    assert clean.interval.low == pytest.approx(64 / (64 + 1.959964**2), rel=1e-5)  # Wilson's at n of n
    assert fixed.interval.method == "wilson"


def test_samples_one_by_one() -> None:
    stored = network()
    whole = Campaign(dataset(arrays={"x": SAMPLES.reshape(16, 4, 6)}, one_by_one=True), trials=3)
    rows = Campaign(dataset(), trials=3)
    for one in (whole, rows):
        one.measure_clean(ir.to_proto(stored.source.model))
    variant = Variant("hardened", ir.to_proto(stored.faulty))
    pairs = zip(whole.measure_faulty(variant, RATES[2:]), rows.measure_faulty(variant, RATES[2:]), strict=True)
    for got, wanted in pairs:
        assert got.values == pytest.approx(wanted.values, abs=1e-12)


def test_progress_counts_trials_and_labels_are_kept() -> None:
    found, _results = campaign()
    steps: list[int] = []
    stored = network()
    variant = Variant("hardened", ir.to_proto(stored.faulty))
    results = found.measure_faulty(variant, RATES, labels=["now", "1 h", "1 d"], progress=lambda: steps.append(1))
    assert len(steps) == 18
    assert [result.label for result in results] == ["now", "1 h", "1 d"]


def test_refusals() -> None:
    for options, message in (
        ({"trials": 0}, "--trials 0"),
        ({"workers": 0}, "--workers 0"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**63 - 10, "trials": 20}, "--seed"),
    ):
        with pytest.raises(InputError, match=message):
            Campaign(dataset(), **options)  # type: ignore[arg-type]
    found = Campaign(dataset())
    with pytest.raises(InputError, match="measure the clean model first"):
        found.measure_fixed(Variant("hardened", model([matmul()], [X], [OUT], {"W": W})))
    with pytest.raises(InputError, match="does not run on test"):
        Campaign(dataset(arrays={"x": normal(4, 7)})).measure_clean(model([matmul()], [X], [OUT], {"W": W}))
    broken = W.copy()
    broken[:] = np.inf
    with pytest.raises(InputError, match="not finite"):
        Campaign(dataset()).measure_clean(model([matmul()], [X], [OUT], {"W": broken}))
    with pytest.raises(InputError, match="no inputs"):
        Campaign(dataset(arrays={})).measure_clean(model([matmul("W", "c")], [], [OUT], {"W": W, "c": SAMPLES}))


def test_outputs_of_varying_size_are_refused() -> None:
    nodes = [matmul(result="m"), helper.make_node("Relu", ["m"], ["r"]), helper.make_node("NonZero", ["r"], ["y"])]
    proto = model(nodes, [X], [info("y", TensorProto.INT64, None, None)], {"W": W})
    with pytest.raises(InputError, match="depends on the input"):
        Campaign(dataset(), batch_size=8).measure_clean(proto)


def test_a_model_that_does_not_load_is_reported_by_workers_too() -> None:
    found, _results = campaign()
    found.workers = 2
    mystery = [matmul(result="m"), helper.make_node("Mystery", ["m"], ["y"], domain="com.example")]
    proto = model(mystery, [X], [OUT], {"W": W}, domains=["com.example"])
    with pytest.raises(InputError, match="Mystery"):
        found.measure_faulty(Variant("hardened", proto), RATES)


def transient() -> onnx.ModelProto:
    """x times powers of two, so that products are exact, with faults on the product's lower 23 planes."""
    x, y = info("x", TensorProto.FLOAT, "batch", 6), info("y", TensorProto.FLOAT, "batch", 6)
    source = ir.from_proto(model([matmul()], [x], [y], {"W": np.diag(2.0 ** np.arange(6)).astype(np.float32)}))
    InjectActivationFaults(FlipRates.uniform(0.1, 32), FaultPattern(planes=(1 << 23) - 1))(source)
    return ir.to_proto(source)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_transient_faults_are_those_of_the_sample_in_whatever_batch(batch_size: int) -> None:
    """Sample n meets the faults of inference n, by the operator's definition: no batch repeats those of another."""
    rates = np.full((2, 32), 0.1, np.float32)
    data = dataset(arrays={"x": np.ones((64, 6), np.float32)})
    faulty = FaultyModel(transient())
    for seed in (3, 4):
        session, extra = faulty.draw(seed, rates)
        found = run_first_output(session, data, batch_size, extra, threads=2)
        product = np.tile((2.0 ** np.arange(6)).astype(np.float32), (64, 1))
        wanted = fault_inject(product, seed, rates, exposed_planes=(1 << 23) - 1, inference=0, per_sample=True)
        np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))
        assert len({row.tobytes() for row in found}) == 64


def test_a_model_whose_faults_are_all_transient_is_loaded_once() -> None:
    faulty = FaultyModel(transient())
    sessions = [faulty.draw(seed, np.zeros((2, 32), np.float32))[0] for seed in (1, 2)]
    assert sessions[0] is sessions[1]
