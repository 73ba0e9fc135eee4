"""From a server's own account of itself to findings: evicted, or soon, not persistent, clock wrong. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from memkit.audit.finding import Finding
from memkit.audit.sampling import KeyFacts
from memkit.audit.server_info import Evidence
from memkit.config import Expectation
from memkit.render import duration

NEAR_FULL = 0.8
SKEW_MS = 2_000.0
"""Less is what NTP leaves and what a slow network hides."""


def server_findings(
    evidence: Evidence, keys: Sequence[KeyFacts], counters: Mapping[str, str], meant: Sequence[Expectation]
) -> list[Finding]:
    """Return what is wrong with the server as a whole. ``counters`` are INFO's at the end of the audit."""
    found = [
        _evicted(evidence, keys, counters) or _eviction_risk(evidence, keys),
        _persistence(evidence, keys),
        _skewed(evidence, keys, meant),
    ]
    return [finding for finding in found if finding]


def _evicted(evidence: Evidence, keys: Sequence[KeyFacts], counters: Mapping[str, str]) -> Finding | None:
    now = int(counters.get("evicted_keys") or evidence.number("evicted_keys") or 0)
    if not now or evidence.policy in (None, "noeviction"):
        return None
    rising = now > (evidence.number("evicted_keys") or 0)
    used, limit = _memory(evidence)
    expired = evidence.number("expired_keys") or 0
    return Finding(
        "evicted",
        prefix=None,
        keys=now,
        sampled=len(keys),
        message=f"Redis has evicted {now:,} keys for lack of memory, whatever their TTL ({evidence.policy})",
        confidence="proven",
        evidence=(
            f"evicted_keys {now:,} against expired_keys {expired:,} since the server started",
            f"evictions went on during the audit: {'yes' if rising else 'no'}",
            f"memory {used:,} of {limit:,} bytes" if limit else "no memory limit now",
        ),
        next="raise maxmemory, or keep sessions on a server of their own with maxmemory-policy noeviction",
    )


def _eviction_risk(evidence: Evidence, keys: Sequence[KeyFacts]) -> Finding | None:
    used, limit = _memory(evidence)
    policy = evidence.policy
    if not limit or used < NEAR_FULL * limit or policy in (None, "noeviction"):
        return None
    if str(policy).startswith("volatile") and keys and all(one.deadline_ms is None for one in keys):
        return None
    return Finding(
        "eviction_risk",
        prefix=None,
        keys=0,
        sampled=len(keys),
        message=f"memory is {used / limit:.0%} of maxmemory and {policy} will delete living sessions when it is full",
        confidence="proven",
        evidence=(f"used_memory {used:,}, maxmemory {limit:,}, maxmemory-policy {policy}, no key evicted yet",),
        next="raise maxmemory, or set maxmemory-policy noeviction so that writes fail loudly instead",
    )


def _memory(evidence: Evidence) -> tuple[int, int]:
    limit = evidence.number("maxmemory")
    if limit is None:
        limit = int(evidence.config.get("maxmemory") or 0)
    used = (evidence.number("used_memory") or 0) - (evidence.number("mem_not_counted_for_evict") or 0)
    return used, limit


def _persistence(evidence: Evidence, keys: Sequence[KeyFacts]) -> Finding | None:
    # A replica's own files protect nothing: what counts is its primary's.
    if evidence.is_replica or not evidence.info:
        return None
    why = _unsaved(evidence)
    if not why:
        return None
    return Finding(
        "persistence_risk",
        prefix=None,
        keys=0,
        sampled=len(keys),
        message=f"a restart or crash will lose sessions: {why}",
        confidence="proven",
        evidence=(
            f"aof_enabled {evidence.info.get('aof_enabled', '?')}, save points {evidence.config.get('save', '?')!r}, "
            f"rdb_last_bgsave_status {evidence.info.get('rdb_last_bgsave_status', '?')}",
        ),
        next="redis-cli CONFIG SET appendonly yes (and in redis.conf)",
    )


def _unsaved(evidence: Evidence) -> str | None:
    info = evidence.info
    aof = info.get("aof_enabled") == "1"
    if aof and info.get("aof_last_write_status", "ok") != "ok":
        return "the last write to the append-only file failed"
    if info.get("rdb_last_bgsave_status", "ok") != "ok" and not aof:
        return "the last RDB save failed"
    if not aof and evidence.config.get("save") == "":
        return "neither an append-only file nor RDB save points are on"
    return None


