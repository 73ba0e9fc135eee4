"""A random key prefix that the server enforces (an ACL user), and that is removed without a trace.

The server pushes the names of the keys that a sandbox writes (CLIENT TRACKING in broadcast mode, for its prefix only),
so that removing them costs the same beside a million foreign keys. A registry, written before the first key, lets the
next run remove what a killed run left.
"""

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
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Self, cast
from urllib.parse import quote, urlsplit, urlunsplit

import redis
import redis.asyncio
from redis.connection import DefaultParser
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from memkit.connect import (
    SHORT_HANDSHAKE,
    AnyAsyncClient,
    AnyClient,
    chunks,
    connect,
    connect_async,
    escape_glob,
    execute_undecoded,
    primaries,
    redact,
    scan,
)
from memkit.errors import LeftSandboxError, SandboxError
from memkit.server.clock import ServerClock
from memkit.server.guard import NAME, REGISTRY, guard_write, own_prefixes, sandboxes
from memkit.server.launcher import RedisServer

UNKNOWN_COMMAND = re.compile("unknown command", re.IGNORECASE)
LEASE_S = 60
RENEW_EVERY_S = 15.0
LISTENS_PER_LEASE = 15
"""Pushed names wait in the server's memory until they are read."""
KEYS_PER_PIPELINE = 1_000

# -@dangerous removes KEYS, FLUSH*, SORT, MIGRATE and more; the others that reach beyond the prefix or the database are
# named. COPY is removed because an ACL cannot deny its DB option alone. Rules that a version lacks are skipped.
RULES = """
    -@all +@read +@write +@connection +@transaction +@scripting +@pubsub -@dangerous -@admin
    -randomkey -select -move -swapdb -copy -function -script +script|load +script|exists +info +restore +time
    -client +client|setinfo +client|setname +client|getname +client|id +client|info +client|no-touch +client|no-evict
    +client|reply +client|tracking +client|caching
    -cluster +cluster|slots +cluster|shards +cluster|nodes +cluster|info +cluster|myid +cluster|keyslot
""".split()  # noqa: SIM905  # read as the words that redis.conf takes
Explain = Callable[[ResponseError], ResponseError]


@dataclass(frozen=True, slots=True)
class Lease:
    """A sandbox's entry in the registry.

    ``machine`` is the machine, boot and PID namespace of the process, ``started`` its start time. ``until_ms``, in
    server time, decides if the process cannot be looked up.
    """

    user: str
    prefix: str
    until_ms: int
    machine: str
    pid: int
    started: str


