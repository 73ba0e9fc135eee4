"""From a URL to a client (standalone, Sentinel, Cluster), and the guard in front of everything memkit writes by itself.

URLs: ``redis://``, ``rediss://``, ``unix://`` as redis-py reads them; ``redis+cluster://host:port[,host:port]``;
``redis+sentinel://host:port[,host:port]/service[/db]``; ``rediss+…`` for TLS.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel

from memkit.errors import ProductionGuardError, ServerError

REGISTRY = "memkit-sandboxes"
"""The one key of memkit's own in a database: not a foreign key."""
MANY_CLIENTS = 5
"""Fewer other connections may be a developer's shells and this very test run."""
LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1", re.IGNORECASE)
EXPECTED = "redis://, rediss://, unix://, redis+cluster://host:port or redis+sentinel://host:port/service"

AnyClient = redis.Redis | redis.RedisCluster
AnyAsyncClient = redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster


@dataclass(frozen=True, slots=True)
class Address:
    """What a cluster or sentinel URL says."""

    hosts: tuple[tuple[str, int], ...]
    path: tuple[str, ...]
    options: dict[str, Any]


def connect(url: str, **options: Any) -> AnyClient:
    """Return a synchronous client; ``options`` go to redis-py. Raises ServerError for what is no such URL."""
    topology = _topology(url)
    if topology == "cluster":
        address = _address(url)
        nodes = [redis.cluster.ClusterNode(host, port) for host, port in address.hosts]
        return redis.RedisCluster(startup_nodes=nodes, **address.options | options)
    if topology == "sentinel":
        address = _address(url)
        sentinel = redis.sentinel.Sentinel(address.hosts, **address.options | options)
        return cast("redis.Redis", sentinel.master_for(*_service(address)))
    try:
        return redis.Redis.from_url(url, **options)
    except ValueError as error:
        raise _no_url(url, error) from None


def connect_async(url: str, **options: Any) -> AnyAsyncClient:
    """Return an asyncio client; see connect()."""
    topology = _topology(url)
    if topology == "cluster":
        address = _address(url)
        nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in address.hosts]
        return redis.asyncio.cluster.RedisCluster(startup_nodes=nodes, **address.options | options)
    if topology == "sentinel":
        address = _address(url)
        watchers = redis.asyncio.sentinel.Sentinel(list(address.hosts), **address.options | options)
        primary = watchers.master_for(*_service(address), connection_pool_class=_SentinelPool)
        return cast("redis.asyncio.Redis", primary)
    try:
        return redis.asyncio.Redis.from_url(url, **options)
    except ValueError as error:
        raise _no_url(url, error) from None


class _SentinelPool(redis.asyncio.sentinel.SentinelConnectionPool):
    """Closes the connections to the Sentinels too, which redis-py leaves to the garbage collector, with a warning."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:  # else it only goes to another primary
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()


def redact(url: str) -> str:
    """Return a URL without its password, to be shown."""
    return re.sub(r"(password=)[^&#]*", r"\1***", re.sub(r"(://[^/@:?#]*):.*@", r"\1:***@", url), flags=re.IGNORECASE)


def place(client: AnyClient) -> str:
    """Return where a client's commands go, as MEMKIT_ALLOW names it: ``host:port/db``, or ``path/db``."""
    if isinstance(client, redis.RedisCluster):
        node = cast("Any", client.get_default_node())
        return f"{node.host}:{node.port}/0"
    options = client.connection_pool.connection_kwargs
    if isinstance(client.connection_pool, redis.sentinel.SentinelConnectionPool):
        host, port = client.connection_pool.get_master_address()
        return f"{host}:{port}/{options.get('db') or 0}"
    where = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return f"{where}/{options.get('db') or 0}"


def started_by_memkit(client: AnyClient) -> bool:
    """Whether memkit launched this server (any process of it): its directory, known to the server alone, says so."""
    if isinstance(client, redis.RedisCluster):
        return all(started_by_memkit(client.get_redis_connection(node)) for node in client.get_primaries())
    try:
        directory = cast("dict[str, str]", client.config_get("dir"))
    except redis.ResponseError:
        return False
    name = directory.get("dir") or cast("dict[bytes, bytes]", directory).get(b"dir", b"").decode()
    return bool(re.fullmatch(r"memkit-\d+-\w+", PurePath(name).name))


