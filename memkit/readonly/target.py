"""open_target: from a URL or a client to a connection for each server that has keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
from redis.cluster import RedisCluster
from redis.crc import key_slot

from memkit.connect import connect, place, redact
from memkit.errors import PolicyError
from memkit.readonly.connection import ReadOnlyConnection, Reply, refused

CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Target:
    """An open Redis: ``connections`` has one for each primary of a cluster, or the one server.

    ``route`` returns the connection for a key. ``prefix`` is that of a sandbox's client, else empty. ``url`` has no
    password.
    """

    url: str
    connections: tuple[ReadOnlyConnection, ...]
    route: Callable[[bytes], ReadOnlyConnection]
    prefix: str = ""

    @property
    def touches_because(self) -> str:
        """Why reading a value resets its idle time; empty if it does not."""
        return next((each.touches_because for each in self.connections if each.touches_because), "")


@contextmanager
def open_target(url_or_client: str | Any) -> Iterator[Target]:
    """Open connections to a server, or to each primary of a cluster; they are closed at the end.

    Args:
        url_or_client: A Redis URL (standalone, Sentinel, cluster, or one node of a cluster), or a synchronous redis-py
            client. A client's pool is not used: the connections are new ones with its settings.

    Raises:
        PolicyError: Neither a URL nor a synchronous client.
        ServerError: An invalid URL.
        redis.RedisError: The server cannot be reached, or refuses the credentials.
    """
    client = url_or_client
    if isinstance(client, str):
        client = connect(client, socket_timeout=CONNECT_TIMEOUT_S, socket_connect_timeout=CONNECT_TIMEOUT_S)
    if isinstance(client, redis.asyncio.Redis | redis.asyncio.RedisCluster):
        raise PolicyError("this client is asynchronous; a Redis URL or a synchronous redis.Redis client is expected")
    if not isinstance(client, redis.Redis | RedisCluster):
        raise PolicyError(f"a Redis URL or a redis.Redis client is expected, not {type(client).__name__}")
    opened: list[ReadOnlyConnection] = []
    try:
        with _tls_hint(str(url_or_client)):
            route = _open_cluster(client, opened) if isinstance(client, RedisCluster) else _open_server(client, opened)
        prefix = getattr(client, "_test_prefix", "")
        prefix = prefix.decode("utf-8", "surrogateescape") if isinstance(prefix, bytes) else prefix
        url = redact(url_or_client) if isinstance(url_or_client, str) else opened[0].name
        yield Target(url, tuple(opened), route, prefix if isinstance(prefix, str) else "")
    finally:
        for connection in opened:
            with suppress(redis.RedisError, OSError):
                connection.close()
        if isinstance(url_or_client, str):
            client.close()


def _open_cluster(client: RedisCluster, opened: list[ReadOnlyConnection]) -> Callable[[bytes], ReadOnlyConnection]:
    opened.extend(
        ReadOnlyConnection(client.get_redis_connection(node), name=str(node.name)) for node in client.get_primaries()
    )
    by_name = {connection.name: connection for connection in opened}
    return lambda key: by_name[str(client.get_node_from_key(key).name)]


def _open_server(client: redis.Redis, opened: list[ReadOnlyConnection]) -> Callable[[bytes], ReadOnlyConnection]:
    """Open the server; if it is a node of a cluster, the primaries of that cluster."""
    first = ReadOnlyConnection(client, name=place(client))
    opened.append(first)
    options = client.connection_pool.connection_kwargs
    in_cluster = b"cluster_enabled:1" in _text(first.ask("INFO", "cluster"))
    if not in_cluster or "host" not in options or refused(slots := first.ask("CLUSTER", "SLOTS")):
        return lambda _key: first
    own_id = first.ask("CLUSTER", "MYID")
    by_id: dict[bytes, ReadOnlyConnection] = {}
    by_slot: dict[int, ReadOnlyConnection] = {}
    for start, end, (host, port, node_id, *_), *_ in slots:
        if node_id not in by_id and node_id == own_id:
            by_id[node_id] = first
        elif node_id not in by_id:
            address = {"host": host.decode() if host else options["host"], "port": int(port)}
            pool = redis.ConnectionPool(client.connection_pool.connection_class, **options | address)
            name = f"{address['host']}:{address['port']}"
            by_id[node_id] = ReadOnlyConnection(redis.Redis(connection_pool=pool), name=name)
            opened.append(by_id[node_id])
        by_slot |= dict.fromkeys(range(start, end + 1), by_id[node_id])
    if by_id and own_id not in by_id:
        # A replica, or a node without slots: its keys are those of a primary, or none.
        opened.remove(first)
        first.close()
    return lambda key: by_slot.get(key_slot(key), opened[0])


def _text(reply: Reply) -> bytes:
    return reply if isinstance(reply, bytes) else b""


@contextmanager
def _tls_hint(url: str) -> Iterator[None]:
    try:
        yield
    except (redis.TimeoutError, redis.ConnectionError) as error:
        if isinstance(error, redis.AuthenticationError) or not url.startswith("rediss"):
            raise
        raise type(error)(f"{error}: does that port speak TLS? redis:// is without") from None
