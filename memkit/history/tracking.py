"""Learn which keys a server changes, from the server: CLIENT TRACKING in broadcast mode, for prefixes only.

It needs no configuration and reads no value. The server pushes the name of a key when it is written, expires, is
evicted or deleted, without the reason. Measured: 1.2 to 1.6 times the server's CPU per write (MONITOR: 1.5 to 3.5).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import redis

from memkit.readonly.connection import ReadOnlyConnection, refused

MOST_PENDING = 200_000
"""Names that wait to be recorded. Beyond it the disk is too slow: the connection is closed, so that the server need not
buffer more than its socket holds, and the time until the next connection is a gap."""
WAIT_S = 0.5
READ_BYTES = 1 << 16


class Tracker:
    """A connection on which names of changed keys arrive, read by a thread.

    Args:
        client: A client of the server.
        prefixes: Beginnings of the keys to track; the empty text tracks all.

    Raises:
        redis.RedisError: The server refuses CLIENT TRACKING.
    """

    def __init__(self, client: redis.Redis, prefixes: Sequence[bytes]) -> None:
        self._connection = ReadOnlyConnection(client, name="the tracking connection", keep_idle_times=False)
        self._names: dict[bytes, None] = {}
        self._lock = threading.Lock()
        self._arrived = threading.Event()
        self.flushed = False
        self.lost = ""
        self._closing = False
        words = [word for prefix in prefixes for word in (b"PREFIX", prefix)]
        commands: list[list[str | bytes | int]] = [["HELLO", "3"], ["CLIENT", "TRACKING", "ON", "BCAST", *words]]
        for command in commands:
            reply = self._connection.ask(*command)
            if refused(reply):
                self._connection.close()
                raise reply
        self._connection.socket.settimeout(WAIT_S)
        self._thread = threading.Thread(target=self._read, daemon=True, name="memkit-tracking")
        self._thread.start()

    def take(self, timeout_s: float) -> tuple[list[bytes], bool]:
        """Return the names that have arrived, and whether a database was flushed; wait for the first one.

        Args:
            timeout_s: How long to wait, in seconds.
        """
        self._arrived.wait(timeout_s)
        with self._lock:
            names, self._names = list(self._names), {}
            flushed, self.flushed = self.flushed, False
            self._arrived.clear()
        return names, flushed

    def close(self) -> None:
        """Close the connection."""
        self._closing = True
        self._connection.close()
        self._thread.join(WAIT_S * 4)

    def _read(self) -> None:
        socket, reader = self._connection.socket, self._connection.reader
        while not self._closing:
            try:
                part = socket.recv(READ_BYTES)
            except TimeoutError:
                continue
            except OSError as error:
                self._lose(f"the connection broke: {error}")
                return
            if not part:
                self._lose("the server closed the connection")
                return
            reader.feed(part)
            while (push := reader.gets()) is not False:
                self._take(push)
            if len(self._names) > MOST_PENDING:
                self._lose(f"more than {MOST_PENDING:,} names were waiting: the disk is too slow")
                self._connection.close()
                return

    def _take(self, push: object) -> None:
        if not isinstance(push, list) or not push or push[0] != b"invalidate":
            return
        with self._lock:
            if push[1] is None:  # FLUSHDB or FLUSHALL
                self.flushed = True
            else:
                self._names.update(dict.fromkeys(push[1]))
            self._arrived.set()

    def _lose(self, reason: str) -> None:
        if not self._closing:
            self.lost = reason
            self._arrived.set()
