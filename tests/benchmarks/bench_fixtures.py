"""100 tests with each fixture, against 100 tests with pytest-redis's ``redisdb``, taken in turn.

    uv venv mine && uv pip install --python mine '.[server]' pytest
    uv venv peer && uv pip install --python peer pytest pytest-redis
    mine/bin/python tests/benchmarks/bench_fixtures.py --peer peer/bin/python

Prints the median of the whole runs (to be at most 1.0 of the peer's) and, in brackets, the milliseconds that one more
test takes. A first run of each, which is not counted, compiles the modules: pip does that when it installs them, uv
does not.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS, RUNS = 100, 5
USES = {
    "redis_client": "redis_client.set('k', n); assert redis_client.get('k')",
    "redis_client_url": "with redis.Redis.from_url(redis_client_url) as own: own.set('k', n); assert own.get('k')",
    "async_redis_client": "asyncio.run(use(async_redis_client))",
    "redis_memory_store": "redis_memory_store.set(redis_memory_store._test_prefix + 'k', n)",
    "memory_store": "memory_store.save('k', [{'n': n}]); assert memory_store.load('k')",
    "async_memory_store": "asyncio.run(use_store(async_memory_store))",
    "redis_client, memkit_clock": (
        "redis_client.set('k', n, 9); memkit_clock.shift('10s'); assert not redis_client.get('k')"
    ),
}
PEER = {"redisdb": "redisdb.set('k', n); assert redisdb.get('k')"}
MODULE = """
import asyncio
import pytest
import redis


async def use(client):
    await client.set("k", 1)
    assert await client.get("k")
    await client.aclose()


async def use_store(store):
    await store.save("k", [{"n": 1}])
    assert await store.load("k")


@pytest.mark.parametrize("n", range(TESTS))
def test_one(n, FIXTURES):
    BODY
"""


def run_s(python: str, folder: Path, fixtures: str, body: str, tests: int) -> float:
    path = folder / "test_it.py"
    path.write_text(
        MODULE.replace("range(TESTS)", f"range({tests})").replace("FIXTURES", fixtures).replace("BODY", body)
    )
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(path)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    took = time.perf_counter() - began
    if done.returncode:
        sys.exit((done.stdout + done.stderr)[-2_000:])
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer", required=True, type=os.path.abspath, metavar="PYTHON", help="a Python with pytest-redis installed"
    )
    options = parser.parse_args()
    uses = {name: (sys.executable, body) for name, body in USES.items()}
    uses |= {name: (options.peer, body) for name, body in PEER.items()}
    took: dict[str, list[float]] = {name: [] for name in uses}
    more: dict[str, list[float]] = {name: [] for name in uses}
    with tempfile.TemporaryDirectory() as folder:
        for name, (python, body) in uses.items():
            run_s(python, Path(folder), name, body, 1)
        for _ in range(RUNS):
            for name, (python, body) in uses.items():
                took[name].append(run_s(python, Path(folder), name, body, TESTS))
                more[name].append(run_s(python, Path(folder), name, body, 3 * TESTS) - took[name][-1])
    peer_s = statistics.median(took["redisdb"])
    for name, all_s in took.items():
        median_s = statistics.median(all_s)
        each_ms = 1000 * statistics.median(more[name]) / (2 * TESTS)
        print(f"{name:<28} {median_s:5.2f} s, {median_s / peer_s:4.2f} of pytest-redis  ({each_ms:.2f} ms a test)")


if __name__ == "__main__":
    main()
