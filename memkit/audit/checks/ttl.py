"""From the keys of one expectation to findings: TTLs that are too short, too long or in another unit. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from memkit.audit.checks.auxiliary_keys import (
    FEWEST_SESSIONS,
    auxiliary_groups,
    is_other_shape,
    longest_given,
    usual_bytes,
)
from memkit.audit.checks.mixed_ttl import MixedTtl, mixed_ttl
from memkit.audit.checks.persistent_keys import persistent_finding
from memkit.audit.checks.prefixes import SHOWN_PREFIXES, missing, moved, new_shape, odd_names, ttls_given
from memkit.audit.checks.server import SKEW_MS
from memkit.audit.checks.shared_key import shared_key
from memkit.audit.checks.ttl_inference import (
    EXACT_SHARE,
    HOUR_MS,
    NEARLY_ALL,
    ONE_WRITE_MS,
    SOME,
    LifetimeAnalysis,
    TtlAnomaly,
    analyses_of,
    common_ttl,
    lifetimes_of,
    rounded,
    spread,
)
from memkit.audit.checks.ttl_peaks import COMMON_SHARE, FEWEST, IDLE_GRAIN_MS, TOGETHER_MS
from memkit.audit.context import AuditContext
from memkit.audit.finding import Finding, Since
from memkit.audit.key_shapes import Group, Member, by_prefix, groups_of, narrowest_prefix, sessions_of
from memkit.audit.sampling import KeyFacts
from memkit.audit.server_info import ABSOLUTE_DEADLINES, DELETES, RELATIVE_DEADLINES, RENEWALS, RESTORES, STRING_WRITES
from memkit.config import SPRING_MARGIN_MS, Expectation
from memkit.formats.model import ZONE_MS
from memkit.policy import ExpiryPolicy, ttl_text
from memkit.readonly.values import to_bytes
from memkit.render import counted, duration

LOOKED_UP = 200
"""Of a sample's sessions so many have their other parts looked up: enough for a share to 10 %."""
MOST_SHAPES = 10
"""Of so many shapes of names, the largest, missed parts are looked up: 18,000 keys at most."""
INT_MAX, UINT_MAX = 2**31 - 1, 2**32 - 1
"""24.9 and 49.7 days in milliseconds: what an ``int`` of Java or C and an unsigned one hold."""
HALF_HOUR_MS = HOUR_MS // 2
"""Every time zone in use but three is a multiple of it away from UTC."""
SOON = 0.05
"""Sessions with less than this share of the TTL left expire soon."""
RENEWED_TOGETHER = 0.05
"""All TTLs renewed within this share of the TTL: each key of steady traffic has that chance."""
FEWEST_RENEWED, RENEWALS_OF_A_JOB = 20, 2
"""A job that has run for two TTLs has renewed each key twice; somebody who renews all keys by hand does so once."""
HEARTBEAT_TTL_MS = HOUR_MS
"""Heartbeats renew TTLs of seconds to minutes (Socket.IO: 25 s); those of more than an hour need none."""
PAUSE_CHANCE = 0.003
"""Highest chance of a pause that shows that a shape of names is no longer written: eight hours of 7 d with 120 keys."""
SHOWN_JITTER = 0.005
"""A smaller jitter would be printed as 0%."""
LONG_COPY = 0.2
"""A script that copies sessions to another server takes less than this share of their TTL."""


@dataclass
class Diagnosis:
    """The result for one expectation.

    Args:
        expected: The expectation.
        findings: What is wrong.
        notes: What was left out, and facts that are no findings.
        sessions: How many keys of sessions were looked at.
        reached: How many of them were seen to have been given the expected TTL.
        ignored: Groups of keys that are no sessions.
        ignored_patterns: The patterns of names that no session among these keys has.
        keys: The others; the audit fills it in. A key belongs to the first expectation that it matches.
        unexplained: Why these keys cannot be called healthy although nothing is wrong for sure.
    """

    expected: Expectation
    findings: list[Finding]
    notes: list[str] = field(default_factory=list)
    sessions: int = 0
    reached: int = 0
    ignored: Sequence[Group] = ()
    ignored_patterns: Sequence[str] = ()
    unexplained: str | None = None
    keys: Sequence[KeyFacts] = ()


