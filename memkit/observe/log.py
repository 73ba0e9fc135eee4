"""ExpiryLog: one row per observed key, with a verdict, an HTML table and a data frame."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from memkit.render import Table, counted, duration

if TYPE_CHECKING:
    import pandas as pd

End = Literal["expired", "evicted", "deleted", "evicted or deleted", "not expired", "absent"]
ENDS: Final[tuple[End, ...]] = ("expired", "evicted", "deleted", "evicted or deleted", "not expired", "absent")
EventStatus = Literal["received", "lost", "refused", "not sent", "unknown"]
WHY_NO_EVENTS: Final[Mapping[EventStatus, str]] = {
    "lost": "the subscription was lost",
    "refused": "the subscription was refused",
    "not sent": "the server sends none",
    "unknown": "it is not known whether the server sends any",
}
LATE_CHECK_MS = 5_000
"""A busy machine needs up to this long for one check of a key, so a lifetime of twice the TTL is only ruled out beyond
it."""
TOLERANCE = 0.01
MIN_TOLERANCE_MS = 2.0
"""A lifetime deviates if it differs from the TTL by more than 1 %, and by more than Redis's own resolution."""
EXPIRED_KEYS_PER_S = 20_000
"""The least rate, measured on four servers, at which active expiry removes expired keys once it has found them."""
MAX_ROWS = 20
NONE: Final = -1
"""In a column: unknown, or not yet."""
NEVER: Final = -2
"""In the column of TTLs: configured without TTL."""


@dataclass(frozen=True, slots=True)
class Expiry:
    """How one key ended. All times are the server's.

    Attributes:
        key: The key's name; bytes that are not UTF-8 are escaped.
        ttl_ms: The configured TTL in milliseconds; infinity: no TTL; None: unknown.
        started_at: When the lifetime began: the write, or the start of the observation.
        deadline_at: The last deadline; None if there was none, or if it was set and passed between two checks.
        last_seen_at: The last check that found the key.
        first_missing_at: The first check that did not find the key; None if every check did.
        event_at: When the key's event arrived, an upper bound of its end; None without an event.
        end: What ended the key: ``expired``, ``evicted``, ``deleted``, ``evicted or deleted``; ``not expired`` if it
            still exists, ``absent`` if it never existed.
    """

    key: str
    ttl_ms: float | None
    started_at: datetime
    deadline_at: datetime | None
    last_seen_at: datetime
    first_missing_at: datetime | None
    event_at: datetime | None
    end: End


@dataclass(frozen=True, slots=True)
class DeadlineChange:
    """A key's deadline that moved between two checks.

    Attributes:
        key: The key's name.
        kind: ``renewed`` (later), ``shortened`` (earlier), ``TTL removed``, ``TTL set``, ``ended`` (the key no longer
            exists) or ``created``.
        after: The time of the check before the change.
        before: The time of the check that found the change.
        previous_ttl_ms: The remaining TTL without the change; None: no TTL, or no key.
        current_ttl_ms: The remaining TTL now, 0 if the key has expired; None: no TTL, or no key.
    """

    key: str
    kind: Literal["renewed", "shortened", "TTL removed", "TTL set", "ended", "created"]
    after: datetime
    before: datetime
    previous_ttl_ms: int | None
    current_ttl_ms: int | None

    def __str__(self) -> str:
        ttls = (self.previous_ttl_ms, self.current_ttl_ms)
        previous, current = (duration(left) + ("" if left is None else " left") for left in ttls)
        if self.kind != "ended":
            change = f"{self.kind}, from {previous} to {current}"
        elif self.previous_ttl_ms is None or self.previous_ttl_ms > 0:
            change = f"ended with {previous}"
        else:
            change = "expired"
        return f"{self.key}: {change}, noticed at {self.before:%Y-%m-%d %H:%M:%S} UTC"


@dataclass(frozen=True, slots=True)
class Sweep:
    """What the server's active expiry had to do, and how long that should take.

    Attributes:
        expired_keys: Keys past their deadline.
        other_keys: Other keys with a TTL in the database.
        hz: The server's ``hz``: runs per second.
        effort: The server's ``active-expire-effort``, 1 to 10.
    """

    expired_keys: int
    other_keys: int
    hz: int
    effort: int

    @property
    def predicted_s(self) -> float:
        """The predicted delay of the last event in seconds; not a bound.

        Each of ``hz`` runs a second samples 20 + 5 x (effort - 1) keys with a TTL, and goes on only if more than a
        tenth of them had expired. The prediction is therefore one run, plus one round through the other keys, plus the
        time to remove the expired keys. Measured with 5,000 other and 100 expired keys: 22.7 to 24.9 s on Redis 6.2,
        7.0, 8.2 and Valkey 9.1, predicted 25.1 s. On a busy machine, with 1,000 to 20,000 expired keys, the last event
        took up to twice as long.
        """
        round_s = self.other_keys / (self.hz * (20 + 5 * (self.effort - 1)))
        return 1 / self.hz + self.expired_keys / EXPIRED_KEYS_PER_S + round_s


