"""`qtaml-onnx inject`: an instrumented model to run elsewhere."""

from __future__ import annotations

from functools import partial

from qtaml_onnx.cli import options as o
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_model import fault_model
from qtaml_onnx.modelio import OutputSet, check_output_path, save_model
from qtaml_onnx.physics import parse_duration
from qtaml_onnx.runtime import library_path
from qtaml_onnx.stored import stored_model
from qtaml_onnx.textio import printable

__all__ = ["inject"]


def inject(
    model: o.ModelPath,
    output: o.OutputPath,
    flip_rate: o.FlipRate = None,
    p01: o.P01 = None,
    p10: o.P10 = None,
    plane_rates: o.PlaneRates = None,
    device: o.Device = None,
    retention: o.Retention = None,
    margin: o.Margin = 1.0,
    bits: o.Bits = 8,
    per_tensor_scales: o.PerTensor = False,
    include: o.Include = None,
    exclude: o.Exclude = None,
    include_small: o.IncludeSmall = False,
    json: o.Json = False,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:
    """Put fault operators behind the stored weights.

    A hardened model is instrumented by the plan beside it; any other model is quantised plainly first. The result has
    two more inputs, both optional: qtaml_seed and qtaml_flip_rates. To run it, register the operator library with the
    session.

    Example: qtaml-onnx inject net.onnx -o faulty.onnx --flip-rate 0.01
    """
    o.set_verbosity(verbose, quiet)
    check_output_path(output, model)
    if output.suffix != ".onnx":
        raise InputError(f"output {output} does not end in .onnx; name the instrumented model OUT.onnx")
    faults = partial(
        fault_model,
        flip_rate=flip_rate,
        p01=p01,
        p10=p10,
        plane_rates=plane_rates,
        device=device,
        retention_s=parse_duration(retention) if retention is not None else None,
        margin=margin,
    )
    faults(bits=1)  # refuses what is wrong with it before the model is read
    stored = stored_model(
        model,
        lambda planes: faults(bits=planes),
        bits=bits,
        per_tensor_scales=per_tensor_scales,
        include=include,
        exclude=exclude,
        include_small=include_small,
    )
    with OutputSet(stored.source.files) as outputs:
        save_model(stored.faulty, outputs, output, external_data=bool(stored.source.external_files))
        outputs.add_text(output.with_suffix(".plan.json"), stored.plan.to_json())
    if json:
        print(
            o.to_json(
                {
                    "output": printable(output),
                    "tensors": len(stored.plan.tensors),
                    "weight_bits": stored.plan.weight_bits,
                    "operator_library": str(library_path()),
                }
            )
        )
    elif not quiet:
        plan = stored.plan
        print(f"instrumented model {printable(output)}: {len(plan.tensors)} tensors, {plan.weight_bits} weight bits")
        print(f"operator library {library_path()}")
