"""MemoryStore and AsyncMemoryStore: an LLM application's sessions in Redis, each whole or not at all.

One LIST a session (see memkit.store.encoding). Reads are plain commands; every write is one script that carries its TTL
and may be sent twice, so that retries, redis-py's or the application's, neither lose nor double a message.
Each operation is described once, without I/O, as a Read or a Write; the two classes send it.

Promised: a write that is sent again, however often, is done once, while fewer than 255 other writes of its session come
in between (an append: 1,024); a message with an ``"id"`` of its own is stored once in its session's last 1,024. What a
later save replaced does not come back (its last 64 appends). Each writer's messages keep their order. Everything
acknowledged survives a crash with ``appendonly yes`` and ``appendfsync always``. Not promised, since replication is
asynchronous: that a replica which takes over (Sentinel, Cluster) has what was acknowledged last (``WAIT`` tells), or
knows a call that was under way. A call that raises redis-py's ConnectionError or TimeoutError when its retries are over
was done once or not at all; messages with ids of their own may then be appended again.

A user whose rights are limited (ACL) needs, on the sessions' keys, DEL EVAL EVALSHA LINDEX LLEN LPOS LRANGE LSET
LTRIM PERSIST PEXPIRE PTTL RPUSH RPUSHX SETNX TIME; for vectors EXISTS GET GETRANGE SET on theirs; and SCAN for
``sessions()``. A command that is denied is an error and changes nothing.
"""

from __future__ import annotations

import re
import warnings
from binascii import crc_hqx
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from hashlib import sha1
from importlib.resources import files
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, ParamSpec, TypeVar, cast
from weakref import WeakKeyDictionary

import redis
from redis.client import NEVER_DECODE
from redis.exceptions import NoScriptError, ResponseError

from memkit.errors import (
    Conflict,
    DecodeError,
    EncodeError,
    PolicyError,
    PolicyShortenedWarning,
    SessionNotFound,
)
from memkit.policy import Duration, ExpiryPolicy
from memkit.server.clock import escape_glob
from memkit.store.encoding import (
    Message,
    Session,
    Version,
    decode_header,
    decode_messages,
    decode_session,
    decode_vectors,
    encode_messages,
    encode_value,
    encode_vectors,
    is_header,
    is_utf8,
    new_id,
    policy_of,
    policy_text,
    stamp,
)

if TYPE_CHECKING:
    import numpy as np
    import redis.asyncio
    import redis.asyncio.cluster

Warned = tuple[str, ExpiryPolicy, ExpiryPolicy]
_warned_of: WeakKeyDictionary[object, set[Warned]] = WeakKeyDictionary()
"""What each client's stores have warned of: an application may make a store for every request."""
T = TypeVar("T")
P = ParamSpec("P")
Argument = bytes | str | int
REMEMBERED_SESSIONS: Final = 4096
"""Of how many sessions a store remembers what it last saw, to search only what is newer when it appends."""
MOST_ELEMENTS: Final = 2**32
"""More than a Redis list has; greater numbers than 64 bits it refuses."""
READS_AGAIN: Final = 5
"""How often a read is repeated that others wrote in between; what comes then is answered with the shorter life."""
SAME_MOMENT_MS: Final = 10
ONE_READ_MS: Final = 1_000
"""What may pass while one session is read: 100 MB take less than half of it."""
OWN_ID: Final = ord(".")
REFUSAL: Final = ord("!")
BORN: Final = re.compile(rb'"born":"([\w-]+)",', re.ASCII)

RAW: Final = {NEVER_DECODE: True}
"""Replies stay bytes whatever the client's ``decode_responses`` and encoding: damaged ones must be seen as they are."""


class _Keep:
    """The default of ``summary``: leave it as it is (None removes it)."""

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = _Keep()


@dataclass(frozen=True, slots=True)
class Script:
    """One of the store's Lua scripts and the digest Redis knows it by."""

    text: str
    sha: str


