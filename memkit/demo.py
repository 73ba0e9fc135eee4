"""The demo incident: a week of chats, then a release that changed one line, on a private server.

The application keeps its chats as LangChain's community store does (a LIST, newest first, then EXPIRE). Until the
release each write renewed seven days; since then, five minutes.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import redis

from memkit.server import RedisServer

WEEK_S, FIVE_MINUTES_S = 604_800, 300
QUESTIONS = ("Where is my order?", "Can I change the address?", "我的订单什么时候到？", "Thanks! One more question:")


@dataclass(frozen=True, slots=True)
class Incident:
    """What happened on the demo server: ``prefix*`` was meant to live ``expected``, until ``released_at``."""

    url: str
    prefix: str
    expected: str
    released_at: datetime


def load_incident(server: RedisServer, *, sessions: int = 600, minutes_since: int = 25, seed: int = 7) -> Incident:
    """Replay six days of chats and ``minutes_since`` the release on a private server; its clock ends at real time.

    Start the server with ``persist=True``: one without persistence is itself a finding.
    """
    dice = random.Random(seed)  # noqa: S311  # the same chats each time
    now = datetime.now(UTC)
    released_at = now - timedelta(minutes=minutes_since)
    clock = server.clock
    with server.client() as client:
        clock.move_to(now - timedelta(days=6))
        for number in range(sessions):
            clock.move_to(now - timedelta(days=6) + (released_at - now + timedelta(days=6)) * (number / sessions))
            _say(client, number, dice, WEEK_S)
        for minute in range(minutes_since):
            clock.move_to(released_at + timedelta(minutes=minute))
            for _ in range(4):
                _say(client, dice.randrange(sessions - 100, sessions + 30), dice, FIVE_MINUTES_S)
            client.set(f"cache:answer:{minute % 5}", "…", ex=600)
            client.incr("stats:requests")
        clock.shift(-clock.offset)
    return Incident(server.url, "chat:", "7d", released_at)


def _say(client: redis.Redis, number: int, dice: random.Random, ttl_s: int) -> None:
    key = f"chat:user-{number:04d}"
    for kind, text in (("human", dice.choice(QUESTIONS)), ("ai", "Let me look that up for you.")):
        client.lpush(key, json.dumps({"type": kind, "data": {"content": text, "type": kind}}))
    client.expire(key, ttl_s)
