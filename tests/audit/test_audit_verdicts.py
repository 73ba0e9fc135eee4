"""Each cause is named with its numbers, and the same traffic without the fault raises no alarm."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from servers import NO_FSYNC, binary_of
from waiting import nothing, wait_for
from worlds import DAY, HOUR, MINUTE, Event, Traffic, false_alarms, written

from memkit.audit import Finding, audit
from memkit.audit.checks.payloads import CHECKS
from memkit.audit.checks.ttl_inference import HOUR_MS, MINUTE_MS, TtlAnomaly
from memkit.audit.report import AuditReport
from memkit.policy import ttl_ms
from memkit.server import RedisServer, free_port

WEEK = 7 * DAY
PRIMARY = {"repl-diskless-sync-delay": 0, **NO_FSYNC}
"""A replica gets its copy at once, instead of after five seconds."""


@pytest.fixture
def traffic() -> Traffic:
    return Traffic(random.Random(7), 60)


def of(report: AuditReport, cause: str) -> Finding:
    found = [one for one in report.findings if one.cause == cause]
    assert len(found) == 1, (cause, report.verdict, report.findings)
    return found[0]


def text_of(report: AuditReport) -> str:
    return f"{report.to_text()} {' '.join(report.notes)}"


# -- the server --------------------------------------------------------------------------------------------------------


def test_writes_refused_for_lack_of_memory(traffic: Traffic) -> None:
    def fill(server: RedisServer) -> None:
        with server.client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] - 100_000)
            for n in range(30):
                with pytest.raises(Exception, match="maxmemory"):
                    client.set(f"chat:{n}", "x", ex=60)

    found = of(traffic.world(traffic.sessions(), after=fill).audited(), "out_of_memory")
    assert (found.severity, found.confidence) == ("critical", "proven")
    assert "30" in found.evidence[0]


def fail_to_save(server: RedisServer) -> None:
    with server.client() as client:
        directory, name = (client.config_get(one)[one] for one in ("dir", "dbfilename"))
        Path(directory, name).mkdir()
        client.config_set("save", "3600 1")
        client.bgsave()
        wait_for("the save fails", lambda: client.info()["rdb_last_bgsave_status"] == "err")
        for n in range(30):
            with pytest.raises(Exception, match="RDB snapshot"):
                client.set(f"chat:{n}", "x", ex=60)


def test_writes_refused_while_saving_fails(traffic: Traffic) -> None:
    found = of(traffic.world(traffic.sessions(), after=fail_to_save).audited(), "writes_refused")
    assert (found.severity, found.confidence) == ("critical", "proven")
    assert "30 writes" in found.message
    assert "errors of all commands: MISCONF 30" in found.message
    assert found.evidence[0].endswith("failed or rejected: set 30")


@pytest.mark.parametrize(("setting", "value"), [("stop-writes-on-bgsave-error", "no"), ("save", "")])
def test_writes_accepted_although_saving_fails(setting: str, value: str, traffic: Traffic) -> None:
    """What the first answers to the error advise (redis #2146)."""

    def fail(server: RedisServer) -> None:
        fail_to_save(server)
        with server.client() as client:
            client.config_set(setting, value)
            client.set("chat:1", "x", ex=round(WEEK))

    report = traffic.world(traffic.sessions(), after=fail, config={"appendonly": "no"}).audited()
    found = of(report, "writes_refused")
    assert (found.severity, found.confidence) == ("warning", "possible")
    assert "refuses every write" not in found.message
    assert of(report, "persistence_risk").confidence == "proven"


def test_writes_to_a_replica_name_the_primary(traffic: Traffic) -> None:
    """Clients go on writing to the primary of before a failover (Azure aspnet-redis-providers #130)."""
    with (
        RedisServer(port=free_port(), config=PRIMARY) as primary,
        RedisServer(config={**PRIMARY, "replicaof": f"127.0.0.1 {primary.port}"}) as replica,
        replica.client() as client,
    ):
        wait_for("a copy", lambda: client.info("replication")["master_link_status"], "up".__eq__)
        for n in range(30):
            with pytest.raises(Exception, match="read only"):
                client.set(f"chat:{n}", traffic.message(), ex=60)
        found = of(audit(replica.url, expect={"chat:*": WEEK}, duty=1), "writes_refused")
    assert "write to the primary" in found.next


@pytest.mark.parametrize("ttl_s", [0, -1_702_967_296])
def test_failed_commands_wrote_no_value(ttl_s: int, traffic: Traffic) -> None:
    """``timedelta(days=7).seconds`` is 0, and 30 days in milliseconds overflow an ``int``."""
    events: list[Event] = [(HOUR, ("SET", f"chat:{n}", "x", "EX", ttl_s)) for n in range(30)]
    report = traffic.world(events, age_s=DAY).audited()
    assert "wrote values" not in text_of(report)
    assert "0 writes succeeded; failed or rejected: set 30" in of(report, "writes_refused").evidence[0]


@pytest.mark.parametrize(("errors", "cause"), [(30, "writes_refused"), (2, None)])
def test_writes_that_failed_are_counted(errors: int, cause: str | None, traffic: Traffic) -> None:
    """A failover refuses a few; a setting that is no number makes every SET fail."""
    events: list[Event] = [(HOUR, ("SET", "chat:1", "x", "EX", "NaN"))] * errors
    report = traffic.world([*traffic.sessions(), *events]).audited()
    assert [one.cause for one in report.findings] == ([cause] if cause else [])
    assert false_alarms(report) == []
    assert f"{errors} writes failed or were refused" in text_of(report)


def test_keys_removed_to_replicate_another_server(traffic: Traffic) -> None:
    def replicate(server: RedisServer) -> None:
        with RedisServer(port=free_port(), config=PRIMARY) as other, server.client() as client:
            port = other.client().connection_pool.connection_kwargs["port"]
            client.replicaof("127.0.0.1", port)
            wait_for("a copy", lambda: client.info()["master_link_status"] == "up")
            client.replicaof("NO", "ONE")
            for n in range(60):
                server.clock.shift("1m")
                client.set(f"chat:{n}", traffic.message(), px=round(1000 * WEEK))

    found = of(traffic.world(traffic.sessions(), after=replicate, stops_s=HOUR).audited(), "flushed")
    assert "REPLICAOF may have removed all keys" in found.message


def test_failover_removes_no_keys(traffic: Traffic) -> None:
    """All sessions are young, because they are renewed every hour; the replica is promoted in between."""
    with (
        RedisServer(port=free_port(), config=PRIMARY) as primary,
        RedisServer(persist=True, config=NO_FSYNC) as server,
        primary.client() as writer,
        server.client() as client,
    ):
        for one in primary, server:
            one.clock.shift("-6d")
            one.restart()
        client.replicaof("127.0.0.1", primary.port)
        wait_for("a copy", lambda: client.info("replication")["master_link_status"], "up".__eq__)
        for n in range(60):
            writer.set(f"chat:{n}", traffic.message(), ex=round(WEEK))
        wait_for("the last session", lambda: client.exists("chat:59"), bool)
        client.replicaof("NO", "ONE")
        server.clock.shift("6d")
        # After an hour without a replica, a server forgets that it was one.
        wait_for("the end of the backlog", lambda: client.info("replication")["second_repl_offset"], (-1).__eq__)
        for n in range(60):
            client.set(f"chat:{n}", traffic.message(), ex=round(WEEK))
        report = audit(server.url, expect={"chat:*": WEEK}, duty=1)
        client.config_set("slowlog-log-slower-than", 0)
        for n in range(20):
            client.delete(f"chat:{n}")
        deleted = audit(server.url, expect={"chat:*": WEEK}, duty=1)
    assert (report.verdict.status, report.findings) == ("healthy", ())
    assert "the writes that had not reached it are lost" in text_of(report).replace("\n  ", " ")
    assert of(deleted, "deleted").confidence == "likely"  # it may have logged them as a replica


def test_replica_counts_no_expiry_and_has_no_limit(traffic: Traffic) -> None:
    """It executes a DEL for each key that expires on the primary, and ignores maxmemory."""
    config = {"repl-timeout": 10**6, **PRIMARY}
    with (
        RedisServer(port=free_port(), config=config) as primary,
        RedisServer(config=config | {"replicaof": f"127.0.0.1 {primary.port}"}) as replica,
        primary.client() as client,
        replica.client() as reader,
    ):
        wait_for("a copy", lambda: reader.info("replication")["master_link_status"], "up".__eq__)
        reader.config_set("slowlog-log-slower-than", 0)
        for ahead in "-2h", "2h":
            for server in primary, replica:
                server.clock.shift(ahead)
            wait_for("no key", reader.dbsize, (0).__eq__)
            for n in range(60):
                client.set(f"chat:{n}", traffic.message(), ex=round(HOUR))
            wait_for("the sessions", reader.dbsize, (60).__eq__)
        reader.config_set("maxmemory", reader.info("memory")["used_memory"] - 50_000)
        report = audit(replica.url, expect={"chat:*": HOUR}, duty=1)
    assert (report.verdict.status, report.findings) == ("healthy", ())
    assert "a replica counts those that expired on its primary, too" in text_of(report)
    assert (report.counters["expired_keys"], report.counters["evicted_keys"]) == (None, None)


def test_keys_of_another_server_are_not_healthy(traffic: Traffic) -> None:
    def read_on(server: RedisServer) -> AuditReport:
        return audit(primary.url, expect={"chat:*": WEEK}, replica=server.url, duty=1)

    with (
        RedisServer(port=free_port(), persist=True, config=PRIMARY) as primary,
        RedisServer(config=NO_FSYNC | {"replicaof": f"127.0.0.1 {primary.port}"}) as replica,
        RedisServer(persist=True, config=NO_FSYNC) as another,
        primary.client() as client,
        replica.client() as reader,
        another.client() as other,
    ):
        wait_for("a copy", lambda: reader.info("replication")["master_link_status"], "up".__eq__)
        for one in client, other:
            for n in range(60):
                one.set(f"chat:{n}", traffic.message(), ex=round(WEEK))
        wait_for("the sessions", reader.dbsize, (60).__eq__)
        assert read_on(replica).verdict.status == "healthy"
        assert read_on(another).verdict.status == "undetermined"
        assert "does not replicate" in read_on(another).verdict.sentence
        reader.replicaof("127.0.0.1", 1)
        assert of(read_on(replica), "replica_stale").confidence == "proven"


@pytest.mark.parametrize(("ahead", "read_only"), [("1h", "yes"), ("0s", "no")])
def test_sessions_on_a_replica_with_its_own_clock(ahead: str, read_only: str, traffic: Traffic) -> None:
    config = PRIMARY | {"replica-read-only": read_only}
    with (
        RedisServer(port=free_port(), config=PRIMARY) as primary,
        RedisServer(config=config | {"replicaof": f"127.0.0.1 {primary.port}"}) as replica,
        primary.client() as client,
        replica.client() as reader,
    ):
        replica.clock.shift(ahead)
        client.mset({f"chat:{n}": traffic.message() for n in range(30)})
        for n in range(30):
            client.expire(f"chat:{n}", 1_800)
        wait_for("the sessions", lambda: reader.info("keyspace").get("db0", {}).get("expires", 0), (30).__eq__)
        report = audit(replica.url, expect={"chat:*": "30m"}, duty=1)
    assert report.verdict.status == ("no_data" if ahead == "1h" else "healthy")
    assert ("past their deadline by its clock" in report.verdict.sentence) == (ahead == "1h")
    assert any("what clients write here is lost" in one for one in report.notes) == (read_only == "no")


def test_keys_copied_from_the_primary_are_healthy(traffic: Traffic) -> None:
    world = traffic.world(traffic.sessions(), port=free_port(), config=PRIMARY)
    with world.played() as primary, RedisServer(config=NO_FSYNC, persist=True) as server, server.client() as client:
        client.replicaof("127.0.0.1", primary.client().connection_pool.connection_kwargs["port"])
        wait_for("a copy", lambda: client.info()["master_link_status"] == "up")
        client.replicaof("NO", "ONE")
        assert audit(server.url, expect={"chat:*": WEEK}, duty=1).findings == ()


@pytest.mark.parametrize(("ttl_s", "status"), [(WEEK, "healthy"), (HOUR, "undetermined")])
def test_copy_from_a_primary_is_no_access(ttl_s: float, status: str, traffic: Traffic) -> None:
    """A server that is started, and replicates an hour later: what it copies was not accessed then."""
    config = PRIMARY | {"repl-timeout": 10**6}
    world = traffic.world(traffic.sessions(), port=free_port(), config=config)
    with world.played() as primary, RedisServer(config=NO_FSYNC | config, persist=True) as server:
        server.clock.shift("-3h")
        server.restart()
        server.clock.shift("2h")
        primary.clock.shift("-1h")
        with server.client() as client:
            client.replicaof("127.0.0.1", primary.client().connection_pool.connection_kwargs["port"])
            wait_for("a copy", lambda: client.info()["master_link_status"], "up".__eq__)
            client.replicaof("NO", "ONE")
            for one in primary, server:
                one.clock.shift("1h")
            for n in range(30 if ttl_s == HOUR else 0):
                client.set(f"chat:new{n}", traffic.message(), ex=round(ttl_s))
            report = audit(server.url, expect={"chat:*": WEEK}, duty=1)
    assert report.verdict.status == status, report.verdict.sentence


@pytest.mark.parametrize("command", ["FLUSHDB", "FLUSHALL", "SWAPDB 0 1"])
def test_flush_is_named_with_a_bound(command: str, traffic: Traffic) -> None:
    events = [*traffic.sessions(newest_s=2 * HOUR), (2 * HOUR, (*command.split(),))]
    later = [one for age_s in traffic.times(60, 1.9 * HOUR) for one in traffic.write(f"chat:{traffic.uid()}", age_s)]
    report = traffic.world(events + later).audited()
    found = of(report, "flushed")
    assert (found.confidence, found.since_is) == ("possible", "upper bound")
    assert command.split()[0] in found.message
    assert ("moved all keys to another database" in found.next) == command.startswith("SWAPDB")
    assert found.since
    assert timedelta(hours=1.5) < report.at - found.since < timedelta(hours=2.1)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("flushed", [True, False])
def test_short_lived_keys_beside_sessions_date_nothing(flushed: bool, full: bool, traffic: Traffic) -> None:
    """Buckets of a rate limit under the sessions' prefix: their deadlines are near, and they state the time."""
    events = traffic.sessions(newest_s=2 * HOUR)
    for age_s in traffic.times(60, 1.9 * HOUR):
        events += traffic.write(f"chat:{traffic.uid()}", age_s)
    for age_s in traffic.times(0, 59):
        key = f"chat:bucket:{traffic.uid()}"
        events += [(age_s, ("HSET", key, "n", 9, "ts", round(written(age_s)))), (age_s, ("EXPIRE", key, 60))]
    if flushed:
        events.append((2 * HOUR, ("FLUSHDB",)))
    report = traffic.world(events, full=full).audited()
    assert [one.cause for one in report.findings] == (["flushed"] if flushed else [])


@pytest.mark.parametrize(("command", "database", "ago_s"), [("FLUSHALL", 0, 5 * HOUR), ("FLUSHDB", 1, 20 * MINUTE)])
def test_flush_in_the_slow_log_that_ended_no_session(
    command: str, database: int, ago_s: float, traffic: Traffic
) -> None:
    """All sessions ended by their TTL since, or the flush was of a cache in another database."""
    ttl_s = 30 * MINUTE
    sessions = [one for age_s in traffic.times(0, 18 * MINUTE) for one in traffic.write("chat:1", age_s, ttl_s=ttl_s)]
    log: list[Event] = [(ago_s, ("CONFIG", "SET", "slowlog-log-slower-than", usec)) for usec in (0, 10_000)]
    log.insert(1, (ago_s, (command,)))
    caches: list[Event] = [(ago_s, ("SET", "cache", 1))] if database else []
    flush = [(ago_s, ("SELECT", database)), *log, *caches, (ago_s, ("SELECT", 0))]
    report = traffic.world([*flush, *sessions], expect={"chat:*": ttl_s}, age_s=9 * HOUR).audited()
    assert false_alarms(report) == []


def test_expired_keys_dropped_at_load_of_an_old_file(traffic: Traffic) -> None:
    def load(server: RedisServer) -> None:
        with server.client() as client:
            wait_for("no save under way", lambda: client.info("persistence")["rdb_bgsave_in_progress"], nothing)
            client.save()
        now = server.clock.now() + timedelta(days=10)
        server.clock.move_to(now - timedelta(minutes=30))
        server.restart()
        server.clock.move_to(now)

    events = [(age_s + 10 * DAY, command) for age_s, command in traffic.sessions(reads=0)]
    events += [(11 * DAY, ("SET", f"profile:{n}", "{}", "EX", round(90 * DAY))) for n in range(10)]
    world = traffic.world(events, persist=False, config={"save": "3600 1"}, after=load, stops_s=10 * DAY)
    world.expect = {"chat:*": "7d", "profile:*": "90d"}
    found = of(world.audited(), "restarted")
    assert (found.severity, found.confidence, found.since_is) == ("warning", "possible", "exact")
    assert "rdb_last_load_keys_expired" in found.evidence[0]


@pytest.mark.parametrize("lane", ["redis-6.2", "redis-7.0"])
def test_file_that_lacks_the_last_hours_is_reported(lane: str, traffic: Traffic) -> None:
    """The server loads a file that is 30 hours old; sessions are written before and after that."""
    binary_of(lane)  # skips if there is none

    def restart(server: RedisServer) -> None:
        with server.client() as client:
            client.save()
            for _ in range(20):
                client.set(f"chat:{traffic.uid()}", "{}", ex=round(WEEK))
        server.clock.shift("28h")
        server.restart()
        server.clock.shift("2h")
        with server.client() as client:
            client.set(f"chat:{traffic.uid()}", "{}", ex=round(WEEK))

    traffic = replace(traffic, count=300)
    sessions = traffic.sessions(newest_s=30 * HOUR, kind="string")
    world = replace(traffic.world(sessions, after=restart, stops_s=30 * HOUR, config={"save": ""}), persist=False)
    world.lane = lane
    found = of(world.audited(), "restarted")
    assert (found.confidence, found.since_is) == ("possible", "exact")
    assert "and has no session of the 1d 4h before" in found.message


def test_start_is_noted_without_expectations() -> None:
    with RedisServer() as server, server.client() as client:
        client.set("chat:1", "x", ex=60)
        assert "the server started" in text_of(audit(server.url, duty=1))


def test_replica_that_lost_its_primary() -> None:
    with RedisServer(persist=True, config={"replicaof": "127.0.0.1 1", **NO_FSYNC}) as server:
        report = audit(server.url, expect={"chat:*": "7d"}, duty=1)
    assert of(report, "replica_stale").evidence == ("master_link_status down",)


def test_sessions_in_another_database_are_noted() -> None:
    with RedisServer(persist=True, config=NO_FSYNC) as server:
        with server.client() as client:
            client.select(2)
            client.set("chat:1", "{}", ex=60)
        report = audit(server.url, expect={"chat:*": "7d"}, duty=1)
    assert (report.verdict.status, report.exit_code) == ("no_data", 2)
    assert any("db2 (1)" in note for note in report.notes)
    assert any("it loaded no keys" in note for note in report.notes)


def test_empty_pattern_reports_what_expired(traffic: Traffic) -> None:
    events = [
        one for age_s in traffic.times(120, HOUR) for one in traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=24)
    ]
    report = traffic.world(events, expect={"chat:*": "24h"}).audited()
    assert report.verdict.status == "no_data"
    assert "60 keys expired on this server" in report.verdict.sentence


