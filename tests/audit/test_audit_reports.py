"""Faults that users have reported of session stores and caches, each beside traffic that looks nearly the same."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import redis
from worlds import DAY, HOUR, MINUTE, Event, Traffic, World, false_alarms, written

from memkit.audit import audit
from memkit.audit.report import AuditReport
from memkit.policy import ExpiryPolicy
from memkit.server import RedisServer


@pytest.fixture
def traffic() -> Traffic:
    return Traffic(random.Random(11), 60)


def causes(report: AuditReport) -> set[str]:
    return {one.cause for one in report.findings}


def java(text: str) -> bytes:
    return b"\xac\xed\x00\x05t" + len(text).to_bytes(2, "big") + text.encode()


# -- TTLs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl_ms", "said"),
    [
        (60 * 86_400_000 % 2**32, "5,184,000,000 milliseconds overflow a 32-bit integer, which leaves 889,032,704"),
        (2**31 - 1, "5,184,000,000 milliseconds are cut to a 32-bit integer, which leaves 2,147,483,647"),
        (10 * 86_400_000, None),
    ],
)
def test_milliseconds_over_32_bits(ttl_ms: int, said: str | None, traffic: Traffic) -> None:
    short = replace(traffic, ttl_s=ttl_ms / 1000).sessions(reads=0)
    (found,) = replace(traffic, ttl_s=60 * DAY).world(short).audited().findings
    assert found.cause == ("unit_mistake" if said else "ttl_too_short")
    assert found.observed_ttl_s == ttl_ms / 1000
    assert said in found.message if said else "32-bit" not in found.message


def unix_s(age_s: float) -> int:
    return round(datetime.now(UTC).timestamp() - age_s + 7 * DAY)


@pytest.mark.parametrize(
    ("deadline", "said"),
    [
        (lambda _: ("EX", 420), "by a factor of exactly 1,440: days taken for minutes"),
        (lambda age_s: ("EX", unix_s(age_s)), "a Unix time in seconds: a point in time was given as a duration"),
        (lambda age_s: ("PX", unix_s(age_s)), "a Unix time in seconds, taken for milliseconds: a point in time"),
        (lambda _: ("EX", 1_814_400), None),
        (lambda age_s: ("EXPIREAT", 1_000 * unix_s(age_s)), "Unix time in milliseconds: EXPIREAT takes seconds"),
        (lambda _: ("EXPIREAT", 253_402_300_799), None),
    ],
)
def test_ttl_that_is_a_time_or_in_minutes(
    deadline: Callable[[float], tuple[str, int]], said: str | None, traffic: Traffic
) -> None:
    events: list[Event] = []
    for age_s in traffic.times(1, 400):
        command, number = deadline(age_s)
        key, absolute = f"chat:{traffic.uid()}", command == "EXPIREAT"
        events.append((age_s, ("SET", key, "{}", *(() if absolute else (command, number)))))
        events += [(age_s, (command, key, number))] if absolute else []
    report = traffic.world(events, age_s=9 * DAY, steps=10_000).audited()
    (found,) = report.findings
    assert said in found.message if said else found.cause == "ttl_too_long"
    assert found.since
    assert (report.at - found.since).total_seconds() >= 380


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_expectation_that_may_be_wrong_itself(share: float, traffic: Traffic) -> None:
    """If no session has another TTL, there may be no release to roll back."""
    events: list[Event] = []
    for age_s in traffic.times(0, HOUR):
        usual = 0 if share == 1 else 2 * HOUR
        ttl_s = HOUR if traffic.dice.random() < share else 7 * DAY
        events += traffic.write(f"chat:{traffic.uid()}", age_s + (usual if ttl_s > HOUR else 0), ttl_s=ttl_s)
    (found,) = traffic.world(events, age_s=8 * DAY, steps=500).audited().findings
    assert found.observed_ttl_s == HOUR
    assert ("if this TTL is intended: --expect 'chat:*=1h'" in found.next) == (share == 1)


@pytest.mark.parametrize(("changed_s", "confidence"), [(4 * DAY, "possible"), (0.0, "likely")])
def test_days_that_span_a_change_to_summer_time(changed_s: float, confidence: str, traffic: Traffic) -> None:
    """Sessions from before the change are an hour shorter; of clients in two zones, every other one is."""
    now, events = datetime.now(UTC).timestamp(), list[Event]()
    for number, age_s in enumerate(traffic.times(0, 6.8 * DAY)):
        off_s = HOUR if (age_s > changed_s if changed_s else number % 2) else 0.0
        key, end_s = f"chat:{traffic.uid()}", round(now - age_s + 7 * DAY - off_s)
        events += [(age_s, ("RPUSH", key, "{}")), (age_s, ("EXPIREAT", key, end_s))]
    (found,) = traffic.world(events, steps=10_000).audited().findings
    assert (found.cause, found.confidence) == ("unit_mistake", confidence)
    assert "a change to or from summer time" in found.message


@pytest.mark.parametrize("reads", [0.3, 0.8])
def test_minutes_as_seconds_among_reads(reads: float, traffic: Traffic) -> None:
    events: list[Event] = []
    for age_s in traffic.times(0, 3 * MINUTE):
        events += traffic.write(key := f"chat:{traffic.uid()}", age_s, ttl_s=MINUTE)
        if traffic.dice.random() < reads:
            events.append((max(0, age_s - traffic.dice.uniform(0, MINUTE)), ("LRANGE", key, 0, -1)))
    (found,) = replace(traffic, ttl_s=HOUR).world(events, age_s=6 * HOUR, steps=10_000).audited().findings
    assert (found.cause, found.observed_ttl_s) == ("unit_mistake", MINUTE)


def test_deadlines_at_midnight_are_not_healthy(traffic: Traffic) -> None:
    midnight = round(datetime.now(UTC).timestamp() + 5 * HOUR)
    traffic, events = replace(traffic, ttl_s=DAY), list[Event]()
    for age_s in traffic.times(0, 18.9 * HOUR):
        key = f"chat:{traffic.uid()}"
        events += [(age_s, ("RPUSH", key, "{}")), (age_s, ("EXPIREAT", key, midnight))]
        events += [traffic.read(key, age_s)] if traffic.dice.random() < 0.5 else []
    assert traffic.world(events).audited().verdict.status == "undetermined"


@pytest.mark.parametrize(("former_s", "cause"), [(30 * DAY, "ttl_too_long"), (3 * DAY, "ttl_too_short")])
@pytest.mark.parametrize("ended", [True, False])
def test_wrong_ttl_until_a_release(former_s: float, cause: str, ended: bool, traffic: Traffic) -> None:
    events: list[Event] = []
    for age_s in traffic.times(0, 2.9 * DAY):
        ttl_s = traffic.ttl_s if (age_s < DAY) == ended else former_s
        events += traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=ttl_s)
    (found,) = traffic.world(events, steps=500).audited().findings
    assert (found.cause, found.since_is == "until") == (cause, ended)
    assert ("roll it back" not in found.next) == ended


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("short_s", [HOUR, 7 * DAY])
def test_keys_that_expired_before_a_whole_ttl(short_s: float, beside: bool, traffic: Traffic) -> None:
    events = traffic.sessions(reads=0)
    for age_s in traffic.times(2 * HOUR, 7.9 * DAY):
        events += traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=short_s)
    events += traffic.write("cache:1", MINUTE, ttl_s=HOUR) if beside else []
    verdict = traffic.world(events, age_s=8 * DAY).audited().verdict
    assert verdict.status == ("undetermined" if short_s == HOUR and not beside else "healthy")
    assert verdict.status == "healthy" or "keys expired since the server started" in verdict.sentence


@pytest.mark.parametrize("given_s", [7 * DAY, 2 * DAY])
def test_info_without_the_counts_of_keys(given_s: float, traffic: Traffic) -> None:
    """It is not known how many keys exist: neither that many expired, nor that keys were written twice."""
    events = [
        one
        for age_s in traffic.times(0, 9 * DAY)
        for one in traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=given_s)
    ]
    events += traffic.write(f"chat:{traffic.uid()}", MINUTE)
    world = traffic.world(events, age_s=10 * DAY)
    sections = ["server", "stats", "memory", "persistence", "replication", "commandstats", "errorstats"]
    with world.played() as server, server.client() as client:
        rules = [f"+info|{section}" for section in sections]
        client.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~*", "+@all", "-info", *rules)
        report = audit(server.url.replace("unix://", "unix://limited:pw@"), expect=world.expect, duty=1)
    assert report.verdict.status == ("healthy" if given_s == 7 * DAY else "findings"), report.verdict.sentence
    assert causes(report) == (set() if given_s == 7 * DAY else {"ttl_too_short"})


@pytest.mark.parametrize("divisor", [1_000, 1])
def test_restored_with_seconds_for_milliseconds(divisor: int, traffic: Traffic) -> None:
    left_s = [7 * DAY - age_s for age_s in replace(traffic, count=300).times(60)]
    events = [(60.0, ("SET", f"chat:{traffic.uid()}", "{}", "PX", round(1000 * each / divisor))) for each in left_s]
    report = traffic.world(events).audited()
    assert causes(report) == ({"unit_mistake"} if divisor > 1 else set())


@pytest.mark.parametrize(
    ("other_s", "share", "cause"),
    [
        (30 * DAY, 1.0, "unit_mistake"),
        (30 * DAY, 0.05, "ttl_too_long"),
        (12 * MINUTE, 1.0, "unit_mistake"),
        (12 * MINUTE, 0.05, "two_ttls"),
    ],
)
def test_some_ttls_that_are_sixty_times_others(other_s: float, share: float, cause: str, traffic: Traffic) -> None:
    traffic, events = replace(traffic, ttl_s=12 * HOUR, count=400), list[Event]()
    for age_s in traffic.times():
        is_other = traffic.dice.random() < share
        at_s = traffic.dice.uniform(0, min(age_s, other_s)) if is_other else age_s
        events += traffic.write(f"chat:{traffic.uid()}", at_s, ttl_s=other_s if is_other else 12 * HOUR)
    (found,) = traffic.world(events, age_s=3 * DAY, steps=200).audited().findings
    assert (found.cause, found.observed_ttl_s) == (cause, other_s)
    assert "by a factor of exactly 60" in found.message


@pytest.mark.parametrize("zone_s", [2 * HOUR, 0.0])
def test_some_clients_take_local_time_for_utc(zone_s: float, traffic: Traffic) -> None:
    traffic, now, events = replace(traffic, ttl_s=DAY, count=40), datetime.now(UTC).timestamp(), list[Event]()
    for number, age_s in enumerate(traffic.times(2 * HOUR, 0.9 * DAY)):
        key, off_s = f"chat:{traffic.uid()}", zone_s if number % 2 else 0.0
        events += [(age_s, ("RPUSH", key, "{}")), (age_s, ("EXPIREAT", key, round(now - age_s + DAY - off_s)))]
        # A job that reads sessions two hours after they were written leaves the same deadlines and idle times.
        events += [(age_s - 2 * HOUR, ("LRANGE", key, 0, -1))] if number % 2 and not zone_s else []
    report = traffic.world(events, steps=10_000).audited()
    assert causes(report) == ({"unit_mistake"} if zone_s else set())


@pytest.mark.parametrize(("interval_s", "status"), [(30 * MINUTE, "healthy"), (10 * MINUTE, "findings")])
def test_spring_sessions_that_have_logged_out(interval_s: float, status: str, traffic: Traffic) -> None:
    traffic = replace(traffic, prefix="spring:session:sessions:", ttl_s=35 * MINUTE, count=400)
    events: list[Event] = []
    for age_s in traffic.times(0, interval_s):
        uid, end_s = traffic.uid(), age_s * traffic.dice.uniform(0.5, 1)
        events += traffic.write(traffic.prefix + uid, age_s, kind="hash", ttl_s=interval_s + 5 * MINUTE)
        events += traffic.write(f"{traffic.prefix}expires:{uid}", age_s, kind="string", ttl_s=interval_s)
        if traffic.dice.random() < 0.4:
            events += [
                (end_s, ("DEL", f"{traffic.prefix}expires:{uid}")),
                (end_s, ("EXPIRE", traffic.prefix + uid, 300)),
            ]
    report = traffic.world(events, age_s=2 * HOUR, steps=300).audited()
    assert ("ttl_too_short" in causes(report)) == (status == "findings")
    assert bool(false_alarms(report)) == (status == "findings")


@pytest.mark.parametrize(("least", "status"), [(0.35, "findings"), (0.55, "healthy")])
def test_writes_that_leave_the_ttl_by_the_counters(least: float, status: str, traffic: Traffic) -> None:
    events: list[Event] = []
    for age_s in traffic.times(0.65 * traffic.ttl_s, 0.9 * traffic.ttl_s):
        events += traffic.write(key := f"chat:{traffic.uid()}", age_s, kind="string")
        left = traffic.dice.uniform(least, 0.9)
        events.append((age_s - (1 - left) * traffic.ttl_s, ("SET", key, traffic.message(), "KEEPTTL")))
    report = traffic.world([*events, *traffic.write("chat:new", MINUTE)], steps=500).audited()
    assert report.verdict.status == status
    assert causes(report) == ({"not_refreshed"} if status == "findings" else set())
    assert not any("was a read" in one for one in report.notes)


def test_copies_with_what_was_left_are_no_fault(traffic: Traffic) -> None:
    """A migration sends DEL, SET and PEXPIRE; two days later some of the copied sessions have expired."""
    events: list[Event] = []
    for left in traffic.times(HOUR):
        key, at = f"chat:{traffic.uid()}", traffic.dice.uniform(2 * DAY, 2 * DAY + 20)
        events += [
            (at, ("DEL", key)),
            (at, ("SET", key, traffic.message())),
            (at, ("PEXPIRE", key, round(left * 1000))),
        ]
    events += [
        (age_s, ("SET", f"chat:{traffic.uid()}", "{}", "EX", round(7 * DAY))) for age_s in traffic.times(0, 2 * DAY)
    ]
    report = traffic.world(events).audited()
    assert (report.verdict.status, report.findings) == ("undetermined", ())


def test_one_ttl_of_all_is_not_unrenewed(traffic: Traffic) -> None:
    """A job that fills a cache sets each key every hour with a day."""
    events: list[Event] = traffic.write(f"chat:{traffic.uid()}", HOUR, kind="string")
    for age_s in range(60, round(2 * DAY), round(HOUR)):
        events += [(age_s, ("SET", f"chat:prompt:{n}", traffic.message(), "EX", round(DAY))) for n in range(40)]
    report = traffic.world(events).audited()
    assert (report.verdict.status, report.findings) == ("undetermined", ())
    assert "40 of 41 keys had at most 1d" in report.verdict.sentence


def test_writes_under_several_ttls_are_dated_by_each(traffic: Traffic) -> None:
    """Names tell the plan, and the plan the TTL: no name replaces another."""
    events = []
    for plan, days in ("free", 1), ("pro", 7), ("ent", 300):
        sessions = replace(traffic, prefix=f"chat:{plan}:", ttl_s=days * DAY)
        events += [
            one
            for at in sessions.times(0, min(days, 25) * 0.98 * DAY)
            for one in sessions.write(f"chat:{plan}:{traffic.uid()}", at)
        ]
    report = traffic.world(events, expect={"chat:*": ["1d", "7d", "300d"]}, age_s=30 * DAY).audited()
    assert (report.verdict.status, report.findings) == ("healthy", ())


@pytest.mark.parametrize("short", [True, False])
def test_nightly_copy_of_batches_is_an_access(short: bool, traffic: Traffic) -> None:
    """COPY accesses each session, and sessions of one import had the same time left then."""
    ages_s = [*traffic.times(0, 6 * DAY), *(6.8 * DAY for _ in range(12))]
    events = [one for n, age_s in enumerate(ages_s) for one in traffic.write(f"chat:{n}", age_s)]
    events += [(8 * HOUR, ("COPY", f"chat:{n}", f"backup:{n}")) for n, age_s in enumerate(ages_s) if age_s > 8 * HOUR]
    events += [one for n in range(12) for one in traffic.write(f"chat:new-{n}", 10, ttl_s=0.4 * DAY)] if short else []
    assert traffic.world(events).audited().verdict.status == ("undetermined" if short else "healthy")


@pytest.mark.parametrize("set_it", [True, False])
def test_note_of_a_ttl_that_no_key_shows(set_it: bool, traffic: Traffic) -> None:
    """A login should prolong the session to 14 days, and only prolongs its cookie."""
    traffic = replace(traffic, ttl_s=DAY)
    events = traffic.sessions()
    events += traffic.write("chat:remembered", 2 * DAY, ttl_s=14 * DAY) if set_it else []
    report = traffic.world(events, expect=["chat:*=1d|14d"]).audited()
    assert report.verdict.status == "healthy"
    assert ("no key matching chat:* shows a TTL of 14d" in report.notes) != set_it


def test_flush_of_sessions_with_two_ttls(traffic: Traffic) -> None:
    events = [*traffic.sessions(newest_s=5 * HOUR), (5 * HOUR, ("FLUSHDB",))]
    for age_s in traffic.times(60, 4.9 * HOUR):
        events += traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=traffic.dice.choice([DAY, DAY, 30 * DAY]))
    report = traffic.world(events, expect={"chat:*": ["1d", "30d"]}).audited()
    assert causes(report) == {"flushed"}


@pytest.mark.parametrize(("count", "found"), [(1, "possible"), (30, None)])
def test_one_session_with_more_than_expected(count: int, found: str | None, traffic: Traffic) -> None:
    events = replace(traffic, count=count).sessions(reads=0)
    report = traffic.world([*events, *traffic.write("chat:0", HOUR, ttl_s=90 * DAY)]).audited()
    assert [(one.cause, one.confidence) for one in report.findings] == ([("ttl_too_long", found)] if found else [])
    assert found or any("have up to" in one or "has up to" in one for one in report.notes)


@pytest.mark.parametrize("fault", [False, True])
def test_counter_among_names_of_sessions(fault: bool, traffic: Traffic) -> None:
    """A session may be the number of its user: then each of them is one."""
    if fault:
        events: list[Event] = [(age_s, ("SET", f"chat:{traffic.uid()}", n)) for n, age_s in enumerate(traffic.times())]
    else:
        events = [*traffic.sessions(kind="string"), *[(age_s, ("INCR", "chat:count")) for age_s in traffic.times()]]
    report = traffic.world(events).audited()
    assert causes(report) == ({"no_ttl"} if fault else set())
    assert report.verdict.status == ("findings" if fault else "healthy")


@pytest.mark.parametrize("fault", [True, False])
def test_more_hashes_than_are_looked_at(fault: bool, traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("hash_fields", "run"):
        monkeypatch.setattr(f"memkit.audit.{module}.HASHES", 20)
    events: list[Event] = []
    for age_s in traffic.times():
        events += traffic.write(key := f"chat:{traffic.uid()}", age_s, kind="hash", ttl_s=None)
        events += [] if fault else [(age_s, ("HEXPIRE", key, 604_800, "FIELDS", 2, "messages", "n"))]
    report = traffic.world(events, oldest_server=("redis-7.4", "valkey-9")).audited()
    assert [(one.cause, one.keys) for one in report.findings] == ([("no_ttl", 60)] if fault else [])
    assert any(note.startswith("not checked: 40 hashes without a TTL") for note in report.notes) != fault


def test_field_that_ends_before_its_hash(traffic: Traffic) -> None:
    events: list[Event] = []
    for age_s in traffic.times(0, 0.9 * HOUR):
        events += traffic.write(key := f"chat:{traffic.uid()}", age_s, kind="hash")
        events.append((age_s, ("HEXPIRE", key, 3_600, "FIELDS", 1, "messages")))
    (found,) = traffic.world(events, oldest_server=("redis-7.4", "valkey-9")).audited().findings
    assert (found.cause, found.confidence, found.observed_ttl_s) == ("ttl_too_short", "possible", HOUR)


@pytest.mark.parametrize("lane", ["redis-8.2", "valkey-9"])
@pytest.mark.parametrize("left_s", [HOUR, 0.0])
def test_hashes_that_ended_with_their_last_field(left_s: float, lane: str, traffic: Traffic) -> None:
    # Valkey removes such a hash some time after it can no longer be read.
    events: list[Event] = []
    for age_s in [*traffic.times(1, 5 * MINUTE), *traffic.times(1, 2 * DAY)]:
        deadline = 1000 * (datetime.now(UTC).timestamp() + left_s)
        events += traffic.write(key := f"chat:{traffic.uid()}", age_s, kind="hash", ttl_s=None)
        events.append((age_s, ("HPEXPIREAT", key, round(deadline), "FIELDS", 2, "messages", "n")))
    world = traffic.world(events, expect={"chat:*": "2d"}, lane=lane, after=lambda server: server.clock.shift("5s"))
    report = world.audited()
    assert causes(report) == (set() if left_s else {"no_data"})
    ended = ("hash fields expired on this server", "keys: in other databases, or past their deadline by its clock")
    assert left_s or any(one in report.verdict.sentence for one in ended)


@pytest.mark.parametrize("ttl_s", [0, -1])
def test_ttl_of_zero_deletes_at_once(ttl_s: int, traffic: Traffic) -> None:
    events: list[Event] = []
    for age_s in traffic.times():
        events += traffic.write(key := f"chat:{traffic.uid()}", age_s, kind="hash", ttl_s=None)
        events.append((age_s, ("EXPIRE", key, ttl_s)))
    (found,) = traffic.world(events, lane="redis-8.2").audited().findings
    assert found.cause == "no_data"
    assert "EXPIRE or PEXPIRE was called 60 times: " in found.evidence[-1]


def test_longer_ttls_are_no_persistent_renewal(traffic: Traffic) -> None:
    names = [f"chat:{traffic.uid()}" for _ in range(30)]
    events = [one for name in names for age_s in (3 * HOUR, 2 * HOUR, HOUR) for one in traffic.write(name, age_s)]
    assert causes(traffic.world(events, expect={"chat:*": "10m"}).audited()) == {"ttl_too_long"}


@pytest.mark.parametrize("again", [True, False])
def test_ttls_renewed_once_by_hand(again: bool, traffic: Traffic) -> None:
    """The server is old and its sessions are new: nothing has had the time to expire."""
    events: list[Event] = []
    for age_s in traffic.times(2 * HOUR, 6 * DAY):
        events += traffic.write(key := f"chat:{traffic.uid()}", age_s)
        events += [(at, ("EXPIRE", key, round(traffic.ttl_s))) for at in ((HOUR, 61 * MINUTE) if again else (HOUR,))]
        events += [(age_s, command) for _ in range(2) for _, command in traffic.write(key, age_s)]
    (found,) = traffic.world(events, age_s=16 * DAY).audited().findings
    assert (found.cause, found.confidence) == ("persistent_renewal", "likely" if again else "possible")


@pytest.mark.parametrize(("days", "jitter", "found"), [(8, 0, {"ttl_too_long"}), (7, 0.09, set()), (7, 0, set())])
def test_longer_ttl_of_which_less_is_left(days: int, jitter: float, found: set[str], traffic: Traffic) -> None:
    """The TTL of the last sessions is over by now: the idle clocks show it, and one key has over seven days left."""
    events: list[Event] = []
    for age_s in (16 * HOUR, *(n * DAY + HOUR for n in range(1, 7) for _ in range(5))):
        ttl_s = days * DAY * (1 + traffic.dice.uniform(-jitter, jitter))
        events += traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=ttl_s)
    report = traffic.world(events).audited()
    assert causes(report) == found
    assert not found or report.findings[0].evidence[0] == "keys with more time left than the expected TTL: 1"


def test_short_ttls_read_soon_date_no_other_ttl(traffic: Traffic) -> None:
    """Three have more left than the others by chance: nothing shows that the expected TTL was ever set."""
    events: list[Event] = []
    ages_s = [MINUTE * n for n in (2, 4.5, 8, 40, 43, 45, 48, 51, 53, 56, 58)]
    for n, age_s in enumerate([*ages_s, *traffic.times(2 * HOUR, 20 * HOUR)]):
        events += traffic.write(key := f"chat:{traffic.uid()}", age_s, ttl_s=HOUR)
        events += [(age_s - traffic.dice.uniform(8, 40), ("LRANGE", key, 0, -1))] if n % 3 else []
    (found,) = traffic.world(events, expect={"chat:*": DAY}, steps=2_000).audited().findings
    assert (found.keys, found.since_is) == (11, "upper bound")
    assert "of 1d" not in " ".join(found.evidence)


def test_stale_index_hides_no_doubt_of_the_ttl(traffic: Traffic) -> None:
    events = traffic.sessions(reads=0)
    events += [one for n in (100, 200) for one in traffic.write(f"chat:{n}", n, ttl_s=300)]
    events += [(DAY, ("SADD", "sessions", command[1])) for _, command in events if command[0] == "RPUSH"]
    events.append((DAY, ("SADD", "sessions", *(f"chat:{traffic.uid()}" for _ in range(30)))))
    report = traffic.world(events, full=True).audited()
    assert causes(report) == {"stale_index"}
    assert "which reads and chance do not explain" in report.notes[0]


@pytest.mark.parametrize("older", [True, False])
def test_expired_keys_of_a_server_with_a_log(older: bool, traffic: Traffic) -> None:
    """If it had loaded keys from its append-only file, some would be older than the server."""
    events = [one for at in traffic.times(0, 2.8 * DAY) for one in traffic.write(f"chat:{traffic.uid()}", at)]
    for at in traffic.times(2 * HOUR, 2.8 * DAY):
        events += traffic.write(key := f"chat:{traffic.uid()}", at, ttl_s=HOUR)
        events.append((at, ("RPUSH", key, "a", "b")))  # two changes by one command
    events += traffic.write("chat:1", 2.8 * DAY, ttl_s=4 * DAY) if older else []
    verdict = traffic.world(events, age_s=3 * DAY).audited().verdict
    assert verdict.status == ("healthy" if older else "undetermined")
    assert older or "about 0 would have with a TTL of 7d" in verdict.sentence


@pytest.mark.parametrize("restored", [True, False])
def test_access_by_restore_is_no_read(restored: bool, traffic: Traffic) -> None:
    events = traffic.write("chat:1", 0.99 * traffic.ttl_s) + traffic.write("chat:2", HOUR, ttl_s=traffic.ttl_s)

    def copy(server: RedisServer) -> None:
        with server.client() as client:
            value = client.dump("chat:1") or b""
            if restored:
                client.restore("chat:1", client.pttl("chat:1"), value, replace=True)
            else:
                client.lrange("chat:1", 0, -1)

    report = traffic.world(events, after=copy).audited()
    assert report.verdict.status == "healthy"
    assert any("the last access of 1 key matching chat:* was a read" in one for one in report.notes) != restored


# -- names -------------------------------------------------------------------------------------------------------------


def renamed(traffic: Traffic, new: str | Callable[[str], bytes], *, both: bool) -> World:
    """Return sessions that have another name since two days, or half of them always."""
    events: list[Event] = []
    for age_s in traffic.times():
        is_new = traffic.dice.random() < 0.5 if both else age_s < 2 * DAY
        usual, uid = f"chat:{traffic.uid()}", traffic.uid()
        name = (new(usual) if callable(new) else new.format(uid)) if is_new else usual
        events += traffic.write(name, age_s, kind="string")
    return traffic.world(events)


@pytest.mark.parametrize("new", ["chat{}", "chat_{}", "{}", java, "chat:<coroutine object get_id at 0x{}>"])
def test_sessions_under_other_names_since(new: str | Callable[[str], bytes], traffic: Traffic) -> None:
    report = renamed(traffic, new, both=False).audited()
    assert causes(report) == {"wrong_prefix"}
    assert report.findings[0].confidence == ("possible" if new == "{}" else "likely")


@pytest.mark.parametrize(("tenant", "found"), [("None", True), ("undefined", True), ("none", False), ("north", False)])
def test_tenant_without_a_value_among_others(tenant: str, found: bool, traffic: Traffic) -> None:
    events: list[Event] = []
    for number, age_s in enumerate(traffic.times()):
        name = f"chat:{tenant if number % 6 == 0 else traffic.dice.choice(('acme', 'globex'))}:{traffic.uid()}"
        events += traffic.write(name, age_s, kind="string")
    report = traffic.world(events).audited()
    assert causes(report) == ({"wrong_prefix"} if found else set())
    assert not false_alarms(report)


def test_example_of_a_name_hides_ids_alone(traffic: Traffic) -> None:
    world = renamed(traffic, "chat_of_customers:{}", both=False)
    (found,) = replace(world, expect={"chat*": 7 * DAY}).audited().findings
    assert found.evidence[0].endswith("such as chat_of_customers:*")


@pytest.mark.parametrize("other", ["chat{}", "chat_{}", "{}"])
def test_other_names_beside_the_sessions(other: str, traffic: Traffic) -> None:
    assert renamed(traffic, other, both=True).audited().verdict.status == "healthy"


def test_one_name_of_another_shape_is_possible(traffic: Traffic) -> None:
    events = traffic.sessions(newest_s=DAY) + traffic.write(java(f"chat:{traffic.uid()}"), HOUR)
    (found,) = traffic.world(events).audited().findings
    assert found.confidence == "possible"
    assert found.message.startswith("1 session of chat:* is written under names with a Java serialization header")


def test_java_names_that_are_expected_are_healthy(traffic: Traffic) -> None:
    events = [one for age_s in traffic.times() for one in traffic.write(java(f"chat:{traffic.uid()}"), age_s)]
    assert traffic.world(events, expect={"*chat:*": "7d"}).audited().verdict.status == "healthy"


@pytest.mark.parametrize("encoded", ["since", "always", "never"])
def test_names_that_are_percent_encoded(encoded: str, traffic: Traffic) -> None:
    events: list[Event] = []
    for age_s in traffic.times():
        at = "%40" if encoded == "always" or (encoded == "since" and age_s < 2 * DAY) else "@"
        events += traffic.write(f"chat:{traffic.uid()}{at}example.org", age_s)
    assert causes(traffic.world(events).audited()) == ({"wrong_prefix"} if encoded == "since" else set())


@pytest.mark.parametrize(
    ("shape", "kind", "confidence"),
    [("by-user:{}", "string", "possible"), ("by-user:{}", "hash", "possible"), ("{}:title", "string", "proven")],
)
def test_persistent_keys_beside_the_sessions(shape: str, kind: str, confidence: str, traffic: Traffic) -> None:
    events: list[Event] = []
    for age_s in traffic.times():
        uid, owner = traffic.uid(), traffic.uid()
        events += traffic.write(f"chat:{uid}", age_s, kind="string")
        name = shape.format(owner if "user" in shape else uid)
        events += traffic.write(f"chat:{name}", age_s, kind=kind, ttl_s=None, value=f"chat:{uid}")
    (found,) = traffic.world(events).audited().findings
    assert (found.cause, found.confidence) == ("no_ttl", confidence)
    assert ("--expect 'chat:by-user:*=never'" in found.next) == (confidence == "possible")


@pytest.mark.parametrize(("value", "wrong"), [('{"role": "user", "content": "hi"}', {"ttl_too_short"}), ("1", set())])
def test_short_values_of_another_shape(value: str, wrong: set[str], traffic: Traffic) -> None:
    """First messages are short too; of keys that expire early, only far smaller ones than sessions are flags."""
    events = traffic.sessions(kind="string")
    for age_s in replace(traffic, count=40).times(oldest_s=300):
        events += traffic.write(f"chat:web:{traffic.uid()}", age_s, kind="string", ttl_s=300, value=value)
    assert causes(traffic.world(events).audited()) == wrong


@pytest.mark.parametrize("oldest_s", [6.9 * DAY, 6.89 * DAY])
def test_part_that_never_got_a_ttl_dates_no_end(oldest_s: float, traffic: Traffic) -> None:
    events: list[Event] = []
    for age_s in [oldest_s, 6.9 * DAY, *traffic.times(2 * HOUR, 6.8 * DAY)]:
        uid = traffic.uid()
        events += traffic.write(f"chat:{uid}:meta", age_s, kind="hash", ttl_s=None)
        events += traffic.write(f"chat:{uid}:messages", age_s - HOUR)
    (found,) = traffic.world(events, steps=10_000).audited().findings
    assert (found.cause, found.since_is) == ("no_ttl", "upper bound")


@pytest.mark.parametrize(("count", "ended"), [(3, False), (120, True)])
def test_few_persistent_keys_date_no_end(count: int, ended: bool, traffic: Traffic) -> None:
    # Of 3 in 7 h none is written in the last half an hour by chance, and what has a TTL of half an hour is no older.
    traffic = replace(traffic, ttl_s=30 * MINUTE)
    events = traffic.sessions(kind="string")
    for age_s in replace(traffic, count=count).times(31 * MINUTE, 7 * HOUR):
        events += traffic.write(f"chat:{traffic.uid()}", age_s, kind="string", ttl_s=None)
    (found,) = traffic.world(events).audited().findings
    assert (found.cause, found.since_is) == ("no_ttl", "until" if ended else "upper bound")


NO_IDS = [
    *("undefined", "{session_id}", "${id}", "[object Promise]", "%s", "{{ session.id }}"),
    *("<session_id>", ":sessionId", "{session_id}:messages", "00000000-0000-0000-0000-000000000000"),
    *("<nil>", "%!s(<nil>)"),
]


@pytest.mark.parametrize("name", [*NO_IDS, "{alice}", "<alice>", ":alice"])
def test_text_without_an_id_is_a_shared_key(name: str, traffic: Traffic) -> None:
    events = traffic.sessions() + traffic.write(f"chat:{name}", MINUTE)
    report = traffic.world(events).audited()
    assert causes(report) == ({"shared_key"} if name in NO_IDS else set())
    assert [one.severity for one in report.findings] == ["warning"] * len(report.findings)


@pytest.mark.parametrize("full", [False, True])
def test_pattern_with_all_keys_in_another(full: bool, traffic: Traffic) -> None:
    events = replace(traffic, prefix="chat:vip:").sessions()
    report = traffic.world(events, expect={"chat:*": "30d", "chat:vip:*": "7d"}, full=full).audited()
    assert (report.verdict.status, report.findings) == ("healthy", ())
    assert any(one.startswith("each key matching chat:* is judged by") for one in report.notes)


@pytest.mark.parametrize("absolute", [False, True])
def test_writes_that_set_what_is_left(absolute: bool, traffic: Traffic) -> None:
    events: list[Event] = []
    for age_s in traffic.times():
        key = f"chat:{traffic.uid()}"
        times = (age_s, *(traffic.dice.uniform(0, age_s) for _ in range(3)))
        events += [(at, ("SET", key, "{}", "PX", round(1_000 * (traffic.ttl_s - age_s + at)))) for at in times]
    policy = ExpiryPolicy.absolute("7d") if absolute else "7d"
    report = traffic.world(events, expect={"chat:*": policy}, steps=2_000).audited()
    assert causes(report) == (set() if absolute else {"not_refreshed"})
    assert absolute or report.findings[0].next.endswith("--expect 'chat:*=7d,absolute'")


def test_deadlines_that_should_not_be_are_dated(traffic: Traffic) -> None:
    events: list[Event] = []
    for age_s in [2 * DAY, *traffic.times(0, 20 * DAY)]:
        events += traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=30 * DAY if age_s <= 2 * DAY else None)
    report = traffic.world(events, expect={"chat:*": None}, age_s=21 * DAY, steps=500).audited()
    (found,) = report.findings
    assert found.since
    assert (found.cause, found.since_is) == ("ttl_too_short", "upper bound")
    assert (report.at - found.since).total_seconds() == pytest.approx(2 * DAY, abs=HOUR)
    assert found.message.endswith(" at the latest")


# -- the server --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("age_s", [HOUR, 20 * DAY])
def test_flush_of_sessions_that_never_expire(age_s: float, traffic: Traffic) -> None:
    sessions = [(at_s, ("RPUSH", f"chat:{traffic.uid()}", "{}")) for at_s in traffic.times(0, 19 * DAY)]
    world = traffic.world([*sessions, (age_s, ("FLUSHALL",))], expect={"chat:*": None}, age_s=21 * DAY)
    report = replace(world, steps=500).audited()
    assert causes(report) == ({"flushed"} if age_s == HOUR else set())
    assert any("the server started" in one for one in report.notes)


@pytest.mark.parametrize("newest_s", [0.0, 2 * DAY])
def test_sessions_that_go_on_in_another_database(newest_s: float, traffic: Traffic) -> None:
    def fill(server: RedisServer) -> None:
        with server.client() as client:
            client.select(1)
            client.set("chat:1", "{}", ex=round(traffic.ttl_s))

    verdict = traffic.world(traffic.sessions(newest_s=newest_s), after=fill).audited().verdict
    assert verdict.status == ("undetermined" if newest_s else "healthy")
    assert ("another database" in verdict.sentence) == bool(newest_s)


@pytest.mark.parametrize(("ahead", "status"), [("1d", "undetermined"), ("2s", "healthy")])
def test_clock_that_was_ahead_ended_sessions(ahead: str, status: str, traffic: Traffic) -> None:
    def jump(server: RedisServer) -> None:
        server.clock.shift(ahead)
        with server.client() as client:
            for _ in range(20):
                client.set(f"chat:{traffic.uid()}", "{}", ex=21_600)
        server.clock.shift(f"-{ahead}")

    traffic = replace(traffic, ttl_s=6 * HOUR)
    report = traffic.world(traffic.sessions(newest_s=MINUTE), after=jump).audited()
    assert report.verdict.status == status
    said = [one for one in (report.verdict.sentence, *report.notes) if one.startswith("the server's clock was ahead")]
    assert len(said) == 1


@pytest.mark.parametrize("newest_s", [0.0, 5 * HOUR])
def test_shorter_ttl_since_without_idle_times(newest_s: float, traffic: Traffic) -> None:
    traffic, events = replace(traffic, count=600), list[Event]()
    for age_s in traffic.times():
        ttl_s = HOUR if age_s < newest_s else 7 * DAY
        events += traffic.write(f"chat:{traffic.uid()}", age_s, ttl_s=ttl_s) if age_s < ttl_s else []
    verdict = traffic.world(events, steps=500, config={"maxmemory-policy": "allkeys-lfu"}).audited().verdict
    assert verdict.status == ("undetermined" if newest_s else "healthy")
    assert ("no key was given a TTL of 7d since" in verdict.sentence) == bool(newest_s)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("allkeys-lru", "whatever their TTL"),
        ("volatile-lru", "those with a TTL only"),
        ("volatile-ttl", "those with the least time left first"),
    ],
)
def test_evicted_states_what_the_policy_evicts(policy: str, said: str, traffic: Traffic) -> None:
    def fill(server: RedisServer) -> None:
        with server.client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)
            for n in range(400):
                client.set(f"cache:{n}", "x" * 4_000, ex=900)

    report = traffic.world(traffic.sessions(), config={"maxmemory-policy": policy}, after=fill).audited()
    assert said in next(one.message for one in report.findings if one.cause == "evicted")


@pytest.mark.parametrize("shape", ["chat:{}", "chat:{}:draft"])
def test_note_of_ignored_keys_names_no_sessions(shape: str, traffic: Traffic) -> None:
    events = traffic.sessions() + traffic.write(shape.format(traffic.uid()), HOUR, kind="string", ttl_s=None, value="1")
    (note,) = (one for one in traffic.world(events).audited().notes if one.startswith("ignored 1 key"))
    assert ("; to check them: --expect" in note) == (shape != "chat:{}")


@pytest.mark.parametrize("ttl_s", [7 * DAY, None])
def test_volatile_policy_evicts_every_session(ttl_s: float | None, traffic: Traffic) -> None:
    def fill(server: RedisServer) -> None:
        with server.client() as client, suppress(redis.OutOfMemoryError):
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)
            for n in range(400):
                client.set(f"cache:{n}", "x" * 4_000)

    config: dict[str, object] = {"maxmemory-policy": "volatile-ttl"}
    world = traffic.world(traffic.sessions(ttl_s=ttl_s), expect={"chat:*": ttl_s}, config=config, after=fill)
    assert ("evicted" in causes(world.audited())) == (ttl_s is not None)


def test_flush_that_was_refused_removed_nothing(traffic: Traffic) -> None:
    events = [one for age_s in traffic.times(0, 2 * HOUR) for one in traffic.write(f"chat:{traffic.uid()}", age_s)]
    report = traffic.world([*events, (3 * HOUR, ("FLUSHALL", "NOW"))], age_s=8 * DAY).audited()
    assert (report.verdict.status, causes(report)) == ("healthy", set())


@pytest.mark.parametrize("limited", [True, False])
def test_evictions_beside_keys_without_ttl(limited: bool, traffic: Traffic) -> None:
    """Keys that never expire fill the memory, and somebody removes the limit (opencollective-api #10005)."""

    def fill(server: RedisServer) -> None:
        with server.client() as client, suppress(redis.OutOfMemoryError):
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)
            for n in range(400):
                client.sadd(f"cache:{n}", "x" * 4_000)
        with server.client() as client:
            client.config_set("maxmemory", client.config_get("maxmemory")["maxmemory"] if limited else 0)

    report = traffic.world(traffic.sessions(), config={"maxmemory-policy": "volatile-lru"}, after=fill).audited()
    found = {one.cause: one for one in report.findings}
    assert f"keys     {found['evicted'].keys}\n" in report.to_text()
    assert found["evicted"].next.startswith("raise maxmemory") == limited
    assert "have no TTL, and volatile-lru evicts none of them" in found["out_of_memory"].evidence[1]


