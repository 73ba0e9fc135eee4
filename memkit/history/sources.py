"""Tell what a source is from its content: RDB files, an append-only directory, a recording or a server."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from memkit.errors import SourceError
from memkit.history.rdb import is_rdb, read_header

SourceKind = Literal["live", "rdb", "aof", "recording"]
START_BYTES = 16
RECORDING_MAGIC = b"SQLite format 3\x00"
SOURCE_SUFFIXES = (".rdb", ".aof", ".db")
_AOF_START = re.compile(rb"\*[0-9]+\r\n|#TS:[0-9]")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Source:
    """Something that shows what happened to keys.

    ``name`` is what was given; ``files`` are the RDB files (one for each shard), the recording, or the append-only
    directory.
    """

    kind: SourceKind
    name: str
    files: tuple[Path, ...] = ()


def is_source(text: str) -> bool:
    """Return whether an argument names a source rather than a session: a URL, an existing path, or a path's form."""
    return bool(_URL.match(text)) or Path(text).exists() or "/" in text or text.endswith(SOURCE_SUFFIXES)


def is_file_source(text: str) -> bool:
    """Return whether the source of an audit is a file rather than a server: an existing path, or a path's form."""
    named = ":" not in text and ("/" in text or text.endswith(SOURCE_SUFFIXES))
    return not _URL.match(text) and (named or Path(text).exists())


def find_source(given: str | Path) -> Source:
    """Return what a source is, by its content, not by its name.

    Args:
        given: A Redis URL; an RDB file; a directory with one RDB file for each shard; an append-only directory, its
            manifest or a single append-only file; a recording.

    Raises:
        SourceError: There is no such file, or it is none of these.
    """
    name = str(given)
    if _URL.match(name):
        return Source("live", name)
    path = Path(given)
    if path.is_dir() and (any(path.glob("*.manifest")) or any(path.glob("appendonlydir/*.manifest"))):
        return Source("aof", name, (path,))
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.is_file()]
        shards, logs = tuple(filter(is_rdb, files)), tuple(filter(_is_log, files))
        if len(logs) == 1:
            return Source("aof", name, logs)
        if not shards:
            raise SourceError(f"{path}: this directory holds neither an append-only file nor an RDB file")
        return Source("rdb", name, shards)
    if not path.is_file():
        raise SourceError(f"{path}: there is no such file or directory")
    if path.name.endswith(".manifest"):
        return Source("aof", name, (path,))
    if _start(path) == RECORDING_MAGIC:
        return Source("recording", name, (path,))
    if _is_log(path):
        return Source("aof", name, (path,))
    return Source("rdb", name, (path,))  # whatever it is, the RDB reader states it


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(START_BYTES)


def _is_log(path: Path) -> bool:
    """Return whether a file has commands: Redis 4.0 to 6.2 rewrites it as an RDB file with a field, and they follow."""
    if _AOF_START.match(_start(path)):
        return True
    return is_rdb(path) and read_header(path).aux.get("aof-preamble") == "1"


def parse_moment(text: str) -> datetime:
    """Return a moment from text in ISO form; without a zone it is UTC.

    Raises:
        SourceError: The text is not a moment.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise SourceError(f"{text!r} is not a time; expected the ISO form, such as 2026-11-28T02:17:03Z") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
