"""Indexes of sessions, of every kind: entries of sessions that ended, and of sessions that were lost."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import pytest
import redis
from servers import NO_FSYNC, every_server

from memkit.audit import Finding
from memkit.audit.run import audit
from memkit.server import RedisServer

WEEK_S, DAY_S = 604_800, 86_400
SESSIONS = 60

Entry = tuple[str, float]
"""A session's id and the time of its last write, in seconds since 1970."""
Index = Callable[[redis.Redis, str, Sequence[Entry]], object]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    binary = every_server()["redis-8.2"] or every_server()["valkey-9"]
    if not binary:
        pytest.skip("no server with CLIENT NO-TOUCH on this machine")
    with RedisServer(binary=binary.path, persist=True, config=NO_FSYNC) as server:
        yield server


TIMED: dict[str, Index] = {
    "a sorted set of ids": lambda client, key, sessions: client.zadd(key, dict(sessions)),
    "a sorted set of ms": lambda client, key, sessions: client.zadd(key, {one: at * 1000 for one, at in sessions}),
    "a sorted set of deadlines": lambda client, key, sessions: client.zadd(
        key, {one: at + WEEK_S for one, at in sessions}
    ),
    "a sorted set of names": lambda client, key, sessions: client.zadd(
        key, {f"sess:{one}": at for one, at in sessions}
    ),
    "a hash of times": lambda client, key, sessions: client.hset(
        key, mapping={one: str(round(at)) for one, at in sessions}
    ),
    "a hash of documents": lambda client, key, sessions: client.hset(
        key, mapping={one: json.dumps({"title": "a chat", "updatedAt": at * 1000}) for one, at in sessions}
    ),
    "a hash of documents with their start": lambda client, key, sessions: client.hset(
        key, mapping={one: json.dumps({"startedAt": at}) for one, at in sessions}
    ),
    "a list of documents": lambda client, key, sessions: client.rpush(
        key, *(json.dumps({"id": one, "created_at": at}) for one, at in sessions)
    ),
    "a JSON array of documents": lambda client, key, sessions: client.set(
        key, json.dumps([{"session_id": one, "last_active": at} for one, at in sessions])
    ),
}
PLAIN: dict[str, Index] = {
    "a set of ids": lambda client, key, sessions: client.sadd(key, *(one for one, _ in sessions)),
    "a set of names": lambda client, key, sessions: client.sadd(key, *(f"sess:{one}" for one, _ in sessions)),
    "a list of ids": lambda client, key, sessions: client.rpush(key, *(one for one, _ in sessions)),
    "a list of names": lambda client, key, sessions: client.rpush(key, *(f"sess:{one}" for one, _ in sessions)),
    "a JSON array": lambda client, key, sessions: client.set(key, json.dumps([one for one, _ in sessions])),
    "a JSON object with an array": lambda client, key, sessions: client.set(
        key, json.dumps({"user": "u", "sessions": [one for one, _ in sessions]})
    ),
    "a hash of names": lambda client, key, sessions: client.hset(
        key, mapping={f"n{n}": f"sess:{one}" for n, (one, _) in enumerate(sessions)}
    ),
    "a hash of titles": lambda client, key, sessions: client.hset(
        key, mapping={one: "a chat about orders" for one, _ in sessions}
    ),
    "a set that Java wrote": lambda client, key, sessions: client.sadd(
        key, *(b"\xac\xed\x00\x05t\x00\x10" + one.encode() for one, _ in sessions)
    ),
}
EVERY = {**TIMED, **PLAIN}
NAMES = ("index", "user_sessions:{u}", "user:{u}:sessions", "x:{u}:y")


