"""MemoryStore on every real server: what it promises, one test a promise."""

from __future__ import annotations

import gc
import os
import sys
import threading
import warnings
import weakref
from array import array
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import every_server, start

from memkit.errors import (
    Conflict,
    DecodeError,
    EncodeError,
    MemkitError,
    PolicyError,
    PolicyShortenedWarning,
    SessionNotFound,
)
from memkit.policy import ExpiryPolicy
from memkit.server import RedisServer
from memkit.store.encoding import Version
from memkit.store.operations import Write
from memkit.store.store import MemoryStore

HI = {"role": "user", "content": "hi"}
HELLO = {"role": "assistant", "content": "hello"}
WEEK_S = 7 * 86_400


@pytest.fixture(scope="module", params=every_server())
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with start(request.param) as server:
        yield server


@pytest.fixture
def client(
    server: RedisServer, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Iterator[redis.Redis]:
    record_property("server", request.node.callspec.params["server"])
    with server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def store(client: redis.Redis) -> MemoryStore:
    return MemoryStore(client, prefix="session:", ttl="7d")


def policed(client: redis.Redis, ttl: Any, **options: Any) -> MemoryStore:
    return MemoryStore(client, prefix="session:", ttl=ttl, **options)


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"message {n}"} for n in range(count)]


# Reading and writing


def test_what_is_saved_is_loaded(store: MemoryStore) -> None:
    dialogue = [HI, HELLO, {"n": [1, 2.5, None, True, {"é": "🦜\0\n"}], "big": 2**80}, {"id": "a"}, {}]
    store.save("a", dialogue)
    assert store.load("a") == dialogue
    store.save("a", [HELLO])
    assert store.load("a") == [HELLO]
    store.save("a", [])
    assert store.load("a") == []


def large(*numbers: int) -> list[dict[str, Any]]:
    """Return messages of which two share an element."""
    return [{"role": "user", "content": f"{n} " + "x" * 3_000} for n in numbers]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (large(*range(9)), large(*range(9))),
        (large(*range(9)), large(*range(10))),
        (large(*range(10)), large(*range(11))),
        (large(*range(9)), large(*range(30))),
        (large(*range(9)), large(*range(8))),
        (large(*range(9)), large(*range(3))),
        (large(*range(9)), large(*range(8), 77)),
        (large(*range(9)), large(77, *range(1, 9))),
        (large(*range(9)), large(*range(4), 77, *range(5, 12))),
        (large(*[1] * 9), large(*[1] * 12)),
        (large(*range(9)), [*large(*range(9)), {"id": "x"}]),
        ([*large(*range(8)), {"id": "x"}], [*large(*range(8)), {"id": "x"}, *large(8)]),
    ],
)
@pytest.mark.parametrize("appended", [0, 2])
def test_a_dialogue_is_saved_again(
    store: MemoryStore, client: redis.Redis, before: list[Any], after: list[Any], appended: int
) -> None:
    store.save("a", before)
    for message in large(*range(100, 100 + appended)):
        store.append("a", message)
    write = store._operations.save("a", after, version=None)
    assert store._write(write) == store._write(write) == 2 + appended
    assert store.load("a") == after
    store.save("b", after)
    # The stamps of messages with their own ids contain the version and the time.
    elements = [client.lrange(f"session:{name}", 1, -1) for name in "ab"]
    assert [raw for raw in elements[0] if raw[:1] == b"["] == [raw for raw in elements[1] if raw[:1] == b"["]
    assert client.pttl("session:a") > 604_000_000


def test_a_session_does_not_exist_before_a_write(store: MemoryStore) -> None:
    assert store.load("a") is None
    assert store.get("a") is None
    assert store.get_vectors("a") is None
    assert store.touch("a") is False
    assert store.delete("a") is False
    for read in (
        lambda: store.ttl("a"),
        lambda: store.update("a", summary="x"),
        lambda: store.append("a", create=False),
    ):
        with pytest.raises(SessionNotFound, match="'session:a'"):
            read()
    with pytest.raises(SessionNotFound):
        store.put_vectors("a", np.zeros(1, dtype="float32"))
    assert list(store.sessions()) == []


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100, 1_200])
def test_load_last_after_saves_and_appends(store: MemoryStore, count: int) -> None:
    store.save("saved", numbered(count))
    store.append("appended", *numbered(count))
    for message in numbered(min(count, 100)):
        store.append("one by one", message)
    store.save("both", numbered(3))
    store.append("both", *numbered(count))
    for session_id in ("saved", "appended", "one by one", "both"):
        whole = store.load(session_id)
        assert whole is not None
        for last in (0, 1, 2, count - 1, count, count + 1, 5_000):
            assert store.load(session_id, last) == whole[len(whole) - min(last, len(whole)) :]
    assert store.load("appended") == store.load("saved") == numbered(count)


def test_get_returns_the_whole_session(store: MemoryStore, server: RedisServer) -> None:
    before = server.clock.now() - timedelta(milliseconds=5)
    store.append("a", HI)
    store.append("a", HELLO)
    store.update("a", summary="greetings", metadata={"user": "bob"})
    found = store.get("a")
    assert found is not None
    assert (found.session_id, found.messages, found.version) == ("a", [HI, HELLO], 3)
    assert (found.summary, found.metadata, found.vectors_lost) == ("greetings", {"user": "bob"}, False)
    assert found.policy == ExpiryPolicy.sliding("7d") == store.policy
    assert found.ttl is not None
    assert WEEK_S - 60 < found.ttl <= WEEK_S
    assert before <= found.created_at <= found.updated_at <= server.clock.now() + timedelta(milliseconds=5)


def test_updated_at_follows_appends_and_updates(store: MemoryStore, server: RedisServer) -> None:
    store.append("a", HI)
    server.clock.shift("1h")
    store.append("a", HI)
    first = store.get("a")
    server.clock.shift("1h")
    store.update("a", summary="x")
    second = store.get("a")
    assert first is not None
    assert second is not None
    assert timedelta(minutes=59) < first.updated_at - first.created_at < timedelta(minutes=61)
    assert timedelta(minutes=119) < second.updated_at - first.created_at < timedelta(minutes=121)


