"""Sessions with parts that expire at different times: the keys of one session, compared. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations, pairwise, product

from memkit.audit.checks.ttl_inference import NEARLY_ALL, rounded
from memkit.audit.checks.ttl_peaks import COMMON_SHARE, FEWEST, IDLE_GRAIN_MS, TOGETHER_MS
from memkit.audit.finding import Confidence, Finding
from memkit.audit.key_shapes import Group, Member
from memkit.config import Expectation
from memkit.formats import superseded
from memkit.policy import PartEnd, ends_apart, ttl_text
from memkit.readonly.values import to_name
from memkit.render import duration

MOST_COMPARED = 1_000
PARTS_SHARE = 0.1
"""Even if one part is not renewed, sessions with a single write, or read as a whole later, show that it is a part."""
FEWEST_SHARE = 0.02
"""Fewer sessions than this share can be caught between two commands of one write."""


@dataclass(frozen=True, slots=True)
class MixedTtl:
    """The finding, if there is one, the keys of the sessions in it, and those of all sessions with several keys."""

    finding: Finding | None
    keys: frozenset[bytes] = frozenset()
    compared: frozenset[bytes] = frozenset()

    def explains(self, group: Group) -> bool:
        """Whether most keys of a group that could be compared with their siblings are parts of such sessions."""
        compared = [member.facts.key for member in group.members if member.facts.key in self.compared]
        return sum(key in self.keys for key in compared) > len(compared) / 2


def mixed_ttl(expected: Expectation, sessions: Sequence[Sequence[Member]], *, known: bool = False) -> MixedTtl:
    """Return the finding of sessions with parts that end apart; a few among many are none.

    Args:
        expected: The expectation.
        sessions: The keys of each session.
        known: Whether a known store wrote them: what has one id is one session.
    """
    mixed = [members for members in sessions if _is_mixed(members, expected)]
    mixed = [needed for members in mixed if _is_mixed(needed := _needed(members, expected), expected)]
    if not mixed or len(mixed) < max(min(FEWEST, len(sessions)), FEWEST_SHARE * len(sessions)):
        return MixedTtl(None)
    sure: Confidence | None = "proven" if known else _are_parts(sessions, mixed)
    if sure is None:
        return MixedTtl(None)
    keys = frozenset(member.facts.key for members in mixed for member in members)
    gap, first, last = max((_gap(members) for members in mixed), key=lambda one: one[0])
    shortest = [
        min(one.facts.ttl_at_last_access_ms or 0 for one in members if one.facts.deadline_ms) for members in mixed
    ]
    second, count = Counter(round(value / 1000) for value in shortest).most_common(1)[0]
    evidence = [f"{len(sessions):,} sessions have several keys; their deadlines were compared"]
    floor = expected.ttls_ms[0] * (1 - expected.tolerance) - IDLE_GRAIN_MS
    own = {part: ttl for part, ttl in _longest(sessions).items() if ttl < floor}
    if sure == "possible":
        evidence.append("in no session were all keys written at once, so these may be several sessions of one user")
    # A part that was never given the expected TTL may have one of its own, such as a buffer; others were not renewed.
    on_purpose = all(_gap(members)[1] in own for members in mixed)
    for part, ttl in own.items() if on_purpose else ():
        text = f"{expected.prefix}{part}"
        evidence.append(f"{text} has a TTL of at most {duration(ttl)}; if intended: --expect '{text}={ttl_text(ttl)}'")
    finding = Finding.of(
        "mixed_ttl",
        expected,
        keys=len(keys),
        message=f"parts of {len(mixed):,} of {len(sessions):,} sessions matching {expected.pattern} expire up to "
        f"{duration(gap)} apart ({first} before {last})",
        confidence="possible" if on_purpose else sure,
        observed_ms=second * 1000 if count > COMMON_SHARE * len(shortest) else sorted(shortest)[len(shortest) // 2],
        evidence=evidence,
        next="renew all keys of a session in one MULTI or script; memkit inspect URL SESSION shows one session",
    )
    return MixedTtl(finding, keys, frozenset(member.facts.key for members in sessions for member in members))


def _are_parts(sessions: Sequence[Sequence[Member]], mixed: Sequence[Sequence[Member]]) -> Confidence | None:
    """Return how sure it is that keys with one id are one session; None if a user has several, one on each channel say.

    It is certain if some ids have keys that were written or read at one moment, more often than keys of different ids.
    Otherwise it is possible if the same part ends first in all of them: of separate sessions, any would end first.
    """
    some = [[one for one in members if one.facts.deadline_ms is not None] for members in sessions[:MOST_COMPARED]]

    def at_once(one: Member, other: Member) -> bool:
        near = _are_near(one.facts.deadline_ms, other.facts.deadline_ms)
        return one.part != other.part and (near or _are_near(one.facts.touched_ms, other.facts.touched_ms))

    together = sum(any(at_once(*pair) for pair in combinations(members, 2)) for members in some)
    apart = sum(any(at_once(*pair) for pair in product(*pairs)) for pairs in pairwise(some))
    if together - apart >= PARTS_SHARE * len(some):
        return "proven"
    first_last = Counter(_gap(members)[1:] for members in mixed)
    reversed_ = sum(min(count, first_last[last, first]) for (first, last), count in first_last.items()) / 2
    return "possible" if reversed_ <= (1 - NEARLY_ALL) * len(mixed) else None


def _are_near(one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and abs(one - other) <= TOGETHER_MS


def _is_mixed(members: Sequence[Member], expected: Expectation) -> bool:
    ends = [
        PartEnd(one.facts.deadline_ms, one.facts.touched_ms) for one in members if one.facts.deadline_ms is not None
    ]
    ends.sort(key=lambda one: one.deadline_ms)
    return len(ends) > 1 and ends_apart(ends[0], ends[-1], expected.ttls_ms, jitter=expected.jitter)


def _needed(members: Sequence[Member], expected: Expectation) -> Sequence[Member]:
    """Return the keys of a session without old checkpoints that were given the whole TTL: no saver renews these."""
    floor = (expected.ttl_ms or 0) * (1 - expected.tolerance) - IDLE_GRAIN_MS
    old = superseded(to_name(one.facts.key) for one in members)
    ends = [(one, to_name(one.facts.key), one.facts.deadline_ms or 0) for one in members]
    whole = {name for _, name, end in ends if name in old and end - (old[name] or 0) >= floor}
    last = max((end for _, name, end in ends if name not in whole), default=0)
    return [one for one, name, end in ends if name not in whole or end > last]


def _gap(members: Sequence[Member]) -> tuple[int, str, str]:
    ends = sorted((one.facts.deadline_ms, one.part) for one in members if one.facts.deadline_ms)
    return ends[-1][0] - ends[0][0], ends[0][1], ends[-1][1]


def _longest(sessions: Sequence[Sequence[Member]]) -> dict[str, int]:
    """Return the longest TTL that each part was given, to the idle clock's grain."""
    found: dict[str, int] = {}
    for member in chain.from_iterable(sessions):
        if member.facts.ttl_at_last_access_ms is not None:
            found[member.part] = max(found.get(member.part, 0), member.facts.ttl_at_last_access_ms)
    return {part: round(rounded(ttl)) for part, ttl in found.items()}
