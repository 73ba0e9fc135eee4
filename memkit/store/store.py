"""MemoryStore and AsyncMemoryStore: an LLM application's sessions in Redis, one LIST for each session (see encoding).

Promised:

- A write that is sent again, by redis-py's or the application's retries, is applied once if fewer than 255 other writes
  of the session came between (for an append: 1,024).
- A message with its own ``"id"`` is stored once among its session's last 1,024.
- An append that is sent again after a save does not bring back what the save replaced (the last 64 appends).
- The messages of one writer keep their order.
- Every acknowledged write survives a crash of the server with ``appendonly yes`` and ``appendfsync always``.

Not promised, because replication is asynchronous: that a replica which takes over (Sentinel, Cluster) has the last
acknowledged writes, or knows a call that was under way. ``WAIT`` closes most of that gap. It counts the writes of its
own connection::

    with client.client() as connection:  # redis-py: a client with one connection of the pool
        MemoryStore(connection, prefix="chat:", ttl="7d").append("user-42", message)
        replicas = connection.wait(1, 100)  # how many replicas have it, after at most 100 ms

On a cluster, with a client that one thread uses alone, the node's pool returns the same connection again::

    store.append("user-42", message)
    node = client.get_node_from_key(store.key("user-42"))
    replicas = client.execute_command("WAIT", 1, 100, target_nodes=node)

A call that raises redis-py's ConnectionError or TimeoutError after its retries was done once or not at all; messages
with their own ids may then be appended again.

A user with limited rights (ACL) needs, on the sessions' keys, DEL EVAL EVALSHA LINDEX LLEN LPOS LRANGE LSET LTRIM
PERSIST PEXPIRE PTTL RPUSH RPUSHX SETNX TIME; for vectors EXISTS GET GETRANGE SET on their keys; and SCAN for
``sessions()``. A command that is denied is an error and changes nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Self, TypeVar
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
from redis.client import NEVER_DECODE
from redis.exceptions import NoScriptError, ResponseError

from memkit.errors import NoTtlWarning, PolicyError
from memkit.policy import Duration, ExpiryPolicy
from memkit.store.encoding import Message, Session
from memkit.store.operations import (
    KEEP,
    Default,
    Operations,
    Read,
    Warned,
    Write,
    checked_replies,
    encoded,
    raise_decode_error,
)

if TYPE_CHECKING:
    import numpy as np
    import redis.asyncio.cluster

T = TypeVar("T")
C = TypeVar("C")
_warned_of: WeakKeyDictionary[object, set[Warned]] = WeakKeyDictionary()
"""The warnings of each client's stores: an application may make a store for every request."""
READ_ATTEMPTS: Final = 6
"""How often a read is sent while others write in between; the last replies are decoded with the shorter TTL."""
_NO_TTL: Final = Default("required")
"""The default of ``ttl``: None is given on purpose."""
RAW: Final = {NEVER_DECODE: True}
"""Replies stay bytes regardless of the client's ``decode_responses``, so that damage is seen."""


class _ClientChecked:
    """Refuses what is not a client of the right kind, before a missing argument is reported.

    It is a class of its own because ``inspect.signature`` prefers a ``__new__`` to an ``__init__`` beside it.
    """

    _asynchronous: ClassVar[bool]

    def __new__(cls, client: object = None, *_: object, **__: object) -> Self:
        # A pipeline, which has a command_stack, would only collect the store's commands.
        no_client = isinstance(client, type) or hasattr(client, "command_stack")
        if no_client or not callable(getattr(client, "execute_command", None)):
            raise TypeError(f"expected a redis-py client; got {type(client).__name__}. memkit.connect(url) makes one")
        if isinstance(client, redis.asyncio.Redis | redis.asyncio.RedisCluster) and not cls._asynchronous:
            raise TypeError(f"{cls.__name__} got an asyncio client; use AsyncMemoryStore")
        if isinstance(client, redis.Redis | redis.RedisCluster) and cls._asynchronous:
            raise TypeError(f"{cls.__name__} got a synchronous client; use MemoryStore")
        return super().__new__(cls)


