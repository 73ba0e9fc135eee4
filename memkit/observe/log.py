"""What was observed of keys' ends: a row a key, a verdict in words, a table, a frame."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html import escape
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from memkit.policy import ttl_text

if TYPE_CHECKING:
    import pandas as pd

End = Literal["expired", "evicted", "deleted", "evicted or deleted", "alive", "absent"]
ENDS: Final[tuple[End, ...]] = ("expired", "evicted", "deleted", "evicted or deleted", "alive", "absent")
Hearing = Literal["heard", "lost", "refused", "not sent", "not known"]
UNHEARD: Final[Mapping[Hearing, str]] = {
    "lost": "the subscription was lost",
    "refused": "the subscription was refused",
    "not sent": "the server sends none",
    "not known": "whether the server sends any is not known",
}
UNKNOWN_MS = 5_000
"""Beyond twice its TTL, how late a key may be seen gone: what a busy machine takes for a look."""
MAX_ROWS = 20
NONE: Final = -1
"""In a column: not known, or not so far."""
NEVER: Final = -2
"""In the column of TTLs: meant to have none."""


@dataclass(frozen=True, slots=True)
class Expiry:
    """One key's end. Times are the server's; ``event_at`` bounds from above.

    ``ttl_ms``: the TTL that was meant; infinity: to live for ever; None: not known. ``deadline_at``: the last one, None
    where there was none, or one that was set and passed between two looks. ``key``: bytes that are no text are escaped.
    """

    key: str
    ttl_ms: float | None
    begun_at: datetime
    deadline_at: datetime | None
    seen_at: datetime
    gone_at: datetime | None
    event_at: datetime | None
    end: End


@dataclass(frozen=True, slots=True)
class DeadlineChange:
    """A deadline that moved between two looks: from what to what.

    ``kind``: ``renewed`` (later), ``shortened`` (earlier), ``dropped`` (no TTL any more), ``given`` (had none),
    ``gone`` or ``appeared``. ``was_left_ms``: what the key would still have had; ``is_left_ms``: what it has (0: it has
    expired meanwhile). None: no TTL, or no key.
    """

    key: str
    kind: Literal["renewed", "shortened", "dropped", "given", "gone", "appeared"]
    after: datetime
    before: datetime
    was_left_ms: int | None
    is_left_ms: int | None

    def __str__(self) -> str:
        was, now = (about(left) if left is not None else "no TTL" for left in (self.was_left_ms, self.is_left_ms))
        if self.kind == "gone":
            said = f"gone with {was} left" if self.was_left_ms is None or self.was_left_ms > 0 else "expired"
        else:
            said = f"{self.kind}, from {was} left to {now}"
        return f"{self.key}: {said}, by {self.before:%Y-%m-%d %H:%M:%S} UTC"


@dataclass(frozen=True, slots=True)
class Sweep:
    """What the sweep had to do: find ``dead_keys`` among ``live_keys`` with a TTL, at ``hz`` and ``effort``."""

    dead_keys: int
    live_keys: int
    hz: int
    effort: int

    @property
    def predicted_s(self) -> float:
        """The lateness that is predicted for the last event; no bound.

        Each of ``hz`` runs a second tries 20 + 5 x (effort - 1) keys with a TTL and goes on only where more than a
        tenth were dead: so one run, a round through the living, and 20,000 dead a second (the least measured; with
        5,000 live and 100 dead keys 22.7 to 24.9 s on 6.2, 7.0, 8.2 and Valkey 9.1, and 25.1 s are predicted). On a
        machine that was busy, with 1,000 to 20,000 dead keys, the last event took up to twice as long.
        """
        return 1 / self.hz + self.dead_keys / 20_000 + self.live_keys / (self.hz * (20 + 5 * (self.effort - 1)))


def _column() -> array[int]:
    return array("q")


@dataclass(slots=True, repr=False)
class ExpiryLog:
    """What was observed, a row a key: ``for expiry in log``, ``log.to_frame()``, ``log.verdict``, ``str(log)``.

    ``server`` names the server, ``clock`` how time passed, ``sweep`` what the sweep had to do where the keys were left
    to it, ``changes`` the deadlines that moved meanwhile (the first 1,000), ``events`` whether the server's events were
    heard: ``lost`` is a subscription that the server ended, so that what is missing may have been sent.
    """

    server: str
    clock: str
    resolution_ms: float
    keys: list[str] = field(default_factory=list)
    ttl_ms: array[int] = field(default_factory=_column)
    begun_us: array[int] = field(default_factory=_column)
    begun_by_us: array[int] = field(default_factory=_column)
    deadline_us: array[int] = field(default_factory=_column)
    seen_us: array[int] = field(default_factory=_column)
    gone_us: array[int] = field(default_factory=_column)
    event_us: array[int] = field(default_factory=_column)
    ends: bytearray = field(default_factory=bytearray)
    changes: list[DeadlineChange] = field(default_factory=list)
    sweep: Sweep | None = None
    events: Hearing = "heard"

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Expiry:
        return Expiry(
            self.keys[index],
            _meant(self.ttl_ms[index]),
            at(self.begun_us[index]),
            _at_or_none(self.deadline_us[index]),
            at(self.seen_us[index]),
            _at_or_none(self.gone_us[index]),
            _at_or_none(self.event_us[index]),
            ENDS[self.ends[index]],
        )

    def __iter__(self) -> Iterator[Expiry]:
        return (self[index] for index in range(len(self)))

    def counts(self) -> dict[End, int]:
        """Return how many keys came to which end."""
        found = Counter(self.ends)
        return {end: found[code] for code, end in enumerate(ENDS) if found[code]}

    @property
    def exact_to_ms(self) -> tuple[float, float]:
        """Half the width of the intervals of the keys that went, median and worst; 0 when none went."""
        pairs = zip(self.seen_us, self.gone_us, strict=True)
        widths = sorted(gone - seen for seen, gone in pairs if gone != NONE) or [0]
        return widths[len(widths) // 2] / 2000, widths[-1] / 2000

    @property
    def events_said(self) -> str:
        """How many events were heard, and why no more where that is not the server's silence."""
        heard = sum(1 for event in self.event_us if event != NONE)
        if self.events == "heard":
            return f"{heard:,} of {len(self):,} events came"
        if heard:
            return f"{heard:,} of {len(self):,} events heard; then {UNHEARD[self.events]}"
        return f"events not heard: {UNHEARD[self.events]}"

    def life_ms(self, index: int) -> tuple[float, float]:
        """Return the least and the most that a key can have lived; infinity for one that still does."""
        gone = self.gone_us[index]
        least = max(0, self.seen_us[index] - self.begun_by_us[index]) / 1000
        return least, float("inf") if gone == NONE else (gone - self.begun_us[index]) / 1000

    def to_frame(self) -> pd.DataFrame:
        """Return a row a key: TTLs and lives in seconds, times in UTC; NaN and NaT for what was not seen.

        ``configured_ttl_s`` is infinity where the key was meant to live for ever.
        """
        import numpy as np
        import pandas as pd

        def seconds(values: array[int], per_s: int) -> Any:
            numbers = np.array(values, dtype=float)
            return np.where(numbers == NONE, np.nan, numbers) / per_s

        def times(values: array[int]) -> Any:
            return pd.to_datetime([None if value == NONE else value for value in values], unit="us", utc=True)

        configured = seconds(self.ttl_ms, 1000)
        configured[configured == NEVER / 1000] = np.inf
        gone, begun, deadline = (seconds(v, 1_000_000) for v in (self.gone_us, self.begun_us, self.deadline_us))
        return pd.DataFrame(
            {
                "key": self.keys,
                "configured_ttl_s": configured,
                "granted_ttl_s": deadline - begun,
                "life_min_s": np.maximum(0, seconds(self.seen_us, 1_000_000) - seconds(self.begun_by_us, 1_000_000)),
                "life_max_s": gone - begun,
                "event_late_max_s": np.maximum(0, seconds(self.event_us, 1_000_000) - deadline),
                "begun_at": times(self.begun_us),
                "deadline_at": times(self.deadline_us),
                "last_seen_at": times(self.seen_us),
                "first_gone_at": times(self.gone_us),
                "event_at": times(self.event_us),
                "end": pd.Categorical.from_codes(list(self.ends), categories=list(ENDS)),
            }
        )

    def groups(self) -> list[Group]:
        """Return the keys by TTL that was meant, shortest first, then those meant to have none, those not known."""
        rows: dict[int, list[int]] = {}
        for index, ttl in enumerate(self.ttl_ms):
            rows.setdefault(ttl, []).append(index)
        return [Group.of(self, ttl, rows[ttl]) for ttl in sorted(rows, key=lambda ttl: (ttl < 0, ttl))]

    @property
    def verdict(self) -> str:
        """One sentence: did the keys live as long as was meant? The same words for the same outcome.

        "Not known" where none was odd, but the ends of some were seen so late that they may have lived twice as long.
        """
        groups = self.groups()
        wrong = [group for group in groups if group.odd]
        if wrong or any(group.ttl_ms is None for group in groups):
            return f"Not as meant: {_told(wrong)}." if wrong else f"{_told(groups)}."
        if unknown := sum(group.unknown for group in groups):
            return f"Not known: {_keys(unknown)} may have lived more than twice as long as meant; seen gone too late."
        return self._as_meant(groups) if groups else "No keys to observe."

    def _as_meant(self, groups: Sequence[Group]) -> str:
        alive = self.counts().get("alive", 0)
        on = f"{_keys(alive)} {'lives' if alive == 1 else 'live'} on."
        expired = [group for group in groups if group.life_ms]
        if not expired:
            return f"As meant so far: {on}"
        gone = len(self) - alive
        ttls = " to ".join(dict.fromkeys(_ttl(cast("float", group.ttl_ms)) for group in (expired[0], expired[-1])))
        keys = _keys(gone) if not alive else f"{gone:,} of {_keys(len(self))}"
        said = f"As meant: {keys} lived {'its' if gone == 1 else 'their'} TTL of {ttls} and expired"
        return f"{said}; {on}" if alive else f"{said}."

    def __str__(self) -> str:
        typical, worst = self.exact_to_ms
        said = f"{self.verdict} Seen on {self.server}, {self.clock}, exact to {typical:.3g} ms (worst {worst:.3g} ms)."
        return said if self.events == "heard" else f"{said} {self.events_said.capitalize()}."

    __repr__ = __str__

    def _repr_html_(self) -> str:
        groups = self.groups()
        rows = [group.cells() for group in groups[:MAX_ROWS]]
        if len(groups) > MAX_ROWS:
            rows.append((f"{len(groups) - MAX_ROWS:,} more TTLs", "", "", "", "", ""))
        return html_table(str(self), ("TTL meant", "keys", "end", "lived", "exact to", "event late by"), rows)