class Sandbox:
    """A context manager for a random key prefix: ``client()``, ``async_client()``, ``prefix``, ``keys()``.

    The server refuses commands on keys outside the prefix, on other databases, and FLUSH*, CONFIG, FUNCTION, ACL and
    MONITOR with a LeftSandboxError. SCAN is not filtered: it can return foreign names, never values. A sandbox protects
    against accidents, not against attackers. ``url`` has the sandbox's user.

    Args:
        server_or_url: A RedisServer, or the URL of another server, which must pass the production guard.
        parent: An open sandbox on the same server. The new one has a prefix within it, and shares its user and its
            connections; opening it costs nothing, and only its keys are removed.

    Raises:
        ProductionGuardError: The production guard does not allow writing.
        SandboxError: The server does not allow making a user.
    """

    def __init__(self, server_or_url: RedisServer | str, *, parent: Self | None = None) -> None:
        self._server_or_url = server_or_url
        self._parent = parent
        self._host: SandboxHost = parent._host if parent else SandboxHost(server_or_url)
        self.url = url_for_user(self._host.url, self._host.user, self._host.password)
        self.prefix: str = f"{parent.prefix}{secrets.token_hex(3)}:" if parent else self._host.prefix
        self._pools: dict[bool, redis.ConnectionPool] = {}
        self._latest_child: Sandbox = self
        # Only one, because it counts how far it has moved the deadlines.
        self._clock = ServerClock(self._host.admin, prefix=self.prefix)
        self._finalizer: weakref.finalize[..., Sandbox] | None = None

    @property
    def clock(self) -> ServerClock:
        """The private server's clock; on another server, one that shifts the deadlines of this sandbox's keys."""
        return self._server_or_url.clock if isinstance(self._server_or_url, RedisServer) else self._clock

    def open(self) -> Self:
        """Remove what killed runs left on this server, make the user, and start to renew the lease.

        Raises:
            ProductionGuardError: The production guard does not allow writing.
            SandboxError: The server does not allow making a user.
        """
        if not self._parent:
            self._host.open()
        self._finalizer = weakref.finalize(self, _remove_in_owner, self._host, self.prefix, os.getpid())
        return self

    def client(self, *, decode_responses: bool = False, **options: Any) -> AnyClient:
        """Return a client of the sandbox's user, with redis-py's options; stores on it nest in its ``_test_prefix``."""
        parent = None if options else self._parent
        owner = parent or self
        owner._latest_child = self
        if parent and decode_responses in parent._pools:
            client: AnyClient = redis.Redis(connection_pool=parent._pools[decode_responses])
        else:
            client = connect(self.url, decode_responses=decode_responses, **SHORT_HANDSHAKE | options)
            explain_refusals(client, lambda error: owner._latest_child._explained(error))
            if parent and isinstance(client, redis.Redis):
                # Kept for the next sandbox of the parent: connecting takes 2 ms (measured).
                client.auto_close_connection_pool = False
                parent._pools[decode_responses] = client.connection_pool
        client._test_prefix = self.prefix  # type: ignore[union-attr]
        return client

    def async_client(self, *, decode_responses: bool = False, **options: Any) -> AnyAsyncClient:
        """Return an asyncio client of the sandbox's user, with redis-py's options."""
        client = connect_async(self.url, decode_responses=decode_responses, **SHORT_HANDSHAKE | options)
        explain_refusals_async(client, self._explained)
        client._test_prefix = self.prefix  # type: ignore[union-attr]
        return client

    def _explained(self, error: ResponseError) -> ResponseError:
        """Return a refusal with memkit's explanation, any other error unchanged."""
        if not is_refusal(error):
            return error
        return LeftSandboxError(
            f"outside the sandbox: the server refused the command ({error}). Expected keys that begin with "
            f"{self.prefix!r}, in this database, and no command that reaches beyond them; a MemoryStore on this client "
            "nests its prefix there. For an application with its own key names use the fixture redis_client (or "
            "async_redis_client), or redis_client_url if it makes its own connections"
        )

    def keys(self) -> list[str]:
        """Return the names of the keys in this sandbox, sorted.

        Raises:
            SandboxError: The sandbox is not open.
        """
        if not self._finalizer or not self._finalizer.alive:
            raise SandboxError("this sandbox is not open; use it in a with statement")
        names = list(self._host.names(self.prefix))
        exist = _each(self._host.admin, "EXISTS", names)
        return sorted(
            name.decode(errors="backslashreplace") for name, is_there in zip(names, exist, strict=True) if is_there
        )

    def close(self) -> None:
        """Remove the user (which ends its connections), every key, and the registry's entry."""
        if self._finalizer:
            self._finalizer()
        pools = self._parent._pools if self._parent else self._pools
        for name, pool in list(pools.items()):
            # A connection that the test did not return may be in any state.
            _, (in_use, _) = pool.get_connection_count()
            if in_use or not self._parent:
                pools.pop(name).disconnect()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Sandbox {self.prefix!r} on {redact(self._host.url)}>"


