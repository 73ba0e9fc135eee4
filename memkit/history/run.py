"""history: what happened to a session, or to the keys under each prefix, from logs, snapshots and recordings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

from memkit.config import Expect, Expectation, expectations
from memkit.connect import redact
from memkit.errors import SourceError
from memkit.history.aof import AofFiles, find_aof, read_commands
from memkit.history.changes import TtlChange, TtlChanges, prefix_of
from memkit.history.commands import effects_of
from memkit.history.fate import ENDS, SAME_SECOND_MS, Fate, fate_of, plain_seconds, time_of, time_text
from memkit.history.ledger import Ledger, Recorded
from memkit.history.log_clock import LogClock
from memkit.history.rdb import RdbReader
from memkit.history.replication import read_backlog
from memkit.history.sources import Source, find_source
from memkit.history.states import EventName, KeyEvent, KeyState, KeyStates, Moment
from memkit.render import counted, duration, printable, wrapped

WORD_ENDS = frozenset(b":/|.#{}-_")
"""What may stand beside a session's id in the name of a key."""


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
    """What the sources tell: of one session its timeline and fate, otherwise the fates by prefix; and TTL changes."""

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

    def since(self, moment: datetime) -> History:
        """Return the history without the events and changes before a moment."""
        from_ms = int(moment.timestamp() * 1_000)

        def counts(at: Moment) -> bool:
            return at.latest_ms is None or at.latest_ms >= from_ms

        return replace(
            self,
            events=tuple(event for event in self.events if counts(event.moment)),
            changes=tuple(change for change in self.changes if counts(change.at)),
        )

    def to_json(self) -> str:
        """Return to_dict() as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def to_text(self) -> str:
        """Return the history for a terminal of 80 columns."""
        lines: list[str] = []
        if self.fate is not None:
            lines += [wrapped(self.fate.sentence), f"confidence: {self.fate.confidence}", ""]
            lines += [_event_line(event) for event in self.events]
        else:
            lines += [_fates_line(prefix, counts) for prefix, counts in sorted(self.fates.items())]
        if self.changes:
            lines += ["", "changes of the TTL:", *(wrapped(f"  {change}", indent="    ") for change in self.changes)]
        lines += ["", *(_span_line(span) for span in self.sources)]
        lines += [f"gap: {time_text(gap.begins)} to {time_text(gap.ends)}" for gap in self.gaps]
        lines += [wrapped(f"note: {note}", indent="  ") for note in self.notes]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.to_text()


def history(
    *sources: str | Path,
    session: str | None = None,
    expect: Expect = (),
    since: datetime | None = None,
    replication: Literal["replica", "primary"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> History:
    """Return what the sources tell about a session or about all keys.

    Args:
        sources: An append-only directory, a recording, or two or more RDB files in any order.
        session: A session's id or a key; without it the fates are counted by prefix.
        expect: Expected TTLs as for ``audit``; they date the entries of a log without timestamps.
        since: A timezone-aware moment; events and changes before it are left out.
        replication: Read the replication backlog of the source, a URL: of a replica, or of a primary too.
        progress: Called with how many bytes have been read, of how many.

    Raises:
        SourceError: A source cannot be read, or the sources do not go together.
    """
    found = [find_source(source) for source in sources]
    kinds = {source.kind for source in found}
    wanted = None if session is None else _names(session)
    expected_ttl_ms = _expected_ttl_ms(expectations(expect))
    if kinds == {"aof"} and len(found) == 1:
        told = _from_aof(find_aof(found[0].files[0]), found[0].name, session, wanted, expected_ttl_ms, progress)
    elif kinds == {"rdb"} and len(found) > 1:
        told = _from_snapshots(found, session, wanted)
    elif kinds == {"recording"} and len(found) == 1:
        told = _from_recording(found[0], session, wanted)
    elif kinds == {"live"} and len(found) == 1 and replication:
        told = _from_backlog(found[0].name, session, wanted, expected_ttl_ms, primary=replication == "primary")
    else:
        raise _wrong_sources(found)
    return told if since is None else told.since(since)


def _expected_ttl_ms(expected: Sequence[Expectation]) -> Callable[[bytes], int | None]:
    def ttl_ms(key: bytes) -> int | None:
        return next((one.ttl_ms for one in expected if one.matches.fullmatch(key)), None)

    return ttl_ms


def _wrong_sources(found: Sequence[Source]) -> SourceError:
    if any(source.kind == "live" for source in found):
        return SourceError(
            "a server keeps no history: add --replication to read a replica's backlog, or record it with memkit record"
        )
    given = ", ".join(f"{source.name} ({source.kind})" for source in found) or "nothing"
    return SourceError(f"expected one append-only directory, one recording, or two or more RDB files; got {given}")


def _names(session: str) -> Callable[[bytes], bool]:
    """Return whether a key is the session's: its name is the given text, or has it as a whole word."""
    text = session.encode("utf-8", "surrogateescape")

    def is_named(key: bytes) -> bool:
        at = key.find(text)
        while at >= 0:
            end = at + len(text)
            if (at == 0 or key[at - 1] in WORD_ENDS) and (end == len(key) or key[end] in WORD_ENDS):
                return True
            at = key.find(text, at + 1)
        return False

    return is_named


