"""The vocabulary that known stores share: roles, texts in parts, tool calls and their results."""

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from memkit.formats.model import Tool, a_dict, a_list, text_or_none

ROLES = {
    "user": "user", "human": "user", "HumanMessage": "user", "HumanMessageChunk": "user",
    "assistant": "assistant", "ai": "assistant", "AIMessage": "assistant", "AIMessageChunk": "assistant",
    "model": "assistant", "llm": "assistant", "bot": "assistant", "chatbot": "assistant",
    "system": "system", "developer": "system", "SystemMessage": "system", "SystemMessageChunk": "system",
    "tool": "tool", "function": "tool", "ToolMessage": "tool", "ToolMessageChunk": "tool",
    "FunctionMessage": "tool", "FunctionMessageChunk": "tool",
}  # fmt: skip
CALL_PARTS = frozenset({"tooluse", "toolcall", "functioncall"})
"""The plain names of a call's type."""
_STEP_PARTS = frozenset({"stepstart", "stepfinish", "startstep", "finishstep"})
"""Marks that the AI SDK puts between the steps of an answer."""
_CALL_IDS = ("toolcallid", "tooluseid", "callid")
_LONG_NAME = 64
"""No field that is looked for has a longer name; hostile ones need not be kept."""
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,32}", re.ASCII)


def role_of(value: Any) -> str:
    """Return one of user, assistant, tool, system, other."""
    return ROLES.get(value, "other") if isinstance(value, str) else "other"


def flatten(content: Any) -> str:
    """Return content as one text: parts joined with a newline, each part that is not text as a mark (``[image]``)."""
    if isinstance(content, list):
        return "\n".join(part for part in map(part_text, content) if part is not None)
    return part_text(content) or ""


def part_text(part: Any) -> str | None:
    """Return one part as text or mark; None for a tool call, which is shown as such, and for a step's mark."""
    if not isinstance(part, dict):
        return part if isinstance(part, str) else "" if part is None else json.dumps(part)
    if (text := inner_text(part)) is not None:
        return text
    if isinstance(part.get("parts"), list):
        return flatten(part["parts"])
    kind = part.get("type") or part.get("block_type") or next((key for key in part if part[key] is not None), "part")
    if isinstance(kind, str) and plain_name(kind) in CALL_PARTS | _STEP_PARTS:
        return None
    return f"[{kind if isinstance(kind, str) and _WORD.fullmatch(kind) else 'part'}]"


def inner_text(part: Mapping[str, Any]) -> str | None:
    """Return the text of a part: ``{"text": …}``, ``{"text": {"value": …}}``, ``{"body": …}``; None if it has none."""
    text = part.get("text", part.get("content"))
    holder = text if isinstance(text, dict) else part if text is None and "type" not in part else {}
    text = text if isinstance(text, str) else holder.get("value", holder.get("body"))
    return text if isinstance(text, str) else None


def dumped(value: Any) -> str:
    """Return a tool's result as text: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def calls(raw: Any) -> tuple[Tool, ...]:
    """Return the tools of a list of calls, in OpenAI's form (``function.name``) or LangChain's (``name``)."""
    return tuple(tool_in(plain_fields(call)) for call in a_list(raw) if isinstance(call, dict)) if raw else ()


@lru_cache(maxsize=4_096)
def plain_name(name: str) -> str:
    """Return a field's name in lower case and without ``_``, ``-`` and ``$``: ``toolCallId`` is ``tool_call_id``."""
    return re.sub(r"[_$-]", "", name.lower()) if len(name) < _LONG_NAME else name


def plain_fields(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with plain names; of two alike the first counts."""
    found: dict[str, Any] = {}
    for name, each in value.items():
        found.setdefault(plain_name(name), each)
    return found


def tool_in(fields: Mapping[str, Any]) -> Tool:
    """Return the tool of a call; its fields have plain names."""
    call = a_dict(fields.get("function") or fields.get("call"))
    name = fields.get("name") or call.get("name") or fields.get("toolname")
    return Tool(text_or_none(name), _first_text(fields, (*_CALL_IDS, "id")))


def answered(message: Mapping[str, Any]) -> Tool:
    """Return the call that a tool's message answers."""
    fields = plain_fields(message)
    return Tool(text_or_none(fields.get("name") or fields.get("toolname")), _first_text(fields, _CALL_IDS))


def _first_text(fields: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((found for name in names if (found := text_or_none(fields.get(name)))), None)


def call_parts(content: Any) -> tuple[Tool, ...]:
    """Return the calls among the parts of a content (Anthropic's ``tool_use``)."""
    if not isinstance(content, list):
        return ()
    return calls([part for part in content if plain_name(text_or_none(a_dict(part).get("type")) or "") in CALL_PARTS])