@cache
def script(name: str) -> Script:
    """Return a script of ``lua/``, with the part that all share in front; the usual append before that."""
    folder = files("memkit.store") / "lua"
    parts = ("append_fast", "session", "append") if name == "append" else ("session", name)
    text = "".join((folder / f"{part}.lua").read_text() for part in parts)
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def _whole(_: list[Any]) -> bool:
    return False


# Tuples, since one is made by every call: a frozen dataclass takes three times as long.
class Read(NamedTuple, Generic[T]):
    """Plain commands sent together, and what their replies mean; whether others wrote in between: then read again."""

    key: str
    commands: tuple[tuple[Argument, ...], ...]
    decode: Callable[[list[Any]], T]
    torn: Callable[[list[Any]], bool] = _whole


class Write(NamedTuple, Generic[T]):
    """One script call, and what its reply means. Sent again, it is the same bytes, known by the nonce in it."""

    key: str
    script: Script
    arguments: tuple[Argument, ...]
    decode: Callable[[bytes], T]


class Renewed(NamedTuple):
    """Whose life was renewed, and the seconds it then had left; None: it never expires."""

    born: str
    ttl: float | None


def _renewed(session: Session, renewed: Renewed | None) -> Session:
    """Return a session with the life it has since it was read, unless that is another session's of the same id."""
    same = renewed and isinstance(session.version, Version) and renewed.born == session.version.born
    return replace(session, ttl=renewed.ttl) if renewed and same else session


