"""Quantised models beside their float originals: what hardening keeps of each, and what inference takes.

    python benchmarks/quantized.py [--networks vgg,resnet20,vit] [--forms qdq-channel] [--trials 8] [--images 1000]
                                   [--rounds 25] [--keep-codes] [--out F.json]

Networks and data are looked for in `../shared/zoo` and `../shared/data` beside the repository. Each network is
quantised by onnxruntime's own static quantisation (int8 weights, uint8 activations, 256 calibration images) in the
forms asked for: `qdq-channel`, `qdq-tensor`, `qoperator-channel`, `qoperator-tensor`.

Accuracy. The float network and the quantised one are hardened by the default method with calibration data for flip
rates 0.05 and 0.10, and meet the same seeds on the same images. `kept` is the accuracy over that of the same network,
float or quantised, without faults: the mean of the trials and its 95 % t interval. The difference is that of what the
two keep, quantised less float, paired by seed. Both intervals cover the draws of the faults, not the choice of images.

Time. The hardened quantised model over the plain one, and, as the floor of what can be told, the plain one over itself:
processor time with one thread, which does not count what other programs take. Each block runs the models by turns in
every order, so that each follows each other one equally often, and each turn begins with a run that is not timed, in
which its weights come back to the caches. What other programs do to caches only makes a run longer, so that a model's
time is the lower decile of its turns. A round makes new sessions, in an order that changes, as where memory falls moves
times by a percent or two. The figure is the median of the rounds' ratios, with the interval between order statistics
that covers it (Thompson 1936). The optimised graphs of the two are compared operator by operator.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from inference import SHARED, nodes, options
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import qtaml_onnx
from qtaml_onnx.campaign.statistics import paired_difference
from qtaml_onnx.data import Dataset, input_specs, load_dataset
from qtaml_onnx.inference_time import median_interval
from qtaml_onnx.modelio import load_model

RATES = (0.05, 0.10)
LIMIT = 1.02
CONFIDENCE = 0.95
BLOCKS = {1: 20, 64: 2}  # of a round by batch size
TURN_S = 0.001  # timed runs of one model in a row take about that long at least: the clock is read seldom
QUANTILE = 0.1
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
        "trials": [value / clean for value in hardened.values],
        "bits_per_weight": result.report.storage.bits_per_weight,
        "recoded": sum(tensor.form == "integer-grid" for tensor in result.plan.tensors),
        "corrected": sum(tensor.bias is not None for tensor in result.plan.tensors),
        "tensors": len(result.plan.tensors),
    }
    return row, result


def difference(floats: Row, integers: Row) -> Row:
    """What the quantised network keeps less what the float one keeps, paired by seed."""
    first, second = (dict(enumerate(row["trials"])) for row in (floats, integers))
    interval = paired_difference(first, second, CONFIDENCE, bounds=(0.0, 2.0)).interval
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def turns(sessions: list[ort.InferenceSession], feed: dict[str, Any], blocks: int) -> NDArray[np.float64]:
    """Processor seconds of each turn of each session, float64 [sessions, turns]."""
    for session in sessions:
        session.run(None, feed)
    start = time.process_time()
    sessions[0].run(None, feed)
    repeats = max(1, round(TURN_S / max(time.process_time() - start, 1e-6)))
    orders = list(itertools.permutations(range(len(sessions))))
    taken: list[list[float]] = [[] for _ in sessions]
    for number in [number for _ in range(blocks) for order in orders for number in order]:
        run = sessions[number].run
        run(None, feed)
        start = time.process_time()
        for _ in range(repeats):
            run(None, feed)
        taken[number].append((time.process_time() - start) / repeats)
    return np.array(taken)


def one_round(models: dict[str, bytes], number: int, images: NDArray[Any]) -> dict[int, NDArray[np.float64]]:
    """By batch size: each model's time over the first one's, in new sessions."""
    names = list(models)
    shift = number % len(names)
    made = {
        name: ort.InferenceSession(models[name], options(), providers=["CPUExecutionProvider"])
        for name in names[shift:] + names[:shift]
    }
    sessions, ratios = [made[name] for name in names], {}
    for batch, count in BLOCKS.items():
        seconds = np.quantile(turns(sessions, {"image": images[:batch]}, count), QUANTILE, axis=1)
        ratios[batch] = seconds / seconds[0]
    return ratios


def times(plain: Path, hardened: bytes, rounds: int) -> list[Row]:
    """Ratios of the hardened model's time to the plain one's, and of the plain one's to itself."""
    models = {"plain": plain.read_bytes(), "plain again": plain.read_bytes(), "hardened": hardened}
    images = np.load(SHARED / "data" / "cifar10_calibration.npz")["image"]
    found = [one_round(models, number, images) for number in range(rounds)]
    rows = []
    for batch in BLOCKS:
        ratios = np.array([one[batch] for one in found])
        for number, name in list(enumerate(models))[1:]:
            low, high, coverage = median_interval(ratios[:, number].tolist(), CONFIDENCE)
            rows.append(
                {
                    "batch": batch,
                    "variant": name,
                    "rounds": ratios[:, number].tolist(),
                    "ratio": float(np.median(ratios[:, number])),
                    "low": low,
                    "high": high,
                    "coverage": coverage,
                }
            )
    return rows


