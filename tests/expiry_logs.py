"""Logs as an observation would fill them, for what is made of logs."""

from __future__ import annotations

from memkit.observe.log import ENDS, ExpiryLog

WEEK_MS = 7 * 86_400_000

Row = tuple[int, float, float, str]
"""TTL meant (ms, -1: unknown), last seen and first gone (ms after the start), end."""


def made_log(rows: list[Row]) -> ExpiryLog:
    log = ExpiryLog("Redis 0", "by jumps", 5)
    for number, (ttl, seen, gone, end) in enumerate(rows):
        log.keys.append(f"chat:<{number}>")
        log.ttl_ms.append(ttl)
        log.begun_us.append(0)
        log.begun_by_us.append(0)
        log.deadline_us.append(round(gone * 1000) - 1)
        log.seen_us.append(round(seen * 1000))
        log.gone_us.append(-1 if end in ("alive", "absent") else round(gone * 1000))
        log.event_us.append(-1)
        log.ends.append(ENDS.index(end))  # type: ignore[arg-type]
    return log


def as_meant(ttl: int) -> Row:
    return ttl, ttl - 3, ttl + 3, "expired"


def early(ttl: int, life: float) -> Row:
    return ttl, life - 3, life + 3, "expired"
