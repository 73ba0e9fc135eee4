"""The store behind a real Sentinel: it follows a failover; what a replica had not yet is not promised."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import binary_of, every_server
from topology import HASTY_MS, Watched, watched
from waiting import wait_for

from memkit.connect import connect, connect_async
from memkit.store import AsyncMemoryStore, MemoryStore

HI = {"role": "user", "content": "hi"}


@pytest.fixture(params=every_server())
def service(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[Watched]:
    binary = binary_of(request.param)
    record_property("server", request.param)
    with watched(binary.path) as made:
        yield made


def replicated(service: Watched) -> None:
    with service.primary().client() as node:
        assert node.execute_command("WAIT", 1, 120_000) == 1


def attempt(do: Callable[[], object]) -> str:
    """Be an application that tries again: its message has an id of its own, so that this adds nothing."""
    try:
        do()
    except redis.RedisError as error:
        return repr(error)
    return "done"


def test_a_store_follows_the_failover(service: Watched) -> None:
    client = connect(service.url.removesuffix("0") + "1", retry=Retry(NoBackoff(), 1), socket_timeout=60)
    assert isinstance(client, redis.Redis)
    with client:
        store = MemoryStore(client, prefix="session:", ttl="7d")
        assert store.retries == 1
        for n in range(20):
            store.append("a", {"n": n})
        replicated(service)
        before = service.primary()
        before.kill()
        service.fail_over_after(HASTY_MS)
        write = partial(store.append, "a", {"id": "after"})
        wait_for("a write after the failover", lambda: attempt(write), "done".__eq__)
        assert store.load("a") == [*({"n": n} for n in range(20)), {"id": "after"}]
        assert service.primary() is not before
        assert (store.ttl("a") or 0) > 604_700
        assert list(store.sessions()) == ["a"]
        with service.primary().client(db=1) as node:
            assert node.exists("session:a") == 1


async def test_an_async_store_uses_sentinel_s_primary(service: Watched) -> None:
    client = connect_async(service.url.removesuffix("0") + "1")
    assert isinstance(client, redis.asyncio.Redis)
    async with client:
        store = AsyncMemoryStore(client, prefix="session:", ttl="7d")
        await asyncio.gather(*(store.append("a", {"n": n}) for n in range(10)))
        assert sorted(message["n"] for message in await store.load("a") or []) == list(range(10))
        with service.primary().client(db=1) as node:
            assert node.exists("session:a") == 1
        sentinels = client.connection_pool.sentinel_manager.sentinels  # type: ignore[attr-defined]
        assert any(connections(sentinel) for sentinel in sentinels)
    assert not any(connections(sentinel) for sentinel in sentinels)


def connections(client: redis.asyncio.Redis) -> int:
    return sum(idle.is_connected for idle in client.connection_pool._available_connections)
