"""From the keys of one expectation to findings: too short, too long, immortal, torn apart, or somewhere else. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from memkit.audit.checks.auxiliary_keys import Scene, beside_sessions, is_other_shape, longest_given
from memkit.audit.checks.mixed_ttl import Torn, torn_sessions
from memkit.audit.checks.ttl_inference import (
    IDLE_RANGE_MS,
    Case,
    Life,
    Lives,
    Since,
    lives_of,
    rounded,
    ttl_seen,
)
from memkit.audit.finding import Confidence, Finding, PrefixSummary
from memkit.audit.key_shapes import Group, Member, alike, by_prefix, groups_of, is_content, sessions_of
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation
from memkit.render import duration, utc_text


@dataclass
class Diagnosis:
    """The findings of one expectation, and what was left out of them: ``aside`` keys live shorter, as no sessions."""

    findings: list[Finding]
    notes: list[str]
    sessions: int = 0
    aside: int = 0


def diagnose(meant: Expectation, keys: Sequence[KeyFacts], scene: Scene) -> Diagnosis:
    """Return what is wrong with the keys of one pattern, or that it has none."""
    if not keys:
        return Diagnosis([_missing(meant, scene)], [])
    groups = groups_of(keys, meant.prefix)
    sessions, beside = _apart(groups)
    notes = [f"{_many(meant, group)} were taken for no sessions, by their name" for group in beside]
    if meant.ttl_ms is None:
        return Diagnosis(_never(meant, sessions, scene), notes, _count(sessions))
    _complete(sessions, meant, scene)
    helpers = beside_sessions(meant, sessions, scene)
    sessions = [group for group in sessions if group not in helpers]
    torn = torn_sessions(meant, list(sessions_of(sessions)), sampled=scene.sampled)
    cases, strangers = _cases(meant, sessions, scene)
    notes += [_helper_note(meant, group) for group in helpers]
    notes += [f"{_many(meant, group)} live {duration(case.ttl_ms)}: not sessions?" for group, case in strangers]
    findings = [_ttl_finding(meant, case, scene) for case in _merged(cases, torn)]
    findings += [
        finding
        for finding in (_immortal(meant, sessions, scene), torn.finding, _elsewhere(meant, keys, scene))
        if finding
    ]
    aside = _count([*helpers, *(group for group, _ in strangers)])
    return Diagnosis(findings, notes, _count(sessions) + _count(helpers) - aside, aside)


def _count(groups: Iterable[Group]) -> int:
    return sum(len(group.members) for group in groups)


def _many(meant: Expectation, group: Group) -> str:
    return f"{len(group.members):,} keys {meant.prefix}{group.part}"


def _helper_note(meant: Expectation, group: Group) -> str:
    longest = duration(longest_given(group.keys))
    return f"{_many(meant, group)} live up to {longest} beside their sessions: taken for flags, locks or caches of them"


def _apart(groups: Sequence[Group]) -> tuple[list[Group], list[Group]]:
    """Separate sessions from what their names say stands beside them; where all do, they are what was meant."""
    sessions = [group for group in groups if not group.beside]
    if not sessions:
        return list(groups), []
    return sessions, [group for group in groups if group.beside]


# -- TTLs --------------------------------------------------------------------------------------------------------------


def _cases(
    meant: Expectation, sessions: Sequence[Group], scene: Scene
) -> tuple[list[tuple[Group, Case]], list[tuple[Group, Case]]]:
    """Return what is wrong with each shape of key, and the shapes that were always short and may be no sessions."""
    found: list[tuple[Group, Case]] = []
    healthy: list[tuple[Group, Lives]] = []
    all_short: list[tuple[Group, Case]] = []
    for group in sessions:
        lives = Lives(lives_of(group.keys), meant, scene.server)
        cases = lives.cases()
        if not any(case.kind == "short" for case in cases) and lives.right:
            healthy.append((group, lives))
        for case in cases:
            alone = case.kind == "short" and not lives.right and case.keys >= 0.9 * len(lives.all)
            (all_short if alone else found).append((group, case))
    if not healthy or len(all_short) == len(sessions):
        return found + all_short, []
    parts, strangers = _strangers(all_short, healthy, scene)
    return found + parts, strangers


def _strangers(
    all_short: Sequence[tuple[Group, Case]], healthy: Sequence[tuple[Group, Lives]], scene: Scene
) -> tuple[list[tuple[Group, Case]], list[tuple[Group, Case]]]:
    """Separate parts of healthy sessions and sessions of another shape from what may be no sessions."""
    ids = {member.session for group, _ in healthy for member in group.members}
    found, strangers = [], []
    for group, case in all_short:
        if _shares(group, ids):
            found.append((group, case))
        elif is_other_shape(group, [one for one, _ in healthy], scene):
            found.append((group, _as_new_shape(case, [lives for _, lives in healthy])))
        else:
            strangers.append((group, case))
    return found, strangers


def _as_new_shape(case: Case, healthy: Sequence[Lives]) -> Case:
    """Return the case of sessions of a new shape: likely where the old one is not written since."""
    last = max((at for lives in healthy if (at := lives.last_write(lives.within))), default=None)
    like = "their type and size are those of the sessions that live as expected, whose ids they do not share"
    if last is None or case.first_seen_ms is None or last > case.first_seen_ms + 2_000:
        return replace(case, confidence="possible", reasons=(*case.reasons, like, "both shapes are written"))
    reasons = (*case.reasons, like, "the other shape is not written since")
    confidence: Confidence = "possible" if case.confidence == "possible" else "likely"
    return replace(case, confidence=confidence, since=Since(last, "lower bound"), reasons=reasons)


def _shares(group: Group, ids: set[str]) -> bool:
    # Of a sample's keys the siblings of the first 200 were looked up.
    looked = group.members[:200]
    return sum(member.session in ids for member in looked) > 0.2 * len(looked)


def _merged(cases: Sequence[tuple[Group, Case]], torn: Torn) -> list[Case]:
    """Return one case a kind: the largest group's, with all keys counted; those torn from their session are not."""
    merged = []
    for kind in ("short", "long"):
        own = [case for group, case in cases if case.kind == kind and not (kind == "short" and torn.explains(group))]
        if own:
            largest = max(own, key=lambda case: case.keys)
            merged.append(replace(largest, keys=sum(case.keys for case in own)))
    return merged


