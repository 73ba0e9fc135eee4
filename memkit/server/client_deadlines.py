"""Deadlines that a client computed from its own clock while the server's clock was moved."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import redis

from memkit.connect import execute_undecoded
from memkit.render import duration, printable, utc_text, utc_time
from memkit.server.launcher import RedisServer

UNITS_MS = {"EXPIREAT": 1_000, "PEXPIREAT": 1, "EXAT": 1_000, "PXAT": 1}
MOVED_OVER_MS = 2_000
"""SLOWLOG has whole seconds; a smaller move is within the time that the test took."""
ENTRIES = 10_000
CLIENT_CLOCK_MODULES = ("time_machine", "freezegun")


@contextmanager
def explained_deadlines(server: RedisServer) -> Iterator[Callable[[], str | None]]:
    """Log every command of a private server in its SLOWLOG.

    Yields:
        A function that returns why a deadline of the client's clock was wrong, or None if there was none.
    """
    started_s = time.monotonic()
    with server.client(protocol=2) as client, client.pipeline(transaction=False) as pipe:
        pipe.config_get("slowlog-*")
        pipe.config_set("slowlog-log-slower-than", 0)
        pipe.config_set("slowlog-max-len", ENTRIES)
        pipe.slowlog_reset()
        before: dict[str, str] = pipe.execute()[0]
        try:
            yield partial(_explanation, server, client, started_s)
        finally:
            for name, value in before.items():
                pipe.config_set(name, value)
            pipe.execute()


def _explanation(server: RedisServer, client: redis.Redis, started_s: float) -> str | None:
    test_took_ms = (time.monotonic() - started_s) * 1000
    moved_ms = server.clock.offset.total_seconds() * 1000
    entries = execute_undecoded(client, "SLOWLOG", "GET", ENTRIES)
    real_ms = (server.clock.now().timestamp() * 1000) - moved_ms
    for _, sent_s, _, words, *_ in reversed(entries):
        sent_ms = sent_s * 1000
        ahead_ms = sent_ms - real_ms
        if abs(ahead_ms) <= test_took_ms + MOVED_OVER_MS:
            continue  # the clock had not been moved yet
        if abs(ahead_ms - moved_ms) <= test_took_ms + MOVED_OVER_MS:
            ahead_ms = moved_ms  # the same move, without the rounding of SLOWLOG
        for command, key, deadline_ms in _deadlines(words):
            passed = deadline_ms <= sent_ms
            if passed or not any(name in sys.modules for name in CLIENT_CLOCK_MODULES):
                left = "already past" if passed else f"{duration(deadline_ms - sent_ms)} away"
                return (
                    f"memkit: the test sent {command} {printable(key)} with the deadline "
                    f"{utc_text(utc_time(deadline_ms))} while memkit_clock was "
                    f"{duration(abs(ahead_ms))} {'ahead' if ahead_ms > 0 else 'behind'}. For the server that was "
                    f"{left}. memkit_clock moves the server's clock only, and the deadline came from the client's "
                    "clock. Use EXPIRE or EX, or move the client's clock too, for example with time-machine"
                )
    return None


def _deadlines(words: Sequence[bytes]) -> Iterator[tuple[str, str, float]]:
    """Yield command, key and deadline in milliseconds of a command that sets one."""
    name = words[0].decode(errors="replace").upper()
    key = words[1].decode(errors="backslashreplace") if len(words) > 1 else ""
    sets_it = name in ("EXPIREAT", "PEXPIREAT")
    for option, value in pairwise([words[0], *words[2:3]] if sets_it else words[2:]):
        unit = option.decode(errors="replace").upper()
        if (sets_it or unit in ("EXAT", "PXAT")) and value.isdigit():
            yield name if sets_it else f"{name} {unit}", key, float(value) * UNITS_MS[unit]
