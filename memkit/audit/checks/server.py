"""From a server's report about itself to findings: memory, flushes, restarts, persistence, replication, clock. Pure.

Each check names the facts that it uses. What the server reports and what is no finding becomes a note.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from memkit.audit.checks.ttl_inference import NEARLY_ALL, SOME, ttl_of
from memkit.audit.checks.ttl_peaks import FEWEST, SURE_NATS, UNLIKELY, surprise
from memkit.audit.context import AuditContext
from memkit.audit.finding import Finding, Since
from memkit.audit.sampling import KeyFacts
from memkit.audit.server_info import ABSOLUTE_DEADLINES, FLUSHES, REDIRECTIONS, REPLICATES, ServerFacts
from memkit.config import Expectation
from memkit.render import counted, duration

NEAR_FULL = 0.8
FULL = 0.95
"""One large write or one client's buffers fill the rest."""
REFUSED_SHARE = 0.01
"""A failover refuses the writes of some seconds, hardly a hundredth of all."""
MOST_CODES = 3
SURE_ERRORS = 3
"""The clocks differ if their difference is this many times the error of measuring it."""
SKEW_MS = 2_000.0
"""NTP leaves a smaller difference, and a slow network hides one."""
UNSAVED_MS = 86_400_000
"""Save points in use are minutes to an hour; changes that are a day old are not being saved."""
DROPPED_SHARE = 0.2
"""A restart of an hour drops 4 % of the keys with a 1-day TTL; more were past their deadline in an old file."""
STEADY_SESSIONS = 20
STEADY_GAPS = 3
"""Sessions that begin within three usual gaps of the server's start were not the first ever."""
PAUSES = 2
"""Of 20 sessions at random times, a pause before the start is twice the longest before with a chance of 0.3 %."""
YOUNG_MS = 600_000
"""In the first ten minutes every session is a young one."""
FAILOVER = "; if this server was a replica then, the writes that had not reached it are lost"
EXPIRED_TIMES = 3
"""Traffic is hardly ever more than three times that of another time: by day it is two to three times that by night."""


def server_findings(
    server: ServerFacts,
    context: AuditContext,
    sessions: Sequence[tuple[Expectation, Sequence[KeyFacts]]],
    *,
    after: Mapping[str, str],
) -> list[Finding]:
    """Return what is wrong with the server as a whole.

    Args:
        server: Its report at the start of the audit.
        context: The keys.
        sessions: What is expected, each with its keys, without those that are no sessions or have another TTL: by
            their deadlines and the expected TTL they show when they were written.
        after: INFO's counters at the end of the audit.
    """
    own = [one for _, keys in sessions for one in keys]
    ttl_ms = _longest_ms([expected for expected, _ in sessions])
    existing = sum(len(expected.matching(context.keys)) for expected, _ in sessions)
    written = sorted(at for expected, keys in sessions for at in _written_ms(server, expected, keys))
    oldest = min([server.now_ms, *written, *(one.touched_ms for one in context.keys if one.touched_ms is not None)])
    # Sessions without TTLs are spared by a policy that evicts volatile keys only, and no clock ends them. If there are
    # no sessions, it may have evicted all of them.
    volatile = any(one.deadline_ms is not None for one in own or context.keys)
    spared = bool(own) and not volatile and str(server.policy).startswith("volatile")
    found = [
        _writes_refused(server),
        None if spared else _evicted(server, after, ttl_ms) or _eviction_risk(server),
        _flushed(server, context, ttl_ms, oldest, dated=len(own), existing=existing),
        _restarted(server, context, ttl_ms, written, loaded=server.must_have_loaded(existing)),
        replica_stale(server, context),
        _persistence_risk(server, context),
        _skewed(server, oldest if context.keys else 0) if volatile or not context.keys else None,
    ]
    return [finding for finding in found if finding]


