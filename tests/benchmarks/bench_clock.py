"""Time on every server here: moving it, shifting deadlines, observing expiry, as ratios to a PING or a bare read.

    python tests/benchmarks/bench_clock.py [--keys 10000]

Prints a row a server. Milliseconds are this machine's; the ratios are what to compare.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import redis

sys.path.insert(0, str(Path(__file__).parent.parent))

from servers import every_server

from memkit.observe import observe_expiry
from memkit.server import RedisServer, ServerBinary, ServerClock

TIMES = 101


def took_ms(work: Callable[[], object], times: int = 1) -> float:
    """The median of some runs."""
    spans = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        spans.append((time.perf_counter() - begun) * 1000)
    return median(spans)


def fill(client: redis.Redis, keys: int) -> list[str]:
    names = [f"bench:{number}" for number in range(keys)]
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.set(name, "x", ex=10**6)
        pipe.execute()
    return names


def read_each(client: redis.Redis, names: list[str]) -> None:
    """What any observer has to do at least: one pipelined read a key."""
    for start in range(0, len(names), 1000):
        with client.pipeline(transaction=False) as pipe:
            for name in names[start : start + 1000]:
                pipe.pttl(name)
            pipe.execute()


def shift_and_read(clock: ServerClock, client: redis.Redis) -> None:
    client.set("k", "x", ex=1000)
    clock.shift("1001s")
    assert client.get("k") is None, "stale: the old time was in force for the next command"


def boundary(clock: ServerClock, client: redis.Redis) -> None:
    """A test of a 7-day TTL: the key exists shortly before its deadline and has expired shortly after."""
    client.set("k", "x", ex=7 * 86_400)
    clock.shift("604799s")
    assert client.get("k")
    clock.shift("2s")
    assert client.get("k") is None


def measure(binary: ServerBinary, keys: int) -> list[str]:
    with RedisServer(binary=binary.path) as server, server.client() as client:
        ping = took_ms(client.ping, TIMES)
        clock = server.clock
        visible = took_ms(lambda: shift_and_read(clock, client), TIMES)
        week = took_ms(lambda: boundary(clock, client), TIMES)
        names = fill(client, keys)
        read = took_ms(lambda: read_each(client, names), 5)
        portable = ServerClock(client, prefix="bench:")
        shifted = took_ms(lambda: portable.shift("1s"), 5)
        client.delete(*names)
        observed = took_ms(lambda: observe_expiry(client, ttls=["7d"], keys_per_ttl=keys, clock=clock), 3)
    per_10k = 10_000 / keys
    return [
        f"{ping:.3f}",
        f"{visible:.2f} ({visible / ping:.0f}x)",
        f"{week:.2f} ({week / ping:.0f}x)",
        f"{shifted * per_10k:.0f} ({shifted / read:.1f}x)",
        f"{keys / observed * 1000:,.0f}/s ({observed / read:.1f}x)",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=10_000)
    keys = parser.parse_args().keys
    titles = ["server", "PING ms", "shift to visible ms (x PING)", "7-day test ms (x PING)",
              "shift 10,000 deadlines ms (x bare read)", "observed keys (x bare read)"]  # fmt: skip
    rows = [titles] + [[name, *measure(one, keys)] for name, one in every_server().items() if one]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


if __name__ == "__main__":
    main()
