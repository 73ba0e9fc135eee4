"""The published regression tests of the five-minute bug, in their original shape, on the fixture."""

import pytest

from memkit import MemoryStore

WEEK_S = 7 * 24 * 3600


def wait_until_expired(client, key, within_s):
    """Wait on the server until a key has expired: BLPOP on a missing list returns after its timeout."""
    for _ in range(int(within_s / 0.05)):
        if not client.exists(key):
            return
        client.blpop(f"{client._test_prefix}nothing", timeout=0.05)
    raise AssertionError(f"waited {within_s} s for the end of {key}; last seen: {client.pttl(key)} ms left")


def test_session_round_trip(redis_memory_store):
    store = MemoryStore(redis_memory_store, prefix="session:", ttl=WEEK_S)
    history = [
        {"role": "user", "content": "我的订单什么时候到？"},
        {"role": "assistant", "content": "预计明天送达 📦"},
    ]
    store.save("user-42", history)
    assert store.load("user-42") == history


def test_session_expires_after_its_ttl(redis_memory_store):
    store = MemoryStore(redis_memory_store, prefix="session:", ttl=2)
    store.save("user-42", [{"role": "user", "content": "hi"}])
    assert store.load("user-42") is not None
    wait_until_expired(redis_memory_store, store.key("user-42"), within_s=120)
    assert store.load("user-42") is None


def test_session_expires_after_its_ttl_by_the_clock(redis_memory_store, memkit_clock):
    store = MemoryStore(redis_memory_store, prefix="session:", ttl=120)
    store.save("user-42", [{"role": "user", "content": "hi"}])
    memkit_clock.shift("60s")
    assert store.load("user-42") is not None
    memkit_clock.shift("61s")
    assert store.load("user-42") is None


def test_stores_with_other_prefixes_are_isolated(redis_memory_store):
    a = MemoryStore(redis_memory_store, prefix="a:", ttl=60)
    b = MemoryStore(redis_memory_store, prefix="b:", ttl=60)
    a.save("same", [{"role": "user", "content": "from a"}])
    b.save("same", [{"role": "user", "content": "from b"}])
    assert a.load("same") == [{"role": "user", "content": "from a"}]
    assert b.load("same") == [{"role": "user", "content": "from b"}]
    assert list(a.sessions()) == list(b.sessions()) == ["same"]
    a.delete("same")
    assert a.load("same") is None
    assert b.load("same") == [{"role": "user", "content": "from b"}]


def test_a_session_expires_at_its_configured_ttl(memory_store, memkit_clock):
    memory_store.save("s", [{"role": "user", "content": "remember me"}])
    memkit_clock.shift("6d")
    assert memory_store.load("s") == [{"role": "user", "content": "remember me"}]
    memkit_clock.shift("25h")
    assert memory_store.load("s") is None


@pytest.mark.parametrize("ttl", ["7d", WEEK_S])
def test_every_write_carries_the_ttl(redis_memory_store, ttl):
    store = MemoryStore(redis_memory_store, prefix="session:", ttl=ttl)
    store.append("s", {"role": "user", "content": "1"})
    assert WEEK_S - 5 < store.ttl("s") <= WEEK_S
    store.save("s", [{"role": "user", "content": "2"}])
    assert WEEK_S - 5 < store.ttl("s") <= WEEK_S


async def test_async_store_in_a_sandbox(async_memory_store):
    await async_memory_store.append("s", {"role": "user", "content": "1"})
    assert await async_memory_store.load("s") == [{"role": "user", "content": "1"}]
