"""history: what happened to a session, or to the keys under each prefix, from logs, snapshots and recordings."""

import json
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

from memkit.config import Expect, Expectation, expectations
from memkit.connect import redact
from memkit.errors import SourceError
from memkit.formats.model import PART_WORDS
from memkit.history.aof import CUT_LOG, AofFiles, find_aof, is_of_a_cluster, read_commands, shortened
from memkit.history.changes import (
    TtlChange,
    TtlChanges,
    bounded_ttl,
    plain_seconds,
    prefix_of,
    time_of,
    time_text,
)
from memkit.history.commands import execute
from memkit.history.fate import ENDS, Confidence, Fate, fate_of
from memkit.history.log_clock import LogClock
from memkit.history.rdb import RdbReader, SnapshotKey, read_header
from memkit.history.recording import RESTARTED, Recording
from memkit.history.replication import read_backlog
from memkit.history.sources import Source, find_source
from memkit.history.states import SAME_SECOND_MS, EventName, KeyEvent, KeyState, KeyStates, Moment, possible_ends
from memkit.policy import JITTER
from memkit.readonly.values import to_bytes
from memkit.render import counted, printable, wrapped

WORD_ENDS = rb":/|.#{}\-_"
"""What may stand beside a session's id in the name of a key, as a regular expression has it."""
BY_DEADLINES = "times are bounds, or follow from deadlines, if the server's clock was not set back"
MOST_WITNESSES = 1_000
"""One key of a database that has kept its deadline is enough; most sessions are there in the next snapshot."""
_LOCK = re.compile(rb"(?<![a-z])(lock|mutex)s?(?![a-z])", re.IGNORECASE)
SnapshotKeys = dict[tuple[int, bytes], KeyState]
"""The keys of a snapshot, by database and name."""


@dataclass(frozen=True, slots=True)
class Span:
    """A source and the time that it covers; or a gap in a record."""

    kind: str
    name: str
    begins: datetime | None
    ends: datetime | None

    def to_dict(self) -> dict[str, Any]:
        """Return the span as ``history --json`` shows it."""
        return {"kind": self.kind, "name": self.name, "from": time_text(self.begins), "to": time_text(self.ends)}


@dataclass(frozen=True, slots=True)
class History:
    """What the sources show: of one session its timeline and fate, otherwise the fates by prefix; and TTL changes."""

    session: str | None
    fate: Fate | None
    events: tuple[KeyEvent, ...]
    fates: dict[str, dict[str, int]]
    changes: tuple[TtlChange, ...]
    gaps: tuple[Span, ...]
    sources: tuple[Span, ...]
    event_source: str = "aof"
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return the history as JSON types, as ``memkit history --json`` shows them."""
        common = {
            "changes": [change.to_dict() for change in self.changes],
            "gaps": [{"from": time_text(gap.begins), "to": time_text(gap.ends)} for gap in self.gaps],
            "sources": [source.to_dict() for source in self.sources],
            "notes": list(self.notes),
        }
        if self.fate is None:
            return {"schema": 1, "session": None, "fates": self.fates, **common}
        events = [_event_dict(event, self.event_source) for event in self.events]
        return {"schema": 1, "session": self.session, "fate": self.fate.to_dict(), "events": events, **common}

    def to_json(self) -> str:
        """Return to_dict() as text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self) -> str:
        """Return the history for a terminal."""
        lines: list[str] = []
        if self.fate is not None:
            lines += [wrapped(self.fate.sentence), f"confidence: {self.fate.confidence}"]
            lines += ["", *(wrapped(_event_line(one), indent="    ") for one in self.events)] if self.events else []
        else:
            for prefix, counts in sorted(self.fates.items()):
                pattern = f"{printable(prefix)}*" if prefix else "(no prefix)"
                keys = f"{counted(sum(counts.values()), 'key')}: {_causes_text(Counter(counts))}"
                lines.append(wrapped(f"{pattern}  {keys}", indent="    "))
        if self.changes:
            lines += ["", "changes of the TTL:", *(wrapped(f"  {change}", indent="    ") for change in self.changes)]
        lines.append("")
        for one in self.sources:
            span = f"{time_text(one.begins) or '?'} to {time_text(one.ends)}"
            lines.append(wrapped(f"source: {one.name} ({one.kind}), {span}", indent="  "))
        for one in self.gaps:
            lines.append(wrapped(f"gap: {time_text(one.begins)} to {time_text(one.ends)}: {one.name}", indent="  "))
        lines += [wrapped(f"note: {note}", indent="  ") for note in self.notes]
        return "\n".join(lines)

    __repr__ = to_text