def diagnose(expected: Expectation, keys: Sequence[KeyFacts], context: AuditContext) -> Diagnosis:
    """Return what is wrong with the keys of one pattern, or that it has none."""
    odd = odd_names(expected, keys, context)
    if not keys:
        return Diagnosis(expected, [odd] if odd else missing(expected, context))
    groups = groups_of(keys, expected.prefix)
    if expected.ttl_ms is not None:
        expected, layout_note = _with_known_layout(expected, groups)
        _add_missed_siblings(groups, expected, context)
    ignored = auxiliary_groups(expected, groups, context)
    groups = [group for group in groups if group not in ignored]
    names = odd or moved(expected, keys, context)
    if expected.ttl_ms is None:
        found = [_unwanted_deadlines(expected, groups, context), names]
        return _diagnosis(expected, groups, ignored, found, context)
    mixed = mixed_ttl(expected, list(sessions_of(groups)))
    anomalies, short_groups = _anomalies(expected, groups, context)
    ignored += [group for group, _ in short_groups]
    groups = [group for group in groups if group not in ignored]
    analyses = analyses_of([one for group in groups for one in group.keys], expected, context.history)
    found = [
        *(_ttl_finding(expected, group, anomaly, context) for group, anomaly in _merged(anomalies, mixed)),
        persistent_finding(expected, groups, context),
        mixed.finding,
        names,
        _persistent_renewal(expected, analyses[-1], context),
        None if anomalies or mixed.finding else _unrenewed(expected, analyses[0], context),
    ]
    diagnosis = _diagnosis(expected, groups, ignored, found, context)
    if not diagnosis.findings:
        doubts = (*(one.unexplained() for one in analyses), _not_written(analyses[-1], context))
        diagnosis.unexplained = next(filter(None, doubts), None)
    diagnosis.reached = sum(len(one.reached) for one in analyses)
    diagnosis.notes += [layout_note] if layout_note else []
    unseen = [duration(one.ttl) for one in analyses if not one.reached] if diagnosis.reached else []
    diagnosis.notes += [f"no key matching {expected.pattern} shows a TTL of {ttl}" for ttl in unseen]
    too_long = any(one.kind == "long" for _, one in anomalies)
    healthy = bool(diagnosis.reached) and not diagnosis.findings and not diagnosis.unexplained
    # The idle times of a replica begin with the copy from its primary, those of RESTORE with that command.
    are_copies = context.server.may_have_synced or context.server.called(*RESTORES)
    are_reads = healthy and context.history.idle_known and not are_copies
    diagnosis.notes += _notes(expected, analyses[-1], too_long=too_long, are_reads=are_reads)
    return diagnosis


def _diagnosis(
    expected: Expectation,
    groups: Sequence[Group],
    ignored: Sequence[Group],
    found: Sequence[Finding | None],
    context: AuditContext,
) -> Diagnosis:
    """Return what was found of these groups; if nothing was, what only then is looked for."""
    findings = [one for one in found if one]
    if not findings and (shape := new_shape(expected, groups, context)):
        findings.append(shape)
    if not findings and expected.ttl_ms is not None:
        findings += _field_findings(expected, context)
    keys = [one for group in groups for one in group.keys]
    if shared := shared_key(expected, groups):
        findings.append(shared)
    parts = {group.part for group in ignored} - {group.part for group in groups}
    return Diagnosis(
        expected,
        findings,
        [_ignored(expected, group, apart=group.part in parts) for group in ignored],
        len(keys),
        sum(one.deadline_ms is None for one in keys),
        ignored,
        [f"{expected.prefix}{part}" for part in sorted(parts)],
    )


def _field_findings(expected: Expectation, context: AuditContext) -> list[Finding]:
    """Return the findings of fields that end before their hash; these may have TTLs of their own, such as a lock."""
    fields = expected.matching(context.first_fields)
    group = Group("*", "hash", [Member(one, "", "*") for one in fields])
    anomalies = LifetimeAnalysis(fields, expected, context.history).anomalies()
    found = [_ttl_finding(expected, group, one, context) for one in anomalies]
    return [replace(one, message=f"fields of {one.message}", confidence="possible") for one in found]


