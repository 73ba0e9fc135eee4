"""observe_expiry and Watch on real servers: intervals around the deadline, kinds of ends, no idle clock touched."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib import import_module
from threading import Timer
from typing import Any

import pytest
import redis
from expiry_logs import WEEK_MS, Row, made_log
from servers import every_server, start
from waiting import wait_for

import memkit.observe.observe
from memkit.errors import PolicyError, ProductionGuardError
from memkit.observe import Watch, observe_expiry
from memkit.observe.log import ExpiryLog, Sweep
from memkit.server import RedisServer, Sandbox, ServerClock

SLOW_S = 60
"""Seconds that a machine may stand still: no assertion is about less."""


@pytest.fixture(params=[next(iter(every_server())), list(every_server())[-1]])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A private server, once Redis 6.2, which has no PEXPIRETIME, and once Valkey 9, which caches its clock."""
    with start(request.param) as server:
        yield server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


def at_first_shift(monkeypatch: pytest.MonkeyPatch, clock: ServerClock, deed: Callable[[], Any]) -> ServerClock:
    """Make something happen during an observation: when time moves for the first time."""
    shift, deeds = clock.shift, [deed]

    def shift_after_deed(by: Any) -> None:
        if deeds:
            deeds.pop()()
        shift(by)

    monkeypatch.setattr(clock, "shift", shift_after_deed)
    return clock


def writes(client: redis.Redis) -> set[str]:
    """What has been called so far, but for asking."""
    asking = {"time", "info", "config|get", "ping", "hello", "client|setinfo", "command|info", "command", "select"}
    looking = {"exists", "pexpiretime", "pttl", "subscribe", "psubscribe", "client", "config", "ttl"}
    called = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    return called - asking - looking


def test_each_lifetime_is_an_interval_around_its_end(server: RedisServer, client: redis.Redis) -> None:
    log = observe_expiry(client, ttls=["1s", "5m", "7d"], keys_per_ttl=2, clock=server.clock)
    assert [expiry.ttl_ms for expiry in log] == [WEEK_MS, WEEK_MS, 300_000, 300_000, 1000, 1000]
    for index, expiry in enumerate(log):
        assert expiry.deadline_at
        assert expiry.first_missing_at
        assert expiry.event_at
        assert expiry.end == "expired"
        # Readable to the end of the deadline's millisecond, and never after it; 6.2 does not tell the deadline exactly.
        blur = timedelta(milliseconds=1 if server.version > "7" else 4)
        assert expiry.last_seen_at <= expiry.deadline_at + blur
        assert expiry.first_missing_at > expiry.deadline_at - blur
        assert expiry.event_at > expiry.deadline_at - blur
        least, most = log.lifetime_ms(index)
        assert least - 4 <= (expiry.ttl_ms or 0) <= most + 1
    assert log.exact_to_ms[0] < SLOW_S * 1000
    assert log.verdict == "As configured: 6 keys expired after their TTL of 1s to 7d."
    assert log.counts() == {"expired": 6}
    assert client.dbsize() == 0
    assert client.config_get("notify-keyspace-events") == {"notify-keyspace-events": ""}


def test_a_thousand_keys_have_narrow_intervals(server: RedisServer, client: redis.Redis) -> None:
    log = observe_expiry(client, ttls=["1h"], keys_per_ttl=1000, clock=server.clock)
    assert log.counts() == {"expired": 1000}
    typical, worst = log.exact_to_ms
    # Without a look near its end, a key's interval is as long as its lifetime.
    assert typical < SLOW_S * 1000
    assert worst < 30 * SLOW_S * 1000
    assert repr(log) == str(log)
    assert "exact to" in str(log)


def test_scattered_deadlines_at_a_coarse_resolution(server: RedisServer, client: redis.Redis) -> None:
    ttls = {f"chat:{n}": f"{60 + n}m" for n in range(0, 6000, 60)}
    for key, ttl in ttls.items():
        client.set(key, "x", px=int(ttl[:-1]) * 60_000)
    log = observe_expiry(client, keys=ttls, clock=server.clock, resolution_ms=600_000)
    assert log.counts() == {"expired": 100}
    assert max(log.missing_us[i] - log.seen_us[i] for i in range(100)) < 3 * 600 * 1_000_000
    assert not log.groups()[0].deviating or log.groups()[0].ttl_ms == 3_600_000