# -- values ------------------------------------------------------------------------------------------------------------


def test_principals_of_spring_session_are_an_index(traffic: Traffic) -> None:
    traffic = replace(traffic, prefix="spring:session:sessions:", ttl_s=35 * MINUTE)
    index, events = "spring:session:index:PRINCIPAL_NAME_INDEX_NAME:user", list[Event]()
    for age_s in traffic.times(0, 3 * HOUR):
        uid = traffic.uid()
        events += [*traffic.write(traffic.prefix + uid, age_s, kind="hash"), (age_s, ("SADD", index, java(uid)))]
    report = traffic.world(events, age_s=4 * HOUR, full=True).audited()
    assert causes(report) == {"stale_index"}


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_sessions_that_hold_undefined_since(share: float, traffic: Traffic) -> None:
    events: list[Event] = []
    for age_s in traffic.times():
        lost = age_s < 3 * DAY and traffic.dice.random() < share
        value = "undefined" if lost else traffic.message()
        events += traffic.write(f"chat:{traffic.uid()}", age_s, kind="string", value=value)
    report = traffic.world(events, full=True).audited()
    assert causes(report) - {"encoding_changed"} == ({"corrupt"} if share == 1 else set())
    assert not false_alarms(report)


@pytest.mark.parametrize("start", [True, False])
def test_trimmed_sessions_dated_before_the_write(start: bool, traffic: Traffic) -> None:
    now, events = datetime.now(UTC).timestamp(), list[Event]()
    for age_s in traffic.times(0, 6.9 * DAY):
        key = f"chat:{traffic.uid()}"
        for at_s in (age_s * 0.9**turn for turn in range(traffic.dice.choice((3, 5, 20, 30)))):
            dated_s = now - at_s - traffic.dice.uniform(0, 10 * MINUTE)
            events.append((at_s, ("RPUSH", key, traffic.message(timestamp=dated_s))))
            events += [(at_s, ("LTRIM", key, *((0, 9) if start else (-10, -1)))), (at_s, ("EXPIRE", key, 604_800))]
    report = traffic.world(events, full=True, steps=10_000).audited()
    assert causes(report) == ({"trimmed"} if start else set())


