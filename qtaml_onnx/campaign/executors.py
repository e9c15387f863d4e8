"""Where trials run: in this process, or in processes of this machine. `cluster` has those of other machines."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Protocol, Self

from qtaml_onnx.campaign.trials import Measured, Trial, Work, Worker, available_cpus
from qtaml_onnx.errors import QtamlError

__all__ = ["Executor", "InProcess", "Processes", "local_executor"]

_MOST_DEATHS = 2
"""A trial during which a worker died is done again; if that worker dies too, it is the trial."""


class Executor(Protocol):
    """Runs trials, in whatever order they end."""

    def run(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Measured]]:
        """Each trial once, with what it measured.

        Raises:
            InputError: what a trial raises.
            QtamlError: if a trial ends its worker twice.
        """
        ...

    def __enter__(self) -> Self:
        """Ready to run."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends all workers, whatever they do."""
        ...


def local_executor(work: Work, workers: int) -> Executor:
    """On this machine: one process that uses all processors for a trial, or `workers` with a thread each."""
    return InProcess(work) if workers == 1 else Processes(work, workers)


class InProcess(contextlib.AbstractContextManager["InProcess"]):
    """Runs trials here, batches side by side."""

    def __init__(self, work: Work, threads: int | None = None) -> None:
        """Takes the work, and how many batches run side by side: as many as there are processors if None."""
        self._worker = Worker(work, threads or available_cpus())

    def run(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Measured]]:
        """In order."""
        for trial in trials:
            yield trial, self._worker(trial)

    def __exit__(self, *_error: object) -> None:
        """Nothing to end."""


class _Process:
    """A worker process at the other end of a pipe."""

    def __init__(self) -> None:
        context = get_context("spawn")  # onnxruntime's threads do not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does
        self.trial: Trial | None = None

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


class Processes(contextlib.AbstractContextManager["Processes"]):
    """Runs trials in processes, each with one thread. A process that dies is replaced and its trial done again."""

    def __init__(self, work: Work, workers: int) -> None:
        """Takes the work; processes start with the first trials."""
        self._work = work
        self._workers = workers
        self._idle: list[_Process] = []
        self._busy: dict[Connection, _Process] = {}
        """With a trial, or with their own start."""

    def run(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Measured]]:
        """As they end."""
        waiting = deque(trials)
        deaths: Counter[Trial | None] = Counter()
        while waiting or any(process.trial for process in self._busy.values()):
            while waiting and self._idle:
                self._give(self._idle.pop(), waiting.popleft())
            running = sum(process.trial is not None for process in self._busy.values())
            while len(self._busy) + len(self._idle) < min(self._workers, len(waiting) + running):
                process = _Process()
                self._busy[process.connection] = process
            ready = wait([process.connection for process in self._busy.values()])
            for process in [process for process in self._busy.values() if process.connection in ready]:
                del self._busy[process.connection]
                trial, process.trial = process.trial, None
                try:
                    answer = process.connection.recv()
                    if trial is None:  # it has started
                        process.connection.send(self._work)
                except (EOFError, OSError):
                    process.end()
                    deaths[trial] += 1
                    _check_deaths(trial, deaths[trial], process.process.exitcode)
                    if trial is not None:
                        waiting.appendleft(trial)
                    continue
                self._idle.append(process)
                if isinstance(answer, QtamlError):
                    raise answer
                if trial is not None:
                    yield trial, answer

    def _give(self, process: _Process, trial: Trial) -> None:
        process.trial = trial
        self._busy[process.connection] = process
        with contextlib.suppress(OSError):  # it died while it had nothing to do: reading from it tells
            process.connection.send(trial)

    def __exit__(self, *_error: object) -> None:
        """Kills the processes: nobody waits for what they are at."""
        for process in (*self._busy.values(), *self._idle):
            process.end()
        self._busy, self._idle = {}, []


def _check_deaths(trial: Trial | None, deaths: int, code: int | None) -> None:
    if deaths < _MOST_DEATHS:
        return
    if trial is None:
        raise QtamlError(
            f"worker processes die as they start (exit code {code}); run with --workers 1, or, in a script of your "
            "own, call from under `if __name__ == '__main__':`"
        )
    raise QtamlError(
        f"a worker process died in trial {trial.number}, and again when the trial was redone (exit code {code}), "
        "perhaps for lack of memory; run with fewer --workers"
    )


def _serve(connection: Connection) -> None:
    """A worker process: says that it is there, takes the work, then trials until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        connection.send(None)
        worker: Worker | QtamlError
        try:
            worker = Worker(connection.recv(), threads=1)
        except QtamlError as error:  # a user's metric that is not to be found here
            worker = error
        while True:
            connection.send(_answer(worker, connection.recv()))


def _answer(worker: Worker | QtamlError, trial: Trial) -> Measured | QtamlError:
    if isinstance(worker, QtamlError):
        return worker
    try:
        return worker(trial)
    except QtamlError as error:
        return error
    except Exception as error:  # must reach the parent, whatever it is
        return QtamlError(f"trial {trial.number} failed: {type(error).__name__}: {error}")
