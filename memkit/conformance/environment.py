"""The test environment: a private server, sessions of the store under test, and what Redis really holds."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Self, TypeVar

import redis

from memkit.conformance.adapter import Handle, Messages, StoreAdapter, checked_handle, error_line
from memkit.conformance.outcomes import CaseSkipped
from memkit.server.clock import ServerClock
from memkit.server.launcher import PRELOAD, RedisServer, modules_config

CONTROL_USER = "memkit-suite"
CONTROL_PASSWORD = "suite"  # noqa: S105  # of a private server on loopback
CONTROL: Any = {"username": CONTROL_USER, "password": CONTROL_PASSWORD, "socket_timeout": None}
"""The suite's own user waits as long as a case may take; redis-py's default is 5 s."""
ROLES = ("user", "assistant", "system", "tool")
TTL_S = 600.0
MARGIN_S = 2.0
"""How long before and after a deadline the suite reads."""
HANDSHAKE = frozenset(
    ("hello", "auth", "client", "select", "ping", "echo", "quit", "reset", "command", "info", "config", "acl")
)
"""Commands of a connection, not of a store; denying one proves nothing."""
Key = tuple[int, bytes]
"""A database and the name of a key in it."""
Result = TypeVar("Result")


class TestEnvironment:
    """One private server with a movable clock, on which one adapter is tested; a context manager.

    The store connects as the default user, so commands can be denied to it at any moment; the suite itself has a user
    of its own. A fresh interpreter imports the adapter by ``spec``, its package.module:factory, unless that is empty.
    With ``persist`` the server keeps an append-only file.
    """

    __test__ = False  # for pytest, which collects classes named Test

    def __init__(self, adapter: StoreAdapter, *, spec: str = "", persist: bool = False) -> None:
        self.use(adapter, spec=spec)
        self.limit_s = 60.0
        """The time limit of the current case."""
        self._persist = persist
        self.handles: list[Handle] = []
        """The open handles of the current case."""
        self._ids = itertools.count(1)
        self.token = f"memkit{os.getpid()}".encode()
        """The end of every session id; a key with it in its name belongs to one session."""

    def use(self, adapter: StoreAdapter, *, spec: str = "") -> Self:
        """Test this adapter from the next case on."""
        self.adapter = adapter
        self.spec = spec
        self.has_ttl: bool = getattr(adapter, "has_ttl", True)
        self.may_shorten: bool = getattr(adapter, "may_shorten", False)
        self.sliding: bool = getattr(adapter, "expiry", "sliding") == "sliding"
        self.window: int | None = getattr(adapter, "window", None)
        self.roles: tuple[str, ...] = tuple(getattr(adapter, "roles", ROLES))
        self.works_when_forked: bool | None = None
        """Whether the store answers in a forked process; None: not tried yet."""
        self.long_text = ""
        """A long text that the store does not refuse; empty: not tried yet."""
        self.sessions_of: dict[str, set[str]] = {}
        """The sessions to which each text was appended."""
        return self

    def start(self) -> Self:
        """Start the server."""
        self.server = RedisServer(port=0, persist=self._persist, config=modules_config()).start()
        self.control = self.control_client()
        # Its own clock, under the suite's user: it has to work while commands are denied to the store's user.
        by_preload = self.server.clock.method == "preload"
        offset_file = self.server.directory / "clock" if by_preload else None
        self.clock = ServerClock(self.control, offset_file=offset_file, prefix="")
        return self

    def stop(self) -> None:
        """Close the handles and stop the server."""
        self.close_handles()
        self.control.close()
        self.server.stop()

    def replace_server(self) -> None:
        """Start another server after a store hung, which may still be writing to the old one."""
        self.handles.clear()  # closing those of a store that hung may hang again
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def control_client(self) -> redis.Redis:
        """Return a client of the suite's own user, which is made anew: a restarted server has lost it."""
        with self.server.client() as default:
            rules = ("reset", "on", f">{CONTROL_PASSWORD}", "~*", "&*", "+@all")
            default.execute_command("ACL", "SETUSER", CONTROL_USER, *rules)
        return self.server.client(**CONTROL)

    def reset(self) -> None:
        """Prepare the next case: an empty server, at real time, with every command allowed."""
        self.close_handles()
        self.allow_all()
        self.control.config_set("maxmemory", 0)
        self.control.flushall()
        if self.clock.offset:
            self.clock.shift(-self.clock.offset)

    def close_handles(self) -> None:
        """Close every handle that is still open; what a store raises on close does not count here."""
        while self.handles:
            with contextlib.suppress(Exception):
                self.handles.pop().close()

    def new_id(self, label: str = "session") -> str:
        """Return a session id that no case has used."""
        return f"{label}-{next(self._ids)}-{self.token.decode()}"

    def ttl(self, ttl_s: float | None = TTL_S) -> float | None:
        """Return the TTL to open a session with: None for a store without TTLs."""
        return ttl_s if self.has_ttl else None

    def kept(self, messages: Messages) -> Messages:
        """Return the messages that the store has to keep: the last ones if the adapter declares a window."""
        return messages[-self.window :] if self.window else messages

    def open(self, session_id: str, ttl_s: float | None = TTL_S, *, url: str | None = None) -> Handle:
        """Open a session of the store; it is closed at the end of the case."""
        opened = self.adapter.open(url or self.server.url, session_id, self.ttl(ttl_s))
        handle = checked_handle(opened, self.adapter.name)
        self.handles.append(handle)
        return handle

    def require_no_ttl_allowed(self) -> None:
        """Raise CaseSkipped if the store refuses to be opened without a TTL."""
        opened = attempt(lambda: self.open(self.new_id("none"), None))
        if isinstance(opened, Exception):
            raise CaseSkipped(f"the store refuses to be opened without a TTL ({error_line(opened)})")

    def read(self, session_id: str, ttl_s: float | None = TTL_S, *, url: str | None = None) -> Messages:
        """Return what a new handle reads, and close it."""
        handle = self.open(session_id, ttl_s, url=url)
        try:
            return messages_of(handle)
        finally:
            self.close(handle)

    def close(self, handle: Handle) -> None:
        """Close a handle before the case ends."""
        self.handles.remove(handle)
        handle.close()

    def now_s(self) -> float:
        """Return the server's time, in seconds since 1970."""
        return self.clock.now().timestamp()

    def move_to(self, moment_s: float) -> None:
        """Move the server's time to a moment, in seconds since 1970."""
        self.clock.shift(timedelta(seconds=moment_s - self.now_s()))

    @contextlib.contextmanager
    def moving_deadlines(self) -> Iterator[None]:
        """Move the keys' deadlines instead of the clock."""
        self.reset()
        clock, self.clock = self.clock, ServerClock(self.control, prefix="")
        try:
            yield
        finally:
            self.clock = clock

    def clock_variables(self) -> dict[str, str]:
        """Return the variables of a process that has the server's moved clock; none if deadlines are moved."""
        if self.clock.method != "preload":
            return {}
        return {
            "LD_PRELOAD": str(self.server.directory / PRELOAD),
            "MEMKIT_CLOCK": str(self.server.directory / "clock"),
        }

    def keys(self) -> set[Key]:
        """Return every key of every database."""
        found: set[Key] = set()
        for name in self.control.info("keyspace"):
            number = int(name.removeprefix("db"))
            with self.database(number) as client:
                found |= {(number, key) for key in client.scan_iter(count=1000)}
        return found

    @contextlib.contextmanager
    def database(self, number: int) -> Iterator[redis.Redis]:
        """Yield the suite's client of one database."""
        if number == 0:
            yield self.control
            return
        url = self.server.url.removesuffix("/0") + f"/{number}"
        with redis.Redis.from_url(url, **CONTROL) as client:
            yield client

    def delete_all_keys(self) -> None:
        """Delete every key; search indexes, which FLUSHALL would drop, stay."""
        for number, key in self.keys():
            with self.database(number) as client:
                client.delete(key)

    def deadline_ms(self, key: Key) -> int | None:
        """Return when a key expires, in ms since 1970 on the server's clock; None for a key without TTL or no key."""
        with self.database(key[0]) as client, client.pipeline() as pipe:
            pipe.time()
            pipe.pttl(key[1])
            (seconds, micros), left_ms = pipe.execute()
        return None if left_ms < 0 else seconds * 1000 + micros // 1000 + left_ms

    def commands_of(self, work: Callable[[], object]) -> list[str]:
        """Return the commands that the server ran for some work of the store, those inside scripts included."""
        self.control.config_resetstat()
        work()
        names = sorted(name.removeprefix("cmdstat_") for name in self.control.info("commandstats"))
        return [name for name in names if name.split("|")[0] not in HANDSHAKE]

    @contextlib.contextmanager
    def denied(self, *rules: str) -> Iterator[None]:
        """Deny some commands or categories (``get``, ``@read``) to the store's user."""
        for rule in rules:
            with contextlib.suppress(redis.ResponseError):  # a command that this version does not have
                self.control.execute_command("ACL", "SETUSER", "default", f"-{rule}")
        try:
            yield
        finally:
            self.allow_all()

    def allow_all(self) -> None:
        """Allow the store's user every command."""
        self.control.execute_command("ACL", "SETUSER", "default", "+@all")


def messages_of(handle: Handle) -> Messages:
    """Return what a handle reads, each message as a plain pair."""
    return [(role, text) for role, text in handle.read()]


def attempt(work: Callable[[], Result]) -> Result | Exception:
    """Return what a store returned or raised: under a fault it may raise anything, and an error is a refusal."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001
        return error
