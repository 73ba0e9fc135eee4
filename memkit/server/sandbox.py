"""A key prefix nobody else has, enforced by the server (an ACL user), and removed without a trace.

What a sandbox writes is learnt from the server as it happens (CLIENT TRACKING in broadcast mode, for its prefix
alone), so that removing it costs the same beside a million foreign keys. A registry, written before the first key, lets
the next run remove what a killed one left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import socket
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import count, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote, urlsplit, urlunsplit

import redis
import redis.asyncio
from redis.connection import DefaultParser
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from memkit.connect import AnyAsyncClient, AnyClient, connect, connect_async, primaries, redact, scan
from memkit.errors import SandboxError
from memkit.server.clock import ServerClock, escape_glob
from memkit.server.guard import NAME, REGISTRY, guard_write, own_prefixes, sandboxes
from memkit.server.launcher import RedisServer

UNKNOWN_COMMAND = re.compile("unknown command", re.IGNORECASE)
LEASE_S = 60
RENEW_EVERY_S = 15.0
LISTENS_PER_LEASE = 15
"""What the server has pushed waits in its memory, which is not memkit's to fill, until it is read."""
KEYS_PER_PIPELINE = 1_000

# -@dangerous takes KEYS, FLUSH*, SORT, MIGRATE and more; what is left and reaches beyond the prefix or the database is
# named. COPY goes whole: an ACL cannot forbid its DB option alone. A token that a version does not know is dropped.
RULES = """
    -@all +@read +@write +@connection +@transaction +@scripting +@pubsub -@dangerous -@admin
    -randomkey -select -move -swapdb -copy -function -script +script|load +script|exists +info +restore +time
    -client +client|setinfo +client|setname +client|getname +client|id +client|info +client|no-touch +client|no-evict
    +client|reply +client|tracking +client|caching
    -cluster +cluster|slots +cluster|shards +cluster|nodes +cluster|info +cluster|myid +cluster|keyslot
""".split()  # noqa: SIM905  # read as the words that redis.conf takes


class LeftSandboxError(SandboxError, NoPermissionError):
    """The server refused a command that would leave the sandbox; also a redis-py NoPermissionError."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A sandbox's entry in the registry: whose it is, and until when (server time) where that cannot be asked."""

    user: str
    prefix: str
    until_ms: int
    machine: str
    pid: int
    started: str