def test_typo_names_the_nearest_pattern(traffic: Traffic) -> None:
    report = traffic.world(traffic.sessions(ttl_s=DAY), expect={"dialogue:*": "7d"}).audited()
    assert (report.verdict.status, report.exit_code) == ("no_data", 2)
    assert "nearest existing: chat:* (" in report.verdict.sentence


# -- TTLs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ttl_s", "status"), [(300, "findings"), (HOUR, "undetermined"), (WEEK, "healthy")])
def test_one_session_is_judged_by_probability(ttl_s: float, status: str, traffic: Traffic) -> None:
    report = traffic.world(traffic.write("chat:1", 10.0, ttl_s=ttl_s)).audited()
    assert report.verdict.status == status
    assert report.exit_code == {"findings": 1, "undetermined": 2, "healthy": 0}[status]
    if status == "findings":
        assert (report.findings[0].cause, report.findings[0].confidence) == ("ttl_too_short", "likely")


def test_file_without_idle_times_gives_a_bound(traffic: Traffic) -> None:
    with traffic.world(traffic.sessions(ttl_s=30 * DAY)).played() as server, server.client() as client:
        client.save()
        report = audit(f"{client.config_get('dir')['dir']}/dump.rdb", expect={"chat:*": "7d"})
    found = of(report, "ttl_too_long")
    assert (found.confidence, found.since) == ("proven", None)
    assert "or more instead of 7d" in found.message


