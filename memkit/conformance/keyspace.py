"""What a session left on the server: its own keys, those without a TTL, and damage done to them on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import redis

from memkit.conformance.environment import Bench, Key
from memkit.conformance.outcomes import Forgot
from memkit.conformance.trial import Talk

WARM_UP_SESSIONS = 3
MORE_SESSIONS = 24
"""Enough for each of 8 shards of a shared index to be written again (misses one in 3 of 100 runs, and only then)."""
GARBAGE = b"\xff\xfe\x00 damaged on purpose \xff\x80"
"""Neither UTF-8 nor JSON nor a number."""


class Belongings:
    """The keys that the sessions of one case made, told apart from those that all sessions share.

    Made before the case's own sessions: a few others are written first, so that shared keys exist already. With
    ``at_rest``, keys that have no TTL although nothing was done to them are told of; one case does that, and to the
    others such a store's keys say nothing.
    """

    def __init__(self, bench: Bench, *, at_rest: bool = False) -> None:
        self._bench = bench
        self._not_ours: set[Key] = set()
        self._known_shared: set[Key] = set()
        self._others(WARM_UP_SESSIONS)
        self._tells = bench.has_ttl and (at_rest or self._mortal_at_rest())

    def _mortal_at_rest(self) -> bool:
        self._others(1, ours=True)
        immortal = [key for key in sorted(self.keys()) if self._immortal(key) and not self._shared(key)]
        self._not_ours |= self._bench.keys()
        return not immortal

    def _others(self, count: int, *, ours: bool = False) -> None:
        before = self._bench.keys()
        for _ in range(count):
            talk = Talk(self._bench, "other")
            talk.say()
            talk.say(role="assistant")
            talk.expect("an ordinary session")
        self._not_ours |= set() if ours else self._bench.keys() - before

    def keys(self) -> set[Key]:
        """Return the keys that are there now and were not before."""
        return self._bench.keys() - self._not_ours

    def expect_mortal(self, when: str) -> None:
        """Raise Forgot if a key that belongs to one session has no TTL."""
        if not self._tells:
            return
        for key in sorted(self.keys()):
            if self._immortal(key) and not self._shared(key):
                raise Forgot(f"{when}: the key {shown(key)} is left without a TTL; it stays for ever")

    def expect_none(self, when: str) -> None:
        """Raise Forgot if a key that belongs to one session is left."""
        left = [key for key in sorted(self.keys()) if not self._shared(key)]
        if left:
            raise Forgot(f"{when}: the key {shown(left[0])} is left behind ({len(left)} in all)")

    def _immortal(self, key: Key) -> bool:
        with self._bench.in_db(key[0]) as client:
            if client.pttl(key[1]) != -1:
                return False
            return not (self._bench.has_hash_field_ttl and _fields_expire(client, key[1]))

    def _shared(self, key: Key) -> bool:
        """Whether other sessions write to this key too, tried with other sessions."""
        if self._bench.token in key[1]:
            return False
        if key in self._known_shared:
            return True
        with self._bench.in_db(key[0]) as client:
            before = client.dump(key[1])
            self._others(MORE_SESSIONS)
            shared = bool(before != client.dump(key[1]))
        self._known_shared |= {key} if shared else set()
        return shared


def _fields_expire(client: redis.Redis, key: bytes) -> bool:
    if client.type(key) != b"hash":
        return False
    fields = cast(list[bytes], client.hkeys(key))
    left = cast(list[int], client.execute_command("HPTTL", key, "FIELDS", len(fields), *fields))
    return all(ms > 0 for ms in left)


def shown(key: Key) -> str:
    """Return a key as text."""
    db, name = key
    text = repr(name.decode(errors="backslashreplace"))
    return f"{text} (database {db})" if db else text


# Damage


def places(client: Any, key: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a key that can be damaged one by one: (type, where)."""
    kind = client.type(key).decode()
    for where in _wheres(client, key, kind):
        yield kind, where