def _ttl_finding(meant: Expectation, case: Case, scene: Scene) -> Finding:
    expected_ms = meant.ttl_ms or 0
    factor = case.unit_factor(expected_ms)
    if factor:
        case = replace(case, ttl_ms=expected_ms * factor if case.kind == "long" else expected_ms / factor)
    elif not case.jitter:
        case = replace(case, ttl_ms=rounded(case.ttl_ms))
    cause = "unit_mistake" if factor else f"ttl_too_{case.kind}"
    seen, expected = duration(case.ttl_ms), duration(expected_ms)
    verb = "die after" if case.kind == "short" else "live"
    since = "" if case.since is None else f" since {_when(case.since)}"
    tail = f": off by exactly {factor}, {_units(factor, case.kind)}" if factor else ""
    return Finding(
        cause,
        prefix=meant.prefix,
        keys=case.keys,
        sampled=scene.sampled,
        message=f"sessions under {meant.prefix} {verb} {seen} instead of {expected}{since}{tail}",
        confidence=case.confidence,
        expected_ttl_s=expected_ms / 1000,
        observed_ttl_s=round(case.ttl_ms / 1000, 3),
        **_dated(case.since),
        evidence=_case_evidence(case, scene),
        next=_next_for_ttl(meant, case),
    )


def _units(factor: int, kind: str) -> str:
    short = {
        60: "minutes taken for seconds",
        1000: "seconds taken for milliseconds",
        60_000: "minutes taken for milliseconds",
    }
    long = {
        60: "seconds taken for minutes",
        1000: "milliseconds taken for seconds",
        60_000: "milliseconds taken for minutes",
    }
    return (short if kind == "short" else long)[factor]


def _case_evidence(case: Case, scene: Scene) -> tuple[str, ...]:
    spread = f", give or take {case.jitter:.0%}" if case.jitter else ""
    lines = [
        f"{case.keys:,} of {scene.sampled:,} keys looked at were given {duration(case.ttl_ms)}{spread}",
        *case.reasons,
    ]
    if case.since and case.since.bound == "lower bound":
        lines.append(f"the last write that got the expected TTL was at {_at(case.since.at_ms)}, by the latest deadline")
    if case.first_seen_ms is not None:
        lines.append(f"the oldest of them that still lives was written at {_at(case.first_seen_ms)}")
    return tuple(lines)


def _next_for_ttl(meant: Expectation, case: Case) -> str:
    around = "" if case.since is None else f" around {_at(case.since.at_ms)}"
    then = (
        "memory grows until it is right again"
        if case.kind == "long"
        else "roll it back; the next write renews a living session"
    )
    return f"look for the release{around} that changed the TTL of {meant.pattern}; {then}"


def _never(meant: Expectation, sessions: Sequence[Group], scene: Scene) -> list[Finding]:
    """Return a finding where sessions that should never expire have a deadline."""
    mortal = [one for group in sessions for one in group.keys if one.deadline_ms is not None]
    if not mortal:
        return []
    ttl = ttl_seen(lives_of(mortal))
    says = f"sessions under {meant.prefix} should never expire and {len(mortal):,} of them have a deadline"
    finding = Finding(
        "ttl_too_short",
        prefix=meant.prefix,
        keys=len(mortal),
        sampled=scene.sampled,
        message=says,
        confidence="proven",
        observed_ttl_s=ttl and round(ttl / 1000, 3),
        evidence=(says,),
        next="find what sets the TTL: redis-cli CLIENT LIST shows each client's last command",
    )
    return [finding]


