"""Peaks in the TTLs that keys were given at least: windows with more of them than reads alone put there. Pure.

Half or twice a constant without a measurement of its own changes at most 5 of 2,535 audits of drawn worlds and tests.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

IDLE_GRAIN_MS = 1_500
"""The idle clock counts whole seconds, so the start and the end are each off by up to one."""
TOGETHER_MS = 2 * IDLE_GRAIN_MS
"""The difference of two values by idle clocks that are one value."""
SURE_NATS = 10.0
"""The surprise, if there were reads only, that makes a peak: a chance of 1 in 20,000 that any window has as many."""
WIDE_RATIO = 1.222
"""The widest jitter looked for: 10 % either way, from the shortest to the longest."""
FEWEST = 3
"""Two values agree by chance."""
AROUND = 3
"""A window is compared with the values before and after it, this many times its length."""
HIGH = 4
"""A window holds this many times the values of the window above it, if one short TTL explains it."""
STEP_RATIO, STEP_MS = 1.03, 500
"""The distances at which windows begin."""
UNLIKELY = 0.01
"""What has a smaller chance if nothing has changed shows a change."""
COMMON_SHARE = 0.2
"""If this share of some keys agree, that is no coincidence."""
NEARLY_AS_MANY = 0.95
"""From 40 keys of a TTL of 10 % jitter, 6 of 810 are more than 2 % off; by the fullest window 24 (simulated)."""


@dataclass(frozen=True, slots=True)
class TtlPeak:
    """A window in which many keys' TTLs agree: to the idle clock's grain, or within a jitter (``wide``)."""

    low: float
    high: float
    count: int
    wide: bool

    def holds(self, value: float) -> bool:
        """Whether a value lies in the window."""
        return self.low <= value <= self.high


def surprise(count: int, usual: float) -> float:
    """Return by how many nats a count is more than a Poisson's of this mean; 0 if it is not more."""
    usual = max(usual, 1e-9)
    return count * math.log(count / usual) - (count - usual) if count > usual else 0.0


def ttl_peaks(values: Sequence[int], apart: Sequence[int], spread_over: float) -> list[TtlPeak]:
    """Return peaks in sorted values that neither an even spread nor the density around them explains.

    ``apart``: the values with those written and read together counted once; only these can show a jitter.
    """
    narrow, wide = _windows(values, spread_over, ratio=1.0), _windows(apart, spread_over, ratio=WIDE_RATIO)
    # A wide peak with a narrow one in it is that one: reads only lower values.
    return narrow + [one for one in wide if not any(one.low <= part.low and part.high <= one.high for part in narrow)]


def _windows(values: Sequence[int], spread_over: float, *, ratio: float) -> list[TtlPeak]:
    """Return the fullest windows, each from a value to the same times ``ratio`` and the idle clock's grain."""
    wide = ratio > 1
    found: list[TtlPeak] = []
    for low in _starts(values, wide=wide):
        high = low * ratio + TOGETHER_MS
        first, last = bisect_left(values, low), bisect_right(values, high)
        count = last - first
        below, above, overall = _around(values, low, high, spread_over, wide=wide)
        # Reads only lower values, so those below a sharp edge may belong to it; a jitter has no sharp edge.
        usual = max(below if wide and high >= spread_over / 2 else above, overall)
        enough = SURE_NATS + math.log(max(spread_over / (high - low), 1))
        many = count >= FEWEST and count > max(below, HIGH * (above if wide else usual))
        # Reads alone make no sharp edge, and neither does a jitter.
        sharp = wide or surprise(count, below) > SURE_NATS
        if many and sharp and surprise(count, usual) > enough:
            found.append(TtlPeak(values[first], values[last - 1], count, wide))
    best: list[TtlPeak] = []
    for one in sorted(found, key=lambda one: -one.count):
        if all(one.high < other.low or other.high < one.low for other in best):
            best.append(one)
    return best


def _starts(values: Sequence[int], *, wide: bool) -> list[float]:
    """Return the starts of the windows: each second with two values, or steps of 3 %."""
    if wide:
        return sorted({STEP_RATIO ** int(math.log(value, STEP_RATIO)) for value in values if value > 1})
    steps = Counter(value // STEP_MS for value in values)
    full = (step for step, count in steps.items() if count + steps[step + 1] + steps[step + 2] > 1)
    return sorted(float(STEP_MS * step) for step in full)


def _around(values: Sequence[int], low: float, high: float, spread_over: float, *, wide: bool) -> tuple[float, ...]:
    """Return how many values a window would have by the density below it, above it and overall."""
    width = high - low
    reach = width if wide else AROUND * width
    first = max(low - reach, 0)
    below = (bisect_left(values, low) - bisect_left(values, first)) / max(low - first, width)
    above = (bisect_right(values, high + reach) - bisect_right(values, high)) / reach
    return below * width, above * width, len(values) / max(spread_over, width) * width


def longest(values: Sequence[int]) -> TtlPeak:
    """Return the window in which most of sorted long TTLs agree: to the grain if a fifth does, else to a jitter."""
    grain = _densest(values, 1.0)
    spread = _densest(values, WIDE_RATIO, nearly=NEARLY_AS_MANY)
    enough = min(max(FEWEST, COMMON_SHARE * len(values)), len(values))
    return grain if grain.count >= enough else replace(spread, wide=True)


def _densest(values: Sequence[int], ratio: float, *, nearly: float = 1.0) -> TtlPeak:
    """Return the window with the most values; of those with nearly as many the highest, as reads only lower values."""
    windows = [(bisect_right(values, low * ratio + TOGETHER_MS) - first, first) for first, low in enumerate(values)]
    most, _ = max(windows)
    first, count = max((first, count) for count, first in windows if count >= nearly * most)
    return TtlPeak(values[first], values[first + count - 1], count, wide=False)


def best_peak(values: Sequence[int], spread_over: float) -> TtlPeak | None:
    """Return the fullest peak of sorted values, if there is one."""
    found = ttl_peaks(values, values, spread_over)
    return max(found, key=lambda one: one.count, default=None)


def start_of(values: Sequence[int]) -> float:
    """Return the value at which sorted values become dense, without the few that are scattered before."""
    whole = _fit(len(values), values[-1] - values[0])
    best = (whole + math.log(len(values)), 0)
    for first in range(1, len(values) // 2 + 1):
        before = _fit(first, values[first] - values[0])
        since = _fit(len(values) - first, values[-1] - values[first])
        if (len(values) - first) * (values[first] - values[0]) > first * (values[-1] - values[first]):
            best = max(best, (before + since, first))
    return float(values[best[1]])


def _fit(count: int, width: float) -> float:
    """Return the log likelihood of so many values spread evenly over a width."""
    return count * math.log(count / max(width, TOGETHER_MS))


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value at a share, below 1, of sorted values."""
    return values[int(share * len(values))]