def test_in_real_time_without_a_clock(client: redis.Redis) -> None:
    log = observe_expiry(client, ttls=["100ms"])
    assert log.clock == "in real time"
    assert log.counts() == {"expired": 1}
    least, most = log.lifetime_ms(0)
    assert least < 101
    assert 99 < most < SLOW_S * 1000


def test_wait_s_ends_it_and_removes_what_is_left(client: redis.Redis) -> None:
    log = wait_for(
        "an observation in which one key expires",
        lambda: observe_expiry(client, ttls=["10ms", "1h"], wait_s=0.2),
        lambda log: log.counts() == {"expired": 1, "not expired": 1},
    )
    assert log.lifetime_ms(0)[1] == float("inf")
    assert client.dbsize() == 0
    assert log.verdict == "As configured: 1 of 2 keys expired after its TTL of 10ms; 1 key has not expired."


@pytest.mark.parametrize("events", [True, False])
def test_a_deleted_key_is_not_called_expired(
    server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, events: bool
) -> None:
    if not events:
        monkeypatch.setattr(memkit.observe.observe, "started_by_memkit", lambda _: False)
    for key in ("kept", "deleted"):
        client.set(key, "x", ex=3600)
    clock = at_first_shift(monkeypatch, server.clock, lambda: client.delete("deleted"))
    log = observe_expiry(client, keys={"kept": "1h", "deleted": "1h"}, clock=clock)
    assert [expiry.end for expiry in log] == ["expired", "deleted"]
    assert (log[0].event_at is not None) == events
    assert log.verdict.startswith("Not as configured: 1 of 2 keys with a configured TTL of 1h was deleted after ")


@pytest.mark.parametrize("events", [True, False])
def test_an_evicted_key_is_not_called_expired(
    server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, events: bool
) -> None:
    if not events:
        monkeypatch.setattr(memkit.observe.observe, "started_by_memkit", lambda _: False)

    def evict() -> None:
        client.config_set("maxmemory-policy", "volatile-ttl")
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            client.set("more", "x")
        client.config_set("maxmemory", 0)

    client.set("chat:1", "x", ex=7 * 86400)
    clock = at_first_shift(monkeypatch, server.clock, evict)
    log = observe_expiry(client, keys={"chat:1": "7d"}, clock=clock)
    assert log[0].end == ("evicted" if events else "evicted or deleted")
    assert log[0].first_missing_at
    assert log[0].deadline_at
    assert log[0].first_missing_at < log[0].deadline_at
    assert log.verdict.startswith("Not as configured: 1 key with a configured TTL of 7d was evicted")


