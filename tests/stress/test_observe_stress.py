"""100,000 keys observed on every server, in bounded memory: pytest -o addopts= tests/stress/test_observe_stress.py."""

from __future__ import annotations

import tracemalloc

from memkit.observe import observe_expiry
from memkit.server import RedisServer

KEYS = 20_000


def test_a_hundred_thousand_keys(any_server: RedisServer) -> None:
    with any_server.client() as client:
        log = observe_expiry(client, ttls=["1m", "1h", "1d", "7d", "30d"], keys_per_ttl=KEYS, clock=any_server.clock)
        assert client.dbsize() == 0
    assert log.counts() == {"expired": 5 * KEYS}
    assert log.verdict == "As meant: 100,000 keys lived their TTL of 1m to 30d and expired."
    typical, worst = log.exact_to_ms
    print(f"{log.server}: exact to {typical:.1f} ms, worst {worst:.0f} ms")
    assert typical < 250
    assert worst < 30_000


def test_memory_grows_by_the_rows_alone(any_server: RedisServer) -> None:
    with any_server.client() as client:
        tracemalloc.start()
        log = observe_expiry(client, ttls=["1h"], keys_per_ttl=KEYS, clock=any_server.clock)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(log) == KEYS
    print(f"{log.server}: {peak_bytes / KEYS:.0f} bytes a key at the peak")
    assert peak_bytes / KEYS < 1_500
