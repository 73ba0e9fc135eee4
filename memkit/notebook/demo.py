"""The demo incident: a week of chats, then a release that changed the TTL, on a private server.

The application stores chats like LangChain's community store: a LIST, newest message first, then EXPIRE. Before the
release each write set a TTL of seven days, after it five minutes.
"""

import contextlib
import json
import random
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import redis

from memkit.errors import ServerError
from memkit.history.record import record
from memkit.history.recording import Recording
from memkit.server.launcher import RedisServer

WEEK_S, FIVE_MINUTES_S = 604_800, 300
SESSIONS, RELEASED_MINUTES_AGO, CHATS_PER_MINUTE = 600, 25, 4
RECORDER_LOOKS_EVERY_S = 0.1
RECORDER_WITHIN_S = 60.0
LAB_URL, LAB_EXPECT = "MEMKIT_LAB_URL", "MEMKIT_LAB_EXPECT"
"""Environment variables that ``memkit lab`` sets for its kernels; expectations are separated by line ends."""
EXPECTATIONS = ["chat:*=7d"]
"""What an audit of the demo takes as the expected TTLs."""
QUESTIONS = ("Where is my order?", "Can I change the address?", "我的订单什么时候到？", "Thanks! One more question:")


def demo_server() -> RedisServer:
    """Return a server for the incident, not started. It has persistence, because a server without is a finding."""
    return RedisServer(persist=True, config={"appendfsync": "everysec"})


def load_incident(server: RedisServer) -> RedisServer:
    """Replay six days of chats and the minutes since the release on a private server, and return it, at real time."""
    dice = random.Random(7)  # noqa: S311  # the same chats each time
    now, clock = datetime.now(UTC), server.clock
    begun_at, released_at = now - timedelta(days=6), now - timedelta(minutes=RELEASED_MINUTES_AGO)
    with server.client() as client:
        for number in range(SESSIONS):
            clock.move_to(begun_at + (released_at - begun_at) * (number / SESSIONS))
            _append(client, number, dice, WEEK_S)
        for minute in range(RELEASED_MINUTES_AGO):
            clock.move_to(released_at + timedelta(minutes=minute))
            for _ in range(CHATS_PER_MINUTE):
                _append(client, dice.randrange(SESSIONS - 100, SESSIONS + 30), dice, FIVE_MINUTES_S)
            client.set(f"cache:answer:{minute % 5}", "…", ex=600)
            client.incr("stats:requests")
        clock.shift(-clock.offset)
    return server


def continue_incident(url: str, *, every_s: float = 60 / CHATS_PER_MINUTE) -> threading.Event:
    """Continue the incident in real time, in a thread, until the event that is returned is set, or the server ends.

    Without it, all sessions with the short TTL expire within five minutes after the replay.
    """
    ended, dice = threading.Event(), random.Random()  # noqa: S311  # chats, not secrets

    def write() -> None:
        with redis.Redis.from_url(url) as client, contextlib.suppress(redis.RedisError):
            while not ended.wait(every_s):
                _append(client, dice.randrange(SESSIONS - 100, SESSIONS + 30), dice, FIVE_MINUTES_S)

    threading.Thread(target=write, name="memkit-demo", daemon=True).start()
    return ended


def record_incident(directory: str | Path) -> Path:
    """Replay a small incident on a private server while the recorder watches it; return the recording, a new file.

    Forty chats get a TTL of seven days, then, after a release, of five minutes. One is deleted, one is written without
    a TTL, and the others without further messages expire.
    """
    output = Path(directory) / f"incident-{secrets.token_hex(4)}.db"
    stop, begun = threading.Event(), threading.Event()
    with demo_server() as server, server.client() as client, ThreadPoolExecutor(1) as threads:
        server.clock.move_to(datetime(2026, 11, 20, 12, tzinfo=UTC))
        recorder = threads.submit(
            record, server.url, output, prefixes=[b"chat:"], stop=stop, began=lambda _: begun.set()
        )
        recorder.add_done_callback(lambda _: begun.set())
        try:
            begun.wait()
            if not recorder.done():
                _replay_recorded_incident(server, client, output)
        finally:
            stop.set()
        recorder.result()
    return output


def _replay_recorded_incident(server: RedisServer, client: redis.Redis, output: Path) -> None:
    dice = random.Random(7)  # noqa: S311  # the same chats each time
    for hours, ttl_s in ((9, WEEK_S), (7, WEEK_S), (0.05, FIVE_MINUTES_S), (0.05, FIVE_MINUTES_S)):
        for number in range(40):
            _append(client, number, dice, ttl_s)
        if ttl_s == WEEK_S:
            client.persist("chat:user-0009")
        else:
            client.delete("chat:user-0007")
        _wait_for_recorder(server, output)
        server.clock.shift(f"{hours}h")
        _wait_for_recorder(server, output)
    client.set("chat:user-0011", "[]")
    _wait_for_recorder(server, output)
    server.clock.shift("1h")
    for number in range(40):
        client.exists(f"chat:user-{number:04d}")
    _wait_for_recorder(server, output)


def _wait_for_recorder(server: RedisServer, path: Path) -> None:
    """Return when the recorder has looked at the server again, and has written that down."""
    now_ms = int(server.clock.now().timestamp() * 1_000)
    give_up = time.monotonic() + RECORDER_WITHIN_S
    while time.monotonic() < give_up:
        with Recording(path, reading=True) as recording:
            if recording.source()[-1] > now_ms:
                return
        time.sleep(RECORDER_LOOKS_EVERY_S)
    raise ServerError(f"the recorder did not look at the server within {RECORDER_WITHIN_S:g} s")


def _append(client: redis.Redis, number: int, dice: random.Random, ttl_s: int) -> None:
    key = f"chat:user-{number:04d}"
    for kind, text in (("human", dice.choice(QUESTIONS)), ("ai", "Let me look that up for you.")):
        client.lpush(key, json.dumps({"type": kind, "data": {"content": text, "type": kind}}))
    client.expire(key, ttl_s)
