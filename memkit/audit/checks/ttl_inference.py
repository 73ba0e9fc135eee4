"""Which TTL sessions were really given and since when, from deadlines and idle clocks alone. Pure, no I/O.

A server reports the deadline and the last access of each key. A write that sets the TTL is an access, so the deadline
minus the last access (``given_ms``) is the TTL that was set, or less if the key was read since: never more. A low value
may therefore be a read of an old session. Facts that exclude this, in order of strength:

- the server started empty, and is younger than the key would be;
- deadline and last access vary from key to key and their difference does not: reads cannot do that;
- the server has executed fewer commands that leave the TTL than there are such keys, against a job at one age;
- hardly any key without an access has such a deadline, although most other keys were not accessed.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from memkit.audit.checks.ttl_peaks import (
    AROUND,
    FEWEST,
    IDLE_GRAIN_MS,
    SURE_NATS,
    TOGETHER_MS,
    TtlPeak,
    best_peak,
    longest,
    quantile,
    start_of,
    surprise,
    ttl_peaks,
)
from memkit.audit.finding import Confidence, Since
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation
from memkit.policy import MAX_TTL_MS
from memkit.render import duration

PAIRED = 600
"""Of more deadlines or accesses every nth is paired: 600 give a chance to 0.3 %."""
ONE_WRITE_MS = 30_000
"""A job that writes or reads many sessions takes less."""
DOUBT_NATS = 3.0
"""A chance of 1 in 20: reason enough to doubt a suspicion, not to raise one."""
FEWEST_MOMENTS = 10
"""Fewer moments of writing do not show when sessions are written and read, and may look evenly spread by chance."""
CONFIGURED_STEP_MS = 300_000
"""A TTL of a multiple of five minutes, to the idle clock's grain, is a coincidence with a chance of 1 %."""
IMPROBABLE = 0.0011
"""Highest chance at which a few keys near their deadline are called too short: 300 s left of 7 d are 0.0005. The chance
of a thousandth, milliseconds taken for seconds, is 0.001; the idle clock's grain may add a tenth to that.
"""
RARE = 0.005
"""If reads alone put fewer keys than this so near to their deadline, one such key is reason to look again."""
STOPPED_GAPS = 5
"""Writes that go on pause for five times the usual gap with a chance of 0.7 %."""
NEARLY_ALL, SOME = 0.9, 0.05
"""One cause explains nearly all keys; some have been read meanwhile, or belong to another."""
LATEST_READ = 0.1
"""A job that reads every session at one age is taken to do so while more than this share of the TTL is left."""
CROWDED, DESERTED = 10, 1.5
"""Keys near their deadline are a group of their own if they are ten times as dense as the others, and if no other key
has up to 1.5 times as much left as the last of them.
"""
EXACT_SHARE, EXACT_MS = 0.002, 650
"""A TTL without jitter is known to a fraction of a second: 10 minutes is not 604.8 s."""
TICK_MS, TICK_SHARE = 1_000, 1 / 7
"""Keys of one moment are all off by the same part of the idle clock's second: 24 seconds are seen as up to 25, and 7
as up to 8. Shorter TTLs may be off by a seventh.
"""
JITTERED_SHARE = 0.015
"""The middle of the values that keys of a jittered TTL were given is at most this share of the TTL beside it."""
JITTERED_TIMES = 2
"""The expected TTL has jitter if twice as many keys seem to be given more than it as exactly it. Accesses that a save
hides make as many seem so without jitter (416 and 431, with a save in each step of a drawn world).
"""
READ_LATER_TIMES = 4
"""Traffic is hardly ever four times that of the stretches around it: by day it is two to three times that by night."""
LEAST_LEFT, UNREAD_SHARE = 0.5, 0.45
"""Renewal that is throttled on purpose leaves at least half of the TTL (ASP.NET Core: half; langgraph-redis: 60 %). It
never leaves less than UNREAD_SHARE: a tenth less, for clocks that were set meanwhile.
"""
IDLE_WRAP_MS = (1 << 24) * 1_000
"""The idle clock has 24 bits of seconds: 194 days."""
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
UNIT_FACTORS = {
    24: (DAY_MS, "days", "hours"),
    60: (MINUTE_MS, "minutes", "seconds"),
    1_000: (1, "seconds", "milliseconds"),
    1_440: (DAY_MS, "days", "minutes"),
    3_600: (HOUR_MS, "hours", "seconds"),
    60_000: (MINUTE_MS, "minutes", "milliseconds"),
    86_400: (DAY_MS, "days", "seconds"),
    1_000_000: (1, "seconds", "microseconds"),
    10_000_000: (1, "seconds", "ticks of 100 ns"),
    1_000_000_000: (1, "seconds", "nanoseconds"),
}
"""Factor: the longer TTL is a whole number of this unit, such as days that were taken for hours."""


