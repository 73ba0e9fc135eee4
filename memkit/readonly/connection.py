"""One connection to one server for the audit: read-only commands as ready bytes, counted, at a share of its time.

redis-py packs each argument and reads each reply in Python, which costs 10 times what the server needs (measured); a
full pass over a million keys is four million replies. Connecting, TLS and credentials stay redis-py's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import hiredis
import redis

READ_BYTES = 1 << 17
ANSWER_WITHIN_S = 30.0
"""Longer than connecting may take: a batch behind somebody's slow command is no reason to give up."""

FACTS = {
    "type": b"*2\r\n$4\r\nTYPE\r\n",
    "pexpiretime": b"*2\r\n$11\r\nPEXPIRETIME\r\n",
    "pttl": b"*2\r\n$4\r\nPTTL\r\n",
    "object|idletime": b"*3\r\n$6\r\nOBJECT\r\n$8\r\nIDLETIME\r\n",
    "memory|usage": b"*3\r\n$6\r\nMEMORY\r\n$5\r\nUSAGE\r\n",
    "exists": b"*2\r\n$6\r\nEXISTS\r\n",
}
"""Commands about one key that leave its idle clock alone on Redis 6.2 to 8.2 and Valkey 9 (measured)."""

Reply = Any


def packed(*args: str | bytes | int) -> bytes:
    """Return one command as Redis reads it."""
    parts = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    return b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


class Ticket(NamedTuple):
    """Commands under way: about which keys, which, and how many replies come before theirs and after."""

    keys: Sequence[bytes]
    commands: tuple[str, ...]
    first: int
    last: int


class Wire:
    """A connection of the audit's own, made the way the client makes its own (TLS, socket, user), in RESP2."""

    def __init__(self, client: redis.Redis, *, name: str = "") -> None:
        pool = client.connection_pool
        # Maintenance notifications need RESP3 (redis-py 7 and later) and belong to the client's own pool.
        options = {key: value for key, value in pool.connection_kwargs.items() if not key.startswith("maint_")}
        self._connection: Any = pool.connection_class(**{**options, "protocol": 2, "decode_responses": False})
        self.name = name
        self.sent: Counter[str] = Counter()
        self.reconnect()

    def reconnect(self) -> None:
        """Connect, or connect anew when replies under way are no longer wanted; idle clocks are spared."""
        self._connection.disconnect()
        self._connection.connect()
        # The socket itself: reading reply by reply through the connection costs more than the whole budget.
        self._socket = self._connection._sock
        self._socket.settimeout(ANSWER_WITHIN_S)
        self._reader = hiredis.Reader(protocolError=redis.InvalidResponse, replyError=redis.ResponseError)
        # Refused before 7.2 (NO-TOUCH) and 7.0 (NO-EVICT); no command of the audit's sampling relies on either.
        self.ask("CLIENT", "NO-TOUCH", "ON")
        self.ask("CLIENT", "NO-EVICT", "ON")

    def exchange(self, payload: bytes, replies: int) -> list[Reply]:
        """Send packed commands and return as many replies; a refusal is an item of the list, not raised."""
        self._send(payload)
        return self.receive(replies)

    def _send(self, payload: bytes) -> None:
        try:
            self._socket.sendall(payload)
        except OSError as error:
            raise self._broken(error) from None

    def receive(self, replies: int) -> list[Reply]:
        """Return the next replies of what is under way."""
        found: list[Reply] = []
        gets, take = self._reader.gets, found.append
        while len(found) < replies:
            reply = gets()
            # False is what the reader says when it needs more bytes.
            if reply is False:
                self._feed()
            else:
                take(reply)
        return found

    def _broken(self, error: OSError) -> redis.RedisError:
        where = self.name or "the server"
        if isinstance(error, TimeoutError):
            return redis.TimeoutError(f"{where} stopped answering in the middle of the audit")
        return redis.ConnectionError(f"the connection to {where} broke in the middle of the audit: {error}")

    def _feed(self) -> None:
        try:
            part = self._socket.recv(READ_BYTES)
        except OSError as error:
            raise self._broken(error) from None
        if not part:
            raise redis.ConnectionError("the server closed the connection in the middle of the audit")
        self._reader.feed(part)

    def ask(self, *args: str | bytes | int) -> Reply:
        """Send one command and return its reply, or the ResponseError that it was refused with."""
        self.sent[_name(args)] += 1
        return self.exchange(packed(*args), 1)[0]

    def post(
        self, keys: Sequence[bytes], commands: Sequence[str], *, first: Sequence[bytes] = (), last: Sequence[bytes] = ()
    ) -> Ticket:
        """Send packed commands and, between them, each command of FACTS for all keys; to be received and collected."""
        named = [b"$%d\r\n%b\r\n" % (len(key), key) for key in keys]
        # Joining is what makes this fast: the head of a command before each name.
        self._send(b"".join([*first, *(FACTS[command].join([b"", *named]) for command in commands), *last]))
        for command in commands:
            self.sent[command] += len(keys)
        return Ticket(keys, tuple(commands), len(first), len(last))

    def collect(self, ticket: Ticket) -> tuple[dict[str, list[Reply]], list[Reply]]:
        """Return a column of replies a command, and the ``last`` ones, once the ``first`` ones were received."""
        count = len(ticket.keys)
        found = self.receive(count * len(ticket.commands) + ticket.last)
        columns = {name: found[at * count : (at + 1) * count] for at, name in enumerate(ticket.commands)}
        return columns, found[count * len(ticket.commands) :]

    def close(self) -> None:
        """Give the connection back to nobody."""
        self._connection.disconnect()


def _name(args: Sequence[str | bytes | int]) -> str:
    words = [str(arg).lower() for arg in args[:2]]
    return "|".join(words) if words[0] in CONTAINERS and len(words) > 1 else words[0]


CONTAINERS = frozenset({"client", "config", "memory", "object", "latency", "slowlog", "cluster", "acl"})


class Pace:
    """Works a share of the time (``duty``), in smaller batches when the server slows, and says when to stop."""

    def __init__(self, duty: float, *, batch: int) -> None:
        self._rest = 1 / duty - 1
        self.restless = self._rest == 0
        self.batch = self._full_batch = batch
        self._usual_s = 0.0
        self._strikes = 0
        self.stopped: str | None = None
        self.halved = 0

    def after(self, took_s: float, keys: int) -> None:
        """Account for a batch: rest, and adapt to what it cost compared with the usual."""
        each_s = took_s / max(keys, 1)
        self._judge(each_s, took_s)
        self._usual_s = each_s if not self._usual_s else min(self._usual_s * 1.02, each_s * 0.1 + self._usual_s * 0.9)
        if self._rest > 0:
            time.sleep(min(took_s * self._rest, 1.0))

    def _judge(self, each_s: float, took_s: float) -> None:
        # A batch is slow when it takes several times the usual and long enough for a neighbour to notice.
        slow = self._usual_s > 0 and each_s > 4 * self._usual_s and took_s > 0.02
        self._strikes = self._strikes + 1 if slow else 0
        if slow:
            self.halved += 1
            self.batch = max(self.batch // 2, 10)
        elif self.batch < self._full_batch:
            self.batch = min(self.batch + max(self.batch // 8, 1), self._full_batch)
        if self._strikes >= 8:
            self.stopped = "the server answered many times slower than at the start"


def refused(reply: Reply) -> bool:
    """Whether a reply is a refusal."""
    return isinstance(reply, Exception)
