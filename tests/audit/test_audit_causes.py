"""Less usual incidents, each with a known truth: the finding's cause, keys, TTL and date."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest
from incidents import DAY, HOUR, MINUTE, Write, restore, travel
from servers import NO_FSYNC, every_server

from memkit.audit import Finding
from memkit.audit.run import AuditReport, audit
from memkit.server import RedisServer

LANES = [name for name, binary in every_server().items() if binary]
WEEK = 7 * DAY


@pytest.fixture
def server() -> Iterator[RedisServer]:
    binary = every_server()[LANES[-1]]
    assert binary
    with RedisServer(binary=binary.path, persist=True, config=NO_FSYNC) as server:
        yield server


def spread(prefix: str, count: int, newest_s: float, oldest_s: float, ttl_s: float | None, **given: Any) -> list[Write]:
    """Return sessions last written at even distances of time."""
    step = (oldest_s - newest_s) / count
    return [Write(f"{prefix}{prefix[0]}-{n}", newest_s + n * step, ttl_s, **given) for n in range(count)]


def audited(
    server: RedisServer, writes: Sequence[Write], expect: Mapping[str, Any], *, travelled: float | None = None
) -> AuditReport:
    with server.client() as client:
        if travelled is None:
            restore(server, client, list(writes))
        else:
            travel(server, client, list(writes), travelled)
    return audit(server.url, expect=expect, duty=1)


def the_finding(report: AuditReport) -> Finding:
    """Return the only finding; a pattern without keys has no_data beside it."""
    found = [one for one in report.findings if one.cause != "no_data"] or list(report.findings)
    assert len(found) == 1, report.findings
    return found[0]


# -- never -------------------------------------------------------------------------------------------------------------


def test_sessions_with_a_deadline_against_never(server: RedisServer) -> None:
    writes = spread("chat:", 100, 0, HOUR * 0.9, HOUR) + spread("chat:for-ever-", 50, 0, DAY, None)
    found = the_finding(audited(server, writes, {"chat:*": None}))
    assert (found.cause, found.prefix, found.keys, found.confidence) == ("ttl_too_short", "chat:", 100, "proven")
    assert (found.expected_ttl_s, found.observed_ttl_s) == (None, HOUR)


def test_sessions_without_a_deadline_fit_never(server: RedisServer) -> None:
    report = audited(server, spread("chat:", 50, 0, DAY, None), {"chat:*": None})
    assert (report.findings, report.exit_code) == ((), 0)


def test_persistent_sessions_under_a_similar_prefix(server: RedisServer) -> None:
    found = the_finding(audited(server, spread("chats:", 50, 0, DAY, None), {"chat:*": None}))
    assert (found.cause, found.prefix, found.keys, found.confidence) == ("wrong_prefix", "chat:", 50, "possible")
    assert (found.expected_ttl_s, found.observed_ttl_s, found.since) == (None, None, None)


def test_volatile_keys_are_not_the_persistent_sessions(server: RedisServer) -> None:
    report = audited(server, spread("chats:", 50, 0, HOUR * 0.9, HOUR), {"chat:*": None})
    assert report.verdict.cause == "no_data"


# -- elsewhere ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "ttl_s", "cause", "confidence"),
    [
        ("chats:", WEEK, "wrong_prefix", "possible"),
        ("chats:", DAY, "wrong_prefix", "possible"),
        ("dialogue/", WEEK, "wrong_prefix", "possible"),
        ("dialogue/", DAY, "no_data", "proven"),
    ],
)
def test_no_key_under_the_expected_prefix(
    prefix: str, ttl_s: float, cause: str, confidence: str, server: RedisServer
) -> None:
    found = the_finding(audited(server, spread(prefix, 60, 0, ttl_s * 0.9, ttl_s), {"chat:*": "7d"}))
    assert (found.cause, found.prefix, found.confidence) == (cause, "chat:", confidence)
    assert found.expected_ttl_s == WEEK
    if cause == "wrong_prefix":
        assert (found.keys, found.observed_ttl_s) == (60, ttl_s)
        # Nothing older than the first of them is known.
        assert found.since_is == "upper bound"


def test_each_ttl_under_another_prefix_is_stated(server: RedisServer) -> None:
    written = spread("chats:", 60, 0, 6 * DAY, WEEK) + spread("chats:n", 60, 0, 280, 300)
    found = the_finding(audited(server, written, {"chat:*": "7d"}))
    assert (found.cause, found.keys) == ("wrong_prefix", 120)
    assert "120 such keys, with a TTL of 5m or 7d; " in found.evidence[0]


def test_two_keys_are_not_enough_for_a_suspicion(server: RedisServer) -> None:
    report = audited(server, spread("chats:", 2, 0, DAY, WEEK), {"chat:*": "7d"})
    assert [one.cause for one in report.findings] == ["no_data"]


def test_deadlines_in_the_past_leave_no_key(server: RedisServer) -> None:
    with server.client() as client:
        client.set("chat:1", "x")
        client.expireat("chat:1", 1_000_000_000)
    report = audit(server.url, expect={"chat:*": "7d"}, duty=1)
    (found,) = report.findings
    assert (found.cause, report.exit_code) == ("no_data", 2)
    assert "EXPIREAT or PEXPIREAT was called 1 time: a deadline in the past" in "; ".join(found.evidence)


def test_sessions_that_moved_to_another_prefix_since(server: RedisServer) -> None:
    writes = spread("chat:", 80, 2 * DAY, 6.5 * DAY, WEEK) + spread("chats:", 60, 0, 2 * DAY - MINUTE, WEEK)
    report = audited(server, writes, {"chat:*": "7d"})
    found = the_finding(report)
    assert (found.cause, found.prefix, found.keys, found.confidence) == ("wrong_prefix", "chat:", 60, "likely")
    assert found.since
    assert (report.at - found.since).total_seconds() == pytest.approx(2 * DAY, abs=60)
    assert found.since_is == "lower bound"


def test_similar_prefix_beside_active_one_is_healthy(server: RedisServer) -> None:
    writes = spread("chat:", 80, 0, 6.5 * DAY, WEEK) + spread("chats:", 60, 0, 6 * DAY, WEEK)
    assert audited(server, writes, {"chat:*": "7d"}).findings == ()


# -- units -------------------------------------------------------------------------------------------------------------


def test_keys_of_another_expectation_did_not_move(server: RedisServer) -> None:
    writes = spread("chat:", 60, DAY, 6 * DAY, WEEK) + spread("chats:", 60, 0, DAY, WEEK)
    assert the_finding(audited(server, writes, {"chat:*": "7d"})).cause == "wrong_prefix"
    assert audit(server.url, expect={"chat:*": "7d", "chats:*": "7d"}, duty=1).findings == ()


@pytest.mark.parametrize(
    ("expected", "given_s"),
    [("30m", 30 * HOUR), ("1h", 1_000 * HOUR), ("7d", WEEK / 60), ("7d", WEEK / 1_000), ("30d", 30 * DAY / 60_000)],
)
def test_a_ttl_in_another_unit(expected: str, given_s: float, server: RedisServer) -> None:
    # Since a while ago, before which it was right.
    meant_s = {"30m": 30 * MINUTE, "1h": HOUR, "7d": WEEK, "30d": 30 * DAY}[expected]
    new_s = min(given_s, meant_s) * 0.5
    writes = spread("chat:", 60, new_s, meant_s * 0.95, meant_s) + spread("chat:new-", 50, 0, new_s, given_s)
    report = audited(server, writes, {"chat:*": expected})
    found = the_finding(report)
    assert (found.cause, found.prefix, found.keys) == ("unit_mistake", "chat:", 50)
    assert (found.expected_ttl_s, found.observed_ttl_s) == (meant_s, pytest.approx(given_s, rel=1e-6))
    assert found.since
    assert (report.at - found.since).total_seconds() == pytest.approx(new_s, rel=0.03, abs=60)


# -- names -------------------------------------------------------------------------------------------------------------


def test_expected_keys_are_sessions_by_any_name(server: RedisServer) -> None:
    writes = spread("lock:", 60, 0, 5 * MINUTE * 0.9, 5 * MINUTE, kind="string")
    found = the_finding(audited(server, writes, {"lock:*": "1h"}))
    assert (found.cause, found.prefix, found.keys, found.observed_ttl_s) == ("ttl_too_short", "lock:", 60, 5 * MINUTE)


def test_short_keys_of_other_ids_are_only_noted(server: RedisServer) -> None:
    writes = spread("chat:", 80, 0, 6.5 * DAY, WEEK, kind="list")
    writes += [Write(f"chat:x{n}:preview", n * 4.0, 5 * MINUTE, kind="string") for n in range(60)]
    report = audited(server, writes, {"chat:*": "7d"})
    assert report.findings == ()
    assert any("preview" in note for note in report.notes)


# -- sessions of another shape, and what is none -----------------------------------------------------------------------


JSON = json.dumps([{"role": "user", "content": "what did we say of it yesterday? " * 4}])


def shaped(shape: str, count: int, newest_s: float, oldest_s: float, ttl_s: float, **given: Any) -> list[Write]:
    """Return keys of a shape such as ``chat:v2:{}``, last written at even distances of time."""
    step = (oldest_s - newest_s) / count
    return [Write(shape.format(n), newest_s + n * step, ttl_s, **given) for n in range(count)]


@pytest.mark.parametrize("kind", ["list", "hash", "string"])
@pytest.mark.parametrize(
    ("old", "new"),
    [("chat:{}", "chat:v2:n{}"), ("chat:user-{}", "chat:tenant-7:user-n{}"), ("chat:{}", "chat:acme/n{}")],
)
def test_release_that_changes_shape_and_ttl_is_found(old: str, new: str, kind: str, server: RedisServer) -> None:
    # The old shape was written every 80 minutes.
    writes = shaped(old, 120, 8 * HOUR, 6.5 * DAY, WEEK, kind=kind, value=JSON)
    writes += shaped(new, 60, 0, 5 * MINUTE * 0.95, 5 * MINUTE, kind=kind, value=JSON)
    report = audited(server, writes, {"chat:*": "7d"})
    found = the_finding(report)
    assert (found.cause, found.keys, found.confidence) == ("ttl_too_short", 60, "likely")
    assert (found.observed_ttl_s, found.since_is) == (5 * MINUTE, "lower bound")
    assert found.since
    assert (report.at - found.since).total_seconds() == pytest.approx(8 * HOUR, abs=60)


@pytest.mark.parametrize("pause_s", [0, HOUR])
def test_short_shape_beside_an_active_one_is_possible(pause_s: float, server: RedisServer) -> None:
    writes = shaped("chat:{}", 120, pause_s, 6.5 * DAY, WEEK) + shaped("chat:acme/n{}", 60, 0, 280, 5 * MINUTE)
    found = the_finding(audited(server, writes, {"chat:*": "7d"}))
    assert (found.cause, found.keys, found.confidence) == ("ttl_too_short", 60, "possible")
    assert found.since_is == "upper bound"


@pytest.mark.parametrize(("kind", "value", "count"), [("string", "17", 60), ("string", "on", 60), ("hash", "x", 60)])
def test_short_keys_of_other_type_or_size_are_ignored(kind: str, value: str, count: int, server: RedisServer) -> None:
    writes = shaped("chat:{}", 120, 0, 6.5 * DAY, WEEK, kind="string", value=JSON)
    writes += shaped("chat:n{}:hint", count, 0, 280, 5 * MINUTE, kind=kind, value=value)
    report = audited(server, writes, {"chat:*": "7d"})
    assert report.findings == ()
    assert report.verdict.status == "healthy"
    assert report.verdict.sentence.startswith("checked 120 session keys: none contradicts chat:*=sliding 7d, and 120")
    assert report.verdict.sentence.endswith(f"; {count} short-lived keys ignored")
    assert any("hint" in note for note in report.notes)


HELPERS = ["chat:{}:stop", "chat:{}:unread", "chat:mutexes:{}", "chat:answers:{}"]


@pytest.mark.parametrize("shape", HELPERS)
@pytest.mark.parametrize("kind", ["list", "string"])
def test_flags_set_with_each_message_are_no_parts(shape: str, kind: str, server: RedisServer) -> None:
    writes = shaped("chat:{}", 200, 0, 6.5 * DAY, WEEK, kind=kind, value=JSON)
    now = shaped("chat:{}", 12, 0, 25, WEEK, kind=kind, value=JSON)
    flags = shaped(shape, 12, 0, 25, 30, kind="string", value="yes")
    report = audited(server, [*now, *writes[12:], *flags], {"chat:*": "7d"})
    assert report.findings == ()
    assert any("differs from that of sessions" in note for note in report.notes)
    assert "checked 200 session keys" in report.verdict.sentence


@pytest.mark.parametrize("value", ["7", "typing since 12:04"])
def test_flags_with_various_ttls_are_no_parts(value: str, server: RedisServer) -> None:
    dice = random.Random(value)
    writes = shaped("chat:{}", 200, 0, 6.5 * DAY, WEEK)
    for n in dice.sample(range(200), 60):
        ttl = dice.choice((30, 60, 300))
        writes.append(Write(f"chat:{n}:draft", dice.uniform(0, ttl), ttl, kind="string", value=value))
    assert audited(server, writes, {"chat:*": "7d"}).findings == ()


@pytest.mark.parametrize("at_its_message", [True, False])
def test_a_cache_of_a_few_sessions_is_no_part_of_them(at_its_message: bool, server: RedisServer) -> None:
    # A list of the sessions' own type and size, some hours long: only that few of them have it, or that it comes when
    # nothing is written to them, decides.
    writes = shaped("chat:{}", 800, 0, 6.5 * DAY, WEEK, read_s=1.0)
    caches = []
    for n in range(0, 27, 3) if at_its_message else range(3, 200, 4):
        age_s = n * 6.5 * DAY / 800 if at_its_message else n * 17.0
        caches.append(Write(f"chat:{n}:answers", age_s, 6 * HOUR))
    assert audited(server, writes + caches, {"chat:*": "7d"}).findings == ()


@pytest.mark.parametrize("ttl_s", [MINUTE, 5 * MINUTE, DAY])
@pytest.mark.parametrize(("kind", "value"), [("list", "x"), ("string", JSON)])
def test_part_with_a_shorter_ttl_is_mixed_ttl(ttl_s: float, kind: str, value: str, server: RedisServer) -> None:
    newest = shaped("chat:{}", 40, 0, ttl_s * 0.9, WEEK, read_s=0.5)
    parts = shaped("chat:{}:summary", 40, 0, ttl_s * 0.9, ttl_s, kind=kind, value=value)
    others = shaped("chat:old-{}", 100, ttl_s, 6.5 * DAY, WEEK)
    found = the_finding(audited(server, newest + parts + others, {"chat:*": "7d"}))
    assert (found.cause, found.keys) == ("mixed_ttl", 80)
    # The idle clock counts whole seconds, and writing these takes a part of one.
    assert found.observed_ttl_s == pytest.approx(ttl_s, abs=1.5)


def test_part_that_is_not_renewed_is_mixed_ttl(server: RedisServer) -> None:
    writes = shaped("chat:{}", 60, 0, 2 * DAY, WEEK) + shaped("chat:{}:summary", 60, 3 * DAY, 6.5 * DAY, WEEK)
    assert the_finding(audited(server, writes, {"chat:*": "7d"})).cause == "mixed_ttl"


@pytest.mark.parametrize("shape", ["chat:{}:web", "chat:web:{}", "chat:{}"])
@pytest.mark.parametrize("all_read", [False, True])
def test_sessions_of_one_user_are_no_parts(shape: str, all_read: bool, server: RedisServer) -> None:
    """A user has a session on each channel, and uses them at different times."""
    dice = random.Random(3)
    other = shape.replace("web", "app") if "web" in shape else f"{shape}_support"
    given = {"read_s": 30} if all_read else {}
    writes = [
        Write(form.format(n), dice.uniform(MINUTE, 6.8 * DAY), WEEK, **given)
        for form in (shape, other)
        for n in range(60)
    ]
    report = audited(server, writes, {"chat:*": "7d"})
    assert (report.verdict.status, report.findings) == ("healthy", ())


# -- without idle clocks -----------------------------------------------------------------------------------------------


@pytest.fixture(params=list(LANES))
def blind(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server with an LFU policy: it does not report when a key was last accessed."""
    binary = every_server()[request.param]
    assert binary
    with RedisServer(
        binary=binary.path, persist=True, config={"maxmemory-policy": "allkeys-lfu", **NO_FSYNC}
    ) as server:
        yield server