def test_update_leaves_messages_and_merges_metadata(store: MemoryStore) -> None:
    store.save("a", [HI])
    raw = store._client.lrange("session:a", 1, -1)
    store.update("a", metadata={"user": "bob", "tags": ["x"], "empty": [], "n": 2**70, "größe": 1})
    store.update("a", summary="")
    store.update("a", metadata={"user": None, "plan": {"a": {}}, "absent": None, "\0\n\"'\\": "{}"})
    found = store.get("a")
    assert found is not None
    assert found.summary == ""
    wanted = {"tags": ["x"], "empty": [], "n": 2**70, "größe": 1, "plan": {"a": {}}, "\0\n\"'\\": "{}"}
    assert found.metadata == wanted
    store.update("a", summary=None, metadata=dict.fromkeys(wanted))
    found = store.get("a")
    assert found is not None
    assert (found.summary, found.metadata) == (None, {})
    assert store._client.lrange("session:a", 1, -1) == raw


def test_save_leaves_summary_and_metadata(store: MemoryStore) -> None:
    store.save("a", [HI])
    store.update("a", summary="s", metadata={"k": 1})
    store.save("a", [HELLO])
    found = store.get("a")
    assert found is not None
    assert (found.messages, found.summary, found.metadata) == ([HELLO], "s", {"k": 1})


def test_delete_removes_everything(store: MemoryStore, client: redis.Redis) -> None:
    store.save("a", [HI])
    store.put_vectors("a", np.zeros(3, dtype="float32"))
    assert store.delete("a") is True
    assert client.dbsize() == 0


# Exactly once. What a client sends again are the same bytes: the same Write.


def calls(store: MemoryStore) -> dict[str, Callable[[], Write[int]]]:
    make = store._operations
    zeros = np.zeros(3, dtype="float32")
    return {
        "append": lambda: make.append("a", (HI,), create=True),
        "append without creating": lambda: make.append("a", (HI,), create=False),
        "append of several": lambda: make.append("a", (HI, HI, HELLO), create=True),
        "append with own id": lambda: make.append("a", ({"id": "x"}, HI), create=True),
        "append of own ids only": lambda: make.append("a", ({"id": "x"}, {"id": "y"}), create=True),
        "append of thousands": lambda: make.append("a", tuple({"id": str(n)} for n in range(2_500)), create=True),
        "append of nothing": lambda: make.append("a", (), create=True),
        "save": lambda: make.save("a", [HI, HELLO], version=None),
        "save at a version": lambda: make.save("a", [HI, HELLO], version=store.get("a").version),  # type: ignore[union-attr]
        "update": lambda: make.update("a", "s", {"k": 1}, None),
        "put_vectors": lambda: make.put_vectors("a", zeros),
    }


@pytest.mark.parametrize("name", sorted(calls(MemoryStore(redis.Redis(), prefix="", ttl=None))))
@pytest.mark.parametrize(
    ("seen", "between"), [(True, "nothing"), (False, "nothing"), (True, "appends"), (True, "updates")]
)
def test_a_repeated_call_changes_nothing(store: MemoryStore, name: str, seen: bool, between: str) -> None:
    MemoryStore(store._client, prefix="session:", ttl="7d").append("a", HI)
    if seen:
        store.load("a")
    write = calls(store)[name]()
    first = store._write(write)
    others = MemoryStore(store._client, prefix="session:", ttl="7d")
    for n in range(100 if between == "appends" else 0):
        others.append("a", {"other": n})
    for n in range(30 if between == "updates" else 0):
        others.update("a", summary=str(n))
    before = store._client.lrange("session:a", 0, -1)
    again = store._write(write)
    assert store._client.lrange("session:a", 0, -1) == before
    if name != "append of nothing":
        assert again == first


@pytest.mark.parametrize("name", ["save", "update", "put_vectors"])
def test_a_call_is_recognised_for_255_writes(store: MemoryStore, name: str) -> None:
    store.append("a", HI)
    write = calls(store)[name]()
    first = store._write(write)
    for n in range(254):
        store.update("a", summary=str(n))
    before = store._client.lrange("session:a", 0, -1)
    assert store._write(write) == first
    assert store._client.lrange("session:a", 0, -1) == before


@pytest.mark.parametrize("name", ["append", "append of several", "append with own id", "save", "update", "put_vectors"])
def test_a_repeated_call_that_created_the_session(store: MemoryStore, name: str) -> None:
    if name in ("update", "put_vectors"):
        store.append("a", HI)
    write = calls(store)[name]()
    first = store._write(write)
    before = store._client.lrange("session:a", 0, -1)
    assert store._write(write) == first
    assert store._client.lrange("session:a", 0, -1) == before


def test_a_repeated_save_at_version_0(store: MemoryStore) -> None:
    write = store._operations.save("a", [HI], version=0)
    assert store._write(write) == store._write(write) == 1


def test_a_repeated_append_after_a_save_adds_nothing(store: MemoryStore) -> None:
    for n in range(64):
        store.append("a", {"n": n})
    batches = [(HI, HI), ({"id": "x"},), ({"id": "y"}, HI, {"id": "z"})]
    calls = [store._operations.append("a", batch, create=True) for batch in batches]
    versions = [store._write(write) for write in calls]
    others = MemoryStore(store._client, prefix="session:", ttl="7d")
    for n in range(190):
        others.save("a", [{"saved": n}])
    assert [store._write(write) for write in calls] == versions
    assert store.load("a") == [{"saved": 189}]
    store.append("a", {"id": "x"})
    assert store.load("a") == [{"saved": 189}, {"id": "x"}]


def test_two_identical_messages_are_two_messages(store: MemoryStore) -> None:
    store.append("a", HI)
    store.append("a", HI)
    store.append("a", HI, HI)
    assert store.load("a") == [HI] * 4


def test_the_same_id_is_stored_once(store: MemoryStore, client: redis.Redis) -> None:
    store.append("a", {"id": "x", "n": 1}, {"id": "y"}, {"id": "x", "n": 2}, HI)
    version = store.append("a", {"id": "x", "n": 3})
    assert version == 1
    MemoryStore(client, prefix="session:", ttl="7d").append("a", {"id": "x", "n": 4}, {"id": "z"}, HELLO)
    assert store.load("a") == [{"id": "x", "n": 1}, {"id": "y"}, HI, {"id": "z"}, HELLO]


def test_an_id_is_recognised_for_1024_messages(store: MemoryStore) -> None:
    store.append("a", {"id": "x"})
    for message in numbered(1_023):
        store.append("a", message)
    store.append("a", {"id": "x"})
    assert len(store.load("a") or []) == 1_024


