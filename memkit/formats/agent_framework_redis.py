"""agent-framework-redis: one LIST a session; the id stands base32-encoded at the end of the key.

The key is ``chat_messages|v2|<tenant>|<app>|<user>|redis_memory|<session>``; a part that is not set is ``~none``.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from typing import Any

from memkit.formats.model import Format, Item, KeyOwner, Problem, SessionValues, Tool, Turn, a_list, text_or_none
from memkit.formats.parsing.chat import dumped, flatten, role_of
from memkit.formats.parsing.element_shapes import missing
from memkit.formats.parsing.list_elements import turns, votes
from memkit.readonly.values import KeyRequest, RedisValue, to_bytes, to_name

STORE = "agent-framework-redis"
PREFIX = "chat_messages|"
ENCODED = "~redis-session-"
KNOWN_VERSION = 2
_VERSION = re.compile(r"chat_messages\|v(\d{1,9})\|", re.ASCII)


def encoded(session: str) -> str:
    """Return how an id is written at the end of a key; what SCAN has to look for."""
    return ENCODED + base64.b32encode(to_bytes(session)).decode().rstrip("=").lower()


def recognise(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    """Claim lists of ``{"type": "message", "contents": […]}``, or with the default name."""
    if not (raw.name.startswith(PREFIX) or votes(raw)[STORE]):
        return None
    prefix, mark, tail = raw.name.rpartition(ENCODED)
    if mark and (session := _decoded(tail)):
        return KeyOwner(STORE, session, prefix, "primary")
    if wanted and raw.name.endswith(wanted):
        return KeyOwner(STORE, wanted, raw.name.removesuffix(wanted), "primary")
    head, bar, last = raw.name.rpartition("|")
    return KeyOwner(STORE, last, head + bar, "primary")


def siblings(stored: SessionValues) -> Iterable[KeyRequest]:
    """Return nothing beyond the key that was found: a session has one."""
    return (KeyRequest(name, "primary") for name in stored.keys)


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the list's messages from head to tail."""
    for raw in stored.keys.values():
        if raw:
            version = _VERSION.match(raw.name)
            if version and int(version[1]) > KNOWN_VERSION:
                reason = f"the key is of layout version {int(version[1])}, and those up to {KNOWN_VERSION} can be read"
                yield Problem("unknown_schema", raw.name, reason)
            yield from turns(raw, _turn, store=STORE)


def _decoded(tail: str) -> str:
    try:
        return to_name(base64.b32decode(tail.upper() + "=" * (-len(tail) % 8)))
    except (binascii.Error, ValueError):
        return ""


def _turn(value: dict[str, Any], key: str) -> Turn | str:
    lacks = missing(value, ("role",)) or missing(value, ("contents",), kind=list)
    if lacks:
        return lacks
    contents = [part for part in a_list(value.get("contents")) if isinstance(part, dict)]
    results = [part for part in contents if part.get("type") == "function_result"]
    made = [part for part in contents if part.get("type") == "function_call"]
    shown = [_shown(part) for part in contents if part not in made]
    tools = tuple(Tool(text_or_none(part.get("name")), text_or_none(part.get("call_id"))) for part in results or made)
    uid = text_or_none(value.get("message_id"))
    return Turn("tool" if results else role_of(value.get("role")), flatten(shown), tools, None, uid, key)


def _shown(part: dict[str, Any]) -> Any:
    if part.get("type") != "function_result":
        return part
    return flatten(part["items"]) if part.get("items") else dumped(part.get("result"))


FORMAT = Format(
    store=STORE, kinds=("list",), recognise=recognise, siblings=siblings, decode=decode, prefix=PREFIX, ttl_option=False
)