def _notes(expected: Expectation, analysis: LifetimeAnalysis, *, too_long: bool, are_reads: bool) -> list[str]:
    """Return notes of longer TTLs that are no finding, and of sessions that are read and will expire soon.

    ``are_reads`` is whether an access without a renewal is surely a read.
    """
    notes = []
    if analysis.long and not too_long:
        many, longest = counted(len(analysis.long), "key"), duration(max(one.left for one in analysis.long))
        notes.append(f"{many} matching {expected.pattern} have up to {longest} left, more than expected")
    soon = [one.left for one in analysis.short if are_reads and one.left < SOON * analysis.ttl]
    reads = analysis.history.reads
    read_enough = reads is None or reads >= len(soon)
    if soon and read_enough and expected.policy.kind == "sliding" and not expected.policy.refresh_on_read:
        read = f"the last access of {counted(len(soon), 'key')} matching {expected.pattern} was a read"
        notes.append(f"reads do not renew the TTL: {read}, and at most {duration(max(soon))} is left")
    return notes


def _not_written(analysis: LifetimeAnalysis, context: AuditContext) -> str | None:
    """Return why sessions that have not been given the TTL for long may be written to another database, or with less.

    A shorter TTL shows only by idle times if many old sessions have as little left.
    """
    last, others = analysis.stopped_at(), context.server.databases.values()
    if last is None:
        return None
    if sum(one.get("expires", 0) > 0 for one in others) > 1:
        return f"no key was written since {context.when(last)}, while another database has keys with a TTL"
    if context.history.idle_known or all(one.left >= analysis.floor for one in analysis.all):
        return None
    ttl = duration(analysis.ttl)
    return f"no key was given a TTL of {ttl} since {context.when(last)}; without idle times, shorter ones may not show"


def _ignored(expected: Expectation, group: Group, *, apart: bool) -> str:
    """Return the note of ignored keys. ``apart``: whether an expectation can name them without naming sessions."""
    volatile = [one for one in group.keys if one.deadline_ms is not None]
    longest = rounded(longest_given(volatile))
    given = f"have a TTL of at most {duration(longest)}" if volatile else "have no TTL"
    many, shape = counted(len(group.members), "key"), f"{expected.prefix}{group.part}"
    ttl = ttl_text(round(longest)) if volatile else "never"
    return (
        f"ignored {many} matching {shape}: they {given}, and their type, size or time of writing differs from that of "
        "sessions" + (f"; to check them: --expect '{shape}={ttl}'" if apart else "")
    )


def _with_known_layout(expected: Expectation, groups: Sequence[Group]) -> tuple[Expectation, str | None]:
    """Return the expectation with the TTLs that Spring Session's layout gives on purpose, if these keys are its."""
    hashes = {group.part for group in groups if group.kind == "hash"}
    strings = [group.part for group in groups if group.kind == "string"]
    markers = [part.replace("expires:", "") for part in strings if "expires:" in part]
    if hashes.isdisjoint(markers):
        return expected, None
    note = f"Spring Session keeps a session's hash {duration(SPRING_MARGIN_MS)} longer than its expires key on purpose"
    return expected.of_spring_session(), note


def _anomalies(
    expected: Expectation, sessions: Sequence[Group], context: AuditContext
) -> tuple[list[tuple[Group, TtlAnomaly]], list[tuple[Group, TtlAnomaly]]]:
    """Return what is wrong with each shape of key, and the shapes that were always short and may be no sessions."""
    found: list[tuple[Group, TtlAnomaly]] = []
    healthy: list[tuple[Group, LifetimeAnalysis]] = []
    all_short: list[tuple[Group, TtlAnomaly]] = []
    for group in sessions:
        analyses = analyses_of(group.keys, expected, context.history)
        anomalies = [one for analysis in analyses for one in analysis.anomalies()]
        anomalies = anomalies or _off_by_clock(expected, analyses[-1], context)
        right = any(analysis.right for analysis in analyses)
        # Of sessions that were all read, half of the TTL that is left shows that not all are given a short one.
        longer = right or any(2 * one.left > analyses[-1].ttl for one in analyses[-1].all)
        if longer and not any(one.kind == "short" for one in anomalies):
            healthy.append((group, analyses[-1]))
        volatile = sum(len(analysis.all) for analysis in analyses)
        for one in anomalies:
            alone = one.kind == "short" and not right and one.keys >= NEARLY_ALL * volatile
            (all_short if alone else found).append((group, one))
    if not healthy:
        return found + all_short, []
    ids = {member.session for group, _ in healthy for member in group.members}
    others = []
    for group, one in all_short:
        # Of a sample's keys the siblings of the first LOOKED_UP were looked up.
        looked = group.members[:LOOKED_UP]
        if sum(member.session in ids for member in looked) > COMMON_SHARE * len(looked):
            found.append((group, one))
        elif group.part in {each.part for each, _ in healthy}:
            like = "their names have the shape of the sessions with the expected TTL, and their type is another"
            found.append((group, replace(one, confidence="possible", reasons=(*one.reasons, like))))
        elif is_other_shape(group, [each for each, _ in healthy], context):
            found.append((group, _as_new_shape(one, [each for _, each in healthy], context.history.now_ms)))
        else:
            others.append((group, one))
    return found, others


