"""What a server says of itself in a few cheap answers: INFO, CONFIG, SLOWLOG, CLIENT LIST, and its clock."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from struct import error, unpack

from memkit.readonly.connection import ReadOnlyConnection, Reply, refused
from memkit.server.guard import is_server_directory

CONFIG_NAMES = ("maxmemory", "maxmemory-policy", "save", "appendonly")
LRU_CLOCK_WITHIN_S = 0.5
RENEWALS = ("expire", "pexpire", "expireat", "pexpireat", "getex", "set", "setex", "psetex", "setnx", "mset")
DELETES = ("del", "unlink", "getdel")
FLUSHES = ("flushall", "flushdb")
_VALUE_READS = """
get mget getrange substr strlen getex lrange llen lindex lpos hget hgetall hmget hlen hkeys hvals hexists hscan
hstrlen smembers sismember smismember scard sscan sinter sunion zrange zrangebyscore zrevrange zrevrangebyscore
zrangebylex zscore zmscore zcard zcount zrank zscan xrange xrevrange xlen xread xreadgroup json.get json.mget
touch copy dump sort sort_ro bitcount getbit type_touch
"""
VALUE_READS = frozenset(_VALUE_READS.split())
_VALUE_WRITES = """
set setex psetex setnx mset getset append rpush lpush rpushx lpushx hset hmset hsetnx hsetex sadd zadd xadd
json.set
"""
VALUE_WRITES = frozenset(_VALUE_WRITES.split())


@dataclass(frozen=True, slots=True)
class Deletion:
    """A DEL, UNLINK or flush that was slow enough to be logged, with the keys it named (the log keeps some)."""

    at_s: int
    command: str
    keys: tuple[bytes, ...]
    client: str


@dataclass(frozen=True)
class Evidence:
    """One server's own account of itself. ``blind`` says what it would not tell."""

    info: Mapping[str, str]
    config: Mapping[str, str]
    deletions: tuple[Deletion, ...] = ()
    deleters: tuple[str, ...] = ()
    skew_ms: float = 0.0
    skew_error_ms: float = 0.0
    moved_by_ms: float = 0.0
    moved_at_ms: float | None = None
    blind: tuple[str, ...] = ()
    now_ms: int = 0
    calls: Mapping[str, int] = field(default_factory=dict)

    def number(self, name: str) -> int | None:
        """Return an integer of INFO, None where INFO does not have it."""
        text = self.info.get(name, "")
        return int(text) if re.fullmatch(r"-?\d+", text) else None

    @property
    def is_replica(self) -> bool:
        """Whether the server replicates another."""
        return self.info.get("role") == "slave"

    @property
    def is_cluster(self) -> bool:
        """Whether the server is a cluster's node."""
        return self.info.get("cluster_enabled") == "1"

    @property
    def flavour(self) -> str:
        """``"redis"`` or ``"valkey"``."""
        return "valkey" if "valkey_version" in self.info else "redis"

    @property
    def version(self) -> str:
        """The server's version; "?" where INFO is refused."""
        return self.info.get("valkey_version") or self.info.get("redis_version", "?")

    @property
    def policy(self) -> str | None:
        """The eviction policy."""
        return self.config.get("maxmemory-policy") or self.info.get("maxmemory_policy")

    @property
    def idle_touches(self) -> int | None:
        """How many commands may have touched a key without renewing its TTL, since the start or the last reset."""
        if not self.calls:
            return None
        reads = sum(self.calls.get(name, 0) for name in VALUE_READS)
        renewals = sum(self.calls.get(name, 0) for name in RENEWALS)
        return reads + max(0, self.writes - renewals)

    @property
    def writes(self) -> int:
        """How many commands wrote values, as far as they are known by name."""
        return sum(self.calls.get(name, 0) for name in VALUE_WRITES)

    @property
    def started_s(self) -> int | None:
        """When the server started, by its own clock."""
        uptime = self.number("uptime_in_seconds")
        return None if uptime is None else self.now_ms // 1000 - uptime

    @property
    def unexplained_changes(self) -> int | None:
        """How many changes since the start no known write made; None where a save has reset the count."""
        if self.number("rdb_saves") != 0 and self.number("rdb_last_save_time") != self.started_s:
            return None
        deadlines = sum(self.calls.get(name, 0) for name in ("expire", "pexpire", "expireat", "pexpireat", "persist"))
        return max(0, (self.number("rdb_changes_since_last_save") or 0) - self.writes - deadlines)

    @property
    def deadlines_by_clients(self) -> bool:
        """Whether deadlines may have been computed by clients: absolute ones were set, or SET did not say how."""
        absolute = any(self.calls.get(name) for name in ("expireat", "pexpireat"))
        relative = any(self.calls.get(name) for name in ("expire", "pexpire", "setex", "psetex"))
        return absolute or (bool(self.calls.get("set")) and not relative)

    def born_ms(self, keys: int) -> int | None:
        """Return when the server started, if it surely started empty; keys cannot be older than that."""
        uptime = self.number("uptime_in_seconds")
        if uptime is None or self.is_replica or (self.number("rdb_last_load_keys_loaded") or 0) > 0:
            return None
        # RESTORE (MIGRATE, importers) brings keys that are older than the server.
        if {"config|resetstat", "config", "restore", "restore-asking"} & self.calls.keys():
            return None
        may_have_loaded = self.info.get("aof_enabled") != "0" or "rdb_last_load_keys_loaded" not in self.info
        if may_have_loaded and self.writes < keys:
            return None
        return self.now_ms - (uptime + 1) * 1000


