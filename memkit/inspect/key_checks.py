"""Problems of a session's keys, whatever store wrote them: TTLs, sizes, keys that were not read."""

from __future__ import annotations

from collections.abc import Mapping

from memkit.formats.model import ConfiguredTtl, Problem
from memkit.inspect.report import early_ends
from memkit.readonly.reader import LoadedKey
from memkit.readonly.values import RedisValue
from memkit.render import counted, duration

BIG_VALUE_BYTES = 1 << 20
"""A read of 1 MB takes Redis about a millisecond, in which it serves no other client."""
_LONGER = 1.01
"""A TTL may exceed the configured one by the time that a write takes."""
_REPORTED = 5


def key_problems(
    own: Mapping[str, LoadedKey], *, store: str, ttl_option: bool, configured: ConfiguredTtl | None
) -> list[Problem]:
    """Return what is wrong with the session's own keys.

    Args:
        own: The keys that belong to this session alone, by name.
        store: The store's name.
        ttl_option: Whether the store can set a TTL.
        configured: The TTL that the session's payload states, if it states one.
    """
    ends_s = {name: each.metadata.ttl_ms / 1000 for name, each in own.items() if each.metadata.ttl_ms is not None}
    persistent = [name for name in own if name not in ends_s]
    problems: list[Problem] = []
    if persistent and (configured is None or configured.ttl_ms is not None):
        problems += _no_ttl(persistent, len(ends_s), "" if ttl_option else f"; {store} has no TTL option")
    parts = {name: (end_s, own[name].metadata.idle_s) for name, end_s in ends_s.items()}
    problems += _mixed_ttl(
        ends_s, early_ends(parts, configured.ttl_ms / 1000 if configured and configured.ttl_ms else None)
    )
    latest_s = max(ends_s.values(), default=0.0)
    if configured and configured.ttl_ms and latest_s * 1000 > configured.ttl_ms * _LONGER:
        reason = (
            f"has {duration(latest_s * 1000)} left, more than the TTL in its payload, {duration(configured.ttl_ms)}"
        )
        problems.append(Problem("ttl_too_long", next(iter(ends_s)), reason))
    unread = [(name, each.value.unread_reason) for name, each in own.items() if each.value.unread_reason]
    problems += _few([Problem("unreadable", name, reason) for name, reason in unread])
    for name, each in own.items():
        if each.value.partial:
            read = len(each.value.elements) + len(each.value.scores)
            of = f" of {each.value.total:,}" if each.value.total > read else ""
            problems.append(Problem("truncated", name, f"only the first {read:,}{of} elements were read"))
    return problems + _few([problem for name, each in own.items() if (problem := _big(name, each.value))])


def _no_ttl(persistent: list[str], with_ttl: int, option: str) -> list[Problem]:
    if with_ttl:
        reason = "has no TTL while other keys of the session have one: it will remain when they have expired"
        return _few([Problem("no_ttl", name, reason) for name in persistent])
    count = "the key remains" if len(persistent) == 1 else f"all {len(persistent):,} keys remain"
    reason = f"no key of the session has a TTL: {count} until deleted or evicted{option}"
    return [Problem("no_ttl", persistent[0], reason)]


def _mixed_ttl(ends_s: Mapping[str, float], early: list[str]) -> list[Problem]:
    last = duration(1000 * max(ends_s.values(), default=0.0))
    problems = [
        Problem("mixed_ttl", name, f"expires in {duration(1000 * ends_s[name])}, the session's last key in {last}")
        for name in early[:_REPORTED]
    ]
    if len(early) > _REPORTED:
        more = counted(len(early) - _REPORTED, "more key")
        problems.append(Problem("mixed_ttl", early[_REPORTED], f"… and {more} that expire early"))
    return problems


def _big(name: str, value: RedisValue) -> Problem | None:
    size = max(map(len, value.payloads), default=0)
    if size <= BIG_VALUE_BYTES:
        return None
    reason = f"holds a value of {size / 1e6:.1f} MB: each read of it transfers that much, and blocks others meanwhile"
    return Problem("big_value", name, reason)


def _few(problems: list[Problem]) -> list[Problem]:
    """Return five of many like problems, and a sixth that counts the rest."""
    if len(problems) <= _REPORTED:
        return problems
    more = counted(len(problems) - _REPORTED, "more key")
    return [*problems[:_REPORTED], problems[_REPORTED]._replace(message=f"… and {more} like it")]
