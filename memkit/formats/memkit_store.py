"""memkit's own MemoryStore: one LIST a session, a header and then what each call added; see memkit.store.encoding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from memkit.errors import DecodeError
from memkit.formats.model import Hit, Item, Known, Meant, Note, Problem, Run, Turn, seconds, split
from memkit.formats.parsing.bounded_json import parse
from memkit.formats.parsing.chat import chat_columns, chat_turn, dumped
from memkit.formats.parsing.list_elements import BLOCK, Faults, parsed, plain_columns, votes
from memkit.readonly.values import KeyRequest, RedisValue, to_name
from memkit.store.encoding import decode_header, is_header
from memkit.store.store import vectors_key

STORE = "memkit"
SCANNED = False
KINDS = ("list",)
PREFIX = "session:"
_STAMP = re.compile(rb'"[\w.-]{8}([0-9a-f]{1,13})\.([0-9a-f]{1,13})(?:\.[\w-]+)?",', re.ASCII)


def names(session: str) -> Iterable[str]:
    """Return the name under the prefix that memkit's own examples use; a store's prefix is always chosen."""
    return (PREFIX + session,)


def recognise(raw: RedisValue, wanted: str | None) -> Hit | None:
    """Claim lists that begin with a header of any schema, or whose other elements are memkit's, unless most are not."""
    ends = [*raw.elements[:3], *raw.elements[3:][-3:]]
    begins = bool(ends) and is_header(ends[0])
    stamped = begins + sum(1 for element in ends if _STAMP.match(element))
    saved = sum(1 for element in ends if element.startswith(b"["))
    if not stamped or stamped + saved + begins <= votes(raw).total():
        return None
    prefix, session = split(raw.name, PREFIX, wanted)
    return Hit(STORE, session, prefix, "primary")


def wants(known: Known) -> Iterable[KeyRequest]:
    """Return the session's key, and its vectors' where the header says that there are some."""
    name = known.hit.prefix + known.hit.session
    yield KeyRequest(name, "primary")
    raw = known.there(name)
    vectors = _vectors(name)
    if raw and vectors and b'"vectors":1' in raw.elements[0][:4096]:
        yield KeyRequest(vectors, "vectors", kind="string")


def _vectors(name: str) -> str | None:
    try:
        return to_name(vectors_key(name))
    except ValueError:
        return None  # a name that is not UTF-8 is none of memkit's


def decode(known: Known) -> Iterator[Item]:
    """Yield what the header means, then the messages."""
    name = known.hit.prefix + known.hit.session
    raw = known.there(name)
    if raw and raw.elements:
        yield from _header(raw)
        yield from _messages(raw)
    vectors = _vectors(name)
    if vectors and vectors in known.keys and known.there(vectors) is None:
        yield Problem("dangling", vectors, "the session had vectors and they are gone; recoverable: compute them again")


def _header(raw: RedisValue) -> Iterator[Item]:
    head = raw.elements[0]
    try:
        header = decode_header(head, "")
    except (DecodeError, ValueError) as error:
        newer = "newer memkit" in str(error)
        cause = "unknown_schema" if newer else "corrupt"
        says = "was written by a newer memkit; upgrade this one" if newer else f"is damaged ({len(head):,} bytes)"
        yield Problem(cause, raw.name, f"element 0, the header, {says}; the messages after it are readable")
        return
    yield Meant(header.policy.ttl_ms)
    yield Note(f"the session's own policy: {header.policy}")


def _created_ms(raw: RedisValue) -> int:
    try:
        created_ms = decode_header(raw.elements[0], "").created_ms
    except (DecodeError, ValueError):
        return 0
    return created_ms if isinstance(created_ms, int) else 0


def _messages(raw: RedisValue) -> Iterator[Item]:
    created_ms = _created_ms(raw)
    first = 0 if _STAMP.match(raw.elements[0]) else 1
    faults = Faults(raw, len(raw.elements) - first, STORE)
    for start in range(first, len(raw.elements), BLOCK):
        block = [_element(element, created_ms) for element in raw.elements[start : start + BLOCK]]
        run = _run(block, raw.name)
        if run:
            yield run
            continue
        for index, element in enumerate(block, start):
            if not element.marked:
                faults.add("corrupt", index, "has no stamp before its messages: written by something else")
            value = faults.value(index, element.body, after=len(raw.elements[index]) - len(element.body))
            for item in _turns(value, element.at_s, raw.name):
                if isinstance(item, str):
                    faults.foreign(index, {}, item)
                else:
                    yield item
    yield from faults.problems()


class _Element(NamedTuple):
    """An element's messages, still JSON, and what its stamp says; ``marked``: it has one, or is a save's list."""

    body: bytes
    at_s: float | None
    marked: bool


def _element(element: bytes, created_ms: int) -> _Element:
    stamp = _STAMP.match(element)
    if stamp is None:
        return _Element(element, None, element.startswith(b"["))
    return _Element(element[stamp.end() :], seconds(created_ms + int(stamp[2], 16)) if created_ms else None, True)


def _run(block: list[_Element], key: str) -> Run | None:
    """Return a block's messages, where all are a role and a text."""
    values = parsed([element.body for element in block]) if all(element.marked for element in block) else None
    if values is None:
        return None
    items = [value if isinstance(value, list) else [value] for value in values]
    columns = plain_columns(list(chain.from_iterable(items)), chat_columns)
    at_s = [element.at_s for element, each in zip(block, items, strict=True) for _ in each]
    return Run(columns.roles, columns.texts, key, at_s) if columns else None


def _turns(value: Any, at_s: float | None, key: str) -> Iterator[Turn | Run | str]:
    """Yield an element's messages: one or a list of them, each perhaps as a text that holds its JSON."""
    if value is None:
        return
    items = value if isinstance(value, list) else [value]
    columns = plain_columns(items, chat_columns)
    if columns:
        yield Run(columns.roles, columns.texts, key, [at_s] * len(items))
        return
    for item in items:
        message = parse(item.encode("utf-8", "surrogatepass")).value if isinstance(item, str) else item
        yield _turn(message, at_s, key) if isinstance(message, dict) else "a message in it is no JSON object"


def _turn(message: dict[str, Any], at_s: float | None, key: str) -> Turn:
    """Return a message; one without content is any object that an application keeps, and shown as it stands."""
    turn = chat_turn(message, key)
    text = turn.text if turn.tools or message.get("content") is not None else dumped(message)
    return turn._replace(at_s=at_s, text=text)