class Operations:
    """What a store does, without I/O: each method returns a Read or a Write for a face to send."""

    def __init__(self, prefix: str, policy: ExpiryPolicy, *, shorten: bool, warned: set[Warned]) -> None:
        self.prefix = prefix
        self.policy = policy
        self._policy = f"{'!' if shorten else ''}{policy_text(policy)}".encode()
        # Threads share these without a lock: each step is atomic, and a lock could be held for ever in a forked child.
        self._seen: OrderedDict[str, bytes] = OrderedDict()
        self._warned = warned

    def key(self, session_id: str) -> str:
        """Return the session's key. Raises PolicyError for an id that is no key."""
        if not isinstance(session_id, str) or not session_id:
            raise PolicyError(f"a session id is a text of at least one character, not {session_id!r}")
        key = self.prefix + session_id
        encoded(key)
        return key

    def load(self, session_id: str, last: int | None) -> Read[list[Message] | None]:
        """All messages, or the last n: in the last n elements, since each holds at least one; the header is read."""
        if last is not None and (isinstance(last, bool) or not isinstance(last, int) or last < 0):
            raise PolicyError(f"last={last!r}: give a number of messages, 0 or more, or None for all")
        key = self.key(session_id)
        start = 0 if last is None else -min(max(1, last), MOST_ELEMENTS)

        def decode(replies: list[Any]) -> list[Message] | None:
            head, elements = replies[0], replies[-1]
            # Each of the two says that there was no such session at its moment.
            if not elements or head is None:
                return None
            if start == 0 or is_header(elements[0]):
                self._saw(session_id, _state(elements, key))
                messages = decode_messages(elements[1:], key)
            else:
                decode_header(head, key)
                messages = decode_messages(elements, key, first=start)
            return messages if last is None else messages[len(messages) - min(last, len(messages)) :]

        whole = ("LRANGE", encoded(key), start, -1)
        return Read(key, (whole,) if last is None else (("LINDEX", encoded(key), 0), whole), decode)

    def get(self, session_id: str) -> Read[tuple[Session, bool] | None]:
        """Read the session, and whether vectors were stored with it.

        PTTL on both sides: only when they agree is it known whose life it is.
        """
        key = self.key(session_id)

        def decode(replies: list[Any]) -> tuple[Session, bool] | None:
            before_ms, elements, after_ms = replies
            if -2 in (before_ms, after_ms) or not elements:
                return None
            left_ms = min((left for left in (before_ms, after_ms) if left >= 0), default=None)
            found = decode_session(session_id, key, elements, None if left_ms is None else left_ms / 1000)
            self._saw(session_id, _state(elements, key))
            return found

        left = ("PTTL", encoded(key))
        return Read(key, (left, ("LRANGE", encoded(key), 0, -1), left), decode, _torn)

    def vectors_lost(self, session: Session) -> Read[Session]:
        """Whether the vectors that were stored with a session are gone."""
        key = self.key(session.session_id)
        command = ("EXISTS", vectors_key(key))
        return Read(key, (command,), lambda replies: replace(session, vectors_lost=not replies[0]))

    def ttl(self, session_id: str) -> Read[float | None]:
        """Read the life left; a foreign key's is not told as a session's."""
        key = self.key(session_id)

        def decode(replies: list[Any]) -> float | None:
            left_ms, head = replies
            if left_ms == -2 or head is None:
                raise _gone(key)
            decode_header(head, key)
            return None if left_ms == -1 else left_ms / 1000

        return Read(key, (("PTTL", encoded(key)), ("LINDEX", encoded(key), 0)), decode)

    def append(self, session_id: str, messages: tuple[Message, ...], *, create: bool) -> Write[int]:
        """Add what is not among the last 1,024 messages."""
        key = self.key(session_id)
        bodies = _for(key, encode_messages, messages)
        # Ids that callers chose may be older than what this store last saw: search the whole window for them.
        chosen = len(bodies) > 1 and any(body[0] == OWN_ID for body in bodies)
        seen = b"" if chosen else self._seen.get(session_id, b"")
        return self._write("append", session_id, key, b"1" if create else b"0", seen, *bodies)

    def save(self, session_id: str, messages: list[Message], *, version: int | None) -> Write[int]:
        """Replace the dialogue."""
        key = self.key(session_id)
        return self._write("save", session_id, key, _version_argument(version), *_for(key, _dialogue, messages))

    def update(
        self,
        session_id: str,
        summary: str | _Keep | None,
        metadata: Mapping[str, Any] | None,
        version: int | None,
    ) -> Write[int]:
        """Change the summary, merge metadata."""
        key = self.key(session_id)
        fields = (*_for(key, _summary_arguments, summary), *_for(key, _metadata_arguments, metadata))
        return self._write("update", session_id, key, _version_argument(version), *fields)

    def put_vectors(self, session_id: str, array: Any) -> Write[int]:
        """Store an array beside the session."""
        key = self.key(session_id)
        return self._write("put_vectors", session_id, key, _for(key, encode_vectors, array))

    def touch(self, session_id: str) -> Write[Renewed | None]:
        """Renew the deadline alone."""
        write = self._write("touch", session_id, self.key(session_id))

        def decode(reply: bytes) -> Renewed | None:
            if reply[0] == REFUSAL:
                return None
            left_ms, _, version = reply.partition(b" ")
            born = self._version(session_id, write.key, version).born
            return Renewed(born, None if left_ms == b"-1" else int(left_ms) / 1000)

        return Write(write.key, write.script, write.arguments, decode)

    def life(self, session_id: str) -> Read[bytes | None]:
        """Read what tells this life of a session from its next: b"" when that is damaged, None without a session."""
        key = self.key(session_id)

        def decode(replies: list[Any]) -> bytes | None:
            if replies[0] is not None and not is_header(replies[0]):
                decode_header(replies[0], key)
            born = BORN.search(replies[0] or b"")
            return born[1] if born else replies[0] and b""

        return Read(key, (("LINDEX", encoded(key), 0),), decode)

    def delete(self, session_id: str, life: bytes) -> Write[bool]:
        """Remove that life of the session, and its vectors."""
        write = self._write("delete", session_id, self.key(session_id), life)
        return Write(write.key, write.script, write.arguments, lambda _: True)

    def get_vectors(self, session_id: str) -> Read[np.ndarray | None]:
        """Read the array, if session and vectors are there."""
        key = self.key(session_id)

        def decode(replies: list[Any]) -> np.ndarray | None:
            head, raw = replies
            if head is None:
                return None
            header = decode_header(head, key)
            return decode_vectors(raw, vectors_key(key).decode(), header.born) if header.vectors and raw else None

        return Read(key, (("LINDEX", encoded(key), 0), ("GET", vectors_key(key))), decode)

    def pattern(self) -> bytes:
        """Return what MATCH takes for this store's keys."""
        return f"{escape_glob(self.prefix)}*".encode()

    def session_of(self, key: bytes) -> str | None:
        """Return the session id of a key, or None for a key that no session of this store can have."""
        try:
            return key.decode().removeprefix(self.prefix) or None
        except UnicodeDecodeError:
            return None

    def _write(self, name: str, session_id: str, key: str, *arguments: Argument) -> Write[int]:
        """Return a call whose reply is a version. The nonce is made here, once, however often the call is sent."""
        call = (self._policy, vectors_key(key), new_id(), *arguments)
        return Write(key, script(name), call, lambda reply: self._version(session_id, key, reply))

    def _version(self, session_id: str, key: str, reply: bytes) -> Version:
        """Read the reply of a write, remember what it says, and warn when a longer policy was kept."""
        if reply[0] == REFUSAL:
            if reply == b"!gone":
                raise _gone(key)
            raise Conflict(
                f"{key!r} is at version {int(reply.split()[1], 16)}, and that is not the one that was given: somebody "
                "wrote since, or it expired and was begun anew; get() it again and decide"
            )
        born, version, *kept = reply.split(b" ", 2)
        self._saw(session_id, b"%b %b" % (born, version) if kept else reply)
        if kept:
            self._warn(key, policy_of(kept[0].decode()))
        return Version.of(int(version, 16), born.decode())

    def _saw(self, session_id: str, state: bytes) -> None:
        self._seen[session_id] = state
        if len(self._seen) > REMEMBERED_SESSIONS:
            self._seen.popitem(last=False)

    def _warn(self, key: str, written: ExpiryPolicy) -> None:
        warning = (self.prefix, written, self.policy)
        if warning in self._warned:
            return
        self._warned.add(warning)
        warnings.warn(
            f"{key!r} was written under a longer policy ({written}) than this store's ({self.policy}); its deadline "
            "was kept. Sessions made from now on live shorter: if that is not meant, change ttl= back; if it is, "
            "MemoryStore(..., shorten=True) applies it to living sessions too",
            PolicyShortenedWarning,
            stacklevel=6,
        )


