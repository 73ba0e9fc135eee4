"""The recording: an SQLite file with keys, events, gaps and sources. No value of a key is ever in it.

Tables (all times are Unix times in milliseconds on the server's clock):

- ``source``: where the record comes from: kind, server (without password), version, which keys, begin and end.
- ``key``: every key that was seen: database, name, whether it exists, its deadline (null: persistent).
- ``event``: what happened to a key: the time, between which times it happened if that is not exact, the event, the
  causes that cannot be told apart (a single one: it is likely, not certain), the deadline after it (for an end: before
  it), the TTL that it gave, and the command if the source shows it.
- ``gap``: times that were not observed, with the reason.
"""

import sqlite3
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Self

from memkit.errors import SourceError
from memkit.history.states import KeyEvent, KeyState, Moment

APPLICATION_ID = 0x6D656D6B
"""``memk``: marks an SQLite file as a recording."""
SCHEMA = 3
BATCH_KEYS = 1_000
DELETIONS = frozenset({"expired", "evicted", "deleted"})
"""Ends that a source may not tell apart; if it does, the event has the one as its only possible cause."""
RESTARTED = "the server was restarted, or another one took over"
"""How the reason of a gap begins in which keys may have been lost without a command."""
_NEW_FILE = f"""
PRAGMA journal_mode=WAL;
PRAGMA synchronous=NORMAL;
PRAGMA application_id={APPLICATION_ID};
PRAGMA user_version={SCHEMA};
CREATE TABLE source (kind TEXT, name TEXT, server TEXT, version TEXT, keys TEXT, began_ms INTEGER, ended_ms INTEGER);
CREATE TABLE key (
    id INTEGER PRIMARY KEY, db INTEGER, name BLOB, present INTEGER, deadline_ms INTEGER, UNIQUE (db, name)
);
CREATE TABLE event (
    key INTEGER, at_ms INTEGER, after_ms INTEGER, event TEXT, possible TEXT, deadline_ms INTEGER, ttl_ms INTEGER,
    command TEXT
);
CREATE TABLE gap (began_ms INTEGER, ended_ms INTEGER, reason TEXT);
BEGIN;
"""


class RecordedKeys(MutableMapping[bytes, KeyState]):
    """The keys of one database that exist, as the recording has them: the memory does not grow with their number.

    ``unsure`` has those that may not exist, until it is known: the recording has no number of elements.
    """

    def __init__(self, file: sqlite3.Connection, db: int) -> None:
        self._file, self._db = file, db
        self.unsure: dict[bytes, KeyState] = {}

    def __getitem__(self, name: bytes) -> KeyState:
        if name in self.unsure:
            return self.unsure[name]
        found = self._file.execute(
            "SELECT deadline_ms FROM key WHERE db = ? AND name = ? AND present = 1", (self._db, name)
        ).fetchone()
        if found is None:
            raise KeyError(name)
        return KeyState(found[0])

    def __setitem__(self, name: bytes, state: KeyState) -> None:
        self.unsure.pop(name, None)
        if not state.least:
            self.unsure[name] = state
        self._file.execute(
            "INSERT INTO key (db, name, present, deadline_ms) VALUES (?, ?, 1, ?) ON CONFLICT (db, name) "
            "DO UPDATE SET present = 1, deadline_ms = excluded.deadline_ms",
            (self._db, name, state.deadline_ms),
        )

    def __delitem__(self, name: bytes) -> None:
        self.unsure.pop(name, None)
        self._file.execute("UPDATE key SET present = 0, deadline_ms = NULL WHERE db = ? AND name = ?", (self._db, name))

    def __iter__(self) -> Iterator[bytes]:
        return (name for batch in self.batches() for name in batch)

    def __len__(self) -> int:
        row = self._file.execute("SELECT count(*) FROM key WHERE db = ? AND present = 1", (self._db,)).fetchone()
        return int(row[0])

    def batches(self) -> Iterator[dict[bytes, KeyState]]:
        """Yield the keys, some at a time; they may be changed meanwhile."""
        last = 0
        while rows := self._file.execute(
            # With +, SQLite reads on by id; by the index of names it would sort all keys for each batch.
            "SELECT id, name, deadline_ms FROM key WHERE +db = ? AND present = 1 AND id > ? ORDER BY id LIMIT ?",
            (self._db, last, BATCH_KEYS),
        ).fetchall():
            last = rows[-1][0]
            yield {name: KeyState(deadline_ms) for _, name, deadline_ms in rows}


