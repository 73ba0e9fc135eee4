"""Every change of the TTL that the keys under a prefix get, with the moment."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from memkit.history.states import KeyEvent, Moment
from memkit.render import duration, printable, utc_text

SAME_TTL = 0.01
"""TTLs that differ by less are one TTL: a log's second is rounded down, and clients compute deadlines themselves."""
SAME_TTL_MS = 1_500
MOST_CHANGES = 10
"""More changes than this are no releases but several TTLs at the same time."""
_PREFIX = re.compile(rb"[^:/|.#]*[:/|.#]")
EARLIEST_MS, LATEST_MS = -62_135_596_800_000, 253_402_300_799_000
"""The years 1 to 9999 of ``datetime``: a Unix time that is taken for a TTL gives later deadlines."""


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
        prefix = printable(self.prefix) or "(no prefix)"
        return f"{prefix} {duration(self.from_ttl_ms)} → {duration(self.to_ttl_ms)} {when}"


@dataclass(slots=True)
class TtlChanges:
    """Collects the changes while events pass by, in bounded memory; ``exact``: whether their moments are stated."""

    exact: bool
    _current: dict[str, tuple[int, Moment]] = field(default_factory=dict)
    _changes: dict[str, list[TtlChange]] = field(default_factory=dict)

    def add(self, event: KeyEvent) -> None:
        """Take an event into account if it gave a TTL: a key that lost its own is no change of what others get."""
        if event.ttl_ms is None or event.ttl_given is not None or event.name not in ("written", "renewed"):
            return
        prefix = prefix_of(event.key)
        given_ms, last = self._current.get(prefix, (event.ttl_ms, event.moment))
        if abs(given_ms - event.ttl_ms) > max(SAME_TTL * max(given_ms, event.ttl_ms), SAME_TTL_MS):
            changes = self._changes.setdefault(prefix, [])
            if len(changes) <= MOST_CHANGES:
                changes.append(TtlChange(prefix, given_ms, event.ttl_ms, event.moment, last))
            given_ms = event.ttl_ms
        self._current[prefix] = given_ms, event.moment

    def found(self) -> list[TtlChange]:
        """Return the changes of every prefix; of a prefix with several TTLs at the same time only the first one."""
        return [
            replace(change, exact=self.exact)
            for changes in self._changes.values()
            for change in (changes if len(changes) <= MOST_CHANGES else changes[:1])
        ]


def prefix_of(key: bytes) -> str:
    """Return a key's name up to and including its first separator; the empty text if it has none."""
    prefix = _PREFIX.match(key)
    return prefix[0].decode("utf-8", "replace") if prefix else ""


def time_of(ms: int | None) -> Any:
    """Return a Unix time in milliseconds as a datetime, in the years 1 to 9999; None stays None."""
    return None if ms is None else datetime.fromtimestamp(max(EARLIEST_MS, min(ms, LATEST_MS)) / 1_000, UTC)


def time_text(at: datetime | None) -> str | None:
    """Return a time as JSON has it; None stays None."""
    return None if at is None else utc_text(at)


def plain_seconds(ttl_ms: int | None) -> float | int | None:
    """Return a TTL in seconds, as an int if it is a whole number; None stays None."""
    if ttl_ms is None:
        return None
    return ttl_ms // 1_000 if ttl_ms % 1_000 == 0 else ttl_ms / 1_000
