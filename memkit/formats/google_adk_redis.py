"""google-adk-redis: one STRING a session, the whole of it as one JSON document, ``session:<app>:<user>:<id>``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from memkit.formats.model import (
    Format,
    Item,
    KeyOwner,
    SessionValues,
    Tool,
    Turn,
    a_dict,
    a_list,
    seconds,
    text_or_none,
)
from memkit.formats.parsing.chat import dumped, flatten, role_of
from memkit.formats.parsing.documents import messages, misshapen, peek, read_or_salvage
from memkit.formats.parsing.element_shapes import kind_of, missing
from memkit.readonly.values import KeyRequest, RedisValue

STORE = "google-adk-redis"
PREFIX = "session:"
_STARTS = (b'{"id"', b'{"app_name"')
_NOTHING = (b"", b"null", b"{}", b"[]")
_CALLED, _ANSWERED = ("function_call", "functionCall"), ("function_response", "functionResponse")


def recognise(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    """Claim documents with ``app_name`` and ``events``, and broken or empty ones with a key of the default form."""
    document = peek(raw)
    if not ({"app_name", "events"} <= document.keys() or (_is_named(raw) and _is_broken(raw))):
        return None
    mine = wanted if wanted and raw.name.endswith(f":{wanted}") else None
    session = text_or_none(document.get("id")) or mine or raw.name.split(":", 3)[-1]
    return KeyOwner(STORE, session, raw.name.removesuffix(session), "primary")


def _is_named(raw: RedisValue) -> bool:
    return raw.name.startswith(PREFIX) and raw.name.count(":") >= 3


def _is_broken(raw: RedisValue) -> bool:
    return raw.data.startswith(_STARTS) or (raw.data.strip() in _NOTHING and not raw.unread_reason)


def siblings(stored: SessionValues) -> Iterable[KeyRequest]:
    """Return nothing beyond the key that was found: a session has one."""
    return (KeyRequest(name, "primary") for name in stored.keys)


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the events that say something, oldest first; of a broken document those before the break."""
    for raw in stored.keys.values():
        if raw:
            document, problems = read_or_salvage(raw, "events")
            yield from problems
            lacks = missing(document, ("events",), kind=list)
            if lacks:
                yield misshapen(raw.name, lacks)
            yield from messages(a_list(document.get("events")), raw.name, _turn, "event")


def _lacks(event: dict[str, Any]) -> str | None:
    content = event.get("content")
    if content is None:  # a change of state, not a message
        return None if event.get("author") or event.get("actions") else "it has no content and no author"
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(parts, list | None):
        return f"its content is {kind_of(content)}" if parts is None else f"its parts are {kind_of(parts)}"
    wrong = next((part for part in parts or () if not isinstance(part, dict)), None)
    return None if wrong is None else f"a part of it is {kind_of(wrong)}"


def _turn(event: dict[str, Any], key: str) -> Turn | str | None:
    lacks = _lacks(event)
    content = a_dict(event.get("content"))
    parts = a_list(content.get("parts"))
    if lacks or not parts:
        return lacks
    made, answered = _tools(parts, _CALLED), _tools(parts, _ANSWERED)
    role = "tool" if answered else role_of(content.get("role") or event.get("author"))
    shown = [_shown(part) for part in parts if not any(part.get(field) for field in _CALLED)]
    uid = text_or_none(event.get("id"))
    return Turn(role, flatten(shown), answered or made, seconds(event.get("timestamp")), uid, key)


def _tools(parts: list[dict[str, Any]], fields: tuple[str, str]) -> tuple[Tool, ...]:
    found = (a_dict(part[field]) for part in parts for field in fields if part.get(field))
    return tuple(Tool(text_or_none(call.get("name")), text_or_none(call.get("id"))) for call in found)


def _shown(part: dict[str, Any]) -> Any:
    response = next((a_dict(part[field]).get("response") for field in _ANSWERED if part.get(field)), None)
    if response is None:
        return part
    # A plain result is wrapped as {"result": …} by the library; anything else is the tool's own object.
    alone = response["result"] if isinstance(response, dict) and response.keys() == {"result"} else response
    return dumped(alone)


FORMAT = Format(store=STORE, kinds=("string",), recognise=recognise, siblings=siblings, decode=decode, prefix=PREFIX)
