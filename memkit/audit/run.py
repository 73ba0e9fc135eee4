"""audit(): a Redis server against the expected TTLs, read-only. Which sessions end early, since when, and why."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import redis

from memkit.audit.checks.deletions import deleted_finding
from memkit.audit.checks.payloads import CHECKS, check_values
from memkit.audit.checks.prefixes import prefix_summaries
from memkit.audit.checks.server import YOUNG_MS, expired_early, replica_stale, server_findings, server_notes
from memkit.audit.checks.ttl import Diagnosis, changed_ttls, diagnose
from memkit.audit.checks.ttl_inference import IDLE_WRAP_MS, ServerHistory
from memkit.audit.context import AuditContext
from memkit.audit.finding import CONFIDENCE_RANKS, Finding, verdict_of
from memkit.audit.hash_fields import HASHES, with_field_deadlines
from memkit.audit.report import AuditReport, Proof
from memkit.audit.sampling import ENOUGH_OF_A_PATTERN, KeyFacts, Progress, Sample, Sampler, ServerKeys
from memkit.audit.second_look import measured_renewals
from memkit.audit.server_info import LOAD_GRAIN_MS, ServerFacts, counters, facts_of_snapshot, read_server_facts
from memkit.audit.stored_keys import StoredKeys
from memkit.config import Expect, Expectation, expectations
from memkit.connect import AnyClient
from memkit.errors import PolicyError
from memkit.history.aof import CUT_LOG
from memkit.history.snapshots import find_file, open_source, read_rdb
from memkit.readonly.connection import KeyCommands, ReadOnlyConnection
from memkit.readonly.pace import Pace
from memkit.readonly.reader import Reader
from memkit.readonly.target import Target, open_target
from memkit.render import counted, duration, utc_text, utc_time

SECOND_LOOK_KEYS = 1_000
"""A second look at this many sessions finds a loss of 0.3 % with a chance of 95 %."""
FAR_FROM_THE_END_MS = 600_000
"""A key that had more left than this and no longer exists did not expire."""
MOST_WATCHED_S = 3_600
VALUES_SHARE = 0.25
"""Reading values takes at most this share of the time that reading the keys has taken."""
SHORT_CAUSES = ("ttl_too_short", "unit_mistake", "two_ttls")
NEARLY_WRAPPED = 0.9
"""An idle time of over 175 days on a younger server is an access in the future: the idle clock wraps at 194 days."""
COUNTERS = ("expired_keys", "evicted_keys", "used_memory", "maxmemory")
BATCH_KEYS_WITH_RESTS, BATCH_KEYS_WITHOUT_RESTS, SMALLEST_BATCH_KEYS = 30, 350, 10
"""During a full audit of a million keys (four commands a key), a neighbour's GET p99 was 2.3 times idle with 30 keys a
batch and 3.3 times with 60, in the same time (13 s; medians of four runs in turn, Redis 8.2 on two cores). Without
rests, 350 keys with two commands each take the server 0.6 ms.
"""
NETWORK_S = 0.001
"""From this round trip on, batches are as large as without rests: a neighbour waits longer for the network anyway."""
BYTES_A_KEY = 10_000
"""A twentieth of the room below maxmemory is enough for the query and reply buffers of one batch (500 bytes a key)."""
NEED_VALUES = ", ".join([*CHECKS, "stale indexes"])
METADATA = (
    "+ping +info +time +dbsize +scan +randomkey +type +pttl +exists +object|idletime +object|encoding +memory|usage "
    "+config|get +slowlog|get +client|list +client|setname +cluster|slots +cluster|myid +readonly +command "
    "+select +hello +auth"
)
NEWER = (
    ("Redis 7.0 and newer, Valkey", "+pexpiretime"),
    ("Redis 7.2 and newer, Valkey", "+client|no-touch +client|setinfo"),
    ("Redis 7.4 and newer, Valkey 9", "+hscan +hpexpiretime"),
)
VALUES = (
    "+get +getrange +strlen +lrange +llen +hgetall +hmget +hlen +smembers +smismember +scard +zrange +zmscore +zcard "
    "+xrange +xlen"
)


def acl_rule(prefixes: Iterable[str] = ()) -> str:
    """Return the ACL commands that make the user for ``audit``, ``inspect`` and ``history``; it cannot write.

    Each command is a line. Commands that older servers refuse stand under a comment with the version.

    Args:
        prefixes: The sessions' prefixes, such as ``"chat:"``: ``audit --full`` and ``inspect`` read values under them.
    """
    user = "ACL SETUSER memkit-audit"
    lines = ["# audit, every version", f"{user} reset on >CHANGE-THIS-PASSWORD ~* resetchannels -@all {METADATA}"]
    for version, commands in NEWER:
        lines += [f"# {version}", f"{user} {commands}"]
    selectors = [f"{user} ({VALUES} %R~{prefix.removesuffix('*')}*)" for prefix in prefixes]
    values = "# Redis 7.0 and newer, Valkey: the values that audit --full and inspect read"
    lines += [values, *selectors] if selectors else [f"{values}; put in your prefix", f"# {user} ({VALUES} %R~PREFIX*)"]
    lines += [
        "# history URL --replication, on a replica; with this the user can read all data",
        f"# {user} +psync +replconf",
    ]
    return "\n".join(lines)


def audit(
    source: str | Path | AnyClient,
    *,
    expect: Expect | None = None,
    full: bool = False,
    duty: float = 0.25,
    replica: str | AnyClient | None = None,
    touch: bool = False,
    watch_s: float = 0.0,
    at: datetime | None = None,
    db: int | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Compare the TTLs of keys with the expected ones, and report why they differ; read-only.

    Ctrl-C ends the reading, not the report.

    Args:
        source: A Redis URL, a synchronous client, an RDB file, a directory of RDB files (one a shard), or an
            append-only directory.
        expect: Pattern to TTL (seconds, ``"7d"`` or an ExpiryPolicy), or Expectations or their texts (``"chat:*=7d"``);
            None: report what is stored.
        full: Scan every key, judge a fair part of up to 40,000 of them, and run the checks that read values; these need
            CLIENT NO-TOUCH (Redis 7.2, Valkey; in a cluster Valkey 9) or ``touch``.
        duty: The share of time spent asking, above 0, at most 1.
        replica: Read keys there: reads on the primary have not reset its idle times.
        touch: Let ``full`` read values even if that resets idle times.
        watch_s: Look a second time after so many seconds: the TTLs of keys that were renewed meanwhile are measured.
        at: A timezone-aware moment of an append-only directory; None: its end.
        db: The database of a file; None: 0, or the one with most keys if 0 has none.
        progress: Called now and then with how many keys are done, of how many.

    Raises:
        PolicyError: An expectation or an option that cannot be read.
        SourceError: A file that cannot be read.
        redis.RedisError: The server cannot be reached, or refuses what is needed.
    """
    if not 0 < duty <= 1:
        raise PolicyError(f"duty={duty!r} is not a share of time; expected above 0, at most 1 (1: no rests)")
    if not 0 <= watch_s <= MOST_WATCHED_S:
        raise PolicyError(f"watch_s={watch_s!r}: expected 0 to {MOST_WATCHED_S:,} seconds")
    found = expectations(() if expect is None else expect)
    with ExitStack() as stack:
        stored = None if full else _stored_keys(source, at, db, progress)
        if stored:
            connections: dict[bytes, ReadOnlyConnection] = {}
            target = Target(stored.snapshot.name, (), connections.__getitem__, snapshot=stored.snapshot)
        else:
            target = stack.enter_context(open_source(source, at=at, db=db, tolerant=True))
        if target.snapshot and (replica is not None or watch_s):
            raise PolicyError(f"{target.snapshot.name} is a file: --replica and --watch need a live server")
        keys_of = target if replica is None else stack.enter_context(open_target(replica, tolerant=True, replicas=True))
        duty = 1.0 if target.snapshot else duty
        run = _Audit(
            target, keys_of, found, stored=stored, duty=duty, full=full, touch=touch, watch_s=watch_s, progress=progress
        )
        return run.report()


