"""The adapter of memkit's own MemoryStore."""

import redis

from memkit.conformance.adapter import Messages
from memkit.connect import SHORT_HANDSHAKE
from memkit.store.store import MemoryStore


class MemkitHandle:
    """One session of a MemoryStore."""

    def __init__(self, client: redis.Redis, store: MemoryStore, session_id: str) -> None:
        self._client = client
        self._store = store
        self._session_id = session_id

    def append(self, role: str, text: str) -> None:
        """Append a message in the usual shape."""
        self._store.append(self._session_id, {"role": role, "content": text})

    def read(self) -> Messages:
        """Return the messages; [] if there is no such session."""
        return [(message["role"], message["content"]) for message in self._store.load(self._session_id) or []]

    def clear(self) -> None:
        """Delete the session."""
        self._store.delete(self._session_id)

    def close(self) -> None:
        """Close the client."""
        self._client.close()


class MemkitAdapter:
    """A MemoryStore on a client of ``Redis.from_url``, with a sliding TTL."""

    name = "memkit"

    def open(self, url: str, session_id: str, ttl_s: float | None) -> MemkitHandle:
        """Return a handle with a client of its own."""
        client = redis.Redis.from_url(url, **SHORT_HANDSHAKE)
        return MemkitHandle(client, MemoryStore(client, prefix="session:", ttl=ttl_s), session_id)
