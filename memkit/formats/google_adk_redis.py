"""google-adk-redis: one STRING a session, the whole of it as one JSON document, ``session:<app>:<user>:<id>``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from memkit.formats.chat import dumped, flatten, role_of
from memkit.formats.documents import peek, read_or_salvage
from memkit.formats.model import Hit, Item, Known, Raw, Tool, Turn, Want, a_dict, a_list, seconds, text_or_none

STORE = "google-adk-redis"
SCANNED = False
KINDS = ("string",)
PREFIX = "session:"
_STARTS = (b'{"id"', b'{"app_name"')
_CALLED, _ANSWERED = ("function_call", "functionCall"), ("function_response", "functionResponse")


def names(_session: str) -> Iterable[str]:
    """Return nothing: application and user stand in the key and cannot be guessed."""
    return ()


def recognise(raw: Raw, wanted: str | None) -> Hit | None:
    """Claim documents with ``app_name`` and ``events``, and broken ones with a key of the default form."""
    document = peek(raw)
    named = raw.name.startswith(PREFIX) and raw.name.count(":") >= 3
    if not ({"app_name", "events"} <= document.keys() or (named and raw.data.startswith(_STARTS))):
        return None
    session = text_or_none(document.get("id")) or wanted or raw.name.split(":", 3)[-1]
    return Hit(STORE, session, raw.name.removesuffix(session), "primary")


def wants(known: Known) -> Iterable[Want]:
    """Return nothing beyond the key that was found: a session has one."""
    return (Want(name, "primary") for name in known.keys)


def decode(known: Known) -> Iterator[Item]:
    """Yield the events that say something, oldest first; of a broken document those before the break."""
    for raw in known.keys.values():
        if raw:
            document, problems = read_or_salvage(raw, "events")
            yield from problems
            for event in a_list(document.get("events")):
                turn = _turn(event, raw.name) if isinstance(event, dict) else None
                if turn:
                    yield turn


def _turn(event: dict[str, Any], key: str) -> Turn | None:
    content = a_dict(event.get("content"))
    parts = [part for part in a_list(content.get("parts")) if isinstance(part, dict)]
    if not parts:
        return None  # a change of state, not a message
    made, answered = _tools(parts, _CALLED), _tools(parts, _ANSWERED)
    role = "tool" if answered else role_of(content.get("role") or event.get("author"))
    shown = [_shown(part) for part in parts if not any(field in part for field in _CALLED)]
    uid = text_or_none(event.get("id"))
    return Turn(role, flatten(shown), answered or made, seconds(event.get("timestamp")), uid, key)


def _tools(parts: list[dict[str, Any]], fields: tuple[str, str]) -> tuple[Tool, ...]:
    found = (a_dict(part[field]) for part in parts for field in fields if field in part)
    return tuple(Tool(text_or_none(call.get("name")), text_or_none(call.get("id"))) for call in found)


def _shown(part: dict[str, Any]) -> Any:
    response = next((a_dict(part[field]).get("response") for field in _ANSWERED if field in part), None)
    if response is None:
        return part
    # A plain result is wrapped as {"result": …} by the library; anything else is the tool's own object.
    alone = response["result"] if isinstance(response, dict) and response.keys() == {"result"} else response
    return dumped(alone)