class SandboxHost:
    """The user, the lease and the connections of a sandbox; the sandboxes within it share them."""

    def __init__(self, server_or_url: RedisServer | str) -> None:
        self._is_private = isinstance(server_or_url, RedisServer)
        self.url = server_or_url.url if isinstance(server_or_url, RedisServer) else server_or_url
        self.token = secrets.token_hex(6)
        self.user, self.password = f"{NAME}-{self.token}", secrets.token_urlsafe(18)
        self.prefix = f"{NAME}:{self.token}:"
        self.admin = named_client(self.url, self.user)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._trackers: list[_Tracker] = []

    def open(self) -> None:
        """Remove what killed runs left, make the user, and start to renew the lease, if the guard allows writing."""
        if not self._is_private:
            guard_write(self.admin)  # first: where memkit may not write, it removes nothing of its own either
        self._trackers = [_Tracker(node, own_prefixes(self.prefix)) for node in primaries(self.admin)]
        remove_ended_runs(self.admin)
        keys = [f"~{pattern}*" for pattern in own_prefixes(escape_glob(self.prefix))]
        events = f"&__keyspace@{database_of(self.admin)}__:{self.prefix}*"
        try:
            with self._lock:
                self._write_lease()
            channels = ["resetchannels", f"&{self.prefix}*", events]
            make_user(self.admin, self.user, self.password, [*keys, *channels], RULES)
        except RedisError as error:
            with contextlib.suppress(RedisError):
                self._close()
            raise no_user_error("sandbox", self.url, error) from error
        threading.Thread(target=self._renew, name=f"{self.user}-renewal", daemon=True).start()

    def names(self, prefix: str) -> set[bytes]:
        """Return the names of the keys that a sandbox wrote; after a lost connection, those that exist too."""
        own = tuple(start.encode() for start in own_prefixes(prefix))
        with self._lock:
            pushed = set().union(*(tracker.names() for tracker in self._trackers))
            incomplete = any(tracker.missed for tracker in self._trackers)
        found = {name for name in pushed if name.startswith(own)}
        return found.union(_scan(self.admin, prefix)) if incomplete else found

    def remove(self, prefix: str) -> None:
        """Remove the keys of a sandbox; with the outermost one, the user and the entry in the registry."""
        for node in all_nodes(self.admin) if prefix == self.prefix else ():
            node.acl_deluser(self.user)
        try:
            names: Iterable[bytes] = self.names(prefix)
        except RedisError:
            names = _scan(self.admin, prefix)
        unlink(self.admin, names)
        if prefix == self.prefix:
            self._close()
        else:
            with self._lock:
                for tracker in self._trackers:
                    tracker.forget(own_prefixes(prefix))

    def _close(self) -> None:
        """Close the connections and remove the entry in the registry."""
        with self._lock:  # a lease that is being written would remain for ever; a tracker that listens would reconnect
            self._closed.set()
            for tracker in self._trackers:
                tracker.close()
            with contextlib.closing(self.admin):
                self.admin.hdel(REGISTRY, self.user)

    def _write_lease(self) -> None:
        until_ms = _server_ms(self.admin) + LEASE_S * 1000
        lease = Lease(self.user, self.prefix, until_ms, _machine(), os.getpid(), _process_started(os.getpid()))
        self.admin.hset(REGISTRY, self.user, json.dumps(asdict(lease)))

    def _renew(self) -> None:
        for turn in count(1):
            if self._closed.wait(RENEW_EVERY_S / LISTENS_PER_LEASE):
                return
            with contextlib.suppress(RedisError), self._lock:
                if turn % LISTENS_PER_LEASE == 0 and not self._closed.is_set():
                    self._write_lease()
                for tracker in self._trackers if not self._closed.is_set() else ():
                    tracker.listen()


def _remove_in_owner(host: SandboxHost, prefix: str, pid: int) -> None:
    # A forked child must not remove its parent's sandbox; a server that has ended has no keys.
    if os.getpid() == pid:
        with contextlib.suppress(redis.ConnectionError):
            host.remove(prefix)


class _Tracker:
    """A connection on which the server pushes the names of keys that change. ``missed``: it was lost meanwhile."""

    def __init__(self, node: redis.Redis, prefixes: tuple[str, ...]) -> None:
        def pushing_parser(socket_read_size: int) -> Any:
            parser: Any = DefaultParser(socket_read_size)
            parser.set_invalidation_push_handler(lambda push: push)  # returned instead of dropped
            return parser

        pool = node.connection_pool
        options: dict[str, Any] = {
            "protocol": 3,
            "decode_responses": False,
            # redis-py reads the reply to its own health check without returning each push before it.
            "health_check_interval": 0,
            "parser_class": pushing_parser,
        }
        self._connection: redis.Connection = pool.connection_class(**pool.connection_kwargs | options)
        self._prefixes = [token for prefix in prefixes for token in ("PREFIX", prefix)]
        self._names: set[bytes] = set()
        self._was_connected = self.missed = False
        # redis-py reconnects a lost connection by itself; the new one does not track yet.
        self._connection.register_connect_callback(self._track)
        self._connection.connect()

    def names(self) -> set[bytes]:
        try:
            self._receive()
        except (redis.ConnectionError, redis.TimeoutError):
            self._receive()
        return set(self._names)

    def forget(self, prefixes: tuple[str, ...]) -> None:
        """Drop the names of a sandbox that was removed."""
        removed = tuple(prefix.encode() for prefix in prefixes)
        self._names = {name for name in self._names if not name.startswith(removed)}

    def listen(self) -> None:
        """Read what has been pushed meanwhile; the next call reconnects a lost connection."""
        try:
            while self._connection.can_read():
                self._read()
        except redis.ConnectionError:
            self._connection.disconnect()

    def close(self) -> None:
        self._connection.disconnect()

    def _receive(self) -> None:
        # Names are pushed at the end of the event loop's turn in which they were written: the second PONG comes from a
        # later turn.
        for _ in range(2):
            self._ask("PING", expected=b"PONG")

    def _track(self, _: object) -> None:
        self.missed, self._was_connected = self._was_connected, True
        self._ask("CLIENT", "TRACKING", "ON", "BCAST", *self._prefixes, expected=b"OK")

    def _ask(self, *command: str, expected: bytes) -> None:
        self._connection.send_command(*command)
        while self._read() != expected:
            pass

    def _read(self) -> Any:
        """Read one reply or push. redis-py 8.1 recurses once for each push in a row unless it returns each."""
        reply = self._connection.read_response(push_request=True)
        if isinstance(reply, list) and reply[0] == b"invalidate":
            self._names.update(reply[1] or ())
        return reply


