"""What a server reports about itself in a few cheap answers: INFO, CONFIG, SLOWLOG, CLIENT LIST, and its clock."""

import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from struct import error, unpack

from memkit.readonly.connection import ReadOnlyConnection, info_fields, refused
from memkit.readonly.target import Snapshot
from memkit.server.guard import is_server_directory

CONFIG_NAMES = ("save", "appendonly", "stop-writes-on-bgsave-error")
LOAD_GRAIN_MS = 5_000
"""Keys that a server loads get idle clocks that begin within this time of its start (1 M keys load in 2.3-4.3 s)."""
EMPTY_AOF_BYTES = 100
"""An append-only file without keys has 0 (Redis 6.2) or 88 bytes (7.0 and later: its base is an empty RDB)."""
LOADED_TOGETHER, FEWEST_LOADED = 20, 10
"""Keys with an idle clock that begins in the first seconds are loaded ones if they are so many times the usual rate."""
SLOWLOG_ENTRIES = 128
SECTIONS = ("server", "stats", "memory", "persistence", "replication", "commandstats", "keyspace", "cluster")
RESTORES = ("restore", "restore-asking")
DELETES = ("del", "unlink", "getdel")
REPLICATES = ("replicaof", "slaveof")
FLUSHES = ("flushall", "flushdb", "swapdb", *REPLICATES)
"""A server that begins to replicate another one removes all of its own keys."""
REPLICATED_BYTES = 1_000
"""A primary sends its replicas fewer bytes only if it has had them for minutes and no write: a ping is 14 bytes."""
REDIRECTIONS = ("MOVED", "ASK")
"""A cluster's node counts a redirected command as rejected; the client sends it to the right node."""
RELATIVE_DEADLINES = ("expire", "pexpire", "setex", "psetex", "hexpire", "hpexpire")
ABSOLUTE_DEADLINES = ("expireat", "pexpireat", "hexpireat", "hpexpireat")
RENEWALS = (*RELATIVE_DEADLINES, *ABSOLUTE_DEADLINES, "getex", "set", "setnx", "mset")
STRING_WRITES = ("set", "setex", "psetex", "setnx", "mset", "msetnx", "getset")
_NO_ACCESS = """
ttl pttl expiretime pexpiretime type exists del unlink watch eval evalsha eval_ro evalsha_ro fcall fcall_ro
acl asking auth bgrewriteaof bgsave client cluster command config dbsize debug discard echo exec failover flushall
flushdb function hello info keys lastsave latency lolwut memory module monitor multi object ping psubscribe psync
publish pubsub punsubscribe quit randomkey readonly readwrite replconf replicaof reset role save scan script select
shutdown slaveof slowlog spublish ssubscribe subscribe sunsubscribe swapdb sync time unsubscribe unwatch wait waitaof
"""
NO_ACCESS = frozenset(_NO_ACCESS.split())
"""Commands that start no idle clock: without keys, or about keys alone. Those in a script are counted themselves."""
_ACCESS_MANY = """
mget json.mget touch xread xreadgroup sort sort_ro pfcount pfmerge bitop sintercard zintercard
sinter sunion sdiff zinter zunion zdiff sinterstore sunionstore sdiffstore zinterstore zunionstore zdiffstore
"""
ACCESS_MANY = frozenset(_ACCESS_MANY.split())
"""One call accesses any number of keys."""
_VALUE_WRITES = """
set setex psetex setnx mset getset append rpush lpush rpushx lpushx hset hmset hsetnx hsetex sadd zadd xadd
json.set
"""
VALUE_WRITES = frozenset(_VALUE_WRITES.split())


@dataclass(frozen=True, slots=True)
class SlowCommand:
    """A DEL, UNLINK or flush that was slow enough to be logged, with the keys it named (the log keeps some)."""

    at_s: int
    command: str
    keys: tuple[bytes, ...]
    client: str


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """A client of CLIENT LIST: its address and name, and the last command it sent."""

    name: str
    last_command: str


