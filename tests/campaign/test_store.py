"""The store: nothing is lost, nothing is mixed up, and whoever is at fault is told."""

from __future__ import annotations

import json
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from digits_example import MODEL, first_samples
from small_models import OUT, X, matmul, model, normal
from stored_models import Stored, store

from qtaml_onnx.campaign import Campaign, Result, StoreOptions, Sweep, Variant
from qtaml_onnx.campaign.store import SCHEMA_VERSION, TrialStore
from qtaml_onnx.campaign.trials import Trial
from qtaml_onnx.channel import FlipRates
from qtaml_onnx.cli import main
from qtaml_onnx.data import Dataset
from qtaml_onnx.errors import InputError, QtamlError

W = normal(6, 4, seed=1)
SAMPLES = normal(64, 6, seed=9)
IDENTITY = {"models": "a" * 64, "seed": "0"}


def open_store(path: Path, resume: bool = False, **identity: str) -> TrialStore:
    return TrialStore(path, IDENTITY | identity, ["hardened x.onnx"], ["0.05"], resume=resume, seed=7)


def fill(path: Path, trials: int) -> None:
    with open_store(path) as kept:
        for number in range(trials):
            kept.add(Trial(0, 0, number), {"top-1": number / 3, "masked": number})


def network() -> Stored:
    return store(model([matmul()], [X], [OUT], {"W": W}), "tac", 0.05)


def sweep_results(path: Path | None, resume: bool = False, data: Any = SAMPLES, **options: Any) -> list[Result]:
    stored = network()
    campaign = Campaign(Dataset({"x": data}, None, False, None, "test"), **({"trials": 6} | options))
    campaign.measure_clean(ir.to_proto(stored.source.model))
    sweep = Sweep(Variant("hardened", ir.to_proto(stored.faulty)), [FlipRates.uniform(rate, 8) for rate in (0.02, 0.2)])
    return campaign.measure_sweeps([sweep], store=StoreOptions(path, resume) if path else None)[0]


def test_what_is_stored_comes_back_exactly(tmp_path: Path) -> None:
    fill(tmp_path / "s.db", 5)
    with open_store(tmp_path / "s.db", resume=True) as kept:
        assert kept.found == {Trial(0, 0, n): {"top-1": n / 3, "masked": n} for n in range(5)}
        assert len(kept) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["s.db"]  # the log is folded in


def test_rows_can_be_read_by_anyone(tmp_path: Path) -> None:
    """The tables that docs/campaigns.md promises."""
    fill(tmp_path / "s.db", 2)
    db = sqlite3.connect(tmp_path / "s.db")
    query = """SELECT variants.name, conditions.name, seed, json_extract(measured, '$."top-1"')
               FROM trials JOIN variants USING (variant) JOIN conditions USING (condition)"""
    assert db.execute(query).fetchall() == [("hardened x.onnx", "0.05", 7, 0.0), ("hardened x.onnx", "0.05", 8, 1 / 3)]
    db.close()


def test_a_trial_is_stored_before_the_next_begins(tmp_path: Path) -> None:
    """Another process, which reads the files as they are at that moment, finds every trial."""
    path = tmp_path / "s.db"
    with open_store(path) as kept:
        for number in range(3):
            kept.add(Trial(0, 0, number), {"top-1": 1.0})
            copy = tmp_path / f"copy{number}.db"
            copy.write_bytes(path.read_bytes())
            wal = path.with_name("s.db-wal")
            copy.with_name(f"{copy.name}-wal").write_bytes(wal.read_bytes())
            with open_store(copy, resume=True) as seen:
                assert len(seen) == number + 1


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    fill(path, 3)
    with pytest.raises(InputError, match=r"s\.db exists; go on with it by --resume"):
        open_store(path)
    with pytest.raises(InputError, match=r"another campaign: it differs in seed \(0 there, 3 here\); name a new file"):
        open_store(path, resume=True, seed="3")
    with pytest.raises(InputError, match="it differs in models, data"):
        open_store(path, resume=True, models="b" * 64, data="c" * 64)
    with open_store(path, resume=True), pytest.raises(InputError, match="in use by another process"):
        open_store(path, resume=True)
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(InputError, match=f"schema version {SCHEMA_VERSION + 1}, this program knows {SCHEMA_VERSION}"):
        open_store(path, resume=True)
    with pytest.raises(InputError, match=r"the folder .* does not exist"):
        open_store(tmp_path / "no" / "s.db")
    with pytest.raises(InputError, match="is a folder"):
        open_store(tmp_path, resume=True)
    (tmp_path / "text.db").write_text("no database at all, only text that goes on for a while\n" * 99)
    with pytest.raises(InputError, match="is not a store, or damaged"):
        open_store(tmp_path / "text.db", resume=True)
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE t (a)")
    other.close()
    with pytest.raises(InputError, match="SQLite file of another program"):
        open_store(tmp_path / "other.db", resume=True)


def test_a_store_that_was_killed_as_it_was_made_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "s.db").touch()
    with open_store(tmp_path / "s.db", resume=True) as kept:
        kept.add(Trial(0, 0, 0), {"top-1": 1.0})
        assert len(kept) == 1


