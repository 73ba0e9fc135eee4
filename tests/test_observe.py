"""When keys really expired, on every server: intervals around the deadline, ends told apart, nothing touched."""

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
from itertools import pairwise
from threading import Timer
from typing import Any

import pytest
import redis
from expiry_logs import WEEK_MS, Row, made_log
from waiting import wait_for

import memkit.observe
from memkit.clock import ServerClock
from memkit.errors import PolicyError, ProductionGuardError
from memkit.expiry_log import DeadlineChange, ExpiryLog, Sweep, about
from memkit.observe import Watch, observe_expiry, watch
from memkit.sandbox import Sandbox
from memkit.server import RedisServer

SLOW_S = 60
"""Seconds that a machine may stand still: no assertion is about less."""


@pytest.fixture
def client(any_server: RedisServer) -> Iterator[redis.Redis]:
    with any_server.client() as client:
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


def test_each_life_is_an_interval_around_its_deadline(any_server: RedisServer, client: redis.Redis) -> None:
    log = observe_expiry(client, ttls=["1s", "5m", "7d"], keys_per_ttl=2, clock=any_server.clock)
    assert [expiry.ttl_ms for expiry in log] == [WEEK_MS, WEEK_MS, 300_000, 300_000, 1000, 1000]
    for index, expiry in enumerate(log):
        assert expiry.deadline_at
        assert expiry.gone_at
        assert expiry.event_at
        assert expiry.end == "expired"
        # Readable to the end of the deadline's millisecond, and never after it; 6.2 does not tell the deadline exactly.
        blur = timedelta(milliseconds=1 if any_server.version > "7" else 4)
        assert expiry.seen_at <= expiry.deadline_at + blur
        assert expiry.gone_at > expiry.deadline_at - blur
        assert expiry.event_at > expiry.deadline_at - blur
        least, most = log.life_ms(index)
        assert least - 4 <= (expiry.ttl_ms or 0) <= most + 1
    assert log.exact_to_ms[0] < SLOW_S * 1000
    assert log.verdict == "As meant: 6 keys lived their TTL of 1s to 7d and expired."
    assert log.counts() == {"expired": 6}
    assert client.dbsize() == 0
    assert client.config_get("notify-keyspace-events") == {"notify-keyspace-events": ""}


def test_a_thousand_keys_are_each_seen_shortly_before_their_end(any_server: RedisServer, client: redis.Redis) -> None:
    log = observe_expiry(client, ttls=["1h"], keys_per_ttl=1000, clock=any_server.clock)
    assert log.counts() == {"expired": 1000}
    typical, worst = log.exact_to_ms
    # Without a look near its end, a key's interval is as long as its life.
    assert typical < SLOW_S * 1000
    assert worst < 30 * SLOW_S * 1000
    assert repr(log) == str(log)
    assert "exact to" in str(log)


def test_scattered_deadlines_at_a_coarse_resolution(any_server: RedisServer, client: redis.Redis) -> None:
    meant = {f"chat:{n}": f"{60 + n}m" for n in range(0, 6000, 60)}
    for key, ttl in meant.items():
        client.set(key, "x", px=int(ttl[:-1]) * 60_000)
    log = observe_expiry(client, keys=meant, clock=any_server.clock, resolution_ms=600_000)
    assert log.counts() == {"expired": 100}
    assert max(log.gone_us[i] - log.seen_us[i] for i in range(100)) < 3 * 600 * 1_000_000
    assert not log.groups()[0].odd or log.groups()[0].ttl_ms == 3_600_000


def test_in_real_time_without_a_clock(client: redis.Redis) -> None:
    log = observe_expiry(client, ttls=["100ms"])
    assert log.clock == "in real time"
    assert log.counts() == {"expired": 1}
    least, most = log.life_ms(0)
    assert least < 101
    assert 99 < most < SLOW_S * 1000


