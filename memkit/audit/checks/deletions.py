"""Keys that DEL, UNLINK or GETDEL removed before their deadline: whether they were sessions, as far as it shows. Pure.

The slow log and a second look name keys. The server's counters do not: locks, caches and one-time codes are deleted by
command everywhere, so calls alone are a suspicion only if nothing else explains them.
"""

from collections.abc import Sequence

from memkit.audit.checks.ttl_inference import SOME
from memkit.audit.checks.ttl_peaks import FEWEST
from memkit.audit.context import AuditContext
from memkit.audit.finding import Confidence, Finding, Since
from memkit.audit.sampling import KeyFacts
from memkit.audit.server_info import DELETES, STRING_WRITES, ServerFacts
from memkit.config import Expectation
from memkit.formats import deletes_own_keys, is_housekeeping
from memkit.readonly.values import to_name
from memkit.render import counted

LEAST_US_A_KEY = 0.1
"""The least time that DEL takes for a key: an integer, in a call with 1,000 keys (Redis 6.2 to 8.2 and Valkey 9)."""
LONG_CALL_US = 12.0
"""A call that names one small key takes less on average."""
SHORT_MS = 3_600_000
FEWEST_DELETED = 15
DELETED_SHARE = 0.15
"""Users delete some of their sessions; fewer deletions than this share of what exists are no incident."""
STRING_SHARE = 0.3
FAR_MORE = 50
SMALLEST_STORE = 200
"""Deletions of 50 times as many keys as there are sessions are a queue or a cache."""
MAKE_OTHERS = ("rpush", "lpush", "hset", "hmset", "hsetnx", "hsetex", "sadd", "zadd", "xadd", "json.set")


def deleted_finding(
    servers: Sequence[ServerFacts],
    expectations: Sequence[Expectation],
    vanished: Sequence[KeyFacts],
    context: AuditContext,
    *,
    looked: int,
    of: int,
    sessions: int,
) -> tuple[list[Finding], list[str]]:
    """Return the finding of sessions that were deleted; or a note if keys were and sessions are unlikely.

    Args:
        servers: The report of each server; of a cluster the counters of the first one are judged.
        expectations: What is expected.
        vanished: Sessions that existed at a first look and no longer at the second.
        context: The keys.
        looked: At how many sessions there was a second look.
        of: How many keys the database has.
        sessions: How many keys of sessions were looked at.
    """
    if vanished:
        return [_vanished_finding(servers, expectations, vanished, looked=looked)], []
    if found := _logged_finding(servers, expectations):
        return [found], []
    scale = of / len(context.keys) if context.keys else 0.0
    return _counted(servers[0], expectations, context, scale=scale, sessions=sessions)


def _vanished_finding(
    servers: Sequence[ServerFacts], expectations: Sequence[Expectation], vanished: Sequence[KeyFacts], *, looked: int
) -> Finding:
    prefix = next((one.prefix for one in expectations if one.matches.fullmatch(vanished[0].key)), None)
    deleters = [one.name for server in servers for one in server.clients if one.last_command in DELETES]
    on_replica = any(server.is_replica for server in servers)
    evicted = "a replica does not count what its primary evicts" if on_replica else "evicted_keys did not change"
    # In the seconds of an audit fewer are usual: a twentieth of all ten-minute sessions is ended in half a minute.
    many = len(vanished) >= max(FEWEST, SOME * looked)
    return Finding.of(
        "deleted",
        prefix=prefix,
        keys=len(vanished),
        message=f"{counted(len(vanished), 'key')} matching {prefix}* disappeared during the audit, long before their "
        "deadline",
        confidence="proven" if many and not on_replica else "possible",
        evidence=(
            f"they existed at the first look and no longer at the second; {evicted}",
            *([] if many else ["users may have ended so few of their sessions themselves"]),
            *(f"a client with DEL, UNLINK or GETDEL as its last command: {name}" for name in deleters[:3]),
        ),
        next="on this server, CLIENT LIST shows the clients with cmd=del or cmd=unlink",
    )


def _logged_finding(servers: Sequence[ServerFacts], expectations: Sequence[Expectation]) -> Finding | None:
    named = [
        (one, key)
        for server in servers
        for one in server.slow_commands
        for key in one.keys
        # Keys that expire or are evicted on the primary are deleted on its replicas, each with a command of its own.
        if one.command in DELETES and (len(one.keys) > 1 or not server.is_replica)
    ]
    named = [(one, key) for one, key in named if not is_housekeeping(to_name(key))]
    prefixes = {one: each.prefix for each in expectations for one, key in named if each.matches.fullmatch(key)}
    logged = list(prefixes)
    if not logged:
        return None
    first = min(logged, key=lambda one: one.at_s)
    count = sum(len(one.keys) for one in logged)
    # They may have been logged when a server was a replica.
    surest: Confidence = "likely" if any(server.may_have_synced for server in servers) else "proven"
    many = count >= FEWEST_DELETED or any(len(one.keys) >= FEWEST for one in logged)
    return Finding.of(
        "deleted",
        prefix=prefixes[first],
        keys=count,
        message=f"{first.command.upper()} ended sessions matching {prefixes[first]}* before their TTL did: at least "
        f"{counted(count, 'key')}",
        confidence=surest if many else "possible",  # a user may have ended a large session
        since=Since(1_000 * (first.at_s + 1), "upper bound"),
        evidence=tuple(
            f"slow log: {one.command} of {counted(len(one.keys), 'key')} by {one.client}" for one in logged[:3]
        ),
        next="on this server, SLOWLOG GET 128 and CLIENT LIST name the client that deletes",
    )


