"""ag2's Redis stream: one LIST of events a session; ``__event__`` is the event's class path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from memkit.formats.model import Hit, Item, Known, Tool, Turn, a_dict, many_seconds, seconds, split, text_or_none
from memkit.formats.parsing.chat import Columns, answered, call_parts, calls, columns, dumped, flatten
from memkit.formats.parsing.element_shapes import missing
from memkit.formats.parsing.list_elements import turns, votes
from memkit.readonly.values import KeyRequest, RedisValue

STORE = "ag2"
SCANNED = False
KINDS = ("list",)
PREFIX = "ag2:stream:"
_ROLES = {"input_events": "user", "TextInput": "user", "HumanMessage": "user", "SystemEvent": "system"}
_SPOKEN = ("content", "text", "parts", "message")


def names(session: str) -> Iterable[str]:
    """Return the one key's default name."""
    return (PREFIX + session,)


def recognise(raw: RedisValue, wanted: str | None) -> Hit | None:
    """Claim lists of objects with an ``__event__``, or with the default name."""
    if not (votes(raw)[STORE] or raw.name.startswith(PREFIX)):
        return None
    prefix, session = split(raw.name, PREFIX, wanted)
    return Hit(STORE, session, prefix, "primary")


def wants(known: Known) -> Iterable[KeyRequest]:
    """Return the one key."""
    return (KeyRequest(known.hit.prefix + known.hit.session, "primary"),)


def decode(known: Known) -> Iterator[Item]:
    """Yield the events that are part of the dialogue, oldest first."""
    for raw in known.keys.values():
        if raw:
            yield from turns(raw, _turn, store=STORE, plain=_plain)


_Row = tuple[str, Any, tuple[Tool, ...]]
_ROWS: dict[str, Callable[[dict[str, Any]], _Row]] = {
    "ag2.events.input_events.TextInput": lambda event: ("user", event["content"], ()),
    "ag2.events.tool_events.ToolCallEvent": lambda event: ("assistant", "", (Tool(event["name"], event["id"]),)),
    "ag2.events.tool_events.ToolResultEvent": lambda event: (
        "tool", flatten(event["result"]["data"]["parts"]), (Tool(event["name"], event["parent_id"]),),
    ),
}  # fmt: skip


def _plain(events: list[Any]) -> Columns | None:
    """Return the columns of what users said, tool calls and their results."""
    rows = [_ROWS[event["__event__"]](event) for event in events]
    roles, texts, tools = map(list, zip(*rows, strict=True))
    made = columns(roles, texts, tools)
    return made and made._replace(at_s=many_seconds([event["created_at"] for event in events]))


def _turn(event: dict[str, Any], key: str) -> Turn | str | None:
    lacks = missing(event, ("__event__",))
    if lacks:
        return lacks
    path: str = event["__event__"]
    name, at_s = path.rpartition(".")[2], seconds(event.get("created_at"))
    if name == "ToolCallEvent":
        tool = Tool(text_or_none(event.get("name")), text_or_none(event.get("id")))
        return missing(event, ("id", "name")) or Turn("assistant", "", (tool,), at_s, None, key)
    if "ToolResult" in name or "ToolError" in name:
        return _result(event, name, at_s, key)
    return _spoken(event, path, at_s, key)


def _result(event: dict[str, Any], name: str, at_s: float | None, key: str) -> Turn | str:
    lacks = missing(event, ("parent_id",)) if name == "ToolResultEvent" else None
    if lacks or (name == "ToolResultEvent" and "result" not in event):
        return lacks or "it has no result"
    result = event.get("result", event.get("content"))
    parts = a_dict(a_dict(result).get("data")).get("parts", a_dict(result).get("parts"))
    text = flatten(parts) if parts is not None else dumped(result)
    tool = answered(event)._replace(call_id=text_or_none(event.get("parent_id")))
    return Turn("tool", text, (tool,), at_s, None, key)


def _spoken(event: dict[str, Any], path: str, at_s: float | None, key: str) -> Turn | str | None:
    *_, name = where = path.split(".")
    role = next((_ROLES[part] for part in where if part in _ROLES), None)
    body = next((event[field] for field in _SPOKEN if event.get(field) is not None), None)
    tools = calls(event.get("tool_calls")) or call_parts(body)
    if body is None and not tools:
        # Without a role it is an event about the run, not of the dialogue.
        return "it has no content" if role else None
    role = role or ("assistant" if name.startswith("Model") else "other")
    return Turn(role, flatten(body), tools, at_s, None, key)
