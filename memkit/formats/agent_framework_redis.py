"""agent-framework-redis: one LIST a session; the id stands base32-encoded at the end of the key.

The key is ``chat_messages|v2|<tenant>|<app>|<user>|redis_memory|<session>``; a part that is not set is ``~none``.
"""

import base64
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from memkit.formats.model import NO_TTL_OPTION, Format, Item, KeyOwner, Problem, SessionValues, Turn
from memkit.formats.parsing.any_message import read_any
from memkit.formats.parsing.element_shapes import SHAPES, missing
from memkit.formats.parsing.list_elements import most_are, turns
from memkit.readonly.values import RedisValue, to_bytes, to_name

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
    if not most_are(raw, SHAPES[STORE], named=raw.name.startswith(PREFIX)):
        return None
    prefix, mark, tail = raw.name.rpartition(ENCODED)
    with suppress(ValueError):
        session = to_name(base64.b32decode(tail.upper() + "=" * (-len(tail) % 8)))
        if mark and session:
            return KeyOwner(STORE, session, prefix, "primary")
    if wanted and raw.name.endswith(wanted):
        return KeyOwner(STORE, wanted, raw.name.removesuffix(wanted), "primary")
    head, bar, last = raw.name.rpartition("|")
    return KeyOwner(STORE, last, head + bar, "primary")


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the list's messages from head to tail."""
    for raw in stored.keys.values():
        if raw:
            version = _VERSION.match(raw.name)
            if version and int(version[1]) > KNOWN_VERSION:
                reason = f"the key is of layout version {int(version[1])}, and those up to {KNOWN_VERSION} can be read"
                yield Problem("unknown_schema", raw.name, reason)
            yield from turns(raw, _turns, store=STORE)


def _turns(value: dict[str, Any], key: str) -> Sequence[Turn] | str:
    return missing(value, ("role",)) or missing(value, ("contents",), kind=list) or read_any(value, key)


FORMAT = Format(
    store=STORE, kinds=("list",), recognise=recognise, decode=decode, prefix=PREFIX, ttl_option=NO_TTL_OPTION
)
