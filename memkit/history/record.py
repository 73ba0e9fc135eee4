"""record: watch a live server without changing it, and keep what happens to its keys in a recording.

The server pushes the names of changed keys (see ``tracking``), and each name is followed by PEXPIRETIME: that shows
writes, renewals and expiries. Why a key ended before its deadline follows from the server's counters, read five times a
second. Nothing is written to the server, and no value is read.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import redis

from memkit.connect import SHORT_HANDSHAKE, chunks, connect, escape_glob, place, redact
from memkit.errors import ServerError
from memkit.history.commands import Action, Executed
from memkit.history.recording import RESTARTED, Recording
from memkit.history.replication import CommandStream
from memkit.history.states import EventName, KeyEvent, KeyState, KeyStates, Moment, logs_like, possible_ends
from memkit.history.tracking import Tracker
from memkit.readonly.connection import KeyCommands, ReadOnlyConnection, info_fields, is_in_cluster, redirected, refused
from memkit.readonly.values import to_name
from memkit.render import counted, duration

Replication = Literal["replica", "primary"]
COUNTERS_EVERY_S = 0.2
STREAM_LOOK_S = 0.05
"""How long a look at a stream waits: as long is the time in which a command may have been executed."""
COMMIT_EVERY_S = 0.2
"""At most this much is lost when the process is killed. One commit a second takes the recorder as much CPU."""
GAP_S = 1.0
"""A longer time without a look at the server is a gap in the record: time of this machine, because a server's clock may
be set."""
RECONNECT_EVERY_S = 0.5
BATCH_KEYS = 1_000
ROUND_MS = 1_000
MINUTE_MS = 60_000
"""Beside a RENAME, only a TTL of whole minutes is taken for one that was given. What is left of another key's TTL fits
a whole second in a third of all looks, and a whole minute in one of 200."""
PUSH_DELAY_MS = 100
"""A name arrives up to this much after its key was written: the server sends pushes between its turns."""
REPLICA_CLOCK_MS = 60_000
"""A key that a replica loses within its last minute may have expired: its clock may be behind that of its primary."""
_BY_THE_PRIMARY = frozenset({"del", "unlink"})
"""A primary sends these to its replicas for keys that expired or were evicted, too."""
_FIELDS_BY_THE_PRIMARY = _BY_THE_PRIMARY | {"hdel"}
"""A primary sends these for the last field of a hash that expired; a replica does not count that as expired."""
_EXPIRING_FIELDS = frozenset({"hexpire", "hpexpire", "hexpireat", "hpexpireat", "hsetex", "hgetex"})
# Commands after which a key may no longer exist, by what became of it; scripts count as the commands that they call.
_DELETING_NAMES = """
del unlink getdel delex expire pexpire expireat pexpireat getex restore sort lpop rpop lmpop blpop brpop blmpop
lmove blmove rpoplpush brpoplpush lrem ltrim srem spop smove hdel hgetdel zrem zpopmin zpopmax zmpop bzpopmin bzpopmax
zremrangebyrank zremrangebyscore zremrangebylex sunionstore sinterstore sdiffstore zunionstore zinterstore zdiffstore
zrangestore geosearchstore georadius georadiusbymember bitop delifeq hexpire hpexpire hexpireat hpexpireat hsetex hgetex
vrem json.del json.forget
"""
_DELETING = frozenset(_DELETING_NAMES.split())
_RENAMING = frozenset({"rename", "renamenx", "move", "migrate"})
_KEEPING_DEADLINE = frozenset({"rename", "renamenx", "move", "copy", "restore"})
"""A key that gets its deadline from another one: the time until then is not the TTL that was given."""
A_RENAME = "a rename"
_FLUSHING = frozenset({"flushdb", "flushall", "swapdb"})
_REMOVING_TTL = frozenset({"persist", "getex"})
_REPLACING_NAMES = """
set getset mset msetex setnx restore sort sunionstore sinterstore sdiffstore zunionstore zinterstore zdiffstore
zrangestore geosearchstore georadius bitop copy rename renamenx
"""
_REPLACING = frozenset(_REPLACING_NAMES.split())
_FIELD_TTLS = re.compile(rb"(subexpiry|keys_with_volatile_items)=[1-9]")
_LOOK_AFTER = frozenset({"remove elements", "pop elements", "store"})
"""After these the key may have no element left, and no longer exist."""


_LAST_FIELD: tuple[EventName, ...] = ("expired", "deleted")


class _Counters(NamedTuple):
    """The server's counters at one moment: evicted and expired keys, expired hash fields, and calls by command."""

    evicted: int
    expired: int
    expired_fields: int
    calls: dict[str, int]


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


