"""Open a payload layer by layer: compression, base64, msgpack, JSON, and one JSON object a line.

Serialised objects (pickle, Java, PHP) are named and never loaded. Every step is bounded: a compressed payload is not
unfolded beyond ``MAX_OPEN_BYTES``.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from memkit.formats.model import Problem
from memkit.formats.parsing import msgpack
from memkit.formats.parsing.bounded_json import parse
from memkit.formats.parsing.documents import corrupt, read
from memkit.formats.parsing.encodings import examine
from memkit.readonly.values import DOCUMENT_KINDS, RedisValue

MAX_OPEN_BYTES = 8 << 20
"""A chat of 8 MB has some 10,000 messages of a model's size; 64 MB are the most that an inspection may take."""
MAX_LINES = 20_000
_PREFIX = re.compile(rb"[\w.-]{1,40}[:|#](?=[{\[])")
"""A version, a time or an id before a JSON document: members of a sorted set are made unique so."""


class Opened(NamedTuple):
    """What a payload holds (None if that is unknown), its encoding, outermost layer first, and whether it was cut."""

    value: Any
    encoding: str
    cut: bool = False


def open_payload(data: bytes) -> Opened:
    """Return the value in a payload.

    Args:
        data: The bytes as Redis has them.
    """
    if data[:1] in (b"{", b"["):
        parsed = parse(data)
        if parsed.fault is None:
            return Opened(parsed.value, "json")
        lines = _lines(data)
        return Opened(lines, "json lines") if lines else Opened(None, "text")
    found = examine(data, keep_bytes=MAX_OPEN_BYTES + 1)
    encoding, inner = str(found), found.inner
    if encoding == "text" and (prefix := _PREFIX.match(data)) and (parsed := parse(data[prefix.end() :])).fault is None:
        return Opened(parsed.value, "prefix > json")
    if len(inner) > MAX_OPEN_BYTES:
        return Opened(None, encoding, cut=True)
    return Opened(_value(inner, found.layers[-1]), encoding)


def _value(data: bytes, encoding: str) -> Any:
    if data[:1] in (b"{", b"[", b'"'):
        parsed = parse(data)
        return _lines(data) if parsed.fault else parsed.value
    try:
        return msgpack.unpack(data) if encoding == "msgpack" else None
    except msgpack.MsgpackFault:
        return None


def _lines(data: bytes) -> list[Any] | None:
    """Return the objects of JSON lines; None if one of the first lines is none."""
    lines = [line for line in data.split(b"\n", MAX_LINES) if line.strip()]
    if len(lines) < 2 or any(parse(line).fault for line in lines[:3]):
        return None
    return [parsed.value for line in lines if not (parsed := parse(line)).fault]


def read_document(raw: RedisValue) -> tuple[Any, list[Problem]]:
    """Return the value of a document, and the problems if it is damaged; None if it is not JSON or msgpack."""
    if raw.kind not in DOCUMENT_KINDS or raw.unread_reason or raw.data[:1] == b"{":
        return read(raw)
    opened = open_payload(raw.data)
    if opened.value is None and opened.encoding in ("text", "empty", "binary"):
        return None, [corrupt(raw.name, raw.data, parse(raw.data))]
    return opened.value, []