def test_wait_s_ends_it_and_removes_what_is_left(client: redis.Redis) -> None:
    log = wait_for(
        "an observation that sees one key expire",
        lambda: observe_expiry(client, ttls=["10ms", "1h"], wait_s=0.2),
        lambda log: log.counts() == {"expired": 1, "alive": 1},
    )
    assert log.life_ms(0)[1] == float("inf")
    assert client.dbsize() == 0
    assert log.verdict == "As meant: 1 of 2 keys lived its TTL of 10ms and expired; 1 key lives on."


@pytest.mark.parametrize("events", [True, False])
def test_a_deleted_key_is_not_called_expired(
    any_server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, events: bool
) -> None:
    if not events:
        monkeypatch.setattr(memkit.observe, "started_by_memkit", lambda _: False)
    for key in ("kept", "deleted"):
        client.set(key, "x", ex=3600)
    clock = at_first_shift(monkeypatch, any_server.clock, lambda: client.delete("deleted"))
    log = observe_expiry(client, keys={"kept": "1h", "deleted": "1h"}, clock=clock)
    assert [expiry.end for expiry in log] == ["expired", "deleted"]
    assert (log[0].event_at is not None) == events
    assert (
        log.verdict == "Not as meant: 1 of 2 keys meant to live 1h lived 500ms (1 deleted)." or "lived" in log.verdict
    )


@pytest.mark.parametrize("events", [True, False])
def test_an_evicted_key_is_not_called_expired(
    any_server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, events: bool
) -> None:
    if not events:
        monkeypatch.setattr(memkit.observe, "started_by_memkit", lambda _: False)

    def evict() -> None:
        client.config_set("maxmemory-policy", "volatile-ttl")
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            client.set("more", "x")
        client.config_set("maxmemory", 0)

    client.set("chat:1", "x", ex=7 * 86400)
    clock = at_first_shift(monkeypatch, any_server.clock, evict)
    log = observe_expiry(client, keys={"chat:1": "7d"}, clock=clock)
    assert log[0].end == ("evicted" if events else "evicted or deleted")
    assert log[0].gone_at
    assert log[0].deadline_at
    assert log[0].gone_at < log[0].deadline_at
    assert log.verdict.startswith("Not as meant: 1 key meant to live 7d lived ")