def test_short_remaining_ttls_below_a_gap_are_found(blind: RedisServer) -> None:
    writes = spread("chat:", 60, 5 * MINUTE, 4 * DAY, WEEK) + spread("chat:new-", 60, 0, 5 * MINUTE * 0.97, 5 * MINUTE)
    report = audited(blind, writes, {"chat:*": "7d"})
    found = the_finding(report)
    assert (found.cause, found.prefix, found.confidence) == ("ttl_too_short", "chat:", "likely")
    assert found.keys == pytest.approx(60, abs=1)
    assert found.observed_ttl_s == pytest.approx(5 * MINUTE, rel=0.05)
    assert found.since
    assert (report.at - found.since).total_seconds() == pytest.approx(5 * MINUTE, abs=60)
    assert any("LFU" in note for note in report.notes)


def test_short_ttls_left_on_a_young_server_are_found(blind: RedisServer) -> None:
    with blind.client() as client:
        for n in range(60):
            client.set(f"chat:{n}", "{}", ex=5 + 5 * n)
    found = the_finding(audit(blind.url, expect={"chat:*": "7d"}, duty=1))
    assert (found.cause, found.prefix, found.keys) == ("ttl_too_short", "chat:", 60)
    assert found.observed_ttl_s == pytest.approx(5 * MINUTE, rel=0.05)


