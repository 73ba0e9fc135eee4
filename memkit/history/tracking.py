"""Learn which keys a server changes, from the server: CLIENT TRACKING in broadcast mode, for prefixes only.

It needs no configuration and reads no value. The server pushes the name of a key when it is written, expires, is
evicted or deleted, without the reason. If the server publishes ``evicted`` events, these have that reason; memkit does
not turn them on. Measured: 1.2 to 1.8 times the server's CPU per write (MONITOR: 1.5 to 3.5).
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

import redis

from memkit.readonly.connection import ReadOnlyConnection, Reply, command, refused

MOST_PENDING = 200_000
"""Names or commands that wait to be recorded. Beyond it the disk is too slow: the connection is closed, so that the
server need not buffer more than its socket holds, and the time until the next connection is a gap."""
WAIT_S = 0.5
READ_BYTES = 1 << 16


class Subscription:
    """Reads what a server sends on a connection, in a thread, so that the server never waits for the disk.

    ``lost`` is why the connection ended; empty while it has not. ``lock`` guards what ``receive`` fills.

    Args:
        connection: The connection; it is closed with the subscription.
        receive: Called with each reply; returns how many wait to be taken.
        each_turn: Called at least twice a second.
    """

    def __init__(
        self,
        connection: ReadOnlyConnection,
        receive: Callable[[Reply], int],
        *,
        each_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._connection, self._receive, self._each_turn = connection, receive, each_turn
        self.lock = threading.Lock()
        self._arrived, self.answered = threading.Event(), threading.Event()
        self.lost = ""
        self._closing = False
        connection.socket.settimeout(WAIT_S)
        self._thread = threading.Thread(target=self._read, daemon=True, name="memkit-record")
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        """Wait until something has arrived, at most ``timeout_s`` seconds."""
        self._arrived.wait(timeout_s)
        self._arrived.clear()

    def close(self) -> None:
        """Close the connection."""
        self._closing = True
        self._connection.close()
        self._thread.join(WAIT_S * 4)

    def _read(self) -> None:
        socket, reader = self._connection.socket, self._connection.reader
        try:
            while not self._closing:
                self._each_turn()
                with self.lock:
                    pending = 0
                    while (reply := reader.gets()) is not False:
                        pending = self._receive(reply)
                if pending:
                    self._arrived.set()
                if pending > MOST_PENDING:
                    self._lose(f"more than {MOST_PENDING:,} changes were waiting: the disk is too slow")
                    self._connection.close()
                    return
                try:
                    part = socket.recv(READ_BYTES)
                except TimeoutError:
                    continue
                if not part:
                    self._lose("the server closed the connection")
                    return
                reader.feed(part)
        except (OSError, redis.RedisError) as error:
            self._lose(f"the connection broke: {error}")

    def _lose(self, reason: str) -> None:
        if not self._closing:
            self.lost = reason
            self._arrived.set()
            self.answered.set()


class Tracker:
    """The names of changed keys, as they arrive.

    Args:
        client: A client of the server.
        prefixes: Beginnings of the keys to track; the empty text tracks all.

    Raises:
        redis.RedisError: The server refuses CLIENT TRACKING.
    """

    def __init__(self, client: redis.Redis, prefixes: Sequence[bytes]) -> None:
        connection = ReadOnlyConnection(client, name="the tracking connection", keep_idle_times=False)
        words = [word for prefix in prefixes for word in (b"PREFIX", prefix)]
        replies = connection.ask("HELLO", "3"), connection.ask("CLIENT", "TRACKING", "ON", "BCAST", *words)
        for reply in filter(refused, replies):
            connection.close()
            raise reply
        # Refused to a user without the right: then the counters have to do.
        connection.ask("SUBSCRIBE", f"__keyevent@{connection.database}__:evicted")
        self._names: dict[bytes, None] = {}
        self._evicted: set[bytes] = set()
        self._flushed = False
        self._asked = 0
        self._connection = connection
        self.subscription = Subscription(connection, self._receive)

    def catch_up(self, timeout_s: float) -> None:
        """Wait until the names of all keys that have changed until now are here: a slow machine reads them late.

        Args:
            timeout_s: How long to wait at most, in seconds.
        """
        self._asked += 1  # numbered: the answer to an earlier call may come after its timeout
        self.subscription.answered.clear()
        if not self.subscription.lost:
            with suppress(OSError):  # the subscription notices it
                self._connection.socket.sendall(command("PING", str(self._asked)).payload)
            self.subscription.answered.wait(timeout_s)

    def take(self, timeout_s: float) -> tuple[list[bytes], set[bytes], bool]:
        """Return the names that have arrived, those of them that were evicted, and whether a database was flushed.

        Args:
            timeout_s: How long to wait for the first name, in seconds.
        """
        self.subscription.wait(timeout_s)
        with self.subscription.lock:
            names, self._names = list(self._names), {}
            evicted, self._evicted = self._evicted, set()
            flushed, self._flushed = self._flushed, False
        return names, evicted, flushed

    def _receive(self, push: Reply) -> int:
        if isinstance(push, list) and push and push[0] == b"invalidate":
            if push[1] is None:  # FLUSHDB or FLUSHALL
                self._flushed = True
            else:
                self._names.update(dict.fromkeys(push[1]))
        elif push == str(self._asked).encode():
            self.subscription.answered.set()
        elif isinstance(push, list) and push and push[0] == b"message":
            # The event comes before the server sends the name of the changed key.
            self._evicted.add(push[2])
            self._names[push[2]] = None
        return len(self._names) + self._flushed