def test_deadlines_that_move_are_followed_and_told(
    any_server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("shortened", "renewed", "dropped", "as it was")
    for key in keys:
        client.set(key, "x", ex=7 * 86400)

    def move() -> None:
        client.expire("shortened", 300)
        client.expire("renewed", 14 * 86400)
        client.persist("dropped")

    clock = at_first_shift(monkeypatch, any_server.clock, move)
    log = observe_expiry(client, keys=dict.fromkeys(keys, "7d"), clock=clock)
    assert [expiry.end for expiry in log] == ["expired", "expired", "alive", "expired"]
    lives = [round(sum(log.life_ms(i)) / 2 / 1000) for i in (0, 1, 3)]
    assert lives[0] < 3600  # seen gone at a stop between, not near the deadline that it had meant
    assert lives[1:] == pytest.approx([14 * 86400, 7 * 86400], abs=SLOW_S)
    assert log.life_ms(2)[0] >= 14 * 86_400_000
    assert log.verdict.startswith("Not as meant: 2 of 4 keys meant to live 7d lived ")
    assert log.verdict.endswith(" to 14d (expired), 1 has not expired (alive).")
    told = {(change.key, change.kind) for change in log.changes}
    assert told == {("renewed", "renewed"), ("dropped", "dropped"), ("shortened", "shortened")}


def test_a_deadline_that_was_shortened_and_passed_unseen_is_told(
    any_server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("shortened", "as it was"):
        client.set(key, "x", ex=3600)
    clock = at_first_shift(monkeypatch, any_server.clock, lambda: client.expire("shortened", 1))
    log = observe_expiry(client, keys=dict.fromkeys(("shortened", "as it was"), "1h"), clock=clock)
    assert log.counts() == {"expired": 2}
    (change,) = log.changes
    assert (change.key, change.kind, change.is_left_ms) == ("shortened", "shortened", 0)
    assert re.match(r"shortened: shortened, from (59m \d+s|1h|\d+m \d+s) left to 0ms, by 20", str(change))
    assert log[0].deadline_at is None
    late_s = log.to_frame()["event_late_max_s"].tolist()
    assert math.isnan(late_s[0])
    assert late_s[1] >= 0
    assert "at most -" not in log._repr_html_()


def test_an_event_between_two_looks_bounds_a_life(client: redis.Redis) -> None:
    def observed() -> ExpiryLog:
        client.set("k", "x", px=1_500)
        other = Timer(0.3, client.pexpire, ["k", 300])
        other.start()
        log = observe_expiry(client, keys={"k": "1500ms"})
        other.join()
        return log

    # Again and again, since a machine that is busy may shorten the TTL too late.
    log = wait_for("a life below 1.4 s", observed, lambda log: log.life_ms(0)[1] < 1_400)
    assert log.changes[-1].kind == "shortened"
    assert log.verdict.startswith("Not as meant: 1 key meant to live 1.5s lived ")


def test_a_key_that_is_back_has_not_ended(client: redis.Redis) -> None:
    def replace() -> None:
        client.delete("k")
        client.set("k", "x", ex=3600)

    replace()
    other = Timer(0.1, replace)
    other.start()
    log = observe_expiry(client, keys={"k": "1h"}, wait_s=0.4)
    other.join()
    assert (log[0].end, log[0].event_at) == ("alive", None)


def test_an_existing_key_lives_since_its_ttl_was_set_where_that_was_just_now(
    any_server: RedisServer, client: redis.Redis
) -> None:
    client.set("fresh", "x", ex=100_000)
    client.set("old", "x", ex=100_000)
    any_server.clock.shift("5m")
    client.expire("old", 50_000)
    log = observe_expiry(client, keys={"fresh": 100_000, "old": 100_000}, clock=any_server.clock)
    lives_s = [sum(log.life_ms(index)) / 2000 for index in (0, 1)]
    assert lives_s == pytest.approx([100_000, 50_000], abs=SLOW_S)
    assert log.verdict.startswith("Not as meant: 1 of 2 keys meant to live 100000s lived 13h ")


def test_existing_keys_are_only_looked_at(any_server: RedisServer, client: redis.Redis) -> None:
    client.set("chat:1", "x", px=WEEK_MS)
    client.rpush("chat:2", "x")
    before = client.dump("chat:1"), client.dump("chat:2")
    any_server.clock.shift("1h")
    client.config_resetstat()
    log = observe_expiry(client, keys=["chat:1", "chat:2", "chat:none"], wait_s=0.1)
    assert [expiry.end for expiry in log] == ["alive", "alive", "absent"]
    assert writes(client) <= {"config|set", "config|resetstat", "unsubscribe"}
    assert client.object("idletime", "chat:1") >= 3600
    assert (client.dump("chat:1"), client.dump("chat:2")) == before
    assert log.verdict == "2 keys have not expired (alive), 1 was not there."


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 3}, {"encoding": "latin-1"}])
def test_keys_are_taken_as_redis_py_gives_them(
    memkit_server: RedisServer, memkit_clock: ServerClock, options: dict[str, Any]
) -> None:
    with memkit_server.client(**options) as client:
        for number in range(150):
            client.set(f"observed:{number}:ä", "x", ex=3600)
        log = observe_expiry(client, keys=client.scan_iter("observed:*"), clock=memkit_clock)
        assert log.counts() == {"expired": 150}
        assert log.events_said == "150 of 150 events came"
        client.set("observed:ä", "x", ex=3600)
        log = observe_expiry(client, keys={"observed:ä": "1h"}, clock=memkit_clock)
        assert log.verdict == "As meant: 1 key lived its TTL of 1h and expired."


