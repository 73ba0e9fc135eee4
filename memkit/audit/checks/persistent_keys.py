"""Sessions without a TTL that should have one, since when or until when; hashes with fields that lost theirs. Pure."""

import math
from collections.abc import Sequence

from memkit.audit.checks.auxiliary_keys import FEWEST_SESSIONS, FLAG_BYTES, SIZED_KEYS, usual_bytes
from memkit.audit.checks.ttl_inference import DOUBT_NATS, LifetimeAnalysis
from memkit.audit.checks.ttl_peaks import FEWEST, SURE_NATS, TOGETHER_MS
from memkit.audit.context import AuditContext
from memkit.audit.finding import Finding, Since
from memkit.audit.key_shapes import Group, narrowest_prefix
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation
from memkit.render import counted, duration

QUIETER = 0.5
"""Accesses at less than half the former rate are reads of what was written before."""


def persistent_finding(expected: Expectation, sessions: Sequence[Group], context: AuditContext) -> Finding | None:
    """Return the finding of sessions without TTL; a lone key that all sessions share may be persistent."""
    groups = [group for group in sessions if len(group.members) > 1 or len(sessions) == 1]
    groups = [group for group in groups if any(one.deadline_ms is None for one in group.keys)]
    keys = [one for group in groups for one in group.keys if one.deadline_ms is None]
    volatile = [one for group in groups for one in group.keys if one.deadline_ms is not None]
    if 0 < len(keys) <= SIZED_KEYS and usual_bytes(volatile, context):
        # Beside sessions that are texts, an integer is a counter.
        sizes = context.value_bytes([one.key for one in keys])
        keys = [one for one in keys if sizes.get(one.key) != 0]
    if not keys:
        return None
    shapes = [f"{expected.prefix}{group.part}" for group in groups]
    like_sessions = any(_are_like_sessions(group, sessions, context) for group in groups)
    everything = [one for group in sessions for one in group.keys]
    prefix = narrowest_prefix([one.key for one in keys], [one.key for one in context.keys], expected.prefix)
    since = _since(expected, keys, everything, context) if like_sessions else None
    share = "all" if len(keys) == len(everything) else f"{len(keys):,} of {len(everything):,}"
    message = f"{share} keys of sessions matching {expected.pattern} have no TTL; expected {duration(expected.ttl_ms)}"
    evidence = [f"PTTL is -1 for {len(keys):,} of {len(context.keys):,} checked keys, such as {', '.join(shapes[:3])}"]
    if not like_sessions:
        evidence.append("no key of this shape and type has a TTL, so these may not be sessions")
    fields = [context.fields_without_ttl[one.key] for one in keys if one.key in context.fields_without_ttl]
    if fields:
        without, total = (sum(column) for column in zip(*fields, strict=True))
        evidence.append(
            f"{without:,} of {total:,} fields in {counted(len(fields), 'hash', 'hashes')} have no TTL; the others "
            "have one: HSET, HPERSIST and HGETEX PERSIST remove the TTL of a field"
        )
        message += f"; {counted(without, 'field has', 'fields have')} none"
    ways = "HSET after HEXPIRE, HPERSIST, HGETEX PERSIST" if fields else "SET without EX; EXPIRE before the key exists"
    step = f"find the write that leaves no TTL ({ways}; a crash before the TTL is set): memkit inspect URL KEY"
    if not like_sessions:
        step = f"memkit inspect URL KEY shows one; if these are no sessions: --expect '{shapes[0]}=never'"
    if since and since.bound == "until":
        step = "set a TTL on the remaining keys once: EXPIRE KEY SECONDS NX"
        evidence.append(f"every key written since {context.when(since.at_ms)} has a TTL: the fault has ended")
    return Finding.of(
        "no_ttl",
        expected,
        prefix=prefix,
        keys=len(keys),
        message=message + ("" if since is None else f", {context.since_text(since)}"),
        confidence="proven" if like_sessions else "possible",
        since=since,
        evidence=evidence,
        next=step,
    )


def _are_like_sessions(group: Group, sessions: Sequence[Group], context: AuditContext) -> bool:
    """Whether keys without TTL are surely sessions: some of their shape have a TTL, or there is no other shape.

    What shares no id with the sessions and is of another type, or no longer than a name, may be no session.
    """
    persistent = sum(one.deadline_ms is None for one in group.keys)
    if persistent < len(group.members) or len(sessions) == 1:
        return True
    others = [one for one in sessions if one is not group]
    ids = {member.session for one in others for member in one.members}
    alike = [one for one in others if one.kind == group.kind]
    own, *sizes = (usual_bytes(one.keys, context) or 0 for one in (group, *alike))
    # The name of a short session is half as long as the session: _is_tiny() takes such values for sessions, because a
    # loss must not be missed. Here they are no proof.
    tiny = group.kind == "string" and own <= FLAG_BYTES < min(sizes, default=0)
    unlike = (not alike or tiny) and ids.isdisjoint(member.session for member in group.members)
    return persistent >= FEWEST_SESSIONS and not unlike


def _since(
    expected: Expectation, keys: Sequence[KeyFacts], everything: Sequence[KeyFacts], context: AuditContext
) -> Since | None:
    accesses = sorted(one.touched_ms for one in keys if one.touched_ms is not None)
    if not accesses:
        return None
    analysis = LifetimeAnalysis(everything, expected, context.history)
    first, last = accesses[0], analysis.stopped_at()
    if last is not None and last <= first + TOGETHER_MS:
        return Since(last, "lower bound")
    ended = _ended(accesses, analysis, context.history.now_ms)
    return context.began_by(first) if ended is None else Since(ended, "until")


def _ended(accesses: Sequence[int], analysis: LifetimeAnalysis, now_ms: int) -> int | None:
    """Return when keys with a TTL began to be written, if hardly any key without one was accessed since."""
    exact = [one for one in analysis.right if one.known and abs(one.given - analysis.ttl) <= TOGETHER_MS]
    if len(exact) < FEWEST:
        return None
    began = min(one.accessed for one in exact)
    before, after = sum(one < began for one in accesses), sum(one >= began for one in accesses)
    if not before:
        return None
    end = max(now_ms, accesses[-1] + 1)  # keys are read later than the server's time is
    usual = (before + after) * (began - accesses[0]) / (end - accesses[0])
    # At one rate, a few keys are all before that time by chance, or one of many is long before the others.
    nats = before * math.log(before / usual) + (after * math.log(after / (before + after - usual)) if after else 0)
    fewer = after / max(end - began, 1) <= QUIETER * before / (began - accesses[0])
    # With some accesses after it, 3 in 100 mixes of keys with and without a TTL, written at random, look like an end.
    quiet = fewer and after < len(exact) and nats > (SURE_NATS if after else DOUBT_NATS)
    return round(began) if quiet else None