@pytest.mark.parametrize("renewed", [True, False])
def test_absolute_ttl_that_writes_renew(renewed: bool, traffic: Traffic) -> None:
    now, events = datetime.now(UTC).timestamp(), list[Event]()
    for age_s in traffic.times(0.3 * traffic.ttl_s):
        key, value = f"chat:{traffic.uid()}", traffic.message(created=round(now - age_s))
        events += traffic.write(key, age_s, kind="string", value=value)
        ttl = ("EX", round(traffic.ttl_s)) if renewed else ("KEEPTTL",)
        events.append((age_s * traffic.dice.uniform(0, 0.5), ("SET", key, value, *ttl)))
    expect = {"chat:*": ExpiryPolicy.absolute("7d")}
    report = traffic.world(events, expect=expect, full=True, steps=10_000).audited()
    assert causes(report) == ({"ttl_too_long"} if renewed else set())


@pytest.mark.parametrize(("least", "confidence"), [(0.55, "possible"), (0.2, "proven")])
def test_deadlines_of_the_first_write(least: float, confidence: str, traffic: Traffic) -> None:
    now, events = datetime.now(UTC).timestamp(), list[Event]()
    for age_s in traffic.times(0.85 * traffic.ttl_s):
        key = f"chat:{traffic.uid()}"
        last_s = age_s - traffic.ttl_s * traffic.dice.uniform(0.1, 1 - least)
        value = json.dumps({"createdAt": now - age_s, "updatedAt": now - last_s})
        events += [(age_s, ("SET", key, value, "EX", 604_800)), (last_s, ("SET", key, value, "KEEPTTL"))]
        events.append((traffic.dice.uniform(0, last_s), ("GET", key)))
    (found,) = traffic.world(events, full=True, steps=10_000).audited().findings
    assert (found.cause, found.confidence) == ("not_refreshed", confidence)


