"""inspect_session with expected TTLs: what proves that a session expires early, and what does not."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from servers import start

from memkit import cli
from memkit.audit import audit
from memkit.errors import PolicyError
from memkit.formats import capture
from memkit.inspect import inspect_session, load_capture
from memkit.server import RedisServer
from memkit.store import MemoryStore

DAY_S = 86_400
WEEK = {"chat:*": "7d"}
UUID6 = re.compile(rb"1f1e[0-9a-f]{4}-[0-9a-f]{4}-6[0-9a-f]{3}-[0-9a-f-]{17}")
VERSION = re.compile(rb"blob:.*:(\d+)$")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A server with CLIENT NO-TOUCH: reading leaves the idle times as they are."""
    with start("redis-8.2") as running:
        yield running


def write(client: redis.Redis, left_s: float, *, written_s: float | None = None) -> None:
    """Write a session that expires in ``left_s``; its message was written ``written_s`` ago, if it states that."""
    at = {} if written_s is None else {"ts": client.time()[0] - written_s}
    client.rpush("chat:1", json.dumps({"role": "user", "content": "hi"} | at))
    client.pexpire("chat:1", round(left_s * 1000))


def found(client: redis.Redis, expect: Any) -> list[tuple[str, str]]:
    return [(one.cause, one.message) for one in inspect_session(client, "chat:1", expect=expect).problems]


@pytest.mark.parametrize(
    ("left_s", "written_s", "cause"),
    [
        (300, None, "ttl_too_short"),  # 5 minutes of 7 days: 0.05 % of all moments
        (300, 60, "ttl_too_short"),
        (3 * DAY_S, 60, "ttl_too_short"),  # the message is a minute old: its TTL was 3 days
        (3 * DAY_S, None, None),  # read just now, and perhaps written four days ago
        (3 * DAY_S, 4 * DAY_S, None),
        (3 * DAY_S, -3_600, None),  # a time in the future is none of a write
        (6.5 * DAY_S, 60, None),  # within the jitter
        (7 * DAY_S - 5, None, None),
        (8 * DAY_S, None, "ttl_too_long"),
    ],
)
def test_one_deadline_against_seven_days(
    client: redis.Redis, left_s: float, written_s: float | None, cause: str | None
) -> None:
    write(client, left_s, written_s=written_s)
    assert [one for one, _ in found(client, WEEK)] == ([cause] if cause else [])


def test_a_local_time_of_any_zone_proves_nothing(client: redis.Redis) -> None:
    # Written 14 hours ago by its own clock, which may be that of another zone: 24 h are not too short then.
    write(client, 9 * 3_600, written_s=0)
    assert found(client, {"chat:*": "24h"}) == []


def test_an_idle_session_near_its_end_is_healthy(server: RedisServer, client: redis.Redis) -> None:
    write(client, 7 * DAY_S)
    server.clock.shift("167h")
    assert found(client, WEEK) == []


def test_durations_are_written_for_people(client: redis.Redis) -> None:
    write(client, 6.55 * DAY_S, written_s=60)
    ((_, message),) = found(client, {"chat:*": "30d"})
    assert message.startswith("has 6d 13h left, and its newest message was written ")
    assert message.endswith(" ago: its TTL was at most 6d 13h, less than the expected TTL of 30d")
    report = inspect_session(client, "chat:1")
    assert "6d 13h" in report.to_text()
    assert "6d 13h" in report._repr_html_()


@pytest.mark.parametrize(
    ("expect", "causes"),
    [
        ("chat:*=never", ["ttl_too_short"]),
        ("chat:*=5m|7d", []),
        ("chat:*=7d,absolute", ["ttl_too_short"]),
        ("other:*=7d", []),
        (["chat:*=5m", "*=7d"], []),
        ("chat:*=5m,jitter=0%", []),
    ],
)
def test_most_specific_expectation_is_applied(client: redis.Redis, expect: Any, causes: list[str]) -> None:
    write(client, 300)
    report = inspect_session(client, "chat:1", expect=expect)
    assert [one.cause for one in report.problems] == causes
    assert any("no expectation matches" in note for note in report.notes) == (expect == "other:*=7d")


