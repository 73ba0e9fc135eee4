"""A real server's clock moves: on every server, by the preload and by shifting deadlines."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from servers import needs, one_lane
from test_connect import NO_PERSISTENCE, bare_server
from topology import cluster
from waiting import wait_for

import memkit.server.launcher
from memkit.connect import place, scan
from memkit.errors import ClockUnavailable, PolicyError, ProductionGuardError
from memkit.server import RedisServer, Sandbox, ServerClock, find_server

SLACK_MS = 60_000
"""What a slow machine takes between two commands, at most."""


@pytest.fixture(params=["preload", "deadline shift"])
def clock(request: pytest.FixtureRequest, any_server: RedisServer) -> ServerClock:
    moved = any_server.clock if request.param == "preload" else ServerClock(any_server.url, prefix="session:")
    assert moved.method == request.param
    return moved


@pytest.fixture
def client(any_server: RedisServer) -> Iterator[redis.Redis]:
    with any_server.client() as client:
        yield client


def last_ms(client: redis.Redis, key: str) -> int | None:
    """Read a key until 2 ms before its deadline or less; the PTTL of the last reading that still showed its value."""
    left_ms = None
    while left_ms is None or left_ms > 2:
        value, left = client.pipeline().get(key).pttl(key).execute()
        if value is None:
            return left_ms
        left_ms = left
    return left_ms


def test_a_7_day_ttl_expires_within_2_ms(clock: ServerClock, client: redis.Redis) -> None:
    def took_ms() -> float:
        client.set("session:1", "x", px=timedelta(days=7))
        begun = time.perf_counter()
        clock.shift(timedelta(days=7, milliseconds=-10))
        left_ms = last_ms(client, "session:1")
        clock.shift("4ms")
        assert client.get("session:1") is None
        return (time.perf_counter() - begun) * 1000 if left_ms is not None and left_ms <= 2 else math.inf

    # Repeated, because another process may take the processor for these few milliseconds.
    wait_for("a key that was read 2 ms before its deadline, all within 20 ms", took_ms, lambda ms: ms <= 20)


def test_the_new_time_is_in_force_for_the_next_command(clock: ServerClock, client: redis.Redis) -> None:
    for _ in range(20):
        client.set("session:1", "x", ex=100)
        clock.shift("101s")
        assert client.get("session:1") is None
        client.set("session:1", "x", ex=200)
        clock.shift("-101s")
        assert client.pttl("session:1") > 300_000


def test_time_back_restores_ttls_not_expired_keys(clock: ServerClock, client: redis.Redis) -> None:
    client.set("session:short", "x", ex=60)
    client.set("session:long", "x", ex=3600)
    client.set("session:ever", "x")
    clock.shift("30m")
    assert 1_800_000 - SLACK_MS < client.pttl("session:long") <= 1_800_001
    clock.shift(timedelta(minutes=-30))
    assert client.get("session:short") is None
    assert 3_600_000 - SLACK_MS < client.pttl("session:long") <= 3_600_001
    assert client.ttl("session:ever") == -1


@pytest.mark.parametrize("decode_responses", [True, False])
def test_expired_keys_stay_expired_in_every_database(any_server: RedisServer, decode_responses: bool) -> None:
    # 2,000 other keys: the server's active expiry has not found the expired one yet.
    with any_server.client(decode_responses=decode_responses) as client:
        clock = ServerClock(client, offset_file=any_server.directory / "clock")
        assert clock.method == "preload"
        for number in (0, 3, 15):
            fill = "redis.call('SET', 'd', 1, 'EX', 5) for i = 1, 2000 do redis.call('SET', i, i, 'EX', 1000000) end"
            client.eval(f"redis.call('SELECT', {number}) redis.call('SET', '\\255', 1) {fill}", 0)
        clock.shift("1h")
        clock.shift("-1h")
        for number in (0, 3, 15):
            read = "return {redis.call('EXISTS', 'd'), redis.call('DBSIZE')}"
            assert client.eval(f"redis.call('SELECT', {number}) {read}", 0) == [0, 2001]


def test_shifts_below_a_millisecond_add_up(clock: ServerClock, client: redis.Redis) -> None:
    client.set("session:1", "x", ex=3600)
    begun, before = time.perf_counter(), client.pttl("session:1")
    for _ in range(100):
        clock.shift(timedelta(microseconds=-1_400))
    moved_ms, really_ms = client.pttl("session:1") - before, (time.perf_counter() - begun) * 1000
    assert clock.offset == timedelta(milliseconds=-140)
    assert 140 - really_ms - 10 <= moved_ms <= 141


def test_now_and_move_to(clock: ServerClock, client: redis.Redis) -> None:
    client.set("session:1", "x", ex=1000)
    then = datetime.now(UTC) + timedelta(seconds=900)
    clock.move_to(then)
    assert timedelta(0) <= clock.now() - then < timedelta(milliseconds=SLACK_MS)
    assert 100_000 - SLACK_MS < client.pttl("session:1") <= 100_001
    with pytest.raises(PolicyError, match="no time zone"):
        clock.move_to(datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(PolicyError, match="got str 'soon'"):
        clock.shift("soon")


def test_hash_fields_expire_with_the_shift(clock: ServerClock, any_server: RedisServer, client: redis.Redis) -> None:
    needs(any_server, "TTL of hash fields", redis="7.4", valkey="9.0")
    for key in ("session:1", "session:2"):
        client.hset(key, mapping={"short": "x", "long": "x", "ever": "x"})
        client.hpexpire(key, 60_000, "short")
        client.hpexpire(key, 3_600_000, "long")
    client.expire("session:2", 1800)
    clock.shift("20m")
    assert client.hgetall("session:1") == client.hgetall("session:2") == {b"long": b"x", b"ever": b"x"}
    assert client.hpttl("session:1", "ever") == [-1]
    assert 2_400_000 - SLACK_MS < client.hpttl("session:1", "long")[0] <= 2_400_001
    clock.shift("20m")
    assert client.hgetall("session:1") == {b"long": b"x", b"ever": b"x"}
    assert client.exists("session:2") == 0


def test_shifted_keys_expire_and_are_not_deleted(clock: ServerClock, client: redis.Redis) -> None:
    # 500 in one script: on 6.2 and 7.0 the clock goes on meanwhile.
    client.config_set("notify-keyspace-events", "Egx")
    keys = [f"session:{n}" for n in range(500)]
    with client.pubsub(ignore_subscribe_messages=True) as events:
        events.psubscribe("__keyevent@0__:expired", "__keyevent@0__:del")
        for key in keys:
            client.set(key, "x", ex=100)
        clock.shift("1h")
        assert client.exists(*keys) == 0
        channels: list[bytes] = []

        def heard() -> int:
            while event := events.get_message(timeout=0.1):
                channels.append(event["channel"])
            return len(channels)

        wait_for("500 events", heard, lambda number: number >= 500)
    assert channels == [b"__keyevent@0__:expired"] * 500


def test_the_offset_survives_a_restart(any_server: RedisServer) -> None:
    with RedisServer(binary=any_server._binary.path, persist=True) as server:
        with server.client() as client:
            client.set("session:1", "x", ex=7 * 86400)
        server.clock.shift("6d")
        for stop in (server.restart, server.kill):
            stop()
            server.start()
            with server.client() as client:
                assert 86_400_000 - 10 * SLACK_MS < client.pttl("session:1") <= 86_400_000
            assert abs(server.clock.now() - datetime.now(UTC) - timedelta(days=6)) < timedelta(milliseconds=SLACK_MS)
        server.clock.shift("25h")
        with server.client() as client:
            assert client.get("session:1") is None


def test_only_keys_under_the_prefix_are_shifted(any_server: RedisServer, client: redis.Redis) -> None:
    clock = ServerClock(any_server.url, prefix="a[b]*\\?:")
    own = ["a[b]*\\?:1", "a[b]*\\?:\n2", "a[b]*\\?:é*"]
    foreign = ["ab*\\?:1", "a[b]x\\?:1", "a[b]*\\x:1", "A[B]*\\?:1"]
    for key in own + foreign:
        client.set(key, "x", ex=3600)
    clock.shift("59m")
    assert all(client.pttl(key) <= 60_001 for key in own)
    assert all(client.pttl(key) > 3_500_000 for key in foreign)


def test_a_key_that_scan_repeats_is_shifted_once(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    # Redis allows itself to: "a given element may be returned multiple times" (the documentation of SCAN).
    monkeypatch.setattr("memkit.server.clock.scan", lambda *what: [*scan(*what), *scan(*what)])
    for n in range(1_200):
        client.set(f"s:{n}", "x", ex=3600)
    ServerClock(client, prefix="s:").shift("25m")
    assert 2_000_000 < min(client.pttl(f"s:{n}") for n in range(1_200)) <= 2_100_001


def test_a_key_written_during_the_shift_is_kept(
    any_server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ServerClock(any_server.url, prefix="session:")
    client.set("session:1", "old", ex=60)
    wait = clock._all_expired

    def written_meanwhile(by: redis.Redis, victims: list[list[bytes]]) -> bool:
        client.set("session:1", "new", ex=60)
        return wait(by, victims)

    monkeypatch.setattr(clock, "_all_expired", written_meanwhile)
    clock.shift("2m")
    assert client.get("session:1") == b"new"


def test_a_server_starts_in_the_past(any_server: RedisServer) -> None:
    past = datetime.now(UTC) - timedelta(days=30)
    with RedisServer(binary=any_server._binary.path, persist=True, starts_at=past) as server, server.client() as client:
        assert abs(server.clock.now() - past) < timedelta(minutes=1)
        assert abs(client.execute_command("LASTSAVE").timestamp() - past.timestamp()) < 60
        client.set("k", 1, ex=60)
        server.restart()
        assert client.get("k") == b"1"
        server.clock.move_to(datetime.now(UTC))
        assert client.get("k") is None


def test_a_start_without_a_time_zone_is_refused() -> None:
    with pytest.raises(PolicyError, match="has no time zone"):
        RedisServer(starts_at=datetime(2026, 1, 1))  # noqa: DTZ001  # the mistake


def test_a_clock_set_back_takes_no_cpu_time(any_server: RedisServer, client: redis.Redis) -> None:
    def used_s() -> float:
        stats = client.info("cpu")
        return float(stats["used_cpu_user"] + stats["used_cpu_sys"])

    any_server.clock.shift("-9d")
    # Deleted one by one: freed memory is what the allocator's thread waits for.
    for _ in range(3):
        pipe = client.pipeline(transaction=False)
        for number in range(2_000):
            pipe.set(f"session:{number}", "x" * 2_000)
        for number in range(2_000):
            pipe.delete(f"session:{number}")
        pipe.execute()
    begun = used_s()
    time.sleep(0.5)  # the time in which it is measured
    assert used_s() - begun < 0.1


@pytest.mark.parametrize("decode_responses", [True, False])
@pytest.mark.parametrize("protocol", [2, 3])
def test_clock_works_with_any_client_options(any_server: RedisServer, decode_responses: bool, protocol: int) -> None:
    with any_server.client(decode_responses=decode_responses, protocol=protocol) as client:
        client.set("session:1", "x", ex=60)
        clock = ServerClock(client, prefix="session:")
        clock.shift("61s")
        assert client.get("session:1") is None


def test_deadlines_are_shifted_in_a_cluster() -> None:
    with cluster(find_server().path) as nodes, nodes.client() as client:
        for number in range(60):
            client.set(f"session:{number}", "x", ex=3600 if number % 2 else 60)
        clock = ServerClock(client, prefix="session:")
        clock.shift("30m")
        left = [client.ttl(f"session:{number}") for number in range(60)]
    assert left[::2] == [-2] * 30
    assert all(1700 < one <= 1801 for one in left[1::2])


def test_without_a_prefix_nothing_is_shifted(any_server: RedisServer, client: redis.Redis) -> None:
    client.set("somebody:else", "x", ex=3600)
    clock = ServerClock(any_server.url)
    with pytest.raises(ClockUnavailable, match=r"others may use.*prefix="):
        clock.shift("59m")
    assert client.pttl("somebody:else") > 3_500_000
    assert clock.offset == timedelta(0)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(milliseconds=SLACK_MS)


@pytest.fixture(scope="module")
def foreign() -> Iterator[redis.Redis]:
    with bare_server(*NO_PERSISTENCE) as port, redis.Redis(port=port, db=3) as client:
        yield client


def test_on_a_foreign_server_one_database_is_shifted(foreign: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMKIT_ALLOW", place(foreign))
    foreign.set("k", 1, ex=3600)
    foreign.eval("redis.call('SELECT', 5) redis.call('SET', 'k', 1, 'EX', 3600)", 0)
    ServerClock(foreign, prefix="").shift("59m")
    assert foreign.ttl("k") <= 60
    read = "redis.call('SELECT', 5) local left = redis.call('TTL', 'k') redis.call('DEL', 'k') return left"
    assert foreign.eval(read, 0) > 3500
    foreign.delete("k")


@pytest.mark.parametrize("prefix", ["session:", "", "memkit-test:", "memkit-test:0123456789ab:"])
def test_foreign_keys_are_not_shifted(foreign: redis.Redis, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    here = place(foreign)
    monkeypatch.setenv("MEMKIT_ALLOW", here.replace("/3", "/0"))
    for number in range(50):
        foreign.set(f"{prefix}{number}", "theirs", ex=7 * 86_400)
    url = f"redis://{here}"
    for clock in (ServerClock(url, prefix=prefix), ServerClock(foreign, prefix=prefix), ServerClock(url)):
        with pytest.raises((ProductionGuardError, ClockUnavailable), match=f"MEMKIT_ALLOW(={here})?"):
            clock.shift("8d")
        assert clock.offset == timedelta(0)
        assert clock.now()
    assert foreign.ttl(f"{prefix}1") > 7 * 86_400 - 60
    monkeypatch.setenv("MEMKIT_ALLOW", here)
    ServerClock(url, prefix=prefix).shift("8d")
    assert foreign.dbsize() == 0


def test_an_unused_offset_file_is_no_permission(foreign: redis.Redis, tmp_path: Path) -> None:
    (tmp_path / "clock").write_bytes(bytes(8))
    foreign.set("theirs", 1, ex=60)
    clock = ServerClock(foreign, offset_file=tmp_path / "clock")
    with pytest.raises(ProductionGuardError):
        clock.shift("2m")
    assert foreign.delete("theirs") == 1


@pytest.mark.parametrize("decode_responses", [True, False])
def test_only_a_sandbox_s_own_keys_are_shifted(
    foreign: redis.Redis, monkeypatch: pytest.MonkeyPatch, decode_responses: bool
) -> None:
    monkeypatch.setenv("MEMKIT_ALLOW", place(foreign))
    with Sandbox(f"redis://{place(foreign)}") as sandbox, sandbox.client(decode_responses=decode_responses) as client:
        monkeypatch.delenv("MEMKIT_ALLOW")
        foreign.set("theirs", 1, ex=3600)
        client = cast("redis.Redis", client)
        for clock in (
            sandbox.clock,
            ServerClock(foreign, prefix=sandbox.prefix),
            ServerClock(foreign, prefix=f"{sandbox.prefix}session:"),
            ServerClock(client, prefix=sandbox.prefix),
        ):
            client.set(f"{sandbox.prefix}session:1", 1, ex=3600)
            clock.shift("59m")
            assert 0 < client.pttl(f"{sandbox.prefix}session:1") <= 60_001
            clock.shift("2m")
            assert not client.exists(f"{sandbox.prefix}session:1")
        assert 3_000 < foreign.ttl("theirs") <= 3600
        foreign.delete("theirs")


def test_without_the_preload_deadlines_are_shifted(any_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memkit.server.launcher, "_shim", str)
    with RedisServer(binary=any_server._binary.path) as server, server.client() as client:
        client.set("any", "x", ex=3600)
        client.eval("redis.call('SELECT', 3) redis.call('SET', 'any', 'x', 'EX', 3600)", 0)
        assert server.clock.method == "deadline shift"
        server.clock.shift("59m")
        assert client.pttl("any") <= 60_001
        assert client.eval("redis.call('SELECT', 3) return redis.call('PTTL', 'any')", 0) <= 60_001
        assert server.clock.offset == timedelta(minutes=59)
        assert abs(server.clock.now() - datetime.now(UTC) - timedelta(minutes=59)) < timedelta(seconds=1)


def test_require_preload_raises_without_it(any_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    if any_server.clock.method == "preload":
        any_server.clock.require_preload()
    monkeypatch.setattr(memkit.server.launcher, "_shim", str)
    with (
        RedisServer(binary=any_server._binary.path) as server,
        pytest.raises(
            ClockUnavailable, match="by deadline shift, which does not change TIME and .* Linux, and .* a C compiler"
        ),
    ):
        server.clock.require_preload()


def test_an_unused_offset_file_is_detected(any_server: RedisServer, tmp_path: Path) -> None:
    unread = tmp_path / "clock"
    unread.write_bytes(bytes(8))
    clock = ServerClock(any_server.url, offset_file=unread)
    assert clock.method == "deadline shift"
    with any_server.client() as client:
        client.set("any", "x", ex=60)
        clock.shift("61s")
        assert client.get("any") is None


@pytest.mark.parametrize("far", ["-30000d", "-60w", "100000d", "-90000000000d", f"{'9' * 400}d", 1e300])
def test_times_out_of_range_are_refused(clock: ServerClock, client: redis.Redis, far: str | float) -> None:
    clock.move_to(datetime(1971, 1, 1, tzinfo=UTC))
    client.set("session:1", "x", ex=3600)
    with pytest.raises(PolicyError, match="is out of range"):
        clock.shift(far)
    assert clock.now().year == 1971
    assert client.ttl("session:1") > 3500
    assert "from real time" in repr(clock)


@pytest.mark.parametrize("any_server", [one_lane()], indirect=True)  # refused in Python
@pytest.mark.parametrize(
    "when",
    ["2027-01-01", 1_800_000_000, None, date(2027, 1, 1), datetime(2027, 1, 1), datetime.max],  # noqa: DTZ001, DTZ901
)
def test_move_to_refuses_other_values(clock: ServerClock, when: Any) -> None:
    with pytest.raises(PolicyError, match=r"datetime\(.*tzinfo=UTC\)"):
        clock.move_to(when)


@pytest.mark.parametrize("any_server", [one_lane()], indirect=True)  # refused in Python
@pytest.mark.parametrize("when", [datetime.min, datetime.max])  # noqa: DTZ901
def test_the_first_and_last_datetime_are_refused(clock: ServerClock, when: datetime) -> None:
    with pytest.raises(PolicyError, match="is out of range"):
        clock.move_to(when.replace(tzinfo=UTC))


def test_the_clock_moves_while_python_s_is_frozen(any_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(*_: Any) -> int:
        return 1_000_000_000

    for name in ("time", "time_ns", "clock_gettime", "clock_gettime_ns"):
        monkeypatch.setattr(time, name, held)
    clock = any_server.clock
    assert clock.method == "preload"
    clock.shift("1d")
    assert clock.offset == timedelta(days=1)


def test_idle_times_follow_a_move(any_server: RedisServer) -> None:
    with any_server.client() as client:
        client.set("session:1", "x")
        for hours in range(1, 21):
            any_server.clock.shift("1h")
            assert client.object("idletime", "session:1") >= hours * 3_600 - 1


def test_cannot_simulate_is_true(clock: ServerClock, client: redis.Redis) -> None:
    client.set("session:1", "x")
    before, _ = client.time()
    clock.shift("1h")
    moved = clock.method == "preload"
    assert (client.time()[0] - before >= 3600) == moved
    idle_s = partial(client.object, "idletime", "session:1")
    if moved:
        wait_for("a key that is idle for an hour", idle_s, lambda idle_s: idle_s >= 3600)
    assert (idle_s() >= 3600) == moved
    text = repr(clock)
    assert f"by {clock.method}, 1h from real time" in text
    assert all(without in text for without in clock.cannot_simulate)
    assert ("OBJECT IDLETIME, LRU" in text) == (not moved)


def test_time_passes_while_the_server_is_down() -> None:
    with RedisServer(persist=True) as server:
        clock = server.clock
        clock.require_preload()
        server.client().set("chat:7", "x", ex=3600)
        server.client().set("chat:8", "x", ex=3 * 3600)
        server.kill()
        clock.shift("2h")
        server.start()
        assert server.client().mget("chat:7", "chat:8") == [None, b"x"]