class KeyLifetime(NamedTuple):
    """One key with a deadline, in milliseconds: what is left, the TTL it was given at least, and its deadline.

    ``known``: whether it has an idle clock of its own, or the server reports none at all.
    """

    left: int
    given: int
    deadline: int
    known: bool = True

    @property
    def accessed(self) -> int:
        """When it was written or read last, on the server's clock."""
        return self.deadline - self.given

    @property
    def event(self) -> tuple[int, int]:
        """The moment of its deadline and of its last access; equal for keys that were handled together."""
        return self.deadline // TOGETHER_MS, self.accessed // TOGETHER_MS


class Suspects(NamedTuple):
    """Keys in one peak of short values, and the other keys: those that were given more, up to the expected TTL."""

    peak: TtlPeak
    members: Sequence[KeyLifetime]
    others: Sequence[KeyLifetime]


@dataclass(frozen=True, slots=True)
class ServerHistory:
    """What the analysis uses of ServerFacts.

    Args:
        now_ms: The server's time.
        started_ms: When the server started.
        empty_start_ms: When the server started empty; None if it loaded data, or may have.
        reads: How many commands accessed values since the start and were no writes; None if unknown.
        touches: The same, with writes that may have left the TTL; None if unknown.
        expired: How many keys expired since the start.
        idle_known: Whether the server reports idle times.
        set_back_ms: How far the server's clock was set back at least: deadlines are so much further away.
    """

    now_ms: int
    started_ms: int | None = None
    empty_start_ms: int | None = None
    reads: int | None = None
    touches: int | None = None
    expired: int = 0
    idle_known: bool = True
    set_back_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TtlAnomaly:
    """Keys with a TTL that is too short or too long.

    Args:
        kind: Which of both.
        ttl_ms: The TTL that they were given.
        jitter: How far it varies, as a share of it.
        keys: How many keys have it.
        confidence: How sure that is.
        since: Since when, or until when.
        first_seen_ms: When the first of them that still exists was written.
        reasons: Why it cannot be reads of old sessions.
        still_expected: How many keys were given the expected TTL after the first of these was written.
    """

    kind: Literal["short", "long"]
    ttl_ms: float
    jitter: float = 0.0
    keys: int
    confidence: Confidence
    since: Since | None = None
    first_seen_ms: int | None = None
    reasons: tuple[str, ...] = ()
    still_expected: int = 0

    def unit_mistake(self, expected_ms: int) -> tuple[float, str] | None:
        """Return the exact TTL and the mistake in words, if the TTL is off by a factor of ``UNIT_FACTORS``."""
        for factor, (unit_ms, longer, shorter) in UNIT_FACTORS.items():
            exact = expected_ms * factor if self.kind == "long" else expected_ms / factor
            if max(exact, expected_ms) % unit_ms:
                continue
            near = JITTERED_SHARE * exact if self.jitter else max(_error_ms(exact), min(TICK_MS, TICK_SHARE * exact))
            if abs(self.ttl_ms - exact) <= near:
                taken = f"{shorter} taken for {longer}" if self.kind == "long" else f"{longer} taken for {shorter}"
                return exact, f"too {self.kind} by a factor of exactly {factor:,}: {taken}"
        return None


def rounded(ms: float) -> float:
    """Return the nearest TTL that a person would write if it is within the grain, otherwise the same.

    Both ends of the idle clock err in one direction if the server is busy, and hardly anyone configures 301 s.
    """
    for size in (DAY_MS, HOUR_MS, 5 * MINUTE_MS, MINUTE_MS, 30_000, 5_000, 1_000):
        near = max(_error_ms(ms), IDLE_GRAIN_MS if size >= MINUTE_MS else 0)
        if round(ms / size) and abs(ms - round(ms / size) * size) <= near:
            return float(round(ms / size) * size)
    return float(ms)


def _off_configured(ms: float) -> float:
    return abs(ms - round(ms / CONFIGURED_STEP_MS) * CONFIGURED_STEP_MS)


def _error_ms(ms: float) -> float:
    return max(EXACT_SHARE * ms, EXACT_MS)


def lifetimes_of(keys: Sequence[KeyFacts], history: ServerHistory) -> list[KeyLifetime]:
    """Return the lifetimes of the keys that have a deadline."""
    found = []
    for _, _, deadline, touched, seen, _ in keys:
        if deadline is not None:
            known = touched is not None or not history.idle_known
            found.append(KeyLifetime(deadline - seen, deadline - (touched or seen), deadline, known))
    return found


def common_ttl(lifetimes: Sequence[KeyLifetime]) -> float | None:
    """Return the TTL in ms that most of these keys seem to be given, without an expectation; None if there is none."""
    lifetimes = [one for one in lifetimes if one.known]
    if len(lifetimes) < FEWEST:
        return None
    values = sorted(one.given for one in lifetimes)
    peak = best_peak(values, spread_over=values[-1])
    if peak is None:
        return None
    members = [one for one in lifetimes if peak.holds(one.given)]
    return rounded(_ttl_of_peak(members, peak)[0])