def test_an_id_in_a_saved_dialogue_counts(store: MemoryStore) -> None:
    store.save("a", [HI, {"id": "x"}, HI, {"id": "x"}])
    store.append("a", {"id": "x"})
    assert store.load("a") == [HI, {"id": "x"}, HI, {"id": "x"}]
    store.save("a", [HI])
    store.append("a", {"id": "x"})
    assert store.load("a") == [HI, {"id": "x"}]


@pytest.mark.parametrize("own", ["", 5, None, ["x"]])
def test_an_id_that_is_not_a_string_does_not_count(store: MemoryStore, own: object) -> None:
    store.append("a", {"id": own})
    store.append("a", {"id": own})
    assert store.load("a") == [{"id": own}] * 2


def test_a_session_created_again_is_another_one(store: MemoryStore, client: redis.Redis) -> None:
    for n in range(10):
        store.append("a", {"n": n})
    others = MemoryStore(client, prefix="session:", ttl="7d")
    others.delete("a")
    others.append("a", HI)
    write = store._operations.append("a", (HELLO,), create=True)
    store._write(write)
    for n in range(20):
        others.append("a", {"n": n})
    store._write(write)
    assert (store.load("a") or []).count(HELLO) == 1


def test_a_repeated_delete_keeps_a_newer_session(store: MemoryStore, client: redis.Redis) -> None:
    store.append("a", HI)
    born = store._read(store._operations.born("a"))
    assert born
    write = store._operations.delete("a", born)
    assert store._write(write) is True
    MemoryStore(client, prefix="session:", ttl="7d").append("a", HELLO)
    assert store._write(write) is True
    assert store.load("a") == [HELLO]


# Versions


def test_every_write_raises_the_version_by_one(store: MemoryStore) -> None:
    versions = [
        store.append("a"),
        store.append("a", HI),
        store.append("a", HI, HI, {"id": "x"}),
        store.save("a", [HI] * 100),
        store.append("a", HI),
        store.update("a", summary="s"),
        store.append("a", HI),
        store.update("a", metadata={}),
        store.put_vectors("a", np.zeros(1, dtype="float32")),
        store.save("a", []),
    ]
    assert versions == list(range(1, 11))
    found = store.get("a")
    assert found is not None
    assert found.version == 10


def test_reads_touch_and_duplicates_keep_the_version(store: MemoryStore) -> None:
    store.append("a", {"id": "x"})
    store.touch("a")
    assert store._operations._seen["a"].endswith(b" 1")
    store.load("a")
    assert store.append("a", {"id": "x"}) == store.append("a") == 1
    found = store.get("a")
    assert found is not None
    assert found.version == 1


def test_a_lost_race_is_a_conflict(store: MemoryStore) -> None:
    version = store.append("a", HI)
    store.append("a", HELLO)
    before = store._client.lrange("session:a", 0, -1)
    for write in (
        lambda: store.save("a", [], version=version),
        lambda: store.update("a", summary="x", version=version),
    ):
        with pytest.raises(Conflict, match=r"'session:a' is at version 2, not at the given one"):
            write()
    with pytest.raises(Conflict):
        store.save("a", [], version=0)
    assert store._client.lrange("session:a", 0, -1) == before
    assert store.save("a", [HI], version=2) == 3
    assert store.update("a", summary="x", version=3) == 4


def test_version_0_requires_a_missing_session(store: MemoryStore) -> None:
    assert store.save("a", [HI], version=0) == 1
    with pytest.raises(Conflict):
        store.save("a", [HELLO], version=0)
    store.append("empty")
    with pytest.raises(Conflict):
        store.save("empty", [HELLO], version=0)
    with pytest.raises(Conflict, match="at version 0"):
        store.save("missing", [HELLO], version=5)


def test_an_earlier_session_s_version_is_a_conflict(store: MemoryStore, client: redis.Redis) -> None:
    found = store.save("a", [HI])
    others = MemoryStore(client, prefix="session:", ttl="7d")
    others.delete("a")
    assert others.append("a", HELLO) == found
    with pytest.raises(Conflict, match="created again"):
        store.save("a", [HI], version=found)
    with pytest.raises(Conflict):
        store.update("a", summary="x", version=found)
    assert store.load("a") == [HELLO]
    assert store.save("a", [HI], version=int(found)) == 2
    session = store.get("a")
    assert session is not None
    assert isinstance(session.version, Version)


def test_two_writers_keep_every_change(store: MemoryStore, client: redis.Redis) -> None:
    others = MemoryStore(client, prefix="session:", ttl="7d")
    store.save("a", [])
    store.update("a", metadata={"one": 1, "both": 1})
    others.update("a", metadata={"two": 2, "both": 2})
    found = store.get("a")
    assert found is not None
    assert found.metadata == {"one": 1, "two": 2, "both": 2}


# Expiry


def left_ms(client: redis.Redis) -> int:
    return int(client.pttl("session:a"))


def writes(store: MemoryStore) -> dict[str, Callable[[], object]]:
    return {
        "append": lambda: store.append("a", HI),
        "append of a known id": lambda: store.append("a", {"id": "x"}),
        "append of nothing": lambda: store.append("a"),
        "save": lambda: store.save("a", [HI]),
        "update": lambda: store.update("a", summary="s"),
        "put_vectors": lambda: store.put_vectors("a", np.zeros(1, dtype="float32")),
        "touch": lambda: store.touch("a"),
    }


WRITES = sorted(writes(MemoryStore(redis.Redis(), prefix="", ttl=None)))


@pytest.mark.parametrize("name", WRITES)
def test_sliding_is_renewed_by_every_write(client: redis.Redis, server: RedisServer, name: str) -> None:
    store = policed(client, "7d")
    store.append("a", {"id": "x"})
    server.clock.shift("6d")
    writes(store)[name]()
    assert 604_790_000 < left_ms(client) <= 604_800_000
    server.clock.shift("8d")
    assert store.load("a") is None


@pytest.mark.parametrize("name", WRITES)
def test_absolute_is_not_renewed(client: redis.Redis, server: RedisServer, name: str) -> None:
    store = policed(client, ExpiryPolicy.absolute("7d"))
    store.append("a", {"id": "x"})
    server.clock.shift("6d")
    writes(store)[name]()
    assert 86_390_000 < left_ms(client) <= 86_400_000
    server.clock.shift("25h")
    assert store.get("a") is None