def server_notes(server: ServerFacts, expectations: Sequence[Expectation], *, when: str, database: int) -> list[str]:
    """Return what the server reports and what may matter, whether or not a finding follows from it.

    Args:
        server: Its report.
        expectations: What is expected.
        when: The start's time in words.
        database: The number of the database that was audited.
    """
    notes, longest = [], _longest_ms(expectations) or math.inf
    if server.started_ms is not None and server.now_ms - server.started_ms < longest:
        loaded = ""
        if "rdb_last_load_keys_loaded" in server.info:
            origin = " from an RDB file or its primary" if server.may_have_synced else " from an RDB file"
            besides = " (keys of the append-only file are not counted)" if server.has_aof else ""
            loaded = f"{counted(server.loaded_keys, 'key')}{origin}" if server.loaded_keys else "no keys"
            loaded = f": it loaded {loaded}{besides}"
            if server.expired_at_load:
                loaded += f"; {counted(server.expired_at_load, 'deadline')} in the file had passed"
        young = "" if longest == math.inf else ", less than one expected TTL ago"
        notes.append(f"the server started {when}{young}{loaded}")
    if server.is_replica:
        primary = f"{server.info.get('master_host', '?')}:{server.info.get('master_port', '?')}"
        lost = "; what clients write here is lost at its next full synchronization (replica-read-only no)"
        notes.append(
            f"this is a replica: it does not count what its primary ({primary}) evicts or refuses; audit that, too"
            + (lost if server.info.get("slave_read_only") == "0" else "")
        )
    flushes = server.succeeded(*FLUSHES)
    if flushes:
        names = " or ".join(name.upper() for name in FLUSHES if server.succeeded(name))
        failover = "" if server.is_replica or not server.called(*REPLICATES) else FAILOVER
        notes.append(f"{names} was called {counted(flushes, 'time')} since the start or a reset{failover}")
    if (refused := _refused(server)) or server.errors("OOM"):
        notes.append(
            f"{counted(refused, 'write')} failed or were refused since the start or a reset; {_errors(server)}"
        )
    if rejected := server.number("rejected_connections"):
        notes.append(f"the server refused {counted(rejected, 'connection')} since the start or a reset (maxclients)")
    others = {name: one.get("keys", 0) for name, one in server.databases.items() if name != f"db{database}"}
    if others:
        notes.append(f"other databases have keys: {', '.join(f'{name} ({keys:,})' for name, keys in others.items())}")
    return notes


def expired_early(
    servers: Sequence[ServerFacts],
    expectations: Sequence[Expectation],
    sessions: Sequence[KeyFacts],
    context: AuditContext,
) -> str | None:
    """Return why more keys expired than sessions with the expected TTL would have; None if other keys explain it.

    Uses expired_keys, uptime_in_seconds and the keyspace: on a server that started empty, no session can expire within
    its first TTL, and later as many do in one TTL as exist.
    """
    volatile = sum(one.deadline_ms is not None for one in context.keys)
    own = sum(one.deadline_ms is not None for one in sessions)
    databases = sum(one.get("expires", 0) > 0 for one in servers[0].databases.values())
    started, now = servers[0].started_ms, context.history.now_ms
    if own < volatile or databases != 1 or started is None or servers[0].is_replica:
        return None
    ttl_ms = min((one.ttls_ms[0] for one in expectations if one.ttls_ms), default=0)
    empty = context.history.empty_start_ms
    if not ttl_ms:
        return None
    if empty is None and now - started < ttl_ms:
        # Keys from its append-only file may have expired. Then others of that time still exist, if they are so many.
        oldest_ms = min((one.deadline_ms or now for one in sessions), default=now) - _longest_ms(expectations)
        lacking = context.history.expired * (ttl_ms - (now - started)) / (now - started)
        if oldest_ms < started or lacking < SURE_NATS:
            return None
        empty = started
    existing = sum(count.get("expires", 0) for one in servers for count in one.databases.values())
    times = (now - started if empty is None else max(0.0, now - empty - ttl_ms)) / ttl_ms
    expired, usual = context.history.expired, existing * times
    if expired < max(min(FEWEST, existing), SOME * existing) or surprise(expired, EXPIRED_TIMES * usual) < SURE_NATS:
        return None
    return (
        f"{counted(expired, 'key')} expired since the server started {context.when(started)}, and at the rate at which "
        f"sessions are written now, about {usual:,.0f} would have with a TTL of {duration(ttl_ms)}; to find out which "
        "keys expire: memkit record URL -o FILE.db"
    )


