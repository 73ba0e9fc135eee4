"""Infer, from deadlines and idle clocks alone, which TTL sessions were really given and since when. Pure, no I/O.

Of one key the server tells the deadline and the last touch. A write that sets the TTL is a touch, so deadline minus
last touch is the TTL that was set, or less if the key was read since: never more. What looks like a short life may
therefore be a read of an old session. Three things tell them apart, in this order of strength:

- deadline and idle clock vary from key to key and their difference does not: reads cannot do that;
- the key is younger than the server, which has loaded nothing: what is left plus the server's age is below the TTL;
- many short lives, and hardly any untouched key with the same deadlines, although most other keys are untouched.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from memkit.audit.checks.ttl_peaks import (
    IDLE_GRAIN_MS,
    SURE_NATS,
    Cluster,
    best_cluster,
    clusters,
    longest,
    plateau,
    quantile,
    start_of,
    surprise,
)
from memkit.audit.finding import Confidence
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation
from memkit.policy import MAX_TTL_MS

ENOUGH_SHORT = 5_000
PAIRED = 600
CHANCE = 0.05
IDLE_RANGE_MS = 8_388_600_000
"""The idle clock has 24 bits of seconds; half of that is what RESTORE writes for idle times it cannot express."""
UNIT_FACTORS = (60, 1_000, 60_000)


class Life(NamedTuple):
    """One key with a deadline: what is left, the TTL it was set to or less, and when it dies; milliseconds."""

    left: int
    set: int
    deadline: int

    @property
    def touched(self) -> int:
        """When it was written or read last, on the server's clock."""
        return self.deadline - self.set


@dataclass(frozen=True, slots=True)
class Server:
    """What the analysis must know of the server. ``born_ms``: when an empty server started; None if it loaded data.

    ``reads``: how many reads of values it served since; None if unknown.
    """

    now_ms: int
    born_ms: int | None = None
    reads: int | None = None
    expired: int = 0
    idle_known: bool = True


@dataclass(frozen=True, slots=True)
class Since:
    """When a change happened, on the server's clock, and which bound that is."""

    at_ms: int
    bound: Literal["lower bound", "upper bound"]


@dataclass(frozen=True, slots=True)
class Case:
    """Keys that live too short or too long: how many, with which TTL, since when, and why that is believed."""

    kind: Literal["short", "long"]
    ttl_ms: float
    jitter: float
    keys: int
    confidence: Confidence
    since: Since | None
    first_seen_ms: int | None
    reasons: tuple[str, ...]
    top_ms: float = 0.0

    def unit_factor(self, expected_ms: int) -> int | None:
        """Return 60, 1000 or 60000 when the TTL is off by exactly that."""
        for factor in UNIT_FACTORS:
            meant = expected_ms * factor if self.kind == "long" else expected_ms / factor
            # A cluster without jitter is known to a fraction of a second: 10 minutes is not 604.8 s.
            near = 0.015 * meant if self.jitter else max(0.002 * meant, min(700.0, 0.08 * meant))
            off = abs(self.ttl_ms - meant)
            if off <= near and not (self.jitter and abs(self.ttl_ms - rounded(self.ttl_ms)) < off):
                return factor
        return None


def rounded(ms: float) -> float:
    """Return the nearest TTL that a person would write, where it is within the grain; else the same."""
    for unit, steps in ((86_400_000, (1,)), (3_600_000, (1,)), (60_000, (5, 1)), (1_000, (30, 5, 1))):
        for step in steps:
            size = unit * step
            if ms >= size and abs(ms - round(ms / size) * size) <= max(ms * 0.002, 650):
                return float(round(ms / size) * size)
    return float(ms)


def lives_of(keys: Sequence[KeyFacts]) -> list[Life]:
    """Return the lives of the keys that have a deadline."""
    lives = []
    for _, _, deadline, touched, seen, _ in keys:
        if deadline is not None:
            since = seen if touched is None or touched > seen else touched
            lives.append(Life(deadline - seen, deadline - since, deadline))
    return lives


