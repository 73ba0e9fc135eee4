"""Test, audit and explain LLM session memory in Redis.

Imports go down this map only::

    memkit/
      errors.py         Every exception and warning of memkit
      policy.py         TTLs in the units that people write, and the expiry policy of a store
      config.py         Expected TTLs by pattern: chat:*=7d,sliding,jitter=10%, from the command
                        line, Python or a configuration file
      render.py         Text for people: durations, times, counts, tables, escaping, colours,
                        progress
      connect.py        A Redis URL to a client: standalone, Sentinel or Cluster
      server/           A private Redis for tests: launcher, movable clock, sandbox
                        (client_deadlines clock guard keyspace launcher sandbox)
      store/            MemoryStore: LLM sessions in Redis, one list for each session
                        (encoding operations store)
      readonly/         Read a Redis without changing it: one connection class, one way to open a
                        target; every command is counted
                        (connection pace reader target values)
      formats/          How memory stores lay out their keys: pure decoders without I/O, one module
                        or data entry for each store
                        (ag2 agent_framework_redis agno capture langchain langgraph_aws langgraph_js
                        langgraph_plainredis langgraph_redis layout memkit_store model openai_agents
                        redisvl registry store_layouts unknown parsing/)
      history/          history: what happened to a session, from logs, snapshots, a replica's
                        backlog and recordings
                        (aof changes commands fate log_clock rdb record recording replication run
                        snapshots sources states tracking)
      inspect/          inspect_session: one session, decoded, redacted and checked
                        (key_checks redaction report search)
      observe/          observe_expiry: when keys expired, as intervals on the server's clock
                        (log observe)
      audit/            audit: a Redis server against the expected TTLs
                        (affected context finding hash_fields key_shapes report run sampling
                        second_look server_info stored_keys checks/)
      conformance/      Run any session store through cases with real faults, on a private server,
                        to see when it loses memory
                        (adapter case environment examples fault_proxy keyspace matrix
                        memkit_adapter outcomes processes pytest_suite result root_causes runner
                        trial worker cases/)
      plot/             Figures: every function takes ax=None and returns Axes; show(ax) displays it
                        with alt text
                        (audit conformance expiry history session style)
      notebook/         %load_ext memkit, memkit lab, the HTML report, the demo incident, the tables
                        of the notebooks
                        (demo extension html_report lab triage ttl_semantics)
      pytest_plugin.py  The pytest plugin: fixtures on a private Redis, or on a real one with
                        --real-redis
      cli/              The command line
                        (commands parser)
"""

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


if not TYPE_CHECKING:  # a type checker would allow any name

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
