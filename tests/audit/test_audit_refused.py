"""Servers that refuse some commands, or report trouble of their own: what is still found, and what ends the audit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from servers import every_server, start
from waiting import wait_for
from worlds import draw_world, false_alarms

from memkit.audit import parse_expectation
from memkit.audit.checks.deletions import deleted_finding
from memkit.audit.checks.server import server_findings, server_notes
from memkit.audit.checks.ttl_inference import ServerHistory
from memkit.audit.context import AuditContext
from memkit.audit.run import AuditReport, audit
from memkit.audit.sampling import KeyFacts
from memkit.audit.server_info import ServerFacts
from memkit.errors import PolicyError
from memkit.server import RedisServer

LANES = [name for name, binary in every_server().items() if binary]
WEEK_S = 604_800


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with start(LANES[-1]) as server:
        yield server


def with_sessions(client: redis.Redis, short: int = 30) -> None:
    for number in range(60):
        client.set(f"chat:{number}", "{}", ex=300 if number < short else WEEK_S)


def nearly_full(client: redis.Redis) -> None:
    client.setrange("blob", 20_000_000, "x")  # a tenth of which is room enough for connections
    client.config_set("maxmemory", round(client.info("memory")["used_memory"] * 1.1))


def as_user(server: RedisServer, *rules: str) -> str:
    """Return a URL of a user who may do everything but what the rules take away."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~*", "+@all", *rules)
    return server.url.replace("unix://", "unix://limited:pw@")


def only(report: AuditReport, cause: str) -> list[object]:
    return [finding for finding in report.findings if finding.cause == cause]


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["dbsize", "scan", "type", "pttl"])
def test_refused_needed_command_raises_server_error(command: str, any_server: RedisServer) -> None:
    with any_server.client() as client:
        with_sessions(client)
    denied = ["-pttl", "-pexpiretime"] if command == "pttl" and any_server.version >= "7" else [f"-{command}"]
    with pytest.raises(redis.ResponseError) as raised:
        audit(as_user(any_server, *denied), expect={"chat:*": "7d"}, duty=1)
    assert command in str(raised.value).lower()


def test_without_pexpiretime_what_is_left_is_asked_for(server: RedisServer) -> None:
    with server.client() as client:
        with_sessions(client)
    report = audit(as_user(server, "-pexpiretime"), expect={"chat:*": "7d"}, duty=1)
    assert (report.verdict.cause, report.findings[0].keys) == ("ttl_too_short", 30)
    assert report.proof.commands["pttl"] >= 60


def test_without_time_this_machines_clock_is_taken(any_server: RedisServer) -> None:
    with any_server.client() as client:
        with_sessions(client)
    report = audit(as_user(any_server, "-time"), expect={"chat:*": "7d"}, duty=1)
    assert only(report, "clock_skew") == []
    short = only(report, "ttl_too_short")
    assert [one.observed_ttl_s for one in short] == [300]  # type: ignore[attr-defined]


def test_info_in_sections_is_put_together(any_server: RedisServer) -> None:
    sections = [f"+info|{name}" for name in ("server", "stats", "memory", "persistence", "replication", "commandstats")]
    with any_server.client() as client:
        with_sessions(client)
        client.config_set("maxmemory-policy", "allkeys-lru")
        nearly_full(client)
    report = audit(as_user(any_server, "-info", *sections), expect={"chat:*": "7d"}, duty=1)
    assert report.server["version"] == any_server.version
    assert len(only(report, "eviction_risk")) == 1
    assert not any("INFO" in note for note in report.notes)


def test_without_info_nothing_is_guessed(any_server: RedisServer) -> None:
    with any_server.client() as client:
        with_sessions(client, short=0)
    report = audit(as_user(any_server, "-info", "-config", "-slowlog"), expect={"chat:*": "7d"}, duty=1)
    assert (report.findings, report.verdict.status) == ((), "undetermined")
    assert "it is not known whether the server lost keys" in report.verdict.sentence
    assert report.server["version"] == "?"
    assert report.proof.expired_during_audit is report.proof.evicted_during_audit is None
    assert {word for word in ("INFO", "CONFIG", "SLOWLOG") if any(word in note for note in report.notes)} == {
        "INFO",
        "CONFIG",
        "SLOWLOG",
    }


