"""Does an LLM application's memory in Redis last as long as it was meant to. See README.md."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from memkit.connect import connect
from memkit.policy import ExpiryPolicy
from memkit.server.clock import ServerClock
from memkit.server.launcher import RedisServer
from memkit.server.sandbox import Sandbox
from memkit.store.encoding import Session
from memkit.store.store import AsyncMemoryStore, MemoryStore

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__version__ = version("redis-memkit")
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


def load_ipython_extension(shell: InteractiveShell) -> None:
    """``%load_ext memkit``: see memkit.notebook.extension."""
    from memkit.notebook.extension import load_ipython_extension

    load_ipython_extension(shell)
