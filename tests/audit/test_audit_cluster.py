"""The audit of a Redis Cluster: the same counts from every node, shards in parallel, resharding and failover."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
import redis.crc
from servers import LANES, binary_of, every_server
from topology import Cluster, cluster, lists_replicas, move_slot
from waiting import wait_for

from memkit.audit import audit
from memkit.audit.sampling import KEPT_OF_ALL
from memkit.errors import SessionNotFound
from memkit.inspect import inspect_session
from memkit.server import RedisServer

BINARY = every_server()[next(name for name, binary in every_server().items() if binary)]
WEEK_S, MINUTES_S = 604_800, 300
SLOTS = 16_384


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    assert BINARY
    with cluster(BINARY.path) as made:
        yield made


def fill(made: Cluster, keys: int, *, short: int = 0) -> None:
    with made.client() as client:
        for start in range(0, keys, 1_000):
            pipe = client.pipeline()
            for number in range(start, min(start + 1_000, keys)):
                pipe.set(f"chat:{number}", "{}", ex=MINUTES_S if number < short else WEEK_S)
            pipe.execute()


def test_every_node_gives_the_same_counts(nodes: Cluster) -> None:
    fill(nodes, 900, short=300)
    urls = [nodes.url, *(f"redis://127.0.0.1:{server.port}" for server in nodes.servers)]
    for full in (False, True):
        reports = [audit(url, expect={"chat:*": "7d"}, full=full, duty=1) for url in urls]
        assert {(one.sample["keys"], one.sample["of"], one.sample["error_bound"]) for one in reports} == {
            (900, 900, 0.0)
        }
        found = {(one.verdict.cause, one.findings[0].prefix, one.findings[0].keys) for one in reports}
        assert found == {(reports[0].verdict.cause, "chat:", 300)}


def type_calls(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.info("commandstats").get("cmdstat_type", {}).get("calls", 0))


def test_replica_of_a_cluster_is_read_on_each_shard(nodes: Cluster) -> None:
    fill(nodes, 1_500, short=500)
    for server in nodes.primaries:
        with server.client() as client:
            client.execute_command("WAIT", 1, 60_000)
    wait_for("listed replicas", lambda: list(map(lists_replicas, nodes.servers)), all)
    given = [nodes.url, *(f"redis://127.0.0.1:{nodes.servers[at].port}" for at in (0, 4))]
    for full, url in zip((False, True, False), given, strict=True):
        before = list(map(type_calls, nodes.servers))
        report = audit(nodes.url, expect={"chat:*": "7d"}, full=full, duty=1, replica=url)
        read = [now - then for now, then in zip(map(type_calls, nodes.servers), before, strict=True)]
        assert report.sample["keys"] == 1_500
        assert [one.keys for one in report.findings if one.prefix == "chat:"] == [500], report.findings
        assert not [note for note in report.notes if "replica" in note or "moved" in note]
        assert read[:3] == [0, 0, 0] or full  # a full audit reads values, on the primaries
        assert sum(read[3:]) == 1_500


@pytest.mark.parametrize("flushed", [True, False])
def test_flush_of_one_shard(flushed: bool) -> None:
    assert BINARY
    with cluster(BINARY.path, replicas=False) as made, made.client() as client:
        last = made.primaries[-1]
        for number in range(300):
            client.set(f"chat:{number}", "{}", ex=WEEK_S)
            if number % 60 == 59:
                for server in made.servers:
                    server.clock.shift("1d")
        if flushed:
            with last.client() as one:
                one.flushall()
        for number in range(300, 330):
            client.set(f"chat:{number}", "{}", ex=WEEK_S)
        report = audit(made.url, expect={"chat:*": "7d"}, duty=1)
        name = f"127.0.0.1:{last.port}: FLUSHALL "
        assert [one.message.startswith(name) for one in report.findings if one.cause == "flushed"] == [True] * flushed
        assert [note.startswith(name) for note in report.notes if "FLUSHALL" in note] == [True] * flushed


def test_shards_without_a_replica_are_a_note() -> None:
    assert BINARY
    with cluster(BINARY.path, replicas=False) as made:
        fill(made, 300)
        report = audit(made.url, expect={"chat:*": "7d"}, duty=1, replica=made.url)
    assert report.sample["keys"] == 300
    ports = sorted(f"127.0.0.1:{server.port}" for server in made.servers)
    assert any(note.startswith(f"read on {', '.join(ports)}, not on a replica") for note in report.notes), report.notes


def test_a_full_pass_keeps_a_fair_part_of_each_shard(nodes: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memkit.audit.sampling.KEPT_OF_ALL", 1_500)
    assert KEPT_OF_ALL > 1_500
    fill(nodes, 9_000, short=3_000)
    report = audit(nodes.url, expect={"chat:*": "7d"}, full=True, duty=1)
    assert (report.sample["keys"], report.sample["of"]) == (9_000, 9_000)
    assert 1_450 <= len(report.keys) <= 1_500
    assert len({one.key for one in report.keys}) == len(report.keys)
    found = report.findings[0]
    # A third of 1,500 is 500, give or take 18.
    assert found.keys / found.sampled == pytest.approx(1 / 3, abs=0.06)


def test_parts_of_sessions_on_other_shards_are_found(nodes: Cluster) -> None:
    with nodes.client() as client:
        for number in range(200):
            client.set(f"chat:{number}", "{}", ex=WEEK_S)
            client.set(f"chat:{number}:messages", "{}", ex=86_400)
    report = audit(nodes.url, expect={"chat:*": "7d"}, duty=1)
    assert report.findings[0].cause == "mixed_ttl"


def test_failing_shard_is_reported_and_the_others_read(nodes: Cluster) -> None:
    """The replica takes over after a second in which no shard answers about keys."""
    fill(nodes, 12_000, short=6_000)
    failing = nodes.primaries[1]
    with failing.client() as client:
        lost = client.dbsize()
    stopped: list[int] = []

    def stop(done: int, _of: int) -> None:
        if not stopped:
            stopped.append(done)
            failing.stop()

    report = audit(nodes.url, expect={"chat:*": "7d"}, full=True, duty=0.02, progress=stop)
    assert stopped
    assert any(f"127.0.0.1:{failing.port} failed during the audit" in note for note in report.notes), report.notes
    assert 12_000 - lost <= report.sample["keys"] < 12_000
    assert report.sample["error_bound"] > 0
    assert report.findings[0].prefix == "chat:"


def test_shard_without_a_server_is_not_healthy() -> None:
    assert BINARY
    with cluster(BINARY.path, replicas=False, persist=True) as made:
        for server in made.servers:
            server.clock.shift("-3s")  # the cluster was started with its clocks ahead
        fill(made, 300)
        assert audit(made.url, expect={"chat:*": "7d"}, duty=1).verdict.status == "healthy"
        lost = made.primaries[0]
        with lost.client() as client:
            keys = client.dbsize()
        lost.kill()
        for url in made.url, f"redis://127.0.0.1:{made.primaries[2].port}":
            report = audit(url, expect={"chat:*": "7d"}, duty=1)
            assert (report.verdict.status, report.exit_code, report.sample["keys"]) == ("undetermined", 2, 300 - keys)
            assert report.verdict.sentence.startswith("1 of 3 servers of the cluster did not answer")
            assert f"127.0.0.1:{lost.port}" in report.verdict.sentence


def test_session_in_a_moving_slot_is_not_called_lost() -> None:
    assert BINARY
    with cluster(BINARY.path, replicas=False) as made:
        fill(made, 1)
        move_slot(made, redis.crc.key_slot(b"chat:0"), finish=False)
        with pytest.raises(SessionNotFound, match="its slot is being moved"):
            inspect_session(made.url, "chat:0")
        with pytest.raises(SessionNotFound, match="It may have expired"):
            inspect_session(made.url, "chat:9")


def test_slow_log_of_each_shard_is_read() -> None:
    assert BINARY
    with cluster(BINARY.path, replicas=False, persist=True) as made:
        fill(made, 300)
        last = made.primaries[2]
        with last.client() as client:
            client.config_set("slowlog-log-slower-than", 0)
            for key in client.keys()[:20]:
                client.delete(key)
            client.set("{" + key.decode() + "}:short", "x", px=1)
            wait_for("its end", lambda: client.info("stats")["expired_keys"], (1).__eq__)
        report = audit(made.url, expect={"chat:*": "7d"}, duty=1)
    (found,) = (one for one in report.findings if one.cause == "deleted")
    assert (found.confidence, found.keys) == ("proven", 20)
    assert report.counters["expired_keys"] == 1


def test_slots_that_move_are_reported(nodes: Cluster) -> None:
    fill(nodes, 12_000, short=6_000)
    moved: list[int] = []

    def move(_done: int, _of: int) -> None:
        if len(moved) < 20:
            moved.append(move_slot(nodes, len(moved) * 800))

    report = audit(nodes.url, expect={"chat:*": "7d"}, full=True, duty=0.02, progress=move)
    assert f"{len(moved)} slots of the cluster moved" in "\n".join(report.notes)
    assert report.sample["keys"] == pytest.approx(12_000, abs=2 * sum(moved))
    assert report.findings[0].prefix == "chat:"
    assert not [one for one in report.findings if one.cause == "deleted"]


@pytest.mark.parametrize("lane", every_server())
def test_slot_that_is_moving_crashes_no_server(lane: str) -> None:
    """With CLIENT NO-TOUCH, Redis 8.2 crashes when a key of such a slot is looked up."""
    binary = binary_of(lane)
    with cluster(binary.path, replicas=False) as nodes:
        fill(nodes, 900)
        slot = redis.crc.key_slot(b"chat:17")
        with nodes.client() as client:
            for number in range(30):
                client.set(f"chat:{{chat:17}}:{number}", "{}", ex=WEEK_S)
        assert move_slot(nodes, slot, keys=20, finish=False) == 20
        report = audit(nodes.url, expect={"chat:*": "7d"}, duty=1)
        # The server that imports the slot has them, and sends readers to the other until the slot is its own.
        assert "20 keys moved to another server before they were read" in report.notes
        assert report.sample["keys"] == 910
        assert not [finding for finding in report.findings if finding.prefix]
        full = audit(nodes.url, expect={"chat:*": "7d"}, full=True, touch=True, duty=1)
        assert not [finding for finding in full.findings if finding.prefix]
        assert bool(full.proof.idle_clocks_touched) == (lane != "valkey-9")
        inspect_session(nodes.url, "chat:17")
        assert all(server.running for server in nodes.servers)


def test_field_ttls_in_a_cluster_are_read_if_allowed() -> None:
    binary = every_server()["redis-8.2"]
    if not binary:
        pytest.skip(f"no redis-8.2 on this machine: {LANES['redis-8.2']}")
    with cluster(binary.path, replicas=False) as nodes:
        with nodes.client() as client:
            for number in range(40):
                client.hset(f"chat:{number}", mapping={"text": "hi"})
                client.hexpire(f"chat:{number}", WEEK_S, "text")
        report = audit(nodes.url, expect={"chat:*": "7d"}, duty=1)
        assert report.proof.idle_clocks_touched == 0
        assert "none of 40 keys matching chat:* shows that writes set a TTL of 7d" in str(report.notes)
        assert any(note.startswith("not checked: 40 hashes without a TTL") for note in report.notes)
        allowed = audit(nodes.url, expect={"chat:*": "7d"}, touch=True, duty=1)
        assert allowed.proof.idle_clocks_touched == 40
        for one in (report, allowed):
            assert not [finding for finding in one.findings if finding.prefix]


def test_cluster_with_only_failing_servers_is_an_error(nodes: Cluster) -> None:
    fill(nodes, 3_000)
    stopped: list[int] = []

    def stop(done: int, _of: int) -> None:
        if not stopped:
            stopped.append(done)
            for server in nodes.servers:
                server.stop()

    with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
        audit(nodes.url, expect={"chat:*": "7d"}, full=True, duty=0.005, progress=stop)
