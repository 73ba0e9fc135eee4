"""langgraph-checkpoint-redis' savers behind the suite's adapter; they need Redis's JSON and search modules."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from adapters.langchain_community import NAMES, message

from memkit.conformance.adapter import Messages


class LanggraphRedis:
    """A graph of messages with a saver; a thread a session; its TTL is in minutes, fractions allowed."""

    name = "langgraph-redis"
    saver = ("langgraph.checkpoint.redis", "RedisSaver")

    def open(self, url: str, session_id: str, ttl_s: float | None) -> LanggraphHandle:
        """Return a handle with a saver, and so a client, of its own."""
        module, name = self.saver
        ttl = None if ttl_s is None else {"default_ttl": ttl_s / 60, "refresh_on_read": False}
        return LanggraphHandle(getattr(import_module(module), name)(redis_url=url, ttl=ttl), session_id)


class LanggraphRedisShallow(LanggraphRedis):
    """The same graph with the saver that keeps only the latest checkpoint."""

    name = "langgraph-redis-shallow"
    saver = ("langgraph.checkpoint.redis.shallow", "ShallowRedisSaver")


class LanggraphHandle:
    """One thread of a graph that does nothing but keep its messages."""

    def __init__(self, saver: Any, session_id: str) -> None:
        graphs = import_module("langgraph.graph")
        saver.setup()
        builder = graphs.StateGraph(graphs.MessagesState)
        builder.add_node("talk", lambda _: {})
        builder.add_edge(graphs.START, "talk")
        self._saver = saver
        self._graph: Any = builder.compile(checkpointer=saver)
        self._session_id = session_id
        self._config = {"configurable": {"thread_id": session_id}}

    def append(self, role: str, text: str) -> None:
        """Run the graph once with a new message."""
        self._graph.invoke({"messages": [message(role, text)]}, self._config)

    def read(self) -> Messages:
        """Return the messages of the thread's state."""
        state = self._graph.get_state(self._config).values.get("messages", [])
        return [(NAMES.get(one.type, one.type), one.content) for one in state]

    def clear(self) -> None:
        """Delete the thread."""
        self._saver.delete_thread(self._session_id)

    def close(self) -> None:
        """Close the saver's client."""
        self._saver._redis.close()