@pytest.mark.parametrize("name", WRITES)
def test_write_under_never_sets_no_ttl(client: redis.Redis, name: str) -> None:
    store = policed(client, None)
    store.append("a", {"id": "x"})
    writes(store)[name]()
    assert left_ms(client) == -1
    assert store.ttl("a") is None
    found = store.get("a")
    assert found is not None
    assert (found.ttl, found.policy) == (None, ExpiryPolicy.never())


def test_reads_renew_only_with_refresh_on_read(client: redis.Redis, server: RedisServer) -> None:
    plain, renewing = policed(client, "7d"), policed(client, ExpiryPolicy.sliding("7d", refresh_on_read=True))
    renewing.append("a", HI)
    for read in (lambda: plain.load("a"), lambda: plain.get("a"), lambda: renewing.ttl("a")):
        server.clock.shift("1d")
        read()
    assert left_ms(client) <= 4 * 86_400_000
    renewing.load("a")
    assert left_ms(client) > 604_790_000
    server.clock.shift("1d")
    renewing.get("a")
    assert left_ms(client) > 604_790_000


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("short", ["5m", ExpiryPolicy.absolute("5m")])
def test_a_shorter_policy_keeps_the_longer_ttl(client: redis.Redis, server: RedisServer, name: str, short: Any) -> None:
    policed(client, "7d").append("a", {"id": "x"})
    server.clock.shift("1d")
    store = policed(client, short)
    with pytest.warns(
        PolicyShortenedWarning, match=r"longer policy \(sliding 7d\) than this store's \(\w+ 5m\)"
    ) as seen:
        writes(store)[name]()
    assert seen[0].filename == __file__
    assert 517_000_000 < left_ms(client) <= 518_400_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writes(store)[name]()
    found = store.get("a")
    assert found is not None
    assert found.policy == ExpiryPolicy.sliding("7d")


def test_a_store_for_every_request_warns_once(client: redis.Redis, server: RedisServer) -> None:
    for session_id in "abc":
        policed(client, "7d").append(session_id, HI)
    MemoryStore(client, prefix="other:", ttl="7d").append("a", HI)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for session_id in "abc":
            policed(client, 300).append(session_id, HI)
        assert len(seen) == 1
        policed(client, 200).append("a", HI)
        assert len(seen) == 2
        MemoryStore(client, prefix="other:", ttl=300).append("a", HI)
        assert len(seen) == 3
        with server.client() as another:
            policed(another, 300).append("a", HI)
        assert len(seen) == 4


def test_warnings_do_not_keep_a_client_in_memory() -> None:
    client = redis.Redis()
    reference = weakref.finalize(client, lambda: None)
    policed(client, 300)
    del client
    gc.collect()
    assert not reference.alive


def test_a_client_without_hash_or_weakref_works(client: redis.Redis) -> None:
    class Wrapper:
        __slots__ = ("_client",)
        __hash__ = None  # type: ignore[assignment]

        def __init__(self) -> None:
            self._client = client

        def __getattr__(self, name: str) -> Any:
            return getattr(self._client, name)

    wrapped: Any = Wrapper()
    policed(wrapped, "7d").append("a", HI)
    with pytest.warns(PolicyShortenedWarning):
        policed(wrapped, 300).append("a", HI)


def test_a_shorter_policy_still_renews_near_the_end(client: redis.Redis, server: RedisServer) -> None:
    policed(client, "1h").append("a", HI)
    server.clock.shift("58m")
    with pytest.warns(PolicyShortenedWarning):
        policed(client, "5m").append("a", HI)
    assert 290_000 < left_ms(client) <= 300_000


def test_a_ttl_is_not_added_to_a_persistent_session(client: redis.Redis) -> None:
    policed(client, None).append("a", HI)
    with pytest.warns(PolicyShortenedWarning, match=r"\(never expires\)"):
        policed(client, "5m").append("a", HI)
    assert left_ms(client) == -1


@pytest.mark.parametrize("name", sorted(set(WRITES) - {"touch"}))
def test_a_longer_policy_extends_and_is_adopted(client: redis.Redis, name: str) -> None:
    policed(client, "5m").append("a", {"id": "x"})
    store = policed(client, "7d")
    writes(store)[name]()
    assert left_ms(client) > 604_790_000
    found = store.get("a")
    assert found is not None
    assert found.policy == ExpiryPolicy.sliding("7d")


def test_touch_extends_and_keeps_the_policy(client: redis.Redis) -> None:
    policed(client, "5m").append("a", HI)
    policed(client, "7d").touch("a")
    found = policed(client, "7d").get("a")
    assert left_ms(client) > 604_790_000
    assert found is not None
    assert found.policy == ExpiryPolicy.sliding("5m")


def test_a_store_without_ttl_keeps_a_deadline(client: redis.Redis) -> None:
    policed(client, "5m").append("a", HI)
    policed(client, None).append("a", HI)
    policed(client, None).save("a", [HI])
    assert 290_000 < left_ms(client) <= 300_000


@pytest.mark.parametrize("policy", ["7d", ExpiryPolicy.absolute("7d")])
@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("by", ["7d", None])
def test_a_removed_deadline_is_set_again(
    client: redis.Redis, server: RedisServer, policy: Any, name: str, by: Any
) -> None:
    policed(client, policy).append("a", {"id": "x"})
    client.persist("session:a")
    server.clock.shift("1d")
    writes(policed(client, policy if by else None))[name]()
    lives_ms = 604_800_000 if policy == "7d" else 518_400_000
    assert lives_ms - 10_000 < left_ms(client) <= lives_ms


