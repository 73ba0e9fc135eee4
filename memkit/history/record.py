"""record: watch a live server without changing it, and keep what happens to its keys in a recording.

The server pushes the names of changed keys (see ``tracking``), and each name is followed by PEXPIRETIME: that shows
writes, renewals and expiries. Why a key ended before its deadline follows from the server's counters, read five times a
second. Nothing is written to the server, and no value is read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import redis

from memkit.connect import connect, place, redact
from memkit.errors import ServerError
from memkit.history.ledger import Known, Ledger
from memkit.history.replication import CommandStream, Executed
from memkit.history.states import KeyEvent, KeyState, KeyStates, Moment
from memkit.history.tracking import Tracker
from memkit.readonly.connection import KeyCommands, ReadOnlyConnection, info_fields, refused
from memkit.render import counted, duration

Replication = Literal["replica", "primary"]
COUNTERS_EVERY_S = 0.2
STREAM_LOOK_S = 0.05
"""How long a look at a stream waits: as long is the time in which a command may have been executed."""
COMMIT_EVERY_S = 1.0
"""At most this much is lost when the process is killed."""
GAP_S = 1.0
"""A longer time without a look at the server is a gap in the record: time of this machine, because a server's clock may
be set."""
RECONNECT_EVERY_S = 0.5
SCAN_COUNT = 1_000
BATCH_KEYS = 1_000
ROUND_MS = 1_000
PUSH_DELAY_MS = 100
"""A name arrives up to this much after its key was written: the server sends pushes between its turns."""
# Commands after which a key may no longer exist, by what became of it; scripts count as the commands that they call.
_DELETING_NAMES = """
del unlink getdel delex expire pexpire expireat pexpireat getex migrate restore sort lpop rpop lmpop blpop brpop blmpop
lmove blmove rpoplpush brpoplpush lrem ltrim srem spop smove hdel hgetdel zrem zpopmin zpopmax zmpop bzpopmin bzpopmax
zremrangebyrank zremrangebyscore zremrangebylex sunionstore sinterstore sdiffstore zunionstore zinterstore zdiffstore
zrangestore
"""
_DELETING = frozenset(_DELETING_NAMES.split())
_RENAMING = frozenset({"rename", "renamenx", "move"})
_FLUSHING = frozenset({"flushdb", "flushall", "swapdb"})
_REMOVING_TTL = frozenset({"persist", "getex"})
_REPLACING_NAMES = "set getset mset msetex setnx restore sort sunionstore sinterstore sdiffstore zunionstore copy"
_REPLACING = frozenset(_REPLACING_NAMES.split())


class Counters(NamedTuple):
    """The server's counters at one moment: evicted keys, and calls by command."""

    evicted: int
    calls: Mapping[str, int]

    def since(self, before: Counters, names: Iterable[str]) -> int:
        """Return how often these commands were called since then."""
        return sum(self.calls.get(name, 0) - before.calls.get(name, 0) for name in names)


@dataclass(frozen=True, slots=True)
class RecordingSummary:
    """What was recorded: how many keys and events, how many gaps, and for how long."""

    keys: int
    events: int
    gaps: int
    seconds: float

    def __str__(self) -> str:
        parts = [counted(self.keys, "key"), counted(self.events, "event"), counted(self.gaps, "gap")]
        return f"{', '.join(parts)} in {duration(self.seconds * 1_000)}"


class _Vanished(NamedTuple):
    """A key that no longer exists; why is known after the next reading of the counters."""

    name: bytes
    known: Known
    after_ms: int
    at_ms: int


