"""The store on a real cluster of three primaries with replicas: one slot a session, all are listed, failover."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import redis.cluster
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import binary_of, every_server
from stress import cluster_load
from stress.chaos import Chaos
from stress.exactly_once import TIMEOUT_S, Plan, retry, run
from test_sandbox import assert_told, assert_told_async
from test_store import STRANGE, calls
from topology import CALM_MS, HASTY_MS, PRIMARIES, Cluster, cluster, cluster_ports, known_nodes, settle
from waiting import wait_for

from memkit.connect import SHORT_HANDSHAKE, connect, connect_async
from memkit.errors import Conflict, DecodeError, PolicyShortenedWarning, ProductionGuardError, SandboxError
from memkit.policy import ExpiryPolicy
from memkit.server import Sandbox, find_server
from memkit.store.operations import vectors_key
from memkit.store.store import AsyncMemoryStore, MemoryStore

HI = {"role": "user", "content": "hi"}
ROUND_ROBIN = redis.cluster.LoadBalancingStrategy.ROUND_ROBIN


@pytest.fixture(scope="module", params=every_server())
def nodes(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    binary = binary_of(request.param)
    with cluster(binary.path) as made:
        yield made


@pytest.fixture
def client(
    nodes: Cluster, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Iterator[redis.RedisCluster]:
    record_property("server", request.node.callspec.params["nodes"])
    for server in nodes.servers:
        with server.client() as node:
            if node.info("replication")["role"] == "master":
                node.flushall()
    with connect(nodes.url) as client:
        assert isinstance(client, redis.RedisCluster)
        yield client


@pytest.fixture
def store(client: redis.RedisCluster) -> MemoryStore:
    return MemoryStore(client, prefix="session:", ttl="7d")


def test_everything_works_on_a_cluster(store: MemoryStore, client: redis.RedisCluster) -> None:
    slots = set()
    for n in range(30):
        session_id = str(n)
        store.append(session_id, HI, {"n": n})
        store.update(session_id, summary="s", metadata={"k": n})
        store.put_vectors(session_id, np.full(2, n, dtype="float32"))
        version = store.save(session_id, [{"n": n}])
        with pytest.raises(Conflict):
            store.save(session_id, [], version=version - 1)
        found = store.get(session_id)
        vectors = store.get_vectors(session_id)
        assert found is not None
        assert vectors is not None
        assert (found.messages, found.metadata, found.vectors_lost) == ([{"n": n}], {"k": n}, False)
        assert vectors.tolist() == [n, n]
        assert store.load(session_id, 1) == [{"n": n}]
        assert store.ttl(session_id) is not None
        slots.add(client.get_node_from_key(f"session:{session_id}").port)
    assert len(slots) == 3
    assert sorted(store.sessions(), key=int) == [str(n) for n in range(30)]
    for n in range(30):
        assert store.delete(str(n)) is True
    assert list(store.sessions()) == []
    assert client.dbsize(target_nodes=redis.RedisCluster.PRIMARIES) == 0


@pytest.mark.parametrize("name", sorted(calls(MemoryStore(redis.Redis(), prefix="", ttl=None))))
def test_a_repeated_call_changes_nothing(store: MemoryStore, name: str) -> None:
    store.append("a", HI)
    write = calls(store)[name]()
    store._write(write)
    before = store._client.lrange("session:a", 0, -1)
    store._write(write)
    assert store._client.lrange("session:a", 0, -1) == before


@pytest.mark.parametrize(
    "options", [{"decode_responses": True}, {"protocol": 3}, {"load_balancing_strategy": ROUND_ROBIN}]
)
def test_any_cluster_client_works(nodes: Cluster, options: dict[str, Any]) -> None:
    with nodes.client(**options) as other:
        store = MemoryStore(other, prefix="ü:", ttl="7d")
        store.save("🦜", [HI])
        with nodes.serving("ü:🦜").client() as node:
            node.execute_command("WAIT", 1, 120_000)
        wait_for("the message on the replica", lambda: store.load("🦜"), lambda seen: seen == [HI])
        assert list(store.sessions()) == ["🦜"]
        store.delete("🦜")


def test_warnings_and_decode_errors_on_a_cluster(store: MemoryStore, client: redis.RedisCluster) -> None:
    store.append("a", HI)
    with pytest.warns(PolicyShortenedWarning):
        MemoryStore(client, prefix="session:", ttl=ExpiryPolicy.absolute("5m")).append("a", HI)
    client.set("session:b", "x")
    for call in (
        lambda: store.append("b", HI),
        lambda: store.load("b"),
        lambda: store.get("b"),
        lambda: store.ttl("b"),
    ):
        with pytest.raises(DecodeError, match="another Redis type"):
            call()


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.text("{}ab", min_size=1, max_size=8))
@example("{")
@example("}")
@example("{}")
@example("{}{a}")
@example("}{a}")
@settings(max_examples=25)
def test_vectors_are_in_the_session_s_slot(client: redis.RedisCluster, key: str) -> None:
    vectors = vectors_key(key)
    assert vectors != key.encode()
    node = client.get_redis_connection(client.get_primaries()[0])
    assert node.execute_command("CLUSTER KEYSLOT", vectors) == node.execute_command("CLUSTER KEYSLOT", key.encode())


def test_unusual_ids_have_vectors(store: MemoryStore) -> None:
    for n, session_id in enumerate(STRANGE):
        store.append(session_id, HI)
        store.put_vectors(session_id, np.full(1, n, dtype="float32"))
    for n, session_id in enumerate(STRANGE):
        vectors = store.get_vectors(session_id)
        assert vectors is not None
        assert vectors.tolist() == [n]
    assert sorted(store.sessions()) == sorted(STRANGE)


def test_retries_is_what_the_client_does(nodes: Cluster) -> None:
    for options, expected in [({}, None), ({"retry": Retry(NoBackoff(), 2)}, 2)]:
        with nodes.client(**options) as client:
            client.retry._backoff = NoBackoff()
            store = MemoryStore(client, prefix="session:", ttl=None)
            sent = 0

            def broken(*_: Any, **__: Any) -> None:
                nonlocal sent
                sent += 1
                raise redis.ConnectionError("broken")

            for node in client.get_nodes():
                client.get_redis_connection(node).connection_pool.get_connection = broken  # type: ignore[method-assign]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(client.nodes_manager, "initialize", lambda *_, **__: None)
                with pytest.raises(redis.RedisError):
                    client.execute_command("GET", "session:a")
            assert store.retries == sent - 1
            assert expected is None or store.retries == expected


async def test_the_async_store_works_on_a_cluster(nodes: Cluster, client: redis.RedisCluster) -> None:
    assert client.ping()
    async_client = connect_async(nodes.url)
    try:
        store = AsyncMemoryStore(async_client, prefix="session:", ttl="7d")
        for n in range(20):
            await store.append(str(n), HI, {"n": n})
            await store.put_vectors(str(n), np.full(1, n, dtype="float32"))
        assert sorted([session_id async for session_id in store.sessions()], key=int) == [str(n) for n in range(20)]
        for n in range(20):
            found = await store.get(str(n))
            vectors = await store.get_vectors(str(n))
            assert found is not None
            assert vectors is not None
            assert (found.messages, found.vectors_lost, vectors.tolist()) == ([HI, {"n": n}], False, [n])
            assert await store.load(str(n), 1) == [{"n": n}]
    finally:
        await async_client.aclose()


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_refusal_is_explained(nodes: Cluster, client: redis.RedisCluster, protocol: int) -> None:
    with Sandbox(nodes.url) as sandbox:
        assert_told(sandbox, protocol=protocol)
        asyncio.run(assert_told_async(sandbox, protocol=protocol))
        again = sandbox.client()
        again.disconnect_connection_pools()  # type: ignore[union-attr]
        with pytest.raises(SandboxError) as caught:
            again.set("foreign", 1)
        assert str(caught.value).count("outside") == 1
        again.close()
    assert client.dbsize(target_nodes=redis.RedisCluster.PRIMARIES) == 0


@contextmanager
def foreign_cluster(folder: Path, binary: Path | str) -> Iterator[str]:
    """Start three primaries that memkit did not start; yields the URL of one. They take 2 s to take writes."""
    pairs = list(cluster_ports(PRIMARIES))
    ports, buses = [port for port, _ in pairs], [bus for _, bus in pairs]
    with ExitStack() as stack:
        for index, port in enumerate(ports):
            home = folder / str(port)
            home.mkdir()
            (home / "nodes.conf").write_text(known_nodes(ports, buses, index))
            options = f"--port {port} --bind 127.0.0.1 --cluster-enabled yes --save --dir".split()
            process = subprocess.Popen([binary, *options, home], stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        wait_for("nodes that take writes", lambda: list(map(takes_writes, ports)), all)
        yield f"redis+cluster://127.0.0.1:{ports[1]}"


def takes_writes(port: int) -> bool:
    try:
        with redis.Redis(port=port, **SHORT_HANDSHAKE) as node:
            return bool(re.search(r"cluster_state\W+ok", str(node.execute_command("CLUSTER INFO"))))  # text or dict
    except redis.ConnectionError:
        return False


def test_a_foreign_cluster_is_guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMKIT_ALLOW", raising=False)
    with foreign_cluster(tmp_path, find_server().path) as url, connect(url) as theirs:
        assert isinstance(theirs, redis.RedisCluster)
        with Sandbox(url) as sandbox, Sandbox(url) as neighbour, sandbox.client() as mine, neighbour.client() as others:
            for n in range(20):
                mine.set(f"{sandbox.prefix}{n}", n)
                others.set(f"{neighbour.prefix}{n}", n)
            with Sandbox(url):
                assert len(sandbox.keys()) == 20
        assert theirs.dbsize(target_nodes=redis.RedisCluster.PRIMARIES) == 0
        theirs.mset_nonatomic({f"customer:{n}": n for n in range(20)})
        with pytest.raises(ProductionGuardError, match="this database has 20 keys outside") as caught:
            Sandbox(url).open()
        assert theirs.dbsize(target_nodes=redis.RedisCluster.PRIMARIES) == 20
        value = str(caught.value).rpartition("MEMKIT_ALLOW=")[2]
        for allowed in (value, url.removeprefix("redis+cluster://") + "/0"):
            monkeypatch.setenv("MEMKIT_ALLOW", allowed)
            with Sandbox(url) as sandbox, sandbox.client() as mine:
                mine.set(f"{sandbox.prefix}k", 1)
        assert theirs.dbsize(target_nodes=redis.RedisCluster.PRIMARIES) == 20
        assert all(theirs.acl_users(target_nodes=node) == ["default"] for node in theirs.get_nodes())


def test_a_failover_keeps_what_was_replicated(nodes: Cluster) -> None:
    """Replication is asynchronous: what WAIT has confirmed is promised, no more."""
    with nodes.client(retry=retry(), socket_timeout=60) as client:
        store = MemoryStore(client, prefix="session:", ttl="7d")
        for n in range(20):
            store.append("failover", {"n": n})
        victim = nodes.serving("session:failover")
        with victim.client() as node:
            assert node.execute_command("WAIT", 1, 120_000) == 1
        victim.kill()
        nodes.fail_over_after(HASTY_MS)
        wait_for("a write after the failover", lambda: goes_on(store), "written".__eq__)
        assert (store.load("failover") or [])[:20] == [{"n": n} for n in range(20)]
        assert (store.load("failover") or [])[20:] == [{"id": "after"}]
        wait_for("another primary", lambda: nodes.serving("session:failover"), lambda seen: seen is not victim)
        victim.start()
        nodes.fail_over_after(CALM_MS)
    settle(nodes)


def goes_on(store: MemoryStore) -> str:
    """Write, and return what became of it."""
    try:
        store.append("failover", {"id": "after"})
    except redis.RedisError as error:
        return repr(error)
    return "written"


def test_load_with_resharding_and_a_failover() -> None:
    """What is lost is the newest of the killed primary, and nothing that a replica has confirmed."""
    binary = next(binary for binary in every_server().values() if binary)
    with cluster(binary.path) as made:
        outcome = cluster_load.run(made, seconds=3, writers=2, wait=True)
    assert outcome.faults == []
    assert outcome.confirmed > 100
    assert outcome.slots > 5


def test_exactly_once_on_a_cluster_under_faults(capsys: pytest.CaptureFixture[str]) -> None:
    name = next((name for name in ("redis-8.2", "valkey-9", "redis-7.0") if every_server().get(name)), None)
    binary = every_server()[name] if name else None
    if not binary:
        pytest.skip("no server for a cluster on this machine")
    plan = Plan(writer="cluster", seconds=3, acknowledged=50, faults=10, writers=3)
    with capsys.disabled():
        result = stressed(plan, binary.path)
        print(f"\n{name} cluster: {result}", file=sys.stderr)
    assert result.clean, result


def stressed(plan: Plan, binary: Any) -> Any:
    """Three primaries, each behind a proxy; the nodes announce its port. No replicas, as they guarantee nothing."""
    with ExitStack() as stack:
        proxies: list[Chaos] = []
        made = stack.enter_context(cluster(binary, replicas=False, persist=True, node_timeout_ms=10_000))
        for server in made.servers:
            proxy = stack.enter_context(Chaos(server.socket_path, rate=plan.rate, delay_s=1.5 * TIMEOUT_S))
            proxies.append(proxy)
            with server.client() as node:
                node.config_set("cluster-announce-port", proxy.port)
        ports = {one.port for one in proxies}
        wait_for("the proxies' ports", lambda: announced(made), lambda seen: seen == [ports] * PRIMARIES)
        with made.client(retry=retry()) as client:
            return run(plan, made.servers, proxies, client)


def announced(made: Cluster) -> list[set[int]]:
    """Whether each node announces the ports of the proxies."""
    seen = []
    for server in made.servers:
        with server.client(decode_responses=True) as node:
            seen += [{range_[2][1] for range_ in node.execute_command("CLUSTER SLOTS")}]
    return seen