def test_moved_deadlines_are_followed_and_listed(
    server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("shortened", "renewed", "dropped", "as it was")
    for key in keys:
        client.set(key, "x", ex=7 * 86400)

    def move() -> None:
        client.expire("shortened", 300)
        client.expire("renewed", 14 * 86400)
        client.persist("dropped")

    clock = at_first_shift(monkeypatch, server.clock, move)
    log = observe_expiry(client, keys=dict.fromkeys(keys, "7d"), clock=clock)
    assert [expiry.end for expiry in log] == ["expired", "expired", "not expired", "expired"]
    lives = [round(sum(log.lifetime_ms(i)) / 2 / 1000) for i in (0, 1, 3)]
    assert lives[0] < 3600  # the check between two deadlines found it, not one near its own
    assert lives[1:] == pytest.approx([14 * 86400, 7 * 86400], abs=SLOW_S)
    assert log.lifetime_ms(2)[0] >= 14 * 86_400_000
    assert log.verdict.startswith("Not as configured: 2 of 4 keys with a configured TTL of 7d expired after ")
    assert log.verdict.endswith(" to 14d, 1 has not expired.")
    told = {(change.key, change.kind) for change in log.changes}
    assert told == {("renewed", "renewed"), ("dropped", "TTL removed"), ("shortened", "shortened")}


def test_a_deadline_shortened_between_checks_is_listed(
    server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("shortened", "as it was"):
        client.set(key, "x", ex=3600)
    clock = at_first_shift(monkeypatch, server.clock, lambda: client.expire("shortened", 1))
    log = observe_expiry(client, keys=dict.fromkeys(("shortened", "as it was"), "1h"), clock=clock)
    assert log.counts() == {"expired": 2}
    (change,) = log.changes
    assert (change.key, change.kind, change.current_ttl_ms) == ("shortened", "shortened", 0)
    expected = r"shortened: shortened, from (59m \d+s|1h|\d+m( \d+s)?) left to 0ms left, noticed at 20"
    assert re.match(expected, str(change))
    assert log[0].deadline_at is None
    late_s = log.to_frame()["event_late_max_s"].tolist()
    assert math.isnan(late_s[0])
    assert late_s[1] >= 0
    assert "at most -" not in log._repr_html_()


def test_an_event_between_two_checks_is_a_bound(client: redis.Redis) -> None:
    def observed() -> ExpiryLog:
        client.set("k", "x", px=1_500)
        other = Timer(0.3, client.pexpire, ["k", 300])
        other.start()
        log = observe_expiry(client, keys={"k": "1500ms"})
        other.join()
        return log

    # Repeated, because a busy machine may shorten the TTL too late.
    log = wait_for("a lifetime below 1.4 s", observed, lambda log: log.lifetime_ms(0)[1] < 1_400)
    assert log.changes[-1].kind == "shortened"
    assert log.verdict.startswith("Not as configured: 1 key with a configured TTL of 1.5s expired after ")


def test_a_key_that_is_written_again_has_not_ended(client: redis.Redis) -> None:
    def replace() -> None:
        client.delete("k")
        client.set("k", "x", ex=3600)

    replace()
    other = Timer(0.1, replace)
    other.start()
    log = observe_expiry(client, keys={"k": "1h"}, wait_s=0.4)
    other.join()
    assert (log[0].end, log[0].event_at) == ("not expired", None)


def test_a_lifetime_begins_with_a_write_just_before(server: RedisServer, client: redis.Redis) -> None:
    client.set("fresh", "x", ex=100_000)
    client.set("old", "x", ex=100_000)
    server.clock.shift("5m")
    client.expire("old", 50_000)
    log = observe_expiry(client, keys={"fresh": 100_000, "old": 100_000}, clock=server.clock)
    lives_s = [sum(log.lifetime_ms(index)) / 2000 for index in (0, 1)]
    assert lives_s == pytest.approx([100_000, 50_000], abs=SLOW_S)
    assert log.verdict.startswith("Not as configured: 1 of 2 keys with a configured TTL of 1d 4h expired after 13h ")


def test_a_lifetime_begins_with_the_last_access(server: RedisServer, client: redis.Redis) -> None:
    client.set("old", "x", ex=7 * 86_400)
    client.set("short", "x", ex=300)
    server.clock.shift("200s")
    log = observe_expiry(client, keys={"old": "7d", "short": "7d"}, clock=server.clock)
    lifetimes_s = [sum(log.lifetime_ms(index)) / 2000 for index in (0, 1)]
    assert lifetimes_s == pytest.approx([7 * 86_400, 300], abs=SLOW_S)
    assert log.verdict.startswith("Not as configured: 1 of 2 keys with a configured TTL of 7d expired after ")
    assert 500 <= log.exact_to_ms[1] < SLOW_S * 1000


def test_existing_keys_are_only_read(server: RedisServer, client: redis.Redis) -> None:
    client.set("chat:1", "x", px=WEEK_MS)
    client.rpush("chat:2", "x")
    before = client.dump("chat:1"), client.dump("chat:2")
    server.clock.shift("1h")
    client.config_resetstat()
    log = observe_expiry(client, keys=["chat:1", "chat:2", "chat:none"], wait_s=0.1)
    assert [expiry.end for expiry in log] == ["not expired", "not expired", "absent"]
    assert writes(client) - {"object", "object|idletime"} <= {"config|set", "config|resetstat", "unsubscribe"}
    assert client.object("idletime", "chat:1") >= 3600
    assert (client.dump("chat:1"), client.dump("chat:2")) == before
    assert log.verdict == "2 keys have not expired, 1 did not exist."


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 3}, {"encoding": "latin-1"}])
def test_key_names_may_be_text_or_bytes(
    memkit_server: RedisServer, memkit_clock: ServerClock, options: dict[str, Any]
) -> None:
    with memkit_server.client(**options) as client:
        for number in range(150):
            client.set(f"observed:{number}:ä", "x", ex=3600)
        log = observe_expiry(client, keys=client.scan_iter("observed:*"), clock=memkit_clock)
        assert log.counts() == {"expired": 150}
        assert log.events_text == "150 of 150 events received"
        client.set("observed:ä", "x", ex=3600)
        log = observe_expiry(client, keys={"observed:ä": "1h"}, clock=memkit_clock)
        assert log.verdict == "As configured: 1 key expired after its TTL of 1h."