class WatchedServer:
    """The connections to one server: what it pushes, and commands that read deadlines, counters and the clock.

    ``pushed`` is where changes arrive: the names of keys, or the commands of its replication stream.

    Args:
        client: A client of the server.
        url: The server's URL without its password, for messages.
        prefixes: Beginnings of the keys to watch.
        replication: Read the replication stream of a replica, or of a primary too.

    Raises:
        redis.RedisError: The server does not answer or refuses what is needed.
        ServerError: The server has no replication backlog, or is a primary.
    """

    def __init__(
        self, client: redis.Redis, *, url: str, prefixes: Sequence[bytes], replication: Replication | None
    ) -> None:
        self._prefixes = tuple(prefixes)
        self.pushed: Tracker | CommandStream
        self._connection = ReadOnlyConnection(client, name=url, keep_idle_times=False)
        try:
            if replication:
                self.pushed = CommandStream(client, name=url, primary=replication == "primary")
            else:
                self.pushed = Tracker(client, prefixes)
        except (redis.RedisError, ServerError):
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        self.pushed.subscription.close()
        self._connection.close()

    def ask(self, *words: str | bytes | int) -> Any:
        """Return the reply to one command."""
        reply = self._connection.ask(*words)
        if refused(reply):
            raise reply
        return reply

    def now_ms(self) -> int:
        """Return the server's clock."""
        seconds, microseconds = self.ask("TIME")
        return int(seconds) * 1_000 + int(microseconds) // 1_000

    def counters(self) -> Counters:
        """Return the server's counters."""
        stats, commands = info_fields(self.ask("INFO", "stats")), info_fields(self.ask("INFO", "commandstats"))
        calls = {
            name.removeprefix("cmdstat_"): int(text.partition("calls=")[2].partition(",")[0])
            for name, text in commands.items()
            if text.startswith("calls=")
        }
        return Counters(int(stats.get("evicted_keys", 0)), calls)

    def version(self) -> tuple[str, str]:
        """Return the kind of server and its version."""
        info = info_fields(self.ask("INFO", "server"))
        return ("valkey" if "valkey_version" in info else "redis"), info.get("valkey_version") or info["redis_version"]

    def watches(self, name: bytes) -> bool:
        """Return whether a key is watched."""
        return name.startswith(self._prefixes)

    def deadlines(self, names: Sequence[bytes]) -> list[tuple[bytes, int]]:
        """Return each key's deadline: -1 for a persistent key, -2 for one that does not exist."""
        found: list[tuple[bytes, int]] = []
        for start in range(0, len(names), BATCH_KEYS):
            batch = names[start : start + BATCH_KEYS]
            replies = self._connection.send(KeyCommands(batch, ["pexpiretime"])).take()
            for reply in filter(refused, replies):
                raise reply
            found += zip(batch, replies, strict=True)
        return found

    def scan(self) -> Iterator[list[bytes]]:
        """Yield the names of the watched keys that exist, in batches; a name may come twice."""
        for prefix in self._prefixes:
            cursor: Any = 0
            while True:
                cursor, names = self.ask("SCAN", cursor, "MATCH", _escaped(prefix) + b"*", "COUNT", SCAN_COUNT)
                yield names
                if cursor == b"0":
                    break


def record(
    url: str,
    output: str | Path,
    *,
    prefixes: Sequence[bytes] = (),
    replication: Replication | None = None,
    for_s: float | None = None,
    stop: threading.Event | None = None,
    began: Callable[[str], None] = lambda _: None,
) -> RecordingSummary:
    """Record what happens to keys until the time is over or ``stop`` is set.

    Args:
        url: The server: a Redis URL with its database.
        output: The recording, a new file.
        prefixes: Beginnings of the keys to record; all keys by default.
        replication: Read the replication stream, of a replica or of a primary too; by default the names of changed keys
            are read, and why a key ended follows from counters.
        for_s: How long, in seconds; without it until ``stop``.
        stop: Ends the recording when it is set.
        began: Called once with a sentence when the recording begins.

    Raises:
        SourceError: The output cannot be written, or exists.
        ServerError: The server does not answer, or refuses what is needed; the message names the right it lacks.
    """
    client = connect(url, decode_responses=False)
    if isinstance(client, redis.RedisCluster):
        raise ServerError("a recording is of one server; record each node of a cluster by its own URL")
    with Ledger(Path(output)) as ledger:
        recorder = _Recorder(client, ledger, url=redact(url), prefixes=prefixes or (b"",), replication=replication)
        try:
            began(recorder.begin())
            recorder.run(for_s, stop or threading.Event())
        finally:
            recorder.close()
        return recorder.summary()


def acl_rule(prefixes: Sequence[bytes] = (), *, replication: bool = False) -> str:
    """Return the ACL command that creates the least user for a recording (Redis 7.0, Valkey).

    Args:
        prefixes: Beginnings of the keys to record; all keys by default.
        replication: For a recording of the replication stream, which has all data.
    """
    keys = " ".join(f"%R~{prefix.decode('utf-8', 'surrogateescape')}*" for prefix in prefixes or (b"",))
    source = "+psync +replconf" if replication else "+hello +client|tracking"
    commands = f"{source} +ping +time +info +scan +pexpiretime"
    return f"ACL SETUSER memkit-record on >PASSWORD resetchannels -@all {keys} {commands}"