def ttl_seen(lives: Sequence[Life]) -> float | None:
    """Return the TTL that these keys seem to be given, in ms, with no expectation to go by; None if there is none."""
    if len(lives) < 3:
        return None
    values = sorted(life.set for life in lives)
    cluster = best_cluster(values, spread_over=values[-1])
    if cluster is None or cluster.count < 0.2 * len(values):
        return None
    members = [life for life in lives if cluster.low <= life.set <= cluster.high]
    return rounded(_ttl_of(members, cluster, idle_known=True)[0])


class Lives:
    """The keys of one pattern with a deadline, sorted into what their deadlines can mean under the expected TTL."""

    def __init__(self, lives: Sequence[Life], meant: Expectation, server: Server) -> None:
        self.ttl = meant.ttl_ms or MAX_TTL_MS
        self.jitter = max(meant.jitter, 0.01)
        self.server = server
        self.floor = self.ttl * (1 - self.jitter) - min(2_000, self.ttl * 0.05)
        self.ceiling = self.ttl * (1 + self.jitter) + min(2_000, self.ttl * 0.05)
        if any(life.set - life.left >= IDLE_RANGE_MS for life in lives):
            lives = [self._in_range(life) for life in lives]
        self.all = lives
        self.long = [life for life in lives if life.set > self.ceiling]
        if not any(life.left > self.ceiling for life in self.long):
            # An idle clock alone is no proof: keys written within 100 ms after a jump of the clock look too idle.
            self.long = []
        self.right = [life for life in lives if self.floor <= life.set and (not self.long or life.set <= self.ceiling)]
        self.short = sorted((life for life in lives if life.set < self.floor), key=lambda life: life.set)

    def _in_range(self, life: Life) -> Life:
        """Untouched for longer than the idle clock can tell is untouched since the last write."""
        return life._replace(set=self.ttl) if life.set - life.left >= IDLE_RANGE_MS and life.left < self.ttl else life

    @property
    def within(self) -> list[Life]:
        """The lives that are not longer than was meant."""
        return [life for life in self.all if life.set <= self.ceiling or not self.long]

    def cases(self) -> list[Case]:
        """Return what is wrong with these lives; nothing, where they may be as they were meant."""
        return [case for case in (self._too_long(), self._too_short()) if case]

    # -- too long ------------------------------------------------------------------------------------------------------

    def _too_long(self) -> Case | None:
        """Return the case of lives over the TTL: what was set is at least what is seen."""
        if not self.long or len(self.long) < min(3, len(self.all)):
            return None
        cluster = longest(sorted(life.set for life in self.long))
        members = [life for life in self.long if cluster.low <= life.set <= cluster.high]
        ttl, jitter = _ttl_of(members, cluster, idle_known=self.server.idle_known)
        first = min(life.deadline for life in members) - cluster.low
        since = _since(self._end_of_the_right(first), first, slack=2_000)
        reasons = (f"{len(self.long):,} keys have more to live than the TTL allows",)
        return Case("long", ttl, jitter, len(self.long), "proven", since, round(first), reasons, cluster.high)

    def _end_of_the_right(self, first_new_ms: float) -> int | None:
        """Return a lower bound of the last write of the expected TTL, where the longer one is not in the way."""
        # A key of the longer TTL that was read looks like one of the expected: only exact ones count, and of these
        # only those from before.
        exact = [life for life in self.right if abs(life.set - self.ttl) <= IDLE_GRAIN_MS]
        before = [life for life in exact if life.deadline - self.ttl <= first_new_ms + 2_000]
        if 2 * len(exact) <= len(self.right) or len(exact) - len(before) > max(2, 0.05 * len(exact)):
            return None
        return self.last_write(before)

    # -- too short -----------------------------------------------------------------------------------------------------

    def _too_short(self) -> Case | None:
        if len(self.short) < 3:
            return None
        found = self._clusters()
        for cluster in found:
            case = self._judge(cluster, found)
            if case:
                return case
        return self._drained()

    def _clusters(self) -> list[Cluster]:
        values = [life.set for life in self.short]
        # Keys written together and read together are one witness of a TTL with jitter, not many.
        some = self.short[:: len(self.short) // ENOUGH_SHORT + 1]
        apart = {(life.set // 4_000, life.deadline // 4_000): life.set for life in some}
        found = clusters(values, sorted(apart.values()), spread_over=self.floor)
        return sorted(found, key=lambda one: (one.wide, -one.count))[:12]

    def _judge(self, cluster: Cluster, found: Sequence[Cluster]) -> Case | None:
        """Decide whether a cluster of short lives is a short TTL or can be sessions that were read."""
        members = [life for life in self.short if cluster.low <= life.set <= cluster.high]
        below = [life for life in self.short if life.set <= cluster.high]
        others = [life for life in self.all if life.set > cluster.high and life.set <= self.ceiling]
        confidence, reason = self._evidence(cluster, members, others)
        if confidence is None:
            return None
        sharp = _top_of(cluster, members, found)
        if sharp is not cluster:
            cluster, members = sharp, [life for life in members if sharp.low <= life.set <= sharp.high]
        return self._short_case(cluster, members, below, others, confidence, reason)

    def _evidence(
        self, cluster: Cluster, members: Sequence[Life], others: Sequence[Life]
    ) -> tuple[Confidence | None, str]:
        if self._younger_than_the_server(members):
            return "proven", "they are younger than the server, which started empty: less was set than expected"
        if self.server.idle_known and self._is_no_chance(cluster):
            return self._cancellation(cluster, members, others)
        reads = self.server.reads
        told = self.server.idle_known and self.server.born_ms is not None and reads is not None
        if told and (reads or 0) < len(members) / 2:
            return "proven", f"only {reads:,} values were read since the server started: reads do not explain them"
        return self._burst(cluster, members, others)

    @cached_property
    def _events(self) -> list[Life]:
        """One short life of each moment of writing and touching."""
        apart = {(life.deadline // 4_000, life.touched // 4_000): life for life in self.short}
        return list(apart.values())

    def _is_no_chance(self, cluster: Cluster) -> bool:
        """Whether reads that know nothing of the writes before them would not put so many keys here.

        Every deadline is paired with every touch: what is written on a grid and read on a grid (each hour, each day,
        all at once) has many pairs there, and a TTL has few, for deadline and touch are one moment there. Keys written
        at one moment and touched at one moment are one event.
        """
        events = self._events
        count = sum(cluster.low <= life.set <= cluster.high for life in events)
        touches = [life.touched for life in events]
        usual = _paired([life.deadline for life in events], touches, cluster, self.floor) * len(events)
        return count > 1.7 * usual and surprise(count, usual) > SURE_NATS

    def _younger_than_the_server(self, members: Sequence[Life]) -> bool:
        """Whether the server is too young for these keys to be old ones that were read."""
        if self.server.born_ms is None:
            return False
        age = self.server.now_ms - self.server.born_ms
        young = [life for life in self.short if life.left + age < self.floor]
        own = sum(life.left + age < self.floor for life in members)
        # One wrong TTL explains most of them; keys of all ages mean that the server's age is not what it says.
        return own > 0.9 * len(members) and len(members) > 0.3 * len(young)

    def _cancellation(
        self, cluster: Cluster, members: Sequence[Life], others: Sequence[Life]
    ) -> tuple[Confidence | None, str]:
        reason = "deadline and idle clock differ from key to key, their difference is one TTL: reads cannot do that"
        one_change = not others or self._when(cluster, members, others).bound == "lower bound"
        # People who come back at the same hour every day make a wide heap of reads; but not one that began when the
        # writes under the expected TTL ended, and none near the short end.
        if cluster.wide and not one_change and cluster.low > self.ttl / 10:
            return None, ""
        # A job that reads every session a fixed time after its last write makes the same picture, but never for
        # sessions that are untouched and that old; and its pause is hardly ever more than half the TTL.
        untouched = any(life.left < cluster.low for life in others if life.set >= self.floor)
        if cluster.low > self.ttl / 2 and not one_change and not untouched:
            return None, ""
        return "proven", reason

    def _burst(
        self, cluster: Cluster, members: Sequence[Life], others: Sequence[Life]
    ) -> tuple[Confidence | None, str]:
        """Decide between keys written in one go and old ones of one go that were all read in one go."""
        if not self.server.idle_known or self._is_one_reading(members):
            return None, ""
        if self._is_unlike(cluster, members, others):
            return "likely", "readers of the other sessions would not have met so many with such deadlines"
        touches = sorted(life.touched for life in members)
        spread = cluster.wide and quantile(touches, 0.95) - quantile(touches, 0.05) > 0.05 * cluster.low
        if spread or self._has_untouched(members):
            return None, ""
        if not others:
            all_alike = len(members) >= 0.8 * len(self.all) and not cluster.wide
            lost = all_alike and self.server.expired >= len(members) / 2
            return ("likely", "and keys do expire on this server") if lost else (None, "")
        share = self._read_share(others)
        if len(members) * -math.log(share) < math.log(10_000):
            return None, ""
        return "likely", f"no untouched key has such a deadline, and at most {share:.0%} of the others were read"

    def _is_one_reading(self, members: Sequence[Life]) -> bool:
        """Whether these were touched at one moment, and most of what was touched then is none of them."""
        written = [life.touched for life in members]
        first, last = min(written), max(written)
        moment = sum(first - IDLE_GRAIN_MS <= life.touched <= last + IDLE_GRAIN_MS for life in self.short)
        return not _is_spread(written) and len(members) < 0.6 * moment

    def _is_unlike(self, cluster: Cluster, members: Sequence[Life], others: Sequence[Life]) -> bool:
        """Whether readers of sessions like the others would not have met so many with such deadlines.

        Not for what was written in one go and touched in one go: one event, however many keys.
        """
        first = _onset(cluster, members)
        written = [life.touched for life in members]
        if len(others) < 10 or not (_is_spread(written) or _is_spread([life.deadline for life in members])):
            return False
        renewed = sum(life.touched > first + 2 * IDLE_GRAIN_MS for life in others if life.set >= self.floor)
        if renewed > 0.15 * len(members):
            return False
        touches = [life.touched for life in self.short if life.touched >= first]
        usual = _paired([life.deadline for life in others], touches, cluster, self.floor) * len(touches)
        count = sum(one >= first for one in written)
        return count > 1.7 * usual and surprise(count, usual) > SURE_NATS

    def _has_untouched(self, members: Sequence[Life]) -> bool:
        """Whether sessions of the expected TTL have these deadlines and were not touched since: more than by chance."""
        deadlines = sorted(life.deadline for life in members)
        first, last = deadlines[0], deadlines[-1]
        margin = max(2 * IDLE_GRAIN_MS, (last - first) * 0.1)
        right = [life.deadline for life in self.right]
        beside = sum(first - margin <= one <= last + margin for one in right)
        stretch = max(right, default=0) - min(right, default=0)
        chance = (len(right) - beside) * (last - first + 2 * margin) / stretch if stretch else 0.0
        return beside > 0 and (beside >= 0.1 * len(members) or surprise(beside, chance) > 3)

    def _read_share(self, others: Sequence[Life]) -> float:
        """Return which share of keys was read after the last write: judged by those old enough to tell, or exact."""
        old = [life for life in others if life.left < self.floor]
        by_age = (sum(life.set < self.floor for life in old) + 1) / (len(old) + 1) if old else 1.0
        exact = sum(abs(life.set - self.ttl) < 2 * IDLE_GRAIN_MS for life in others)
        by_value = (len(others) - exact + 1) / (len(others) + 1)
        return min(by_age, by_value)

    def _drained(self) -> Case | None:
        """Without idle clocks, or when something read every key: short lives fill the first stretch, then a gap."""
        others_read = sum(life.set < self.floor for life in self.all) / max(len(self.all), 1)
        if self.server.idle_known and others_read < 0.9:
            return None
        lefts = sorted(life.left for life in self.all if life.set <= self.ceiling)
        count = _edge(lefts, self.ttl)
        if not count:
            return None
        top = lefts[count - 1]
        members = [life for life in self.short if life.left <= top]
        others = [life for life in self.all if top < life.left and life.set <= self.ceiling]
        cluster = Cluster(quantile(lefts[:count], 0.5), top, count, wide=True)
        young = self._younger_than_the_server(members)
        if len(members) < count or not (others or young or self.server.expired >= count):
            return None
        says = (
            f"{count:,} keys have under {top / 1000:,.0f} s left, then none up to {lefts[count] / 1000:,.0f} s"
            if others
            else "no key has more left"
        )
        case = self._short_case(cluster, members, members, others, "likely", says)
        fits = case.since is None or case.since.bound == "lower bound" or not others
        # Of evenly spread lives the longest is short of the TTL by one part; unless it is a round one already.
        snapped = rounded(top) if rounded(top) != top else rounded(top * (1 + 1 / count))
        return (
            None
            if not fits
            else Case("short", snapped, 0.0, count, "likely", case.since, case.first_seen_ms, case.reasons, top)
        )

    def _short_case(
        self,
        cluster: Cluster,
        members: Sequence[Life],
        below: Sequence[Life],
        others: Sequence[Life],
        confidence: Confidence,
        reason: str,
    ) -> Case:
        ttl, jitter = _ttl_of(members, cluster, idle_known=True)
        since = self._when(cluster, members, others)
        first = round(_onset(cluster, members))
        return Case("short", ttl, jitter, len(below), confidence, since, first, (reason,), cluster.high)

    def _when(self, cluster: Cluster, members: Sequence[Life], others: Sequence[Life]) -> Since:
        """Return since when lives are short: after the last write of the former TTL, or no later than the first seen.

        The former only where such writes have stopped since: a lucky pause of one of two kinds of writers is not that.
        """
        first = _onset(cluster, members)
        upper = Since(math.ceil(first), "upper bound")
        # Of a jittered new TTL some lives are over the cluster: only those that fit the former are surely of it.
        right = [life for life in others if life.set >= self.floor]
        old = right if len(right) >= 3 else others
        last = self.last_write(old)
        if last is None:
            return upper
        # The same, as late as it may have been.
        latest = last
        if self._is_jittered(old):
            ends = [life.deadline for life in old]
            latest = round(max(ends) - max(life.set for life in old) + _spacing(ends))
        after = sum(life.touched > latest for life in members)
        stopped = after >= max(min(7, len(members)), 3, 0.8 * len(members))
        return Since(last, "lower bound") if latest <= first + 2_000 and stopped else upper

    def _is_jittered(self, old: Sequence[Life]) -> bool:
        """Whether the expected TTL has jitter: a life over it was seen."""
        return max(life.set for life in old) > self.ttl + 2 * IDLE_GRAIN_MS

    def last_write(self, old: Sequence[Life]) -> int | None:
        """Return a time that the last write under the expected TTL was no earlier than: the cliff in the deadlines."""
        if not old:
            return None
        over = self._is_jittered(old)
        top = max(self.ttl * (1 + self.jitter), *(life.set for life in old)) if over else self.ttl
        return round(max(life.deadline for life in old) - top)


def _paired(deadlines: Sequence[int], touches: Sequence[int], cluster: Cluster, floor: float) -> float:
    """Return which share of all pairs of a deadline and a touch that make a short life lies in a cluster."""
    ends = deadlines[:: len(deadlines) // PAIRED + 1]
    times = sorted(touches[:: len(touches) // PAIRED + 1])
    low, high = cluster.low - IDLE_GRAIN_MS, cluster.high + IDLE_GRAIN_MS
    inside = between = 0
    for end in ends:
        between += bisect_left(times, end) - bisect_right(times, end - floor)
        inside += bisect_right(times, end - low) - bisect_left(times, end - high)
    return inside / max(between, 1)


def _is_spread(times: Sequence[int]) -> bool:
    ordered = sorted(times)
    return quantile(ordered, 0.95) - quantile(ordered, 0.05) > 30_000


def _top_of(cluster: Cluster, members: Sequence[Life], found: Sequence[Cluster]) -> Cluster:
    """Return the sharp cluster at the upper edge of a wide one, where there is one: reads smear a TTL downwards."""
    inside = (one for one in found if not one.wide and cluster.low <= one.low and one.high <= cluster.high)
    tops = (one for one in inside if sum(life.set > one.high for life in members) <= 0.05 * len(members))
    return max(tops, key=lambda one: one.high, default=cluster) if cluster.wide else cluster


def _ttl_of(members: Sequence[Life], cluster: Cluster, *, idle_known: bool) -> tuple[float, float]:
    """Return the TTL behind a cluster, in ms, and its jitter as a share (0: none)."""
    values = sorted(life.set for life in members)
    if not idle_known:
        return rounded(values[-1]), 0.0
    middle = quantile(values, 0.5)
    if not cluster.wide:
        return _sharpened(members, middle), 0.0
    low, high = plateau(values)
    center = (low + high) / 2
    return center, (high - low) / 2 / center


def _sharpened(members: Sequence[Life], middle: float) -> float:
    """Return the TTL more exactly than the idle clock's grain: its error evens out, and no key has more left."""
    mean = sum(life.set for life in members) / len(members)
    near = mean if abs(mean - middle) < 700 else middle
    if near < 20_000:
        return max(near, float(max(life.left for life in members)))
    # Both ends of the idle clock err in one direction where the server is busy: 301 s is nobody's TTL, five minutes is.
    minutes = float(round(near / 60_000) * 60_000)
    return minutes if minutes and abs(near - minutes) <= min(IDLE_GRAIN_MS, 0.004 * near) else near


def _onset(cluster: Cluster, members: Sequence[Life]) -> float:
    """Return when the first of these was written, without a few that were read before: those are old ones by chance."""
    touches = sorted(life.touched for life in members)
    if len(touches) < 8:
        return float(touches[0])
    return max(start_of(touches), quantile(touches, CHANCE)) if cluster.wide else start_of(touches)


def _spacing(deadlines: Sequence[int]) -> float:
    """Return how far beyond the latest deadline one more could have been: three times what lies between the last."""
    last = sorted(deadlines)[-11:]
    return 3 * (last[-1] - last[0]) / max(len(last) - 1, 1)


def _since(last_former_ms: int | None, first_new_ms: float, *, slack: float) -> Since:
    """Return the change between the last write of the former policy and the first of the new one.

    They may overlap when only some writers changed; then only the first new write is known.
    """
    if last_former_ms is not None and last_former_ms <= first_new_ms + slack:
        return Since(last_former_ms, "lower bound")
    return Since(math.ceil(first_new_ms), "upper bound")


def _edge(lefts: Sequence[int], ttl: int) -> int:
    """Return how many of the smallest are crowded together before a gap; 0 if there is no such edge."""
    for index in range(4, len(lefts)):
        last = index == len(lefts) - 1
        top, after = lefts[index], ttl if last else lefts[index + 1]
        count = index + 1
        crowded = count / max(top, 1) >= 10 * max(len(lefts) - count, 1) / ttl
        filled = lefts[count // 2] <= 0.8 * top and lefts[count // 2] >= 0.2 * top
        if top < ttl / 2 and after > 1.5 * top and crowded and filled:
            return count
    return 0
