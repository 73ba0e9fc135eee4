"""The recent past of a running server: what its replication backlog still holds, read as a replica reads it.

``PSYNC`` with an offset inside the backlog continues from there: the server replays the commands since, with absolute
deadlines, and forks nothing. An offset outside the backlog would make it fork for a full copy, so a margin is kept and
nothing is sent if the backlog moves too fast. Sources: INFO replication, and ``masterTryPartialResynchronization`` in
``src/replication.c``.
"""

import re
import time
from dataclasses import dataclass

import hiredis
import redis
from redis.crc import key_slot

from memkit.connect import SHORT_HANDSHAKE, connect, redact
from memkit.errors import ServerError
from memkit.history.commands import Executed, execute
from memkit.history.states import logs_like
from memkit.history.tracking import Subscription
from memkit.readonly.connection import ReadOnlyConnection, Reply, command, info_fields, is_in_cluster, refused

LEAST_MARGIN_BYTES = 1 << 16
MARGIN = 0.1
"""The part of the backlog that is not read, because it may be overwritten before PSYNC arrives."""
RATE_WITHIN_S = 0.2
SAFE_S = 2.0
"""The margin must last this long at the rate at which the backlog moves: a request takes milliseconds."""
READ_BYTES = 1 << 17
ANSWER_WITHIN_S = 60.0
_COMMAND_START = re.compile(rb"\*[1-9][0-9]{0,6}\r\n\$[0-9]{1,9}\r\n")
ACKNOWLEDGE_EVERY_S = 1.0
"""A server drops a replica that is silent for repl-timeout (60 s by default); a replica answers each second."""
NOT_NAMED = -1
COMMANDS_AFTER_A_START = 2
"""A start that is followed by this many commands is not text inside a value."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What INFO replication reports: the replication id, and the offsets that the backlog holds."""

    replication_id: str
    first_offset: int
    end_offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BacklogCommands:
    """The commands of a backlog, oldest first, and the server's clock when it was read.

    ``db`` is the URL's database: the stream names a database only when it changes. ``slots`` are the slots of a
    cluster that are on this server and do not move; None if it is not of a cluster.
    """

    server: str
    db: int
    commands: tuple[tuple[bytes, ...], ...]
    read_at_ms: int
    slots: frozenset[int] | None = None

    def may_have_moved(self, key: bytes) -> bool:
        """Return whether a key's slot is on another server of the cluster, or moves."""
        return self.slots is not None and key_slot(key) not in self.slots


def read_backlog(url: str, *, primary: bool = False) -> BacklogCommands:
    """Return the commands that a server's replication backlog holds.

    Args:
        url: The server. A replica: its primary is not touched.
        primary: Read a primary's backlog. It lists the connection as a replica until it is closed, counts it for
            min-replicas-to-write, and Sentinel remembers it.

    Raises:
        ServerError: The server has no backlog, is a primary, or moves too fast; nothing was sent then.
    """
    client = connect(url, decode_responses=False, **SHORT_HANDSHAKE)
    shown = redact(url)
    if isinstance(client, redis.RedisCluster):
        raise ServerError("a backlog is one server's; give the URL of a replica")
    with client:
        connection = ReadOnlyConnection(client, name=shown, keep_idle_times=False)
    try:
        backlog = _backlog(connection, primary=primary)
        info, slots = info_fields(_reply(connection, "INFO", "server")), _slots(connection)
        connection.reader.feed(_from_first_command(connection, backlog))
        replies = iter(connection.reader.gets, False)
        commands = tuple(tuple(one) for one in replies if one and isinstance(one, list) and isinstance(one[0], bytes))
        read_at_ms = int(info["server_time_usec"]) // 1_000  # from Redis 6.0 on; a user may lack the right to TIME
        return BacklogCommands(logs_like(info), connection.database, commands, read_at_ms, slots)
    except redis.InvalidResponse:
        raise ServerError(f"{shown}: the replication stream is not understood") from None
    finally:
        connection.close()


class CommandStream:
    """The commands that a server executes, as they arrive, from now on: read as a replica reads them.

    No copy is made: without a backlog the server would have to fork, so it is refused. The backlog is read for the
    database that the stream named last, because it names one only when it changes.

    Args:
        client: A client of the server.
        name: The server's URL without its password, for messages.
        primary: See ``read_backlog``.

    Raises:
        redis.RedisError: The server does not answer.
        ServerError: The server has no backlog, is a primary, or refuses to continue; or the database is not known.
    """

    def __init__(self, client: redis.Redis, *, name: str, primary: bool) -> None:
        self._connection = ReadOnlyConnection(client, name=name, keep_idle_times=False)
        self._commands: list[Executed] = []
        self._acknowledged_s, self._in_multi = 0.0, False
        try:
            keyspace = info_fields(_reply(self._connection, "INFO", "keyspace"))
            databases = [int(name[2:]) for name in keyspace if name.startswith("db")]
            self._db = databases[0] if len(databases) == 1 else NOT_NAMED if databases else 0
            backlog = _backlog(self._connection, primary=primary)
            self._connection.reader.feed(_from_first_command(self._connection, backlog))
            for reply in iter(self._connection.reader.gets, False):
                self._receive(reply)
            self._commands.clear()
            if self._db == NOT_NAMED:
                raise ServerError(
                    f"{name}: several databases have keys, and the stream has not named one yet; try again later"
                )
        except (redis.RedisError, ServerError):
            self._connection.close()
            raise
        self.subscription = Subscription(self._connection, self._receive, each_turn=self._acknowledge)

    def take(self, timeout_s: float) -> list[Executed]:
        """Return the commands that have arrived; wait at most ``timeout_s`` for the first one."""
        self.subscription.wait(timeout_s)
        with self.subscription.lock:
            commands, self._commands = self._commands, []
        return commands

    def _receive(self, reply: Reply) -> int:
        if isinstance(reply, list) and reply:
            executed = execute(reply, self._db, in_multi=self._in_multi)
            self._db, self._in_multi = executed.db, executed.in_multi
            if executed.effects:
                self._commands.append(executed)
        return len(self._commands)

    def _acknowledge(self) -> None:
        """Answer as a replica that has received nothing: the server keeps the link, and WAIT does not count it."""
        if time.monotonic() - self._acknowledged_s > ACKNOWLEDGE_EVERY_S:
            self._connection.socket.sendall(command("REPLCONF", "ACK", 0).payload)
            self._acknowledged_s = time.monotonic()