@lru_cache(maxsize=REMEMBERED_SESSIONS)
def encoded(key: str) -> bytes:
    """Return a key's bytes. Raises PolicyError for what has none."""
    if not is_utf8(key):
        raise PolicyError(f"the key {key!r} holds a lone surrogate, which UTF-8 has no bytes for")
    return key.encode()


@lru_cache(maxsize=REMEMBERED_SESSIONS)
def vectors_key(key: str) -> bytes:
    """Return the key of a session's vectors: another key in the same cluster slot.

    ``{session:42}:vectors`` for ``session:42``. A key that holds a hash tag of its own keeps it in front; one that
    holds a brace without being a tag gets a suffix that brings its CRC to the same slot.
    """
    start = key.find("{")
    end = key.find("}", start + 1) if start >= 0 else -1
    if end > start + 1:
        return f"{key}\0vectors".encode()
    return _same_slot(key.encode()) if "}" in key else f"{{{key}}}:vectors".encode()


def _same_slot(key: bytes) -> bytes:
    """Find a suffix by trying: a cluster key's slot is its CRC16 modulo 16384."""
    slot = crc_hqx(key, 0) % 16384
    start = crc_hqx(key + b"\0vectors", 0)
    suffix = next(n for n in count() if crc_hqx(b"%d" % n, start) % 16384 == slot)
    return b"%b\0vectors%d" % (key, suffix)


def _torn(replies: list[Any]) -> bool:
    """Whether the life left is another one after a read than before it: renewed, shortened or begun anew meanwhile."""
    passed = replies[0] - replies[-1]
    return not -SAME_MOMENT_MS <= passed <= ONE_READ_MS


