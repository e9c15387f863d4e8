"""Makes docs/formats.md: what each command does with each form in which models hold weights, under each method.

    python tests/format_matrix.py

Nothing in its table is written by hand: a cell says what happened, or gives the tool's reason. The last section, on
exported models, is kept as the page has it; benchmarks/exported.py makes its table.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).resolve().parent))

from format_models import FORMATS

import qtaml_onnx
from qtaml_onnx.data import input_specs, synthetic_dataset
from qtaml_onnx.errors import InputError
from qtaml_onnx.hardening import HardenResult
from qtaml_onnx.methods import METHODS
from qtaml_onnx.modelio import OutputSet, load_model, save_model
from qtaml_onnx.passes.inject_faults import RATES_INPUT
from qtaml_onnx.plan import LeftOutTensor
from qtaml_onnx.runtime import create_session, session_options
from qtaml_onnx.verification import HALF_TOLERANCE
from qtaml_onnx.weights import LeftOut

PAGE = Path(__file__).resolve().parents[1] / "docs" / "formats.md"
RATE = 0.02
SMALL = "--include-small"
COLUMNS = (*METHODS, SMALL)
"""The methods, and the default one with small tensors in the fault model."""

DONE = "✓"
EXPORTED = "## Models as exporters leave them"

HEAD = f"""# Formats

What happens to each form in which a model can hold its weights. This page is made by `python tests/format_matrix.py`,
and a test compares it with what the program does: no cell of its table is claimed by hand. The
[last section](#models-as-exporters-leave-them) is measured by `benchmarks/exported.py`.

A ✓ says that three things were done, at a flip rate of {RATE}: `harden` stored the weights and wrote the model;
`inject` instrumented it, and with all rates 0 it computed what the hardened model computes, at onnxruntime's
optimisation level "basic" (beyond it, onnxruntime rounds the activations of some quantised products); `verify` found
the hardened model valid, of standard operators, with the interface of the original, equal to it up to the planned
read-out, with nothing of the read-out left at inference and, where it is quantised, on the same integer operators. A
number is a note below the table, with the program's own words.

The columns are the methods of `--method`; the last is the default one with `{SMALL}`, which puts biases,
norms, scales and zero points into the fault model too. *Stored* is the number of weight tensors that become words.
"""


@dataclass(frozen=True)
class Row:
    """One format: how many tensors are stored, and by column `DONE` or the reason why not."""

    name: str
    stored: int
    cells: tuple[str, ...]


def row(name: str, columns: Iterable[str] = COLUMNS) -> Row:
    """Runs every command on the model of a format."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        path.write_bytes(FORMATS[name]().SerializeToString())
        stored, cells = 0, []
        for column in columns:
            options: dict[str, object] = {"include_small": True} if column == SMALL else {"method": column}
            try:
                result = qtaml_onnx.harden(path, RATE, **options)  # type: ignore[arg-type]
            except InputError as error:
                cells.append(_reason(path, str(error)))
                continue
            stored = max(stored, len(result.plan.tensors))
            cells.append(_weightless(result) or _inject(path, result) or _verify(path, result) or DONE)
    return Row(name, stored, tuple(cells))


def _reason(path: Path, message: str) -> str:
    """Why nothing was stored: for each tensor, if that is what the message points to."""
    if "no weights to harden" not in message:
        return f"harden: {message.removeprefix(f'{path}: ')}"
    return f"harden: nothing to store; {_listed(qtaml_onnx.inspect(path).left_out)}"


def _listed(left_out: Iterable[LeftOut | LeftOutTensor]) -> str:
    return "; ".join(f"{item.name}: {item.reason}" for item in left_out)


def _weightless(result: HardenResult) -> str | None:
    """Where only small tensors were stored and something else was not."""
    if result.plan.tensors or not result.plan.left_out:
        return None
    return f"harden: only small tensors are stored; {_listed(result.plan.left_out)}"


def _inject(path: Path, result: HardenResult) -> str | None:
    expected = sum(1 for _tensor in result.plan.tensors)
    faulty = ir.to_proto(result.faulty)
    nodes = [*faulty.graph.node, *(node for function in faulty.functions for node in function.node)]
    for node in nodes:
        nodes.extend(inner for attribute in node.attribute if attribute.HasField("g") for inner in attribute.g.node)
    found = sum(node.op_type == "FaultInject" for node in nodes)
    if found < expected:
        return f"inject: {found} fault operators for {expected} tensors"
    data = synthetic_dataset(input_specs(load_model(path).model), 4, 0)
    planes = result.plan.planes
    quiet = {RATES_INPUT: np.zeros((2, planes), np.float32)}
    # Beyond "basic", onnxruntime makes operators of a constant quantised weight that round the activations.
    options = session_options(optimization_level="basic")
    sessions = [create_session(proto, options) for proto in (ir.to_proto(result.model), faulty)]
    for feed, _count in data.feeds(4):
        outputs = [sessions[0].run(None, feed), sessions[1].run(None, feed | quiet)]
        for fixed, injected in zip(*outputs, strict=True):
            wanted, got = np.asarray(fixed, np.float64), np.asarray(injected, np.float64)
            if np.abs(got - wanted).max() > HALF_TOLERANCE * max(float(np.sqrt(np.mean(wanted**2))), 1e-30):
                return "inject: without faults it computes something else"
    return None


def _verify(path: Path, result: HardenResult) -> str | None:
    hardened = path.with_name("o.onnx")
    with OutputSet() as outputs:
        save_model(result.model, outputs, hardened)
        outputs.add_text(hardened.with_suffix(".plan.json"), result.plan.to_json())
    onnx.checker.check_model(str(hardened))
    failed = [check for check in qtaml_onnx.verify(hardened, path) if not check.passed]
    return f"verify: {failed[0].name}: {failed[0].detail}" if failed else None


def page(rows: Iterable[Row]) -> str:
    """The page."""
    notes: list[str] = []
    lines = [f"| format | stored | {' | '.join(COLUMNS)} |", f"|---|---:|{':---:|' * len(COLUMNS)}"]
    for found in rows:
        cells = []
        for cell in found.cells:
            if cell != DONE and cell not in notes:
                notes.append(cell)
            cells.append(cell if cell == DONE else f"[{notes.index(cell) + 1}](#notes)")
        lines.append(f"| {found.name} | {found.stored} | {' | '.join(cells)} |")
    text = [HEAD, *lines]
    if notes:
        text += ["", "## Notes", "", *(f"{number}. {_escaped(note)}" for number, note in enumerate(notes, 1))]
    return "\n".join([*text, "", exported()])


def exported() -> str:
    """The section on exported models, as the page has it."""
    _table, heading, section = PAGE.read_text(encoding="utf-8").partition(EXPORTED)
    return heading + section


def _escaped(note: str) -> str:
    return re.sub(r"([|<>*_])", r"\\\1", note)


if __name__ == "__main__":
    logging.disable(logging.INFO)  # which onnxruntime's quantiser turns on
    PAGE.write_text(page(row(name) for name in FORMATS), encoding="utf-8")
    print(f"{PAGE}: {len(FORMATS)} formats")