@dataclass(frozen=True)
class ServerFacts:
    """One server's report about itself.

    Args:
        info: INFO's fields.
        config: The settings of ``CONFIG_NAMES``.
        slow_commands: Deletions and flushes in the slow log.
        clients: The connected clients.
        skew_ms: How far its clock is ahead of this machine's, in milliseconds.
        skew_error_ms: How uncertain that is.
        moved_by_ms: How far memkit moved this server's clock.
        moved_at_ms: When it did so last, on that clock.
        refused: What the server refused to report.
        now_ms: Its time, in milliseconds since 1970.
    """

    info: Mapping[str, str]
    config: Mapping[str, str]
    slow_commands: tuple[SlowCommand, ...] = ()
    clients: tuple[ClientInfo, ...] = ()
    skew_ms: float = 0.0
    skew_error_ms: float = 0.0
    moved_by_ms: float = 0.0
    moved_at_ms: float | None = None
    refused: tuple[str, ...] = ()
    now_ms: int = 0

    def number(self, name: str) -> int | None:
        """Return an integer of INFO; None if INFO does not have it."""
        text = self.info.get(name, "")
        return int(text) if re.fullmatch(r"-?\d+", text) else None

    def own_number(self, name: str) -> int | None:
        """Return an integer of INFO; None if the server is a replica, which does not count what its primary removes."""
        return None if self.is_replica and name in ("expired_keys", "evicted_keys") else self.number(name)

    def fields(self, name: str) -> dict[str, str]:
        """Return the parts of one of INFO's lists, such as ``calls=1,usec=12`` of a command."""
        return dict(pair.partition("=")[::2] for pair in self.info.get(name, "").split(",") if "=" in pair)

    @cached_property
    def calls(self) -> Mapping[str, int]:
        """How often each command was called since the start, or since CONFIG RESETSTAT."""
        names = [name for name in self.info if name.startswith("cmdstat_")]
        return {name.removeprefix("cmdstat_").lower(): int(self.fields(name).get("calls", 0)) for name in names}

    def called(self, *commands: str) -> int:
        """Return how often any of these commands was called."""
        return sum(self.calls.get(name, 0) for name in commands)

    def succeeded(self, *commands: str) -> int:
        """Return how often any of these commands was called and did not fail (Redis 6.2)."""
        failed = (self.fields(f"cmdstat_{name}").get("failed_calls", 0) for name in commands)
        return self.called(*commands) - sum(map(int, failed))

    @property
    def is_replica(self) -> bool:
        """Whether the server replicates another."""
        return self.info.get("role") == "slave"

    @property
    def may_have_synced(self) -> bool:
        """Whether the server may have received its keys from a primary at any time, which started their idle clocks."""
        return self.is_replica or self.called(*REPLICATES) > 0 or self.replicated_bytes > 0

    @property
    def replicated_bytes(self) -> int:
        """How many bytes the server received from a primary.

        Redis 6.2 shows them only after a promotion, and no longer if it has had no replica for an hour since.
        """
        return max(self.number("total_net_repl_input_bytes") or 0, self.number("second_repl_offset") or 0)

    @property
    def flavour(self) -> str:
        """``"redis"`` or ``"valkey"``."""
        return "valkey" if "valkey_version" in self.info else "redis"

    @property
    def version(self) -> str:
        """The server's version; "?" if INFO is refused."""
        return self.info.get("valkey_version") or self.info.get("redis_version", "?")

    @property
    def policy(self) -> str | None:
        """The eviction policy."""
        return self.info.get("maxmemory_policy")

    @property
    def memory(self) -> tuple[int, int]:
        """Memory that counts for eviction, and the limit (0: none), in bytes."""
        used = (self.number("used_memory") or 0) - (self.number("mem_not_counted_for_evict") or 0)
        return used, self.number("maxmemory") or 0

    @property
    def flushes(self) -> list[str]:
        """Which commands were called that may have removed all sessions.

        A failover calls REPLICAOF, too: the server then has the keys and the writes of its primary.
        """
        received = self.is_replica or self.loaded_keys or self.replicated_bytes > REPLICATED_BYTES
        return [name for name in FLUSHES if self.succeeded(name) and not (received and name in REPLICATES)]

    def errors(self, code: str) -> int:
        """Return how many errors with this code were sent (Redis 6.2), since the start or the last CONFIG RESETSTAT."""
        return int(self.fields(f"errorstat_{code}").get("count", 0))

    @property
    def refused_writes(self) -> dict[str, int]:
        """How many calls of each command that writes values or TTLs failed or were rejected (Redis 6.2)."""
        found = {}
        for name in VALUE_WRITES.union(RELATIVE_DEADLINES, ABSOLUTE_DEADLINES):
            counts = self.fields(f"cmdstat_{name}")
            found[name] = int(counts.get("failed_calls", 0)) + int(counts.get("rejected_calls", 0))
        return {name: count for name, count in sorted(found.items(), key=lambda one: -one[1]) if count}

    @property
    def databases(self) -> dict[str, dict[str, int]]:
        """What INFO reports of each database: keys, expires, and how many keys have field TTLs."""
        names = [name for name in self.info if name.startswith("db") and name[2:].isdigit()]
        return {name: {key: int(text) for key, text in self.fields(name).items() if text.isdigit()} for name in names}

    @property
    def keys(self) -> int:
        """How many keys all databases have."""
        return sum(one.get("keys", 0) for one in self.databases.values())

    @property
    def has_field_ttls(self) -> bool:
        """Whether a key has fields with TTLs (``subexpiry``: Redis 7.4; ``keys_with_volatile_items``: Valkey 9).

        It may have if INFO is refused.
        """
        counts = self.databases.values()
        return not self.info or any(one.get("subexpiry") or one.get("keys_with_volatile_items") for one in counts)

    @property
    def may_be_reset(self) -> bool:
        """Whether CONFIG RESETSTAT may have reset the counters; Redis 6.2 counts all CONFIG commands together."""
        return self.called("config|resetstat", "config") > 0

    @property
    def expired_fields(self) -> int:
        """How many fields of hashes expired since the start (Redis 7.4, Valkey 9).

        A hash that ends with its last field is not counted in ``expired_keys``.
        """
        return (self.number("expired_subkeys") or 0) + (self.number("expired_fields") or 0)

    @property
    def reads(self) -> int | None:
        """How many commands accessed values since the start, other than the known writes and those that set TTLs.

        None if the counters were reset, if RESTORE was used, or commands that access many keys.
        """
        if not self.calls or self.may_be_reset or {*RESTORES, *ACCESS_MANY} & self.calls.keys():
            return None
        others = NO_ACCESS.union(VALUE_WRITES, RELATIVE_DEADLINES, ABSOLUTE_DEADLINES)
        return sum(calls for name, calls in self.calls.items() if name.partition("|")[0] not in others)

    @property
    def touches(self) -> int | None:
        """``reads``, and how many known writes were more than the commands that set TTLs."""
        if self.reads is None:
            return None
        return self.reads + max(0, self.called(*VALUE_WRITES) - self.called(*RELATIVE_DEADLINES, *ABSOLUTE_DEADLINES))

    @property
    def writes(self) -> int:
        """How many commands wrote values, as far as they are known by name; those that failed (Redis 6.2) did not."""
        return self.succeeded(*VALUE_WRITES)

    @property
    def started_ms(self) -> int | None:
        """When the server started, by its own clock, in milliseconds; up to a second early."""
        uptime_s = self.number("uptime_in_seconds")
        return None if uptime_s is None else self.now_ms - (uptime_s + 1) * 1000

    @property
    def loaded_keys(self) -> int:
        """How many keys the server loaded from an RDB file when it started (7.0 and later)."""
        return self.number("rdb_last_load_keys_loaded") or 0

    @property
    def expired_at_load(self) -> int:
        """How many keys were past their deadline when the file was loaded (7.0 and later)."""
        return self.number("rdb_last_load_keys_expired") or 0

    @property
    def unexplained_changes(self) -> int | None:
        """How many changes since the start no known write made; None if a save has reset the count."""
        started_s = None if self.started_ms is None else self.started_ms // 1000 + 1
        if self.number("rdb_saves") != 0 and self.number("rdb_last_save_time") != started_s:
            return None
        deadlines = self.called("expire", "pexpire", "hexpire", "hpexpire", *ABSOLUTE_DEADLINES, "persist")
        return max(0, (self.number("rdb_changes_since_last_save") or 0) - self.writes - deadlines)

    @property
    def loaded(self) -> bool | None:
        """Whether the server loaded keys from a file when it started; None if INFO does not show it."""
        if self.loaded_keys:
            return True
        if not self.has_aof:
            return False if "rdb_last_load_keys_loaded" in self.info else None
        rewritten = self.number("aof_last_rewrite_time_sec") != -1
        if (self.number("aof_base_size") or 0) > EMPTY_AOF_BYTES and not rewritten:
            return True
        # Commands that are replayed from an append-only file count as changes and not as calls (all four servers).
        return False if self.unexplained_changes == 0 else None

    def must_have_loaded(self, keys: int) -> bool:
        """Return whether the server loaded keys when it started: INFO shows it, or it wrote fewer than the ``keys``."""
        return bool(self.loaded) or (self.loaded is None and self.writes + self.called(*RESTORES) < keys)

    @property
    def has_aof(self) -> bool:
        """Whether the server has an append-only file; some managed services leave it out of INFO."""
        return self.info.get("aof_enabled") == "1" or self.config.get("appendonly") == "yes"

    def empty_start_ms(self, keys: int) -> int | None:
        """Return when the server started, if it surely started empty: keys cannot be older than that.

        Args:
            keys: How many keys the database has.
        """
        # RESTORE (MIGRATE, importers) brings keys that are older than the server.
        unsure = self.is_replica or self.may_be_reset or self.called(*RESTORES)
        if self.loaded or unsure or (self.loaded is None and (self.has_aof or self.writes < keys)):
            return None
        return self.started_ms

    def load_ms(self, keys: int, accesses: Sequence[int]) -> tuple[int, int] | None:
        """Return the time in which the server loaded its keys; None if it did not.

        Idle clocks of what it loaded begin then, unless the file had them (maxmemory-policy ``*-lru``).

        Args:
            keys: How many keys the database has.
            accesses: When keys were accessed last, in milliseconds.
        """
        if self.started_ms is None:
            return None
        first, times = self.started_ms - 1_000, sorted(accesses)
        if self.may_have_synced and self.loaded_keys and times:  # a copy from a primary comes at any time
            first = max(times, key=lambda at: bisect_right(times, at + LOAD_GRAIN_MS) - bisect_left(times, at))
        last = first + 1_000 + LOAD_GRAIN_MS
        count = bisect_right(times, last) - bisect_left(times, first)
        usual = len(times) * (last - first) / max(self.now_ms - min(first, self.started_ms), 1)
        together = count >= FEWEST_LOADED and count > LOADED_TOGETHER * usual
        return (first, last) if self.must_have_loaded(keys) or together else None