def _reply(connection: ReadOnlyConnection, *words: str | int) -> bytes:
    reply = connection.ask(*words)
    if isinstance(reply, Exception):
        raise ServerError(f"{connection.name}: {' '.join(map(str, words))} was refused: {reply}") from reply
    return bytes(reply)


def _slots(connection: ReadOnlyConnection) -> frozenset[int] | None:
    """Return the slots on this server that do not move; none if CLUSTER NODES is refused; None without a cluster."""
    if not is_in_cluster(connection):
        return None
    reply = connection.ask("CLUSTER", "NODES")
    nodes = [] if refused(reply) else [line.split() for line in reply.decode().splitlines()]
    own = {word for node in nodes if "myself" in node[2] for word in (node[0], node[3])}  # itself, or its primary
    words = [word for node in nodes if node[0] in own for word in node[8:]]
    moving = {int(word[1:].partition("-")[0]) for word in words if word.startswith("[")}
    ranges = [word.partition("-") for word in words if not word.startswith("[")]
    return frozenset(slot for one, _, end in ranges for slot in range(int(one), int(end or one) + 1)) - moving


def _backlog(connection: ReadOnlyConnection, *, primary: bool) -> Backlog:
    shown = connection.name
    info = info_fields(_reply(connection, "INFO", "replication"))
    if info.get("repl_backlog_active") != "1":
        raise ServerError(
            f"{shown} has no replication backlog (repl_backlog_active:0): it never had a replica, so there is nothing "
            "to read"
        )
    first, length = int(info["repl_backlog_first_byte_offset"]), int(info["repl_backlog_histlen"])
    if info["role"] != "slave" and not primary:
        raise ServerError(
            f"{shown} is a primary: give the URL of a replica, or --replication=primary (the primary then lists this "
            "connection as a replica until it is closed)"
        )
    return Backlog(info["master_replid"], first, first + length, int(info["repl_backlog_size"]))


def _margin(connection: ReadOnlyConnection, before: Backlog) -> int:
    """Return how much of the backlog's beginning to leave out; nothing while there is room for what is written."""
    time.sleep(RATE_WITHIN_S)  # a sampling interval: how fast the backlog moves
    after = _backlog(connection, primary=True)
    rate = (after.end_offset - before.end_offset) / RATE_WITHIN_S
    room = before.size_bytes - (before.end_offset - before.first_offset)
    least = min(LEAST_MARGIN_BYTES, before.size_bytes // 2)  # an offset after the end would make the server fork
    if room > max(least, rate * SAFE_S):
        return 0
    margin = max(least, int(before.size_bytes * MARGIN))
    if rate * SAFE_S > margin:
        raise ServerError(
            f"{connection.name} writes {rate / 1e6:.1f} MB/s into a backlog of {before.size_bytes / 1e6:.1f} MB: it "
            "could not be read without the risk of a full copy (a fork); nothing was sent"
        )
    return margin


def _from_first_command(connection: ReadOnlyConnection, backlog: Backlog) -> bytes:
    """Ask for the backlog and return it from its first whole command up to the end that INFO stated."""
    offset = backlog.first_offset + _margin(connection, backlog)
    connection.socket.settimeout(ANSWER_WITHIN_S)
    data = b""
    try:
        connection.socket.sendall(command("PSYNC", backlog.replication_id, offset).payload)
        while b"\r\n" not in data.lstrip(b"\n"):
            data += _received(connection)
        line, _, rest = data.lstrip(b"\n").partition(b"\r\n")
        if not line.startswith(b"+CONTINUE"):
            answer = line.decode(errors="replace")[:100]
            raise ServerError(f"{connection.name} did not continue from its backlog but answered: {answer}")
        parts = [rest]
        missing = backlog.end_offset - offset - len(rest)
        while missing > 0:
            parts.append(_received(connection))
            missing -= len(parts[-1])
    except OSError as error:
        raise ServerError(f"{connection.name}: the connection broke while the backlog was read: {error}") from None
    data = b"".join(parts)
    start = _first_command(data)
    return b"" if start is None else data[start:]


def _received(connection: ReadOnlyConnection) -> bytes:
    part: bytes = connection.socket.recv(READ_BYTES)
    if not part:
        raise ServerError(f"{connection.name} closed the connection while its backlog was read")
    return part


def _first_command(data: bytes) -> int | None:
    """Return where the first whole command begins: the backlog's first byte is anywhere in a command."""
    for match in _COMMAND_START.finditer(data):
        reader = hiredis.Reader()
        reader.feed(data[match.start() :])
        try:
            found = [reader.gets() for _ in range(COMMANDS_AFTER_A_START)]
        except hiredis.ProtocolError:
            continue
        if found[0] is not False and all(one is False or isinstance(one, list) for one in found):
            return match.start()
    return None
