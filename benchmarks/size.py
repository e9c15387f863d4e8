"""Hardening models larger than memory should hold: peak memory, and speed against reading and writing the files.

    python benchmarks/size.py [--gib N] [--tensor-mib M] [--inline] [--only COMMAND...] [--folder DIR] [--out FILE.json]

A model of MatMul layers is written, tensor by tensor, and hardened by the command line in a process of its own. Its
memory is sampled every few milliseconds: counted is what is the process's own (RssAnon of /proc/PID/status). Pages of
mapped files are not: they are the file system's cache, which the system takes back when it needs the room. The bound is
1.5 times the largest tensor as float32 plus 500 MB. Speeds are in MB of float weights a second; "copy" reads the model
and writes as many bytes as the hardened model has, with Python's own file functions, in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

MEBI = 1 << 20
WIDTH = 2048
INTERVAL = 0.005
FIXED = 500_000_000


def write_model(path: Path, tensors: int, tensor_bytes: int, *, external: bool, seed: int = 0) -> Path:
    """A chain of float32 MatMul pairs, [WIDTH × n] and [n × WIDTH], each tensor of about `tensor_bytes`.

    Inline models are written with the library's help, tensor by tensor all the same.
    """
    inner = tensor_bytes // 4 // WIDTH
    nodes, initializers, offset, source = [], [], 0, "x"
    for number in range(tensors):
        shape = (WIDTH, inner) if number % 2 == 0 else (inner, WIDTH)
        name, result = f"W{number}", "y" if number == tensors - 1 else f"h{number}"
        nodes.append(helper.make_node("MatMul", [source, name], [result]))
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", f"{path.name}.data"), ("offset", offset), ("length", 4 * inner * WIDTH)):
            tensor.external_data.add(key=key, value=str(value))
        initializers.append(tensor)
        offset += 4 * inner * WIDTH
        source = result
    last = WIDTH if tensors % 2 == 0 else inner
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, last])],
        initializers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = path.with_name(f"{path.name}.data")
    rng = np.random.default_rng(seed)
    with data.open("wb") as file:
        for _ in range(tensors):
            rng.standard_normal(inner * WIDTH, dtype=np.float32).tofile(file)
    path.write_bytes(proto.SerializeToString())
    if not external:
        onnx.save(onnx.load(path), path)
        data.unlink()
    return path


@dataclass(frozen=True)
class Usage:
    """What a process took: seconds, exit code, peak bytes of its own memory, and of that with mapped files."""

    seconds: float
    code: int
    own: int
    resident: int
    errors: str


def run(args: list[str]) -> Usage:
    """Runs the command line in a process of its own and watches its memory."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                "import sys; from qtaml_onnx.cli import main; sys.exit(main(sys.argv[1:]))",
                *args,
            ],
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        own = resident = 0
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            except OSError:
                break
            fields = dict(line.split(":", 1) for line in status.splitlines())
            own = max(own, int(fields.get("RssAnon", "0 kB").split()[0]) << 10)
            resident = max(resident, int(fields.get("VmHWM", "0 kB").split()[0]) << 10)
            time.sleep(INTERVAL)
        code = process.wait()
        errors.seek(0)
        said = errors.read().decode()
    return Usage(time.perf_counter() - start, code, own, resident, said)


def copy_seconds(model: Path, hardened: Path) -> float:
    """Seconds to read the model's files and to write as many bytes as the hardened model's files have."""
    start = time.perf_counter()
    for path in model.parent.glob(f"{model.name}*"):
        with path.open("rb") as file:
            while file.read(16 * MEBI):
                pass
    size = sum(path.stat().st_size for path in hardened.parent.glob(f"{hardened.name}*"))
    block = bytes(16 * MEBI)
    with tempfile.TemporaryFile(dir=hardened.parent) as file:
        while size > 0:
            file.write(block[: min(size, len(block))])
            size -= len(block)
        os.fsync(file.fileno())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="size of the model")
    parser.add_argument("--tensor-mib", type=int, default=128, help="size of each tensor")
    parser.add_argument("--inline", action="store_true", help="no external data (up to 1.8 GiB)")
    parser.add_argument("--only", nargs="*", help="commands to measure; all if left out")
    parser.add_argument("--folder", type=Path, help="where to work; needs three times the model's size")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    tensors = max(1, round(args.gib * 1024 / args.tensor_mib))
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        (folder / "in").mkdir()
        (folder / "out").mkdir()
        model = write_model(folder / "in/m.onnx", tensors, args.tensor_mib * MEBI, external=not args.inline)
        out = folder / "out/o.onnx"
        size = tensors * args.tensor_mib * MEBI
        bound = 1.5 * args.tensor_mib * MEBI + FIXED
        harden = [
            "harden",
            str(model),
            "-o",
            str(out),
            "--flip-rate",
            "0.05",
            "--sensitivity",
            "magnitude",
            "--no-html",
        ]
        commands = {
            "harden": harden,
            "harden, two's complement": [*harden, "--method", "magnitude"],
            "inspect": ["inspect", str(model)],
            "inject": ["inject", str(model), "-o", str(folder / "out/f.onnx"), "--flip-rate", "0.05"],
        }
        commands = {what: command for what, command in commands.items() if args.only is None or what in args.only}
        print(f"{size / 1e9:.2f} GB in {tensors} tensors of {args.tensor_mib * MEBI / 1e6:.0f} MB")
        for what, command in commands.items():
            usage = run(command)
            if usage.code:
                raise SystemExit(f"{what}: exit code {usage.code}: {usage.errors}")
            rows.append({"what": what, "mb_per_s": size / 1e6 / usage.seconds, "bound": bound, **asdict(usage)})
        seconds = copy_seconds(model, out)
        for row in rows:
            own = float(str(row["own"]))
            print(
                f"{row['what']:26} {row['mb_per_s']:8.0f} MB/s  {float(str(row['seconds'])) / seconds:6.1f} × copy"
                f"   memory {own / 1e6:6.0f} MB of {bound / 1e6:.0f}"
            )
        print(f"{'copy':26} {size / 1e6 / seconds:8.0f} MB/s")
    if args.out:
        args.out.write_text(json.dumps({"bytes": size, "copy_seconds": seconds, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