def _stored_keys(
    source: str | Path | AnyClient, at: datetime | None, db: int | None, progress: Progress | None
) -> StoredKeys | None:
    """Return the keys of a source that needs no server if no value is read: RDB files without TTLs of hash fields."""
    found = find_file(source, at=at, db=db)
    if found is None or found.kind != "rdb":
        return None
    contents = read_rdb(found.files, progress=progress)
    return None if contents.has_field_ttls else StoredKeys(contents, contents.snapshot(found.name, db), progress)


class _Audit:
    """One run: the server's report, a sample, the checks, the server's counters again."""

    def __init__(
        self,
        target: Target,
        source: Target,
        expected: Sequence[Expectation],
        *,
        stored: StoredKeys | None,
        duty: float,
        full: bool,
        touch: bool,
        watch_s: float,
        progress: Progress | None,
    ) -> None:
        self._began = time.monotonic()
        self._touched = 0
        self._unexplained: str | None = None
        self._indexes: set[bytes] = set()
        self._set_back: str | None = None
        self._unjudged: Sequence[KeyFacts] = ()
        self._target, self._source, self._expected = target, source, expected
        self._full, self._touch, self._watch_s = full, touch, watch_s
        self._snapshot = snapshot = target.snapshot
        if snapshot:
            self._servers = [facts_of_snapshot(snapshot, target.connections)]
        else:
            self._servers = [read_server_facts(connection) for connection in target.connections]
        answered = [one for one, of in zip(self._servers, target.connections, strict=False) if not of.failure]
        self._notes = list(dict.fromkeys(f"the server refused {what}" for one in answered for what in one.refused))
        own = source is target
        self._replicas = [] if own else [read_server_facts(connection) for connection in source.connections]
        same = {one.name for one in target.connections} & {one.name for one in source.connections}
        if same and not own:
            self._notes.append(f"read on {', '.join(sorted(same))}, not on a replica: no replica of it was found")
        readers = []
        for at, connection in enumerate(source.connections):
            round_trip_s = connection.round_trip_s()
            batch = _batch(self._servers[at : at + 1] if own else self._servers, duty, round_trip_s)
            # Of a replica, one thread checks the primaries; no two threads use one connection.
            guarded = [at] if own else range(len(self._servers)) if at == 0 else []
            pace = Pace(duty, batch=batch, round_trip_s=round_trip_s)
            idle = snapshot is None or snapshot.has_idle_times
            guard = partial(self._evicting, guarded)
            readers.append(ServerKeys(connection, pace=pace, guard=guard, sizes=full, idle_times=idle))
        self._sampler = Sampler(readers, route=source.route, progress=progress)
        self._stored, self._keys = stored, stored or self._sampler

    def _evicting(self, guarded: Sequence[int]) -> str | None:
        """Return why the audit should stop: a server began to evict."""
        for at in guarded:
            now = counters(self._target.connections[at]).get("evicted_keys")
            if now is not None and int(now) > (self._servers[at].number("evicted_keys") or 0):
                return "the server began to evict keys, and the audit must not add load"
        return None

    def report(self) -> AuditReport:
        """Return what was found."""
        sample = self._sample()
        context = self._context(sample)
        diagnoses = self._diagnose(context)
        findings = [found for one in diagnoses for found in one.findings]
        findings += [] if self._expected else _without_expectations(context)
        short = [one for one in findings if one.cause in SHORT_CAUSES]

        def is_short(key: KeyFacts) -> bool:
            return any(one.affects(key.key, key.ttl_at_last_access_ms) for one in short)

        in_values = self._values(sample, findings, diagnoses, is_short)
        if self._indexes:
            context = replace(context, keys=[one for one in context.keys if one.key not in self._indexes])
            diagnoses = self._diagnose(context)
            findings = [found for one in diagnoses for found in one.findings]
            self._notes.append(f"ignored {counted(len(self._indexes), 'key')} without TTL that list sessions")
        findings += in_values
        sessions = sum(one.sessions for one in diagnoses)
        self._notes += [note for one in diagnoses for note in one.notes]
        findings += self._second_look(findings, diagnoses)
        after = [counters(connection) for connection in self._target.connections] or [{}]
        own = [(one.expected, [key for key in one.keys if not is_short(key)]) for one in diagnoses]
        findings += self._of_servers(context, own, after)
        vanished, looked = self._vanished(diagnoses, after)
        deleted, notes = deleted_finding(
            self._servers, self._expected, vanished, context, looked=looked, of=sample.of, sessions=sessions
        )
        self._notes += notes
        findings = [replace(one, sampled=len(sample.keys)) for one in _in_order([*findings, *deleted])]
        undetermined = self._undetermined(sample, diagnoses, context)
        # What is wrong with the server, with an index or with keys of another pattern must not hide a doubt.
        doubted = any(one.unexplained for one in diagnoses)
        if undetermined and findings and (doubted or all(one.prefix is None for one in findings)):
            self._notes.insert(0, undetermined)
        self._note_limits(sample, context)
        verdict = verdict_of(
            findings,
            sessions=sessions or (0 if self._expected else sample.seen),
            healthy=self._healthy(diagnoses),
            undetermined=undetermined,
        )
        return AuditReport(
            server=self._server(),
            findings=tuple(findings),
            verdict=verdict,
            sample={"keys": sample.seen, "of": sample.of, "method": sample.method, "error_bound": sample.error_bound},
            proof=self._proof(after),
            notes=tuple(one for one in dict.fromkeys(self._notes) if one != verdict.sentence),
            seen=() if self._expected else tuple(prefix_summaries(context)),
            expectations=tuple(self._expected),
            ignored=tuple(pattern for one in diagnoses for pattern in one.ignored_patterns),
            at=utc_time(self._servers[0].now_ms),
            keys=sample.keys,
            scales={"": sample.of / max(len(sample.keys) - sample.extra, 1), **sample.scales},
            counters={name: _total(one.own_number(name) for one in self._servers) for name in COUNTERS},
        )

    def _of_servers(
        self,
        context: AuditContext,
        sessions: Sequence[tuple[Expectation, Sequence[KeyFacts]]],
        after: Sequence[dict[str, str]],
    ) -> list[Finding]:
        """Return what the servers report about themselves, and note it. ``after``: their counters at the end."""
        findings: dict[str, dict[str, Finding]] = {}
        notes: dict[str, list[str]] = {}
        names = [one.name for one in self._target.connections] or [self._target.url]
        database = self._snapshot.database if self._snapshot else self._target.connections[0].database
        split = len(self._source.connections) == len(names) > 1
        owners = {one.key: self._source.route(one.key) for one in context.keys} if split else {}
        for at, (server, now) in enumerate(zip(self._servers, after, strict=True)):
            own, keys = context, sessions
            if split:
                here = {key for key, owner in owners.items() if owner is self._source.connections[at]}
                own = replace(context, keys=[one for one in context.keys if one.key in here])
                keys = [(expected, [one for one in found if one.key in here]) for expected, found in sessions]
            for finding in server_findings(server, own, keys, after=now):
                findings.setdefault(finding.cause, {})[names[at]] = finding
            started = "" if server.started_ms is None else context.when(server.started_ms)
            for note in server_notes(server, self._expected, when=started, database=database):
                notes.setdefault(note, []).append(names[at])
        self._notes += [note if of == names else f"{', '.join(of)}: {note}" for note, of in notes.items()]
        merged = [_of_cluster(each, len(names)) for each in findings.values()]
        return merged + [found for one in self._replicas if (found := replica_stale(one, context))]

    def _sample(self) -> Sample:
        cluster = len(self._source.connections) > 1 or self._servers[0].info.get("cluster_enabled") == "1"
        if self._stored:
            sample = self._stored.sample()
        else:
            sample = self._sampler.full() if self._full else self._sampler.sample(cluster=cluster)
        if self._snapshot:
            sample.of = self._snapshot.keys
        for expected in self._expected:
            if sample.complete or sample.stopped or self._full:
                break
            own = len(expected.matching(sample.keys))
            if own < ENOUGH_OF_A_PATTERN / 2:
                more = self._keys.more_of(sample, expected.pattern, expected.matches.fullmatch)
                enough = ENOUGH_OF_A_PATTERN / max(len(self._source.connections), 1)
                sample.add(expected.prefix, own, more, complete=len(more) < enough)
        return sample

    def _context(self, sample: Sample) -> AuditContext:
        fields, first = self._field_deadlines(sample) if any(one.has_field_ttls for one in self._servers) else ({}, [])
        # A shard's replicas are in the same order; if one has failed, the keys of each server are not known.
        each_known = len(sample.of_each) == len(self._servers)
        own = sample.of_each if each_known else [sample.of] * len(self._servers)
        accesses = [one.touched_ms for one in sample.keys if one.touched_ms is not None]
        load = self._servers[0].load_ms(own[0], accesses)
        sample.keys = [one.with_known_access(load) for one in sample.keys]
        claimed = {one.key for expected in self._expected for one in expected.matching(sample.keys)}
        complete = sample.complete and not self._full
        return AuditContext(
            sample.keys,
            self._history(own, accesses, loaded=load is not None),
            self._servers[0],
            siblings=lambda names: (
                [] if complete else [one.with_known_access(load) for one in self._keys.look_up(names)]
            ),
            value_bytes=self._stored.value_bytes if self._stored else self._value_bytes,
            other_keys=[one for one in sample.keys if one.key not in claimed],
            fields_without_ttl=fields,
            first_fields=[one.with_known_access(load) for one in first],
        )

    def _field_deadlines(self, sample: Sample) -> tuple[dict[bytes, tuple[int, int]], list[KeyFacts]]:
        """Give hashes the deadlines of their fields, or leave them out if their fields may not be read.

        Returns what ``with_field_deadlines`` returns beside the keys.
        """
        why_idle_times_reset = self._source.why_idle_times_reset
        if why_idle_times_reset and not self._touch:
            self._unjudged = [one for one in sample.keys if one.kind == "hash" and one.deadline_ms is None]
            sample.keys = [one for one in sample.keys if one.kind != "hash" or one.deadline_ms is not None]
            text = f"not checked: {counted(len(self._unjudged), 'hash', 'hashes')} without a TTL; their fields may "
            text += f"have TTLs, but reading these resets idle times ({why_idle_times_reset}); --touch allows it"
            self._notes += [text] if self._unjudged else []
            return {}, []
        hashes = [one.key for one in sample.keys if one.kind == "hash"]
        read = min(len(hashes), HASHES)
        self._touched += read if why_idle_times_reset else 0
        sample.keys, fields, first = with_field_deadlines(sample.keys, self._source.route)
        if left_out := len({*hashes[HASHES:]}.difference(one.key for one in sample.keys)):
            text = f"not checked: {counted(left_out, 'hash', 'hashes')} without a TTL; their fields may have TTLs, as "
            self._notes.append(f"{text}others do (the fields of {counted(read, 'hash', 'hashes')} were read)")
        many = counted(len(first), "hash", "hashes")
        self._notes += [f"some fields of {many} expire before the key (HPTTL)"] if first else []
        return fields, first

    def _history(self, keys: Sequence[int], accesses: Sequence[int], *, loaded: bool) -> ServerHistory:
        starts = [None if loaded else one.empty_start_ms(count) for one, count in zip(self._servers, keys, strict=True)]
        earliest = None if None in starts else min(one for one in starts if one is not None)
        # Keys that a server loads have idle times that begin with the load, and so have keys written soon after it.
        old = earliest is not None and self._servers[0].now_ms - earliest > YOUNG_MS
        if earliest and min(accesses, default=earliest) < earliest + (LOAD_GRAIN_MS if old else 0):
            earliest = None
        return ServerHistory(
            now_ms=self._servers[0].now_ms,
            started_ms=self._servers[0].started_ms,
            empty_start_ms=earliest,
            reads=_total(one.reads for one in self._servers),
            touches=_total(one.touches for one in self._servers),
            expired=sum(one.number("expired_keys") or 0 for one in self._servers),
            idle_known=bool(accesses),
            set_back_ms=self._set_back_ms(accesses),
        )

    def _set_back_ms(self, accesses: Sequence[int]) -> int:
        """Return how far the clock was set back at least: accesses in the future are idle for nearly 194 days."""
        now, started = self._servers[0].now_ms, self._servers[0].started_ms
        longest = max(NEARLY_WRAPPED * IDLE_WRAP_MS, now - (started or now))
        back = max((IDLE_WRAP_MS - (now - at) for at in accesses if now - at > longest), default=0)
        if back > 0:
            self._notes.append(
                f"the server's clock was ahead until it was set back by {duration(back)} or more: keys that had less "
                "than that left then expired early, and keys written then expire later than configured"
            )
            if any(one.ttl_ms and back > one.tolerance * one.ttl_ms for one in self._expected):
                self._set_back = self._notes[-1]
        return back

    def _diagnose(self, context: AuditContext) -> list[Diagnosis]:
        """Return the diagnosis of each expectation; a key belongs to the first that it matches."""
        found = []
        taken: set[bytes] = set()
        for expected in self._expected:
            matching = expected.matching(context.keys)
            own = [one for one in matching if one.key not in taken]
            if matching and not own:
                self._notes.append(f"each key matching {expected.pattern} is judged by a pattern that is more specific")
                continue
            taken.update([one.key for one in own] if len(self._expected) > 1 else ())
            unjudged = 0 if own else len(expected.matching(self._unjudged))
            diagnosis = Diagnosis(expected, [], sessions=unjudged) if unjudged else diagnose(expected, own, context)
            ignored = {one.key for group in diagnosis.ignored for one in group.keys}
            diagnosis.keys = [one for one in own if one.key not in ignored]
            found.append(diagnosis)
        return found

    def _values(
        self,
        sample: Sample,
        findings: Sequence[Finding],
        diagnoses: Sequence[Diagnosis],
        is_short: Callable[[KeyFacts], bool],
    ) -> list[Finding]:
        """Return what values show, if they may be read without resetting idle times, or if that is allowed."""
        if not self._full or not self._expected or sample.stopped:
            return []
        why_idle_times_reset = self._target.why_idle_times_reset
        if why_idle_times_reset and not self._touch:
            self._notes.append(f"not checked: {NEED_VALUES} ({why_idle_times_reset}); --touch allows it")
            return []
        try:
            own = {one.expected.pattern: one.keys for one in diagnoses}  # none if other patterns match all of its keys
            values = check_values(
                Reader(self._target),
                self._expected,
                [one for one in sample.keys if not self._target.route(one.key).failure],
                sessions=[own.get(one.pattern, ()) for one in self._expected],
                short=is_short,
                within_s=VALUES_SHARE * (time.monotonic() - self._began),
                deletions=sum(one.called("del", "unlink") for one in self._servers),
                pops=sum(one.called("rpop", "lpop", "lmpop") for one in self._servers),
            )
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if len(self._target.connections) == 1:
                raise
            self._notes.append(f"not checked: {NEED_VALUES} ({error})")
            return []
        self._touched += values.read if why_idle_times_reset else 0
        self._notes += values.notes
        self._unexplained, self._indexes = values.unexplained, values.indexes
        mixed = {finding.prefix for finding in [*findings, *values.findings] if finding.cause == "mixed_ttl"}
        return [one for one in values.findings if one.cause != "not_refreshed" or one.prefix not in mixed]

    def _second_look(self, findings: Sequence[Finding], diagnoses: Sequence[Diagnosis]) -> list[Finding]:
        """Wait, look again at some sessions, and return what their new deadlines prove."""
        if not self._watch_s:
            return []
        time.sleep(self._watch_s)
        short = {one.prefix for one in findings if one.cause in SHORT_CAUSES}
        found: list[Finding] = []
        for diagnosis in diagnoses:
            first = [one for one in diagnosis.keys if one.deadline_ms is not None][:SECOND_LOOK_KEYS]
            finding, note = measured_renewals(
                diagnosis.expected, first, self._sampler.look_up([one.key for one in first])
            )
            self._notes.append(note)
            found += [finding] if finding and finding.prefix not in short else []
        return found

    def _value_bytes(self, names: Sequence[bytes]) -> dict[bytes, int]:
        """Return the bytes that values take, 0 for an integer; of the keys of which the node reports them."""
        weights: dict[bytes, int] = {}
        commands = KeyCommands(names, ("object|encoding", "memory|usage"))
        for connection in self._source.connections:
            columns = connection.send(commands).columns(commands)
            for name, encoding, size in zip(names, *columns.values(), strict=True):
                if encoding == b"int" or isinstance(size, int):
                    weights[name] = 0 if encoding == b"int" else size - len(name)
        return weights

    def _vanished(
        self, diagnoses: Sequence[Diagnosis], after: Sequence[Mapping[str, str]]
    ) -> tuple[list[KeyFacts], int]:
        """Return sessions that no longer exist though nothing was evicted, and at how many there was a second look."""
        if self._snapshot or _risen(self._servers, after, "evicted_keys"):
            return [], 0
        sessions = (key for one in diagnoses for key in one.keys)
        far = [one for one in sessions if one.left_ms is None or one.left_ms > FAR_FROM_THE_END_MS]
        far = far[:SECOND_LOOK_KEYS]
        lost = self._sampler.missing([one.key for one in far])
        return [one for one in far if one.key in lost], len(far)

    def _failed(self) -> list[ReadOnlyConnection]:
        return [one for one in self._source.connections if one.failure]

    def _note_limits(self, sample: Sample, context: AuditContext) -> None:
        refused = (one for one in sorted(sample.refused_commands) if not one.startswith("pexpiretime"))
        self._notes += [f"the server refused {one}" for one in refused]
        for one in self._failed():
            self._notes.append(f"{one.name} failed during the audit, and not all of its keys were read: {one.failure}")
        if moved_slots := self._target.moved_slots():
            self._notes.append(
                f"{counted(moved_slots, 'slot')} of the cluster moved to another server during the audit: keys in them "
                "may have been counted twice or not at all"
            )
        if sample.moved:
            self._notes.append(f"{counted(sample.moved, 'key')} moved to another server before they were read")
        if self._snapshot and len(self._snapshot.databases) > 1:
            self._notes.append(f"database {self._snapshot.database} of the file was read; --db N reads another one")
        if self._snapshot and self._snapshot.cut_bytes:
            self._notes.append(CUT_LOG.format(self._snapshot.cut_bytes))
        if sample.stopped:
            self._notes.append(f"stopped early: {sample.stopped}")
        if sample.keys and not context.history.idle_known:
            lfu = "lfu" in (self._servers[0].policy or "") or any("LFU" in one for one in sample.refused_commands)
            why = "LFU" if lfu else "OBJECT IDLETIME is refused to this user"
            why = "the file has no idle times" if self._snapshot else f"the server does not report idle times ({why})"
            self._notes.append(f"{why}, so TTLs are judged by the remaining TTL only")
        if not self._full:
            self._notes.append(f"--full also reads values, and checks for: {NEED_VALUES}")

    def _healthy(self, diagnoses: Sequence[Diagnosis]) -> str:
        sessions, reached = (sum(getattr(one, name) for one in diagnoses) for name in ("sessions", "reached"))
        left_out = (key for one in diagnoses for group in one.ignored for key in group.keys)
        ignored = sum(key.deadline_ms is not None for key in left_out)
        text = (
            f"checked {counted(sessions, 'session key')}: none contradicts {', '.join(map(str, self._expected))}, and "
            f"{counted(reached, 'shows', 'show')} the expected TTL"
        )
        return text + (f"; {counted(ignored, 'short-lived key')} ignored" if ignored else "")

    def _unread(self) -> str | None:
        """Return why the keys that were read are not all keys of the target."""
        if failed := self._failed():
            names = ", ".join(one.name for one in failed)
            many = f"{len(failed)} of {len(self._source.connections)} servers of the cluster"
            return f"{many} did not answer, so their sessions are not known ({names}); to find out, start them again"
        replicated = {one.info.get("master_replid") for one in self._servers}
        read = {one.info.get("master_replid") for one in self._replicas}
        if None in replicated | read or read <= replicated:
            return None
        return (
            f"the keys were read on a server that does not replicate {self._target.url} (it has another replication "
            "id); to find out, run again with the URL of a replica"
        )

    def _undetermined(self, sample: Sample, diagnoses: Sequence[Diagnosis], context: AuditContext) -> str | None:
        settle = "to find out, run again with --watch 30s while sessions are written, or with --full"
        if self._snapshot:
            settle = "to find out, audit the live server, or compare with another RDB file (memkit history)"
        if not self._expected:
            return f"checked {counted(sample.seen, 'key')}, but no TTL is expected; give one: --expect 'chat:*=7d'"
        if unread := self._unread():
            return unread
        if self._unexplained:
            return self._unexplained
        for one in sorted(diagnoses, key=lambda one: not one.unexplained):
            if one.unexplained:
                return f"{one.expected.pattern}: {one.unexplained}; {settle}"
            if not one.reached:
                keys, ttl = f"{counted(one.sessions, 'key')} matching {one.expected.pattern}", one.expected.ttl_ms
                return f"none of {keys} shows that writes set a TTL of {duration(ttl)}; {settle}"
        keys_of_sessions = [key for one in diagnoses for key in one.keys]
        if early := expired_early(self._servers, self._expected, keys_of_sessions, context):
            return early
        if not self._snapshot and not all(one.info for one in self._servers):
            return (
                "INFO is refused, so it is not known whether the server lost keys; to find out, use a user that may "
                "call it (memkit audit URL --acl prints the rule)"
            )
        return self._set_back

    def _server(self) -> dict[str, Any]:
        server, snapshot = self._servers[0], self._snapshot
        url = snapshot.name if snapshot else self._target.url
        taken_at = utc_text(utc_time(server.now_ms))
        source = {"kind": snapshot.kind if snapshot else "live", "name": url, "taken_at": taken_at}
        return {"flavour": server.flavour, "version": server.version, "url": url, "source": source}

    def _proof(self, after: Sequence[Mapping[str, str]]) -> Proof:
        sent: Counter[str] = Counter()
        for connection in {*self._target.connections, *self._source.connections}:
            sent += connection.sent
        return Proof(
            commands=sent,
            writes=0,
            idle_clocks_touched=self._touched,
            expired_during_audit=_risen(self._servers, after, "expired_keys"),
            evicted_during_audit=_risen(self._servers, after, "evicted_keys"),
            seconds=time.monotonic() - self._began,
        )