class _WatchedServer:
    """The connections to one server: one on which changes arrive (``pushed``), and one for commands that read."""

    def __init__(
        self, client: redis.Redis, *, url: str, prefixes: Sequence[bytes], replication: Replication | None
    ) -> None:
        self._prefixes = tuple(prefixes)
        self.pushed: Tracker | CommandStream
        self._connection = ReadOnlyConnection(client, name=url, keep_idle_times=False)
        self.moved: set[bytes] = set()
        """Keys that another server of the cluster has, or may have: their slot moves."""
        try:
            self.is_in_cluster = is_in_cluster(self._connection)
            reply = self._connection.ask("PEXPIRETIME", self._prefixes[0] + b"0")  # %R~* does not match an empty name
            if refused(reply) and "unknown command" in str(reply):
                raise ServerError(f"{url}: a recording needs PEXPIRETIME (Redis 7.0 or newer, or Valkey)")
            if refused(reply) and not redirected(reply):
                raise reply
            if self.is_in_cluster:
                self._connection.ask("READONLY")  # a replica answers for its primary's keys
            if replication:
                self.pushed = CommandStream(client, name=url, primary=replication == "primary")
            else:
                self.pushed = Tracker(client, prefixes)
        except (redis.RedisError, ServerError):
            self._connection.close()
            raise

    def close(self) -> None:
        self.pushed.subscription.close()
        self._connection.close()

    def now_ms(self) -> int:
        seconds, microseconds = self._connection.require("TIME")
        return int(seconds) * 1_000 + int(microseconds) // 1_000

    def counters(self) -> _Counters:
        stats, commands = (info_fields(self._connection.require("INFO", name)) for name in ("stats", "commandstats"))
        calls = {
            name.removeprefix("cmdstat_"): int(text.partition("calls=")[2].partition(",")[0])
            for name, text in commands.items()
            if text.startswith("calls=")
        }
        fields = int(stats.get("expired_subkeys") or stats.get("expired_fields") or 0)  # Redis 7.4, Valkey 9
        return _Counters(int(stats.get("evicted_keys", 0)), int(stats.get("expired_keys", 0)), fields, calls)

    def version(self) -> tuple[str, str, str]:
        """Return the kind of server, its version, and as which kind it logs the ends of keys."""
        info = info_fields(self._connection.require("INFO", "server"))
        flavour = "valkey" if "valkey_version" in info else "redis"
        return flavour, info[f"{flavour}_version"], logs_like(info)

    def run_id(self) -> str:
        """Return the id that a server gets at each start."""
        return info_fields(self._connection.require("INFO", "server"))["run_id"]

    def is_replica(self) -> bool:
        return info_fields(self._connection.require("INFO", "replication"))["role"] == "slave"

    def has_field_ttls(self) -> bool:
        """Return whether a hash has fields with TTLs (Redis 7.4, Valkey 9)."""
        return _FIELD_TTLS.search(self._connection.require("INFO", "keyspace")) is not None

    def watches(self, name: bytes) -> bool:
        return name.startswith(self._prefixes)

    def states(self, names: Sequence[bytes]) -> list[tuple[bytes, KeyState | None]]:
        """Return each key's deadline as its state; None for a key that does not exist on this server."""
        found: list[tuple[bytes, KeyState | None]] = []
        for batch in chunks(names, BATCH_KEYS):
            replies = self._connection.send(KeyCommands(batch, ["pexpiretime"])).take()
            for name, reply in zip(batch, replies, strict=True):
                if redirected(reply):
                    self.moved.add(name)
                elif refused(reply):
                    raise reply
                is_absent = reply == -2 or redirected(reply)
                found.append((name, None if is_absent else KeyState(None if reply == -1 else reply)))
        return found

    def scan(self) -> Iterator[list[bytes]]:
        """Yield the names of the watched keys that exist, in batches; a name may come twice."""
        for prefix in self._prefixes:
            yield from self._connection.scan(escape_glob(prefix) + b"*")


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
    client = connect(url, decode_responses=False, **SHORT_HANDSHAKE)
    if isinstance(client, redis.RedisCluster):
        raise ServerError("a recording is of one server; record each node of a cluster by its own URL")
    began_s = time.monotonic()
    with Recording(Path(output)) as file:
        try:
            # The server refuses chat:vip: beside chat:, which is its beginning.
            longer = {one for one in prefixes for other in prefixes if one != other and one.startswith(other)}
            outer = [one for one in dict.fromkeys(prefixes) if one not in longer] or [b""]
            recorder = _Recorder(client, file, url=redact(url), prefixes=outer, replication=replication)
            what = recorder.begin()
        except BaseException:  # also Ctrl-C
            file.discard()
            raise
        try:
            began(what)
            recorder.run(for_s, stop or threading.Event())
        finally:
            recorder.close()
        return RecordingSummary(*file.counts(), time.monotonic() - began_s)


