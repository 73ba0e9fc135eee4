"""ag2's RedisStorage behind the suite's adapter."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

from adapters.shared import Loop

from memkit.conformance.adapter import Messages

KINDS = {"user": "TextInput", "assistant": "ModelMessage"}


class Ag2:
    """A storage as its documentation makes it, by URL; it has no TTL, and events for two of the roles."""

    name = "ag2"
    has_ttl = False
    roles = ("user", "assistant")

    def open(self, url: str, session_id: str, ttl_s: float | None) -> Ag2Handle:  # noqa: ARG002  # it takes none
        """Return a handle with a storage, and so a client, of its own."""
        return Ag2Handle(url, session_id)


class Ag2Handle:
    """One stream's history and its event loop."""

    def __init__(self, url: str, session_id: str) -> None:
        self._loop = Loop()
        self._storage: Any = import_module("ag2.streams.redis").RedisStorage(url)
        self._events = import_module("ag2.events")
        self._stream_id = session_id
        # All that save_event needs of a context.
        self._context = SimpleNamespace(stream=SimpleNamespace(id=session_id))

    def append(self, role: str, text: str) -> None:
        """Save an event of the role's class."""
        event = getattr(self._events, KINDS[role])(content=text)
        self._loop.run(self._storage.save_event(event, self._context))

    def read(self) -> Messages:
        """Return the events' roles and contents."""
        roles = {kind: role for role, kind in KINDS.items()}
        events = self._loop.run(self._storage.get_history(self._stream_id))
        return [(roles[type(event).__name__], event.content) for event in events]

    def clear(self) -> None:
        """Drop the history."""
        self._loop.run(self._storage.drop_history(self._stream_id))

    def close(self) -> None:
        """Close the client and the loop."""
        self._loop.run(self._storage.close())
        self._loop.close()
