"""Pairs of worlds that one fact tells apart; without reading that fact, one of both is judged wrongly."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from servers import binary_of
from waiting import wait_for
from worlds import DAY, HOUR, Event, Traffic, false_alarms

from memkit.audit import audit
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
    binary_of(world.lane)  # skips if there is none
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


@pytest.mark.parametrize(("first_s", "found"), [(2 * DAY, True), (1.2 * DAY, False)])
def test_sessions_from_the_start_on_had_predecessors(first_s: float, found: bool, traffic: Traffic) -> None:
    """The server started empty two days ago; people wrote at once, or the application was new."""
    events = [one for age_s in traffic.times(0, first_s) for one in traffic.write(f"chat:{traffic.uid()}", age_s)]
    report = traffic.world(events, age_s=2 * DAY + 60).audited()
    assert ("restarted", "possible") in causes(report) or not found
    assert false_alarms(report) == []
    assert found or causes(report) == []
    # Only a cluster's findings begin with the name of the server.
    assert all(one.message.startswith("the server started") for one in report.findings)
    assert all("is its directory kept" in one.next for one in report.findings if one.cause == "restarted")


def test_locks_beside_sessions_that_expire(traffic: Traffic) -> None:
    """Strings are set and deleted; expired_keys counts the sessions that ended, and no string."""
    events = traffic.sessions() + [
        one for age_s in traffic.times(7.1 * DAY, 13 * DAY) for one in traffic.write(f"chat:{traffic.uid()}", age_s)
    ]
    for n, age_s in enumerate(traffic.times(0, 13 * DAY)):
        events += [(age_s, ("SET", f"lock:{n}", "1", "NX", "PX", 30_000)), (age_s, ("DEL", f"lock:{n}"))]
    report = traffic.world(events).audited()
    assert causes(report) == []


def test_release_that_drops_the_ttl_is_dated_by_writes(traffic: Traffic) -> None:
    """All sessions without a TTL were read a minute ago: their last accesses date nothing."""
    events = traffic.sessions(newest_s=2 * DAY, reads=0)
    for age_s in traffic.times(0, 2 * DAY):
        key = f"chat:{traffic.uid()}"
        events += [*traffic.write(key, age_s, ttl_s=None), traffic.read(key, 60.0)]
    report = traffic.world(events, steps=500).audited()
    (found,) = (one for one in report.findings if one.cause == "no_ttl")
    assert found.since
    assert timedelta(days=1.5) < report.at - found.since < timedelta(days=2.5)


@pytest.mark.parametrize("renewed_s", [WEEK, HOUR])
def test_second_look_at_sessions_that_are_renewed(renewed_s: float, traffic: Traffic) -> None:
    with traffic.world(traffic.sessions()).played() as server, server.client() as client:

        def renew(_done: int, _of: int) -> None:
            for key in client.scan_iter("chat:*"):
                client.expire(key, round(renewed_s))

        report = audit(server.url, expect={"chat:*": "7d"}, duty=1, watch_s=0.2, progress=renew)
    assert any("60 of 60 keys" in note for note in report.notes)
    assert causes(report) == ([] if renewed_s == WEEK else [("ttl_too_short", "proven")])


@pytest.mark.parametrize("cut", ["answer", "message"])
def test_answers_that_look_like_json_are_no_damage(cut: str, traffic: Traffic) -> None:
    """A model was asked for JSON and stopped at its limit; beside texts that is one, beside JSON it is damage."""
    traffic.count = 30
    values = [traffic.text() if cut == "answer" else traffic.message() for _ in range(29)] + ['{"total": "12 EUR", "i']
    events = [
        (age_s, ("SET", f"chat:{traffic.uid()}", value, "PX", round(1000 * WEEK)))
        for age_s, value in zip(traffic.times(), values, strict=True)
    ]
    report = replace(traffic.world(events), full=True).audited()
    assert (("corrupt", "proven") in causes(report)) == (cut == "message")


def test_random_bytes_that_begin_like_gzip(traffic: Traffic) -> None:
    """Encrypted payloads without a header of their own: of 17 million, one begins like gzip."""
    events = []
    for n, age_s in enumerate(traffic.times()):
        value = (b"\x1f\x8b\x08\x00" if n == 7 else b"\xf1\x03") + traffic.dice.randbytes(200)
        events += [(age_s, ("SET", f"chat:{traffic.uid()}", value, "PX", round(1000 * WEEK)))]
    assert ("corrupt", "proven") not in causes(replace(traffic.world(events), full=True).audited())


@pytest.mark.parametrize("renews", [True, False])
@pytest.mark.parametrize("kind", ["stream", "zset"])
def test_entries_of_streams_and_zsets_date_writes(kind: str, renews: bool, traffic: Traffic) -> None:
    """The server dates the entries of a stream; applications score messages with the time."""
    now, events = datetime.now(UTC), []
    for age_s in traffic.times(0, 2 * DAY):
        key = f"chat:{traffic.uid()}"
        for n, at_s in enumerate((age_s + traffic.dice.uniform(DAY, 4.9 * DAY), age_s)):
            score = (now - timedelta(seconds=at_s)).timestamp()
            made = ("XADD", key, "*", "text", "hello") if kind == "stream" else ("ZADD", key, score, f"hello there {n}")
            events += [(at_s, made)]
            events += [(at_s, ("EXPIRE", key, round(WEEK)))] if renews or n == 0 else []
    report = replace(traffic.world(events, steps=500), full=True).audited()
    assert causes(report) == ([] if renews else [("not_refreshed", "proven")])


@pytest.mark.parametrize("renewed", [True, False])
def test_part_of_two_sessions_that_is_not_renewed(renewed: bool, traffic: Traffic) -> None:
    """A word is a part's name if it stands behind whole names of other keys, however few these are."""
    events = []
    for name in ("chat:17", "chat:18"):
        for n, age_s in enumerate((5 * DAY, 3 * DAY, HOUR)):
            events += traffic.write(name, age_s)
            events += traffic.write(f"{name}:meta", age_s, kind="hash") if renewed or n == 0 else []
    assert {cause for cause, _ in causes(traffic.world(events).audited())} == (set() if renewed else {"mixed_ttl"})


