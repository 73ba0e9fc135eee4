"""The keys that a session left on the server: its own, those without a TTL, and how to damage them."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, cast

import redis

from memkit.conformance.environment import Key, TestEnvironment
from memkit.conformance.outcomes import CaseFailed, Symptom
from memkit.conformance.trial import TrialSession

WARM_UP_SESSIONS = 3
MORE_SESSIONS = 24
"""Enough for each of 8 shards of a shared index to be written again (misses one in 3 of 100 runs, and only then)."""
GARBAGE = b"\xff\xfe\x00 damaged on purpose \xff\x80"
"""Neither UTF-8 nor JSON nor a number."""


class SessionKeys:
    """The keys that the sessions of one case made, without those that all sessions share.

    Made before the case's own sessions: a few others are written first, so that shared keys exist already. One case
    sets ``report_at_rest``. In the others, the keys of a store that never sets a TTL prove nothing.
    """

    def __init__(self, env: TestEnvironment, *, report_at_rest: bool = False) -> None:
        self._env = env
        self._not_own: set[Key] = set()
        self._known_shared: set[Key] = set()
        self._write_other_sessions(WARM_UP_SESSIONS)
        self._not_own |= env.keys()
        self._reports = env.has_ttl
        if env.has_ttl and not report_at_rest:
            self._write_other_sessions(1)
            self._reports = not any(self._persistent_keys())
            self._not_own |= env.keys()

    def _persistent_keys(self) -> Iterator[Key]:
        """Yield the keys without TTL that belong to one session; a hash may have a TTL on every field instead."""
        for key in sorted(self.keys()):
            with self._env.database(key[0]) as client:
                persistent = client.pttl(key[1]) == -1
                if persistent and client.type(key[1]) == b"hash":
                    fields = cast(list[bytes], client.hkeys(key[1]))
                    with suppress(redis.ResponseError):  # before Redis 7.4 and Valkey 9
                        left_ms: Any = client.execute_command("HPTTL", key[1], "FIELDS", len(fields), *fields)
                        persistent = not all(ms > 0 for ms in left_ms)
            if persistent and not self._is_shared(key):
                yield key

    def _write_other_sessions(self, count: int) -> None:
        for _ in range(count):
            session = TrialSession(self._env, "other")
            session.append()
            session.append(role="assistant")
            session.expect("an ordinary session")

    def keys(self) -> set[Key]:
        """Return the keys that exist now and did not before."""
        return self._env.keys() - self._not_own

    def expect_ttl_on_every_key(self, when: str) -> None:
        """Raise CaseFailed if a key that belongs to one session has no TTL."""
        for key in self._persistent_keys() if self._reports else ():
            message = f"{when}: the key {key_text(key)} has no TTL; it never expires"
            raise CaseFailed(message, symptom=Symptom.NO_EXPIRY)

    def expect_none(self, when: str) -> None:
        """Raise CaseFailed if a key that belongs to one session exists."""
        left = [key for key in sorted(self.keys()) if not self._is_shared(key)]
        if left:
            message = f"{when}: the key {key_text(left[0])} still exists ({len(left)} in all)"
            raise CaseFailed(message, symptom=Symptom.NO_EXPIRY)

    def _is_shared(self, key: Key) -> bool:
        """Return whether other sessions write to this key too, tested with other sessions."""
        if self._env.token in key[1]:
            return False
        if key in self._known_shared:
            return True
        with self._env.database(key[0]) as client:
            dump, before = client.dump(key[1]), self._env.keys()
            self._write_other_sessions(MORE_SESSIONS)
            self._not_own |= self._env.keys() - before
            shared = bool(dump != client.dump(key[1]))
        self._known_shared |= {key} if shared else set()
        return shared


def key_text(key: Key) -> str:
    """Return a key as text, with its database unless that is 0."""
    text = repr(key[1].decode(errors="backslashreplace"))
    return f"{text} (database {key[0]})" if key[0] else text


# Elements, and damage to them


class Element(NamedTuple):
    """A part of a key that can be damaged by itself: the key's type, its index, field, member or id, and its bytes."""

    kind: str
    place: Any
    parts: list[bytes]


def elements(client: Any, key: bytes) -> list[Element]:
    """Return the elements of a key; of a type that is not known, the whole key without its bytes."""
    kind = client.type(key).decode()
    found: Iterable[tuple[Any, list[bytes]]] = [(None, [])]
    if kind == "string":
        found = [(None, [client.get(key) or b""])]
    elif kind == "list":
        found = ((index, [value]) for index, value in enumerate(client.lrange(key, 0, -1)))
    elif kind == "hash":
        found = ((field, [value]) for field, value in client.hgetall(key).items())
    elif kind == "zset":
        found = ((pair, [pair[0]]) for pair in client.zrange(key, 0, -1, withscores=True))
    elif kind == "set":
        found = ((member, [member]) for member in sorted(client.smembers(key)))
    elif kind == "stream":
        found = ((entry, list(fields.values())) for entry, fields in client.xrange(key))
    return [Element(kind, place, parts) for place, parts in found]


def damage(client: Any, key: bytes, element: Element, value: bytes = GARBAGE, *, instead_of: bytes = b"") -> None:
    """Replace one element by garbage, or by another value; the key keeps its TTL.

    Of a stream's entry all fields are replaced, or only those that contain ``instead_of``.
    """
    kind, place = element.kind, element.place
    left_ms = client.pttl(key)
    if kind == "list":
        client.lset(key, place, value)
    elif kind == "hash":
        client.hset(key, place, value)
    elif kind == "zset":
        client.zrem(key, place[0])
        client.zadd(key, {value: place[1]})
    elif kind == "set":
        client.srem(key, place)
        client.sadd(key, value)
    elif kind == "stream":
        entries = client.xrange(key)
        client.delete(key)
        for entry, fields in entries:
            new = {name: value if instead_of in field else field for name, field in fields.items()}
            client.xadd(key, new if entry == place else fields, id=entry)
    elif kind == "ReJSON-RL":
        client.execute_command("JSON.SET", key, "$", '"damaged on purpose"')
    else:
        client.set(key, value)
    if left_ms > 0:
        client.pexpire(key, left_ms)


def values(client: Any, key: bytes) -> list[bytes]:
    """Return what a key holds, hash and stream fields included, as bytes."""
    kind = client.type(key).decode()
    if kind == "ReJSON-RL":
        return [client.execute_command("JSON.GET", key)]
    names = client.hkeys(key) if kind == "hash" else []
    if kind == "stream":
        names = [name for _, fields in client.xrange(key) for name in fields]
    return [*names, *(part for element in elements(client, key) for part in element.parts)]


def holds(client: redis.Redis, needle: bytes) -> bool:
    """Return whether any value of a database contains these bytes."""
    return any(needle in part for key in client.scan_iter(count=1000) for part in values(client, key))