@dataclass(frozen=True, slots=True)
class Group:
    """The keys of one TTL: how many came to which end, and the range of the lives that ended (None: none did).

    ``ttl_ms``: infinity: meant to live for ever; None: not known. ``odd`` are those that
    lived shorter or longer than their TTL by over 1 %, or ended otherwise than by it, or have one and were meant to
    have none; ``unknown`` those that were seen gone so late that their lives may have been twice as long.
    """

    ttl_ms: float | None
    keys: int
    ends: Mapping[End, int]
    life_ms: tuple[float, float] | None
    exact_to_ms: float
    event_late_ms: float | None
    heard: bool = True
    unknown: int = 0
    odd: Group | None = None

    @classmethod
    def of(cls, log: ExpiryLog, ttl: int, rows: Sequence[int], *, compare: bool = True) -> Group:
        """Return what a log's rows say; lives are middles of their intervals."""
        gone = [index for index in rows if log.gone_us[index] != NONE]
        intervals = [log.life_ms(index) for index in gone]
        middles = [(least + most) / 2 for least, most in intervals]
        timed = [i for i in gone if NONE not in (log.event_us[i], log.deadline_us[i])]
        ends = Counter(ENDS[log.ends[index]] for index in rows)
        odd = [index for index in rows if _odd(log, index, ttl)] if compare and ttl != NONE else []
        return cls(
            _meant(ttl),
            len(rows),
            {end: ends[end] for end in ENDS if ends[end]},
            (min(middles), max(middles)) if middles else None,
            max((most - least for least, most in intervals), default=0) / 2,
            # 6.2 tells a deadline to some milliseconds: an event may seem to come before it.
            max((max(0, log.event_us[i] - log.deadline_us[i]) / 1000 for i in timed), default=None),
            log.events == "heard",
            sum(1 for index, (_, most) in zip(gone, intervals, strict=True) if most > 2 * ttl + UNKNOWN_MS),
            cls.of(log, ttl, odd, compare=False) if odd else None,
        )

    @property
    def lived(self) -> str:
        """The range of the lives that ended, in words."""
        if self.life_ms is None:
            return "not expired" if "alive" in self.ends else "not there"
        low, high = (about(ms) for ms in self.life_ms)
        return f"lived {low}" if low == high else f"lived {low} to {high}"

    def __str__(self) -> str:
        told, whole = (self.odd, f" of {self.keys:,}") if self.odd and self.odd.keys < self.keys else (self, "")
        (count, fate), *others = told.fates()
        # One of two keys, but one key of one.
        noun = "key" if (self.keys if whole or not others else count) == 1 else "keys"
        meant = f" meant to {_live(self.ttl_ms)}" if self.ttl_ms is not None else ""
        return ", ".join([f"{count:,}{whole} {noun}{meant} {fate}", *(f"{more:,} {then}" for more, then in others)])

    def fates(self) -> list[tuple[int, str]]:
        """Return what became of how many: those whose lives ended and how, those that live on, those never there."""
        alive, absent = self.ends.get("alive", 0), self.ends.get("absent", 0)
        ended = {end: count for end, count in self.ends.items() if end not in ("alive", "absent")}
        found = [
            (sum(ended.values()), f"{self.lived} ({_counted(ended)})"),
            (alive, f"{'has' if alive == 1 else 'have'} {self._life_so_far} (alive)"),
            (absent, f"{'was' if absent == 1 else 'were'} not there"),
        ]
        return [fate for fate in found if fate[0]]

    @property
    def _life_so_far(self) -> str:
        return "a TTL" if self.ttl_ms == float("inf") and not self.odd else "not expired"

    @property
    def ended(self) -> str:
        """How they ended, with counts where there is more than one way."""
        return _counted(self.ends)

    @property
    def how_odd(self) -> float:
        """By what factor a life missed its TTL at worst."""
        if not self.ttl_ms or self.life_ms is None:
            return 1.0
        low, high = (max(life, 1.0) / self.ttl_ms for life in self.life_ms)
        return max(1 / low, high)

    def cells(self) -> tuple[str, ...]:
        """Return a row of the table."""
        none = "no event" if self.heard else "not heard"
        late = none if self.event_late_ms is None else f"at most {about(self.event_late_ms)}"
        meant = "unknown" if self.ttl_ms is None else _ttl(self.ttl_ms) if self.ttl_ms < float("inf") else "never ends"
        return (
            meant,
            f"{self.keys:,}",
            self.ended,
            self.lived.removeprefix("lived "),
            f"{self.exact_to_ms:.3g} ms",
            late,
        )


