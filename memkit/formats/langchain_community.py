"""Lists of LangChain's messages, ``{"type", "data"}``: written newest first by three libraries, oldest first by one.

langchain-community's RedisChatMessageHistory (default prefix ``message_store:``), LangChain.js (no prefix; n8n and
Flowise use it) put the newest message at the head (LPUSH). langchain-google-memorystore-redis (no prefix) appends at
the tail (RPUSH). The content decides which it is. All set the TTL by an EXPIRE of its own after each write; if that is
lost, the session is persistent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from memkit.formats.model import Format, Item, KeyOwner, Note, SessionValues, Turn, a_dict, split
from memkit.formats.parsing.bounded_json import parse
from memkit.formats.parsing.conversation import (
    NEWEST_FIRST,
    OLDEST_FIRST,
    UNKNOWN_ORDER,
    Entry,
    order_of,
    user_speaks_last,
)
from memkit.formats.parsing.langchain_message import typed_turn
from memkit.formats.parsing.list_elements import sample, turns, votes
from memkit.readonly.values import KeyRequest, RedisValue

STORE, OLDEST_FIRST_STORE = "langchain-community", "google-memorystore"
PREFIX = "message_store:"
_JUDGED = 100
_JUDGED_BYTES = 64 << 10


def names(session: str) -> Iterable[str]:
    """Return the key under langchain-community's prefix and without one."""
    return (PREFIX + session, session)


def recognise(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    """Claim lists of ``{"type": "human" | "ai" | …, "data": {…}}``, and lists with the default name."""
    if not (votes(raw)[STORE] or raw.name.startswith(PREFIX)):
        return None
    prefix, session = split(raw.name, PREFIX, wanted)
    return KeyOwner(STORE, session, prefix, "primary")


def siblings(stored: SessionValues) -> Iterable[KeyRequest]:
    """Return the one key."""
    return (KeyRequest(stored.owner.prefix + stored.owner.session, "primary"),)


def _order(raw: RedisValue) -> tuple[str, bool]:
    """Return the order of a list, and whether its content or its library proves it."""
    ends = raw.elements if len(raw.elements) <= 2 * _JUDGED else [*raw.elements[:_JUDGED], *raw.elements[-_JUDGED:]]
    values = (parse(element).value for element in ends if len(element) <= _JUDGED_BYTES)
    found = [typed_turn(value, raw.name) for value in values if isinstance(value, dict)]
    entries = [Entry((turn,)) for turn in found if isinstance(turn, Turn)]
    order = order_of(entries) if len(entries) > 1 else UNKNOWN_ORDER
    if order != UNKNOWN_ORDER:
        return order, True
    if raw.name.startswith(PREFIX) or _is_javascript(raw) or len(entries) < 2:
        return NEWEST_FIRST, True
    return (NEWEST_FIRST if user_speaks_last(entries) else OLDEST_FIRST), False


def _is_javascript(raw: RedisValue) -> bool:
    """Return whether LangChain.js wrote the list: LangChain for Python repeats the type inside ``data``."""
    return not any("type" in a_dict(value.get("data")) for value in sample(raw))


def _name_of(stored: SessionValues) -> str:
    lists = [raw for raw in stored.keys.values() if raw and raw.kind == "list"]
    return OLDEST_FIRST_STORE if lists and _order(lists[0])[0] == OLDEST_FIRST else STORE


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the list's messages, oldest first."""
    for raw in stored.keys.values():
        if raw:
            order, proven = _order(raw)
            yield from turns(raw, typed_turn, store=STORE, newest_first=order == NEWEST_FIRST)
            if not proven:
                yield Note(f"the order is not known: no time, tool call or system message shows it; read {order}")
            if _is_javascript(raw) and len(raw.elements) > 2 and not any(map(_has_tools, sample(raw))):
                yield Note(
                    "if Flowise wrote this list: its window of k messages is read from the oldest, not the newest"
                )


def _has_tools(value: dict[str, Any]) -> bool:
    data = a_dict(value.get("data"))
    return bool(data.get("tool_calls") or data.get("tool_call_id"))


FORMAT = Format(store=STORE, kinds=("list",), recognise=recognise, siblings=siblings, decode=decode, names=names,
                prefix=PREFIX, name_of=_name_of)  # fmt: skip
