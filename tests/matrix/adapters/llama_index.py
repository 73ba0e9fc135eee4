"""llama-index's RedisChatStore behind the suite's adapter."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from adapters.shared import whole_seconds

from memkit.conformance.adapter import Messages


class LlamaIndex:
    """A store as its documentation makes it: redis_url, ttl in whole seconds; the session id is the key."""

    name = "llama-index"

    def open(self, url: str, session_id: str, ttl_s: float | None) -> LlamaIndexHandle:
        """Return a handle with a store, and so a client, of its own."""
        library = import_module("llama_index.storage.chat_store.redis")
        return LlamaIndexHandle(library.RedisChatStore(redis_url=url, ttl=whole_seconds(ttl_s)), session_id)


class LlamaIndexHandle:
    """One key of a chat store."""

    def __init__(self, store: Any, session_id: str) -> None:
        self._store = store
        self._session_id = session_id

    def append(self, role: str, text: str) -> None:
        """Add a ChatMessage."""
        message = import_module("llama_index.core.llms").ChatMessage(role=role, content=text)
        self._store.add_message(self._session_id, message)

    def read(self) -> Messages:
        """Return the messages; content is None for an empty text."""
        return [(one.role.value, one.content or "") for one in self._store.get_messages(self._session_id)]

    def clear(self) -> None:
        """Delete the key."""
        self._store.delete_messages(self._session_id)

    def close(self) -> None:
        """Close the client that the store made."""
        self._store._redis_client.close()
