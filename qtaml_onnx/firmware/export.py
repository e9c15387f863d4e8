"""Writes the memory image of a hardened model, with its manifest and the C code that reads it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from qtaml_onnx.errors import InputError
from qtaml_onnx.firmware.c_tables import c_files
from qtaml_onnx.firmware.image import coder_for, load_hardened
from qtaml_onnx.firmware.layout import Rows
from qtaml_onnx.firmware.manifest import MANIFEST, Manifest, json_schema
from qtaml_onnx.firmware.writer import write_images
from qtaml_onnx.outputs import check_free_space

__all__ = ["SCHEMA", "check_new_folder", "export_image"]

SCHEMA = "manifest.schema.json"


def export_image(hardened: str | os.PathLike[str], folder: str | os.PathLike[str], *, row_bits: int = 0) -> Manifest:
    """Writes the memory image of a hardened model into a new folder, whole or not at all.

    The folder gets the images: bulk.bin; protected.bin and parity.bin if anything is protected; small.bin if biases,
    norms and scales are stored in the same memory; constants.bin if blocks have steps of their own. And manifest.json
    with its JSON Schema, and the C99 code that turns images back into weights: qtaml_readout.h and .c, qtaml_model.h
    and .c.

    Args:
        hardened: The hardened model, its plan beside it.
        folder: Where to write: a path that does not exist yet, or an empty folder.
        row_bits: Width of the bulk memory's rows, which no word crosses; 0 packs words without gaps.

    Returns:
        What manifest.json holds.

    Raises:
        InputError: if the model is not hardened, the folder is not new, or the model cannot be written as an image.
    """
    target = Path(folder)
    check_new_folder(target)
    rows = Rows(row_bits)
    model = load_hardened(Path(hardened))
    check_free_space(target, model.plan.weight_bits // 8)
    try:
        parent = target.parent
        staged = Path(tempfile.mkdtemp(dir=parent, prefix=f".{target.name}.", suffix=".part"))
        try:
            manifest = write_images(model, rows, staged)
            coder = coder_for(manifest.protection) if manifest.file("parity.bin") else None
            texts = c_files(manifest, coder)
            texts |= {MANIFEST: manifest.to_json(), SCHEMA: json.dumps(json_schema(), indent=1) + "\n"}
            for name, text in texts.items():
                (staged / name).write_text(text, encoding="utf-8")
            mask = os.umask(0)
            os.umask(mask)
            staged.chmod(0o777 & ~mask)
            staged.replace(target)  # an empty folder gives way to it
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    except OSError as error:
        raise InputError(
            f"{target} cannot be written ({error.strerror or error}); free space or choose another -o"
        ) from error
    return manifest


def check_new_folder(folder: Path) -> None:
    """Refuses a folder that holds something, or that could not be made.

    Raises:
        InputError: if the path is a file or a folder with something in it, or its parent does not exist.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"output {folder} is a file; name a new folder with -o")
    if not folder.exists() and not folder.parent.is_dir():
        raise InputError(f"output folder {folder.parent} does not exist; make it or choose another with -o")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"output folder {folder} is not empty; name a new one with -o")