@pytest.mark.parametrize(
    ("name", "denied"),
    [("field_ttls", "-info"), ("clock_set_back", "-info"), ("never_with_locks", "-memory"), ("batches", "-object")],
)
def test_healthy_world_is_healthy_with_few_rights(name: str, denied: str) -> None:
    world = draw_world(name, 81)
    with world.played() as server:
        assert false_alarms(audit(as_user(server, denied), expect=world.expect, duty=1)) == []


def test_invalid_arguments_raise_before_any_command() -> None:
    with pytest.raises(PolicyError, match=r"chat:\[z-a\]\*"):
        _ = parse_expectation("chat:[z-a]*=7d").matches
    with pytest.raises(PolicyError, match="not dict"):
        audit({"host": "localhost"}, expect={"chat:*": "7d"})  # type: ignore[arg-type]


def context_of(facts: ServerFacts, keys: Sequence[KeyFacts] = ()) -> AuditContext:
    return AuditContext(keys, ServerHistory(facts.now_ms), facts, lambda _names: ())


# -- trouble of the server's own ---------------------------------------------------------------------------------------


def test_a_save_that_fails_is_a_risk() -> None:
    binary = every_server()[LANES[-1]]
    assert binary
    with RedisServer(binary=binary.path, config={"save": "3600 1"}) as server, server.client() as client:
        with_sessions(client, short=0)
        assert only(audit(server.url, expect={"chat:*": "7d"}, duty=1), "persistence_risk") == []
        # A folder in the file's place cannot be replaced by it, not even by root.
        name = client.config_get("dbfilename")["dbfilename"]
        Path(client.config_get("dir")["dir"], name, "in-the-way").mkdir(parents=True)
        client.bgsave()
        wait_for("a failed save", lambda: client.info("persistence")["rdb_last_bgsave_status"], "err".__eq__)
        report = audit(server.url, expect={"chat:*": "7d"}, duty=1)
    assert report.verdict.cause == "persistence_risk"


def test_volatile_policy_spares_persistent_keys(server: RedisServer) -> None:
    with server.client() as client:
        for number in range(60):
            client.set(f"chat:{number}", "{}")
        client.config_set("maxmemory-policy", "volatile-lru")
        nearly_full(client)
        assert only(audit(server.url, expect={"chat:*": None}, duty=1), "eviction_risk") == []
        client.expire("chat:1", WEEK_S)
        assert len(only(audit(server.url, expect={"chat:*": None}, duty=1), "eviction_risk")) == 1


@pytest.mark.parametrize(
    ("info", "cause"),
    [
        ({"aof_enabled": "1", "aof_last_write_status": "err"}, "persistence_risk"),
        ({"aof_enabled": "1", "aof_last_write_status": "ok", "rdb_last_bgsave_status": "err"}, None),
        ({"aof_enabled": "0", "rdb_last_bgsave_status": "err"}, "persistence_risk"),
        ({"aof_enabled": "0", "role": "slave", "rdb_last_bgsave_status": "err"}, None),
        ({"aof_enabled": "0", "rdb_last_bgsave_status": "ok"}, None),
        ({}, None),
    ],
)
def test_failed_save_in_info_is_a_finding(info: Mapping[str, str], cause: str | None) -> None:
    facts = ServerFacts(info, {"save": "3600 1"})
    found = server_findings(facts, context_of(facts), [], after={})
    assert [one.cause for one in found] == ([cause] if cause else [])


@pytest.mark.parametrize(("setting", "cause"), [("yes", None), ("no", "persistence_risk")])
def test_append_only_file_that_info_leaves_out(setting: str, cause: str | None) -> None:
    facts = ServerFacts({"role": "master"}, {"save": "", "appendonly": setting})
    found = server_findings(facts, context_of(facts), [], after={})
    assert [one.cause for one in found] == ([cause] if cause else [])


@pytest.mark.parametrize(("saved_days_ago", "found"), [(0.5, False), (2, True)])
def test_changes_unsaved_for_a_day_are_a_finding(saved_days_ago: float, found: bool) -> None:
    now_s = 1_800_000_000
    saved_s = now_s - round(saved_days_ago * 86_400)
    info = {"aof_enabled": "0", "rdb_last_save_time": str(saved_s), "rdb_changes_since_last_save": "5"}
    facts = ServerFacts(info, {"save": "3600 1"}, now_ms=now_s * 1000)
    messages = [one.message for one in server_findings(facts, context_of(facts), [], after={})]
    assert [message for message in messages if "5 changes since the last RDB save" in message] == messages
    assert bool(messages) == found


