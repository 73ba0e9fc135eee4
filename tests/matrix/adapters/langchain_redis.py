"""langchain-redis' RedisChatMessageHistory behind the suite's adapter; it needs Redis's JSON and search modules."""

from __future__ import annotations

from importlib import import_module

from adapters.langchain_community import LangchainHandle
from adapters.shared import whole_seconds


class LangchainRedis:
    """A history as its documentation makes it: redis_url, session_id, ttl in whole seconds."""

    name = "langchain-redis"

    def open(self, url: str, session_id: str, ttl_s: float | None) -> LangchainHandle:
        """Return a handle with a history, and so a client, of its own."""
        history = import_module("langchain_redis").RedisChatMessageHistory
        return LangchainHandle(history(session_id, redis_url=url, ttl=whole_seconds(ttl_s)))
