"""Read whole documents: JSON, or what can be opened layer by layer, and what is left of broken ones.

Layers are compression, base64, msgpack, JSON, and one JSON object a line. Serialised objects (pickle, Java, PHP) are
named and never loaded. Every step is bounded: a compressed payload is not unfolded beyond ``MAX_OPEN_BYTES``.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from memkit.formats.model import Problem, Turn, a_dict, few
from memkit.formats.parsing import msgpack
from memkit.formats.parsing.bounded_json import Fault, Parsed, json_start, parse
from memkit.formats.parsing.element_shapes import kind_of, missing
from memkit.formats.parsing.encodings import encoding_of, examine, looks_like, unreadable_cause
from memkit.formats.parsing.list_elements import Convert
from memkit.readonly.values import DOCUMENT_KINDS, RedisValue

_SALVAGE_BYTES = 1 << 20
_SALVAGED = 2_000
_GAP = re.compile(r"[\s,]*")
MAX_OPEN_BYTES = 8 << 20
"""A chat of 8 MB has some 10,000 messages of a model's size; 64 MB are the most that an inspection may take."""
MAX_LINES = 20_000
_PREFIX = re.compile(rb"[\w.-]{1,40}[:|#](?=[{\[])")
"""A version, a time or an id before a JSON document: members of a sorted set are made unique so."""


def peek(raw: RedisValue) -> dict[str, Any]:
    """Return the document if it is a JSON object, else an empty one; for recognising, so no faults are reported."""
    return first_object(raw.data) if raw.kind in DOCUMENT_KINDS and json_start(raw.data) in (b"{", b"[") else {}


@lru_cache(maxsize=1)
def first_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object; each format looks at the document that is being recognised, which is parsed once."""
    return a_dict(only_one(parse(data).value))


def only_one(value: Any) -> Any:
    """Unwrap what JSON.GET with a path answers: a list with the one document in it."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def read(raw: RedisValue) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Return the document, or None and the problem that names which byte is wrong and how much is readable."""
    if raw.unread_reason:
        return None, []  # the reader reports why
    if raw.kind not in DOCUMENT_KINDS:
        return None, [wrong_kind(raw, "a document")]
    parsed = parse(raw.data)
    value = only_one(parsed.value)
    problems = []
    if parsed.nan:
        reason = "the document holds NaN or Infinity, which is not JSON: other readers will refuse it"
        problems.append(Problem("nan", raw.name, reason))
    if isinstance(value, dict):
        return value, problems
    return None, [*problems, _unreadable(raw, parsed)]


