"""Reader: the type, TTL, idle time, encoding, size and value of keys, read within a budget of bytes and elements."""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import redis

from memkit.connect import chunks
from memkit.readonly.connection import (
    Command,
    KeyCommands,
    PendingReplies,
    ReadOnlyConnection,
    Reply,
    command,
    redirected,
    refused,
)
from memkit.readonly.target import Target
from memkit.readonly.values import JSON_KIND, KeyRequest, RedisValue, to_bytes, to_name

Item = TypeVar("Item")
MAX_BYTES = 64 << 20
MAX_ELEMENTS = 100_000
PEEK_BYTES = 64 << 10
"""What is read of a string that does not fit into the budget: enough to recognise what wrote it."""
_BATCH_KEYS = 500
_BATCH_BYTES = 4 << 20
_LIST_CHUNK = 1_000
_COUNTED_BYTES = 1 << 20
"""A hash or set of this size may have more elements than the budget: its elements are counted before it is read."""
_HASH_FIELDS = 1_000
"""The deadlines of at most this many fields of a hash are read."""
STREAM_ENTRIES = 50_000
"""Half of the elements that are read of a session: an entry counts as its id and its fields."""
_Sent = tuple[Sequence[int], KeyCommands, PendingReplies]
"""Commands for keys on one connection, with the positions of these keys among all that were asked about."""
_METADATA = ("type", "pttl", "object|idletime", "object|encoding", "memory|usage")
_COUNT = {"hash": b"HLEN", "set": b"SCARD"}
_SOME = {"hash": b"HMGET", "set": b"SMISMEMBER", "zset": b"ZMSCORE"}
_ALL: dict[str, tuple[bytes, ...]] = {
    "hash": (b"HGETALL",),
    "set": (b"SMEMBERS",),
    "zset": (b"ZRANGE", b"0", b"-1", b"WITHSCORES"),
    "stream": (b"XRANGE", b"-", b"+", b"COUNT", b"%d" % STREAM_ENTRIES),
    JSON_KIND: (b"JSON.GET",),
}
"""The command that reads all of a value (of a stream its first entries), and its arguments after the key."""


class KeyMetadata(NamedTuple):
    """What the server reports about a key besides its value; None: no TTL, or the server refuses to report it."""

    kind: str
    ttl_ms: int | None
    idle_s: int | None
    encoding: str | None
    size_bytes: int | None


class LoadedKey(NamedTuple):
    """The value and the metadata of a key."""

    value: RedisValue
    metadata: KeyMetadata


@dataclass
class Budget:
    """How much may still be read."""

    bytes_left: int = MAX_BYTES
    elements_left: int = MAX_ELEMENTS

    def fits(self, size_bytes: int | None) -> bool:
        """Return whether a value of this size may be read whole."""
        return size_bytes is not None and size_bytes <= self.bytes_left and self.elements_left > 0

    def spend(self, value: RedisValue) -> None:
        """Subtract what was read; a message that is stored as a small hash counts as one element."""
        many = len(value.fields) + len(value.members) + len(value.scores)
        self.bytes_left -= sum(map(len, value.payloads))
        self.elements_left -= len(value.elements) + (many if many > _LIST_CHUNK else 1)


