"""What is fed with damaged files: each command, and each reader of a file that a stranger may have made.

A case is a target and a seed. What must hold for each: the command line ends with 0, 1 or 2, says one line on stderr
for 2, writes nothing then, never a traceback, nothing that a terminal would obey, and no file anywhere but its outputs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import typer
from onnx.external_data_helper import convert_model_to_external_data
from small_models import CASES

from fuzz.mutations import damage_bytes, damage_document, damage_message, damage_text, to_text
from qtaml_onnx import verification
from qtaml_onnx.cli import main
from qtaml_onnx.physics.device import _shipped, device_names
from qtaml_onnx.plan import StoragePlan, read_plan
from qtaml_onnx.runtime import run_limited

__all__ = ["TARGETS", "Outcome", "run_case"]

Outcome = int
"""The command's exit code."""

RATES = "0.05"

_app = importlib.import_module("qtaml_onnx.cli.app")
_app.app = typer.main.get_command(_app.app)  # built once: that takes longer than most commands on such small files


class Defect(AssertionError):
    """What must not happen."""


@functools.cache
def corpus() -> list[bytes]:
    """Small models of every kind."""
    return [case().model.SerializeToString() for case in CASES.values()]


def damaged_model(rng: random.Random, data: bytes | None = None) -> bytes:
    data = rng.choice(corpus()) if data is None else data
    if rng.random() < 0.3:
        return damage_bytes(data, rng)
    proto = onnx.ModelProto.FromString(data)
    damage_message(proto, rng)
    data = proto.SerializeToString()
    return damage_bytes(data, rng) if rng.random() < 0.1 else data


def _inspect(folder: Path, rng: random.Random) -> list[str]:
    (folder / "m.onnx").write_bytes(damaged_model(rng))
    return ["inspect", f"{folder}/m.onnx", *(["--json"] if rng.random() < 0.5 else [])]


def _external(folder: Path, rng: random.Random) -> list[str]:
    """Entries of external data that point anywhere, and data files that are cut."""
    proto = onnx.ModelProto.FromString(rng.choice(corpus()))
    convert_model_to_external_data(proto, location="w.bin", size_threshold=0)
    onnx.save(proto, folder / "m.onnx")
    proto = onnx.load(folder / "m.onnx", load_external_data=False)
    external = [t for t in proto.graph.initializer if t.external_data]
    if external:
        entries = rng.choice(external).external_data
        if rng.random() < 0.7:
            entry = rng.choice(entries)
            entry.value = rng.choice(
                ("", "x", "-1", "0", "4", "99999999999999999999", "../w.bin", "/etc/passwd", "link", "down/w.bin", ".",
                 "w.bin\0", "a" * 5000, "1e3", " 4", "./w.bin", str(folder / "w.bin"))
            )  # fmt: skip
        else:
            damage_message(rng.choice(external), rng)
    (folder / "link").symlink_to("/etc/hostname")
    (folder / "down").symlink_to("/etc")
    if (folder / "w.bin").exists() and rng.random() < 0.3:
        data = (folder / "w.bin").read_bytes()
        (folder / "w.bin").write_bytes(data[: rng.randrange(len(data) + 1)])
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return ["inspect", f"{folder}/m.onnx"]


def _harden(folder: Path, rng: random.Random) -> list[str]:
    (folder / "m.onnx").write_bytes(damaged_model(rng))
    method = rng.choice(("magnitude", "magnitude", "posterior-mean", "tac"))
    args = ["harden", f"{folder}/m.onnx", "-o", f"{folder}/out/o.onnx", "--flip-rate", RATES, "--method", method]
    return [*args, "--no-html", *(["--sensitivity", "magnitude"] if rng.random() < 0.7 else [])]