def test_names_that_are_no_text_are_escaped(any_server: RedisServer, client: redis.Redis) -> None:
    names = [b"\xff", "ä".encode(), b"*[\\"]
    for name in names:
        client.set(name, "x", ex=300)
    looker = Watch(client, iter(names))
    log = observe_expiry(client, keys=dict.fromkeys(names, "5m"), clock=any_server.clock)
    assert log.keys == looker.keys == ["\\xff", "ä", "*[\\"]
    assert log.verdict == "As meant: 3 keys lived their TTL of 5m and expired."
    assert log.events_said == "3 of 3 events came"
    assert str(looker.look()[0]).startswith("\\xff: expired, by ")


def test_none_means_never_as_in_a_store(any_server: RedisServer, client: redis.Redis) -> None:
    client.set("kept", "x")
    client.set("dies", "x", ex=3600)
    assert observe_expiry(client, keys={"kept": None}, wait_s=0).verdict == "As meant so far: 1 key lives on."
    log = observe_expiry(client, keys={"kept": None, "dies": None}, wait_s=0)
    assert log.verdict == "Not as meant: 1 of 2 keys meant to live for ever has a TTL (alive)."
    log = observe_expiry(client, keys={"kept": None, "dies": None}, clock=any_server.clock)
    assert log.verdict.startswith("Not as meant: 1 of 2 keys meant to live for ever lived ")
    assert [expiry.ttl_ms for expiry in log] == [float("inf")] * 2
    assert log.to_frame()["configured_ttl_s"].tolist() == [float("inf")] * 2
    assert ">never ends<" in log._repr_html_()
    assert observe_expiry(client, keys=["kept"], wait_s=0)[0].ttl_ms is None


def test_deadlines_are_crossed_by_shifting_them_too(any_server: RedisServer, client: redis.Redis) -> None:
    clock = ServerClock(any_server.url, prefix="memkit-observe:")
    log = observe_expiry(client, ttls=["5m", "7d"], keys_per_ttl=3, clock=clock)
    assert log.verdict == "As meant: 6 keys lived their TTL of 5m to 7d and expired."
    for index in range(6):
        least, most = log.life_ms(index)
        assert least - 5 <= log.ttl_ms[index] <= most + 5


def test_a_clock_that_does_not_move_these_keys_is_no_endless_loop(any_server: RedisServer, client: redis.Redis) -> None:
    log = observe_expiry(client, ttls=["7d"], clock=ServerClock(any_server.url, prefix="elsewhere:"))
    assert log.counts() == {"alive": 1}


def test_in_a_sandbox(any_server: RedisServer) -> None:
    with Sandbox(any_server) as sandbox:
        client: Any = sandbox.client()
        log = observe_expiry(client, ttls=["7d"], clock=sandbox.clock)
        assert log.keys[0].startswith(f"{sandbox.prefix}memkit-observe:")
        assert log.verdict == "As meant: 1 key lived its TTL of 7d and expired."


def test_how_late_the_sweep_is(any_server: RedisServer, client: redis.Redis) -> None:
    client.config_set("hz", 100)
    with client.pipeline(transaction=False) as pipe:
        for n in range(2_000):
            pipe.set(f"live:{n}", "x", ex=10**6)
        pipe.execute()
    log = observe_expiry(client, ttls=["1h"], keys_per_ttl=10, clock=any_server.clock, leave_to_sweep=True)
    assert log.sweep == Sweep(10, 2_000, 100, 1)
    assert log.sweep.predicted_s == pytest.approx(1.0105)
    late_s = [(event - deadline) / 1e6 for event, deadline in zip(log.event_us, log.deadline_us, strict=True)]
    assert log.counts() == {"expired": 10}
    assert min(late_s) > 0
    assert max(late_s) < SLOW_S  # the sweep finds them all; a machine that is busy takes longer than predicted
    assert max(late_s) > 0.1 * log.sweep.predicted_s  # and no look of ours made them expire


def test_the_sweep_cannot_be_heard_without_events(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memkit.observe, "started_by_memkit", lambda _: False)
    with pytest.raises(
        PolicyError, match="the server sends none; expected notify-keyspace-events to hold K, g, x and e"
    ):
        observe_expiry(client, ttls=["10ms"], leave_to_sweep=True)
    assert client.dbsize() == 0