class Sandbox:
    """A context manager around a key prefix of its own: ``client()``, ``async_client()``, ``prefix``, ``keys()``.

    ``where``: a RedisServer, or the URL of another server, which then has to pass the production guard. Commands on
    keys outside the prefix, on other databases, and FLUSH*, CONFIG, FUNCTION, ACL or MONITOR are refused by the server
    with a LeftSandboxError (SandboxError). SCAN is not filtered: it can show foreign names, never values. It protects
    against accidents, not attackers.

    Raises ProductionGuardError, or SandboxError when the server lets nobody make users.
    """

    def __init__(self, where: RedisServer | str) -> None:
        self._server = where if isinstance(where, RedisServer) else None
        self._admin_url = where.url if isinstance(where, RedisServer) else where
        token = secrets.token_hex(6)
        self.prefix = f"{NAME}:{token}:"
        self._user, self._password = f"{NAME}-{token}", secrets.token_urlsafe(18)
        self._keeper: _Keeper | None = None
        self._clock: ServerClock | None = None
        self._finalizer: weakref.finalize[..., Sandbox] | None = None

    @property
    def url(self) -> str:
        """The URL of the sandbox's own user."""
        return self._as_user(self._admin_url)

    @property
    def clock(self) -> ServerClock:
        """The private server's clock, or else one that shifts the deadlines of this sandbox's keys."""
        if self._server:
            return self._server.clock
        if not self._clock:  # one alone: it counts how far it has moved the deadlines
            self._clock = ServerClock(self._admin, prefix=self.prefix)
        return self._clock

    def open(self) -> Self:
        """Make the user and start to keep the lease; removes what killed runs left on this server first."""
        admin = self._admin
        if not self._server:
            guard_write(admin)  # first: not even what is memkit's own is removed where memkit may not write
        reap(admin)
        self._keeper = _Keeper(admin, self.prefix, self._user)
        self._keeper.write_lease()
        try:
            _make_user(admin, self._user, self._password, self.prefix, _database(admin))
        except RedisError as error:
            admin.hdel(REGISTRY, self._user)
            raise SandboxError(
                f"no sandbox on {redact(self._admin_url)}: the server would not make a user ({error}). Expected the "
                "right to ACL SETUSER; use a private server (no --real-redis) or an account that may"
            ) from error
        self._keeper.start()
        self._finalizer = weakref.finalize(self, _remove_in_owner, self._keeper, os.getpid())
        return self

    def client(self, *, decode_responses: bool = False, **options: Any) -> AnyClient:
        """Return a client of the sandbox's user; a MemoryStore on it nests in its ``_test_prefix``."""
        client = connect(self.url, decode_responses=decode_responses, **options)
        if isinstance(client, redis.Redis):
            pool = client.connection_pool
            pool.connection_class = _explaining(pool.connection_class, self.prefix)
        else:
            # A cluster's client makes its pools anew whenever the topology changes, and tells of each connection.
            client.user_on_connect_func = partial(_explain, prefix=self.prefix, then=client.user_on_connect_func)
            client.disconnect_connection_pools()
        client._test_prefix = self.prefix  # type: ignore[union-attr]
        return client

    def async_client(self, *, decode_responses: bool = False, **options: Any) -> AnyAsyncClient:
        """Return an asyncio client of the sandbox's user; see client()."""
        client = connect_async(self.url, decode_responses=decode_responses, **options)
        if isinstance(client, redis.asyncio.Redis):
            pool = client.connection_pool
            pool.connection_class = _explaining_async(pool.connection_class, self.prefix)
        else:
            nodes, options = client.nodes_manager.startup_nodes.values(), client.connection_kwargs
            options["connection_class"] = _explaining_async(options["connection_class"], self.prefix)
            for node in nodes:
                node.connection_class = options["connection_class"]
        client._test_prefix = self.prefix  # type: ignore[union-attr]
        return client

    def keys(self) -> list[str]:
        """Return the names of the keys in this sandbox, sorted."""
        return sorted(self._live().existing())

    def close(self) -> None:
        """Remove the user (which ends its connections), every key, and the registry's entry."""
        if self._finalizer:
            self._finalizer()

    def _live(self) -> _Keeper:
        if not self._keeper or not self._finalizer or not self._finalizer.alive:
            raise SandboxError("this sandbox is not open; use it in a with statement")
        return self._keeper

    @cached_property
    def _admin(self) -> AnyClient:
        """Connect as who opened the sandbox, under its name, by which the production guard knows memkit's own."""
        client = connect(self._admin_url, client_name=self._user)
        if isinstance(client, redis.Redis):
            client.connection_pool.connection_kwargs["client_name"] = self._user  # whatever the URL says
        return client

    def _as_user(self, url: str) -> str:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        query = re.sub(r"(^|&)(username|password)=[^&]*", "", parts.query).lstrip("&")
        return urlunsplit(parts._replace(netloc=f"{self._user}:{quote(self._password)}@{host}", query=query))

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Sandbox {self.prefix!r} on {redact(self._admin_url)}>"


def _remove_in_owner(keeper: _Keeper, pid: int) -> None:
    # A forked child must not remove what is its parent's; a server that is gone took everything with it.
    if os.getpid() == pid:
        with contextlib.suppress(redis.ConnectionError):
            keeper.remove()