def test_refused_connections_are_noted() -> None:
    for count, counted in (("1", "1 connection"), ("3", "3 connections")):
        notes = server_notes(ServerFacts({"rejected_connections": count}, {}), [], when="", database=0)
        assert any(note.startswith(f"the server refused {counted} since") for note in notes)


@pytest.mark.parametrize(("code", "found"), [("MOVED", False), ("CLUSTERDOWN", True)])
def test_redirected_writes_are_not_refused(code: str, found: bool) -> None:
    calls = "calls=1000,usec=1,usec_per_call=1,rejected_calls=500,failed_calls=0"
    facts = ServerFacts({"cmdstat_set": calls, f"errorstat_{code}": "count=500"}, {"save": "3600 1"})
    assert [one.cause for one in server_findings(facts, context_of(facts), [], after={})] == (
        ["writes_refused"] if found else []
    )


@pytest.mark.parametrize(("moved_s", "found"), [(0.0, True), (600.0, False), (300.0, True)])
def test_clock_moved_by_memkit_as_far_is_no_finding(moved_s: float, found: bool) -> None:
    now = 1_800_000_000_000
    keys = [KeyFacts(b"chat:1", "string", now + 1000, now - 500_000, now, None)]
    facts = ServerFacts({}, {}, skew_ms=600_000.0, skew_error_ms=1.0, moved_by_ms=moved_s * 1000, now_ms=now)
    assert [one.cause for one in server_findings(facts, context_of(facts, keys), [], after={})] == (
        ["clock_skew"] if found else []
    )


@pytest.mark.parametrize(("deadline_ms", "found"), [(1_800_000_001_000, True), (None, False)])
def test_clock_skew_ends_no_key_without_a_deadline(deadline_ms: int | None, found: bool) -> None:
    now = 1_800_000_000_000
    keys = [KeyFacts(b"chat:1", "string", deadline_ms, now, now, None)]
    facts = ServerFacts({}, {"save": "3600 1"}, skew_ms=600_000.0, skew_error_ms=1.0, now_ms=now)
    assert [one.cause for one in server_findings(facts, context_of(facts, keys), [], after={})] == (
        ["clock_skew"] if found else []
    )


@pytest.mark.parametrize("by_s", [90, 7_200, 43_200, 54_000])
@pytest.mark.parametrize("kind", ["list", "string"])
def test_clock_moved_after_the_writes_is_no_finding(kind: str, by_s: int, server: RedisServer) -> None:
    with server.client() as client:
        for number in range(100):
            with client.pipeline() as pipe:
                _ = pipe.set(f"chat:{number}", "{}") if kind == "string" else pipe.rpush(f"chat:{number}", "{}")
                pipe.expire(f"chat:{number}", WEEK_S)
                pipe.execute()
        server.clock.shift(by_s)
        for number in range(100):
            _ = client.get(f"chat:{number}") if kind == "string" else client.lrange(f"chat:{number}", 0, -1)
    assert only(audit(server.url, expect={"chat:*": "7d"}, duty=1), "clock_skew") == []


def test_clock_moved_between_writes_is_no_finding(
    server: RedisServer,
) -> None:
    server.clock.shift("9d")
    with server.client() as client:
        for number in range(60):
            server.clock.shift("1m")
            client.set(f"chat:{number}", "{}", ex=7_200)
    assert only(audit(server.url, expect={"chat:*": "2h"}, duty=1), "clock_skew") == []


@pytest.mark.parametrize("by_s", [-600, 30, 3_600, 9 * 86_400])
def test_clock_off_before_the_first_write_is_a_finding(by_s: int, server: RedisServer) -> None:
    server.clock.shift(by_s)
    with server.client() as client:
        with_sessions(client, short=0)
        for number in range(30):
            client.get(f"chat:{number}")
    assert len(only(audit(server.url, expect={"chat:*": "7d"}, duty=1), "clock_skew")) == 1


def test_client_deadlines_are_off_by_the_clock_skew(server: RedisServer) -> None:
    server.clock.shift("10m")
    with server.client() as client:
        for number in range(60):
            client.set(f"chat:{number}", "{}")
            client.expireat(f"chat:{number}", round(time.time()) + 3_600)
        report = audit(server.url, expect={"chat:*": "1h"}, duty=1)
    found = report.findings[0]
    assert (found.cause, found.prefix, found.keys, found.confidence) == ("clock_skew", "chat:", 60, "likely")
    assert found.expected_ttl_s == 3_600
    assert found.observed_ttl_s == pytest.approx(3_000, abs=60)


