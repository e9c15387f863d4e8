"""The tables that the overhead benchmark prints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from overhead_network import Record
from overhead_tasks import ABLATIONS, BUDGETS, BY_CHANNEL, LENGTHS, METHOD_ROWS


def summary(found: Record) -> str:
    """A found record in a few words, for those who watch."""
    parts = [f"{100 * found['overhead']:.2f} % protected keep"] if "overhead" in found else []
    parts += [share(found[name]) for name in ("kept", "nothing") if name in found]
    parts += [share(kept) for kept in found.get("budgets", {}).values()]
    return " ".join(parts) or found.get("impossible", "")


def share(kept: Record | None) -> str:
    """A share of clean with its interval."""
    return f"{kept['mean']:.3f} ± {(kept['high'] - kept['low']) / 2:.3f}" if kept else "–"


def table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Lines of a Markdown table; the first row is its head."""
    for number, row in enumerate(rows):
        yield "| " + " | ".join(row) + " |"
        if number == 0:
            yield "|" + "---|" * len(row)


def show(result: Record) -> None:
    """Prints the tables."""
    for name, network in result["networks"].items():
        for rate, rows in network["rates"].items():
            if not rows:
                continue
            print(f"\n### {name}, rate {rate}, clean accuracy {network['clean']:.3f}\n")
            print("\n".join(table(main_table(rows))))
            ratios = list(ratio_table(rows))
            if len(ratios) > 1:
                print("\n" + "\n".join(table(ratios)))
            curves = [
                (row, found["budgets"], found.get("nothing")) for row, found in rows.items() if "budgets" in found
            ]
            if curves:
                head = ("share of clean at a budget of", "0", *(f"{100 * b:g} %" for b in BUDGETS))
                lines = [(row, share(zero), *(share(at[f"{b:g}"]) for b in BUDGETS)) for row, at, zero in curves]
                print("\n" + "\n".join(table([head, *lines])))
    if result["left_out"]:
        print("\nleft out for lack of time: " + "; ".join(f"{n} {r:g} {w} ({t})" for n, r, w, t in result["left_out"]))


def main_table(rows: dict[str, Record]) -> Iterator[tuple[str, ...]]:
    """A line a row: overhead, shares of clean, and the ledger with nothing protected."""
    yield (
        "row",
        "protected at 95 %",
        "kept there",
        "kept with nothing protected",
        "bits a weight, all in",
        "parity",
        "metadata",
    )
    for name in in_order(rows):
        found = rows[name]
        own, bits = found.get("overhead"), found.get("ledger") or found.get("ledger_there")
        yield (
            name,
            "–" if own is None else f"{100 * own:.2f} %",
            share(found.get("kept")),
            share(found.get("nothing")) if "impossible" not in found else found["impossible"],
            *((f"{bits['all_in']:.3f}", f"{bits['parity']:.3f}", f"{bits['metadata']:.3f}") if bits else ("–",) * 3),
        )


def ratio_table(rows: dict[str, Record]) -> Iterator[tuple[str, ...]]:
    """Predicted and measured overheads, and the saturation ratio, predicted as reports give it and measured."""
    yield "row", "protected, predicted", "measured", "ρ*", "ratio measured"
    uniform = rows.get("uniform-msp", {}).get("overhead")
    for name in in_order(rows):
        found = rows[name]
        own, predicted = found.get("overhead"), found.get("predicted_overhead")
        if own is None or predicted is None:
            continue
        ratios = [found.get("predicted_ratio"), uniform / own if uniform and own else None]
        percents = [f"{100 * value:.2f} %" for value in (predicted, own)]
        yield name, *percents, *(f"{ratio:.1f}" if ratio else "–" for ratio in ratios)


def in_order(rows: dict[str, Record]) -> list[str]:
    """Rows in the order of the text above, the published alternatives last."""
    order = [*METHOD_ROWS, *(row.name for row in (*BY_CHANNEL, *ABLATIONS, *LENGTHS))]
    return sorted(rows, key=lambda name: order.index(name) if name in order else len(order))


def merged(files: list[Path]) -> Record:
    """Results of several runs as one."""
    results = [json.loads(file.read_text()) for file in files]
    return {
        **results[0],
        "networks": {name: network for result in results for name, network in result["networks"].items()},
        "left_out": [item for result in results for item in result["left_out"]],
    }
