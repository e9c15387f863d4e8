"""Trials on a Dask cluster, for campaigns that outgrow a machine.

Workers get the models and the data once, as a plugin, which Dask also gives to workers that join later; a task is a
trial's numbers. Dask runs the trials of a worker that dies on others.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import onnxruntime as ort

from qtaml_onnx import __version__
from qtaml_onnx.campaign.trials import Measured, Trial, Work, Worker
from qtaml_onnx.errors import InputError, QtamlError

__all__ = ["Cluster"]

_PATIENCE_S = 8
"""How long a scheduler may take to answer, and then, its first worker to be there."""

_works: dict[str, Work] = {}
"""In a worker: what campaigns are under way, by key."""

_local = threading.local()
"""In a worker: each thread's models. Threads do not share them, as a trial overwrites the weights."""


def _versions() -> dict[str, str]:
    return {"qtaml-onnx": __version__, "onnxruntime": ort.__version__}


def _run_trial(key: str, trial: Trial) -> Measured:
    """In a worker."""
    if getattr(_local, "key", None) != key:
        _local.worker = Worker(_works[key], threads=1)
        _local.key = key
    measured: Measured = _local.worker(trial)
    return measured


class Cluster(contextlib.AbstractContextManager["Cluster"]):
    """Runs trials on the workers of a Dask scheduler, a thread of theirs each."""

    def __init__(self, work: Work, address: str) -> None:
        """Connects and hands out the work.

        Args:
            work: What to run.
            address: Of the scheduler: `tcp://host:8786`, `host:8786`, or what else `distributed.Client` takes.

        Raises:
            InputError: if the package is missing, nothing answers at the address, no worker is there, or workers have
                other versions.
        """
        try:
            distributed: Any = importlib.import_module("distributed")  # Any: an extra, which may not be there
        except ImportError as error:
            raise InputError("--cluster needs the package distributed: pip install 'qtaml-onnx[cluster]'") from error
        self._distributed = distributed
        self._address = address
        self._key = f"qtaml-onnx-{uuid.uuid4().hex}"
        for name in ("distributed", "tornado"):  # a cluster that goes away is told in one line of our own
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            self._client = distributed.Client(address, timeout=_PATIENCE_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(
                f"--cluster {address} cannot be reached within {_PATIENCE_S} s; start one with `dask scheduler` and "
                "`dask worker`, and give the scheduler's address"
            ) from error
        try:
            self._prepare(work)
        except BaseException:
            self._client.close(timeout=1)
            raise

    def _prepare(self, work: Work) -> None:
        try:
            self._client.wait_for_workers(1, timeout=_PATIENCE_S)
        except TimeoutError as error:
            raise InputError(f"--cluster {self._address} has no workers; start some with `dask worker`") from error
        own = _versions()
        try:
            found = self._client.run(_versions)
        except Exception as error:  # whatever a worker without the package raises
            raise InputError(
                f"--cluster {self._address}: a worker cannot import qtaml_onnx ({error}); install it there"
            ) from error
        for worker, versions in found.items():
            if versions != own:
                there = ", ".join(f"{name} {version}" for name, version in versions.items())
                here = ", ".join(f"{name} {version}" for name, version in own.items())
                raise InputError(f"--cluster worker {worker} has {there}, this program {here}; make them equal")
        self._client.register_plugin(_plugin(self._distributed, self._key, work), name=self._key)

    def run(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Measured]]:
        """As they end.

        Raises:
            InputError: what a trial raises.
            QtamlError: if workers die of a trial as often as the cluster allows, or the cluster is gone.
        """
        pending = {
            self._client.submit(_run_trial, self._key, trial, pure=False, priority=-place): trial
            for place, trial in enumerate(trials)
        }
        ended = self._distributed.as_completed(list(pending), loop=self._client.loop)
        for future in ended:
            trial = pending.pop(future)
            try:
                measured = future.result()
            except QtamlError:
                raise
            except self._distributed.KilledWorker as error:
                raise QtamlError(
                    f"workers of --cluster {self._address} died in trial {trial.number}, again and again, perhaps for "
                    "lack of memory; give them more"
                ) from error
            except Exception as error:  # cancelled futures, broken connections, whatever a worker raises
                raise QtamlError(
                    f"trial {trial.number} was lost on --cluster {self._address}: {type(error).__name__}: {error}"
                ) from error
            future.release()
            yield trial, measured

    def __exit__(self, *_error: object) -> None:
        """Forgets what is not done yet and takes the work off the workers."""
        with contextlib.suppress(Exception):  # the cluster may be gone
            self._client.unregister_worker_plugin(self._key)
        with contextlib.suppress(Exception):
            self._client.close(timeout=2)


def _plugin(distributed: Any, key: str, work: Work) -> Any:
    """A worker plugin that keeps the work in the worker's process; its class exists only where distributed does."""

    class KeepWork(distributed.WorkerPlugin):  # type: ignore[misc]
        def setup(self, worker: Any) -> None:
            keep_work(key, work)

        def teardown(self, worker: Any) -> None:
            keep_work(key, None)

    return KeepWork()


def keep_work(key: str, work: Work | None) -> None:
    """In a worker: remembers the work of a campaign, or forgets it."""
    if work is None:
        _works.pop(key, None)
    else:
        _works[key] = work
