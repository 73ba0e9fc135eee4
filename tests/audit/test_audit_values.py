"""What the audit finds by reading values: dates inside payloads against deadlines, and pointers to what is gone."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
from servers import every_server

from memkit import ExpiryPolicy, MemoryStore
from memkit.audit import Finding
from memkit.audit.checks.known_stores import Loads, Parts
from memkit.audit.run import AuditReport, audit
from memkit.formats import capture
from memkit.formats.agent_framework_redis import encoded
from memkit.formats.capture import load_capture
from memkit.inspect import inspect_session
from memkit.readonly import Wire, reading
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
    with RedisServer(binary=binary.path, persist=True) as server:
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
    """Write sessions five days ago with a week to live, and again now, which renews the first ``renew``."""
    now = server.clock.now()
    with server.client() as client:
        server.clock.move_to(now - timedelta(days=5))
        client.set("untouched-since", "x")  # the server is not as young as its uptime says
        for n in range(SESSIONS):
            write(client, f"chat:{n}", now - timedelta(days=5))
            client.expire(f"chat:{n}", WEEK_S)
        server.clock.move_to(now)
        for n in range(SESSIONS):
            write(client, f"chat:{n}", now)
            if n < renew:
                client.expire(f"chat:{n}", WEEK_S)


@pytest.mark.parametrize("write", DATED, ids=lambda write: write.__name__)
def test_a_payload_younger_than_its_deadline_allows_was_not_renewed(write: Writer, server: RedisServer) -> None:
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


def test_one_writer_that_does_not_renew_is_told_with_its_share(server: RedisServer) -> None:
    written_twice(server, epoch_in_a_hash, renew=SESSIONS - 4)
    assert [one.keys for one in of(full(server), "not_refreshed")] == [4]


def test_two_late_sessions_are_no_finding(server: RedisServer) -> None:
    written_twice(server, epoch_in_a_hash, renew=SESSIONS - 2)
    assert of(full(server), "not_refreshed") == []


def test_a_deadline_that_is_meant_to_stay_is_not_expected_to_be_renewed(server: RedisServer) -> None:
    written_twice(server, epoch_in_a_hash)
    assert full(server, ExpiryPolicy.absolute("7d")).findings == ()


@pytest.mark.parametrize("says", ["2026-13-45T99:99:99", "soon", None, [], "2126-01-01T00:00:00+00:00", "12345"])
def test_what_is_no_date_or_lies_in_the_future_says_nothing(says: object, server: RedisServer) -> None:
    def write(client: redis.Redis, key: str, _at: datetime) -> None:
        client.set(key, json.dumps({"created_at": says, "n": [[[[[[[[{"ts": 1_700_000_000}]]]]]]]]}), keepttl=True)

    written_twice(server, write)
    report = full(server)
    assert of(report, "not_refreshed") == []
    assert any(note.startswith("not_refreshed") for note in report.notes)


# -- pointers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["set", "zset"])
@pytest.mark.parametrize(("there", "gone"), [(30, 10), (30, 0), (0, 10)])
def test_an_index_of_bare_ids_is_known_by_those_that_are_there(
    kind: str, there: int, gone: int, server: RedisServer
) -> None:
    with server.client() as client:
        for n in range(40):
            client.set(f"chat:user-{n}", "{}", ex=WEEK_S)
        ids = [f"user-{n}" for n in range(there)] + [f"former-{n}" for n in range(gone)]
        if kind == "set":
            client.sadd("all-users", *ids)
        else:
            client.zadd("all-users", dict.fromkeys(ids, 1.0))
    found = of(full(server), "dangling")
    # Ten words of which none is a session are a set of something else.
    assert [one.keys for one in found] == ([10] if there and gone else [])
    assert all("all-users" in one.evidence[0] for one in found)


def test_full_names_are_sessions_though_none_is_left(server: RedisServer) -> None:
    with server.client() as client:
        client.set("chat:user-1", "{}", ex=WEEK_S)
        client.sadd("index", *(f"chat:former-{n}" for n in range(7)))
        client.set("last-session", "chat:former-99")
    assert [one.keys for one in of(full(server), "dangling")] == [8]


def test_lists_of_a_known_store_that_name_what_is_gone_are_found(server: RedisServer) -> None:
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
        client.hset(key, mapping=value)
    elif kind == "set":
        client.sadd(key, *value)
    elif kind == "zset":
        client.zadd(key, dict(value))
    else:
        client.set(key, value)


def copy_of(client: redis.Redis, store: str, n: int, *, prefix: str = "") -> list[str]:
    """Store a captured session as ``sess-<n>`` under a prefix, with a week to live; return its keys."""
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
    mortal = any(entry["pttl"] > 0 for entry in capture.capture(store)["keys"])
    return audit(server.url, expect={pattern: "7d" if mortal else None}, full=True, duty=1)


@pytest.mark.parametrize(("count", "prefix"), [(1, "acme:"), (2, ""), (10, "acme:"), (60, "acme:")])
@pytest.mark.parametrize("store", capture.names())
def test_many_healthy_sessions_of_a_known_store_miss_nothing(
    store: str, count: int, prefix: str, server: RedisServer
) -> None:
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
def test_what_one_session_of_many_has_lost_is_all_that_is_found(store: str, prefix: str, server: RedisServer) -> None:
    with server.client() as client:
        parts = [copy_of(client, store, n, prefix=prefix) for n in range(12)][3]
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
    assert dropped > 1


@pytest.mark.parametrize("then", ["is there", "has died"])
def test_what_is_missing_is_looked_for_twice(then: str, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with server.client() as client:
        parts = [copy_of(client, "langgraph-redis", n, prefix="acme:") for n in range(5)][3]
        pointer = next(name for name in parts if "latest" in name)
        value = client.dump(pointer)
        client.delete(pointer)
        assert [one.keys for one in of(all_of(server, "acme:*", "langgraph-redis"), "dangling")] == [1]
        load = Loads.load

        def loaded_while_somebody_writes(loads: Loads, wants: Iterable[KeyRequest]) -> dict[str, RedisValue | None]:
            found = load(loads, wants)
            if pointer in found and not found[pointer]:
                client.restore(pointer, WEEK_S * 1000, value) if then == "is there" else client.delete(*parts)
            return found

        monkeypatch.setattr(Loads, "load", loaded_while_somebody_writes)
        report = all_of(server, "acme:*", "langgraph-redis")
    assert of(report, "dangling") == []


def test_sessions_in_parts_are_read_as_long_as_there_is_time(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memkit.audit.checks.known_stores.TOGETHER_KEYS", 1)
    monkeypatch.setattr("memkit.audit.checks.known_stores.FEWEST_SESSIONS", 2)
    with server.client() as client, reading(client) as reader:
        names = [name for n in range(5) for name in copy_of(client, "agno", n)]
        loads, parts = Loads(reader), Parts()
        parts.note(
            [raw for raw in loads.load(KeyRequest(name, "") for name in names if not shared(name)).values() if raw]
        )
        assert parts.close(loads, {}, within_s=-1) == (2, 5)
        assert parts.close(loads, {}, within_s=60) == (5, 5)


def test_a_key_that_is_read_twice_has_one_idle_clock() -> None:
    binary = every_server()["redis-7.0"]
    if not binary:
        pytest.skip("no Redis 7.0 on this machine")
    with RedisServer(binary=binary.path) as server, server.client() as client:
        names = {name for n in range(3) for name in copy_of(client, "agno", n)}
        report = audit(server.url, expect={"agno:*": "7d"}, full=True, touch=True, duty=1)
    assert report.proof.idle_clocks_touched == len(names)


def test_parts_that_are_two_patterns_are_told_of_once(server: RedisServer) -> None:
    with server.client() as client:
        parts = [copy_of(client, "langgraph-redis", n) for n in range(5)][2]
        client.delete(next(name for name in parts if name.startswith("checkpoint_write:")))
    report = audit(server.url, expect={"checkpoint*": "7d", "write_*": "7d"}, full=True, duty=1)
    assert [(one.prefix, one.keys) for one in of(report, "dangling")] == [("checkpoint", 1)]


def test_writes_alone_are_not_taken_for_a_thread_that_lost_its_pointer(server: RedisServer) -> None:
    with server.client() as client:
        for n in range(5):
            copy_of(client, "langgraph-redis-shallow", n)
    report = audit(server.url, expect={"checkpoint_write:*": "7d"}, full=True, duty=1)
    assert of(report, "dangling") == []


# -- what lists sessions and what does not -----------------------------------------------------------------------------

UUIDS = [str(uuid.UUID(int=n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128))) for n in range(400)]
Fill = Callable[[redis.Redis], object]


def sessions_called(client: redis.Redis, ids: Sequence[object], rest: str = "") -> None:
    pipe = client.pipeline(transaction=False)
    for each in ids:
        pipe.set(f"chat:{each}{rest}", "{}", ex=WEEK_S)
    pipe.execute()


OTHER_THINGS: dict[str, Fill] = {
    "products": lambda client: client.zadd("shop:bestsellers", {str(n * 7): n for n in range(100)}),
    "users": lambda client: client.sadd("beta-users", *range(150, 400)),
    "all users": lambda client: client.sadd("users", *range(400)),
    "rooms": lambda client: [client.sadd(f"room:{n}:members", 1, 2, 900 + n) for n in range(5)],
    "members of chats": lambda client: [client.sadd(f"chat:{n}:members", n, n + 1, n + 300) for n in range(200)],
    "numbers of messages": lambda client: [client.zadd(f"chat:{n}:index", {str(n): 1, "250": 2}) for n in range(200)],
    "ratings": lambda client: client.zadd("chat:ratings", {str(n): n for n in range(11)}),
    "a leaderboard": lambda client: client.zadd("chat:leaderboard", {str(n): n for n in range(400)}),
    "rights": lambda client: client.sadd("scopes", "chat:read", "chat:write"),
    "a queue and a session": lambda client: client.hset("job:1", mapping={"queue": "chat:mails", "id": "chat:17"}),
    "a model": lambda client: client.set("model", "chat:gpt-4"),
    "what was deleted": lambda client: client.sadd("deleted-chats", "chat:300", "chat:301"),
}


@pytest.mark.parametrize("what", OTHER_THINGS)
def test_numbers_and_words_of_other_things_are_no_sessions(what: str, server: RedisServer) -> None:
    with server.client() as client:
        sessions_called(client, range(200))
        OTHER_THINGS[what](client)
    assert of(full(server), "dangling") == []


@pytest.mark.parametrize(
    ("name", "members"), [("premium", UUIDS[150:300]), ("users", UUIDS), ("chat:admins", UUIDS[190:210])]
)
def test_users_with_chats_and_without_are_no_list_of_sessions(
    name: str, members: list[str], server: RedisServer
) -> None:
    with server.client() as client:
        sessions_called(client, UUIDS[:200])
        client.sadd(name, *members)
    assert of(full(server), "dangling") == []


def test_a_few_words_in_common_are_no_list_of_sessions(server: RedisServer) -> None:
    with server.client() as client:
        sessions_called(client, ["en", "de", "fr"])
        client.sadd("languages", "en", "de", "fr", "it")
    assert of(full(server), "dangling") == []


LISTS: dict[str, Fill] = {
    "chats": lambda client: client.sadd("chats", *range(230)),
    "chat:index": lambda client: client.zadd("chat:index", {str(n): n for n in range(230)}),
    "active": lambda client: client.sadd("active", *range(230)),
    "user:*:chats": lambda client: [client.sadd(f"user:{u}:chats", *range(u * 23, u * 23 + 23)) for u in range(10)],
    "sessions:user:*": lambda client: [
        client.sadd(f"sessions:user:{u}", *range(u * 23, u * 23 + 23)) for u in range(10)
    ],
    "x": lambda client: client.sadd("x", *(f"chat:{n}" for n in range(190, 230))),
    "user:current": lambda client: client.hset("user:current", mapping={f"u{n}": f"chat:{n}" for n in range(230)}),
    "latest:*": lambda client: [client.set(f"latest:{n}", f"chat:{n + 30}") for n in range(200)],
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_numbered_sessions_are_known_by_name_and_by_what_they_list(name: str, server: RedisServer) -> None:
    with server.client() as client:
        sessions_called(client, range(200))
        LISTS[name](client)
    (found,) = of(full(server), "dangling")
    assert (found.keys, found.confidence, found.evidence) == (30, "proven", (f"listed in {name}",))


@pytest.mark.parametrize(
    ("name", "members", "gone", "confidence"),
    [
        ("recent-sessions", UUIDS[190:210], 10, "proven"),
        ("sessions", UUIDS, 200, "proven"),
        ("crm:export", UUIDS[20:230], 30, "likely"),
    ],
)
def test_lists_of_sessions_that_have_ids_of_their_own(
    name: str, members: list[str], gone: int, confidence: str, server: RedisServer
) -> None:
    with server.client() as client:
        sessions_called(client, UUIDS[:200])
        client.zadd(name, dict.fromkeys(members, 1.0))
    assert [(one.keys, one.confidence) for one in of(full(server), "dangling")] == [(gone, confidence)]


@pytest.mark.parametrize("begin", ["", "chat:"])
@pytest.mark.parametrize(("listed", "gone"), [(200, 0), (230, 30)])
def test_a_session_whose_parts_are_there_is_there(begin: str, listed: int, gone: int, server: RedisServer) -> None:
    with server.client() as client:
        sessions_called(client, range(200), ":messages")
        client.sadd("chats", *(f"{begin}{n}" for n in range(listed)))
    assert [one.keys for one in of(full(server), "dangling")] == ([gone] if gone else [])


def test_a_session_that_began_after_its_list_was_read_is_there(server: RedisServer) -> None:
    with server.client() as client:
        sessions_called(client, range(200))
        client.sadd("chats", *range(230))

        def begin(_done: int, _of: int) -> None:
            sessions_called(client, range(200, 230))

        report = audit(server.url, expect={"chat:*": "7d"}, full=True, progress=begin, duty=1)
    assert of(report, "dangling") == []


# -- the connection ----------------------------------------------------------------------------------------------------


def test_a_connection_that_breaks_is_said_to_have_broken_in_the_middle(server: RedisServer) -> None:
    with server.client() as client:
        for n in range(500):
            client.set(f"chat:{n}", "{}", ex=WEEK_S)

        def kill(_done: int, _of: int) -> None:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        with pytest.raises(redis.ConnectionError, match="in the middle of the audit"):
            audit(server.url, expect={"chat:*": "7d"}, progress=kill, duty=1)


def test_a_server_that_stops_answering_is_not_waited_for_without_end(server: RedisServer) -> None:
    with server.client() as client:
        wire = Wire(client, name="here")
        # What was sent is held back: the server does what it was told after the pause.
        wire._socket.settimeout(0.1)
        client.execute_command("CLIENT", "PAUSE", 400, "ALL")
        with pytest.raises(redis.TimeoutError, match="here stopped answering"):
            wire.ask("TIME")
        wire.close()


def test_memkits_own_messages_tell_when_they_were_written(server: RedisServer) -> None:
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
