"""What the audit finds by reading values: dates inside payloads against deadlines, and pointers to missing keys."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
from servers import NO_FSYNC, every_server

from memkit import ExpiryPolicy, MemoryStore
from memkit.audit import Finding
from memkit.audit.checks.known_stores import KnownSessions, ValueReader
from memkit.audit.run import AuditReport, audit
from memkit.formats import capture, recognise
from memkit.formats.agent_framework_redis import encoded
from memkit.formats.capture import load_capture
from memkit.inspect import inspect_session
from memkit.readonly import Reader, open_target
from memkit.readonly.values import KeyRequest, RedisValue
from memkit.server import RedisServer

LANES = [name for name, binary in every_server().items() if binary]
WEEK_S = 604_800
SESSIONS = 12


@pytest.fixture
def server() -> Iterator[RedisServer]:
    # The last one is new enough for CLIENT NO-TOUCH.
    binary = every_server()[LANES[-1]]
    assert binary
    with RedisServer(binary=binary.path, persist=True, config=NO_FSYNC) as server:
        yield server


def full(server: RedisServer, expect: object = "7d") -> AuditReport:
    return audit(server.url, expect={"chat:*": expect}, full=True, duty=1)  # type: ignore[dict-item]


def of(report: AuditReport, cause: str) -> list[Finding]:
    return [one for one in report.findings if one.cause == cause]


# -- dates -------------------------------------------------------------------------------------------------------------

Writer = Callable[[redis.Redis, str, datetime], object]


def dicts_in_a_list(client: redis.Redis, key: str, at: datetime) -> None:
    for n in range(10):
        moment = at - timedelta(seconds=9 - n)
        client.rpush(key, json.dumps({"role": "user", "content": "hello", "timestamp": moment.timestamp()}))


def epoch_in_a_hash(client: redis.Redis, key: str, at: datetime) -> None:
    client.hset(key, mapping={"messages": "[]", "updated_at": str(round(at.timestamp()))})


def iso_in_a_hash(client: redis.Redis, key: str, at: datetime) -> None:
    client.hset(key, mapping={"messages": "[]", "last_updated": at.isoformat()})


def naive_iso_in_json(client: redis.Redis, key: str, at: datetime) -> None:
    client.set(key, json.dumps({"created_at": at.replace(tzinfo=None).isoformat()}), keepttl=True)


def deep_in_json(client: redis.Redis, key: str, at: datetime) -> None:
    turns = [{"text": "x", "meta": {"date": (at - timedelta(hours=20 - n)).isoformat()}} for n in range(21)]
    client.set(key, json.dumps({"session": {"turns": turns}}), keepttl=True)


def milliseconds_as_text(client: redis.Redis, key: str, at: datetime) -> None:
    client.set(key, json.dumps({"ts": str(round(at.timestamp() * 1000))}), keepttl=True)


DATED = [
    dicts_in_a_list, epoch_in_a_hash, iso_in_a_hash, naive_iso_in_json, deep_in_json, milliseconds_as_text,
]  # fmt: skip


def written_twice(server: RedisServer, write: Writer, *, renew: int = 0) -> None:
    """Write sessions about five days ago with a TTL of a week, and again now, which renews the first ``renew``."""
    now = server.clock.now()
    with server.client() as client:
        server.clock.move_to(now - timedelta(days=5))
        client.set("untouched-since", "x")  # the server is not as young as its uptime
        for n in range(SESSIONS):
            at = now - timedelta(days=5, hours=-n)  # the same TTL of all would look like the one that each write gives
            server.clock.move_to(at)
            write(client, f"chat:{n}", at)
            client.expire(f"chat:{n}", WEEK_S)
        server.clock.move_to(now)
        for n in range(SESSIONS):
            write(client, f"chat:{n}", now)
            if n < renew:
                client.expire(f"chat:{n}", WEEK_S)


@pytest.mark.parametrize("write", DATED, ids=lambda write: write.__name__)
def test_payload_newer_than_its_deadline_not_renewed(write: Writer, server: RedisServer) -> None:
    written_twice(server, write)
    report = full(server)
    found = report.findings[0]
    assert (found.cause, found.prefix, found.keys, found.confidence) == ("not_refreshed", "chat:", SESSIONS, "proven")
    assert (found.expected_ttl_s, found.since_is) == (WEEK_S, "upper bound")
    assert found.since
    assert abs((report.at - found.since).total_seconds()) < 60


@pytest.mark.parametrize("write", DATED, ids=lambda write: write.__name__)
def test_what_every_write_renews_is_no_finding(write: Writer, server: RedisServer) -> None:
    written_twice(server, write, renew=SESSIONS)
    assert full(server).findings == ()


def test_writer_that_does_not_renew_has_its_share(server: RedisServer) -> None:
    written_twice(server, epoch_in_a_hash, renew=SESSIONS - 4)
    assert [one.keys for one in of(full(server), "not_refreshed")] == [4]


def test_two_late_sessions_are_no_finding(server: RedisServer) -> None:
    written_twice(server, epoch_in_a_hash, renew=SESSIONS - 2)
    assert of(full(server), "not_refreshed") == []


def test_absolute_deadline_need_not_be_renewed(server: RedisServer) -> None:
    written_twice(server, epoch_in_a_hash)
    assert full(server, ExpiryPolicy.absolute("7d")).findings == ()


@pytest.mark.parametrize("date", ["2026-13-45T99:99:99", "soon", None, [], "2126-01-01T00:00:00+00:00", "12345"])
def test_invalid_or_future_date_is_ignored(date: object, server: RedisServer) -> None:
    def write(client: redis.Redis, key: str, _at: datetime) -> None:
        client.set(key, json.dumps({"created_at": date, "n": [[[[[[[[{"ts": 1_700_000_000}]]]]]]]]}), keepttl=True)

    written_twice(server, write)
    report = full(server)
    # The commands that the server counted show it; the payloads do not.
    assert [(one.keys, one.confidence) for one in of(report, "not_refreshed")] == [(SESSIONS, "likely")]
    assert any(note.startswith("not checked whether writes renew the TTL") for note in report.notes)


def test_list_of_missing_keys_of_a_store_is_found(server: RedisServer) -> None:
    with server.client() as client:
        session = load_capture(client, "langgraph-redis", json_as_text=True)
        blobs = list(client.scan_iter("checkpoint_write:*"))
        assert session
        assert blobs
        prefix = "checkpoint"
        before = audit(server.url, expect={f"{prefix}*": None}, full=True, duty=1)
        client.delete(*blobs)
        after = audit(server.url, expect={f"{prefix}*": None}, full=True, duty=1)
    assert of(before, "dangling") == []
    found = of(after, "dangling")
    assert [one.prefix for one in found] == [prefix]
    assert found[0].keys >= 1


def test_popped_last_item_is_no_proven_loss(server: RedisServer) -> None:
    with server.client() as client:
        session = load_capture(client, "openai-agents", json_as_text=True)
        (messages,) = client.scan_iter(f"agents:session:{session}:messages")
        client.delete(messages)
        (lost,) = of(audit(server.url, expect={"agents:*": None}, full=True, duty=1), "dangling")
        client.rpush("other", "item")
        client.rpop("other")
        (popped,) = of(audit(server.url, expect={"agents:*": None}, full=True, duty=1), "dangling")
    assert [(one.severity, one.confidence) for one in (lost, popped)] == [
        ("critical", "proven"),
        ("warning", "possible"),
    ]


# -- sessions of known stores, many of them ----------------------------------------------------------------------------

SEVERAL_PARTS = [
    "agno", "langgraph-plainredis", "langgraph-redis", "langgraph-redis-refresh", "langgraph-redis-shallow",
    "openai-agents",
]  # fmt: skip
RUN_ID = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{8})[0-9a-f]{4}")


def renamed(value: Any, text: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [renamed(each, text) for each in value]
    if isinstance(value, dict):
        return {text(name): renamed(each, text) for name, each in value.items()}
    return text(value) if isinstance(value, str) else value


def write(client: Any, kind: str, key: str, value: Any) -> None:
    if kind == "list":
        client.rpush(key, *value)
    elif kind == "hash":
        client.hset(key, mapping={field: plain(each) for field, each in value.items()})
    elif kind == "set":
        client.sadd(key, *value)
    elif kind == "zset":
        client.zadd(key, dict(value))
    elif kind == "stream":
        for uid, fields in value:
            client.xadd(key, fields, id=uid)
    else:
        client.set(key, plain(value))


def plain(value: str | dict[str, str]) -> str | bytes:
    return value if isinstance(value, str) else base64.b64decode(value["b64"])


def copy_of(client: redis.Redis, store: str, n: int, *, prefix: str = "") -> list[str]:
    """Store a captured session as ``sess-<n>`` under a prefix, with a TTL of a week; return its keys."""
    entries = capture.capture(store)["keys"]
    names = {entry["key"] for entry in entries}

    def text(was: str) -> str:
        mine = was.replace("sess-A", f"sess-{n}").replace(encoded("sess-A"), encoded(f"sess-{n}"))
        mine = RUN_ID.sub(rf"\g<1>{n:04x}", mine) if store == "agno" else mine
        return prefix + mine if was in names else mine

    pipe = client.pipeline(transaction=False)
    for entry in entries:
        key, value = text(entry["key"]), renamed(entry["value"], text)
        write(pipe, entry["type"], key, value)
        if entry["pttl"] > 0:
            pipe.expire(key, WEEK_S)
    pipe.execute()
    return [text(entry["key"]) for entry in entries]


def all_of(server: RedisServer, pattern: str, store: str) -> AuditReport:
    volatile = any(entry["pttl"] > 0 for entry in capture.capture(store)["keys"])
    return audit(server.url, expect={pattern: "7d" if volatile else None}, full=True, duty=1)


def test_the_index_of_another_store_is_not_judged(server: RedisServer) -> None:
    with server.client() as client:
        for n in range(10):
            copy_of(client, "langgraph-plainredis", n)
        for n in range(5):
            copy_of(client, "langchain-community", n)
        assert all_of(server, "message_store:*", "langchain-community").findings == ()


PARTS = [(store, part) for store in SEVERAL_PARTS
         for part in sorted({entry["key"].partition("sess-A")[0] for entry in capture.capture(store)["keys"]
                             if "sess-A" in entry["key"] and entry["pttl"] > 0})]  # fmt: skip


@pytest.mark.parametrize(("store", "part"), PARTS)
def test_one_part_of_healthy_sessions_lacks_nothing(store: str, part: str, server: RedisServer) -> None:
    with server.client() as client:
        for n in range(5):
            copy_of(client, store, n)
        assert all_of(server, f"{part}sess-*", store).findings == ()


# A pickled session has its id behind a word, and vectors are bytes: they are copied as they are.
COPIED = [name for name in capture.names() if capture.capture(name)["session_id"] == "sess-A" or "vercel" in name]


@pytest.mark.parametrize(
    ("store", "count", "prefix"),
    [(store, *copies) for at, store in enumerate(COPIED) for copies in [((2, ""), (20, "acme:"))[at % 2], (1, "a:")]],
)
def test_healthy_sessions_of_a_store_lack_nothing(store: str, count: int, prefix: str, server: RedisServer) -> None:
    with server.client() as client:
        keys = [copy_of(client, store, n, prefix=prefix) for n in range(count)]
        report = all_of(server, f"{prefix}*", store)
        assert report.findings == ()
        assert client.exists(*(key for of_one in keys for key in of_one)) == sum(map(len, keys))
    assert report.proof.idle_clocks_touched == 0


def shared(name: str) -> bool:
    return "index:" in name or name.endswith((":threads", ":seq"))


@pytest.mark.parametrize("prefix", ["", "acme:"])
@pytest.mark.parametrize("store", SEVERAL_PARTS)
def test_loss_in_one_session_is_the_only_finding(store: str, prefix: str, server: RedisServer) -> None:
    with server.client() as client:
        parts = [copy_of(client, store, n, prefix=prefix) for n in range(6)][3]
        dropped = 0
        for name in parts[:: 1 if len(parts) < 12 else 3]:
            if shared(name):
                continue
            value, left = client.dump(name), client.pttl(name)
            client.delete(name)
            # One session by itself is the judge: a checkpoint in the middle, say, is a gap and nothing points to it.
            another = next(each for each in parts if each != name and not shared(each))
            alone = {one.key for one in inspect_session(client, another).problems if one.cause == "dangling"}
            report = all_of(server, f"{prefix}*", store)
            assert [one.keys for one in of(report, "dangling")] == ([len(alone)] if alone else []), name
            assert {one.cause for one in report.findings} <= {"dangling", "deleted"}, name
            dropped += len(alone)
            client.restore(name, max(left, 0), value)
    assert dropped


@pytest.mark.parametrize("then", ["exists", "has expired"])
def test_what_is_missing_is_looked_for_twice(then: str, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with server.client() as client:
        parts = [copy_of(client, "langgraph-redis", n, prefix="acme:") for n in range(5)][3]
        pointer = next(name for name in parts if "latest" in name)
        value = client.dump(pointer)
        client.delete(pointer)
        assert [one.keys for one in of(all_of(server, "acme:*", "langgraph-redis"), "dangling")] == [1]
        load = ValueReader.load

        def load_during_writes(loads: ValueReader, wants: Iterable[KeyRequest]) -> dict[str, RedisValue | None]:
            found = load(loads, wants)
            if pointer in found and not found[pointer]:
                client.restore(pointer, WEEK_S * 1000, value) if then == "is there" else client.delete(*parts)
            return found

        monkeypatch.setattr(ValueReader, "load", load_during_writes)
        report = all_of(server, "acme:*", "langgraph-redis")
    assert of(report, "dangling") == []


def test_sessions_in_parts_are_read_within_the_time(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memkit.audit.checks.known_stores.BATCH_KEYS", 1)
    monkeypatch.setattr("memkit.audit.checks.known_stores.FEWEST_SESSIONS", 2)
    with server.client() as client, open_target(client) as target:
        names = [name for n in range(5) for name in copy_of(client, "agno", n)]
        loads, parts = ValueReader(Reader(target)), KnownSessions()
        loaded = loads.load(KeyRequest(name, "") for name in names if not shared(name)).values()
        values = [value for value in loaded if value]
        parts.add(values, {value.name: recognise(value) for value in values})
        assert parts.finish(loads, {}, within_s=-1) == (2, 5)
        assert parts.finish(loads, {}, within_s=60) == (5, 5)


def test_a_key_that_is_read_twice_has_one_idle_clock() -> None:
    binary = every_server()["redis-7.0"]
    if not binary:
        pytest.skip("no Redis 7.0 on this machine")
    with RedisServer(binary=binary.path) as server, server.client() as client:
        names = {name for n in range(3) for name in copy_of(client, "agno", n)}
        report = audit(server.url, expect={"agno:*": "7d"}, full=True, touch=True, duty=1)
    assert report.proof.idle_clocks_touched == len(names)


def test_parts_that_are_two_patterns_are_reported_once(server: RedisServer) -> None:
    with server.client() as client:
        parts = [copy_of(client, "langgraph-redis", n) for n in range(5)][2]
        client.delete(next(name for name in parts if name.startswith("checkpoint_write:")))
    report = audit(server.url, expect={"checkpoint*": "7d", "write_*": "7d"}, full=True, duty=1)
    assert [(one.prefix, one.keys) for one in of(report, "dangling")] == [("checkpoint", 1)]


def test_writes_alone_are_no_thread_without_pointer(server: RedisServer) -> None:
    with server.client() as client:
        for n in range(5):
            copy_of(client, "langgraph-redis-shallow", n)
    report = audit(server.url, expect={"checkpoint_write:*": "7d"}, full=True, duty=1)
    assert of(report, "dangling") == []


def test_own_messages_state_when_they_were_written(server: RedisServer) -> None:
    now = server.clock.now()
    with server.client() as client:
        store = MemoryStore(client, prefix="chat:", ttl=ExpiryPolicy.absolute("7d"))
        server.clock.move_to(now - timedelta(days=5))
        client.set("untouched-since", "x")
        for n in range(SESSIONS):
            store.append(f"user-{n}", {"role": "user", "content": "first"})
        server.clock.move_to(now)
        for n in range(SESSIONS):
            store.append(f"user-{n}", {"role": "user", "content": "second"})
    assert [one.keys for one in of(full(server), "not_refreshed")] == [SESSIONS]