def test_keys_written_once_are_not_unrenewed(traffic: Traffic) -> None:
    ages = [(age_s, round(traffic.dice.uniform(1, traffic.ttl_s))) for age_s in traffic.times(0, HOUR)]
    events = [(age_s, ("SET", f"chat:{traffic.uid()}", "{}", "EX", round(HOUR) + ttl_s)) for age_s, ttl_s in ages]
    report = traffic.world(events).audited()
    assert report.verdict.status == "undetermined", report.verdict.sentence
    assert "which reads and chance do not explain" in report.verdict.sentence


def test_a_risk_of_the_server_hides_no_suspicion(traffic: Traffic) -> None:
    # All keys were read a moment ago, so that their last accesses show nothing; five expire within five minutes.
    sessions = traffic.sessions(reads=0)
    for age_s in (60.0, 90.0, 140.0, 180.0, 230.0):
        sessions += traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=300)
    reads = [(0.0, ("LRANGE", command[1], 0, -1)) for _, command in sessions]
    report = replace(traffic.world(sessions + reads), persist=False).audited()
    assert report.verdict.cause == "persistence_risk"
    assert "which reads and chance do not explain" in report.notes[0]


@pytest.mark.parametrize(
    ("kind", "expected_ms", "observed_ms", "factor"),
    [
        ("short", 7 * 24 * HOUR_MS, 7 * HOUR_MS, 24),
        ("short", 24 * HOUR_MS, 24 * MINUTE_MS, 60),
        ("short", 24 * HOUR_MS, 24_000, 3_600),
        ("short", 30 * 24 * HOUR_MS, 30_000, 86_400),
        ("short", HOUR_MS, 3_600, 1_000),
        ("short", 24 * HOUR_MS, 24_970, 3_600),
        ("short", 7 * 24 * HOUR_MS, 7_990, 86_400),
        ("short", 24 * HOUR_MS, 26_000, None),
        ("long", HOUR_MS, 3_600_000 * 1_000_000, 1_000_000),
        ("long", HOUR_MS, 3_600_000 * 10_000_000, 10_000_000),
        ("long", HOUR_MS, 3_600_000 * 1_000_000_000, 1_000_000_000),
        ("short", 2 * HOUR_MS, 5 * MINUTE_MS, None),
        ("short", 7 * 24 * HOUR_MS, 5 * MINUTE_MS, None),
    ],
)
def test_unit_factor_of_a_ttl_in_a_wrong_unit(
    kind: Any, expected_ms: int, observed_ms: float, factor: int | None
) -> None:
    anomaly = TtlAnomaly(kind=kind, ttl_ms=observed_ms, keys=50, confidence="proven")
    exact_ms, text = anomaly.unit_mistake(expected_ms) or (None, "")
    assert exact_ms == (factor and (expected_ms * factor if kind == "long" else expected_ms / factor))
    assert f"a factor of exactly {factor:,}:" in text if factor else not text


