"""Test, audit and explain LLM session memory in Redis."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from memkit.config import Expectation
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
    from memkit.inspect import inspect_session
    from memkit.observe import observe_expiry
    from memkit.policy import ExpiryPolicy
    from memkit.server.clock import ServerClock
    from memkit.server.launcher import RedisServer
    from memkit.server.sandbox import Sandbox
    from memkit.store.encoding import Session
    from memkit.store.store import AsyncMemoryStore, MemoryStore

__version__ = "0.1.0"
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
_MODULES = {
    "AsyncMemoryStore": "memkit.store.store",
    "Expectation": "memkit.config",
    "ExpiryPolicy": "memkit.policy",
    "MemoryStore": "memkit.store.store",
    "RedisServer": "memkit.server.launcher",
    "Sandbox": "memkit.server.sandbox",
    "ServerClock": "memkit.server.clock",
    "Session": "memkit.store.encoding",
    "connect": "memkit.connect",
    "inspect_session": "memkit.inspect",
    "observe_expiry": "memkit.observe",
}
"""Where the public names are; the others are errors. Each is loaded at first use: redis-py takes longer to import
than all that ``memkit -h`` needs.
"""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'memkit' has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "memkit.errors")), name)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute, but leave ``memkit.connect`` the function when Python imports the module of that name."""
        if name != "connect" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Load the notebook extension: ``%load_ext memkit``."""
    from memkit.notebook.extension import load_ipython_extension

    load_ipython_extension(shell)
