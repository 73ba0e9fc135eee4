"""Keys that went by DEL, UNLINK or GETDEL before their deadline: whether they were sessions, as far as it shows. Pure.

The slow log and a second look name keys. The server's counters do not: locks, caches and one-time codes are deleted by
command everywhere, so calls alone are a suspicion only where nothing else explains them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from memkit.audit.finding import Finding
from memkit.audit.sampling import KeyFacts
from memkit.audit.server_info import DELETES, FLUSHES, Deletion, Evidence
from memkit.config import Expectation

LEAST_US_A_KEY = 0.7
A_LONG_CALL_US = 12.0
SHORT_MS = 3_600_000
MAKE_STRINGS = ("set", "setex", "psetex", "setnx", "mset", "msetnx", "getset")
MAKE_OTHERS = ("rpush", "lpush", "hset", "hmset", "hsetnx", "hsetex", "sadd", "zadd", "xadd", "json.set")


@dataclass(frozen=True, slots=True)
class Looked:
    """The keys that were looked at, of how many, and how many of them are sessions."""

    keys: Sequence[KeyFacts]
    of: int
    sessions: int

    @property
    def scale(self) -> float:
        """How many keys of the database stand behind each one that was looked at."""
        return self.of / len(self.keys) if self.keys else 0.0


def deleted_finding(
    evidence: Evidence, meant: Sequence[Expectation], vanished: Sequence[KeyFacts], looked: Looked
) -> Finding | str | None:
    """Return the finding of sessions that were deleted; a note, where keys were and it is not likely that of sessions.

    ``vanished``: sessions that were there at a first look and gone at the second.
    """
    if vanished:
        return _vanished(meant, looked.keys, vanished, evidence)
    logged = [one for one in evidence.deletions if _names(one, meant)]
    if logged:
        return _logged(meant, looked.keys, logged)
    return _counted(evidence, meant, looked)


def _names(deletion: Deletion, meant: Sequence[Expectation]) -> bool:
    if deletion.command in FLUSHES:
        return False
    return any(one.matches.fullmatch(key) for one in meant for key in deletion.keys)


def _vanished(
    meant: Sequence[Expectation], keys: Sequence[KeyFacts], vanished: Sequence[KeyFacts], evidence: Evidence
) -> Finding:
    prefix = next((one.prefix for one in meant if one.matches.fullmatch(vanished[0].key)), None)
    return Finding(
        "deleted", prefix=prefix, keys=len(vanished), sampled=len(keys),
        message=f"{len(vanished):,} keys under {prefix} disappeared during the audit, long before their deadline",
        confidence="proven",
        evidence=(
            "they were there at the first look and gone at the second; evicted_keys did not move",
            *(f"a client whose last command deletes: {client}" for client in evidence.deleters[:3]),
        ),
        next="redis-cli CLIENT LIST: whose cmd is del or unlink",
    )  # fmt: skip


def _logged(meant: Sequence[Expectation], keys: Sequence[KeyFacts], logged: Sequence[Deletion]) -> Finding:
    first = min(logged, key=lambda one: one.at_s)
    prefix = next(one.prefix for one in meant if any(one.matches.fullmatch(key) for key in first.keys))
    count = sum(len(one.keys) for one in logged)
    return Finding(
        "deleted", prefix=prefix, keys=count, sampled=len(keys),
        message=f"{first.command.upper()} deletes sessions under {prefix}, not their TTL: at least {count:,} keys",
        confidence="proven", since=datetime.fromtimestamp(first.at_s + 1, UTC), since_is="upper bound",
        evidence=tuple(f"slow log: {one.command} of {len(one.keys):,} keys by {one.client}" for one in logged[:3]),
        next="redis-cli SLOWLOG GET 128 and CLIENT LIST: who deletes",
    )  # fmt: skip


def _counted(evidence: Evidence, meant: Sequence[Expectation], looked: Looked) -> Finding | str | None:
    """Judge by commandstats alone, which does not say whose keys: a suspicion, where it is large and unexplained."""
    own = [one for expectation in meant for one in expectation.of(looked.keys)]
    strings = not own or sum(one.kind == "string" for one in own) >= 0.3 * len(own)
    # GETDEL is refused for all but strings.
    calls = {name: evidence.calls.get(name, 0) for name in DELETES if strings or name != "getdel"}
    count = _deleted_keys(evidence, calls)
    enough = max(15, 0.15 * looked.sessions)
    if not meant or count < enough:
        return None
    why = _explained(evidence, sum(calls.values()), count, looked)
    if not strings:
        covered = _strings_gone(evidence, meant, own, looked)
        why = why or ("as many strings were set that are not there any more" if count - covered < enough else None)
        count = max(0, count - covered)
    elif own and not why and _of_bystanders(evidence, meant, looked) >= count:
        why = "short-lived strings beside the sessions come and go as often"
    said = ", ".join(f"{name} {number:,}" for name, number in calls.items() if number)
    if why:
        return f"keys were deleted by command ({said}); whose, the server does not tell: {why}"
    return _suspicion(evidence, meant, looked, count, said)


def _explained(evidence: Evidence, calls: int, count: int, looked: Looked) -> str | None:
    if calls <= evidence.calls.get("evalsha", 0) + evidence.calls.get("eval", 0):
        return "as many scripts were called, and locks are released by a script that calls DEL"
    if count > 50 * max(looked.sessions, 200):
        return "far more than there are sessions"
    return None


def _strings_gone(evidence: Evidence, meant: Sequence[Expectation], own: Sequence[KeyFacts], looked: Looked) -> int:
    """Return how many strings were set that are not there any more and did not expire, where sessions are no strings.

    A string that is set twice counts twice, so this is an upper bound.
    """
    living = looked.scale * sum(one.kind == "string" for one in looked.keys)
    expired = evidence.number("expired_keys") or 0
    if _near_their_end(meant, own):
        # Sessions expire, too: at most as many as were written and are not there any more.
        others = sum(evidence.calls.get(name, 0) for name in MAKE_OTHERS)
        expired = max(0, expired - max(0, round(others - looked.scale * len(looked.keys) + living)))
    return max(0, round(sum(evidence.calls.get(name, 0) for name in MAKE_STRINGS) - living - expired))


def _near_their_end(meant: Sequence[Expectation], own: Sequence[KeyFacts]) -> bool:
    ttl = max((one.ttl_ms or 0 for one in meant), default=0)
    return any(one.left_ms is not None and one.left_ms < 0.1 * ttl for one in own)


def _of_bystanders(evidence: Evidence, meant: Sequence[Expectation], looked: Looked) -> float:
    """Return how many short-lived strings outside the patterns came and went since the start, by those that are there.

    As many as there are come anew within one life.
    """
    uptime_ms = 1000 * (evidence.number("uptime_in_seconds") or 0)
    beside = (one for one in looked.keys if one.kind == "string" and not any(
        expectation.matches.fullmatch(one.key) for expectation in meant
    ))  # fmt: skip
    lives = (one.set_ms for one in beside)
    return looked.scale * sum(uptime_ms / max(life, 1_000) for life in lives if life is not None and life <= SHORT_MS)


def _suspicion(evidence: Evidence, meant: Sequence[Expectation], looked: Looked, count: int, said: str) -> Finding:
    expired = evidence.info.get("expired_keys", "?")
    return Finding(
        "deleted",
        prefix=meant[0].prefix if len(meant) == 1 else None,
        keys=count,
        sampled=len(looked.keys),
        message=f"commands delete keys before their TTL ends: about {count:,}; {looked.sessions:,} sessions exist",
        confidence="possible",
        evidence=(
            f"INFO commandstats: {said}; expired_keys {expired}, evicted_keys {evidence.info.get('evicted_keys', '?')}",
            "the server does not count by prefix: the deleted keys may be others",
        ),
        next="redis-cli CLIENT LIST: whose cmd is del or unlink; then search that application for it",
    )


def _deleted_keys(evidence: Evidence, named: Mapping[str, int]) -> int:
    """Return how many keys DEL and UNLINK took away, as near as can be told.

    One call can name many keys, which shows in the time it took; or none that was there. The server counts changes
    since its last save, and those that no known write made are an upper bound.
    """
    took_us, calls = 0.0, sum(named.values())
    for name in named:
        fields = dict(pair.partition("=")[::2] for pair in evidence.info.get(f"cmdstat_{name}", "").split(","))
        took_us += float(fields.get("usec", 0) or 0)
    many = int(took_us / LEAST_US_A_KEY) if calls and took_us / calls > A_LONG_CALL_US else 0
    unexplained = evidence.unexplained_changes
    return max(calls, many) if unexplained is None and calls else min(max(calls, many), unexplained or 0)
