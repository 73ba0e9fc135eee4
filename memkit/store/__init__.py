"""MemoryStore: LLM sessions in Redis, one list for each session."""

from memkit.store.encoding import Session
from memkit.store.store import AsyncMemoryStore, MemoryStore

__all__ = ["AsyncMemoryStore", "MemoryStore", "Session"]