def _as_new_shape(anomaly: TtlAnomaly, healthy: Sequence[LifetimeAnalysis], now_ms: int) -> TtlAnomaly:
    """Return the anomaly of sessions of a new shape: likely if the old one is not written since."""
    last = max(one.last_write(one.within) or 0 for one in healthy)
    like = "their type and size are those of the sessions with the expected TTL, and they share no ids with these"
    first = anomaly.first_seen_ms or 0
    # With few sessions, a pause of a day or two is usual.
    chance = max(0.0, 1 - (now_ms - last) / healthy[-1].ttl) ** sum(len(one.within) for one in healthy)
    few = anomaly.keys < FEWEST_SESSIONS or chance > PAUSE_CHANCE
    if few or last > first + TOGETHER_MS:
        return replace(anomaly, confidence="possible", reasons=(*anomaly.reasons, like))
    reasons = (*anomaly.reasons, like, "the other shape is not written since")
    confidence = anomaly.confidence if anomaly.confidence == "possible" else "likely"
    return replace(anomaly, confidence=confidence, since=Since(last, "lower bound"), reasons=reasons, still_expected=0)


def _merged(anomalies: Sequence[tuple[Group, TtlAnomaly]], mixed: MixedTtl) -> Iterator[tuple[Group, TtlAnomaly]]:
    """Yield one anomaly a kind: the largest group's, with all keys counted; without those that mixed TTLs explain."""
    for kind in ("short", "long"):
        own = [one for one in anomalies if one[1].kind == kind and not (kind == "short" and mixed.explains(one[0]))]
        if own:
            group, largest = max(own, key=lambda one: one[1].keys)
            yield group, replace(largest, keys=sum(one.keys for _, one in own))


def _ttl_finding(expected: Expectation, group: Group, anomaly: TtlAnomaly, context: AuditContext) -> Finding:
    expected_ms = expected.ttl_ms or 0
    affected = [one.key for one in group.keys if _is_affected(one, anomaly)]
    exact_ms, unit = _unit_mistake(anomaly, expected_ms, context)
    anomaly = replace(anomaly, ttl_ms=exact_ms)
    clock = None if unit or anomaly.jitter else _other_clock(expected, anomaly.ttl_ms, context)
    unit = clock[1] if clock else unit
    both = anomaly.still_expected >= max(FEWEST, SOME * anomaly.keys)
    # A factor of two TTLs that are given at the same time, such as an hour and a day, may be on purpose.
    cause = "unit_mistake" if unit and not both else f"ttl_too_{anomaly.kind}"
    cause = clock[0] if clock else "two_ttls" if both and anomaly.kind == "short" else cause
    prefix = narrowest_prefix(affected, [one.key for one in context.keys], expected.prefix)
    of_all = len(affected) == len(group.keys) and prefix == expected.prefix and not anomaly.jitter
    given, wanted = _given(anomaly, context), _ttls(expected)
    since = "" if anomaly.since is None else f", {context.since_text(anomaly.since)}"
    verb = "got" if anomaly.since and anomaly.since.bound == "until" else "get"
    message = f"sessions matching {prefix}* {verb} a TTL of {given} instead of {wanted}{since}"
    if both:
        message = f"sessions matching {prefix}* get TTLs of {given} and {wanted} at the same time; expected {wanted}"
    evidence = _ttl_evidence(expected, anomaly, context, both=both)
    if clock:
        calls, skew_s = context.server.called(*ABSOLUTE_DEADLINES), context.server.skew_ms / 1000
        evidence.append(f"EXPIREAT or PEXPIREAT was called {counted(calls, 'time')}: clients compute the deadlines")
        evidence += [f"TIME against this machine's clock: {skew_s:+,.3f} s"] if cause == "clock_skew" else []
    return Finding.of(
        cause,
        expected,
        prefix=prefix,
        keys=anomaly.keys,
        message=message + (f": {unit}" if unit else ""),
        confidence="likely" if cause == "clock_skew" and anomaly.confidence == "proven" else anomaly.confidence,
        observed_ms=anomaly.ttl_ms,
        since=anomaly.since,
        evidence=(*evidence, *([unit] if unit else [])),
        next="let NTP set the clocks and compute deadlines in UTC, or set TTLs relative (EXPIRE, SET EX)"
        if clock
        else _next_for_ttl(expected, anomaly, both=both, of_all=of_all),
    )


