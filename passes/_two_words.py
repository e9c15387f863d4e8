"""The read-out of weights that are described by two words: the table of all pairs, computed from the list of cells."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtaml_onnx.graph import Owner
from qtaml_onnx.passes._graph import NameTable, NodeBuilder, insert_at_start
from qtaml_onnx.tensor_plan import TensorPlan

__all__ = ["PairTables"]


class PairTables:
    """Makes the tables of the codes of two words, one for all tensors of a graph that share a code.

    Where constants are nodes (in functions, and in subgraphs before IR version 4) each tensor has its own.
    """

    def __init__(self, model: ir.Model, names: NameTable) -> None:
        """Takes the model and the names in use."""
        self._model, self._names = model, names
        self._known: dict[tuple[object, ...], ir.Value] = {}
        self._shared: list[tuple[Owner, list[ir.Node]]] = []

    def read(self, owner: Owner, plan: TensorPlan, stored: list[ir.Value], nodes: list[ir.Node]) -> ir.Value:
        """table[first word · 2^(bits of the second) + second word]; what it takes is added to `nodes`."""
        table = self._table(owner, plan, nodes)
        build = _Builder(self._model, owner, plan.name, "read_out", self._names, nodes)
        first, second = (build.then("Cast", [words], {"to": ir.DataType.INT32}) for words in stored)
        place = build.constant("place", np.asarray(1 << plan.word_lengths[1], dtype=np.int64))
        place = build.then(
            "Cast", [place], {"to": ir.DataType.INT32}
        )  # an index of 64 bits would take twice the memory
        index = build.then("Add", [build.then("Mul", [first, place]), second])
        return build.then("Gather", [table, index], {"axis": 0})

    def place(self) -> None:
        """Puts the nodes of shared tables before all others; called once, when all tensors have been stored."""
        for owner, nodes in self._shared:
            insert_at_start(owner, nodes)

    def _table(self, owner: Owner, plan: TensorPlan, nodes: list[ir.Node]) -> ir.Value:
        key = (id(owner), *plan.table_key)
        if key in self._known:
            return self._known[key]
        made: list[ir.Node] = []
        build = _Builder(self._model, owner, plan.name, "read_out", self._names, made)
        table, shared = build.table(plan)
        if shared:
            self._known[key] = table
            self._shared.append((owner, made))
        else:
            nodes.extend(made)
        return table


class _Builder(NodeBuilder):
    """Collects the nodes of a table."""

    def real(self, value: ir.Value) -> ir.Value:
        return self.then("Cast", [value], {"to": ir.DataType.DOUBLE})

    def shaped(self, value: ir.Value, *shape: int) -> ir.Value:
        return self.then("Reshape", [value, self.constant("shape", np.asarray(shape, dtype=np.int64))])

    def table(self, plan: TensorPlan) -> tuple[ir.Value, bool]:
        """E[x | v1, v2], float32 and flat, in double precision up to the end; and whether its constants are no nodes.

        By Bayes' rule, from the share and the mean of each cell and the likelihoods of both words.
        """
        code = plan.code.two_words()
        stored = self.constant("flip_rates", code.stored_rates().astype(np.float32))
        rates = self.real(stored)
        first, second = (
            self.likelihood(self.constant(f"cell_{which}_words", words.astype(plan.words_type.lower())), rates, bits)
            for which, words, bits in zip(("first", "second"), code.halves(), code.lengths, strict=True)
        )
        shares = self.real(self.constant("cell_shares", code.shares.astype(np.float16)))
        means = self.real(self.constant("cell_means", code.means.astype(np.float16)))
        weighted = self.then("Mul", [self.then("Transpose", [first], {"perm": [1, 0]}), shares])
        above = self.then("MatMul", [self.then("Mul", [weighted, means]), second])
        ratio = self.then("Div", [above, self.then("MatMul", [weighted, second])])
        table = self.shaped(self.then("Cast", [ratio], {"to": ir.DataType.FLOAT}), -1)
        return table, stored.producer() is None

    def likelihood(self, words: ir.Value, rates: ir.Value, bits: int) -> ir.Value:
        """P[u, v] of the word of each cell, double [cells, 2^bits]: the Kronecker product over planes, top plane first.

        Args:
            words: Of the cells.
            rates: [[1 − p01, p01], [p10, 1 − p10]].
            bits: Word length.
        """
        words = self.then("Cast", [words], {"to": ir.DataType.INT64})
        powers = np.int64(1) << np.arange(bits, dtype=np.int64)[:, None]
        above = self.then("Div", [words, self.constant("next", 2 * powers)])
        planes = self.then("Div", [words, self.constant("own", powers)])
        planes = self.then("Sub", [planes, self.then("Mul", [above, self.constant("two", np.asarray(2, np.int64))])])
        rows = self.shaped(self.then("Gather", [rates, planes], {"axis": 0}), bits, -1, 1, 2)
        result: ir.Value | None = None
        for plane in reversed(range(bits)):
            row = self.then("Gather", [rows, self.constant("plane", np.asarray(plane, dtype=np.int64))], {"axis": 0})
            product = row if result is None else self.then("Mul", [result, row])
            result = self.shaped(product, 0, -1, 1)
        return self.shaped(result, 0, -1)  # type: ignore[arg-type]