class _Store(_ClientChecked, Generic[C]):
    """What both stores share: everything but the I/O."""

    def __init__(
        self,
        client: C,
        *,
        prefix: str,
        ttl: Duration | ExpiryPolicy | Default | None = _NO_TTL,
        shorten: bool = False,
    ) -> None:
        if not isinstance(prefix, str):
            raise PolicyError(f"expected a prefix such as 'session:'; got {type(prefix).__name__} {prefix!r}")
        # A sandbox's client carries its prefix: code under test needs no change.
        sandbox = getattr(client, "_test_prefix", "")
        nested = prefix if prefix.startswith(sandbox) else sandbox + prefix
        encoded(nested)
        try:
            warned = _warned_of.setdefault(client, set())
        except TypeError:  # a wrapper that has no hash or no weak references
            warned = set()
        policy = ExpiryPolicy.of(None if isinstance(ttl, Default) else ttl)
        if isinstance(ttl, Default) and (nested, policy, None) not in warned:
            warned.add((nested, policy, None))
            warnings.warn(
                f"{type(self).__name__}(prefix={prefix!r}) has no ttl=, so its sessions never expire. Add ttl='7d', or "
                "ttl=None if that is intended",
                NoTtlWarning,
                stacklevel=2,
            )
        self._client: Any = client
        self._operations = Operations(nested, policy, shorten=shorten, warned=warned)

    @property
    def prefix(self) -> str:
        """The beginning of each key, with a sandbox's own prefix in front if the client has one."""
        return self._operations.prefix

    @property
    def policy(self) -> ExpiryPolicy:
        """The expiry policy of this store's sessions."""
        return self._operations.policy

    @property
    def retries(self) -> int:
        """How often the client sends a command again after a lost connection; it depends on how it was made."""
        retry = self._client.get_retry() if hasattr(self._client, "get_retry") else getattr(self._client, "retry", None)
        return int(retry.get_retries()) if retry else 0

    def key(self, session_id: str) -> str:
        """Return the session's key in Redis.

        Args:
            session_id: Any string that is not empty.

        Raises:
            PolicyError: The id is invalid.
        """
        return self._operations.key(session_id)

    def _add_note(self, error: redis.RedisError, key: str) -> None:
        """Raise a DecodeError for a refused key; add the state of the pool to an error of the connection."""
        if isinstance(error, ResponseError):
            raise_decode_error(error, key)
        pool: Any = getattr(self._client, "connection_pool", None)  # a cluster's client has one for each node
        if isinstance(error, redis.ConnectionError | redis.TimeoutError) and hasattr(pool, "get_connection_count"):
            idle, busy = (count for count, _ in pool.get_connection_count())
            error.add_note(
                f"memkit: while accessing {key!r}. Connections in the client's pool: {busy} in use, {idle} idle, at "
                f"most {pool.max_connections}. Retries of a command after a lost connection: {self.retries}"
            )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.prefix!r}, {self.policy}>"


