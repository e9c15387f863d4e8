"""How numbers and names are written in reports."""

from __future__ import annotations

import unicodedata

__all__ = [
    "format_count",
    "format_decibel",
    "format_percent",
    "format_rate",
    "format_ratio",
    "format_share",
    "format_significant",
    "has_interval",
    "shorten",
    "visible",
]

_MINUS = "\u2212"
_SPACE = "\u00a0"  # does not break a number from its unit
_THIN = "\u202f"

# Characters without a shape that reorder or hide the text around them. The joiners U+200C and U+200D are not among
# them: Persian and the Indic scripts are spelt with them.
_HIDDEN = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x061C, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF}


def visible(text: str) -> str:
    """The text with control characters, unpaired surrogates and invisible reordering marks written as escapes."""
    return "".join(_escape(c) if _is_hidden(c) else c for c in text)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or ord(character) in _HIDDEN


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shorten(text: str, width: int) -> str:
    """The text in at most `width` columns, its middle left out; wide (East Asian) characters take two columns."""
    if _columns(text) <= width:
        return text
    head, tail = 0, len(text)
    room = width - 1
    while True:  # one character from the end, one from the start, as long as they fit: names differ mostly at the end
        kept = text[:head] + text[tail - 1 :]
        if _columns(kept) > room:
            break
        tail -= 1
        kept = text[: head + 1] + text[tail:]
        if _columns(kept) > room:
            break
        head += 1
    return f"{text[:head]}…{text[tail:]}"


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _signed(text: str) -> str:
    return text.replace("-", _MINUS) if text.startswith("-") else text


def format_significant(value: float) -> str:
    """Three significant digits: 8.01, 1.2e-5, 12300 as 1.23e4."""
    text = f"{value:.3g}"
    mantissa, e, exponent = text.partition("e")
    return _signed(mantissa) + (f"e{int(exponent)}" if e else "")


def format_rate(value: float) -> str:
    """A flip rate, up to four significant digits: 0.1, 0.0125, 1e-6."""
    mantissa, e, exponent = f"{value:.4g}".partition("e")
    return mantissa + (f"e{int(exponent)}" if e else "")


def format_percent(value: float) -> str:
    """A metric: percent with one decimal."""
    return _signed(f"{100 * value:.1f}{_SPACE}%")


def format_ratio(value: float) -> str:
    """A ratio near 1: three decimals."""
    return f"{value:.3f}"


def format_share(value: float) -> str:
    """A share that may be tiny: percent with three significant digits."""
    return f"{format_significant(100 * value)}{_SPACE}%"


def format_decibel(value: float) -> str:
    """Decibels with one decimal."""
    return _signed(f"{value:.1f}{_SPACE}dB")


def format_count(value: int) -> str:
    """An integer in groups of three digits."""
    return _signed(f"{value:,}".replace(",", _THIN))


def has_interval(trials: int, interval: str) -> bool:
    """Whether a result has an interval that says anything: not a single trial of random faults."""
    return trials > 1 or interval != "t"