def test_unix_time_given_as_a_ttl(traffic: Traffic) -> None:
    events = traffic.sessions(ttl_s=datetime.now(UTC).timestamp() + 8 * HOUR, reads=0)
    found = of(traffic.world(events, expect={"chat:*": "8h"}).audited(), "unit_mistake")
    assert "Unix time in seconds" in found.message


@pytest.mark.parametrize(
    ("expected", "off_s", "shown"),
    [
        ("7d", -2 * HOUR, "2 hours less"),
        ("7d", HOUR, "1 hour more"),
        ("1d", -5 * HOUR, "5 hours less"),
        ("1d", 8 * HOUR, "8 hours more"),
        ("1d", 5.5 * HOUR, "5h 30m more"),
    ],
)
def test_deadlines_off_by_a_time_zone(expected: str, off_s: float, shown: str) -> None:
    ttl_s = ttl_ms(expected) / 1000
    with RedisServer(persist=True, config=NO_FSYNC) as server, server.client() as client:
        end = server.clock.now()
        for n in range(30, 0, -1):
            server.clock.move_to(end - timedelta(seconds=n * ttl_s / 100))
            client.rpush(f"chat:{n}", "{}")
            client.expireat(f"chat:{n}", round(server.clock.now().timestamp() + ttl_s + off_s))
        server.clock.move_to(end)
        report = audit(server.url, expect={"chat:*": expected}, duty=1)
    found = of(report, "unit_mistake")
    assert f"exactly {shown}, as if a local time were taken for UTC" in found.message
    assert any("EXPIREAT or PEXPIREAT was called 30 times" in line for line in found.evidence)
    assert "UTC" in found.next


def test_whole_hours_by_expire_are_no_time_zone(traffic: Traffic) -> None:
    events = [
        one for age_s in traffic.times(0, 0.7 * DAY) for one in traffic.write(traffic.uid(), age_s, ttl_s=19 * HOUR)
    ]
    report = traffic.world(events, expect={"*": "1d"}).audited()
    assert [one.cause for one in report.findings] == ["ttl_too_short"]


def test_few_sessions_of_one_ttl_are_not_healthy(traffic: Traffic) -> None:
    traffic.count = 30
    events = traffic.sessions() + [
        one for age_s in (500.0, 2_000.0, 3_000.0) for one in traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=HOUR)
    ]
    assert traffic.world(events, steps=2_000).audited().verdict.status != "healthy"


@pytest.mark.parametrize("written", [0, 4])
def test_a_small_file_was_loaded_too(written: int, traffic: Traffic) -> None:
    """An append-only file of few sessions; all are of one batch, so that what is left is alike."""

    def restart(server: RedisServer) -> None:
        server.restart()
        with server.client() as client:
            for n in range(written):
                client.set(f"chat:new-{n}", "{}", ex=round(WEEK))
        server.clock.shift("1h")

    events = [one for n in range(6) for one in traffic.write(f"chat:{n}", 4 * DAY)]
    with traffic.world(events, after=restart, stops_s=HOUR).played() as server:
        for _ in range(2):  # the second audit has sent more than the file holds
            report = audit(server.url, expect={"chat:*": "7d"}, duty=1)
            assert report.findings == ()