def test_short_ttl_that_resembles_the_skew_is_short(server: RedisServer) -> None:
    server.clock.shift("10m")
    with server.client() as client:
        for number in range(60):
            client.set(f"chat:{number}", "{}")
            client.expireat(f"chat:{number}", round(time.time()) + 2_000)
        report = audit(server.url, expect={"chat:*": "1h"}, duty=1)
    assert [one.observed_ttl_s for one in only(report, "ttl_too_short")] == [pytest.approx(1_400, abs=60)]  # type: ignore[attr-defined]


# -- deleted -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "name", "note"),
    [
        (300, "chat:{}", ""),
        (20_000, "chat:{}", "far more than there are sessions"),
        (300, "checkpoint:{}:", "LangGraph's shallow savers"),
    ],
)
def test_deletions_that_are_counted_alone(calls: int, name: str, note: str) -> None:
    info = {"cmdstat_del": f"calls={calls},usec={calls}", "rdb_saves": "1", "rdb_last_save_time": "5"}
    facts = ServerFacts(info, {}, now_ms=9 * WEEK_S * 1000)
    keys = [KeyFacts(name.format(n).encode(), "hash", facts.now_ms, None, facts.now_ms, None) for n in range(60)]
    expected = parse_expectation(f"{name.partition(':')[0]}:*=7d")
    context = context_of(facts, keys)
    found, notes = deleted_finding([facts], [expected], [], context, looked=0, of=60, sessions=60)
    assert [one.confidence for one in found] == ([] if note else ["possible"])
    assert [note in one for one in notes] == ([True] if note else [])


@pytest.mark.parametrize(
    ("calls", "usec", "said"),
    [
        (1, 85, "some large values, or up to 850 keys"),
        (4, 200, "some large values, or up to 2,000 keys"),
        (300, 300, "up to 300 keys"),
    ],
)
def test_calls_that_may_have_deleted_many_keys(calls: int, usec: int, said: str) -> None:
    """One call that takes long names many keys, or one of them is a queue."""
    info = {"cmdstat_del": f"calls={calls},usec={usec}", "rdb_saves": "1", "rdb_last_save_time": "5"}
    facts = ServerFacts(info, {}, now_ms=9 * WEEK_S * 1000)
    keys = [KeyFacts(f"chat:{n}".encode(), "list", facts.now_ms, None, facts.now_ms, None) for n in range(60)]
    context = context_of(facts, keys)
    (found,), _ = deleted_finding([facts], [parse_expectation("chat:*=7d")], [], context, looked=0, of=60, sessions=60)
    assert found.message.startswith(f"{said} were deleted by command")


@pytest.mark.parametrize("command", ["DEL", "UNLINK"])
def test_the_slow_log_names_deleted_sessions(command: str, any_server: RedisServer) -> None:
    with any_server.client() as client:
        with_sessions(client, short=0)
        client.config_set("slowlog-log-slower-than", 0)
        deleted_at = time.time()
        client.execute_command(command, *(f"chat:{number}" for number in range(20)))
        client.config_set("slowlog-log-slower-than", -1)
        report = audit(any_server.url, expect={"chat:*": "7d"}, duty=1)
    found = report.findings[0]
    assert (found.cause, found.prefix, found.keys, found.confidence) == ("deleted", "chat:", 20, "proven")
    assert found.since
    assert (found.since.timestamp(), found.since_is) == (pytest.approx(deleted_at, abs=60), "upper bound")


def test_slow_log_entries_of_other_keys_are_no_finding(server: RedisServer) -> None:
    with server.client() as client:
        with_sessions(client, short=0)
        client.set("cache:1", "x")
        client.config_set("slowlog-log-slower-than", 0)
        client.delete("cache:1")
        client.select(1)
        client.flushdb()
        client.select(0)
        client.get("chat:1")
        client.config_set("slowlog-log-slower-than", -1)
        assert only(audit(server.url, expect={"chat:*": "7d"}, duty=1), "deleted") == []


def test_flush_of_another_database_is_no_deletion(server: RedisServer) -> None:
    with server.client() as client:
        with_sessions(client, short=0)
        client.config_set("slowlog-log-slower-than", 0)
        client.select(1)
        client.flushdb(asynchronous=True)
        client.select(0)
        client.config_set("slowlog-log-slower-than", -1)
        # ASYNC is no key, though the pattern matches it.
        assert only(audit(server.url, expect={"*": "7d"}, duty=1), "deleted") == []


