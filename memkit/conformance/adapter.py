"""What a store's author writes: a factory, ``open`` and four methods. And what is said when that is not there."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from memkit.errors import MemkitError

HANDLE_METHODS = ("append", "read", "clear", "close")
Messages = list[tuple[str, str]]
"""(role, text), oldest first."""


class AdapterError(MemkitError):
    """The suite could not be run on this adapter; one line that names the adapter and what is missing."""


@runtime_checkable
class Handle(Protocol):
    """One session of a store, with a client of its own."""

    def append(self, role: str, text: str) -> None:
        """Add a message; return only when it is stored."""

    def read(self) -> Messages:
        """Return (role, text) pairs, oldest first; [] when there is no such session."""

    def clear(self) -> None:
        """Remove the session, all of it."""

    def close(self) -> None:
        """Let go of the connection; the session stays."""


@runtime_checkable
class StoreAdapter(Protocol):
    """A session store behind the suite's small surface.

    Attributes an adapter may set, and what they are when it does not: ``has_ttl`` (True), ``may_shorten`` (False: a
    session that is opened again with a shorter ttl_s keeps its longer life), ``expiry`` ("sliding": each append
    renews the session; "absolute": its deadline is set once), ``roles`` (user, assistant, system, tool; where it has
    fewer, the first of its own stands in).
    """

    name: str

    def open(self, url: str, session_id: str, ttl_s: float | None) -> Handle:
        """Return a handle on a session, with a fresh client to ``url``; ``ttl_s`` in seconds, None: no deadline."""


def load(spec: str) -> StoreAdapter:
    """Import ``package.module:factory`` (the current directory counts) and return what ``factory()`` makes.

    Raises AdapterError, one line, when that cannot be done.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise AdapterError(f"{spec!r} names no adapter; expected package.module:factory")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    factory = _imported(spec, module_name, attribute)
    try:
        adapter = factory()
    except BaseException as error:  # whatever a foreign factory raises is reported in one line, sys.exit() too
        raise AdapterError(f"{spec}: the factory raised {one_line(error)}") from error
    return checked(adapter, spec)


def search_path() -> str:
    """Return PYTHONPATH for a process that imports what this one does.

    Without the current directory, which load() alone looks at: a json.py in it would be memkit's.
    """
    return os.pathsep.join(path for path in sys.path if path and path != str(Path.cwd()))


def _imported(spec: str, module_name: str, attribute: str) -> Callable[[], object]:
    try:
        found: object = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except BaseException as error:  # a module may raise anything while it is imported, sys.exit() too
        raise AdapterError(f"{spec}: the adapter does not import: {one_line(error)}") from error
    if not callable(found):
        raise AdapterError(f"{spec}: {attribute} is {type(found).__name__}, not a factory to call")
    return found


def checked(adapter: object, label: str) -> StoreAdapter:
    """Return an adapter that has ``open``, named; raise AdapterError otherwise."""
    if not callable(getattr(adapter, "open", None)):
        raise AdapterError(f"{label}: {type(adapter).__name__} lacks the method open(url, session_id, ttl_s)")
    if not isinstance(getattr(adapter, "name", None), str):
        raise AdapterError(f"{label}: {type(adapter).__name__} lacks a name; set it to the store's name, a str")
    expiry = getattr(adapter, "expiry", "sliding")
    if expiry not in ("sliding", "absolute"):
        raise AdapterError(f"{label}: expiry is {expiry!r}; expected 'sliding' or 'absolute'")
    return adapter  # type: ignore[return-value]


def checked_handle(handle: object, label: str) -> Handle:
    """Return what ``open`` gave back if it has a handle's methods; raise AdapterError otherwise."""
    missing = [name for name in HANDLE_METHODS if not callable(getattr(handle, name, None))]
    if missing:
        raise AdapterError(f"{label}: open() returned {type(handle).__name__}, which lacks {', '.join(missing)}")
    return handle  # type: ignore[return-value]


def one_line(error: BaseException) -> str:
    """Return an exception as one short line: its type and what it says."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:200]}" if said else type(error).__name__
