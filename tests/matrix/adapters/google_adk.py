"""google-adk-redis' RedisMemorySessionService behind the suite's adapter."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from adapters.shared import Loop, whole_seconds

from memkit.conformance.adapter import Messages

WHO = {"app_name": "bot", "user_id": "u1"}


class GoogleAdkRedis:
    """A service as its documentation makes it: uri, expire in whole seconds; it always has a TTL."""

    name = "google-adk-redis"

    def open(self, url: str, session_id: str, ttl_s: float | None) -> GoogleAdkHandle:
        """Return a handle with a service and a client of its own; ValueError without a TTL."""
        if ttl_s is None:
            raise ValueError("this library always sets a TTL (expire, 3600 s by default)")
        return GoogleAdkHandle(url, session_id, whole_seconds(ttl_s))


class GoogleAdkHandle:
    """One session of a service and its event loop."""

    def __init__(self, url: str, session_id: str, expire: int | None) -> None:
        self._loop = Loop()
        library = import_module("google_adk_redis")
        self._service: Any = library.RedisMemorySessionService(uri=url, expire=expire, share_cache=False)
        self._who = WHO | {"session_id": session_id}

    def append(self, role: str, text: str) -> None:
        """Append an event to the session, which is loaded or made first, as a runner does at each turn."""
        types = import_module("google.genai.types")
        content = types.Content(role=role, parts=[types.Part(text=text)])
        event = import_module("google.adk.events").Event(author=role, content=content)
        session = self._loop.run(self._service.get_or_create_session(**self._who))
        self._loop.run(self._service.append_event(session, event))

    def read(self) -> Messages:
        """Return the events' authors and texts."""
        session = self._loop.run(self._service.get_session(**self._who))
        events = session.events if session else []
        return [(event.author, event.content.parts[0].text or "") for event in events]

    def clear(self) -> None:
        """Delete the session."""
        self._loop.run(self._service.delete_session(**self._who))

    def close(self) -> None:
        """Close the client and the loop."""
        self._loop.run(self._service.cache.aclose())
        self._loop.close()
