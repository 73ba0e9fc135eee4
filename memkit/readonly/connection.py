"""ReadOnlyConnection: one connection to one server, for commands that read; it counts every command that it sends.

Commands are sent as ready bytes, in batches, and replies are read from the socket. redis-py packs each argument and
reads each reply in Python, which costs ten times what the server needs (measured); a full pass over a million keys is
two million replies. Connecting, TLS and credentials are left to redis-py. This is the only file of memkit that uses a
private attribute of redis-py.
"""

from __future__ import annotations

import timeit
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import hiredis
import redis

from memkit.connect import SHORT_HANDSHAKE

READ_BYTES = 1 << 17
REPLY_TIMEOUT_S = 30.0
"""More than the time to connect: a slow command of another client may delay a batch."""
SCAN_COUNT = 1_000
PINGS = 5
SAFE_IN_A_CLUSTER = 9
"""The Valkey from which on CLIENT NO-TOUCH is safe in a cluster. With it, Redis 8.2.3 crashes at a command for a key of
a slot that moves (measured: a null pointer, since redis/redis#13512; in Valkey 8.1 until valkey-io/valkey#2347).
"""

_CONTAINERS = frozenset({"client", "config", "memory", "object", "latency", "slowlog", "cluster", "acl"})
_KEY_COMMANDS = {
    name: b"*%d\r\n" % (len(words) + 1) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
    for name in ("type", "pexpiretime", "pttl", "object|idletime", "object|encoding", "memory|usage", "exists")
    for words in [name.upper().encode().split(b"|")]
}
"""Each command that takes one key, packed up to that key. They do not reset idle times (6.2 to 8.2, Valkey 9)."""

Reply = Any
"""What hiredis returns; a refused command's reply is a ``redis.ResponseError``, which is returned, not raised."""


class Command(NamedTuple):
    """One packed command, with its name as INFO commandstats has it: ``scan``, ``object|idletime``."""

    name: str
    payload: bytes


class KeyCommands(NamedTuple):
    """Commands that take one key, each for all keys: ``TYPE a``, ``TYPE b``, ``PTTL a``, ``PTTL b``."""

    keys: Sequence[bytes]
    names: Sequence[str]


def command(*args: str | bytes | int) -> Command:
    """Pack one command."""
    parts = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    name = parts[0].decode().lower()
    name = f"{name}|{parts[1].decode().lower()}" if name in _CONTAINERS else name
    return Command(name, b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]))


def refused(reply: Reply) -> bool:
    """Return whether the server refused the command."""
    return isinstance(reply, Exception)


def redirected(reply: Reply) -> bool:
    """Return whether a server of a cluster refused a command because the key's slot moved, or is moving."""
    return isinstance(reply, Exception) and str(reply).startswith(("MOVED ", "ASK ", "TRYAGAIN "))


def info_fields(reply: Reply) -> dict[str, str]:
    """Return the fields of a reply to INFO; none if it was refused."""
    text = "" if refused(reply) else reply.decode("utf-8", "replace")
    lines = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in lines if colon}


class PendingReplies:
    """Replies to commands that were sent together; they are taken in the order of the commands."""

    __slots__ = ("_connection", "missing", "received")

    def __init__(self, connection: ReadOnlyConnection, count: int) -> None:
        self._connection = connection
        self.missing = count
        self.received: list[Reply] = []

    def take(self, count: int | None = None) -> list[Reply]:
        """Return the next ``count`` replies, or all that were not taken; wait for those that have not arrived."""
        lacking = self.missing if count is None else count - len(self.received)
        if lacking > 0:
            self._connection.receive(self, lacking)
        if count is None or count == len(self.received):
            taken, self.received = self.received, []
        else:
            taken = self.received[:count]
            del self.received[:count]
        return taken

    def columns(self, commands: KeyCommands) -> dict[str, list[Reply]]:
        """Return the replies to commands for many keys: by the name of the command, one for each key."""
        count = len(commands.keys)
        replies = self.take(count * len(commands.names))
        return {name: replies[at * count : (at + 1) * count] for at, name in enumerate(commands.names)}


