"""langchain-redis: one JSON document a message, ``chat:<id>:<ULID>``, each with a TTL of its own that nothing renews.

The library drops an assistant's tool calls when it writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from memkit.formats.model import Format, Item, KeyOwner, Note, Problem, SessionValues, Turn, seconds, text_or_none
from memkit.formats.parsing.documents import misshapen, peek, read
from memkit.formats.parsing.element_shapes import missing
from memkit.formats.parsing.langchain_message import typed_turn
from memkit.readonly.values import DOCUMENT_KINDS, KeyRequest, RedisValue

STORE = "langchain-redis"
PREFIX = "chat:"
FIELDS = {"type", "data", "message_id", "session_id"}
_ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}", re.ASCII)


def recognise(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    """Claim documents with a type, data, message id and session id; others by their name, which ends with a ULID."""
    document = peek(raw)
    head, _, tail = raw.name.rpartition(":")
    asked = bool(wanted) and head.endswith(f":{wanted}")
    if document.keys() >= FIELDS:
        session = str(document["session_id"])
    elif _ULID.fullmatch(tail) and (asked or head.startswith(PREFIX)):
        session = wanted if wanted and asked else head.removeprefix(PREFIX)
    else:
        return None
    return KeyOwner(STORE, session, head.removesuffix(session), "message")


def siblings(stored: SessionValues) -> Iterable[KeyRequest]:
    """Return the messages that were found: nothing lists them."""
    return (KeyRequest(name, "message") for name in stored.keys)


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the messages in the order of their timestamps."""
    found: list[tuple[float, Turn]] = []
    for raw in stored.keys.values():
        if raw:
            turn, problems = _turn(raw)
            yield from problems
            if turn:
                found.append((turn.at_s or 0.0, turn))
    found.sort(key=lambda pair: (pair[0], pair[1].uid or ""))
    yield from (turn for _, turn in found)
    if any(turn.role == "tool" for _, turn in found):
        yield Note("langchain-redis does not store an assistant's tool calls: results stand alone, which is not damage")


def _turn(raw: RedisValue) -> tuple[Turn | None, list[Problem]]:
    document, problems = read(raw)
    if document is None:
        return None, problems
    turn = typed_turn(document, raw.name, seconds(document.get("timestamp")))
    lacks = turn if isinstance(turn, str) else missing(document, ("message_id", "session_id"))
    if lacks:
        problems.append(misshapen(raw.name, lacks))
    return None if isinstance(turn, str) else turn._replace(uid=text_or_none(document.get("message_id"))), problems


FORMAT = Format(
    store=STORE,
    kinds=DOCUMENT_KINDS,
    recognise=recognise,
    siblings=siblings,
    decode=decode,
    scanned=True,
    loses_calls=True,
    prefix=PREFIX,
)