# -- no TTL ------------------------------------------------------------------------------------------------------------


def _immortal(meant: Expectation, sessions: Sequence[Group], scene: Scene) -> Finding | None:
    """Return the finding of sessions that never expire; a lone key that all sessions share may live for ever."""
    keys: list[KeyFacts] = []
    parts: list[str] = []
    for group in sessions:
        own = [one for one in group.keys if one.deadline_ms is None]
        if own and (len(group.members) > 1 or len(sessions) == 1) and "*" in group.part:
            keys += own
            parts.append(f"{meant.prefix}{group.part}")
    if not keys:
        return None
    since = _immortal_since(meant, keys, [one for group in sessions for one in group.keys], scene)
    share = "all" if len(keys) == sum(len(group.members) for group in sessions) else f"{len(keys):,}"
    says = f"{share} of the keys {', '.join(parts[:3])} never expire; expected {duration(meant.ttl_ms)}"
    return Finding(
        "no_ttl",
        prefix=meant.prefix,
        keys=len(keys),
        sampled=scene.sampled,
        message=says + ("" if since is None else f", since {_when(since)}"),
        confidence="proven",
        expected_ttl_s=None if meant.ttl_ms is None else meant.ttl_ms / 1000,
        observed_ttl_s=None,
        **_dated(since),
        evidence=(f"PTTL says so for {len(keys):,} of {scene.sampled:,} keys looked at",),
        next="find the write that leaves no TTL (SET without EX; a crash before EXPIRE): memkit inspect URL KEY",
    )


def _immortal_since(
    meant: Expectation, keys: Sequence[KeyFacts], all_keys: Sequence[KeyFacts], scene: Scene
) -> Since | None:
    known = (one for one in keys if one.touched_ms is not None and one.seen_ms - one.touched_ms < IDLE_RANGE_MS)
    touched = [one.touched_ms for one in known if one.touched_ms is not None]
    lives = Lives(lives_of(all_keys), meant, scene.server)
    last = lives.last_write(lives.within)
    first = min(touched, default=None)
    if first is None:
        return None
    if last is not None and last <= first + 2_000:
        return Since(last, "lower bound")
    return Since(min(first + 1_000, scene.server.now_ms), "upper bound")


# -- parts of a session ------------------------------------------------------------------------------------------------


def _complete(groups: Sequence[Group], meant: Expectation, scene: Scene) -> None:
    """Look up the siblings that a sample has missed: the same id in the other shapes."""
    simple = [group for group in groups if group.part.count("*") == 1]
    wanted: dict[bytes, tuple[Group, str]] = {}
    for group in simple:
        have = {member.session for member in group.members}
        for other in simple:
            missing = [member.session for member in other.members[:400] if member.session not in have]
            for session in missing[:200] if other is not group else ():
                name = f"{meant.prefix}{group.part.replace('*', session, 1)}"
                wanted[name.encode("utf-8", "surrogateescape")] = (group, session)
    if not wanted:
        return
    for facts in scene.siblings(list(wanted)):
        group, session = wanted[facts.key]
        if facts.kind == group.kind:
            group.members.append(Member(facts, session, group.part))


# -- elsewhere ---------------------------------------------------------------------------------------------------------


def _missing(meant: Expectation, scene: Scene) -> Finding:
    """Return the finding for a pattern without keys: they may be under another prefix."""
    for prefix, keys in by_prefix(scene.strangers).items():
        confidence = _suspect(meant, prefix, keys, scene)
        if confidence:
            return _wrong_prefix(meant, prefix, keys, scene, confidence, since=None)
    others = ", ".join(
        f"{prefix or '(no prefix)'}* ({len(keys):,})" for prefix, keys in list(by_prefix(scene.keys).items())[:5]
    )
    says = f"no key matches {meant.pattern}"
    more = f"; there are {others}" if others else "; the database is empty"
    return Finding(
        "no_data", prefix=meant.prefix, keys=0, sampled=scene.sampled, message=says + more, confidence="proven",
        expected_ttl_s=None if meant.ttl_ms is None else meant.ttl_ms / 1000,
        evidence=(f"{scene.sampled:,} keys looked at",),
        next="check the pattern, the database number and the server in the URL",
    )  # fmt: skip