def guard_write(client_or_url: AnyClient | str) -> None:
    """Let memkit write here, or raise ProductionGuardError saying what was seen and the very value that allows it.

    Allowed: a server that memkit started; one whose ``host:port/db`` is in MEMKIT_ALLOW; and an empty database on the
    loopback interface that looks like nobody's: no replicas, no append-only file, no crowd of other clients. (RDB save
    points are redis-server's default and say nothing.)
    """
    client = connect(client_or_url) if isinstance(client_or_url, str) else client_or_url
    where = place(client)
    allowed = [part.strip() for part in os.environ.get("MEMKIT_ALLOW", "").split(",")]
    if where in allowed or started_by_memkit(client):
        return
    seen = _signs_of_use(client, where)
    if seen:
        raise ProductionGuardError(
            f"memkit did not start the Redis at {where} and will not write to it: it has {', '.join(seen)}. Expected a "
            "private server, or an empty database on loopback. Without --real-redis and MEMKIT_REDIS_URL memkit starts "
            f"a server of its own. If writing a sandbox to this one is what you want: MEMKIT_ALLOW={where}"
        )


def _signs_of_use(client: AnyClient, where: str) -> list[str]:
    seen = [] if _is_loopback(where) else ["an address that is not this machine's loopback"]
    if isinstance(client, redis.RedisCluster):
        nodes = [client.get_redis_connection(node) for node in client.get_primaries()]
    else:
        nodes = [client]
    keys = sum(_foreign_keys(node) for node in nodes)
    if keys:
        seen.append(f"{keys:,} {'key' if keys == 1 else 'keys'} of others in this database")
    for node in nodes:
        try:
            seen += _signs_in_info(node.info("everything"))
        except redis.ResponseError:
            seen.append("no permission for INFO, so nothing more could be seen")
    return list(dict.fromkeys(seen))


def _foreign_keys(client: redis.Redis) -> int:
    return client.dbsize() - client.exists(REGISTRY)


def _signs_in_info(info: dict[str, Any]) -> list[str]:
    seen = []
    replicas = info.get("connected_slaves", 0)
    if replicas and not info.get("cluster_enabled"):
        seen.append(f"{replicas} {'replica' if replicas == 1 else 'replicas'}")
    if info.get("role") == "slave":
        seen.append("a primary that it replicates")
    if info.get("aof_enabled"):
        seen.append("persistence (an append-only file)")
    others = info.get("connected_clients", 1) - 1
    if others >= MANY_CLIENTS:
        seen.append(f"{others} other clients")
    return seen


def _is_loopback(where: str) -> bool:
    address = where.rpartition("/")[0]
    return address.startswith("/") or bool(LOOPBACK.fullmatch(address.rpartition(":")[0]))


def _topology(url: str) -> str:
    scheme = url.partition("://")[0]
    if scheme in ("redis", "rediss", "unix"):
        return "standalone"
    base, _, topology = scheme.partition("+")
    if base in ("redis", "rediss") and topology in ("cluster", "sentinel"):
        return topology
    raise _no_url(url, f"its scheme is {scheme!r}" if "://" in url else "it has no scheme")


def _address(url: str) -> Address:
    """Read a URL with several hosts. Credentials and ``?sentinel_password=`` may be percent-encoded."""
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    options: dict[str, Any] = {"ssl": True} if parts.scheme.startswith("rediss") else {}
    if credentials:
        username, _, password = credentials.partition(":")
        options |= {"username": unquote(username) or None, "password": unquote(password) or None}
    try:
        pairs = tuple(_host_port(one) for one in hosts.split(","))
    except ValueError as error:
        raise _no_url(url, error) from None
    if parts.query.startswith("sentinel_password="):
        options["sentinel_kwargs"] = {"password": unquote(parts.query.partition("=")[2])}
    return Address(pairs, tuple(unquote(part) for part in parts.path.split("/") if part), options)


def _host_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is no host:port")
    return host.strip("[]"), int(port)


def _service(address: Address) -> tuple[str]:
    if len(address.path) == 2 and address.path[1].isdecimal():
        address.options["db"] = int(address.path[1])
    elif len(address.path) != 1:
        raise ServerError(f"a sentinel URL ends with /service or /service/db, not /{'/'.join(address.path)}")
    return (address.path[0],)


def _no_url(url: str, why: object) -> ServerError:
    return ServerError(f"{redact(url)!r} is not a Redis URL: {why}; expected {EXPECTED}")
