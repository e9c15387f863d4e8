"""A few seconds of fuzzing; `make fuzz` runs long. Each target and seed is a case that can be run again alone."""

from __future__ import annotations

import random
from pathlib import Path

import onnx
import pytest

from fuzz.mutations import damage_bytes, damage_document, damage_message, damage_text
from fuzz.targets import TARGETS, corpus, run_case

CASES = {
    "inspect": 150,
    "external": 80,
    "harden": 30,
    "verify": 20,
    "plan": 40,
    "report": 15,
    "export": 60,
    "import": 60,
    "small": 25,
}
FOUND = [
    ("inspect", 1135),  # a Constant without a value
    ("inspect", 1305),  # a node that onnx_ir reads but does not write
    ("plan", 32),  # a shape beyond 64 bits
    ("plan", 1055),  # scales that do not fit the shape
    ("report", 33),  # a tensor of 0 planes
    ("report", 100625),  # words of so many bits that their picture never ends
    ("harden", 101825),  # an input of no type
    ("harden", 100459),  # an input of 2^62 numbers
]
"""Seeds that found defects. A later change of the mutations may make other cases of them."""


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files_are_refused_in_one_line(target: str, tmp_path: Path) -> None:
    codes = [run_case(target, seed, tmp_path / "case") for seed in range(CASES.get(target, 50))]
    assert codes.count(2) > len(codes) // 10  # the damage does damage
    assert {0, 1} & set(codes)  # and not all of it is found at the door


@pytest.mark.parametrize(("target", "seed"), FOUND)
def test_what_was_found_stays_mended(target: str, seed: int, tmp_path: Path) -> None:
    run_case(target, seed, tmp_path / "case")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_more_damaged_files(target: str, tmp_path: Path) -> None:
    for seed in range(10_000, 10_000 + 10 * CASES.get(target, 50)):
        run_case(target, seed, tmp_path / "case")


def test_damage_depends_on_the_seed_alone() -> None:
    document = {"a": [1, 2.5, {"b": "c"}], "d": None}

    def damaged(seed: int) -> tuple[bytes, bytes, str, str]:
        rng = random.Random(seed)
        proto = onnx.ModelProto.FromString(corpus()[0])
        damage_message(proto, rng)
        return (
            damage_bytes(corpus()[0], rng),
            proto.SerializeToString(deterministic=True),
            repr(damage_document(document, rng)),
            damage_text("a = 1\nb = 2", rng),
        )

    assert damaged(3) == damaged(3)
    assert len({damaged(seed)[1] for seed in range(20)}) > 15
    assert document == {"a": [1, 2.5, {"b": "c"}], "d": None}
