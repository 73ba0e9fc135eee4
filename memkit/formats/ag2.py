"""ag2's Redis stream: one LIST of events a session; ``__event__`` is the event's class path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from memkit.formats.chat import answered, call_parts, calls, dumped, flatten
from memkit.formats.elements import sample, turns
from memkit.formats.model import Hit, Item, Known, Raw, Tool, Turn, Want, a_dict, seconds, split, text_or_none

STORE = "ag2"
SCANNED = False
KINDS = ("list",)
PREFIX = "ag2:stream:"
_ROLES = {"input_events": "user", "TextInput": "user", "HumanMessage": "user", "SystemEvent": "system"}
_SPOKEN = ("content", "text", "parts", "message")


def names(session: str) -> Iterable[str]:
    """Return the one key's default name."""
    return (PREFIX + session,)


def recognise(raw: Raw, wanted: str | None) -> Hit | None:
    """Claim lists of objects with an ``__event__``, or with the default name."""
    if not (any("__event__" in value for value in sample(raw)) or raw.name.startswith(PREFIX)):
        return None
    prefix, session = split(raw.name, PREFIX, wanted)
    return Hit(STORE, session, prefix, "primary")


def wants(known: Known) -> Iterable[Want]:
    """Return the one key."""
    return (Want(known.hit.prefix + known.hit.session, "primary"),)


def decode(known: Known) -> Iterator[Item]:
    """Yield the events that are part of the dialogue, oldest first."""
    for raw in known.keys.values():
        if raw:
            yield from turns(raw, _turn)


def _turn(event: dict[str, Any], key: str) -> Turn | None:
    path = event.get("__event__")
    name = path.rpartition(".")[2] if isinstance(path, str) else ""
    at_s = seconds(event.get("created_at"))
    if name == "ToolCallEvent":
        tool = Tool(text_or_none(event.get("name")), text_or_none(event.get("id")))
        return Turn("assistant", "", (tool,), at_s, None, key)
    if "ToolResult" in name or "ToolError" in name:
        result = event.get("result", event.get("content"))
        parts = a_dict(a_dict(result).get("data")).get("parts", a_dict(result).get("parts"))
        text = flatten(parts) if parts is not None else dumped(result)
        tool = answered(event)._replace(call_id=text_or_none(event.get("parent_id")))
        return Turn("tool", text, (tool,), at_s, None, key)
    return _spoken(event, name, at_s, key)


def _spoken(event: dict[str, Any], name: str, at_s: float | None, key: str) -> Turn | None:
    path = event.get("__event__")
    where = path.split(".") if isinstance(path, str) else []
    role = next((_ROLES[part] for part in where if part in _ROLES), None)
    if role is None:
        role = "assistant" if name.startswith("Model") else "other"
    body = next((event[field] for field in _SPOKEN if event.get(field) is not None), None)
    tools = calls(event.get("tool_calls")) or call_parts(body)
    if body is None and not tools:
        return None  # an event about the run, not of the dialogue
    return Turn(role, flatten(body), tools, at_s, None, key)
