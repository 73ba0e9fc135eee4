"""The demo incident: a week of chats, then a release that changed one line, on a private server.

The application keeps its chats as LangChain's community store does (a LIST, newest first, then EXPIRE). Until the
release each write renewed seven days; since then, five minutes.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import redis

from memkit.server.launcher import RedisServer

WEEK_S, FIVE_MINUTES_S = 604_800, 300
CHATS_A_MINUTE = 4
QUESTIONS = ("Where is my order?", "Can I change the address?", "我的订单什么时候到？", "Thanks! One more question:")


@dataclass(frozen=True, slots=True)
class Incident:
    """What happened on the demo server: ``prefix*`` was meant to live ``expected``, until ``released_at``."""

    url: str
    prefix: str
    expected: str
    released_at: datetime


def demo_server() -> RedisServer:
    """Return a server for the incident, not started. It persists as most people's do: without would be a finding."""
    return RedisServer(persist=True, config={"appendfsync": "everysec"})


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
            for _ in range(CHATS_A_MINUTE):
                _say(client, dice.randrange(sessions - 100, sessions + 30), dice, FIVE_MINUTES_S)
            client.set(f"cache:answer:{minute % 5}", "…", ex=600)
            client.incr("stats:requests")
        clock.shift(-clock.offset)
    return Incident(server.url, "chat:", "7d", released_at)


def keep_talking(url: str, *, sessions: int = 600, every_s: float = 60 / CHATS_A_MINUTE) -> threading.Event:
    """Go on with the incident in real time, in a thread, until the event is set or the server is gone.

    Five minutes after its replay the sessions that die early would all be dead, and nothing would be left to find.
    """
    over, dice = threading.Event(), random.Random()  # noqa: S311  # chats, not secrets

    def talk() -> None:
        with redis.Redis.from_url(url) as client, contextlib.suppress(redis.RedisError):
            while not over.wait(every_s):
                _say(client, dice.randrange(sessions - 100, sessions + 30), dice, FIVE_MINUTES_S)

    threading.Thread(target=talk, name="memkit-demo", daemon=True).start()
    return over


def _say(client: redis.Redis, number: int, dice: random.Random, ttl_s: int) -> None:
    key = f"chat:user-{number:04d}"
    for kind, text in (("human", dice.choice(QUESTIONS)), ("ai", "Let me look that up for you.")):
        client.lpush(key, json.dumps({"type": kind, "data": {"content": text, "type": kind}}))
    client.expire(key, ttl_s)