def _longest_ms(expectations: Sequence[Expectation]) -> float:
    """Return the longest expected TTL; infinite if one is never."""
    return max((math.inf if one.ttl_ms is None else one.ttl_ms for one in expectations), default=0)


def _writes_refused(server: ServerFacts) -> Finding | None:
    """Uses failed_calls and rejected_calls of writes, errorstats (Redis 6.2), and the state that refuses writes now."""
    used, limit = server.memory
    state = f"used_memory {used:,} of maxmemory {limit:,} bytes" if limit else "maxmemory is 0: no limit now"
    out_of_memory = server.errors("OOM")
    full = bool(limit) and used >= FULL * limit
    # A replica ignores maxmemory (replica-ignore-maxmemory).
    refuses = bool(limit) and used >= limit and server.policy == "noeviction" and not server.is_replica
    if out_of_memory or refuses:
        now = "and memory is full" if full else "and memory has room now"
        kept = server.keys - sum(one.get("expires", 0) for one in server.databases.values())
        if str(server.policy).startswith("volatile") and kept:
            state += f"; {kept:,} of {counted(server.keys, 'key')} have no TTL, and {server.policy} evicts none of them"
        return Finding.of(
            "out_of_memory",
            message=f"the server refused {counted(out_of_memory, 'write')} for lack of memory ({server.policy}), {now}"
            if out_of_memory
            else f"memory is full and {server.policy} refuses writes",
            confidence="proven" if full and out_of_memory else "likely" if full else "possible",
            evidence=(f"errorstat_OOM: {out_of_memory:,} since the start or the last reset", state),
            next="raise maxmemory, or delete what is not needed; until then, new sessions are not stored"
            if full
            else "memory has room again: look for the time of these errors in the application's log",
        )
    refused = _refused(server)
    if refused < max(FEWEST, REFUSED_SHARE * (server.writes + refused)):
        return None
    accepts = server.config.get("save") == "" or server.config.get("stop-writes-on-bgsave-error") == "no"
    failed = server.info.get("rdb_last_bgsave_status") == "err" and not accepts
    failed = failed or server.info.get("aof_last_write_status") == "err"
    still = bool(server.errors("MISCONF")) and failed
    commands = ", ".join(f"{name} {count:,}" for name, count in server.refused_writes.items())
    return Finding.of(
        "writes_refused",
        message=f"{counted(refused, 'write')} of values or TTLs failed or were refused ({_errors(server)})"
        + ("; the server refuses every write until its data can be saved" if still else ""),
        # If the state has passed, or is one client's, it may have been a failover or no session's write.
        confidence="proven" if still else "possible",
        evidence=(f"INFO commandstats: {server.writes:,} writes succeeded; failed or rejected: {commands}",),
        next="check the server's disk and its log: it cannot save its data"
        if still
        else "let clients write to the primary: this server is a replica, which refuses writes (READONLY)"
        if server.is_replica and server.errors("READONLY")
        else "read the texts of these errors in the application's log",
    )


def _refused(server: ServerFacts) -> int:
    return max(0, sum(server.refused_writes.values()) - sum(map(server.errors, REDIRECTIONS)))


def _errors(server: ServerFacts) -> str:
    """Return the codes of the most frequent errors with their counts."""
    counts = {code: server.errors(code) for name in server.info if (code := name.partition("errorstat_")[2])}
    most = max(counts.values(), default=0)
    found = sorted((-count, code) for code, count in counts.items() if code not in REDIRECTIONS)
    shown = (f"{code} {-count:,}" for count, code in found[:MOST_CODES] if -count >= REFUSED_SHARE * most)
    return f"errors of all commands: {', '.join(shown)}"


