"""A real cluster and a real Sentinel, each started in a second or two; they end with their ``with`` block."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha1
from itertools import pairwise
from pathlib import Path
from random import SystemRandom
from tempfile import TemporaryDirectory
from typing import Any

import redis
import redis.cluster
from waiting import wait_for

from memkit.connect import SHORT_HANDSHAKE
from memkit.server import RedisServer

CALM_MS, HASTY_MS = 60_000, 500
"""A server counts as failed after so many milliseconds of silence. A busy machine pauses for less than CALM_MS."""
PRIMARIES = 3
SLOTS = 16384


@dataclass(frozen=True, slots=True)
class Cluster:
    """Three primaries, and as many replicas or none."""

    servers: list[RedisServer]

    @property
    def primaries(self) -> list[RedisServer]:
        return self.servers[:PRIMARIES]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def fail_over_after(self, silence_ms: int) -> None:
        """Let a replica take over after such a silence, from now on."""
        for server in self.servers:
            if server.running:
                with server.client() as client:
                    client.config_set("cluster-node-timeout", silence_ms)

    def client(self, **options: Any) -> redis.RedisCluster:
        nodes = [redis.cluster.ClusterNode("127.0.0.1", server.port or 0) for server in self.servers]
        return redis.RedisCluster(startup_nodes=nodes, **SHORT_HANDSHAKE | options)

    def serving(self, key: str | bytes) -> RedisServer:
        """Return the server that now has the slot of a key."""
        with self.client() as client:
            port = client.get_node_from_key(key).port
        return next(server for server in self.servers if server.port == port)


def move_slot(made: Cluster, slot: int, *, keys: int = 1_000, finish: bool = True) -> int:
    """Move a slot to another primary as redis-cli does; return how many keys were moved."""
    with made.client() as client:
        owner = client.nodes_manager.get_node_from_slot(slot)
        other = next(node for node in client.get_primaries() if node.port != owner.port)
        source, target = (client.get_redis_connection(node) for node in (owner, other))
        ids = [node.execute_command("CLUSTER MYID") for node in (source, target)]
        source_id, target_id = (each.decode() if isinstance(each, bytes) else each for each in ids)
        target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source_id)
        source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target_id)
        names = source.execute_command("CLUSTER GETKEYSINSLOT", slot, keys)
        if names:
            source.execute_command("MIGRATE", "127.0.0.1", other.port, "", 0, 5_000, "KEYS", *names)
        for node in (target, source) if finish else ():
            node.execute_command("CLUSTER SETSLOT", slot, "NODE", target_id)
        return len(names)


@contextmanager
def cluster(
    binary: Path | str, *, replicas: bool = True, persist: bool = False, node_timeout_ms: int = CALM_MS
) -> Iterator[Cluster]:
    """Start a cluster. ``node_timeout_ms``: after so long a silence a replica takes over; see ``fail_over_after``."""
    number = 2 * PRIMARIES if replicas else PRIMARIES
    ports = list(cluster_ports(number))
    told, buses = [port for port, _ in ports], [bus for _, bus in ports]
    with TemporaryDirectory(prefix="memkit-nodes-") as folder, ExitStack() as stack:
        servers = []
        for index, port in enumerate(told):
            nodes = Path(folder, f"{index}.conf")
            nodes.write_text(known_nodes(told, buses, index))
            settings: dict[str, object] = {
                "cluster-enabled": "yes",
                "cluster-config-file": nodes,
                "cluster-node-timeout": node_timeout_ms,
                "repl-diskless-sync-delay": 0,
            }
            server = RedisServer(binary=binary, port=0, config=settings, persist=persist)
            server.port = port
            servers.append(stack.enter_context(server))
        made = Cluster(servers)
        for server in servers:
            # A primary waits 2 s before it takes writes: let its clock go on by as much.
            server.clock.shift("3s")
        settle(made)
        yield made


def cluster_ports(number: int) -> Iterator[tuple[int, int]]:
    """Yield free ports whose bus port, 10,000 above, is free as well (6.2 cannot be told another).

    Both are below 32,768, from where on Linux gives them to outgoing connections: one took a bus port in between. Each
    worker has a thousand of its own: two that look at once see the same one free.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 11_000 + worker % 10 * 1_000
    dice = SystemRandom()
    found: set[int] = set()
    while len(found) < number:
        port = dice.randrange(first, first + 1_000)
        if port not in found and can_listen(port) and can_listen(port + 10_000):
            found.add(port)
            yield port, port + 10_000