def test_users_who_end_sessions_are_no_deletion(traffic: Traffic) -> None:
    traffic.count = 300
    with traffic.world(traffic.sessions()).played() as server, server.client() as client:
        keys = sorted(client.scan_iter("chat:*"))
        report = audit(server.url, expect={"chat:*": "7d"}, progress=lambda _done, _of: client.unlink(*keys[::100]))
    assert report.verdict.cause != "deleted" or of(report, "deleted").confidence == "possible"


def test_two_ttls_at_the_same_time(traffic: Traffic) -> None:
    events = traffic.sessions(reads=0)
    events += [
        one for age_s in traffic.times(0, 3_500) for one in traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=HOUR)
    ]
    events += [one for age_s in traffic.times(0, 3_500) for one in traffic.write(f"chat:{traffic.uid()}", age_s)]
    found = of(traffic.world(events).audited(), "two_ttls")
    assert found.observed_ttl_s == HOUR
    assert "--expect 'chat:*=1h|7d'" in found.next
    report = traffic.world(events, expect={"chat:*": ["1h", "7d"]}).audited()
    assert report.verdict.status == "healthy"


def test_narrowest_prefix_is_named(traffic: Traffic) -> None:
    events = traffic.sessions(shape="acme:{}") + traffic.sessions(shape="globex:{}")
    short = [
        one
        for age_s in traffic.times(0, 290)
        for one in traffic.write(f"chat:initech:{traffic.uid()}", age_s, ttl_s=300)
    ]
    found = of(traffic.world(events + short).audited(), "ttl_too_short")
    assert (found.prefix, found.observed_ttl_s) == ("chat:initech:", 300)


@pytest.mark.parametrize("expected_s", [60 * DAY, 365 * DAY])
def test_short_ttl_on_a_younger_server_is_no_restart(expected_s: float, traffic: Traffic) -> None:
    """The idle clock counts 194 days, more than the age of this server."""
    events = [
        one
        for age_s in traffic.times(0, 9 * DAY)
        for one in traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=10 * DAY)
    ]
    report = traffic.world(events, expect={"chat:*": expected_s}, age_s=40 * DAY, steps=1_000).audited()
    assert [(one.cause, one.confidence, one.observed_ttl_s) for one in report.findings] == [
        ("ttl_too_short", "proven", 10 * DAY)
    ]
    assert report.findings[0].since
    assert report.at - report.findings[0].since > timedelta(days=8)


def test_locks_named_after_sessions_are_no_alarm(traffic: Traffic) -> None:
    traffic = replace(traffic, ttl_s=24 * MINUTE)
    events = traffic.sessions(kind="string")
    for age_s in traffic.times(0, 28):
        key = f"chat:{traffic.uid()}"
        events += traffic.write(key, age_s, kind="string")
        events.append((age_s, ("SET", f"{key}_LOCK", "www1|17", "NX", "PX", 30_000)))
    assert false_alarms(traffic.world(events).audited()) == []


def test_persistent_keys_of_a_fault_that_ended(traffic: Traffic) -> None:
    events = [
        one
        for age_s in traffic.times(4 * DAY, 55 * DAY)
        for one in traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=None)
    ]
    events += [one for age_s in traffic.times(0, 4 * DAY) for one in traffic.write(f"chat:{traffic.uid()}", age_s)]
    report = traffic.world(events).audited()
    found = of(report, "no_ttl")
    assert (found.keys, found.since_is) == (60, "until")
    assert found.since
    assert timedelta(days=3) < report.at - found.since < timedelta(days=4.2)


def test_keys_with_and_without_ttl_at_random(traffic: Traffic) -> None:
    """Some without one are the oldest by chance."""
    ages = [*(DAY * age for age in (6.9, 6.85, 6.8, 6.75, 6.7, 6.65)), *replace(traffic, count=14).times(0, 6.4 * DAY)]
    events = [one for age_s in ages for one in traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=None)]
    for age_s in [6.45 * DAY, *replace(traffic, count=40).times(0, 6.4 * DAY)]:
        events += traffic.write(f"chat:{traffic.uid()}", age_s)
    found = of(traffic.world(events, steps=500).audited(), "no_ttl")
    assert (found.keys, found.since_is) == (20, "upper bound")


def test_refused_ttls_of_fields_are_counted(traffic: Traffic) -> None:
    """Redis refuses a deadline in milliseconds as seconds, and the fields stay."""
    in_ms = round(datetime.now(UTC).timestamp() + WEEK) * 1_000_000
    events: list[Event] = []
    for age_s in traffic.times(0, DAY):
        key = f"chat:{traffic.uid()}"
        events += [(age_s, ("HSET", key, "m", "x")), (age_s, ("HEXPIREAT", key, in_ms, "FIELDS", 1, "m"))]
    report = traffic.world(events, oldest_server=("redis-7.4", "valkey-9")).audited()
    assert "60 writes failed or were refused" in text_of(report)
    assert of(report, "writes_refused").evidence[0].endswith("failed or rejected: hexpireat 60")


@pytest.mark.parametrize("lost", [True, False])
def test_fields_that_lost_their_ttl(lost: bool, traffic: Traffic) -> None:
    events = []
    for age_s in traffic.times():
        key = f"chat:{traffic.uid()}"
        for n in range(2):
            events += [
                (age_s, ("HSET", key, f"m{n}", "x")),
                (age_s, ("HEXPIRE", key, round(WEEK), "FIELDS", 1, f"m{n}")),
            ]
        events += [(age_s, ("HSET", key, "m1", "edited"))] if lost else []
    report = traffic.world(events, oldest_server=("redis-7.4", "valkey-9")).audited()
    if lost:
        found = of(report, "no_ttl")
        assert "60 of 120 fields in 60 hashes have no TTL" in " ".join(found.evidence)
        assert "60 fields have none" in found.message
        assert "HPERSIST, HGETEX PERSIST" in found.next
    else:
        assert (report.verdict.status, report.findings) == ("healthy", ())


@pytest.mark.parametrize("beside", [False, True])
def test_job_that_renews_every_session(beside: bool, traffic: Traffic) -> None:
    caches = ((at, ("SET", f"cache:{traffic.uid()}", "x", "EX", 60)) for at in traffic.times(HOUR, 4 * WEEK))
    events: list[Event] = list(caches) if beside else []
    for age_s in traffic.times(HOUR, 4 * WEEK):
        events += traffic.write(key := f"chat:{traffic.uid()}", age_s)
        renewals = [age_s - n * 6 * DAY for n in range(1, 5)]
        events += [(at, ("EXPIRE", key, round(WEEK))) for at in renewals if at > HOUR]
        events.append((traffic.dice.uniform(0, HOUR), ("EXPIRE", key, round(WEEK))))
    found = of(traffic.world(events, age_s=5 * WEEK).audited(), "persistent_renewal")
    assert (found.severity, found.keys, found.confidence) == ("warning", 60, "possible" if beside else "likely")
    assert ("no key has expired" in found.message) != beside