def test_a_removed_deadline_in_the_past_is_renewed(client: redis.Redis, server: RedisServer) -> None:
    store = policed(client, ExpiryPolicy.absolute("7d"))
    store.append("a", HI)
    client.persist("session:a")
    server.clock.shift("10d")
    store.append("a", HELLO)
    assert left_ms(client) > 604_790_000
    assert store.load("a") == [HI, HELLO]


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("before", ["7d", None])
def test_shorten_true_applies_shorter_ttl(client: redis.Redis, name: str, before: Any) -> None:
    policed(client, before).append("a", {"id": "x"})
    store = policed(client, "5m", shorten=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writes(store)[name]()
    if name != "touch" or before:
        assert 290_000 < left_ms(client) <= 300_000
    store.append("a", HI)
    found = store.get("a")
    assert found is not None
    assert found.policy == ExpiryPolicy.sliding("5m")


def test_shorten_may_also_lift_the_deadline(client: redis.Redis) -> None:
    policed(client, "5m").append("a", HI)
    policed(client, None, shorten=True).append("a", HI)
    assert left_ms(client) == -1


@pytest.mark.parametrize("policy", ["7d", ExpiryPolicy.absolute("7d")])
@pytest.mark.parametrize("name", WRITES)
def test_a_deadline_that_others_shortened_is_renewed(client: redis.Redis, policy: Any, name: str) -> None:
    store = policed(client, policy)
    store.append("a", {"id": "x"})
    store.append("a", HI)
    client.expire("session:a", 5)
    writes(store)[name]()
    assert left_ms(client) > 604_790_000


def test_ttl_of_1500ms_is_exact(client: redis.Redis, server: RedisServer) -> None:
    store = policed(client, "1500ms")
    store.append("a", HI)
    server.clock.shift("1400ms")
    store.append("a", HI)
    server.clock.shift("1400ms")
    assert store.load("a") == [HI, HI]
    server.clock.shift("1600ms")
    assert store.load("a") is None


# Vectors


def test_vectors_share_the_session_s_deadline(store: MemoryStore, client: redis.Redis, server: RedisServer) -> None:
    array = np.random.default_rng(1).random((20, 7), dtype="float32")
    store.append("a", HI)
    store.put_vectors("a", array)
    back = store.get_vectors("a")
    assert back is not None
    assert (back.shape, back.tobytes()) == (array.shape, array.tobytes())
    server.clock.shift("6d")
    append = lambda: store.append("a", HI)  # noqa: E731
    for renew in (append, append, lambda: store.save("a", [HI]), lambda: store.touch("a")):
        client.pexpire("{session:a}:vectors", 100_000)
        renew()
        # In one transaction, which takes under a millisecond.
        vectors_ms, session_ms = client.pipeline().pttl("{session:a}:vectors").pttl("session:a").execute()
        assert abs(vectors_ms - session_ms) <= 20
        assert session_ms > 604_700_000
    server.clock.shift("8d")
    assert store.get_vectors("a") is None
    assert client.exists("{session:a}:vectors") == 0


def test_vectors_alone_may_be_evicted(store: MemoryStore, client: redis.Redis) -> None:
    store.append("a", HI)
    store.put_vectors("a", np.zeros(3, dtype="float32"))
    client.delete("{session:a}:vectors")
    found = store.get("a")
    assert store.get_vectors("a") is None
    assert found is not None
    assert found.vectors_lost is True
    store.put_vectors("a", np.ones(3, dtype="float32"))
    found = store.get("a")
    assert found is not None
    assert found.vectors_lost is False


def test_vectors_of_an_evicted_session_are_not_read(store: MemoryStore, client: redis.Redis) -> None:
    store.append("a", HI)
    store.put_vectors("a", np.zeros(3, dtype="float32"))
    client.delete("session:a")
    assert store.get_vectors("a") is None
    store.append("a", HI)
    found = store.get("a")
    assert store.get_vectors("a") is None
    assert found is not None
    assert found.vectors_lost is False


def test_without_numpy_vectors_can_be_stored(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append("a", HI)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "numpy", None)
        store.put_vectors("a", array("f", [1, 2]))
        with pytest.raises(MemkitError, match=r"'{session:a}:vectors'.* pip install 'redis-memkit\[lab\]'"):
            store.get_vectors("a")
    back = store.get_vectors("a")
    assert back is not None
    assert back.tolist() == [1, 2]


@pytest.mark.parametrize("policy", [None, "7d"])
def test_vectors_expire_with_their_session(client: redis.Redis, policy: Any) -> None:
    store = policed(client, policy)
    store.append("a", HI)
    store.put_vectors("a", np.zeros(3, dtype="float32"))
    assert (client.pttl("{session:a}:vectors") == -1) == (policy is None)


def test_a_foreign_key_at_the_vectors_name_is_kept(store: MemoryStore, client: redis.Redis) -> None:
    store.append("a", HI)
    client.set("{session:a}:vectors", "mine")
    with pytest.raises(DecodeError, match="'{session:a}:vectors' belongs to another application"):
        store.put_vectors("a", np.zeros(3, dtype="float32"))
    assert client.get("{session:a}:vectors") == b"mine"
    assert store.get_vectors("a") is None


FOREIGN: dict[str, tuple[Any, ...]] = {
    "string": ("SET", "{session:a}:vectors", "mine"),
    "empty": ("SET", "{session:a}:vectors", ""),
    "list": ("RPUSH", "{session:a}:vectors", "mine"),
    "hash": ("HSET", "{session:a}:vectors", "f", "mine"),
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("policy", ["7d", None])
def test_a_foreign_key_at_lost_vectors_is_kept(client: redis.Redis, foreign: tuple[Any, ...], policy: Any) -> None:
    store = policed(client, policy)
    store.append("a", HI)
    store.put_vectors("a", np.zeros(3, dtype="float32"))
    client.delete("{session:a}:vectors")
    client.execute_command(*foreign)
    before, left = client.dump("{session:a}:vectors"), 10**9 if policy is None else -1
    if policy is None:
        client.pexpire("{session:a}:vectors", left)
    for write in (lambda: store.append("a", HI), lambda: store.save("a", [HI]), lambda: store.touch("a")):
        write()
    with pytest.raises(DecodeError, match="'{session:a}:vectors' belongs to another application"):
        store.put_vectors("a", np.zeros(3, dtype="float32"))
    if foreign[-1]:
        with pytest.raises(DecodeError, match="^'{session:a}:vectors' "):
            store.get_vectors("a")
    assert store.load("a") == [HI]
    assert store.delete("a") is True
    assert client.dump("{session:a}:vectors") == before
    assert abs(client.pttl("{session:a}:vectors") - left) < 100_000
    assert client.exists("session:a") == 0


# Reads that others write in between


def halting(server: RedisServer, word: bytes, between: Callable[[], object], times: int = 1) -> redis.Redis:
    """Return a client on a slow network: in front of a command, ``between`` happens when all before it is done."""
    left = [times]

    class Halting(redis.UnixDomainSocketConnection):
        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            whole = command if isinstance(command, bytes) else b"".join(command)
            at = whole.rfind(b"*", 0, max(0, whole.rfind(word)))
            if at <= 0 or not left[0]:
                super().send_packed_command(command, check_health)
                return
            left[0] -= 1
            super().send_packed_command([whole[:at]], check_health)
            assert self.can_read(timeout=120)
            between()
            super().send_packed_command([whole[at:]], check_health)

    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=Halting, path=server.socket_path))