class _RecordedKeys(MutableMapping[bytes, KeyState]):
    """The keys of one database that exist, as the recording has them: the memory does not grow with their number."""

    def __init__(self, ledger: Ledger, db: int) -> None:
        self._ledger, self._db = ledger, db

    def __getitem__(self, name: bytes) -> KeyState:
        known = self._ledger.known(self._db, [name]).get(name)
        if known is None or not known.present:
            raise KeyError(name)
        return KeyState(known.deadline_ms)

    def __setitem__(self, name: bytes, state: KeyState) -> None:
        self._ledger.set_key(self._db, name, present=True, deadline_ms=state.deadline_ms)

    def __delitem__(self, name: bytes) -> None:
        self._ledger.set_key(self._db, name, present=False, deadline_ms=None)

    def __iter__(self) -> Iterator[bytes]:
        return (name for name, _ in self._ledger.keys_present(self._db))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Recorder:
    """Looks at a server again and again, and writes what changed into the recording."""

    def __init__(
        self,
        client: redis.Redis,
        ledger: Ledger,
        *,
        url: str,
        prefixes: Sequence[bytes],
        replication: Replication | None,
    ) -> None:
        self._client, self._ledger, self._url, self._prefixes = client, ledger, url, prefixes
        self._replication = replication
        self._db = int(client.connection_pool.connection_kwargs.get("db") or 0)
        self._vanished: list[_Vanished] = []
        self._keys = self._events = self._gaps = 0
        self._began_s = self._looked_s = time.monotonic()
        try:
            self._connect()
        except redis.RedisError as error:
            raise ServerError(f"{url}: the recording cannot begin: {error}") from None

    def _connect(self) -> None:
        self._server = WatchedServer(
            self._client, url=self._url, prefixes=self._prefixes, replication=self._replication
        )
        self._looked_ms = self._server.now_ms()
        self._counters = self._server.counters()

    def begin(self) -> str:
        """Record the keys that exist; return what is recorded and what it costs."""
        server, version = self._server.version()
        kind = "replication" if self._replication else "tracking"
        self._ledger.begin_source(kind=kind, name=self._url, server=server, version=version, began_ms=self._looked_ms)
        self._states = KeyStates(
            server=server, wanted=self._server.watches, keys_of=lambda db: _RecordedKeys(self._ledger, db)
        )
        self._scan(gap_began_ms=None)
        self._looked_s = time.monotonic()
        self._ledger.commit()
        prefixes = ", ".join(prefix.decode("utf-8", "replace") + "*" for prefix in self._prefixes)
        how = "CLIENT TRACKING and PEXPIRETIME", "1.2 to 1.8 times the CPU of each write to them"
        if self._replication:
            how = "its replication stream", "0.9 to 1.4 times the CPU of each write"
        primary = "; the primary lists this connection as a replica" if self._replication == "primary" else ""
        return (
            f"recording {prefixes} of {place(self._client)} by {how[0]}: {counted(self._keys, 'key')} now; it costs "
            f"the server {how[1]}{primary}"
        )

    def close(self) -> None:
        self._server.close()
        self._client.close()

    # Recording

    def run(self, for_s: float | None, stop: threading.Event) -> None:
        until = None if for_s is None else time.monotonic() + for_s
        next_counters = next_commit = time.monotonic()
        while not stop.is_set() and (until is None or time.monotonic() < until):
            try:
                pushed = self._server.pushed
                if isinstance(pushed, Tracker):
                    names, flushed = pushed.take(COUNTERS_EVERY_S)
                    self._look(names, flushed=flushed)
                else:
                    self._apply(pushed.take(STREAM_LOOK_S))
                if pushed.subscription.lost:
                    raise redis.ConnectionError(pushed.subscription.lost)
                if time.monotonic() >= next_counters:
                    self._explain()
                    next_counters = time.monotonic() + COUNTERS_EVERY_S
            except redis.RedisError as error:  # also LOADING and MASTERDOWN, which a failover brings
                self._reconnect(str(error), until, stop)
            if time.monotonic() >= next_commit:
                self._ledger.observed_until(self._looked_ms)
                self._ledger.commit()
                next_commit = time.monotonic() + COMMIT_EVERY_S
        with suppress(redis.RedisError):
            self._explain()
        self._ledger.observed_until(self._looked_ms)

    def _looked(self) -> tuple[int, int]:
        """Return the server's time at the last look and now; a long time without a look is a gap."""
        after_ms, self._looked_ms = self._looked_ms, self._server.now_ms()
        paused_s = time.monotonic() - self._looked_s
        self._looked_s = time.monotonic()
        if paused_s > GAP_S + COUNTERS_EVERY_S:
            self._add_gap(after_ms, self._looked_ms, "the recorder was not running or the server did not answer")
        return after_ms, self._looked_ms

    def _apply(self, commands: Sequence[Executed]) -> None:
        """Record what the commands of a replication stream did."""
        after_ms, at_ms = self._looked()
        moment = Moment(after_ms, at_ms)
        emptied: dict[bytes, str] = {}
        for db, name, effects in commands:
            if name == "SWAPDB":
                raise redis.ConnectionError("SWAPDB exchanged two databases")
            for effect in effects:
                if effect.action == "remove elements" and db == self._db:
                    emptied[effect.key] = name
                for event in self._states.apply(db, effect, moment, name):
                    if event.db == self._db:
                        self._record_event(event, after_ms, at_ms)
        self._check_emptied(emptied, after_ms, at_ms)

    def _check_emptied(self, emptied: Mapping[bytes, str], after_ms: int, at_ms: int) -> None:
        """Record which keys no longer exist because their last element was removed."""
        for key, deadline in self._server.deadlines([key for key in emptied if self._server.watches(key)]):
            state = self._states.keys_of(self._db).pop(key, None) if deadline == -2 else None
            if state is not None:
                moment = Moment(after_ms, at_ms)
                ended = KeyEvent(self._db, key, "deleted", moment, emptied[key], state.deadline_ms)
                self._record_event(ended, after_ms, at_ms)

    def _record_event(self, event: KeyEvent, after_ms: int, at_ms: int) -> None:
        key = self._ledger.known(self._db, [event.key])[event.key].id
        self._keys += event.created
        gave_ttl = event.ttl_ms is not None and event.deadline_ms is not None
        ttl_ms = _ttl(event.deadline_ms or 0, after_ms, at_ms) if gave_ttl else event.ttl_ms
        if event.possible == ("expired",):
            after_ms = at_ms = event.deadline_ms or at_ms
        after = None if after_ms == at_ms else after_ms
        self._add_event(key, event.name, at_ms, after, event.possible, event.deadline_ms, ttl_ms, event.command)

    def _look(self, names: Sequence[bytes], *, flushed: bool) -> None:
        """Record what changed since the last look."""
        wanted = [name for name in names if self._server.watches(name)]
        deadlines = self._server.deadlines(wanted)
        after_ms, at_ms = self._looked()
        known = self._ledger.known(self._db, wanted)
        for name, deadline in deadlines:
            self._record(name, known.get(name), deadline, after_ms, at_ms)
        if flushed:
            self._check_all(after_ms, at_ms)

    def _check_all(self, after_ms: int, at_ms: int) -> None:
        """After a flush, of whichever database: look which keys no longer exist."""
        present = dict(self._ledger.keys_present(self._db))
        for name, deadline in self._server.deadlines(list(present)):
            if deadline == -2:
                self._ledger.set_key(self._db, name, present=False, deadline_ms=None)
                self._add_event(present[name].id, "flushed", at_ms, after_ms, (), present[name].deadline_ms)

    def _record(self, name: bytes, known: Known | None, deadline: int, after_ms: int, at_ms: int) -> None:
        before = known if known and known.present else None
        if deadline == -2:
            if before is not None:
                self._ledger.set_key(self._db, name, present=False, deadline_ms=None)
                self._vanished.append(_Vanished(name, before, after_ms, at_ms))
            return
        deadline_ms = None if deadline == -1 else deadline
        ttl_ms = None if deadline_ms is None else _ttl(deadline_ms, after_ms, at_ms)
        key = self._ledger.set_key(self._db, name, present=True, deadline_ms=deadline_ms)
        if before is None:
            self._keys += 1
            self._add_event(key, "written", at_ms, after_ms, (), deadline_ms, ttl_ms)
        elif before.deadline_ms == deadline_ms:
            self._add_event(key, "written", at_ms, after_ms, (), deadline_ms)
        elif deadline_ms is None:
            self._vanished.append(_Vanished(name, before, after_ms, at_ms))
        else:
            self._add_event(key, "renewed", at_ms, after_ms, (), deadline_ms, ttl_ms)

    def _explain(self) -> None:
        """Read the counters, and record why keys ended or lost their TTL since the last reading."""
        now = self._server.counters()
        before, self._counters = self._counters, now
        vanished, self._vanished = self._vanished, []
        known = self._ledger.known(self._db, [one.name for one in vanished])
        for one in vanished:
            key, state = one.known, known.get(one.name)
            if state is not None and state.present and state.deadline_ms is None and key.deadline_ms is not None:
                self._explain_lost_ttl(one, before, now)
            elif key.deadline_ms is not None and one.at_ms >= key.deadline_ms:
                self._add_event(key.id, "expired", key.deadline_ms, None, (), key.deadline_ms)
            else:
                possible = [
                    *(["deleted"] if now.since(before, _DELETING) else []),
                    *(["evicted"] if now.evicted > before.evicted else []),
                    *(["renamed"] if now.since(before, _RENAMING) else []),
                    *(["flushed"] if now.since(before, _FLUSHING) else []),
                ] or ["deleted", "evicted", "renamed"]
                self._add_event(key.id, possible[0], one.at_ms, one.after_ms, possible, key.deadline_ms)

    def _explain_lost_ttl(self, one: _Vanished, before: Counters, now: Counters) -> None:
        persisted, replaced = now.since(before, _REMOVING_TTL), now.since(before, _REPLACING)
        possible = [*(["overwritten"] if replaced or not persisted else []), *(["ttl_removed"] if persisted else [])]
        self._add_event(one.known.id, possible[0], one.at_ms, one.after_ms, possible, None)

    def _add_event(
        self,
        key: int,
        event: str,
        at_ms: int,
        after_ms: int | None,
        possible: Sequence[str],
        deadline_ms: int | None,
        ttl_ms: int | None = None,
        command: str = "",
    ) -> None:
        self._events += 1
        self._ledger.add_event(
            key,
            event,
            at_ms=at_ms,
            after_ms=after_ms,
            possible=possible if len(possible) > 1 else (),
            deadline_ms=deadline_ms,
            ttl_ms=ttl_ms,
            command=command,
        )

    def _add_gap(self, began_ms: int, ended_ms: int, reason: str) -> None:
        self._gaps += 1
        self._ledger.add_gap(began_ms, ended_ms, reason)

    def _reconnect(self, reason: str, until: float | None, stop: threading.Event) -> None:
        """Connect again, as often as it takes; what was not observed is a gap, up to the end of the recording."""
        lost_ms, lost_s = self._looked_ms, self._looked_s
        self._vanished.clear()
        why = "the recording ended"
        while not stop.wait(RECONNECT_EVERY_S) and (until is None or time.monotonic() < until):
            self._server.close()
            try:
                self._connect()
                self._scan(gap_began_ms=lost_ms)
            except (redis.RedisError, ServerError) as error:
                self._looked_ms, why = lost_ms, str(error)
                continue
            self._add_gap(lost_ms, self._looked_ms, reason)
            self._looked_s = time.monotonic()
            return
        self._add_gap(lost_ms, lost_ms + round((time.monotonic() - lost_s) * 1_000), f"{reason}; {why}")

    def _scan(self, *, gap_began_ms: int | None) -> None:
        """Read which keys exist, with their deadlines; after a gap, keys that do not exist any more ended in it."""
        seen: set[bytes] = set()
        for names in self._server.scan():
            known = self._ledger.known(self._db, names)
            for name, deadline in self._server.deadlines(names):
                if deadline == -2:
                    continue
                seen.add(name)
                deadline_ms = None if deadline == -1 else deadline
                key = self._ledger.set_key(self._db, name, present=True, deadline_ms=deadline_ms)
                old = known.get(name)
                if old is None or not old.present:
                    self._keys += 1
                elif gap_began_ms is not None and old.deadline_ms != deadline_ms:
                    lost_ttl = ("overwritten", "ttl_removed") if deadline_ms is None else ()
                    event = "overwritten" if lost_ttl else "renewed"
                    self._add_event(key, event, self._looked_ms, gap_began_ms, lost_ttl, deadline_ms)
        if gap_began_ms is None:
            return
        for name, state in list(self._ledger.keys_present(self._db)):
            if name not in seen:
                self._ledger.set_key(self._db, name, present=False, deadline_ms=None)
                possible = ["deleted", "evicted", "renamed", "flushed"]
                if state.deadline_ms is not None and state.deadline_ms <= self._looked_ms:
                    possible.insert(0, "expired")
                self._add_event(state.id, possible[0], self._looked_ms, gap_began_ms, possible, state.deadline_ms)

    def summary(self) -> RecordingSummary:
        return RecordingSummary(self._keys, self._events, self._gaps, time.monotonic() - self._began_s)


def _ttl(deadline_ms: int, after_ms: int, at_ms: int) -> int:
    """Return the TTL that was given between two looks: a whole number of seconds if one fits, otherwise the least."""
    least, most = deadline_ms - at_ms, deadline_ms - after_ms + PUSH_DELAY_MS
    whole = -(-least // ROUND_MS) * ROUND_MS
    return whole if whole <= most else least


def _escaped(prefix: bytes) -> bytes:
    return b"".join(b"\\" + bytes([char]) if char in b"*?[]^\\-" else bytes([char]) for char in prefix)
