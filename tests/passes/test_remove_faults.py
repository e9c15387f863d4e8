"""Removing faults undoes injecting them, whatever the model is made of."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from small_models import CASES
from stored_models import store

from qtaml_onnx.graph import walk
from qtaml_onnx.passes.inject_faults import InjectFaults
from qtaml_onnx.passes.remove_faults import RemoveFaults


def text(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", CASES)
def test_remove_undoes_inject(name: str) -> None:
    stored = store(CASES[name]().model)
    before = stored.hardened.clone()
    assert RemoveFaults()(stored.faulty).modified
    if before.ir_version < 4:  # it stays raised, and its initializers are no inputs any more
        assert stored.faulty.ir_version == 4
        for value in [value for value in before.graph.inputs if value.is_initializer()]:
            before.graph.inputs.remove(value)
        before.ir_version = 4
    assert text(stored.faulty) == text(before)


@pytest.mark.parametrize("name", ["matmul", "if-ir3", "function-constant", "function-subgraph"])
def test_residual_faults_of_protected_planes_go_as_well(name: str) -> None:
    """A protection that is not ideal has a second operator a tensor, with rates of its own."""
    stored = store(CASES[name]().model, "tac", 0.1, 0.4)
    residual = stored.plan.model_copy(update={"residual_rate": 0.02})
    model = stored.hardened.clone()
    model.ir_version = max(model.ir_version, 4)
    for value in [value for value in model.graph.inputs if value.is_initializer()]:
        model.graph.inputs.remove(value)
    before = text(model)
    InjectFaults(residual)(model)
    operators = [node for _root, node in walk(model) if node.domain == "qtaml"]
    assert len(operators) > len(stored.plan.tensors)
    RemoveFaults()(model)
    assert text(model) == before


def test_nothing_to_remove() -> None:
    stored = store(CASES["function-nested"]().model)
    before = text(stored.hardened)
    assert not RemoveFaults()(stored.hardened).modified
    assert text(stored.hardened) == before