class LifetimeAnalysis:
    """The keys of one pattern that have a deadline, sorted by what their deadlines can mean under one expected TTL.

    Args:
        keys: The keys.
        expected: The expectation.
        history: What the server reports.
        ttl_ms: The TTL, if the expectation has several; None: the longest.
    """

    def __init__(
        self, keys: Sequence[KeyFacts], expected: Expectation, history: ServerHistory, *, ttl_ms: int | None = None
    ) -> None:
        self.ttl = ttl_ms or expected.ttl_ms or MAX_TTL_MS
        self.jitter = expected.tolerance
        self.sliding = expected.policy.kind == "sliding"
        self.history = history
        slack = min(TOGETHER_MS, SOME * self.ttl)
        self.floor = self.ttl * (1 - self.jitter) - slack
        self.ceiling = self.ttl * (1 + self.jitter) + slack + history.set_back_ms
        lifetimes = lifetimes_of(keys, history)
        # The idle clock begins again after 194 days: an access may be as much earlier if the server is older.
        if self.ttl > IDLE_WRAP_MS and history.now_ms - (history.empty_start_ms or 0) > IDLE_WRAP_MS:
            lifetimes = [one._replace(known=one.known and one.given + IDLE_WRAP_MS > self.ceiling) for one in lifetimes]
        # Without an idle clock of its own, a key counts as not accessed since the last write.
        self.all = [one if one.known else one._replace(given=max(self.ttl, one.left)) for one in lifetimes]
        self.long = [one for one in self.all if one.given > self.ceiling]
        agree = len(self.long) >= FEWEST and not longest(sorted(one.given for one in self.long)).wide
        most = self.ceiling - self.jitter * self.ttl * agree  # keys that were given one TTL show no jitter
        if not any(one.left > most for one in self.long):
            # An idle clock alone is no proof: keys written within 100 ms after a jump of the clock look too idle.
            self.long = []
        top = self.ceiling if self.long else math.inf
        self.right = [one for one in self.all if self.floor <= one.given <= top]
        # A load that reset the idle clock makes the value too low, never too high.
        self.reached = [one for one in lifetimes if self.floor <= one.given <= self.ceiling]
        # Each has an idle clock of its own: without one, a key counts as given a whole TTL.
        self.short = sorted((one for one in self.all if one.given < self.floor), key=lambda one: one.given)

    @property
    def within(self) -> list[KeyLifetime]:
        """The lifetimes that are not longer than expected."""
        return [one for one in self.all if one.given <= self.ceiling or not self.long]

    def stopped_at(self) -> int | None:
        """Return when the last key that is not longer than expected was written, if such writes have stopped since."""
        last = self.last_write(self.within)
        stopped = last is not None and have_stopped([one.deadline for one in self.within], self.history.now_ms - last)
        return last if stopped else None

    def anomalies(self) -> list[TtlAnomaly]:
        """Return what is wrong with these lifetimes; nothing if all may have been given the expected TTL."""
        return [one for one in (self._too_long(), self._too_short()) if one]

    def unexplained(self) -> str | None:
        """Return why keys near their deadline are more than reads and chance explain; None if they are not."""
        # Whenever a key without an idle clock of its own was accessed, it has no more than this left.
        near = [*self.short, *(one._replace(given=one.left) for one in self.all if not one.known)]
        events = sorted({one.event: one.given for one in near}.values())
        all_events = len({one.event for one in self.all})
        for count, given in enumerate(events, 1):
            if given > LATEST_READ * self.ttl:
                break
            usual = all_events * given / self.ttl
            if usual < RARE or (count >= 2 and surprise(count, usual) > 2 * DOUBT_NATS):
                members = [one for one in near if one.given <= given]
                if not self._has_untouched(members):
                    return self._why_so_little_is_left(given, members)
        for peak in self._peaks() if self.history.idle_known else ():
            if not peak.wide and peak.high <= LATEST_READ * self.ttl and not self._is_of_one_job(peak):
                return self._why_so_little_is_left(peak.high, [one for one in self.short if one.given <= peak.high])
        unread = [one for one in self.short if one.accessed > (self.history.started_ms or math.inf)]
        if self.history.idle_known and self.too_few_touches(unread, NEARLY_ALL):
            return self._why_so_little_is_left(unread[-1].given, unread)
        old = self._accessed_unrenewed()
        return self._why_so_little_is_left(old[-1].given, old) if old else None

    def _is_of_one_job(self, peak: TtlPeak) -> bool:
        """Whether all keys of a peak were accessed at one time, and as many others then: by a nightly copy, say."""
        accesses = [one.accessed for one in self.all if peak.holds(one.given)]
        first, last = min(accesses), max(accesses)
        together = sum(first - ONE_WRITE_MS <= one.accessed <= last + ONE_WRITE_MS for one in self.all)
        return last - first <= ONE_WRITE_MS and together >= 2 * len(accesses)

    def _why_so_little_is_left(self, given: float, members: Sequence[KeyLifetime]) -> str:
        most = f"{duration(given)} of the expected {duration(self.ttl)}"
        known = self.history.idle_known and all(one.known for one in self.all)
        left = "had at most {} left at their last access" if known else "have at most {} left"
        return f"{len(members):,} of {len(self.all):,} keys {left.format(most)}, which reads and chance do not explain"

    def unrenewed(self) -> list[KeyLifetime]:
        """Return keys that were accessed long after their TTL was set, if the server's reads do not explain that."""
        # On a server that started empty no TTL was set before.
        started = self.history.empty_start_ms or 0
        return [one for one in self._accessed_unrenewed() if one.deadline - self.ttl >= started]

    def _accessed_unrenewed(self) -> list[KeyLifetime]:
        """Return keys with little of the TTL left after their last access, if the server has hardly read values."""
        history = self.history
        started = history.started_ms or history.now_ms
        old = [one for one in self.short if one.given < UNREAD_SHARE * self.ttl and one.accessed > started]
        unread = history.idle_known and history.reads is not None and history.reads < len(old) / 2
        return old if self.sliding and unread and len(old) >= max(FEWEST, SOME * len(self.all)) else []

    def _too_long(self) -> TtlAnomaly | None:
        """Return the keys over the TTL: what was set is at least what is seen."""
        if len(self.long) < FEWEST and len(self.long) <= SOME * len(self.all):
            return None
        peak = longest(sorted(one.given for one in self.long))
        members = [one for one in self.long if peak.holds(one.given)]
        idle_known = self.history.idle_known
        ttl, jitter = _ttl_of_peak(members, peak) if idle_known else (max(one.given for one in members), 0.0)
        # One deadline for all, such as the end of a year, is no time of writing.
        first = min(min(one.deadline for one in members) - peak.low, *(one.accessed for one in members))
        # A key of the longer TTL that was read looks like one of the expected: only exact ones count, and of these
        # only those from before, if there are hardly any others.
        exact = [one for one in self.right if abs(one.given - self.ttl) <= IDLE_GRAIN_MS]
        before = [one for one in exact if one.deadline - self.ttl <= first + TOGETHER_MS]
        hidden = len(exact) - len(before) > max(2, SOME * len(exact))
        last = None if hidden else self.last_write(before)
        since = Since(math.ceil(first), "upper bound") if last is None else Since(last, "lower bound")
        written = [round(one.deadline - peak.low) for one in members]
        ended = self._ended(written, [round(one.deadline - self.ttl) for one in exact])
        since = since if ended is None else Since(ended, "until")
        both = len(exact) - len(before) if hidden and ended is None else 0
        over = sum(one.left > self.ttl for one in self.long)
        return TtlAnomaly(
            kind="long",
            ttl_ms=ttl,
            jitter=jitter,
            keys=len(self.long),
            # One or two may be of another kind, such as a session that somebody prolonged by hand.
            confidence="proven" if len(self.long) >= min(FEWEST, len(self.all)) else "possible",
            since=since if idle_known else None,
            first_seen_ms=round(first) if idle_known else None,
            reasons=(f"keys with more time left than the expected TTL: {over:,}",),
            still_expected=both,
        )

    def _too_short(self) -> TtlAnomaly | None:
        for peak in self._peaks():
            anomaly = self._judge(peak)
            if anomaly:
                return anomaly
        gap = self._gap_in_time_left() if self.short else None
        return gap if gap and gap.confidence == "likely" else self._nearly_expired() or gap

    def _peaks(self) -> list[TtlPeak]:
        values = [one.given for one in self.short]
        # Keys written together and read together are one witness of a TTL with jitter, not many.
        apart = {one.event: one.given for one in self.short}
        found = ttl_peaks(values, sorted(apart.values()), spread_over=self.floor)
        return sorted(found, key=lambda one: (one.wide, -one.count))

    def _judge(self, peak: TtlPeak) -> TtlAnomaly | None:
        """Decide whether a peak of short values is a short TTL or can be sessions that were read."""
        members = [one for one in self.short if peak.holds(one.given)]
        others = [one for one in self.all if peak.high < one.given <= self.ceiling]
        suspects = Suspects(peak, members, others)
        confidence: Confidence | None = "proven"
        reason = "the server started empty, so recently that keys with the expected TTL would expire later"
        if not self._younger_than_the_server(members):
            explain = self._constant_difference if self._is_no_chance(peak) else self._written_at_once
            confidence, reason = explain(suspects)
        if confidence is None:
            return None
        if self._may_be_copied(members) and not self._is_configured(peak, members):
            confidence, reason = "possible", f"{reason}; or a script copied these keys with their remaining TTLs"
        count = sum(one.given <= peak.high for one in self.short)
        return self._short_anomaly(suspects, count, confidence, reason)

    def _may_be_copied(self, members: Sequence[KeyLifetime]) -> bool:
        """Whether a script may have written these with what was left of their TTLs elsewhere: in a migration, say.

        Then what was left varies as much as the times of writing do. One TTL for all does not vary with them.
        """
        given, accesses = spread([one.given for one in members]), spread([one.accessed for one in members])
        return accesses < max(2 * given, TOGETHER_MS)

    def _is_configured(self, peak: TtlPeak, members: Sequence[KeyLifetime]) -> bool:
        """Whether this TTL is one that people configure, or so short that hardly any copied session would have it."""
        if peak.high <= IMPROBABLE * self.ttl:
            return True
        middle = quantile(sorted(one.given for one in members), 0.5)
        return _off_configured(middle) <= IDLE_GRAIN_MS

    def _is_no_chance(self, peak: TtlPeak) -> bool:
        """Whether reads that are independent of the writes before them would not put so many keys here.

        Every deadline is paired with every access: what is written on a grid and read on a grid (each hour, each day,
        all at once) has many pairs there, and a TTL has few, for deadline and access are one moment there.
        """
        events = list({one.event: one for one in self.short}.values())
        count = sum(peak.holds(one.given) for one in events)
        accesses = [one.accessed for one in events]
        usual = _paired([one.deadline for one in events], accesses, peak, self.floor) * len(events)
        return count >= FEWEST and surprise(count, usual) > SURE_NATS

    def _younger_than_the_server(self, members: Sequence[KeyLifetime]) -> bool:
        """Whether the server is too young for these keys to be old ones that were read."""
        if self.history.empty_start_ms is None:
            return False
        age = self.history.now_ms - self.history.empty_start_ms
        own = sum(one.left + age < self.floor for one in members)
        return own > NEARLY_ALL * len(members)

    def _constant_difference(self, suspects: Suspects) -> tuple[Confidence | None, str]:
        peak, members, others = suspects
        constant = (
            "deadlines and last accesses vary, but their difference is the same for all keys; reads cannot do that"
        )
        by_job = f"{constant}, unless a job reads sessions at one age"
        # People who come back at the same hour every day make a wide heap of reads; but not one that began when the
        # writes under the expected TTL ended, and none near the short end.
        switched = self._when(suspects).bound == "lower bound"
        if peak.wide and others and not switched and peak.low > LATEST_READ * self.ttl:
            return None, ""
        # Without other sessions, a job that reads them before half of their TTL has passed explains these keys too.
        shown = len(others) >= FEWEST or peak.low <= self.ttl / 2 or self.too_few_touches(members)
        if not self._read_at_one_age(suspects) and shown:
            # Chance can imitate a jitter (3 of 77,000 healthy samples, simulated). If all writes have paused, a job
            # that goes on reading sessions at one age looks like a new TTL.
            if self._may_be_a_job(suspects):
                return "possible", by_job
            late = peak.low > LATEST_READ * self.ttl and not self.too_few_touches(members)
            return ("likely", by_job if late else constant) if peak.wide or late else ("proven", constant)
        untouched = self._has_older_unread(peak, others)
        return ("possible", by_job) if untouched or len(others) < FEWEST else (None, "")

    def _has_older_unread(self, peak: TtlPeak, others: Sequence[KeyLifetime]) -> bool:
        """Whether a session is older than the reads that would explain these keys, and was not read."""
        return any(one.left < peak.low for one in others if one.given >= self.floor)

    def _may_be_a_job(self, suspects: Suspects) -> bool:
        """Whether a job may have read each session that is older than one age, and the others are younger."""
        peak, members, others = suspects
        if peak.low <= LATEST_READ * self.ttl or self.too_few_touches(members):
            return False
        return len(others) >= FEWEST and not self._has_older_unread(peak, others)

    def _read_at_one_age(self, suspects: Suspects) -> bool:
        """Whether a job that accesses sessions a fixed time after their TTL was set explains these keys.

        It does if these are the oldest sessions. It does not near the end of the TTL, without as many commands that
        leave the TTL, if writes under the expected TTL have ended since, or if far more sessions would have to have
        been written in the time that these deadlines imply than around it.
        """
        peak, members, _ = suspects
        if self.too_few_touches(members):
            return False
        if self._are_the_oldest(peak, members):
            return True
        if peak.low <= LATEST_READ * self.ttl:
            return False
        if self._when(suspects).bound == "lower bound":
            return False
        ends = sorted(one.deadline for one in self.right)
        deadlines = sorted(one.deadline for one in members)
        first, last = quantile(deadlines, SOME), quantile(deadlines, 1 - SOME)
        width = max(last - first, TOGETHER_MS)
        low = max(self.history.now_ms, first - AROUND * width)
        high = min(self.history.now_ms + self.ttl, last + AROUND * width)
        near = [one for one in ends if low <= one <= high]
        inside = sum(first <= one <= last for one in near)
        around = high - low - width
        usual = (len(near) - inside) * width / max(around, 1)
        count = round((1 - 2 * SOME) * len(members) + inside)
        return count <= READ_LATER_TIMES * usual

    def _are_the_oldest(self, peak: TtlPeak, members: Sequence[KeyLifetime]) -> bool:
        """Whether hardly any other key ends among these, although many end from then on.

        If these were new sessions with a short TTL, older ones would still end at the same time.
        """
        ends = [one.deadline for one in members]
        first, last, width = min(ends), max(ends), max(ends) - min(ends)
        others = [one.deadline for one in self.all if not peak.holds(one.given)]
        inside = sum(first <= one <= last for one in others)
        after = [one - last for one in others if last < one <= last + width]
        if inside >= len(after):
            return False
        lacking = len(after) - inside + (inside * math.log(inside / len(after)) if inside else 0)
        return lacking > SURE_NATS

    def too_few_touches(self, members: Sequence[KeyLifetime], share: float = 0.5) -> bool:
        """Whether the server has executed too few commands that leave the TTL to explain this share of these keys."""
        touches = self.history.touches if self.sliding else None
        return touches is not None and touches < share * len(members)

    def _written_at_once(self, suspects: Suspects) -> tuple[Confidence | None, str]:
        """Decide between keys written in one go and old ones of one go that were all read in one go."""
        peak, members, others = suspects
        if not self.history.idle_known or (not peak.wide and self._read_at_one_age(suspects)):
            return None, ""
        sure: Confidence = "possible" if self._may_be_a_job(suspects) else "likely"
        if self._is_unlike(suspects):
            return sure, "reads of older sessions do not explain so many keys with such deadlines"
        accesses = [one.accessed for one in members]
        if (peak.wide and spread(accesses) > SOME * peak.low) or self._has_untouched(members):
            return None, ""
        # A key without an idle clock of its own may have been read before the server loaded it.
        known = [one for one in others if one.known]
        exact = sum(abs(one.given - self.ttl) < TOGETHER_MS for one in known)
        share = (len(known) - exact + 1) / (len(known) + 1)
        if len(members) * -math.log(share) < SURE_NATS:
            return None, ""
        read = f"at most {math.ceil(100 * share)}% of the others were read"
        return sure, f"no session with such a deadline is unread, although {read}"

    def _is_unlike(self, suspects: Suspects) -> bool:
        """Whether reads of sessions like the others would explain far fewer keys with such deadlines.

        Not for what was written in one go and accessed in one go: one event, however many keys.
        """
        peak, members, others = suspects
        first = _onset(suspects)
        accesses = [one.accessed for one in members]
        at_once = max(spread(accesses), spread([one.deadline for one in members])) <= ONE_WRITE_MS
        if at_once or len({one.deadline // ONE_WRITE_MS for one in others}) < FEWEST_MOMENTS:
            return False
        renewed = sum(one.accessed > first + TOGETHER_MS for one in others if one.given >= self.floor)
        if renewed > SOME * len(members):
            return False
        after = [one.accessed for one in self.short if one.accessed >= first]
        usual = _paired([one.deadline for one in others], after, peak, self.floor) * len(after)
        count = sum(one >= first for one in accesses)
        return surprise(count, usual) > SURE_NATS

    def _has_untouched(self, members: Sequence[KeyLifetime]) -> bool:
        """Whether sessions of the expected TTL have these deadlines too and were not accessed: more than by chance."""
        deadlines = sorted(one.deadline for one in members)
        first, last = deadlines[0] - TOGETHER_MS, deadlines[-1] + TOGETHER_MS
        right = [one.deadline for one in self.right if one.known]
        beside = sum(first <= one <= last for one in right)
        stretch = max(right, default=0) - min(right, default=0)
        chance = (len(right) - beside) * (last - first) / stretch if stretch else 0.0
        return surprise(beside, chance) > DOUBT_NATS or beside >= SOME * len(members)

    def _gap_in_time_left(self) -> TtlAnomaly | None:
        """Without idle clocks, or if something read every key: short times left fill the first stretch, then a gap."""
        share_read = sum(one.given < self.floor for one in self.all) / len(self.all)
        if self.history.idle_known and share_read < NEARLY_ALL:
            return None
        lefts = sorted(one.left for one in self.all if one.given <= self.ceiling)
        count = _edge(lefts, self.ttl)
        if not count:
            return None
        top = ttl = float(lefts[count - 1])
        given = sorted(one.given for one in self.short if one.left <= top)
        if self.history.idle_known and given:
            # Reads lower most values, and an old session that was read is above them. What has no more left than that
            # may have been given it, too.
            ttl = quantile(given, NEARLY_ALL)
            count = max(count, bisect_right(lefts, ttl + TOGETHER_MS))
            top = lefts[count - 1]
        members = [one for one in self.short if one.left <= top]
        others = [one for one in self.all if top < one.left and one.given <= self.ceiling]
        young = self._younger_than_the_server(members) and not self._may_be_copied(members)
        if len(members) < count or not (others or young or self.history.expired >= count):
            return None
        reason = f"no key has more than {duration(top)} left"
        if others:
            reason = f"{count:,} keys have at most {duration(top)} left, the others at least {duration(lefts[count])}"
        peak = TtlPeak(quantile(lefts[:count], 0.5), top, count, wide=True)
        # It may be that hardly anything was written for long, and that the expired keys had the expected TTL.
        paused = top > RARE * self.ttl
        confidence: Confidence = "likely" if (others and not paused) or young else "possible"
        found = self._short_anomaly(Suspects(peak, members, others), len(members), confidence, reason)
        first = found.first_seen_ms if self.history.idle_known else None
        return replace(found, ttl_ms=ttl, jitter=0.0, keys=count, first_seen_ms=first, still_expected=0)

    def _nearly_expired(self) -> TtlAnomaly | None:
        """Judge few keys by probability: none was given much, and of the expected TTL so little is improbable."""
        if not self.short or self.right or self.long:
            return None
        top = self.short[-1].given
        # However many they are: if nothing has been written for long, all are as near to their end.
        chance = top / self.ttl
        if chance > IMPROBABLE:
            return None
        when = "had more left at its last access" if self.history.idle_known else "has more left"
        reason = f"no key {when} than {duration(top)}; with a TTL of {duration(self.ttl)}, the chance of that is at "
        reason += f"most {max(chance, 0.0001):.2%}"
        first = min(one.accessed for one in self.short) if self.history.idle_known else None
        since = None if first is None else Since(first + 1_000, "upper bound")
        return TtlAnomaly(
            kind="short",
            ttl_ms=top,
            keys=len(self.short),
            confidence="likely",
            since=since,
            first_seen_ms=first,
            reasons=(reason,),
        )

    def _short_anomaly(self, suspects: Suspects, count: int, confidence: Confidence, reason: str) -> TtlAnomaly:
        peak, members, _ = suspects
        ttl, jitter = _ttl_of_peak(members, peak)
        since = self._when(suspects)
        first = round(_onset(suspects))
        # What has no more left than the short TTL may have been given it while a save hid the access.
        if max((one.left for one in self._former(suspects)), default=0) <= peak.high:
            since = Since(math.ceil(_onset(suspects)), "upper bound")
        both = 0
        if since.bound == "upper bound":
            top = self._longest_expected(self.right)
            both = sum(one.deadline - top > first + TOGETHER_MS for one in self.right)
            ended = self._ended([one.accessed for one in members], [round(one.deadline - top) for one in self.right])
            if ended is not None:
                since, both = Since(ended, "until"), 0
        return TtlAnomaly(
            kind="short",
            ttl_ms=ttl,
            jitter=jitter,
            keys=count,
            confidence=confidence,
            since=since,
            first_seen_ms=first,
            reasons=(reason,),
            still_expected=both,
        )

    def _ended(self, writes: Sequence[int], expected_writes: Sequence[int]) -> int | None:
        """Return when the last of these writes was, if they stopped and the expected TTL is given since."""
        last = max(writes)
        after = sum(one > last + TOGETHER_MS for one in expected_writes)
        # Twice the usual proof: with ten times the usual gap, the chance is 0.00005 while they are still written.
        stopped = have_stopped(writes, (self.history.now_ms - last - TOGETHER_MS) / 2)
        return last if stopped and after >= FEWEST else None

    def _when(self, suspects: Suspects) -> Since:
        """Return since when TTLs are short: after the last write of the former TTL, or no later than the first seen.

        The former only if such writes have stopped since: a chance pause of one of two kinds of writers is not that.
        """
        first = _onset(suspects)
        upper = Since(math.ceil(first), "upper bound")
        old = self._former(suspects)
        last = self.last_write(old)
        if last is None:
            return upper
        pause_ms = self.history.now_ms - last
        stopped = not self.history.idle_known or have_stopped([one.deadline for one in suspects.others], pause_ms)
        return Since(last, "lower bound") if last <= first + TOGETHER_MS and stopped else upper

    def _former(self, suspects: Suspects) -> Sequence[KeyLifetime]:
        """Return the keys of the former TTL: of a jittered new one some values are over the peak, and do not fit it."""
        right = [one for one in suspects.others if one.given >= self.floor]
        return right if len(right) >= FEWEST else suspects.others

    def _is_jittered(self, old: Sequence[KeyLifetime]) -> bool:
        """Whether the expected TTL has jitter: a longer one was seen far more often than exactly it.

        While a child process saves or rewrites, no access is noted: what is renewed then seems to be given more.
        """
        over = sum(one.given > self.ttl + TOGETHER_MS for one in old)
        return over > JITTERED_TIMES * sum(abs(one.given - self.ttl) <= TOGETHER_MS for one in old)

    def _longest_expected(self, old: Sequence[KeyLifetime]) -> float:
        """Return the longest TTL that was given under the expected one and its jitter."""
        return self.ceiling if old and self._is_jittered(old) else self.ttl

    def last_write(self, old: Sequence[KeyLifetime]) -> int | None:
        """Return a time that the last write under the expected TTL was no earlier than: the cliff in the deadlines."""
        return round(max(one.deadline for one in old) - self._longest_expected(old)) if old else None


def have_stopped(times: Sequence[int], pause_ms: float) -> bool:
    """Return whether writes have stopped: for far longer than between those at the given times or deadlines."""
    return len(times) > 1 and pause_ms > STOPPED_GAPS * (max(times) - min(times)) / (len(times) - 1)


def ttl_of(key: KeyFacts, expected: Expectation) -> int | None:
    """Return the shortest expected TTL that leaves a key what it had left at its last access; None for never."""
    if not expected.other_ttls_ms:
        return expected.ttl_ms
    left, most = key.ttl_at_last_access_ms or 0, 1 + expected.tolerance
    return next((ttl for ttl in expected.other_ttls_ms if left <= most * ttl + TOGETHER_MS), expected.ttl_ms)


def analyses_of(keys: Sequence[KeyFacts], expected: Expectation, history: ServerHistory) -> list[LifetimeAnalysis]:
    """Return one analysis for each expected TTL, the longest last: of the keys that were not given more than it."""
    groups = {ttl: [one for one in keys if ttl_of(one, expected) == ttl] for ttl in expected.ttls_ms}
    return [LifetimeAnalysis(own, expected, history, ttl_ms=ttl) for ttl, own in groups.items()]


def _paired(deadlines: Sequence[int], accesses: Sequence[int], peak: TtlPeak, floor: float) -> float:
    """Return which share of all pairs of a deadline and an access that make a short value lies in a peak."""
    ends = deadlines[:: len(deadlines) // PAIRED + 1]
    times = sorted(accesses[:: len(accesses) // PAIRED + 1])
    low, high = peak.low - IDLE_GRAIN_MS, peak.high + IDLE_GRAIN_MS
    inside = between = 0
    for end in ends:
        between += bisect_left(times, end) - bisect_right(times, end - floor)
        inside += bisect_right(times, end - low) - bisect_left(times, end - high)
    return inside / max(between, 1)


def spread(values: Sequence[int]) -> float:
    """Return how far values are apart, without a twentieth at each end."""
    ordered = sorted(values)
    return quantile(ordered, 1 - SOME) - quantile(ordered, SOME)


def _ttl_of_peak(members: Sequence[KeyLifetime], peak: TtlPeak) -> tuple[float, float]:
    """Return the TTL behind a peak, in ms, and its jitter as a share (0: none)."""
    values = sorted(one.given for one in members)
    if not peak.wide:
        # More exact than the idle clock's grain: its errors even out.
        return sum(values) / len(values), 0.0
    low, high = quantile(values, SOME), values[-1]  # reads put a few below
    if _off_configured(high) <= IDLE_GRAIN_MS:
        return rounded(high), 0.0  # reads explain the others; a jitter hardly ends at such a TTL
    center = (low + high) / 2
    return center, (high - low) / 2 / center


def _onset(suspects: Suspects) -> float:
    """Return when the first of these was written, without a few that were read before: old ones by chance."""
    accesses = sorted(one.accessed for one in suspects.members)
    return max(start_of(accesses), quantile(accesses, SOME)) if suspects.peak.wide else start_of(accesses)


def _edge(lefts: Sequence[int], ttl: int) -> int:
    """Return how many of the smallest values are crowded together before the last such gap; 0 if there is none."""
    found = gap = 0
    for count, (before, top, after) in enumerate(zip([0, *lefts], lefts, [*lefts[1:], ttl], strict=False), 1):
        gap = max(gap, top - before)
        # Of evenly spread values hardly any gap is larger; those of a few batches have larger ones.
        even = gap <= top * (math.log(count) + DOUBT_NATS) / count
        crowded = count / max(top, 1) >= CROWDED * max(len(lefts) - count, 1) / ttl
        if count > FEWEST + 1 and top < ttl / 2 and after > DESERTED * top and crowded and even:
            found = count
    return found
