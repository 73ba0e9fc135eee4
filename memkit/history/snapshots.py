"""A snapshot as a private server: the values of an RDB file or of an append-only directory, as of its own moment.

The server runs with its clock at the moment of the snapshot, as a replica of an address where no server listens: so
keys with a deadline that has passed since are still there, nothing is deleted and writes are refused. Measured on four
servers: of 4,000 keys in a file of three days ago a server at the present time keeps 2,000, and a primary loses more
every second.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import redis

from memkit.connect import AnyClient, redact, scan
from memkit.errors import ServerError, ServerNotFound, SourceError
from memkit.history.aof import AofFiles, find_aof, read_commands
from memkit.history.rdb import MOST_DATABASES, RdbHeader, RdbReader, SnapshotKey, read_header
from memkit.history.sources import Source, find_source, is_file_source
from memkit.readonly.target import Snapshot, Target, open_target
from memkit.render import utc_text, utc_time
from memkit.server.launcher import OLDEST, RedisServer, ServerBinary, installed_servers

REPLICA_CONFIG = {"replicaof": "127.0.0.1 1", "databases": str(MOST_DATABASES)}
"""Port 1 (tcpmux) is reserved: the connection is refused at once, and the replica keeps its data."""
READS_VERSION = {
    "redis": (((7, 4), 12), ((7, 2), 11), ((7, 0), 10), ((6, 2), 9)),
    "valkey": (((9, 2), 81), ((9, 0), 80)),
}
"""The newest version of its own RDB format that each release reads, from the newest release on."""
VALKEY_READS_REDIS_VERSION = 11
"""Valkey reads what Redis 7.2 wrote; later versions of Redis's format it refuses."""
DEBUG_IS_OFF_FROM = (7, 0)
"""From Redis 7.0 on DEBUG, which loads a second file beside the first, is off by default."""
SAVE_TIME_RESOLUTION = timedelta(seconds=1)
"""A file states its moment as a whole second, rounded down: a key that ends in that second counts as expired."""
PROGRESS_EVERY_KEYS = 10_000
MODULE_DATA = "{}: the file holds data of a module ({}), which no server here can load; {}"
READS_RDB = "memkit audit without --full reads the keys and deadlines of such files"
CORE_TYPES = frozenset({"string", "list", "set", "zset", "hash", "stream"})


@dataclass(frozen=True, slots=True)
class RdbContents:
    """What one RDB file holds, or one for each shard, as of the newest save; it was found by reading each file once.

    ``headers`` begin with the oldest save. ``databases`` counts the keys that existed at ``now_ms``, the end of the
    second of the newest save. ``module`` is a file with a module's key, and the key's type; None if there is none.
    """

    headers: Mapping[Path, RdbHeader]
    now_ms: int
    databases: Mapping[int, int]
    has_idle_times: bool
    has_field_ttls: bool
    module: tuple[Path, str] | None

    @property
    def newest(self) -> tuple[Path, RdbHeader]:
        """The file with the newest format; of several the one that was saved last."""
        return max(self.headers.items(), key=lambda item: (item[1].version, item[1].created_s))

    def keys(self, db: int) -> Iterator[tuple[SnapshotKey, int]]:
        """Yield the keys of a database that existed then, each with the Unix time of its file's save in ms."""
        for path, header in self.headers.items():
            with RdbReader(path) as reader:
                for key in reader:
                    if key.db == db and _exists(key, self.now_ms):
                        yield key, (header.created_s or 0) * 1_000

    def snapshot(self, name: str, db: int | None) -> Snapshot:
        """Return the files as a source.

        Args:
            name: What was given.
            db: The database to read; None: 0, or the one with most keys if that is empty.
        """
        taken_at = utc_time(self.now_ms) - SAVE_TIME_RESOLUTION
        database = _database(name, self.databases, db)
        header, keys = self.newest[1], self.databases.get(database, 0)
        written_by = (header.flavour, header.server_version)
        return Snapshot("rdb", name, taken_at, *written_by, self.has_idle_times, keys, database, self.databases)


def read_rdb(files: Sequence[Path], *, progress: Callable[[int, int], None] | None = None) -> RdbContents:
    """Read RDB files as a stream, verify their checksums, and return what they hold.

    Args:
        files: One file, or one for each shard.
        progress: Called now and then with how many keys have been read, and with 0: how many there are is not known.

    Raises:
        SourceError: A file is damaged, holds something that is not documented, or does not state when it was saved.
    """
    headers = {path: read_header(path) for path in files}
    now_ms = max(header.created_s or 0 for header in headers.values()) * 1_000 + 1_000
    databases: Counter[int] = Counter()
    has_idle_times, has_field_ttls, module = True, False, None
    for path in files:
        with RdbReader(path) as reader:
            for key in reader:
                has_idle_times = has_idle_times and key.idle_s is not None
                has_field_ttls = has_field_ttls or key.fields_expire
                if key.kind not in CORE_TYPES:
                    module = (path, key.kind)
                databases[key.db] += _exists(key, now_ms)
                if progress and reader.keys_read % PROGRESS_EVERY_KEYS == 0:
                    progress(databases.total(), 0)
        if headers[path].created_s is None:
            raise SourceError(f"{path}: the file does not state when it was saved (ctime)")
    headers = dict(sorted(headers.items(), key=lambda item: item[1].created_s or 0))
    return RdbContents(headers, now_ms, +databases, has_idle_times, has_field_ttls, module)