class _Keeper(threading.Thread):
    """Learns the sandbox's keys from the server as they are written, renews the lease, and removes both at the end."""

    def __init__(self, admin: AnyClient, prefix: str, user: str) -> None:
        super().__init__(name=f"{user}-keeper", daemon=True)
        self._admin, self._prefix, self._user = admin, prefix, user
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._trackers = [_Tracker(node, own_prefixes(prefix)) for node in primaries(admin)]

    def write_lease(self) -> None:
        with self._lock:
            if not self._over.is_set():
                lease = Lease(self._user, self._prefix, _server_ms(self._admin) + LEASE_S * 1000, *_this_process())
                self._admin.hset(REGISTRY, self._user, json.dumps(asdict(lease)))

    def run(self) -> None:
        for turn in count(1):
            if self._over.wait(RENEW_EVERY_S / LISTENS_PER_LEASE):
                return
            with contextlib.suppress(RedisError):
                if turn % LISTENS_PER_LEASE == 0:
                    self.write_lease()
                self._listen()

    def _listen(self) -> None:
        with self._lock:
            for tracker in self._trackers if not self._over.is_set() else ():
                tracker.listen()

    def names(self) -> set[bytes]:
        """Return the names that the server has told so far; after a lost connection, those that are there as well."""
        with self._lock:
            told = [tracker.told() for tracker in self._trackers]
            missed = any(tracker.missed for tracker in self._trackers)
        return set().union(*told, _scan(self._admin, self._prefix) if missed else ())

    def existing(self) -> list[str]:
        names = list(self.names())
        there = _each(self._admin, "EXISTS", names)
        return [name.decode(errors="backslashreplace") for name, is_there in zip(names, there, strict=True) if is_there]

    def remove(self) -> None:
        self._over.set()
        _remove_user(self._admin, self._user)
        try:
            names: Iterable[bytes] = self.names()
        except RedisError:
            names = _scan(self._admin, self._prefix)
        _unlink(self._admin, names)
        with self._lock:  # a lease that is just being written would stay for ever, a tracker that listens connect anew
            self._admin.hdel(REGISTRY, self._user)
            for tracker in self._trackers:
                tracker.close()
        self._admin.close()


class _Tracker:
    """A connection on which the server pushes the names of keys that change. ``missed``: it has been lost meanwhile."""

    def __init__(self, node: redis.Redis, prefixes: tuple[str, ...]) -> None:
        pool = node.connection_pool
        # redis-py reads the answer to a health check of its own without taking in the pushes before it one by one.
        own = {"protocol": 3, "decode_responses": False, "health_check_interval": 0, "parser_class": _pushing_parser}
        options = pool.connection_kwargs | own
        self._connection: redis.Connection = pool.connection_class(**options)
        self._prefixes = [token for prefix in prefixes for token in ("PREFIX", prefix)]
        self._names: set[bytes] = set()
        self._listens = self.missed = False
        # redis-py connects a lost connection anew by itself, and to a connection of that kind nothing is told.
        self._connection.register_connect_callback(self._listen)
        self._connection.connect()

    def told(self) -> set[bytes]:
        """Return the names that have been pushed so far."""
        try:
            self._hear()
        except (redis.ConnectionError, redis.TimeoutError):
            self._hear()
        return set(self._names)

    def listen(self) -> None:
        """Take in what has been pushed meanwhile; a lost connection is made anew by the next call."""
        try:
            while self._connection.can_read():
                self._read()
        except redis.ConnectionError:
            self._connection.disconnect()

    def close(self) -> None:
        self._connection.disconnect()

    def _hear(self) -> None:
        # Names are pushed at the end of the server's loop in which they were written: the second PONG comes from a
        # later one.
        for _ in range(2):
            self._ask("PING", expected=b"PONG")

    def _listen(self, _: object) -> None:
        self.missed, self._listens = self._listens, True
        self._ask("CLIENT", "TRACKING", "ON", "BCAST", *self._prefixes, expected=b"OK")

    def _ask(self, *command: str, expected: bytes) -> None:
        self._connection.send_command(*command)
        while self._read() != expected:
            pass

    def _read(self) -> Any:
        """Read one answer or push. Unless it returns each push, redis-py 8.1 recurses once for every one in a row."""
        said = self._connection.read_response(push_request=True)
        if isinstance(said, list) and said[0] == b"invalidate":
            self._names.update(said[1] or ())
        return said


