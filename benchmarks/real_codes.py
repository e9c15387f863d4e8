"""Memory images with real codes, every stored bit flipped and really decoded, beside what campaigns predict of them.

    python benchmarks/real_codes.py [--networks vgg,resnet20,vit] [--settings ldpc-3-5:0.10,ldpc-3-6:0.08]
                                    [--chips 8] [--trials 20] [--images 1000] [--keep DIR] [--out FILE.json]

Networks and data are looked for in `../shared/zoo` and `../shared/data` beside the repository. Each network is hardened
at `--bits-per-weight 8` for each code and flip rate, and exported. A campaign draws what the code leaves as independent
flips of protected bits, at the rate of the table that the design rests on: the upper 95 % limit of a simulation at the
next rate at or above. A chip is a copy of the image in which every bit of the faulty memory, data and parity, has been
flipped with the rate; `import-image` decodes it. Scales and read-out tables are not flipped: the ledger counts them as
safe, as they are without `--include-small`. What is measured, with t intervals over chips or trials:

    campaign    accuracy that `evaluate` states for the hardened model
    decoded     accuracy of the models that the chips became
    scattered   the same chips, but as many wrong protected bits as each decoder left, put where chance puts them

`decoded − scattered`, paired by chip, is what errors by whole code words do, and nothing else. `campaign` differs from
`scattered` by the rate of the flips alone. `sd` is the standard deviation over chips.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

import qtaml_onnx
from qtaml_onnx.campaign import Campaign, Variant
from qtaml_onnx.campaign.statistics import Interval, paired_difference, t_interval
from qtaml_onnx.data import Dataset
from qtaml_onnx.firmware.manifest import Manifest
from qtaml_onnx.graph import constant_array
from qtaml_onnx.modelio import OutputSet, load_model, save_model
from qtaml_onnx.passes.inject_faults import stored_words
from qtaml_onnx.plan import StoragePlan, read_plan
from qtaml_onnx.stored import plan_path

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
BITS_PER_WEIGHT = 8
CONFIDENCE = 0.95

Words = dict[str, NDArray[np.integer]]


@dataclass(frozen=True)
class Chip:
    """One faulty image: what its decoder did, and what the models compute.

    Attributes:
        failed: Code words with errors that were detected and not corrected.
        wrong: Protected bits that were left wrong.
        decoded: Accuracy of the model with the words as decoded.
        scattered: Accuracy with as many wrong protected bits at independent places.
    """

    failed: int
    wrong: int
    decoded: float
    scattered: float


def images(count: int) -> Dataset:
    """The first images of the evaluation set."""
    with np.load(SHARED / "data" / "cifar10_eval.npz") as file:
        return Dataset({"image": file["image"][:count]}, file["labels"][:count], False, None, "cifar10")


def hardened(network: str, code: str, rate: float, folder: Path) -> Path:
    """The hardened network, made unless the folder has it."""
    path = folder / f"{network}-{code}-{rate:g}.onnx"
    if not path.is_file():
        calibration = SHARED / "data" / "cifar10_calibration.npz"
        source = SHARED / "zoo" / f"{network}.onnx"
        options = {"bits_per_weight": BITS_PER_WEIGHT, "protection": code}
        result = qtaml_onnx.harden(source, rate, calibration=calibration, **options)  # type: ignore[arg-type]
        with OutputSet() as outputs:
            save_model(result.model, outputs, path)
            outputs.add_text(plan_path(path), result.plan.to_json())
    return path


def flip_every_bit(image: Path, manifest: Manifest, rate: float, rng: np.random.Generator) -> None:
    """Flips each bit of the images that are in the faulty memory with that probability, in place."""
    for file in manifest.files:
        if file.name == "constants.bin":  # in safe memory
            continue
        bits = np.unpackbits(np.fromfile(image / file.name, np.uint8))
        np.packbits(bits ^ (rng.random(bits.size) < rate)).tofile(image / file.name)


def words_of(model: ir.Model, plan: StoragePlan) -> Words:
    """The stored words of a model by name, as unsigned integers."""
    known = stored_words(model)
    found = {}
    for tensor in plan.tensors:
        for stored in tensor.stored_words:
            words = constant_array(known[stored.name][1])
            found[stored.name] = words.view(f"u{words.itemsize}")
    return found


def scatter(true: Words, read: Words, plan: StoragePlan, rng: np.random.Generator) -> tuple[Words, int]:
    """Words as read, but with their wrong protected bits at places of chance; and how many these are."""
    places = [stored for tensor in plan.tensors for stored in tensor.stored_words]
    masks = {s.name: ((1 << s.bits) - 1) & ~s.exposed_planes for s in places}
    wrong = {name: (true[name] ^ read[name]) & np.asarray(mask, read[name].dtype) for name, mask in masks.items()}
    count = sum(int(np.bitwise_count(bits).sum(dtype=np.int64)) for bits in wrong.values())
    sizes = [masks[s.name].bit_count() * read[s.name].size for s in places]
    chosen = np.sort(rng.choice(sum(sizes), count, replace=False))
    result, first = {}, 0
    for stored, size in zip(places, sizes, strict=True):
        own = chosen[(chosen >= first) & (chosen < first + size)] - first
        first += size
        words = (read[stored.name] ^ wrong[stored.name]).reshape(-1)
        if own.size:
            planes = np.array([plane for plane in range(stored.bits) if masks[stored.name] >> plane & 1])
            element, plane = own // planes.size, planes[own % planes.size]
            np.bitwise_xor.at(words, element, np.left_shift(1, plane).astype(words.dtype))
        result[stored.name] = words.reshape(read[stored.name].shape)
    return result, count


def with_words(model: ir.Model, words: Words) -> ir.Model:
    """A copy of a model with other stored words."""
    copy = model.clone()
    known = stored_words(copy)
    for name, array in words.items():
        value = known[name][1]
        dtype = constant_array(value).dtype
        value.const_value = ir.tensor(array.view(dtype), name=name)
    return copy


def chips(path: Path, rate: float, count: int, data: Dataset, folder: Path, seed: int = 0) -> tuple[list[Chip], int]:
    """Flips, decodes and evaluates copies of a hardened model's image; also gives the code words of one.

    A tensor has code words of its own, the last of them short.
    """
    image = folder / f"{path.stem}.image"
    manifest = qtaml_onnx.export_image(path, image)
    campaign, whole = Campaign(data), load_model(path).model
    campaign.measure_clean(ir.to_proto(whole))  # what the metric is, it takes from the model without faults
    true = words_of(whole, read_plan(plan_path(path)))
    found = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        copy = Path(shutil.copytree(image, folder / f"{path.stem}.{number}"))
        flip_every_bit(copy, manifest, rate, rng)
        read = qtaml_onnx.import_image(copy, path)
        shutil.rmtree(copy)
        elsewhere, wrong = scatter(true, words_of(read.model, read.plan), read.plan, rng)
        models = (read.model, with_words(read.model, elsewhere))
        accuracy = [campaign.measure_fixed(Variant("chip", ir.to_proto(model))).interval.mean for model in models]
        found.append(Chip(read.failed_blocks, wrong, *accuracy))
    shutil.rmtree(image)
    return found, sum(tensor.parity.bits for tensor in manifest.tensors) // max(manifest.protection.parity_bits, 1)


def measure(network: str, code: str, rate: float, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures of a network with a code at a rate."""
    path, data = hardened(network, code, rate, arguments.keep or folder), images(arguments.images)
    plan = read_plan(plan_path(path))
    results = qtaml_onnx.evaluate(
        path, [rate], data, original=SHARED / "zoo" / f"{network}.onnx", trials=arguments.trials
    )
    clean, whole, stated = results
    start = time.process_time()
    found, code_words = chips(path, rate, arguments.chips, data, folder)
    seconds = (time.process_time() - start) / arguments.chips
    decoded, scattered = ([getattr(chip, name) for chip in found] for name in ("decoded", "scattered"))
    change = paired_difference(dict(enumerate(scattered)), dict(enumerate(decoded)), CONFIDENCE).interval
    left = t_interval([chip.wrong / plan.protected_bits for chip in found], CONFIDENCE)
    return {
        "network": network,
        "code": code,
        "flip_rate": rate,
        "bits_per_weight": plan.bits_per_weight,
        "protected_fraction": plan.protected_fraction,
        "code_words": code_words,
        "table_residual": plan.residual_rate,
        "measured_residual": _ends(left),
        "clean": clean.interval.mean,
        "without_faults": whole.interval.mean,
        "campaign": _ends(stated.interval)
        | {"sd": float(np.std(stated.values, ddof=1)), "trials": list(stated.values)},
        "decoded": _ends(t_interval(decoded, CONFIDENCE)) | {"sd": float(np.std(decoded, ddof=1))},
        "scattered": _ends(t_interval(scattered, CONFIDENCE)) | {"sd": float(np.std(scattered, ddof=1))},
        "difference": _ends(change),
        "chips": [asdict(chip) for chip in found],
        "processor_seconds_a_chip": seconds,
    }