def _skewed(evidence: Evidence, keys: Sequence[KeyFacts], meant: Sequence[Expectation]) -> Finding | None:
    skew = evidence.skew_ms
    if abs(skew) < max(SKEW_MS, 3 * evidence.skew_error_ms) or _moved_on_purpose(evidence, keys, meant):
        return None
    way = "ahead of" if skew > 0 else "behind"
    return Finding(
        "clock_skew",
        prefix=None,
        keys=0,
        sampled=len(keys),
        message=f"the server's clock is {duration(abs(skew))} {way} this machine's: "
        "deadlines that clients compute are off by that",
        confidence="proven",
        evidence=(
            f"TIME against this machine's clock: {skew / 1000:+,.3f} s, give or take {evidence.skew_error_ms:.1f} ms",
        ),
        next="timedatectl on both machines; let NTP set the one that is wrong; use EXPIRE or SET EX, not EXPIREAT",
    )


def _moved_on_purpose(evidence: Evidence, keys: Sequence[KeyFacts], meant: Sequence[Expectation]) -> bool:
    """Whether memkit's time machine moved this clock while the keys were there: they are older than its last move."""
    moved = evidence.moved_by_ms
    if not moved or abs(evidence.skew_ms - moved) > SKEW_MS:
        return False
    oldest = _oldest_ms(evidence, keys, meant)
    before = evidence.moved_at_ms is not None and oldest < evidence.moved_at_ms - 2 * SKEW_MS
    return not keys or before or evidence.now_ms - oldest > abs(moved) / 2


def _oldest_ms(evidence: Evidence, keys: Sequence[KeyFacts], meant: Sequence[Expectation]) -> float:
    """Return the earliest time that keys tell of: a last touch, or the write that the expected TTL implies."""
    touched = [one.touched_ms for one in keys if one.touched_ms is not None]
    written = [at for one in meant if one.ttl_ms for at in _written_ms(evidence, one.of(keys), one, one.ttl_ms)]
    return min([evidence.now_ms, *touched, *written])


def _written_ms(evidence: Evidence, keys: Sequence[KeyFacts], meant: Expectation, ttl_ms: int) -> Iterator[int]:
    """Yield when keys were written, by their deadlines: surely, or as surely as no jitter and no client moved these."""
    lives = [(one.deadline_ms, one.set_ms or 0) for one in keys if one.deadline_ms is not None]
    over = sum(given > ttl_ms + SKEW_MS for _, given in lives)
    by_clients = any(evidence.calls.get(name) for name in ("expireat", "pexpireat"))
    exact = over <= 0.05 * len(lives) and not by_clients
    for deadline, given in lives:
        if exact or given < ttl_ms * (1 - meant.jitter) - SKEW_MS:
            yield deadline - ttl_ms


def skewed_ttl(evidence: Evidence, finding: Finding) -> Finding | None:
    """Return the clock's finding for TTLs that are off by exactly the clock's skew: clients compute the deadlines."""
    expected, observed = finding.expected_ttl_s, finding.observed_ttl_s
    if expected is None or observed is None or abs(evidence.skew_ms) < SKEW_MS or not evidence.deadlines_by_clients:
        return None
    if abs((expected - observed) * 1000 - evidence.skew_ms) > max(2_000.0, 0.002 * abs(evidence.skew_ms)):
        return None
    way = "ahead of" if evidence.skew_ms > 0 else "behind"
    return Finding(
        "clock_skew",
        prefix=finding.prefix,
        keys=finding.keys,
        sampled=finding.sampled,
        message=f"sessions under {finding.prefix} live {duration(observed * 1000)} instead of "
        f"{duration(expected * 1000)}: clients compute the deadlines, and the server's clock is "
        f"{duration(abs(evidence.skew_ms))} {way} theirs",
        confidence="likely",
        expected_ttl_s=expected,
        observed_ttl_s=observed,
        evidence=(
            *finding.evidence,
            f"TIME against this machine's clock: {evidence.skew_ms / 1000:+,.3f} s, just as much",
        ),
        next="let NTP set the clock that is wrong; set TTLs relative (EXPIRE, SET EX), not EXPIREAT",
    )