def test_the_sweep_is_not_waited_for_where_no_events_come(
    any_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memkit.observe, "SWEEP_WITHIN_S", 10 * SLOW_S)
    begun = time.monotonic()
    with Sandbox(any_server) as sandbox:
        client: Any = sandbox.client()
        with pytest.raises(PolicyError, match="leave_to_sweep needs keyspace events: the server sends none"):
            observe_expiry(client, ttls=["1s"], leave_to_sweep=True)
        client.set(f"{sandbox.prefix}a", "x", ex=1)
        with pytest.raises(PolicyError, match="whether the server sends any is not known"):
            observe_expiry(client, keys=[f"{sandbox.prefix}a"], leave_to_sweep=True)
    assert time.monotonic() - begun < 5 * SLOW_S


def test_the_sweep_is_heard_in_a_sandbox_where_events_come(any_server: RedisServer, client: redis.Redis) -> None:
    client.config_set("notify-keyspace-events", "KA")
    with Sandbox(any_server) as sandbox:
        sandboxed: Any = sandbox.client()
        log = observe_expiry(sandboxed, ttls=["1s"], keys_per_ttl=3, leave_to_sweep=True, clock=sandbox.clock)
        assert log.events_said == "3 of 3 events came"
        assert log.verdict == "As meant: 3 keys lived their TTL of 1s and expired."


def test_a_user_who_may_not_subscribe_observes_without_events(any_server: RedisServer, client: redis.Redis) -> None:
    client.acl_setuser("deaf", enabled=True, nopass=True, keys=["*"], commands=["+@all"], reset_channels=True)
    with any_server.client(username="deaf", password="any") as deaf:
        log = observe_expiry(deaf, ttls=["1h"], clock=any_server.clock)
        assert log.verdict == "As meant: 1 key lived its TTL of 1h and expired."
        assert log.events_said == "events not heard: the subscription was refused"
        with pytest.raises(PolicyError, match="the subscription was refused"):
            observe_expiry(deaf, ttls=["1h"], clock=any_server.clock, leave_to_sweep=True)


def test_events_are_heard_while_keys_are_written_and_looked_at(any_server: RedisServer, client: redis.Redis) -> None:
    # Names of 1,500 bytes are in each event twice: 24 MB, of which a subscriber here may leave 8 MB unread.
    client.config_set("client-output-buffer-limit", f"pubsub {8 << 20} 0 0")
    log = observe_expiry(client, ttls=["1h"], keys_per_ttl=8_000, prefix="long" * 375, clock=any_server.clock)
    assert log.counts() == {"expired": 8_000}
    assert log.events == "heard"
    assert log.events_said == "8,000 of 8,000 events came"


def test_a_lost_subscription_is_said(any_server: RedisServer, client: redis.Redis, monkeypatch: Any) -> None:
    clock = at_first_shift(monkeypatch, any_server.clock, lambda: client.client_kill_filter(_type="pubsub"))
    log = observe_expiry(client, ttls=["1h"], keys_per_ttl=3, clock=clock)
    assert log.counts() == {"expired": 3}
    assert log.events == "lost"
    assert log.events_said == "events not heard: the subscription was lost"
    assert str(log).endswith(" Events not heard: the subscription was lost.")
    assert "no event" not in log._repr_html_()


def test_a_lost_subscription_is_not_waited_for(any_server: RedisServer, client: redis.Redis, monkeypatch: Any) -> None:
    monkeypatch.setattr(memkit.observe, "SWEEP_WITHIN_S", 10 * SLOW_S)
    clock = at_first_shift(monkeypatch, any_server.clock, lambda: client.client_kill_filter(_type="pubsub"))
    begun = time.monotonic()
    log = observe_expiry(client, ttls=["1h"], clock=clock, leave_to_sweep=True)
    assert log.events == "lost"
    assert time.monotonic() - begun < 5 * SLOW_S