class MemoryStore(_Store[redis.Redis | redis.RedisCluster]):
    """Sessions of an LLM application in Redis: one key each, a TTL in every write, exactly once under retries.

    Args:
        client: A redis-py client: standalone, sentinel or cluster. Its pool, retries and decoding are the caller's.
        prefix: The beginning of every key, in front of the session id.
        ttl: Seconds, a string such as ``"7d"``, a timedelta (each is sliding: every write renews it), an ExpiryPolicy,
            or None (never expires). Without it sessions never expire, and a NoTtlWarning is issued, once for each
            client and prefix.
        shorten: Let a shorter policy shorten the TTL of existing sessions. Otherwise they keep their longer deadline,
            and a PolicyShortenedWarning is issued, once for each client, prefix and pair of policies.

    Raises:
        TypeError: ``client`` is not a client of redis-py, or an asyncio client.
        PolicyError: An invalid TTL, prefix, session id or version.

    Every method raises EncodeError for what cannot be stored exactly, and DecodeError for a foreign, damaged or newer
    key. If a call raises one of memkit's errors, what is stored is unchanged. Errors of Redis pass through.
    """

    _asynchronous = False

    def save(self, session_id: str, messages: list[Message], *, version: int | None = None) -> int:
        """Replace the messages, all or none, and return the new version. Summary and metadata stay.

        Args:
            session_id: The session; it is created if it does not exist.
            messages: JSON objects, oldest first.
            version: The version that the session must have; 0: it must not exist; None: any.

        Raises:
            Conflict: The session has another version.
            EncodeError: A message cannot be stored exactly, or is over 16 MiB.
        """
        return self._write(self._operations.save(session_id, messages, version=version))

    def load(self, session_id: str, last: int | None = None) -> list[Message] | None:
        """Return the messages exactly as saved, oldest first; None if the session does not exist.

        Args:
            session_id: The session.
            last: Return only this many of the newest messages; None: all.
        """
        messages = self._read(self._operations.load(session_id, last))
        if messages is not None and self.policy.refresh_on_read:
            self.touch(session_id)
        return messages

    def append(self, session_id: str, *messages: Message, create: bool = True) -> int:
        """Add messages exactly once, and return the version that contains them.

        A message with its own ``"id"`` (a string) is not added if the session's last 1,024 messages contain that id.

        Args:
            session_id: The session.
            *messages: JSON objects, oldest first.
            create: Create a session that does not exist.

        Raises:
            SessionNotFound: The session does not exist, and ``create`` is False.
            EncodeError: A message cannot be stored exactly, or is over 16 MiB.
        """
        return self._write(self._operations.append(session_id, messages, create=create))

    def get(self, session_id: str) -> Session | None:
        """Return the whole Session, or None if it does not exist.

        Args:
            session_id: The session.
        """
        if self.policy.refresh_on_read:
            self.touch(session_id)  # first, so that the session's TTL is the renewed one
        session, vectors = self._read(self._operations.get(session_id)) or (None, False)
        if session and vectors:
            session = self._read(self._operations.vectors_lost(session))
        return session

    def update(
        self,
        session_id: str,
        *,
        summary: str | Default | None = KEEP,
        metadata: Mapping[str, Any] | None = None,
        version: int | None = None,
    ) -> int:
        """Change summary and metadata, and return the new version. Messages are not rewritten.

        Args:
            session_id: The session.
            summary: The new summary; None removes it.
            metadata: Values to merge by name; None as a value removes one.
            version: The version that the session must have; None: any.

        Raises:
            SessionNotFound: The session does not exist.
            Conflict: The session has another version.
            EncodeError: A value cannot be stored exactly.
        """
        return self._write(self._operations.update(session_id, summary, metadata, version))

    def put_vectors(self, session_id: str, array: Any) -> int:
        """Store an array under the session's deadline, and return the new version.

        Args:
            session_id: The session.
            array: Any buffer of float32, of any shape: numpy's, or ``array.array("f")``.

        Raises:
            SessionNotFound: The session does not exist.
            EncodeError: The array is not float32, or over 16 MiB.
        """
        return self._write(self._operations.put_vectors(session_id, array))

    def get_vectors(self, session_id: str) -> np.ndarray | None:
        """Return the array, shape and bytes as stored; None if there is none, or if it was evicted.

        Args:
            session_id: The session.

        Raises:
            MemkitError: numpy, part of the extra ``lab``, is not installed.
        """
        return self._read(self._operations.get_vectors(session_id))

    def touch(self, session_id: str) -> bool:
        """Renew a sliding deadline; return whether the session exists.

        Args:
            session_id: The session.
        """
        return self._write(self._operations.touch(session_id))

    def ttl(self, session_id: str) -> float | None:
        """Return the remaining TTL in seconds, None if the session never expires.

        Args:
            session_id: The session.

        Raises:
            SessionNotFound: The session does not exist.
        """
        return self._read(self._operations.ttl(session_id))

    def delete(self, session_id: str) -> bool:
        """Remove a session and its vectors; return whether the session existed.

        Args:
            session_id: The session.
        """
        born = self._read(self._operations.born(session_id))
        return born is not None and self._write(self._operations.delete(session_id, born))

    def sessions(self) -> Iterator[str]:
        """Yield the ids of this store's sessions by SCAN: in no order; an id may come twice."""
        for key in self._client.scan_iter(match=self._operations.pattern(), count=1000, _type="list", **RAW):
            session_id = self._operations.session_of(key)
            if session_id:
                yield session_id

    def _read(self, operation: Read[T]) -> T:
        for _ in range(READ_ATTEMPTS):
            replies = self._replies(operation)
            if not operation.is_inconsistent(replies):
                break
        return operation.decode(replies)

    def _replies(self, operation: Read[T]) -> list[Any]:
        try:
            if len(operation.commands) == 1:
                return [self._client.execute_command(*operation.commands[0], **RAW)]
            with self._client.pipeline(transaction=False) as pipe:
                for command in operation.commands:
                    pipe.execute_command(*command, **RAW)
                return checked_replies(operation, pipe.execute(raise_on_error=False))
        except redis.RedisError as error:
            self._add_note(error, operation.key)
            raise

    def _write(self, operation: Write[T]) -> T:
        key, script, arguments, decode = operation
        try:
            try:
                reply = self._client.execute_command("EVALSHA", script.sha, *arguments, **RAW)
            except NoScriptError:
                # Never loaded, or lost (SCRIPT FLUSH, a restart, a failover): send the script, with the same nonce.
                reply = self._client.execute_command("EVAL", script.text, *arguments, **RAW)
        except redis.RedisError as error:
            self._add_note(error, key)
            raise
        return decode(reply)