def create_again(client: redis.Redis, ttl: Any, *contents: str) -> None:
    policed(client, ttl).delete("a")
    for content in contents:
        policed(client, ttl).append("a", {"content": content})


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("last", [1, 2, 3])
def test_load_last_while_sessions_are_created_again(
    server: RedisServer, client: redis.Redis, count: int, last: int
) -> None:
    contents = [str(n) for n in range(count)]
    with halting(server, b"LRANGE", lambda: create_again(client, "7d", *contents)) as slow:
        found = policed(slow, "7d").load("a", last=last)
        assert found in (None, [{"content": content} for content in contents][-last:])
        assert policed(slow, "7d").load("a", last=last) == [{"content": content} for content in contents][-last:]


@pytest.mark.parametrize("word", [b"LRANGE", b"PTTL"])
@pytest.mark.parametrize(("first", "then"), [("7d", "5m"), ("5m", "7d"), (None, "7d"), ("7d", None)])
def test_get_has_the_ttl_of_the_same_session(
    server: RedisServer, client: redis.Redis, first: Any, then: Any, word: bytes
) -> None:
    create_again(client, first, "old")
    with halting(server, word, lambda: create_again(client, then, "new")) as slow:
        found = policed(slow, "7d").get("a")
    assert found is not None
    assert found.messages == [{"content": "new"}]
    assert found.policy == ExpiryPolicy.of(then)
    assert (found.ttl is None) == (then is None)
    assert not found.ttl or abs(found.ttl * 1000 - left_ms(client)) < 60_000


@pytest.mark.parametrize("word", [b"LRANGE", b"PTTL"])
def test_get_during_delete_and_create_is_whole_or_none(server: RedisServer, client: redis.Redis, word: bytes) -> None:
    with halting(server, word, lambda: create_again(client, "5m", "new")) as slow:
        found = policed(slow, "7d").get("a")
    assert found is None or (found.messages, found.policy) == ([{"content": "new"}], ExpiryPolicy.sliding("5m"))
    with halting(server, word, lambda: client.delete("session:a")) as slow:
        assert policed(slow, "7d").get("a") is None


def test_a_read_that_never_agrees_has_the_shorter_ttl(server: RedisServer, client: redis.Redis) -> None:
    days = iter(range(1, 1_000))
    between = lambda: create_again(client, timedelta(days=next(days)), "new")  # noqa: E731
    create_again(client, 60, "old")
    with halting(server, b"LRANGE", between, times=1_000) as slow:
        found = policed(slow, "7d").get("a")
    assert found is not None
    assert found.ttl is not None
    assert found.ttl * 1000 < left_ms(client)
    assert next(days) < 10


def test_get_has_the_ttl_that_it_renewed(client: redis.Redis, server: RedisServer) -> None:
    store = policed(client, ExpiryPolicy.sliding("7d", refresh_on_read=True))
    store.append("a", HI)
    server.clock.shift("6d")
    found = store.get("a")
    assert found is not None
    assert found.ttl is not None
    assert abs(found.ttl * 1000 - left_ms(client)) < 60_000
    assert found.ttl > WEEK_S - 60


def test_get_renews_a_persistent_session(client: redis.Redis) -> None:
    policed(client, None).append("a", HI)
    assert policed(client, None).touch("a") is True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PolicyShortenedWarning)
        found = policed(client, ExpiryPolicy.sliding("7d", refresh_on_read=True)).get("a")
    assert found is not None
    assert found.ttl is None


def test_get_has_the_ttl_of_the_session_it_reads(client: redis.Redis) -> None:
    store = policed(client, ExpiryPolicy.sliding("7d", refresh_on_read=True))
    store.append("a", HI)
    read = store._operations.get

    def read_another(session_id: str) -> Any:
        create_again(client, "1d", "new")
        return read(session_id)

    store._operations.get = read_another  # type: ignore[method-assign]
    found = store.get("a")
    assert found is not None
    assert found.messages == [{"content": "new"}]
    assert found.ttl is not None
    assert found.ttl <= 86_400


# Ids, prefixes and clients

STRANGE = [
    "*",
    "a*b",
    "[a]",
    "?",
    "\\",
    "{",
    "}",
    "{}",
    "{a}",
    "a{b}c",
    "}{",
    "a}b{c",
    "{{x}}",
    "\n",
    "\0",
    "🦜",
    "A",
    "a",
]
STRANGE += [" ", "session:", ":", "a" * 5_000, "é", "\u202e", "%s", "';--"]


@pytest.mark.parametrize("prefix", ["session:", "", "a[b]*?\\{:", "{tag}:", "🦜 "])
def test_id_with_any_characters_is_stored(client: redis.Redis, prefix: str) -> None:
    store = MemoryStore(client, prefix=prefix, ttl="7d")
    client.rpush(b"session\xff", "not ours")
    for n, session_id in enumerate(STRANGE):
        store.save(session_id, [{"n": n}])
        store.append(session_id, {"n": n})
        store.put_vectors(session_id, np.full(1, n, dtype="float32"))
    assert sorted(store.sessions()) == sorted(STRANGE)
    for n, session_id in enumerate(STRANGE):
        found = store.get(session_id)
        assert found is not None
        assert (found.session_id, found.messages, found.vectors_lost) == (session_id, [{"n": n}] * 2, False)
        vectors = store.get_vectors(session_id)
        assert vectors is not None
        assert vectors.tolist() == [n]
        assert store.delete(session_id)
    assert client.keys() == [b"session\xff"]


