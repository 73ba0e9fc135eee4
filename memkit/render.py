"""Text made safe to show: in a terminal, in HTML, in a log. What it does to a text, it does to be seen."""

from __future__ import annotations

import html
import re
import unicodedata
from datetime import UTC, datetime
from math import ceil

from memkit.policy import human

SHOWN_CHARS = 2_000
# Controls, format characters (bidi overrides, invisible tags), surrogates, private use and unassigned. Joiners stay: an
# emoji family is held together by them.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_JOINERS = frozenset("\u200c\u200d")
_PLAIN = re.compile(r"[ -~\u00a1-\u00ac\u00ae-\u0377\u0400-\u052f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5]*")


def printable(text: str, limit: int = SHOWN_CHARS) -> str:
    r"""Return the text with every character that a terminal might act on written out (``\x1b``, ``\u202e``).

    At most ``limit`` characters of it, with a mark that says how many there are.
    """
    shown = text[:limit]
    if not _PLAIN.fullmatch(shown):
        shown = "".join(map(_safe, shown))
    return shown if len(text) <= limit else f"{shown}… ({len(text):,} characters)"


def _safe(char: str) -> str:
    if char in _JOINERS or unicodedata.category(char) not in _UNSAFE_CATEGORIES:
        return char
    if char == "\n":
        return "\\n"
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escaped(text: str, limit: int = SHOWN_CHARS) -> str:
    """Return the text for HTML, as content or attribute; unsafe characters are written out there too."""
    return html.escape(printable(text, limit), quote=True)


def width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(_columns(char) for char in text)


def _columns(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def utc_text(at: datetime, *, up: bool = False) -> str:
    """Return a time as ``2026-11-22T02:17:03Z``; an upper bound is rounded up, so that it stays one."""
    whole = datetime.fromtimestamp(ceil(at.timestamp()) if up else int(at.timestamp()), UTC)
    return whole.isoformat().replace("+00:00", "Z")


def span(ms: float | None) -> str:
    """Return a TTL for people: exact where it is round, else to three digits."""
    if ms is None:
        return "no TTL"
    text = human(round(ms, -3) if ms >= 10_000 and abs(ms - round(ms, -3)) < 400 else ms)
    if len(text) <= 4:
        return text
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if ms >= size * 1.5:
            return f"{ms / size:.3g}{unit}"
    return f"{ms:.0f}ms"
