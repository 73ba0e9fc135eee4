"""What the audit finds by reading values: dates inside payloads against deadlines, and pointers to what is gone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest
import redis
from servers import every_server

from memkit import ExpiryPolicy, MemoryStore
from memkit.audit import AuditReport, audit
from memkit.audit_report import Finding
from memkit.audit_wire import Wire
from memkit.formats.capture import load_capture
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
