"""redisvl's MessageHistory behind the suite's adapter; it needs Redis's search module."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from memkit.conformance.adapter import Messages

ROLES = {"user": "user", "assistant": "llm", "system": "system", "tool": "tool"}


class RedisVL:
    """A history as its documentation makes it: one index, a session_tag a session; it has no TTL."""

    name = "redisvl"
    has_ttl = False

    def open(self, url: str, session_id: str, ttl_s: float | None) -> RedisVLHandle:  # noqa: ARG002  # it takes none
        """Return a handle with a history, and so a client, of its own."""
        library = import_module("redisvl.extensions.message_history")
        return RedisVLHandle(library.MessageHistory(name="chat", session_tag=session_id, redis_url=url))


class RedisVLHandle:
    """The messages of one session_tag."""

    def __init__(self, history: Any) -> None:
        self._history = history

    def append(self, role: str, text: str) -> None:
        """Add a message."""
        self._history.add_message({"role": ROLES[role], "content": text})

    def read(self) -> Messages:
        """Return the messages with the suite's names of roles."""
        names = {name: role for role, name in ROLES.items()}
        return [(names[message["role"]], message["content"]) for message in self._history.messages]

    def clear(self) -> None:
        """Clear the history, as the library understands it."""
        self._history.clear()

    def close(self) -> None:
        """Close the client that the history made."""
        self._history._index._redis_client.close()