def test_names_that_are_not_utf_8_are_escaped(server: RedisServer, client: redis.Redis) -> None:
    names = [b"\xff", "ä".encode(), b"*[\\"]
    for name in names:
        client.set(name, "x", ex=300)
    looker = Watch(client, iter(names))
    log = observe_expiry(client, keys=dict.fromkeys(names, "5m"), clock=server.clock)
    assert log.keys == looker.keys == ["\\xff", "ä", "*[\\"]
    assert log.verdict == "As configured: 3 keys expired after their TTL of 5m."
    assert log.events_text == "3 of 3 events received"
    assert str(looker.look()[0]).startswith("\\xff: expired, noticed at ")


def test_a_ttl_of_none_means_never(server: RedisServer, client: redis.Redis) -> None:
    client.set("kept", "x")
    client.set("dies", "x", ex=3600)
    assert (
        observe_expiry(client, keys={"kept": None}, wait_s=0).verdict == "As configured so far: 1 key has not expired."
    )
    log = observe_expiry(client, keys={"kept": None, "dies": None}, wait_s=0)
    assert log.verdict == "Not as configured: 1 of 2 keys configured without TTL has a TTL."
    log = observe_expiry(client, keys={"kept": None, "dies": None}, clock=server.clock)
    assert log.verdict.startswith("Not as configured: 1 of 2 keys configured without TTL expired after ")
    assert [expiry.ttl_ms for expiry in log] == [float("inf")] * 2
    assert log.to_frame()["configured_ttl_s"].tolist() == [float("inf")] * 2
    assert ">no TTL<" in log._repr_html_()
    assert observe_expiry(client, keys=["kept"], wait_s=0)[0].ttl_ms is None


def test_deadlines_are_crossed_by_shifting_them_too(server: RedisServer, client: redis.Redis) -> None:
    clock = ServerClock(server.url, prefix="memkit-observe:")
    log = observe_expiry(client, ttls=["5m", "7d"], keys_per_ttl=3, clock=clock)
    assert log.verdict == "As configured: 6 keys expired after their TTL of 5m to 7d."
    for index in range(6):
        least, most = log.lifetime_ms(index)
        assert least - 5 <= log.ttl_ms[index] <= most + 5


def test_a_clock_of_other_keys_ends_the_observation(server: RedisServer, client: redis.Redis) -> None:
    log = observe_expiry(client, ttls=["7d"], clock=ServerClock(server.url, prefix="elsewhere:"))
    assert log.counts() == {"not expired": 1}


def test_observation_in_a_sandbox_keeps_to_its_prefix(server: RedisServer) -> None:
    with Sandbox(server) as sandbox:
        client: Any = sandbox.client()
        log = observe_expiry(client, ttls=["7d"], clock=sandbox.clock)
        assert log.keys[0].startswith(f"{sandbox.prefix}memkit-observe:")
        assert log.verdict == "As configured: 1 key expired after its TTL of 7d."


