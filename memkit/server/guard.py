"""The production guard: whether memkit may write to a server by itself, and which keys are its own sandboxes'."""

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import PurePath
from typing import cast

import redis

from memkit.connect import AnyClient, connect, execute_undecoded, place, primaries, scan
from memkit.errors import ProductionGuardError
from memkit.render import counted

REGISTRY = "memkit-sandboxes"
"""The only key that memkit adds to a database: a hash with one field for each sandbox, the name of its user."""
NAME = "memkit-test"
"""A sandbox's user and connections are named ``memkit-test-<token>``, its keys begin with ``memkit-test:<token>:``."""
DATABASE_USER = "memkit-database"
"""The user and the connections of a dedicated test database are named ``memkit-database-<token>``."""
OWN_NAME = re.compile(rf"({NAME}|{DATABASE_USER})(-([0-9a-f]{{12}}))?")
DIRECTORY_PREFIX = "memkit-{pid}-"
"""How the name of a private server's directory begins. The guard and the audit recognise such a server by it."""
MANY_KEYS = 1_000
"""Foreign keys are counted up to this number: a database with more is in use, and may hold millions."""
FIRST_COMMANDS = ("NULL", "hello", "auth", "client")
"""The last command of a connection that may not have set its name yet."""
MANY_CLIENTS = 5
"""Fewer other connections may be a developer's shells and this test run."""
NEW_CLIENT_S = 60
"""A connection of another sandbox sets its name 1-5 ms after it is made, later if its process waits for a CPU."""
POLL_S = 0.02
LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1", re.IGNORECASE)


def is_server_directory(path: str) -> bool:
    """Whether a path is the directory of a private server that memkit started."""
    return bool(re.fullmatch(DIRECTORY_PREFIX.format(pid=r"\d+") + r"\w+", PurePath(path).name))


def started_by_memkit(client: AnyClient) -> bool:
    """Whether memkit started this server (of a cluster, all primaries), in any process."""
    if isinstance(client, redis.RedisCluster):
        return all(started_by_memkit(client.get_redis_connection(node)) for node in client.get_primaries())
    try:
        directory = cast("dict[str, str]", client.config_get("dir"))
    except redis.ResponseError:
        return False
    return is_server_directory(directory.get("dir", ""))


def guard_write(client_or_url: AnyClient | str) -> None:
    """Return if memkit may write to a database by itself.

    Allowed are a server that memkit started, a database that MEMKIT_ALLOW names as ``host:port/db`` (of a cluster, any
    node), and an empty database on the loopback interface without signs of use: no replicas, no append-only file, fewer
    than five other clients. (RDB save points are redis-server's default and no sign of use.) memkit's own sandboxes and
    their connections are not signs of use either.

    Args:
        client_or_url: The database.

    Raises:
        ProductionGuardError: Anything else; the message lists the signs of use and the value for MEMKIT_ALLOW.
    """
    client = connect(client_or_url) if isinstance(client_or_url, str) else client_or_url
    target = place(client)
    nodes = client.get_nodes() if isinstance(client, redis.RedisCluster) else ()
    places = [f"{node.host}:{node.port}/0" for node in nodes] or [target]
    allowed = [part.strip() for part in os.environ.get("MEMKIT_ALLOW", "").split(",")]
    if any(one in allowed for one in places) or started_by_memkit(client):
        return
    signs = _signs_of_use(client, places)
    if signs:
        raise ProductionGuardError(
            f"memkit will not write to the Redis at {target}, because it may be in use: {'; '.join(signs)}. Expected a "
            "private server, or an empty database on loopback. Without --real-redis and MEMKIT_REDIS_URL memkit starts "
            f"its own server. To allow writing a sandbox to this one, set MEMKIT_ALLOW={target}"
        )


def sandboxes(client: AnyClient) -> list[str]:
    """Return the prefixes of the sandboxes in a database's registry; entries of another form are ignored."""
    try:
        users = execute_undecoded(client, "HKEYS", REGISTRY)
    except redis.ResponseError:
        return []  # another application's key, of another type
    names = [OWN_NAME.fullmatch(user.decode(errors="replace")) for user in users]
    return [f"{NAME}:{name[3]}:" for name in names if name and name[1] == NAME and name[3]]


