"""The recording: an SQLite file with keys, events, gaps and sources. No value of a key is ever in it.

Tables (all times are Unix times in milliseconds on the server's clock):

- ``source``: where the record comes from: kind, server (without password), version, begin and end.
- ``key``: every key that was seen: database, name, whether it exists, its deadline (null: persistent).
- ``event``: what happened to a key: the time, between which times it happened if that is not exact, the event, the
  causes that cannot be told apart, the deadline after it (for an end: before it), the TTL that it gave, and the
  command if the source shows it.
- ``gap``: times that were not observed, with the reason.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from memkit.errors import SourceError

APPLICATION_ID = 0x6D656D6B
"""``memk``: marks an SQLite file as a recording."""
SCHEMA = 2
_TABLES = """
CREATE TABLE source (kind TEXT, name TEXT, server TEXT, version TEXT, began_ms INTEGER, ended_ms INTEGER);
CREATE TABLE key (
    id INTEGER PRIMARY KEY, db INTEGER, name BLOB, present INTEGER, deadline_ms INTEGER, UNIQUE (db, name)
);
CREATE TABLE event (
    key INTEGER, at_ms INTEGER, after_ms INTEGER, event TEXT, possible TEXT, deadline_ms INTEGER, ttl_ms INTEGER,
    command TEXT
);
CREATE TABLE gap (began_ms INTEGER, ended_ms INTEGER, reason TEXT);
"""


class Known(NamedTuple):
    """A key as the recording has it; ``present`` is whether it exists."""

    id: int
    present: bool
    deadline_ms: int | None


class Recorded(NamedTuple):
    """One event as the recording has it."""

    db: int
    name: bytes
    at_ms: int
    after_ms: int | None
    event: str
    possible: tuple[str, ...]
    deadline_ms: int | None
    ttl_ms: int | None
    command: str


class Ledger:
    """An open recording.

    Args:
        path: The file. A new one is made; an existing recording is only opened with ``reading``.
        reading: Open for reading; the file is not changed.

    Raises:
        SourceError: The file exists (when recording), or is no recording (when reading).
    """

    def __init__(self, path: Path, *, reading: bool = False) -> None:
        self.path, self._reading = path, reading
        if reading:
            self._open_for_reading()
            return
        if path.exists():
            raise SourceError(f"{path}: the file exists; give a new name: a recording is never overwritten")
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version={SCHEMA}")
            self._db.executescript(_TABLES)
            self._db.execute("BEGIN")
        except sqlite3.Error as error:
            raise SourceError(f"{path}: the recording cannot be made: {error}") from None

    def _open_for_reading(self) -> None:
        try:
            self._db = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)
            marks = [self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        except sqlite3.Error as error:
            raise SourceError(f"{self.path}: the file cannot be read as a recording: {error}") from None
        if marks[0] != APPLICATION_ID:
            raise SourceError(f"{self.path}: this SQLite file is no recording of memkit")
        if marks[1] != SCHEMA:
            raise SourceError(f"{self.path}: the recording has schema {marks[1]}; this memkit reads schema {SCHEMA}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None or not isinstance(error, sqlite3.Error):
                self.close()
                return
        except sqlite3.Error as failure:
            error = failure
        self._db.close()
        what = "the recording is damaged" if self._reading else "the recording ended, and keeps what was written before"
        raise SourceError(f"{self.path}: {what}: {error}") from None

    def close(self) -> None:
        """Write what is left and close the file: one file, which can be read from a read-only folder too."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")
            with suppress(sqlite3.Error):  # another process reads it
                self._db.execute("PRAGMA journal_mode=DELETE")
        self._db.close()

    def commit(self) -> None:
        """Write what was recorded: what comes before is in the file, even if the process is killed."""
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    # Recording

    def begin_source(self, *, kind: str, name: str, server: str, version: str, began_ms: int) -> None:
        """Record where the record comes from."""
        row = (kind, name, server, version, began_ms, began_ms)
        self._db.execute("INSERT INTO source VALUES (?, ?, ?, ?, ?, ?)", row)

    def observed_until(self, at_ms: int) -> None:
        """Record until when the source was observed."""
        self._db.execute("UPDATE source SET ended_ms = ?", (at_ms,))

    def known(self, db: int, names: Iterable[bytes]) -> dict[bytes, Known]:
        """Return those of the keys that the recording has."""
        found = {}
        for name in names:
            row = self._db.execute(
                "SELECT id, present, deadline_ms FROM key WHERE db = ? AND name = ?", (db, name)
            ).fetchone()
            if row:
                found[name] = Known(row[0], bool(row[1]), row[2])
        return found

    def keys_present(self, db: int) -> Iterator[tuple[bytes, Known]]:
        """Yield the keys of a database that exist."""
        rows = self._db.execute("SELECT name, id, deadline_ms FROM key WHERE db = ? AND present = 1", (db,)).fetchall()
        for name, key, deadline in rows:
            yield name, Known(key, True, deadline)

    def set_key(self, db: int, name: bytes, *, present: bool, deadline_ms: int | None) -> int:
        """Record a key's state; return its id."""
        row = self._db.execute(
            "INSERT INTO key (db, name, present, deadline_ms) VALUES (?, ?, ?, ?) ON CONFLICT (db, name) "
            "DO UPDATE SET present = excluded.present, deadline_ms = excluded.deadline_ms RETURNING id",
            (db, name, present, deadline_ms),
        ).fetchone()
        return int(row[0])

    def add_event(
        self,
        key: int,
        event: str,
        *,
        at_ms: int,
        after_ms: int | None = None,
        possible: Iterable[str] = (),
        deadline_ms: int | None = None,
        ttl_ms: int | None = None,
        command: str = "",
    ) -> None:
        """Record what happened to a key.

        Args:
            key: Its id.
            event: The event's name.
            at_ms: When it happened, or when it was seen to have happened.
            after_ms: When it had not happened yet; None if ``at_ms`` is exact.
            possible: The causes that cannot be told apart.
            deadline_ms: The deadline after the event, or before an end.
            ttl_ms: The TTL that it gave.
            command: The command, if the source shows it.
        """
        row = (key, at_ms, after_ms, event, ",".join(possible) or None, deadline_ms, ttl_ms, command or None)
        self._db.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def add_gap(self, began_ms: int, ended_ms: int, reason: str) -> None:
        """Record a time that was not observed."""
        self._db.execute("INSERT INTO gap VALUES (?, ?, ?)", (began_ms, ended_ms, reason))

    # Reading

    def source(self) -> tuple[str, str, int, int]:
        """Return the kind of the source, its name, and when the record begins and ends."""
        row = self._db.execute("SELECT kind, name, began_ms, ended_ms FROM source").fetchone()
        if not row:
            raise SourceError(f"{self.path}: the recording is empty")
        return row[0], row[1], row[2], row[3]

    def recorded_keys(self) -> Iterator[tuple[int, bytes, bool, int | None]]:
        """Yield every key: database, name, whether it exists, deadline."""
        rows = self._db.execute("SELECT db, name, present, deadline_ms FROM key ORDER BY id")
        for db, name, present, deadline in rows:
            yield db, name, bool(present), deadline

    def events(self) -> Iterator[Recorded]:
        """Yield every event in the order in which it was recorded."""
        rows = self._db.execute(
            "SELECT key.db, key.name, at_ms, after_ms, event, possible, event.deadline_ms, ttl_ms, command "
            "FROM event JOIN key ON key.id = event.key ORDER BY event.rowid"
        )
        for db, name, at, after, event, possible, deadline, ttl, command in rows:
            several = tuple(possible.split(",")) if possible else ()
            yield Recorded(db, name, at, after, event, several, deadline, ttl, command or "")

    def gaps(self) -> list[tuple[int, int, str]]:
        """Return the times that were not observed, with the reasons."""
        return [tuple(row) for row in self._db.execute("SELECT began_ms, ended_ms, reason FROM gap ORDER BY began_ms")]
