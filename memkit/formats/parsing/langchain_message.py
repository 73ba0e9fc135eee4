"""LangChain's messages in their three serialised forms, shared by the five stores that keep them."""

from __future__ import annotations

from typing import Any

from memkit.formats.model import Tool, Turn, a_dict, one_of, text_or_none
from memkit.formats.parsing.chat import ROLES, answered, call_parts, calls, flatten, role_of
from memkit.formats.parsing.element_shapes import missing, missing_content


def typed_turn(value: dict[str, Any], key: str, at_s: float | None = None) -> Turn | str:
    """Return the message of a ``{"type", "data"}``, or what it lacks to be one."""
    lacks = missing(value, ("type",)) or missing(value, ("data",), kind=dict) or missing_content(value["data"])
    return lacks or message_turn(value["type"], value["data"], key, at_s)


def message_turn(kind: Any, data: dict[str, Any], key: str, at_s: float | None = None) -> Turn:
    """Return a message of a type (``human``, ``ai``, ``tool``, …; class names too) and its fields."""
    role = role_of(data.get("role") if kind in ("chat", "ChatMessage") else kind)
    content = data.get("content")
    tools = tools_of(role, data)
    return Turn(
        role, content if isinstance(content, str) else flatten(content), tools, at_s, text_or_none(data.get("id")), key
    )


def tools_of(role: str, data: dict[str, Any]) -> tuple[Tool, ...]:
    """Return the call that a tool's result answers, or the calls that any other message makes."""
    if role == "tool":
        return (answered(data),)
    made, invalid, extra = data.get("tool_calls"), data.get("invalid_tool_calls"), data.get("additional_kwargs")
    found = calls(made) + calls(invalid) if made or invalid else ()
    return found or (calls(a_dict(extra).get("tool_calls")) if extra else ()) or call_parts(data.get("content"))


def is_constructed(value: Any) -> bool:
    """Return whether a value is LangChain's ``{"lc": 1, "type": "constructor", "id": [...], "kwargs": {…}}``."""
    return isinstance(value, dict) and "lc" in value and isinstance(value.get("kwargs"), dict)


def constructed_turn(value: dict[str, Any], key: str) -> Turn | str:
    """Return the message of a constructor form, or what it lacks to be one."""
    path, data = value.get("id"), value["kwargs"]
    lacks = missing_content(data)
    if lacks:
        return lacks
    name = path[-1] if isinstance(path, list) and path else data.get("type")
    return message_turn(name if one_of(name, ROLES) or name == "ChatMessage" else data.get("type"), data, key)