def look(connection: ReadOnlyConnection) -> Evidence:
    """Ask a server for its account of itself; what it refuses is listed in ``blind``."""
    blind: list[str] = []
    _wait_for_the_idle_clock(connection)
    info = _info(connection, blind)
    skew, unsure, now_ms = _skew(connection)
    deletions = tuple(_deletions(connection, blind))
    return Evidence(
        info,
        _config(connection, blind),
        deletions,
        tuple(_deleters(connection, blind)),
        skew,
        unsure,
        *_moved(info),
        tuple(blind),
        now_ms,
        _calls(info),
    )


def _wait_for_the_idle_clock(connection: ReadOnlyConnection) -> None:
    """Wait until the server's cached LRU clock is right: up to 100 ms after its time was moved, idle times are not."""
    deadline = time.monotonic() + LRU_CLOCK_WITHIN_S
    while time.monotonic() < deadline:
        clock, now = _lines(connection.ask("INFO", "server")).get("lru_clock"), connection.ask("TIME")
        if clock is None or refused(now) or abs((int(now[0]) & 0xFFFFFF) - int(clock)) <= 1:
            return
        time.sleep(0.005)


def counters(connection: ReadOnlyConnection) -> dict[str, str]:
    """Return INFO's counters as they are now; empty where INFO is refused."""
    return _lines(connection.ask("INFO", "stats"))


def _info(connection: ReadOnlyConnection, blind: list[str]) -> dict[str, str]:
    reply = connection.ask("INFO", "all")
    if refused(reply):
        # Some managed services refuse the large request and answer section by section.
        found: dict[str, str] = {}
        for section in (
            "server",
            "stats",
            "memory",
            "persistence",
            "replication",
            "commandstats",
            "keyspace",
            "cluster",
        ):
            found |= _lines(connection.ask("INFO", section))
        if not found:
            blind.append("INFO (expired and evicted keys, memory, persistence)")
        return found
    return _lines(reply)


def _lines(reply: Reply) -> dict[str, str]:
    if not isinstance(reply, bytes):
        return {}
    pairs = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in pairs if colon}


def _calls(info: Mapping[str, str]) -> dict[str, int]:
    found = {}
    for name, value in info.items():
        calls = re.match(r"calls=(\d+)", value) if name.startswith("cmdstat_") else None
        if calls:
            found[name.removeprefix("cmdstat_").lower()] = int(calls[1])
    return found


def _config(connection: ReadOnlyConnection, blind: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in CONFIG_NAMES:
        reply = connection.ask("CONFIG", "GET", name)
        if refused(reply):
            blind.append("CONFIG (save points)")
            break
        words = [word.decode(errors="replace") for word in reply]
        found |= dict(zip(words[::2], words[1::2], strict=True))
    return found


def _skew(connection: ReadOnlyConnection) -> tuple[float, float, int]:
    """Return how far the server's clock is ahead of ours, how uncertain that is, and its time; milliseconds."""
    best = (0.0, float("inf"), 0)
    for _ in range(3):
        before = time.time_ns()
        reply = connection.ask("TIME")
        after = time.time_ns()
        if refused(reply):
            return 0.0, float("inf"), after // 1_000_000
        server_us = int(reply[0]) * 1_000_000 + int(reply[1])
        unsure = (after - before) / 2e6
        if unsure < best[1]:
            best = (server_us / 1000 - (before + after) / 2e6, unsure, server_us // 1000)
    return best


def _moved(info: Mapping[str, str]) -> tuple[float, float | None]:
    """Return how far memkit moved this server's clock, and when last, by that clock; milliseconds.

    The preload maps the file that says so into the process.
    """
    try:
        maps = Path(f"/proc/{int(info.get('process_id', '0'))}/maps").read_text()
        mapped = [Path(path) for path in re.findall(r"/.*/clock$", maps, re.MULTILINE)]
        clocks = [path for path in mapped if is_server_directory(str(path.parent))]
        if not clocks:
            return 0.0, None
        by_ms = float(unpack("q", clocks[0].read_bytes()[:8])[0]) / 1e6
        return by_ms, clocks[0].stat().st_mtime * 1000 + by_ms
    except (OSError, ValueError, error):
        return 0.0, None


def _deletions(connection: ReadOnlyConnection, blind: list[str]) -> Iterable[Deletion]:
    reply = connection.ask("SLOWLOG", "GET", 128)
    if refused(reply):
        blind.append("SLOWLOG")
        return
    for entry in reply:
        words: Sequence[bytes] = [word for word in entry[3] if isinstance(word, bytes)]
        command = words[0].decode(errors="replace").lower() if words else ""
        if command in DELETES + FLUSHES:
            client = entry[4].decode(errors="replace") if len(entry) > 4 and isinstance(entry[4], bytes) else ""
            yield Deletion(int(entry[1]), command, tuple(words[1:]), client)


def _deleters(connection: ReadOnlyConnection, blind: list[str]) -> Iterable[str]:
    reply = connection.ask("CLIENT", "LIST")
    if refused(reply):
        blind.append("CLIENT LIST")
        return
    for line in reply.decode(errors="replace").splitlines():
        fields = dict(pair.partition("=")[::2] for pair in line.split(" "))
        if fields.get("cmd", "").lower() in DELETES + FLUSHES:
            yield f"{fields.get('addr', '?')} {fields.get('name', '')}".strip()