def acl_rule(prefixes: Sequence[bytes] = (), *, replication: bool = False) -> str:
    """Return the ACL command that creates the least user for a recording (Redis 7.0, Valkey).

    Args:
        prefixes: Beginnings of the keys to record; all keys by default.
        replication: For a recording of the replication stream, which has all data.
    """
    keys = " ".join(f"%R~{to_name(prefix)}*" for prefix in prefixes or (b"",))
    source = "+psync +replconf" if replication else "&__keyevent@* +hello +client|tracking +subscribe"
    commands = f"{source} +ping +time +info +scan +pexpiretime +readonly"
    return f"ACL SETUSER memkit-record on >PASSWORD resetchannels -@all {keys} {commands}"


class _Recorder:
    """Looks at a server again and again, and writes what changed into the recording."""

    def __init__(
        self,
        client: redis.Redis,
        file: Recording,
        *,
        url: str,
        prefixes: Sequence[bytes],
        replication: Replication | None,
    ) -> None:
        self._client, self._file, self._url, self._prefixes = client, file, url, prefixes
        self._replication = replication
        self._db = int(client.connection_pool.connection_kwargs.get("db") or 0)
        self._present = file.keys(self._db)
        self._vanished: list[tuple[bytes, KeyState, Moment]] = []
        """Keys that no longer exist or lost their TTL; why is known after the next reading of the counters."""
        self._evicted: set[bytes] = set()
        self._imported: dict[bytes, None] = {}
        """Keys of slots that move here: until then the server does not answer for them."""
        self._odd_ttls: list[int] = []
        self._fields_expire = False
        """A hash has had fields with TTLs: a server logs that the last one expired as it logs a deletion."""
        try:
            self._connect()
        except redis.RedisError as error:
            raise self._cannot_begin(error) from error

    def _cannot_begin(self, error: redis.RedisError) -> ServerError:
        advice = "; memkit record URL --acl prints the user that it needs" if "permission" in str(error).lower() else ""
        return ServerError(f"{self._url}: the recording cannot begin: {error}{advice}")

    def _connect(self) -> None:
        self._server = _WatchedServer(
            self._client, url=self._url, prefixes=self._prefixes, replication=self._replication
        )
        try:
            self._looked_ms, self._is_replica = self._server.now_ms(), self._server.is_replica()
            self._run_id = self._server.run_id()
            self._fields_expire = self._fields_expire or self._server.has_field_ttls()
            counters = self._server.counters()
        except redis.RedisError:
            self._server.close()
            raise
        self._readings = counters, counters

    def begin(self) -> str:
        """Record the keys that exist; return what is recorded and what it costs."""
        server, version, log = self._server.version()
        kind = "replication" if self._replication else "tracking"
        keys = ", ".join(prefix.decode("utf-8", "replace") + "*" for prefix in self._prefixes)
        about = {"kind": kind, "name": self._url, "server": server, "version": version, "keys": keys}
        self._file.begin_source(**about, began_ms=self._looked_ms)
        watches = self._server.watches
        # The keys of other databases are not recorded.
        self._states = KeyStates(
            server=log,
            wanted=watches,
            keys_of=lambda db: self._present if db == self._db else {},
            may_have_moved=lambda key: key in self._server.moved,
        )
        try:
            self._find_new()
        except redis.RedisError as error:
            self.close()
            raise self._cannot_begin(error) from error
        self._looked_s = time.monotonic()
        self._file.commit()
        how = "CLIENT TRACKING, PEXPIRETIME", "a write to these keys takes 1.2 to 1.8"
        if self._replication:
            how = "replication stream", "each write takes 0.9 to 1.4"
        primary = ". The primary lists this connection as a replica" if self._replication == "primary" else ""
        return (
            f"recording {keys} on {place(self._client)} ({how[0]}); {counted(len(self._present), 'key')} now. "
            f"While recording, {how[1]} times its usual CPU{primary}"
        )

    def close(self) -> None:
        self._server.close()
        self._client.close()

    def run(self, for_s: float | None, stop: threading.Event) -> None:
        until = None if for_s is None else time.monotonic() + for_s
        next_counters = next_commit = time.monotonic()
        while not stop.is_set() and (until is None or time.monotonic() < until):
            try:
                pushed, is_due = self._server.pushed, time.monotonic() >= next_counters
                if isinstance(pushed, Tracker):
                    if is_due:  # a name that comes later than the counters would be compared with the wrong ones
                        pushed.catch_up(GAP_S + COUNTERS_EVERY_S)
                    names, evicted, flushed = pushed.take(0 if is_due else COUNTERS_EVERY_S)
                    self._evicted |= evicted
                    self._look(names, flushed=flushed)
                else:
                    self._apply(pushed.take(STREAM_LOOK_S))
                if pushed.subscription.lost:
                    raise redis.ConnectionError(pushed.subscription.lost)
                if is_due:
                    self._explain()
                    next_counters = time.monotonic() + COUNTERS_EVERY_S
            except redis.RedisError as error:  # also LOADING and MASTERDOWN, which a failover brings
                self._reconnect(str(error), until, stop)
            if time.monotonic() >= next_commit:
                self._file.observed_until(self._looked_ms)
                self._file.commit()
                next_commit = time.monotonic() + COMMIT_EVERY_S
        try:
            self._explain()
        except redis.RedisError:
            self._record_vanished()
        self._file.observed_until(self._looked_ms)

    def _looked(self) -> Moment:
        """Return the time between the last look and now.

        Raises:
            redis.ConnectionError: It is so long that it is a gap: what arrives may have happened at any time in it.
        """
        if time.monotonic() - self._looked_s > GAP_S + COUNTERS_EVERY_S:
            raise redis.ConnectionError("the recorder was paused or the server did not answer")
        after_ms, self._looked_ms = self._looked_ms, self._server.now_ms()
        self._looked_s = time.monotonic()
        return Moment(after_ms, self._looked_ms)

    def _changes(self, commands: Sequence[Executed], moment: Moment) -> Iterator[tuple[KeyEvent, str, Action]]:
        """Yield what commands did in the recorded database, each with the command and its action."""
        for db, name, effects, in_multi in commands:
            for effect in effects:
                self._fields_expire = self._fields_expire or effect.action == "expire fields"
                if self._db in (db, effect.db) or effect.action == "flush all":
                    for event in self._states.apply(db, effect, moment, name, in_multi=in_multi):
                        if event.possible == ("deleted",) and in_multi and self._fields_expire:
                            event = event._replace(name=_LAST_FIELD[0], possible=_LAST_FIELD)
                        if name.lower() in _BY_THE_PRIMARY and self._may_have_expired(event.deadline_ms, moment):
                            others = (one for one in event.possible if one != "expired")
                            event = event._replace(name="expired", possible=("expired", *others))
                        if event.db == self._db:
                            yield event, name, effect.action

    def _apply(self, commands: Sequence[Executed]) -> None:
        """Record what the commands of a replication stream did; look at keys that may have been emptied."""
        moment = self._looked()
        names = [one.name for one in commands]
        is_swapped = "SWAPDB" in names  # then the keys are those of another database
        commands = commands[: names.index("SWAPDB")] if is_swapped else commands
        unsure: dict[bytes, str] = {}
        events: list[KeyEvent] = []
        if self._server.is_in_cluster:  # find out which of the deleted keys were moved
            deleted = [effect.key for one in commands for effect in one.effects if effect.action == "delete"]
            self._server.states([key for key in deleted if self._server.watches(key)])
        for event, name, action in self._changes(commands, moment):
            events.append(event)
            unsure |= {event.key: name} if action in _LOOK_AFTER else {}
        self._present.unsure.clear()
        unsure |= {key: A_RENAME for db, key in self._states.unknown_sources if db == self._db}
        self._states.unknown_sources.clear()
        for db, keys in self._states.databases.items():
            if db != self._db:
                keys.clear()
        states = [] if is_swapped else self._server.states(list(unsure))
        existing = {key for key, now in states if now is not None}
        for event in events:
            is_write = event.name in ("written", "overwritten") and event.key in existing
            self._file.add(_dated(event._replace(possible=()) if is_write else event, moment))
        for key, now in states:
            self._correct(key, now, moment, command=unsure[key])
        self._server.moved.clear()
        if is_swapped:
            self._looked_ms = moment.earliest_ms or 0
            raise redis.ConnectionError("SWAPDB exchanged two databases")

    def _correct(self, key: bytes, now: KeyState | None, moment: Moment, *, command: str) -> None:
        """Record what became of a key if it is not in the state that the commands show."""
        before = self._present.get(key)
        if before is None or before == now:
            return
        del self._present[key]
        lost_ttl = now is not None and now.deadline_ms is None and before.deadline_ms is not None
        if now is None or (lost_ttl and command != A_RENAME):
            fields_expired = command == "HDEL" and self._fields_expire
            possible: tuple[EventName, ...] = _LAST_FIELD if fields_expired else ("deleted",)
            possible += ("renamed",) if key in self._server.moved else ()
            self._add_end(key, before, moment, *possible, command=command)
        if now is not None:  # created anew, or renamed from a key that was not recorded
            self._present[key] = now
            name: EventName = "overwritten" if lost_ttl and command == A_RENAME else "written"
            self._file.add(KeyEvent(self._db, key, name, moment, "", now.deadline_ms))

    def _look(self, names: Sequence[bytes], *, flushed: bool) -> None:
        states = self._server.states([name for name in names if self._server.watches(name)])
        moment = self._looked()
        for name, now in states:
            self._record(name, now, moment)
        if not flushed:
            return
        for batch in self._present.batches():  # a database was flushed, whichever
            for name, now in self._server.states(list(batch)):
                if now is None:
                    del self._present[name]
                    self._add_end(name, batch[name], moment, *possible_ends(batch[name], moment, "flushed"))

    def _record(self, name: bytes, now: KeyState | None, moment: Moment) -> None:
        before = self._present.get(name)
        if now is None:
            if before is not None:
                del self._present[name]
                self._vanished.append((name, before, moment))
            elif name in self._server.moved:
                self._imported[name] = None
            return
        self._evicted.discard(name)  # it was created again
        behind_ms = REPLICA_CLOCK_MS if self._is_replica else PUSH_DELAY_MS
        if before and before.deadline_ms is not None and (moment.earliest_ms or 0) - behind_ms >= before.deadline_ms:
            self._add_end(name, before, Moment.at(before.deadline_ms), "expired")
            before = None  # and was created again
        deadline_ms = now.deadline_ms
        self._present[name] = now
        if before is not None and before.deadline_ms is not None and deadline_ms is None:
            self._vanished.append((name, before, moment))
            return
        changed = before is None or before.deadline_ms != deadline_ms
        ttl_ms = _ttl(deadline_ms, moment) if changed and deadline_ms is not None else None
        event: EventName = "renewed" if before is not None and changed else "written"
        added = self._file.add(KeyEvent(self._db, name, event, moment, "", deadline_ms, ttl_ms))
        if (ttl_ms or 0) % MINUTE_MS:
            self._odd_ttls.append(added)

    def _explain(self) -> None:
        """Read the counters, and record why keys ended or lost their TTL.

        A command may have been counted by the last reading, before the name of its key arrived: so the counters are
        compared with the reading before that one.
        """
        now = self._server.counters()
        before, last = self._readings
        self._readings = last, now
        called = {name for name, _ in now.calls.items() ^ before.calls.items()}
        if "swapdb" in called and isinstance(self._server.pushed, Tracker):
            raise redis.ConnectionError("SWAPDB exchanged two databases")  # no names of keys are sent
        vanished, self._vanished = self._vanished, []
        evicted, self._evicted = self._evicted, set()
        moved, self._server.moved = self._server.moved, set()
        self._find_imported()
        self._fields_expire = self._fields_expire or not _EXPIRING_FIELDS.isdisjoint(now.calls)
        if called & _KEEPING_DEADLINE:
            self._file.remove_ttls(self._odd_ttls)
        self._odd_ttls.clear()
        for name, was, moment in vanished:
            state = self._present.get(name)
            # While a server's clock is moved, a TTL that was given since the last look may have passed.
            is_wide = (moment.latest_ms or 0) - (moment.earliest_ms or 0) > GAP_S * 1_000
            if state is not None and state.deadline_ms is None and was.deadline_ms is not None:
                persisted, replaced = called & _REMOVING_TTL, called & _REPLACING
                lost: list[EventName] = ["overwritten"] if replaced or not persisted else []
                lost += ["ttl_removed"] if persisted else []
                lost += ["expired"] if was.deadline_ms <= (moment.latest_ms or 0) else []  # and was created again
                proven = not called & _DELETING  # otherwise it may also have been deleted and created anew
                self._file.add(KeyEvent(self._db, name, lost[0], moment, "", possible=tuple(lost), proven=proven))
            elif name in evicted and not is_wide:
                self._add_end(name, was, moment, "evicted")
            elif was.deadline_ms is not None and (moment.latest_ms or 0) >= was.deadline_ms:
                is_past = (moment.earliest_ms or 0) >= was.deadline_ms
                certain = is_past or not (called & _DELETING or name in evicted)
                self._add_end(name, was, Moment.at(was.deadline_ms), "expired", proven=certain)
            else:
                renamed = called & _RENAMING or name in moved
                possible = self._counted_ends(called, before, now, renamed=bool(renamed))
                may_have_expired = is_wide and now.expired > before.expired
                may_have_expired = may_have_expired or self._may_have_expired(was.deadline_ms, moment)
                if "expired" not in possible and may_have_expired:
                    possible.insert(0, "expired")
                self._add_end(name, was, moment, *possible)

    def _find_imported(self) -> None:
        """Look again, at some of them a time, at keys of slots that were moving here, and keep those that arrived."""
        names = list(islice(self._imported, BATCH_KEYS))
        for name, now in self._server.states(names):
            del self._imported[name]
            if name in self._server.moved:  # not yet
                self._imported[name] = None
            elif now is not None and name not in self._present:
                self._present[name] = now
        self._server.moved.clear()

    def _counted_ends(self, called: set[str], before: _Counters, now: _Counters, *, renamed: bool) -> list[EventName]:
        """Return how a key may have ended before its deadline, by what the server counted and the called commands."""
        possible: list[EventName] = ["deleted"] if called & _DELETING else []
        by_primary = self._is_replica and bool(called & _BY_THE_PRIMARY)
        possible += ["evicted"] if now.evicted > before.evicted or by_primary else []
        possible += ["renamed"] if renamed else []
        possible += ["flushed"] if called & _FLUSHING else []
        field_by_primary = self._is_replica and self._fields_expire and called & _FIELDS_BY_THE_PRIMARY
        possible += ["expired"] if now.expired_fields > before.expired_fields or field_by_primary else []
        if not possible:
            possible = ["expired"] if now.expired > before.expired else []  # with a TTL that was not seen
            possible += ["deleted", "evicted", "renamed"]
        return possible

    def _may_have_expired(self, deadline_ms: int | None, moment: Moment) -> bool:
        """Return whether a key that a replica lost may have expired by the clock of its primary."""
        is_near = deadline_ms is not None and deadline_ms - (moment.latest_ms or 0) < REPLICA_CLOCK_MS
        return self._is_replica and is_near

    def _add_end(
        self, name: bytes, state: KeyState, moment: Moment, *possible: EventName, command: str = "", proven: bool = True
    ) -> None:
        event = KeyEvent(self._db, name, possible[0], moment, command, state.deadline_ms, possible=possible)
        self._file.add(event._replace(proven=proven))

    def _reconnect(self, reason: str, until: float | None, stop: threading.Event) -> None:
        """Connect again, as often as it takes; what was not observed is a gap, up to the end of the recording."""
        lost_ms, lost_s, run_id = self._looked_ms, self._looked_s, self._run_id
        self._record_vanished()
        why = "the recording ended"
        while not stop.wait(RECONNECT_EVERY_S) and (until is None or time.monotonic() < until):
            self._server.close()
            try:
                self._connect()
                self._catch_up(lost_ms)
                self._find_new()
            except (redis.RedisError, ServerError) as error:
                self._looked_ms, why = lost_ms, str(error)
                continue
            reason = reason if self._run_id == run_id else f"{RESTARTED} ({reason})"
            self._file.add_gap(lost_ms, self._looked_ms, reason)
            self._looked_s = time.monotonic()
            return
        self._file.add_gap(lost_ms, lost_ms + round((time.monotonic() - lost_s) * 1_000), f"{reason}; {why}")

    def _catch_up(self, gap_began_ms: int) -> None:
        """Record what became of the recorded keys in a gap."""
        for batch in self._present.batches():
            states = self._server.states(list(batch))
            moment = Moment(gap_began_ms, self._server.now_ms())
            for name, now in states:
                if now is None:
                    del self._present[name]
                elif now != batch[name]:
                    self._present[name] = now
                if now != batch[name]:
                    self._add_vanished(name, batch[name], moment, now)

    def _record_vanished(self) -> None:
        """Record the keys that changed since the counters were read last."""
        for name, was, moment in self._vanished:
            self._add_vanished(name, was, moment, self._present.get(name))
        self._vanished.clear()
        self._evicted.clear()

    def _add_vanished(self, name: bytes, was: KeyState, moment: Moment, now: KeyState | None) -> None:
        """Record a key that changed when the counters were not read: why is not known."""
        if now is None:
            possible = possible_ends(was, moment, "deleted", "evicted", "renamed", "flushed")
            possible += () if "expired" in possible else ("expired",)  # with a TTL that was not seen
            self._add_end(name, was, moment, *possible)
        else:
            lost: tuple[EventName, ...] = ("overwritten", "ttl_removed") if now.deadline_ms is None else ()
            lost += ("expired",) if lost and was.deadline_ms and was.deadline_ms <= (moment.latest_ms or 0) else ()
            event: EventName = lost[0] if lost else "renewed"
            self._file.add(KeyEvent(self._db, name, event, moment, "", now.deadline_ms, possible=lost))

    def _find_new(self) -> None:
        for names in self._server.scan():
            for name, now in self._server.states([name for name in names if name not in self._present]):
                if now is not None:
                    self._present[name] = now


def _dated(event: KeyEvent, moment: Moment) -> KeyEvent:
    """Return an event of a stream with the TTL that it gave; an expiry with its own time."""
    if event.possible == ("expired",) and event.deadline_ms is not None:
        return event._replace(moment=Moment.at(event.deadline_ms))
    gave_ttl = event.ttl_ms is not None and event.deadline_ms is not None
    return event._replace(ttl_ms=_ttl(event.deadline_ms or 0, moment)) if gave_ttl else event


def _ttl(deadline_ms: int, moment: Moment) -> int | None:
    """Return the TTL that was given between two looks: whole minutes or seconds if they fit, otherwise the least.

    It is not known if the server's clock was moved meanwhile.
    """
    least, most = deadline_ms - (moment.latest_ms or 0), deadline_ms - (moment.earliest_ms or 0) + PUSH_DELAY_MS
    if most - least > 2 * GAP_S * 1_000:
        return None
    whole = (-(-least // unit) * unit for unit in (MINUTE_MS, ROUND_MS))
    return next((ttl for ttl in whole if ttl <= most), least)
