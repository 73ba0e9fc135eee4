"""Speed of the audit on a million keys: ``python tests/benchmarks/bench_audit.py [keys]`` (default 1,000,000).

Redis on a unix socket, sessions as lists. All figures are wall time against a bare SCAN COUNT 1000 in the same run,
each the best of a few; a neighbour's GET latency is measured idle and during full passes, in turns.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from shutil import which

import redis

sys.path.insert(0, str(Path(__file__).parents[1]))

from servers import every_server

from memkit.audit import audit
from memkit.readonly import ReadOnlyConnection
from memkit.server import RedisServer


def fill(client: redis.Redis, keys: int) -> None:
    script = """
    for i = ARGV[1], ARGV[2] do
      local key = 'chat:user-' .. i
      redis.call('RPUSH', key, '{"type":"human","data":{"content":"hello"}}')
      redis.call('PEXPIRE', key, 604800000 - (i * 7919 % 500000000))
    end"""
    for first in range(1, keys + 1, 20_000):
        client.eval(script, 0, first, min(first + 19_999, keys))


def bare_scan(url: str) -> None:
    connection = ReadOnlyConnection(redis.Redis.from_url(url))
    cursor, count = b"0", 0
    while True:
        cursor, keys = connection.ask("SCAN", cursor, "COUNT", 1000)
        count += len(keys)
        if cursor == b"0":
            break
    connection.close()


def best(what: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        what()
        taken.append(time.perf_counter() - began)
    return min(taken)


def neighbour(url: str, during: Callable[[], object] | None) -> float:
    """Return the p99 of a neighbour's GET, in ms: idle, or while something runs."""
    client, taken, over = redis.Redis.from_url(url), [], threading.Event()
    worker = threading.Thread(target=lambda: (during() if during else time.sleep(3), over.set()))
    worker.start()
    while not over.is_set():
        began = time.perf_counter()
        client.get("no-such-key")
        taken.append(time.perf_counter() - began)
        time.sleep(0.001)
    worker.join()
    return sorted(taken)[int(len(taken) * 0.99)] * 1000


def redis_cli(path: str, option: str) -> float | None:
    cli = which("redis-cli")
    if not cli:
        return None
    return best(lambda: subprocess.run([cli, "-s", path, option], capture_output=True, check=True), 1)


def separately(code: str, *arguments: str) -> str:
    """Run code in a process of its own: its memory, and its interpreter lock, are not ours."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


PEAK = """
import resource, sys
from memkit.audit import audit
audit(sys.argv[1], expect={"chat:*": "7d"}, full=sys.argv[2] == "full", duty=float(sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def speed(url: str, path: str) -> None:
    base = best(lambda: bare_scan(url), 5)
    print(f"bare SCAN COUNT 1000: {base:.2f} s")
    expect = {"chat:*": "7d"}
    for name, what, times in (
        ("sampled, throttle off", lambda: audit(url, expect=expect, duty=1), 5),
        ("sampled, default duty", lambda: audit(url, expect=expect), 2),
        ("full, throttle off", lambda: audit(url, expect=expect, full=True, duty=1), 3),
        ("full, default duty", lambda: audit(url, expect=expect, full=True), 1),
    ):
        took = best(what, times)
        print(f"audit, {name}: {took:.2f} s, {took / base:.2f} x", flush=True)
    with redis.Redis.from_url(url) as client:
        client.config_set("maxmemory-policy", "allkeys-lfu")
        took = best(lambda: audit(url, expect=expect, full=True, duty=1), 1)
        client.config_set("maxmemory-policy", "noeviction")
    print(f"audit, full, throttle off, no idle times (LFU): {took:.2f} s, {took / base:.2f} x", flush=True)
    for option in ("--bigkeys", "--memkeys"):
        took_cli = redis_cli(path, option)
        print(f"redis-cli {option}: " + (f"{took_cli:.2f} s, {took_cli / base:.2f} x" if took_cli else "not here"))


def harm(url: str) -> None:
    idle, resting, restless = [], [], []
    for _ in range(3):
        idle.append(neighbour(url, None))
        resting.append(neighbour(url, lambda: separately(PEAK, url, "full", "0.25")))
        restless.append(neighbour(url, lambda: separately(PEAK, url, "full", "1")))
    print(f"neighbour's GET p99, idle: {min(idle):.2f} ms")
    for name, taken in (("at the default duty", resting), ("throttle off", restless)):
        print(f"neighbour's GET p99, full pass {name}: {min(taken):.2f} ms, {min(taken) / min(idle):.1f} x")


def main(keys: int) -> None:
    binary = every_server()["redis-8.2"] or every_server()["redis-7.0"]
    assert binary
    with RedisServer(binary=binary.path) as server, server.client() as client:
        url, path = server.url, server.socket_path
        print(f"{binary.flavour} {binary.version}, {keys:,} keys, unix socket")
        fill(client, keys // 10)
        small = separately(PEAK, url, "full", "1")
        fill(client, keys)
        speed(url, path)
        harm(url)
        large = separately(PEAK, url, "full", "1")
        print(f"peak memory: {small} MB at {keys // 10:,} keys, {large} MB at {keys:,}")
        print(f"this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 1_000_000)