def test_delay_of_active_expiry_is_measured(server: RedisServer, client: redis.Redis) -> None:
    client.config_set("hz", 100)
    with client.pipeline(transaction=False) as pipe:
        for n in range(2_000):
            pipe.set(f"live:{n}", "x", ex=10**6)
        pipe.execute()
    log = observe_expiry(client, ttls=["1h"], keys_per_ttl=10, clock=server.clock, leave_to_sweep=True)
    assert log.sweep == Sweep(10, 2_000, 100, 1)
    assert log.sweep.predicted_s == pytest.approx(1.0105)
    late_s = [(event - deadline) / 1e6 for event, deadline in zip(log.event_us, log.deadline_us, strict=True)]
    assert log.counts() == {"expired": 10}
    assert min(late_s) > 0
    assert max(late_s) < SLOW_S  # it finds them all; a machine that is busy takes longer than predicted
    assert max(late_s) > 0.1 * log.sweep.predicted_s  # and no check made them expire


def test_waiting_for_events_needs_events(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memkit.observe.observe, "started_by_memkit", lambda _: False)
    with pytest.raises(PolicyError, match="the server sends none. Set notify-keyspace-events to Kgxe"):
        observe_expiry(client, ttls=["10ms"], leave_to_sweep=True)
    assert client.dbsize() == 0


def test_sandbox_without_events_is_refused_at_once(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memkit.observe.observe, "EVENTS_LIMIT_S", 10 * SLOW_S)
    begun = time.monotonic()
    with Sandbox(server) as sandbox:
        client: Any = sandbox.client()
        with pytest.raises(PolicyError, match="leave_to_sweep needs keyspace events, but the server sends none"):
            observe_expiry(client, ttls=["1s"], leave_to_sweep=True)
        client.set(f"{sandbox.prefix}a", "x", ex=1)
        with pytest.raises(PolicyError, match="it is not known whether the server sends any"):
            observe_expiry(client, keys=[f"{sandbox.prefix}a"], leave_to_sweep=True)
    assert time.monotonic() - begun < 5 * SLOW_S


def test_events_in_a_sandbox_end_the_observation(server: RedisServer, client: redis.Redis) -> None:
    client.config_set("notify-keyspace-events", "KA")
    with Sandbox(server) as sandbox:
        sandboxed: Any = sandbox.client()
        log = observe_expiry(sandboxed, ttls=["1s"], keys_per_ttl=3, leave_to_sweep=True, clock=sandbox.clock)
        assert log.events_text == "3 of 3 events received"
        assert log.verdict == "As configured: 3 keys expired after their TTL of 1s."


def test_a_user_without_channels_gets_no_events(server: RedisServer, client: redis.Redis) -> None:
    client.acl_setuser("deaf", enabled=True, nopass=True, keys=["*"], commands=["+@all"], reset_channels=True)
    with server.client(username="deaf", password="any") as deaf:
        log = observe_expiry(deaf, ttls=["1h"], clock=server.clock)
        assert log.verdict == "As configured: 1 key expired after its TTL of 1h."
        assert log.events_text == "no events received: the subscription was refused"
        with pytest.raises(PolicyError, match="the subscription was refused"):
            observe_expiry(deaf, ttls=["1h"], clock=server.clock, leave_to_sweep=True)


def test_events_are_read_while_keys_are_checked(server: RedisServer, client: redis.Redis) -> None:
    # Names of 1,500 bytes are in each event twice: 24 MB, of which a subscriber here may leave 8 MB unread.
    client.config_set("client-output-buffer-limit", f"pubsub {8 << 20} 0 0")
    log = observe_expiry(client, ttls=["1h"], keys_per_ttl=8_000, prefix="long" * 375, clock=server.clock)
    assert log.counts() == {"expired": 8_000}
    assert log.events == "received"
    assert log.events_text == "8,000 of 8,000 events received"


def test_a_lost_subscription_is_reported(server: RedisServer, client: redis.Redis, monkeypatch: Any) -> None:
    clock = at_first_shift(monkeypatch, server.clock, lambda: client.client_kill_filter(_type="pubsub"))
    log = observe_expiry(client, ttls=["1h"], keys_per_ttl=3, clock=clock)
    assert log.counts() == {"expired": 3}
    assert log.events == "lost"
    assert log.events_text == "no events received: the subscription was lost"
    assert str(log).endswith(" No events received: the subscription was lost.")
    assert "no event" not in log._repr_html_()


