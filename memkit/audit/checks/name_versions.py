"""A version or release in the names of sessions: ``chat:v1:…``, since a release ``chat:v2:…``. Pure.

Names with dates and counters (``chat:2026-11-28:…``) change as well, and go on by the calendar or regularly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from memkit.audit.checks.payload_times import QUARTER_HOUR_MS, written_ms
from memkit.audit.checks.ttl_inference import HOUR_MS
from memkit.audit.checks.ttl_peaks import FEWEST
from memkit.audit.key_shapes import MOST_WORDS, Group
from memkit.config import Expectation
from memkit.formats.model import ZONE_MS
from memkit.render import utc_time

_DATES = """
%Y %y %m %d %j %V %U %Y%m%d %y%m%d %d%m%Y %Y%m%d%H %Y%m %m%d %d%m %Y%V %Y%U %Y%j
"""
_HOURS_OF_COUNTERS = 1, 24, 168
"""Hours, days and weeks since 1970."""
_REGULAR = 2
"""Names go on regularly if none is in use for longer than so many times another that was replaced."""


def by_version(expected: Expectation, group: Group, now_ms: int) -> list[Group]:
    """Return the group in parts by the first place in its names that has few values, if these are no dates or counters.

    Args:
        expected: The expectation that the keys match.
        group: Keys of one shape and type.
        now_ms: The server's time.
    """
    words = [member.session.split(":") for member in group.members]
    for place, column in enumerate(zip(*words, strict=False)):
        counts = Counter(column)
        if 1 < len(counts) <= MOST_WORDS and sum(count >= FEWEST for count in counts.values()) > 1:
            before, behind = (
                "*".join(part) for part in (group.part.split("*")[: place + 1], group.part.split("*")[place + 1 :])
            )
            parts = {word: Group(f"{before}{word}{behind}", group.kind) for word in counts}
            for word, member in zip(column, group.members, strict=True):
                parts[word].members.append(member)
            times = {word: sorted(written_ms(expected, one) for one in part.keys) for word, part in parts.items()}
            return [group] if _goes_on(times, now_ms) else list(parts.values())
    return [group]


def _goes_on(times: Mapping[str, Sequence[float]], now_ms: int) -> bool:
    """Return whether the words are dates of the writes, or are replaced at about equal distances of time."""
    in_order = sorted(times, key=lambda word: times[word][0])
    former, newest = in_order[-2:]
    starts = [times[word][0] for word in in_order]
    used = [end - start for start, end in pairwise([*starts, now_ms])]
    return _are_dates((former, times[former]), (newest, times[newest])) or (
        len(used) > 2 and max(used) <= _REGULAR * min(used[1:-1])
    )


def _are_dates(former: tuple[str, Sequence[float]], newest: tuple[str, Sequence[float]]) -> bool:
    """Return whether the numbers in two words are, in one time zone, those of the first and of all of the writes.

    A later write to a session that was begun on the former date may be the only one that is still known.
    """
    numbers = [[int(one) for one in re.findall(r"\d+", word)] for word, _ in (former, newest)]
    if not numbers[0] or len(numbers[0]) != len(numbers[1]):
        return False
    lone = len(numbers[0]) == 1  # a version may be the hour of its release
    for shift in range(-round(ZONE_MS), round(ZONE_MS) + 1, QUARTER_HOUR_MS):
        first, last = (_calendar(newest[1][at] + shift, lone=lone) for at in (0, -1))
        for at in (0, -1):
            old = _calendar(former[1][at] + shift, lone=lone)
            if all(
                (one, other, other) in zip(old, first, last, strict=True) for one, other in zip(*numbers, strict=True)
            ):
                return True
    return False


def _calendar(at_ms: float, *, lone: bool) -> list[int]:
    at = utc_time(at_ms)
    counters = [int(at_ms // (hours * HOUR_MS)) for hours in _HOURS_OF_COUNTERS]
    return [*(int(at.strftime(form)) for form in _DATES.split()), *counters, -1 if lone else at.hour]