def _column() -> array[int]:
    return array("q")


@dataclass(slots=True, repr=False)
class ExpiryLog:
    """What an observation recorded, one row per key: ``for expiry in log``, ``log.to_frame()``, ``log.verdict``.

    The columns hold one number per key, times in microseconds since the epoch; iterate to get them as ``Expiry``.

    Attributes:
        server: The server's name and version.
        clock: How time passed: ``by jumps`` or ``in real time``.
        resolution_ms: The step with which deadlines were crossed, in milliseconds.
        changes: Deadlines that moved during the observation, at most 1,000.
        sweep: What the server's active expiry had to do, if the keys were left to it.
        events: Whether the server's events were received. ``lost``: the server ended the subscription, so missing
            events may have been sent.
    """

    server: str
    clock: str
    resolution_ms: float
    keys: list[str] = field(default_factory=list)
    ttl_ms: array[int] = field(default_factory=_column)
    started_us: array[int] = field(default_factory=_column)
    started_by_us: array[int] = field(default_factory=_column)
    deadline_us: array[int] = field(default_factory=_column)
    seen_us: array[int] = field(default_factory=_column)
    missing_us: array[int] = field(default_factory=_column)
    event_us: array[int] = field(default_factory=_column)
    ends: list[End] = field(default_factory=list)
    changes: list[DeadlineChange] = field(default_factory=list)
    sweep: Sweep | None = None
    events: EventStatus = "received"

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Expiry:
        return Expiry(
            self.keys[index],
            _configured(self.ttl_ms[index]),
            time_at(self.started_us[index]),
            _time_or_none(self.deadline_us[index]),
            time_at(self.seen_us[index]),
            _time_or_none(self.missing_us[index]),
            _time_or_none(self.event_us[index]),
            self.ends[index],
        )

    def __iter__(self) -> Iterator[Expiry]:
        return (self[index] for index in range(len(self)))

    def counts(self) -> dict[End, int]:
        """Return the number of keys per end."""
        found = Counter(self.ends)
        return {end: found[end] for end in ENDS if found[end]}

    @property
    def exact_to_ms(self) -> tuple[float, float]:
        """How exact the observed lifetimes are, in milliseconds: half their intervals, median and worst."""
        intervals = (self.lifetime_ms(index) for index, missing in enumerate(self.missing_us) if missing != NONE)
        widths = sorted(longest - shortest for shortest, longest in intervals) or [0]
        return widths[len(widths) // 2] / 2, widths[-1] / 2

    @property
    def events_text(self) -> str:
        """How many events were received, and the reason if some could not be."""
        received = sum(1 for event in self.event_us if event != NONE)
        if not received and self.events != "received":
            return f"no events received: {WHY_NO_EVENTS[self.events]}"
        then = "" if self.events == "received" else f"; then {WHY_NO_EVENTS[self.events]}"
        return f"{received:,} of {counted(len(self), 'event')} received{then}"

    def lifetime_ms(self, index: int) -> tuple[float, float]:
        """Return the shortest and the longest possible lifetime of a row's key, in ms; infinity if it still exists."""
        missing = self.missing_us[index]
        shortest = max(0, self.seen_us[index] - self.started_by_us[index]) / 1000
        return shortest, float("inf") if missing == NONE else (missing - self.started_us[index]) / 1000

    def to_frame(self) -> pd.DataFrame:
        """Return one row per key.

        Returns:
            TTLs and lifetimes in seconds (``configured_ttl_s`` is infinity for a key configured without TTL), times in
            UTC; NaN and NaT for what was not observed.
        """
        import numpy as np
        import pandas as pd

        def seconds(values: array[int], per_s: int = 1_000_000) -> Any:
            numbers = np.array(values, dtype=float)
            return np.where(numbers == NONE, np.nan, numbers) / per_s

        def times(values: array[int]) -> Any:
            return pd.to_datetime([None if value == NONE else value for value in values], unit="us", utc=True)

        configured = seconds(self.ttl_ms, 1000)
        configured[configured == NEVER / 1000] = np.inf
        missing, started, deadline = map(seconds, (self.missing_us, self.started_us, self.deadline_us))
        return pd.DataFrame(
            {
                "key": self.keys,
                "configured_ttl_s": configured,
                "granted_ttl_s": deadline - started,
                "lifetime_min_s": np.maximum(0, seconds(self.seen_us) - seconds(self.started_by_us)),
                "lifetime_max_s": missing - started,
                "event_late_max_s": np.maximum(0, seconds(self.event_us) - deadline),
                "started_at": times(self.started_us),
                "deadline_at": times(self.deadline_us),
                "last_seen_at": times(self.seen_us),
                "first_missing_at": times(self.missing_us),
                "event_at": times(self.event_us),
                "end": pd.Categorical(self.ends, categories=ENDS),
            }
        )

    def groups(self) -> list[TtlGroup]:
        """Return the keys by configured TTL: shortest first, then those without TTL, then those of unknown TTL."""
        rows: dict[int, list[int]] = {}
        for index, ttl in enumerate(self.ttl_ms):
            rows.setdefault(ttl, []).append(index)
        order = sorted(rows, key=lambda ttl: (ttl == NONE, ttl == NEVER, ttl))
        return [TtlGroup.of(self, ttl, rows[ttl]) for ttl in order]

    @property
    def verdict(self) -> str:
        """One sentence: whether the observed lifetimes match the configured TTLs. The same outcome, the same words.

        It begins with "Inconclusive" if no key deviates, but some were checked so late that their lifetime may have
        been twice the TTL.
        """
        groups = self.groups()
        deviating = [group for group in groups if group.deviating]
        if deviating:
            return f"Not as configured: {_summary(deviating)}."
        if any(group.ttl_ms is None for group in groups):
            return f"{_summary(groups)}."
        if late := sum(group.checked_late for group in groups):
            keys = f"{counted(late, 'key')} {'was' if late == 1 else 'were'}"
            return f"Inconclusive: {keys} checked too late to rule out a lifetime of twice the TTL."
        if not groups:
            return "No keys to observe."
        existing = self.counts().get("not expired", 0)
        rest = f"{counted(existing, 'key')} {'has' if existing == 1 else 'have'} not expired."
        expired = [group for group in groups if group.lifetime_ms]
        if not expired:
            return f"As configured so far: {rest}"
        count = len(self) - existing
        ttls = " to ".join(dict.fromkeys(duration(group.ttl_ms) for group in (expired[0], expired[-1])))
        keys = f"{count:,} of {counted(len(self), 'key')}" if existing else counted(count, "key")
        text = f"As configured: {keys} expired after {'its' if count == 1 else 'their'} TTL of {ttls}"
        return f"{text}; {rest}" if existing else f"{text}."

    def __str__(self) -> str:
        median, worst = self.exact_to_ms
        exact = f"exact to {duration(median)} (worst {duration(worst)})"
        text = f"{self.verdict} Observed on {self.server}, {self.clock}, {exact}."
        return text if self.events == "received" else f"{text} {self.events_text.capitalize()}."

    __repr__ = __str__

    def _repr_html_(self) -> str:
        groups = self.groups()
        titles = ("configured TTL", "keys", "end", "observed lifetime", "exact to", "event late by")
        return Table(str(self), titles, [group.cells() for group in groups[:MAX_ROWS]], total=len(groups)).to_html()


@dataclass(frozen=True, slots=True)
class TtlGroup:
    """The keys of one configured TTL (infinity: no TTL; None: unknown), and how many of them ended how.

    ``lifetime_ms`` is the shortest and the longest observed lifetime, ``exact_to_ms`` half the widest interval, and
    ``event_late_ms`` the largest delay of an event. ``checked_late`` counts the keys that were checked too late to rule
    out a lifetime of twice the TTL. ``deviating`` are the keys that did not end as configured: a lifetime shorter or
    longer by over 1 %, another end than expiry, or a TTL that was not configured.
    """

    ttl_ms: float | None
    keys: int
    ends: Mapping[End, int]
    lifetime_ms: tuple[float, float] | None
    exact_to_ms: float
    event_late_ms: float | None
    events_received: bool = True
    checked_late: int = 0
    deviating: TtlGroup | None = None

    @classmethod
    def of(cls, log: ExpiryLog, ttl: int, rows: Sequence[int], *, compare: bool = True) -> TtlGroup:
        """Return the group of some rows; a lifetime is the middle of its interval."""
        ended = [index for index in rows if log.missing_us[index] != NONE]
        intervals = [log.lifetime_ms(index) for index in ended]
        middles = [(shortest + longest) / 2 for shortest, longest in intervals]
        timed = [i for i in ended if NONE not in (log.event_us[i], log.deadline_us[i])]
        ends = Counter(log.ends[index] for index in rows)
        deviating = [index for index in rows if _deviates(log, index, ttl)] if compare and ttl != NONE else []
        return cls(
            _configured(ttl),
            len(rows),
            {end: ends[end] for end in ENDS if ends[end]},
            (min(middles), max(middles)) if middles else None,
            max((longest - shortest for shortest, longest in intervals), default=0) / 2,
            # Redis 6.2 gives deadlines to some milliseconds only: an event may seem to come before its deadline.
            max((max(0, log.event_us[i] - log.deadline_us[i]) / 1000 for i in timed), default=None),
            log.events == "received",
            sum(1 for _, longest in intervals if longest > 2 * ttl + LATE_CHECK_MS),
            cls.of(log, ttl, deviating, compare=False) if deviating else None,
        )

    @property
    def lifetime_text(self) -> str:
        """The range of observed lifetimes."""
        if self.lifetime_ms is None:
            return "not expired" if "not expired" in self.ends else "did not exist"
        return " to ".join(dict.fromkeys(duration(ms) for ms in self.lifetime_ms))

    def __str__(self) -> str:
        shown, total = (self, "")
        if self.deviating and self.deviating.keys < self.keys:
            shown, total = (self.deviating, f" of {self.keys:,}")
        (count, outcome), *others = shown.outcomes()
        # One of two keys, but one key of one.
        noun = "key" if (self.keys if total or not others else count) == 1 else "keys"
        ttl = ""
        if self.ttl_ms is not None:
            without = self.ttl_ms == float("inf")
            ttl = " configured without TTL" if without else f" with a configured TTL of {duration(self.ttl_ms)}"
        return ", ".join([f"{count:,}{total} {noun}{ttl} {outcome}", *(f"{more:,} {text}" for more, text in others)])

    def outcomes(self) -> list[tuple[int, str]]:
        """Return what became of how many keys: those that ended, those that exist, those that never existed."""
        existing, absent = self.ends.get("not expired", 0), self.ends.get("absent", 0)
        ended = {end: count for end, count in self.ends.items() if end not in ("not expired", "absent")}
        count = sum(ended.values())
        verbs = " or ".join(ended) if len(ended) == 1 else "ended"
        if verbs not in ("expired", "ended"):
            verbs = f"{'was' if count == 1 else 'were'} {verbs}"
        details = f" ({_counts(ended)})" if len(ended) > 1 else ""
        not_expired = "a TTL" if self.ttl_ms == float("inf") and not self.deviating else "not expired"
        found = [
            (count, f"{verbs} after {self.lifetime_text}{details}"),
            (existing, f"{'has' if existing == 1 else 'have'} {not_expired}"),
            (absent, "did not exist"),
        ]
        return [outcome for outcome in found if outcome[0]]

    @property
    def worst_factor(self) -> float:
        """The largest factor by which a lifetime differs from the TTL."""
        if not self.ttl_ms or self.lifetime_ms is None:
            return 1.0
        low, high = (max(lifetime, 1.0) / self.ttl_ms for lifetime in self.lifetime_ms)
        return max(1 / low, high)

    def cells(self) -> tuple[str, ...]:
        """Return the group's row of the table."""
        none = "no event" if self.events_received else "not received"
        configured = (
            "unknown" if self.ttl_ms is None else "no TTL" if self.ttl_ms == float("inf") else duration(self.ttl_ms)
        )
        return (
            configured,
            f"{self.keys:,}",
            _counts(self.ends),
            self.lifetime_text,
            duration(self.exact_to_ms),
            none if self.event_late_ms is None else f"at most {duration(self.event_late_ms)}",
        )


def _summary(groups: Sequence[TtlGroup]) -> str:
    """Return up to three groups in full; of more, their number and the worst."""
    if len(groups) <= 3:
        return "; ".join(map(str, groups))
    keys = sum((group.deviating or group).keys for group in groups)
    worst = max(groups, key=lambda group: group.worst_factor)
    return f"{counted(keys, 'key')} of {counted(len(groups), 'TTL')}, at worst {worst}"


def _counts(ends: Mapping[End, int]) -> str:
    if len(ends) == 1:
        return next(iter(ends))
    return ", ".join(f"{count:,} {end}" for end, count in ends.items())


def _configured(ttl: int) -> float | None:
    return {NONE: None, NEVER: float("inf")}.get(ttl, ttl)


def time_at(us: int) -> datetime:
    """Return a column's value as a time."""
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=us)


def _time_or_none(us: int) -> datetime | None:
    return None if us == NONE else time_at(us)


def _deviates(log: ExpiryLog, index: int, ttl: int) -> bool:
    end = log.ends[index]
    if ttl == NEVER:
        return end != "not expired" or log.deadline_us[index] != NONE
    shortest, longest = log.lifetime_ms(index)
    slack = max(ttl * TOLERANCE, MIN_TOLERANCE_MS)
    return end not in ("expired", "not expired") or longest < ttl - slack or shortest > ttl + slack