def _wheres(client: Any, key: bytes, kind: str) -> list[Any]:
    found: list[Any] = [None]
    if kind == "list":
        found = list(range(client.llen(key)))
    elif kind == "hash":
        found = client.hkeys(key)
    elif kind == "zset":
        found = client.zrange(key, 0, -1, withscores=True)
    elif kind == "set":
        found = sorted(client.smembers(key))
    elif kind == "stream":
        found = [entry for entry, _ in client.xrange(key)]
    return found


def own_places(bench: Bench, talk: Talk, before: set[Key]) -> list[tuple[Key, str, Any]]:
    """Return the elements that belong to a session alone: all of its own keys, its fields of shared hashes."""
    found: list[tuple[Key, str, Any]] = []
    for key in sorted(bench.keys()):
        with bench.in_db(key[0]) as client:
            for kind, where in places(client, key[1]):
                ours = key not in before or (kind == "hash" and talk.id.encode() in where)
                found += [(key, kind, where)] if ours else []
    return found


def damage(client: Any, key: bytes, kind: str, where: Any, value: bytes = GARBAGE, *, instead_of: bytes = b"") -> None:
    """Put garbage, or another value, in the place of one element; the key keeps its TTL.

    Of a stream's entry all fields are replaced, or those alone that hold ``instead_of``.
    """
    left = client.pttl(key)
    if kind == "list":
        client.lset(key, where, value)
    elif kind == "hash":
        client.hset(key, where, value)
    elif kind == "zset":
        client.zrem(key, where[0])
        client.zadd(key, {value: where[1]})
    elif kind == "set":
        client.srem(key, where)
        client.sadd(key, value)
    elif kind == "stream":
        _damage_stream(client, key, where, lambda field: value if instead_of in field else field)
    elif kind == "ReJSON-RL":
        client.execute_command("JSON.SET", key, "$", '"damaged on purpose"')
    else:
        client.set(key, value)
    if left > 0:
        client.pexpire(key, left)


def _damage_stream(client: Any, key: bytes, where: bytes, changed: Callable[[bytes], bytes]) -> None:
    entries = client.xrange(key)
    client.delete(key)
    for entry, fields in entries:
        new = {name: changed(field) for name, field in fields.items()} if entry == where else fields
        client.xadd(key, new, id=entry)


def elements(client: Any, key: bytes, kind: str, where: Any) -> list[bytes]:
    """Return the bytes at the place of one element: one value, or the fields of a stream's entry."""
    found: list[bytes | None] = []
    if kind == "list":
        found = [client.lindex(key, where)]
    elif kind == "hash":
        found = [client.hget(key, where)]
    elif kind == "zset":
        found = [where[0]]
    elif kind == "set":
        found = [where]
    elif kind == "stream":
        found = [field for _, fields in client.xrange(key, where, where) for field in fields.values()]
    elif kind == "string":
        found = [client.get(key)]
    return [one for one in found if isinstance(one, bytes)]


def holds(client: redis.Redis, needle: bytes) -> bool:
    """Whether any value of a database holds these bytes as they are."""
    return any(needle in part for key in client.scan_iter(count=1000) for part in values(client, key))


def values(client: Any, key: bytes) -> list[bytes]:
    """Return what a key holds, as bytes."""
    kind = client.type(key).decode()
    found: list[bytes] = []
    if kind == "string":
        found = [client.get(key)]
    elif kind == "list":
        found = client.lrange(key, 0, -1)
    elif kind == "hash":
        found = [part for pair in client.hgetall(key).items() for part in pair]
    elif kind == "zset":
        found = client.zrange(key, 0, -1)
    elif kind == "set":
        found = list(client.smembers(key))
    elif kind == "stream":
        found = [part for _, fields in client.xrange(key) for pair in fields.items() for part in pair]
    elif kind == "ReJSON-RL":
        found = [client.execute_command("JSON.GET", key)]
    return [part for part in found if isinstance(part, bytes)]