def read_with(raw: RedisValue, *fields: str) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Return the document if it has these fields, which are texts; and the problem if it has not, or is unreadable."""
    document, problems = read(raw)
    if document is not None and (lacks := missing(document, fields)):
        return None, [*problems, misshapen(raw.name, lacks)]
    return document, problems


def corrupt(name: str, data: bytes, parsed: Parsed) -> Problem:
    """Return the problem of a document that cannot be parsed."""
    fault = parsed.fault or Fault("no JSON object", 0)
    if fault.byte is None:
        return Problem("truncated", name, f"the document is not shown: {fault.message}")
    share = fault.byte / len(data) if data else 0
    where = f"at byte {fault.byte:,} of {len(data):,} ({share:.0%} of it is readable)"
    return Problem("corrupt", name, f"the document is unreadable: {fault.message} {where}{looks_like(data)}")


def _unreadable(raw: RedisValue, parsed: Parsed) -> Problem:
    """Return the problem of a whole document that is not JSON: it may be of another encoding."""
    if parsed.fault and parsed.fault.byte is None:
        return corrupt(raw.name, raw.data, parsed)
    cause = unreadable_cause(raw.data)
    if cause == "encoding_changed":
        return Problem(cause, raw.name, f"the document is {encoding_of(raw.data)}, and not the store's JSON")
    return corrupt(raw.name, raw.data, parsed)._replace(cause=cause)


def wrong_kind(raw: RedisValue, expected: str) -> Problem:
    """Return the problem of a key that holds another type than the store gives it."""
    return Problem("corrupt", raw.name, f"this key is of type {raw.kind}, and {expected} belongs here: overwritten?")


def misshapen(name: str, lacks: str) -> Problem:
    """Return the problem of a document that is JSON and not what the store writes."""
    return Problem("corrupt", name, f"the document is JSON of another shape than the store's: {lacks}")


def messages(entries: Sequence[Any], key: str, convert: Convert, what: str = "message") -> Iterator[Turn | Problem]:
    """Yield the messages of a document's array, and a problem for each entry that is not a message.

    Args:
        entries: The array.
        key: The document's key.
        convert: See ``list_elements.turns``.
        what: What an entry is called.
    """
    bad: list[Problem] = []
    for index, entry in enumerate(entries):
        found = convert(entry, key) if isinstance(entry, dict) else f"it is {kind_of(entry)}"
        if isinstance(found, str):
            place = f"entry {index:,} of {len(entries):,} (counted from 0)"
            bad.append(Problem("corrupt", key, f"{place} is not a valid {what}: {found}"))
        elif found is not None:
            yield from found
    yield from few(bad)


def salvage(data: bytes, field: str) -> Iterator[dict[str, Any]]:
    """Yield the whole objects that a broken document still has in one of its arrays; 2,000 of its first MB at most."""
    text = data[:_SALVAGE_BYTES].decode("utf-8", "replace")
    start = re.search(rf'"{field}"\s*:\s*\[', text)
    at = start.end() if start else len(text)
    decoder = json.JSONDecoder()
    for _ in range(_SALVAGED):
        gap = _GAP.match(text, at)
        try:
            value, at = decoder.raw_decode(text, gap.end() if gap else at)
        except (ValueError, RecursionError):
            return
        if isinstance(value, dict):
            yield value


class Opened(NamedTuple):
    """What a payload holds (None if that is unknown), its encoding, outermost layer first, and whether it was cut."""

    value: Any
    encoding: str
    cut: bool = False


def open_payload(data: bytes) -> Opened:
    """Return the value in a payload, the bytes as Redis has them."""
    if json_start(data) in (b"{", b"["):
        value = _json_or_lines(data)
        if value is not None or b"\0" not in data[:4]:
            return Opened(value, "text" if value is None else "json")
    found = examine(data, keep_bytes=MAX_OPEN_BYTES + 1)
    encoding, inner = str(found), found.inner
    if encoding == "text" and (prefix := _PREFIX.match(data)) and (parsed := parse(data[prefix.end() :])).fault is None:
        return Opened(parsed.value, "prefix > json")
    if len(inner) > MAX_OPEN_BYTES:
        return Opened(None, encoding, cut=True)
    if json_start(inner) in (b"{", b"[", b'"'):
        return Opened(_json_or_lines(inner), encoding)
    value = None
    with suppress(msgpack.MsgpackFault):
        value = msgpack.unpack(inner) if found.layers[-1] == "msgpack" else None
    return Opened(value, encoding)


def _json_or_lines(data: bytes) -> Any:
    """Return a JSON value, or the objects of JSON lines; None if one of the first lines is none."""
    parsed = parse(data)
    if parsed.fault is None:
        return parsed.value
    lines = [line for line in data.split(b"\n", MAX_LINES) if line.strip()]
    if len(lines) < 2 or any(parse(line).fault for line in lines[:3]):
        return None
    return [parsed.value for line in lines if not (parsed := parse(line)).fault]


def read_document(raw: RedisValue) -> tuple[Any, list[Problem]]:
    """Return the value of a document, and the problems if it is damaged; None if it is not JSON or msgpack."""
    if raw.kind not in DOCUMENT_KINDS or raw.unread_reason or json_start(raw.data) == b"{":
        return read(raw)
    opened = open_payload(raw.data)
    is_unknown = opened.value is None and opened.encoding in ("text", "empty", "binary")
    is_changed = is_unknown or opened.encoding.startswith("json string")
    return opened.value, [_unreadable(raw, parse(raw.data))] if is_changed else []
