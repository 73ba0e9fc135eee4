"""The production guard: where memkit may write by itself, and the sandboxes that it knows as its own."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import PurePath
from typing import cast

import redis

from memkit.connect import AnyClient, _raw, connect, place, primaries, scan
from memkit.errors import ProductionGuardError

REGISTRY = "memkit-sandboxes"
"""The one key of memkit's own in a database: a hash with a field for each sandbox, the name of its user."""


NAME = "memkit-test"
"""A sandbox's user and connections are called ``memkit-test-<token>``, its keys begin with ``memkit-test:<token>:``."""


OWN_NAME = re.compile(rf"{NAME}(-([0-9a-f]{{12}}))?")


MANY_KEYS = 1_000
"""Where counting foreign keys ends: that many are certainly somebody's, and there may be millions."""


MANY_CLIENTS = 5
"""Fewer other connections may be a developer's shells and this very test run."""


INTRODUCED_WITHIN_S = 1.0
"""How long a new connection may take until it is known whose it is."""


LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1", re.IGNORECASE)


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

    Allowed: a server that memkit started; one whose ``host:port/db`` is in MEMKIT_ALLOW (of a cluster, any node's); and
    an empty database on the loopback interface that looks like nobody's: no replicas, no append-only file, no crowd of
    other clients. (RDB save points are redis-server's default and say nothing.) Sandboxes, living or left by a killed
    run, and their connections are memkit's own and no sign of use.
    """
    client = connect(client_or_url) if isinstance(client_or_url, str) else client_or_url
    where, places = place(client), _places(client)
    allowed = [part.strip() for part in os.environ.get("MEMKIT_ALLOW", "").split(",")]
    if any(one in allowed for one in places) or started_by_memkit(client):
        return
    seen = _signs_of_use(client, places)
    if seen:
        raise ProductionGuardError(
            f"memkit did not start the Redis at {where} and will not write to it: it has {', '.join(seen)}. Expected a "
            "private server, or an empty database on loopback. Without --real-redis and MEMKIT_REDIS_URL memkit starts "
            f"a server of its own. If writing a sandbox to this one is what you want: MEMKIT_ALLOW={where}"
        )


def sandboxes(client: AnyClient) -> list[str]:
    """Return the prefixes of the sandboxes in a database's registry. An entry of another form vouches for nothing."""
    try:
        users = _raw(client, "HKEYS", REGISTRY)
    except redis.ResponseError:
        return []  # somebody else's key, of another type
    tokens = [OWN_NAME.fullmatch(user.decode(errors="replace")) for user in users]
    return [f"{NAME}:{token[2]}:" for token in tokens if token and token[2]]


def own_prefixes(prefix: str) -> tuple[str, str]:
    """Name what keys of a sandbox may begin with: a session's is the prefix, its vectors' has it in a hash tag."""
    return prefix, "{" + prefix


def _places(client: AnyClient) -> list[str]:
    if isinstance(client, redis.RedisCluster):
        return [f"{node.host}:{node.port}/0" for node in client.get_nodes()]
    return [place(client)]


def _signs_of_use(client: AnyClient, places: Sequence[str]) -> list[str]:
    seen = [] if all(map(_is_loopback, places)) else ["an address that is not this machine's loopback"]
    nodes = primaries(client)
    keys = _foreign_keys(client, nodes)
    if keys:
        number = f"{keys:,}" if keys <= MANY_KEYS else f"more than {MANY_KEYS:,}"
        seen.append(f"{number} {'key' if keys == 1 else 'keys'} of others in this database")
    for node in nodes:
        try:
            seen += _signs_in_info(node)
        except redis.ResponseError:
            seen.append("no permission for INFO, so nothing more could be seen")
    return list(dict.fromkeys(seen))


def _foreign_keys(client: AnyClient, nodes: Sequence[redis.Redis]) -> int:
    """Count the keys that no sandbox in the registry vouches for, MANY_KEYS + 1 at most.

    Sandboxes come and go meanwhile. One is registered before its first key is written and until its last is removed: a
    name that the registry explains neither before nor after, and that is still there, is foreign.
    """
    before = sandboxes(client)
    found = [(node, name) for node in nodes for name in islice(_strangers(scan(node), before), MANY_KEYS + 1)]
    if len(found) > MANY_KEYS:
        return MANY_KEYS + 1
    after = sandboxes(client) if found else []
    return sum(_is_there(node, name) for node, name in found if [*_strangers([name], after)])


def _strangers(names: Iterable[bytes], registered: Sequence[str]) -> Iterator[bytes]:
    own = tuple(start.encode() for prefix in registered for start in own_prefixes(prefix))
    seen = {REGISTRY.encode()}  # SCAN may tell a name twice
    for name in names:
        if name not in seen and not name.startswith(own):
            seen.add(name)
            yield name


def _is_there(node: redis.Redis, name: bytes) -> bool:
    try:
        return bool(node.exists(name))
    except redis.ResponseError:
        return True  # on its way to another node of the cluster


def _signs_in_info(node: redis.Redis) -> list[str]:
    seen = []
    info = node.info("everything")
    replicas = info.get("connected_slaves", 0)
    if replicas and not info.get("cluster_enabled"):
        seen.append(f"{replicas} {'replica' if replicas == 1 else 'replicas'}")
    if info.get("role") == "slave":
        seen.append("a primary that it replicates")
    if info.get("aof_enabled"):
        seen.append("persistence (an append-only file)")
    others = info.get("connected_clients", 1) - 1
    if others >= MANY_CLIENTS:
        others = _foreign_clients(node, others)
    if others >= MANY_CLIENTS:
        seen.append(f"{others} other clients")
    return seen


def _foreign_clients(node: redis.Redis, others: int) -> int:
    """Count the clients that are neither this one, nor memkit's by user or name, nor a replica, nor being closed."""
    until = time.monotonic() + INTRODUCED_WITHIN_S
    while True:
        try:
            clients = _raw(node, "CLIENT LIST")
            myself = str(node.client_id())
        except redis.ResponseError:
            return others
        foreign = [one for one in clients if one["id"] != myself and _is_foreign(one)]
        if len(foreign) < MANY_CLIENTS or not any(map(_is_new, foreign)) or time.monotonic() > until:
            return len(foreign)
        time.sleep(0.005)


def _is_foreign(client: dict[str, str]) -> bool:
    mine = any(OWN_NAME.fullmatch(client[field]) for field in ("user", "name"))
    return not mine and not set("SMA") & set(client["flags"])


def _is_new(client: dict[str, str]) -> bool:
    """Whether it has not said yet who it is, as memkit's connections to other sandboxes do at once."""
    return int(client["age"]) <= 1 and client["cmd"].partition("|")[0] in ("NULL", "hello", "auth", "client")


def _is_loopback(where: str) -> bool:
    address = where.rpartition("/")[0]
    return address.startswith("/") or bool(LOOPBACK.fullmatch(address.rpartition(":")[0]))