class ReadOnlyConnection:
    """A connection for commands that read, in RESP2, made with the client's own settings (TLS, socket, user, Sentinel).

    It is not taken from the client's pool: CLIENT NO-TOUCH belongs to a connection and must not reach the application's
    commands. With ``replica``, a cluster's replica answers for its primary's keys (READONLY).

    Attributes:
        sent: How often each command was sent.
        why_idle_times_reset: Why reading a value resets its idle time; empty if NO-TOUCH is on, so that it does not.
        tolerant: Whether a broken connection raises nothing.
        failure: The error of a broken connection that is tolerant; it is the reply to every later command.
        socket: The socket, for a subscription: its messages are not replies.
        reader: The parser of the replies (hiredis), for a subscription.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        name: str = "",
        keep_idle_times: bool = True,
        replica: bool = False,
        tolerant: bool = False,
    ) -> None:
        pool = client.connection_pool
        # Maintenance notifications need RESP3 (redis-py 7 and later) and belong to the client's own pool.
        options = {key: value for key, value in pool.connection_kwargs.items() if not key.startswith("maint_")}
        self._connection: Any = pool.connection_class(
            **{**SHORT_HANDSHAKE, **options, "protocol": 2, "decode_responses": False}
        )
        self.name = name
        self.database = int(options.get("db") or 0)
        self._keep_idle_times, self._replica = keep_idle_times, replica
        self.sent: Counter[str] = Counter()
        self.tolerant = tolerant
        self.failure: redis.RedisError | None = None
        self.reconnect()

    def reconnect(self) -> None:
        """Connect, or connect again if replies that were not received are no longer wanted."""
        self._pending: deque[PendingReplies] = deque()
        self.why_idle_times_reset = ""
        try:
            self._connection.disconnect()
            self._connection.connect()
        except redis.AuthenticationError:
            raise
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._fail(error)
            return
        self.socket = self._connection._sock
        self.socket.settimeout(REPLY_TIMEOUT_S)
        self.reader = hiredis.Reader(protocolError=redis.InvalidResponse, replyError=redis.ResponseError)
        if self._replica:
            self.ask("READONLY")
        self.why_idle_times_reset = (
            self._turn_no_touch_on() if self._keep_idle_times else "CLIENT NO-TOUCH was not sent"
        )

    def _turn_no_touch_on(self) -> str:
        """Send CLIENT NO-TOUCH if that is safe; return why reading a value resets its idle time nevertheless."""
        reply = self.ask("CLUSTER", "MYID")
        if str(reply).startswith("NOAUTH"):
            raise redis.AuthenticationError(str(reply))
        if "cluster support disabled" not in str(reply):
            about = self.ask("INFO", "server")
            version = info_fields(about).get("valkey_version", "")
            if int(version.partition(".")[0] or 0) < SAFE_IN_A_CLUSTER:
                unknown = "CLUSTER MYID is refused, and " if refused(reply) else ""
                return f"{unknown}in a cluster before Valkey {SAFE_IN_A_CLUSTER}, CLIENT NO-TOUCH can crash a server"
        reply = self.ask("CLIENT", "NO-TOUCH", "ON")
        if str(reply).startswith("NOPERM"):
            return "this user may not use CLIENT NO-TOUCH"
        return "CLIENT NO-TOUCH needs Redis 7.2 or Valkey" if refused(reply) else ""

    def ask(self, *args: str | bytes | int) -> Reply:
        """Send one command and return its reply."""
        return self.send([command(*args)]).take()[0]

    def require(self, *args: str | bytes | int) -> Reply:
        """Send one command and return its reply; raise the error if the server refuses it."""
        reply = self.ask(*args)
        if refused(reply):
            raise reply
        return reply

    def scan(self, pattern: bytes) -> Iterator[list[bytes]]:
        """Yield the names that match a glob, a page of SCAN at a time; a name may come twice."""
        cursor = None
        while cursor != b"0":
            cursor, names = self.require("SCAN", cursor or b"0", "MATCH", pattern, "COUNT", SCAN_COUNT)
            yield names

    def round_trip_s(self) -> float:
        """Return the shortest of a few round trips: the time that a command takes besides the server's work."""
        return min(timeit.repeat(lambda: self.ask("PING"), repeat=PINGS, number=1))

    def send(self, *parts: Sequence[Command] | KeyCommands) -> PendingReplies:
        """Send commands together."""
        payloads: list[bytes] = []
        count = 0
        for part in parts:
            if isinstance(part, KeyCommands):
                named = [b"$%d\r\n%b\r\n" % (len(key), key) for key in part.keys]
                # Joining is what makes this fast: the beginning of the command comes before each key.
                payloads += [_KEY_COMMANDS[name].join([b"", *named]) for name in part.names]
                for name in part.names:
                    self.sent[name] += len(named)
                count += len(named) * len(part.names)
            else:
                payloads += [each.payload for each in part]
                self.sent.update([each.name for each in part])
                count += len(part)
        pending = PendingReplies(self, count)
        self._pending.append(pending)
        try:
            if not self.failure:
                self.socket.sendall(b"".join(payloads))
        except OSError as error:
            self._fail(self._broken(error))
        return pending

    def receive(self, pending: PendingReplies, count: int) -> None:
        """Receive ``count`` replies more of what is pending, and all replies to what was sent before it."""
        try:
            while not self.failure and self._pending[0] is not pending:
                self._receive(self._pending[0], self._pending[0].missing)
            if not self.failure:
                self._receive(pending, count)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._fail(error)
        if self.failure and pending.missing:
            pending.received += [self.failure] * pending.missing
            pending.missing = 0

    def _fail(self, error: redis.RedisError) -> None:
        if not self.tolerant:
            raise error
        self.failure = error

    def _receive(self, pending: PendingReplies, count: int) -> None:
        """Receive ``count`` replies or more. If none has arrived yet, all of them are parsed as one array, in C."""
        if pending.missing > 1 and not pending.received and not self.reader.has_data():
            self.reader.feed(b"*%d\r\n" % pending.missing)
            pending.received = self._reply()
            pending.missing = 0
        else:
            pending.received += [self._reply() for _ in range(count)]
            pending.missing -= count
        if not pending.missing:
            self._pending.popleft()

    def _reply(self) -> Reply:
        # hiredis returns False if it needs more bytes.
        while (reply := self.reader.gets()) is False:
            try:
                part = self.socket.recv(READ_BYTES)
            except OSError as error:
                raise self._broken(error) from None
            if not part:
                server = self.name or "the server"
                raise redis.ConnectionError(f"{server} closed the connection while it was being read")
            self.reader.feed(part)
        return reply

    def _broken(self, error: OSError) -> redis.RedisError:
        server = self.name or "the server"
        if isinstance(error, TimeoutError):
            return redis.TimeoutError(f"{server} stopped answering while it was being read")
        return redis.ConnectionError(f"the connection to {server} broke while it was being read: {error}")

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()


def is_in_cluster(connection: ReadOnlyConnection) -> bool:
    """Return whether the server is one of a cluster; False too if INFO is refused."""
    return info_fields(connection.ask("INFO", "cluster")).get("cluster_enabled") == "1"