def history(
    *sources: str | Path,
    session: str | None = None,
    expect: Expect = (),
    since: datetime | None = None,
    replication: Literal["replica", "primary"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> History:
    """Return what the sources show about a session or about all keys.

    Args:
        sources: An append-only directory, a recording, or two or more RDB files in any order.
        session: A session's id or a key; without it the fates are counted by prefix.
        expect: Expected TTLs as for ``audit``; they date the entries of a log without timestamps.
        since: A timezone-aware moment; events, changes and ends before it are left out.
        replication: Read the replication backlog of the source, a URL: of a replica, or of a primary too.
        progress: Called with how many bytes have been read, of how many.

    Raises:
        SourceError: A source cannot be read, or the sources do not go together.
    """
    found = [find_source(source) for source in sources]
    kinds = {source.kind for source in found}
    query = _Query(session, expectations(expect), since)
    if kinds == {"aof"} and len(found) == 1:
        try:
            answer = _from_aof(found[0], query, progress)
        except FileNotFoundError as error:
            raise SourceError(f"{error.filename}: the server rewrote its log while it was read; try again") from None
    elif kinds == {"rdb"} and len(found) > 1:
        answer = _from_snapshots(found, query)
    elif kinds == {"recording"} and len(found) == 1:
        answer = _from_recording(found[0], query)
    elif kinds == {"live"} and len(found) == 1 and replication:
        answer = _from_backlog(found[0].name, query, primary=replication == "primary")
    elif "live" in kinds:
        raise SourceError(
            "a server keeps no history: add --replication to read a replica's backlog, or record it with memkit record"
        )
    else:
        for path in (path for source in found if source.kind == "rdb" for path in source.files):
            read_header(path)  # a file that is not an RDB file is named
        given = ", ".join(f"{source.name} ({source.kind})" for source in found) or "nothing"
        raise SourceError(f"expected one append-only directory, one recording, or two or more RDB files; got {given}")
    events = tuple(event for event in answer.events if query.is_recent(event.moment))
    return replace(answer, events=events, changes=tuple(one for one in answer.changes if query.is_recent(one.at)))


@dataclass(frozen=True, slots=True)
class _Query:
    """What is asked: about a session or about all keys, from when on, and which TTLs keys should get.

    ``renamed`` are keys that were renamed or copied to the session's: they are followed for their deadlines.
    """

    session: str | None
    expected: Sequence[Expectation]
    since: datetime | None
    renamed: set[bytes] = field(default_factory=set)

    def wants(self, key: bytes) -> bool:
        """Return whether a key is the session's: its name is the given text, or has it as a whole word."""
        return self.session is None or _named_in_keys(self.session).search(key) is not None

    def follows(self, key: bytes) -> bool:
        return self.wants(key) or key in self.renamed

    def follows_more(self, states: KeyStates) -> bool:
        """Follow the keys that were renamed to followed ones; return whether there are any that were not followed."""
        missed = set(states.unknown_sources.values()) - self.renamed
        self.renamed.update(missed)
        return self.session is not None and bool(missed)

    def expected_ttls_ms(self, key: bytes) -> Sequence[int]:
        """Return the TTLs that date a write of a key: an absolute deadline may be from the key's creation."""
        found = next((one for one in self.expected if one.matches.fullmatch(key)), None)
        return found.ttls_ms if found and found.policy.kind == "sliding" and found.jitter <= JITTER else ()

    def is_recent(self, at: Moment) -> bool:
        return self.since is None or at.latest_ms is None or at.latest_ms >= self.since.timestamp() * 1_000


@cache
def _named_in_keys(session: str) -> re.Pattern[bytes]:
    text = re.escape(to_bytes(session))
    return re.compile(b"(?<![^%b])%b(?![^%b])" % (WORD_ENDS, text, WORD_ENDS))


@cache
def _own_keys(session: str) -> re.Pattern[bytes]:
    """Return what matches the session's keys if it has any: ``7_messages`` is one of ``7``, and ``7-old`` is not."""
    part = to_bytes(rf"(?![\-_]+(?!{PART_WORDS}(?![A-Za-z0-9])))")
    return re.compile(_named_in_keys(session).pattern + part, re.IGNORECASE)


class _Timeline:
    """Collects events: all of them for one session, their counts for a whole keyspace."""

    def __init__(self, query: _Query, *, exact: bool = True) -> None:
        self.changes = TtlChanges(exact=exact)
        self._query = query
        self._events: list[KeyEvent] = []
        self._counts: dict[str, Counter[str]] = {}
        self._fates: dict[int, str] = {}  # by the hash of the database and name: a tenth of the memory of the names
        self._lost_ttl: set[int] = set()

    def add(self, event: KeyEvent) -> None:
        if not self._query.wants(event.key):
            return
        self.changes.add(event)
        if self._query.session is not None:
            if self._events and event.belongs_to(self._events[-1]):
                write = self._events.pop()
                name: EventName = "written" if write.created else event.name
                event = event._replace(name=name, command=write.command, created=write.created)
            self._events.append(event)
        elif event.name in ENDS:
            self._lost_ttl.discard(hash((event.db, event.key)))
            if self._query.is_recent(event.moment):
                self._count(event.db, event.key, fate_of(event.key, [event], None).cause)
        elif event.name == "overwritten" or (
            event.name == "written" and len(event.possible) > 1 and hash((event.db, event.key)) in self._lost_ttl
        ):
            self._lost_ttl.add(hash((event.db, event.key)))
            self._count(event.db, event.key, "overwritten" if len(event.possible) < 2 else "unknown")
        elif event.name != "written" or event.deadline_ms is not None:
            self._lost_ttl.discard(hash((event.db, event.key)))

    def _count(self, db: int, key: bytes, cause: str) -> None:
        """Count what became of a key, instead of what was counted for it before."""
        counts, name = self._counts.setdefault(prefix_of(key), Counter()), hash((db, key))
        if name in self._fates:
            counts[self._fates[name]] -= 1
        counts[cause] += 1
        self._fates[name] = cause

    def add_commands(
        self, commands: Iterable[tuple[Sequence[bytes], int | None]], states: KeyStates, clock: LogClock, *, db: int = 0
    ) -> None:
        """Add what logged commands did, each given with the log's last timestamp."""
        in_multi = False
        for arguments, second in commands:
            db, name, effects, in_multi = execute(arguments, db, in_multi=in_multi)
            if not effects:
                continue
            moment, ttl = clock.moment(second, effects)
            for effect in effects:
                for event in states.apply(db, effect, moment, name, in_multi=in_multi):
                    if effect.deadline_ms is not None and not moment.stated:
                        event = event._replace(ttl_ms=ttl, ttl_is_open=True)
                    self.add(event)

    def finish(self, states: KeyStates, source: str, spans: tuple[Span, ...], *notes: str, ends: Moment) -> History:
        """Return what was collected; a key that was past its deadline when the source ended has expired."""
        existing: dict[tuple[int, bytes], KeyState] = {}
        ends_ms, session = ends.latest_ms, self._query.session
        for db, keys in states.databases.items():
            for key, state in keys.items():
                deadline_ms = state.deadline_ms
                if deadline_ms is None or ends_ms is None or deadline_ms > ends_ms or not state.is_sure:
                    existing[db, key] = state
                elif ends.earliest_ms is None or deadline_ms > ends.earliest_ms:
                    existing[db, key] = state._replace(is_sure=False)
                else:
                    earliest_ms = deadline_ms if state.least else state.given.earliest_ms  # it may have ended before
                    at = Moment(earliest_ms, deadline_ms, stated=ends.stated)
                    possible: tuple[EventName, ...] = ("expired",) if state.least else ("expired", "deleted")
                    self.add(KeyEvent(db, key, "expired", at, "", deadline_ms, possible=possible))
        changes = tuple(self.changes.found())
        if session is not None:
            named = {event.key for event in self._events} | {key for _, key in existing if self._query.wants(key)}
            own = set(filter(_own_keys(session).search, named)) or named
            existing = {key: state for key, state in existing.items() if key[1] in own}
            events = tuple(event for event in self._events if event.key in own)
            fate = _fate_of_session(session, events, existing, ends_ms)
            return History(session, fate, events, {}, changes, (), spans, source, notes)
        for (db, key), state in existing.items():
            is_known, has_lost_ttl = state.is_sure and state.least, hash((db, key)) in self._lost_ttl
            if has_lost_ttl and not is_known:
                self._count(db, key, "unknown")
            elif not has_lost_ttl:
                self._count(db, key, "exists" if is_known else fate_of(key, [], state, ends_ms=ends_ms).cause)
        fates = {prefix: dict(+counts) for prefix, counts in self._counts.items()}
        return History(None, None, (), fates, changes, (), spans, source, notes)


def _fate_of_session(
    session: str, events: Sequence[KeyEvent], existing: dict[tuple[int, bytes], KeyState], ends_ms: int | None
) -> Fate:
    """Return the fate of the key that ended last; if all keys exist, of the first one, or of one that lost its TTL.

    If the session was given as a key's name, the fate is this key's. A lock is deleted when the session goes on.
    """
    by_key: dict[tuple[int, bytes], list[KeyEvent]] = {key: [] for key in existing}
    for event in events:
        by_key.setdefault((event.db, event.key), []).append(event)
    keys = sorted(by_key, key=lambda key: not by_key[key])  # keys with events first
    if not keys:
        return fate_of(to_bytes(session), [], None)
    fates = {key: fate_of(key[1], by_key[key], existing.get(key), db=key[0], ends_ms=ends_ms) for key in keys}
    keys = (
        [key for key in keys if key[1] == to_bytes(session)]
        or [key for key in keys if not _LOCK.search(key[1])]
        or keys
    )
    ends = ((event.db, event.key) for event in reversed(events) if event.name in ENDS)
    ended = [key for key in ends if key in keys and key not in existing]
    key = next(iter(ended), next((key for key in keys if fates[key].cause == "overwritten"), keys[0]))
    others: Counter[str] = Counter(other.cause for name, other in fates.items() if name != key)
    if not others:
        return fates[key]
    return replace(fates[key], sentence=f"{fates[key].sentence}; the session's other keys: {_causes_text(others)}")


def _causes_text(counts: Counter[str]) -> str:
    most = counts.most_common()
    return ", ".join(f"{n:,} {cause if n == 1 else cause.replace('exists', 'exist')}" for cause, n in most)


def _from_aof(source: Source, query: _Query, progress: Callable[[int, int], None] | None) -> History:
    files = find_aof(source.files[0])
    server, begins_ms = "redis", None
    last_modified_ms = max(int(path.stat().st_mtime_ns // 1_000_000) for path in files.all)
    if files.base:
        header = read_header(files.base)
        server, begins_ms = header.flavour, None if header.created_s is None else header.created_s * 1_000
    of_a_cluster = is_of_a_cluster(files)  # then any slot may have moved: a log does not show which
    states = KeyStates(server=server, wanted=query.follows, may_have_moved=lambda _: of_a_cluster)
    timeline = _Timeline(query)
    if files.base:
        with RdbReader(files.base) as reader:
            for key in (key for key in reader if query.follows(key.name)):
                state = KeyState(key.deadline_ms, given=Moment(None, begins_ms), fields_expire=key.fields_expire)
                states.keys_of(key.db)[shortened(key.name)] = state
            of_a_cluster = of_a_cluster or reader.is_of_a_cluster
    elif files.base_has_commands:
        db, second = 0, None
        for command in read_commands(files.logs[0]):  # the keys as they were when the base was made
            db, name, effects, _ = execute(command.arguments, db)
            second = second or command.second
            for effect in effects:
                deque(states.apply(db, effect, Moment(None, None, stated=False), name), maxlen=0)
        begins_ms = None if second is None else second * 1_000
        files = replace(files, logs=files.logs[1:])
    ttls = query.expected_ttls_ms
    sizes, cuts = [path.stat().st_size for path in files.logs], list[int]()
    logged = _logged(files, sizes, cuts)
    clock = LogClock(logged, begins_ms=begins_ms, ends_ms=last_modified_ms, expected_ttls_ms=ttls)
    timeline.add_commands(_logged(files, sizes, cuts, progress), states, clock)
    if query.follows_more(states):
        return _from_aof(source, query, progress)
    timeline.changes.exact = clock.has_timestamps
    notes = [CUT_LOG.format(sizes[-1] - cut) for cut in cuts[-1:]]
    if not clock.has_timestamps:
        notes.append(f"the log has no timestamps (aof-timestamp-enabled is off): {BY_DEADLINES}")
    latest_ms = last_modified_ms
    if clock.has_timestamps and clock.earliest_ms is not None:
        latest_ms = clock.earliest_ms + SAME_SECOND_MS - 1
    span = Span("aof", source.name, time_of(clock.begins_ms), time_of(latest_ms))
    ends = Moment(clock.earliest_ms, latest_ms, stated=clock.has_timestamps)
    return timeline.finish(states, "aof", (span,), *notes, ends=ends)


def _all_keys(paths: Iterable[Path]) -> Iterator[SnapshotKey]:
    for path in paths:
        with RdbReader(path) as reader:
            yield from reader


def _logged(
    files: AofFiles, sizes: Sequence[int], cuts: list[int], progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[tuple[bytes, ...], int | None]]:
    """Yield the commands of a log, each with the last timestamp before it; keep where a cut command begins."""
    second, done = None, 0
    for path, size in zip(files.logs, sizes, strict=True):
        for command in read_commands(path, second=second, size=size, cuts=cuts if path == files.logs[-1] else None):
            second = command.second
            yield command.arguments, second
            if progress:
                progress(done + command.offset, sum(sizes))
        done += size


def _from_backlog(url: str, query: _Query, *, primary: bool) -> History:
    backlog = read_backlog(url, primary=primary)
    while True:
        moved = backlog.may_have_moved
        states = KeyStates(server=backlog.server, wanted=query.follows, complete=False, may_have_moved=moved)
        timeline = _Timeline(query, exact=False)
        commands = [(arguments, None) for arguments in backlog.commands]
        ttls = query.expected_ttls_ms
        clock = LogClock(commands, begins_ms=None, ends_ms=backlog.read_at_ms, expected_ttls_ms=ttls)
        timeline.add_commands(commands, states, clock, db=backlog.db)
        if not query.follows_more(states):
            break
    note = f"the backlog held {counted(len(backlog.commands), 'command')}; it has no timestamps: {BY_DEADLINES}"
    span = Span("replication", redact(url), None, time_of(backlog.read_at_ms))
    return timeline.finish(states, "replication", (span,), note, ends=Moment.at(backlog.read_at_ms))


def _from_snapshots(sources: Sequence[Source], query: _Query) -> History:
    """Compare snapshots: what is missing in a later one was deleted, evicted or expired in between."""
    snapshots = []
    for source in sources:
        created = [read_header(path).created_s for path in source.files]
        if None in created:
            raise SourceError(f"{source.name}: the file does not state when it was saved (ctime)")
        saved = [one * 1_000 for one in created if one is not None]
        followed = (key for key in _all_keys(source.files) if query.follows(key.name))
        keys = {(key.db, key.name): KeyState(key.deadline_ms) for key in followed}
        snapshots.append((min(saved), max(saved), source, keys))
    snapshots.sort(key=lambda snapshot: snapshot[0])
    states, timeline = KeyStates(server="redis"), _Timeline(query, exact=False)
    notes = ["a key that was written and deleted between two snapshots is not visible"]
    for (begins_ms, _, old, before), (_, ends_ms, new, after) in pairwise(snapshots):
        missing = {state.deadline_ms for key, state in before.items() if key not in after}
        deadlines, not_flushed, is_apart = _evidence(old, new, missing, ends_ms)
        if is_apart:
            shards = "if these are shards of one moment, put them in one directory and give that"
            notes.append(f"no key of {old.name} is in {new.name}: {shards}")
        for event in _between(before, after, Moment(begins_ms, ends_ms), deadlines, not_flushed):
            timeline.add(event)
    begins_ms, ends_ms, _, last = snapshots[-1]
    for (db, name), state in last.items():
        states.keys_of(db)[name] = state
    spans = tuple(Span("rdb", source.name, time_of(begin), time_of(end)) for begin, end, source, _ in snapshots)
    return timeline.finish(states, "snapshot", spans, *notes, ends=Moment(begins_ms, ends_ms))


def _evidence(
    old: Source, new: Source, missing: Collection[int | None], ends_ms: int
) -> tuple[set[int | None], set[int], bool]:
    """Return the deadlines of missing keys that new keys have, the databases not flushed, and if no key was kept.

    A deadline is kept by a rename, and has milliseconds: a new key with the deadline of a missing one may be that one,
    and a database with a key that has kept its deadline was not flushed.
    """
    volatile = ((key.db, key.name, key.deadline_ms) for key in _all_keys(old.files) if (key.deadline_ms or 0) > ends_ms)
    witnesses = set(islice(volatile, MOST_WITNESSES)) if missing else set()
    names = {(db, name) for db, name, _ in witnesses}
    deadlines: set[int | None] = set()
    not_flushed: set[int] = set()
    is_apart, is_empty = bool(names), True
    for key in _all_keys(new.files) if missing else ():
        is_empty, is_apart = False, is_apart and (key.db, key.name) not in names
        if (key.db, key.name, key.deadline_ms) in witnesses:
            not_flushed.add(key.db)
        elif key.deadline_ms in missing:
            deadlines.add(key.deadline_ms)
    return deadlines, not_flushed, is_apart and not is_empty


def _between(
    before: SnapshotKeys, after: SnapshotKeys, moment: Moment, deadlines: Container[int | None], not_flushed: set[int]
) -> Iterator[KeyEvent]:
    for (db, key), state in before.items():
        now = after.get((db, key))
        if now is None:
            possible = possible_ends(state, moment, "deleted", "evicted")
            if possible != ("expired",):
                possible = ("renamed", *possible) if state.deadline_ms in deadlines else (*possible, "renamed")
                possible += () if db in not_flushed else ("flushed",)
                possible += () if "expired" in possible else ("expired",)  # with a shorter TTL than in the snapshot
            at = Moment.at(state.deadline_ms or 0) if possible == ("expired",) else moment
            yield KeyEvent(db, key, possible[0], at, "", state.deadline_ms, possible=possible)
        elif now.deadline_ms is None and state.deadline_ms is not None:
            yield KeyEvent(db, key, "overwritten", moment, "", possible=("overwritten", "ttl_removed"))
        elif now.deadline_ms != state.deadline_ms:
            yield KeyEvent(db, key, "renewed", moment, "", now.deadline_ms)
    for (db, key), state in after.items():
        if (db, key) not in before:
            yield KeyEvent(db, key, "written", moment, "", state.deadline_ms)


def _from_recording(source: Source, query: _Query) -> History:
    states, timeline = KeyStates(server="redis"), _Timeline(query)
    with Recording(source.files[0], reading=True) as recording:
        kind, name, keys, began_ms, ended_ms = recording.source()
        gaps = tuple(Span("gap", reason, time_of(began), time_of(ended)) for began, ended, reason in recording.gaps())
        for event in recording.events():
            if query.wants(event.key):
                timeline.add(event)
        for db, present in recording.databases().items():
            existing = (item for batch in present.batches() for item in batch.items())
            states.databases[db] = {key: state for key, state in existing if query.wants(key)}
    span = Span("recording", name, time_of(began_ms), time_of(ended_ms))
    found = timeline.finish(states, kind, (span,), ends=Moment.at(ended_ms))
    fate = _beside_gaps(found.fate, gaps, time_of(ended_ms)) if found.fate and gaps else found.fate
    if fate and fate.cause == "never_seen":
        limits = "" if keys == "*" else f"; only keys {printable(keys)} were recorded"
        limits += "; what exists for milliseconds only is not seen" if kind == "tracking" else ""
        fate = replace(fate, sentence=f"{fate.sentence}{limits}")
    return replace(found, fate=fate, gaps=gaps)


def _beside_gaps(fate: Fate, gaps: Sequence[Span], ended: datetime) -> Fate:
    """Return a fate with what may have happened in a gap of the recording, which ended at a time."""
    gaps_end = max(gap.ends for gap in gaps if gap.ends)
    restarts = [gap.begins for gap in gaps if gap.name.startswith(RESTARTED)]
    if (fate.not_before or fate.at) in restarts and fate.either and "exists" not in fate.either:
        return replace(fate, either=None, sentence=f"{fate.sentence}; or it was lost: {RESTARTED}")
    if fate.cause == "never_seen":
        may, confidence = "it may have been written and deleted in a gap of the recording", "possible"
    elif fate.cause not in ("exists", "overwritten") and fate.at and gaps_end > fate.at:
        may, confidence = "in a gap after that it may have been created again", "likely"
    elif fate.cause in ("exists", "overwritten") and gaps_end > ended:
        may, confidence = "the recording ends with a gap, in which that may have changed", "likely"
    else:
        return fate
    least: Confidence = "possible" if "possible" in (confidence, fate.confidence) else "likely"
    return replace(fate, sentence=f"{fate.sentence}; {may}", confidence=least)


def _event_dict(event: KeyEvent, source: str) -> dict[str, Any]:
    at = event.moment.latest_ms if event.moment.earliest_ms is None else event.moment.earliest_ms
    if event.possible == ("expired",) and event.deadline_ms is not None:
        at = event.deadline_ms
    return {
        "at": time_text(time_of(at)),
        "key": event.key.decode("utf-8", "replace"),
        "event": event.name,
        "ttl_s": plain_seconds(event.ttl_ms),
        "command": event.command or None,
        "source": source,
    }


def _event_line(event: KeyEvent) -> str:
    at, latest = (time_text(time_of(ms)) for ms in event.moment[:2])
    if at is None:
        at = f"before {latest}"
    elif not event.moment.is_exact and latest not in (None, at):
        at = f"{at} to {latest}"
    name = " or ".join(event.possible) if len(event.possible) > 1 else event.name
    given = bounded_ttl(event.ttl_ms, event.ttl_range_ms) if event.ttl_range_ms else ""
    ttl = f", TTL {given}" if given else ""
    if name == "renewed":  # the deadline changed, perhaps to an earlier one
        name, ttl = f"TTL set to {given}" if given else "deadline changed", ""
    command = f" by {event.command}" if event.command else ""
    command += f" in database {event.db}" if event.db else ""
    return f"{at}  {printable(event.key.decode('utf-8', 'replace'))}  {name}{command}{ttl}"