@pytest.mark.parametrize("beside", [False, True])
def test_no_job_renews_the_first_sessions_ever(beside: bool, traffic: Traffic) -> None:
    events = [one for age_s in traffic.times(0, HOUR) for one in traffic.write(f"chat:{traffic.uid()}", age_s)]
    if beside:
        events += [(at, ("SET", f"cache:{traffic.uid()}", "x", "EX", 60)) for at in traffic.times(HOUR, 4 * WEEK)]
    report = traffic.world(events, age_s=5 * WEEK).audited()
    assert (false_alarms(report), report.findings) == ([], ())


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ("b'{}'", "b'"),
        ('"{}"', "quotes"),
        ("('{}',)", "quotes"),
        ("{{'thread_id': '{}'}}", "an object"),
        ('{{"id":"{}"}}', "an object"),
        ("Optional[{}]", "an object"),
        ("Some({})", "an object"),
        ("{}\n", "line end"),
        (" {}", "white space behind a separator"),
        (":{}", "doubled"),
        ("{{{}}}", "hash tag"),
        ("chat:{}", "chat:chat:*"),
        ("None:{}", "chat:None:*"),
    ],
)
@pytest.mark.parametrize("ttl", ["7d", None])
def test_new_shape_of_names(shape: str, shown: str, ttl: str | None, traffic: Traffic) -> None:
    given = {"reads": 0.0, "ttl_s": WEEK if ttl else None}
    events = traffic.sessions(newest_s=14 * HOUR, **given)
    later = [
        one
        for age_s in traffic.times(0, 13 * HOUR)
        for one in traffic.write("chat:" + shape.format(traffic.uid()), age_s, ttl_s=given["ttl_s"])
    ]
    found = of(traffic.world(events + later, expect={"chat:*": ttl}).audited(), "wrong_prefix")
    assert (found.keys, found.confidence, found.since_is) == (60, "likely", "lower bound")
    assert shown in found.message


@pytest.mark.parametrize(("prefix", "shown"), [("chat::", "doubled"), ("chats:", "to chats:* instead of chat:*")])
@pytest.mark.parametrize("newest_s", [0.0, 14 * HOUR])
def test_names_without_ttl_among_reads(prefix: str, shown: str, newest_s: float, traffic: Traffic) -> None:
    """Without a TTL, reads of the former sessions hide that no new one is written."""
    events = traffic.sessions(newest_s=newest_s, reads=0.0, ttl_s=None)
    keys = sorted({command[1] for _, command in events})
    events += [(traffic.dice.uniform(0, 14 * HOUR), ("LRANGE", key, 0, -1)) for key in keys[:10]]
    for age_s in traffic.times(0, 13 * HOUR if newest_s else None):
        events += traffic.write(prefix + traffic.uid(), age_s, ttl_s=None)
    report = traffic.world(events, expect={"chat:*": None}).audited()
    if not newest_s:
        assert report.findings == ()
        return
    found = of(report, "wrong_prefix")
    assert (found.keys, found.severity, found.confidence, found.since_is) == (60, "warning", "possible", "upper bound")
    assert shown in found.message
    assert "looks like a read" in found.evidence[-1]


@pytest.mark.parametrize("ttl", ["7d", None])
def test_other_shape_of_names_may_be_on_purpose(ttl: str | None, traffic: Traffic) -> None:
    given = {"reads": 0.0, "ttl_s": WEEK if ttl else None}
    events = traffic.sessions(newest_s=14 * HOUR, **given)
    for age_s in traffic.times(0, 13 * HOUR):
        events += traffic.write(f"chat:web:{traffic.uid()}", age_s, ttl_s=given["ttl_s"])
    found = of(traffic.world(events, expect={"chat:*": ttl}).audited(), "wrong_prefix")
    assert (found.severity, found.confidence) == ("warning", "possible")
    assert "chat:web:*" in found.message


VERSIONS = [
    lambda age_s: "v1" if age_s > 14 * HOUR else "v2",
    lambda age_s: "app:v1.4.2" if age_s > 14 * HOUR else "app:v1.5.0",
    lambda age_s: "r7" if age_s > 2 * DAY else "r8" if age_s > 14 * HOUR else "r9",
]
ROTATIONS = [
    lambda age_s: f"{datetime.now(UTC) - timedelta(seconds=age_s):%Y-%m-%d}",
    lambda age_s: f"{datetime.now(UTC) - timedelta(seconds=age_s - 5.5 * HOUR):%Y%m%d}",
    lambda age_s: f"w{datetime.now(UTC) - timedelta(seconds=age_s):%V}",
    lambda age_s: f"{(datetime.now(UTC).timestamp() - age_s) // DAY:.0f}",
    lambda age_s: f"b{41 - age_s // (9 * HOUR):.0f}",
    lambda age_s: f"t{age_s % 2:.0f}",
]


@pytest.mark.parametrize("word", VERSIONS)
@pytest.mark.parametrize("ttl", ["7d", None])
def test_a_version_in_names_since_a_release(word: Callable[[float], str], ttl: str | None, traffic: Traffic) -> None:
    ages = [*traffic.times(14.2 * HOUR, 6.5 * DAY), *traffic.times(0, 13.8 * HOUR)]
    names = [(age_s, f"chat:{word(age_s)}:{traffic.uid()}") for age_s in ages]
    events = [one for age_s, name in names for one in traffic.write(name, age_s, ttl_s=WEEK if ttl else None)]
    found = of(traffic.world(events, expect={"chat:*": ttl}).audited(), "wrong_prefix")
    assert (found.severity, found.confidence, found.since_is) == ("warning", "possible", "lower bound")
    assert f"(chat:{word(0)}:*)" in found.message


@pytest.mark.parametrize("word", ROTATIONS)
@pytest.mark.parametrize("ttl_s", [DAY, WEEK])
def test_dates_in_names_are_no_version(word: Callable[[float], str], ttl_s: float, traffic: Traffic) -> None:
    traffic = replace(traffic, ttl_s=ttl_s, count=120)
    events = [one for age_s in traffic.times() for one in traffic.write(f"chat:{word(age_s)}:{traffic.uid()}", age_s)]
    assert traffic.world(events).audited().verdict.status == "healthy"


def test_an_empty_part_of_names_is_on_purpose(traffic: Traffic) -> None:
    """LangGraph's savers leave the namespace of most checkpoints empty: ``chat:THREAD::STATE``."""
    events = traffic.sessions(newest_s=14 * HOUR, reads=0.0)
    for age_s in traffic.times(0, 13 * HOUR):
        events += traffic.write(f"chat:{traffic.uid()}::state", age_s)
    found = of(traffic.world(events).audited(), "wrong_prefix")
    assert (found.severity, found.confidence) == ("warning", "possible")
    assert "another shape (chat:*:*:state)" in found.message


