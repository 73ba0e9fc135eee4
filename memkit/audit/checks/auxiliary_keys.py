"""Keys under the sessions' own prefix that are no sessions: locks, counters, caches, drafts, indexes. Pure.

Types, sizes and times decide, never the words of a name. A part of a session is written with it: nearly every session
that was written a moment ago has it. Keys that only some sessions have, that are written at other times, or that hold
no more than a flag are auxiliary.
"""

from collections import defaultdict
from collections.abc import Sequence
from statistics import median_low

from memkit.audit.checks.ttl_inference import NEARLY_ALL, SOME, LifetimeAnalysis
from memkit.audit.checks.ttl_peaks import COMMON_SHARE, FEWEST, TOGETHER_MS
from memkit.audit.context import AuditContext
from memkit.audit.key_shapes import Group, Member
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation
from memkit.readonly.values import to_bytes

FLAG_MS = 120_000
FLAG_BYTES = 128
"""A string of up to 64 bytes, as MEMORY USAGE counts it without its name (100 to 124 on Redis 6.2 to 8.2, Valkey 9)."""
TINY = 3
"""Flags are this many times smaller than the values of sessions."""
SHORT_SHARE = 1 / 20
"""Far below the expected TTL, whatever the distribution."""
SETS = ("set", "zset")
"""A set keeps no order, so it holds no dialogue; a sorted set that shares no id with sessions is an index of them."""
SIZED_KEYS = 40
RECENT_KEYS = 200
FEWEST_SESSIONS = 5
"""Fewer keys show little: of five sessions, a share is known to a fifth."""


