"""Time and memory to design the channel-optimised codes of a 25-million-weight model, and what the codes are worth.

    OMP_NUM_THREADS=1 python benchmarks/design.py [--rate 0.10] [--bits 8] [--out design.json]

The model is the weight tensors of ResNet-50 (54 of them, 25.5 million weights), filled with random numbers: Gaussian,
Laplacian and Student's t by turns. Timed, in seconds of processor time: the design of each tensor's code and read-out
from all its weights, and the encoding. The second table compares the codes of a Gaussian source with the plain
alternation and with Shannon's bound.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from pathlib import Path

import numpy as np

from qtaml_onnx.channel import FlipRates, FloatArray, capacity, gaussian_noise_to_signal_bound, transition_matrix
from qtaml_onnx.storage import design_channel_optimized, design_readout, error_moments, uniform_code, word_sums


def resnet50_shapes() -> list[tuple[int, ...]]:
    """Convolutions and the classifier of ResNet-50 (He et al. 2016): 25.5 million weights."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    width = 64
    for planes, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(planes, width, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1)]
            if block == 0:
                shapes.append((4 * planes, width, 1, 1))
            width = 4 * planes
    return [*shapes, (1000, 2048)]


def plain_alternation(x: FloatArray, p: float, bits: int = 8) -> float:
    """Mean-square error of the alternation from natural order over two spans, 25 rounds, on 4,096 quantiles."""
    size, matrix = 1 << bits, transition_matrix(FlipRates.uniform(p, bits))
    x = np.quantile(x, (np.arange(4096) + 0.5) / 4096)
    errors = []
    for span in (1.0, 0.6):
        word = np.abs(x[:, None] - np.linspace(-1, 1, size) * np.abs(x).max() * span).argmin(axis=1)
        for _ in range(25):
            count, first = np.bincount(word, minlength=size), np.bincount(word, x, size)
            table = (first @ matrix) / np.maximum(count @ matrix, 1e-300)
            m1, m2 = matrix @ table, matrix @ table**2
            word = (m2 - 2.0 * x[:, None] * m1).argmin(axis=1)
        errors.append(float((x * x - 2.0 * x * m1[word] + m2[word]).mean()))
    return min(errors)


def time_model(rate: float, bits: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    draw = (rng.standard_normal, rng.laplace, lambda size: rng.standard_t(5, size))
    tensors = []
    for number, shape in enumerate(resnet50_shapes()):
        x = np.asarray(draw[number % 3](size=shape), dtype=np.float32)
        tensors.append(x / np.abs(x).max())
    rates = FlipRates.uniform(rate, bits)
    designing = encoding = 0.0
    for x in tensors:
        start = time.process_time()
        code, _ = design_channel_optimized(x, rates)
        middle = time.process_time()
        code.encode(x)
        designing, encoding = designing + middle - start, encoding + time.process_time() - middle
    tracemalloc.start()  # on the largest tensor only, as it slows the design down
    design_channel_optimized(max(tensors, key=lambda x: x.size), rates)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "tensors": len(tensors),
        "weights": sum(x.size for x in tensors),
        "design_seconds": designing,
        "encode_seconds": encoding,
        "peak_mebibytes": peak / 2**20,
    }


def compare_codes(bits: int) -> list[dict[str, float]]:
    x = np.random.default_rng(1).standard_normal(200_000)
    x /= np.abs(x).max()
    rows = []
    for p in (0.0, 1e-3, 0.01, 0.02, 0.05, 0.1):
        rates = FlipRates.uniform(p, bits)
        code, readout = design_channel_optimized(x, rates, restore_gain=False)
        sums, twos = word_sums(code, x), uniform_code("twos-complement", bits)
        base = word_sums(twos, x)
        ratios = {
            "affine": error_moments(design_readout("affine", twos, rates, base), rates, base).mse,
            "posterior_mean": error_moments(design_readout("posterior-mean", twos, rates, base), rates, base).mse,
            "alternation": plain_alternation(x, p, bits),
            "channel_optimized": error_moments(readout, rates, sums).mse,
        }
        row = {name: float(10 * np.log10(value / x.var())) for name, value in ratios.items()}
        bound = float(10 * np.log10(gaussian_noise_to_signal_bound(capacity(rates))))
        rows.append({"rate": p, "words_used": int((sums.count > 0).sum()), **row, "bound": bound})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=0.10)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    options = parser.parse_args()
    timing = time_model(options.rate, options.bits)
    total = timing["design_seconds"] + timing["encode_seconds"]
    print(f"{timing['tensors']} tensors, {timing['weights'] / 1e6:.1f} million weights")
    print(f"{options.bits} bits, rate {options.rate:g}, seconds of processor time")
    print(
        f"  design {timing['design_seconds']:.1f} s, encoding {timing['encode_seconds']:.1f} s, together {total:.1f} s"
    )
    print(f"  memory beyond the model {timing['peak_mebibytes']:.0f} MiB")
    print(f"\nNoise to signal of a Gaussian source, dB, {options.bits} bits")
    print("  rate   two's c. affine  posterior mean  alternation  channel-optimised  words used   bound")
    codes = compare_codes(options.bits)
    for row in codes:
        print(
            f"  {row['rate']:<6g} {row['affine']:>14.2f} {row['posterior_mean']:>15.2f} {row['alternation']:>12.2f}"
            f" {row['channel_optimized']:>18.2f} {row['words_used']:>11} {row['bound']:>7.2f}"
        )
    if options.out:
        options.out.write_text(json.dumps({"timing": timing, "codes": codes}, indent=2) + "\n")


if __name__ == "__main__":
    main()