def _evicted(server: ServerFacts, after: Mapping[str, str], ttl_ms: float) -> Finding | None:
    """Uses evicted_keys at the start and the end, used_memory, maxmemory, uptime_in_seconds and the policy."""
    now = int(after.get("evicted_keys") or server.number("evicted_keys") or 0)
    if not now or server.policy in (None, "noeviction"):
        return None
    rising = now > (server.number("evicted_keys") or 0)
    used, limit = server.memory
    # If memory has room now, all of that may have been before today's sessions began.
    recent = server.started_ms is None or server.now_ms - server.started_ms <= ttl_ms
    sure = rising or recent or used >= NEAR_FULL * limit > 0
    return Finding.of(
        "evicted",
        keys=now,
        message=f"Redis has evicted {counted(now, 'key')} for lack of memory, {_evicts(server)} ({server.policy})",
        confidence="proven" if sure else "possible",
        evidence=(
            f"evicted_keys {now:,}, expired_keys {server.number('expired_keys') or 0:,} since the server started",
            f"evictions went on during the audit: {'yes' if rising else 'no'}",
            f"memory {used:,} of {limit:,} bytes" if limit else "no memory limit now",
        ),
        next=("raise maxmemory, or " if limit else "")
        + "keep sessions on a server of their own with maxmemory-policy noeviction",
    )


def _evicts(server: ServerFacts) -> str:
    """Return which keys the policy evicts."""
    if server.policy == "volatile-ttl":
        return "those with the least time left first"
    return "those with a TTL only" if str(server.policy).startswith("volatile") else "whatever their TTL"


def _eviction_risk(server: ServerFacts) -> Finding | None:
    """Uses used_memory, maxmemory and the policy."""
    used, limit = server.memory
    policy = server.policy
    if server.is_replica or not limit or used < NEAR_FULL * limit or policy in (None, "noeviction"):
        return None
    return Finding.of(
        "eviction_risk",
        message=f"memory is {used / limit:.0%} of maxmemory, and {policy} will evict sessions when it is full",
        confidence="proven",
        evidence=(f"used_memory {used:,}, maxmemory {limit:,}, maxmemory-policy {policy}, no key evicted yet",),
        next="raise maxmemory, or set maxmemory-policy noeviction so that writes fail with an error instead",
    )


def _flushed(
    server: ServerFacts, context: AuditContext, ttl_ms: float, oldest: int, *, dated: int, existing: int
) -> Finding | None:
    """Uses the calls of FLUSHALL and FLUSHDB, the slow log, and the oldest access of any key."""
    calls, started = server.succeeded(*server.flushes), server.started_ms
    if not calls or not ttl_ms or started is None:
        return None
    # The log does not name the database; sessions from before a flush that is older than the TTL have ended by it.
    named = server.flushes if len(server.databases) < 2 else ["flushall"]
    logged = [one for one in server.slow_commands if one.command in named and one.at_s * 1000 <= oldest]
    logged = [one for one in logged if one.at_s * 1000 > server.now_ms - ttl_ms]
    age, possible_age = server.now_ms - oldest, min(ttl_ms, server.now_ms - started)
    # That no session is older although nothing was flushed: FLUSHDB is counted for all databases together.
    chance = min(age / possible_age, 1.0) ** dated if possible_age > 0 else 1.0
    if not logged and (age >= NEARLY_ALL * possible_age or chance > UNLIKELY) and existing:
        return None
    names = " and ".join(map(str.upper, server.flushes))
    at = max((one.at_s * 1000 for one in logged), default=None)
    by = f" by {logged[-1].client}" if logged and logged[-1].client else ""
    since_ms = oldest if at is None else at
    shown_at = context.when(since_ms) + ("" if logged else " at the latest")
    oldest_key = f"no key is older than {duration(age)}" if context.keys else "no key exists"
    return Finding.of(
        "flushed",
        message=f"{names} {'removed' if logged else 'may have removed'} all keys from the database, {shown_at}; "
        f"{counted(existing, 'session key exists', 'session keys exist')}",
        # The counters do not tell whether sessions existed: a server is flushed before a launch, too.
        confidence="proven" if logged else "possible",
        expected_ttl_s=None if ttl_ms == math.inf else ttl_ms / 1000,
        since=Since(since_ms, "upper bound" if at is None else "exact"),
        evidence=(
            *([f"slow log: {logged[-1].command.upper()}{by}"] if logged else []),
            f"INFO commandstats: {names} called {counted(calls, 'time')} since the start or the last reset",
            f"{oldest_key}, the server is {duration(server.now_ms - started)} old and sessions should be up to "
            f"{duration(min(ttl_ms, server.now_ms - started))} old",
        ),
        next="find the client that calls SWAPDB: it moved all keys to another database (INFO keyspace)"
        if server.flushes == ["swapdb"]
        else "find the client that flushes, often a job that clears a cache; keep sessions on a server of their own, "
        "or deny these commands by ACL",
    )