def _exists(key: SnapshotKey, now_ms: int) -> bool:
    return key.deadline_ms is None or key.deadline_ms > now_ms


def _database(name: str, keys: Mapping[int, int], wanted: int | None) -> int:
    """Return the database to read, of those that have keys: the wanted one, or 0, or the one with most keys."""
    if wanted is not None and wanted not in keys:
        others = ", ".join(f"{db} ({count:,})" for db, count in keys.items()) or "none"
        raise SourceError(f"{name}: database {wanted} has no keys; databases that have keys: {others}")
    if wanted is not None:
        return wanted
    return 0 if 0 in keys or not keys else max(keys, key=lambda db: keys[db])


def find_file(source: str | Path | AnyClient, *, at: datetime | None, db: int | None) -> Source | None:
    """Return what a source is if it is a file or a directory; None if it is a live server.

    Args:
        source: See ``open_source``.
        at: A moment, which only an append-only directory has.
        db: A database; that of a live server is stated in its URL.

    Raises:
        SourceError: There is no such file, it is no source or a recording, or it does not have ``at`` or ``db``.
    """
    found = find_source(source) if isinstance(source, str | Path) and is_file_source(str(source)) else None
    if at is not None and (found is None or found.kind != "aof"):
        raise SourceError(f"{redact(str(source))}: a moment (at) can only be chosen in an append-only directory")
    if db is not None and found is None:
        raise SourceError(f"{redact(str(source))}: a server's database is chosen in its URL, such as redis://HOST/{db}")
    if found and found.kind == "recording":
        raise SourceError(f"{found.name}: a recording has no values and not every key; give it to memkit history")
    return found


@contextmanager
def open_source(
    source: str | Path | AnyClient, *, at: datetime | None = None, db: int | None = None, tolerant: bool = False
) -> Iterator[Target]:
    """Open a live server, or a file as a private server.

    Args:
        source: A Redis URL, a client, an RDB file, a directory of RDB files (one for each shard), or an append-only
            directory.
        at: A timezone-aware moment of an append-only directory; None: its end.
        db: The database of a file to read; None: 0, or the one with most keys if that is empty.
        tolerant: See ``open_target``.

    Yields:
        The open server; ``snapshot`` is None if it is a live one.

    Raises:
        SourceError: The file cannot be served: see ``serve_rdb`` and ``serve_aof``.
        redis.RedisError: The live server cannot be reached.
    """
    found = find_file(source, at=at, db=db)
    if found is None:
        with open_target(source, tolerant=tolerant) as target:
            yield target
        return
    served = serve_rdb(found.files) if found.kind == "rdb" else serve_aof(find_aof(found.files[0]), until=at)
    with served as (server, snapshot):
        database = _database(found.name, snapshot.databases, db)
        client = redis.Redis(unix_socket_path=server.socket_path, db=database)
        with client, open_target(client) as target:
            for connection in target.connections:
                connection.why_idle_times_reset = ""  # the idle times of a copy
            keys = sum(1 for _ in scan(client))  # unlike DBSIZE without those that are past their deadline
            yield replace(target, snapshot=replace(snapshot, name=found.name, keys=keys, database=database))


