"""Does an LLM application's memory in Redis last as long as it was meant to. See README.md."""

from memkit.clock import ServerClock
from memkit.connect import connect
from memkit.policy import ExpiryPolicy
from memkit.sandbox import Sandbox
from memkit.server import RedisServer
from memkit.session import Session
from memkit.store import AsyncMemoryStore, MemoryStore

__all__ = [
    "AsyncMemoryStore",
    "ExpiryPolicy",
    "MemoryStore",
    "RedisServer",
    "Sandbox",
    "ServerClock",
    "Session",
    "connect",
]
