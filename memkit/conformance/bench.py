"""The suite's workplace: its own server, the sessions of the store on trial, and what Redis really holds."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Self

import redis

from memkit.clock import ServerClock
from memkit.conformance.adapter import Handle, Messages, StoreAdapter, checked_handle, one_line
from memkit.conformance.case import NotAsked
from memkit.errors import ServerError
from memkit.server import RedisServer

CONTROL_USER = "memkit-suite"
CONTROL_PASSWORD = "suite"  # noqa: S105  # of a private server on loopback
ROLES = ("user", "assistant", "system", "tool")
TTL_S = 600.0
MARGIN_S = 2.0
"""How far from a deadline the suite looks, either side."""
STARTS = 5
"""Tries to start the server: a TCP port that was free a moment ago may be taken."""
HANDSHAKE = frozenset(
    ("hello", "auth", "client", "select", "ping", "echo", "quit", "reset", "command", "info", "config", "acl")
)
"""Commands of a connection, not of a store; denying one proves nothing."""
Key = tuple[int, bytes]
"""A database and a key in it."""


class Bench:
    """One private server with a movable clock, on which one adapter is tried; a context manager.

    The store connects as the default user, so commands can be denied to it at any moment; the suite itself works
    under a user of its own. ``begin`` empties the server, gives everything back and returns to real time.
    ``spec`` is the adapter's package.module:factory, by which a fresh interpreter can import it; where the adapter was
    given as an object there is none.
    """

    def __init__(self, adapter: StoreAdapter, *, spec: str = "", persist: bool = False) -> None:
        self.adapter = adapter
        self.spec = spec
        self.has_ttl: bool = getattr(adapter, "has_ttl", True)
        self.may_shorten: bool = getattr(adapter, "may_shorten", False)
        self.sliding: bool = getattr(adapter, "expiry", "sliding") == "sliding"
        self.roles: tuple[str, ...] = tuple(getattr(adapter, "roles", ROLES))
        self.forks: bool | None = None
        """Whether the store answers in a forked process; None: not tried yet."""
        self.limit_s = 60.0
        """The time a case may take; a fresh interpreter has to be there in a part of it."""
        self._persist = persist
        self._open: list[Handle] = []
        self._ids = itertools.count(1)
        self.token = f"memkit{os.getpid()}".encode()
        """Ends every session id; a key whose name has it belongs to one session."""

    def start(self) -> Self:
        """Start the server; ServerNotFound when there is none."""
        modules = [path for path in os.environ.get("MEMKIT_REDIS_MODULES", "").split(os.pathsep) if path]
        self.server = _started({"loadmodule": modules} if modules else {}, persist=self._persist)
        self.control = self._as_control_user()
        # Its own clock, under the suite's user: it has to work while the store's user is denied commands.
        by_preload = self.server.clock.rung == "preload"
        offset_file = self.server.directory / "clock" if by_preload else None
        self.clock = ServerClock(self.control, offset_file=offset_file, prefix="")
        self.has_hash_field_ttl = _answers(self.control, "HPTTL", "no such key", "FIELDS", 1, "field")
        return self

    def stop(self) -> None:
        """Close the handles and stop the server."""
        self.close_handles()
        self.control.close()
        self.server.stop()

    def replace_server(self) -> None:
        """Go on with another server after a store hung: whatever it still does is done to the old one."""
        self.abandon_handles()
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _as_control_user(self) -> redis.Redis:
        with self.server.client() as default:
            default.execute_command(
                "ACL", "SETUSER", CONTROL_USER, "reset", "on", f">{CONTROL_PASSWORD}", "~*", "&*", "+@all"
            )
        return self.server.client(username=CONTROL_USER, password=CONTROL_PASSWORD)

    def begin(self) -> None:
        """Make the next case start from an empty server, at real time, with nothing denied."""
        self.close_handles()
        self.allow_all()
        self.control.config_set("maxmemory", 0)
        self.control.flushall()
        if self.clock.offset:
            self.clock.shift(-self.clock.offset)

    def close_handles(self) -> None:
        """Close every handle that is still open; what a store raises on close is of no interest here."""
        while self._open:
            with contextlib.suppress(Exception):
                self._open.pop().close()

    def abandon_handles(self) -> None:
        """Leave the open handles as they are: those of a store that hung may hang again."""
        self._open.clear()

    def restarted(self) -> None:
        """Start the server again after a kill, and connect to it anew."""
        self.server.start()
        self.control.close()
        self.control = self._as_control_user()

    # Sessions

    @property
    def url(self) -> str:
        """The URL of database 0, for the store's user."""
        return self.server.url

    def id(self, label: str = "session") -> str:
        """Return a session id that no case has used."""
        return f"{label}-{next(self._ids)}-{self.token.decode()}"

    def ttl(self, ttl_s: float | None = TTL_S) -> float | None:
        """Return the TTL to open a session with: None for a store that has none."""
        return ttl_s if self.has_ttl else None

    def open(self, session_id: str, ttl_s: float | None = TTL_S, *, url: str | None = None) -> Handle:
        """Open a session of the store; it is closed at the end of the case."""
        handle = checked_handle(self.adapter.open(url or self.url, session_id, self.ttl(ttl_s)), self.adapter.name)
        self._open.append(handle)
        return handle

    def refuses_none(self) -> str:
        """Return what the store raises when it is opened without a TTL, or nothing when it is not."""
        try:
            self.open(self.id("none"), None)
        except Exception as error:  # noqa: BLE001  # refused aloud
            return one_line(error)
        return ""

    def read(self, session_id: str, ttl_s: float | None = TTL_S, *, url: str | None = None) -> Messages:
        """Return what a fresh handle reads, closed again at once."""
        handle = self.open(session_id, ttl_s, url=url)
        try:
            return messages_of(handle)
        finally:
            self.close(handle)

    def close(self, handle: Handle) -> None:
        """Close a handle before the case ends."""
        self._open.remove(handle)
        handle.close()

    # Time

    def now_s(self) -> float:
        """Return the time that keys expire by, in seconds since 1970."""
        return self.clock.now().timestamp()

    def move_to(self, moment_s: float) -> None:
        """Move time to a moment."""
        self.clock.shift(timedelta(seconds=moment_s - self.now_s()))

    @contextlib.contextmanager
    def moving_deadlines(self) -> Iterator[None]:
        """Move the keys' deadlines for a while instead of the clock."""
        self.begin()
        by_clock, self.clock = self.clock, ServerClock(self.control, prefix="")
        try:
            yield
        finally:
            self.clock = by_clock

    # What the server holds

    def keys(self) -> set[Key]:
        """Return every living key of every database."""
        found: set[Key] = set()
        for name in self.control.info("keyspace"):
            db = int(name.removeprefix("db"))
            with self.in_db(db) as client:
                found |= {(db, key) for key in client.scan_iter(count=1000)}
        return found

    @contextlib.contextmanager
    def in_db(self, db: int) -> Iterator[redis.Redis]:
        """Give the suite's client of one database."""
        if db == 0:
            yield self.control
            return
        url = self.server.url.removesuffix("/0") + f"/{db}"
        with redis.Redis.from_url(url, username=CONTROL_USER, password=CONTROL_PASSWORD) as client:
            yield client

    def delete_all_keys(self) -> None:
        """Delete every key; search indexes, which FLUSHALL would drop, stay."""
        for db, key in self.keys():
            with self.in_db(db) as client:
                client.delete(key)

    def deadline_ms(self, key: Key) -> int | None:
        """Return when a key expires, in milliseconds since 1970 on the server's clock; None for never or gone."""
        with self.in_db(key[0]) as client, client.pipeline() as pipe:
            pipe.time()
            pipe.pttl(key[1])
            (seconds, micros), left = pipe.execute()
        return None if left < 0 else seconds * 1000 + micros // 1000 + left

    def commands_of(self, work: Callable[[], object]) -> list[str]:
        """Return the commands that the server ran for some work of the store, those inside scripts included."""
        self.control.config_resetstat()
        work()
        ran = self.control.info("commandstats")
        names = sorted(name.removeprefix("cmdstat_") for name in ran)
        return [name for name in names if name.split("|")[0] not in HANDSHAKE]

    # Permissions

    @contextlib.contextmanager
    def denied(self, *rules: str) -> Iterator[None]:
        """Deny the store's user some commands or categories (``get``, ``@read``) for a while."""
        known = [rule for rule in rules if self._deny(rule)]
        try:
            if not known:
                raise NotAsked(f"this server knows none of the commands {', '.join(rules)}")
            yield
        finally:
            self.allow_all()

    def _deny(self, rule: str) -> bool:
        try:
            self.control.execute_command("ACL", "SETUSER", "default", f"-{rule}")
        except redis.ResponseError:  # a command that this version does not have
            return False
        return True

    def allow_all(self) -> None:
        """Give the store's user every command back."""
        self.control.execute_command("ACL", "SETUSER", "default", "+@all")


def messages_of(handle: Handle) -> Messages:
    """Return what a handle reads, each message as a plain pair."""
    return [(role, text) for role, text in handle.read()]


def _answers(client: redis.Redis, *command: object) -> bool:
    try:
        client.execute_command(*command)
    except redis.ResponseError:
        return False
    return True


def _started(config: Mapping[str, object], *, persist: bool) -> RedisServer:
    for left in reversed(range(STARTS)):
        server = RedisServer(port=0, persist=persist, config=config)
        try:
            return server.start()
        except ServerError:
            if not left:
                raise
    raise AssertionError("unreachable")
