"""A Redis URL to a client: standalone, Sentinel or Cluster.

URLs: ``redis://``, ``rediss://``, ``unix://`` as redis-py reads them; ``redis+cluster://host:port[,host:port]``;
``redis+sentinel://host:port[,host:port]/service[/db]``; ``rediss+…`` for TLS. redis-py's options follow a ``?``;
``sentinel_password`` is for the Sentinels.
"""

import re
import shlex
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, AnyStr, Final, TypeVar, cast
from urllib.parse import unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
from redis.client import NEVER_DECODE
from redis.maint_notifications import MaintNotificationsConfig

from memkit.errors import PolicyError, ServerError

Item = TypeVar("Item")
EXPECTED = "redis://, rediss://, unix://, redis+cluster://host:port or redis+sentinel://host:port/service"

SHORT_HANDSHAKE: Final[dict[str, Any]] = {
    "driver_info": None,
    "maint_notifications_config": MaintNotificationsConfig(enabled=False),
}
"""Without them, redis-py 8.1 looks its own version up on disk for each connection and sends it (0.9 ms, measured), and
asks a server on TCP to announce its maintenance, which all but Redis Enterprise refuse (0.3 ms)."""

AnyClient = redis.Redis | redis.RedisCluster
AnyAsyncClient = redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster


def connect(url: str, **options: Any) -> AnyClient:
    """Return a synchronous client. It connects at its first command.

    Args:
        url: ``redis://``, ``rediss://``, ``unix://``, ``redis+cluster://host:port[,host:port]`` or
            ``redis+sentinel://host:port[,host:port]/service[/db]``; ``rediss+…`` for TLS.
        **options: Passed to redis-py.

    Returns:
        A ``redis.Redis``, or a ``redis.RedisCluster`` for a cluster URL, which connects at once.

    Raises:
        ServerError: The URL is invalid.
        PolicyError: The URL has an invalid database number.
    """
    return cast("AnyClient", _connect(redis, url, options))


def connect_async(url: str, **options: Any) -> AnyAsyncClient:
    """Return an asyncio client; the arguments and errors are those of ``connect``."""
    return cast("AnyAsyncClient", _connect(redis.asyncio, url, options, connection_pool_class=_SentinelPool))


def _connect(api: Any, url: str, options: dict[str, Any], **of_sentinel: Any) -> Any:
    """Return a client of ``redis`` or ``redis.asyncio``; ``of_sentinel`` are options of a Sentinel's client alone."""
    topology = _topology(url)
    if topology == "standalone":
        return _standalone(api.Redis, url, options)
    hosts, of_url, service = _address(url)
    options = of_url | options
    if topology == "sentinel":
        return api.sentinel.Sentinel(hosts, **options).master_for(service, **of_sentinel)
    nodes = [api.cluster.ClusterNode(host, port) for host, port in hosts]
    return api.cluster.RedisCluster(startup_nodes=nodes, **options)


def _standalone(kind: Any, url: str, options: dict[str, Any]) -> Any:
    try:
        client = kind.from_url(url, **options)
        pool = client.connection_pool
        # Not connected; redis-py takes any option until then.
        pool.connection_class(**pool.connection_kwargs | {"driver_info": None})
    except ValueError as error:
        message = str(error)  # about other parts it may quote a password
        reason = message if message.startswith("Invalid value for") else "its host or port cannot be parsed"
        raise _invalid_url(url, reason) from None
    except TypeError as error:
        raise _invalid_url(url, f"redis-py has no option {str(error).rpartition(' ')[2]}") from None
    return client


class _SentinelPool(redis.asyncio.sentinel.SentinelConnectionPool):
    """Closes the connections to the Sentinels too; redis-py leaves them to the garbage collector, with a warning."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:  # False: only the primary changed
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()


def redact(url: str) -> str:
    """Return a URL, or a text that contains one, with ``***`` instead of its password."""
    shown = re.sub(r"(://[^/@:?#]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    if "@" not in shown and re.fullmatch(r"[\w+]+://\S*", shown):
        # Text after a host that is not a port may be a password: the host was left out.
        shown = re.sub(r"(://[^/@:?#,\[]*):(?!\d{1,5}(?![^/?#,]))[^/?#,].*", r"\1:***", shown)
    return re.sub(r"(password=)[^&#\s]*", r"\1***", shown, flags=re.IGNORECASE)


def place(client: AnyClient) -> str:
    """Return a client's server and database as MEMKIT_ALLOW has them: ``host:port/db``, or ``path/db`` of a socket."""
    if isinstance(client, redis.RedisCluster):
        node = cast("Any", client.get_default_node())
        return f"{node.host}:{node.port}/0"
    options = client.connection_pool.connection_kwargs
    if isinstance(client.connection_pool, redis.sentinel.SentinelConnectionPool):
        host, port = client.connection_pool.get_master_address()
        return f"{host}:{port}/{options.get('db') or 0}"
    where = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return f"{where}/{options.get('db') or 0}"


def cli_command(url: str, server: str) -> str:
    """Return ``redis-cli`` with the options for a server, without the password, which it reads from REDISCLI_AUTH.

    Args:
        url: The URL that was given; empty for a client.
        server: The server and its database, as ``place`` returns them; a cluster's node without a database.
    """
    server, _, database = server.rpartition("/") if "/" in server else (server, "", "0")
    scheme, _, rest = url.partition("://")
    name = unquote(rest.rpartition("@")[0].partition(":")[0])
    if server.startswith("/"):  # redis-cli -u refuses the path of a socket
        options = f"-s {shlex.quote(server)} -n {database}"
    else:
        server = f"{scheme.partition('+')[0] or 'redis'}://{server}"
        options = f"-u {shlex.quote(f'{server}/{database}')}"
        options += " -c" if scheme.endswith("+cluster") else ""
    return f"redis-cli {options}" + (f" --user {shlex.quote(name)}" if name else "")