def read_server_facts(connection: ReadOnlyConnection) -> ServerFacts:
    """Ask a server to report about itself; what it refuses is listed in ``refused``."""
    refusals: list[str] = []
    info = _info(connection, refusals)
    skew, unsure, now_ms = _skew(connection)
    slow = _slow_commands(connection, refusals)
    config = _config(connection, refusals)
    clients = _clients(connection, refusals)
    return ServerFacts(info, config, slow, clients, skew, unsure, *_moved(info), tuple(refusals), now_ms)


def facts_of_snapshot(snapshot: Snapshot, connections: Sequence[ReadOnlyConnection]) -> ServerFacts:
    """Return what a file shows of its server: its version and its databases; a server that serves it is another."""
    info = {f"{snapshot.flavour}_version": snapshot.version}
    info |= {f"db{db}": f"keys={keys}" for db, keys in snapshot.databases.items()}
    for connection in connections:
        info |= info_fields(connection.ask("INFO", "keyspace"))
    return ServerFacts(info, {}, now_ms=int(snapshot.taken_at.timestamp() * 1000))


def counters(connection: ReadOnlyConnection) -> dict[str, str]:
    """Return INFO's counters as they are now; empty if INFO is refused."""
    return info_fields(connection.ask("INFO", "stats"))


def _info(connection: ReadOnlyConnection, refusals: list[str]) -> dict[str, str]:
    reply = connection.ask("INFO", "all")
    # Some managed services refuse the large request and answer section by section.
    replies = [connection.ask("INFO", section) for section in (*SECTIONS, "errorstats")] if refused(reply) else [reply]
    found = {name: value for one in replies for name, value in info_fields(one).items()}
    if not found:
        refusals.append("INFO (expired and evicted keys, memory, persistence)")
    return found


