"""LangChain's ``{"type", "data"}``, which four stores keep: a reader for it alone takes a quarter of the time."""

from __future__ import annotations

from typing import Any

from memkit.formats.model import Tool, Turn, a_dict, seconds, text_or_none
from memkit.formats.parsing.chat import ROLES, answered, call_parts, calls, flatten, role_of
from memkit.formats.parsing.element_shapes import missing, missing_content


def typed_turn(value: dict[str, Any], key: str) -> Turn | str:
    """Return the message of a ``{"type", "data"}``, or what it lacks to be one."""
    lacks = missing(value, ("type",)) or missing(value, ("data",), kind=dict) or missing_content(value["data"])
    if lacks:
        return lacks
    kind, data = value["type"], value["data"]
    role = role_of(kind if kind in ROLES else data.get("role"))
    content = data.get("content")
    text = content if isinstance(content, str) else flatten(content)
    return Turn(role, text, _tools(role, data), seconds(value.get("timestamp")), text_or_none(data.get("id")), key)


def _tools(role: str, data: dict[str, Any]) -> tuple[Tool, ...]:
    """Return the call that a tool's result answers, or the calls that any other message makes."""
    if role == "tool":
        return (answered(data),)
    made, invalid, extra = data.get("tool_calls"), data.get("invalid_tool_calls"), data.get("additional_kwargs")
    found = calls(made) + calls(invalid) if made or invalid else ()
    return found or (calls(a_dict(extra).get("tool_calls")) if extra else ()) or call_parts(data.get("content"))


def langchain_redis_turn(value: dict[str, Any], key: str) -> Turn | str:
    """Return the message of langchain-redis' document, or what it lacks to be one."""
    turn = typed_turn(value, key)
    by_time = key.rpartition(":")[2].replace(".", "", 1).isdigit()  # before 0.2
    lacks = missing(value, ("session_id",) if by_time else ("message_id", "session_id"))
    return turn if isinstance(turn, str) else lacks or turn._replace(uid=text_or_none(value.get("message_id")))
