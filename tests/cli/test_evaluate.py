"""`evaluate`: the same bytes however trials are run, intervals that end by themselves, differences, interruptions."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run
from digits_example import MODEL, first_samples

from qtaml_onnx.campaign import Stopping, t_interval
from qtaml_onnx.campaign.trials import Worker
from qtaml_onnx.cli import main
from qtaml_onnx.cli.show import TerminalProgress


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 130 evaluation samples and a hardened model in it."""
    folder = tmp_path_factory.mktemp("digits")
    first_samples(folder / "eval.npz", 130)
    args = f"harden {MODEL} -o {folder}/safe.onnx --flip-rate 0.05 --method posterior-mean --no-html -q"
    assert main(args.split()) == 0
    return folder


def base(small: Path) -> str:
    return f"evaluate {MODEL} {small}/safe.onnx --flip-rate 0.02,0.1 --eval {small}/eval.npz"


def test_two_runs_and_any_workers_give_the_same_bytes(command: Run, small: Path, tmp_path: Path) -> None:
    found = []
    for name, more in (("one", ""), ("again", ""), ("four", "--workers 4"), ("kept", f"--store {tmp_path}/s.db")):
        command(f"{base(small)} --trials 6 -o {tmp_path}/{name}.json {more}")
        found.append((tmp_path / f"{name}.json").read_bytes())
    command(f"{base(small)} --trials 6 -o {tmp_path}/resumed.json --store {tmp_path}/s.db --resume")
    assert found == [(tmp_path / "resumed.json").read_bytes()] * 4