def test_all_ttls_left_are_healthy_without_idle_times(blind: RedisServer) -> None:
    assert audited(blind, spread("chat:", 120, 0, 6.9 * DAY, WEEK), {"chat:*": "7d"}).findings == ()


def test_all_ttls_nearly_whole_without_idle_times(blind: RedisServer) -> None:
    """All were renewed within ten seconds, an hour ago: no key has so little left that its TTL may be shorter."""
    report = audited(blind, spread("chat:", 60, HOUR, HOUR + 10, WEEK), {"chat:*": "7d"})
    assert (report.verdict.status, report.findings) == ("healthy", ())


def test_gap_between_short_ttls_left_ends_none(blind: RedisServer) -> None:
    with blind.client() as client:
        expired = [f"chat:old-{n}" for n in range(30)]
        blind.clock.shift("-2m")
        for name in expired:
            client.set(name, "{}", ex=60)
        blind.clock.shift("2m")
        assert client.exists(*expired) == 0
        assert client.info()["expired_keys"] == 30
        for n in range(20):
            client.set(f"chat:{n}", "{}", px=round((1.2 if n < 6 else 5.4) * MINUTE / 19 * 1000 * (n + 1)))
    found = the_finding(audit(blind.url, expect={"chat:*": "1h"}, duty=1))
    assert (found.cause, found.keys) == ("ttl_too_short", 20)


