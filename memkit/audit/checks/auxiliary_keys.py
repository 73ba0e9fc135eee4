"""Short-lived keys under the sessions' own prefix: sessions of another shape, parts of sessions, or neither. Pure.

A part of a session is written with it: nearly every session that was written a moment ago has it. Keys that only some
sessions have, that are written at other times, or that hold no more than a flag are auxiliary: locks, caches, drafts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from statistics import median_low
from typing import NamedTuple

from memkit.audit.checks.ttl_inference import LifetimeAnalysis
from memkit.audit.context import AuditContext
from memkit.audit.key_shapes import Group, Member
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation

FLAG_MS = 120_000
FLAG_BYTES = 128
"""A string of up to 64 bytes, as MEMORY USAGE counts it without its name (100 to 124 on Redis 6.2 to 8.2, Valkey 9)."""
TINY = 3
"""Flags are this many times smaller than the values of sessions."""
SHORT_SHARE = 1 / 20
"""Far below the expected TTL, whatever the distribution."""
TOGETHER_MS = 3_000
"""The idle clock's grain at both ends."""
WEIGHED_KEYS = 40
RECENT_KEYS = 200
FEWEST_SESSIONS = 5
"""Fewer short-lived keys of another shape are no release that changed the shape of all."""


class Pair(NamedTuple):
    """A short-lived key and the key of the same session that expires last."""

    own: KeyFacts
    main: Member


def auxiliary_groups(expected: Expectation, groups: Sequence[Group], context: AuditContext) -> list[Group]:
    """Return the groups of short-lived keys that share ids with sessions and are no parts of them."""
    if not expected.ttl_ms or len(groups) < 2:
        return []
    last: dict[str, Member] = {}
    for group in groups:
        for member in group.members:
            best = last.get(member.session)
            if member.session and (best is None or _deadline(member.facts) > _deadline(best.facts)):
                last[member.session] = member
    return [group for group in groups if _Comparison(expected, group, groups, last, context).is_auxiliary()]


def _deadline(facts: KeyFacts) -> float:
    return float("inf") if facts.deadline_ms is None else facts.deadline_ms