def html_table(caption: str, titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table as HTML, escaped; its text is set to the left, where JupyterLab sets all to the right."""
    left = ' style="text-align:left"'
    head = "".join(f"<th{left}>{escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(f'<td{left}>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    top = f"<caption{left}>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
    return f"<table>{top}<tbody>{body}</tbody></table>"


def _told(groups: Sequence[Group]) -> str:
    """Three groups in full; of more their number and the worst."""
    if len(groups) <= 3:
        return "; ".join(map(str, groups))
    keys = sum((group.odd or group).keys for group in groups)
    worst = max(groups, key=lambda group: group.how_odd)
    return f"{_keys(keys)} of {len(groups):,} TTLs, at worst {worst}"


def _counted(ends: Mapping[End, int]) -> str:
    if len(ends) == 1:
        return next(iter(ends))
    return ", ".join(f"{count:,} {end}" for end, count in ends.items())


def _live(ttl_ms: float) -> str:
    return f"live {_ttl(ttl_ms)}" if ttl_ms < float("inf") else "live for ever"


def _ttl(ms: float) -> str:
    exact = ttl_text(ms)
    return about(ms) if exact.endswith("ms") and ms > 1000 else exact


def _keys(count: int) -> str:
    return f"{count:,} {'key' if count == 1 else 'keys'}"


def _meant(ttl: int) -> float | None:
    return {NONE: None, NEVER: float("inf")}.get(ttl, ttl)


def at(us: int) -> datetime:
    """Return the instant of a column's value."""
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=us)


def _at_or_none(us: int) -> datetime | None:
    return None if us == NONE else at(us)


def _odd(log: ExpiryLog, index: int, ttl: int) -> bool:
    end = ENDS[log.ends[index]]
    if ttl == NEVER:
        return end != "alive" or log.deadline_us[index] != NONE
    least, most = log.life_ms(index)
    slack = max(ttl * 0.01, 2.0)
    return end not in ("expired", "alive") or most < ttl - slack or least > ttl + slack


def about(ms: float) -> str:
    """Return a duration in its two largest units: ``6d 23h``, ``5m``, ``2m 5s``, ``1.5s``, ``12ms``."""
    sign, rest = "-" if ms < 0 else "", round(abs(ms))
    if rest < 1_000:
        return f"{sign}{rest}ms"
    if rest < 59_950:
        return f"{sign}{rest / 1000:.3g}s"
    rest = round(rest / 1000)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
    return sign + " ".join(part for part in parts[:2] if part)
