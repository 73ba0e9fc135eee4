"""Sessions whose parts die at different times: the keys of one session, compared. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from memkit.audit.finding import Finding
from memkit.audit.key_shapes import Group, Member
from memkit.config import Expectation
from memkit.render import duration

MIXED_MS = 5_000
MIXED_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Torn:
    """The finding, if there is one, the keys of the sessions in it, and those of all sessions with several keys."""

    finding: Finding | None
    keys: frozenset[bytes] = frozenset()
    compared: frozenset[bytes] = frozenset()

    def explains(self, group: Group) -> bool:
        """Whether most keys of a group that could be compared with their siblings are parts of such sessions."""
        compared = [member.facts.key for member in group.members if member.facts.key in self.compared]
        return sum(key in self.keys for key in compared) > 0.5 * len(compared)


def torn_sessions(meant: Expectation, several: Sequence[Sequence[Member]], *, sampled: int) -> Torn:
    """Return the finding of sessions, each given by its keys, that are torn apart; a few among many are none."""
    ttl_ms = meant.ttl_ms or 0
    torn = [members for members in several if is_torn(members, ttl_ms, meant.jitter)]
    if not torn or len(torn) < min(3, len(several)) or len(torn) < 0.02 * len(several):
        return Torn(None)
    keys = frozenset(member.facts.key for members in torn for member in members)
    gap, first, last = max((_gap(members) for members in torn), key=lambda one: one[0])
    shortest = [min(one.facts.set_ms or 0 for one in members if one.facts.deadline_ms) for members in torn]
    says = (
        f"{len(torn):,} of {len(several):,} sessions under {meant.prefix} will be torn apart: their parts die up to "
        f"{duration(gap)} from each other ({first} before {last})"
    )
    finding = Finding(
        "mixed_ttl",
        prefix=meant.prefix,
        keys=len(keys),
        sampled=sampled,
        message=says,
        confidence="proven",
        expected_ttl_s=ttl_ms / 1000,
        observed_ttl_s=round(_common(shortest) / 1000, 3),
        evidence=(f"deadlines of the keys of one session, compared: {len(several):,} sessions have several keys",),
        next="renew all keys of a session in one write (MULTI or a script): memkit inspect URL SESSION",
    )
    compared = frozenset(member.facts.key for members in several for member in members)
    return Torn(finding, keys, compared)


def is_torn(members: Sequence[Member], ttl_ms: int, jitter: float) -> bool:
    """Whether the parts of a session die apart by more than jitter explains."""
    mortal = [member.facts for member in members if member.facts.deadline_ms is not None]
    if len(mortal) < 2:
        return False
    early = min(mortal, key=lambda one: one.deadline_ms or 0)
    late = max(mortal, key=lambda one: one.deadline_ms or 0)
    gap = (late.deadline_ms or 0) - (early.deadline_ms or 0)
    if gap <= max(MIXED_MS, MIXED_SHARE * ttl_ms):
        return False
    if gap > 2.2 * jitter * ttl_ms:
        return True
    # Within the jitter: the parts were renewed apart, if the later one was also touched later by as much.
    if early.touched_ms is None or late.touched_ms is None:
        return False
    return abs((late.touched_ms - early.touched_ms) - gap) <= max(3_000, 0.002 * gap)


def _gap(members: Sequence[Member]) -> tuple[int, str, str]:
    mortal = [member for member in members if member.facts.deadline_ms]
    first, *_, last = sorted(mortal, key=lambda one: one.facts.deadline_ms or 0)
    return (last.facts.deadline_ms or 0) - (first.facts.deadline_ms or 0), first.part, last.part


def _common(values: Sequence[int]) -> float:
    """Return the most usual value, to the second, or the middle one where none is usual."""
    seconds, count = Counter(round(value / 1000) for value in values).most_common(1)[0]
    return seconds * 1000 if count > 0.2 * len(values) else sorted(values)[len(values) // 2]
