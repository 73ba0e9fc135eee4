"""langchain-community's RedisChatMessageHistory behind the suite's adapter."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from adapters.shared import whole_seconds

from memkit.conformance.adapter import Messages

ROLES = {"user": "human", "assistant": "ai", "system": "system", "tool": "tool"}
NAMES = {kind: role for role, kind in ROLES.items()}


class LangchainCommunity:
    """A history as its documentation makes it: url, session_id, ttl in whole seconds."""

    name = "langchain-community"

    def open(self, url: str, session_id: str, ttl_s: float | None) -> LangchainHandle:
        """Return a handle with a history, and so a client, of its own."""
        library = import_module("langchain_community.chat_message_histories")
        return LangchainHandle(library.RedisChatMessageHistory(session_id, url=url, ttl=whole_seconds(ttl_s)))


class LangchainHandle:
    """One history of a langchain library."""

    def __init__(self, history: Any) -> None:
        self._history = history

    def append(self, role: str, text: str) -> None:
        """Add a message of the role's class."""
        self._history.add_message(message(role, text))

    def read(self) -> Messages:
        """Return the messages with the suite's names of roles."""
        return [(NAMES.get(one.type, one.type), one.content) for one in self._history.messages]

    def clear(self) -> None:
        """Clear the history."""
        self._history.clear()

    def close(self) -> None:
        """Close the client that the history made."""
        self._history.redis_client.close()


def message(role: str, text: str) -> Any:
    """Return a langchain message of a role."""
    messages = import_module("langchain_core.messages")
    if role == "tool":
        return messages.ToolMessage(text, tool_call_id="call-1")
    kinds = {"user": messages.HumanMessage, "assistant": messages.AIMessage, "system": messages.SystemMessage}
    return kinds[role](text)