@pytest.mark.parametrize("copied", [True, False])
def test_young_server_and_what_was_left_elsewhere(copied: bool, traffic: Traffic) -> None:
    """The application rested for days and moved to a new server; or it gives sessions a shorter TTL there."""
    ages = traffic.times(0, 2.9 * DAY if copied else 2 * DAY)
    events = [
        written
        for age_s in ages
        for written in traffic.write(
            f"chat:{traffic.uid()}", 60.0 if copied else age_s, ttl_s=3 * DAY - age_s if copied else 2.1 * DAY
        )
    ]
    report = traffic.world(events, age_s=300.0 if copied else 2 * DAY + 60, steps=500).audited()
    sure = [cause for cause, confidence in causes(report) if cause == "ttl_too_short" and confidence != "possible"]
    assert sure == ([] if copied else ["ttl_too_short"])


@pytest.mark.parametrize("longer", [0, 2])
def test_two_sessions_with_a_longer_ttl_are_shown(longer: int, traffic: Traffic) -> None:
    """Nothing is expected. Two keys are too few for a TTL of their own."""
    events = [
        one for age_s in traffic.times(0, 290) for one in traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=300)
    ]
    events += [one for n in range(longer) for one in traffic.write(f"chat:{n}", 100.0, ttl_s=HOUR)]
    (shown,) = traffic.world(events, expect={}).audited().seen
    assert ("some have up to" in shown.message and "two TTLs under one prefix" in shown.message) == (longer > 0)


@pytest.mark.parametrize(("short", "status"), [(0, "healthy"), (900, "undetermined")])
def test_expired_keys_of_four_ttls(short: int, status: str, traffic: Traffic) -> None:
    """As many sessions expire in a TTL as exist; if far more did, some had a shorter one, though none exists now."""
    ages = [traffic.dice.uniform(0, 28 * DAY) for _ in range(200)]
    events = [one for age_s in ages for one in traffic.write(f"chat:{traffic.uid()}", age_s)]
    ages = [traffic.dice.uniform(8 * DAY, 28 * DAY) for _ in range(short)]
    events += [one for age_s in ages for one in traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=300)]
    assert traffic.world(events).audited().verdict.status == status


@pytest.mark.parametrize(("ended", "status"), [(1, "healthy"), (20, "undetermined")])
def test_sessions_that_ended_on_a_young_server(ended: int, status: str, traffic: Traffic) -> None:
    """One user has logged out, which sets a TTL of a millisecond; or a third of all sessions have expired in a day."""
    events = [one for age_s in traffic.times(0, 0.6 * DAY) for one in traffic.write(f"chat:{traffic.uid()}", age_s)]
    keys = sorted({command[1] for _, command in events})
    events += [(60.0, ("PEXPIRE", one, 1)) for one in keys[:ended]]
    events += [(5.0, ("EXISTS", *keys))]
    assert traffic.world(events, age_s=DAY).audited().verdict.status == status


def test_drafts_beside_sessions_that_were_all_read(traffic: Traffic) -> None:
    """No session shows a whole TTL any more; what is left of them shows that a draft's TTL is not theirs."""
    traffic.count = 12
    events = []
    for age_s in traffic.times(0.8 * DAY, 3 * DAY):
        key = f"chat:{traffic.uid()}"
        events += [*traffic.write(key, age_s), traffic.read(key, traffic.dice.uniform(0, 0.2 * DAY))]
    for age_s in traffic.times(0, 0.9 * HOUR):
        events += traffic.write(f"chat:draft:{traffic.uid()}", age_s, kind="string", ttl_s=HOUR)
    assert false_alarms(traffic.world(events, steps=500).audited()) == []