@contextmanager
def serve_rdb(files: Sequence[Path]) -> Iterator[tuple[RedisServer, Snapshot]]:
    """Serve RDB files, which are only read.

    Args:
        files: One file, or one for each shard. Their checksums are verified before a server loads them.

    Yields:
        A running private server with the data of all files, its clock at the moment of the newest save.

    Raises:
        SourceError: A file is damaged, holds data of a module, or no server here reads its version.
    """
    for path in files:
        server_for(read_header(path), path)  # a later version is refused before anything else
    contents = read_rdb(files)
    if contents.module:
        raise SourceError(MODULE_DATA.format(*contents.module, READS_RDB))
    path, header = contents.newest
    binary = server_for(header, path)
    debug = {"enable-debug-command": "local"} if binary.release >= DEBUG_IS_OFF_FROM else {}
    with RedisServer(binary=binary.path, config=REPLICA_CONFIG | debug) as server:
        server.clock.require_preload()
        dump = server.directory / "dump.rdb"
        for number, (path, header) in enumerate(contents.headers.items()):
            server.clock.move_to(datetime.fromtimestamp(header.created_s or 0, UTC))
            dump.unlink(missing_ok=True)
            dump.symlink_to(path.resolve())
            if number == 0:
                _started(server.restart, path, READS_RDB)
                continue
            with server.client() as client:
                client.execute_command("DEBUG", "RELOAD", "MERGE", "NOFLUSH", "NOSAVE")
        server.clock.shift(SAVE_TIME_RESOLUTION)
        yield server, contents.snapshot(str(path), None)


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
        SourceError: The log has no timestamps, begins after that moment, or holds data of a module.
    """
    header = read_header(files.base) if files.base else None
    if until is not None and header is not None and header.created_s is not None:
        begins = datetime.fromtimestamp(header.created_s, UTC)
        if until < begins:
            raise SourceError(f"{files.directory}: the log begins at {utc_text(begins)}, after {utc_text(until)}")
    ends, second, cut_bytes = _ends(files, None if until is None else until.timestamp())
    modified_s = max(path.stat().st_mtime for path in files.logs or files.all)
    taken_at = until or datetime.fromtimestamp(int(modified_s) if second is None else second, UTC)
    binary = server_for(header, files.directory) if header else _newest(files.directory)
    with RedisServer(binary=binary.path, config=REPLICA_CONFIG, persist=True) as server:
        server.clock.require_preload()
        server.clock.move_to(taken_at if until else taken_at + SAVE_TIME_RESOLUTION)
        server.kill()
        folder = server.directory / "appendonlydir"
        shutil.rmtree(folder)
        folder.mkdir()
        lines = []
        if files.base and files.base not in files.logs:
            (folder / files.base.name).symlink_to(files.base.resolve())
            lines.append(f"file {files.base.name} seq 1 type b\n")
        for number, (path, end) in enumerate(zip(files.logs, ends, strict=True), 1):
            shutil.copyfile(path, folder / path.name)
            os.truncate(folder / path.name, end)
            lines.append(f"file {path.name} seq {number} type i\n")
        (folder / "appendonly.aof.manifest").write_text("".join(lines))
        _started(server.start, files.directory, "memkit history reads such logs")
        with server.client() as client:
            databases = {int(name[2:]): counts["keys"] for name, counts in client.info("keyspace").items()}
        written_by = (header.flavour, header.server_version) if header else ("redis", "?")
        snapshot = Snapshot("aof", str(files.directory), taken_at, *written_by, False, databases=databases)
        yield server, replace(snapshot, cut_bytes=cut_bytes)


def _started(start: Callable[[], object], path: Path, advice: str) -> None:
    """Start a server that loads a file; a module's commands, or what a module wrote beside the keys, end it."""
    try:
        start()
    except ServerError as error:
        module = re.search(r"(?:no matching module|Unknown command) '(\S+)'", str(error))
        if not module:
            raise
        raise SourceError(MODULE_DATA.format(path, module[1], advice)) from None


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
    newest = READS_VERSION[header.server]
    if header.version > newest[0][1]:
        raise SourceError(f"{path}: the format {header.format_name} is newer than the servers that memkit can start")
    needed = next(release for release, version in reversed(newest) if version >= header.version)
    raise ServerNotFound(
        f"{path}: the format {header.format_name} needs {header.server.capitalize()} {'.'.join(map(str, needed))} or "
        "newer, and there is none here; type: pip install 'redis-memkit[server]'"
    )


def _reads(binary: ServerBinary, header: RdbHeader) -> bool:
    if header.server == binary.flavour:
        reads = READS_VERSION[header.server]
        return any(binary.release >= release and header.version <= version for release, version in reads)
    return binary.flavour == "valkey" and header.version <= VALKEY_READS_REDIS_VERSION


def _newest(path: Path) -> ServerBinary:
    found = [binary for binary in installed_servers() if binary.release >= (7, 0)]
    if not found:
        raise ServerNotFound(f"{path}: an append-only directory needs Redis 7.0 or Valkey, and there is none here")
    return max(found, key=lambda binary: binary.release)


def _ends(files: AofFiles, until_s: float | None) -> tuple[list[int], int | None, int]:
    """Return where each log ends as of a moment, the last timestamp before that, and the size of a cut command."""
    ends: list[int] = []
    cuts: list[int] = []
    second, cut_bytes, is_over = None, 0, False
    for path in files.logs:
        end = 0 if is_over else path.stat().st_size
        may_be_cut = cuts if path == files.logs[-1] else None
        for command in () if is_over else read_commands(path, second=second, size=end, cuts=may_be_cut):
            if until_s is not None and command.second is None and path.stat().st_mtime > until_s:
                raise SourceError(
                    f"{path}: the log has no timestamps (aof-timestamp-enabled is off): no moment can be found in it"
                )
            if until_s is not None and command.second is not None and command.second > until_s:
                end, is_over = min(end, command.offset), True
                break
            second = command.second
        cut_bytes = sum(end - cut for cut in cuts)
        ends.append(end - cut_bytes)
    return ends, second, cut_bytes