def _restarted(
    server: ServerFacts, context: AuditContext, ttl_ms: float, written: Sequence[int], *, loaded: bool
) -> Finding | None:
    """Uses uptime_in_seconds, rdb_last_load_keys_loaded and _expired (Redis 7.0), and the sessions' deadlines."""
    started, uptime = server.started_ms, server.now_ms - (server.started_ms or 0)
    if started is None or server.is_replica:
        return None
    dropped = server.expired_at_load
    before = [at for at in written if at < started]
    longest = max((after - at for at, after in pairwise(before)), default=0)
    pause = started - before[-1] if before else 0
    empty = context.history.empty_start_ms is not None and YOUNG_MS <= uptime < ttl_ms
    step = "compare when the file was saved with when the server stopped: writes between the two are lost; an "
    step += "append-only file prevents that"
    if dropped >= max(FEWEST, DROPPED_SHARE * (dropped + server.loaded_keys)):
        what = f"dropped {dropped:,} of {dropped + server.loaded_keys:,} keys as expired: "
        what += "the file was old, or the server was stopped for long"
        evidence = [f"rdb_last_load_keys_expired {dropped:,}, rdb_last_load_keys_loaded {server.loaded_keys:,}"]
    elif loaded and len(written) > len(before) >= STEADY_SESSIONS and pause > max(YOUNG_MS, PAUSES * longest):
        what = f"has no session of the {duration(pause)} before: it loaded an old file, or no session was written then"
        evidence = [f"before that, the longest time without a write was {duration(longest)}"]
    elif empty and len(written) >= STEADY_SESSIONS and written[0] - started <= STEADY_GAPS * uptime / len(written):
        what = "was empty; sessions were written from the start on, so sessions from before may be lost"
        first = duration(max(written[0] - started, 0))
        evidence = [f"{len(written):,} sessions within {duration(uptime)}, the first written {first} after the start"]
        step = "find out why it found no file: is persistence on, and is its directory kept (a container's volume)?"
    else:
        return None
    return Finding.of(
        "restarted",
        keys=dropped,
        message=f"the server started {context.when(started)} and {what}",
        confidence="possible",
        since=Since(started, "exact"),
        evidence=evidence,
        next=f"if this was not the first start, {step}",
    )


def replica_stale(server: ServerFacts, context: AuditContext) -> Finding | None:
    """Return the finding of a replica without its primary.

    Uses role, master_link_status and master_link_down_since_seconds.

    Args:
        server: The replica's report.
        context: The keys.
    """
    if not server.is_replica or server.info.get("master_link_status", "up") == "up":
        return None
    down_s = server.number("master_link_down_since_seconds")
    since = None if down_s is None or down_s < 0 else Since(server.now_ms - down_s * 1000, "exact")
    shown = "" if since is None else f" since {context.when(since.at_ms)}"
    return Finding.of(
        "replica_stale",
        message=f"this replica has had no connection to its primary{shown}: later writes and expiries are missing",
        confidence="proven",
        since=since,
        evidence=(
            f"master_link_status {server.info['master_link_status']}" + (f", down for {down_s} s" if since else ""),
        ),
        next=f"check the primary {server.info.get('master_host', '?')}:{server.info.get('master_port', '?')} and the "
        "network; read from another server until the link is up",
    )


