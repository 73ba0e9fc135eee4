"""Recognise which store wrote a list by the shape of the majority of its elements.

``missing`` and the functions after it name what a store's message lacks, in words that hold nothing of the message;
they return None if it lacks nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from memkit.formats.model import a_dict, one_of
from memkit.formats.parsing.chat import ROLES

TYPES = frozenset(name for name in ROLES if not name.endswith("Message")) | {"chat", "remove"}
"""The types of LangChain's messages."""
CALLS = frozenset({"function_call", "custom_tool_call", "computer_call", "mcp_call", "shell_call"})
RESULTS = frozenset({"function_call_output", "custom_tool_call_output", "computer_call_output", "shell_call_output"})
HIDDEN = frozenset({"reasoning", "compaction", "item_reference", "mcp_list_tools"})
"""The Responses API's items: tool calls, their results, and some of those that are not part of a dialogue."""
_INSTEAD = (
    *("tool_calls", "invalid_tool_calls", "function_call", "additional_kwargs", "refusal", "reasoning_content"),
    *("images", "audio", "videos", "files", "image_output", "audio_output", "video_output", "file_output"),
)
_KINDS = {dict: "an object", list: "an array", str: "text", bool: "a boolean", type(None): "null"}


def is_item(kind: Any) -> bool:
    """Return whether a type is that of an item beside the messages; new ones of the API end alike."""
    return isinstance(kind, str) and (
        kind in HIDDEN or kind.startswith("mcp_approval_") or kind.endswith(("_call", "_call_output", "_search_output"))
    )


SHAPES: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "langchain-community": lambda value: isinstance(value.get("data"), dict) and one_of(value.get("type"), TYPES),
    "llama-index": lambda value: (
        {"role", "additional_kwargs"} <= value.keys()
        and isinstance(value.get("blocks", value.get("content", 0)), list | str | None)
    ),
    "openai-agents": lambda value: (
        is_item(value.get("type")) or (value.get("type") == "message" and "content" in value)
    ),
    "agent-framework-redis": lambda value: value.get("type") == "message" and "contents" in value,
    "ag2": lambda value: "__event__" in value,
}


def store_of(value: Mapping[str, Any]) -> str | None:
    """Return the store that writes elements like this one."""
    return next((store for store, fits in SHAPES.items() if fits(value)), None)


def kind_of(value: Any) -> str:
    """Return what JSON calls a value's type."""
    return _KINDS.get(type(value), "a number")


def missing(value: Mapping[str, Any], fields: Iterable[str], *, kind: type = str) -> str | None:
    """Return which of the fields is not there, or is of another type."""
    for field in fields:
        if field not in value:
            return f"it has no {field}"
        if not isinstance(value[field], kind):
            return f"its {field} is {kind_of(value[field])}, not {_KINDS[kind]}"
    return None


def missing_content(message: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a message's content; one that calls a tool, refuses or shows a file needs none."""
    content = message.get("content")
    if isinstance(content, str | list | dict):
        return None
    if content is not None:
        return f"its content is {kind_of(content)}"
    return None if any(map(message.get, _INSTEAD)) else "it has no content"


def llama_index_lacks(message: Mapping[str, Any]) -> str | None:
    """Return what ``{"role", "blocks"}`` (before llama-index 0.11: ``{"role", "content"}``) lacks."""
    in_blocks = "blocks" in message or "content" not in message
    content = missing(message, ("blocks",), kind=list) if in_blocks else missing_content(message)
    return missing(message, ("role",)) or content


def adk_lacks(event: Mapping[str, Any]) -> str | None:
    """Return what an event of Google's ADK, which holds Gemini's content, lacks."""
    content = event.get("content")
    if content is None:  # a change of state, not a message
        return None if event.get("author") or event.get("actions") else "it has no content and no author"
    if not isinstance(content, dict):
        return f"its content is {kind_of(content)}"
    parts = content.get("parts")
    if not isinstance(parts, list | None):
        return f"its parts are {kind_of(parts)}"
    wrong = next((part for part in parts or () if not isinstance(part, dict)), None)
    return None if wrong is None else f"a part of it is {kind_of(wrong)}"


def openai_lacks(item: Mapping[str, Any]) -> str | None:
    """Return what an item of the Responses API lacks: a call, its result, or a message."""
    if one_of(item.get("type"), CALLS):
        return None if item.get("call_id") or item.get("id") else "it has no call_id"
    if one_of(item.get("type"), RESULTS):
        return None if "output" in item else "it has no output"
    hidden = is_item(item.get("type")) or "__enc__" in item
    return None if hidden else missing(item, ("role",)) or missing_content(item)


def langchain_lacks(message: Mapping[str, Any]) -> str | None:
    """Return what a message in LangChain's constructor form, its flat form, or that of the chat APIs lacks."""
    if is_constructed(message):
        return missing_content(message["kwargs"])
    typed = one_of(message.get("type"), TYPES)
    return (None if typed else missing(message, ("role",))) or missing_content(message)


def is_constructed(value: Any) -> bool:
    """Return whether a value is LangChain's ``{"lc": 1, "type": "constructor", "id": [...], "kwargs": {…}}``."""
    return "lc" in a_dict(value) and isinstance(value.get("kwargs"), dict)