def test_a_lost_subscription_is_not_waited_for(server: RedisServer, client: redis.Redis, monkeypatch: Any) -> None:
    monkeypatch.setattr(memkit.observe.observe, "EVENTS_LIMIT_S", 10 * SLOW_S)
    clock = at_first_shift(monkeypatch, server.clock, lambda: client.client_kill_filter(_type="pubsub"))
    begun = time.monotonic()
    log = observe_expiry(client, ttls=["1h"], clock=clock, leave_to_sweep=True)
    assert log.events == "lost"
    assert time.monotonic() - begun < 5 * SLOW_S


def test_writing_passes_the_production_guard(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("memkit.server.guard"), "started_by_memkit", lambda _: False)
    client.set("somebody:else", "x")
    with pytest.raises(ProductionGuardError):
        observe_expiry(client, ttls=["1s"])
    assert client.dbsize() == 1
    assert observe_expiry(client, keys=["somebody:else"], wait_s=0).counts() == {"not expired": 1}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, r"either ttls= \(write keys\) or keys="),
        ({"ttls": ["1s"], "keys": ["a"]}, "either ttls="),
        ({"ttls": ["1s"], "keys_per_ttl": 0}, "at least one key"),
        ({"ttls": ["1s"], "resolution_ms": 0}, "0.1 ms to a day"),
        ({"ttls": ["7d"]}, "observing a TTL of 7d takes as long; pass clock="),
        ({"keys": "abc"}, r"keys='abc' is one name; expected several, as in keys=\['abc'\]"),
        ({"keys": b"abc"}, r"keys=b'abc' is one name"),
        ({"ttls": "7d"}, r"ttls='7d' is one TTL; expected several, as in ttls=\['7d'\]"),
        ({"keys": [0]}, "0 is not a key name; expected text or bytes"),
        ({"ttls": [0], "wait_s": 1}, "0 seconds would expire at once"),
    ],
)
def test_invalid_arguments_are_refused(memkit_server: RedisServer, wrong: dict[str, Any], message: str) -> None:
    with memkit_server.client() as client, pytest.raises(PolicyError, match=message):
        observe_expiry(client, **wrong)


def test_watch_returns_previous_and_current_ttls(server: RedisServer, client: redis.Redis) -> None:
    for key in ("renewed", "shortened", "TTL removed", "ended", "unchanged"):
        client.set(key, "x", ex=7 * 86400)
    client.set("TTL set", "x")
    looker = Watch(client, ["renewed", "shortened", "TTL removed", "ended", "unchanged", "TTL set", "created"])
    assert looker.look() == []
    server.clock.shift("1d")
    assert looker.look() == []
    client.config_resetstat()
    client.expire("renewed", 7 * 86400)
    client.expire("shortened", 300)
    client.persist("TTL removed")
    client.delete("ended")
    client.expire("TTL set", 60)
    client.set("created", "x")
    done = writes(client)
    changes = looker.look()
    assert [(change.key, change.kind) for change in changes] == [
        (kind, kind) for kind in ("renewed", "shortened", "TTL removed", "ended", "TTL set", "created")
    ]
    assert re.match(r"shortened: shortened, from (6d|5d 23h) left to 5m left, noticed at 20\d\d-", str(changes[1]))
    assert changes[2].current_ttl_ms is changes[3].current_ttl_ms is changes[4].previous_ttl_ms is None
    assert changes[0].after < changes[0].before
    assert looker.look() == []
    assert writes(client) == done


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([(WEEK_MS, WEEK_MS - 5, WEEK_MS + 5, "expired")], "As configured: 1 key expired after its TTL of 7d."),
        (
            [(WEEK_MS, 299_995, 300_005, "expired")] * 3 + [(WEEK_MS, WEEK_MS - 5, WEEK_MS + 5, "expired")],
            "Not as configured: 3 of 4 keys with a configured TTL of 7d expired after 5m.",
        ),
        (
            [(1000, 60_000, 60_010, "expired"), (WEEK_MS, 7_195_000, 7_205_000, "evicted")],
            "Not as configured: 1 key with a configured TTL of 1s expired after 1m; 1 key with a configured TTL of 7d "
            "was evicted after 2h.",
        ),
        (
            [(-1, 59_990, 60_010, "expired"), (-1, 1, 2, "deleted")],
            "2 keys ended after 1.5ms to 1m (1 expired, 1 deleted).",
        ),
        ([(WEEK_MS, 100, 0, "not expired")], "As configured so far: 1 key has not expired."),
        (
            [(WEEK_MS, 299_995, 300_005, "expired"), (WEEK_MS, 0, 0, "absent")],
            "Not as configured: 1 key with a configured TTL of 7d expired after 5m, 1 did not exist.",
        ),
        (
            [(-1, n * 1000, n * 1000, "expired") for n in (1, 2, 3)]
            + [(-1, 9, 0, "not expired"), (-1, 0, 0, "absent")],
            "3 keys expired after 1s to 3s, 1 has not expired, 1 did not exist.",
        ),
        ([(-1, 1000, 1000, "expired"), (-1, 9, 0, "not expired")], "1 key expired after 1s, 1 has not expired."),
        (
            [(1000, 990, 31_000, "expired"), (1000, 990, 1_010, "expired")],
            "Inconclusive: 1 key was checked too late to rule out a lifetime of twice the TTL.",
        ),
        ([(WEEK_MS, 0, 0, "absent")] * 2, "Not as configured: 2 keys with a configured TTL of 7d did not exist."),
        (
            [(n * 1000, n * 1000 / (20 if n == 7 else 10), n * 1000 / 10 + 1, "expired") for n in range(1, 9)],
            "Not as configured: 8 keys of 8 TTLs, at worst 1 key with a configured TTL of 7s expired after 526ms.",
        ),
        ([], "No keys to observe."),
    ],
)
def test_the_verdict_is_one_sentence(rows: list[Row], verdict: str) -> None:
    assert made_log(rows).verdict == verdict


