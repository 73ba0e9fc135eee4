"""open_target: from a URL or a client to a connection for each server that has keys."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import redis
import redis.asyncio
from redis.cluster import RedisCluster
from redis.crc import key_slot

from memkit.connect import SHORT_HANDSHAKE, connect, place, redact
from memkit.errors import PolicyError
from memkit.readonly.connection import ReadOnlyConnection, refused

CONNECT_TIMEOUT_S = 5.0
Route = Callable[[bytes], ReadOnlyConnection]
Slots = Sequence[Any]
"""The reply to CLUSTER SLOTS: first and last slot, then the primary (host, port, id), then its replicas."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A file as a source: what it is and of when, and what the private server that has its data does not show.

    ``version`` is that of the server that wrote the file. ``keys`` is how many keys existed at ``taken_at`` in
    ``database``, the one that is read; ``databases`` are all that have keys, with their numbers of keys. Without
    ``has_idle_times`` the file does not show when a key was accessed. ``cut_bytes`` is the size of the incomplete
    command or transaction with which a log ends.
    """

    kind: Literal["rdb", "aof"]
    name: str
    taken_at: datetime
    flavour: str
    version: str
    has_idle_times: bool
    keys: int = 0
    database: int = 0
    databases: Mapping[int, int] = field(default_factory=dict)
    cut_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """An open Redis: ``connections`` has the one server, or one for each shard of a cluster, in the order of the slots.

    Keys of RDB files that are read as a stream have no server, and the target no connection. ``route`` returns the
    connection for a key. ``slot_owners`` has the id of each slot's primary when the target was opened; it is empty
    without a cluster. ``prefix`` is that of a sandbox's client, else empty. ``url`` has no password. ``snapshot`` is
    None for a live server.
    """

    url: str
    connections: tuple[ReadOnlyConnection, ...]
    route: Route
    slot_owners: Mapping[int, bytes] = field(default_factory=dict)
    prefix: str = ""
    snapshot: Snapshot | None = None

    def moved_slots(self) -> int:
        """Return how many slots have another primary than when the target was opened, or none."""
        for connection in self.connections if self.slot_owners else ():
            with suppress(redis.RedisError):
                owners = _slot_owners(_slots(connection))
                if owners:
                    return sum(owners.get(slot) != owner for slot, owner in self.slot_owners.items())
        return 0

    @property
    def why_idle_times_reset(self) -> str:
        """Why reading a value resets its idle time; empty if it does not."""
        return next((each.why_idle_times_reset for each in self.connections if each.why_idle_times_reset), "")


@contextmanager
def open_target(url_or_client: str | Any, *, tolerant: bool = False, replicas: bool = False) -> Iterator[Target]:
    """Open connections to a server, or to each primary of a cluster; they are closed at the end.

    Args:
        url_or_client: A Redis URL (standalone, Sentinel, cluster, or one node of a cluster), or a synchronous redis-py
            client. A client's pool is not used: the connections are new ones with its settings.
        tolerant: Of a cluster, go on without a server that does not answer, or stops: see ReadOnlyConnection.
        replicas: Of a cluster, open a replica of each primary that has one.

    Raises:
        PolicyError: Neither a URL nor a synchronous client.
        ServerError: An invalid URL.
        redis.RedisError: The server cannot be reached, or refuses the credentials.
    """
    client = url_or_client
    if isinstance(client, str):
        timeouts = {"socket_timeout": CONNECT_TIMEOUT_S, "socket_connect_timeout": CONNECT_TIMEOUT_S}
        client = connect(client, **SHORT_HANDSHAKE, **timeouts)
    if isinstance(client, redis.asyncio.Redis | redis.asyncio.RedisCluster):
        raise PolicyError("this client is asynchronous; a Redis URL or a synchronous redis.Redis client is expected")
    if not isinstance(client, redis.Redis | RedisCluster):
        raise PolicyError(f"a Redis URL or a redis.Redis client is expected, not {type(client).__name__}")
    opened: list[ReadOnlyConnection] = []
    try:
        route, slots = _open_servers(client, opened, replicas=replicas, tolerant=tolerant)
        if all(one.failure for one in opened):
            raise next(one.failure for one in opened if one.failure)
        url = redact(url_or_client) if isinstance(url_or_client, str) else opened[0].name
        for connection in opened:
            connection.tolerant = tolerant and len(opened) > 1
        yield Target(url, tuple(opened), route, _slot_owners(slots), getattr(client, "_test_prefix", ""))
    finally:
        for connection in opened:
            with suppress(redis.RedisError, OSError):
                connection.close()
        if isinstance(url_or_client, str):
            client.close()


def _open_servers(
    client: redis.Redis | RedisCluster, opened: list[ReadOnlyConnection], *, replicas: bool, tolerant: bool
) -> tuple[Route, Slots]:
    """Open the server; of a cluster, or of a node of one, the primaries that have slots, or a replica of each."""
    seeds: list[redis.Redis] = [client] if isinstance(client, redis.Redis) else []
    seeds += [] if isinstance(client, redis.Redis) else map(client.get_redis_connection, client.get_nodes())
    for seed in seeds:
        first = ReadOnlyConnection(seed, name=place(seed), tolerant=seed is not seeds[-1])
        if not first.failure:
            break
    first.tolerant = False
    opened.append(first)
    options = seed.connection_pool.connection_kwargs
    info = first.ask("INFO", "cluster")
    in_cluster = isinstance(client, RedisCluster) or (not refused(info) and b"cluster_enabled:1" in info)
    slots = _slots(first) if in_cluster else []
    own_id = first.ask("CLUSTER", "MYID") if slots else b""
    if slots:
        first.name = first.name.removesuffix("/0")  # a cluster has only database 0
    by_id: dict[bytes, ReadOnlyConnection] = {}
    by_slot: dict[int, ReadOnlyConnection] = {}
    for start, end, *nodes in sorted(slots, key=lambda one: one[0]):
        host, port, node_id, *_ = nodes[1] if replicas and len(nodes) > 1 else nodes[0]  # the primary comes first
        if node_id == own_id and not replicas:
            by_id[node_id] = first
        elif node_id not in by_id:
            host, port = host.decode() if host else options.get("host", "127.0.0.1"), int(port)
            if isinstance(client, RedisCluster):
                host, port = client.nodes_manager.remap_host_port(host, port)
            address = {"host": host, "port": port}
            by_id[node_id] = ReadOnlyConnection(
                _at(seed, address), name=f"{host}:{port}", replica=replicas, tolerant=tolerant
            )
            opened.append(by_id[node_id])
        by_slot |= dict.fromkeys(range(start, end + 1), by_id[node_id])
    if by_id:
        if first not in by_id.values():
            first.close()  # not chosen, or a primary without slots: its keys are those of another server, or none
        opened[:] = sorted(by_id.values(), key=lambda one: one.failure is not None)
    return lambda key: by_slot.get(key_slot(key), opened[0]) if by_slot else first, slots


def _at(client: redis.Redis, address: dict[str, Any]) -> redis.Redis:
    """Return a client with the same settings for another address; over TCP if this one uses a unix socket."""
    pool = client.connection_pool
    options = {name: value for name, value in pool.connection_kwargs.items() if name != "path"}
    over_unix = issubclass(pool.connection_class, redis.UnixDomainSocketConnection)
    connection_class = redis.Connection if over_unix else pool.connection_class
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class, **options | address))


def _slots(connection: ReadOnlyConnection) -> Slots:
    reply = connection.ask("CLUSTER", "SLOTS")
    return [] if refused(reply) else reply


def _slot_owners(slots: Slots) -> dict[int, bytes]:
    return {slot: node[2] for start, end, node, *_ in slots for slot in range(start, end + 1)}
