"""Read whole JSON documents, and what is left of broken ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from memkit.formats.model import Item, Problem, Turn, a_dict, few
from memkit.formats.parsing.bounded_json import Fault, Parsed, parse
from memkit.formats.parsing.element_shapes import kind_of, missing
from memkit.formats.parsing.encodings import encoding_of
from memkit.formats.parsing.list_elements import Convert
from memkit.readonly.values import DOCUMENT_KINDS, RedisValue

_SALVAGE_BYTES = 1 << 20
_SALVAGED = 2_000
_GAP = re.compile(r"[\s,]*")


_parsed: dict[str, tuple[bytes, dict[str, Any]]] = {}


@contextmanager
def parsed_once() -> Iterator[None]:
    """Keep the document that is being recognised, so that each format can look at it without parsing it again."""
    _parsed["document"] = b"", {}
    try:
        yield
    finally:
        _parsed.clear()


def peek(raw: RedisValue) -> dict[str, Any]:
    """Return the document if it is a JSON object, else an empty one; for recognising, so no faults are reported."""
    if raw.kind not in DOCUMENT_KINDS or raw.data[:1] not in (b"{", b"["):
        return {}
    kept = _parsed.get("document")
    if kept and kept[0] is raw.data:
        return kept[1]
    document = a_dict(only_one(parse(raw.data).value))
    if kept:
        _parsed["document"] = raw.data, document
    return document


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
    return None, [*problems, corrupt(raw.name, raw.data, parsed)]


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
    looks = encoding_of(data)
    hint = f"; it looks like {looks}" if looks not in ("text", "binary", "json", "empty") else ""
    where = f"at byte {fault.byte:,} of {len(data):,} ({share:.0%} of it is readable)"
    return Problem("corrupt", name, f"the document is unreadable: {fault.message} {where}{hint}")


def wrong_kind(raw: RedisValue, expected: str) -> Problem:
    """Return the problem of a key that holds another type than the store gives it."""
    return Problem("corrupt", raw.name, f"this key is of type {raw.kind}, and {expected} belongs here: overwritten?")


def misshapen(name: str, lacks: str) -> Problem:
    """Return the problem of a document that is JSON and not what the store writes."""
    return Problem("corrupt", name, f"the document is JSON of another shape than the store's: {lacks}")


def messages(entries: Sequence[Any], key: str, convert: Convert, what: str = "message") -> Iterator[Turn | Problem]:
    """Yield the messages of a document's array, and a problem for each entry that is none.

    Args:
        entries: The array.
        key: The document's key.
        convert: See ``list_elements.turns``.
        what: What an entry is called.
    """
    bad: list[Problem] = []
    for index, entry in enumerate(entries):
        found = convert(entry, key) if isinstance(entry, dict) else f"it is {kind_of(entry)}"
        if isinstance(found, Turn):
            yield found
        elif isinstance(found, str):
            bad.append(Problem("corrupt", key, f"{what} {index:,} of {len(entries):,} (from 0) is none: {found}"))
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


def read_or_salvage(raw: RedisValue, field: str) -> tuple[dict[str, Any], list[Item]]:
    """Return a document, or one made of what can be saved of its array ``field``; and the problems."""
    value, problems = read(raw)
    if value is not None:
        return value, list(problems)
    return {field: list(salvage(raw.data, field))}, list(problems)
