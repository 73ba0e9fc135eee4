"""record: watch a live server without changing it, and keep what happens to its keys in a recording.

The server pushes the names of changed keys (see ``tracking``), and each name is followed by PEXPIRETIME: that tells
writes, renewals and expiries. Why a key ended before its deadline follows from the server's counters, read five times a
second. Nothing is written to the server, and no value is read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import redis

from memkit.connect import connect, place, redact
from memkit.errors import ServerError, SourceError
from memkit.history.ledger import Known, Ledger
from memkit.history.tracking import Tracker
from memkit.readonly.connection import KeyCommands, ReadOnlyConnection, info_fields, refused
from memkit.render import counted, duration

COUNTERS_EVERY_S = 0.2
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
_DELETING = frozenset(
    [
        "del",
        "unlink",
        "getdel",
        "delex",
        "expire",
        "pexpire",
        "expireat",
        "pexpireat",
        "getex",
        "migrate",
        "restore",
        "sort",
        "lpop",
        "rpop",
        "lmpop",
        "blpop",
        "brpop",
        "blmpop",
        "lmove",
        "blmove",
        "rpoplpush",
        "brpoplpush",
        "lrem",
        "ltrim",
        "srem",
        "spop",
        "smove",
        "hdel",
        "hgetdel",
        "zrem",
        "zpopmin",
        "zpopmax",
        "zmpop",
        "bzpopmin",
        "bzpopmax",
        "zremrangebyrank",
        "zremrangebyscore",
        "zremrangebylex",
        "sunionstore",
        "sinterstore",
        "sdiffstore",
        "zunionstore",
        "zinterstore",
        "zdiffstore",
        "zrangestore",
    ]
)
_RENAMING = frozenset({"rename", "renamenx", "move"})
_FLUSHING = frozenset({"flushdb", "flushall", "swapdb"})
_REMOVING_TTL = frozenset({"persist", "getex"})
_REPLACING = frozenset(
    "set getset mset msetex setnx restore sort sunionstore sinterstore sdiffstore zunionstore copy".split()  # noqa: SIM905
)


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
    """The connections to one server: pushed names, and commands that read deadlines, counters and the clock.

    Args:
        client: A client of the server.
        url: The server's URL without its password, for messages.
        prefixes: Beginnings of the keys to watch.

    Raises:
        redis.RedisError: The server does not answer or refuses what is needed.
    """

    def __init__(self, client: redis.Redis, *, url: str, prefixes: Sequence[bytes]) -> None:
        self._prefixes = tuple(prefixes)
        self.tracker = Tracker(client, prefixes)
        self._connection = ReadOnlyConnection(client, name=url, keep_idle_times=False)

    def close(self) -> None:
        """Close the connections."""
        self.tracker.close()
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
    for_s: float | None = None,
    stop: threading.Event | None = None,
    began: Callable[[str], None] = lambda _: None,
) -> RecordingSummary:
    """Record what happens to keys until the time is over or ``stop`` is set.

    Args:
        url: The server: a Redis URL with its database.
        output: The recording, a new file.
        prefixes: Beginnings of the keys to record; all keys by default.
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
        recorder = _Recorder(client, ledger, url=redact(url), prefixes=prefixes or (b"",))
        try:
            began(recorder.begin())
            recorder.run(for_s, stop or threading.Event())
        finally:
            recorder.close()
        return recorder.summary()


def acl_rule(prefixes: Sequence[bytes] = ()) -> str:
    """Return the ACL command that creates the least user for a recording (Redis 7.0, Valkey).

    Args:
        prefixes: Beginnings of the keys to record; all keys by default.
    """
    keys = " ".join(f"%R~{prefix.decode('utf-8', 'surrogateescape')}*" for prefix in prefixes or (b"",))
    commands = "+hello +ping +client|tracking +time +info +scan +pexpiretime"
    return f"ACL SETUSER memkit-record on >PASSWORD resetchannels -@all {keys} {commands}"


