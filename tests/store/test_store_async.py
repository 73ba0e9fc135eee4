"""AsyncMemoryStore: the same names, the same operations and the same guarantees as MemoryStore."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import redis
import redis.asyncio
import redis.asyncio.retry
from redis.backoff import NoBackoff
from servers import every_server, start

from memkit.errors import Conflict, DecodeError, EncodeError, PolicyError, PolicyShortenedWarning, SessionNotFound
from memkit.policy import ExpiryPolicy
from memkit.server import RedisServer
from memkit.store import AsyncMemoryStore, MemoryStore

HI = {"role": "user", "content": "hi"}
HELLO = {"role": "assistant", "content": "hello"}


@pytest.fixture(scope="module", params=every_server())
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with start(request.param) as server:
        yield server


@pytest.fixture
async def client(
    server: RedisServer, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> AsyncIterator[redis.asyncio.Redis]:
    record_property("server", request.node.callspec.params["server"])
    async with server.async_client() as client:
        await client.flushall()
        yield client


@pytest.fixture
def store(client: redis.asyncio.Redis) -> AsyncMemoryStore:
    return AsyncMemoryStore(client, prefix="session:", ttl="7d")


def test_both_stores_have_the_same_parameters() -> None:
    for name, member in inspect.getmembers(MemoryStore):
        if not name.startswith("_") or name == "__init__":
            other = getattr(AsyncMemoryStore, name)
            assert type(member) is type(other), name
            if inspect.isfunction(member):
                parameters = [dict(inspect.signature(one).parameters) for one in (member, other)]
                for one in parameters:
                    one.pop("client", None)  # of another kind
                assert parameters[0] == parameters[1], name
    assert {name for name in dir(MemoryStore) if name[0] != "_"} == {
        name for name in dir(AsyncMemoryStore) if name[0] != "_"
    }


async def test_async_store_has_every_operation(store: AsyncMemoryStore) -> None:
    assert await store.load("a") is None
    assert await store.get("a") is None
    assert await store.append("a", HI) == 1
    assert await store.append("a", HELLO, {"id": "x"}) == 2
    assert await store.append("a", {"id": "x"}) == 2
    assert await store.update("a", summary="s", metadata={"k": 1}) == 3
    assert await store.put_vectors("a", np.ones((2, 2), dtype="float32")) == 4
    found = await store.get("a")
    vectors = await store.get_vectors("a")
    assert found is not None
    assert vectors is not None
    assert (found.messages, found.summary, found.metadata) == ([HI, HELLO, {"id": "x"}], "s", {"k": 1})
    assert (found.version, found.vectors_lost, vectors.tolist()) == (4, False, [[1, 1], [1, 1]])
    assert await store.save("a", [HELLO], version=found.version) == 5
    assert (await store.load("a"), await store.load("a", 0), await store.load("a", 5)) == ([HELLO], [], [HELLO])
    assert await store.touch("a") is True
    assert 604_700 < (await store.ttl("a") or 0) <= 604_800
    assert [session_id async for session_id in store.sessions()] == ["a"]
    assert await store.delete("a") is True
    assert await store.touch("a") is await store.delete("a") is False
    assert (store.prefix, store.policy, store.key("a")) == ("session:", ExpiryPolicy.sliding("7d"), "session:a")


async def test_errors_are_the_same(store: AsyncMemoryStore, client: redis.asyncio.Redis) -> None:
    for missing in (store.ttl("a"), store.update("a"), store.append("a", create=False)):
        with pytest.raises(SessionNotFound):
            await missing
    await store.append("a", HI)
    for conflict in (store.save("a", [], version=5), store.update("a", version=0)):
        with pytest.raises(Conflict):
            await conflict
    unfit: tuple[Any, ...] = ({1: 2}, [HI, "x"], 5, [1.0])
    for bad in (
        store.append("a", unfit[0]),
        store.save("a", unfit[1]),
        store.update("a", summary=unfit[2]),
        store.put_vectors("a", unfit[3]),
    ):
        with pytest.raises(EncodeError, match="^'session:a': "):
            await bad
    with pytest.raises(PolicyError):
        await store.load("")
    await client.set("session:b", "x")
    await client.rpush("session:c", "x")
    for session_id in "bc":
        for call in (
            store.load(session_id),
            store.get(session_id),
            store.append(session_id, HI),
            store.ttl(session_id),
        ):
            with pytest.raises(DecodeError, match=f"'session:{session_id}'"):
                await call
    assert await client.get("session:b") == b"x"


async def test_each_store_reads_what_the_other_wrote(store: AsyncMemoryStore, server: RedisServer) -> None:
    with server.client() as client:
        sync = MemoryStore(client, prefix="session:", ttl="7d")
        sync.append("a", HI)
        await store.append("a", HELLO)
        assert sync.load("a") == await store.load("a") == [HI, HELLO]


async def test_a_warning_has_the_caller_s_line(client: redis.asyncio.Redis, store: AsyncMemoryStore) -> None:
    await store.append("a", HI)
    short = AsyncMemoryStore(client, prefix="session:", ttl="5m")
    with pytest.warns(PolicyShortenedWarning) as seen:
        await short.append("a", HI)
    assert seen[0].filename == __file__


async def test_reads_renew_with_refresh_on_read(client: redis.asyncio.Redis, server: RedisServer) -> None:
    store = AsyncMemoryStore(client, prefix="session:", ttl=ExpiryPolicy.sliding("7d", refresh_on_read=True))
    await store.append("a", HI)
    for read in (store.load, store.get):
        server.clock.shift("6d")
        await read("a")  # type: ignore[operator]
        assert await client.pttl("session:a") > 604_700_000


async def test_tasks_may_share_a_store(store: AsyncMemoryStore) -> None:
    async def work(writer: int) -> None:
        for n in range(50):
            await store.append(f"{n % 2}", {"writer": writer, "n": n})

    await asyncio.gather(*(work(writer) for writer in range(10)))
    for session_id in "01":
        messages = await store.load(session_id) or []
        assert len(messages) == 250
        for writer in range(10):
            mine = [message["n"] for message in messages if message["writer"] == writer]
            assert mine == list(range(int(session_id), 50, 2))


async def test_a_cancelled_call_is_done_or_not(server: RedisServer) -> None:
    async with server.async_client(single_connection_client=False, max_connections=2) as client:
        store = AsyncMemoryStore(client, prefix="session:", ttl="7d")
        await store.delete("c")
        for n in range(60):
            task = asyncio.create_task(store.append("c", {"id": str(n)}))
            for _ in range(n % 12):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert await store.append("c", {"id": str(n)}) > 0
        assert await store.load("c") == [{"id": str(n)} for n in range(60)]


async def test_a_flushed_script_is_sent_again(store: AsyncMemoryStore, client: redis.asyncio.Redis) -> None:
    for n in range(3):
        await store.append("a", {"n": n})
        await client.script_flush()
    assert await store.load("a") == [{"n": n} for n in range(3)]


@pytest.mark.parametrize("options", [{"decode_responses": True}, {"protocol": 3}, {"encoding": "latin-1"}])
async def test_async_store_works_with_any_client_options(server: RedisServer, options: dict[str, Any]) -> None:
    async with server.async_client(**options) as client:
        store = AsyncMemoryStore(client, prefix="größe:", ttl="7d")
        await store.save("🦜", [{"ö": "🦜"}])
        await store.update("🦜", metadata={"ä": "ö🦜"})
        found = await store.get("🦜")
        assert found is not None
        assert (found.messages, found.metadata) == ([{"ö": "🦜"}], {"ä": "ö🦜"})
        assert [session_id async for session_id in store.sessions()] == ["🦜"]
        await store.delete("🦜")


async def test_pool_exhaustion_and_timeouts_pass_through(server: RedisServer) -> None:
    pool = redis.asyncio.ConnectionPool.from_url(server.url, max_connections=1)
    async with redis.asyncio.Redis(connection_pool=pool) as client:
        store = AsyncMemoryStore(client, prefix="session:", ttl="7d")
        busy = await pool.get_connection()
        with pytest.raises(redis.ConnectionError, match="Too many connections") as failed:
            await store.append("a", HI)
        assert "1 in use, 0 idle, at most 1." in failed.value.__notes__[0]
        await pool.release(busy)
    await pool.aclose()
    async with server.async_client(socket_timeout=0.05) as slow:
        await slow.client_pause(60_000, all=False)
        with pytest.raises(redis.TimeoutError):
            await AsyncMemoryStore(slow, prefix="session:", ttl="7d").append("a", HI)
        await slow.client_unpause()


async def test_retries_is_what_the_client_does(server: RedisServer) -> None:
    path = server.socket_path
    for made, expected in [
        (redis.asyncio.Redis(unix_socket_path=path), None),
        (redis.asyncio.Redis(unix_socket_path=path, retry=redis.asyncio.retry.Retry(NoBackoff(), 3)), 3),
        (redis.asyncio.Redis(unix_socket_path=path, retry=None), 0),
        (server.async_client(), 0),
        (server.async_client(retry=redis.asyncio.retry.Retry(NoBackoff(), 2)), 2),
    ]:
        async with made:
            store = AsyncMemoryStore(made, prefix="x", ttl=None)
            assert store.retries == await attempts(made) - 1
            assert expected is None or store.retries == expected


async def attempts(client: redis.asyncio.Redis) -> int:
    """Count how often a command is really sent when every connection breaks."""
    sent = 0
    connection = await client.connection_pool.get_connection()
    connection.retry._backoff = NoBackoff()

    async def broken(*_: Any, **__: Any) -> None:
        nonlocal sent
        sent += 1
        raise redis.ConnectionError("broken")

    connection.send_command = broken
    await client.connection_pool.release(connection)
    with pytest.raises(redis.ConnectionError):
        await client.ping()
    return sent


async def test_a_ttl_that_changes_during_a_read_is_reread(server: RedisServer) -> None:
    with server.client() as other:
        store, halted = MemoryStore(other, prefix="session:", ttl="7d"), []

        class Halting(redis.asyncio.UnixDomainSocketConnection):
            async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
                whole = command if isinstance(command, bytes) else b"".join(command)
                at = whole.rfind(b"*", 0, max(0, whole.rfind(b"LRANGE")))
                if at <= 0 or halted:
                    await super().send_packed_command(command, check_health)
                    return
                halted.append(at)
                await super().send_packed_command([whole[:at]], check_health)
                while not other.info("commandstats").get("cmdstat_pttl", {}).get("calls"):
                    await asyncio.sleep(0)
                store.delete("a")
                store.append("a", HELLO)
                await super().send_packed_command([whole[at:]], check_health)

        other.flushall()
        MemoryStore(other, prefix="session:", ttl="5m").append("a", HI)
        other.config_resetstat()
        pool = redis.asyncio.ConnectionPool(connection_class=Halting, path=server.socket_path)
        async with redis.asyncio.Redis.from_pool(pool) as slow:
            found = await AsyncMemoryStore(slow, prefix="session:", ttl="7d").get("a")
        assert halted
        assert found is not None
        assert (found.messages, found.policy) == ([HELLO], ExpiryPolicy.sliding("7d"))
        assert 604_700 < (found.ttl or 0) <= 604_800


async def test_get_has_the_ttl_that_it_renewed(client: redis.asyncio.Redis, server: RedisServer) -> None:
    policy = ExpiryPolicy.sliding("7d", refresh_on_read=True)
    store = AsyncMemoryStore(client, prefix="session:", ttl=policy)
    await store.append("a", HI)
    server.clock.shift("6d")
    found = await store.get("a")
    assert found is not None
    assert 604_700 < (found.ttl or 0) <= 604_800
