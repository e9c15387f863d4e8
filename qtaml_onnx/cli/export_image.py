"""`qtaml-onnx export-image`: the stored bits of a hardened model as a memory takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qtaml_onnx.cli import options as o
from qtaml_onnx.firmware.export import export_image as write_image
from qtaml_onnx.firmware.manifest import Manifest

__all__ = ["export_image"]


def export_image(
    model: Annotated[
        Path,
        typer.Argument(metavar="OUT.onnx", help="The hardened model, its plan beside it.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="A new folder to write.", show_default=False)],
    row_bits: Annotated[
        int, typer.Option("--row-bits", help="Width of the bulk memory's rows, which no word crosses; 0: no gaps.")
    ] = 0,
    json: o.Json = False,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:
    """Write the memory image of a hardened model, and C99 code that reads it.

    The folder gets bulk.bin with the exposed bit planes; protected.bin and parity.bin with the protected planes and the
    parity bits of their code, if any; small.bin with biases, norms and scales if these were hardened too; constants.bin
    with steps of blocks, for safe memory; manifest.json; and qtaml_readout.h, qtaml_readout.c, qtaml_model.h and
    qtaml_model.c, which turn the images back into weights on the device, faults corrected as far as the code can.

    Example: qtaml-onnx export-image safe.onnx -o image
    """
    o.set_verbosity(verbose, quiet)
    manifest = write_image(model, output, row_bits=row_bits)
    if json:
        print(o.to_json(_summary(output, manifest)))
    elif not quiet:
        bits = sum(tensor.storage.size * tensor.storage.bits for tensor in manifest.tensors)
        parts = f" in {len(manifest.tensors)} parts" if len(manifest.tensors) > manifest.tensor_count else ""
        print(f"memory image {output}: {manifest.tensor_count} tensors{parts}, {bits} weight bits")
        for file in manifest.files:
            print(f"{file.name:14} {file.size:>10} bytes  crc32 {file.crc32:08x}")
        if manifest.file("protected.bin"):
            print(f"protected by {manifest.protection.name}")


def _summary(output: Path, manifest: Manifest) -> dict[str, object]:
    return {
        "output": str(output),
        "tensors": manifest.tensor_count,
        "protection": manifest.protection.name,
        "row_bits": manifest.row_bits,
        "files": [file.model_dump() for file in manifest.files],
        "plan_sha256": manifest.plan_sha256,
    }
