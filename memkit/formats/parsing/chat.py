"""The vocabulary that stores share: roles, multi-part content, tool calls and results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from memkit.formats.model import Tool, Turn, a_dict, a_list, one_of, seconds, text_or_none

ROLES = {
    "user": "user", "human": "user", "HumanMessage": "user", "HumanMessageChunk": "user",
    "assistant": "assistant", "ai": "assistant", "AIMessage": "assistant", "AIMessageChunk": "assistant",
    "model": "assistant", "llm": "assistant", "bot": "assistant", "chatbot": "assistant",
    "system": "system", "developer": "system", "SystemMessage": "system", "SystemMessageChunk": "system",
    "tool": "tool", "function": "tool", "ToolMessage": "tool", "ToolMessageChunk": "tool",
    "FunctionMessage": "tool", "FunctionMessageChunk": "tool",
}  # fmt: skip
CALL_PARTS = frozenset({"tool_use", "tool_call", "function_call", "toolUse"})
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,32}", re.ASCII)


def role_of(value: Any) -> str:
    """Return one of user, assistant, tool, system, other."""
    return ROLES.get(value, "other") if isinstance(value, str) else "other"


def flatten(content: Any) -> str:
    """Return content as one text: parts joined with a newline, each part that is not text as a mark (``[image]``)."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list):
        return "\n".join(part for part in map(_part, content) if part is not None)
    if isinstance(content, dict):
        return _part(content) or ""
    return json.dumps(content)


def _part(part: Any) -> str | None:
    """Return one part as text or mark; None for a tool call, which is shown as such."""
    if not isinstance(part, dict):
        return flatten(part) if part is None or isinstance(part, str) else json.dumps(part)
    text = part.get("text", part.get("content"))
    if isinstance(text, str):
        return text
    kind = part.get("type") or part.get("block_type") or next((key for key in part if part[key] is not None), "part")
    if one_of(kind, CALL_PARTS):
        return None
    return f"[{kind if isinstance(kind, str) and _WORD.fullmatch(kind) else 'part'}]"


def dumped(value: Any) -> str:
    """Return a tool's result as text: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def calls(raw: Any) -> tuple[Tool, ...]:
    """Return the tools of a list of calls, in OpenAI's form (``function.name``) or LangChain's (``name``)."""
    return tuple(_call(call) for call in a_list(raw) if isinstance(call, dict)) if raw else ()


def _call(call: dict[str, Any]) -> Tool:
    name = call.get("name") or a_dict(call.get("function")).get("name") or call.get("tool_name")
    return Tool(text_or_none(name), text_or_none(call.get("id") or call.get("call_id") or call.get("tool_call_id")))


def call_parts(content: Any) -> tuple[Tool, ...]:
    """Return the calls that stand among the parts of a content (Anthropic's ``tool_use``)."""
    if not isinstance(content, list):
        return ()
    return calls([part for part in content if isinstance(part, dict) and one_of(part.get("type"), CALL_PARTS)])


class Columns(NamedTuple):
    """What a ``Run`` is made of."""

    roles: list[str]
    texts: list[str]
    at_s: list[float | None] | None = None
    tools: list[tuple[Tool, ...]] | None = None
    uids: list[str | None] | None = None


def roles_of(values: Iterable[Any]) -> list[str]:
    """Return the normalised roles of many messages; raises KeyError or TypeError where one is not known."""
    return [ROLES[value] for value in values]


def columns(
    roles: list[str], texts: list[Any], tools: list[tuple[Tool, ...]] | None = None, uids: list[Any] | None = None
) -> Columns | None:
    """Return messages as columns, or None where a text is none or a tool's call has no id: those need a closer look."""
    flat = [tool for used in tools for tool in used] if tools else []
    if set(map(type, texts)) != {str} or not _all_text({tool.call_id for tool in flat}):
        return None
    if not _all_text({tool.name for tool in flat} - {None}):
        return None
    if "tool" in roles and not (tools and all(used for role, used in zip(roles, tools, strict=True) if role == "tool")):
        return None
    named = set(uids or ()) - {None}
    return Columns(roles, texts, None, tools, uids if named else None) if _all_text(named) else None


def _all_text(values: set[Any]) -> bool:
    return set(map(type, values)) <= {str} and "" not in values


def chat_columns(messages: list[Any]) -> Columns | None:
    """Return the columns of messages that are a role and a content and nothing else."""
    if set(map(len, messages)) != {2}:
        return None
    roles = roles_of([message["role"] for message in messages])
    return columns(roles, [message["content"] for message in messages])


def chat_turn(message: dict[str, Any], key: str) -> Turn:
    """Return a message in the form of the chat APIs: role, content, tool_calls or tool_call_id."""
    role, content = role_of(message.get("role")), message.get("content")
    if role == "tool":
        tools: tuple[Tool, ...] = (answered(message),)
    else:
        tools = calls(message.get("tool_calls")) or call_parts(content)
    at_s = seconds(message.get("created_at", message.get("timestamp")))
    text = content if isinstance(content, str) else flatten(content)
    return Turn(role, text, tools, at_s, text_or_none(message.get("id")), key)


def answered(message: dict[str, Any]) -> Tool:
    """Return the call that a tool's message answers."""
    name = message.get("name") or message.get("tool_name")
    return Tool(text_or_none(name), text_or_none(message.get("tool_call_id") or message.get("call_id")))


def looks_like_chat(values: Iterable[Any]) -> bool:
    """Return whether every value is a JSON object with a role and a content."""
    seen = list(values)
    return bool(seen) and all(isinstance(value, dict) and "role" in value and "content" in value for value in seen)