def _counted(
    server: ServerFacts, expectations: Sequence[Expectation], context: AuditContext, *, scale: float, sessions: int
) -> tuple[list[Finding], list[str]]:
    """Judge by commandstats alone, which does not name keys: a suspicion if the count is large and unexplained."""
    own = [one for expected in expectations for one in expected.matching(context.keys)]
    strings = not own or sum(one.kind == "string" for one in own) >= STRING_SHARE * len(own)
    # GETDEL is refused for all but strings.
    calls = {name: server.called(name) for name in DELETES if strings or name != "getdel"}
    count = _deleted_keys(server, calls)
    enough = max(FEWEST_DELETED, DELETED_SHARE * sessions)
    if not expectations or count < enough:
        return [], []
    shown = ", ".join(f"{name} {number:,}" for name, number in calls.items() if number)
    why = None
    if server.may_have_synced:
        return [], [f"keys were removed ({shown}): a replica counts those that expired on its primary, too"]
    if sum(calls.values()) <= server.called("evalsha", "eval"):
        why = "as many scripts were called, and locks are released by a script that calls DEL"
    elif any(deletes_own_keys(to_name(one.key)) for one in own):
        why = "LangGraph's shallow savers delete their old writes"
    elif count > FAR_MORE * max(sessions, SMALLEST_STORE):
        why = "they are far more than there are sessions"
    elif not strings:
        covered = _strings_removed(server, expectations, own, context, scale=scale)
        why = "as many strings were set that no longer exist" if count - covered < enough else None
        count = max(0, count - covered)
    elif own and _short_strings(server, context, scale=scale) >= count:
        why = "short-lived strings beside the sessions are set and deleted as often"
    if why:
        return [], [f"keys were deleted by command ({shown}), probably not sessions: {why}"]
    many = "up to" if count <= sum(calls.values()) else "some large values, or up to"
    finding = Finding.of(
        "deleted",
        prefix=expectations[0].prefix if len(expectations) == 1 else None,
        keys=count,
        message=f"{many} {count:,} keys were deleted by command before their deadline; {sessions:,} session keys exist",
        confidence="possible",
        evidence=(
            f"INFO commandstats: {shown}; expired_keys {server.info.get('expired_keys', '?')}, evicted_keys "
            f"{server.info.get('evicted_keys', '?')}",
            "the server counts calls, not by prefix and not whether the key existed: these may be other keys, or none",
        ),
        next="CLIENT LIST on this server shows clients with cmd=del or cmd=unlink; then search that application for it",
    )
    return [finding], []


def _strings_removed(
    server: ServerFacts,
    expectations: Sequence[Expectation],
    own: Sequence[KeyFacts],
    context: AuditContext,
    *,
    scale: float,
) -> int:
    """Return how many strings were set that no longer exist and did not expire, if sessions are no strings.

    A string that is set twice counts twice, so this is an upper bound.
    """
    existing = scale * sum(one.kind == "string" for one in context.keys)
    expired = server.number("expired_keys") or 0
    ttl_ms = max((one.ttl_ms or 0 for one in expectations), default=0)
    if any(one.left_ms is not None and one.left_ms < SOME * ttl_ms for one in own):
        # Sessions expire, too: at most as many as were written and no longer exist.
        others = server.called(*MAKE_OTHERS)
        expired = max(0, expired - max(0, round(others - scale * len(context.keys) + existing)))
    return max(0, round(server.called(*STRING_WRITES) - existing - expired))


def _short_strings(server: ServerFacts, context: AuditContext, *, scale: float) -> float:
    """Return how many short-lived strings outside the patterns existed since the start, by those that exist now.

    As many as exist are set anew within one TTL.
    """
    uptime_ms = 1000 * (server.number("uptime_in_seconds") or 0)
    ttls = [one.ttl_at_last_access_ms for one in context.other_keys if one.kind == "string"]
    return scale * sum(uptime_ms / max(ttl, 1_000) for ttl in ttls if ttl is not None and ttl <= SHORT_MS)


def _deleted_keys(server: ServerFacts, calls: dict[str, int]) -> int:
    """Return how many keys DEL and UNLINK removed, as near as the counters allow.

    One call can name many keys, which shows in the time it took; or none that existed. The server counts changes since
    its last save, and those that no known write made are an upper bound.
    """
    took_us, number = 0.0, sum(calls.values())
    for name in calls:
        took_us += float(server.fields(f"cmdstat_{name}").get("usec", 0) or 0)
    many = int(took_us / LEAST_US_A_KEY) if number and took_us / number > LONG_CALL_US else 0
    unexplained = server.unexplained_changes
    return max(number, many) if unexplained is None and number else min(max(number, many), unexplained or 0)