def auxiliary_groups(expected: Expectation, groups: Sequence[Group], context: AuditContext) -> list[Group]:
    """Return the groups of keys that are neither sessions nor parts of them; if there is nothing else, none."""
    last: dict[str, Member] = {}
    for group in groups:
        for member in group.members:
            best = last.get(member.session)
            if member.session and (best is None or _deadline(member.facts) > _deadline(best.facts)):
                last[member.session] = member
    found = [
        group
        for group in groups
        if len(groups) > 1 and _Comparison(expected, group, groups, last, context).is_auxiliary()
    ]
    return found if len(found) < len(groups) else []


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
        self.pairs = [(own, main) for own, main in mains if main and main.part != group.part]
        parts = {main.part for _, main in self.pairs}
        self.others = [one for one in groups if one is not group]
        self.mains = [member for one in groups if one.part in parts for member in one.members]
        self.longest = longest_given(group.keys)
        # Deadlines show when sessions were written if none has more than the TTL, as with a jitter every other has.
        over = sum((member.facts.ttl_at_last_access_ms or 0) > self.ttl + TOGETHER_MS for member in self.mains)
        self.exact = over <= SOME * len(self.mains)

    def is_auxiliary(self) -> bool:
        """Whether the keys hold no dialogue, or are short-lived and no parts of the sessions that they belong to."""
        own = usual_bytes(self.group.keys, self.context) if self.group.kind == "string" else None
        if own == 0:
            return True  # an integer holds no dialogue
        analysis = LifetimeAnalysis(self.group.keys, self.expected, self.context.history)
        if self.ttl and analysis.right:
            return False
        if self.group.kind in SETS:
            documents = [one for one in self.others if one.kind not in SETS]
            ids = {member.session for one in documents for member in one.members}
            unordered = self.group.kind == "set"
            return bool(documents) and (unordered or ids.isdisjoint(one.session for one in self.group.members))
        brief = self.longest <= min(FLAG_MS, self.ttl * SHORT_SHARE or FLAG_MS)
        expiring = all(one.deadline_ms is not None for one in self.group.keys)
        tiny = _is_tiny(own, self.others, self.context)
        if not self.pairs or (expiring and brief and tiny):
            return tiny
        short = sum(one.keys for one in analysis.anomalies() if one.kind == "short")
        is_short = short >= NEARLY_ALL * len(analysis.all) or self.longest <= self.ttl * SHORT_SHARE
        if not self.ttl or not expiring or not is_short:
            return False
        return not self._written_together() or not self._in_every_session()

    def _written_together(self) -> bool:
        """Whether most were written when the session's main key was: by their last access, or a constant distance."""
        gaps: defaultdict[int, list[float]] = defaultdict(list)
        for own, main in self.pairs:
            if main.facts.deadline_ms:
                gap = _deadline(own) - _deadline(main.facts)
                gaps[int(gap // TOGETHER_MS)].append(gap)
        fullest = max(gaps.values(), key=len, default=[])
        usual = median_low(fullest) if len(fullest) >= FEWEST else None
        together = sum(self._at_once(own, main.facts, usual) for own, main in self.pairs)
        # With a jitter the deadlines show nothing, and an access may be a read.
        return together >= len(self.pairs) * (1 / 2 if self.exact else COMMON_SHARE)

    def _at_once(self, own: KeyFacts, main: KeyFacts, usual_gap: float | None) -> bool:
        if usual_gap is not None and abs(_deadline(own) - _deadline(main) - usual_gap) <= TOGETHER_MS:
            return True
        times = [at for at in (main.touched_ms, self._written(main)) if at is not None]
        return own.touched_ms is not None and any(abs(own.touched_ms - at) <= TOGETHER_MS for at in times)

    def _written(self, main: KeyFacts) -> int | None:
        return None if main.deadline_ms is None or not self.exact else main.deadline_ms - self.ttl

    def _in_every_session(self) -> bool:
        """Whether nearly every session that was written within this group's TTL has its key here."""
        first = min(_deadline(one) for one in self.group.keys) - self.longest - TOGETHER_MS
        since = max(first, self.context.history.now_ms - NEARLY_ALL * self.longest)
        recent = [one for one in self.mains if since <= (self._written(one.facts) or 0)][:RECENT_KEYS]
        if len(recent) < FEWEST:
            return True
        there = {member.session for member in self.group.members}
        lacking = [member.session for member in recent if member.session not in there]
        names = []
        if self.group.part.count("*") == 1:
            shape = f"{self.expected.prefix}{self.group.part}"
            names = [to_bytes(shape.replace("*", one, 1)) for one in lacking]
        found = len(recent) - len(lacking) + len(self.context.siblings(names))
        return found >= len(recent) / 2


def longest_given(keys: Sequence[KeyFacts]) -> int:
    """Return the TTL that keys were given at most; not by the very longest, which a jump of the clock may have made."""
    given = sorted(one.ttl_at_last_access_ms or 0 for one in keys)
    return given[int(NEARLY_ALL * (len(given) - 1))] if given else 0


def usual_bytes(keys: Sequence[KeyFacts], context: AuditContext) -> int | None:
    """Return the median bytes of such keys' values, 0 for integers; None if the server does not report it."""
    weights = context.value_bytes([one.key for one in keys[:: len(keys) // SIZED_KEYS + 1]])
    return median_low(weights.values()) if weights else None


def is_other_shape(group: Group, healthy: Sequence[Group], context: AuditContext) -> bool:
    """Whether short-lived keys that share no ids with sessions are sessions themselves, of another shape.

    They are of the sessions' type and, if strings, not tiny beside the sessions'.
    """
    like = [one for one in healthy if one.kind == group.kind]
    own = usual_bytes(group.keys, context) if group.kind == "string" else None
    return bool(like) and own != 0 and not _is_tiny(own, like, context)


def _is_tiny(own: int | None, others: Sequence[Group], context: AuditContext) -> bool:
    """Whether strings of so many bytes are flags: another group holds no strings, or far larger ones."""
    if own is None or own > FLAG_BYTES:
        return False
    sizes = [usual_bytes(one.keys, context) for one in others if one.kind == "string"]
    return len(sizes) < len(others) or any(size is not None and size >= TINY * own for size in sizes)