# Append-only files


def _from_aof(
    files: AofFiles,
    name: str,
    session: str | None,
    wanted: Callable[[bytes], bool] | None,
    expected_ttl_ms: Callable[[bytes], int | None],
    progress: Callable[[int, int], None] | None,
) -> History:
    server, begins_ms = "redis", None
    last_modified_ms = max(int(path.stat().st_mtime_ns // 1_000_000) for path in files.all)
    base = files.base if files.base_is_rdb else None
    if base:
        with RdbReader(base) as reader:
            server = reader.header.server
            begins_ms = None if reader.header.created_s is None else reader.header.created_s * 1_000
    states = KeyStates(server=server, wanted=wanted)
    timeline = _Timeline(keeps_events=session is not None)
    if base:
        _load(states, base, wanted, Moment(None, begins_ms))
        timeline.present_at_start(states)
    clock = LogClock(begins_ms=begins_ms, ends_ms=last_modified_ms, expected_ttl_ms=expected_ttl_ms)
    for event, given_ttl in _events(files, states, clock, progress):
        timeline.add(event if given_ttl is None else event._replace(ttl_ms=given_ttl))
    span = Span("aof", name, time_of(begins_ms), time_of(last_modified_ms))
    notes = () if clock.has_timestamps else (
        "the log has no timestamps (aof-timestamp-enabled is off): times are bounds, or follow from deadlines",
    )  # fmt: skip
    changes = timeline.changes.found()
    if not clock.has_timestamps:
        changes = [change.between() for change in changes]
    return timeline.finish(states, session, tuple(changes), (span,), notes)


def _load(states: KeyStates, path: Path, wanted: Callable[[bytes], bool] | None, given: Moment) -> None:
    with RdbReader(path) as reader:
        for key in reader:
            if wanted is None or wanted(key.name):
                states.keys_of(key.db)[key.name] = KeyState(key.deadline_ms, None, given)


def _events(
    files: AofFiles, states: KeyStates, clock: LogClock, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[KeyEvent, int | None]]:
    db, second, done, total = 0, None, 0, sum(path.stat().st_size for path in files.all)
    logs = files.increments if files.base_is_rdb else files.all
    for path in logs:
        for command in read_commands(path, offset=_end_of_preamble(path), second=second):
            second = command.second
            name = command.arguments[0].upper()
            if name == b"SELECT":
                db = int(command.arguments[1])
                continue
            effects = effects_of(command.arguments)
            if not effects:
                continue
            moment, ttl = clock.moment(second, effects)
            for effect in effects:
                for event in states.apply(db, effect, moment, name.decode("ascii", "replace")):
                    given = ttl if effect.deadline_ms is not None else None
                    yield event, given
            if progress:
                progress(done + command.offset, total)
        done += path.stat().st_size


def _end_of_preamble(path: Path) -> int:
    """Return where the commands begin: a single file of an old server may begin with an RDB file."""
    with path.open("rb") as file:
        if not file.read(5).startswith((b"REDIS", b"VALKE")):
            return 0
    with RdbReader(path) as reader:
        for _ in reader:
            pass
        return reader.bytes_read


class _Timeline:
    """Collects events: all of them for one session, their counts for a whole keyspace."""

    def __init__(self, *, keeps_events: bool) -> None:
        self.changes = TtlChanges(exact=True)
        self.events: list[KeyEvent] = []
        self._keeps_events = keeps_events
        self._counts: dict[str, Counter[str]] = {}
        self._at_start: list[bytes] = []

    def present_at_start(self, states: KeyStates) -> None:
        if self._keeps_events:
            self._at_start = [key for keys in states.databases.values() for key in keys]

    def add(self, event: KeyEvent) -> None:
        self.changes.add(event)
        if self._keeps_events:
            last = self.events[-1] if self.events else None
            if last and event.name == "renewed" and _set_right_after(last, event):
                self.events[-1] = last.with_deadline_of(event)
            else:
                self.events.append(event)
        elif event.name in ENDS:
            cause = event.name if len(event.possible) < 2 else fate_of(event.key, [event], None).cause
            self._counts.setdefault(prefix_of(event.key), Counter())[cause] += 1

    def finish(
        self,
        states: KeyStates,
        session: str | None,
        changes: tuple[TtlChange, ...],
        sources: tuple[Span, ...],
        notes: tuple[str, ...],
    ) -> History:
        existing = {key: state for keys in states.databases.values() for key, state in keys.items()}
        if session is None:
            for key in existing:
                self._counts.setdefault(prefix_of(key), Counter())["exists"] += 1
            fates = {prefix: dict(counts) for prefix, counts in self._counts.items()}
            return History(None, None, (), fates, changes, (), sources, notes=notes)
        fate = _fate_of_session(session, self.events, existing, self._at_start)
        return History(session, fate, tuple(self.events), {}, changes, (), sources, notes=notes)


def _set_right_after(write: KeyEvent, renewal: KeyEvent) -> bool:
    """Return whether a deadline belongs to the write before it: the same key, within a second."""
    same_key = (write.db, write.key) == (renewal.db, renewal.key)
    no_ttl_of_its_own = write.name == "written" and write.ttl_ms is None
    distance = (renewal.moment.latest_ms or 0) - (write.moment.latest_ms or 0)
    return same_key and no_ttl_of_its_own and distance < SAME_SECOND_MS


def _fate_of_session(
    session: str, events: Sequence[KeyEvent], existing: dict[bytes, KeyState], at_start: Sequence[bytes]
) -> Fate:
    """Return the fate of the session's keys: of the one that ended last, if any does not exist; otherwise of any."""
    keys = list(dict.fromkeys([*at_start, *(event.key for event in events), *existing]))
    if not keys:
        return fate_of(session.encode("utf-8", "surrogateescape"), [], None)
    fates = {key: fate_of(key, [one for one in events if one.key == key], existing.get(key)) for key in keys}
    ended = [event.key for event in reversed(events) if event.name in ENDS and event.key not in existing]
    key = next(iter(ended), next((key for key, fate in fates.items() if fate.cause == "overwritten"), keys[0]))
    return fates[key]


# Replication backlogs


def _from_backlog(
    url: str,
    session: str | None,
    wanted: Callable[[bytes], bool] | None,
    expected_ttl_ms: Callable[[bytes], int | None],
    *,
    primary: bool,
) -> History:
    backlog = read_backlog(url, primary=primary)
    states = KeyStates(server=backlog.server, wanted=wanted, complete=False)
    timeline = _Timeline(keeps_events=session is not None)
    clock = LogClock(begins_ms=None, ends_ms=backlog.read_at_ms, expected_ttl_ms=expected_ttl_ms)
    db = backlog.db
    for arguments in backlog.commands:
        name = arguments[0].upper()
        if name == b"SELECT":
            db = int(arguments[1])
            continue
        effects = effects_of(arguments)
        if not effects:
            continue
        moment, ttl = clock.moment(None, effects)
        for effect in effects:
            for event in states.apply(db, effect, moment, name.decode("ascii", "replace")):
                given = ttl is not None and effect.deadline_ms is not None
                timeline.add(event._replace(ttl_ms=ttl) if given else event)
    span = Span("replication", redact(url), None, time_of(backlog.read_at_ms))
    notes = (
        f"the backlog held {counted(len(backlog.commands), 'command')}; it has no timestamps: times are bounds, or "
        "follow from deadlines",
    )
    changes = tuple(change.between() for change in timeline.changes.found())
    found = timeline.finish(states, session, changes, (span,), notes)
    return replace(found, event_source="replication")


# RDB files


def _from_snapshots(sources: Sequence[Source], session: str | None, wanted: Callable[[bytes], bool] | None) -> History:
    """Compare snapshots: what is missing in a later one was deleted, evicted or expired in between."""
    snapshots = []
    for source in sources:
        headers = []
        keys: dict[bytes, KeyState] = {}
        for path in source.files:
            with RdbReader(path) as reader:
                headers.append(reader.header)
                for key in reader:
                    if wanted is None or wanted(key.name):
                        keys[key.name] = KeyState(key.deadline_ms)
        created = [header.created_s for header in headers]
        if None in created:
            raise SourceError(f"{source.name}: the file does not state when it was saved (ctime)")
        snapshots.append((min(one for one in created if one is not None) * 1_000, source.name, keys))
    snapshots.sort(key=lambda snapshot: snapshot[0])
    states = KeyStates(server="redis")
    timeline = _Timeline(keeps_events=session is not None)
    timeline.changes.exact = False
    for (before_ms, _, before), (after_ms, _, after) in pairwise(snapshots):
        for event in _between(before, after, Moment(before_ms, after_ms)):
            timeline.add(event)
    states.databases[0] = snapshots[-1][2]
    spans = tuple(Span("rdb", name, time_of(at), time_of(at)) for at, name, _ in snapshots)
    notes = ("between two snapshots a key may have been written and deleted again: that does not show",)
    found = timeline.finish(states, session, tuple(timeline.changes.found()), spans, notes)
    return replace(found, event_source="snapshot")


def _between(before: dict[bytes, KeyState], after: dict[bytes, KeyState], moment: Moment) -> Iterator[KeyEvent]:
    for key, state in before.items():
        now = after.get(key)
        if now is None:
            reached = state.deadline_ms is not None and state.deadline_ms <= (moment.latest_ms or 0)
            possible: Any = ("expired", "deleted", "evicted") if reached else ("deleted", "evicted")
            yield KeyEvent(0, key, possible[0], moment, "", state.deadline_ms, possible=possible)
        elif now.deadline_ms is None and state.deadline_ms is not None:
            yield KeyEvent(0, key, "ttl_removed", moment, "")
        elif now.deadline_ms != state.deadline_ms:
            yield KeyEvent(0, key, "renewed", moment, "", now.deadline_ms)
    for key, state in after.items():
        if key not in before:
            yield KeyEvent(0, key, "written", moment, "", state.deadline_ms)


# Recordings


def _from_recording(source: Source, session: str | None, wanted: Callable[[bytes], bool] | None) -> History:
    with Ledger(source.files[0], reading=True) as ledger:
        _, name, began_ms, ended_ms = ledger.source()
        gaps = tuple(Span("gap", reason, time_of(began), time_of(ended)) for began, ended, reason in ledger.gaps())
        states = KeyStates(server="redis")
        timeline = _Timeline(keeps_events=session is not None)
        for recorded in ledger.events():
            if wanted is None or wanted(recorded.name):
                timeline.add(_event_of(recorded))
        for db, key, live, deadline_ms in ledger.recorded_keys():
            if live and (wanted is None or wanted(key)):
                states.keys_of(db)[key] = KeyState(deadline_ms)
    span = Span("recording", name, time_of(began_ms), time_of(ended_ms))
    found = timeline.finish(states, session, tuple(timeline.changes.found()), (span,), ())
    return replace(found, event_source="tracking", gaps=gaps)


def _event_of(recorded: Recorded) -> KeyEvent:
    name = cast("EventName", recorded.event)
    possible = cast("tuple[EventName, ...]", recorded.possible)
    if not possible and name in ("expired", "evicted", "deleted"):
        possible = (name,)
    after = recorded.at_ms if recorded.after_ms is None else recorded.after_ms
    moment = Moment(after, recorded.at_ms)
    created = name == "written" and (recorded.ttl_ms is not None or recorded.deadline_ms is None)
    return KeyEvent(
        recorded.db,
        recorded.name,
        name,
        moment,
        "",
        recorded.deadline_ms,
        recorded.ttl_ms,
        possible,
        created=created,
    )


# Text


def _event_dict(event: KeyEvent, source: str) -> dict[str, Any]:
    at = event.moment.latest_ms if event.moment.earliest_ms is None else event.moment.earliest_ms
    if event.possible == ("expired",) and event.deadline_ms is not None:
        at = event.deadline_ms
    return {
        "at": time_text(time_of(at)),
        "key": event.key.decode("utf-8", "replace"),
        "event": event.name,
        "ttl_s": None if event.ttl_ms is None else plain_seconds(event.ttl_ms / 1_000),
        "command": event.command or None,
        "source": source,
    }


def _event_line(event: KeyEvent) -> str:
    at = time_text(time_of(event.moment.earliest_ms)) or f"before {time_text(time_of(event.moment.latest_ms))}"
    name = " or ".join(event.possible) if len(event.possible) > 1 else event.name
    ttl = f", TTL {duration(event.ttl_ms)}" if event.ttl_ms is not None else ""
    command = f" by {event.command}" if event.command else ""
    return f"{at}  {printable(event.key.decode('utf-8', 'replace'))}  {name}{command}{ttl}"


def _fates_line(prefix: str, counts: dict[str, int]) -> str:
    parts = ", ".join(f"{count:,} {cause}" for cause, count in sorted(counts.items(), key=lambda pair: -pair[1]))
    return f"{printable(prefix) or '(no prefix)'}  {counted(sum(counts.values()), 'key')}: {parts}"


def _span_line(span: Span) -> str:
    return wrapped(
        f"source: {span.name} ({span.kind}), {time_text(span.begins) or '?'} to {time_text(span.ends)}", indent="  "
    )
