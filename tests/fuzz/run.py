"""Fuzzes for long: `make fuzz`, or

    python tests/fuzz/run.py [--inputs N] [--seconds S] [--jobs J] [--first SEED] [--only TARGET...] [--out FILE.json]

Every input is damaged by a seed of its own and given to the command line in a process of a pool, so that one that
crashes natively, hangs or eats memory is found, named and left behind. Ends with a count, and 1 if anything was found.
A case is run again with --only TARGET --first SEED --inputs 1.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
BATCH = 2000
SLOWEST = 60.0
"""Processor seconds a case may take, which a busy machine does not change; ten times as many of the clock's."""

MOST_MEMORY = 8 << 30


def worker(target: str, first: int, count: int) -> None:
    """Runs cases and says a line for each, before and after."""
    sys.path.insert(0, str(HERE.parent))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from fuzz.targets import run_case

    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    with tempfile.TemporaryDirectory(prefix="qtaml-fuzz-") as name:
        for seed in range(first, first + count):
            print(json.dumps({"start": seed}), file=report, flush=True)
            try:
                result: dict[str, object] = {"seed": seed, "code": run_case(target, seed, Path(name) / "case")}
            except BaseException:
                result = {"seed": seed, "defect": traceback.format_exc()[-1500:]}
            print(json.dumps(result), file=report, flush=True)


class Job:
    """A worker process on some seeds of a target."""

    def __init__(self, target: str, first: int, count: int) -> None:
        self.target, self.next, self.end = target, first, first + count
        args = [sys.executable, __file__, "--worker", target, str(first), str(count)]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the job
        self.process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=self.errors)
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.buffer = b""
        self.since, self.spent = time.monotonic(), 0.0

    def read(self) -> list[dict[str, object]]:
        assert self.process.stdout is not None
        data = self.process.stdout.read()
        if data:
            self.since, self.spent = time.monotonic(), self.processor_time()
            self.buffer += data
        *lines, self.buffer = self.buffer.split(b"\n")
        return [json.loads(line) for line in lines]

    def processor_time(self) -> float:
        """Processor seconds of the worker, all threads; 0 where the system does not tell."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def hangs(self) -> bool:
        """Whether a case has taken too long."""
        return self.processor_time() - self.spent > SLOWEST or time.monotonic() - self.since > 10 * SLOWEST

    def tail(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")[-800:]


def fuzz(inputs: int, seconds: float, jobs: int, first: int, shares: dict[str, int]) -> dict[str, object]:
    """Runs until so many inputs or seconds."""
    codes: dict[str, collections.Counter[str]] = {target: collections.Counter() for target in shares}
    findings: list[dict[str, object]] = []
    total = sum(shares.values())
    queue = [
        (target, start, min(BATCH, first + inputs * share // total - start))
        for target, share in shares.items()
        for start in range(first, first + inputs * share // total, BATCH)
    ]
    queue.sort(key=lambda item: item[1])
    running: list[Job] = []
    begin = time.monotonic()
    while running or (queue and time.monotonic() - begin < seconds):
        while queue and len(running) < jobs and time.monotonic() - begin < seconds:
            running.append(Job(*queue.pop(0)))
        for job in list(running):
            ended = job.process.poll() is not None
            for line in job.read():
                if "start" in line:
                    job.next = int(str(line["start"]))
                    continue
                job.next = int(str(line["seed"])) + 1
                codes[job.target]["defect" if "defect" in line else f"exit {line['code']}"] += 1
                if "defect" in line:
                    findings.append({"target": job.target, **line})
                    print(f"{job.target} {line['seed']}: {line['defect']}", flush=True)
            hung = not ended and job.hangs()
            if hung:
                job.process.kill()
                job.process.wait()
            if hung or (ended and job.next < job.end):
                what = "hangs" if hung else f"crash, exit code {job.process.returncode}"
                codes[job.target]["hang" if hung else "crash"] += 1
                findings.append({"target": job.target, "seed": job.next, "defect": what})
                print(f"{job.target} {job.next}: {what} {job.tail()}", flush=True)
                if job.next + 1 < job.end:
                    queue.insert(0, (job.target, job.next + 1, job.end - job.next - 1))
            if ended or hung:
                running.remove(job)
        time.sleep(0.05)
    count = sum(sum(counter.values()) for counter in codes.values())
    return {"inputs": count, "seconds": time.monotonic() - begin, "codes": codes, "findings": findings}


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop then, however many were run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--only", nargs="*", help="targets; all if left out")
    parser.add_argument("--out", type=Path, help="write the summary as JSON")
    args = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    from fuzz.targets import TARGETS

    shares = {name: share for name, (_make, share) in TARGETS.items() if not args.only or name in args.only}
    summary = fuzz(args.inputs, args.seconds, args.jobs, args.first, shares)
    for target, counter in summary["codes"].items():  # type: ignore[attr-defined]
        print(f"{target:10} {sum(counter.values()):8}  " + ", ".join(f"{k}: {n}" for k, n in sorted(counter.items())))
    print(f"{summary['inputs']} inputs in {summary['seconds']:.0f} s, {len(summary['findings'])} findings")  # type: ignore[arg-type]
    if args.out:
        args.out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return 1 if summary["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
