"""Weight faults by torch-based injectors, for `campaign.py`, which runs this with the Python that has them.

    python benchmarks/campaign_peers.py MODEL.onnx DATA.npz --samples 1024 --batch 256 --rate 0.001 --trials 3

Prints JSON: seconds of processor time a trial, or why there is none, for each of torch (clean inference), pytorchfi and
mrfi. The ONNX model is converted by onnx2torch; all run on one thread.

pytorchfi sets weights one by one at given places; the places and values, 8-bit words with every bit flipped at the
rate, are drawn by NumPy outside the time measured. It reaches Conv layers alone. mrfi draws, quantises and flips by
itself, in every forward pass anew; its rate is of values, of which one bit flips.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def cpu_seconds(function: Callable[[], Any], times: int) -> list[float]:
    function()
    found = []
    for _ in range(times):
        start = time.process_time()
        function()
        found.append(time.process_time() - start)
    return found


def pytorchfi_trial(torch: Any, model: Any, batches: list[Any], rate: float) -> Callable[[], None]:
    from pytorchfi.core import fault_injection

    model.eval()
    injector = fault_injection(model, len(batches[0]), list(batches[0].shape[1:]), layer_types=[torch.nn.Conv2d])
    rng = np.random.default_rng(0)
    places: dict[str, list[Any]] = {"layer_num": [], "k": [], "dim1": [], "dim2": [], "dim3": [], "value": []}
    for number, layer in enumerate(m for m in model.modules() if isinstance(m, torch.nn.Conv2d)):
        weight = layer.weight.detach().numpy()
        scale = np.abs(weight).max() / 127
        words = np.clip(np.round(weight / scale), -128, 127).astype(np.int8)
        masks = np.packbits(rng.random((*words.shape, 8)) < rate, axis=-1)[..., 0].view(np.int8)
        for place in np.argwhere(masks):
            at = tuple(int(axis) for axis in place)
            for name, axis in zip(("k", "dim1", "dim2", "dim3"), at, strict=True):
                places[name].append(axis)
            places["layer_num"].append(number)
            places["value"].append(float(words[at] ^ masks[at]) * float(scale))

    def trial() -> None:
        faulty = injector.declare_weight_fi(**places)
        with torch.no_grad():
            for batch in batches:
                faulty(batch)

    return trial


def mrfi_trial(torch: Any, model: Any, batches: list[Any], rate: float) -> Callable[[], None]:
    from mrfi import MRFI, EasyConfig

    logging.disable(logging.WARNING)
    config = EasyConfig()
    config.faultinject = [
        {
            "type": "weight",
            "name": ["weight"],
            "quantization": {"method": "SymmericQuantization", "bit_width": 8, "dynamic_range": "auto"},
            "error_mode": {"method": "IntRandomBitFlip", "bit_width": 8},
            "selector": {"method": "RandomPositionByRate", "rate": 8 * rate, "poisson": True},
            "module_type": ["Conv", "Linear"],
        }
    ]
    faulty = MRFI(model.eval(), config)

    def trial() -> None:
        with torch.no_grad():
            for batch in batches:
                faulty(batch)

    return trial


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--trials", type=int, default=3)
    arguments = parser.parse_args()
    import torch
    from onnx2torch import convert

    torch.set_num_threads(1)
    images = torch.from_numpy(np.load(arguments.data)["image"][: arguments.samples])
    batches = list(images.split(arguments.batch))

    def clean() -> Callable[[], None]:
        model = convert(arguments.model).eval()

        def trial() -> None:
            with torch.no_grad():
                for batch in batches:
                    model(batch)

        return trial

    makers = {
        "torch, clean": clean,
        # Floats in: pytorchfi profiles a network with them, and its first operator casts what it is given.
        "pytorchfi": lambda: pytorchfi_trial(
            torch, convert(arguments.model), [batch.float() for batch in batches], arguments.rate
        ),
        "mrfi": lambda: mrfi_trial(torch, convert(arguments.model), batches, arguments.rate),
    }
    found: dict[str, Any] = {}
    for name, make in makers.items():
        try:
            seconds = cpu_seconds(make(), arguments.trials)
            found[name] = {"seconds": statistics.median(seconds)}
        except Exception as error:  # a peer that does not know the network is a row, too
            found[name] = {"skipped": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
