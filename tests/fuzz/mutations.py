"""Seeded damage: bytes, protobuf messages, JSON-like documents and text, each made wrong in the ways that files are."""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

INTEGERS = (0, 1, -1, 2, 3, 7, 255, 256, 2**31 - 1, -(2**31), 2**31, 2**62, -(2**62), 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"))
STRINGS = (
    "", " ", "x", "W", "y", "\x1b[31mred\x1b[0m", "\x9b31m", "a\nb\r\tc", "\u202egnp", "../x", "/etc/passwd", "é", "😀",
    "%s%n", "[bold]", "[/x]", "{}", "#1", ".words", "W.words", "a" * 3000, "qtaml", "ai.onnx", "Conv", "MatMul", "Loop",
)  # fmt: skip
DEEP = "nested five thousand deep"
"""Stands for so many brackets in what `to_text` writes; the JSON library itself writes no such thing."""


def to_text(document: Any) -> str:
    """JSON, with NaN and infinities as Python writes them."""
    return json.dumps(document).replace(f'"{DEEP}"', "[" * 5000 + "]" * 5000)


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flips, overwrites, cuts, repeats and inserts bytes, a few at a time."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
            case 2:
                del out[at : at + rng.choice((1, 2, 8, 64, 1024))]
            case 3:
                out[at:at] = out[at : at + rng.choice((1, 4, 32, 256))]
            case 4:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))
            case _:
                del out[at:]
    return bytes(out)


def damage_message(message: Message, rng: random.Random) -> None:
    """Changes fields of a message or of those inside it: values to extremes, fields away, twice, or in other order."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        target = _some_message(message, rng)
        field = rng.choice(target.DESCRIPTOR.fields)
        if field.is_repeated:
            _damage_repeated(target, field, rng)
        elif field.message_type is not None:
            if target.HasField(field.name) and rng.random() < 0.5:
                target.ClearField(field.name)
            else:
                getattr(target, field.name).SetInParent()
        else:
            setattr(target, field.name, _value(field, rng))


def _some_message(message: Message, rng: random.Random) -> Message:
    """The message or one inside it, deep ones as likely as shallow ones."""
    found, stack = [message], [message]
    while stack:
        for field, value in stack.pop().ListFields():
            if field.message_type is None:
                continue
            inner = list(value) if field.is_repeated else [value]
            found += inner
            stack += inner
    return rng.choice(found)


def _damage_repeated(target: Message, field: FieldDescriptor, rng: random.Random) -> None:
    values = getattr(target, field.name)
    at = rng.randrange(len(values)) if len(values) else 0
    match rng.randrange(5):
        case 0 if len(values):
            del values[at]
        case 1 if len(values):
            values.append(values[at]) if field.message_type is None else values.add().CopyFrom(values[at])
        case 2 if len(values) > 1:
            kept = list(values)
            rng.shuffle(kept)
            if field.message_type is not None:
                copies = [type(value)() for value in kept]
                for copy, value in zip(copies, kept, strict=True):
                    copy.CopyFrom(value)
                kept = copies
            del values[:]
            values.extend(kept)
        case 3 if field.message_type is None and len(values):
            values[at] = _value(field, rng)
        case _:
            values.add() if field.message_type is not None else values.append(_value(field, rng))


def _value(field: FieldDescriptor, rng: random.Random) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        text = rng.choice(STRINGS)
        return text if field.type == FieldDescriptor.TYPE_STRING else text.encode() + rng.randbytes(rng.randrange(9))
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(FLOATS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    number = rng.choice((*INTEGERS, rng.randrange(30), rng.randrange(30)))
    bits = 32 if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
    if kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64):
        return number % 2**bits
    return (number + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def damage_document(document: Any, rng: random.Random) -> Any:
    """A JSON-like value with keys missing, new or renamed, and values of other types, sizes and depths."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        places = _places(document)
        if not places:
            return _odd(rng)
        numbers = [(h, k) for h, k in places if isinstance(h[k], (int, float)) and not isinstance(h[k], bool)]
        if numbers and rng.random() < 0.5:  # what a schema lets pass
            holder, key = rng.choice(numbers)
            kind = type(holder[key])
            holder[key] = rng.choice((*map(kind, (0, 1, 2, 3, 5, 9, 255, -1)), rng.choice(INTEGERS)))
            continue
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(STRINGS)] = holder.pop(key)
            case 2 if isinstance(holder[key], (int, float)):
                holder[key] = rng.choice((*INTEGERS, *FLOATS))
            case 3 if isinstance(holder[key], list) and holder[key]:
                holder[key] = holder[key] * rng.randrange(3) + holder[key][: rng.randrange(len(holder[key]) + 1)]
            case 4 if isinstance(holder, dict):
                holder[rng.choice(STRINGS)] = _odd(rng)
            case _:
                holder[key] = _odd(rng)
    return document


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every key of every object and index of every list; of long lists a few."""
    found, stack = [], [document]
    while stack:
        value = stack.pop()
        if isinstance(value, (dict, list)):
            keys = list(value) if isinstance(value, dict) else list(range(min(len(value), 4)))
            found += [(value, key) for key in keys]
            stack += [value[key] for key in keys]
    return found


def _odd(rng: random.Random) -> Any:
    deep: Any = DEEP if rng.random() < 0.1 else [[[[0]]]]
    return rng.choice(
        (None, True, rng.choice(INTEGERS), rng.choice(FLOATS), rng.choice(STRINGS), [], {}, [1, "a"], 10**400, deep)
    )


def damage_text(text: str, rng: random.Random) -> str:
    """Text with lines away, twice or in other order, words replaced and odd characters put in."""
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(lines)) if lines else 0
        match rng.choice((0, 1, 2, 3, 3, 3, 3, 4, 5)):
            case 0 if lines:
                del lines[at]
            case 1 if lines:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 2 if rng.random() < 0.2:
                rng.shuffle(lines)
            case 2 | 3 if lines:
                words = re.split(r"([ ,=\[\]{}]+)", lines[at])
                odd = rng.choice((*INTEGERS, *INTEGERS, *FLOATS, *FLOATS, rng.choice(STRINGS), "1e999", "0x1", "'"))
                words[rng.randrange(0, len(words), 2)] = str(odd)
                lines[at] = "".join(words)
            case 4 if lines:
                column = rng.randrange(len(lines[at]) + 1)
                odd = rng.choice(("\0", "\x1b", "=", '"', "[", "]" * 999, ","))
                lines[at] = lines[at][:column] + str(odd) + lines[at][column:]
            case _:
                odd = rng.choice(("[" * 5000, "a=" + "[" * 3000, "[[x]]", "#", "p01,p10", "\ufeff", "nan,nan"))
                lines.insert(at, str(odd))
    return "\n".join(lines)
