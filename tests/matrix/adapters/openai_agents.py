"""openai-agents' RedisSession behind the suite's adapter."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from adapters.shared import Loop, whole_seconds

from memkit.conformance.adapter import Messages


class OpenAIAgents:
    """A session as its documentation makes it: from_url with a ttl in whole seconds."""

    name = "openai-agents"

    def open(self, url: str, session_id: str, ttl_s: float | None) -> OpenAIAgentsHandle:
        """Return a handle with a session, and so a client, of its own."""
        return OpenAIAgentsHandle(url, session_id, whole_seconds(ttl_s))


class OpenAIAgentsHandle:
    """One RedisSession and its event loop."""

    def __init__(self, url: str, session_id: str, ttl_s: int | None) -> None:
        self._loop = Loop()
        library = import_module("agents.extensions.memory")
        self._session: Any = library.RedisSession.from_url(session_id, url=url, ttl=ttl_s)

    def append(self, role: str, text: str) -> None:
        """Add one item, as a runner does after a turn."""
        self._loop.run(self._session.add_items([{"role": role, "content": text}]))

    def read(self) -> Messages:
        """Return every item's role and content."""
        return [(item["role"], item["content"]) for item in self._loop.run(self._session.get_items())]

    def clear(self) -> None:
        """Clear the session."""
        self._loop.run(self._session.clear_session())

    def close(self) -> None:
        """Close the session's client and the loop."""
        self._loop.run(self._session.close())
        self._loop.close()