def test_a_persistent_key_that_never_expires(client: redis.Redis) -> None:
    client.rpush("chat:1", '{"role": "user", "content": "hi"}')
    assert found(client, "chat:*=never") == []
    assert [one for one, _ in found(client, WEEK)] == ["no_ttl"]


@pytest.mark.parametrize("name", ["redis-8.2", "valkey-9"])
@pytest.mark.parametrize(
    ("ttls_s", "cause"),
    [((7 * DAY_S, 7 * DAY_S), None), ((300, 300), "ttl_too_short"), ((7 * DAY_S, None), "no_ttl")],
)
def test_ttls_of_fields_are_the_hash_s(name: str, ttls_s: tuple[int | None, ...], cause: str | None) -> None:
    with start(name) as server, server.client() as client:
        for number, ttl_s in enumerate(ttls_s):
            client.hset("chat:1", f"m{number}", json.dumps({"role": "user", "content": "hi"}))
            if ttl_s:
                client.hexpire("chat:1", ttl_s, f"m{number}")
        report = inspect_session(client, "chat:1", expect=WEEK)
    assert [one.cause for one in report.problems] == ([cause] if cause else [])
    assert any("1 hash is that of its last field" in note for note in report.notes) == (cause != "no_ttl")
    if cause == "no_ttl":
        assert report.problems[0].message.startswith("1 of its 2 fields have no TTL")


@pytest.mark.parametrize(("beside", "cause"), [("3", None), ("words", "mixed_ttl")])
def test_counter_beside_a_session_is_not_compared(client: redis.Redis, beside: str, cause: str | None) -> None:
    write(client, 3 * DAY_S)
    client.set("chat:1:count", beside, ex=7 * DAY_S)
    report = inspect_session(client, "chat:1", expect=WEEK)
    assert [one.cause for one in report.problems] == ([cause] if cause else [])
    assert any("with 1 counter: " in note for note in report.notes) == (cause is None)


@pytest.mark.parametrize(("marker", "cause"), [("expires:1", None), ("other:1", "ttl_too_long")])
def test_hash_of_spring_session_ends_later(client: redis.Redis, marker: str, cause: str | None) -> None:
    client.hset("chat:1", mapping={"lastAccessedTime": 1, "sessionAttr:user": "x"})
    client.expire("chat:1", 35 * 60)
    client.set(f"chat:{marker}", "", ex=30 * 60)
    assert [one for one, _ in found(client, {"chat:*": "30m"})] == ([cause] if cause else [])


LANGGRAPH = ("langgraph-redis", "langgraph-redis-shallow", "langgraph-redis-own-prefix", "langgraph-plainredis",
             "langgraph-aws-valkey", "langgraph-js")  # fmt: skip