def test_pause_without_idle_times_is_possible(blind: RedisServer) -> None:
    # A day's sessions, a night in which one was written, and an audit before the next ones.
    writes = [*spread("chat:", 60, 13 * HOUR, 23 * HOUR, DAY), Write("chat:night", HOUR, DAY)]
    assert [one.confidence for one in audited(blind, writes, {"chat:*": "1d"}).findings] == ["possible"]


def test_short_part_is_found_without_idle_times(blind: RedisServer) -> None:
    ages = [n * MINUTE for n in range(300)]
    writes = [Write(f"chat:{n}", age_s, WEEK, kind="list") for n, age_s in enumerate(ages)]
    writes += [Write(f"chat:{n}:state", age_s, HOUR, kind="hash") for n, age_s in enumerate(ages) if age_s < 0.9 * HOUR]
    found = the_finding(audited(blind, writes, {"chat:*": "7d"}))
    assert (found.cause, found.keys) == ("mixed_ttl", 108)


def test_long_ttl_is_found_without_idle_times(blind: RedisServer) -> None:
    writes = spread("chat:", 60, 6 * HOUR, 23 * HOUR, DAY) + spread("chat:new-", 60, 0, 6 * HOUR, 10 * DAY)
    found = the_finding(audited(blind, writes, {"chat:*": "1d"}))
    assert (found.cause, found.keys, found.confidence) == ("ttl_too_long", 60, "proven")
    assert found.observed_ttl_s == pytest.approx(10 * DAY, rel=0.01)


