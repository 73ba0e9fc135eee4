"""The events of google-adk-redis: Gemini's contents."""

from __future__ import annotations

from typing import Any

from memkit.formats.model import Tool, Turn, a_dict, a_list, seconds, text_or_none
from memkit.formats.parsing.chat import dumped, flatten, role_of
from memkit.formats.parsing.element_shapes import kind_of

_CALLED, _ANSWERED = ("function_call", "functionCall"), ("function_response", "functionResponse")


def _lacks(event: dict[str, Any]) -> str | None:
    content = event.get("content")
    if content is None:  # a change of state, not a message
        return None if event.get("author") or event.get("actions") else "it has no content and no author"
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(parts, list | None):
        return f"its content is {kind_of(content)}" if parts is None else f"its parts are {kind_of(parts)}"
    wrong = next((part for part in parts or () if not isinstance(part, dict)), None)
    return None if wrong is None else f"a part of it is {kind_of(wrong)}"


def turn(event: dict[str, Any], key: str) -> Turn | str | None:
    """Return the message of an event; None if it only changes the state, else what it lacks."""
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