def world(
    server: RedisServer, index: Index, *, name: str = "user:{u}:s", lost: float = 0, pruned: bool = False
) -> list[Finding]:
    """Write sessions over two weeks, each with a week's TTL, and indexes of them; return what the audit finds."""
    dice = random.Random(8)
    now = server.clock.now()
    with server.client() as client:
        client.flushdb()
        client.config_resetstat()
        ids = [f"{dice.getrandbits(64):016x}" for _ in range(SESSIONS)]
        sessions = sorted((now.timestamp() - dice.uniform(0, 14) * DAY_S, one) for one in ids)
        kept: list[Entry] = []
        for at, one in sessions:
            server.clock.move_to(now - timedelta(seconds=now.timestamp() - at))
            client.set(f"sess:{one}", json.dumps({"messages": []}), ex=WEEK_S)
            if dice.random() < lost:
                client.pexpire(f"sess:{one}", 60_000)
            if not pruned or at > now.timestamp() - WEEK_S:
                kept.append((one, at))
        server.clock.move_to(now)
        for user in range(5):
            index(client, name.format(u=user), kept[user * len(kept) // 5 : (user + 1) * len(kept) // 5])
    report = audit(server.url, expect={"sess:*": "7d"}, full=True, duty=1)
    return [one for one in report.findings if one.cause in ("dangling", "stale_index", "no_ttl")]


@pytest.mark.parametrize("kind", EVERY)
def test_entries_of_ended_sessions_are_stale(server: RedisServer, kind: str) -> None:
    (found,) = world(server, EVERY[kind])
    assert (found.cause, found.severity) == ("stale_index", "warning")
    assert found.keys > 20


@pytest.mark.parametrize("kind", EVERY)
def test_a_pruned_index_is_healthy(server: RedisServer, kind: str) -> None:
    assert world(server, EVERY[kind], pruned=True) == []


@pytest.mark.parametrize("kind", TIMED)
def test_sessions_lost_before_their_time_dangle(server: RedisServer, kind: str) -> None:
    found = world(server, TIMED[kind], lost=0.4, pruned=True)
    assert [(one.cause, one.severity, one.confidence) for one in found][:1] == [("dangling", "critical", "likely")]
    assert 5 <= found[0].keys <= 20


@pytest.mark.parametrize("kind", PLAIN)
def test_an_index_without_times_never_dangles(server: RedisServer, kind: str) -> None:
    assert [one.cause for one in world(server, PLAIN[kind], lost=0.4)] == ["stale_index"]


@pytest.mark.parametrize("name", NAMES)
def test_the_words_in_its_name_decide_nothing(server: RedisServer, name: str) -> None:
    assert [one.cause for one in world(server, PLAIN["a set of ids"], name=name)] == ["stale_index"]


def test_sessions_deleted_by_users_possibly_dangle(server: RedisServer) -> None:
    def delete(client: redis.Redis, key: str, sessions: Sequence[Entry]) -> None:
        client.zadd(key, dict(sessions))
        client.delete(*(f"sess:{one}" for one, _ in sessions[::2]))

    found = world(server, delete, pruned=True)[0]
    assert (found.cause, found.severity, found.confidence) == ("dangling", "warning", "possible")


def test_an_index_that_expires_itself_is_healthy(server: RedisServer) -> None:
    def expiring(client: redis.Redis, key: str, sessions: Sequence[Entry]) -> None:
        client.sadd(key, *(one for one, _ in sessions))
        client.expire(key, WEEK_S)

    assert world(server, expiring) == []


NAMES_ALONE = ("a hash of times", "a list of ids", "a list of names")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("a JSON array", "sess:user:{u}:ids")]
    + [(kind, name) for kind in NAMES_ALONE for name in ("sess:index", "sess:user:{u}:ids")],
)
def test_an_index_named_like_sessions_is_none(server: RedisServer, kind: str, name: str) -> None:
    assert [one.cause for one in world(server, EVERY[kind], name=name)] == ["stale_index"]
    assert world(server, EVERY[kind], name=name, pruned=True) == []


def test_sessions_that_name_each_other_lack_a_ttl(server: RedisServer) -> None:
    """Messages to the owners of other sessions, in keys of another shape that never got a TTL."""

    def write(client: redis.Redis, key: str, sessions: Sequence[Entry]) -> None:
        client.rpush(key, *(json.dumps({"text": "hi", "to": one}) for one, _ in sessions))

    (found,) = world(server, write, name="sess:user:{u}:log")
    assert found.cause == "no_ttl"


OTHERS: dict[str, Callable[[redis.Redis], object]] = {
    "numbers of products": lambda client: client.zadd("bestsellers", {str(n * 7): n for n in range(100)}),
    "numbers of all users": lambda client: client.sadd("users", *range(400)),
    "numbers of users": lambda client: client.sadd("beta-users", *range(150, 400)),
    "members of rooms": lambda client: [client.sadd(f"room:{n}:members", 1, 2, 900 + n) for n in range(5)],
    "numbers of messages": lambda client: [client.zadd(f"chat:{n}:index", {str(n): 1, "250": 2}) for n in range(50)],
    "rights": lambda client: client.sadd("scopes", "chat:read", "chat:write"),
    "a queue": lambda client: client.hset("job:1", mapping={"queue": "chat:mails", "id": "chat:1700"}),
    "a model": lambda client: client.set("model", "chat:gpt-4"),
    "an archive": lambda client: client.sadd("deleted-chats", "chat:300", "chat:301"),
    "languages": lambda client: client.sadd("languages", "en", "de", "fr", "it"),
    "a log": lambda client: client.rpush("log", *(json.dumps({"event": "login", "at": n}) for n in range(50))),
    "texts": lambda client: client.rpush("notes", *("hello world" for n in range(50))),
}


@pytest.mark.parametrize("what", OTHERS)
def test_numbers_and_other_words_are_no_index(server: RedisServer, what: str) -> None:
    with server.client() as client:
        client.flushdb()
        for each in (*range(200), "en", "de"):
            client.set(f"chat:{each}", "{}", ex=WEEK_S)
        OTHERS[what](client)
    report = audit(server.url, expect={"chat:*": "7d"}, full=True, duty=1)
    assert [one.cause for one in report.findings if one.cause in ("dangling", "stale_index")] == []


def test_a_session_is_present_if_one_of_its_keys_is(server: RedisServer) -> None:
    with server.client() as client:
        client.flushdb()
        for n in range(200):
            client.rpush(f"chat:user-{n:04d}:log", json.dumps({"role": "user", "content": "hi"}))
            client.expire(f"chat:user-{n:04d}:log", WEEK_S)
        client.sadd("chats", *(f"user-{n:04d}" for n in range(200)))
    report = audit(server.url, expect={"chat:*": "7d"}, full=True, duty=1)
    assert [one.cause for one in report.findings if one.cause in ("dangling", "stale_index")] == []


def test_a_session_begun_after_the_scan_is_present(server: RedisServer) -> None:
    ids = [f"user-{n:04d}" for n in range(230)]

    def write(names: Sequence[str]) -> None:
        with server.client() as client:
            for one in names:
                client.set(f"chat:{one}", "{}", ex=WEEK_S)

    with server.client() as client:
        client.flushdb()
        client.sadd("chats", *ids)
    write(ids[:200])
    report = audit(server.url, expect={"chat:*": "7d"}, full=True, progress=lambda _done, _of: write(ids[200:]), duty=1)
    assert [one.cause for one in report.findings if one.cause in ("dangling", "stale_index")] == []
