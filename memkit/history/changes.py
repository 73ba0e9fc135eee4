"""Every change of the TTL that the keys under a prefix get, with the moment."""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

from memkit.history.states import KeyEvent, Moment
from memkit.policy import JITTER, UNIT_MS
from memkit.render import duration, printable, utc_text, utc_time

SAME_TTL = 0.01
"""TTLs that differ by less are one TTL: a log's second is rounded down, and clients compute deadlines themselves."""
SAME_TTL_MS = 1_500
MOST_CHANGES = 10
"""More changes than this are not releases, but several TTLs at the same time."""
FEWEST_RETURNS = 2
"""A release and its rollback return to the former TTL once; after few writes each, two returns are two TTLs."""
MOST_SHAPES = 1_000
"""More shapes of names are followed together."""
TtlRange = tuple[int, int]
"""The shortest and the longest TTL, in milliseconds, that may have been given; twice the same if it is known."""
Shape = int | tuple[bytes, ...]
_SEPARATOR = re.compile(rb"[:/|.#]")
_WORD = re.compile(rb"[A-Za-z][A-Za-z_-]*")
_PREFIX = re.compile(rb"[^:/|.#]*[:/|.#]")


@dataclass(frozen=True, slots=True)
class TtlChange:
    """From when on the keys under a prefix got another TTL; of one that is not known, the shortest and longest."""

    prefix: str
    from_ttl_ms: int | None
    to_ttl_ms: int | None
    at: Moment
    last_before: Moment
    exact: bool = False
    from_range_ms: TtlRange | None = None
    to_range_ms: TtlRange | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the change as ``history --json`` shows it."""
        return {
            "prefix": self.prefix,
            "from_ttl_s": plain_seconds(self.from_ttl_ms),
            "from_ttl_between_s": _between_s(self.from_range_ms),
            "to_ttl_s": plain_seconds(self.to_ttl_ms),
            "to_ttl_between_s": _between_s(self.to_range_ms),
            "at": time_text(time_of(self.at.earliest_ms if self.exact else self.at.latest_ms)),
            "at_is": "exact" if self.exact else "between",
            "not_before": None if self.exact else time_text(time_of(self.last_before.earliest_ms)),
        }

    def __str__(self) -> str:
        at = self.to_dict()["at"]
        not_before = self.to_dict()["not_before"]
        when = f"at {at}" if self.exact else f"between {not_before} and {at}" if not_before else f"before {at}"
        prefix = f"{printable(self.prefix)}*" if self.prefix else "(no prefix)"
        ttls = bounded_ttl(self.from_ttl_ms, self.from_range_ms), bounded_ttl(self.to_ttl_ms, self.to_range_ms)
        return f"{prefix}  {' → '.join(ttls)} {when}"


@dataclass(slots=True)
class _Run:
    """One TTL that keys of one shape got in a row: its range, the first and the last write, and how many there were."""

    range_ms: TtlRange
    first: KeyEvent
    last: Moment
    count: int = 1

    @property
    def began(self) -> Moment:
        """When the first write was made: if the TTL is known, with the shortest one in the range at the latest."""
        event, at = self.first, self.first.moment
        if event.ttl_ms is not None or known_ttl(self.range_ms) is None:
            return at
        return at._replace(latest_ms=min(at.latest_ms or 0, (event.deadline_ms or 0) - self.range_ms[0]))


@dataclass(slots=True)
class _Given:
    """The TTLs that keys of one shape got, one after the other; ``returns``: how often a former one was given again."""

    runs: list[_Run] = field(default_factory=list)
    returns: int = 0

    def add(self, event: KeyEvent, range_ms: TtlRange) -> None:
        run = self.runs[-1] if self.runs else None
        if run is None or not _same(run.range_ms, range_ms):
            self.returns += any(_same(one.range_ms, range_ms) for one in self.runs[:-1])
            self.runs[MOST_CHANGES + 1 :] = [_Run(range_ms, event, event.moment)]
            return
        if run.range_ms[0] < run.range_ms[1]:  # what each of the writes leaves open
            run.range_ms = max(run.range_ms[0], range_ms[0]), min(run.range_ms[1], range_ms[1])
        run.count += 1
        run.last = event.moment

    def found(self, prefix: str) -> list[TtlChange]:
        """Return the changes; none if several TTLs are given at the same time.

        Of many changes only the first is one, if one TTL was given until then and never again.
        """
        runs = self.runs
        if len(runs) > MOST_CHANGES + 1:
            runs = runs[:2] if runs[0].count > MOST_CHANGES and not self.returns else []
        elif self.returns >= FEWEST_RETURNS and min(run.count for run in runs[1:-1]) < MOST_CHANGES:
            runs = []
        ttls = [known_ttl(run.range_ms) for run in runs]
        ranges_ms = [run.range_ms if ttl is None else None for run, ttl in zip(runs, ttls, strict=True)]
        return [
            TtlChange(
                *(prefix, ttls[n], ttls[n + 1], after.began, before.last),
                from_range_ms=ranges_ms[n],
                to_range_ms=ranges_ms[n + 1],
            )
            for n, (before, after) in enumerate(pairwise(runs))
            if ttls[n] is not None or ttls[n + 1] is not None
        ]


@dataclass(slots=True)
class TtlChanges:
    """Collects the changes while events pass by, in bounded memory; ``exact``: whether their moments are stated.

    Keys of different shapes, such as a session and its lock, may get different TTLs: each shape is followed by itself.
    """

    exact: bool
    _given: dict[tuple[str, Shape], _Given] = field(default_factory=dict)

    def add(self, event: KeyEvent) -> None:
        """Take an event into account if it gave a TTL: a key that lost its own does not change what others get.

        RESTORE gives a copy what is left of a TTL.
        """
        range_ms = event.ttl_range_ms
        if range_ms is None or event.ttl_given is not None or event.name not in ("written", "renewed"):
            return
        if event.command.upper().startswith("RESTORE"):
            return
        prefix = prefix_of(event.key)
        at = prefix, _shape_of(event.key)
        if at not in self._given and len(self._given) >= MOST_SHAPES:
            at = prefix, 0
        self._given.setdefault(at, _Given()).add(event, range_ms)

    def found(self) -> list[TtlChange]:
        """Return the changes of every prefix, one that keys of several shapes have once."""
        first: dict[tuple[str, int | None, int | None, int], TtlChange] = {}
        for (prefix, _), given in self._given.items():
            seen: Counter[tuple[str, int | None, int | None]] = Counter()
            for change in given.found(prefix):
                what = change.prefix, change.from_ttl_ms, change.to_ttl_ms
                seen[what] += 1  # a TTL that was changed again after it had been changed back is another change
                other = first.setdefault((*what, seen[what]), change)
                if (change.at.latest_ms or 0) < (other.at.latest_ms or 0):
                    first[*what, seen[what]] = change
        return [replace(change, exact=self.exact) for change in first.values()]


def _same(one_ms: TtlRange, other_ms: TtlRange) -> bool:
    """Return whether two TTLs may be one; an expected TTL dates a write that gave one shorter by its jitter, too."""
    least, most = max(one_ms[0], other_ms[0]), min(one_ms[1], other_ms[1])
    share = SAME_TTL if one_ms[0] == one_ms[1] and other_ms[0] == other_ms[1] else JITTER
    return least - most <= max(share * max(least, most), SAME_TTL_MS)


def known_ttl(range_ms: TtlRange | None) -> int | None:
    """Return the TTL in a range that is as narrow as one TTL: the only one in it that is a whole number of a unit."""
    least, most = range_ms or (0, SAME_TTL_MS + 1)
    if most - least > max(SAME_TTL * most, SAME_TTL_MS):
        return None
    if least == most:
        return least
    for unit_ms in sorted(UNIT_MS.values(), reverse=True):
        if count := most // unit_ms - (least - 1) // unit_ms:
            return most // unit_ms * unit_ms if count == 1 else None
    return None


def bounded_ttl(ttl_ms: int | None, range_ms: TtlRange | None) -> str:
    """Return a TTL as text; of one that is not known, what it is at least and at most, in whole seconds."""
    if ttl_ms is not None or range_ms is None:
        return duration(ttl_ms)
    least, most = round(max(range_ms[0], 0) / 1_000) * 1_000, duration(-(-range_ms[1] // 1_000) * 1_000)
    return f"{duration(least)} to {most}" if least else f"at most {most}"


def _between_s(range_ms: TtlRange | None) -> list[float | int | None] | None:
    return None if range_ms is None else [plain_seconds(max(ms, 0)) for ms in range_ms]


def _shape_of(key: bytes) -> Shape:
    """Return how many parts a name has; with its words, if an id stands beside them: ``chat:lock:7``."""
    parts = _SEPARATOR.split(key)[1:]
    words = [part if _WORD.fullmatch(part) else b"" for part in parts]
    return tuple(words) if len(parts) > 1 and b"" in words else len(parts)


def prefix_of(key: bytes) -> str:
    """Return a key's name up to and including its first separator; the empty text if it has none."""
    prefix = _PREFIX.match(key)
    return prefix[0].decode("utf-8", "replace") if prefix else ""


def time_of(ms: int | None) -> Any:
    """Return a Unix time in milliseconds as a datetime, in the years 1 to 9999; None stays None."""
    return None if ms is None else utc_time(ms)


def time_text(at: datetime | None) -> str | None:
    """Return a time as JSON has it; None stays None."""
    return None if at is None else utc_text(at)


def plain_seconds(ttl_ms: int | None) -> float | int | None:
    """Return a TTL in seconds, as an int if it is a whole number; None stays None."""
    if ttl_ms is None:
        return None
    return ttl_ms // 1_000 if ttl_ms % 1_000 == 0 else ttl_ms / 1_000
