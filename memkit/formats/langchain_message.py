"""LangChain's messages in their three serialised forms, shared by the five stores that keep them."""

from __future__ import annotations

from typing import Any

from memkit.formats.chat import ROLES, answered, call_parts, calls, flatten, role_of
from memkit.formats.model import Tool, Turn, a_dict, text_or_none

TYPES = frozenset(name for name in ROLES if not name.endswith("Message")) | {"chat", "remove"}


def message_turn(kind: Any, data: dict[str, Any], key: str, at_s: float | None = None) -> Turn:
    """Return a message of a type (``human``, ``ai``, ``tool``, …; class names too) and its fields."""
    role = role_of(data.get("role") if kind in ("chat", "ChatMessage") else kind)
    content = data.get("content")
    if role == "tool":
        tools: tuple[Tool, ...] = (answered(data),)
    else:
        tools = _calls(data) or call_parts(content)
    return Turn(role, flatten(content), tools, at_s, text_or_none(data.get("id")), key)


def _calls(data: dict[str, Any]) -> tuple[Tool, ...]:
    found = calls(data.get("tool_calls")) + calls(data.get("invalid_tool_calls"))
    return found or calls(a_dict(data.get("additional_kwargs")).get("tool_calls"))


def is_constructed(value: Any) -> bool:
    """Return whether a value is LangChain's ``{"lc": 1, "type": "constructor", "id": [...], "kwargs": {…}}``."""
    return isinstance(value, dict) and "lc" in value and isinstance(value.get("kwargs"), dict)


def constructed_turn(value: dict[str, Any], key: str) -> Turn:
    """Return the message of a constructor form."""
    path, data = value.get("id"), value["kwargs"]
    name = path[-1] if isinstance(path, list) and path else data.get("type")
    return message_turn(name if name in ROLES or name == "ChatMessage" else data.get("type"), data, key)