def _config(connection: ReadOnlyConnection, refusals: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in CONFIG_NAMES:
        reply = connection.ask("CONFIG", "GET", name)
        if refused(reply):
            refusals.append("CONFIG (save points)")
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

    The preload maps the file that holds the offset into the process.
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


def _slow_commands(connection: ReadOnlyConnection, refusals: list[str]) -> tuple[SlowCommand, ...]:
    reply = connection.ask("SLOWLOG", "GET", SLOWLOG_ENTRIES)
    if refused(reply):
        refusals.append("SLOWLOG")
        return ()
    found = []
    for entry in reply:
        words: list[bytes] = [word for word in entry[3] if isinstance(word, bytes)]
        command = words[0].decode(errors="replace").lower() if words else ""
        if command in DELETES + FLUSHES:
            client = entry[4].decode(errors="replace") if len(entry) > 4 and isinstance(entry[4], bytes) else ""
            found.append(SlowCommand(int(entry[1]), command, tuple(words[1:]), client))
    return tuple(found)


def _clients(connection: ReadOnlyConnection, refusals: list[str]) -> tuple[ClientInfo, ...]:
    reply = connection.ask("CLIENT", "LIST")
    if refused(reply):
        refusals.append("CLIENT LIST")
        return ()
    found = []
    for line in reply.decode(errors="replace").splitlines():
        fields = dict(pair.partition("=")[::2] for pair in line.split(" "))
        name = f"{fields.get('addr', '?')} {fields.get('name', '')}".strip()
        found.append(ClientInfo(name, fields.get("cmd", "").lower()))
    return tuple(found)