def _ttl_evidence(expected: Expectation, anomaly: TtlAnomaly, context: AuditContext, *, both: bool) -> list[str]:
    """Return what was seen of these keys. ``both``: the expected TTL is given at the same time."""
    given, wanted = _given(anomaly, context), _ttls(expected)
    spread = f", varying by up to {anomaly.jitter:.0%}" if anomaly.jitter >= SHOWN_JITTER else ""
    evidence = [
        *anomaly.reasons[:1],
        f"{anomaly.keys:,} of {len(context.keys):,} checked keys got a TTL of {given}{spread}",
        *anomaly.reasons[1:],
    ]
    if both:
        evidence.append(
            f"{anomaly.still_expected:,} keys got a TTL of {wanted} after the first of these was written: two kinds of "
            "writers or of sessions, not a release"
        )
        names = [one.name for one in context.server.clients if one.last_command in RENEWALS]
        evidence += [f"clients with a last command that can set a TTL: {', '.join(names[:5])}"] if names else []
    elif anomaly.since and anomaly.since.bound == "lower bound":
        evidence.append(f"the last write that set a TTL of {wanted} was {context.when(anomaly.since.at_ms)}")
    if anomaly.first_seen_ms is not None:
        evidence.append(f"the oldest of them that still exists was written {context.when(anomaly.first_seen_ms)}")
    return evidence


def _given(anomaly: TtlAnomaly, context: AuditContext) -> str:
    return duration(anomaly.ttl_ms) + ("" if context.history.idle_known else " or more")


def _ttls(expected: Expectation) -> str:
    return " or ".join(map(duration, expected.ttls_ms))


def _is_affected(one: KeyFacts, anomaly: TtlAnomaly) -> bool:
    over = None if one.ttl_at_last_access_ms is None else one.ttl_at_last_access_ms - anomaly.ttl_ms
    most = anomaly.jitter * anomaly.ttl_ms + TOGETHER_MS
    return over is not None and over >= -most and (over <= most or anomaly.kind == "long")


def _unit_mistake(anomaly: TtlAnomaly, expected_ms: int, context: AuditContext) -> tuple[float, str | None]:
    """Return the TTL, exactly if a unit mistake explains it, and that mistake."""
    if mistake := anomaly.unit_mistake(expected_ms):
        return mistake
    ttl_ms = anomaly.ttl_ms if anomaly.jitter else rounded(anomaly.ttl_ms)
    wrapped_ms = expected_ms % (UINT_MAX + 1)
    for held_ms, how in ((wrapped_ms, "overflow"), (INT_MAX, "are cut to"), (UINT_MAX, "are cut to")):
        if held_ms < expected_ms and abs(anomaly.ttl_ms - held_ms) <= TOGETHER_MS and not anomaly.jitter:
            left = f"a 32-bit integer, which leaves {held_ms:,}"
            return held_ms, f"the expected {expected_ms:,} milliseconds {how} {left}"
    now_s, given = context.history.now_ms / 1000, "a point in time was given as a duration (EXPIREAT, EXAT)"
    for unit, size in (("seconds", 1_000), ("milliseconds", 1_000_000)):
        if abs(ttl_ms / size - now_s) < SOME * now_s:
            wrong_unit = size > 1_000 and context.server.called(*ABSOLUTE_DEADLINES)
            given = "EXPIREAT takes seconds, PEXPIREAT milliseconds" if wrong_unit else given
            return ttl_ms, f"the TTL is a Unix time in {unit}: {given}"
    # A Unix time in milliseconds is a TTL of 20.8 days, which may be intended; the very time of these writes is not.
    if abs(anomaly.ttl_ms - now_s) <= 2 * expected_ms / 1000:
        return anomaly.ttl_ms, f"the TTL is a Unix time in seconds, taken for milliseconds: {given}"
    return ttl_ms, None