def test_writing_passes_the_production_guard(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("memkit.connect"), "started_by_memkit", lambda _: False)
    client.set("somebody:else", "x")
    with pytest.raises(ProductionGuardError):
        observe_expiry(client, ttls=["1s"])
    assert client.dbsize() == 1
    assert observe_expiry(client, keys=["somebody:else"], wait_s=0).counts() == {"alive": 1}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "either ttls=, to write keys, or keys="),
        ({"ttls": ["1s"], "keys": ["a"]}, "either ttls="),
        ({"ttls": ["1s"], "keys_per_ttl": 0}, "at least one key"),
        ({"ttls": ["1s"], "resolution_ms": 0}, "0.1 ms to a day"),
        ({"ttls": ["7d"]}, "7d would be waited for; give clock="),
        ({"keys": "abc"}, r"keys='abc' is one text; expected several names, such as keys=\['abc'\]"),
        ({"keys": b"abc"}, r"keys=b'abc' is one text"),
        ({"keys": [0]}, "0 names no key; expected text or bytes"),
        ({"ttls": [0], "wait_s": 1}, "0 seconds would expire at once"),
    ],
)
def test_what_cannot_be_meant_is_refused(memkit_server: RedisServer, wrong: dict[str, Any], says: str) -> None:
    with memkit_server.client() as client, pytest.raises(PolicyError, match=says):
        observe_expiry(client, **wrong)


def test_watch_tells_what_moved_from_what_to_what(any_server: RedisServer, client: redis.Redis) -> None:
    for key in ("renewed", "shortened", "dropped", "gone", "calm"):
        client.set(key, "x", ex=7 * 86400)
    client.set("given", "x")
    looker = Watch(client, ["renewed", "shortened", "dropped", "gone", "calm", "given", "appeared"])
    assert looker.look() == []
    any_server.clock.shift("1d")
    assert looker.look() == []
    client.config_resetstat()
    client.expire("renewed", 7 * 86400)
    client.expire("shortened", 300)
    client.persist("dropped")
    client.delete("gone")
    client.expire("given", 60)
    client.set("appeared", "x")
    done = writes(client)
    changes = looker.look()
    assert [(change.key, change.kind) for change in changes] == [
        (kind, kind) for kind in ("renewed", "shortened", "dropped", "gone", "given", "appeared")
    ]
    assert re.match(r"shortened: shortened, from (6d|5d 23h) left to 5m, by 20\d\d-", str(changes[1]))
    assert changes[2].is_left_ms is changes[3].is_left_ms is changes[4].was_left_ms is None
    assert changes[0].after < changes[0].before
    assert looker.look() == []
    assert writes(client) == done


