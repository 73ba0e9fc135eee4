"""Simulated histories of sessions, healthy and with a shorter TTL since a release, against the TTL analysis alone.

``python tests/stress/ttl_histories.py [histories] [first seed]`` draws some hundred a second, without a server. It
prints how sure the findings are, and the seeds of those healthy histories of which a finding is more than possible.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Final

from memkit.audit.checks.ttl_inference import LifetimeAnalysis, ServerHistory
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation
from memkit.policy import ExpiryPolicy

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
NOW_MS: Final = 1_795_000_000_000
Read = Callable[[random.Random, float, float, float], float | None]
"""From the age of a write, the TTL and one moment or age of the history: when the session was read last, if it was."""
READS: Final[dict[str, Read]] = {
    "never": lambda _dice, _age, _ttl, _at: None,
    "at random": lambda dice, age, _ttl, _at: dice.random() * age,
    "soon after": lambda dice, age, ttl, _at: age - dice.expovariate(1 / (0.01 * ttl)),
    "lately": lambda dice, age, ttl, _at: dice.random() * min(age, 0.02 * ttl),
    "on the next days": lambda dice, age, _ttl, _at: age - dice.choice((1, 2, 3)) * DAY_MS + dice.gauss(0, HOUR_MS),
    "by a job at one age": lambda _dice, age, _ttl, at: age - at,
    "all at one moment": lambda dice, _age, _ttl, at: at + dice.random() * 20_000,
}


def write_ages(dice: random.Random, count: int, ttl_ms: float) -> list[float]:
    """Return how long ago sessions were written: steadily, by day, on workdays or in batches; perhaps not lately."""
    kind = dice.choice(("steady", "steady", "by day", "on workdays", "in batches"))
    newest = dice.choice((0.0, 0.0, 0.0, 0.02, 0.3, 0.6)) * ttl_ms
    batches = [dice.uniform(newest, ttl_ms) for _ in range(dice.randrange(1, 7))]
    ages: list[float] = []
    for _ in range(20 * count):
        if len(ages) == count:
            break
        age = dice.uniform(newest, ttl_ms)
        hour, day = (NOW_MS - age) // HOUR_MS % 24, (NOW_MS - age) // DAY_MS % 7
        quiet = (kind == "by day" and not 7 <= hour <= 20) or (kind == "on workdays" and day >= 5)
        if kind == "in batches":
            age = max(0.0, dice.choice(batches) - dice.random() * 3_000)
        if not quiet or dice.random() < 0.02:
            ages.append(age)
    return ages or [newest]


def draw_history(seed: int, *, short: bool = False) -> LifetimeAnalysis | None:
    """Return the analysis of a drawn history; None if no key of the shorter TTL exists.

    Args:
        seed: Repeats the history.
        short: Whether a release has made the TTL shorter, some time ago.
    """
    dice = random.Random(seed)
    ttl_ms = dice.choice((6 * HOUR_MS, DAY_MS, 3 * DAY_MS, 7 * DAY_MS, 7 * DAY_MS, 30 * DAY_MS))
    short_ms = dice.choice((300_000, HOUR_MS, ttl_ms / 24, ttl_ms / 7, ttl_ms / 3))
    since_ms = min(dice.choice((0.1, 0.5, 1, 3)) * short_ms, 0.9 * ttl_ms)
    ages = write_ages(dice, dice.choice((1, 3, 8, 12, 30, 60, 150, 300, 800)), ttl_ms)
    if short:  # traffic is steady, and goes on
        ages = [dice.random() * ttl_ms for _ in range(dice.choice((30, 60, 150, 300, 800)))]
    read, at = READS[dice.choice(list(READS))], dice.choice((0.01, 0.1, 0.3, 0.5, 0.8)) * ttl_ms
    share, jitter = dice.choice((0.05, 0.3, 0.6, 1.0)), dice.choice((0.0, 0.0, 0.0, 0.1))
    keys, reads, shorter = [], 0, 0
    for number, age in enumerate(ages):
        given = (short_ms if short and age < since_ms else ttl_ms) * (1 + dice.uniform(-jitter, jitter))
        if age >= given:
            continue
        shorter += given < ttl_ms / 2
        last = read(dice, age, ttl_ms, at) if dice.random() < share else None
        reads += last is not None
        touched_ms = NOW_MS - (age if last is None or not 0 <= last <= age else last)
        idle_clock_ms = int(touched_ms) // 1_000 * 1_000
        keys.append(KeyFacts(b"chat:%d" % number, "list", int(NOW_MS - age + given), idle_clock_ms, NOW_MS, None))
    if not keys or (short and shorter < 8):
        return None
    commands = dice.choice((None, reads, reads + 1_000))
    history = ServerHistory(NOW_MS, NOW_MS - int(2 * ttl_ms), reads=commands, touches=commands, expired=1_000)
    return LifetimeAnalysis(keys, Expectation("chat:*", ExpiryPolicy.sliding(ttl_ms // 1_000)), history)


def confidence_of(analysis: LifetimeAnalysis) -> str:
    """Return how sure the first finding is, or what is reported without one."""
    found = [one.confidence for one in analysis.anomalies()]
    return found[0] if found else "undetermined" if analysis.unexplained() or not analysis.reached else "healthy"


def main(histories: int, first: int) -> int:
    alarms = []
    for short in (False, True):
        counts: Counter[str] = Counter()
        for seed in range(first, first + histories):
            analysis = draw_history(seed, short=short)
            confidence = confidence_of(analysis) if analysis else "no such key"
            counts[confidence] += 1
            alarms += [seed] if not short and confidence in ("proven", "likely") else []
        print(f"{'a shorter TTL' if short else 'healthy'}: {dict(counts.most_common())}")
    print(f"healthy, and more than possible: {len(alarms)} of {histories:,}, seeds {alarms[:20]}")
    return 0


if __name__ == "__main__":
    given = [int(one) for one in sys.argv[1:]]
    sys.exit(
        main(given[0] if given else 10_000, given[1] if len(given) > 1 else random.SystemRandom().randrange(10**6))
    )
