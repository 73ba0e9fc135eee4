"""The messages of llama-index-storage-chat-store-redis."""

from __future__ import annotations

from typing import Any

from memkit.formats.model import Tool, Turn, a_dict, a_list
from memkit.formats.parsing.chat import answered, calls, flatten, role_of
from memkit.formats.parsing.element_shapes import missing, missing_content


def turn(value: dict[str, Any], key: str) -> Turn | str:
    """Return the message of ``{"role", "blocks"}`` (before 0.11: ``{"role", "content"}``), or what it lacks."""
    in_blocks = "blocks" in value or "content" not in value
    lacks = missing(value, ("role",))
    lacks = lacks or (missing(value, ("blocks",), kind=list) if in_blocks else missing_content(value))
    if lacks:
        return lacks
    role, extra = role_of(value.get("role")), a_dict(value.get("additional_kwargs"))
    blocks = a_list(value.get("blocks"))
    tools: tuple[Tool, ...] = (answered(extra),) if role == "tool" else calls(extra.get("tool_calls"))
    tools = tools or calls([block for block in blocks if a_dict(block).get("block_type") == "tool_call"])
    return Turn(role, flatten(blocks if in_blocks else value["content"]), tools, None, None, key)
