"""Read keys of a live server: on a connection of its own, without touching idle clocks where the server allows.

Only commands that read are sent. Values are read within a budget, so that one session cannot fill this process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, Protocol

import redis
import redis.asyncio
from redis.cluster import RedisCluster

from memkit.connect import connect
from memkit.errors import PolicyError
from memkit.readonly.values import JSON_KIND, KeyRequest, RedisValue, to_bytes, to_name

MAX_BYTES = 64 << 20
MAX_ELEMENTS = 100_000
PEEK_BYTES = 64 << 10
_BATCH_KEYS = 500
_BATCH_BYTES = 4 << 20
_CHUNK = 1_000
_READ_BYTES = 256 << 10  # redis-py's 64 KB take a tenth longer
_MANY_BYTES = 1 << 20  # a hash or set of this size may have too many elements: it is asked how many before it is read
_SCAN_COUNT = 1_000
_STREAM_ENTRIES = 50_000  # as in _ALL: an entry counts as two elements of the budget, its id and its fields

try:
    from redis._parsers.hiredis import NOT_ENOUGH_DATA as _MORE
except ImportError:
    _MORE = None  # then every answer is asked of redis-py itself

Command = tuple[bytes, Sequence[bytes]]
"""A key, which says where its commands go, and the commands as they are sent."""


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


class _Connection(Protocol):
    """The part of a redis-py connection that is used here."""

    def send_packed_command(self, command: Iterable[bytes], check_health: bool = True) -> None: ...
    def read_response(self) -> Any: ...
    def disconnect(self) -> None: ...


@dataclass
class Budget:
    """How much may still be read."""

    bytes_left: int = MAX_BYTES
    elements_left: int = MAX_ELEMENTS

    def fits(self, size_bytes: int | None) -> bool:
        """Return whether a value of this size may be read whole."""
        return size_bytes is not None and size_bytes <= self.bytes_left and self.elements_left > 0

    def spend(self, size_bytes: int, elements: int) -> None:
        """Take what was read off the budget."""
        self.bytes_left -= size_bytes
        self.elements_left -= elements


@dataclass
class Reader:
    """Reads keys; made by ``reading``. ``touched_because`` says why idle clocks cannot be spared, if they cannot."""

    connections: Mapping[str, _Connection]
    route: Callable[[bytes], str]
    prefix: str = ""
    touched_because: str = ""
    read_keys: int = 0
    scanned_keys: int = 0
    scan_refused: str = ""
    budget: Budget = field(default_factory=Budget)
    awaited: list[Sequence[bytes]] = field(default_factory=list, init=False)
    came: list[list[Any]] = field(default_factory=list, init=False)

    def ask(self, commands: Sequence[Command], *, ahead: Sequence[Command] = ()) -> list[list[Any]]:
        """Send commands, each key's to its node, and return each key's answers; a refusal is returned, not raised.

        ``ahead`` is sent too, where there is one node, and its answers are for ``_came`` to take: the server is at them
        while this process is at the first ones.
        """
        if len(self.connections) == 1:
            connection = next(iter(self.connections.values()))
            self.came += _answers(connection, self.awaited)
            _send(connection, [packed for _, packed in (*commands, *ahead)])
            self.awaited = [packed for _, packed in ahead]
            return _answers(connection, [packed for _, packed in commands])
        by_node: dict[str, list[int]] = {}
        for index, (key, _) in enumerate(commands):
            by_node.setdefault(self.route(key), []).append(index)
        answers: list[list[Any]] = [[]] * len(commands)
        for node, indexes in by_node.items():
            found = _exchange(self.connections[node], [commands[index][1] for index in indexes])
            for index, answer in zip(indexes, found, strict=True):
                answers[index] = answer
        return answers

    def database_keys(self) -> int:
        """Return how many keys the database has, dead ones that were not yet removed included; 0 if that is refused."""
        answers = [_one(connection, _packed(b"DBSIZE")) for connection in self.connections.values()]
        return sum(answer for answer in answers if isinstance(answer, int))

    def scan(self, pattern: str, keep: re.Pattern[str], limit: int) -> list[str]:
        """Return up to ``limit`` names that match a glob and ``keep``, in order; walks the database in pieces."""
        found: set[str] = set()
        for connection in self.connections.values():
            cursor = b"0"
            while len(found) < limit:
                step = _packed(b"SCAN", cursor, b"MATCH", to_bytes(pattern), b"COUNT", _SCAN_COUNT)
                answer = _one(connection, step)
                if isinstance(answer, Exception):
                    self.scan_refused = str(answer).split(" ")[0]
                    break
                cursor, names = answer
                found.update(name for name in map(to_name, names) if keep.search(name))
                if cursor == b"0":
                    break
        self.scanned_keys = max(self.scanned_keys, self.database_keys())
        return sorted(found)[:limit]

    def load(self, wants: Iterable[KeyRequest]) -> dict[str, LoadedKey | None]:
        """Return the keys that were asked for, None for those that are not there."""
        by_name = {want.name: want for want in wants}
        loaded: dict[str, LoadedKey | None] = dict.fromkeys(by_name)
        names = list(by_name)
        steps = [names[start : start + _BATCH_KEYS] for start in range(0, len(names), _BATCH_KEYS)]
        for step, following in zip(steps, [*steps[1:], []], strict=False):
            there = self._metas(step)
            batches = list(_batches(there))
            for batch in batches:
                ahead = list(map(_questions, following)) if batch is batches[-1] else []
                loaded |= self._values({name: there[name] for name in batch}, by_name, ahead)
        return loaded

    def _metas(self, names: Sequence[str]) -> dict[str, KeyMetadata]:
        """Ask for type, TTL, idle time, encoding and size, before any value is read."""
        answers = self._came() or self.ask(list(map(_questions, names)))
        metas = zip(names, map(_meta, answers), strict=True)
        return {name: meta for name, meta in metas if meta is not None}

    def _came(self) -> list[list[Any]]:
        """Return the answers to what was asked ahead."""
        if self.awaited:
            self.ask(())
        came, self.came = self.came, []
        return came

    def _values(
        self, metas: Mapping[str, KeyMetadata], wants: Mapping[str, KeyRequest], ahead: Sequence[Command]
    ) -> dict[str, LoadedKey]:
        plans = []
        for name, meta in metas.items():
            key = to_bytes(name)
            plans.append((key, _plan(key, meta, wants[name], self.budget)))
        found = {}
        for (name, meta), got in zip(metas.items(), self.ask(plans, ahead=ahead), strict=True):
            raw = self._raw(name, meta, wants[name], got)
            found[name] = LoadedKey(raw, meta)
            self.read_keys += 1
            self.budget.spend(_bytes_in(raw), _elements_in(raw))
        return found

    def _raw(self, name: str, meta: KeyMetadata, want: KeyRequest, got: list[Any]) -> RedisValue:
        refused = [answer for answer in got if isinstance(answer, Exception)]
        if refused:
            return RedisValue(
                name, meta.kind, unread_reason=f"the server refused to read it ({str(refused[0]).split(' ')[0]})"
            )
        if not got:
            over = f"its {meta.size_bytes or 0:,} bytes are over the {MAX_BYTES >> 20} MB that are read"
            says = over if meta.kind in _ALL else f"keys of type {meta.kind} are not read"
            return RedisValue(name, meta.kind, unread_reason=says)
        if meta.kind == "list" and len(got) == 1:
            return self._long_list(name, got[0], meta.size_bytes or 0)
        if meta.kind in _COUNT and isinstance(got[0], int):
            if got[0] > self.budget.elements_left:
                over = f"its {got[0]:,} elements are over the {MAX_ELEMENTS:,} that are read"
                return RedisValue(name, meta.kind, total=got[0], unread_reason=over)
            got = self.ask([(to_bytes(name), [_whole(to_bytes(name), meta.kind)])])[0]
        raw = _BUILD[meta.kind](name, want, got)
        return raw._replace(partial=True) if len(raw.scores) >= self.budget.elements_left else raw

    def _long_list(self, name: str, total: int, size_bytes: int) -> RedisValue:
        """Read a list that may be over the budget from its head, a few MB at a time, until the budget is used up."""
        elements: list[bytes] = []
        size, key = 0, to_bytes(name)
        step = max(1, min(_CHUNK, total * _BATCH_BYTES // size_bytes)) if size_bytes else _CHUNK
        while len(elements) < min(total, self.budget.elements_left) and size < self.budget.bytes_left:
            at = len(elements)
            answer = self.ask([(key, [_packed(b"LRANGE", key, at, at + step - 1)])])[0][0]
            if isinstance(answer, Exception) or not answer:
                break
            elements += answer
            size += sum(map(len, answer))
        return RedisValue(name, "list", elements=elements, total=total, partial=len(elements) < total)


# Packed but for their last argument, the key.
_QUESTIONS = (
    b"*2\r\n$4\r\nTYPE\r\n",
    b"*2\r\n$4\r\nPTTL\r\n",
    b"*3\r\n$6\r\nOBJECT\r\n$8\r\nIDLETIME\r\n",
    b"*3\r\n$6\r\nOBJECT\r\n$8\r\nENCODING\r\n",
    b"*3\r\n$6\r\nMEMORY\r\n$5\r\nUSAGE\r\n",
)


def _questions(name: str) -> Command:
    key = to_bytes(name)
    last = b"$%d\r\n%b\r\n" % (len(key), key)
    return key, [question + last for question in _QUESTIONS]


def _meta(answers: Sequence[Any]) -> KeyMetadata | None:
    """Return what the server said, or None where the key is not there (or may not be looked at)."""
    kind, pttl, idle, encoding, size = answers
    if not isinstance(kind, bytes) or kind == b"none" or pttl == -2:
        if isinstance(kind, redis.ConnectionError):  # the server's own words: it is loading its data
            raise kind
        return None
    return KeyMetadata(
        kind.decode(),
        pttl if isinstance(pttl, int) and pttl >= 0 else None,
        idle if isinstance(idle, int) else None,
        encoding.decode() if isinstance(encoding, bytes) else None,
        size if isinstance(size, int) else None,
    )


def _batches(metas: Mapping[str, KeyMetadata]) -> Iterator[list[str]]:
    """Cut keys into batches of about 4 MB, so that no reply waits in memory with all the others."""
    batch: list[str] = []
    size = 0
    for name, meta in metas.items():
        batch.append(name)
        size += meta.size_bytes or 0
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _plan(key: bytes, meta: KeyMetadata, want: KeyRequest, budget: Budget) -> list[bytes]:
    """Return the commands that read a value; a list that is too large, or may be, is asked for its length alone."""
    fits = budget.fits(meta.size_bytes)
    some_bytes = PEEK_BYTES if meta.size_bytes else budget.bytes_left
    if meta.kind == "list":
        whole = [_packed(b"LRANGE", key, 0, budget.elements_left - 1)] if fits else []
        return [_packed(b"LLEN", key), *whole]
    if meta.kind == "string":
        return [_packed(b"STRLEN", key), _packed(b"GET", key) if fits else _packed(b"GETRANGE", key, 0, some_bytes - 1)]
    if want.only and meta.kind in _SOME:
        return [_packed(_SOME[meta.kind], key, *map(to_bytes, want.only))]
    if meta.kind in _COUNT and (meta.size_bytes or 0) > _MANY_BYTES and fits:
        return [_packed(_COUNT[meta.kind], key)]
    if meta.kind == "zset" and fits:
        return [_packed(b"ZRANGE", key, 0, budget.elements_left - 1, b"WITHSCORES")]
    if meta.kind in _ALL and (fits or meta.size_bytes is None):  # MEMORY USAGE may be refused: then it is unknown
        return [_whole(key, meta.kind)]
    return []


def _whole(key: bytes, kind: str) -> bytes:
    """Return the command that reads all of a key."""
    before, after = _ALL[kind]
    return b"%b$%d\r\n%b\r\n%b" % (before, len(key), key, after)


_COUNT = {"hash": b"HLEN", "set": b"SCARD"}
_SOME = {"hash": b"HMGET", "set": b"SMISMEMBER", "zset": b"ZMSCORE"}
# Packed: what stands before the key, and what stands after it.
_ALL = {
    "hash": (b"*2\r\n$7\r\nHGETALL\r\n", b""),
    "set": (b"*2\r\n$8\r\nSMEMBERS\r\n", b""),
    "zset": (b"*5\r\n$6\r\nZRANGE\r\n", b"$1\r\n0\r\n$2\r\n-1\r\n$10\r\nWITHSCORES\r\n"),
    "stream": (b"*6\r\n$6\r\nXRANGE\r\n", b"$1\r\n-\r\n$1\r\n+\r\n$5\r\nCOUNT\r\n$5\r\n50000\r\n"),
    JSON_KIND: (b"*2\r\n$8\r\nJSON.GET\r\n", b""),
}


def _string(name: str, _want: KeyRequest, got: list[Any]) -> RedisValue:
    total, data = got
    data = data or b""
    over = "" if len(data) >= total else f"its {total:,} bytes are over the {MAX_BYTES >> 20} MB that are read"
    return RedisValue(name, "string", data=data, total=total, unread_reason=over)


def _document(name: str, _want: KeyRequest, got: list[Any]) -> RedisValue:
    data = got[0] or b""
    return RedisValue(name, JSON_KIND, data=data, total=len(data))


def _list(name: str, _want: KeyRequest, got: list[Any]) -> RedisValue:
    total, elements = got
    return RedisValue(name, "list", elements=elements, total=total, partial=len(elements) < total)


def _hash(name: str, want: KeyRequest, got: list[Any]) -> RedisValue:
    fields = _pairs(want, got[0])
    return RedisValue(name, "hash", fields=fields, total=len(fields))


def _set(name: str, want: KeyRequest, got: list[Any]) -> RedisValue:
    if want.only:
        members = [member for member, there in zip(want.only, got[0], strict=True) if there]
    else:
        members = list(map(to_name, got[0]))
    return RedisValue(name, "set", members=frozenset(members), total=len(members))


def _zset(name: str, want: KeyRequest, got: list[Any]) -> RedisValue:
    scores = {key: float(score) for key, score in _pairs(want, got[0]).items()}
    return RedisValue(name, "zset", scores=scores, total=len(scores))


def _pairs(want: KeyRequest, values: list[Any]) -> dict[str, bytes]:
    """Return keys with their values: those asked for that are there, or all, as RESP2 lists them."""
    if want.only:
        return {name: value for name, value in zip(want.only, values, strict=True) if value is not None}
    return dict(zip(map(to_name, values[::2]), values[1::2], strict=False))


def _stream(name: str, _want: KeyRequest, got: list[Any]) -> RedisValue:
    pairs = ((to_name(uid), parts or ()) for uid, parts in got[0])
    entries = [(uid, dict(zip(map(to_name, parts[::2]), parts[1::2], strict=False))) for uid, parts in pairs]
    return RedisValue(name, "stream", entries=entries, total=len(entries), partial=len(entries) >= _STREAM_ENTRIES)


_BUILD: dict[str, Callable[[str, KeyRequest, list[Any]], RedisValue]] = {
    "string": _string,
    JSON_KIND: _document,
    "list": _list,
    "hash": _hash,
    "set": _set,
    "zset": _zset,
    "stream": _stream,
}


def _elements_in(raw: RedisValue) -> int:
    """Return what a key counts for; one message kept as a small hash counts for one."""
    many = len(raw.fields) + len(raw.members) + len(raw.scores)
    return len(raw.elements) + len(raw.entries) + (many if many > _CHUNK else 1)


def _bytes_in(raw: RedisValue) -> int:
    return sum(map(len, raw.payloads))


def _exchange(connection: _Connection, commands: Sequence[Sequence[bytes]]) -> list[list[Any]]:
    _send(connection, commands)
    return _answers(connection, commands)


def _send(connection: _Connection, commands: Sequence[Sequence[bytes]]) -> None:
    if commands:
        connection.send_packed_command([b"".join(chain.from_iterable(commands))])


def _answers(connection: _Connection, commands: Sequence[Sequence[bytes]]) -> list[list[Any]]:
    """Return the raw answers to commands that were sent."""
    arrived = _arrived(connection)
    answers: list[list[Any]] = []
    for each in commands:
        got: list[Any] = []
        for _ in each:
            answer = arrived()
            got.append(_waited(connection) if answer is _MORE else answer)
        answers.append(got)
    return answers


def _waited(connection: _Connection) -> Any:
    try:
        return connection.read_response()
    except redis.ResponseError as error:
        return error


def _one(connection: _Connection, command: bytes) -> Any:
    return _exchange(connection, [[command]])[0][0]


def _arrived(connection: _Connection) -> Callable[[], Any]:
    """Return what takes an answer that has arrived already, or ``_MORE``.

    ``read_response`` takes ten times as long as the parser behind it, which is the most of looking at 10,000 keys.
    """
    reader = getattr(getattr(connection, "_parser", None), "_reader", None)
    gets: Callable[[], Any] | None = getattr(reader, "gets", None)
    return gets if _MORE and gets else lambda: _MORE


def _packed(*args: bytes | int) -> bytes:
    """Return a command as it is sent; by hand, for redis-py's packing costs as much as all the reading."""
    parts = [arg if isinstance(arg, bytes) else b"%d" % arg for arg in args]
    return b"*%d\r\n%b" % (len(parts), b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]))


