"""A server of a cluster: a key whose slot moves to another server is deleted there by DEL, and was not deleted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis.crc import key_slot
from servers import binary_of, needs
from test_history import CANARY, WEEK_MS
from test_record import cause, has, recorded
from test_record import recording as recording_of_names
from test_record_stream import recording as recording_of_stream
from topology import PRIMARIES, Cluster, cluster, move_slot, settle
from waiting import wait_for

from memkit.history.record import Replication
from memkit.history.run import history
from memkit.server import RedisServer

MOVED = "chat:{moved}"


@pytest.fixture(params=["redis-7.0", "redis-8.2", "valkey-9"])
def nodes(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    binary = binary_of(request.param)
    with cluster(binary.path) as made:
        yield made


def test_moved_key_is_told_from_a_deleted_one(nodes: Cluster, tmp_path: Path) -> None:
    server = nodes.serving(MOVED)
    paths = {name: tmp_path / f"{name}.db" for name in ("names", "stream")}
    kept = next(key for key in map("chat:kept-{}".format, range(100)) if nodes.serving(key) is server)
    with ExitStack() as stack:
        client = stack.enter_context(nodes.client())
        for key in MOVED, kept:
            client.set(key, CANARY, px=WEEK_MS)
        stack.enter_context(recording_of_names(server, paths["names"]))
        stack.enter_context(recording_of_stream(server.url, paths["stream"], replication="primary"))
        assert move_slot(nodes, key_slot(MOVED.encode())) == 1
        for path in paths.values():
            recorded(path, lambda seen: any(key == MOVED.encode() and name != "written" for key, name in seen))
        client.delete(kept)
        for path in paths.values():
            recorded(path, lambda seen: any(key == kept.encode() and name != "written" for key, name in seen))
    settle(nodes)
    sources: list[tuple[str | Path, Replication | None]] = [(path, None) for path in paths.values()]
    for source, replication in [*sources, (server.url, "primary"), (replica_of(nodes, server).url, "replica")]:
        found = history(source, session=MOVED, replication=replication)
        assert found.gaps == ()
        assert found.fate is not None
        assert "renamed" in (found.fate.cause, *(found.fate.either or ()))
        assert "to another" in found.fate.sentence
        fate = history(source, session=kept, replication=replication).fate
        assert fate is not None
        assert "renamed" not in (fate.cause, *(fate.either or ()))


def replica_of(nodes: Cluster, server: RedisServer) -> RedisServer:
    return nodes.servers[nodes.servers.index(server) + PRIMARIES]


def test_replica_of_a_cluster_is_recorded(nodes: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "replica.db"
    with nodes.client() as client, recording_of_names(replica_of(nodes, nodes.serving(MOVED)), path):
        client.set(MOVED, CANARY, px=WEEK_MS)
        recorded(path, has(MOVED.encode(), "written"))
    found = history(path, session=MOVED)
    assert found.fate is not None
    assert (found.fate.cause, found.gaps) == ("exists", ())


def test_key_of_an_imported_slot_is_recorded(nodes: Cluster, tmp_path: Path) -> None:
    others = [node for node in nodes.primaries if node is not nodes.serving(MOVED)]
    paths = {node.url: tmp_path / f"{node.port}.db" for node in others}
    with nodes.client() as client, ExitStack() as stack:
        client.set(MOVED, CANARY, px=WEEK_MS)
        for node in others:
            stack.enter_context(recording_of_names(node, paths[node.url]))
        assert move_slot(nodes, key_slot(MOVED.encode())) == 1
        # Each node answers by its own view, which may be old for a moment.
        path = paths[wait_for("the slot's new server", lambda: nodes.serving(MOVED).url, paths.__contains__)]
        wait_for("the key in the recording", lambda: cause(path, MOVED), "exists".__eq__)
        client.delete(MOVED)
        recorded(path, has(MOVED.encode(), "deleted"))
    assert cause(path, MOVED) == "deleted"


def test_log_of_a_cluster_leaves_moved_keys_open(nodes: Cluster) -> None:
    """The base of a log shows from Redis 7.4 and Valkey 8 on that its server is one of a cluster."""
    server = nodes.serving(MOVED)
    needs(server, "information about slots in its files", redis="7.4", valkey="8.0")
    with nodes.client() as client, server.client() as node:
        client.mset({f"{MOVED}:{name}": CANARY for name in "ab"})
        node.config_set("appendonly", "yes")
        wait_for("a log", lambda: node.info("persistence")["aof_rewrite_in_progress"], (0).__eq__)
        move_slot(nodes, key_slot(MOVED.encode()))
    fate = history(server.directory / "appendonlydir", session="a").fate
    assert fate is not None
    assert fate.either is not None
    assert fate.either[:2] == ("renamed", "deleted")


def test_log_that_began_empty_leaves_moved_keys_open(nodes: Cluster) -> None:
    """Its base has no key, and so no slot; but a server of a cluster keeps its nodes in a file beside the log."""
    server = nodes.serving(MOVED)
    with nodes.client() as client, server.client() as node:
        node.config_set("appendonly", "yes")
        wait_for("a log", lambda: node.info("persistence")["aof_rewrite_in_progress"], (0).__eq__)
        client.set(MOVED, CANARY)
        move_slot(nodes, key_slot(MOVED.encode()))
        shutil.copy(node.config_get("cluster-config-file")["cluster-config-file"], server.directory / "nodes.conf")
    fate = history(server.directory / "appendonlydir", session=MOVED).fate
    assert fate is not None
    assert fate.either is not None
    assert fate.either[:2] == ("renamed", "deleted")