def test_watch_for_a_while(client: redis.Redis) -> None:
    client.set("chat:1", "x", ex=3600)
    seen: list[DeadlineChange] = []
    watching = watch(client, ["chat:1"], for_s=0.5, every_s=0.02)
    client.expire("chat:1", 7200)
    for change in watching:
        seen.append(change)
        if len(seen) < 3:
            client.expire("chat:1", 300 * len(seen))
    assert [change.kind for change in seen] == ["renewed", "shortened", "renewed"]


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([(WEEK_MS, WEEK_MS - 5, WEEK_MS + 5, "expired")], "As meant: 1 key lived its TTL of 7d and expired."),
        (
            [(WEEK_MS, 299_995, 300_005, "expired")] * 3 + [(WEEK_MS, WEEK_MS - 5, WEEK_MS + 5, "expired")],
            "Not as meant: 3 of 4 keys meant to live 7d lived 5m (expired).",
        ),
        (
            [(1000, 60_000, 60_010, "expired"), (WEEK_MS, 7_195_000, 7_205_000, "evicted")],
            "Not as meant: 1 key meant to live 1s lived 1m (expired); 1 key meant to live 7d lived 2h (evicted).",
        ),
        ([(-1, 59_990, 60_010, "expired"), (-1, 1, 2, "deleted")], "2 keys lived 2ms to 1m (1 expired, 1 deleted)."),
        ([(WEEK_MS, 100, 0, "alive")], "As meant so far: 1 key lives on."),
        (
            [(WEEK_MS, 299_995, 300_005, "expired"), (WEEK_MS, 0, 0, "absent")],
            "Not as meant: 1 key meant to live 7d lived 5m (expired), 1 was not there.",
        ),
        (
            [(-1, n * 1000, n * 1000, "expired") for n in (1, 2, 3)] + [(-1, 9, 0, "alive"), (-1, 0, 0, "absent")],
            "3 keys lived 1s to 3s (expired), 1 has not expired (alive), 1 was not there.",
        ),
        ([(-1, 1000, 1000, "expired"), (-1, 9, 0, "alive")], "1 key lived 1s (expired), 1 has not expired (alive)."),
        (
            [(1000, 990, 31_000, "expired"), (1000, 990, 1_010, "expired")],
            "Not known: 1 key may have lived more than twice as long as meant; seen gone too late.",
        ),
        ([(WEEK_MS, 0, 0, "absent")] * 2, "Not as meant: 2 keys meant to live 7d were not there."),
        (
            [(n * 1000, n * 1000 / (20 if n == 7 else 10), n * 1000 / 10 + 1, "expired") for n in range(1, 9)],
            "Not as meant: 8 keys of 8 TTLs, at worst 1 key meant to live 7s lived 526ms (expired).",
        ),
        ([], "No keys to observe."),
    ],
)
def test_the_verdict_is_one_sentence(rows: list[Row], verdict: str) -> None:
    assert made_log(rows).verdict == verdict


def test_a_frame_carries_units_and_a_table_is_escaped() -> None:
    log = made_log([(WEEK_MS, 299_995, 300_005, "expired"), (1000, 100, 0, "alive")])
    frame = log.to_frame()
    assert list(frame.columns) == [
        "key",
        "configured_ttl_s",
        "granted_ttl_s",
        "life_min_s",
        "life_max_s",
        "event_late_max_s",
        "begun_at",
        "deadline_at",
        "last_seen_at",
        "first_gone_at",
        "event_at",
        "end",
    ]
    assert frame["life_max_s"].tolist()[0] == pytest.approx(300.005)
    assert frame[["life_max_s", "first_gone_at"]].isna().to_numpy().tolist() == [[False, False], [True, True]]
    assert str(frame["deadline_at"].dt.tz) == "UTC"
    log.server = "<script>"
    html = log._repr_html_()
    assert ">Not as meant: 1 key meant to live 7d lived 5m (expired). Seen on &lt;script&gt;" in html
    assert html.count("<tr>") == 3
    assert "chat:<" not in html


@pytest.mark.parametrize(
    ("ms", "said"),
    [(0, "0ms"), (12.4, "12ms"), (1500, "1.5s"), (300_003, "5m"), (125_000, "2m 5s"), (WEEK_MS - 1000, "6d 23h"),
     (WEEK_MS, "7d"), (-90_000, "-1m 30s"), (999.7, "1s"), (59_996, "1m"), (86_399_900, "1d")],
)  # fmt: skip
def test_about(ms: float, said: str) -> None:
    assert about(ms) == said


def test_nothing_is_shown_where_stderr_is_no_terminal(client: redis.Redis, capfd: pytest.CaptureFixture[str]) -> None:
    observe_expiry(client, ttls=["10ms"])
    assert capfd.readouterr() == ("", "")


def test_progress_is_shown_on_a_terminal_after_a_second(memkit_server: RedisServer) -> None:
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


def test_keys_go_in_the_order_of_their_deadlines(client: redis.Redis) -> None:
    log = observe_expiry(client, ttls=[n / 100 for n in range(1, 40)], wait_s=120)
    assert log.counts() == {"expired": 39}
    order = sorted(range(39), key=lambda index: log.deadline_us[index])
    assert all(log.gone_us[a] <= log.gone_us[b] for a, b in pairwise(order))
    assert all(log.seen_us[i] < log.gone_us[i] for i in order)
