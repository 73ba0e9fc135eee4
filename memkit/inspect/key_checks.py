"""Problems of a session's keys, whatever store wrote them: TTLs, sizes, keys that were not read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memkit.config import Expectation
from memkit.formats.model import ZONE_MS, Problem, few
from memkit.inspect.report import early_ends
from memkit.policy import ExpiryPolicy
from memkit.readonly.reader import LoadedKey
from memkit.readonly.values import to_bytes
from memkit.render import duration

BIG_VALUE_BYTES = 1 << 20
"""A read of 1 MB takes Redis about a millisecond, in which it serves no other client."""
NEAR_DEADLINE_CHANCE = 0.005
"""Highest chance at which one session near its deadline is reported: 50 minutes left of 7 days."""
_GRAIN_MS = 5_000
"""Clocks of several servers with NTP, and idle times, differ by less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFacts:
    """What is known about a session beside its keys.

    Attributes:
        ttl_option: A remark on the store's TTL option; may be empty.
        expect: The expectations of the caller, the most specific pattern first.
        configured: What the session's payload states about its own TTL: a policy, or None if it states nothing.
        newest_ms: When the newest message was written, in ms since 1970, if its store keeps that.
        now_ms: The server's time.
        fields_without_ttl: For hashes of which some fields have a TTL: how many have none, and of how many.
    """

    ttl_option: str = ""
    expect: Sequence[Expectation] = ()
    configured: ExpiryPolicy | None = None
    newest_ms: float | None = None
    now_ms: float = 0.0
    fields_without_ttl: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def expected_of(self, name: str) -> Expectation | None:
        """Return the caller's expectation of a key, else the one that its session's payload states, if any."""
        key = to_bytes(name)
        own = None if self.configured is None else Expectation("*", self.configured, jitter=0.0)
        return next((one for one in self.expect if one.matches.fullmatch(key)), own)


def expired_as_expected(problem: Problem, facts: SessionFacts) -> bool:
    """Return whether a key that no longer exists was written longer ago than the caller's expected TTL."""
    expected = facts.expected_of(problem.key)
    ttl_ms = expected.ttl_ms if expected in facts.expect and expected else None
    return ttl_ms is not None and problem.written_ms is not None and problem.written_ms + ttl_ms <= facts.now_ms


def key_problems(own: Mapping[str, LoadedKey], facts: SessionFacts) -> list[Problem]:
    """Return what is wrong with the session's own keys.

    Args:
        own: The keys that belong to this session alone, by name.
        facts: What is known about the session beside its keys.
    """
    ends_s = {name: each.metadata.ttl_ms / 1000 for name, each in own.items() if each.metadata.ttl_ms is not None}
    expected = {name: one for name in own if (one := facts.expected_of(name))}
    never = {name for name, one in expected.items() if one.ttl_ms is None}
    persistent = [name for name in own if name not in ends_s and name not in never]
    parts_left = {name: facts.fields_without_ttl[name] for name in persistent if name in facts.fields_without_ttl}
    reason = "{:,} of its {:,} fields have no TTL: the key remains with these when the others have expired"
    problems = list(few(Problem("no_ttl", name, reason.format(*counts)) for name, counts in parts_left.items()))
    persistent = [name for name in persistent if name not in parts_left]
    if persistent and ends_s:
        reason = "has no TTL while other keys of the session have one: it will remain when they have expired"
        problems += few(Problem("no_ttl", name, reason) for name in persistent)
    elif persistent:
        count = "the key remains" if len(persistent) == 1 else f"all {len(persistent):,} keys remain"
        reason = f"no key of the session has a TTL: {count} until deleted or evicted{facts.ttl_option}"
        problems.append(Problem("no_ttl", persistent[0], reason))
    early: set[str] = set()
    policies: list[Expectation | None] = [*dict.fromkeys(expected.values())] or [None]
    for policy in policies:  # parts with expected TTLs of their own end apart on purpose
        names = [name for name in ends_s if len(policies) == 1 or expected.get(name) == policy]
        parts = {name: (ends_s[name], own[name].metadata.idle_s) for name in names}
        soon = early_ends(parts, policy.ttl_ms / 1000 if policy and policy.ttl_ms else None, facts.now_ms)
        last = duration(1000 * max((end_s for end_s, _ in parts.values()), default=0.0))
        reason = "expires in {}; the last key of the session expires in " + last
        problems += few(Problem("mixed_ttl", name, reason.format(duration(1000 * ends_s[name]))) for name in soon)
        early.update(soon)
    judged = {name: one for name, one in expected.items() if name in ends_s and name not in early}
    problems += few([found for name, one in judged.items() if (found := _against(one, name, own[name], facts))])
    unread = [(name, each.value.unread_reason) for name, each in own.items() if each.value.unread_reason]
    problems += few([Problem("unreadable", name, reason) for name, reason in unread])
    for name, each in own.items():
        if each.value.partial:
            read = len(each.value.elements) + len(each.value.scores)
            of = f" of {each.value.total:,}" if each.value.total > read else ""
            problems.append(Problem("truncated", name, f"only the first {read:,}{of} elements were read"))
    sizes = {name: max(map(len, each.value.payloads), default=0) for name, each in own.items()}
    big = {name: size / 1e6 for name, size in sizes.items() if size > BIG_VALUE_BYTES}
    reason = "holds a value of {:.1f} MB: each read of it transfers that much, and blocks others meanwhile"
    return [*problems, *few(Problem("big_value", name, reason.format(size)) for name, size in big.items())]


def _against(expected: Expectation, name: str, loaded: LoadedKey, facts: SessionFacts) -> Problem | None:
    """Return what a key's deadline proves, or makes likely, about a TTL that differs from the expected one."""
    left_ms, idle_s = loaded.metadata.ttl_ms or 0, loaded.metadata.idle_s
    left = f"has {duration(left_ms)} left"
    asked = expected in facts.expect
    if expected.ttl_ms is None:
        reason = f"{left}, but keys matching {expected.pattern} are expected never to expire"
        return Problem("ttl_too_short", name, reason) if asked else None
    shortest = expected.ttls_ms[0]
    ttls = " or ".join(map(duration, expected.ttls_ms))
    what = f"the expected TTL of {ttls}" if asked else f"the TTL of {ttls} in its payload"
    if left_ms > expected.ttl_ms * (1 + expected.tolerance):
        return Problem("ttl_too_long", name, f"{left}, more than {what}")
    floor_ms = shortest * (1 - expected.jitter) - _GRAIN_MS
    if left_ms + (idle_s or 0) * 1000 >= floor_ms:
        return None
    newest_ms = facts.newest_ms
    if expected.policy.kind == "sliding" and newest_ms is not None and newest_ms <= facts.now_ms + _GRAIN_MS:
        given_ms = left_ms + facts.now_ms - newest_ms
        # A time without a zone may be a local one.
        if given_ms + ZONE_MS < floor_ms:
            written = f"its newest message was written {duration(facts.now_ms - newest_ms)} ago"
            reason = f"{left}, and {written}: its TTL was at most {duration(given_ms)}, less than {what}"
            return Problem("ttl_too_short", name, reason)
    if asked and left_ms <= NEAR_DEADLINE_CHANCE * shortest:
        share = f"{left_ms / shortest:.2%} of {what}"
        return Problem("ttl_too_short", name, f"{left}, {share}; it probably got a shorter TTL")
    return None