def test_a_frame_carries_units_and_a_table_is_escaped() -> None:
    log = made_log([(WEEK_MS, 299_995, 300_005, "expired"), (1000, 100, 0, "not expired")])
    frame = log.to_frame()
    assert list(frame.columns) == [
        "key",
        "configured_ttl_s",
        "granted_ttl_s",
        "lifetime_min_s",
        "lifetime_max_s",
        "event_late_max_s",
        "started_at",
        "deadline_at",
        "last_seen_at",
        "first_missing_at",
        "event_at",
        "end",
    ]
    assert frame["lifetime_max_s"].tolist()[0] == pytest.approx(300.005)
    assert frame[["lifetime_max_s", "first_missing_at"]].isna().to_numpy().tolist() == [[False, False], [True, True]]
    assert str(frame["deadline_at"].dt.tz) == "UTC"
    log.server = "<script>"
    html = log._repr_html_()
    assert ">Not as configured: 1 key with a configured TTL of 7d expired after 5m. Observed on &lt;script&gt;" in html
    assert html.count("<tr>") == 3
    assert "chat:<" not in html


def test_no_progress_if_stderr_is_not_a_terminal(client: redis.Redis, capfd: pytest.CaptureFixture[str]) -> None:
    observe_expiry(client, ttls=["10ms"])
    assert capfd.readouterr() == ("", "")


def test_progress_on_a_terminal_after_a_second(memkit_server: RedisServer) -> None:
    code = "import redis, sys; from memkit.observe import observe_expiry\n"
    code += "observe_expiry(redis.Redis.from_url(sys.argv[1]), ttls=['1500ms'])"
    terminal, its_end = os.openpty()
    termios.tcsetwinsize(its_end, (24, 80))
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        done = subprocess.run(
            [sys.executable, "-c", code, memkit_server.url], stdout=its_end, stderr=its_end, check=False
        )
        os.set_blocking(terminal, False)
        shown = screen.read(4096) or b""
        os.close(its_end)
    assert done.returncode == 0, shown
    assert b"observing" in shown
    assert b"keys" in shown


def test_no_key_ends_before_its_deadline(client: redis.Redis) -> None:
    """Among keys past their deadlines, the server removes them in any order."""
    log = observe_expiry(client, ttls=[n / 100 for n in range(1, 40)], wait_s=5)
    assert log.counts() == {"expired": 39}
    assert all(log.missing_us[index] >= log.deadline_us[index] for index in range(39))
    assert all(log.seen_us[index] < log.missing_us[index] for index in range(39))