@functools.cache
def hardened_files(number: int) -> dict[str, bytes]:
    """A model, its hardened form and plan."""
    import tempfile

    names = ("matmul", "conv-float32", "loop", "function-constant", "dequantized")
    known = [name for name in names if name in CASES]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "m.onnx").write_bytes(CASES[known[number % len(known)]]().model.SerializeToString())
        args = f"harden {folder}/m.onnx -o {folder}/o.onnx --flip-rate {RATES} --method posterior-mean -q --no-html"
        with contextlib.redirect_stderr(io.StringIO()):
            code = main(args.split())
        if code:
            raise RuntimeError(f"the corpus does not harden: {code}")
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def _put_hardened(folder: Path, rng: random.Random) -> dict[str, bytes]:
    files = hardened_files(rng.randrange(5))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


def _verify(folder: Path, rng: random.Random) -> list[str]:
    files = _put_hardened(folder, rng)
    broken = rng.choice(("o.onnx", "o.onnx", "m.onnx"))
    (folder / broken).write_bytes(damaged_model(rng, files[broken]))
    return ["verify", f"{folder}/o.onnx", "--original", f"{folder}/m.onnx"]


def _plan(folder: Path, rng: random.Random) -> list[str]:
    """A damaged plan, half the time with the model made to vouch for it."""
    files = _put_hardened(folder, rng)
    if rng.random() < 0.2:
        (folder / "o.plan.json").write_bytes(damage_bytes(files["o.plan.json"], rng))
    else:
        document = damage_document(json.loads(files["o.plan.json"]), rng)
        (folder / "o.plan.json").write_text(to_text(document), encoding="utf-8")
    with contextlib.suppress(Exception):
        plan: StoragePlan = read_plan(folder / "o.plan.json")
        proto = onnx.ModelProto.FromString(files["o.onnx"])
        for entry in proto.metadata_props:
            if entry.key == "qtaml_onnx.plan_sha256" and rng.random() < 0.9:
                entry.value = plan.sha256
        (folder / "o.onnx").write_bytes(proto.SerializeToString())
    if rng.random() < 0.5:
        return ["verify", f"{folder}/o.onnx", "--original", f"{folder}/m.onnx"]
    return ["inject", f"{folder}/o.onnx", "-o", f"{folder}/out/f.onnx", "--flip-rate", RATES]


def _report(folder: Path, rng: random.Random) -> list[str]:
    files = hardened_files(rng.randrange(5))
    document = damage_document(json.loads(files["o.report.json"]), rng)
    text = to_text(document).encode()
    (folder / "r.report.json").write_bytes(damage_bytes(text, rng) if rng.random() < 0.2 else text)
    plan = to_text(damage_document(json.loads(files["o.plan.json"]), rng)) if rng.random() < 0.3 else None
    if plan is not None:
        (folder / "r.plan.json").write_text(plan, encoding="utf-8")
    return ["report", f"{folder}/r.report.json", "-o", f"{folder}/out/r.html"]


def _device(folder: Path, rng: random.Random) -> list[str]:
    text = _shipped()[rng.choice(device_names())].read_text(encoding="utf-8")
    data = damage_text(text, rng).encode("utf-8", "replace")
    (folder / "d.toml").write_bytes(damage_bytes(data, rng) if rng.random() < 0.2 else data)
    return ["device", "rates", f"{folder}/d.toml"]


def _table(folder: Path, rng: random.Random) -> list[str]:
    rows = ["p01,p10", *(f"{rng.random() / 9},{rng.random() / 9}" for _ in range(8))]
    data = damage_text("\n".join(rows[rng.randrange(2) :]), rng).encode("utf-8", "replace")
    (folder / "t.csv").write_bytes(damage_bytes(data, rng) if rng.random() < 0.3 else data)
    (folder / "m.onnx").write_bytes(corpus()[0])
    return ["inject", f"{folder}/m.onnx", "-o", f"{folder}/out/o.onnx", "--plane-rates", f"{folder}/t.csv"]


