"""The recent past of a running server: what its replication backlog still holds, read as a replica reads it.

``PSYNC`` with an offset inside the backlog continues from there: the server replays the commands since, with absolute
deadlines, and forks nothing. An offset outside the backlog would make it fork for a full copy, so a margin is kept and
nothing is sent if the backlog moves too fast. Sources: INFO replication, and ``masterTryPartialResynchronization`` in
``src/replication.c``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import hiredis
import redis

from memkit.connect import connect, redact
from memkit.errors import ServerError
from memkit.readonly.connection import ReadOnlyConnection, command, info_fields, refused

LEAST_MARGIN_BYTES = 1 << 16
MARGIN = 0.1
"""The part of the backlog that is not read, because it may be overwritten before PSYNC arrives."""
RATE_WITHIN_S = 0.2
SAFE_S = 2.0
"""The margin must last this long at the rate at which the backlog moves: a request takes milliseconds."""
READ_BYTES = 1 << 17
ANSWER_WITHIN_S = 60.0
_COMMAND_START = re.compile(rb"\*[1-9][0-9]{0,6}\r\n\$[0-9]{1,9}\r\n")
COMMANDS_THAT_CONFIRM = 2
"""A start that is followed by this many commands is no text inside a value."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What INFO replication reports: the role, the replication id, and the offsets that the backlog holds."""

    role: Literal["master", "slave"]
    replication_id: str
    first_offset: int
    end_offset: int
    size_bytes: int

    @property
    def length(self) -> int:
        """How many bytes the backlog holds."""
        return self.end_offset - self.first_offset


@dataclass(frozen=True, slots=True)
class BacklogCommands:
    """The commands of a backlog, oldest first, and the server's clock when it was read.

    ``db`` is the URL's database: the stream names a database only when it changes.
    """

    server: str
    db: int
    commands: tuple[tuple[bytes, ...], ...]
    read_at_ms: int


def read_backlog(url: str, *, primary: bool = False) -> BacklogCommands:
    """Return the commands that a server's replication backlog holds.

    Args:
        url: The server. A replica: its primary is not touched.
        primary: Read a primary's backlog. It lists the connection as a replica until it is closed, counts it for
            min-replicas-to-write, and Sentinel remembers it.

    Raises:
        ServerError: The server has no backlog, is a primary, or moves too fast; nothing was sent then.
    """
    client = connect(url, decode_responses=False)
    shown = redact(url)
    if isinstance(client, redis.RedisCluster):
        raise ServerError("a backlog is one server's; give the URL of a replica")
    try:
        connection = ReadOnlyConnection(client, name=shown, keep_idle_times=False)
    finally:
        client.close()
    try:
        backlog = _backlog(connection, shown)
        if backlog.role == "master" and not primary:
            raise ServerError(
                f"{shown} is a primary: give the URL of a replica, or --replication=primary (the primary then lists "
                "this connection as a replica until it is closed)"
            )
        margin = _margin(connection, backlog, shown)
        info = info_fields(_reply(connection, "INFO", "server"))
        seconds, microseconds = _reply(connection, "TIME")
        offset = backlog.first_offset + margin
        data = _continue(connection, backlog, offset, shown)
        server = "valkey" if "valkey_version" in info else "redis"
        commands = _commands(data, shown)
        db = int(client.connection_pool.connection_kwargs.get("db") or 0)
        return BacklogCommands(server, db, tuple(commands), int(seconds) * 1_000 + int(microseconds) // 1_000)
    finally:
        connection.close()


def _reply(connection: ReadOnlyConnection, *words: str | int) -> bytes:
    reply = connection.ask(*words)
    if refused(reply):
        raise ServerError(f"{connection.name}: {' '.join(map(str, words))} was refused: {reply}")
    found: bytes = reply
    return found


def _backlog(connection: ReadOnlyConnection, shown: str) -> Backlog:
    info = info_fields(_reply(connection, "INFO", "replication"))
    if info.get("repl_backlog_active") != "1":
        raise ServerError(
            f"{shown} has no replication backlog (repl_backlog_active:0): it never had a replica, so there is nothing "
            "to read"
        )
    first, length = int(info["repl_backlog_first_byte_offset"]), int(info["repl_backlog_histlen"])
    role: Literal["master", "slave"] = "slave" if info["role"] == "slave" else "master"
    return Backlog(role, info["master_replid"], first, first + length, int(info["repl_backlog_size"]))


def _margin(connection: ReadOnlyConnection, before: Backlog, shown: str) -> int:
    """Return how much of the backlog's beginning to leave out; nothing while it is not full."""
    if before.length + LEAST_MARGIN_BYTES < before.size_bytes:
        return 0
    time.sleep(RATE_WITHIN_S)  # a sampling interval: how fast the backlog moves
    after = _backlog(connection, shown)
    rate = (after.end_offset - before.end_offset) / RATE_WITHIN_S
    margin = max(LEAST_MARGIN_BYTES, int(before.size_bytes * MARGIN))
    if rate * SAFE_S > margin:
        raise ServerError(
            f"{shown} writes {rate / 1e6:.1f} MB/s into a backlog of {before.size_bytes / 1e6:.1f} MB: it could not be "
            "read without the risk of a full copy (a fork); nothing was sent"
        )
    return margin


def _continue(connection: ReadOnlyConnection, backlog: Backlog, offset: int, shown: str) -> bytes:
    """Ask for the backlog from an offset and return it up to the end that INFO stated."""
    connection.socket.settimeout(ANSWER_WITHIN_S)
    try:
        connection.socket.sendall(command("PSYNC", backlog.replication_id, offset).payload)
        data = b""
        while b"\r\n" not in data.lstrip(b"\n"):
            data += _received(connection, shown)
        line, _, rest = data.lstrip(b"\n").partition(b"\r\n")
        if not line.startswith(b"+CONTINUE"):
            raise ServerError(
                f"{shown} did not continue from its backlog but answered: {line.decode(errors='replace')[:100]}"
            )
        parts, missing = [rest], backlog.end_offset - offset - len(rest)
        while missing > 0:
            parts.append(_received(connection, shown))
            missing -= len(parts[-1])
    except OSError as error:
        raise ServerError(f"{shown}: the connection broke while the backlog was read: {error}") from None
    return b"".join(parts)


def _received(connection: ReadOnlyConnection, shown: str) -> bytes:
    part: bytes = connection.socket.recv(READ_BYTES)
    if not part:
        raise ServerError(f"{shown} closed the connection while its backlog was read")
    return part


def _commands(data: bytes, shown: str) -> Iterator[tuple[bytes, ...]]:
    """Yield the commands in a piece of a replication stream; what comes before the first whole one is left out."""
    start = _first_command(data)
    if start is None:
        return
    reader = hiredis.Reader()
    reader.feed(data[start:])
    try:
        while (arguments := reader.gets()) is not False:
            if isinstance(arguments, list) and all(isinstance(word, bytes) for word in arguments) and arguments:
                yield tuple(arguments)
    except hiredis.ProtocolError:
        raise ServerError(f"{shown}: the replication stream is not understood") from None


def _first_command(data: bytes) -> int | None:
    """Return where the first whole command begins: the backlog's first byte is anywhere in a command."""
    for match in _COMMAND_START.finditer(data):
        reader = hiredis.Reader()
        reader.feed(data[match.start() :])
        try:
            found = [reader.gets() for _ in range(COMMANDS_THAT_CONFIRM)]
        except hiredis.ProtocolError:
            continue
        if found[0] is not False and all(one is False or isinstance(one, list) for one in found):
            return match.start()
    return None