def _pushing_parser(socket_read_size: int) -> Any:
    """Return redis-py's parser, set to return invalidations instead of dropping them."""
    parser: Any = DefaultParser(socket_read_size)
    parser.set_invalidation_push_handler(lambda push: push)
    return parser


def reap(admin: AnyClient) -> list[str]:
    """Remove the sandboxes of runs that are over; return their prefixes.

    Over: its process on this machine is known to be gone; or, where that cannot be known, its lease has run out. A
    living process's sandbox is never touched, however late its lease.
    """
    reaped = []
    for prefix in sandboxes(admin):
        user = prefix.rstrip(":").replace(":", "-")
        entry = admin.hget(REGISTRY, user)
        lease = Lease(**json.loads(cast("bytes", entry))) if entry else None  # its owner may just have closed it
        if lease and lease.prefix == prefix and _is_over(lease, admin):
            _remove_user(admin, user)
            _unlink(admin, _scan(admin, prefix))
            admin.hdel(REGISTRY, user)
            reaped.append(prefix)
    return reaped


def _is_over(lease: Lease, admin: AnyClient) -> bool:
    machine, _, _ = _this_process()
    if lease.machine == machine:
        return _process_started(lease.pid) != lease.started
    return _server_ms(admin) > lease.until_ms


def _this_process() -> tuple[str, int, str]:
    return _machine(), os.getpid(), _process_started(os.getpid())


def _machine() -> str:
    """Name this machine, boot and PID namespace: where a PID of the registry can be asked for."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        name += Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
        name += str(Path("/proc/self/ns/pid").readlink())
    return name


def _process_started(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; "" when it is gone. A number is reused, both are not."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return "" if fields[0] == "Z" else fields[19]
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"


def _server_ms(client: AnyClient) -> int:
    node = primaries(client)[0]
    seconds, micros = node.time()
    return seconds * 1000 + micros // 1000


def _nodes(client: AnyClient) -> list[redis.Redis]:
    """All nodes, replicas included: ACL users are not replicated."""
    if isinstance(client, redis.RedisCluster):
        return [client.get_redis_connection(node) for node in client.get_nodes()]
    return [client]


def _database(client: AnyClient) -> int:
    return 0 if isinstance(client, redis.RedisCluster) else int(client.connection_pool.connection_kwargs.get("db") or 0)


def _make_user(admin: AnyClient, user: str, password: str, prefix: str, database: int) -> None:
    own = [f"~{pattern}*" for pattern in own_prefixes(escape_glob(prefix))]
    channels = ["resetchannels", f"&{prefix}*", f"&__keyspace@{database}__:{prefix}*"]
    # redis-py selects a database other than 0 when it connects; SELECT of that one alone is allowed.
    select = [f"+select|{database}"]
    base = ["reset", "on", f">{password}", *own, *channels]
    for node in _nodes(admin):
        try:
            node.execute_command("ACL", "SETUSER", user, *base, *RULES, *select)
        except ResponseError as error:
            if not UNKNOWN_COMMAND.search(str(error)):
                raise
            _make_user_by_parts(node, user, [base, *([rule] for rule in [*RULES, *select])])


def _make_user_by_parts(node: redis.Redis, user: str, parts: list[list[str]]) -> None:
    """Make the user on a version that does not know every command in the rules (6.2 has no FUNCTION)."""
    for part in parts:
        try:
            node.execute_command("ACL", "SETUSER", user, *part)
        except ResponseError as error:
            if not UNKNOWN_COMMAND.search(str(error)):
                raise


def _remove_user(admin: AnyClient, user: str) -> None:
    for node in _nodes(admin):
        node.acl_deluser(user)


def _scan(admin: AnyClient, prefix: str) -> Iterator[bytes]:
    for node in primaries(admin):
        for own in own_prefixes(prefix):
            yield from scan(node, f"{escape_glob(own)}*")


def _unlink(admin: AnyClient, names: Iterable[bytes]) -> None:
    for _ in _each(admin, "UNLINK", names):
        pass


def _each(admin: AnyClient, command: str, names: Iterable[bytes]) -> Iterator[int]:
    """Run a command on each key; yield the answers."""
    if isinstance(admin, redis.RedisCluster):
        for name in names:
            yield admin.execute_command(command, name)
        return
    left = iter(names)
    with admin.pipeline(transaction=False) as pipe:
        while some := list(islice(left, KEYS_PER_PIPELINE)):
            for name in some:
                pipe.execute_command(command, name)
            yield from pipe.execute()


def _explaining(base: type[Any], prefix: str) -> type[Any]:
    """Return a connection class whose refusals are told in memkit's words."""

    class Explaining(base):  # type: ignore[misc]
        def read_response(self, *args: Any, **options: Any) -> Any:
            with _in_our_words(prefix):
                return _each_told(prefix, super().read_response(*args, **options))

    return Explaining


