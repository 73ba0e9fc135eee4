"""Pairs of worlds that one fact tells apart; without reading that fact, one of both is judged wrongly."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from servers import every_server
from waiting import wait_for
from worlds import DAY, HOUR, Event, Traffic, false_alarms

from memkit.audit.report import AuditReport
from memkit.server import RedisServer

WEEK = 7 * DAY


@pytest.fixture
def traffic() -> Traffic:
    return Traffic(random.Random(7), 60)


def causes(report: AuditReport) -> list[tuple[str, str]]:
    return [(one.cause, one.confidence) for one in report.findings]


def stated(traffic: Traffic, age_s: float, **more: object) -> str:
    """Return a session as JSON with one message that states when it was written, by a clock that may be wrong."""
    at = datetime.now(UTC) - timedelta(seconds=age_s)
    return json.dumps({"messages": [{"role": "user", "content": traffic.text(), "timestamp": at.isoformat()}], **more})


# -- what the server reports -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["rdb", "aof"])
def test_loaded_keys_are_older_than_their_server(of: str, traffic: Traffic) -> None:
    """Loaded keys have idle clocks that begin with the load: what is left of their TTLs looks like TTLs."""

    def restart(server: RedisServer) -> None:
        with server.client() as client:
            if of == "rdb":
                client.save()
            else:
                client.bgrewriteaof()
                wait_for(
                    "a file", lambda: client.info("persistence")["aof_last_rewrite_time_sec"], lambda one: one >= 0
                )
        server.restart()
        server.clock.shift("5m")

    events = [one for n in range(6) for one in traffic.write(f"chat:{n}", 4 * DAY)]
    world = replace(traffic.world(events, after=restart, stops_s=HOUR, config={"save": ""}), persist=of == "aof")
    world.lane = "redis-6.2" if of == "aof" else "redis-7.0"  # 6.2 does not report how many keys it has loaded
    if not every_server()[world.lane]:
        pytest.skip(f"no {world.lane} on this machine")
    assert causes(world.audited()) in ([], [("persistence_risk", "proven")])


@pytest.mark.parametrize("command", ["MGET", "TOUCH"])
def test_one_call_that_reads_all_is_no_write(command: str, traffic: Traffic) -> None:
    events = traffic.sessions(kind="string", reads=0)
    keys = sorted({written[1] for _, written in events})
    report = traffic.world([*events, (30.0, (command, *keys))]).audited()
    assert (report.verdict.status, report.findings) == ("healthy", ())


def test_few_deletions_are_no_finding(traffic: Traffic) -> None:
    events = traffic.sessions(kind="string")
    deleted: list[Event] = [(40.0, ("DEL", one)) for one in sorted({command[1] for _, command in events})[:8]]
    report = traffic.world([*events, *deleted]).audited()
    assert (report.verdict.status, report.findings) == ("healthy", ())


# -- what values show --------------------------------------------------------------------------------------------------


def test_text_in_a_binary_format_is_no_damage(traffic: Traffic) -> None:
    """Protocol Buffers: mostly text, with control characters before each field; no key holds JSON."""
    traffic.count = 30
    events = []
    for age_s in traffic.times():
        text = traffic.text().encode()
        value = b"\x0a\x04user\x12" + bytes([len(text)]) + text
        events += [(age_s, ("SET", f"chat:{traffic.uid()}", value, "PX", round(1000 * WEEK)))]
    report = replace(traffic.world(events), full=True).audited()
    assert [one for one in report.findings if one.cause == "corrupt"] == []


def test_appointments_are_no_times_of_writing(traffic: Traffic) -> None:
    traffic.count = 30
    events = []
    for age_s in traffic.times(5.5 * DAY):
        visit = (datetime.now(UTC) - timedelta(seconds=age_s - 5 * DAY)).isoformat()
        value = stated(traffic, age_s, entries=[{"title": "dentist", "timestamp": visit}])
        events += traffic.write(f"chat:{traffic.uid()}", age_s, kind="string", value=value)
    assert false_alarms(replace(traffic.world(events), full=True).audited()) == []


@pytest.mark.parametrize("ahead_s", [0.0, 2 * HOUR])
def test_clock_of_a_writer_is_no_missing_renewal(ahead_s: float, traffic: Traffic) -> None:
    """A local time that is stated as UTC is two hours ahead, and the TTL is three."""
    traffic = replace(traffic, ttl_s=3 * HOUR, count=30)
    events = []
    for age_s in traffic.times(2.1 * HOUR):
        value = stated(traffic, age_s - ahead_s)
        events += traffic.write(f"chat:{traffic.uid()}", age_s, kind="string", value=value)
    report = replace(traffic.world(events, steps=5_000), full=True).audited()
    assert causes(report) == []
    assert any("another clock or a time zone" in note for note in report.notes) == (ahead_s > 0)


def test_words_that_some_sessions_are_named_after(traffic: Traffic) -> None:
    """Sessions of three languages, and a set of all languages: it lists no sessions that have ended."""
    events = [one for name in ("en", "de", "fr") for one in traffic.write(f"chat:{name}", 100.0)]
    events += [(50.0, ("SADD", "languages", "en", "de", "fr", "it", "es", "pt", "nl"))]
    assert causes(replace(traffic.world(events), full=True).audited()) == []