def accuracies(network: str, forms: list[str], arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """The float network and the quantised ones side by side, at each rate."""
    source, found = SHARED / "zoo" / f"{network}.onnx", []
    variants: list[tuple[str, dict[str, Any]]] = [("", {})]
    if arguments.keep_codes:
        variants.append((" --keep-codes", {"keep_codes": True}))
    for rate in RATES:
        floats, _result = kept(source, rate, evaluation(source, arguments.images), arguments.trials)
        for form in forms:
            path = quantised(network, form, folder)
            for name, more in variants:
                integers, _result = kept(path, rate, evaluation(path, arguments.images), arguments.trials, **more)
                row = {"network": network, "form": f"{form}{name}", "flip_rate": rate, "float": floats}
                row |= {"quantised": integers, "difference": difference(floats, integers)}
                found.append(row)
                show(row)
    return found


def show(row: Row) -> None:
    """One row of the table of accuracies."""
    floats, integers, change = row["float"], row["quantised"], row["difference"]
    cells = [row["network"], row["form"], f"{row['flip_rate']:.2f}"]
    for one in (floats, integers):
        cells += [f"{one['clean']:.4f}", f"{one['kept']:.3f} ({one['low']:.3f} – {one['high']:.3f})"]
    cells.append(f"{change['mean']:+.3f} ({change['low']:+.3f} – {change['high']:+.3f})")
    cells.append(f"{integers['recoded']}, {integers['corrected']} of {integers['tensors']}")
    print("| " + " | ".join(cells) + " |", flush=True)


def inference(network: str, form: str, rounds: int, folder: Path) -> Row:
    """Operators and times of one quantised network, plain and hardened."""
    path, calibration = quantised(network, form, folder), SHARED / "data" / "cifar10_calibration.npz"
    hardened = ir.to_proto(qtaml_onnx.harden(path, RATES[0], calibration=calibration).model).SerializeToString()
    before, after = nodes(path.read_bytes()), nodes(hardened)
    same = "the same operators" if before == after else f"OTHER OPERATORS: {after - before}, {before - after}"
    integer = {name: count for name, count in after.items() if name.startswith(("QLinear", "QGemm"))}
    print(f"\n{network} {form}: {after.total()} operators, {same}; integer ones {integer}")
    timed = times(path, hardened, rounds)
    for row in timed:
        print(
            f"{network} {form} batch {row['batch']}: {row['variant']} takes {row['ratio']:.4f} "
            f"({row['low']:.4f} – {row['high']:.4f}) of the plain model's processor time",
            flush=True,
        )
    return {"network": network, "form": form, "same_operators": before == after, "times": timed}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default="vgg,resnet20,vit")
    parser.add_argument("--forms", default="qdq-channel", help=f"of {', '.join(FORMS)}")
    parser.add_argument("--trials", type=int, default=8, help="trials a rate; 0 measures no accuracy")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=25, help="rounds of timing with new sessions; 0 for none")
    parser.add_argument("--keep-codes", action="store_true", help="also with the words of the quantised model kept")
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    arguments = parser.parse_args()
    if not (SHARED / "zoo").is_dir() or not (SHARED / "data").is_dir():
        print(f"the networks and data of this benchmark are not here: {SHARED}/zoo and {SHARED}/data; nothing to do")
        return
    networks, forms = arguments.networks.split(","), arguments.forms.split(",")
    accuracy: list[Row] = []
    inferences: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        if arguments.trials:
            head = ("network", "form", "flip rate", "float: clean", "float: kept", "quantised: clean")
            head += ("quantised: kept", "difference", "recoded, corrected")
            print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
            for network in networks:
                accuracy += accuracies(network, forms, arguments, Path(folder))
        if arguments.rounds:
            inferences = [inference(name, form, arguments.rounds, Path(folder)) for name in networks for form in forms]
    timed = [row for found in inferences for row in found["times"] if row["variant"] == "hardened"]
    if timed:
        slowest = max(timed, key=lambda row: row["ratio"])
        print(
            f"\nlargest ratio of processor time, hardened over plain: {slowest['ratio']:.4f} "
            f"({slowest['low']:.4f} – {slowest['high']:.4f}); wanted at most {LIMIT}"
        )
    if arguments.out:
        environment = {"machine": platform.machine(), "cpus": os.cpu_count(), "onnxruntime": ort.__version__}
        figures = {"environment": environment, "accuracy": accuracy, "inference": inferences}
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