@pytest.mark.parametrize("how", ["pages", "file size"])
def test_a_full_disk_loses_nothing(tmp_path: Path, how: str) -> None:
    """SQLite's own limit says "full" as a full disk does; the limit of the process makes writes fail."""
    path = tmp_path / "s.db"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    added: list[int] = []

    def go_on(kept: TrialStore) -> None:
        for number in range(10_000):
            kept.add(Trial(0, 0, number), {"top-1": 1.0, "snr": 1 / 3})
            added.append(number)

    with open_store(path) as kept:
        if how == "pages":
            pages = kept._db.execute("PRAGMA page_count").fetchone()[0]
            kept._db.execute(f"PRAGMA max_page_count = {pages + 3}")
        else:
            size = path.with_name("s.db-wal").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100_000, hard))
        message = r"s\.db: the disk is full; free space" if how == "pages" else r"s\.db cannot be read or written"
        try:
            with pytest.raises(QtamlError, match=message):
                go_on(kept)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(added) > 10
    with open_store(path, resume=True) as kept:
        assert sorted(trial.number for trial in kept.found) == added


def test_a_resumed_campaign_is_the_same_and_does_only_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    wanted = sweep_results(None, trials=9)
    assert sweep_results(path, trials=4) == sweep_results(None, trials=4)
    db = sqlite3.connect(path)
    db.execute("DELETE FROM trials WHERE trial = 2")  # as if other trials had ended before it
    db.execute("UPDATE trials SET measured = json_set(measured, '$.agreement', 0.125) WHERE trial = 0")
    db.commit()
    db.close()
    resumed = sweep_results(path, resume=True, trials=9)
    for one, other in zip(resumed, wanted, strict=True):
        assert one.values[1:] == other.values[1:]
        assert one.values[0] == 0.125  # what was stored is believed, not done again


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, r"seed \(0 there, 1 here\)"),
        ({"data": SAMPLES + np.float32(1)}, "data"),
        ({"metrics": ("mse",)}, r"metrics \(agreement there, mse here\)"),
        ({"batch_size": 8}, r"batch size \(64 there, 8 here\)"),
    ],
)
def test_other_campaigns_are_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    sweep_results(tmp_path / "s.db")
    sweep_results(tmp_path / "s.db", resume=True, confidence=0.9, trials=7)  # these are no part of a trial
    with pytest.raises(InputError, match=named):
        sweep_results(tmp_path / "s.db", resume=True, **change)


def evaluation_command(folder: Path, name: str, workers: int = 1) -> list[str]:
    return [
        "evaluate", str(MODEL), "--flip-rate", "0.01,0.05", "--trials", "12", "-q",
        "--eval", str(folder / "eval.npz"), "--store", str(folder / f"{name}.db"), "--resume",
        "--metric", "top-1", "--metric", "snr", "-o", str(folder / f"{name}.json"), "--workers", str(workers),
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    first_samples(tmp_path / "eval.npz", 200)
    return tmp_path


def kill_and_resume(folder: Path, moments: list[float | int], workers: int) -> int:
    """Runs the program, kills it at each of the moments, lets it end at last; how many kills met trials under way.

    A moment is a number of seconds after the start, or of stored trials.
    """
    midway = 0
    command = [sys.executable, "-P", "-c", "import sys; from qtaml_onnx.cli import main; sys.exit(main())"]
    if workers > 1:  # processes that are spawned import the main module again
        (folder / "program.py").write_text(
            "import sys\nfrom qtaml_onnx.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
        )
        command = [sys.executable, str(folder / "program.py")]
    command += evaluation_command(folder, "killed", workers)
    for moment in moments:
        process = subprocess.Popen(command)
        if isinstance(moment, float):
            time.sleep(moment)
        else:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if stored_trials(folder / "killed.db") >= moment:
                    break
                time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        stored = stored_trials(folder / "killed.db")
        midway += 0 < stored < 24
        assert not (folder / "killed.json").exists() or stored == 24
    assert subprocess.run(command, check=False).returncode == 0
    return midway


def stored_trials(path: Path) -> int:
    """How many trials are stored, read from a copy so that nothing is repaired before the resume; 0 amid a write."""
    if not path.exists():
        return 0
    for suffix in ("", "-wal"):
        source = path.with_name(path.name + suffix)
        copy = path.with_name(f"copy{suffix}")
        if source.exists():
            copy.write_bytes(source.read_bytes())
        else:
            copy.unlink(missing_ok=True)
    db = sqlite3.connect(path.with_name("copy"))
    try:
        tables = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'trials'").fetchone()[0]
        return int(db.execute("SELECT count(*) FROM trials").fetchone()[0]) if tables else 0
    except sqlite3.DatabaseError:  # the two files are of different moments
        return 0
    finally:
        db.close()


def test_killed_midway_and_resumed(folder: Path) -> None:
    """Killed as soon as some trials are stored, resumed: the same bytes as without a break."""
    assert main(evaluation_command(folder, "whole")) == 0
    assert kill_and_resume(folder, [3], workers=1) == 1
    assert (folder / "killed.json").read_bytes() == (folder / "whole.json").read_bytes()
    assert json.loads((folder / "whole.json").read_text())["models"][0]["evaluation"]["trials"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_moments_and_resumed(folder: Path, workers: int) -> None:
    """Eight kills: at random times since the start, which may fall before the store exists, and amid the trials."""
    assert main(evaluation_command(folder, "whole")) == 0
    rng = random.Random(workers)
    moments: list[float | int] = [rng.uniform(0.1, 1.0), *sorted(rng.sample(range(1, 20), 4))]
    moments += [rng.uniform(0.1, 4.0) for _ in range(3)]  # by then all trials may be there
    assert kill_and_resume(folder, moments, workers) > 0
    assert (folder / "killed.json").read_bytes() == (folder / "whole.json").read_bytes()