@pytest.mark.parametrize("name", LANGGRAPH)
def test_old_checkpoints_end_earlier(name: str) -> None:
    """A thread of two turns: each checkpoint got the whole TTL when it was written, and is read, but not renewed.

    A shallow saver has one checkpoint, written after the writes that led to it, and only this is renewed by reads.
    """
    with start("redis-8.2") as server, server.client() as client:
        load_capture(client, name, json_as_text=True)
        values = {key: client.dump(key) for key in client.keys("*")}
        client.unlink(*values)
        steps = sorted({found[0] for key in values for found in [UUID6.search(key)] if found})
        turns: tuple[list[bytes], list[bytes]] = ([], [])
        for key in values:
            step, version = UUID6.search(key), VERSION.search(key)
            at = steps.index(step[0]) if step else int(version[1]) if version else len(steps)
            turns[at >= len(steps) // 2].append(key)
        # A UUID of version 6 begins with the time, in steps of 100 ns since 1582.
        ticks = int(steps[0].replace(b"-", b"")[:12] + steps[0][15:18], 16)
        server.clock.move_to(datetime(1582, 10, 15, tzinfo=UTC) + timedelta(microseconds=ticks // 10))
        for keys in turns:
            for key in keys:
                client.restore(key, 7 * DAY_S * 1000, values[key])
            server.clock.shift("3d")
        client.touch(*values)
        if name == "langgraph-redis-shallow":
            client.expire("checkpoint:sess-A:", 7 * DAY_S)
        session = capture.capture(name)["session_id"]
        assert "mixed_ttl" not in {one.cause for one in inspect_session(server.url, session, expect="*=7d").problems}
        report = audit(server.url, expect={"*": "7d"}, full=True, duty=1)
        assert "mixed_ttl" not in {one.cause for one in report.findings}
        old = next(key for key in turns[0] if UUID6.search(key))
        client.expire(old, 300)
        cut = [
            one.key for one in inspect_session(server.url, session, expect="*=7d").problems if one.cause == "mixed_ttl"
        ]
        assert cut == [old.decode()]
        report = audit(server.url, expect={"*": "7d"}, full=True, duty=1)
        assert "mixed_ttl" in {one.cause for one in report.findings}
        server.clock.shift("2d")
        if any(one.cause == "gap" for one in inspect_session(server.url, session).problems):
            rest = inspect_session(server.url, session, expect="*=7d")
            assert [one.cause for one in rest.problems] == []
            assert any("have expired, as expected" in note for note in rest.notes)
        else:
            assert name in ("langgraph-redis-shallow", "langgraph-aws-valkey")


def test_parts_within_an_expected_jitter(client: redis.Redis) -> None:
    session = load_capture(client, "openai-agents")
    client.pexpire("agents:session:sess-A", 300_000)
    causes = [one.cause for one in inspect_session(client, session, expect={"agents:*": "1000s"}).problems]
    assert causes == ["mixed_ttl"]


@pytest.mark.parametrize("ttl", ["7d", None])
def test_the_payloads_own_ttl_is_expected(client: redis.Redis, ttl: str | None) -> None:
    MemoryStore(client, prefix="chat:", ttl=ttl).append("1", {"role": "user", "content": "hi"})
    assert found(client, None) == []
    client.expire("chat:1", 3_600)
    assert [one for one, _ in found(client, None)] == (["ttl_too_short"] if ttl else [])
    client.expire("chat:1", 8 * DAY_S)
    assert [one for one, _ in found(client, None)] == (["ttl_too_long"] if ttl else [])


def test_the_ttl_of_an_agent_memory_document(client: redis.Redis) -> None:
    session = load_capture(client, "agent-memory-server", json_as_text=True)
    assert inspect_session(client, session).problems == ()
    (key,) = client.keys("working_memory:*")
    client.expire(key, 2 * 3_600)
    assert [one.cause for one in inspect_session(client, session).problems] == ["ttl_too_long"]


def test_the_command_line_and_the_configuration(
    server: RedisServer,
    client: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(client, 300)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["inspect", server.url, "chat:1"]) == 0
    assert cli.main(["inspect", server.url, "chat:1", "--expect", "chat:*=7d"]) == 1
    assert "ttl_too_short" in capsys.readouterr().out
    (tmp_path / "memkit.toml").write_text('[expect]\n"chat:*" = "7d"\n')
    assert cli.main(["inspect", server.url, "chat:1"]) == 1
    assert cli.main(["inspect", server.url, "chat:1", "--expect", "chat:*=5m"]) == 0
    assert cli.main(["inspect", server.url, "chat:1", "--expect", "chat:*"]) == 2


def test_an_expectation_that_cannot_be_read(client: redis.Redis) -> None:
    with pytest.raises(PolicyError, match="is not an expectation"):
        inspect_session(client, "chat:1", expect="chat")


def test_the_servers_clock_counts(server: RedisServer, client: redis.Redis) -> None:
    server.clock.shift("20d")
    write(client, 3 * DAY_S, written_s=60)
    assert client.time()[0] > time.time() + 10 * DAY_S
    assert [one for one, _ in found(client, WEEK)] == ["ttl_too_short"]
