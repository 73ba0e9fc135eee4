"""The adapter protocol: a factory with ``open`` and a handle with four methods, loaded and checked."""

from __future__ import annotations  # errors show the signatures of the protocol as they are written

import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from memkit.errors import MemkitError
from memkit.render import printable

ERROR_CHARS = 200
"""Of a store's error message, which may quote a whole dialogue."""
Messages = list[tuple[str, str]]
"""(role, text), oldest first."""


class AdapterError(MemkitError):
    """The suite cannot run with this adapter; one line that names the adapter and what is missing."""


@runtime_checkable
class Handle(Protocol):
    """One session of a store, with a client of its own."""

    def append(self, role: str, text: str) -> None:
        """Add a message; return only when it is stored."""

    def read(self) -> list[tuple[str, str]]:
        """Return (role, text) pairs, oldest first; [] if there is no such session."""

    def clear(self) -> None:
        """Remove the whole session."""

    def close(self) -> None:
        """Close the connection; the session stays."""


@runtime_checkable
class StoreAdapter(Protocol):
    """A session store behind the five methods that the suite calls.

    An adapter may also set:

    * ``has_ttl`` (True): whether the store has TTLs.
    * ``may_shorten`` (False): whether opening a session again with a shorter TTL may shorten it.
    * ``expiry`` ("sliding"): each append renews the TTL; "absolute": the deadline is set once.
    * ``window`` (None): the store keeps only the last N messages on purpose.
    * ``roles`` (user, assistant, system, tool): if it has fewer, the first of them replaces the others.
    """

    name: str

    def open(self, url: str, session_id: str, ttl_s: float | None) -> Handle:
        """Return a handle on a session, with a new client.

        Args:
            url: The Redis URL to connect to.
            session_id: Any text.
            ttl_s: The TTL in seconds; None: the session does not expire.
        """


def load(spec: str) -> StoreAdapter:
    """Import an adapter's factory, from the path or the current directory, and return what it makes.

    Args:
        spec: ``package.module:factory``.

    Raises:
        AdapterError: It cannot be imported or made, or lacks a member; one line.
    """
    module_name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise AdapterError(f"{spec!r} does not name an adapter; expected package.module:factory")
    directory = str(Path.cwd())
    if directory not in sys.path and "" not in sys.path:
        sys.path.insert(0, directory)
    try:
        factory: object = pkgutil.resolve_name(spec)
    except BaseException as error:  # importing a module may raise anything, SystemExit included
        raise AdapterError(f"{spec}: the adapter cannot be imported: {error_line(error)}") from error
    if not callable(factory):
        raise AdapterError(f"{spec}: {attribute} is of type {type(factory).__name__}; expected a factory to call")
    return made_by(factory, spec)


def made_by(
    factory: Callable[[], object], label: str, *, except_for: tuple[type[BaseException], ...] = ()
) -> StoreAdapter:
    """Return the adapter that a factory makes; AdapterError if it raises, ``except_for`` some errors."""
    try:
        adapter = factory()
    except except_for:
        raise
    except BaseException as error:  # a factory may raise anything, SystemExit included
        raise AdapterError(f"{label}: the factory raised {error_line(error)}") from error
    return checked(adapter, label)


def checked(adapter: object, label: str) -> StoreAdapter:
    """Return the adapter if its members are complete; raise AdapterError otherwise."""
    kind = type(adapter).__name__
    if not callable(getattr(adapter, "open", None)):
        raise AdapterError(f"{label}: {kind} lacks the method {_signature(StoreAdapter, 'open')}")
    _refuse_async(adapter, ["open"], label)
    if not isinstance(getattr(adapter, "name", None), str):
        raise AdapterError(f"{label}: {kind} lacks the attribute name: str, the name of the store")
    expiry = getattr(adapter, "expiry", "sliding")
    if expiry not in ("sliding", "absolute"):
        raise AdapterError(f"{label}: expiry is {expiry!r}; expected 'sliding' or 'absolute'")
    window = getattr(adapter, "window", None)
    if window is not None and (type(window) is not int or window < 1):
        raise AdapterError(f"{label}: window is {window!r}; expected how many messages are kept, an int of at least 1")
    for name in ("has_ttl", "may_shorten"):
        if not isinstance(getattr(adapter, name, False), bool):
            raise AdapterError(f"{label}: {name} is {getattr(adapter, name)!r}; expected True or False")
    roles = getattr(adapter, "roles", ("user",))
    if isinstance(roles, str) or not roles or not all(isinstance(role, str) for role in roles):
        raise AdapterError(f"{label}: roles is {roles!r}; expected a tuple of names, such as ('user', 'assistant')")
    return adapter  # type: ignore[return-value]


def checked_handle(handle: object, label: str) -> Handle:
    """Return the handle if its methods are complete; raise AdapterError otherwise."""
    names = ["append", "read", "clear", "close"]
    missing = [_signature(Handle, name) for name in names if not callable(getattr(handle, name, None))]
    if missing:
        raise AdapterError(f"{label}: open() returned {type(handle).__name__}, which lacks {', '.join(missing)}")
    _refuse_async(handle, names, label)
    return handle  # type: ignore[return-value]


def check_pairs(messages: Iterable[object], label: str) -> None:
    """Raise AdapterError if messages are no pairs; the cases check what is in a pair."""
    for one in messages:
        if not isinstance(one, list | tuple) or len(one) != 2:
            shown = printable(repr(one), ERROR_CHARS)
            raise AdapterError(f"{label}: read() returned the message {shown}; expected a pair (role, text)")


def _refuse_async(owner: object, names: Sequence[str], label: str) -> None:
    for name in names:
        method = getattr(owner, name)
        if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
            raise AdapterError(
                f"{label}: {name}() is async; expected a plain method that runs the coroutine to its end, for example "
                "with asyncio.run()"
            )


def _signature(protocol: type, method: str) -> str:
    """Return a method as its author has to write it; annotations are texts, which inspect shows in quotes."""
    return method + str(inspect.signature(getattr(protocol, method))).replace("'", "")


def error_line(error: BaseException) -> str:
    """Return an exception as one short line: its type and message."""
    message = printable(" ".join(str(error).split()), ERROR_CHARS)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