def _arrays(folder: Path, rng: random.Random) -> list[str]:
    """Archives that are damaged, and such as hold headers that are."""
    (folder / "m.onnx").write_bytes(CASES["matmul"]().model.SerializeToString())
    (folder / "a.npz").unlink(missing_ok=True)
    feeds = {name: np.asarray(array) for name, array in CASES["matmul"]().feeds.items()}
    if rng.random() < 0.6:
        shape = rng.choice(((2**40,), (-1,), (2**62, 2**62), (3,), (2, 6, 0), ()))
        feeds = {name: np.zeros((2, 6), rng.choice((np.float32, np.int8, np.float64))) for name in feeds}
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in feeds:
                archive.writestr(f"{name}.npy", damage_bytes(buffer.getvalue(), rng) + bytes(48))
    else:
        np.savez_compressed(folder / "a.npz", **feeds)  # type: ignore[arg-type]
        (folder / "a.npz").write_bytes(damage_bytes((folder / "a.npz").read_bytes(), rng))
    return ["inspect", f"{folder}/m.onnx", "--calibration", f"{folder}/a.npz"]


def _image_models() -> list[Callable[[], onnx.ModelProto]]:
    """Float and quantised models, such as have steps a block and words of less than a byte among them."""
    from quantized_models import FORMATS

    names = ("matmul", "conv-float16", "function-constant", "odd-names", "int8-channels")
    floats: list[Callable[[], onnx.ModelProto]] = [lambda n=name: CASES[n]().model for name in names]  # type: ignore[misc]
    return [*floats, *(FORMATS[name] for name in ("packed-4-asymmetric-80", "qdq-uint4-block-asymmetric"))]