def scan(node: redis.Redis, match: str = "*") -> Iterator[bytes]:
    """Return the names of the keys of one server, some twice, as SCAN does.

    As bytes, whatever the client's ``decode_responses``: a name need not be UTF-8.
    """
    return cast("Iterator[bytes]", cast("Any", node).scan_iter(match, count=1000, **{NEVER_DECODE: []}))


def escape_glob(text: AnyStr) -> AnyStr:
    r"""Return text or bytes as a pattern that MATCH reads literally (``\ * ? [ ]`` are escaped)."""
    if isinstance(text, bytes):
        return re.sub(rb"([\\*?\[\]])", rb"\\\1", text)
    return re.sub(r"([\\*?\[\]])", r"\\\1", text)


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of a size."""
    left = iter(items)
    while chunk := list(islice(left, size)):
        yield chunk


def execute_undecoded(client: Any, *command: str | int) -> Any:
    """Run a command and return its reply as bytes, regardless of the client's ``decode_responses``."""
    return client.execute_command(*command, **{NEVER_DECODE: []})


def primaries(client: AnyClient) -> list[redis.Redis]:
    """Return a client for each server that holds keys: each primary of a cluster, otherwise the client itself."""
    if isinstance(client, redis.RedisCluster):
        return [client.get_redis_connection(node) for node in client.get_primaries()]
    return [client]


def _topology(url: str) -> str:
    """Return ``standalone``, ``cluster`` or ``sentinel``. Raises an error if the URL is ambiguous."""
    scheme, separator, rest = url.partition("://")
    base, _, topology = scheme.partition("+")
    if scheme not in ("redis", "rediss", "unix") and (
        base not in ("redis", "rediss") or topology not in ("cluster", "sentinel")
    ):
        raise _invalid_url(url, f"its scheme is {scheme!r}" if separator else "it has no scheme")
    parts = re.fullmatch(r"([^/?#]*)([^?#]*)(?:\?([^#]*))?(.*)", rest, re.DOTALL)
    authority, path, query, fragment = parts.groups(default="") if parts else ("", "", "", rest)
    _refuse_unencoded_password(scheme, authority, path, query, fragment)
    if scheme in ("redis", "rediss") and not re.fullmatch(r"/?|/\d+", path):
        raise PolicyError(f"{path!r} in the URL is not a database number; expected /0, as in redis://host:6379/0")
    if topology == "cluster" and path not in ("", "/", "/0"):
        raise PolicyError(f"Redis Cluster has only database 0; remove the path {path!r} from the URL")
    return topology or "standalone"


def _refuse_unencoded_password(scheme: str, authority: str, path: str, query: str, fragment: str) -> None:
    """Raise ServerError if part of a password may be in another part of the URL; the message shows no part of it."""
    credentials, _, host = authority.rpartition("@")
    standalone = "+" not in scheme and scheme != "unix"
    cut = (
        fragment
        or "@" in credentials
        or re.search(r"\s", authority)
        or (host if scheme == "unix" else "@" in path)
        or (standalone and not re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]*)(:\d*)?", host))
        or any(not _is_option(pair) for pair in query.split("&") if pair)
    )
    if cut:
        raise ServerError(
            f"this {scheme}:// URL cannot be parsed: percent-encode the password (@ as %40, / as %2F, # as %23, "
            f"? as %3F) and check the host, the port and the database number; expected {EXPECTED}"
        )


def _is_option(pair: str) -> bool:
    name, equals, value = pair.partition("=")
    return bool(equals) and "@" not in name and ("@" not in value or name.endswith(("password", "username")))


def _address(url: str) -> tuple[list[tuple[str, int]], dict[str, Any], str]:
    """Return the hosts of a cluster or sentinel URL, redis-py's options, and the Sentinels' name of the primary."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _invalid_url(url, "its host cannot be parsed") from None
    credentials, _, hosts = parts.netloc.rpartition("@")
    options: dict[str, Any] = {"ssl": True} if parts.scheme.startswith("rediss") else {}
    if credentials:
        username, _, password = credentials.partition(":")
        options |= {"username": unquote(username) or None, "password": unquote(password) or None}
    query = dict(pair.split("=", 1) for pair in parts.query.split("&") if pair)
    if "sentinel_password" in query:
        options["sentinel_kwargs"] = {"password": unquote(query.pop("sentinel_password"))}
    try:
        pairs = [_host_port(pair) for pair in hosts.split(",")]
        options |= redis.connection.parse_url(f"redis://?{'&'.join(map('='.join, query.items()))}")
    except ValueError as error:
        raise _invalid_url(url, error) from None
    service, *database = [unquote(part) for part in parts.path.split("/") if part] or [""]
    if parts.scheme.endswith("sentinel"):
        if not service or len(database) > 1 or not all(map(str.isdecimal, database)):
            raise ServerError(f"a sentinel URL ends with /service or /service/db, not {parts.path or '/'}")
        if database:
            options["db"] = int(database[0])
    return pairs, options, service


def _host_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError("each host needs its port, as host:port")
    return host.strip("[]"), int(port)


def _invalid_url(url: str, why: object) -> ServerError:
    shown = redact(url) if "://" in url else f"***@{url.rpartition('@')[2]}" if "@" in url else url
    return ServerError(f"{shown!r} is not a Redis URL: {why}; expected {EXPECTED}")
