"""Every change of the TTL that the keys under a prefix get, with the moment."""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from memkit.history.states import KeyEvent, Moment
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
Shape = int | tuple[bytes, ...]
_SEPARATOR = re.compile(rb"[:/|.#]")
_WORD = re.compile(rb"[A-Za-z][A-Za-z_-]*")
_PREFIX = re.compile(rb"[^:/|.#]*[:/|.#]")


@dataclass(frozen=True, slots=True)
class TtlChange:
    """From when on the keys under a prefix got another TTL."""

    prefix: str
    from_ttl_ms: int | None
    to_ttl_ms: int | None
    at: Moment
    last_before: Moment
    exact: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the change as ``history --json`` shows it."""
        return {
            "prefix": self.prefix,
            "from_ttl_s": plain_seconds(self.from_ttl_ms),
            "to_ttl_s": plain_seconds(self.to_ttl_ms),
            "at": time_text(time_of(self.at.earliest_ms if self.exact else self.at.latest_ms)),
            "at_is": "exact" if self.exact else "between",
            "not_before": None if self.exact else time_text(time_of(self.last_before.earliest_ms)),
        }

    def __str__(self) -> str:
        at = self.to_dict()["at"]
        when = f"at {at}" if self.exact else f"between {time_text(time_of(self.last_before.earliest_ms))} and {at}"
        prefix = f"{printable(self.prefix)}*" if self.prefix else "(no prefix)"
        return f"{prefix}  {duration(self.from_ttl_ms)} → {duration(self.to_ttl_ms)} {when}"


@dataclass(slots=True)
class _Given:
    """The TTL that keys of one shape get, and the changes.

    ``count``: how often they got it in a row; ``before``: before the first change; ``shortest``: between two changes.
    """

    ttl_ms: int
    last: Moment
    count: int = 0
    before: int = 0
    shortest: int = MOST_CHANGES
    returns: int = 0
    changes: list[TtlChange] = field(default_factory=list)

    def add(self, prefix: str, ttl_ms: int, moment: Moment) -> None:
        if not _same(self.ttl_ms, ttl_ms):
            self.returns += any(_same(one.from_ttl_ms or 0, ttl_ms) for one in self.changes)
            if self.changes:
                self.shortest = min(self.shortest, self.count)
            else:
                self.before = self.count
            if len(self.changes) <= MOST_CHANGES:
                self.changes.append(TtlChange(prefix, self.ttl_ms, ttl_ms, moment, self.last))
            self.ttl_ms, self.count = ttl_ms, 0
        self.count += 1
        self.last = moment

    def found(self) -> list[TtlChange]:
        """Return the changes; none if several TTLs are given at the same time.

        Of many changes only the first is one, if one TTL was given until then and never again.
        """
        if len(self.changes) > MOST_CHANGES:
            return self.changes[:1] if self.before > MOST_CHANGES and not self.returns else []
        at_once = self.returns >= FEWEST_RETURNS and self.shortest < MOST_CHANGES
        return [] if at_once else self.changes


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
        if event.ttl_ms is None or event.ttl_given is not None or event.name not in ("written", "renewed"):
            return
        if event.command.upper().startswith("RESTORE"):
            return
        prefix = prefix_of(event.key)
        at = prefix, _shape_of(event.key)
        given = self._given.get(at)
        if given is None:
            at = at if len(self._given) < MOST_SHAPES else (prefix, 0)
            given = self._given.setdefault(at, _Given(event.ttl_ms, event.moment))
        given.add(prefix, event.ttl_ms, event.moment)

    def found(self) -> list[TtlChange]:
        """Return the changes of every prefix, one that keys of several shapes have once."""
        first: dict[tuple[str, int | None, int | None, int], TtlChange] = {}
        for given in self._given.values():
            seen: Counter[tuple[str, int | None, int | None]] = Counter()
            for change in given.found():
                what = change.prefix, change.from_ttl_ms, change.to_ttl_ms
                seen[what] += 1  # a TTL that was changed again after it had been changed back is another change
                other = first.setdefault((*what, seen[what]), change)
                if (change.at.latest_ms or 0) < (other.at.latest_ms or 0):
                    first[*what, seen[what]] = change
        return [replace(change, exact=self.exact) for change in first.values()]


def _same(one_ms: int, other_ms: int) -> bool:
    return abs(one_ms - other_ms) <= max(SAME_TTL * max(one_ms, other_ms), SAME_TTL_MS)


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