class _Comparison:
    """One group of keys against the sessions that it shares ids with."""

    def __init__(
        self,
        expected: Expectation,
        group: Group,
        groups: Sequence[Group],
        last: dict[str, Member],
        context: AuditContext,
    ) -> None:
        self.expected, self.group, self.context = expected, group, context
        self.ttl = expected.ttl_ms or 0
        mains = ((member.facts, last.get(member.session)) for member in group.members)
        self.pairs = [Pair(own, main) for own, main in mains if main and main.part != group.part]
        parts = {pair.main.part for pair in self.pairs}
        self.mains = [member for one in groups if one.part in parts for member in one.members]
        self.longest = longest_given(group.keys)
        # Deadlines show when sessions were written if none has more than the TTL, as with a jitter every other has.
        over = sum((member.facts.set_ms or 0) > self.ttl + TOGETHER_MS for member in self.mains)
        self.exact = over <= 0.05 * len(self.mains)

    def is_auxiliary(self) -> bool:
        """Whether the group is short-lived, beside sessions that are not, and is no part of them."""
        if not self.pairs or any(one.deadline_ms is None for one in self.group.keys):
            return False
        if self._own_bytes == 0:
            return True  # an integer holds no dialogue
        if not self._is_short():
            return False
        return self._is_flag() or not self._written_together() or not self._in_every_session()

    @cached_property
    def _own_bytes(self) -> int | None:
        return usual_bytes(self.group.keys, self.context) if self.group.kind == "string" else None

    def _is_short(self) -> bool:
        analysis = LifetimeAnalysis(self.group.keys, self.expected, self.context.history)
        if analysis.right:
            return False
        short = sum(one.keys for one in analysis.anomalies() if one.kind == "short")
        return short >= 0.9 * len(analysis.all) or self.longest <= self.ttl * SHORT_SHARE

    def _is_flag(self) -> bool:
        """Whether the values are tiny beside the sessions' and expire within minutes."""
        own = self._own_bytes
        brief = self.longest <= min(FLAG_MS, self.ttl * SHORT_SHARE)
        if self.group.kind != "string" or not brief or (own or 0) > FLAG_BYTES:
            return False
        mains = [pair.main.facts for pair in self.pairs]
        if any(one.kind != "string" for one in mains):
            return True
        others = usual_bytes(mains, self.context)
        return own is not None and others is not None and others >= TINY * own

    def _written_together(self) -> bool:
        """Whether most were written when the session's main key was: by their last access, or a constant distance."""
        gaps: defaultdict[int, list[float]] = defaultdict(list)
        for own, main in self.pairs:
            if main.facts.deadline_ms:
                gap = _deadline(own) - _deadline(main.facts)
                gaps[int(gap // TOGETHER_MS)].append(gap)
        fullest = max(gaps.values(), key=len, default=[])
        usual = median_low(fullest) if len(fullest) >= 3 else None
        together = sum(self._at_once(pair, usual) for pair in self.pairs)
        # With a jitter the deadlines show nothing, and an access may be a read.
        return together >= (0.5 if self.exact else 0.2) * len(self.pairs)

    def _at_once(self, pair: Pair, usual_gap: float | None) -> bool:
        own, main = pair.own, pair.main.facts
        if usual_gap is not None and abs(_deadline(own) - _deadline(main) - usual_gap) <= TOGETHER_MS:
            return True
        times = [at for at in (main.touched_ms, self._written(main)) if at is not None]
        return own.touched_ms is not None and any(abs(own.touched_ms - at) <= TOGETHER_MS for at in times)

    def _written(self, main: KeyFacts) -> int | None:
        """Return when a key was last written, by its deadline."""
        return None if main.deadline_ms is None or not self.exact else main.deadline_ms - self.ttl

    def _in_every_session(self) -> bool:
        """Whether nearly every session that was written within this group's TTL has its key here."""
        first = min(_deadline(one) for one in self.group.keys) - self.longest - TOGETHER_MS
        since = max(first, self.context.history.now_ms - 0.9 * self.longest)
        recent = [one for one in self.mains if since <= (self._written(one.facts) or 0)][:RECENT_KEYS]
        if len(recent) < 3 or not self.exact:
            return True
        there = {member.session for member in self.group.members}
        lacking = [member.session for member in recent if member.session not in there]
        names = []
        if self.group.part.count("*") == 1:
            shape = f"{self.expected.prefix}{self.group.part}"
            names = [shape.replace("*", one, 1).encode("utf-8", "surrogateescape") for one in lacking]
        found = len(recent) - len(lacking) + len(self.context.siblings(names))
        return found >= (0.7 if len(recent) >= FEWEST_SESSIONS else 0.5) * len(recent)


def longest_given(keys: Sequence[KeyFacts]) -> int:
    """Return the TTL that keys were given at most; not by the very longest, which a jump of the clock may have made."""
    given = sorted(one.set_ms or 0 for one in keys)
    return given[int(0.9 * (len(given) - 1))] if given else 0


def usual_bytes(keys: Sequence[KeyFacts], context: AuditContext) -> int | None:
    """Return the median bytes of such keys' values, 0 for integers; None if the server does not report it."""
    weights = context.weigh([one.key for one in keys[:: len(keys) // WEIGHED_KEYS + 1]])
    return median_low(weights) if weights else None


def is_other_shape(group: Group, healthy: Sequence[Group], context: AuditContext) -> bool:
    """Whether short-lived keys that share no ids with sessions are sessions themselves, of another shape.

    They are of the sessions' type, not a handful, and, if strings, not tiny beside the sessions'.
    """
    like = [one for one in healthy if one.kind == group.kind]
    if not like or len(group.members) < FEWEST_SESSIONS:
        return False
    if group.kind != "string":
        return True
    own, usual = usual_bytes(group.keys, context), usual_bytes(like[0].keys, context)
    return own is None or usual is None or (own > 0 and (own > FLAG_BYTES or usual < TINY * own))
