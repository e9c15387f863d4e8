"""`qtaml-onnx inject`: an instrumented model to run elsewhere."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from qtaml_onnx.cli import options as o
from qtaml_onnx.cli.groups import FaultOptions, with_groups
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_bursts import BurstGeometry
from qtaml_onnx.fault_pattern import FaultPattern, parse_planes
from qtaml_onnx.modelio import load_model, save_model
from qtaml_onnx.outputs import OutputSet, check_outputs
from qtaml_onnx.passes.inject_activation_faults import InjectActivationFaults
from qtaml_onnx.runtime import library_path
from qtaml_onnx.stored import plan_path, stored_model
from qtaml_onnx.textio import printable

__all__ = ["Kind", "Where", "inject"]

_PATTERN = "Faults"
_BITS = 8


class Where(StrEnum):
    """What faults fall on."""

    weights = "weights"
    activations = "activations"


class Kind(StrEnum):
    """How faults fall."""

    independent = "independent"
    stuck_at = "stuck-at"
    burst = "burst"


WhereOption = Annotated[
    Where,
    typer.Option(
        "--where",
        help="Stored weights, or the outputs of Conv, MatMul and Gemm, with new faults at each inference.",
        rich_help_panel=_PATTERN,
    ),
]
KindOption = Annotated[
    Kind,
    typer.Option(
        "--kind",
        help="Each bit by itself; cells stuck at 1 (--p01) or 0 (--p10), the same at every read; or adjacent cells "
        "together, each bit still at the given rate.",
        rich_help_panel=_PATTERN,
    ),
]
RowCells = Annotated[
    int | None, typer.Option("--row-cells", help="Bursts: cells of a physical row.", rich_help_panel=_PATTERN)
]
BurstCells = Annotated[
    int | None, typer.Option("--burst-cells", help="Bursts: adjacent cells hit at once.", rich_help_panel=_PATTERN)
]
Interleave = Annotated[
    int | None,
    typer.Option(
        "--interleave",
        help="Bursts: words whose bits of one plane lie side by side. [default: 1]",
        rich_help_panel=_PATTERN,
    ),
]
Planes = Annotated[
    str | None,
    typer.Option(
        "--planes", help="Only these bit planes flip, 0 the least significant: 0-3,7.", rich_help_panel=_PATTERN
    ),
]


@with_groups
def inject(
    model: o.ModelPath,
    output: o.OutputPath,
    faults: FaultOptions,
    where: WhereOption = Where.weights,
    kind: KindOption = Kind.independent,
    row_cells: RowCells = None,
    burst_cells: BurstCells = None,
    interleave: Interleave = None,
    planes: Planes = None,
    bits: o.Bits = _BITS,
    per_tensor_scales: o.PerTensor = False,
    include: o.Include = None,
    exclude: o.Exclude = None,
    include_small: o.IncludeSmall = False,
    json: o.Json = False,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:
    """Put fault operators behind the stored weights, or behind the activations.

    A hardened model is instrumented by the plan beside it; any other model is quantised plainly first. The result has
    two more inputs, both optional: qtaml_seed and qtaml_flip_rates. With --where activations the model's weights stay
    as they are, and a third input, qtaml_inference, is the number of the batch's first sample: feed another one at each
    inference. To run it, register the operator library with the session.

    Examples: qtaml-onnx inject net.onnx -o faulty.onnx --flip-rate 0.01

    qtaml-onnx inject net.onnx -o faulty.onnx --flip-rate 0.01 --kind burst --row-cells 1024 --burst-cells 4

    qtaml-onnx inject net.onnx -o faulty.onnx --flip-rate 1e-5 --where activations --planes 0-22
    """
    o.set_verbosity(verbose, quiet)
    check_outputs({"-o": output, "-o (plan)": plan_path(output)}, [model, *faults.files])
    if output.suffix != ".onnx":
        raise InputError(f"output {output} does not end in .onnx; name the instrumented model OUT.onnx")
    faults.model(1)  # refuses what is wrong with it before the model is read
    pattern = FaultPattern(
        kind.value,
        _geometry(kind, row_cells, burst_cells, interleave),
        None if planes is None else parse_planes(planes),
    )
    summary: dict[str, object] = {"output": printable(output), "where": where.value, "kind": kind.value}
    if where is Where.activations:
        if bits != _BITS or per_tensor_scales or include or exclude or include_small:
            raise InputError(
                "--bits, --per-tensor-scales, --include, --exclude and --include-small are about weights; drop them"
            )
        source = load_model(model)
        if source.instrumented:
            source.check_plain()
        faulty = source.model.clone()
        InjectActivationFaults(lambda width: faults.model(width).rates, pattern)(faulty)
        with OutputSet(source.files) as outputs:
            save_model(faulty, outputs, output, external_data=bool(source.external_files))
        count = sum(node.op_type == "FaultInject" for node in faulty.graph.all_nodes())
        summary["tensors"] = count
        what = f"{count} activations"
    else:
        stored = stored_model(
            model,
            faults.model,
            bits=bits,
            per_tensor_scales=per_tensor_scales,
            include=include,
            exclude=exclude,
            include_small=include_small,
            pattern=pattern,
        )
        with OutputSet(stored.source.files) as outputs:
            save_model(stored.faulty, outputs, output, external_data=bool(stored.source.external_files))
            outputs.add_text(plan_path(output), stored.plan.to_json())
        summary |= {"tensors": stored.plan.tensor_count, "weight_bits": stored.plan.weight_bits}
        what = f"{stored.plan.tensor_count} tensors, {stored.plan.weight_bits} weight bits"
    library = str(library_path())
    if json:
        print(o.to_json(summary | {"operator_library": library}))
    elif not quiet:
        print(f"instrumented model {printable(output)}: {what}")
        print(f"operator library {library}")


def _geometry(
    kind: Kind, row_cells: int | None, burst_cells: int | None, interleave: int | None
) -> BurstGeometry | None:
    if kind is not Kind.burst:
        if (row_cells, burst_cells, interleave) != (None, None, None):
            raise InputError("--row-cells, --burst-cells and --interleave describe bursts; give --kind burst")
        return None
    if row_cells is None or burst_cells is None:
        raise InputError("--kind burst needs a geometry; give --row-cells N and --burst-cells N")
    return BurstGeometry(row_cells, burst_cells, 1 if interleave is None else interleave)
