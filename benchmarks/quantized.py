"""Quantised models: what hardening keeps of them against the float path, and their inference time.

    python benchmarks/quantized.py [--networks vgg,resnet20,vit] [--forms qdq-channel] [--trials 8] [--images 1000]
                                   [--rounds 5] [--out F.json]

Networks and data are looked for in `../shared/zoo` and `../shared/data` beside the repository. Each network is
quantised by onnxruntime's own static quantisation (int8 weights, uint8 activations, 256 calibration images) in the
forms asked for: `qdq-channel`, `qdq-tensor`, `qoperator-channel`, `qoperator-tensor`. Then it is hardened by the
default method with calibration data for flip rates 0.05 and 0.10, and so is the float network; both meet the same
seeds. `kept` is the accuracy over that of the same network, float or quantised, without faults. With `--keep-codes`
the words of the quantised model stay.

Times are of the hardened quantised model over the plain one, by turns as in `inference.py`, processor time with one
thread. The optimised graphs of the two are compared operator by operator.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from inference import RUNS, SHARED, by_turns, nodes, options, rows
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import qtaml_onnx
from qtaml_onnx.data import Dataset, input_specs, load_dataset
from qtaml_onnx.modelio import load_model

RATES = (0.05, 0.10)
LIMIT = 1.02
FORMS = {
    "qdq-channel": (QuantFormat.QDQ, True),
    "qdq-tensor": (QuantFormat.QDQ, False),
    "qoperator-channel": (QuantFormat.QOperator, True),
    "qoperator-tensor": (QuantFormat.QOperator, False),
}

Row = dict[str, Any]


class _Images(CalibrationDataReader):
    def __init__(self, count: int = 256, batch: int = 64) -> None:
        images = np.load(SHARED / "data" / "cifar10_calibration.npz")["image"][:count]
        self._feeds: Iterator[dict[str, Any]] = iter(
            [{"image": images[start : start + batch]} for start in range(0, count, batch)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def quantised(network: str, form: str, folder: Path) -> Path:
    """The network by onnxruntime's static quantisation."""
    clean, path = folder / f"{network}.onnx", folder / f"{network}.{form}.onnx"
    quant_pre_process(SHARED / "zoo" / f"{network}.onnx", clean)
    kind, per_channel = FORMS[form]
    quantize_static(
        clean,
        path,
        _Images(),
        quant_format=kind,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return path


def evaluation(path: Path, images: int) -> Dataset:
    specs = input_specs(load_model(path).model)
    return load_dataset(SHARED / "data" / "cifar10_eval.npz", specs, "--eval").head(images)


def kept(path: Path, rate: float, data: Dataset, trials: int, **more: Any) -> tuple[Row, qtaml_onnx.HardenResult]:
    """Accuracy of a model hardened for a rate, over that of the model without faults."""
    calibration = SHARED / "data" / "cifar10_calibration.npz"
    result = qtaml_onnx.harden(path, rate, calibration=calibration, evaluation=data, trials=trials, **more)
    assert result.report.evaluation is not None
    found = {(r.variant, r.flip_rate): r for r in result.report.evaluation.results}
    clean, hardened = found["clean", 0.0].mean, found["hardened", rate]
    row = {
        "flip_rate": rate,
        "clean": clean,
        "unprotected": found["unprotected", rate].mean / clean,
        "kept": hardened.mean / clean,
        "low": hardened.ci_low / clean,
        "high": hardened.ci_high / clean,
        "bits_per_weight": result.report.storage.bits_per_weight,
        "recoded": sum(tensor.form == "integer-grid" for tensor in result.plan.tensors),
        "corrected": sum(tensor.bias is not None for tensor in result.plan.tensors),
        "tensors": len(result.plan.tensors),
    }
    return row, result


def times(plain: Path, hardened: bytes, network: str, rounds: int) -> list[Row]:
    """Ratios of the hardened model's time to the plain one's, and of the plain one's to itself."""
    models = {"plain": plain.read_bytes(), "plain again": plain.read_bytes(), "hardened": hardened}
    images = np.load(SHARED / "data" / "cifar10_calibration.npz")["image"]
    found = []
    taken: dict[int, list[Any]] = {batch: [] for batch in RUNS}
    for _ in range(rounds):
        sessions = {
            name: ort.InferenceSession(model, options(), providers=["CPUExecutionProvider"])
            for name, model in models.items()
        }
        for batch, turns in RUNS.items():
            taken[batch].append(by_turns(sessions, {"image": images[:batch]}, turns))
    for batch, parts in taken.items():
        found += rows(network, f"batch {batch}", list(models), np.concatenate(parts))
    return found


def measure(network: str, forms: list[str], trials: int, images: int, rounds: int, folder: Path) -> Row:
    """All of one network."""
    source = SHARED / "zoo" / f"{network}.onnx"
    found: Row = {"network": network, "float": [], "forms": {}}
    for rate in RATES if trials else ():
        found["float"].append(kept(source, rate, evaluation(source, images), trials)[0])
        show(network, "float", found["float"][-1])
    for form in forms:
        path, accuracy = quantised(network, form, folder), []
        for rate in RATES if trials else ():
            for name, more in (("", {}), (" --keep-codes", {"keep_codes": True})):
                row, _result = kept(path, rate, evaluation(path, images), trials, **more)
                accuracy.append(row | {"keep_codes": bool(more)})
                show(network, f"{form}{name}", row)
        calibration = SHARED / "data" / "cifar10_calibration.npz"
        hardened = ir.to_proto(qtaml_onnx.harden(path, RATES[0], calibration=calibration).model).SerializeToString()
        before, after = nodes(path.read_bytes()), nodes(hardened)
        timed = times(path, hardened, network, rounds) if rounds else []
        same = "the same operators" if before == after else f"OTHER OPERATORS: {after - before}, {before - after}"
        integer = {name: count for name, count in after.items() if name.startswith(("QLinear", "QGemm"))}
        print(f"{network} {form}: {after.total()} operators, {same}; integer ones {integer}")
        for row in timed:
            if row["variant"] != "plain":
                processor = row["processor"]
                print(
                    f"{network} {form} {row['what']} {row['variant']}: {processor['ratio']:.3f} "
                    f"({processor['low']:.3f} – {processor['high']:.3f}) of the plain one's processor time"
                )
        found["forms"][form] = {"accuracy": accuracy, "same_operators": before == after, "times": timed}
    return found


def show(network: str, what: str, row: Row) -> None:
    print(
        f"| {network} | {what} | {row['flip_rate']:.2f} | {row['clean']:.4f} | {row['unprotected']:.3f} "
        f"| {row['kept']:.3f} ({row['low']:.3f} – {row['high']:.3f}) | {row['bits_per_weight']:.2f} "
        f"| {row['recoded']}, {row['corrected']} of {row['tensors']} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default="vgg,resnet20,vit")
    parser.add_argument("--forms", default="qdq-channel", help=f"of {', '.join(FORMS)}")
    parser.add_argument("--trials", type=int, default=8, help="trials a rate; 0 measures no accuracy")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing with new sessions; 0 for none")
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    arguments = parser.parse_args()
    if not (SHARED / "zoo").is_dir() or not (SHARED / "data").is_dir():
        print(f"the networks and data of this benchmark are not here: {SHARED}/zoo and {SHARED}/data; nothing to do")
        return
    print("| network | stored as | flip rate | clean | unprotected | kept | bits a weight | recoded, corrected |")
    print("|" + "---|" * 8)
    with tempfile.TemporaryDirectory() as folder:
        found = [
            measure(
                network,
                arguments.forms.split(","),
                arguments.trials,
                arguments.images,
                arguments.rounds,
                Path(folder),
            )
            for network in arguments.networks.split(",")
        ]
    slowest = [
        row["processor"]["ratio"]
        for result in found
        for form in result["forms"].values()
        for row in form["times"]
        if row["variant"] == "hardened"
    ]
    if slowest:
        print(f"largest ratio of processor time, hardened over plain: {max(slowest):.3f}; wanted at most {LIMIT}")
    if arguments.out:
        environment = {"machine": platform.machine(), "cpus": os.cpu_count(), "onnxruntime": ort.__version__}
        arguments.out.write_text(json.dumps({"environment": environment, "networks": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