@pytest.mark.parametrize("since_s", [2 * DAY, 4 * DAY, 0])
def test_writes_that_no_longer_renew_since(since_s: float, traffic: Traffic) -> None:
    """Since a release only the first message sets the TTL; or renewal is throttled: while 80 % of it is left."""
    events = list[Event]()
    for first_s in replace(traffic, count=150).times(0, 9 * DAY):
        key, age_s, until_s = f"chat:{traffic.uid()}", first_s, math.inf
        while age_s > 0:
            events.append((age_s, ("RPUSH", key, traffic.message(timestamp=written(age_s)))))
            if age_s < until_s - 7 * DAY or (age_s > since_s and (since_s or age_s < until_s - 1.4 * DAY)):
                until_s = age_s
                events.append((age_s, ("EXPIRE", key, 604_800)))
            age_s -= traffic.dice.expovariate(2 / DAY)
    report = traffic.world(events, full=True, steps=2_000, age_s=10 * DAY).audited()
    assert causes(report) == ({"not_refreshed"} if since_s else set())
    if since_s:
        (found,) = report.findings
        assert (found.confidence, found.since_is) == ("proven" if since_s == 4 * DAY else "likely", "lower bound")
        assert found.since
        assert 0.9 * since_s < (report.at - found.since).total_seconds() < 1.3 * since_s
    else:
        assert "is throttled" in " ".join(report.notes)