class Recording:
    """An open recording.

    Args:
        path: The file. A new one is made; an existing recording is only opened with ``reading``.
        reading: Open for reading; the file is not changed.

    Raises:
        SourceError: The file exists (when recording), or is not a recording (when reading).
    """

    def __init__(self, path: Path, *, reading: bool = False) -> None:
        self.path, self._reading, self._discarded = path, reading, False
        if path.exists() and not reading:
            raise SourceError(f"{path}: the file exists; give a new name: a recording is never overwritten")
        address = f"{path.resolve().as_uri()}?mode={'ro' if reading else 'rwc'}"
        try:
            with ExitStack() as opened:
                self._db = opened.enter_context(closing(sqlite3.connect(address, uri=True, isolation_level=None)))
                if not reading:
                    self._db.executescript(_NEW_FILE)
                names = ("application_id", "user_version")
                application, schema = (self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
                if application != APPLICATION_ID:
                    raise SourceError(f"{path}: this SQLite file is not a memkit recording")
                if schema != SCHEMA:
                    raise SourceError(f"{path}: the recording has schema {schema}; this memkit reads schema {SCHEMA}")
                if reading:  # what a recorder writes meanwhile is not seen: keys and events are of one moment
                    self._db.execute("BEGIN")
                opened.pop_all()
        except sqlite3.Error as error:
            what = "the file cannot be read as a recording" if reading else "the recording cannot be made"
            if not reading:
                path.unlink(missing_ok=True)
            raise SourceError(f"{path}: {what}: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
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
        if self._db.in_transaction and not self._reading:
            self._db.execute("COMMIT")
            with suppress(sqlite3.Error):  # another process reads it
                self._db.execute("PRAGMA journal_mode=DELETE")
        self._db.close()
        if self._discarded:
            self.path.unlink()

    def discard(self) -> None:
        """Remove the file when it is closed: nothing was recorded."""
        self._discarded = True

    def commit(self) -> None:
        """Write what was recorded: what comes before is in the file, even if the process is killed."""
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def begin_source(self, *, kind: str, name: str, server: str, version: str, began_ms: int, keys: str = "*") -> None:
        """Record where the record comes from, and which keys it has."""
        row = (kind, name, server, version, keys, began_ms, began_ms)
        self._db.execute("INSERT INTO source VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def observed_until(self, at_ms: int) -> None:
        """Record until when the source was observed."""
        self._db.execute("UPDATE source SET ended_ms = ?", (at_ms,))

    def keys(self, db: int) -> RecordedKeys:
        """Return the keys of a database that exist; changes of the mapping are recorded."""
        return RecordedKeys(self._db, db)

    def add(self, event: KeyEvent) -> int:
        """Record what happened to a key that is or was recorded as existing; return the number of the event."""
        earliest_ms, at_ms, _ = event.moment
        possible = ",".join(event.possible) if len(event.possible) > 1 or not event.proven else None
        added = self._db.execute(
            "INSERT INTO event VALUES ((SELECT id FROM key WHERE db = ? AND name = ?), ?, ?, ?, ?, ?, ?, ?)",
            (
                *(event.db, event.key, at_ms, None if earliest_ms == at_ms else earliest_ms, event.name, possible),
                *(event.deadline_ms, event.ttl_ms, event.command or None),
            ),
        )
        return added.lastrowid or 0

    def remove_ttls(self, events: Iterable[int]) -> None:
        """Record that it is not known which TTL the events gave."""
        self._db.executemany("UPDATE event SET ttl_ms = NULL WHERE rowid = ?", ((event,) for event in events))

    def add_gap(self, began_ms: int, ended_ms: int, reason: str) -> None:
        """Record a time that was not observed."""
        self._db.execute("INSERT INTO gap VALUES (?, ?, ?)", (began_ms, ended_ms, reason))

    def source(self) -> tuple[str, str, str, int, int]:
        """Return the kind of the source, its name, which keys it has, and when the record begins and ends."""
        row = self._db.execute("SELECT kind, name, keys, began_ms, ended_ms FROM source").fetchone()
        if not row:
            raise SourceError(f"{self.path}: the recording is empty")
        return row[0], row[1], row[2], row[3], row[4]

    def databases(self) -> dict[int, RecordedKeys]:
        """Return the keys that exist at the end, by database."""
        return {db: self.keys(db) for (db,) in self._db.execute("SELECT DISTINCT db FROM key").fetchall()}

    def events(self) -> Iterator[KeyEvent]:
        """Yield every event in the order in which it was recorded."""
        rows = self._db.execute(
            "SELECT key.db, key.name, event, at_ms, after_ms, possible, event.deadline_ms, ttl_ms, command "
            "FROM event JOIN key ON key.id = event.key ORDER BY event.rowid"
        )
        for db, key, name, at, after, several, deadline, ttl, command in rows:
            possible = tuple(several.split(",")) if several else (name,) if name in DELETIONS else ()
            proven = several is None or len(possible) > 1
            moment = Moment(at if after is None else after, at)
            created = name == "written" and (ttl is not None or deadline is None)
            yield KeyEvent(
                db, key, name, moment, command or "", deadline, ttl, possible, created=created, proven=proven
            )

    def counts(self) -> tuple[int, int, int]:
        """Return how many keys, events and gaps were recorded."""
        keys, events, gaps = (
            self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608  # names from this line
            for table in ("key", "event", "gap")
        )
        return keys, events, gaps

    def gaps(self) -> list[tuple[int, int, str]]:
        """Return the times that were not observed, with the reasons."""
        return [tuple(row) for row in self._db.execute("SELECT began_ms, ended_ms, reason FROM gap ORDER BY began_ms")]