@functools.cache
def image_files(number: int) -> dict[str, bytes]:
    """A hardened model with its plan, half of them with small tensors and protected bits, and its image."""
    import tempfile

    models = _image_models()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "m.onnx").write_bytes(models[number % len(models)]().SerializeToString())
        args = f"harden {folder}/m.onnx -o {folder}/o.onnx --flip-rate {RATES} --method posterior-mean -q --no-html"
        more = [
            "",
            " --include-small",
            " --budget 0.3 --protection secded-72-64",
            " --budget 0.3 --protection parity-8",
        ]
        with contextlib.redirect_stderr(io.StringIO()):
            code = main((args + more[number // len(models) % len(more)]).split())
            code = code or main(f"export-image {folder}/o.onnx -o {folder}/image -q".split())
        if code:
            raise RuntimeError(f"the corpus does not make images: {code}")
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _put_image(folder: Path, rng: random.Random, *, image: bool) -> dict[str, bytes]:
    files = image_files(rng.randrange(28))
    (folder / "image").mkdir()
    for name, data in files.items():
        if image or not name.startswith("image/"):
            (folder / name).write_bytes(data)
    if not image:
        (folder / "image").rmdir()
    return files


def _vouched(folder: Path, data: bytes) -> None:
    """Makes the model name the plan beside it, whatever it says."""
    with contextlib.suppress(Exception):
        plan: StoragePlan = read_plan(folder / "o.plan.json")
        proto = onnx.ModelProto.FromString(data)
        for entry in proto.metadata_props:
            if entry.key == "qtaml_onnx.plan_sha256":
                entry.value = plan.sha256
        (folder / "o.onnx").write_bytes(proto.SerializeToString())


def _export(folder: Path, rng: random.Random) -> list[str]:
    """A damaged hardened model, or a damaged plan that the model vouches for."""
    files = _put_image(folder, rng, image=False)
    if rng.random() < 0.5:
        (folder / "o.onnx").write_bytes(damaged_model(rng, files["o.onnx"]))
    else:
        document = damage_document(json.loads(files["o.plan.json"]), rng)
        (folder / "o.plan.json").write_text(to_text(document), encoding="utf-8")
        if rng.random() < 0.9:
            _vouched(folder, files["o.onnx"])
    rows = ["--row-bits", rng.choice(("16", "24", "1024", "7", "-8"))] if rng.random() < 0.3 else []
    return ["export-image", f"{folder}/o.onnx", "-o", f"{folder}/out/image", *rows]


def _import(folder: Path, rng: random.Random) -> list[str]:
    """A dump with any of its files damaged, longer, shorter or gone."""
    files = _put_image(folder, rng, image=True)
    broken = rng.choice(
        sorted(name for name in files if name.endswith((".bin", ".json", ".onnx")) and name != "m.onnx")
    )
    if rng.random() < 0.1:
        (folder / broken).unlink()
    elif broken.endswith(".json") and rng.random() < 0.8:
        (folder / broken).write_text(to_text(damage_document(json.loads(files[broken]), rng)), encoding="utf-8")
        if broken == "o.plan.json":
            _vouched(folder, files["o.onnx"])
    elif broken == "o.onnx":
        (folder / broken).write_bytes(damaged_model(rng, files[broken]))
    elif broken.endswith(".bin") and rng.random() < 0.7:
        data = bytearray(files[broken])
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (folder / broken).write_bytes(data)
    else:
        (folder / broken).write_bytes(damage_bytes(files[broken], rng))
    rates = ["--write-plane-rates", f"{folder}/out/rates.csv"] if rng.random() < 0.5 else []
    return ["import-image", f"{folder}/image", "--model", f"{folder}/o.onnx", "-o", f"{folder}/out/real.onnx", *rates]


def _small(folder: Path, rng: random.Random) -> list[str]:
    """Hardening with small tensors, of which there are the strangest kinds."""
    (folder / "m.onnx").write_bytes(damaged_model(rng))
    args = ["harden", f"{folder}/m.onnx", "-o", f"{folder}/out/o.onnx", "--flip-rate", RATES, "--include-small"]
    return [*args, "--method", rng.choice(("posterior-mean", "none")), "--sensitivity", "magnitude", "--no-html"]


TARGETS: dict[str, tuple[Callable[[Path, random.Random], list[str]], int]] = {
    "inspect": (_inspect, 33),
    "external": (_external, 15),
    "harden": (_harden, 3),
    "verify": (_verify, 4),
    "plan": (_plan, 5),
    "report": (_report, 5),
    "device": (_device, 8),
    "table": (_table, 5),
    "arrays": (_arrays, 10),
    "export": (_export, 5),
    "import": (_import, 5),
    "small": (_small, 2),
}
"""By name, what makes the files and the command line, and the target's share of a run in per cent."""


verification.LONGEST_RUN = 10.0  # a damaged loop may have no end
run_limited.__defaults__ = (10.0,)


def listing(folder: Path) -> dict[str, int | None]:
    return {str(p.relative_to(folder)): p.lstat().st_size if p.is_file() else None for p in folder.rglob("*")}


def run_case(target: str, seed: int, folder: Path) -> Outcome:
    """One case in an empty folder, which is the working directory meanwhile.

    Raises:
        Defect: if something does not hold.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "files/out").mkdir(parents=True)
    (folder / "work").mkdir()
    rng = random.Random(f"{target} {seed}")
    args = TARGETS[target][0](folder / "files", rng)
    before = listing(folder)
    out, err = io.StringIO(), io.StringIO()
    here = Path.cwd()
    os.chdir(folder / "work")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(args)
    finally:
        os.chdir(here)
    said = err.getvalue()
    lines = [line for line in said.splitlines() if "warning: " not in line]
    new = {path for path, size in listing(folder).items() if before.get(path, -1) != size}
    if code not in (0, 1, 2):
        raise Defect(f"exit code {code}")
    if code == 2 and (len(lines) != 1 or not lines[0].startswith("qtaml-onnx: error: ")):
        raise Defect(f"not one line: {said!r}")
    if "Traceback" in said + out.getvalue():
        raise Defect(f"traceback: {said!r}")
    if any((ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 for c in said + out.getvalue()):
        raise Defect(f"control characters: {said!r} {out.getvalue()[:500]!r}")
    if code and new:
        raise Defect(f"left behind: {sorted(new)}")
    if any(not path.startswith("files/out/") for path in new):
        raise Defect(f"written elsewhere: {sorted(new)}")
    return code