def test_keys_of_a_user_beside_later_sessions(traffic: Traffic) -> None:
    """The names of the sessions hold those of the users: no session is written under another name."""
    users = [traffic.uid() for _ in range(60)]
    events = [one for user in users for one in traffic.write(f"chat:{user}", traffic.dice.uniform(DAY, 6 * DAY))]
    for age_s in traffic.times(0, 13 * HOUR):
        events += traffic.write(f"chat:{traffic.dice.choice(users)}:{traffic.uid()}", age_s)
    assert [one.cause for one in traffic.world(events).audited().findings] == []


def test_reads_renew_one_part_of_the_sessions(traffic: Traffic) -> None:
    """ShallowRedisSaver with refresh_on_read renews ``checkpoint:THREAD:``, and not the writes that led to it."""
    users = [traffic.uid() for _ in range(60)]
    events = []
    for user in users:
        age_s = traffic.dice.uniform(DAY, 6 * DAY)
        events += traffic.write(f"checkpoint_write:{user}:__empty__:{traffic.uid()}:0", age_s, kind="string")
        events += traffic.write(f"checkpoint:{user}:", traffic.dice.uniform(0, 13 * HOUR), kind="string")
    report = traffic.world(events, expect={"checkpoint*": "7d"}).audited()
    assert [one.cause for one in report.findings] == []


@pytest.mark.parametrize("ttl", ["7d", None])
def test_shapes_that_a_script_writes_in_turn(ttl: str | None, traffic: Traffic) -> None:
    ttl_s = WEEK if ttl else None
    events = []
    for shape, newest_s, oldest_s in (("chat:{}", 20, 28), ("chat:web:{}", 5, 12)):
        for age_s in traffic.times(newest_s, oldest_s):
            events += traffic.write(shape.format(traffic.uid()), age_s, ttl_s=ttl_s)
    report = traffic.world(events, expect={"chat:*": ttl}).audited()
    assert "wrong_prefix" not in {one.cause for one in report.findings}


@pytest.mark.parametrize("prefix", ["chat%3A", "prod:chat:"])
@pytest.mark.parametrize("ttl", ["7d", None])
def test_names_outside_the_pattern_since(prefix: str, ttl: str | None, traffic: Traffic) -> None:
    given = {"reads": 0.0, "ttl_s": WEEK if ttl else None}
    events = traffic.sessions(newest_s=14 * HOUR, **given)
    for age_s in traffic.times(0, 13 * HOUR):
        events += traffic.write(prefix + traffic.uid(), age_s, ttl_s=given["ttl_s"])
    found = of(traffic.world(events, expect={"chat:*": ttl}).audited(), "wrong_prefix")
    assert (found.keys, found.confidence, found.since_is) == (60, "likely", "lower bound")


@pytest.mark.parametrize("old_s", [0, 14 * HOUR])
def test_unlike_prefix_since_the_former_one_ended(old_s: float, traffic: Traffic) -> None:
    events = traffic.sessions(newest_s=old_s, reads=0.0)
    for age_s in traffic.times(0, 13 * HOUR):
        events += traffic.write(f":2:memory.cache{traffic.uid()}", age_s)
    report = traffic.world(events).audited()
    if old_s:
        found = of(report, "wrong_prefix")
        assert (found.keys, found.confidence, found.since_is) == (60, "possible", "lower bound")
        assert "to :2:memory.cache* instead of chat:*" in found.message
    else:
        assert report.verdict.status == "healthy"


@pytest.mark.parametrize("shape", ['{{"user":"{}","bot":"a"}}', "o'brien-{}", "user%3A{}", "https://example.org/{}",
                                   "{{'id': '{}'}}", "user({})", "Order: {}"])  # fmt: skip
def test_names_of_one_unusual_shape_are_healthy(shape: str, traffic: Traffic) -> None:
    assert traffic.world(traffic.sessions(shape=shape)).audited().verdict.status == "healthy"


def test_hash_tags_in_all_names_are_no_finding(traffic: Traffic) -> None:
    assert traffic.world(traffic.sessions(shape="{{{}}}")).audited().findings == ()


# -- second look -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "ttl_s", "confidence"),
    [
        ("", WEEK, "proven"),  # sessions: they had the expected TTL before
        ("draft:", 1_800.0, "possible"),  # another shape, which never had it
    ],
)
def test_second_look_measures_the_ttl_that_writes_give(
    part: str, ttl_s: float, confidence: str, traffic: Traffic
) -> None:
    keys = [f"chat:{part}{traffic.uid()}" for _ in range(8)]
    events = traffic.sessions()
    for key in keys:
        events += traffic.write(key, 60.0, ttl_s=ttl_s)
    with traffic.world(events).played() as server, server.client() as client:

        def renew(done: int, of: int) -> None:
            if done >= of:
                for key in keys:
                    client.expire(key, 1_800)

        report = audit(server.url, expect={"chat:*": "7d"}, duty=1, watch_s=0.2, progress=renew)
    assert any("8 to about 30m" in note for note in report.notes)
    found = {(one.prefix, one.confidence) for one in report.findings if one.cause == "ttl_too_short"}
    assert found == {(f"chat:{part}", confidence)}


def test_second_look_leaves_out_short_lived_keys(traffic: Traffic) -> None:
    buckets = [f"chat:bucket:{n}" for n in range(20)]
    events = traffic.sessions()
    for key in buckets:
        events += [(5.0, ("HSET", key, "n", 9)), (5.0, ("EXPIRE", key, 60))]
    with traffic.world(events).played() as server, server.client() as client:

        def renew(_done: int, _of: int) -> None:
            for key in buckets:
                client.expire(key, 60)

        report = audit(server.url, expect={"chat:*": "7d"}, duty=1, watch_s=0.2, progress=renew)
    assert (report.verdict.status, false_alarms(report)) == ("healthy", [])
    assert any("0 of 60 keys" in note for note in report.notes)


def test_two_patterns_of_one_prefix_are_both_reported(traffic: Traffic) -> None:
    events = []
    for age_s in traffic.times(0, 290):
        key = f"chat:{traffic.uid()}"
        events += traffic.write(key, age_s, ttl_s=HOUR) + traffic.write(f"{key}:summary", age_s, ttl_s=300)
    report = traffic.world(events, expect={"chat:*": WEEK, "chat:*:summary": DAY}).audited()
    short = {one.expected_ttl_s: one.observed_ttl_s for one in report.findings if one.cause == "ttl_too_short"}
    assert short == {WEEK: HOUR, DAY: 300}


