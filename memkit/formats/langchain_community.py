"""The order of lists of LangChain's messages: three libraries write them newest first, one oldest first.

langchain-community's RedisChatMessageHistory and LangChain.js (n8n and Flowise use it) put the newest message at the
head (LPUSH). langchain-google-memorystore-redis appends at the tail (RPUSH). The content decides which it is.
"""

from __future__ import annotations

from collections.abc import Iterable

from memkit.formats.model import SessionValues, Turn, a_dict
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
from memkit.formats.parsing.list_elements import sample
from memkit.readonly.values import RedisValue

STORE, OLDEST_FIRST_STORE = "langchain-community", "google-memorystore"
PREFIX = "message_store:"
_JUDGED = 100
_JUDGED_BYTES = 64 << 10


def _order(raw: RedisValue) -> tuple[str, bool]:
    """Return the order of a list, and whether its content or its library proves it."""
    ends = raw.elements if len(raw.elements) <= 2 * _JUDGED else [*raw.elements[:_JUDGED], *raw.elements[-_JUDGED:]]
    values = (parse(element).value for element in ends if len(element) <= _JUDGED_BYTES)
    found = (typed_turn(value, raw.name) for value in values if isinstance(value, dict))
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


def is_newest_first(raw: RedisValue) -> bool:
    """Return whether the head of a list is its newest message."""
    return _order(raw)[0] == NEWEST_FIRST


def name_of(stored: SessionValues) -> str:
    """Return the store by the order of its list."""
    lists = [raw for raw in stored.keys.values() if raw and raw.kind == "list"]
    return STORE if all(map(is_newest_first, lists)) else OLDEST_FIRST_STORE


def notes(stored: SessionValues) -> Iterable[str]:
    """Yield that an order is not proven, and what Flowise's users should know."""
    for raw in filter(None, stored.keys.values()):
        order, proven = _order(raw)
        if not proven:
            yield f"the order is not known: no time, tool call or system message shows it; read {order}"
        data = [a_dict(value.get("data")) for value in sample(raw)]
        has_tools = any(one.get("tool_calls") or one.get("tool_call_id") for one in data)
        if _is_javascript(raw) and len(raw.elements) > 2 and not has_tools:
            yield "if Flowise wrote this list: its window of k messages is read from the oldest, not the newest"