def test_no_date_of_persistent_keys_without_idle(blind: RedisServer) -> None:
    writes = spread("chat:", 60, HOUR, 6 * DAY, WEEK) + spread("chat:new-", 20, 0, HOUR, None)
    found = the_finding(audited(blind, writes, {"chat:*": "7d"}))
    assert (found.cause, found.keys, found.confidence) == ("no_ttl", 20, "proven")
    assert (found.since, found.since_is) == (None, None)


# -- written in one go -------------------------------------------------------------------------------------------------


def test_sessions_of_one_instant_near_their_end(server: RedisServer) -> None:
    report = audited(server, spread("chat:", 60, 20, 21, 5 * MINUTE), {"chat:*": "7d"})
    found = [(one.cause, one.keys, one.confidence, one.observed_ttl_s) for one in report.findings]
    assert found == [("ttl_too_short", 60, "likely", 5 * MINUTE)]


@pytest.mark.parametrize(("short", "read", "found"), [(60, 0, True), (60, 40, True), (5, 40, False)])
def test_burst_is_a_finding_unless_reads_explain_it(short: int, read: int, found: bool, server: RedisServer) -> None:
    others = spread("chat:", 80, DAY, 6.5 * DAY, WEEK)
    others = [Write(one.key, one.age_s, one.ttl_s, one.age_s / 3 if n < read else None) for n, one in enumerate(others)]
    report = audited(server, others + spread("chat:new-", short, 20, 21, 5 * MINUTE), {"chat:*": "7d"})
    causes = [(one.cause, one.keys, one.confidence, one.observed_ttl_s) for one in report.findings]
    assert causes == ([("ttl_too_short", short, "likely", 5 * MINUTE)] if found else [])


def test_short_ttls_are_proven_by_the_count_of_reads(server: RedisServer) -> None:
    # The server is ten days old, so age proves nothing; it has served no read.
    with server.client() as client:
        end = server.clock.now()
        server.clock.move_to(end - timedelta(days=10))
        client.set("chat:early", "{}", ex=round(12 * DAY))
        client.delete("chat:early")
        server.clock.move_to(end)
        for number in range(60):
            client.set(f"chat:{number}", "{}", ex=300)
    found = audit(server.url, expect={"chat:*": "7d"}, duty=1).findings[0]
    assert (found.cause, found.keys, found.observed_ttl_s) == ("ttl_too_short", 60, 300)