def remove_ended_runs(admin: AnyClient) -> list[str]:
    """Remove the sandboxes of runs that have ended; return their prefixes.

    A run has ended if its process, on this machine, no longer exists. If that cannot be looked up, the lease decides. A
    running process keeps its sandbox, even if its lease is late.
    """
    reaped = []
    for prefix in sandboxes(admin):
        user = prefix.rstrip(":").replace(":", "-")
        entry = execute_undecoded(admin, "HGET", REGISTRY, user)
        lease = Lease(**json.loads(cast("bytes", entry))) if entry else None  # None: its owner has just closed it
        if not lease or lease.prefix != prefix:
            continue
        here = lease.machine == _machine()
        if _process_started(lease.pid) != lease.started if here else _server_ms(admin) > lease.until_ms:
            for node in all_nodes(admin):
                node.acl_deluser(user)
            unlink(admin, _scan(admin, prefix))
            admin.hdel(REGISTRY, user)
            reaped.append(prefix)
    return reaped


def _machine() -> str:
    """Return a name for this machine, boot and PID namespace: within it a PID can be looked up."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        name += Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
        name += str(Path("/proc/self/ns/pid").readlink())
    return name


def _process_started(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; "" if it has ended. Only both together are never reused."""
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
    return "running"


def _server_ms(client: AnyClient) -> int:
    node = primaries(client)[0]
    seconds, micros = node.time()
    return seconds * 1000 + micros // 1000


def all_nodes(client: AnyClient) -> list[redis.Redis]:
    """Return all nodes, replicas included: ACL users are not replicated."""
    if isinstance(client, redis.RedisCluster):
        return [client.get_redis_connection(node) for node in client.get_nodes()]
    return [client]


def url_for_user(url: str, user: str, password: str) -> str:
    """Return a URL with another user."""
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    query = re.sub(r"(^|&)(username|password)=[^&]*", "", parts.query).lstrip("&")
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password)}@{address}", query=query))


def database_of(client: AnyClient) -> int:
    """Return the number of a client's database."""
    return 0 if isinstance(client, redis.RedisCluster) else int(client.connection_pool.connection_kwargs.get("db") or 0)


def named_client(url: str, name: str) -> AnyClient:
    """Return a client with a name, by which the production guard recognises memkit's connections."""
    client = connect(url, client_name=name, **SHORT_HANDSHAKE)
    if isinstance(client, redis.Redis):
        client.connection_pool.connection_kwargs["client_name"] = name  # also if the URL has another
    return client


def no_user_error(what: str, url: str, error: RedisError) -> SandboxError:
    """Return the error for a server that refused to make a user."""
    return SandboxError(
        f"no {what} on {redact(url)}: the server did not make a user ({error}). Expected the right to ACL SETUSER; "
        "use a private server (no --real-redis) or an account with that right"
    )


def make_user(admin: AnyClient, user: str, password: str, keys_and_channels: list[str], rules: Sequence[str]) -> None:
    """Make an ACL user on every node; rules for commands that its version lacks are skipped."""
    base = ["reset", "on", f">{password}", *keys_and_channels]
    # redis-py selects a database other than 0 when it connects; SELECT of no other is allowed.
    select = f"+select|{database_of(admin)}"
    for node in all_nodes(admin):
        if not _accepts(node, user, *base, *rules, select):  # 6.2 has no FUNCTION
            _accepts(node, user, *base)
            for rule in (*rules, select):
                _accepts(node, user, rule)


def _accepts(node: redis.Redis, user: str, *rules: str) -> bool:
    """Set rules of a user; return whether the server knows their commands."""
    try:
        node.execute_command("ACL", "SETUSER", user, *rules)
    except ResponseError as error:
        if not UNKNOWN_COMMAND.search(str(error)):
            raise
        return False
    return True


