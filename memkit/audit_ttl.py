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
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from memkit.audit_expect import Expectation
from memkit.audit_sample import KeyFacts
from memkit.policy import MAX_TTL_MS

IDLE_GRAIN_MS = 1_500
"""The idle clock counts whole seconds at both ends."""
SURE_NATS = 10.0
"""Surprise, under "reads only", that makes a cluster: a chance of 1 in 20,000 that any of all windows has as many."""
ENOUGH_SHORT = 5_000
IDLE_RANGE_MS = 8_388_600_000
"""The idle clock has 24 bits of seconds; half of that is what RESTORE writes for idle times it cannot express."""
UNIT_FACTORS = (60, 1_000, 60_000)

Confidence = Literal["proven", "likely", "possible"]


class Life(NamedTuple):
    """One key with a deadline: what is left, the TTL it was set to or less, and when it dies; milliseconds."""

    left: int
    set: int
    deadline: int


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
    cluster = _best_cluster(values, spread_over=values[-1])
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
        cluster = _longest(sorted(life.set for life in self.long))
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
        for cluster in self._clusters():
            case = self._judge(cluster)
            if case:
                return case
        return self._drained()

    def _clusters(self) -> list[Cluster]:
        values = [life.set for life in self.short]
        # Keys written together and read together are one witness of a TTL with jitter, not many.
        some = self.short[:: len(self.short) // ENOUGH_SHORT + 1]
        apart = {(life.set // 4_000, life.deadline // 4_000): life.set for life in some}
        found = _clusters(values, sorted(apart.values()), spread_over=self.floor)
        return sorted(found, key=lambda one: -one.count)[:12]

    def _judge(self, cluster: Cluster) -> Case | None:
        """Decide whether a cluster of short lives is a short TTL or can be sessions that were read."""
        members = [life for life in self.short if cluster.low <= life.set <= cluster.high]
        below = [life for life in self.short if life.set <= cluster.high]
        others = [life for life in self.all if life.set > cluster.high and life.set <= self.ceiling]
        confidence, reason = self._evidence(cluster, members, others)
        if confidence is None:
            return None
        return self._short_case(cluster, members, below, others, confidence, reason)

    def _evidence(
        self, cluster: Cluster, members: Sequence[Life], others: Sequence[Life]
    ) -> tuple[Confidence | None, str]:
        if self._younger_than_the_server(members):
            return "proven", "they are younger than the server, which started empty: less was set than expected"
        lefts = sorted(life.left for life in members)
        varied = _quantile(lefts, 0.95) - _quantile(lefts, 0.05)
        width = max(cluster.high - cluster.low, 2 * IDLE_GRAIN_MS)
        if varied > (1.3 if cluster.wide else 2.5) * width and self.server.idle_known:
            return self._cancellation(cluster, members, others)
        reads = self.server.reads
        told = self.server.idle_known and self.server.born_ms is not None and reads is not None
        if told and (reads or 0) < len(members) / 2:
            return "proven", f"only {reads:,} values were read since the server started: reads do not explain them"
        return self._burst(cluster, members, others)

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
        since = self._when(cluster, members, others)
        one_change = since.bound == "lower bound" or not others
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
        first, last = min(life.deadline for life in members), max(life.deadline for life in members)
        margin = max(2 * IDLE_GRAIN_MS, (last - first) * 0.1)
        beside = sum(first - margin <= life.deadline <= last + margin for life in self.right)
        if beside >= 0.1 * len(members) or not self.server.idle_known:
            return None, ""
        if not others:
            all_alike = len(members) >= 0.8 * len(self.all) and not cluster.wide
            lost = all_alike and self.server.expired >= len(members) / 2
            return ("likely", "and keys do expire on this server") if lost else (None, "")
        share = self._read_share(others)
        if len(members) * -math.log(share) < math.log(10_000):
            return None, ""
        return "likely", f"no untouched key has such a deadline, and at most {share:.0%} of the others were read"

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
        cluster = Cluster(_quantile(lefts[:count], 0.5), top, count, wide=True)
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
        first = round(min(life.deadline for life in members) - cluster.low)
        return Case("short", ttl, jitter, len(below), confidence, since, first, (reason,), cluster.high)

    def _when(self, cluster: Cluster, members: Sequence[Life], others: Sequence[Life]) -> Since:
        first = min(life.deadline for life in members) - cluster.low
        return _since(self.last_write(others), first, slack=2_000 + 0.02 * cluster.high + cluster.high - cluster.low)

    def last_write(self, old: Sequence[Life]) -> int | None:
        """Return a time that the last write under the expected TTL was no earlier than: the cliff in the deadlines."""
        if not old:
            return None
        # Where no life was seen over the expected TTL, there is no jitter above it.
        over = max(life.set for life in old) > self.ttl + 2 * IDLE_GRAIN_MS
        top = max(self.ttl * (1 + self.jitter), *(life.set for life in old)) if over else self.ttl
        return round(max(life.deadline for life in old) - top)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Lives that agree on a TTL: within the idle clock's grain, or within a jitter (``wide``)."""

    low: float
    high: float
    count: int
    wide: bool


def _clusters(values: Sequence[int], apart: Sequence[int], spread_over: float) -> list[Cluster]:
    """Return clusters in sorted values that an even smear, or their neighbourhood's density, does not explain."""
    narrow = _windows(values, spread_over, lambda low: low + 2 * IDLE_GRAIN_MS, at_least=3, wide=False)
    wide = _windows(apart, spread_over, lambda low: low * 1.23 + 2 * IDLE_GRAIN_MS, at_least=8, wide=True)
    kept = [one for one in wide if not any(_mostly(part, one) for part in narrow)]
    return narrow + kept


def _mostly(part: Cluster, whole: Cluster) -> bool:
    return part.low >= whole.low - 1 and part.high <= whole.high + 1 and part.count >= 0.4 * whole.count


def _windows(
    values: Sequence[int], spread_over: float, end_of: Callable[[float], float], *, at_least: int, wide: bool
) -> list[Cluster]:
    found: list[Cluster] = []
    for low in _starts(values, wide=wide):
        high = end_of(low)
        first, last = bisect_left(values, low), bisect_right(values, high)
        count = last - first
        if count < at_least:
            continue
        around = _around(values, low, high, spread_over, wide=wide)
        # Reads smear a TTL downwards only, so its upper edge is sharp. Near the grain, that is all there is to see.
        by_edge = wide or low < 20 * IDLE_GRAIN_MS
        usual = max(around.below, around.overall) if by_edge else max(around)
        surprise = count * math.log(count / usual) - (count - usual)
        enough = SURE_NATS + math.log(max(spread_over / (high - low), 1))
        stands_out = count > 1.7 * usual and count > 5 * around.above if by_edge else count > 4 * usual
        if stands_out and surprise > enough:
            found.append(Cluster(values[first], values[last - 1], count, wide))
    return _best_of_overlapping(found)


def _starts(values: Sequence[int], *, wide: bool) -> list[float]:
    """Return where windows begin: each busy second, or steps of 3 %."""
    if wide:
        return sorted({1.03 ** int(math.log(value) / math.log(1.03)) for value in values if value > 1})
    seconds = Counter(value // 500 for value in values)
    return sorted(
        500.0 * second for second, count in seconds.items() if count + seconds[second + 1] + seconds[second + 2] >= 2
    )


class _Around(NamedTuple):
    """How many values a window would have by the density below it, above it, and overall."""

    below: float
    above: float
    overall: float


def _around(values: Sequence[int], low: float, high: float, spread_over: float, *, wide: bool) -> _Around:
    width = high - low
    reach = width if wide else 3 * width
    first = max(low - reach, 0)
    below = (bisect_left(values, low) - bisect_left(values, first)) / max(low - first, width)
    above = (bisect_right(values, high + reach) - bisect_right(values, high)) / reach
    return _Around(below * width, above * width, len(values) / max(spread_over, width) * width)


def _best_of_overlapping(found: Sequence[Cluster]) -> list[Cluster]:
    best: list[Cluster] = []
    for one in sorted(found, key=lambda cluster: -cluster.count):
        if all(one.high < other.low or one.low > other.high for other in best):
            best.append(one)
    return best


def _longest(values: Sequence[int]) -> Cluster:
    """Return where the most of sorted long lives agree: to the grain, where a good part does, else to a jitter."""
    grain = _densest(values, 1.0, 2 * IDLE_GRAIN_MS)
    # From 40 keys of a TTL of 10 % jitter, 6 of 810 are more than 2 % off; by the fullest window 24 (simulated).
    spread = _densest(values, 1.222, 2 * IDLE_GRAIN_MS, nearly=0.95)
    return grain if grain.count >= max(3, 0.2 * len(values)) or len(values) < 3 else replace(spread, wide=True)


def _densest(values: Sequence[int], ratio: float, more_ms: float, *, nearly: float = 1.0) -> Cluster:
    """Return the window with the most values; of those with nearly as many the highest, for reads only lower lives."""
    windows = [(bisect_right(values, low * ratio + more_ms) - first, first) for first, low in enumerate(values)]
    most, _ = max(windows)
    first, count = max((first, count) for count, first in windows if count >= nearly * most)
    return Cluster(values[first], values[first + count - 1], count, wide=False)


def _best_cluster(values: Sequence[int], spread_over: float) -> Cluster | None:
    found = _clusters(values, values, spread_over)
    return max(found, key=lambda one: one.count, default=None)


def _ttl_of(members: Sequence[Life], cluster: Cluster, *, idle_known: bool) -> tuple[float, float]:
    """Return the TTL behind a cluster, in ms, and its jitter as a share (0: none)."""
    values = sorted(life.set for life in members)
    if not idle_known:
        return rounded(values[-1]), 0.0
    middle = _quantile(values, 0.5)
    if not cluster.wide:
        return _sharpened(members, middle), 0.0
    low, high = _crowded(values)
    center = (low + high) / 2
    return center, (high - low) / 2 / center


def _crowded(values: Sequence[int]) -> tuple[float, float]:
    """Return where sorted values stand densely, without the thin smear of reads before and after."""
    bins = max(3, min(16, len(values) // 4))
    width = (values[-1] - values[0]) / bins or 1.0
    counts = Counter(min(int((value - values[0]) / width), bins - 1) for value in values)
    dense = [index for index, count in counts.items() if count >= 0.45 * len(values) / bins]
    inside = [value for value in values if min(dense) <= min(int((value - values[0]) / width), bins - 1) <= max(dense)]
    return float(inside[0]), float(inside[-1])


def _sharpened(members: Sequence[Life], middle: float) -> float:
    """Return the TTL more exactly than the idle clock's grain: its error evens out, and no key has more left."""
    mean = sum(life.set for life in members) / len(members)
    near = mean if abs(mean - middle) < 700 else middle
    if near < 20_000:
        return max(near, float(max(life.left for life in members)))
    # Both ends of the idle clock err in one direction where the server is busy: 301 s is nobody's TTL, five minutes is.
    minutes = float(round(near / 60_000) * 60_000)
    return minutes if minutes and abs(near - minutes) <= min(IDLE_GRAIN_MS, 0.004 * near) else near


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


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(int(share * len(values)), len(values) - 1)]
