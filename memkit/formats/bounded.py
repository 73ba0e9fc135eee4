"""Parse what may be hostile: JSON with a bound on the memory it unfolds to, and faults that say where without what."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import orjson

MAX_UNFOLDED_BYTES = 48 << 20
_SMALL = 64 << 10  # unfolds to 2 MB at worst: not worth counting


class Fault(NamedTuple):
    """Why a payload cannot be read: the reason, and the byte where reading stopped (None: it was not begun)."""

    says: str
    byte: int | None


class Parsed(NamedTuple):
    """A parsed payload, or the fault that stopped it; ``nan`` when it holds NaN or Infinity, which are not JSON."""

    value: Any
    fault: Fault | None = None
    nan: bool = False


def unfolded_bytes(data: bytes) -> int:
    """Return an upper estimate of what parsing the JSON will take (sizes of CPython 3.11 objects, 64 bit)."""
    commas, lists, dicts = data.count(b","), data.count(b"["), data.count(b"{")
    return 2 * len(data) + 40 * commas + 72 * lists + 240 * dicts


def parse(data: bytes) -> Parsed:
    """Parse one JSON payload; never raises, never takes more than ``MAX_UNFOLDED_BYTES`` beside the payload."""
    if len(data) > _SMALL and unfolded_bytes(data) > MAX_UNFOLDED_BYTES:
        return Parsed(None, Fault(f"{len(data):,} bytes that would unfold to over 48 MB are not parsed", None))
    try:
        return Parsed(orjson.loads(data))
    except orjson.JSONDecodeError as error:
        where = _byte(data, error)
    return _parse_leniently(data, where)


def _byte(data: bytes, error: orjson.JSONDecodeError) -> int:
    """Return the byte where orjson stopped; it counts characters, and says 0 for invalid UTF-8."""
    try:
        return len(data.decode()[: error.pos].encode())
    except UnicodeDecodeError as bad:
        return bad.start
    except UnicodeEncodeError:
        return error.pos


def _parse_leniently(data: bytes, where: int) -> Parsed:
    """Parse what Python's json writes and the standard forbids: NaN, Infinity, lone surrogates."""
    seen_nan: list[str] = []
    try:
        value = json.loads(data, parse_constant=lambda name: seen_nan.append(name))
    except RecursionError:
        return Parsed(None, Fault("nested too deeply", where))
    except UnicodeDecodeError as error:
        return Parsed(None, Fault("not valid UTF-8", error.start))
    except ValueError:
        return Parsed(None, Fault("not valid JSON", where))
    return Parsed(value, nan=bool(seen_nan))