def _scan(admin: AnyClient, prefix: str) -> Iterator[bytes]:
    for node in primaries(admin):
        for own in own_prefixes(prefix):
            yield from scan(node, f"{escape_glob(own)}*")


def unlink(admin: AnyClient, names: Iterable[bytes]) -> None:
    """Remove keys."""
    for _ in _each(admin, "UNLINK", names):
        pass


def _each(admin: AnyClient, command: str, names: Iterable[bytes]) -> Iterator[int]:
    with admin.pipeline(transaction=False) as pipe:
        for some in chunks(names, KEYS_PER_PIPELINE):
            for name in some:
                pipe.execute_command(command, name)
            yield from pipe.execute()


def explain_refusals(client: AnyClient, explain: Explain) -> None:
    """Make a client raise the errors of ``explain``."""
    if isinstance(client, redis.Redis):
        options = client.connection_pool.connection_kwargs
        connect = options.get("redis_connect_func") or redis.Connection.on_connect
        options["redis_connect_func"] = partial(_explain, explain=explain, then=connect)
    else:
        # A cluster's client makes its pools anew whenever the topology changes, and reports each connection.
        client.user_on_connect_func = partial(_explain, explain=explain, then=client.user_on_connect_func)
        client.disconnect_connection_pools()


def explain_refusals_async(client: AnyAsyncClient, explain: Explain) -> None:
    """Make an asyncio client raise the errors of ``explain``, and close with its event loop."""
    if isinstance(client, redis.asyncio.Redis):
        pool = client.connection_pool
        pool.connection_class = _explaining_async(pool.connection_class, explain)
    else:
        options = client.connection_kwargs
        options["connection_class"] = _explaining_async(options["connection_class"], explain)
        for node in client.nodes_manager.startup_nodes.values():
            node.connection_class = options["connection_class"]


def close_async_connections(client: AnyAsyncClient) -> None:
    """Close a client's connections after its test, in event loops that go on, such as a module's or a session's."""
    pool: Any = getattr(client, "connection_pool", None)  # a cluster's client has one for each node
    explaining = pool.connection_class if pool else cast("Any", client).connection_kwargs["connection_class"]
    for connection in tuple(explaining.connected):
        if not (connection.loop.is_closed() or connection.loop.is_running()):
            connection.loop.run_until_complete(connection.disconnect())


def is_refusal(error: ResponseError) -> bool:
    """Whether the server refused a command because of the user's rights; within a script it is a plain error."""
    return isinstance(error, NoPermissionError) or bool(re.search(r"NOPERM|can't (run|access)|permission", str(error)))


def _explain(connection: Any, *, explain: Explain, then: Callable[[Any], None] | None) -> None:
    read = type(connection).read_response  # the class's: a connection that reconnects is not wrapped twice

    def read_response(*args: Any, **options: Any) -> Any:
        try:
            return _explained_replies(explain, read(connection, *args, **options))
        except ResponseError as error:
            raise explain(error) from None

    connection.read_response = read_response
    if then:
        then(connection)


def _explained_replies(explain: Explain, reply: Any) -> Any:
    """Return a reply; redis-py's connections return the errors of EXEC in a list instead of raising them."""
    if isinstance(reply, list) and any(isinstance(one, ResponseError) for one in reply):
        return [explain(one) if isinstance(one, ResponseError) else one for one in reply]
    return reply


def _explaining_async(base: type[Any], explain: Explain) -> type[Any]:
    """Return an asyncio connection class that raises the errors of ``explain`` and closes with its event loop."""

    class Explaining(base):  # type: ignore[misc]
        # Kept: a connection that is collected while its event loop goes on is not closed, and Python warns.
        connected: ClassVar[set[Any]] = set()

        async def connect(self) -> None:
            await super().connect()
            loop = asyncio.get_running_loop()
            if getattr(self, "loop", None) is not loop:
                self.loop, self.until_the_loop_ends = loop, _until_the_loop_ends(self)
                await anext(self.until_the_loop_ends)
            self.connected.add(self)

        async def disconnect(self, *args: Any, **options: Any) -> None:
            self.connected.discard(self)
            await super().disconnect(*args, **options)

        async def read_response(self, *args: Any, **options: Any) -> Any:
            try:
                return _explained_replies(explain, await super().read_response(*args, **options))
            except ResponseError as error:
                raise explain(error) from None

    return Explaining


async def _until_the_loop_ends(connection: Any) -> AsyncIterator[None]:
    # asyncio.run() and test runners finish the generators of a loop before they close it. After that, nothing could
    # close the connection.
    try:
        yield
    finally:
        await connection.disconnect()
