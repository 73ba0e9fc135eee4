"""A TCP proxy in a process of its own that drops, halves and delays requests and replies, and counts what it did."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import random
import select
import socket
import threading
import time
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Self

KINDS = (
    "request dropped",
    "request halved",
    "request delayed",
    "reply dropped",
    "reply halved",
    "reply delayed",
)
FORK = multiprocessing.get_context("fork")


class Chaos:
    """Stands before one server (a unix socket's path, or a port on loopback) while the ``with`` block runs.

    ``rate``: the share of requests and of replies that go wrong. ``delay_s``: the longest delay; longer than the
    client's timeout, so that it sends again what is still under way.
    """

    def __init__(self, target: str | int, *, rate: float, delay_s: float, seed: int = 0) -> None:
        self._target, self._rate, self._delay_s, self._seed = target, rate, delay_s, seed
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._counts: Any = FORK.Array(ctypes.c_long, len(KINDS))
        self._active: Synchronized[bool] = FORK.Value(ctypes.c_bool, True)  # type: ignore[assignment]
        self._process = FORK.Process(target=self._serve, daemon=True)

    @property
    def faults(self) -> dict[str, int]:
        return dict(zip(KINDS, self._counts, strict=True))

    def calm(self) -> None:
        """Do no more harm, and go on forwarding."""
        self._active.value = False

    def __enter__(self) -> Self:
        self._process.start()
        self._listener.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def _serve(self) -> None:
        dice = random.Random(self._seed)
        while True:
            client = self._listener.accept()[0]
            threading.Thread(target=self._forward, args=(client, random.Random(dice.random())), daemon=True).start()

    def _connect(self) -> socket.socket:
        if isinstance(self._target, int):
            return socket.create_connection(("127.0.0.1", self._target))
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._target)
        return server

    def _forward(self, client: socket.socket, dice: random.Random) -> None:
        with contextlib.suppress(OSError), client, self._connect() as server:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # What redis-py sends when it connects is forwarded without a fault, or no command would ever get through.
            peaceful = 4
            while True:
                ready = select.select([client, server], [], [])[0]
                source, sink, what = (client, server, "request") if client in ready else (server, client, "reply")
                data = source.recv(1 << 18)
                if not data:
                    return
                peaceful -= 1
                if peaceful < 0 and self._active.value and dice.random() < self._rate:
                    data, goes_on = self._harm(data, what, dice)
                    sink.sendall(data)
                    if not goes_on:
                        return
                else:
                    sink.sendall(data)

    def _harm(self, data: bytes, what: str, dice: random.Random) -> tuple[bytes, bool]:
        """Return what is still to be forwarded, and whether the connection stays."""
        harm = dice.choice(("dropped", "halved", "delayed"))
        with self._counts.get_lock():
            self._counts[KINDS.index(f"{what} {harm}")] += 1
        if harm == "delayed":
            time.sleep(dice.uniform(0, self._delay_s))
            return data, True
        return (b"" if harm == "dropped" else data[: len(data) // 2]), False
