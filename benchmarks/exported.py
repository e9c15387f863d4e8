"""Hardens models as exporters leave them: what is found, what is left out and why, and whether the result verifies.

    python benchmarks/exported.py --models DIR [--only PATTERN] [--flip-rate P] [--samples N] [--out FILE.json]

Each .onnx file of the folder is hardened twice, without calibration data and with N random inputs of the shapes that it
declares, and what was written is verified against the original. `export_models.py` fills such a folder. The table is
Markdown: "kept" counts what is left as it is, by reasons that follow the table; a model that the tool declines has its
reason in the place of the result, and anything but a reason is a defect, with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

import qtaml_onnx
from qtaml_onnx.data import Dataset, input_specs, synthetic_dataset
from qtaml_onnx.errors import QtamlError
from qtaml_onnx.modelio import OutputSet, load_model, save_model
from qtaml_onnx.runtime import create_session

HEADER = ("model", "exporter", "opset", "weights", "bits", "kept", "verified", "seconds", "difference")


@dataclass
class Run:
    """One hardening.

    Attributes:
        verdict: "yes" if every check of verify passed, the failed ones, or why the tool declined.
        seconds: Processor time of hardening; codes that the process designed for models before are at hand.
        difference: RMS of what the hardened model's outputs are off, over that of the original's, without faults; the
            largest of all outputs.
        tensors: Stored weights.
        bits: Stored bits of weights.
        left_out: By reason, how many tensors or operators were left out.
        defect: Whether it failed without a reason for a person.
    """

    verdict: str
    seconds: float = 0.0
    difference: float = float("nan")
    tensors: int = 0
    bits: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    defect: bool = False


@dataclass
class Row:
    """One model: where it comes from, and what became of it by how many calibration samples it was hardened with."""

    name: str
    exporter: str
    opset: str
    runs: dict[int, Run] = field(default_factory=dict)


def difference(original: Path, hardened: Path, data: Dataset) -> float:
    """How far the outputs of the hardened model are off, see `Run`."""
    sessions = [create_session(path, ort.SessionOptions()) for path in (original, hardened)]
    energies: dict[int, list[float]] = {}
    for feed, _count in data.feeds(2):
        for number, (wanted, got) in enumerate(zip(*(session.run(None, feed) for session in sessions), strict=True)):
            one = energies.setdefault(number, [0.0, 0.0])
            one[0] += float(np.sum(np.square(np.asarray(got, np.float64) - np.asarray(wanted, np.float64))))
            one[1] += float(np.sum(np.square(np.asarray(wanted, np.float64))))
    return max((off / whole) ** 0.5 for off, whole in energies.values() if whole > 0)


def harden(path: Path, rate: float, samples: int) -> Run:
    """Hardens, writes, verifies and compares one model."""
    started = time.process_time()
    try:
        specs = input_specs(load_model(path).model)
        data = synthetic_dataset(specs, samples, 0) if samples else None
        result = qtaml_onnx.harden(path, rate, calibration=data)
        seconds = time.process_time() - started
        with tempfile.TemporaryDirectory() as folder:
            hardened = Path(folder) / path.name
            with OutputSet() as outputs:
                save_model(result.model, outputs, hardened)
                outputs.add_text(hardened.with_suffix(".plan.json"), result.plan.to_json())
            failed = [check for check in qtaml_onnx.verify(hardened, path) if not check.passed]
            off = difference(path, hardened, synthetic_dataset(specs, 4, 1))
    except QtamlError as error:
        reason = str(error).removeprefix(f"{path}: ")
        return Run(f"declined: {reason}", time.process_time() - started)
    except Exception as error:
        traceback.print_exc()
        return Run(f"DEFECT: {type(error).__name__}: {error}", time.process_time() - started, defect=True)
    verdict = "; ".join(f"NO: {check.name}: {check.detail}" for check in failed) or "yes"
    reasons = Counter(re.sub(r": kept .*", "", item.reason) for item in result.plan.left_out)
    names = {tensor.name for tensor in result.plan.tensors}
    return Run(verdict, seconds, off, len(names), result.plan.weight_bits, dict(reasons), bool(failed))


def measure(path: Path, rate: float, samples: Iterable[int]) -> Row:
    """The row of one model."""
    proto = onnx.load(path, load_external_data=False)
    opset = next((str(one.version) for one in proto.opset_import if one.domain in ("", "ai.onnx")), "")
    row = Row(path.stem, f"{proto.producer_name} {proto.producer_version.partition('+')[0]}".strip(), opset)
    for count in samples:
        row.runs[count] = harden(path, rate, count)
    return row


def cells(row: Row) -> list[str]:
    """The row as it is printed; of the runs, first the one without calibration."""
    runs = list(row.runs.values())
    verdicts = list(dict.fromkeys(run.verdict for run in runs))
    seconds = " / ".join(f"{run.seconds:.1f}" for run in runs)
    off = " / ".join("–" if np.isnan(run.difference) else f"{run.difference:.2g}" for run in runs)
    found = [str(runs[0].tensors), f"{runs[0].bits:,}"]
    return [
        row.name,
        row.exporter,
        row.opset,
        *found,
        str(sum(runs[0].left_out.values())),
        " / ".join(verdicts),
        seconds,
        off,
    ]


def kept(rows: Iterable[Row]) -> Iterator[str]:
    """By reason, how much was left out in how many models."""
    tensors, models = Counter[str](), Counter[str]()
    for row in rows:
        left_out = next(iter(row.runs.values())).left_out
        tensors.update(left_out)
        models.update(left_out.keys())
    for reason, count in tensors.most_common():
        yield f"{reason}: {count} in {models[reason]} model{'s' if models[reason] > 1 else ''}"


def line(columns: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(column.replace('|', chr(92) + '|') for column in columns)} |"


def main() -> None:
    """Prints the table, line by line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, help="folder of .onnx files")
    parser.add_argument("--only", default="*", help="models whose names match this pattern")
    parser.add_argument("--flip-rate", type=float, default=0.01)
    parser.add_argument(
        "--samples", type=int, default=8, help="random calibration inputs of the second run; 0: no such run"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.models is None or not arguments.models.is_dir():
        sys.exit("give a folder of models by --models; `python benchmarks/export_models.py DIR` makes one, with torch")
    logging.disable(logging.INFO)
    versions = f"onnxruntime {ort.__version__}, onnx {onnx.__version__}, qtaml-onnx {qtaml_onnx.__version__}"
    print(f"flip rate {arguments.flip_rate:g}; {versions}; without / with {arguments.samples} random inputs\n")
    print(line(HEADER), line("---" for _ in HEADER), sep="\n", flush=True)
    rows = []
    for path in sorted(arguments.models.glob("*.onnx")):
        if fnmatchcase(path.stem, arguments.only):
            rows.append(measure(path, arguments.flip_rate, sorted({0, arguments.samples})))
            print(line(cells(rows[-1])), flush=True)
    print("\nKept as they are:", *kept(rows), sep="\n- ")
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    sys.exit(any(run.defect for row in rows for run in row.runs.values()))


if __name__ == "__main__":
    main()