def own_prefixes(prefix: str) -> tuple[str, str]:
    """Return both beginnings of a sandbox's keys: a session's, and its vectors', which is in a hash tag."""
    return prefix, "{" + prefix


def foreign_keys(client: AnyClient) -> str:
    """Return how many keys of a database belong to no registered sandbox: ``3 keys``; "" if there are none.

    Other sandboxes open and close meanwhile. A sandbox is registered before its first key is written and until its last
    key is removed. A key is foreign if the registry explains it neither before nor after, and if it still exists.
    """
    before = sandboxes(client)
    nodes = primaries(client)
    found = [(node, name) for node in nodes for name in islice(unregistered(scan(node), before), MANY_KEYS + 1)]
    if len(found) > MANY_KEYS:
        return f"more than {MANY_KEYS:,} keys"
    after = sandboxes(client) if found else []
    existing = sum(_exists(node, name) for node, name in found if [*unregistered([name], after)])
    return counted(existing, "key") if existing else ""


def unregistered(names: Iterable[bytes], registered: Sequence[str]) -> Iterator[bytes]:
    """Yield the names that belong neither to a registered sandbox nor to the registry, each once."""
    own = tuple(start.encode() for prefix in registered for start in own_prefixes(prefix))
    seen = {REGISTRY.encode()}  # SCAN may return a name twice
    for name in names:
        if name not in seen and not name.startswith(own):
            seen.add(name)
            yield name


def _exists(node: redis.Redis, name: bytes) -> bool:
    try:
        return bool(node.exists(name))
    except redis.ResponseError:
        return True  # its slot is moving to another node of the cluster


def _signs_of_use(client: AnyClient, places: Sequence[str]) -> list[str]:
    hosts = [one.rpartition("/")[0].rpartition(":")[0] for one in places if not one.startswith("/")]
    signs = [] if all(map(LOOPBACK.fullmatch, hosts)) else ["its address is not this machine's loopback"]
    if keys := foreign_keys(client):
        signs.append(f"this database has {keys} outside memkit's sandboxes")
    for node in primaries(client):
        try:
            info = node.info("everything")
        except redis.ResponseError:
            signs.append("INFO is refused, which would show further signs of use")
            continue
        replicas = info.get("connected_slaves", 0)
        if replicas and not info.get("cluster_enabled"):
            signs.append(f"it has {counted(replicas, 'replica')}")
        if info.get("role") == "slave":
            signs.append("it replicates a primary")
        if info.get("aof_enabled"):
            signs.append("it has an append-only file")
        others = info.get("connected_clients", 1) - 1
        if others >= MANY_CLIENTS:
            others = _foreign_clients(node, others)
        if others >= MANY_CLIENTS:
            signs.append(f"it has {others} other clients")
    return list(dict.fromkeys(signs))


def _foreign_clients(node: redis.Redis, others: int) -> int:
    """Count the clients that are not this one, not memkit's by user or name, not a replica, and not being closed.

    While new connections decide, wait: another sandbox's first sets its name.
    """
    until = time.monotonic() + NEW_CLIENT_S
    while True:
        try:
            clients = execute_undecoded(node, "CLIENT LIST")
            own_id = str(node.client_id())
        except redis.ResponseError:
            return others
        own = {one["id"] for one in clients for field in ("user", "name") if OWN_NAME.fullmatch(one[field])}
        foreign = [one for one in clients if one["id"] not in own | {own_id} and not set("SMA") & set(one["flags"])]
        new = sum(int(one["age"]) <= NEW_CLIENT_S and one["cmd"].partition("|")[0] in FIRST_COMMANDS for one in foreign)
        if len(foreign) < MANY_CLIENTS or len(foreign) - new >= MANY_CLIENTS or not new or time.monotonic() > until:
            return len(foreign)
        time.sleep(POLL_S)