def _ends(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


HEAD = (
    *("network", "code, rate", "code words", "failed", "bits left wrong", "residual (table)", "no faults", "campaign"),
    *("decoded", "scattered", "decoded − scattered", "sd: decoded, scattered"),
)


def show(row: dict[str, Any]) -> None:
    """One row of the table."""
    failed, wrong = (sum(chip[key] for chip in row["chips"]) for key in ("failed", "wrong"))
    number, left = len(row["chips"]), row["measured_residual"]
    cells = [
        row["network"],
        f"{row['code']}, {row['flip_rate']:g}",
        f"{number} × {row['code_words']}",
        f"{failed} ({failed / (number * row['code_words']):.2%})",
        f"{wrong}" + (f", {wrong / failed:.0f} a word" if failed else ""),
        f"{left['mean']:.2e} ({left['low']:.1e} – {left['high']:.1e}); {row['table_residual']:.2e}",
        f"{row['without_faults']:.4f}",
        *("{mean:.4f} ({low:.4f} – {high:.4f})".format(**row[key]) for key in ("campaign", "decoded", "scattered")),
        "{mean:+.4f} ({low:+.4f} – {high:+.4f})".format(**row["difference"]),
        f"{row['decoded']['sd']:.4f}, {row['scattered']['sd']:.4f}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default="vgg,resnet20,vit")
    parser.add_argument("--settings", default="ldpc-3-5:0.10,ldpc-3-6:0.08", help="codes and flip rates, CODE:RATE,…")
    parser.add_argument("--chips", type=int, default=8, help="faulty images of each")
    parser.add_argument("--trials", type=int, default=20, help="of each campaign")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="keep hardened models in this folder, and take them from there")
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    arguments = parser.parse_args()
    if not (SHARED / "zoo").is_dir() or not (SHARED / "data").is_dir():
        print(f"the networks and data of this benchmark are not here: {SHARED}/zoo and {SHARED}/data; nothing to do")
        return
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for setting in arguments.settings.split(","):
            code, _, rate = setting.partition(":")
            for network in arguments.networks.split(","):
                rows.append(measure(network, code, float(rate), arguments, Path(folder)))
                show(rows[-1])
    slowest = max(row["processor_seconds_a_chip"] for row in rows)
    print(f"\none chip flipped, decoded and evaluated twice: at most {math.ceil(slowest)} s of processor time")
    if arguments.out:
        environment = {"machine": platform.machine(), "onnxruntime": ort.__version__, "numpy": np.__version__}
        arguments.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