def _batch(servers: Sequence[ServerFacts], duty: float, round_trip_s: float) -> int:
    """Return how many keys to ask about at once: fewer if the buffers could push a nearly full server to evict."""
    room = [
        (one.number("maxmemory") or 0) - (one.number("used_memory") or 0) for one in servers if one.number("maxmemory")
    ]
    usual = BATCH_KEYS_WITH_RESTS if duty < 1 and round_trip_s < NETWORK_S else BATCH_KEYS_WITHOUT_RESTS
    return max(SMALLEST_BATCH_KEYS, min(usual, min(room, default=usual * BYTES_A_KEY) // BYTES_A_KEY))


def _risen(before: Sequence[ServerFacts], after: Sequence[Mapping[str, str]], name: str) -> int | None:
    then = _total(one.number(name) for one in before)
    now = _total(int(one[name]) if name in one else None for one in after)
    return None if then is None or now is None else now - then


def _total(counts: Iterable[int | None]) -> int | None:
    """Return the sum of the servers' counts; None if one of them does not report it."""
    known = list(counts)
    return None if None in known else sum(one or 0 for one in known)


def _without_expectations(context: AuditContext) -> list[Finding]:
    if context.keys:
        return changed_ttls(context)
    step = "check the database number and the server in the URL"
    text = "the database is empty: there is nothing to audit"
    return [Finding.of("no_data", message=text, confidence="proven", evidence=("DBSIZE is 0",), next=step)]


def _of_cluster(found: Mapping[str, Finding], servers: int) -> Finding:
    """Return the surest of one cause's findings about some of a cluster's servers, by their names; it names these."""
    name, first = min(found.items(), key=lambda one: CONFIDENCE_RANKS[one[1].confidence])
    if len({one.message for one in found.values()}) == 1 and len(found) == servers:
        return first
    others = [f"the same on {', '.join(one for one in found if one != name)}"] if len(found) > 1 else []
    return replace(first, message=f"{name}: {first.message}", evidence=(*first.evidence, *others))


def _in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings with the one that matters most first; of the same cause, prefix and expected TTL, the surest."""
    surest = sorted(findings, key=lambda one: CONFIDENCE_RANKS[one.confidence])
    once: dict[tuple[str, str | None, float | None], Finding] = {}
    for finding in surest:
        once.setdefault((finding.cause, finding.prefix, finding.expected_ttl_s), finding)
    return sorted(once.values(), key=lambda one: one.order)
