"""What a hardening measures beside its verdict: the sweep, the frontier, flips of planes, hashes, the ratio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from digits_example import DIGITS, MODEL

import qtaml_onnx
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.data import Dataset, dataset_sha256
from qtaml_onnx.fault_model import fault_model, retention_steps
from qtaml_onnx.hardening import HardenResult, harden
from qtaml_onnx.report.build import flip_changes
from qtaml_onnx.storage import uniform_code, word_sums
from qtaml_onnx.sweep import rate_steps, scaled, sweep_trials


def digits(name: str, samples: int) -> Dataset:
    with np.load(DIGITS / f"digits_{name}.npz") as file:
        arrays = {key: file[key][:samples] for key in file.files}
    labels = arrays.pop("labels", None)
    return Dataset(arrays, labels, False, None, f"digits_{name}.npz")


@pytest.fixture(scope="module")
def hardened(tmp_path_factory: pytest.TempPathFactory) -> tuple[HardenResult, Path]:
    result = harden(
        MODEL, 0.05, calibration=digits("calibration", 64), evaluation=digits("eval", 100), trials=8, seed=3,
        method="posterior-mean", budget=0.03, compare=True,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("o") / "o.onnx"
    import onnx
    import onnx_ir as ir

    onnx.save(ir.to_proto(result.model), path)
    path.with_suffix(".plan.json").write_text(result.plan.to_json(), encoding="utf-8")
    return result, path


def test_the_sweep_is_the_campaign_at_other_rates(hardened: tuple[HardenResult, Path]) -> None:
    result, path = hardened
    evaluation = result.report.evaluation
    assert evaluation is not None
    assert evaluation.sweep is not None
    assert (evaluation.sweep.trials, evaluation.sweep.samples) == (2, 100)
    around = {(r.variant, r.flip_rate): r.values for r in evaluation.sweep.results}
    rates = [0.0125, 0.025, 0.05, 0.1]
    assert list(around) == [("clean", 0.0)] + [(v, r) for v in ("unprotected", "hardened") for r in rates]
    again = qtaml_onnx.evaluate(path, rates, digits("eval", 100), original=MODEL, trials=2, seed=3)
    for found in again[-4:]:
        assert list(found.values) == around["hardened", found.flip_rate]
    full = {(r.variant, r.flip_rate): r.values for r in evaluation.results}
    for variant in ("unprotected", "hardened"):
        assert len(full[variant, 0.05]) == 8
        assert full[variant, 0.05][:2] == around[variant, 0.05]  # the same seeds and samples


def test_every_mean_is_that_of_its_values(hardened: tuple[HardenResult, Path]) -> None:
    evaluation = hardened[0].report.evaluation
    assert evaluation is not None
    assert evaluation.sweep is not None
    entries = [*evaluation.results, *evaluation.sweep.results, *evaluation.comparison, *evaluation.frontier]
    assert len(entries) > 20
    for entry in entries:
        assert entry.mean == pytest.approx(np.mean(entry.values))
        assert entry.trials == len(entry.values)


def test_the_frontier_grows_in_cost_and_stops_where_all_is_kept(hardened: tuple[HardenResult, Path]) -> None:
    evaluation = hardened[0].report.evaluation
    assert evaluation is not None
    clean = evaluation.results[0].mean
    methods = {p.method for p in evaluation.frontier}
    assert methods == {"channel-optimized", "posterior-mean", "tac", "magnitude", "uniform-msp"}
    for method in methods:
        own = [p for p in evaluation.frontier if p.method == method]
        costs = [p.protected_fraction for p in own]
        assert costs == sorted(set(costs))
        assert costs[0] == 0
        assert all(p.mean < 0.99 * clean for p in own[:-1])
        energies = [p.noise_energy for p in own if p.noise_energy is not None]
        assert energies == sorted(energies, reverse=True)


def test_the_ratio_takes_uniform_msps_own_noise(hardened: tuple[HardenResult, Path]) -> None:
    """Self-correcting biases cancel noise that Uniform-MSP has: with its own it needs no less protection."""
    prediction = hardened[0].report.prediction
    assert prediction.saturation_ratio is not None
    assert prediction.saturation_note is None
    assert prediction.saturation_ratio > 1
    none = harden(MODEL, 0.001, calibration=digits("calibration", 64)).report.prediction
    assert none.saturation_ratio is None
    assert "needs no protection" in str(none.saturation_note)
    lengths = harden(MODEL, 0.1, calibration=digits("calibration", 64), bits_per_weight=2.5).report.prediction
    assert (lengths.noise_energy or 0) > 0.08
    assert "words of several lengths" in str(lengths.saturation_note)


def test_ideal_bits_are_priced_in_a_code_that_exists(hardened: tuple[HardenResult, Path]) -> None:
    storage = hardened[0].report.storage
    code = storage.named_code
    assert code is not None
    assert code.residual_rate <= 1e-4
    assert code.parity_bits > storage.protected_bits / 2  # Shannon: at a rate of 0.05 at least 0.4 parity bits a bit
    total = storage.weight_bits + storage.metadata_bits + code.parity_bits
    assert code.bits_per_weight == pytest.approx(total / storage.weights)


def test_flips_of_twos_complement_double_from_plane_to_plane() -> None:
    code = uniform_code("twos-complement", 8)
    x = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    rms = np.sqrt(np.mean(x.astype(float) ** 2))
    np.testing.assert_allclose(
        flip_changes(code.levels, word_sums(code, x)), 2.0 ** np.arange(8) / 127 / rms, rtol=1e-6
    )
    assert flip_changes(code.levels, word_sums(code, np.zeros(3, np.float32))) == []


def test_flips_are_what_flipping_the_weights_gives() -> None:
    code = uniform_code("gray", 4)
    x = np.random.default_rng(1).normal(0, 0.3, 2000).astype(np.float32)
    table = np.random.default_rng(2).normal(size=16)
    words = code.encode(x).astype(np.int64)
    wanted = [
        np.sqrt(np.mean((table[words ^ (1 << k)] - table[words]) ** 2) / np.mean(x.astype(float) ** 2))
        for k in range(4)
    ]
    np.testing.assert_allclose(flip_changes(table, word_sums(code, x)), wanted, rtol=1e-9)


def test_hash_of_data_is_that_of_values_types_names_and_shapes() -> None:
    def made(array: np.ndarray, name: str = "x", labels: np.ndarray | None = None, source: str = "a") -> str:  # type: ignore[type-arg]
        return dataset_sha256(Dataset({name: array}, labels, False, None, source))

    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    first = made(base)
    assert made(np.asfortranarray(base), source="b") == first
    others = [made(base + 1), made(base.astype(np.float64)), made(base.reshape(3, 2)), made(base, "y")]
    others.append(made(base, labels=np.array([0, 1])))
    assert len({first, *others}) == 6


def test_steps_around_a_design() -> None:
    rates = FlipRates.asymmetric(0.1, 0.4, 3)
    assert [step.rates.p01[0] for step in rate_steps(rates)] == pytest.approx([0.025, 0.05, 0.1, 0.2])
    assert [step.rates.p10[0] for step in rate_steps(rates)] == pytest.approx([0.1, 0.2, 0.4, 0.5])
    assert scaled(FlipRates.uniform(0.7, 1), 2).p01 == (0.7,)
    assert rate_steps(FlipRates.uniform(0.0, 8)) == []
    assert [sweep_trials(n) for n in (1, 2, 7, 12, 20, 1000)] == [1, 2, 2, 3, 5, 5]


def test_steps_of_a_device_are_times_with_its_own_rates() -> None:
    steps = retention_steps("gain-cell", 8, 0.05, 1.5)
    assert [step.label for step in steps] == ["12.5ms", "25ms", "50ms", "100ms"]
    for step in steps:
        own = fault_model(bits=8, device="gain-cell", retention_s=step.retention_s, margin=1.5)
        assert (step.rates.p01, step.rates.p10) == (own.p01, own.p10)
    largest = [max(*step.rates.p01, *step.rates.p10) for step in steps]
    assert largest == sorted(largest)
    assert largest[-1] != pytest.approx(2 * largest[-2], rel=1e-3)  # not a mere multiple