def _next_for_ttl(expected: Expectation, anomaly: TtlAnomaly, *, both: bool, of_all: bool) -> str:
    """Return the advice. ``of_all``: no session has another TTL, so that the expectation may be what is wrong."""
    if both:
        ttls = f"{ttl_text(round(anomaly.ttl_ms))}|{ttl_text(expected.ttl_ms or 0)}"
        return (
            f"CLIENT LIST shows each client's last command (cmd=expire, cmd=setex, cmd=set); if both are "
            f"intended: --expect '{expected.pattern}={ttls}'"
        )
    if anomaly.since and anomaly.since.bound == "until":
        return "nothing to roll back: sessions written since get the expected TTL, existing ones at their next write"
    then = "until then, memory grows" if anomaly.kind == "long" else "sessions get the right TTL at their next write"
    if of_all:
        then += f"; if this TTL is intended: --expect '{expected.pattern}={ttl_text(round(anomaly.ttl_ms))}'"
    return f"look for the release that changed the TTL of {expected.pattern}, and roll it back; {then}"


def _unwanted_deadlines(expected: Expectation, sessions: Sequence[Group], context: AuditContext) -> Finding | None:
    persistent = {one.session for group in sessions for one in group.members if one.facts.deadline_ms is None}
    volatile = [group for group in sessions if any(one.deadline_ms is not None for one in group.keys)]
    shared = [group for group in volatile if not persistent.isdisjoint(one.session for one in group.members)]
    keys = [one for group in shared or volatile for one in group.keys if one.deadline_ms is not None]
    if not keys:
        return None
    # Locks and counters share the ids of sessions; their sizes show what they are.
    unknown = persistent and all(one.kind == "string" for one in keys) and usual_bytes(keys, context) is None
    sure = not unknown and (bool(shared) or not persistent)
    prefix = narrowest_prefix([one.key for one in keys], [one.key for one in context.keys], expected.prefix)
    apart = "they share neither shape nor ids with the sessions without a TTL, so they may not be sessions"
    apart = "the server does not report their sizes, so they may be locks or counters" if unknown else apart
    first = min((one.touched_ms for one in keys if one.touched_ms is not None), default=None)
    since = None if first is None else context.began_by(first)
    return Finding.of(
        "ttl_too_short",
        expected,
        prefix=prefix,
        keys=len(keys),
        message=f"{counted(len(keys), 'session key')} matching {prefix}* that should never expire have a deadline"
        + ("" if since is None else f", {context.since_text(since)}"),
        confidence="proven" if sure else "possible",
        since=since,
        observed_ms=common_ttl(lifetimes_of(keys, context.history)),
        evidence=(f"PTTL (HPTTL of fields) of {counted(len(keys), 'key')}", *([] if sure else [apart])),
        next="find what sets the TTL: on this server, CLIENT LIST shows each client's last command",
    )


def _off_by_clock(expected: Expectation, analysis: LifetimeAnalysis, context: AuditContext) -> list[TtlAnomaly]:
    """Return TTLs that another clock explains and that are within the jitter, or too few to be short for sure."""
    near_ms = SKEW_MS + IDLE_GRAIN_MS
    values = [one for one in analysis.all if one.known]
    ttl = common_ttl([one for one in values if abs(one.given - analysis.ttl) > near_ms])
    if ttl is None or not _other_clock(expected, ttl, context):
        return []
    affected = [one for one in values if abs(one.given - ttl) <= near_ms]
    longer, most = ttl > analysis.ttl, max(one.given for one in values)
    # A job that reads each session some hours after it was written leaves the same deadlines and idle times.
    sure = longer or analysis.too_few_touches(affected)
    if len(affected) < FEWEST or (not sure and most > ttl + near_ms):
        return []
    # Calendar days that span a change to or from summer time are an hour off, for those written before it only.
    first, last = min(one.accessed for one in affected), max(one.accessed for one in affected)
    mixed = any(first < one.accessed < last for one in values if abs(one.given - analysis.ttl) <= near_ms)
    an_hour = abs(abs(ttl - analysis.ttl) - HOUR_MS) <= near_ms
    found = TtlAnomaly(
        kind="long" if longer else "short",
        ttl_ms=ttl,
        keys=len(affected),
        confidence="likely" if sure and (mixed or not an_hour) else "possible",
    )
    return [found]


