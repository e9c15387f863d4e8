"""Worker processes that die: their trial is redone once, what they take with them is told, none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx_ir as ir
import pytest
from small_models import OUT, X, matmul, model, normal
from stored_models import store

from qtaml_onnx.campaign import Campaign, Result, Variant
from qtaml_onnx.campaign.executors import Processes
from qtaml_onnx.campaign.trials import Trial, Work
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.data import Dataset
from qtaml_onnx.errors import InputError, QtamlError

W = normal(6, 4, seed=1)
SAMPLES = normal(64, 6, seed=9)
RATES = [FlipRates.uniform(rate, 8) for rate in (0.02, 0.2)]
DEADLY = """
import multiprocessing, os, signal
from pathlib import Path

def once(outputs, clean, labels):
    if multiprocessing.parent_process() is not None:
        try:
            Path("died").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
    return float(abs(outputs - clean).mean())

def always(outputs, clean, labels):
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.0

def broken(outputs, clean, labels):
    return 0.0 if multiprocessing.parent_process() is None else "nothing"
"""


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with metrics that kill the worker process that they run in."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(workers: int, metric: str, trials: int = 5) -> list[Result]:
    stored = store(model([matmul()], [X], [OUT], {"W": W}), "tac", 0.05)
    campaign = Campaign(
        Dataset({"x": SAMPLES}, None, False, None, "test"), trials=trials, workers=workers, metrics=(metric,)
    )
    campaign.measure_clean(ir.to_proto(stored.source.model))
    return campaign.measure_faulty(Variant("hardened", ir.to_proto(stored.faulty)), RATES)


def test_the_trial_of_a_worker_that_dies_is_redone(deadly: Path) -> None:
    found = results(2, "deadly:once")
    assert (deadly / "died").exists()
    assert found == results(1, "deadly:once")


def test_a_trial_that_kills_twice_is_told(deadly: Path) -> None:
    with pytest.raises(QtamlError, match=r"died in trial \d, and again when the trial was redone \(exit code -9\)"):
        results(2, "deadly:always")


def test_what_a_trial_raises_in_a_worker_comes_back(deadly: Path) -> None:
    with pytest.raises(InputError, match="deadly:broken returned a str"):
        results(2, "deadly:broken")


def test_processes_end_with_the_campaign() -> None:
    """After the context no worker is left; nor more of them started than there were trials."""
    work = Work((ir.to_proto(store(model([matmul()], [X], [OUT], {"W": W}), "tac", 0.05).faulty),),
                ((RATES[0].as_array(),),), Dataset({"x": SAMPLES}, None, False, None, "test"), (), 0, 64)  # fmt: skip
    with Processes(work, 4) as executor:
        assert {trial for trial, _ in executor.run([Trial(0, 0, 0), Trial(0, 0, 1)])} == {
            Trial(0, 0, 0),
            Trial(0, 0, 1),
        }
        pids = [process.process.pid for process in (*executor._busy.values(), *executor._idle)]
        assert len(pids) == 2
    for pid in pids:
        assert pid is not None
        assert not Path(f"/proc/{pid}").exists()


ORPHANS = """
import multiprocessing, sys, time
sys.path.insert(0, {tests!r})
import test_executors

def campaign():
    import threading
    def tell():
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.01)
        time.sleep(0.5)
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    threading.Thread(target=tell, daemon=True).start()
    test_executors.results(2, "agreement", 100000)

if __name__ == "__main__":
    campaign()
"""


def test_workers_of_a_killed_parent_end_by_themselves(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(ORPHANS.format(tests=str(Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path])}
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while any(running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(running(pid) for pid in pids)


def running(pid: int) -> bool:
    """Whether a process is there and not only waits for its parent to read its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