def _state(elements: list[bytes], key: str) -> bytes:
    """Return what an append may send back of a whole session: whose life it is, and its version."""
    header = decode_header(elements[0], key)
    version = stamp(elements[-1], key, len(elements) - 1)[0] if len(elements) > 1 else 0
    return b"%b %x" % (header.born.encode(), max(header.version, version))


def _version_argument(version: int | None) -> bytes:
    if version is None:
        return b""
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise PolicyError(f"version={version!r}: give Session.version, 0 for a session that must not exist, or None")
    born = version.born if isinstance(version, Version) else ""
    return f"{int(version)} {born}".rstrip().encode()


def _for(key: str, encode: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Encode what is meant for a key, which the error names."""
    try:
        return encode(*args, **kwargs)
    except EncodeError as error:
        raise EncodeError(f"{key!r}: {error}") from None


def _dialogue(messages: object) -> list[bytes]:
    if not isinstance(messages, list):
        raise EncodeError(f"messages must be a list of JSON objects, not a {type(messages).__name__}")
    return encode_messages(messages, listed=True)


def _summary_arguments(summary: str | _Keep | None) -> tuple[bytes, bytes]:
    if isinstance(summary, _Keep):
        return b"0", b""
    if summary is None:
        return b"2", b""
    if not isinstance(summary, str):
        raise EncodeError(f"the summary must be a text or None, not a {type(summary).__name__}")
    encode_value(summary, "the summary")
    return b"1", summary.encode()


def _metadata_arguments(metadata: Mapping[str, Any] | None) -> list[bytes]:
    if metadata is not None and not isinstance(metadata, Mapping):
        raise EncodeError(f"metadata must be a mapping, not a {type(metadata).__name__}")
    arguments = []
    for name, value in (metadata or {}).items():
        encode_value({name: value}, "metadata")
        arguments += [name.encode(), b"0" if value is None else b"1", encode_value(value, "metadata")[0]]
    return arguments


def _gone(key: str) -> SessionNotFound:
    return SessionNotFound(f"there is no session at {key!r}: never saved, expired, evicted or deleted")


REFUSALS = {
    "foreign": "is not a memkit session: element 0 is no memkit header",
    "schema": "was written by a newer memkit (schema {0}); upgrade this one",
    "header": "has a damaged header",
    "element": "holds a damaged element, number {0}",
    "vectors": "cannot have vectors: {vectors!r}, where they belong, is not memkit's",
}


def _explain(error: redis.RedisError, key: str, client: Any) -> None:
    """Add to an error of the connection how busy its pool is; raise what one of a key means."""
    if isinstance(error, ResponseError):
        _refuse(error, key)
    pool: Any = getattr(client, "connection_pool", None)  # a cluster's client has one for each node
    if isinstance(error, redis.ConnectionError | redis.TimeoutError) and hasattr(pool, "get_connection_count"):
        idle, busy = (count for count, _ in pool.get_connection_count())
        error.add_note(
            f"memkit, at {key!r}: of at most {pool.max_connections} connections in the client's pool, {busy} in use "
            f"and {idle} idle; a command whose connection is lost is sent again {_retries(client)} times"
        )


def _answered(operation: Read[Any], replies: list[Any]) -> list[Any]:
    """Return the replies; raise the first error, which may be about another key than the session's own."""
    for command, reply in zip(operation.commands, replies, strict=True):
        if isinstance(reply, ResponseError):
            _refuse(reply, cast("bytes", command[1]).decode())
        if isinstance(reply, Exception):
            raise reply
    return replies


def _refuse(error: ResponseError, key: str) -> None:
    """Raise the DecodeError that Redis's or the scripts' words about a foreign or damaged key mean."""
    said = str(error)
    # Redis 6.2 wraps an error that a script meets: "ERR Error running script (...): @user_script:9: WRONGTYPE ...".
    if "WRONGTYPE Operation against a key" in said:
        raise DecodeError(f"{key!r} is another type of key than memkit keeps there; nothing was changed") from error
    if said.startswith("MEMKIT "):
        _, what, *rest = said.split()
        says = REFUSALS[what].format(*rest, vectors=vectors_key(key).decode())
        raise DecodeError(f"{key!r} {says}; nothing was changed. `memkit inspect` shows it") from error


def _operations(client: object, prefix: str, ttl: Duration | ExpiryPolicy | None, shorten: bool) -> Operations:
    if not isinstance(prefix, str):
        raise PolicyError(f"prefix must be a text such as 'session:', not {prefix!r}")
    # A sandbox's client carries its prefix: production code under test stays inside without a change.
    sandbox = getattr(client, "_test_prefix", "")
    nested = prefix if prefix.startswith(sandbox) else sandbox + prefix
    encoded(nested)
    try:
        warned = _warned_of.setdefault(client, set())
    except TypeError:  # a wrapper that has no hash or no weak references
        warned = set()
    return Operations(nested, ExpiryPolicy.of(ttl), shorten=shorten, warned=warned)


class MemoryStore:
    """Sessions of an LLM application in Redis: one key each, expiry in every write, exactly once under retries.

    ``client``: a redis-py client, standalone, sentinel or cluster; its pool, retries and decoding are the caller's.
    ``prefix``: in front of every session id, as given. ``ttl``: seconds, ``"7d"``, a timedelta (sliding: renewed by
    every write), an ExpiryPolicy, or None (never expires). ``shorten``: let a shorter policy shorten the life of living
    sessions; otherwise their longer deadline is kept, with a PolicyShortenedWarning (one for each client, prefix
    and pair of policies).

    Raises PolicyError for a ttl, prefix, session id or version that cannot be meant; EncodeError for what cannot be
    stored exactly; DecodeError for a foreign, damaged or newer key; what Redis raises passes through. When a call
    raises one of memkit's errors, what is stored is as it was.
    """

    def __init__(
        self,
        client: redis.Redis | redis.RedisCluster,
        *,
        prefix: str,
        ttl: Duration | ExpiryPolicy | None = None,
        shorten: bool = False,
    ) -> None:
        self._client: Any = client
        self._operations = _operations(client, prefix, ttl, shorten)

    @property
    def prefix(self) -> str:
        """What stands in front of each session id (with a sandbox's own prefix, if the client has one)."""
        return self._operations.prefix

    @property
    def policy(self) -> ExpiryPolicy:
        """How long this store's sessions are meant to live."""
        return self._operations.policy

    @property
    def retries(self) -> int:
        """How often the client sends a command again after a lost connection: 10 or 0, by how it was made."""
        return _retries(self._client)

    def key(self, session_id: str) -> str:
        """Return the session's key in Redis."""
        return self._operations.key(session_id)

    def save(self, session_id: str, messages: list[Message], *, version: int | None = None) -> int:
        """Replace the dialogue, whole or not at all; summary and metadata stay. Returns the new version.

        ``version``: fail with Conflict unless the session is at it (0: unless there is none).
        """
        return self._write(self._operations.save(session_id, messages, version=version))

    def load(self, session_id: str, last: int | None = None) -> list[Message] | None:
        """Return the messages, oldest first, exactly as saved (only the ``last`` n), or None without such a session."""
        messages = self._read(self._operations.load(session_id, last))
        if messages is not None and self.policy.refresh_on_read:
            self.touch(session_id)
        return messages

    def append(self, session_id: str, *messages: Message, create: bool = True) -> int:
        """Add messages exactly once and return the version that holds them.

        A message whose own ``"id"`` (text) is among the session's last 1,024 adds nothing. A missing session is
        created, or, with ``create=False``, raises SessionNotFound.
        """
        return self._write(self._operations.append(session_id, messages, create=create))

    def get(self, session_id: str) -> Session | None:
        """Return the whole Session, or None when there is none."""
        found = self._read(self._operations.get(session_id))
        if found is None:
            return None
        session, vectors = found
        if self.policy.refresh_on_read:
            session = _renewed(session, self._write(self._operations.touch(session_id)))
        if vectors:
            session = self._read(self._operations.vectors_lost(session))
        return session

    def update(
        self,
        session_id: str,
        *,
        summary: str | _Keep | None = KEEP,
        metadata: Mapping[str, Any] | None = None,
        version: int | None = None,
    ) -> int:
        """Set the summary (None removes it), merge metadata by key (None removes one); return the new version.

        Messages are not touched. Raises SessionNotFound, or Conflict when the session is not at ``version``.
        """
        return self._write(self._operations.update(session_id, summary, metadata, version))

    def put_vectors(self, session_id: str, array: Any) -> int:
        """Store a float32 array beside the session, with its deadline; return the new version. SessionNotFound.

        Any buffer of float32 will do (``array.array("f")``); to read it back takes numpy.
        """
        return self._write(self._operations.put_vectors(session_id, array))

    def get_vectors(self, session_id: str) -> np.ndarray | None:
        """Return the array, shape and bytes as stored; None without one, or when it was evicted.

        Raises MemkitError where numpy, which the extra ``lab`` brings, is not installed.
        """
        return self._read(self._operations.get_vectors(session_id))

    def touch(self, session_id: str) -> bool:
        """Renew a sliding deadline; return whether there is such a session."""
        return self._write(self._operations.touch(session_id)) is not None

    def ttl(self, session_id: str) -> float | None:
        """Return the seconds it has left, None when it never expires. Raises SessionNotFound."""
        return self._read(self._operations.ttl(session_id))

    def delete(self, session_id: str) -> bool:
        """Remove a session and its vectors; return whether it was there."""
        life = self._read(self._operations.life(session_id))
        return life is not None and self._write(self._operations.delete(session_id, life))

    def sessions(self) -> Iterator[str]:
        """Yield the ids of this store's sessions, by SCAN: in no order, one that is there all along at least once."""
        for key in self._client.scan_iter(match=self._operations.pattern(), count=1000, _type="list", **RAW):
            session_id = self._operations.session_of(key)
            if session_id:
                yield session_id

    def _read(self, operation: Read[T]) -> T:
        replies = self._replies(operation)
        for _ in range(READS_AGAIN):
            if not operation.torn(replies):
                break
            replies = self._replies(operation)
        return operation.decode(replies)

    def _replies(self, operation: Read[T]) -> list[Any]:
        try:
            if len(operation.commands) == 1:
                return [self._client.execute_command(*operation.commands[0], **RAW)]
            with self._client.pipeline(transaction=False) as pipe:
                for command in operation.commands:
                    pipe.execute_command(*command, **RAW)
                return _answered(operation, pipe.execute(raise_on_error=False))
        except redis.RedisError as error:
            _explain(error, operation.key, self._client)
            raise

    def _write(self, operation: Write[T]) -> T:
        call = (1, encoded(operation.key), *operation.arguments)
        try:
            try:
                reply = self._client.execute_command("EVALSHA", operation.script.sha, *call, **RAW)
            except NoScriptError:
                # Never loaded, or lost (SCRIPT FLUSH, a restart, a failover): send it whole, with the same nonce.
                reply = self._client.execute_command("EVAL", operation.script.text, *call, **RAW)
        except redis.RedisError as error:
            _explain(error, operation.key, self._client)
            raise
        return operation.decode(reply)

    def __repr__(self) -> str:
        return f"<MemoryStore {self.prefix!r}, {self.policy}>"


class AsyncMemoryStore:
    """MemoryStore for redis-py's asyncio clients: the same names and guarantees, awaited; see there."""

    def __init__(
        self,
        client: redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster,
        *,
        prefix: str,
        ttl: Duration | ExpiryPolicy | None = None,
        shorten: bool = False,
    ) -> None:
        self._client: Any = client
        self._operations = _operations(client, prefix, ttl, shorten)

    @property
    def prefix(self) -> str:
        """See MemoryStore.prefix."""
        return self._operations.prefix

    @property
    def policy(self) -> ExpiryPolicy:
        """See MemoryStore.policy."""
        return self._operations.policy

    @property
    def retries(self) -> int:
        """See MemoryStore.retries."""
        return _retries(self._client)

    def key(self, session_id: str) -> str:
        """Return the session's key in Redis."""
        return self._operations.key(session_id)

    async def save(self, session_id: str, messages: list[Message], *, version: int | None = None) -> int:
        """See MemoryStore.save."""
        return await self._write(self._operations.save(session_id, messages, version=version))

    async def load(self, session_id: str, last: int | None = None) -> list[Message] | None:
        """See MemoryStore.load."""
        messages = await self._read(self._operations.load(session_id, last))
        if messages is not None and self.policy.refresh_on_read:
            await self.touch(session_id)
        return messages

    async def append(self, session_id: str, *messages: Message, create: bool = True) -> int:
        """See MemoryStore.append."""
        return await self._write(self._operations.append(session_id, messages, create=create))

    async def get(self, session_id: str) -> Session | None:
        """See MemoryStore.get."""
        found = await self._read(self._operations.get(session_id))
        if found is None:
            return None
        session, vectors = found
        if self.policy.refresh_on_read:
            session = _renewed(session, await self._write(self._operations.touch(session_id)))
        if vectors:
            session = await self._read(self._operations.vectors_lost(session))
        return session

    async def update(
        self,
        session_id: str,
        *,
        summary: str | _Keep | None = KEEP,
        metadata: Mapping[str, Any] | None = None,
        version: int | None = None,
    ) -> int:
        """See MemoryStore.update."""
        return await self._write(self._operations.update(session_id, summary, metadata, version))

    async def put_vectors(self, session_id: str, array: Any) -> int:
        """See MemoryStore.put_vectors."""
        return await self._write(self._operations.put_vectors(session_id, array))

    async def get_vectors(self, session_id: str) -> np.ndarray | None:
        """See MemoryStore.get_vectors."""
        return await self._read(self._operations.get_vectors(session_id))

    async def touch(self, session_id: str) -> bool:
        """See MemoryStore.touch."""
        return await self._write(self._operations.touch(session_id)) is not None

    async def ttl(self, session_id: str) -> float | None:
        """See MemoryStore.ttl."""
        return await self._read(self._operations.ttl(session_id))

    async def delete(self, session_id: str) -> bool:
        """See MemoryStore.delete."""
        life = await self._read(self._operations.life(session_id))
        return life is not None and await self._write(self._operations.delete(session_id, life))

    async def sessions(self) -> AsyncIterator[str]:
        """See MemoryStore.sessions."""
        async for key in self._client.scan_iter(match=self._operations.pattern(), count=1000, _type="list", **RAW):
            session_id = self._operations.session_of(key)
            if session_id:
                yield session_id

    async def _read(self, operation: Read[T]) -> T:
        replies = await self._replies(operation)
        for _ in range(READS_AGAIN):
            if not operation.torn(replies):
                break
            replies = await self._replies(operation)
        return operation.decode(replies)

    async def _replies(self, operation: Read[T]) -> list[Any]:
        try:
            if len(operation.commands) == 1:
                return [await self._client.execute_command(*operation.commands[0], **RAW)]
            async with self._client.pipeline(transaction=False) as pipe:
                for command in operation.commands:
                    pipe.execute_command(*command, **RAW)
                return _answered(operation, await pipe.execute(raise_on_error=False))
        except redis.RedisError as error:
            _explain(error, operation.key, self._client)
            raise

    async def _write(self, operation: Write[T]) -> T:
        call = (1, encoded(operation.key), *operation.arguments)
        try:
            try:
                reply = await self._client.execute_command("EVALSHA", operation.script.sha, *call, **RAW)
            except NoScriptError:
                reply = await self._client.execute_command("EVAL", operation.script.text, *call, **RAW)
        except redis.RedisError as error:
            _explain(error, operation.key, self._client)
            raise
        return operation.decode(reply)

    def __repr__(self) -> str:
        return f"<AsyncMemoryStore {self.prefix!r}, {self.policy}>"


def _retries(client: Any) -> int:
    retry = client.get_retry() if hasattr(client, "get_retry") else getattr(client, "retry", None)
    return int(retry.get_retries()) if retry else 0