@contextmanager
def reading(target: Any) -> Iterator[Reader]:
    """Open a reader on a URL or a client; its connections are its own and are closed at the end.

    The client's pool is left alone: NO-TOUCH belongs to a connection and must not leak into the application's.
    """
    client, own = (connect(target), True) if isinstance(target, str) else (target, False)
    reader = None
    try:
        reader = _reader(client)
        reader.touched_because = _spare_idle_clocks(reader)
        yield reader
    finally:
        for connection in reader.connections.values() if reader else ():
            with suppress(redis.RedisError, OSError):
                connection.disconnect()
        if own:
            client.close()


def _reader(client: Any) -> Reader:
    prefix = getattr(client, "_test_prefix", "")
    prefix = to_name(prefix) if isinstance(prefix, bytes) else prefix if isinstance(prefix, str) else ""
    if isinstance(client, RedisCluster):
        nodes = {node.name: _dedicated(client.get_redis_connection(node)) for node in client.get_primaries()}
        return Reader(nodes, lambda key: str(client.get_node_from_key(key).name), prefix)
    if isinstance(client, redis.asyncio.Redis | redis.asyncio.RedisCluster):
        raise PolicyError("this client is asynchronous; a Redis URL or a synchronous redis.Redis client is expected")
    if not isinstance(client, redis.Redis):
        raise PolicyError(f"a Redis URL or a redis.Redis client is expected, not {type(client).__name__}")
    return Reader({"": _dedicated(client)}, lambda _key: "", prefix)


