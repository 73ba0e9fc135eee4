"""Logs as an observation fills them, for tests of what is made of them."""

from __future__ import annotations

from memkit.observe.log import ExpiryLog

WEEK_MS = 7 * 86_400_000

Row = tuple[int, float, float, str]
"""Configured TTL (ms, -1: unknown), last seen and first missing (ms after the start), end."""


def made_log(rows: list[Row]) -> ExpiryLog:
    log = ExpiryLog("Redis 0", "by jumps", 5)
    for number, (ttl, seen, gone, end) in enumerate(rows):
        log.keys.append(f"chat:<{number}>")
        log.ttl_ms.append(ttl)
        log.started_us.append(0)
        log.started_by_us.append(0)
        log.deadline_us.append(round(gone * 1000) - 1)
        log.seen_us.append(round(seen * 1000))
        log.missing_us.append(-1 if end in ("not expired", "absent") else round(gone * 1000))
        log.event_us.append(-1)
        log.ends.append(end)  # type: ignore[arg-type]
    return log


def on_time(ttl: int) -> Row:
    return ttl, ttl - 3, ttl + 3, "expired"


def early(ttl: int, lifetime: float) -> Row:
    return ttl, lifetime - 3, lifetime + 3, "expired"
