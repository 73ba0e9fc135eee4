"""LangChain's ``{"type", "data"}``, which four stores keep, and the order of lists of them.

A reader for these messages alone takes a quarter of the time. langchain-community's RedisChatMessageHistory and
LangChain.js (n8n and Flowise use it) put the newest message at the head (LPUSH); langchain-google-memorystore-redis
appends at the tail (RPUSH). The content decides which it is.
"""

from collections.abc import Iterable
from typing import Any

from memkit.formats.model import SessionValues, Tool, Turn, a_dict, seconds, text_or_none
from memkit.formats.parsing.bounded_json import parse
from memkit.formats.parsing.chat import ROLES, answered, call_parts, calls, flatten, role_of
from memkit.formats.parsing.conversation import (
    NEWEST_FIRST,
    OLDEST_FIRST,
    UNKNOWN_ORDER,
    Entry,
    order_of,
    user_speaks_last,
)
from memkit.formats.parsing.element_shapes import missing, missing_content
from memkit.formats.parsing.list_elements import sample
from memkit.readonly.values import RedisValue

STORE, OLDEST_FIRST_STORE = "langchain-community", "google-memorystore"
PREFIX = "message_store:"
_JUDGED = 100
_JUDGED_BYTES = 64 << 10


def turns(value: dict[str, Any], key: str) -> list[Turn] | str:
    """Return the message of a ``{"type", "data"}``, or what it lacks to be one."""
    lacks = missing(value, ("type",)) or missing(value, ("data",), kind=dict) or missing_content(value["data"])
    if lacks:
        return lacks
    kind, data = value["type"], value["data"]
    role = role_of(kind if kind in ROLES else data.get("role"))
    content = data.get("content")
    text = content if isinstance(content, str) else flatten(content)
    made, invalid, extra = data.get("tool_calls"), data.get("invalid_tool_calls"), data.get("additional_kwargs")
    if role == "tool":
        tools: tuple[Tool, ...] = (answered(data),)
    else:
        tools = calls(made) + calls(invalid) if made or invalid else ()
        tools = tools or (calls(a_dict(extra).get("tool_calls")) if extra else ()) or call_parts(content)
    return [Turn(role, text, tools, seconds(value.get("timestamp")), text_or_none(data.get("id")), key)]


def redis_turns(value: dict[str, Any], key: str) -> list[Turn] | str:
    """Return the message of langchain-redis' document, or what it lacks to be one."""
    found = turns(value, key)
    if isinstance(found, str):
        return found
    by_time = key.rpartition(":")[2].replace(".", "", 1).isdigit()  # before 0.2
    lacks = missing(value, ("session_id",) if by_time else ("message_id", "session_id"))
    return lacks or [found[0]._replace(uid=text_or_none(value.get("message_id")))]


def _order(raw: RedisValue) -> tuple[str, bool]:
    """Return the order of a list, and whether its content or its library proves it."""
    ends = raw.elements if len(raw.elements) <= 2 * _JUDGED else [*raw.elements[:_JUDGED], *raw.elements[-_JUDGED:]]
    values = (parse(element).value for element in ends if len(element) <= _JUDGED_BYTES)
    found = (turns(value, raw.name) for value in values if isinstance(value, dict))
    entries = [Entry(one) for one in found if not isinstance(one, str)]
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