def _suspect(meant: Expectation, prefix: str, keys: Sequence[KeyFacts], scene: Scene) -> Confidence | None:
    """Return how likely it is that these keys are the sessions that are expected elsewhere."""
    fits = [one for one in keys if is_content(one)]
    if len(fits) < 3 or any(group.beside for group in groups_of(fits, "")[:1]):
        return None
    near = alike(meant.prefix, prefix)
    lives = lives_of(fits)
    if meant.ttl_ms is None:
        return "likely" if near and len(lives) < 0.1 * len(fits) else None
    sorted_lives = Lives(lives, meant, scene.server)
    as_meant = len(sorted_lives.right) >= max(3, 0.2 * len(fits))
    if near:
        # Never proven: the one who types an expectation mistypes it, too.
        return "likely" if as_meant else "possible"
    return "possible" if as_meant and scene.server.idle_known else None


def _elsewhere(meant: Expectation, keys: Sequence[KeyFacts], scene: Scene) -> Finding | None:
    """Return the finding of sessions that are written under a similar prefix now, and no longer under this one."""
    if meant.ttl_ms is None or len(keys) == len(scene.keys):
        return None
    own_keys = {one.key for one in keys}
    near = {
        prefix: others
        for prefix, others in by_prefix([one for one in scene.strangers if one.key not in own_keys]).items()
        if prefix and alike(meant.prefix, prefix)
    }
    own = Lives(lives_of(keys), meant, scene.server)
    last = own.last_write(own.within) if near else None
    if last is None:
        return None
    for prefix, others in near.items():
        if _suspect(meant, prefix, others, scene) == "likely":
            theirs = Lives(lives_of(others), meant, scene.server)
            first = min(life.touched for life in theirs.right)
            if last <= first + 2_000 and len(theirs.right) >= 0.5 * len(others):
                return _wrong_prefix(meant, prefix, others, scene, "likely", since=Since(last, "lower bound"))
    return None


def _wrong_prefix(
    meant: Expectation,
    prefix: str,
    keys: Sequence[KeyFacts],
    scene: Scene,
    confidence: Confidence,
    *,
    since: Since | None,
) -> Finding:
    lives = lives_of(keys)
    ttl = ttl_seen(lives)
    if since is None and lives:
        first = min(life.touched for life in lives) + 1_000
        since = Since(min(first, scene.server.now_ms), "upper bound")
    says = f"sessions are written under {prefix or '(no prefix)'} instead of {meant.prefix}"
    return Finding(
        "wrong_prefix",
        prefix=meant.prefix,
        keys=len(keys),
        sampled=scene.sampled,
        message=says + ("" if since is None else f" since {_when(since)}"),
        confidence=confidence,
        expected_ttl_s=None if meant.ttl_ms is None else meant.ttl_ms / 1000,
        observed_ttl_s=None if ttl is None else round(ttl / 1000, 3),
        **_dated(since),
        evidence=(
            f"{len(keys):,} keys under {prefix or '(no prefix)'}, given {duration(ttl)}; "
            "those expected are not written",
        ),
        next=f"compare the prefix in the application's settings with {meant.prefix} (and this expectation with both): "
        "readers and writers need the same one",
    )


# -- without expectations ----------------------------------------------------------------------------------------------


def seen_under(keys: Sequence[KeyFacts]) -> list[PrefixSummary]:
    """Return what lives under each prefix, the largest first, and what to expect of it."""
    found = []
    for prefix, own in list(by_prefix(keys).items())[:20]:
        lives = lives_of(own)
        ttl = ttl_seen(lives)
        immortal = len(own) - len(lives)
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in Counter(one.kind for one in own).most_common(3))
        given = _given(ttl, lives)
        says = f"{prefix or '(no prefix)'}*: {len(own):,} key{'s' if len(own) > 1 else ''} ({kinds}), {given}"
        says += f", {immortal:,} of them immortal" if immortal and lives else ""
        says += f"; if that is meant: --expect '{prefix}*={duration(ttl)}'" if ttl else ""
        found.append(
            PrefixSummary(
                prefix,
                keys=len(own),
                kinds=kinds,
                persistent=immortal,
                ttl_s=ttl and round(ttl / 1000, 3),
                message=says,
            )
        )
    return found


def _given(ttl: float | None, lives: Sequence[Life]) -> str:
    if not lives:
        return "that never expire"
    if not ttl:
        return "of various TTLs"
    longest = max(life.left for life in lives)
    return f"given {duration(ttl)}" + (f", others more: up to {duration(longest)} left" if longest > 1.1 * ttl else "")


# -- dates -------------------------------------------------------------------------------------------------------------


def _dated(since: Since | None) -> dict[str, Any]:
    return {} if since is None else {"since": datetime.fromtimestamp(since.at_ms / 1000, UTC), "since_is": since.bound}


def _when(since: Since) -> str:
    if since.bound == "lower bound":
        return f"{_at(since.at_ms)} or soon after"
    return f"{_at(math.ceil(since.at_ms / 1000) * 1000)} at the latest"


def _at(at_ms: float) -> str:
    return utc_text(datetime.fromtimestamp(at_ms / 1000, UTC))