def _persistence_risk(server: ServerFacts, context: AuditContext) -> Finding | None:
    """Uses aof_enabled, aof_last_write_status, rdb_last_bgsave_status, rdb_last_save_time and the save points."""
    # A replica's own files protect nothing: what counts is its primary's.
    if server.is_replica or not server.info:
        return None
    info, aof = server.info, server.has_aof
    changes, saved_s = server.number("rdb_changes_since_last_save") or 0, server.number("rdb_last_save_time")
    failed = info.get("aof_last_write_status" if aof else "rdb_last_bgsave_status", "ok") != "ok"
    why = None
    if failed:
        why = f"the last {'write to the append-only file' if aof else 'RDB save'} failed"
    elif not aof and server.config.get("save") == "":
        why = "neither an append-only file nor RDB save points are on"
    elif not aof and saved_s and changes and server.now_ms - saved_s * 1000 > UNSAVED_MS:
        why = f"{counted(changes, 'change')} since the last RDB save, {context.when(saved_s * 1000)}"
    if not why:
        return None
    return Finding.of(
        "persistence_risk",
        message=f"a restart or crash will lose sessions: {why}",
        confidence="proven",
        evidence=(
            f"aof_enabled {info.get('aof_enabled', '?')}, save points {server.config.get('save', '?')!r}, "
            f"rdb_last_bgsave_status {info.get('rdb_last_bgsave_status', '?')}",
            f"rdb_changes_since_last_save {changes:,}",
        ),
        next="read the server's log, and check its free disk space and file permissions"
        if failed
        else "on this server, run CONFIG SET appendonly yes, and set it in redis.conf; Redis forks to write all data",
    )


def _skewed(server: ServerFacts, oldest: int) -> Finding | None:
    """Uses TIME against this machine's clock, and the calls of EXPIREAT and PEXPIREAT: relative TTLs need no clock."""
    skew = server.skew_ms
    if abs(skew) < max(SKEW_MS, SURE_ERRORS * server.skew_error_ms) or _moved_on_purpose(server, oldest):
        return None
    way = "ahead of" if skew > 0 else "behind"
    return Finding.of(
        "clock_skew",
        message=f"the server's clock is {duration(abs(skew))} {way} this machine's: "
        "deadlines that clients compute are off by that",
        confidence="proven" if server.called(*ABSOLUTE_DEADLINES) else "possible",
        evidence=(
            f"TIME against this machine's clock: {skew / 1000:+,.3f} s, give or take {server.skew_error_ms:.1f} ms",
        ),
        next="timedatectl on both machines; let NTP set the one that is wrong; use EXPIRE or SET EX, not EXPIREAT",
    )


def _moved_on_purpose(server: ServerFacts, oldest: int) -> bool:
    """Whether memkit moved this clock while the keys were there: they are older than its last move."""
    moved = server.moved_by_ms
    if not moved or abs(server.skew_ms - moved) > SKEW_MS:
        return False
    before = server.moved_at_ms is not None and oldest < server.moved_at_ms - 2 * SKEW_MS
    return before or server.now_ms - oldest > abs(moved) / 2


def _written_ms(server: ServerFacts, expected: Expectation, keys: Sequence[KeyFacts]) -> Iterator[int]:
    """Yield when keys were written, by their deadlines: surely, or if no jitter and no client moved these."""
    given = [
        (one.deadline_ms, one.ttl_at_last_access_ms or 0, ttl_of(one, expected) or 0)
        for one in keys
        if one.deadline_ms is not None and expected.ttl_ms
    ]
    over = sum(left > ttl + SKEW_MS for _, left, ttl in given)
    exact = over <= SOME * len(given) and not server.called(*ABSOLUTE_DEADLINES)
    for deadline, left, ttl in given:
        if exact or left < ttl * (1 - expected.jitter) - SKEW_MS:
            yield deadline - ttl