class AsyncMemoryStore(_Store["redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster"]):
    """MemoryStore for asyncio: the same names, arguments and guarantees, awaited.

    Args:
        client: A redis-py asyncio client: standalone, sentinel or cluster.
        prefix: See MemoryStore.
        ttl: See MemoryStore.
        shorten: See MemoryStore.

    Raises:
        TypeError: ``client`` is not an asyncio client of redis-py.
        PolicyError: An invalid TTL, prefix, session id or version.
    """

    _asynchronous = True

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
        if self.policy.refresh_on_read:
            await self.touch(session_id)
        session, vectors = await self._read(self._operations.get(session_id)) or (None, False)
        if session and vectors:
            session = await self._read(self._operations.vectors_lost(session))
        return session

    async def update(
        self,
        session_id: str,
        *,
        summary: str | Default | None = KEEP,
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
        return await self._write(self._operations.touch(session_id))

    async def ttl(self, session_id: str) -> float | None:
        """See MemoryStore.ttl."""
        return await self._read(self._operations.ttl(session_id))

    async def delete(self, session_id: str) -> bool:
        """See MemoryStore.delete."""
        born = await self._read(self._operations.born(session_id))
        return born is not None and await self._write(self._operations.delete(session_id, born))

    async def sessions(self) -> AsyncIterator[str]:
        """See MemoryStore.sessions."""
        async for key in self._client.scan_iter(match=self._operations.pattern(), count=1000, _type="list", **RAW):
            session_id = self._operations.session_of(key)
            if session_id:
                yield session_id

    async def _read(self, operation: Read[T]) -> T:
        for _ in range(READ_ATTEMPTS):
            replies = await self._replies(operation)
            if not operation.is_inconsistent(replies):
                break
        return operation.decode(replies)

    async def _replies(self, operation: Read[T]) -> list[Any]:
        try:
            if len(operation.commands) == 1:
                return [await self._client.execute_command(*operation.commands[0], **RAW)]
            async with self._client.pipeline(transaction=False) as pipe:
                for command in operation.commands:
                    pipe.execute_command(*command, **RAW)
                return checked_replies(operation, await pipe.execute(raise_on_error=False))
        except redis.RedisError as error:
            self._add_note(error, operation.key)
            raise

    async def _write(self, operation: Write[T]) -> T:
        key, script, arguments, decode = operation
        try:
            try:
                reply = await self._client.execute_command("EVALSHA", script.sha, *arguments, **RAW)
            except NoScriptError:
                reply = await self._client.execute_command("EVAL", script.text, *arguments, **RAW)
        except redis.RedisError as error:
            self._add_note(error, key)
            raise
        return decode(reply)
