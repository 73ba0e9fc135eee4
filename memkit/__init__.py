"""Does an LLM application's memory in Redis last as long as it was meant to. See README.md."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from memkit.clock import ServerClock
from memkit.connect import connect
from memkit.policy import ExpiryPolicy
from memkit.sandbox import Sandbox
from memkit.server import RedisServer
from memkit.session import Session
from memkit.store import AsyncMemoryStore, MemoryStore

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
    """``%load_ext memkit``: see memkit.notebook."""
    from memkit.notebook import load_ipython_extension

    load_ipython_extension(shell)
