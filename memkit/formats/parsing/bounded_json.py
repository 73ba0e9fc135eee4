"""Parse what may be hostile: JSON with a bound on the memory it unfolds to, and faults that say where without what."""

import json
from codecs import BOM_UTF8
from typing import Any, NamedTuple

import orjson

MAX_UNFOLDED_BYTES = 48 << 20
MAX_JSON_BYTES = MAX_UNFOLDED_BYTES // 2
"""Larger JSON is not parsed, whatever is in it: its texts alone unfold to too much."""
TOO_DEEP, TOO_LONG = "nested too deeply", "an integer of over 4,300 digits"
"""What Python's parser does not read, although it may be JSON."""
_SMALL = MAX_UNFOLDED_BYTES // 248  # at worst, each byte is a brace: 240 for the dict, 8 for the text
_LARGE = 4 << 20  # orjson 3.11 sets 12 times a document's size aside; beyond this, Python's own parser takes less
_ASTRAL = (b"\xf0", b"\xf1", b"\xf2", b"\xf3", b"\xf4")


class Fault(NamedTuple):
    """Why a payload cannot be read: the reason, and the byte where reading stopped (None: it was not begun)."""

    message: str
    byte: int | None


class Parsed(NamedTuple):
    """A parsed payload, or the fault that stopped it; ``nan`` when it holds NaN or Infinity, which are not JSON."""

    value: Any
    fault: Fault | None = None
    nan: bool = False


def unfolded_bytes(data: bytes) -> int:
    """Return an upper estimate of what parsing the JSON will take (sizes of CPython 3.11 objects, 64 bit)."""
    if len(data) > MAX_JSON_BYTES:
        return 2 * len(data)
    commas, lists, dicts = data.count(b","), data.count(b"["), data.count(b"{")
    # One character outside the basic plane makes all of a text take four bytes each; as input, and again as value.
    texts = 8 if not data.isascii() and any(lead in data for lead in _ASTRAL) else 5 if b"\\u" in data else 2
    return texts * len(data) + 40 * commas + 72 * lists + 240 * dicts


def json_start(data: bytes) -> bytes:
    """Return the byte with which a payload's JSON would begin: .NET may write a byte-order mark before it."""
    return data.removeprefix(BOM_UTF8).lstrip()[:1]


def parse(data: bytes) -> Parsed:
    """Parse one JSON payload; never raises, never takes more than ``MAX_UNFOLDED_BYTES`` beside the payload."""
    if len(data) > _SMALL and unfolded_bytes(data) > MAX_UNFOLDED_BYTES:
        return Parsed(None, Fault(f"{len(data):,} bytes that would unfold to over 48 MB are not parsed", None))
    at, mark = 0, data.startswith(BOM_UTF8)
    if len(data) <= _LARGE:
        try:
            return Parsed(orjson.loads(data.removeprefix(BOM_UTF8)))
        except orjson.JSONDecodeError as error:
            at = error.pos
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return Parsed(None, Fault("not valid UTF-8", error.start))
    # What Python's json writes and the standard forbids: NaN, Infinity, lone surrogates.
    seen_nan: list[str] = []
    try:
        value = json.loads(text[mark:], parse_constant=seen_nan.append)
    except RecursionError:
        return Parsed(None, Fault(TOO_DEEP, _byte(text, mark + at)))
    except json.JSONDecodeError as error:
        return Parsed(None, Fault("not valid JSON", _byte(text, mark + max(at, error.pos))))
    except ValueError:
        return Parsed(None, Fault(TOO_LONG, _byte(text, mark + at)))
    return Parsed(value, nan=bool(seen_nan))


def _byte(text: str, at: int) -> int:
    return len(text[:at].encode())
