"""Read-only: a live server against what its sessions were meant to live. Which die early, since when, and why."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any

import redis

from memkit.audit.checks.auxiliary_keys import Scene
from memkit.audit.checks.deletions import Looked, deleted_finding
from memkit.audit.checks.payloads import check_values
from memkit.audit.checks.server import server_findings, skewed_ttl
from memkit.audit.checks.ttl import diagnose, seen_under
from memkit.audit.checks.ttl_inference import Server
from memkit.audit.finding import Finding, PrefixSummary, verdict_of
from memkit.audit.report import AuditReport, Proof
from memkit.audit.sampling import ENOUGH_OF_A_PATTERN, KeyFacts, Progress, Sample, Sampler, ServerKeys
from memkit.audit.server_info import FLUSHES, Evidence, counters, look
from memkit.config import Expect, Expectation, expectations
from memkit.connect import AnyClient
from memkit.errors import PolicyError
from memkit.readonly.connection import KeyCommands
from memkit.readonly.pace import Pace
from memkit.readonly.reader import Reader
from memkit.readonly.target import Target, open_target
from memkit.render import counted, utc_text

SECOND_LOOK_KEYS = 1_000
COUNTERS = ("expired_keys", "evicted_keys", "used_memory", "maxmemory")
RESTING_BATCH_KEYS, RESTLESS_BATCH_KEYS = 60, 350
"""60 keys with two commands each take the server 0.08 ms, 350 take it 0.6 ms, as 50 and 250 keys with four commands
did, for which a neighbour's p99 was 2.2 and 3.4 times idle; at twice as many it was 3.0 and more than 10 (Redis 8.2).
"""
NETWORK_S = 0.001
"""From this round trip on, batches are as large as without rests: a neighbour waits longer for the network anyway."""
BYTES_A_KEY = 10_000
"""A twentieth of the room below maxmemory is enough for the query and reply buffers of one batch (500 bytes a key)."""
METADATA = (
    "+ping +info +time +dbsize +scan +randomkey +type +pttl +exists +object|idletime +object|encoding +memory|usage "
    "+config|get +slowlog|get +client|list +client|setname +cluster|slots +cluster|myid +command +select +hello +auth"
)
NEWER = (
    ("Redis 7.0", "+pexpiretime"),
    ("Redis 7.2, Valkey", "+client|no-touch +client|setinfo"),
)
VALUES = (
    "+get +getrange +strlen +lrange +llen +hgetall +hmget +hlen +smembers +smismember +scard +zrange +zmscore +zcard "
    "+xrange +xlen"
)


def acl_rule(prefixes: Iterable[str] = ()) -> str:
    """Return the ACL commands of the least that an audit needs: names and clocks of keys, no command that writes.

    One command a line; the first does on every server, the others give what newer ones can. With ``prefixes`` (literal,
    such as ``"chat:"``) the values under them may be read too, which ``full`` wants (Redis 7.0: permissions by key).
    """
    user = "ACL SETUSER memkit-audit"
    lines = [f"{user} reset on >CHANGE-THIS-PASSWORD ~* resetchannels -@all {METADATA}"]
    lines += [f"{user} {commands}" for _, commands in NEWER]
    lines += [f"{user} ({VALUES} %R~{prefix.removesuffix('*')}*)" for prefix in prefixes]
    return "\n".join(lines)


def audit(
    url_or_client: str | AnyClient,
    *,
    expect: Expect | None = None,
    full: bool = False,
    duty: float = 0.25,
    replica: str | AnyClient | None = None,
    touch: bool = False,
    progress: Progress | None = None,
) -> AuditReport:
    """Diagnose a live server, read-only: compare what its keys were given to live with what was meant.

    ``expect``: pattern to TTL (seconds, ``"7d"`` or an ExpiryPolicy), or Expectations or their texts (``"chat:*=7d"``);
    nothing: report what is there.
    ``full``: every key instead of a sample, and the checks that read values; these need CLIENT NO-TOUCH (Redis 7.2,
    Valkey) or ``touch=True``, which lets them reset idle clocks. ``duty``: the share of time at work, 0 to 1.
    ``replica``: read keys there, where reads on the primary have not reset the idle clocks. ``progress(done, of)`` is
    called now and then. Ctrl-C ends the reading, not the report. Raises PolicyError for what cannot be meant;
    ``redis.exceptions`` pass through.
    """
    if not 0 < duty <= 1:
        raise PolicyError(f"duty={duty!r} is not a share of time; expected above 0, at most 1 (1: no rests)")
    meant = expectations(() if expect is None else expect)
    with ExitStack() as stack:
        target = stack.enter_context(open_target(url_or_client))
        source = target if replica is None else stack.enter_context(open_target(replica))
        return _Audit(target, source, meant, duty=duty, full=full, touch=touch, progress=progress).report()


class _Audit:
    """One run: evidence, sample, diagnosis, evidence again."""

    def __init__(
        self,
        target: Target,
        source: Target,
        meant: Sequence[Expectation],
        *,
        duty: float,
        full: bool,
        touch: bool,
        progress: Progress | None,
    ) -> None:
        self._began = time.monotonic()
        self._touched = 0
        self._aside = 0
        self._target, self._source, self._meant = target, source, meant
        self._full, self._touch = full, touch
        self._evidence = [look(connection) for connection in target.connections]
        self._notes = list(dict.fromkeys(f"could not see {what}" for one in self._evidence for what in one.blind))
        own = source is target
        servers = []
        for at, connection in enumerate(source.connections):
            round_trip_s = connection.round_trip_s()
            batch = _batch(self._evidence[at : at + 1] if own else self._evidence, duty, round_trip_s)
            # Of a replica, one thread checks the primaries; no two threads use one connection.
            guarded = [at] if own else range(len(self._evidence)) if at == 0 else []
            pace = Pace(duty, batch=batch, round_trip_s=round_trip_s)
            servers.append(ServerKeys(connection, pace=pace, guard=partial(self._trouble, guarded), sizes=full))
        self._sampler = Sampler(servers, route=source.route, progress=progress)

    def _trouble(self, guarded: Sequence[int]) -> str | None:
        """Why the audit should stop: a server began to evict."""
        for at in guarded:
            now = counters(self._target.connections[at]).get("evicted_keys")
            if now is not None and int(now) > (self._evidence[at].number("evicted_keys") or 0):
                return "the server is evicting keys; the audit adds nothing to that"
        return None

    def report(self) -> AuditReport:
        """Return what was found."""
        sample = self._sample()
        findings, seen, sessions = self._diagnose(sample)
        findings += self._values(sample, findings)
        after = self._counters_after()
        for evidence, now in zip(self._evidence, after, strict=True):
            findings += server_findings(evidence, sample.keys, now, self._meant)
        looked = Looked(sample.keys, sample.of, sessions)
        gone = deleted_finding(self._evidence[0], self._meant, self._vanished(sample, after), looked)
        self._notes += [gone] if isinstance(gone, str) else []
        findings = _in_order([*findings, *([gone] if isinstance(gone, Finding) else [])])
        self._note_limits(sample)
        return AuditReport(
            server=self._server(),
            findings=tuple(findings),
            verdict=verdict_of(
                findings,
                sessions=sessions or (0 if self._meant else sample.seen),
                healthy=self._healthy(sessions),
                undetermined=None
                if self._meant
                else f"{sample.seen:,} keys seen; state with --expect what their TTLs are",
            ),
            sample=_sample_dict(sample),
            proof=self._proof(after),
            notes=tuple(dict.fromkeys(self._notes)),
            seen=tuple(seen),
            expectations=tuple(self._meant),
            at=datetime.fromtimestamp(self._evidence[0].now_ms / 1000, UTC),
            keys=sample.keys,
            counters={name: self._evidence[0].number(name) for name in COUNTERS},
        )

    def _sample(self) -> Sample:
        cluster = len(self._source.connections) > 1 or self._evidence[0].is_cluster
        sample = self._sampler.full() if self._full else self._sampler.sample(cluster=cluster)
        for meant in self._meant:
            if sample.complete or sample.stopped or self._full:
                break
            if len(meant.of(sample.keys)) < ENOUGH_OF_A_PATTERN / 2:
                sample.keys += self._sampler.more_of(sample, meant.pattern, meant.matches.fullmatch)
        return sample

    def _diagnose(self, sample: Sample) -> tuple[list[Finding], list[PrefixSummary], int]:
        scene = Scene(
            sample.keys,
            self._server_facts(sample),
            self._siblings(sample),
            True,
            self._weigh,
            self._unclaimed(sample) if len(self._meant) > 1 else None,
        )
        if not sample.keys and not self._meant:
            return [_empty_database()], [], 0
        findings: list[Finding] = []
        sessions = 0
        taken: set[bytes] = set()
        for meant in self._meant:
            own = [one for one in meant.of(sample.keys) if one.key not in taken]
            taken.update([one.key for one in own] if len(self._meant) > 1 else ())
            diagnosis = diagnose(meant, own, scene)
            findings += [skewed_ttl(self._evidence[0], finding) or finding for finding in diagnosis.findings]
            self._notes += diagnosis.notes
            sessions += diagnosis.sessions
            self._aside += diagnosis.aside
        return findings, [] if self._meant else seen_under(sample.keys), sessions

    def _unclaimed(self, sample: Sample) -> list[KeyFacts]:
        claimed = {one.key for meant in self._meant for one in meant.of(sample.keys)}
        return [one for one in sample.keys if one.key not in claimed]

    def _values(self, sample: Sample, findings: Sequence[Finding]) -> list[Finding]:
        """Return what values show, if they may be read without resetting idle times, or if that is allowed."""
        if not self._full or not self._meant or sample.stopped:
            return []
        touches_because = self._target.touches_because
        if touches_because and not self._touch:
            self._notes.append(f"not checked: corrupt, dangling, not_refreshed ({touches_because}); --touch allows it")
            return []
        try:
            values = check_values(
                Reader(self._target),
                self._meant,
                [one for one in sample.keys if self._target.route(one.key).name not in sample.failed],
                short=_too_short_by(findings),
                within_s=(time.monotonic() - self._began) / 4,
                deletions=sum(one.calls.get("del", 0) + one.calls.get("unlink", 0) for one in self._evidence),
            )
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if len(self._target.connections) == 1:
                raise
            self._notes.append(f"not checked: corrupt, dangling, not_refreshed ({error})")
            return []
        self._touched = values.read if touches_because else 0
        self._notes += values.notes
        torn = {finding.prefix for finding in [*findings, *values.findings] if finding.cause == "mixed_ttl"}
        return [one for one in values.findings if one.cause != "not_refreshed" or one.prefix not in torn]

    def _counters_after(self) -> list[dict[str, str]]:
        """Return each server's counters; none of one that failed during the audit."""
        found: list[dict[str, str]] = []
        for connection in self._target.connections:
            try:
                found.append(counters(connection))
            except redis.RedisError:
                if len(self._target.connections) == 1:
                    raise
                found.append({})
        return found

    def _server_facts(self, sample: Sample) -> Server:
        evidence = self._evidence[0]
        born = [one.born_ms(sample.of) for one in self._evidence]
        if any(one.touched_ms is not None and one.touched_ms < (born[0] or 0) for one in sample.keys):
            born = [None]
        reads = [one.idle_touches for one in self._evidence]
        return Server(
            now_ms=evidence.now_ms,
            born_ms=None if None in born else min(one for one in born if one is not None),
            reads=None if None in reads else sum(one for one in reads if one is not None),
            expired=sum(one.number("expired_keys") or 0 for one in self._evidence),
            idle_known=any(one.touched_ms is not None for one in sample.keys),
        )

    def _siblings(self, sample: Sample) -> Callable[[Sequence[bytes]], Sequence[KeyFacts]]:
        """Return a look-up of keys that a sample has missed; none is missing if every key was seen."""
        return _nobody if sample.complete and not self._full else self._sampler.look_up

    def _weigh(self, names: Sequence[bytes]) -> list[int]:
        """Return the bytes that values take, 0 for an integer; of the keys whose node would say."""
        weights: dict[bytes, int] = {}
        commands = KeyCommands(names, ("object|encoding", "memory|usage"))
        for connection in self._source.connections:
            columns = connection.send(commands).columns(commands)
            for name, encoding, size in zip(names, *columns.values(), strict=True):
                if encoding == b"int" or isinstance(size, int):
                    weights[name] = 0 if encoding == b"int" else size - len(name)
        return list(weights.values())

    def _vanished(self, sample: Sample, after: Sequence[Mapping[str, str]]) -> list[KeyFacts]:
        """Return sessions that were there and are gone before their deadline, though nothing was evicted meanwhile."""
        if _risen(self._evidence, after, "evicted_keys"):
            return []
        sessions = (one for meant in self._meant for one in meant.of(sample.keys))
        living = [one for one in sessions if one.left_ms is None or one.left_ms > 600_000][:SECOND_LOOK_KEYS]
        missing = self._sampler.missing([one.key for one in living])
        return [one for one in living if one.key in missing]

    def _note_limits(self, sample: Sample) -> None:
        self._notes += [f"could not see {one}" for one in sorted(sample.blind) if not one.startswith("pexpiretime")]
        if not sample.keys:
            self._notes += self._elsewhere()
        for name, error in sample.failed.items():
            self._notes.append(f"{name} failed during the audit, and not all of its keys were read: {error}")
        if moved_slots := self._target.moved_slots():
            self._notes.append(
                f"{counted(moved_slots, 'slot')} of the cluster moved to another server during the audit: keys in them "
                "may have been counted twice or not at all"
            )
        if sample.moved:
            self._notes.append(f"{counted(sample.moved, 'key')} moved to another server before they were read")
        if sample.stopped:
            self._notes.append(f"stopped early: {sample.stopped}")
        if sample.keys and all(one.touched_ms is None for one in sample.keys):
            lfu = "lfu" in (self._evidence[0].policy or "") or any("LFU" in one for one in sample.blind)
            why = "LFU" if lfu else "OBJECT IDLETIME is refused to this user"
            self._notes.append(f"the server does not tell idle times ({why}): TTLs are judged by what is left alone")
        if not self._full:
            self._notes.append("not checked without --full: corrupt, dangling, not_refreshed (they read values)")

    def _elsewhere(self) -> list[str]:
        """Return where the keys of an empty database may be, or have gone."""
        evidence = self._evidence[0]
        others = [
            f"{name} ({text.split(',')[0]})" for name, text in evidence.info.items() if re.fullmatch(r"db\d+", name)
        ]
        flushes = sum(evidence.calls.get(name, 0) for name in FLUSHES)
        found = [f"other databases have keys: {', '.join(others)}"] if others else []
        return found + ([f"FLUSHALL or FLUSHDB was called {flushes:,} times since the start"] if flushes else [])

    def _healthy(self, sessions: int) -> str:
        says = f"{sessions:,} keys of sessions looked at, all as expected ({', '.join(map(str, self._meant))})"
        return says + (f"; {self._aside:,} that live shorter were taken for no sessions" if self._aside else "")

    def _server(self) -> dict[str, Any]:
        evidence: Evidence = self._evidence[0]
        taken_at = utc_text(datetime.fromtimestamp(evidence.now_ms / 1000, UTC))
        source = {"kind": "live", "name": self._target.url, "taken_at": taken_at}
        return {"flavour": evidence.flavour, "version": evidence.version, "url": self._target.url, "source": source}

    def _proof(self, after: Sequence[Mapping[str, str]]) -> Proof:
        sent: Counter[str] = Counter()
        for connection in {*self._target.connections, *self._source.connections}:
            sent += connection.sent
        return Proof(
            commands=sent,
            writes=0,
            idle_clocks_touched=self._touched,
            expired_during_audit=_risen(self._evidence, after, "expired_keys"),
            evicted_during_audit=_risen(self._evidence, after, "evicted_keys"),
            seconds=time.monotonic() - self._began,
        )