@pytest.mark.parametrize("session_id", ["", None, 5, b"a", ["a"], "\ud800"])
def test_an_invalid_id_is_refused(store: MemoryStore, session_id: Any) -> None:
    for call in (store.load, store.get, store.append, store.touch, store.ttl, store.delete, store.get_vectors):
        with pytest.raises(PolicyError):
            call(session_id)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda store: store.save("a", (HI,)), EncodeError),
        (lambda store: store.save("a", {"a": 1}), EncodeError),
        (lambda store: store.save("a", [HI, "x"]), EncodeError),
        (lambda store: store.append("a", [HI]), EncodeError),
        (lambda store: store.append("a", HI, {"a": float("nan")}), EncodeError),
        (lambda store: store.update("a", summary=5), EncodeError),
        (lambda store: store.update("a", summary="\ud800"), EncodeError),
        (lambda store: store.update("a", metadata=[1]), EncodeError),
        (lambda store: store.update("a", metadata={1: 2}), EncodeError),
        (lambda store: store.update("a", metadata={"a": (1,)}), EncodeError),
        (lambda store: store.update("a", summary="x" * 2**24), EncodeError),
        (lambda store: store.put_vectors("a", [1.0]), EncodeError),
        (lambda store: store.put_vectors("a", np.zeros(2**22 + 1, dtype="float32")), EncodeError),
        (lambda store: store.save("a", [HI], version=-1), PolicyError),
        (lambda store: store.save("a", [HI], version="1"), PolicyError),
        (lambda store: store.update("a", version=True), PolicyError),
        (lambda store: store.load("a", -1), PolicyError),
        (lambda store: store.load("a", True), PolicyError),
        (lambda store: store.load("a", 1.0), PolicyError),
    ],
)
def test_bad_input_changes_nothing(store: MemoryStore, call: Callable[[Any], object], error: type[Exception]) -> None:
    store.save("a", [HI])
    before = store._client.dump("session:a")
    with pytest.raises(error) as caught:
        call(store)
    assert store._client.dump("session:a") == before
    assert error is PolicyError or str(caught.value).startswith("'session:a': ")


def test_load_last_more_than_there_are(store: MemoryStore) -> None:
    store.append("a", HI)
    store.append("a", HELLO)
    for last in (2**31, 2**63, 2**64, 10**30):
        assert store.load("a", last=last) == [HI, HELLO]


@pytest.mark.parametrize(
    "options",
    [{"prefix": None}, {"prefix": b"x"}, {"prefix": "\ud800"}, {"prefix": "x", "ttl": 0}, {"prefix": "x", "ttl": "x"}],
)
def test_an_invalid_store_is_refused(options: Any) -> None:
    with pytest.raises(PolicyError):
        MemoryStore(redis.Redis(), **options)


@pytest.mark.parametrize("decode_responses", [True, False])
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_store_works_with_any_client_options(
    server: RedisServer, client: redis.Redis, decode_responses: bool, protocol: int, encoding: str
) -> None:
    options: dict[str, Any] = {"decode_responses": decode_responses, "protocol": protocol, "encoding": encoding}
    with server.client(**options) as other:
        store = MemoryStore(other, prefix="größe:🦜:", ttl="7d")
        message = {"ö": "🦜", "raw": "\x80\xff"}
        store.append("ü", message)
        store.update("ü", summary="ß🦜", metadata={"ä": "ö🦜"})
        store.put_vectors("ü", np.ones(3, dtype="float32"))
        assert list(store.sessions()) == ["ü"]
        vectors = store.get_vectors("ü")
        found = MemoryStore(client, prefix="größe:🦜:", ttl="7d").get("ü")
    assert vectors is not None
    assert found is not None
    assert (found.messages, found.summary, found.metadata) == ([message], "ß🦜", {"ä": "ö🦜"})
    assert client.exists("größe:🦜:ü") == 1


def test_a_sandbox_s_prefix_is_added_once(client: redis.Redis) -> None:
    client._test_prefix = "box:1:"  # type: ignore[attr-defined]
    assert MemoryStore(client, prefix="session:", ttl=None).key("a") == "box:1:session:a"
    assert MemoryStore(client, prefix="box:1:session:", ttl=None).prefix == "box:1:session:"


def test_retries_is_what_the_client_does(server: RedisServer) -> None:
    path = server.socket_path
    pool = redis.ConnectionPool.from_url(server.url)
    for made, expected in [
        (redis.Redis(unix_socket_path=path), None),
        (redis.Redis(unix_socket_path=path, retry=Retry(NoBackoff(), 3)), 3),
        (redis.Redis(unix_socket_path=path, retry=None), 0),
        (server.client(), 0),
        (server.client(retry=Retry(NoBackoff(), 2)), 2),
        (redis.Redis(connection_pool=pool), 0),
    ]:
        with made:
            store = MemoryStore(made, prefix="x", ttl=None)
            assert store.retries == attempts(made) - 1
            assert expected is None or store.retries == expected
    pool.disconnect()


def attempts(client: redis.Redis) -> int:
    """Count how often a command is really sent when every connection breaks."""
    sent = 0
    connection = client.connection_pool.get_connection()
    backoff = getattr(connection.retry, "_backoff", None)
    if backoff is not None:
        connection.retry._backoff = NoBackoff()

    def broken(*_: Any, **__: Any) -> None:
        nonlocal sent
        sent += 1
        raise redis.ConnectionError("broken")

    connection.send_command = broken
    client.connection_pool.release(connection)
    with pytest.raises(redis.ConnectionError):
        client.ping()
    return sent


def test_redis_errors_pass_through(server: RedisServer, client: redis.Redis) -> None:
    pool = redis.ConnectionPool.from_url(server.url, max_connections=1)
    store = MemoryStore(redis.Redis(connection_pool=pool), prefix="session:", ttl="7d")
    busy = pool.get_connection()
    with pytest.raises(redis.ConnectionError, match="Too many connections") as failed:
        store.append("a", HI)
    assert failed.value.__notes__ == [
        "memkit: while accessing 'session:a'. Connections in the client's pool: 1 in use, 0 idle, at most 1. "
        "Retries of a command after a lost connection: 0"
    ]
    pool.release(busy)
    pool.disconnect()
    client.client_pause(60_000, all=False)
    with server.client(socket_timeout=0.05) as slow, pytest.raises(redis.TimeoutError) as failed:
        MemoryStore(slow, prefix="session:", ttl="7d").append("a", HI)
    client.client_unpause()
    assert "0 in use, 1 idle" in failed.value.__notes__[0]


def test_a_pool_error_shows_how_busy_the_pool_is(server: RedisServer) -> None:
    pool = redis.BlockingConnectionPool.from_url(server.url, max_connections=2, timeout=0.01)
    busy = [pool.get_connection(), pool.get_connection()]
    with pytest.raises(redis.ConnectionError, match="No connection available") as failed:
        MemoryStore(redis.Redis(connection_pool=pool), prefix="session:", ttl=None).load("a")
    assert "2 in use, 0 idle, at most 2." in failed.value.__notes__[0]
    for connection in busy:
        pool.release(connection)
    pool.disconnect()