def _explain(connection: Any, *, prefix: str, then: Callable[[Any], None] | None) -> None:
    """Let a connection that has just been made tell refusals in memkit's words."""
    plain = type(connection).read_response  # the class's: a connection that is made anew is not wrapped twice

    def read_response(*args: Any, **options: Any) -> Any:
        with _in_our_words(prefix):
            return _each_told(prefix, plain(connection, *args, **options))

    connection.read_response = read_response
    if then:
        then(connection)


@contextlib.contextmanager
def _in_our_words(prefix: str) -> Iterator[None]:
    try:
        yield
    except ResponseError as error:
        told = _told(prefix, error)
        if told is error:
            raise
        raise told from error


def _each_told(prefix: str, answer: Any) -> Any:
    """Return an answer; what EXEC was refused is not raised by redis-py's connections, but in its list."""
    if isinstance(answer, list) and any(isinstance(one, ResponseError) for one in answer):
        return [_told(prefix, one) if isinstance(one, ResponseError) else one for one in answer]
    return answer


def _explaining_async(base: type[Any], prefix: str) -> type[Any]:
    """Return the same for asyncio; its connections close with the event loop that they belong to."""

    class Explaining(base):  # type: ignore[misc]
        async def connect(self) -> None:
            await super().connect()
            loop = asyncio.get_running_loop()
            if getattr(self, "loop", None) is not loop:
                self.loop, self.until_the_loop_ends = loop, _until_the_loop_ends(self)
                await anext(self.until_the_loop_ends)

        async def read_response(self, *args: Any, **options: Any) -> Any:
            with _in_our_words(prefix):
                return _each_told(prefix, await super().read_response(*args, **options))

    return Explaining


async def _until_the_loop_ends(connection: Any) -> AsyncIterator[None]:
    # asyncio.run() and test runners finish the generators of a loop before they close it; after that, nothing could
    # close the connection.
    try:
        yield
    finally:
        await connection.disconnect()


def _told(prefix: str, error: ResponseError) -> ResponseError:
    """Return the refusal in memkit's words, any other error as it is. In a script it is no NoPermissionError."""
    if not isinstance(error, NoPermissionError) and not re.search(r"NOPERM|can't (run|access)|permission", str(error)):
        return error
    return LeftSandboxError(
        f"outside the sandbox: the server refused it ({error}). Expected keys that begin with {prefix!r}, in this "
        "database, and no command that reaches beyond them; a MemoryStore on this client nests there by itself"
    )