def _other_clock(expected: Expectation, ttl_ms: float, context: AuditContext) -> tuple[str, str] | None:
    """Return the cause and its words if clients compute the deadlines and their clock or zone is exactly as far off."""
    server, off = context.server, ttl_ms - (expected.ttl_ms or 0)
    # Clients compute deadlines if absolute ones were set, or SET (PXAT) was called and nothing else.
    set_alone = server.called("set") and not server.called(*RELATIVE_DEADLINES)
    if expected.other_ttls_ms or not (server.called(*ABSOLUTE_DEADLINES) or set_alone):
        return None
    if abs(server.skew_ms) >= SKEW_MS and abs(off + server.skew_ms) <= max(SKEW_MS, EXACT_SHARE * abs(server.skew_ms)):
        way = "ahead of" if server.skew_ms > 0 else "behind"
        return "clock_skew", f"the server's clock is {duration(abs(server.skew_ms))} {way} that of clients"
    zone = round(off / HALF_HOUR_MS) * HALF_HOUR_MS
    if not server.called(*ABSOLUTE_DEADLINES) or not HOUR_MS <= abs(zone) <= ZONE_MS or abs(off - zone) > SKEW_MS:
        return None
    hours = duration(abs(zone)) if zone % HOUR_MS else counted(abs(zone) // HOUR_MS, "hour")
    days = ", or days that span a change to or from summer time" if hours == "1 hour" else ""
    return (
        "unit_mistake",
        f"exactly {hours} {'more' if off > 0 else 'less'}, as if a local time were taken for UTC{days}",
    )


def _persistent_renewal(expected: Expectation, analysis: LifetimeAnalysis, context: AuditContext) -> Finding | None:
    """Return the finding of a job that renews every session, so that none ever expires."""
    server, now = context.server, context.history.now_ms
    started = None if server.may_be_reset else server.started_ms
    fresh = [one for one in analysis.all if one.left >= (1 - RENEWED_TOGETHER) * analysis.ttl]
    expired = server.number("expired_keys")
    if started is None or now - started < 2 * analysis.ttl or expired is None or server.expired_fields or analysis.long:
        return None
    if len(analysis.all) < FEWEST_RENEWED or len(fresh) < len(analysis.all) or expected.other_ttls_ms:
        return None
    renewals = server.called(*RENEWALS)
    if renewals < 2 * len(analysis.all):
        return None
    since = duration(max(now - (one.deadline - analysis.ttl) for one in analysis.all))
    # Sessions that are always in use are renewed one by one: with a read or a write each time, or by a heartbeat.
    apart = spread([one.deadline for one in analysis.all])
    at_once = apart <= min(ONE_WRITE_MS, RENEWED_TOGETHER * RENEWED_TOGETHER * analysis.ttl)
    alone = server.called(*RELATIVE_DEADLINES, *ABSOLUTE_DEADLINES) - server.writes - (server.reads or 0)
    again = alone >= RENEWALS_OF_A_JOB * len(analysis.all)
    by_job = again and (at_once or analysis.ttl > HEARTBEAT_TTL_MS)
    # Keys that expired may be others, if each of these may have been renewed without a write or a read.
    if expired and (analysis.ttl <= HEARTBEAT_TTL_MS or alone < len(analysis.all)):
        return None
    none = "" if expired else ", and no key has expired since the server started"
    return Finding.of(
        "persistent_renewal",
        expected,
        keys=len(analysis.all),
        message=f"something renews all {len(analysis.all):,} session keys matching {expected.pattern}: each got a "
        f"whole TTL within the last {since}{none}",
        confidence="likely" if by_job and not expired else "possible",
        observed_ms=analysis.ttl,
        evidence=(
            f"expired_keys is {expired:,}, and the server started {context.when(started)}, more than two TTLs ago",
            f"commands that set a TTL were called {renewals:,} times, {max(alone, 0):,} without a write or a read",
        ),
        next="find the job that renews them: on this server, CLIENT LIST shows each client's last command",
    )


def _unrenewed(expected: Expectation, analysis: LifetimeAnalysis, context: AuditContext) -> Finding | None:
    """Return the finding of writes that do not renew the TTL, by the server's own counts of reads and writes.

    A script that has copied sessions with what was left of their TTLs has accessed all of them then, and has written
    each string once. One TTL of all is what they were given, or what a job leaves that writes to each at one age.
    """
    old = [] if analysis.long else analysis.unrenewed()
    server, scale = context.server, context.server.keys / max(len(context.keys), 1)
    rewritten = scale * len(old) / 2
    # Each key that exists, or no longer does, was written once. If none was written twice, or each write set a TTL,
    # each was given what it has.
    ended = (server.number("expired_keys") or 0) + (server.number("evicted_keys") or 0) + server.called(*DELETES)
    alone = (server.touches or 0) - (server.reads or 0)
    one_ttl = spread([one.given for one in old]) <= TOGETHER_MS if old else True
    if one_ttl or not server.keys or min(server.writes - server.keys - ended, alone) < rewritten:
        return None
    own = expected.matching(context.keys)
    strings = all(one.kind == "string" for one in own)
    twice = strings and server.called(*STRING_WRITES) - scale * len(own) - ended >= rewritten
    apart = max(LONG_COPY * analysis.ttl, spread([one.deadline for one in old]) / 2)
    by_script = server.called(*ABSOLUTE_DEADLINES) or not (twice or spread([one.accessed for one in old]) >= apart)
    reads = counted(context.history.reads or 0, "command")
    return Finding.of(
        "not_refreshed",
        expected,
        keys=len(old),
        message=f"writes to keys matching {expected.pattern} do not renew the TTL: {len(old):,} keys were accessed "
        "long after it was set",
        confidence="possible" if by_script else "likely",
        observed_ms=analysis.ttl,
        evidence=(
            f"only {reads} other than writes accessed values since the server started, so these accesses were writes",
            f"{server.writes:,} commands wrote values, for {counted(server.keys, 'key')}",
            *(["or a script copied these keys: --watch 30s shows it"] if by_script else []),
        ),
        next="set the TTL in the same command or transaction as every write (EXPIRE after RPUSH, or SET with EX); if "
        f"it should be set once only: --expect '{expected.pattern}={ttl_text(expected.ttl_ms or 0)},absolute'",
    )


def changed_ttls(context: AuditContext) -> list[Finding]:
    """Return the findings of prefixes under which a shorter TTL has replaced a longer one, if nothing is expected.

    Two TTLs that are both being set are no change: that may be on purpose.
    """
    found = []
    for prefix, keys in list(by_prefix(context.keys).items())[:SHOWN_PREFIXES]:
        ttls = ttls_given(lifetimes_of(keys, context.history))
        if not ttls:
            continue
        former = Expectation(f"{prefix}*", ExpiryPolicy("sliding", round(max(ttls))))
        for one in diagnose(former, keys, replace(context, other_keys=())).findings:
            if one.cause in ("ttl_too_short", "unit_mistake") and one.since_is == "lower bound" and one.since:
                given = duration(1000 * (one.observed_ttl_s or 0))
                since = context.since_text(Since(one.since.timestamp() * 1000, "lower bound"))
                found.append(
                    replace(
                        one,
                        cause="two_ttls",
                        expected_ttl_s=None,
                        confidence="possible",
                        message=f"{one.keys:,} of {len(keys):,} keys matching {one.prefix}* got a TTL of {given}, the "
                        f"others {duration(former.ttl_ms)}, {since}",
                        next=f"if this change is not intended, look for the release that made it, and state what is "
                        f"expected: --expect '{prefix}*={ttl_text(former.ttl_ms or 0)}'",
                    )
                )
    return found


def _add_missed_siblings(groups: Sequence[Group], expected: Expectation, context: AuditContext) -> None:
    """Look up the parts of sessions that a sample has missed: the same id in the other shapes."""
    simple = [group for group in groups if group.part.count("*") == 1][:MOST_SHAPES]
    wanted: dict[bytes, tuple[Group, str]] = {}
    for group in simple:
        have = {member.session for member in group.members}
        for other in simple:
            lacking = [member.session for member in other.members[: 2 * LOOKED_UP] if member.session not in have]
            for session in lacking[:LOOKED_UP] if other is not group else ():
                name = f"{expected.prefix}{group.part.replace('*', session, 1)}"
                wanted[to_bytes(name)] = (group, session)
    for facts in context.siblings(list(wanted)) if wanted else ():
        group, session = wanted[facts.key]
        if facts.kind == group.kind:
            group.members.append(Member(facts, session, group.part))
