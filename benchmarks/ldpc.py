"""Residual bit error rate of regular LDPC codes after belief propagation, by simulation.

    python benchmarks/ldpc.py [--words 8000] [--workers 2] [--output qtaml_onnx/storage/ldpc_residuals.csv]

Codes: a random (j, k)-regular bipartite graph of 10,000 variable nodes without cycles of length 4, one a family, from a
fixed seed. Channel: binary symmetric. Decoder: sum-product (Gallager 1963; Richardson & Urbanke 2001) with float32
messages, at most 200 iterations, stopped at a zero syndrome. The all-zero word stands for all: channel and decoder are
symmetric. Errors come in whole failed words, so that intervals are taken over words.
"""

from __future__ import annotations

import argparse
import csv
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

LENGTH = 10_000
ITERATIONS = 200
FAMILIES = {  # raw rates from the last one at which hardly a word fails to beyond the threshold
    (3, 6): (0.07, 0.0775, 0.08, 0.085, 0.09, 0.1),
    (3, 5): (0.1, 0.1075, 0.11, 0.115, 0.12, 0.13),
    (3, 4): (0.145, 0.155, 0.16, 0.17, 0.18, 0.19),
}
ENOUGH = 50  # failed words after which a point is settled
LATER = 10  # the rates after the first get so many times fewer words at most
BATCH = 32  # words decoded together: keeps the messages in the processor's cache


@lru_cache(maxsize=4)
def regular_graph(j: int, k: int, length: int = LENGTH, seed: int = 0) -> NDArray[np.int64]:
    """Variables of each check node, int64 [length·j/k, k]: j checks a variable, k variables a check, no 4-cycles."""
    rng = np.random.default_rng([seed, j, k])
    sockets = rng.permutation(np.repeat(np.arange(length), j))
    for _ in range(1000):
        checks = np.sort(sockets.reshape(-1, k), axis=1)
        left, right = np.triu_indices(k, 1)
        pairs = (checks[:, left] * length + checks[:, right]).ravel()
        _, first = np.unique(pairs, return_index=True)
        repeated = np.ones(len(pairs), dtype=bool)
        repeated[first] = False
        repeated |= (checks[:, left] == checks[:, right]).ravel()  # the same variable twice in a check
        bad = np.unique(np.flatnonzero(repeated) // len(left))
        if not len(bad):
            return checks
        sockets = checks.ravel()
        for check in bad:  # swap one socket of each offending check with a random one
            here, there = check * k + rng.integers(k), rng.integers(len(sockets))
            sockets[[here, there]] = sockets[[there, here]]
    raise RuntimeError(f"no ({j}, {k})-regular graph without 4-cycles was found")


def decode(checks: NDArray[np.int64], errors: NDArray[np.bool_], p: float) -> NDArray[np.bool_]:
    """Sum-product decoding of the all-zero word; ``errors`` and the result are bool [length, words], True is wrong."""
    number, k = checks.shape
    length, words = errors.shape
    j = number * k // length
    edges_of = np.argsort(checks.ravel(), kind="stable").reshape(length, j)  # edges are numbered check by check
    prior = np.float32(np.log((1.0 - p) / p))
    channel = np.where(errors, -prior, prior).astype(np.float32)
    decided = errors.copy()
    active = np.arange(words)
    message = channel[checks.ravel()].reshape(number, k, words)
    limit = np.float32(1.0 - 1e-6)
    for _ in range(ITERATIONS):
        t = np.tanh(np.float32(0.5) * message)
        before, after = np.ones_like(t), np.ones_like(t)
        for position in range(1, k):
            np.multiply(before[:, position - 1], t[:, position - 1], out=before[:, position])
            np.multiply(after[:, -position], t[:, -position], out=after[:, -position - 1])
        before *= after  # the product over all other positions
        np.clip(before, -limit, limit, out=before)
        extrinsic = np.float32(2.0) * np.arctanh(before).reshape(number * k, -1)
        total = channel[:, active] + sum(extrinsic[edges_of[:, slot]] for slot in range(j))
        wrong = total < 0.0
        decided[:, active] = wrong
        open_words = np.bitwise_xor.reduce(wrong[checks], axis=1).any(axis=0)
        if not open_words.any():
            break
        active = active[open_words]
        total, extrinsic = total[:, open_words], extrinsic[:, open_words]
        message = (total[checks.ravel()] - extrinsic).reshape(number, k, -1)
    return decided


def wrong_bits(family: tuple[int, int], p: float, seed: int) -> list[int]:
    """Wrong bits of each of a batch of words after decoding."""
    rng = np.random.default_rng([seed, *family, round(p * 1e6)])
    errors = rng.random((LENGTH, BATCH)) < p
    return decode(regular_graph(*family), errors, p).sum(axis=0).tolist()


def interval(share: NDArray[np.float64], p: float) -> tuple[float, float]:
    """95 % limits of the mean share of wrong bits a word: normal, or from the failed words where they are few."""
    words, failed = len(share), int((share > 0.0).sum())
    if failed < 10:  # Clopper–Pearson for the rate of failed words, none of them taken to be better than undecoded
        return 0.0, float(beta.ppf(0.975, failed + 1, words - failed)) * p
    spread = 1.96 * share.std(ddof=1) / np.sqrt(words)
    return max(0.0, share.mean() - spread), min(p, share.mean() + spread)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, default=8000, help="most words at a family's first rate")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("qtaml_onnx/storage/ldpc_residuals.csv"))
    options = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(options.workers) as pool:
        for (j, k), rates in FAMILIES.items():
            for p in rates:
                counts: list[int] = []
                most = options.words if p == rates[0] else options.words // LATER
                for seed in range(0, most // BATCH, options.workers):
                    batches = pool.map(partial(wrong_bits, (j, k), p), range(seed, seed + options.workers))
                    for batch in batches:  # counted one by one: the number of workers changes nothing
                        counts += batch if sum(map(bool, counts)) < ENOUGH and len(counts) < most else []
                    if sum(map(bool, counts)) >= ENOUGH:
                        break
                share = np.array(counts) / LENGTH
                failed = int((share > 0).sum())
                low, high = interval(share, p)
                rows.append([j, k, LENGTH, p, len(share), failed, f"{share.mean():.3e}", f"{low:.3e}", f"{high:.3e}"])
                print(*rows[-1], flush=True)
    with options.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["j", "k", "length", "p", "words", "failed", "residual", "ci_low", "ci_high"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