def _dedicated(client: Any) -> _Connection:
    """Return a connection of the client's own kind (TLS, socket, Sentinel), in RESP2 and undecoded."""
    pool = client.connection_pool
    # Maintenance notifications need RESP3 (redis-py 7 and later), and belong to the pool.
    options = {name: value for name, value in pool.connection_kwargs.items() if not name.startswith("maint_")}
    # redis-py 8.1 looks its own version up on disk for each connection: as long as 2,000 messages take.
    unnamed = {"driver_info": None} if hasattr(redis, "DriverInfo") else {}
    own = {"protocol": 2, "decode_responses": False, "socket_read_size": _READ_BYTES}
    connection = pool.connection_class(**unnamed | options | own)
    connection.connect()
    return connection  # type: ignore[no-any-return]


def _spare_idle_clocks(reader: Reader) -> str:
    """Switch NO-TOUCH on everywhere; return why that did not work, or nothing."""
    for connection in reader.connections.values():
        answer = _one(connection, _packed(b"CLIENT", b"NO-TOUCH", b"ON"))
        if isinstance(answer, redis.exceptions.NoPermissionError):
            return "this user may not use CLIENT NO-TOUCH"
        if isinstance(answer, Exception):
            return "CLIENT NO-TOUCH needs Redis 7.2 or Valkey"
    return ""