# Sharing


def test_threads_may_share_a_store(client: redis.Redis) -> None:
    store, errors = MemoryStore(client, prefix="session:", ttl="7d"), []

    def work(writer: int) -> None:
        try:
            for n in range(100):
                store.append(f"{n % 3}", {"writer": writer, "n": n})
        except Exception as error:  # noqa: BLE001  # shown below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for session_id in "012":
        messages = store.load(session_id) or []
        assert (
            len(messages) == len({(m["writer"], m["n"]) for m in messages}) == 6 * len(range(int(session_id), 100, 3))
        )
        for writer in range(6):
            mine = [m["n"] for m in messages if m["writer"] == writer]
            assert mine == sorted(mine)


def test_a_forked_child_may_use_the_store(store: MemoryStore) -> None:
    store.append("a", {"n": 0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork with threads
        child = os.fork()
    if not child:
        try:
            store.append("a", {"n": 1})
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    store.append("a", {"n": 2})
    assert store.load("a") == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_retries_from_another_process_add_nothing(server: RedisServer, client: redis.Redis) -> None:
    for _ in range(3):
        with server.client() as other:
            store = MemoryStore(other, prefix="session:", ttl="7d")
            store.append("a", {"id": "order-7", "content": "pay"}, {"id": "order-8"})
    assert MemoryStore(client, prefix="session:", ttl="7d").load("a") == [
        {"id": "order-7", "content": "pay"},
        {"id": "order-8"},
    ]


def test_a_store_s_memory_is_bounded(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memkit.store.operations.REMEMBERED_SESSIONS", 10)
    store = MemoryStore(client, prefix="session:", ttl="7d")
    for n in range(30):
        store.append(str(n), HI)
    assert list(store._operations._seen) == [str(n) for n in range(20, 30)]


# Against a model

messages = st.dictionaries(st.sampled_from("abc"), st.integers(-5, 2**70) | st.text(max_size=3), max_size=2)
with_ids = messages | st.sampled_from("xyz").map(lambda own: {"id": own})


class Model(RuleBasedStateMachine):
    """A model of a session is compared with the server; calls are sent again at random."""

    server: RedisServer

    def __init__(self) -> None:
        super().__init__()
        self.client = self.server.client()
        self.client.flushall()
        self.stores = [MemoryStore(self.client, prefix="s:", ttl="7d") for _ in range(2)]
        self.messages: list[dict[str, Any]] | None = None
        self.version, self.summary, self.metadata = 0, None, {}
        self.sent: list[Write[int]] = []

    def teardown(self) -> None:
        self.client.close()

    def write(self, by: int, write: Write[int]) -> int:
        self.sent = [*self.sent[-20:], write]
        return self.stores[by]._write(write)

    def wrote(self, version: int) -> None:
        self.version += 1
        assert version == self.version

    @rule(by=st.integers(0, 1), batch=st.lists(with_ids, max_size=20))
    def append(self, by: int, batch: list[dict[str, Any]]) -> None:
        version = self.write(by, self.stores[by]._operations.append("a", tuple(batch), create=True))
        new: list[dict[str, Any]] = []
        for message in batch:
            known = [*(self.messages or []), *new]
            if "id" not in message or message not in known:
                new.append(message)
        if new or self.messages is None:
            self.wrote(version)
        if not new:
            # It left no trace, and so it may take effect when it is sent again after a save: exactly once, then.
            self.sent.pop()
        self.messages = [*(self.messages or []), *new]

    @rule(by=st.integers(0, 1), batch=st.lists(with_ids, max_size=40), versioned=st.booleans())
    def save(self, by: int, batch: list[dict[str, Any]], versioned: bool) -> None:
        operation = self.stores[by]._operations.save("a", batch, version=self.version if versioned else None)
        self.wrote(self.write(by, operation))
        self.messages = list(batch)

    @precondition(lambda self: self.messages is not None)
    @rule(
        by=st.integers(0, 1),
        summary=st.none() | st.text(max_size=3),
        metadata=st.dictionaries(st.sampled_from("ab"), st.none() | messages),
    )
    def update(self, by: int, summary: str | None, metadata: dict[str, Any]) -> None:
        self.wrote(self.write(by, self.stores[by]._operations.update("a", summary, metadata, None)))
        self.summary = summary
        self.metadata = {k: v for k, v in (self.metadata | metadata).items() if v is not None}

    @rule(by=st.integers(0, 1))
    def conflict(self, by: int) -> None:
        with pytest.raises(Conflict):
            self.stores[by].save("a", [], version=self.version + 1)

    @precondition(lambda self: self.sent)
    @rule(by=st.integers(0, 1), data=st.data())
    def send_again(self, by: int, data: st.DataObject) -> None:
        write = data.draw(st.sampled_from(self.sent))
        before = self.client.lrange("s:a", 1, -1)
        self.stores[by]._write(write)
        assert self.client.lrange("s:a", 1, -1) == before

    @rule()
    def delete(self) -> None:
        assert self.stores[0].delete("a") == (self.messages is not None)
        self.messages, self.version, self.summary, self.metadata, self.sent = None, 0, None, {}, []

    @invariant()
    def is_as_it_should_be(self) -> None:
        found = self.stores[0].get("a")
        assert self.stores[1].load("a") == self.messages
        if self.messages is None:
            assert found is None
            return
        assert found is not None
        assert repr(found.messages) == repr(self.messages)
        assert (found.version, found.summary, found.metadata) == (self.version, self.summary, self.metadata)
        assert found.ttl is not None
        assert WEEK_S - 60 < found.ttl <= WEEK_S


@pytest.mark.usefixtures("client")
def test_a_session_follows_the_model(server: RedisServer) -> None:
    machine = type("Machine", (Model,), {"server": server})
    run_state_machine_as_test(machine, settings=settings(max_examples=5, stateful_step_count=25, deadline=None))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@settings(max_examples=20)
def test_any_id_is_listed_and_found(client: redis.Redis, session_id: str) -> None:
    store = MemoryStore(client, prefix="any:", ttl="7d")
    store.save(session_id, [HI])
    assert session_id in list(store.sessions())
    assert store.load(session_id) == [HI]


def test_times_of_a_session_are_in_utc(store: MemoryStore) -> None:
    store.append("a", HI)
    found = store.get("a")
    assert found is not None
    assert found.created_at.tzinfo is UTC
    assert isinstance(found.updated_at, datetime)