@pytest.mark.parametrize("other", ["chat:guest:*", "chat:*:state"])
@pytest.mark.parametrize("first", [True, False])
def test_each_check_takes_the_narrowest_pattern(other: str, first: bool, traffic: Traffic) -> None:
    ttls = {other: HOUR, "chat:*": WEEK} if first else {"chat:*": WEEK, other: HOUR}
    events = []
    for pattern, ttl_s in ttls.items():
        for age_s in traffic.times(0, 0.97 * ttl_s):
            value, key = traffic.message(timestamp=written(age_s)), pattern.replace("*", traffic.uid())
            events += traffic.write(key, age_s, kind="string", ttl_s=ttl_s, value=value)
    report = traffic.world(events, expect=ttls, full=True).audited()
    assert (report.verdict.status, report.findings) == ("healthy", ())


# -- the report --------------------------------------------------------------------------------------------------------


def test_report_has_the_verdict_once_within_80_columns(traffic: Traffic) -> None:
    report = traffic.world(traffic.write("chat:1", 10.0, ttl_s=300)).audited()
    text = report.to_text()
    assert text.startswith("critical: ")
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    assert flat.count(report.verdict.sentence) == 1
    assert "s ago" in flat


def test_possible_is_never_critical() -> None:
    assert Finding("deleted", message="x", confidence="possible").severity == "warning"
    assert Finding("deleted", message="x", confidence="likely").severity == "critical"


def test_proven_needs_its_proof() -> None:
    with pytest.raises(ValueError, match="without the fact"):
        Finding("deleted", message="x", confidence="proven")


def changed(traffic: Traffic, *, ttl_s: float) -> list[Event]:
    """Return sessions of seven days until a day ago, and of another TTL since."""
    events = [one for age_s in traffic.times(DAY) for one in traffic.write(f"chat:{traffic.uid()}", age_s)]
    ages = [traffic.dice.uniform(0, ttl_s) for _ in range(40)]
    return events + [one for age_s in ages for one in traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=ttl_s)]


def test_changed_ttl_without_expectation_is_first(traffic: Traffic) -> None:
    report = traffic.world(changed(traffic, ttl_s=300), expect={}).audited()
    first = report.findings[0]
    assert (first.cause, first.severity, first.expected_ttl_s, first.observed_ttl_s) == (
        "two_ttls",
        "warning",
        None,
        300,
    )
    assert "keys matching chat:* got a TTL of 5m, the others 7d, since" in report.verdict.sentence
    assert (report.verdict.status, report.exit_code) == ("findings", 1)
    counts = report.affected
    assert counts
    assert counts["now"] == counts["within_5_min"] == first.keys


def test_two_ttls_in_steady_proportion_are_a_note(traffic: Traffic) -> None:
    events = traffic.sessions(reads=0) + replace(traffic, ttl_s=HOUR).sessions(reads=0)
    report = traffic.world(events, expect={}).audited()
    assert (report.findings, report.verdict.status) == ((), "undetermined")


def test_ttls_of_different_prefixes_are_no_finding(traffic: Traffic) -> None:
    codes = replace(traffic, prefix="otp:", ttl_s=300).sessions(kind="string")
    assert traffic.world(traffic.sessions() + codes, expect={}).audited().findings == ()


def test_affected_keys_are_counted_in_text_and_json(traffic: Traffic) -> None:
    report = traffic.world(changed(traffic, ttl_s=HOUR)).audited()
    counts = report.to_dict()["affected"]
    assert counts == report.affected
    assert 0 < counts["within_5_min"] < counts["now"] == report.findings[0].keys
    assert f"affected: {counts['now']} keys; {counts['within_5_min']} with up to 5 min left" in text_of(report)
    assert f"Affected: {counts['now']} keys" in report._repr_html_()


def test_healthy_report_counts_no_affected_keys(traffic: Traffic) -> None:
    report = traffic.world(traffic.sessions()).audited()
    assert (report.affected, report.to_dict()["affected"]) == (None, None)


@pytest.mark.parametrize("days", [2, 5])
def test_sessions_read_at_one_age_raise_no_alarm(days: int, traffic: Traffic) -> None:
    events = []
    for age_s in traffic.times():
        events += traffic.write(key := f"chat:{traffic.uid()}", age_s)
        events += [(age_s - days * DAY, ("LRANGE", key, 0, -1))] if age_s > days * DAY else []
    assert false_alarms(traffic.world(events).audited()) == []


def test_integers_of_sessions_are_no_parts_of_them(traffic: Traffic) -> None:
    events = traffic.sessions()
    for key in {command[1] for _, command in events}:
        events += [(5.0, ("INCR", f"{key}:count")), (5.0, ("EXPIRE", f"{key}:count", round(7 * DAY)))]
    report = traffic.world(events).audited()
    assert (report.findings, report.verdict.status) == ((), "healthy")


def test_one_session_encoded_twice_is_not_healthy(traffic: Traffic) -> None:
    value = json.dumps(traffic.message())
    report = traffic.world(traffic.write("chat:1", 60, kind="string", value=value), full=True).audited()
    assert report.verdict.status == "undetermined"
    assert "encoded twice" in report.verdict.sentence


def test_possible_wrong_prefix_is_a_warning(traffic: Traffic) -> None:
    report = traffic.world(traffic.sessions() + traffic.write("chat:'7'", 60)).audited()
    found = of(report, "wrong_prefix")
    assert (found.confidence, found.severity, report.exit_code) == ("possible", "warning", 1)


def test_suspected_prefix_beside_no_data_is_exit_2(traffic: Traffic) -> None:
    report = traffic.world(replace(traffic, prefix="chats:").sessions(), expect={"chat:*": "7d"}).audited()
    assert (of(report, "wrong_prefix").severity, report.verdict.status, report.exit_code) == ("warning", "no_data", 2)


def test_few_short_keys_of_another_shape_are_possible(traffic: Traffic) -> None:
    report = traffic.world(traffic.sessions() + traffic.write("chat:acme:17", 60, ttl_s=300)).audited()
    found = of(report, "ttl_too_short")
    assert (found.keys, found.confidence) == (1, "possible")


def test_note_names_every_check_that_needs_values(traffic: Traffic) -> None:
    note = next(one for one in traffic.world(traffic.sessions()).audited().notes if one.startswith("--full"))
    assert all(check in note for check in (*CHECKS, "stale indexes"))


@pytest.mark.parametrize("longer", [60, 150])
def test_two_ttls_without_expectation_are_not_healthy(longer: int, traffic: Traffic) -> None:
    others = replace(traffic, count=longer)
    events = traffic.sessions(reads=0) + others.sessions(reads=0, ttl_s=30 * DAY)
    report = traffic.world(events, expect={}).audited()
    assert (report.verdict.status, report.exit_code) == ("undetermined", 2)
    assert "two TTLs under one prefix" in text_of(report)