class _Recorder:
    def __init__(self, client: redis.Redis, ledger: Ledger, *, url: str, prefixes: Sequence[bytes]) -> None:
        self._client, self._ledger, self._url, self._prefixes = client, ledger, url, prefixes
        self._db = int(client.connection_pool.connection_kwargs.get("db") or 0)
        self._vanished: list[_Vanished] = []
        self._keys = self._events = self._gaps = 0
        self._began_s = self._looked_s = time.monotonic()
        try:
            self._server = WatchedServer(client, url=url, prefixes=prefixes)
            self._looked_ms = self._server.now_ms()
            self._counters = self._server.counters()
        except redis.RedisError as error:
            raise ServerError(f"{url}: the recording cannot begin: {error}") from None

    def begin(self) -> str:
        """Record the keys that exist; return what is recorded and what it costs."""
        server, version = self._server.version()
        self._ledger.begin_source(
            kind="tracking", name=self._url, server=server, version=version, began_ms=self._looked_ms
        )
        self._scan(gap_began_ms=None)
        self._looked_s = time.monotonic()
        self._ledger.commit()
        prefixes = ", ".join(prefix.decode("utf-8", "replace") + "*" for prefix in self._prefixes)
        return (
            f"recording {prefixes} of {place(self._client)} by CLIENT TRACKING and PEXPIRETIME: "
            f"{counted(self._keys, 'key')} now; it costs the server 1.2 to 1.6 times the CPU of each write to them"
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
                names, flushed = self._server.tracker.take(COUNTERS_EVERY_S)
                if self._server.tracker.lost:
                    raise redis.ConnectionError(self._server.tracker.lost)
                self._look(names, flushed=flushed)
                if time.monotonic() >= next_counters:
                    self._explain()
                    next_counters = time.monotonic() + COUNTERS_EVERY_S
            except (redis.ConnectionError, redis.TimeoutError) as error:
                self._reconnect(str(error), until, stop)
            if time.monotonic() >= next_commit:
                self._ledger.observed_until(self._looked_ms)
                self._ledger.commit()
                next_commit = time.monotonic() + COMMIT_EVERY_S
        with suppress(redis.RedisError):
            self._explain()
        self._ledger.observed_until(self._looked_ms)

    def _look(self, names: Sequence[bytes], *, flushed: bool) -> None:
        """Record what changed since the last look."""
        after_ms = self._looked_ms
        paused_s = time.monotonic() - self._looked_s
        self._looked_s = time.monotonic()
        wanted = [name for name in names if self._server.watches(name)]
        deadlines = self._server.deadlines(wanted)
        at_ms = self._server.now_ms()
        self._looked_ms = at_ms
        if paused_s > GAP_S + COUNTERS_EVERY_S:
            self._add_gap(after_ms, at_ms, "the recorder was not running or the server did not answer")
        known = self._ledger.known(self._db, wanted)
        for name, deadline in deadlines:
            self._record(name, known.get(name), deadline, after_ms, at_ms)
        if flushed:
            self._check_all(after_ms, at_ms)

    def _check_all(self, after_ms: int, at_ms: int) -> None:
        """After a flush, of whichever database: look which keys no longer exist."""
        live = dict(self._ledger.live(self._db))
        for name, deadline in self._server.deadlines(list(live)):
            if deadline == -2:
                self._ledger.set_key(self._db, name, live=False, deadline_ms=None)
                self._add_event(live[name].id, "flushed", at_ms, after_ms, (), live[name].deadline_ms)

    def _record(self, name: bytes, known: Known | None, deadline: int, after_ms: int, at_ms: int) -> None:
        before = known if known and known.live else None
        if deadline == -2:
            if before is not None:
                self._ledger.set_key(self._db, name, live=False, deadline_ms=None)
                self._vanished.append(_Vanished(name, before, after_ms, at_ms))
            return
        deadline_ms = None if deadline == -1 else deadline
        ttl_ms = None if deadline_ms is None else _ttl(deadline_ms, after_ms, at_ms)
        key = self._ledger.set_key(self._db, name, live=True, deadline_ms=deadline_ms)
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
        live = self._ledger.known(self._db, [one.name for one in vanished])
        for one in vanished:
            key, state = one.known, live.get(one.name)
            if state is not None and state.live and state.deadline_ms is None and key.deadline_ms is not None:
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
    ) -> None:
        self._events += 1
        several = possible if len(possible) > 1 else ()
        self._ledger.add_event(
            key, event, at_ms=at_ms, after_ms=after_ms, possible=several, deadline_ms=deadline_ms, ttl_ms=ttl_ms
        )

    def _add_gap(self, began_ms: int, ended_ms: int, reason: str) -> None:
        self._gaps += 1
        self._ledger.add_gap(began_ms, ended_ms, reason)

    def _reconnect(self, reason: str, until: float | None, stop: threading.Event) -> None:
        """Connect again, as often as it takes; what was not observed is a gap."""
        lost_ms = self._looked_ms
        self._vanished.clear()
        while not stop.wait(RECONNECT_EVERY_S) and (until is None or time.monotonic() < until):
            self._server.close()
            try:
                self._server = WatchedServer(self._client, url=self._url, prefixes=self._prefixes)
                self._looked_ms = self._server.now_ms()
                self._counters = self._server.counters()
                self._scan(gap_began_ms=lost_ms)
            except redis.RedisError:
                continue
            self._add_gap(lost_ms, self._looked_ms, reason)
            self._looked_s = time.monotonic()
            return

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
                key = self._ledger.set_key(self._db, name, live=True, deadline_ms=deadline_ms)
                old = known.get(name)
                if old is None or not old.live:
                    self._keys += 1
                elif gap_began_ms is not None and old.deadline_ms != deadline_ms:
                    self._add_event(key, "renewed", self._looked_ms, gap_began_ms, (), deadline_ms)
        if gap_began_ms is None:
            return
        for name, state in list(self._ledger.live(self._db)):
            if name not in seen:
                self._ledger.set_key(self._db, name, live=False, deadline_ms=None)
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


def read_recording(path: str | Path) -> Ledger:
    """Open a recording for reading.

    Raises:
        SourceError: The file is no recording.
    """
    found = Path(path)
    if not found.is_file():
        raise SourceError(f"{found}: there is no such file")
    return Ledger(found, reading=True)