def test_locks_released_by_scripts_are_no_deletion(server: RedisServer) -> None:
    with server.client() as client:
        with_sessions(client, short=0)
        for number in range(50):
            client.set(f"lock:{number}", "1", ex=30)
        release = client.register_script("return redis.call('DEL', KEYS[1])")
        for number in range(50):
            release(keys=[f"lock:{number}"])
        assert only(audit(server.url, expect={"chat:*": "7d"}, duty=1), "deleted") == []
        for number in range(50):
            client.set(f"lock:{number}", "1", ex=30)
            client.delete(f"lock:{number}")
        found = only(audit(server.url, expect={"chat:*": "7d"}, duty=1), "deleted")
        # The deleted keys were strings, as the sessions are.
        assert [one.confidence for one in found] == ["possible"]  # type: ignore[attr-defined]


def with_lists(server: RedisServer, client: redis.Redis, count: int = 100, over_s: float = 6 * 86_400) -> None:
    """Write sessions of a week at even distances of time, up to now."""
    start = server.clock.now()
    for number in range(count):
        server.clock.move_to(start + timedelta(seconds=over_s * (number + 1) / count))
        client.rpush(f"chat:{number}", "{}")
        client.expire(f"chat:{number}", WEEK_S)


def a_lock(client: redis.Redis, number: int) -> None:
    client.set(f"lock:{number % 7}", "me", nx=True, ex=30)
    client.delete(f"lock:{number % 7}")


def a_cache(client: redis.Redis, number: int) -> None:
    client.execute_command("SETEX", f"cache:{number}", 300, "x")
    client.unlink(f"cache:{number}")


def a_code(client: redis.Redis, number: int) -> None:
    client.set(f"otp:{number}", "x", ex=300)
    client.getdel(f"otp:{number}")


@pytest.mark.parametrize("over_s", [6 * 86_400, 9 * 86_400])
@pytest.mark.parametrize("come_and_go", [a_lock, a_cache, a_code])
def test_deleted_strings_are_no_deleted_sessions(
    come_and_go: Callable[[redis.Redis, int], None], over_s: float, server: RedisServer
) -> None:
    with server.client() as client:
        with_lists(server, client, over_s=over_s)
        for number in range(60):
            come_and_go(client, number)
        report = audit(server.url, expect={"chat:*": "7d"}, duty=1)
    assert only(report, "deleted") == []
    assert come_and_go is a_code or any("deleted by command" in note for note in report.notes)


@pytest.mark.parametrize("command", ["DEL", "UNLINK"])
def test_deleted_sessions_beside_caches_are_found(command: str, server: RedisServer) -> None:
    with server.client() as client:
        with_lists(server, client)
        for number in range(200):
            client.set(f"cache:{number}", "x", ex=60)
        server.clock.shift("2m")
        wait_for("100 keys", client.dbsize, lambda keys: keys == 100)
        for number in range(40):
            client.execute_command(command, f"chat:{number}")
        report = audit(server.url, expect={"chat:*": "7d"}, duty=1)
    assert [(one.keys, one.confidence) for one in only(report, "deleted")] == [(40, "possible")]  # type: ignore[attr-defined]


@pytest.mark.parametrize("beside", [True, False])
def test_deletions_of_short_lived_strings_are_noted(beside: bool, server: RedisServer) -> None:
    with server.client() as client:
        with_sessions(client, short=0)
        server.clock.shift("1d")
        for number in range(50):
            client.set(f"lock:{number}", "1", ex=30)
            client.delete(f"lock:{number}")
        if beside:
            client.set("lock:now", "1", ex=30)
        report = audit(server.url, expect={"chat:*": "7d"}, duty=1)
    assert len(only(report, "deleted")) == (0 if beside else 1)
    assert any("set and deleted as often" in note for note in report.notes) is beside


def test_who_deleted_during_the_audit_is_named(server: RedisServer) -> None:
    with server.client() as client, server.client() as cleaner:
        with_sessions(client, short=0)
        cleaner.client_setname("nightly-cleaner")
        cleaner.delete("cache:1")

        def clean(_done: int, _of: int) -> None:
            cleaner.delete(*(f"chat:{number}" for number in range(15)))

        report = audit(server.url, expect={"chat:*": "7d"}, duty=1, progress=clean)
    found = report.findings[0]
    assert (found.cause, found.keys, found.confidence) == ("deleted", 15, "proven")
    assert any("nightly-cleaner" in line for line in found.evidence)