def can_listen(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


def known_nodes(ports: Sequence[int], buses: Sequence[int], myself: int) -> str:
    """Return a nodes.conf in which everybody knows everybody: no introductions, no epochs to settle."""
    ends = [SLOTS * n // PRIMARIES for n in range(PRIMARIES + 1)]
    slots = [f"{start}-{end - 1}" for start, end in pairwise(ends)]
    ids = [sha1(b"%d" % n, usedforsecurity=False).hexdigest() for n in range(len(ports))]
    lines = []
    for n, (port, bus) in enumerate(zip(ports, buses, strict=True)):
        primary = n < PRIMARIES
        role = "master -" if primary else f"slave {ids[n - PRIMARIES]}"
        flags, _, of = role.partition(" ")
        mine = "myself," if n == myself else ""
        epoch, served = n % PRIMARIES + 1, slots[n] if primary else ""
        lines.append(f"{ids[n]} 127.0.0.1:{port}@{bus} {mine}{flags} {of} 0 0 {epoch} connected {served}".rstrip())
    return "\n".join([*lines, f"vars currentEpoch {PRIMARIES} lastVoteEpoch 0", ""])


def settle(made: Cluster) -> None:
    """Wait until every node serves and all agree on the owner of each slot.

    A primary that was started again answers CLUSTERDOWN for 5 s, and takes its old slots for its own until another
    node corrects it.
    """
    wait_for("nodes that are ready", lambda: list(map(is_ready, made.servers)), all)
    wait_for("one view of the slots", lambda: list(map(slot_owners, made.servers)), agree)


def slot_owners(server: RedisServer) -> set[tuple[int, int, int]]:
    """Return the ranges of slots and the port of their primary, as one node knows them."""
    with server.client() as client:
        return {(start, end, primary[1]) for start, end, primary, *_ in client.execute_command("CLUSTER SLOTS")}


def lists_replicas(server: RedisServer) -> bool:
    """Whether a node lists a replica for each range of slots: from 7.0 on only one that has received a write."""
    with server.client() as client:
        return all(len(nodes) > 1 for _, _, *nodes in client.execute_command("CLUSTER SLOTS"))


def agree(views: Sequence[set[tuple[int, int, int]]]) -> bool:
    """Whether the nodes know the same owners, of all slots."""
    return all(view == views[0] for view in views) and sum(end - start + 1 for start, end, _ in views[0]) == SLOTS


def is_ready(server: RedisServer) -> bool:
    with server.client(decode_responses=True) as client:
        replication = client.info("replication")
        linked = replication["role"] == "master" or replication["master_link_status"] == "up"
        state = client.execute_command("CLUSTER INFO")
        return linked and "ok" in (state.get("cluster_state") if isinstance(state, dict) else state)


class SentinelServer(RedisServer):
    """The same binary as a Sentinel: it wants a file of its own to write to."""

    def __init__(self, *, binary: Path | str, lines: Sequence[str]) -> None:
        super().__init__(binary=binary, port=0)
        self._lines = lines

    def _arguments(self) -> list[str]:
        own = [f"port {self.port}", f"unixsocket {self.socket_path}", f"dir {self.directory}", "bind 127.0.0.1"]
        own += [f"logfile {self.directory}/log", f"pidfile {self.directory}/pid"]
        file = self.directory / "sentinel.conf"
        file.write_text("\n".join([*own, *self._lines, ""]))
        return [str(file), "--sentinel"]


@dataclass(frozen=True, slots=True)
class Watched:
    """A primary, its replica, and the Sentinel that watches them as ``service``."""

    servers: list[RedisServer]
    sentinel: RedisServer
    service: str = "mem"

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/{self.service}/0"

    def fail_over_after(self, silence_ms: int) -> None:
        """Let Sentinel fail over after such a silence, from now on."""
        with self.sentinel.client() as client:
            client.execute_command("SENTINEL", "SET", self.service, "down-after-milliseconds", silence_ms)

    def primary(self) -> RedisServer:
        """Return the server that Sentinel now names."""
        with self.sentinel.client() as client:
            port = int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)[1])
        return next(server for server in self.servers if server.port == port)


@contextmanager
def watched(binary: Path | str, *, persist: bool = False) -> Iterator[Watched]:
    """Start a primary, a replica and a Sentinel, which fails over when it is told to be hasty."""
    with ExitStack() as stack:
        settings = {"repl-diskless-sync-delay": 0}
        primary = stack.enter_context(RedisServer(binary=binary, port=0, config=settings, persist=persist))
        follows = settings | {"replicaof": f"127.0.0.1 {primary.port}"}
        replica = stack.enter_context(RedisServer(binary=binary, port=0, config=follows, persist=persist))
        lines = [
            f"sentinel monitor mem 127.0.0.1 {primary.port} 1",
            f"sentinel down-after-milliseconds mem {CALM_MS}",
            "sentinel failover-timeout mem 2000",
        ]
        sentinel = stack.enter_context(SentinelServer(binary=binary, lines=lines))
        made = Watched([primary, replica], sentinel)
        wait_for("a replica that has caught up", lambda: is_linked(replica))
        wait_for("a Sentinel that knows the replica", lambda: knows_replica(sentinel))
        yield made


def is_linked(server: RedisServer) -> bool:
    with server.client() as client:
        return bool(client.info("replication").get("master_link_status") == "up")


def knows_replica(sentinel: RedisServer) -> bool:
    with sentinel.client() as client:
        seen = client.sentinel_slaves("mem")
        return bool(seen and seen[0]["master-link-status"] == "ok" and not seen[0]["is_sdown"])
