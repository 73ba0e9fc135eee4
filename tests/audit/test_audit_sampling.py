"""A sample of more keys than are looked at is fair, and what it has too few of is looked for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis
from servers import NO_FSYNC, every_server, start
from waiting import wait_for

from memkit.audit import audit
from memkit.audit.sampling import KeyFacts, Reservoir, Sample, Sampler, ServerKeys
from memkit.readonly.connection import ReadOnlyConnection
from memkit.readonly.pace import Pace
from memkit.server import RedisServer

LANES = [name for name, binary in every_server().items() if binary]
WEEK_S, MINUTES_S = 604_800, 300
FILL = """
for number = tonumber(ARGV[2]), tonumber(ARGV[3]) - 1 do
  redis.call('SET', ARGV[1] .. number .. ARGV[5], '{}', 'EX', ARGV[4])
end
"""


def fill(client: redis.Redis, prefix: str, numbers: range, ttl_s: int, *, part: str = "") -> None:
    """Write a key a number, all with one TTL. ``prefix`` is declared as a key: a cluster wants to know its slot."""
    client.eval(FILL, 1, prefix, prefix, numbers.start, numbers.stop, ttl_s, part)


@contextmanager
def sampler_of(server: RedisServer, *, seed: int = 1, **given: object) -> Iterator[Sampler]:
    with server.client() as client:
        connection = ReadOnlyConnection(client)
        options = {"pace": Pace(1, batch=100), "dice": random.Random(seed), **given}
        yield Sampler([ServerKeys(connection, **options)])  # type: ignore[arg-type]
        connection.close()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with start(LANES[-1]) as server:
        yield server


class SlowingPace(Pace):
    """A pace whose batches are halved each time, as if the server slowed down."""

    def after(self, server_s: float | None, took_s: float, keys: int) -> None:
        super().after(server_s, took_s, keys)
        self.batch = max(keys // 2, 1)


def test_look_up_misses_no_key_if_batches_shrink(server: RedisServer) -> None:
    with server.client() as client, sampler_of(server, pace=SlowingPace(1, batch=100)) as sampler:
        fill(client, "chat:", range(250), WEEK_S)
        names = [b"chat:%d" % number for number in range(250)]
        assert {one.key for one in sampler.look_up(names)} == set(names)


# -- shares ------------------------------------------------------------------------------------------------------------


def test_third_of_40000_keys_is_a_third_of_the_sample(any_server: RedisServer) -> None:
    with any_server.client() as client:
        fill(client, "chat:", range(30_000), WEEK_S)
        fill(client, "chat:", range(30_000, 45_000), MINUTES_S)
        report = audit(any_server.url, expect={"chat:*": "7d"}, duty=1)
    assert 25_000 <= report.sample["keys"] < 32_000
    assert (report.sample["of"], report.sample["method"]) == (45_000, "scan")
    assert report.sample["error_bound"] == pytest.approx(0.01, rel=0.05)
    found = report.findings[0]
    assert (found.cause, found.observed_ttl_s) == ("ttl_too_short", pytest.approx(MINUTES_S, rel=0.02))
    assert found.keys / found.sampled == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize("cluster", [False, True])
def test_small_sample_is_fair_and_has_no_key_twice(server: RedisServer, cluster: bool) -> None:
    with server.client() as client:
        fill(client, "old:", range(9_000), WEEK_S)
        fill(client, "new:", range(1_000), MINUTES_S)
    for seed in range(3):
        with sampler_of(server, seed=seed) as sampler:
            sample = sampler.sample(cluster=cluster, enough=2_000)
        names = [one.key for one in sample.keys]
        assert len(set(names)) == len(names)
        assert 1_700 <= len(names) <= 2_000
        assert not sample.complete
        # Of 2,000 a tenth is 200, give or take 13.
        assert sum(name.startswith(b"new:") for name in names) / len(names) == pytest.approx(0.1, abs=0.04)
        assert all(
            one.left_ms == pytest.approx((WEEK_S if one.key.startswith(b"old:") else MINUTES_S) * 1000, abs=30_000)
            for one in sample.keys
        )


def test_two_samples_are_not_the_same_stretch(server: RedisServer) -> None:
    with server.client() as client:
        fill(client, "chat:", range(10_000), WEEK_S)
    drawn = []
    for seed in (1, 2):
        with sampler_of(server, seed=seed) as sampler:
            drawn.append({one.key for one in sampler.sample(cluster=False, enough=500).keys})
    assert len(drawn[0] & drawn[1]) < 400


def test_stretch_near_the_end_continues_at_the_start(server: RedisServer) -> None:
    with server.client() as client:
        fill(client, "chat:", range(3_000), WEEK_S)

    class Late(random.Random):
        # SCAN counts by the reverse of the cursor's bits: all ones comes last.
        def getrandbits(self, bits: int, /) -> int:
            return (1 << bits) - 1

    with sampler_of(server, dice=Late(1)) as sampler:
        sample = sampler.sample(cluster=False, enough=1_000)
    assert len(sample.keys) >= 1_000
    assert len({one.key for one in sample.keys}) == len(sample.keys)


def test_cluster_keys_in_few_slots_are_drawn_at_random() -> None:
    config = NO_FSYNC | {"cluster-enabled": "yes", "cluster-config-file": "nodes.conf"}
    binary = every_server()[LANES[0]]
    assert binary
    with RedisServer(binary=binary.path, config=config, persist=True) as server, server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
        wait_for("a cluster that is ok", lambda: client.cluster("info")["cluster_state"], "ok".__eq__)
        for tenant in range(4):
            tag = f"chat:{{tenant-{tenant}}}:"
            fill(client, tag, range(10_000), WEEK_S if tenant else MINUTES_S)
        report = audit(server.url, expect={"chat:*": "7d"}, duty=1)
    assert (report.sample["method"], report.sample["of"]) == ("randomkey", 40_000)
    assert report.proof.commands["randomkey"] == 26_500
    # Drawn with repeats, which count once: 40,000 * (1 - exp(-26,500 / 40,000)).
    assert report.sample["keys"] == pytest.approx(19_400, rel=0.03)
    found = report.findings[0]
    assert (found.cause, found.observed_ttl_s) == ("ttl_too_short", pytest.approx(MINUTES_S, rel=0.02))
    assert found.keys / found.sampled == pytest.approx(1 / 4, abs=0.03)


# -- few among many ----------------------------------------------------------------------------------------------------


def test_every_session_is_found_among_many_other_keys(server: RedisServer) -> None:
    with server.client() as client:
        fill(client, "cache:", range(40_000), WEEK_S)
        fill(client, "chat:", range(300), MINUTES_S)
        report = audit(server.url, expect={"chat:*": "7d"}, duty=1)
    found = report.findings[0]
    assert (found.cause, found.prefix, found.keys) == ("ttl_too_short", "chat:", 300)
    assert found.observed_ttl_s == MINUTES_S


def test_search_for_a_pattern_ends_with_enough_keys(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memkit.audit.sampling.ENOUGH_OF_A_PATTERN", 200)
    with server.client() as client:
        fill(client, "cache:", range(9_000), WEEK_S)
        fill(client, "chat:", range(5_000), MINUTES_S)
    with sampler_of(server) as sampler:
        sample = sampler.sample(cluster=False, enough=500)
        had, seen = {one.key for one in sample.keys}, sample.seen
        more = sampler.more_of(sample, "chat:*", lambda key: key.startswith(b"chat:"))
    assert 200 <= len(more) < 2_000
    assert all(one.key.startswith(b"chat:") for one in more)
    assert not had & {one.key for one in more}
    assert sample.seen == seen + len(more)


def test_other_parts_of_sampled_sessions_are_looked_up(server: RedisServer) -> None:
    with server.client() as client:
        fill(client, "chat:", range(20_000), WEEK_S)
        fill(client, "chat:", range(20_000), 86_400, part=":messages")
        report = audit(server.url, expect={"chat:*": "7d"}, duty=1)
    found = report.findings[0]
    assert (found.cause, found.prefix) == ("mixed_ttl", "chat:")
    assert report.proof.commands["type"] > report.sample["keys"], "more than the sample: siblings"


def test_only_what_is_there_is_looked_up(server: RedisServer) -> None:
    with server.client() as client:
        fill(client, "chat:", range(150), WEEK_S)
    names = [f"chat:{number}".encode() for number in range(100, 400)]
    with sampler_of(server) as sampler:
        found = sampler.look_up(names)
        assert sampler.missing(names[:60]) == set(names[50:60])
    assert sorted(one.key for one in found) == sorted(names[:50])
    assert {one.kind for one in found} == {"string"}


# -- all, of which some are remembered ---------------------------------------------------------------------------------


def test_full_pass_counts_all_and_keeps_a_fair_part(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memkit.audit.sampling.KEPT_OF_ALL", 1_000)
    with server.client() as client:
        fill(client, "chat:", range(6_000), WEEK_S)
        client.eval("for n = 1, 77 do redis.call('SET', 'for-ever:' .. n, '1') end", 0)
    with sampler_of(server, sizes=True) as sampler:
        sample = sampler.full()
    assert (sample.seen, sample.of, sample.complete) == (6_077, 6_077, True)
    assert all((one.size_bytes or 0) > 30 for one in sample.keys)
    assert len({one.key for one in sample.keys}) == len(sample.keys) == 1_000
    assert 0.04 < sample.error_bound < 0.06
    numbers = [int(one.key.partition(b":")[2]) for one in sample.keys]
    # The mean of 1,000 of them is 2,963, give or take 55.
    assert sum(numbers) / 1_000 == pytest.approx(2_963, abs=330)
    order = [at for at, one in enumerate(scanned(server)) if one in {facts.key for facts in sample.keys}]
    halves = sum(at < 3_038 for at in order) / 1_000
    assert halves == pytest.approx(0.5, abs=0.1), "as many of the scan's beginning as of its end"


def scanned(server: RedisServer) -> list[bytes]:
    with server.client() as client:
        return list(client.scan_iter(count=1_000))


# -- stopped -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", [False, True])
def test_a_sample_ends_when_the_server_suffers(
    server: RedisServer, cluster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memkit.audit.sampling.GUARD_EVERY_S", 0)
    with server.client() as client:
        fill(client, "chat:", range(3_000), WEEK_S)
    with sampler_of(server, guard=lambda: "it suffers") as sampler:
        sample = sampler.sample(cluster=cluster, enough=1_000)
    assert (sample.stopped, sample.complete) == ("it suffers", False)
    assert 0 < len(sample.keys) <= 200


def test_keys_that_expire_meanwhile_are_left_out(server: RedisServer) -> None:
    with server.client() as client:
        fill(client, "chat:", range(500), WEEK_S)
        with sampler_of(server) as sampler:
            server.clock.shift("8d")
            sample = sampler.sample(cluster=False)
    assert sample.keys == []


def test_affected_keys_of_a_rare_pattern_are_counted(server: RedisServer) -> None:
    script = """
    for i = 1, 45000 do redis.call('SET', 'cache:' .. i, 'x', 'EX', 90000) end
    for i = 1, 1000 do redis.call('SET', 'chat:' .. i, 'x', 'EX', i % 10 < 3 and 300 or 604800) end"""
    with server.client() as client:
        client.eval(script, 0)
        report = audit(server.url, expect={"chat:*": "7d"}, duty=1)
    assert report.sample["error_bound"] > 0
    assert report.affected == {"now": 300, "within_5_min": 300, "expired_at_most": 0}


def test_a_pattern_read_in_part_is_scaled_by_its_share() -> None:
    facts = [KeyFacts(b"k", "string", 1, 0, 0, None)] * 100
    sample = Sample("scan", 10_000, list(facts))
    sample.add("chat:", 10, facts, complete=False)
    # 10 of 100 fair ones: 1,000 keys match, and 110 of these were looked at.
    assert sample.scales["chat:"] == pytest.approx(1_000 / 110)
    assert sample.error_bound == Sample("scan", 10_000, list(facts)).error_bound


@pytest.mark.parametrize("length", [2_000, 20_000, 200_000])
def test_full_pass_is_fair_if_dbsize_is_wrong(length: int) -> None:
    """Of 20,000 keys, 200 are kept: more keys are asked about only if DBSIZE was too low, fewer kept if too high."""
    positions: list[int] = []
    picked = 0
    for seed in range(100):
        reservoir = Reservoir(200, random.Random(seed), length=length)
        for first in range(0, 20_000, 500):
            for at in reservoir.picks(500):
                reservoir.put(KeyFacts(b"%d" % (first + at), "string", None, None, 0, None))
                picked += 1
        kept = [int(one.key) for one in reservoir.kept()]
        assert len(set(kept)) == len(kept)
        positions += kept
    # A tenth of 256 is 26, give or take 5 a pass.
    assert len(positions) / 100 == pytest.approx(200 if length <= 20_000 else 25.6, rel=0.06)
    if length == 20_000:
        assert 200 < picked / 100 < 260
    mean, error = sum(positions) / len(positions), 20_000 / (12 * len(positions)) ** 0.5
    assert mean == pytest.approx(10_000, abs=4 * error)
    halves = sum(at < 10_000 for at in positions) / len(positions)
    assert halves == pytest.approx(0.5, abs=2 / len(positions) ** 0.5)
