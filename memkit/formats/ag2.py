"""The events of ag2's Redis stream; ``__event__`` is the event's class path."""

from typing import Any

from memkit.formats.model import Tool, Turn, a_dict, seconds, text_or_none
from memkit.formats.parsing.chat import answered, call_parts, calls, dumped, flatten
from memkit.formats.parsing.element_shapes import missing

_ROLES = {"input_events": "user", "TextInput": "user", "HumanMessage": "user", "SystemEvent": "system"}
_TEXT_FIELDS = ("content", "text", "parts", "message")


def turns(event: dict[str, Any], key: str) -> list[Turn] | str | None:
    """Return the message of an event; None if it is not part of the dialogue, else what it lacks."""
    lacks = missing(event, ("__event__",))
    if lacks:
        return lacks
    *_, name = path = event["__event__"].split(".")
    at_s = seconds(event.get("created_at"))
    if name == "ToolCallEvent":
        tool = Tool(text_or_none(event.get("name")), text_or_none(event.get("id")))
        return missing(event, ("id", "name")) or [Turn("assistant", "", (tool,), at_s, None, key)]
    if "ToolResult" in name or "ToolError" in name:
        if name == "ToolResultEvent" and (lacks := missing(event, ("parent_id",))):
            return lacks
        if name == "ToolResultEvent" and "result" not in event:
            return "it has no result"
        result = event.get("result", event.get("content"))
        parts = a_dict(a_dict(result).get("data")).get("parts", a_dict(result).get("parts"))
        text = flatten(parts) if parts is not None else dumped(result)
        tool = answered(event)._replace(call_id=text_or_none(event.get("parent_id")))
        return [Turn("tool", text, (tool,), at_s, None, key)]
    role = next((_ROLES[part] for part in path if part in _ROLES), None)
    body = next((event[field] for field in _TEXT_FIELDS if event.get(field) is not None), None)
    tools = calls(event.get("tool_calls")) or call_parts(body)
    if body is None and not tools:
        # Without a role it is an event about the run, not of the dialogue.
        return "it has no content" if role else None
    role = role or ("assistant" if name.startswith("Model") else "other")
    return [Turn(role, flatten(body), tools, at_s, None, key)]
