"""Campaigns on a Dask cluster: the same results as here, with a worker killed on the way; and clusters that fail."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_models import OUT, X, matmul, model, normal
from stored_models import store

from qtaml_onnx.campaign import Campaign, Result, Variant
from qtaml_onnx.campaign import cluster as cluster_module
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.data import Dataset
from qtaml_onnx.errors import InputError

distributed = pytest.importorskip("distributed", reason="needs the extra 'cluster'")

W = normal(6, 4, seed=1)
SAMPLES = normal(64, 6, seed=9)
RATES = [FlipRates.uniform(rate, 8) for rate in (0.02, 0.2)]


def results(address: str | None, progress: Any = lambda: None, trials: int = 20) -> list[Result]:
    stored = store(model([matmul()], [X], [OUT], {"W": W}), "tac", 0.05)
    campaign = Campaign(Dataset({"x": SAMPLES}, None, False, None, "test"), trials=trials, cluster=address)
    campaign.measure_clean(ir.to_proto(stored.source.model))
    return campaign.measure_faulty(Variant("hardened", ir.to_proto(stored.faulty)), RATES, progress=progress)


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Any]:
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options, silence_logs="CRITICAL") as cluster:
        yield cluster


def worker_pids(cluster: Any) -> list[int]:
    with distributed.Client(cluster, set_as_default=False) as client:
        return sorted(client.run(os.getpid).values())


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(two_workers: Any) -> None:
    """One of two worker processes is killed after the fifth trial; Dask redoes its trial and its nanny replaces it."""
    pids = worker_pids(two_workers)
    ended: list[int] = []

    def kill_one() -> None:
        ended.append(1)
        if len(ended) == 5:
            os.kill(pids[0], signal.SIGKILL)

    found = results(two_workers.scheduler_address, kill_one)
    assert len(ended) == 40
    assert found == results(None)
    deadline = time.monotonic() + 30
    while pids[0] in worker_pids(two_workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert pids[0] not in worker_pids(two_workers)


@pytest.mark.slow
def test_what_a_trial_raises_comes_back(two_workers: Any) -> None:
    stored = store(model([matmul()], [X], [OUT], {"W": W}), "tac", 0.05)
    campaign = Campaign(
        Dataset({"x": SAMPLES}, None, False, None, "test"), trials=2, cluster=two_workers.scheduler_address
    )
    campaign.measure_clean(ir.to_proto(stored.source.model))
    with pytest.raises(InputError, match="rates lie in"):
        campaign.measure_faulty(Variant("hardened", ir.to_proto(stored.faulty)), [_Wrong()])  # type: ignore[list-item]


class _Wrong:
    """Rates that no check of ours has seen."""

    p01 = p10 = (1.5,) * 8

    def as_array(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.full((2, 8), 1.5, np.float32)


@pytest.mark.slow
def test_workers_of_another_version_are_refused(two_workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "__version__", "99.0")
    with pytest.raises(InputError, match=r"qtaml-onnx 0.*this program qtaml-onnx 99\.0"):
        results(two_workers.scheduler_address, trials=1)


@pytest.mark.parametrize("patience", [1, pytest.param(cluster_module._PATIENCE_S, marks=pytest.mark.slow)])
def test_a_cluster_that_is_not_there_is_told_in_time(patience: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within ten seconds, two of which are for a slow machine."""
    assert cluster_module._PATIENCE_S <= 8
    monkeypatch.setattr(cluster_module, "_PATIENCE_S", patience)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(InputError, match=f"--cluster {address} cannot be reached within {patience} s"):
            results(address)
        assert time.monotonic() - start < patience + 2
    with pytest.raises(InputError, match="cannot be reached"):
        results("nonsense://x")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'qtaml-onnx\[cluster\]'"):
        results("tcp://127.0.0.1:1")