@pytest.mark.parametrize("renewed", [True, False])
@pytest.mark.parametrize("kind", ["absolute", "sliding"])
def test_express_sessions_state_their_last_write(kind: str, renewed: bool, traffic: Traffic) -> None:
    now, events = datetime.now(UTC).timestamp(), list[Event]()
    for age_s in replace(traffic, count=12).times(0.6 * traffic.ttl_s, 0.9 * traffic.ttl_s):
        key, last_s = f"chat:{traffic.uid()}", age_s * traffic.dice.uniform(0, 0.3)
        for at_s in (age_s, last_s):
            end = datetime.fromtimestamp(now - (age_s if kind == "absolute" else at_s) + 7 * DAY, UTC).isoformat()
            value = json.dumps({"cookie": {"originalMaxAge": 604_800_000, "expires": end}, "user": 3})
            ttl = ("EX", 604_800) if renewed or at_s == age_s else ("KEEPTTL",)
            events += [(at_s, ("SET", key, value, *ttl)), (at_s * 0.9, ("GET", key))]
    expect = {"chat:*": ExpiryPolicy.absolute("7d") if kind == "absolute" else "7d"}
    report = traffic.world(events, expect=expect, full=True, steps=10_000).audited()
    wrong = {"absolute": {"ttl_too_long"}, "sliding": {"not_refreshed"}}[kind]
    assert causes(report) == (wrong if renewed == (kind == "absolute") else set())
