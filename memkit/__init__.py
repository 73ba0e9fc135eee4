"""Test, audit and inspect LLM session memory stored in Redis. See README.md."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from memkit.connect import connect
from memkit.errors import (
    AmbiguousSession,
    ClockUnavailable,
    Conflict,
    DecodeError,
    EncodeError,
    LeftSandboxError,
    MemkitError,
    NoTtlWarning,
    PolicyError,
    PolicyShortenedWarning,
    ProductionGuardError,
    SandboxError,
    ServerError,
    ServerNotFound,
    SessionNotFound,
    SourceError,
)
from memkit.policy import ExpiryPolicy
from memkit.server.clock import ServerClock
from memkit.server.launcher import RedisServer
from memkit.server.sandbox import Sandbox
from memkit.store.encoding import Session
from memkit.store.store import AsyncMemoryStore, MemoryStore

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from memkit.config import Expectation
    from memkit.inspect import inspect_session
    from memkit.observe import observe_expiry

__version__ = version("redis-memkit")
__all__ = [
    "AmbiguousSession",
    "AsyncMemoryStore",
    "ClockUnavailable",
    "Conflict",
    "DecodeError",
    "EncodeError",
    "Expectation",
    "ExpiryPolicy",
    "LeftSandboxError",
    "MemkitError",
    "MemoryStore",
    "NoTtlWarning",
    "PolicyError",
    "PolicyShortenedWarning",
    "ProductionGuardError",
    "RedisServer",
    "Sandbox",
    "SandboxError",
    "ServerClock",
    "ServerError",
    "ServerNotFound",
    "Session",
    "SessionNotFound",
    "SourceError",
    "connect",
    "inspect_session",
    "observe_expiry",
]
# Loaded at first use: they take longer to import than the store (inspect_session 40 ms).
_LAZY = {
    "Expectation": "memkit.config",
    "inspect_session": "memkit.inspect",
    "observe_expiry": "memkit.observe",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'memkit' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Load the notebook extension: ``%load_ext memkit``."""
    from memkit.notebook.extension import load_ipython_extension

    load_ipython_extension(shell)
