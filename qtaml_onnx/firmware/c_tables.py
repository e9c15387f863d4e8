"""The constants of a model as C99: qtaml_model.h and qtaml_model.c, which qtaml_readout.c reads images by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from math import prod

import numpy as np
import onnx_ir as ir

from qtaml_onnx.firmware.manifest import Grid, ImageTensor, Manifest, SmallGroupEntry, SmallTensorEntry
from qtaml_onnx.firmware.parity import BchCoder, Coder, LdpcCoder, ParityCoder, RepetitionCoder, SecDedCoder
from qtaml_onnx.plan_values import BiasPlan, ChannelPart, CodeSpec
from qtaml_onnx.tensor_plan import TensorPlan

__all__ = ["c_files", "small_symbols", "tensor_symbols"]

_FORMS = {
    "affine": "QTAML_AFFINE",
    "table": "QTAML_TABLE",
    "dequantize": "QTAML_DEQUANTIZE",
    "integer-table": "QTAML_INTEGER_TABLE",
    "integer-grid": "QTAML_INTEGER_GRID",
    "two-words": "QTAML_TWO_WORDS",
}
_TYPES = {
    "FLOAT": "QTAML_FLOAT32",
    "FLOAT16": "QTAML_FLOAT16",
    "BFLOAT16": "QTAML_BFLOAT16",
    "DOUBLE": "QTAML_FLOAT64",
    **{name: f"QTAML_{name}" for name in ("INT8", "UINT8", "INT16", "UINT16", "INT32")},
}
_SCHEMES = {
    RepetitionCoder: "QTAML_REPETITION",
    SecDedCoder: "QTAML_SECDED",
    BchCoder: "QTAML_BCH",
    ParityCoder: "QTAML_PARITY",
    LdpcCoder: "QTAML_LDPC",
}
_LONGEST_LITERAL = 4000
"""C99 promises string literals of 4,095 characters."""
_LONGEST_SYMBOL = 40


def c_files(manifest: Manifest, coder: Coder | None) -> dict[str, str]:
    """The C files of an image by name: the reader, and the tables of this model.

    Args:
        manifest: Of the image.
        coder: The code of its protected planes; None if they have no parity.
    """
    reader = {
        name: (files("qtaml_onnx.firmware") / name).read_text() for name in ("qtaml_readout.h", "qtaml_readout.c")
    }
    return reader | {"qtaml_model.h": _header(manifest, coder), "qtaml_model.c": _Source(manifest, coder).text()}


def tensor_symbols(manifest: Manifest) -> list[str]:
    """A C identifier for each tensor, or part of one, made of its name; all different."""
    return _symbols("QTAML_TENSOR", [tensor.storage.label for tensor in manifest.tensors])


def small_symbols(manifest: Manifest) -> list[str]:
    """The same for the small tensors, in the order of the C table."""
    return _symbols("QTAML_SMALL", [tensor.name for group in manifest.small for tensor in group.tensors])


def _symbols(prefix: str, names: list[str]) -> list[str]:
    found: list[str] = []
    for number, name in enumerate(names):
        plain = re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")[:_LONGEST_SYMBOL]
        symbol = f"{prefix}_{plain or number}"
        found.append(symbol if symbol not in found else f"{symbol}_NUMBER_{number}")
    return found


def _header(manifest: Manifest, coder: Coder | None) -> str:
    workspace = (
        2 * (coder.data_bits + coder.parity_bits) + coder.code.checks.size if isinstance(coder, LdpcCoder) else 0
    )
    lines = [
        "/* Written by qtaml-onnx export-image: the constants of a model, which belong to its images alone. */",
        "#ifndef QTAML_MODEL_H",
        "#define QTAML_MODEL_H",
        "",
        '#include "qtaml_readout.h"',
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        "extern const qtaml_model qtaml_stored_model;",
        "",
    ]
    for name in ("bulk", "protected", "parity", "small", "constants"):
        file = manifest.file(f"{name}.bin")  # type: ignore[arg-type]
        lines.append(f"#define QTAML_{name.upper()}_BYTES {file.size if file else 0}u")
        lines.append(f"#define QTAML_{name.upper()}_CRC32 0x{file.crc32 if file else 0:08x}u /* as written */")
    lines += [
        f"#define QTAML_WORKSPACE_BYTES {workspace}u /* of qtaml_correct, aligned as int16_t */",
        f"#define QTAML_TENSORS {len(manifest.tensors)}u",
        "",
    ]
    for symbols in (tensor_symbols(manifest), small_symbols(manifest)):
        lines += [f"#define {symbol} {number}u" for number, symbol in enumerate(symbols)]
    return "\n".join([*lines, "", "#ifdef __cplusplus", "}", "#endif", "", "#endif", ""])


class _Source:
    """qtaml_model.c as it grows: equal tables are written once."""

    def __init__(self, manifest: Manifest, coder: Coder | None) -> None:
        self._manifest = manifest
        self._coder = coder
        self._arrays: dict[tuple[str, tuple[str, ...]], str] = {}
        self._lines: list[str] = []
        self._pairs: dict[CodeSpec, str] = {}
        self._wholes: dict[str, str] = {}

    def text(self) -> str:
        tensors = [self._tensor(number, tensor) for number, tensor in enumerate(self._manifest.tensors)]
        code = self._code()
        small = [self._small(group, tensor) for group in self._manifest.small for tensor in group.tensors]
        return "\n".join(
            [
                "/* Written by qtaml-onnx export-image. */",
                '#include "qtaml_model.h"',
                "",
                *self._lines,
                *_table("qtaml_tensor", "tensors", tensors),
                *_table("qtaml_small", "small", small),
                f"static const qtaml_code code = {code};",
                "",
                "const qtaml_model qtaml_stored_model = {",
                f"  QTAML_FORMAT_VERSION, {_literal(self._manifest.plan_sha256)}, {'tensors' if tensors else 'NULL'},"
                f" QTAML_TENSORS, {self._manifest.row_bits}u, &code, {'small' if small else 'NULL'}, {len(small)}u}};",
                "",
            ]
        )

    def _array(self, c_type: str, items: Iterable[str]) -> str:
        """A static table, shared with an equal one; NULL for an empty one."""
        key = (c_type, tuple(items))
        if not key[1]:
            return "NULL"
        if key not in self._arrays:
            self._arrays[key] = f"table_{len(self._arrays)}"
            rows = [", ".join(key[1][start : start + 8]) for start in range(0, len(key[1]), 8)]
            body = ",\n  ".join(rows)
            self._lines.append(f"static const {c_type} {self._arrays[key]}[] = {{\n  {body}}};\n")
        return self._arrays[key]

    def _integers(self, values: Iterable[int], c_type: str = "uint16_t") -> str:
        return self._array(c_type, map(str, values))

    def _floats(self, values: Sequence[float]) -> str:
        return self._array("float", map(_float, values))

    def _halves(self, values: Sequence[float]) -> str:
        return self._array("uint16_t", (f"0x{half:04x}" for half in np.asarray(values, np.float16).view(np.uint16)))

    def _channels(self, plan: TensorPlan, values: Sequence[float], axis: int | None, half: bool) -> str:
        numbers = f"{{{self._halves(values)}, NULL}}" if half else f"{{NULL, {self._floats(values)}}}"
        inner = 1 if axis is None or len(values) == 1 else prod(plan.shape[axis + 1 :])
        return f"{{{numbers}, {len(values)}u, {max(inner, 1)}u}}"

    def _tensor(self, number: int, tensor: ImageTensor) -> str:
        plan = tensor.storage
        table, codes = "{NULL, NULL}", "NULL"
        if plan.form in ("table", "integer-grid") and plan.table is not None:
            half = plan.table_type == "FLOAT16"
            table = f"{{{self._halves(plan.table)}, NULL}}" if half else f"{{NULL, {self._floats(plan.table)}}}"
        elif plan.form == "integer-table" and plan.table is not None:
            codes = self._integers(map(int, plan.table), "int32_t")
        bias = "NULL"
        if plan.bias is not None:
            bias = f"&bias_{number}"
            self._bias(bias[1:], plan, plan.bias)
        columns = steps = "{{NULL, NULL}, 0u, 1u}"
        if plan.input_scales is not None:
            columns = self._channels(plan, plan.input_scales, plan.input_axis, half=True)
        if plan.steps is not None:
            steps = self._channels(plan, plan.steps.values, plan.steps.axis, half=False)
        mask = sum(1 << plane for plane in plan.protected_planes)
        fields = [
            _literal(plan.label),
            self._array("uint32_t", (f"{extent}u" for extent in plan.shape)),
            f"{len(plan.shape)}u",
            f"{plan.size}u",
            str(plan.word_lengths[0]),
            str(int(plan.words_type.startswith("INT"))),
            _FORMS[plan.form],
            _TYPES[tensor.weight_type],
            str(tensor.bulk.bits),
            str(tensor.protected.bits),
            f"0x{mask:x}",
            str(tensor.null_word),
            *map(str, (plan.zero_point, *(plan.limits or (0, 0)))),
            *(f"{region.offset}u" for region in (tensor.bulk, tensor.protected, tensor.parity)),
            f"{tensor.second.offset if tensor.second is not None else 0}u",
            _float(plan.offset),
            self._channels(plan, plan.scales, plan.channel_axis, half=False),
            columns,
            steps,
            table,
            codes,
            bias,
            self._grid(number, plan, tensor.grid) if tensor.grid is not None else "NULL",
            self._groups(number, plan, tensor.null_words) if tensor.null_words is not None else "NULL",
            self._pair(plan.code) if plan.form == "two-words" else "NULL",
            self._whole(number, plan, plan.part) if plan.part is not None else "NULL",
        ]
        return f"  {{{', '.join(fields)}}}"

    def _grid(self, number: int, plan: TensorPlan, grid: Grid) -> str:
        inner, extent = max(prod(plan.shape[grid.axis + 1 :]), 1), max(plan.shape[grid.axis], 1)
        fields = f"{grid.steps}u, {grid.zero_points}u, {inner}u, {extent}u, {grid.block}u"
        self._lines.append(f"static const qtaml_grid grid_{number} = {{{fields}}};\n")
        return f"&grid_{number}"

    def _groups(self, number: int, plan: TensorPlan, nulls: tuple[int, ...]) -> str:
        axis, groups = plan.channel_axis or 0, plan.channel_groups or ()
        inner = max(prod(plan.shape[axis + 1 :]), 1)
        tables = f"{self._integers(groups, 'uint8_t')}, {self._integers(nulls)}"
        self._lines.append(f"static const qtaml_groups groups_{number} = {{{tables}, {len(groups)}u, {inner}u}};\n")
        return f"&groups_{number}"

    def _pair(self, spec: CodeSpec) -> str:
        """The read-out of two words: the list of cells, powers of the flip rates, and entries that are listed."""
        if spec not in self._pairs:
            name, code = f"pair_{len(self._pairs)}", spec.two_words()
            listed = code.unsettled()
            powers = np.cumprod(
                np.concatenate([np.ones((4, 1)), [[p] * code.bits for p in code.stored_rates().flat]], 1), 1
            )
            tables = [
                *(self._integers(words) for words in code.halves()),
                *(self._halves(values.tolist()) for values in (code.shares, code.means)),
                *(self._array("double", (value.hex() for value in row)) for row in powers.tolist()),
                self._array("uint32_t", (f"{word}u" for word in listed)),
                self._floats(code.table[listed].tolist()),
            ]
            counts = f"{len(code.words)}u, {len(listed)}u, {code.lengths[1]}"
            self._lines.append(f"static const qtaml_pair {name} = {{{', '.join(tables)}, {counts}}};\n")
            self._pairs[spec] = name
        return f"&{self._pairs[spec]}"

    def _whole(self, number: int, plan: TensorPlan, part: ChannelPart) -> str:
        """The tensor that a part is of; written with its first part, which is `number` of all tensors."""
        if part.number == 0:
            owners, places = np.zeros((2, part.extent), np.int64)
            parts = [t.storage.part for t in self._manifest.tensors if t.storage.name == plan.name]
            for owner, one in enumerate(one for one in parts if one is not None):
                owners[list(one.channels)], places[list(one.channels)] = owner, range(len(one.channels))
            shape = plan.whole_shape
            tables = [self._array("uint32_t", (f"{extent}u" for extent in shape))]
            tables += [self._integers(owners), self._integers(places)]
            inner = max(prod(shape[part.axis + 1 :]), 1)
            counts = ", ".join(f"{count}u" for count in (prod(shape), number, len(parts), part.extent, inner))
            self._lines.append(f"static const qtaml_whole whole_{number} = {{{', '.join(tables)}, {counts}}};\n")
            self._wholes[plan.name] = f"&whole_{number}"
        return self._wholes[plan.name]

    def _small(self, group: SmallGroupEntry, tensor: SmallTensorEntry) -> str:
        fields = [
            _literal(tensor.name),
            self._array("uint32_t", (f"{extent}u" for extent in tensor.shape)),
            *(
                f"{count}u"
                for count in (len(tensor.shape), prod(tensor.shape), tensor.first, group.numbers, group.offset)
            ),
            str(group.copies),
            str(ir.DataType[group.dtype].itemsize),
            _TYPES[group.dtype],
        ]
        return f"  {{{', '.join(fields)}}}"

    def _bias(self, name: str, plan: TensorPlan, bias: BiasPlan) -> None:
        """The geometry of the sum: axes that are kept, axes of the mean, and the kernel's taps, as divisors."""
        shape = bias.grouped_shape or plan.whole_shape
        outputs = len(bias.target)
        kept = [axis for axis in range(len(shape)) if axis not in bias.summed_axes]
        inner = prod(shape[kept[-1] + 1 :])
        mean_axis = 2 if bias.grouped_shape else bias.mean_shape.index(-1)
        means, mean_inner = shape[mean_axis], prod(shape[mean_axis + 1 :])
        group = prod(shape[1:]) if bias.grouped_shape else prod(plan.whole_shape)
        coverage = "NULL" if bias.coverage is None else self._halves(bias.coverage)
        fields = [
            self._floats(bias.target),
            f"{outputs}u",
            f"{max(inner, 1)}u",
            self._halves(bias.mean_input),
            f"{means}u",
            f"{max(mean_inner, 1)}u",
            f"{max(group, 1)}u",
            coverage,
            f"{len(bias.coverage or ()) or 1}u",
            str(int(bias.quantized is not None and bias.quantized.rounded)),
        ]
        self._lines.append(f"static const qtaml_bias {name} = {{{', '.join(fields)}}};\n")

    def _code(self) -> str:
        coder = self._coder
        if coder is None:
            return "{QTAML_PLAIN, 1, 0, 0, NULL, 0, 0, 0, NULL, NULL, NULL, 0, 0}"
        copies, columns, checks, degree, prior = 0, "NULL", "NULL", 0, 0
        errors, roots, order, power, log = 0, 0, 0, "NULL", "NULL"
        match coder:
            case RepetitionCoder():
                copies = coder.copies
            case SecDedCoder():
                columns = self._integers(map(int, coder.columns))
            case BchCoder():
                field = coder.field
                errors, roots, order = field.errors, field.roots, field.order
                power, log = self._integers(map(int, field.power)), self._integers(map(int, field.log))
            case LdpcCoder():
                checks = self._integers(map(int, coder.code.checks.ravel()))
                degree, prior = coder.code.checks.shape[1], coder.prior
        fields = [_SCHEMES[type(coder)], coder.data_bits, coder.parity_bits, copies, columns, errors, roots, order]
        return f"{{{', '.join(map(str, [*fields, power, log, checks, degree, prior]))}}}"


def _table(c_type: str, name: str, rows: list[str]) -> list[str]:
    """A static table, or nothing: C99 has no empty one."""
    body = ",\n".join(rows)
    return [f"static const {c_type} {name}[] = {{\n{body}}};", ""] if rows else []


def _float(value: float) -> str:
    """A float as C99 reads it back exactly."""
    return f"{float(np.float32(value)).hex()}f"


def _literal(text: str) -> str:
    """A string literal of ASCII; other bytes of its UTF-8 form, and what could start a trigraph, in octal."""
    data = text.encode("utf-8", "replace")[:_LONGEST_LITERAL]
    plain = set(range(32, 127)) - set(b'"\\?')
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in data) + '"'