def test_threads_change_no_bit(command: Run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cpus in (1, 3):
        monkeypatch.setattr("qtaml_onnx.campaign.executors.available_cpus", lambda cpus=cpus: cpus)
        monkeypatch.setattr("qtaml_onnx.campaign.runner.available_cpus", lambda cpus=cpus: cpus)
        found.append(command(f"{base(small)} --trials 3 --metric mse --json")[0])
    assert found[0] == found[1]


def test_metrics_outcomes_and_paired_differences(command: Run, small: Path, tmp_path: Path) -> None:
    """Every figure of the JSON again from the trials in the store, by the definitions."""
    names = ["top-1", "snr", "mse"]
    options = " ".join(f"--metric {name}" for name in names)
    out, _ = command(f"{base(small)} --trials 8 {options} --json --store {tmp_path}/s.db")
    document = json.loads(out)
    db = sqlite3.connect(tmp_path / "s.db")
    stored = db.execute("SELECT variant, condition, trial, measured FROM trials")
    rows = {(variant, condition, number): json.loads(text) for variant, condition, number, text in stored}
    db.close()
    assert len(rows) == 2 * 2 * 8
    for variant, entry in enumerate(document["models"]):
        evaluation = entry["evaluation"]
        assert evaluation["metric"] == "top-1"
        for condition, result in enumerate(evaluation["results"][-2:]):
            assert result["stopped"] == "trials"
            trials = [rows[variant, condition, number] for number in range(8)]
            for name in names:
                wanted = t_interval([trial[name] for trial in trials], 0.95, bounds=(-np.inf, np.inf))
                shown = result["metrics"][name]
                assert shown["mean"] == pytest.approx(wanted.mean, rel=1e-12)
                assert shown["interval"] == "t"
                assert shown["ci_low"] == pytest.approx(max(wanted.low, {"snr": -150}.get(name, 0)), rel=1e-9)
            shares = {name: sum(trial[name] for trial in trials) / (8 * 130) for name in result["outcomes"]}
            assert sum(shares.values()) == pytest.approx(1, abs=1e-12)
            assert {name: one["mean"] for name, one in result["outcomes"].items()} == pytest.approx(shares)
    for condition, difference in enumerate(document["differences"]):
        pairs = [rows[1, condition, n]["top-1"] - rows[0, condition, n]["top-1"] for n in range(8)]
        wanted = t_interval(pairs, 0.95, bounds=(-1, 1))
        assert (difference["first"], difference["second"]) == (str(MODEL), f"{small}/safe.onnx")
        assert difference["pairs"] == 8
        assert difference["interval"] == "t"
        assert (difference["mean"], difference["ci_low"], difference["ci_high"]) == (
            wanted.mean, wanted.low, wanted.high,
        )  # fmt: skip


def test_precision_ends_the_trials_whoever_runs_them(command: Run, small: Path) -> None:
    """As many trials as the rule asks for on the values of a run that is longer; so with workers, so in two parts."""
    args = f"{base(small)} --precision 0.1 --trials 20"
    document = json.loads(command(f"{args} --json")[0])
    assert json.loads(command(f"{args} --workers 2 --json")[0]) == document
    states = set()
    for entry in document["models"]:
        assert entry["evaluation"]["precision"] == 0.1
        for result in entry["evaluation"]["results"]:
            if result["stopped"] is None:
                continue
            states.add(result["stopped"])
            assert result["interval"] == "betting"
            half = (result["ci_high"] - result["ci_low"]) / 2
            assert (half <= 0.1) == (result["stopped"] == "precision")
            assert result["trials"] in [*Stopping(0.1, most=20).looks()]
            assert result["outcomes"]["critical"]["interval"] == "betting"
    assert states == {"precision", "trials"}
    assert {difference["interval"] for difference in document["differences"]} == {"betting"}
    out = command(args)[0]
    assert "half-width 0.1 reached at" in out
    assert "the others ended after 20 trials; raise --trials" in out


def test_an_error_without_bounds_is_null_in_json(command: Run, small: Path) -> None:
    """A single trial has no interval, so that of mse has no upper end."""
    document = json.loads(command(f"{base(small)} --trials 1 --metric mse --json")[0])
    result = document["models"][0]["evaluation"]["results"][-1]
    assert result["ci_low"] == 0
    assert result["ci_high"] is None
    assert result["mean"] > 0


def test_a_picture_of_another_metric(command: Run, small: Path, tmp_path: Path) -> None:
    command(f"{base(small)} --trials 2 --metric snr --plot {tmp_path}/p.svg -q")
    assert b"<!-- snr -->" in (tmp_path / "p.svg").read_bytes()


def test_ctrl_c_leaves_a_store_to_go_on_with(
    command: Run, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = f"{base(small)} --trials 4"
    wanted = command(f"{args} --json")[0]
    work = Worker.__call__
    calls: list[Any] = []

    def interrupted(self: Worker, trial: Any) -> Any:
        calls.append(trial)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return work(self, trial)

    monkeypatch.setattr(Worker, "__call__", interrupted)
    out, err = command(f"{args} --store {tmp_path}/s.db -o {tmp_path}/r.json", code=130)
    assert out == ""
    assert f"interrupted; 5 trials are stored in {tmp_path}/s.db; the same command with --resume goes on" in err
    assert [p.name for p in tmp_path.iterdir()] == ["s.db"]
    assert command(f"{args} --store {tmp_path}/s.db --resume --json")[0] == wanted
    assert len(calls) == 6 + 16 - 5
    calls.clear()
    assert "interrupted; nothing was written" in command(args, code=130)[1]


@pytest.mark.slow
def test_sigint_to_the_program_and_its_workers(small: Path, tmp_path: Path) -> None:
    """As a terminal does it: to the whole process group, with two workers; one line, exit code 130, a store."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom qtaml_onnx.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    args = f"{base(small)} --trials 3000 --workers 2 --store {tmp_path}/s.db"
    process = subprocess.Popen(
        [sys.executable, str(program), *args.split()],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # test runners' processes may ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 60
    wal = tmp_path / "s.db-wal"
    while not (wal.exists() and wal.stat().st_size > 100_000) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    lines = [line for line in err.splitlines() if "Monte-Carlo trials:" not in line]
    assert len(lines) == 1
    assert "trials are stored in" in lines[0]


def test_bad_stores(command: Run, small: Path, tmp_path: Path) -> None:
    args = f"{base(small)} --trials 1"
    assert "--resume needs --store" in command(f"{args} --resume", code=2)[1]
    command(f"{args} --store {tmp_path}/s.db -q")
    assert "exists; go on with it by --resume" in command(f"{args} --store {tmp_path}/s.db", code=2)[1]
    err = command(f"{args} --store {tmp_path}/s.db --resume --seed 5", code=2)[1]
    assert err.count("\n") == 1
    assert "differs in seed (0 there, 5 here)" in err
    assert "is one of the input files" in command(f"{args} --store {small}/safe.onnx --resume", code=2)[1]
    twice = command(f"{args} --store {tmp_path}/x --plot {tmp_path}/x", code=2)[1]
    assert "--store and --plot name the same file" in twice
    assert "--metric nonsense" in command(f"{args} --metric nonsense --store {tmp_path}/n.db", code=2)[1]
    assert not (tmp_path / "n.db").exists()
    assert "twice" in command(f"{args} --metric mse --metric mse", code=2)[1]
    assert "--precision 0 " in command(f"{args} --precision 0", code=2)[1]


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line every ten seconds of a clock that is ours."""
    clock = iter([0.0, 4.0, 11.0, 12.0, 22.0])
    monkeypatch.setattr("qtaml_onnx.cli.show.time.monotonic", lambda: next(clock))
    with TerminalProgress(quiet=False).steps("trials", 4) as step:
        step.expect(8)
        for _ in range(4):
            step()
    assert capsys.readouterr().err.splitlines() == [
        "trials: 2 of 8, 5.5 s each, 0:00:33 left",
        "trials: 4 of 8, 5.5 s each, 0:00:22 left",
    ]