def _too_short_by(findings: Sequence[Finding]) -> Callable[[KeyFacts], bool]:
    """Return whether a key is one of those whose TTL alone explains its early end."""
    tops = [
        (finding.prefix or "", (finding.observed_ttl_s or 0) * 1100 + 2_000)
        for finding in findings
        if finding.cause in ("ttl_too_short", "unit_mistake") and finding.observed_ttl_s
    ]

    def short(one: KeyFacts) -> bool:
        return any(one.key.startswith(prefix.encode()) and (one.set_ms or 0) <= top for prefix, top in tops)

    return short


def _nobody(_names: Sequence[bytes]) -> Sequence[KeyFacts]:
    return ()


def _batch(evidence: Sequence[Evidence], duty: float, round_trip_s: float) -> int:
    """Return how many keys to ask about at once: fewer if the buffers could push a nearly full server to evict."""
    room = [
        (one.number("maxmemory") or 0) - (one.number("used_memory") or 0) for one in evidence if one.number("maxmemory")
    ]
    usual = RESTING_BATCH_KEYS if duty < 1 and round_trip_s < NETWORK_S else RESTLESS_BATCH_KEYS
    return max(10, min(usual, min(room, default=usual * BYTES_A_KEY) // BYTES_A_KEY))


def _risen(before: Sequence[Evidence], after: Sequence[Mapping[str, str]], name: str) -> int | None:
    pairs = [(one.number(name), now.get(name)) for one, now in zip(before, after, strict=True)]
    if any(was is None or now is None for was, now in pairs):
        return None
    return sum(int(now or 0) - (was or 0) for was, now in pairs)


def _in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings with the one that matters most first; of equal causes on several nodes, one."""
    once: dict[tuple[str, str | None], Finding] = {}
    for finding in findings:
        once.setdefault((finding.cause, finding.prefix), finding)
    return sorted(once.values(), key=lambda finding: finding.order)


def _sample_dict(sample: Sample) -> dict[str, Any]:
    return {"keys": sample.seen, "of": sample.of, "method": sample.method, "error_bound": sample.error_bound}


def _empty_database() -> Finding:
    return Finding(
        "no_data",
        message="the database is empty: there is nothing to audit",
        confidence="proven",
        evidence=("DBSIZE is 0",),
        next="check the database number and the server in the URL",
    )
