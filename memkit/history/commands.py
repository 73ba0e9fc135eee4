"""What a write command does to keys, as a server logs it: in an append-only file or in its replication stream.

Servers log effects: relative TTLs as absolute ones (``PXAT``, ``PEXPIREAT``; Redis 6.2 still replicates relative ones),
a script as the commands it ran, GETEX as ``PEXPIREAT``, ``PERSIST`` or ``DEL``, GEOADD as ``ZADD``, an expired or
evicted key as ``DEL`` or ``UNLINK``.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Literal, NamedTuple

Action = Literal[
    "write",  # creates the key or changes its value, with at most ``elements`` new elements; an existing TTL stays
    "add elements",  # the same, with ``elements`` new elements
    "expire fields",  # the same, and gives its fields TTLs
    "remove elements",  # one to ``elements`` of them; the key no longer exists if they were the last ones
    "pop elements",  # the same, with ``elements`` elements
    "trim",  # at most ``elements`` elements stay, and at least one
    "replace",  # a new value; the old TTL is dropped
    "store",  # the same; if the result is empty, the key no longer exists
    "set deadline",
    "drop deadline",
    "delete",
    "rename",
    "copy",
    "flush database",
    "flush all",
    "swap databases",
]
_DEADLINE_UNITS_MS = {b"EXAT": 1_000, b"PXAT": 1}
_TTL_UNITS_MS = {b"EX": 1_000, b"PX": 1}


class Effect(NamedTuple):
    """What one command does to one key.

    ``deadline_ms`` is a Unix time and ``ttl_ms`` a relative TTL; at most one of them is set. ``target`` is the new name
    of a rename or copy. ``db`` is the other database of a swap, or the one that a copy or move goes to. ``elements`` is
    the number that the action refers to. ``keys`` is how many keys the command deletes.
    """

    action: Action
    key: bytes = b""
    deadline_ms: int | None = None
    ttl_ms: int | None = None
    target: bytes | None = None
    db: int | None = None
    elements: int = 1
    keys: int = 1


class Executed(NamedTuple):
    """A command that a server executed: its name, and what it does to keys.

    ``db`` is the database that is selected after it, and ``in_multi`` whether a transaction goes on after it.
    """

    db: int
    name: str
    effects: list[Effect]
    in_multi: bool = False


Handler = Callable[[Sequence[bytes]], Iterable[Effect]]
ALL = sys.maxsize
"""A number of elements that the command does not state."""


def execute(arguments: Sequence[bytes], db: int, *, in_multi: bool = False) -> Executed:
    """Return what a logged command does.

    Args:
        arguments: The command's name and its arguments. An argument that is not a key may have been cut.
        db: The database that the log had selected before it.
        in_multi: Whether it is in a transaction.
    """
    name, *rest = arguments
    effects: list[Effect] = []
    handler = _HANDLERS.get(name.upper())
    # A server logs no command that it refused: one that is not understood is passed over.
    with suppress(IndexError, ValueError):
        if name.upper() == b"SELECT":
            db = _number(rest[0])
        elif handler:
            effects = list(handler(rest))
    text = name.upper().decode("ascii", "replace")
    return Executed(db, text, effects, text == "MULTI" or (in_multi and text != "EXEC"))


def _number(word: bytes, unit: int = 1) -> int:
    number = int(word) * unit
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError("a number that no server accepts")
    return number


def _set_options(options: Sequence[bytes]) -> tuple[int | None, int | None, bool]:
    """Return the deadline, the relative TTL, and whether the old TTL stays, of the options of SET and MSETEX."""
    deadline, ttl, keeps = None, None, False
    words = iter(options)
    for word in map(bytes.upper, words):
        if word in _DEADLINE_UNITS_MS:
            deadline = _number(next(words, b""), _DEADLINE_UNITS_MS[word])
        elif word in _TTL_UNITS_MS:
            ttl = _number(next(words, b""), _TTL_UNITS_MS[word])
        elif word == b"KEEPTTL":
            keeps = True
        elif word in (b"IFEQ", b"IFNE", b"IFDEQ", b"IFDNE"):  # a condition and its value
            next(words, b"")
    return deadline, ttl, keeps


def _set(rest: Sequence[bytes], *, keys: int = 1) -> Iterator[Effect]:
    deadline, ttl, keeps = _set_options(rest[2 * keys :])
    for key in rest[: 2 * keys : 2]:
        yield Effect("write" if keeps else "replace", key, deadline, ttl)


def _restore(rest: Sequence[bytes]) -> Iterator[Effect]:
    ttl = _number(rest[1]) or None
    absolute = b"ABSTTL" in map(bytes.upper, rest[3:])
    yield Effect("replace", rest[0], deadline_ms=ttl if absolute else None, ttl_ms=None if absolute else ttl)


def _store_by_option(rest: Sequence[bytes]) -> Iterator[Effect]:
    words = [word.upper() for word in rest]
    for option in (b"STORE", b"STOREDIST"):
        if option in words[1:]:
            yield Effect("store", rest[words.index(option, 1) + 1])


def _trim_list(rest: Sequence[bytes]) -> Iterator[Effect]:
    key, start, stop = rest[0], _number(rest[1]), _number(rest[2])
    if start > stop and (start < 0) == (stop < 0):
        yield Effect("delete", key)
    elif start == 0 <= stop:
        yield Effect("trim", key, elements=stop + 1)
    elif start < 0 and stop == -1:
        yield Effect("trim", key, elements=-start)
    elif start >= 0 > stop:
        yield Effect("pop elements", key, elements=start - stop - 1)
    else:
        yield Effect("remove elements", key, elements=ALL)


def _move_element(rest: Sequence[bytes]) -> list[Effect]:
    source, target = rest[:2]
    if source == target:  # the list is rotated
        return [Effect("write", source)]
    return [Effect("pop elements", source), Effect("add elements", target)]


def _copy(rest: Sequence[bytes]) -> Iterator[Effect]:
    words = [word.upper() for word in rest]
    db = _number(rest[words.index(b"DB", 2) + 1]) if b"DB" in words[2:] else None
    yield Effect("copy", rest[0], target=rest[1], db=db)


def _first_key(action: Action, *, elements: int = 1) -> Handler:
    return lambda rest: [Effect(action, rest[0], elements=elements)]


def _add_with_scores(rest: Sequence[bytes]) -> list[Effect]:
    options = takewhile(lambda word: word.isalpha() and not word.lower().endswith(b"inf"), rest[1:])
    upper = [word.upper() for word in options]
    return [Effect("write", rest[0], elements=0 if b"XX" in upper else (len(rest) - 1 - len(upper)) // 2)]


def _set_fields(rest: Sequence[bytes]) -> list[Effect]:
    words = [word.upper() for word in rest]
    at = words.index(b"FIELDS", 1)
    # With KEEPTTL, as Redis 8.2 logs HINCRBYFLOAT, no field gets a TTL.
    expires = not {*_DEADLINE_UNITS_MS, *_TTL_UNITS_MS}.isdisjoint(words[1:at])
    return [Effect("expire fields" if expires else "write", rest[0], elements=_number(rest[at + 1]))]


def _named_elements(action: Action) -> Handler:
    return lambda rest: [Effect(action, rest[0], elements=len(rest) - 1)]


def _deadline(unit_ms: int) -> Handler:
    return lambda rest: [Effect("set deadline", rest[0], deadline_ms=_number(rest[1], unit_ms))]


def _ttl(action: Action, unit_ms: int) -> Handler:
    return lambda rest: [Effect(action, rest[0], ttl_ms=_number(rest[1], unit_ms))]


def _named(names: str, handler: Handler) -> dict[bytes, Handler]:
    return dict.fromkeys(names.encode().split(), handler)


_HANDLERS: dict[bytes, Handler] = {
    **_named(
        "APPEND INCR DECR INCRBY DECRBY INCRBYFLOAT SETRANGE SETBIT BITFIELD SETNX LSET HSETNX HINCRBY HINCRBYFLOAT "
        "HPERSIST ZINCRBY XADD XSETID XCLAIM XAUTOCLAIM XACK "
        "PFADD PFMERGE VADD VSETATTR JSON.SET JSON.MERGE JSON.ARRAPPEND JSON.ARRINSERT JSON.ARRPOP JSON.ARRTRIM "
        "JSON.NUMINCRBY JSON.STRAPPEND JSON.TOGGLE JSON.CLEAR",
        _first_key("write"),
    ),
    **_named("LPUSH RPUSH LPUSHX RPUSHX", _named_elements("add elements")),
    b"LINSERT": _first_key("add elements"),
    b"ZADD": _add_with_scores,
    b"HSETEX": _set_fields,
    **_named("HGETEX HEXPIRE HPEXPIRE HEXPIREAT HPEXPIREAT", _first_key("expire fields", elements=0)),
    b"SADD": lambda rest: [Effect("write", rest[0], elements=len(set(rest[1:])))],
    **_named("HSET HMSET", lambda rest: [Effect("write", rest[0], elements=len(set(rest[1::2])))]),
    **_named(
        "LPOP RPOP SPOP ZPOPMIN ZPOPMAX",
        lambda rest: [Effect("pop elements", rest[0], elements=_number(rest[1]) if rest[1:] else 1)],
    ),
    **_named("SREM HDEL ZREM VREM", _named_elements("remove elements")),
    b"LTRIM": _trim_list,
    **_named(
        "LREM HGETDEL ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREMRANGEBYLEX", _first_key("remove elements", elements=ALL)
    ),
    b"XGROUP": lambda rest: [Effect("write", rest[1])],
    # A stream that has lost its last entry still exists.
    **_named("XDEL XTRIM XDELEX XACKDEL", _first_key("write")),
    **_named("LMOVE RPOPLPUSH BLMOVE BRPOPLPUSH", _move_element),
    b"SMOVE": lambda rest: [Effect("remove elements", rest[0]), Effect("write", rest[1])],
    b"GETSET": _first_key("replace"),
    **_named(
        "SUNIONSTORE SINTERSTORE SDIFFSTORE ZUNIONSTORE ZINTERSTORE ZDIFFSTORE ZRANGESTORE GEOSEARCHSTORE",
        _first_key("store"),
    ),
    **_named("SORT GEORADIUS GEORADIUSBYMEMBER", _store_by_option),
    b"BITOP": lambda rest: [Effect("store", rest[1])],
    b"SET": _set,
    b"SETEX": _ttl("replace", 1_000),
    b"PSETEX": _ttl("replace", 1),
    **_named("MSET MSETNX", lambda rest: [Effect("replace", key) for key in rest[::2]]),
    b"MSETEX": lambda rest: _set(rest[1:], keys=_number(rest[0])),
    **_named("RESTORE RESTORE-ASKING", _restore),
    b"EXPIRE": _ttl("set deadline", 1_000),
    b"PEXPIRE": _ttl("set deadline", 1),
    b"EXPIREAT": _deadline(1_000),
    b"PEXPIREAT": _deadline(1),
    b"PERSIST": _first_key("drop deadline"),
    **_named("DEL UNLINK", lambda rest: [Effect("delete", key, keys=len(rest)) for key in rest]),
    **_named("GETDEL DELEX", _first_key("delete")),
    **_named(
        "JSON.DEL JSON.FORGET",
        lambda rest: [Effect("delete" if rest[1:2] in ([], [b"$"], [b"."]) else "write", rest[0])],
    ),
    **_named("RENAME RENAMENX", lambda rest: [Effect("rename", rest[0], target=rest[1])]),
    b"MOVE": lambda rest: [Effect("rename", rest[0], target=rest[0], db=_number(rest[1]))],
    b"COPY": _copy,
    b"FLUSHDB": lambda _: [Effect("flush database")],
    b"FLUSHALL": lambda _: [Effect("flush all")],
    b"SWAPDB": lambda rest: [Effect("swap databases", b"%d" % _number(rest[0]), db=_number(rest[1]))],
}