@dataclass
class Reader:
    """Reads keys of an open target.

    ``scan_refused`` is the error that SCAN was refused with, if it was. ``moving`` has the keys that could not be read
    because their slot is being moved to another server of the cluster.
    """

    target: Target
    moving: list[str] = field(default_factory=list)
    read_keys: int = 0
    scanned_keys: int = 0
    scan_refused: str = ""
    budget: Budget = field(default_factory=Budget)

    def database_keys(self) -> int:
        """Return the number of keys by DBSIZE, expired ones that were not yet removed included; 0 if refused."""
        replies = [connection.ask("DBSIZE") for connection in self.target.connections]
        return sum(reply for reply in replies if isinstance(reply, int))

    def now_ms(self) -> float:
        """Return the server's time in ms since 1970; this machine's if TIME is refused."""
        reply = self.target.connections[0].ask("TIME")
        return time.time() * 1000 if refused(reply) else int(reply[0]) * 1000 + int(reply[1]) / 1000

    def scan(self, pattern: str, keep: re.Pattern[str], limit: int) -> list[str]:
        """Return up to ``limit`` names that match a glob and ``keep``, sorted."""
        found: set[str] = set()
        for connection in self.target.connections:
            try:
                for page in connection.scan(to_bytes(pattern)):
                    found.update(name for name in map(to_name, page) if keep.search(name))
                    if len(found) >= limit:
                        break
            except redis.ResponseError as error:
                self.scan_refused = str(error).split(" ")[0]
        self.scanned_keys = max(self.scanned_keys, self.database_keys())
        return sorted(found)[:limit]

    def exist(self, keys: Sequence[bytes]) -> list[bool]:
        """Return which keys exist; a key about which the server refuses to answer counts as existing."""
        columns = _columns(self._send(keys, ("exists",)), len(keys), ("exists",))
        return [reply != 0 for reply in columns["exists"]]

    def load(self, requests: Iterable[KeyRequest]) -> dict[str, LoadedKey | None]:
        """Return the keys that were asked for, None for those that do not exist."""
        by_name = {request.name: request for request in requests}
        loaded: dict[str, LoadedKey | None] = dict.fromkeys(by_name)
        for step in chunks(by_name, _BATCH_KEYS):
            columns = _columns(self._send(list(map(to_bytes, step)), _METADATA), len(step), _METADATA)
            self.moving += [name for name, kind in zip(step, columns["type"], strict=True) if redirected(kind)]
            answers = zip(step, *columns.values(), strict=True)
            metadata = {name: found for name, *each in answers if (found := _metadata(*each))}
            if self.target.snapshot and not self.target.snapshot.has_idle_times:
                metadata = {name: found._replace(idle_s=None) for name, found in metadata.items()}
            sizes = {name: each.size_bytes or 0 for name, each in metadata.items()}
            # No reply waits in memory with all the others.
            for batch in batches(sizes, sizes.__getitem__, _BATCH_BYTES):
                pending = self._send_for_values(batch, metadata, by_name)
                for name, (replies, count) in zip(batch, pending, strict=True):
                    value = self._value(name, metadata[name], by_name[name], replies.take(count))
                    loaded[name] = LoadedKey(value, metadata[name])
                    self.read_keys += 1
                    self.budget.spend(value)
        return loaded

    def _routed(self, keys: Sequence[bytes]) -> Iterable[tuple[ReadOnlyConnection, Sequence[int]]]:
        """Group the positions of keys by the connection that they are on."""
        routed: defaultdict[ReadOnlyConnection, list[int]] = defaultdict(list)
        for at, key in enumerate(keys):
            routed[self.target.route(key)].append(at)
        return routed.items()

    def _send(self, keys: Sequence[bytes], names: Sequence[str]) -> list[_Sent]:
        sent = []
        for connection, positions in self._routed(keys):
            commands = KeyCommands([keys[at] for at in positions], names)
            sent.append((positions, commands, connection.send(commands)))
        return sent

    def _send_for_values(
        self, names: Sequence[str], metadata: Mapping[str, KeyMetadata], requests: Mapping[str, KeyRequest]
    ) -> list[tuple[PendingReplies, int]]:
        """Send the commands that read values; return, for each name, where its replies are and how many there are."""
        keys = list(map(to_bytes, names))
        plans = [_plan(key, metadata[name], requests[name], self.budget) for key, name in zip(keys, names, strict=True)]
        where: dict[int, tuple[PendingReplies, int]] = {}
        for connection, positions in self._routed(keys):
            pending = connection.send([each for at in positions for each in plans[at]])
            where |= {at: (pending, len(plans[at])) for at in positions}
        return [where[at] for at in range(len(names))]

    def _value(self, name: str, metadata: KeyMetadata, request: KeyRequest, replies: list[Reply]) -> RedisValue:
        kind, size_bytes = metadata.kind, metadata.size_bytes or 0
        refusals = [str(reply).split(" ")[0] for reply in replies if refused(reply)]
        if refusals:
            return RedisValue(name, kind, unread_reason=f"the server refused to read it ({refusals[0]})")
        if not replies:
            over = _over(size_bytes, "bytes", MAX_BYTES)
            return RedisValue(name, kind, unread_reason=over if kind in _ALL else f"keys of type {kind} are not read")
        if kind == "list" and len(replies) == 1:
            return self._long_list(name, replies[0], size_bytes)
        if kind in _COUNT and isinstance(replies[0], int):
            if replies[0] > self.budget.elements_left:
                over = _over(replies[0], "elements", MAX_ELEMENTS)
                return RedisValue(name, kind, total=replies[0], unread_reason=over)
            key = to_bytes(name)
            replies = self.target.route(key).send([_whole(key, kind)]).take()
        if kind == "string" and len(replies[1] or b"") < replies[0] <= self.budget.bytes_left:
            whole = self.target.route(to_bytes(name)).ask("GET", to_bytes(name))  # MEMORY USAGE counts more
            replies = replies if refused(whole) else [replies[0], whole]
        value = _built(name, kind, request, replies)
        return value._replace(partial=True) if len(value.scores) >= self.budget.elements_left else value

    def _long_list(self, name: str, total: int, size_bytes: int) -> RedisValue:
        """Read a list that may be over the budget from its head, a few MB at a time, until the budget is used up."""
        elements: list[bytes] = []
        size, key = 0, to_bytes(name)
        step = max(1, min(_LIST_CHUNK, total * _BATCH_BYTES // size_bytes)) if size_bytes else _LIST_CHUNK
        while len(elements) < min(total, self.budget.elements_left) and size < self.budget.bytes_left:
            at = len(elements)
            reply = self.target.route(key).ask("LRANGE", key, at, at + step - 1)
            if refused(reply) or not reply:
                break
            elements += reply
            size += sum(map(len, reply))
        return RedisValue(name, "list", elements=elements, total=total, partial=len(elements) < total)


def _columns(sent: Iterable[_Sent], count: int, names: Sequence[str]) -> dict[str, list[Reply]]:
    """Receive the replies of every connection; by the name of the command, one for each key, in the keys' order."""
    columns: dict[str, list[Reply]] = {name: [None] * count for name in names}
    for positions, commands, pending in sent:
        for name, column in pending.columns(commands).items():
            for at, reply in zip(positions, column, strict=True):
                columns[name][at] = reply
    return columns


def _metadata(kind: Reply, pttl: Reply, idle: Reply, encoding: Reply, size: Reply) -> KeyMetadata | None:
    """Return what the server reports, or None for a key that does not exist or about which it refuses to answer."""
    if not isinstance(kind, bytes) or kind == b"none" or pttl == -2:
        if refused(kind) and str(kind).startswith("LOADING"):
            raise redis.BusyLoadingError(str(kind))
        if refused(kind) and not (redirected(kind) or str(kind).startswith("NOPERM")):
            raise kind  # BUSY, MASTERDOWN, CLUSTERDOWN, a broken connection: nothing is known about any key
        return None
    return KeyMetadata(
        kind.decode(),
        pttl if isinstance(pttl, int) and pttl >= 0 else None,
        idle if isinstance(idle, int) else None,
        encoding.decode() if isinstance(encoding, bytes) else None,
        size if isinstance(size, int) else None,
    )


def batches(items: Iterable[Item], cost: Callable[[Item], float], most: float) -> Iterator[list[Item]]:
    """Cut items into lists: each ends with the item with which its cost reaches so much."""
    batch: list[Item] = []
    total = 0.0
    for one in items:
        batch.append(one)
        total += cost(one)
        if total >= most:
            yield batch
            batch, total = [], 0.0
    if batch:
        yield batch


def _plan(key: bytes, metadata: KeyMetadata, request: KeyRequest, budget: Budget) -> list[Command]:
    """Return the commands that read a value; of a list that is or may be too large, only its length is read."""
    fits = budget.fits(metadata.size_bytes)
    some_bytes = PEEK_BYTES if metadata.size_bytes else budget.bytes_left
    if metadata.kind == "list":
        whole = [command(b"LRANGE", key, 0, budget.elements_left - 1)] if fits else []
        return [command(b"LLEN", key), *whole]
    if metadata.kind == "string":
        return [command(b"STRLEN", key), command(b"GET", key) if fits else command(b"GETRANGE", key, 0, some_bytes - 1)]
    if request.only and metadata.kind in _SOME:
        return [command(_SOME[metadata.kind], key, *map(to_bytes, request.only))]
    if metadata.kind in _COUNT and (metadata.size_bytes or 0) > _COUNTED_BYTES and fits:
        return [command(_COUNT[metadata.kind], key)]
    if metadata.kind == "zset" and fits:
        return [command(b"ZRANGE", key, 0, budget.elements_left - 1, b"WITHSCORES")]
    # The size is not known if MEMORY USAGE is refused.
    if metadata.kind in _ALL and (fits or metadata.size_bytes is None):
        return [_whole(key, metadata.kind)]
    return []


def _whole(key: bytes, kind: str) -> Command:
    name, *arguments = _ALL[kind]
    return command(name, key, *arguments)


def _over(count: int, unit: str, limit: int) -> str:
    """Return why a value is not read whole: it is over a limit of a session, alone or beside other keys."""
    shown = f"{limit >> 20} MB" if limit == MAX_BYTES else f"{limit:,}"
    return f"its {count:,} {unit} exceed {'' if count > limit else 'what is left of '}the limit of {shown}"


def _built(name: str, kind: str, request: KeyRequest, replies: list[Reply]) -> RedisValue:
    """Return a value from the replies to the commands of its plan."""
    total, value = replies if len(replies) == 2 else (0, replies[0])
    if kind == "string":
        over = _over(total, "bytes", MAX_BYTES) if len(value or b"") < total else ""
        return RedisValue(name, kind, data=value or b"", total=total, unread_reason=over)
    if kind == JSON_KIND:
        return RedisValue(name, kind, data=value or b"", total=len(value or b""))
    if kind == "list":
        return RedisValue(name, kind, elements=value, total=total, partial=len(value) < total)
    if kind == "set":
        there = [member for member, known in zip(request.only, value, strict=True) if known] if request.only else None
        members = frozenset(map(to_name, value) if there is None else there)
        return RedisValue(name, kind, members=members, total=len(members))
    if kind == "stream":
        entries = [(to_name(uid), _pairs(parts or ())) for uid, parts in value]
        return RedisValue(name, kind, entries=entries, total=len(entries), partial=len(entries) >= STREAM_ENTRIES)
    if request.only:
        found = {name: one for name, one in zip(request.only, value, strict=True) if one is not None}
    else:
        found = _pairs(value)
    if kind == "hash":
        return RedisValue(name, kind, fields=found, total=len(found))
    return RedisValue(name, kind, scores={name: float(score) for name, score in found.items()}, total=len(found))


def _pairs(parts: Sequence[bytes]) -> dict[str, bytes]:
    """Return names and values, which RESP2 lists in turn."""
    return dict(zip(map(to_name, parts[::2]), parts[1::2], strict=False))


def field_deadlines(connection: ReadOnlyConnection, key: bytes) -> Sequence[int] | None:
    """Return the deadlines of a hash's fields in ms since 1970, 0 or less for a field without one.

    Empty if no field has one, or if the server does not report it (before Redis 7.4 and Valkey 9). None if no field is
    left: Valkey keeps a hash for a while after its last field has expired.
    """
    page = connection.ask("HSCAN", key, 0, "COUNT", _HASH_FIELDS, "NOVALUES")
    if refused(page) or not (names := page[1][:_HASH_FIELDS]):
        return [] if refused(page) else None
    times: Reply = connection.ask("HPEXPIRETIME", key, "FIELDS", len(names), *names)
    return [] if refused(times) or max(times) <= 0 else times
